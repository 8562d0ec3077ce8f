"""Parked runs: what stops a run without failing it, who hears of it, and how good code goes on."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from durable import (
    Client,
    LivelockError,
    NonDeterminismError,
    Retry,
    RunParkedError,
    RunStatus,
    Signal,
    UndecodableError,
    WorkerLostError,
    WorkflowGuardError,
    activity,
    activity_info,
    workflow,
)
from tests.support.workers import (
    Calls,
    file_of,
    is_released,
    looked_up,
    no_durability,
    running_worker,
    status_is,
    tampered,
    until,
)

number = Signal("number", int)


@activity
async def first() -> int:
    return 1


@activity
async def second() -> int:
    return 2


def code_of(*steps: Any) -> Any:
    """Return a workflow of one name that calls `steps`, waits for a signal, and sums up."""

    @workflow
    async def changes() -> int:
        total = 0
        for step in steps:
            total += await step()
        return total + await number.wait()

    return changes


async def released_run(client: Client, code: Any) -> Any:
    async with running_worker(client, code, warm_us=0):
        run = await client.start(code, run_id="c")
        await is_released(run)
    return run


async def test_changed_code_parks_the_run_and_leaves_its_journal_alone(client: Client) -> None:
    """Whoever awaits it gets the fault at once, with what was expected and found (I9)."""
    run = await released_run(client, code_of(first))
    before = [row.data for row in await client.store.read_journal(1, 1)]
    async with running_worker(client, code_of(second)):
        await run.signal(number, 10)
        with pytest.raises(NonDeterminismError) as fault:
            await run.result(60)

    assert (fault.value.run_id, fault.value.expected, fault.value.got) == ("c", "first", "second")
    assert [row.data for row in await client.store.read_journal(1, 1)] == before
    seen = await run.describe()
    assert seen.status is RunStatus.PARKED
    assert "NonDeterminismError" in (seen.reason or "")
    assert seen.waiting_on[0].text == seen.reason
    assert seen.worker is None


async def test_code_that_fits_again_finishes_a_parked_run(client: Client) -> None:
    """Nothing is lost: the results and the signals are all still there."""
    run = await released_run(client, code_of(first))
    async with running_worker(client, code_of(second)):
        await run.signal(number, 10)
        await status_is(run, "parked")
    assert await client.store.unpark_run("c", client.clock.now_us())
    async with running_worker(client, code_of(first)):
        assert await run.result(60) == 11


async def test_who_resumes_a_run_and_awaits_it_again_is_not_told_of_its_past(client: Client) -> None:
    """Not even when the loop did not turn in between."""
    run = await released_run(client, code_of(first))
    async with running_worker(client, code_of(second)):
        await run.signal(number, 10)
        await status_is(run, "parked")
    with pytest.raises(NonDeterminismError):
        await run.result(60)
    await run.resume()
    async with running_worker(client, code_of(first)):
        assert await run.result(60) == 11


async def test_another_process_is_told_the_reason(client: Client, url: str) -> None:
    """The fault itself lives in the process that met it; others get its text."""
    run = await released_run(client, code_of(first))
    async with running_worker(client, code_of(second)):
        await run.signal(number, 10)
        await status_is(run, "parked")
    async with no_durability(url) as other:
        with pytest.raises(RunParkedError, match="NonDeterminismError") as parked:
            await (await other.get("c")).result(60)
    assert parked.value.run_id == "c"


async def test_a_parked_run_takes_signals(client: Client) -> None:
    """It is open: what is sent waits until it goes on."""
    run = await released_run(client, code_of(first))
    async with running_worker(client, code_of(second)):
        await run.signal(number, 10)
        await status_is(run, "parked")
        await run.signal(number, 20)
        assert (await run.describe()).status is RunStatus.PARKED
    assert (await client.store.get_run("c")).unread == 2


async def test_code_that_never_comes_to_rest_parks(client: Client) -> None:
    """The worker survives a workflow that loops without waiting for anything; its neighbours go on."""

    @workflow
    async def spins() -> None:
        while True:  # noqa: ASYNC110  # the mistake under test
            await asyncio.sleep(0)

    @workflow
    async def ends() -> int:
        return 1

    async with running_worker(client, spins, ends):
        stuck, done = await client.start(spins), await client.start(ends)

        assert await done.result(60) == 1
        with pytest.raises(LivelockError):
            await stuck.result(60)


async def test_an_activity_in_flight_when_its_run_parks_is_not_charged(client: Client) -> None:
    """No worker died: with no retries left it still runs again once the run goes on."""
    attempts: list[int] = []
    stopped = asyncio.Event()

    @activity(retries=0)
    async def long() -> int:
        attempts.append(activity_info().attempt)
        if len(attempts) == 1:
            try:
                await asyncio.sleep(3600)
            finally:
                stopped.set()
        return 7

    def reading(hint: Any) -> Any:
        @workflow
        async def both() -> object:
            async with asyncio.TaskGroup() as group:
                result = group.create_task(long())
                value = group.create_task(Signal("number", hint).wait())
            return [result.result(), value.result()]

        return both

    async with running_worker(client, reading(int)):
        run = await client.start(reading(int))
        await until(lambda: attempts)
        await run.signal("number", "text")
        with pytest.raises(UndecodableError):
            await run.result(60)
        await until(stopped.is_set)
    await client.store.unpark_run(run.run_id, client.clock.now_us())
    async with running_worker(client, reading(str)):
        assert await run.result(60) == [7, "text"]
    assert attempts == [1, 1]


async def test_what_an_activity_came_to_when_its_run_parked_is_kept(client: Client) -> None:
    """The turn that was to record it was void; its body does not begin again all the same, in whatever life of the run (I5)."""
    calls = Calls()

    @activity(retries=0)
    async def charge(cents: int) -> int:
        calls("charge")
        return cents

    def charging(is_bad: bool) -> Any:
        @workflow
        async def charges() -> int:
            charged = await charge(1200)
            if is_bad:
                socket.socket()
            return charged

        return charges

    run = await client.start(charging(True))
    for _ in range(2):  # the second time it parks on what was kept
        async with running_worker(client, charging(True)):
            with pytest.raises(WorkflowGuardError):
                await run.result(60)
        (entry,) = (await run.describe()).journal
        assert entry.attempts == 1
        assert len(await run.events()) == 2  # started, and asked for: parking adds nothing to a journal
        await run.resume()
    async with running_worker(client, charging(False)):
        assert await run.result(60) == 1200
    assert calls.of("charge") == 1
    (entry,) = (await run.describe()).journal
    assert (entry.status, entry.attempts, entry.result) == ("completed", 1, 1200)


async def test_a_kept_result_that_code_takes_for_something_else_is_still_kept(client: Client) -> None:
    """The activity did not fail: code that undoes what failed must not hear so. The run parks until a hint fits (I5)."""
    calls = Calls()

    @activity(retries=0)
    async def charge() -> int:
        calls("charge")
        return 1200

    @activity(name="charge")
    async def lists() -> list[str]: ...

    def charging(step: Any, is_bad: bool = False) -> Any:
        @workflow
        async def charges() -> Any:
            charged = await step()
            if is_bad:
                socket.socket()
            return charged

        return charges

    run = await client.start(charging(charge, True))
    async with running_worker(client, charging(charge, True)):
        with pytest.raises(WorkflowGuardError):
            await run.result(60)
    await run.resume()
    for _ in range(2):
        async with running_worker(client, charging(lists)):
            with pytest.raises(UndecodableError, match="the result of activity 'charge'"):
                await run.result(60)
        await run.resume()
    async with running_worker(client, charging(charge)):
        assert await run.result(60) == 1200
    assert calls.of("charge") == 1


# ─ damage ──


def replaced(old: str, new: str) -> str:
    """Return the statement that changes the text of run 50's journal."""
    text = f"replace(CAST(data AS TEXT), '{old}', '{new}')"
    return f"UPDATE journal SET data = CAST({text} AS BLOB) WHERE run = 50"  # noqa: S608  # constants of this file


DAMAGES = {
    "input is no JSON": "UPDATE run_payload SET input = x'7b7b' WHERE run = 50",
    "input of another type": """UPDATE run_payload SET input = CAST('{"value":"x"}' AS BLOB) WHERE run = 50""",
    "input is empty": "UPDATE run_payload SET input = x'' WHERE run = 50",
    "journal row is no JSON": "UPDATE journal SET data = x'ff00' WHERE run = 50 AND turn = 1",
    "journal row is empty": "UPDATE journal SET data = x'' WHERE run = 50 AND turn = 1",
    "journal of a later format": replaced('"v":1', '"v":99'),
    "entry of an unknown kind": replaced('"wait_opened"', '"from_tomorrow"'),
    "first journal row is missing": "DELETE FROM journal WHERE run = 50 AND turn = 1",
    "result of another type": replaced('"result":1', '"result":"x"'),
    "outcome of an unknown operation": replaced('"activity_completed","op":1', '"activity_completed","op":9'),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
async def test_one_damaged_run_of_a_hundred_costs_one_run(client: Client, damage: str) -> None:
    """The other 99 finish; the damaged one is parked with a reason, and lists show all of them."""

    @workflow
    async def takes(value: int) -> int:
        return value + await first() + await number.wait()

    async with running_worker(client, takes, warm_us=0):
        runs = await client.start_many(takes, [(value,) for value in range(1, 101)])
        await until(lambda: _count(client, "waiting", 100))
    tampered(file_of(client), damage)
    assert len(await client.list(limit=1000)) == 100

    async with running_worker(client, takes, warm_us=0):
        for run in runs:
            await run.signal(number, 10)
        good = [run for position, run in enumerate(runs, 1) if position != 50]
        assert [await run.result(60) for run in good] == [
            value + 11 for value in range(1, 101) if value != 50
        ]
        parked = await status_is(runs[49], "parked")
    assert parked.reason
    assert [one.run_id for one in await client.list(status="parked")] == [runs[49].run_id]
    with pytest.raises(Exception, match=r".") as fault:
        await runs[49].result(60)
    assert not isinstance(fault.value, (TimeoutError, KeyError, AssertionError))


async def _count(client: Client, status: str, count: int) -> bool:
    return len(await client.list(status=status, limit=1000)) == count


async def test_a_damaged_signal_parks_its_run_only(client: Client) -> None:
    """Bytes that are no JSON, in the inbox."""
    calls = Calls()

    @workflow
    async def takes() -> int:
        calls("takes")
        return await number.wait()

    runs = [await client.start(takes) for _ in range(3)]
    for run in runs:
        await run.signal(number, 5)
    tampered(file_of(client), "UPDATE inbox SET data = x'ff' WHERE run = 2")
    async with running_worker(client, takes):
        assert [await runs[position].result(60) for position in (0, 2)] == [5, 5]
        assert (await status_is(runs[1], "parked")).reason


async def test_a_damaged_result_is_a_typed_error_for_its_reader(client: Client) -> None:
    """Reading is the reader's trouble; the run stays completed."""

    @workflow
    async def ends() -> int:
        return 1

    async with running_worker(client, ends):
        run = await client.start(ends)
        await run.result(60)
    tampered(file_of(client), "UPDATE run_payload SET result = x'ff'")

    with pytest.raises(UndecodableError):
        await run.result(60)
    assert (await run.describe()).status is RunStatus.COMPLETED


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_arguments_that_cannot_be_read_park_the_run_and_charge_nobody(
    client: Client, kind: str
) -> None:
    """It is not the activity's failure: it never began. Code that can read them performs its first attempt."""
    started = asyncio.Event()
    calls: list[tuple[object, int]] = []

    @activity(name="works", retries=0)
    async def hangs(value: int) -> None:
        started.set()
        await asyncio.sleep(3600)

    def works_with(hint: type) -> Any:
        async def works(value: Any) -> None:
            calls.append((value, activity_info().attempt))

        def works_in_a_thread(value: Any) -> None:
            calls.append((value, activity_info().attempt))

        body = works if kind == "async" else works_in_a_thread
        body.__annotations__["value"] = hint
        return activity(name="works", retry=Retry(max_attempts=1, no_retry=(WorkerLostError,)))(body)

    def asks(step: Any) -> Any:
        @workflow(name="asks")
        async def asks(value: Any) -> str:
            await step(value)
            return "done"

        return asks

    async with running_worker(client, asks(hangs)) as worker:
        run = await client.start(asks(hangs), 5, run_id="a")
        await started.wait()
        worker.stop(0)
    ((row,),) = looked_up(file_of(client), "SELECT data FROM journal")
    damaged = bytes(row).replace(b'"value":5', b'"value":"five"')
    tampered(file_of(client), "UPDATE journal SET data = ?", parameters=(damaged,))

    async with running_worker(client, asks(works_with(int))):
        seen = await status_is(run, "parked")
    assert seen.reason is not None
    assert seen.reason.startswith("UndecodableError: stored arguments of works")
    assert calls == []
    await client.resume("a")
    async with running_worker(client, asks(works_with(str))):
        assert await run.result(60) == "done"
    assert calls == [("five", 1)]
