"""Retention through the client: batch after batch until nothing chosen is left."""

from __future__ import annotations

import asyncio

import pytest

from durable import ArgumentsError, Client, RunNotFoundError, activity, activity_info, workflow
from durable.scheduler import retention
from durable.store.records import care
from tests.support.workers import file_of, running_worker, tampered, until


@workflow
async def quick(number: int) -> int:
    return number


async def closed_runs(client: Client, count: int) -> None:
    async with running_worker(client, quick):
        runs = await client.start_many(
            quick, [(n,) for n in range(count)], run_ids=[f"r{n}" for n in range(count)]
        )
        for run in runs:
            await run.result(60)
    await are_past(client)


async def are_past(client: Client) -> None:
    """Wait until all that has closed has done so before now, as the client sees it: of a server's time it only has an idea."""
    closed = [run.closed_at for run in await client.list(limit=1000) if run.closed_at is not None]
    await until(lambda: client.clock.now_us() > max(closed).timestamp() * 1_000_000)


async def test_many_small_batches(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages end in the middle of a batch and batches in the middle of a page; none is forgotten, none counted twice."""
    monkeypatch.setattr(retention, "PAGE", 3)
    monkeypatch.setattr(care, "BATCH_ROWS_MAX", 5)
    await closed_runs(client, 10)
    kept = await client.start(quick, 0, run_id="open")

    dry = await client.prune(0, dry_run=True)
    pruned = await client.prune(0)

    assert (dry.runs, dry.journal_rows, dry.is_dry) == (10, 0, True)
    assert (pruned.runs, pruned.journal_rows, pruned.is_dry) == (10, 10, False)
    assert [run.run_id for run in await client.list()] == [kept.run_id]
    with pytest.raises(RunNotFoundError):
        await client.get("r3")


async def test_a_deleted_id_that_is_used_again_has_new_idempotency_keys(client: Client) -> None:
    """What the first run of the id has charged, the receiver remembers: the second one's charge is another (P6)."""
    keys: list[str] = []

    @activity
    async def charge() -> None:
        keys.append(activity_info().idempotency_key)

    @workflow
    async def buys() -> None:
        await charge()

    async with running_worker(client, buys):
        for _ in range(3):
            await (await client.start(buys, run_id="monthly")).result(60)
            await are_past(client)
            assert (await client.prune(0)).runs == 1

    assert len(set(keys)) == 3


async def test_two_at_once_share_the_work(client: Client, url: str) -> None:
    """Neither fails, and together they delete each run once."""
    await closed_runs(client, 30)
    async with Client(url, durability="off") as other:
        both = await asyncio.gather(client.prune(0), other.prune(0))

    assert sum(one.runs for one in both) == 30


@pytest.mark.parametrize("status", ["running", "continued", "bogus", ["completed", "waiting"]])
async def test_only_statuses_of_closed_runs_can_be_chosen(client: Client, status: str) -> None:
    """The error names them."""
    with pytest.raises(ArgumentsError, match="completed, failed, cancelled, terminated, timed_out"):
        await client.prune(0, status=status)


@pytest.mark.parametrize("patience", [None, 5])
async def test_waiting_for_a_run_that_was_deleted(client: Client, patience: float | None) -> None:
    """The handle outlives the run: its result is an error, not a wait for ever; a later run of that id is another one."""
    await closed_runs(client, 1)
    handle = await client.get("r0")
    await client.prune(0)
    await client.start(quick, 1, run_id="r0")

    async with asyncio.timeout(60):
        with pytest.raises(RunNotFoundError, match="no run 'r0'"):
            await handle.result(patience)


async def test_a_run_that_is_deleted_while_somebody_waits(client: Client, url: str) -> None:
    """Though hints keep coming: found within a moment."""
    async with Client(url, durability="off") as other:
        run = await client.start(quick, 1, run_id="r")
        await client.start(quick, 1)
        waiting = asyncio.ensure_future(run.result())
        await asyncio.sleep(0)
        tampered(
            file_of(client), "DELETE FROM run WHERE run_id = 'r'"
        )  # as if closed and pruned between two looks
        while not waiting.done():
            await other.start(quick, 1)
            await asyncio.sleep(0.01)
        with pytest.raises(RunNotFoundError, match="no run 'r'"):
            await waiting
