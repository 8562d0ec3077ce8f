"""Cancelling: the three types of an activity, the two models of asyncio and anyio, and what ends a run."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from durable.journal.events import Cancelled, CloseOp
from tests.support.engine_harness import EngineRun, an_activity, driven, here, next_signal


@an_activity
async def work(x: int) -> int:
    return x


patient = work.options(cancellation="wait")
abandoned = work.options(cancellation="abandon")


@pytest.mark.parametrize(("activity", "how"), [(work, "try"), (abandoned, "abandon")])
def test_try_and_abandon_raise_at_once(activity: Any, how: str) -> None:
    """The workflow goes on in the activation that cancelled; the journal says how the call was left."""

    async def workflow() -> str:
        try:
            async with asyncio.timeout(1):
                await activity(1)
        except TimeoutError:
            return "late"
        return "done"

    run = EngineRun(workflow)
    commands = run.fire()

    assert commands == [CloseOp(op=2, how=how)]
    assert run.result == "late"
    run.check_replay().evict()


def test_wait_raises_only_after_the_outcome() -> None:
    """The call stays open, marked as closing, until its outcome is there; the outcome itself is dropped."""

    async def workflow() -> str:
        try:
            async with asyncio.timeout(1):
                await patient(1)
        except TimeoutError:
            return "late"
        return "done"

    run = EngineRun(workflow)
    commands = run.fire()

    assert commands == [CloseOp(op=2, how="wait")]
    assert run.instance.end is None
    assert run.instance.activities[2].closing == "wait"
    run.check_replay().evict()

    run.complete(2, "not even an int")
    assert run.result == "late"
    run.check_replay().evict()


@pytest.mark.parametrize("activity", [work, patient, abandoned])
def test_an_anyio_deadline_over_an_activity_comes_to_rest(activity: Any) -> None:
    """Level cancellation re-arms itself for ever; a shield and the parked re-arm keep it from spinning."""

    async def workflow() -> list[Any]:
        with anyio.move_on_after(1) as scope:
            await activity(1)
        return [scope.cancelled_caught, await work(2)]

    run = EngineRun(workflow, callbacks_max=50)
    run.fire()
    if activity is patient:
        run.complete(2, 1)
    run.drive()

    assert run.result == [True, 2]
    run.check_replay().evict()


def test_wait_for_around_a_task_group_with_a_waiting_activity() -> None:
    """The shape that hangs elsewhere: asyncio's wait_for, an anyio task group, a wait-for-cancel activity."""

    async def inner() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(patient, 1)

    async def workflow() -> str:
        try:
            await asyncio.wait_for(inner(), 1)
        except TimeoutError:
            return "late"
        return "done"

    run = EngineRun(workflow, callbacks_max=50)
    op = next(iter(run.instance.activities))
    run.fire()
    run.complete(op, 1)

    assert run.result == "late"
    run.check_replay().evict()


def test_a_second_cancel_does_not_cut_the_waiting_short() -> None:
    """Nested deadlines both fire while a waiting activity ends: the outer one wins, after the outcome."""

    async def workflow() -> str:
        try:
            async with asyncio.timeout(2):
                async with asyncio.timeout(1):
                    await patient(1)
        except TimeoutError:
            return "late"
        return "done"

    run = EngineRun(workflow)
    run.fire()
    run.fire()
    assert run.instance.end is None

    run.complete(3, 1)
    assert run.result == "late"
    run.check_replay().evict()


@pytest.mark.parametrize("activity", [work, patient, abandoned])
def test_a_cancel_that_meets_the_result_stays_a_cancel(activity: Any) -> None:
    """The outcome is there, its task has not run yet, and a task that runs first cancels it."""

    async def workflow() -> list[Any]:
        victim = asyncio.create_task(activity(1))
        await asyncio.sleep(0)
        call = next(iter(here()._operations.pending))  # type: ignore[attr-defined]
        call.future.set_result(1)
        victim.cancel()
        await asyncio.wait([victim])
        return [victim.cancelled()]

    assert EngineRun(workflow).result == [True]


def test_a_cancel_after_the_result_was_delivered_but_not_yet_seen() -> None:
    """A done-callback that runs before the waiting task cancels it: CancelledError, not the result."""

    async def workflow() -> str:
        main = asyncio.current_task()
        assert main is not None
        fast = asyncio.create_task(work(1))
        fast.add_done_callback(lambda _: main.cancel())
        try:
            await asyncio.wait([fast])
            await work(2)
        except asyncio.CancelledError:
            return "cancelled"
        return "lost"

    run = EngineRun(workflow)
    run.complete(1, 1)

    assert run.result == "cancelled"
    run.check_replay().evict()


def test_what_was_asked_for_and_cancelled_within_one_activation_was_never_asked_for() -> None:
    """It takes no operation number and leaves no entry, whatever its cancellation type."""

    async def workflow() -> str:
        for activity in (work, patient, abandoned):
            task = asyncio.create_task(activity(1))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
        task = asyncio.create_task(next_signal("never"))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        asyncio.get_running_loop().call_later(5, print).cancel()
        await work(2)
        return "done"

    run = EngineRun(workflow)

    assert run.trace() == ["started", '  1 work#1 {"x":2}']
    assert run.drive().result == "done"
    run.check_replay().evict()


def test_compensation_in_finally_runs_to_its_end_under_a_requested_cancel() -> None:
    """asyncio cancels by edge: awaiting in `finally` works, and the run still ends as cancelled."""

    async def workflow() -> None:
        try:
            await work(1)
        finally:
            await work(2)

    run = EngineRun(workflow)
    assert run.cancel("enough") == [CloseOp(op=1, how="try"), *run.commands()[-1:]]
    assert run.instance.end is None
    run.drive()

    assert isinstance(run.instance.end, Cancelled)
    assert run.instance.end.reason == "enough"
    run.check_replay().evict()


def test_a_requested_cancel_may_be_refused() -> None:
    """A workflow that catches it goes on and may complete."""

    async def workflow() -> int:
        try:
            return await work(1)
        except asyncio.CancelledError:
            return await work(2)

    run = EngineRun(workflow)
    run.cancel()

    assert run.drive().result == 2
    run.check_replay().evict()


def test_a_cancel_that_nobody_requested_is_a_failure() -> None:
    """`task.cancel()` on oneself, or a CancelledError out of nowhere, is the author's error (P29)."""

    async def workflow() -> None:
        raise asyncio.CancelledError("out of nowhere")

    assert driven(workflow).failure.type.endswith("CancelledError")


def test_an_outcome_of_a_closed_activity_is_ignored() -> None:
    """The driver may be late: an event for an operation that is closed does nothing."""

    async def workflow() -> str:
        with anyio.move_on_after(1):
            await work(1)
        return await next_signal("go")

    run = EngineRun(workflow)
    run.fire()
    run.complete(2, 1)
    run.signal("go", "went")

    assert run.result == "went"
    run.check_replay().evict()


def test_swallowing_level_cancellation_stops_after_three_rounds() -> None:
    """A loop that swallows anyio's cancel again and again comes to rest; the rest is delivered with the next event."""

    async def workflow() -> int:
        swallowed = 0
        with anyio.move_on_after(1):
            while swallowed < 5:
                try:
                    await work(swallowed)
                except asyncio.CancelledError:
                    swallowed += 1
        return swallowed

    run = EngineRun(workflow, callbacks_max=100)
    run.fire()
    assert run.instance.end is None
    assert len(run.instance.activities) == 1

    run.signal("anything")
    assert run.result == 5
    run.check_replay().evict()
