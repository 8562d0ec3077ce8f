"""Trying a closed run again: what is kept is not done again, what is not kept is, and both are said."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import (
    ArgumentsError,
    Client,
    NonRetryableError,
    Retry,
    RunCancelledError,
    RunHandle,
    RunTerminatedError,
    Signal,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
    activity,
    activity_info,
    sleep,
    workflow,
)
from tests.support.workers import is_waiting, running_worker, status_is, until

approved = Signal("approved", int)
keys: list[str] = []  # of every attempt, in order
trouble: set[str] = set()  # activities that fail


@pytest.fixture(autouse=True)
def afresh() -> None:
    keys.clear()
    trouble.clear()
    trouble.add("ship")


def act(name: str) -> str:
    keys.append(activity_info().idempotency_key)
    if name in trouble:
        raise NonRetryableError(f"no {name}")
    return name


@activity
async def charge() -> str:
    return act("charge")


@activity(retry=Retry(max_attempts=1))
async def ship() -> str:
    return act("ship")


@activity
async def refund() -> str:
    return act("refund")


@workflow
async def order() -> list[str]:
    return [await charge(), await ship()]


@workflow
async def repaired() -> list[str]:
    """Undoes what it did when it fails."""
    done = [await charge()]
    try:
        done.append(await ship())
    except NonRetryableError:
        await refund()
        raise
    return done


@workflow
async def buggy() -> str:
    done = await charge()
    if "bug" in trouble:
        raise ValueError("a mistake of the workflow's own")
    return done


@workflow(timeout=1)
async def overdue() -> list[str]:
    first = await charge()
    if "bug" in trouble:
        await sleep(3600)
    return [first, await ship()]


@workflow
async def approval() -> list[Any]:
    done: list[Any] = [await charge(), await approved.wait(), await approved.wait()]
    try:
        done.append(await ship())
        done.append(await approved.wait())
    except asyncio.CancelledError:
        await refund()
        raise
    return done


@workflow(retries=1, retry_delay=0.01)
async def persistent() -> list[str]:
    return [await charge(), await ship()]


ALL = (order, repaired, buggy, overdue, approval, persistent)


async def failed(run: RunHandle[Any], error: type[Exception] = WorkflowFailedError) -> None:
    with pytest.raises(error):
        await run.result(60)


async def test_the_journal_before_the_failure_is_kept(client: Client) -> None:
    """What was done is not done again, the failed activity is, under its own key; the former life stays as it was."""
    async with running_worker(client, *ALL):
        run = await client.start(order, run_id="o")
        await failed(run)
        trouble.clear()

        reopened = await run.retry()
        again = await client.get("o", order)
        assert await again.result(60) == ["charge", "ship"]

    assert (reopened.generation, reopened.forgotten, reopened.is_dry) == (2, [], False)
    assert keys == ["o@1/charge#1", "o@1/ship#1", "o@1/ship#1"]
    assert (await client.describe("o")).attempts == 2
    assert (await client.describe("o@1")).status == "failed"
    await failed(run)


async def test_an_error_of_the_workflows_own_keeps_nothing(client: Client) -> None:
    """With the same journal it would only come back; completed activities run again, under their keys."""
    trouble.add("bug")
    async with running_worker(client, *ALL):
        run = await client.start(buggy, run_id="o")
        await failed(run)
        trouble.clear()

        reopened = await run.retry()
        assert await (await client.get("o")).result(60) == "charge"

    assert (reopened.kept_events, reopened.forgotten) == (0, ["charge"])
    assert keys == ["o@1/charge#1", "o@1/charge#1"]


async def test_from_the_start_everything_is_new(client: Client) -> None:
    """As with a new start: nothing kept, other keys."""
    async with running_worker(client, *ALL):
        run = await client.start(repaired, run_id="o")
        await failed(run)
        trouble.clear()

        reopened = await run.retry(from_start=True)
        assert await (await client.get("o")).result(60) == ["charge", "ship"]

    assert (reopened.kept_events, reopened.forgotten) == (0, ["charge", "refund"])
    assert keys[-2:] == ["o@2/charge#1", "o@2/ship#1"]


async def test_what_was_done_after_the_failure_is_told(client: Client) -> None:
    """Nobody but the author knows whether it undid something; a dry run changes nothing."""
    async with running_worker(client, *ALL):
        run = await client.start(repaired, run_id="o")
        await failed(run)
    told = await run.retry(dry_run=True)

    assert (told.generation, told.forgotten, told.is_dry) == (2, ["refund"], True)
    assert told.kept_events > 0
    assert (await client.describe("o")).generation == 1


async def test_a_run_whose_time_was_up_goes_on_where_it_was(client: Client) -> None:
    """All of its journal is kept, and its time begins anew."""
    trouble.add("bug")
    async with running_worker(client, *ALL):
        run = await client.start(overdue, run_id="o")
        await failed(run, WorkflowTimeoutError)
        before = await client.describe("o")
        reopened = await run.retry()
        seen = await client.describe("o")
        assert before.deadline is not None
        assert seen.deadline is not None
        assert (seen.deadline - seen.created_at) == (before.deadline - before.created_at)
        await failed(await client.get("o"), WorkflowTimeoutError)

    assert (reopened.kept_events, reopened.forgotten) == (len(await client.events("o@1")) - 1, [])
    assert keys == ["o@1/charge#1"]


async def test_a_cancelled_run_goes_on_before_it_was_cancelled(client: Client) -> None:
    """The request to cancel is gone; signals of before are kept, those of after come again, each once."""
    trouble.clear()
    async with running_worker(client, *ALL):
        run = await client.start(approval, run_id="o")
        for number in (1, 2):
            await run.signal(approved, number)
        await until(lambda: keys.count("o@1/ship#1"))
        await is_waiting(run, "signal")
        await run.cancel("not now")
        await failed(run, RunCancelledError)

        reopened = await run.retry()
        await client.signal("o", approved, 3)
        assert await (await client.get("o")).result(60) == ["charge", 1, 2, "ship", 3]

    assert reopened.forgotten == ["refund"]
    assert keys == ["o@1/charge#1", "o@1/ship#1", "o@1/refund#1"]


async def test_signals_taken_in_after_the_failure_come_again(client: Client) -> None:
    """In their order; the sender's ids are still known."""
    async with running_worker(client, *ALL):
        run = await client.start(approval, run_id="o")
        for number in (1, 2):
            await run.signal(approved, number, id=f"n{number}")
        await failed(run)
        trouble.clear()
        await run.retry(from_start=False)
        await client.signal("o", approved, 2, id="n2")
        await client.signal("o", approved, 3)
        assert await (await client.get("o")).result(60) == ["charge", 1, 2, "ship", 3]
    assert keys.count("o@1/charge#1") == 1


async def test_a_terminated_run_goes_on_where_it_was(client: Client) -> None:
    """All of its journal is kept."""
    trouble.clear()
    async with running_worker(client, *ALL):
        run = await client.start(approval, run_id="o")
        await is_waiting(run, "signal")
        await run.terminate("a mistake")
        await failed(run, RunTerminatedError)
        await run.retry()
        again: RunHandle[Any] = await client.get("o")
        for number in (1, 2, 3):
            await again.signal(approved, number)
        assert await again.result(60) == ["charge", 1, 2, "ship", 3]
    assert keys == ["o@1/charge#1", "o@1/ship#1"]


async def test_a_run_that_has_used_up_its_own_retries(client: Client) -> None:
    """The next generation keeps what the last one knew."""
    async with running_worker(client, *ALL):
        run = await client.start(persistent, run_id="o")
        await failed(run)
        trouble.clear()
        reopened = await run.retry()
        assert await (await client.get("o")).result(60) == ["charge", "ship"]
    assert reopened.generation == 3
    assert keys.count("o@1/charge#1") == 1


async def test_of_two_retries_at_once_one_happens(client: Client, url: str) -> None:
    """The other is told that the run is open."""
    async with running_worker(client, *ALL):
        run = await client.start(order, run_id="o")
        await failed(run)
    async with Client(url, durability="off") as other:
        both = await asyncio.gather(client.retry("o"), other.retry("o"), return_exceptions=True)

    assert sorted(type(one).__name__ for one in both) == ["Reopened", "WorkflowStateError"]
    assert (await client.describe("o")).generation == 2


async def test_what_cannot_be_retried(client: Client) -> None:
    """What is open, and what was completed."""
    trouble.clear()
    async with running_worker(client, *ALL):
        run = await client.start(order, run_id="done")
        await run.result(60)
        waiting = await client.start(approval, run_id="open")
        await status_is(waiting, "waiting")
        for one in (run, waiting):
            with pytest.raises(WorkflowStateError, match="only a run that was closed without success"):
                await one.retry()


# ─ one activity ──

LATER = Retry(max_attempts=3, initial=3600, maximum=3600)


@activity(retry=LATER)
async def book() -> str:
    return impatient("book")


@activity(retry=LATER)
async def notify() -> str:
    return impatient("notify")


@activity(name="elsewhere", task_queue="gpu", retry=LATER)
async def elsewhere() -> str:
    return impatient("elsewhere")


def impatient(name: str) -> str:
    """Fails once."""
    keys.append(f"{name} {activity_info().attempt}")
    if activity_info().attempt == 1:
        raise ConnectionError("try again")
    return name


@workflow
async def trip() -> list[str]:
    return await asyncio.gather(book(), notify())


@workflow
async def far_trip() -> str:
    return await elsewhere()


async def are_retrying(run: RunHandle[Any], *names: str) -> None:
    async def retrying() -> bool:
        story = await run.describe()
        return [one.name for one in story.journal if one.status == "retrying"] == [*names]

    await until(retrying)


async def test_a_waiting_retry_is_run_now(client: Client) -> None:
    """Of one activity by its name or number, or of all; its attempts are counted on. The others wait as they did."""
    async with running_worker(client, trip):
        run = await client.start(trip, run_id="t")
        await are_retrying(run, "book", "notify")

        assert await run.retry_now("notify", dry_run=True) == ["notify"]
        assert await run.retry_now("notify") == ["notify"]
        await are_retrying(run, "book")
        (number,) = [one.number for one in (await run.describe()).journal if one.name == "book"]
        assert await run.retry_now(number) == ["book"]

        assert await run.result(60) == ["book", "notify"]
    assert sorted(keys) == ["book 1", "book 2", "notify 1", "notify 2"]


async def test_a_retry_is_run_now_by_whoever_takes_the_run_next(client: Client) -> None:
    """Nobody has the run when it is asked for: what is due is in the database."""
    async with running_worker(client, trip):
        run = await client.start(trip, run_id="t")
        await are_retrying(run, "book", "notify")

    assert sorted(await run.retry_now()) == ["book", "notify"]

    async with running_worker(client, trip):
        assert await run.result(60) == ["book", "notify"]


async def test_a_retry_on_another_queue_is_run_now(client: Client) -> None:
    """By whatever worker of that queue."""
    async with (
        running_worker(client, far_trip),
        running_worker(client, activities=[elsewhere], task_queue="gpu"),
    ):
        run = await client.start(far_trip, run_id="t")
        await are_retrying(run, "elsewhere")

        assert await run.retry_now() == ["elsewhere"]

        assert await run.result(60) == "elsewhere"
    assert keys == ["elsewhere 1", "elsewhere 2"]


async def test_what_does_not_wait_for_a_retry_is_not_run_now(client: Client) -> None:
    """A mistake is said: which do, or that none does."""
    async with running_worker(client, trip, order):
        run = await client.start(trip, run_id="t")
        await are_retrying(run, "book", "notify")
        with pytest.raises(
            WorkflowStateError, match="no activity 'pay' of it waits for a retry; these do: book, notify"
        ):
            await run.retry_now("pay")
        await run.retry_now()
        assert await run.result(60) == ["book", "notify"]
        with pytest.raises(WorkflowStateError, match="is completed, and no activity of it waits"):
            await run.retry_now()


@workflow
async def tolerant() -> list[str]:
    """Goes on without what failed, and then fails by a mistake of its own."""
    done = [await charge()]
    for attempt in range(2):
        try:
            done.append(await ship())
        except NonRetryableError:
            done.append(f"unshipped {attempt}")
    done.append(await refund())
    if "bug" in trouble:
        raise ValueError("a mistake of the workflow's own")
    return done


async def test_a_closed_run_is_retried_from_the_failure_of_one_activity(client: Client) -> None:
    """Whatever became of the run after it: what stood before is kept, what was completed later is forgotten."""
    trouble.add("bug")
    async with running_worker(client, tolerant):
        run = await client.start(tolerant, run_id="o")
        await failed(run)
        trouble.clear()
        with pytest.raises(ArgumentsError, match="failed 2 times: say which, by its number: 4, 6"):
            await run.retry(activity="ship")
        with pytest.raises(
            ArgumentsError, match="no activity 'charge' of run 'o' failed: ship \\(4\\), ship \\(6\\)"
        ):
            await run.retry(activity="charge")

        reopened = await run.retry(activity=6)
        again = await client.get("o", tolerant)
        assert await again.result(60) == ["charge", "unshipped 0", "ship", "refund"]

    assert reopened.forgotten == ["refund"]
    assert keys == ["o@1/charge#1", "o@1/ship#1", "o@1/ship#2", "o@1/refund#1", "o@1/ship#2", "o@1/refund#1"]


async def test_what_was_undone_is_not_kept_up_to_an_activity(client: Client) -> None:
    """Nor is anything kept from the start: both wishes at once are refused."""
    async with running_worker(client, order):
        run = await client.start(order, run_id="o")
        await failed(run)
        with pytest.raises(ArgumentsError, match="keeps nothing; leave activity out"):
            await run.retry(activity="ship", from_start=True)
