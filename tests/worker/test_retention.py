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
            await (await client.start(quick, run_id=run_id)).result(60)
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
            await (await client.start(quick, run_id="old")).result(60)
            days_ago(client, 8, "old")
            await is_gone(client, "old")
            first.stop()
            await until(lambda: other.store.take_role(second.worker_id, retention.ROLE))


async def test_a_worker_can_keep_everything(client: Client) -> None:
    """`retention=None`."""
    async with running_worker(client, quick, retention=None):
        await (await client.start(quick, run_id="old")).result(60)
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


# ─ workflows that say it themselves ──


@workflow(retention=timedelta(days=2))
async def fleeting() -> str:
    return "done"


@workflow(retention=timedelta(days=365))
async def lasting() -> str:
    return "done"


@workflow(retention="forever")
async def eternal() -> str:
    return "done"


@workflow
async def parent() -> str:
    return await lasting.options(run_id="child")()


KEPT = (fleeting, lasting, eternal)


async def closed_runs(client: Client, **ages: float) -> None:
    """Run each of `KEPT`, and let it have been closed so many days ago, in days by the name of the run."""
    async with running_worker(client, *KEPT, quick, retention=None):
        for run_id in ages:
            flow = next((one for one in KEPT if run_id.startswith(one.name)), quick)
            await (await client.start(flow, run_id=run_id)).result(60)
    for run_id, days in ages.items():
        days_ago(client, days, run_id)


async def test_a_workflow_says_itself_how_long_its_runs_are_kept(client: Client) -> None:
    """For a shorter time than others, for a longer one, or for ever; by a worker that has none of that code."""
    await closed_runs(
        client,
        fleeting_1=1.9,
        fleeting_2=2.1,
        lasting_1=364,
        lasting_2=366,
        eternal_1=36500,
        quick_1=29,
        quick_2=31,
    )

    async with running_worker(client, waiting):
        for run_id in ("fleeting_2", "lasting_2", "quick_2"):
            await is_gone(client, run_id)
        assert [
            await exists(client, run_id) for run_id in ("fleeting_1", "lasting_1", "eternal_1", "quick_1")
        ] == [True] * 4


async def test_pruning_heeds_what_workflows_say(client: Client) -> None:
    """What they want kept for longer stays, unless that workflow is named; what may go earlier waits for its age, too."""
    await closed_runs(client, fleeting_1=3, lasting_1=300, eternal_1=300, quick_1=3)

    assert (await client.prune(timedelta(days=4), dry_run=True)).runs == 0
    assert (await client.prune(timedelta(days=2), dry_run=True)).runs == 2
    assert (await client.prune(timedelta(days=2))).runs == 2
    assert [await exists(client, run_id) for run_id in ("fleeting_1", "quick_1")] == [False, False]
    assert (await client.prune(timedelta(days=200), workflow="lasting")).runs == 1
    assert (await client.prune(timedelta(days=200), workflow="eternal", dry_run=True)).runs == 1
    await client.delete("eternal_1")
    assert not await exists(client, "lasting_1")


async def test_a_run_is_kept_as_the_start_of_its_latest_generation_says(client: Client) -> None:
    """A child as its own workflow says; a run that is started anew as the new start says."""
    async with running_worker(client, *KEPT, quick, parent, retention=None):
        await (await client.start(parent, run_id="p")).result(60)
        await (await client.start(eternal, run_id="e")).result(60)
        await (await client.start(quick, run_id="e", if_closed="new")).result(60)
        await (await client.start(quick, run_id="q")).result(60)
        await (await client.start(eternal, run_id="q", if_closed="new")).result(60)
    for run_id in ("p", "child", "e", "q"):
        days_ago(client, 31, run_id)

    await client.prune(timedelta(days=30))

    assert [await exists(client, run_id) for run_id in ("p", "child", "e", "q")] == [False, True, False, True]


@pytest.mark.parametrize(
    ("value", "why"), [(59, "below 60 s"), ("never", "'forever', not 'never'"), (-1, "retention")]
)
def test_a_retention_that_makes_no_sense_is_refused(value: object, why: str) -> None:
    """Where it is said, before anything runs."""
    with pytest.raises(DefinitionError, match=why):
        workflow(retention=value)(quick.fn)  # type: ignore[arg-type, call-overload]
