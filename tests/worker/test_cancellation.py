"""Cancel, terminate, time out: who asked, what code still runs, what is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from durable import (
    ActivityError,
    Client,
    Retry,
    RunCancelledError,
    RunNotFoundError,
    RunStatus,
    RunTerminatedError,
    Signal,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
    activity,
    sleep,
    workflow,
)
from durable.journal.events import ScheduleActivity
from tests.support.workers import Calls, is_released, is_waiting, running_worker, status_is, until

go = Signal("go", int)


@workflow
async def sleeps() -> None:
    await sleep(3600)


async def cancelled(run: Any, seconds: float = 60) -> RunCancelledError:
    with pytest.raises(RunCancelledError) as stopped:
        await run.result(seconds)
    return stopped.value


# ─ cancel ──


async def test_a_requested_cancel_ends_the_run_as_cancelled_with_its_reason(client: Client) -> None:
    """The workflow sees CancelledError where it waits and may clean up; the reason is kept."""
    calls = Calls()

    @activity
    async def clean_up() -> None:
        calls("clean up")

    @workflow
    async def tidy() -> None:
        try:
            await go.wait()
        finally:
            await clean_up()

    async with running_worker(client, tidy):
        run = await client.start(tidy)
        await is_waiting(run, "signal")
        await run.cancel("no longer needed")

        stopped = await cancelled(run)
    assert stopped.reason == "no longer needed"
    assert not isinstance(stopped, RunTerminatedError)
    assert "no longer needed" in str(stopped)
    assert calls.of("clean up") == 1
    seen = await run.describe()
    assert (seen.status, seen.reason, seen.waiting_on) == (RunStatus.CANCELLED, "no longer needed", [])
    assert seen.closed_at is not None


async def test_a_cancel_of_a_released_run_wakes_it(client: Client) -> None:
    """A run that only sleeps is in nobody's memory; its code still gets to see the cancel."""
    async with running_worker(client, sleeps):
        run = await client.start(sleeps)
        await is_released(run)
        await run.cancel("wake up")

        assert (await cancelled(run)).reason == "wake up"


async def test_a_cancel_before_the_first_turn_starts_no_activity(client: Client) -> None:
    """The request was there first: nothing is begun that would have to be stopped."""
    calls = Calls()

    @activity
    async def work() -> None:
        calls("work")

    @workflow
    async def works() -> None:
        await work()

    run = await client.start(works)
    await run.cancel()
    async with running_worker(client, works):
        assert (await cancelled(run)).reason is None
    assert calls.names == []


async def test_a_cancel_stops_the_activity_that_is_running(client: Client) -> None:
    """The activity sees CancelledError at its next await; the run does not wait for it ("try")."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    @activity
    async def endless() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    @workflow
    async def works() -> None:
        await endless()

    async with running_worker(client, works):
        run = await client.start(works)
        await begun.wait()
        await run.cancel()

        await cancelled(run)
        await until(stopped.is_set)
    assert (await run.describe()).journal[0].status == "cancelled"


async def test_cancellation_wait_waits_for_the_activity_to_end(client: Client) -> None:
    """What the activity does while it is stopped has been done before the workflow goes on."""
    order: list[str] = []
    begun = asyncio.Event()

    @activity(cancellation="wait")
    async def careful() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)
            order.append("activity")
            raise

    @workflow
    async def works() -> None:
        try:
            await careful()
        finally:
            order.append("workflow")

    async with running_worker(client, works):
        run = await client.start(works)
        await begun.wait()
        await run.cancel()
        await cancelled(run)

    assert order == ["activity", "workflow"]


async def test_cancellation_abandon_lets_the_activity_go_on(client: Client) -> None:
    """The workflow goes on at once; the activity ends by itself, unheard."""
    begun, gate, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @activity(cancellation="abandon")
    async def unstoppable() -> None:
        begun.set()
        await gate.wait()
        ended.set()

    @workflow
    async def gives_up() -> str:
        try:
            async with asyncio.timeout(0.02):
                await unstoppable()
        except TimeoutError:
            return await_another()
        return ""

    def await_another() -> str:
        return "gave up"

    async with running_worker(client, gives_up):
        run = await client.start(gives_up)
        await begun.wait()
        await until(lambda: _is_closed(run))
        assert not ended.is_set()
        gate.set()
        assert await run.result(60) == "gave up"
        await until(ended.is_set)


async def test_an_activity_that_is_abandoned_as_it_is_to_begin_gives_its_slot_back(client: Client) -> None:
    """The next one has the slot. Where one commit charges it and lets go of it, none of its code runs."""
    calls = Calls()

    @activity
    async def step(name: str) -> str:
        calls(name)
        return name

    @workflow
    async def gives_up() -> str:
        first = asyncio.ensure_future(step("first"))
        second = asyncio.ensure_future(step.options(cancellation="abandon")("second"))
        await first
        second.cancel()
        return await step("third")

    async with running_worker(client, gives_up, concurrency=1) as worker:
        assert await (await client.start(gives_up)).result(60) == "third"
        are_one_commit = worker.life.store.commits_at_once == 1  # else the charge is durable before the rest
    assert calls.names in (["first", "third"], *([] if are_one_commit else [["first", "second", "third"]]))


async def _is_closed(run: Any) -> bool:
    return (await run.describe()).status.is_closed  # type: ignore[no-any-return]  # a bool


async def test_a_cancel_during_retry_backoff_ends_the_run_at_once(client: Client) -> None:
    """A backoff of an hour does not hold up a cancel, and no attempt follows."""
    calls = Calls()

    @activity(retry=Retry(initial=3600, maximum=3600))
    async def fails() -> None:
        calls("fails")
        raise OSError("down")

    @workflow
    async def works() -> None:
        await fails()

    async with running_worker(client, works):
        run = await client.start(works)
        await is_waiting(run, "retry")
        await run.cancel("enough")

        assert (await cancelled(run)).reason == "enough"
    assert calls.of("fails") == 1
    assert await client.store.read_attempts(1, 1) == []


async def test_a_workflow_that_swallows_its_cancel_goes_on(client: Client) -> None:
    """Cancel is a request: code that handles it may complete."""

    @workflow
    async def stubborn() -> str:
        try:
            await sleep(3600)
        except asyncio.CancelledError:
            pass
        return f"got {await go.wait()}"

    async with running_worker(client, stubborn):
        run = await client.start(stubborn)
        await is_released(run)
        await run.cancel()
        await is_waiting(run, "signal")
        await run.signal(go, 3)

        assert await run.result(60) == "got 3"


async def test_a_cancelled_error_that_nobody_requested_fails_the_run(client: Client) -> None:
    """Raising CancelledError is not a way to look cancelled (P29)."""

    @workflow
    async def confused() -> None:
        raise asyncio.CancelledError("me")

    async with running_worker(client, confused):
        run = await client.start(confused)
        with pytest.raises(WorkflowFailedError, match="CancelledError: me") as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, ActivityError)
    assert (await run.describe()).status is RunStatus.FAILED


async def test_cancelling_a_closed_or_unknown_run_is_refused(client: Client) -> None:
    """The caller is told that there is nothing to cancel."""

    @workflow
    async def done() -> None: ...

    async with running_worker(client, done):
        run = await client.start(done)
        await run.result(60)
        for ask in (run.cancel, run.terminate):
            with pytest.raises(WorkflowStateError) as refusal:
                await ask("why")
            assert refusal.value.status == "completed"
    for unknown in (client.cancel, client.terminate):
        with pytest.raises(RunNotFoundError):
            await unknown("no-such-run")


async def test_a_second_cancel_reaches_the_clean_up(client: Client) -> None:
    """Each request is delivered: clean-up code that hangs can be cancelled, too."""

    @workflow
    async def slow_to_go() -> None:
        try:
            await sleep(3600)
        finally:
            await go.wait()

    async with running_worker(client, slow_to_go):
        run = await client.start(slow_to_go)
        await is_released(run)
        await run.cancel("first")
        await is_waiting(run, "signal")
        await run.cancel("second")

        assert (await cancelled(run)).reason in ("first", "second")


# ─ terminate ──


async def test_terminate_closes_at_once_and_runs_no_code(client: Client) -> None:
    """No `finally` of the workflow is journaled; its activity is stopped; its worker can write nothing more."""
    begun, stopped = asyncio.Event(), asyncio.Event()
    calls = Calls()

    @activity
    async def endless() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    @activity
    async def clean_up() -> None:
        calls("clean up")

    @workflow
    async def works() -> None:
        try:
            await endless()
        finally:
            await clean_up()

    async with running_worker(client, works):
        run = await client.start(works)
        await begun.wait()
        await run.terminate("stop it")

        stop = await cancelled(run)
        assert isinstance(stop, RunTerminatedError)
        assert stop.reason == "stop it"
        await until(stopped.is_set)
    assert calls.names == []
    events = await run.events()
    assert [event.name for event in events if isinstance(event, ScheduleActivity)] == ["endless"]
    assert (await run.describe()).status is RunStatus.TERMINATED


async def test_a_pending_run_can_be_terminated_without_a_worker(client: Client) -> None:
    """It needs nobody's code."""
    run = await client.start(sleeps)
    await run.terminate()

    assert (await cancelled(run)).reason is None
    assert (await run.describe()).journal == []


async def test_a_parked_run_can_be_terminated(client: Client) -> None:
    """What cannot go on can still be closed."""

    @workflow
    async def reads(value: int) -> int:
        return await go.wait()

    async with running_worker(client, reads):
        run = await client.start(reads, 1)
        await run.signal("go", "no int")
        await status_is(run, "parked")
    await run.terminate("hopeless")

    assert isinstance(await cancelled(run), RunTerminatedError)


# ─ workflow timeouts ──


async def timed_out(run: Any, seconds: float = 60) -> None:
    with pytest.raises(WorkflowTimeoutError) as late:
        await run.result(seconds)
    assert late.value.run_id == run.run_id


async def test_a_workflow_timeout_ends_a_run_that_waits(client: Client) -> None:
    """It is enforced though no code of the run is in memory; nothing of it runs afterwards."""
    calls = Calls()

    @workflow(timeout=1)
    async def late() -> None:
        try:
            await sleep(3600)
        finally:
            calls("finally of a live run")

    async with running_worker(client, late):
        run = await client.start(late)
        await is_released(run)
        await until(
            lambda: calls.of("finally of a live run") == 1, what="the released run has left the memory"
        )
        await timed_out(run)
    assert calls.of("finally of a live run") == 1
    seen = await run.describe()
    assert seen.status is RunStatus.TIMED_OUT
    assert seen.deadline is not None
    assert seen.closed_at is not None
    assert seen.closed_at >= seen.deadline


async def test_a_workflow_timeout_stops_its_running_activity(client: Client) -> None:
    """The worker learns that the run is no longer its own, and cancels what runs of it."""
    stopped = asyncio.Event()

    @activity
    async def endless() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    @workflow(timeout=0.5)
    async def late() -> None:
        await endless()

    async with running_worker(client, late):
        await timed_out(await client.start(late))
        await until(stopped.is_set)


async def test_a_workflow_timeout_is_enforced_by_workers_without_its_code(client: Client) -> None:
    """Any worker's scheduler closes overdue runs, also those that never started."""

    @workflow(timeout=0.05)
    async def nobody_has_me() -> None: ...

    run = await client.start(nobody_has_me)
    async with running_worker(client, sleeps):
        await timed_out(run)
    assert (await run.describe()).started_at is None


async def test_a_workflow_timeout_counts_over_all_its_attempts(client: Client) -> None:
    """The whole life of a run is limited, retries included."""

    @activity(retries=0)
    async def fails() -> None:
        raise OSError

    @workflow(timeout=1, retries=1000, retry_delay=0.01)
    async def never_works() -> None:
        await fails()

    async with running_worker(client, never_works):
        run = await client.start(never_works)
        await until(lambda: _generation(run, 2))
        await timed_out(run)


async def _generation(run: Any, least: int) -> bool:
    return (await run.describe()).generation >= least  # type: ignore[no-any-return]  # a bool


async def test_threads_outlive_their_run_without_harm(client: Client) -> None:
    """A thread of a terminated run ends when it ends; its result goes nowhere."""
    gate, begun = threading.Event(), threading.Event()

    @activity
    def blocks() -> int:
        begun.set()
        gate.wait(60)
        return 1

    @workflow
    async def works() -> int:
        return await blocks()

    release: Callable[[], None] = gate.set
    async with running_worker(client, works):
        run = await client.start(works)
        await until(begun.is_set)
        await run.terminate()
        await cancelled(run)
        release()
    assert (await run.describe()).status is RunStatus.TERMINATED
