"""How a run ends, what the driver is told about it, and the limits that keep one run from hurting others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable.engine.runtime import current
from durable.errors import InternalError, LivelockError, UndecodableError
from durable.journal.events import Completed, ScheduleActivity
from tests.support.engine_harness import EngineRun, an_activity, driven, next_signal


@an_activity
async def work(x: int) -> int:
    return x


def test_an_end_carries_the_instant_of_the_event_that_brought_it() -> None:
    async def workflow() -> int:
        return await work(1)

    run = EngineRun(workflow).drive()

    assert isinstance(run.instance.end, Completed)
    assert run.instance.end.at == run.now_us
    assert run.instance.events == 3  # started, scheduled, completed


@pytest.mark.parametrize(
    "error", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, StopAsyncIteration]
)
@pytest.mark.parametrize("in_task", [False, True])
def test_whatever_the_workflow_raises_ends_it(error: type[BaseException], in_task: bool) -> None:
    """User exceptions never leave the engine; the failure names them, with the workflow's lines."""

    async def fail() -> None:
        raise error("why")

    async def workflow() -> None:
        await work(1)
        await (asyncio.create_task(fail()) if in_task else fail())

    run = driven(workflow)

    assert run.failure.type.endswith(error.__name__)
    assert "raise error" in run.failure.traceback


def test_a_result_that_cannot_be_stored_is_a_failure() -> None:
    """The author's mistake, in the author's code."""

    async def workflow() -> Any:
        return object()

    assert driven(workflow).failure.type.endswith("PayloadError")


def test_arguments_that_cannot_be_stored_are_raised_at_the_call() -> None:
    """Before anything is journaled; the workflow may catch it."""

    async def workflow() -> str:
        try:
            await work(object())
        except Exception as error:
            return type(error).__name__
        return "stored"

    run = driven(workflow)

    assert run.result in ("PayloadError", "ArgumentsError")
    assert run.commands() == []


def test_arguments_are_encoded_at_the_call() -> None:
    """What happens to a mutable argument later does not change what was asked for."""

    @an_activity
    async def total(numbers: list[int]) -> int:
        return sum(numbers)

    async def workflow() -> int:
        numbers = [1, 2]
        call = total(numbers)
        numbers.append(99)
        return await call

    assert driven(workflow).result == 3


# ─ whose failure it was (P7) ─────────────────────────────────────────────────


def failing(*errors: BaseException) -> EngineRun:
    """A run whose activities fail with these errors, one turn each, from turn 2."""

    async def workflow() -> None:
        tasks = [asyncio.create_task(work(x)) for x in range(len(errors))]
        await asyncio.wait(tasks)
        found = [task.exception() for task in tasks]
        raise ExceptionGroup("all", [e for e in found if isinstance(e, Exception)])

    run = EngineRun(workflow)
    for op, error in enumerate(errors, start=1):
        run.fail(op, error)
    return run


def test_an_escaping_activity_failure_is_traced_to_its_event() -> None:
    """The very object, raised through any number of frames, says where the journal may be cut."""

    async def workflow() -> None:
        await work(1)
        try:
            await work(2)
        finally:
            await work(3)

    run = EngineRun(workflow)
    run.complete(1, 1)
    run.fail(2, ValueError("no"))
    run.complete(3, 3)

    assert run.instance.failed_at == (3, 0)
    assert run.failure.message == "no"
    run.check_replay().evict()


def test_an_error_of_the_workflow_has_no_event() -> None:
    """Neither its own errors nor one raised *from* an activity's failure."""

    async def own() -> None:
        await work(1)
        raise ValueError("mine")

    async def wrapped() -> None:
        try:
            await work(1)
        except ValueError as error:
            raise RuntimeError("wrapped") from error

    run = EngineRun(wrapped)
    run.fail(1, ValueError("no"))

    assert driven(own).instance.failed_at is None
    assert run.instance.failed_at is None
    assert run.failure.type.endswith("RuntimeError")


def test_a_group_of_activity_failures_is_traced_to_the_earliest() -> None:
    assert failing(ValueError("a"), KeyError("b")).instance.failed_at == (2, 0)


def test_a_group_with_an_error_of_the_workflow_has_no_event() -> None:
    async def mine() -> None:
        raise ValueError("mine")

    async def workflow() -> None:
        outcomes = await asyncio.gather(work(1), mine(), return_exceptions=True)
        raise ExceptionGroup("mixed", [e for e in outcomes if isinstance(e, Exception)])

    run = EngineRun(workflow)
    run.fail(1, ValueError("no"))

    assert run.instance.failed_at is None


def test_a_failure_that_a_coroutine_cannot_raise_is_still_raised() -> None:
    """StopIteration becomes RuntimeError in a coroutine; it does not break the engine."""

    async def workflow() -> str:
        try:
            await work(1)
        except RuntimeError:
            return "caught"
        return "missed"

    run = EngineRun(workflow)
    run.fail(1, StopIteration())

    assert run.result == "caught"


# ─ limits and the driver's side ──────────────────────────────────────────────


def test_an_activation_that_never_rests_is_cut_off() -> None:
    """The error names the run and what it was doing; the run is parked, not failed."""

    async def spinning() -> None:
        while True:  # noqa: ASYNC110  # that it spins is the point
            await asyncio.sleep(0)

    run = EngineRun(spinning, callbacks_max=1000, start=False)
    with pytest.raises(LivelockError) as caught:
        run.start()

    assert "'run-1'" in str(caught.value)
    assert "spinning" in str(caught.value) or "main" in str(caught.value)
    assert run.instance.end is None
    run.instance.evict()


def test_slots_are_reserved_once_per_activity_in_order() -> None:
    """The answer is journaled as `started`; what was cancelled again asks for none."""
    answers = iter([True, False])

    async def workflow() -> None:
        gone = asyncio.create_task(work(0))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(work(1), work(2))

    run = EngineRun(workflow, reserve=lambda _: next(answers))

    assert [c.started for c in run.commands() if isinstance(c, ScheduleActivity)] == [True, False]


def test_an_activation_leaves_the_real_loop_as_it_was() -> None:
    """Inside a running task and from a callback: the running loop and the current task are restored."""

    async def workflow() -> int:
        return await work(1)

    async def main() -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        run = EngineRun(workflow).drive()
        assert run.result == 1
        assert asyncio.get_running_loop() is loop
        assert asyncio.current_task() is task
        assert current() is None
        done = asyncio.Event()

        def callback() -> None:
            assert EngineRun(workflow, run_id="other").drive().result == 1
            done.set()

        loop.call_soon(callback)
        await done.wait()

    asyncio.run(main())
    assert current() is None


def test_an_ended_run_is_fed_nothing() -> None:
    """The driver's mistake, not the author's."""

    async def workflow() -> int:
        return 1

    run = EngineRun(workflow)
    with pytest.raises(InternalError):
        run.signal("late")


def test_a_platform_fault_in_the_workflow_parks_the_run() -> None:
    """Raised by the library inside the author's code and escaping it: good code resumes the run."""

    async def workflow() -> None:
        raise UndecodableError("stored bytes do not fit")

    run = EngineRun(workflow, start=False)
    with pytest.raises(UndecodableError):
        run.start()
    run.instance.evict()


def test_a_platform_fault_that_an_activity_raised_is_its_failure() -> None:
    """It was recorded as an outcome: it fails the run, or is caught."""

    async def workflow() -> None:
        await work(1)

    run = EngineRun(workflow)
    run.fail(1, UndecodableError("inside the activity"))

    assert run.failure.type.endswith("UndecodableError")
    assert run.instance.failed_at == (2, 0)


# ─ where it was asked for ────────────────────────────────────────────────────


def test_sources_name_the_authors_line() -> None:
    """`package/file.py:line`, also when the call was made elsewhere than it is awaited, and inside a gather."""

    async def helper() -> int:
        return await work(1)

    async def workflow() -> None:
        await work(0)
        await helper()
        await asyncio.gather(work(2), asyncio.sleep(1))
        await asyncio.create_task(next_signal("go"))

    run = EngineRun(workflow).drive()
    run.signal("go")

    first = workflow.__code__.co_firstlineno
    lines = [int(c.src.rpartition(":")[2]) - first for c in run.commands() if hasattr(c, "src")]
    assert lines[0] == 1
    assert lines[1] == helper.__code__.co_firstlineno + 1 - first
    assert lines[2:] == [3, 3, 4]
    assert all(c.src.startswith("engine/test_ending.py:") for c in run.commands() if hasattr(c, "src"))
