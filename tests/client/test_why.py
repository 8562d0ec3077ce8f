"""Why a run is not moving: exactly one reason for every state it can be in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import (
    Client,
    Retry,
    RunHandle,
    Signal,
    WorkflowStateError,
    activity,
    sleep,
    wait_condition,
    workflow,
)
from durable.journal.why import Why, WhyReason
from durable.seams import SystemClock
from durable.starting import start_request
from durable.store.records import WorkerInfo
from tests.support.workers import file_of, is_released, running_worker, status_is, tampered, until

approved = Signal("approved", bool)
DEFINITIONS = (("signalled", 1), ("quick", 1))


@activity
async def hang() -> None:
    await asyncio.sleep(600)


@activity(retry=Retry(initial=500, maximum=500, max_attempts=9))
async def refuse() -> None:
    raise ConnectionError("no line")


@workflow
async def quick() -> str:
    return "done"


@workflow
async def failing() -> None:
    raise ValueError("no stock")


@workflow
async def signalled() -> bool:
    return await approved.wait()


@workflow
async def signalled_in_time() -> bool:
    async with asyncio.timeout(300):
        return await approved.wait()


@workflow
async def conditional() -> None:
    await wait_condition(lambda: False)


@workflow
async def napping() -> None:
    await sleep(3600)


@workflow
async def stuck() -> None:
    await asyncio.get_running_loop().create_future()


@workflow
async def hanging() -> None:
    await hang()


@workflow
async def crowded() -> None:
    await asyncio.gather(hang(), hang())


@workflow
async def retrying() -> None:
    await refuse()


@workflow
async def everything() -> None:
    await asyncio.gather(sleep(3600), approved.wait(), refuse())


ALL = (
    quick,
    failing,
    signalled,
    signalled_in_time,
    conditional,
    napping,
    stuck,
    hanging,
    retrying,
    everything,
)


def a_clock_ahead(seconds: int) -> SystemClock:
    class Later(SystemClock):
        def now_us(self) -> int:
            return super().now_us() + seconds * 1_000_000

    return Later()


async def reason_is(run: RunHandle[Any], reason: str) -> Why:
    """Wait until a run has this reason, and return it."""

    async def reached() -> Why | None:
        why = await run.why()
        return why if why.reason == reason else None

    return await until(reached, what=f"{run} stands still because of {reason}")  # type: ignore[return-value]  # not None: it was true


async def a_living_worker(
    client: Client, *, task_queue: str = "default", version: int = 1, lease_us: int = 0
) -> int:
    """Register a worker of this process that does nothing."""
    definitions = tuple((name, version) for name, _ in DEFINITIONS)
    info = WorkerInfo(name="web-1", task_queue=task_queue, definitions=definitions, lease_us=lease_us)
    return await client.store.register_worker(info)


@asynccontextmanager
async def a_dead_worker(url: str) -> AsyncIterator[tuple[Client, int]]:
    """Yield a client and its worker, which is dead after the block: the store was closed without retiring it."""
    async with Client(url, durability="off") as other:
        yield other, await a_living_worker(other)


async def owned_by(client: Client, worker: int, run_id: str) -> RunHandle[Any]:
    """Start a run that a worker owns at once."""
    request = start_request(client, signalled.definition, (), run_id=run_id, owner=worker)
    await client.store.start_runs([request], client.clock.now_us())
    return await client.get(run_id)


@pytest.mark.parametrize(
    ("code", "reason", "text", "name", "is_due"),
    [
        (signalled, "signal", 'signal "approved"', "approved", False),
        (signalled_in_time, "signal", 'signal "approved" (times out in ', "approved", True),
        (conditional, "condition", "condition at ", "", False),
        (napping, "timer", "timer in ", "3600s", True),
        (stuck, "deadlock", "or a cancel, can move it", "", False),
        (hanging, "activity", "hang: attempt 1 running", "hang", False),
        (retrying, "retry", "refuse: attempt 2 in ", "refuse", True),
        (everything, "retry", "after ConnectionError: no line", "refuse", True),
    ],
)
async def test_a_run_that_a_worker_drives(
    client: Client, code: Any, reason: str, text: str, name: str, is_due: bool
) -> None:
    """The most telling of what it has asked for; the rest stands in `waiting_on`."""
    async with running_worker(client, *ALL):
        run = await client.start(code, run_id="r")
        why = await reason_is(run, reason)

        assert text in why.text
        assert why.name == name
        assert (why.due_at is not None) is is_due
        assert why.since is not None
        assert why.since <= datetime.now(UTC)
        assert len(why.waiting_on) == {stuck: 0, everything: 2}.get(code, 1)
        await run.terminate()


async def test_an_activity_that_waits_for_a_slot(client: Client) -> None:
    """As long as another of the run has one, the run moves; alone, it waits for a slot."""
    async with running_worker(client, hanging, crowded, concurrency=1):
        first = await client.start(hanging, run_id="first")
        await reason_is(first, "activity")
        second = await client.start(hanging, run_id="second")
        why = await reason_is(second, "slot")

        assert why.text == "hang: waiting for a free slot"
        for run in (first, second):
            await run.terminate()


async def test_an_activity_on_another_queue(client: Client) -> None:
    """Nobody serves it there, the queue is paused, somebody performs it, or it is between attempts: each is told apart."""
    may_fail = asyncio.Event()

    @activity(task_queue="gpu", retry=Retry(initial=500, maximum=500))
    async def train() -> None:
        await may_fail.wait()
        raise ConnectionError("no line")

    @workflow
    async def learns() -> None:
        await train()

    async with running_worker(client, learns):
        run = await client.start(learns, run_id="r")
        why = await reason_is(run, "no_worker")
        assert (why.text, why.name, why.queue) == (
            'train: no living worker serves it on queue "gpu"',
            "train",
            "gpu",
        )
        await client.pause_task_queue("gpu")
        why = await reason_is(run, "paused")
        assert why.text == 'train: queue "gpu" is paused'
        async with running_worker(client, activities=[train], task_queue="gpu", name="gpu-1"):
            await client.resume_task_queue("gpu")
            why = await reason_is(run, "activity")
            assert why.text == 'train: attempt 1 running on gpu-1 (queue "gpu")'
            (entry,) = (await run.describe()).journal
            assert (entry.queue, entry.worker, entry.attempts) == ("gpu", "gpu-1", 1)
            may_fail.set()
            why = await reason_is(run, "retry")
            assert why.text.startswith("train: attempt 2 in 8m")
        await run.terminate()


async def test_closed_runs_say_how_they_ended(client: Client) -> None:
    """An earlier generation, too."""
    async with running_worker(client, *ALL):
        done = await client.start(quick, run_id="done")
        await done.result(60)
        failed = await client.start(failing, run_id="failed")
        await status_is(failed, "failed")
        await client.start(quick, run_id="done", if_closed="new")

    why = await client.why("done@1")
    assert (why.reason, why.generation) == (WhyReason.CLOSED, 1)
    assert why.text.startswith("completed ")
    assert (await failed.why()).text.endswith("ago: ValueError: no stock")


async def test_a_delayed_start(client: Client) -> None:
    """Nobody is to blame, even with no worker there."""
    run = await client.start(quick, delay=300)
    why = await run.why()

    assert (why.reason, why.text[:13]) == ("delayed", "starts in 4m ")
    assert why.due_at is not None
    assert why.due_at - datetime.now(UTC) < timedelta(seconds=301)


async def test_without_a_worker_the_near_ones_are_named(client: Client) -> None:
    """Another version on the queue, or the version on another queue; a plain script's engine serves nobody."""
    run = await client.start(quick)
    assert (await run.why()).text == 'no living worker serves quick version 1 on queue "default"'

    other = await a_living_worker(client, version=2)
    assert (await run.why()).text.endswith("; worker web-1 serves version 2")
    await client.store.retire_worker(other)

    await a_living_worker(client, task_queue="gpu")
    assert (await run.why()).text.endswith('; worker web-1 serves it on queue "gpu"')

    info = WorkerInfo(name="script", task_queue="default", definitions=DEFINITIONS, embedded=True)
    await client.store.register_worker(info)
    assert (await run.why()).reason is WhyReason.NO_WORKER


async def test_a_ready_run_with_a_living_worker(client: Client) -> None:
    """It is a matter of room, or of a moment."""
    await a_living_worker(client)
    run = await client.start(quick)

    why = await run.why()
    assert (why.reason, why.text) == ("claim", "ready: web-1 will take it when there is room")


async def test_a_timer_that_nobody_wakes(client: Client, url: str) -> None:
    """Timers are fired by workers: a run whose timer is long due lacks one."""
    async with running_worker(client, napping, warm_us=0):
        run = await client.start(napping, run_id="nap")
        await is_released(run)
        assert (await run.why()).reason is WhyReason.TIMER

    assert (await run.why()).reason is WhyReason.TIMER
    async with Client(url, durability="off", clock=a_clock_ahead(7200)) as later:
        why = await later.why("nap")
    assert why.reason is WhyReason.NO_WORKER
    assert why.text.startswith("its timer was due 1h ")


async def test_the_first_turn_and_unread_messages(client: Client) -> None:
    """An owned run: its worker is at it, or has something to deliver."""
    run = await owned_by(client, await a_living_worker(client), "r")

    assert (await run.why()).reason is WhyReason.TURN
    await run.signal(approved, True)
    why = await run.why()
    assert (why.reason, why.text) == ("unread", "its worker web-1 has 1 message to deliver")


async def test_a_worker_whose_process_is_gone(client: Client, url: str) -> None:
    """Said before anybody has taken its runs over, and whether somebody can."""
    async with a_dead_worker(url) as (other, worker):
        run_id = (await owned_by(other, worker, "r")).run_id
        assert await client.find_lost_workers() == []

    assert await client.find_lost_workers() == [worker]
    why = await client.why(run_id)
    assert (why.reason, why.worker) == ("worker_lost", "web-1")
    assert "no living worker serves signalled" in why.text
    await a_living_worker(client)
    assert (await client.why(run_id)).text.endswith("a living worker takes it over")


async def test_a_worker_that_gives_no_sign_of_life(client: Client) -> None:
    """It holds its lock, but has not beaten for long: told, long before anything is decided by it."""
    run = await owned_by(client, await a_living_worker(client), "r")
    async with Client(client.address.url, durability="off", clock=a_clock_ahead(60)) as later:
        assert (await later.why(run.run_id)).reason is WhyReason.WORKER_LOST


@pytest.mark.parametrize(("lease", "reason"), [(10, "worker_lost"), (40, "turn")])
async def test_a_silent_worker_is_lost_after_its_own_lease(client: Client, lease: int, reason: str) -> None:
    """When any other worker would take it over: neither before nor long after."""
    worker = await a_living_worker(client, lease_us=lease * 1_000_000)
    run = await owned_by(client, worker, "r")
    async with Client(client.address.url, durability="off", clock=a_clock_ahead(20)) as later:
        assert (await later.why(run.run_id)).reason == reason


async def test_a_parked_run_and_how_it_goes_on(client: Client) -> None:
    """The fault is the text; resume lets a worker take it again, and takes nothing but parked runs."""
    async with running_worker(client, signalled, warm_us=0):
        run = await client.start(signalled, run_id="p")
        await is_released(run)
    tampered(file_of(client), "UPDATE run SET status = 3, reason = 'NonDeterminismError: changed'")

    why = await run.why()
    assert (why.reason, why.text) == ("parked", "NonDeterminismError: changed")
    await run.resume()
    assert (await run.why()).reason is WhyReason.NO_WORKER
    with pytest.raises(WorkflowStateError, match="only a paused or parked run can be resumed"):
        await run.resume()
    async with running_worker(client, signalled):
        await run.signal(approved, True)
        assert await run.result(60) is True


async def test_a_journal_that_cannot_be_read(client: Client) -> None:
    """Says so, instead of an error."""
    async with running_worker(client, signalled, warm_us=0):
        run = await client.start(signalled, run_id="p")
        await is_released(run)
    tampered(file_of(client), "UPDATE journal SET data = x'00'")

    assert (await run.why()).reason is WhyReason.UNREADABLE
    assert (await run.describe()).waiting_on[0].kind == "nothing"
