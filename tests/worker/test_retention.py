"""Retention by default: closed runs go when their time is up, by one worker for all; nothing else ever does."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

import durable
from durable import Client, DefinitionError, RunNotFoundError, Signal, Worker, workflow
from durable.scheduler import retention
from tests.support.workers import file_of, is_waiting, running_worker, tampered, until

go = Signal("go", bool)
DAY_US = 86_400_000_000


@workflow
async def quick() -> str:
    return "done"


@workflow
async def waiting() -> bool:
    return await go.wait()


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.01)


def days_ago(client: Client, days: float, run_id: str) -> None:
    """Move all instants of a run into the past."""
    shift = round(days * DAY_US)
    tampered(
        file_of(client),
        "UPDATE run SET created_at_us = created_at_us - :us, closed_at_us = closed_at_us - :us WHERE run_id = :run",
        parameters={"us": shift, "run": run_id},  # type: ignore[arg-type]  # by name
    )


async def exists(client: Client, run_id: str) -> bool:
    try:
        await client.get(run_id)
    except RunNotFoundError:
        return False
    return True


async def is_gone(client: Client, run_id: str) -> None:
    async def gone() -> bool:
        return not await exists(client, run_id)

    await until(gone, what=f"{run_id} is deleted")


async def test_closed_runs_go_after_thirty_days(client: Client) -> None:
    """Not before; and open ones never, however old."""
    async with running_worker(client, quick, waiting, retention=None):
        for run_id in ("young", "old"):
            await (await client.start(quick, run_id=run_id)).result(10)
        await is_waiting(await client.start(waiting, run_id="open"), "signal")
    days_ago(client, 29.9, "young")
    days_ago(client, 30.1, "old")
    days_ago(client, 900, "open")

    async with running_worker(client, quick, waiting):
        await is_gone(client, "old")
    assert await exists(client, "young")
    assert await exists(client, "open")


async def test_one_worker_deletes_for_all(client: Client, url: str) -> None:
    """The role is another's once its worker is gone."""
    week = timedelta(days=7)
    async with (
        Client(url, durability="off") as other,
        running_worker(client, quick, retention=week) as first,
    ):
        await until(lambda: client.store.take_role(first.worker_id, retention.ROLE))
        async with running_worker(other, quick, retention=week) as second:
            assert not await other.store.take_role(second.worker_id, retention.ROLE)
            await (await client.start(quick, run_id="old")).result(10)
            days_ago(client, 8, "old")
            await is_gone(client, "old")
            first.stop()
            await until(lambda: other.store.take_role(second.worker_id, retention.ROLE))


async def test_a_worker_can_keep_everything(client: Client) -> None:
    """`retention=None`."""
    async with running_worker(client, quick, retention=None):
        await (await client.start(quick, run_id="old")).result(10)
        days_ago(client, 10_000, "old")
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert "durable retention" not in names
    assert await exists(client, "old")


@pytest.mark.parametrize("value", [0, 59.9, -1, "30d"])
def test_a_retention_that_cannot_be_meant(url: str, value: object) -> None:
    """Results must outlive whoever waits for them."""
    with pytest.raises((DefinitionError, durable.ArgumentsError)):
        Worker(Client(url), quick, retention=value)  # type: ignore[arg-type]
    with pytest.raises((DefinitionError, durable.ArgumentsError)):
        durable.configure(url, retention=value)  # type: ignore[arg-type]


async def test_plain_scripts_keep_the_same_rule(embedded: str) -> None:
    """Their engine deletes, too; `configure` sets the time."""
    async with Client(embedded) as client:
        await quick(run_id="old")
        days_ago(client, 31, "old")
        await is_gone(client, "old")
