"""`durable.saga()`, `@saga_step`, and the body of a workflow as the outermost scope of sagas."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

import durable
from durable import (
    ArgumentsError,
    Client,
    Ok,
    Pipeline,
    PipelineStepError,
    Result,
    RunCancelledError,
    RunStatus,
    SagaStepError,
    SagaStepResult,
    WorkflowCompensationError,
    WorkflowFailedError,
    activity,
    failures,
    saga,
    saga_step,
    workflow,
)
from durable.default import engine_here
from durable.result import Err
from tests.support.workers import Calls, is_released, running_worker


class World:
    """Steps that note what they do; each can be told to fail."""

    def __init__(self) -> None:
        self.calls = calls = Calls()

        def undo(name: str) -> Any:
            async def compensate(order: str) -> None:
                calls(f"undo {name} {order}")

            return compensate

        @saga_step(compensation=undo("reserve"))
        async def reserve(order: str) -> str:
            calls(f"reserve {order}")
            return f"reserved {order}"

        @saga_step(compensation=undo("charge"))
        def charge(order: str) -> str:
            calls(f"charge {order}")
            return f"charged {order}"

        @saga_step(max_retries=0)
        async def ship(order: str) -> None:
            calls(f"ship {order}")
            raise RuntimeError("no truck")

        self.reserve, self.charge, self.ship = reserve, charge, ship


@pytest.fixture
def world() -> World:
    return World()


async def journal(run_id: str) -> list[tuple[str, str, str]]:
    run = await durable.get_run(run_id)
    return [(entry.name, entry.kind, entry.status) for entry in run.journal]


async def test_a_failed_workflow_undoes_its_saga_steps_in_reverse(embedded: str, world: World) -> None:
    """The body is a scope: with the arguments of their steps, the last recorded first; the error stays what it was."""

    @workflow
    async def order(id: str) -> None:
        assert await world.reserve(id) == f"reserved {id}"
        await world.charge(id)
        await world.ship(id)

    with pytest.raises(WorkflowFailedError) as e:
        await order("o", run_id="o-1")

    assert isinstance(e.value.__cause__, RuntimeError)
    assert world.calls.names == ["reserve o", "charge o", "ship o", "undo charge o", "undo reserve o"]
    assert (await durable.get_run("o-1")).status == RunStatus.FAILED
    assert await journal("o-1") == [
        ("reserve", "activity", "completed"),
        ("charge", "activity", "completed"),
        ("ship", "activity", "failed"),
        ("charge/compensation", "compensation", "completed"),
        ("reserve/compensation", "compensation", "completed"),
    ]


async def test_a_completed_workflow_undoes_nothing(embedded: str, world: World) -> None:
    """Also when a failed step was caught."""

    @workflow
    async def order(id: str) -> str:
        await world.reserve(id)
        try:
            await world.ship(id)
        except RuntimeError:
            return "later"
        return "now"

    assert await order("o") == "later"
    assert world.calls.names == ["reserve o", "ship o"]


async def test_a_cancelled_workflow_undoes_its_steps(embedded: str, world: World) -> None:
    """Its status is cancelled, and whoever waits hears so; a further cancel does not stop the undoing."""
    waiting = asyncio.Event()
    undoing = asyncio.Event()
    go_on = asyncio.Event()

    async def slowly(order: str) -> None:
        undoing.set()
        await go_on.wait()
        world.calls("slowly undone")

    @saga_step(compensation=slowly)
    async def lock(order: str) -> None:
        world.calls("lock")

    @activity
    async def tell() -> None:
        waiting.set()

    @workflow
    async def order(id: str) -> None:
        await world.reserve(id)
        await lock(id)
        await tell()
        await asyncio.sleep(3600)

    handle = await order.start("o", run_id="o-1")
    await waiting.wait()
    await handle.cancel("enough")
    await undoing.wait()
    assert (await handle.describe()).status == RunStatus.COMPENSATING
    assert [run.run_id for run in await durable.list_runs(status="compensating")] == ["o-1"]
    await handle.cancel("really")
    go_on.set()

    with pytest.raises(RunCancelledError):
        await handle.result()
    assert world.calls.names == ["reserve o", "lock", "slowly undone", "undo reserve o"]
    assert (await durable.get_run("o-1")).status == RunStatus.CANCELLED


async def test_only_a_final_failure_undoes(embedded: str, world: World) -> None:
    """While workflow-level retries are left, what was done is kept, and done once."""
    calls = world.calls

    @saga_step(max_retries=0)
    async def flaky() -> None:
        if calls("flaky") < 3:
            raise RuntimeError("once more")

    @workflow(retries=2, retry_delay=0)
    async def order(id: str) -> None:
        await world.reserve(id)
        await flaky()
        await world.ship(id)

    with pytest.raises(WorkflowFailedError):
        await order("o", run_id="o-1")
    assert calls.names == ["reserve o", "flaky", "flaky", "flaky", "ship o", "undo reserve o"]


async def test_an_explicit_scope_undoes_when_it_is_left_by_an_error(embedded: str, world: World) -> None:
    """The error goes on, and can be caught; steps of an earlier, completed scope stay done."""

    @workflow
    async def order(id: str) -> str:
        async with saga():
            await world.reserve("first")
        try:
            async with saga() as scope:
                await world.reserve(id)
                await world.charge(id)
                raise LookupError("a mistake")
        except LookupError:
            world.calls("caught")
        assert scope.compensated == ["charge", "reserve"]
        await world.ship(id)
        return "never"

    with pytest.raises(WorkflowFailedError):
        await order("o")
    assert world.calls.names == [
        "reserve first",
        "reserve o",
        "charge o",
        "undo charge o",
        "undo reserve o",
        "caught",
        "ship o",
    ]


async def test_a_retry_after_an_undoing_begins_from_nothing(embedded: str, world: World) -> None:
    """What was undone must not be taken for done."""
    calls = world.calls

    @workflow(retries=1, retry_delay=0)
    async def order(id: str) -> None:
        async with saga():
            await world.reserve(id)
            await world.ship(id)

    with pytest.raises(WorkflowFailedError):
        await order("o")
    assert calls.names == ["reserve o", "ship o", "undo reserve o"] * 2


async def test_compensations_are_retried(embedded: str) -> None:
    """Under the policy of their step."""
    calls = Calls()

    async def undo() -> None:
        if calls("undo") < 3:
            raise OSError("down")

    @saga_step(compensation=undo, max_retries=2, retry_delay=0)
    async def act() -> None:
        calls("act")

    @workflow
    async def order() -> None:
        await act()
        raise ValueError("x")

    with pytest.raises(WorkflowFailedError) as e:
        await order()
    assert isinstance(e.value.__cause__, ValueError)
    assert calls.names == ["act", "undo", "undo", "undo"]


async def test_a_failed_compensation_is_told_and_stops_no_other(embedded: str, world: World) -> None:
    """`WorkflowCompensationError` names it; the original error is its cause; the entry is in the journal."""

    async def cannot(order: str) -> None:
        raise OSError("stuck")

    @saga_step(compensation=cannot, max_retries=0)
    async def stick(order: str) -> None:
        pass

    @workflow
    async def order(id: str) -> None:
        await world.reserve(id)
        await stick(id)
        await world.charge(id)
        await world.ship(id)

    with pytest.raises(WorkflowFailedError) as e:
        await order("o", run_id="o-1")
    error = e.value.__cause__
    assert isinstance(error, WorkflowCompensationError)
    assert (error.step_name, error.compensated, error.failed_compensations) == (
        "ship",
        ["charge", "reserve"],
        ["stick"],
    )
    assert isinstance(error.cause, RuntimeError)
    assert ("stick/compensation", "compensation", "failed") in await journal("o-1")
    assert world.calls.names[-2:] == ["undo charge o", "undo reserve o"]


async def test_order_is_that_of_recording(embedded: str) -> None:
    """Of steps side by side the one whose result came last is undone first."""
    calls = Calls()
    second = asyncio.Event()

    async def undo(name: str) -> None:
        calls(f"undo {name}")

    @saga_step(compensation=undo)
    async def slow(name: str) -> None:
        await second.wait()

    @saga_step(compensation=undo)
    async def quick(name: str) -> None:
        pass

    @activity
    async def let() -> None:
        second.set()

    @workflow
    async def order() -> None:
        async def then() -> None:
            await quick("quick")
            await let()

        await asyncio.gather(slow("slow"), then())
        raise ValueError

    with pytest.raises(WorkflowFailedError):
        await order()
    assert calls.names == ["undo slow", "undo quick"]


async def test_steps_that_run_when_the_scope_fails_are_stopped_first(embedded: str) -> None:
    """Their recorded end decides: what completed all the same is undone, what was cancelled is not."""
    calls = Calls()
    both_run = asyncio.Barrier(3)

    async def undo(name: str) -> None:
        calls(f"undo {name}")

    @saga_step(compensation=undo)
    async def stubborn(name: str) -> str:
        await both_run.wait()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            calls("stubborn is done")
        return "done"

    @saga_step(compensation=undo)
    async def meek(name: str) -> str:
        await both_run.wait()
        try:
            await asyncio.sleep(60)
        finally:
            calls("meek has stopped")
        return "done"

    @activity(retries=0)
    async def fail() -> None:
        await both_run.wait()
        raise RuntimeError

    @workflow
    async def order() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(stubborn("stubborn"))
            group.create_task(meek("meek"))
            group.create_task(fail())

    with pytest.raises(WorkflowFailedError):
        await order()
    assert sorted(calls.names) == ["meek has stopped", "stubborn is done", "undo stubborn"]


async def test_an_uncertain_step_is_undone_if_its_compensation_can_tell(embedded: str) -> None:
    """A parameter `uncertain` asks to be called for steps that were interrupted; recorded ones come with False."""
    calls = Calls()
    begun = asyncio.Event()

    async def undo(name: str, uncertain: bool) -> None:
        calls(f"undo {name} {uncertain}")

    @saga_step(compensation=undo)
    async def done(name: str) -> None:
        pass

    @saga_step(compensation=undo)
    async def hangs(name: str) -> None:
        begun.set()
        await asyncio.sleep(60)

    @saga_step(compensation=undo, timeout=0.05, max_retries=0)
    async def late(name: str) -> None:
        await asyncio.sleep(60)

    @workflow
    async def order() -> None:
        await done("a")
        try:
            await late("b")
        except TimeoutError:
            await hangs("c")

    handle = await order.start()
    await begun.wait()
    await handle.cancel()
    with pytest.raises(RunCancelledError):
        await handle.result()
    assert calls.names == ["undo c True", "undo b True", "undo a False"]


async def test_answers_that_say_no_fail_the_step(embedded: str) -> None:
    """`SagaStepResult.fail` and `Err` are not retried, and not undone; `Ok` stands for its value."""
    calls = Calls()

    async def undo(how: str) -> None:
        calls("undo")

    @saga_step(compensation=undo)
    async def answer(how: str) -> Any:
        calls(how)
        return {
            "fail": SagaStepResult.fail("sold out"),
            "err": Err(KeyError("k")),
            "ok": SagaStepResult.Ok({"n": 1}),
            "plain": Ok(2),
        }[how]

    @workflow
    async def order(how: str) -> Any:
        return await answer(how)

    assert await order("ok") == {"n": 1}
    assert await order("plain") == 2
    for how in ("fail", "err"):
        with pytest.raises(WorkflowFailedError) as e:
            await order(how)
        assert isinstance(e.value.__cause__, SagaStepError)
        assert calls.of(how) == 1
    assert isinstance(e.value.__cause__.__cause__, KeyError)
    assert calls.of("undo") == 0


async def test_a_step_and_its_compensation_pair_up_by_name(embedded: str) -> None:
    """`compensation=True` marks the undo of the step of that name, whichever is defined first."""
    calls = Calls()

    @saga_step("a", compensation=True)
    async def undo_a() -> None:
        calls("undo a")

    @saga_step("a")
    async def do_a() -> None:
        calls("a")

    @saga_step("b")
    async def do_b() -> None:
        calls("b")

    @saga_step("b", compensation=True, max_retries=1, retry_delay=0)
    async def undo_b() -> None:
        calls("undo b")

    @workflow
    async def order() -> None:
        await do_a()
        await do_b()
        raise ValueError

    with pytest.raises(WorkflowFailedError):
        await order()
    assert calls.names == ["a", "b", "undo b", "undo a"]


async def test_a_compensation_that_does_not_fit_is_refused_before_the_step(embedded: str) -> None:
    """Not when it is too late."""
    calls = Calls()

    async def undo(other: int, more: int) -> None: ...

    @saga_step(compensation=undo)
    async def act(order: str) -> None:
        calls("act")

    @workflow
    async def order() -> None:
        await act("o")

    with pytest.raises(WorkflowFailedError) as e:
        await order()
    assert isinstance(e.value.__cause__, ArgumentsError)
    assert calls.names == []


async def test_outside_of_runs_a_saga_step_just_runs(world: World) -> None:
    """So it can be unit-tested; a scope is for workflows only."""

    @saga_step
    async def no() -> Result[int, str]:
        return Err("no")

    assert await world.reserve("o") == "reserved o"
    assert await world.charge("o") == "charged o"
    assert await no() == Err("no")
    with pytest.raises(durable.DefinitionError):
        async with saga():
            pass


def test_options_of_saga_steps_are_checked() -> None:
    """A misspelt one is a TypeError; the undo of a copy stays."""
    with pytest.raises(TypeError):
        saga_step("x", retries=3)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="max_retries"):
        saga_step("x", max_retries=-1)
    with pytest.raises(durable.DefinitionError):
        saga_step("x", compensation="undo")  # type: ignore[call-overload]
    world = World()
    assert world.reserve.options(timeout=3).undo is world.reserve.undo


async def test_a_saga_step_in_a_pipeline_is_undone_when_the_pipeline_fails(embedded: str) -> None:
    """With the context it was called with; also where the pipeline is part of a workflow."""
    calls = Calls()

    async def undo(ctx: dict[str, Any]) -> None:
        calls(f"undo {ctx['order']}")

    @saga_step("reserve", compensation=undo)
    async def reserve(ctx: dict[str, Any]) -> str:
        return f"reserved {ctx['order']}"

    async def fail(ctx: dict[str, Any]) -> Any:
        return Err(ctx["reserve"])

    pipeline = Pipeline("p", [reserve, fail])

    @workflow
    async def outer() -> None:
        await pipeline.execute({"order": "inside"})

    with pytest.raises(PipelineStepError, match="reserved o"):
        await pipeline.execute({"order": "o"}, run_id="p-1")
    with pytest.raises(WorkflowFailedError):
        await outer(run_id="w-1")
    assert calls.names == ["undo o", "undo inside"]
    assert (await journal("p-1"))[-1] == ("reserve/compensation", "compensation", "completed")
    assert (await journal("w-1"))[-1] == ("p/reserve/compensation", "compensation", "completed")


async def test_an_undone_run_that_is_retried_begins_from_nothing(embedded: str, world: World) -> None:
    """What was undone must not count as done, nor may its idempotency keys: whoever deduplicates would swallow the second charge."""
    keys: list[str] = []

    @activity
    async def key() -> None:
        keys.append(durable.activity_info().idempotency_key)

    @workflow
    async def order(id: str) -> None:
        await world.reserve(id)
        await key()
        await asyncio.sleep(3600)

    for life in (1, 2):
        handle = await order.start("o", run_id="o-1") if life == 1 else await order.attach("o-1")
        while len(keys) < life:  # noqa: ASYNC110  # a condition outside of any loop
            await asyncio.sleep(0.01)
        await handle.cancel()
        with pytest.raises(RunCancelledError):
            await handle.result()
        if life == 1:
            reopened = await (await durable.get_handle("o-1")).retry()
            assert reopened.kept_events == 0
    assert world.calls.names == ["reserve o", "undo reserve o"] * 2
    assert keys == ["o-1@1/key#1", "o-1@2/key#1"]


async def test_a_saga_that_sleeps_leaves_memory_and_undoes_nothing(client: Client, world: World) -> None:
    """Its code is unwound when the run is released: that is no failure. Rebuilt, it still knows what to undo."""

    @workflow
    async def order(id: str) -> None:
        await world.reserve(id)
        async with saga():
            await world.charge(id)
            await durable.wait_signal("go")
            raise ValueError

    handle = await client.start(order, "o", run_id="o-1")
    async with running_worker(client, order, warm_us=0):
        await is_released(handle)
        assert world.calls.names == ["reserve o", "charge o"]
        await handle.signal("go")
        with pytest.raises(WorkflowFailedError):
            await handle.result()
    assert world.calls.names == ["reserve o", "charge o", "undo charge o", "undo reserve o"]


async def test_a_cancel_scope_of_anyio_is_shielded_off(embedded: str, world: World) -> None:
    """It cancels again and again until its task has left it: the compensations are not reached."""

    @workflow
    async def order(id: str) -> str:
        with anyio.move_on_after(0.05) as limit:
            async with saga():
                await world.reserve(id)
                await world.charge(id)
                await anyio.sleep(3600)
        return f"timed out: {limit.cancelled_caught}"

    assert await order("o", run_id="o-1") == "timed out: True"
    assert world.calls.names == ["reserve o", "charge o", "undo charge o", "undo reserve o"]
    assert {status for _, kind, status in await journal("o-1") if kind == "compensation"} == {"completed"}


async def test_steps_that_nobody_awaits_any_more_are_stopped(embedded: str, world: World) -> None:
    """`gather` lets the others run when one fails: the scope does not end before they have."""
    begun = asyncio.Event()

    async def undo() -> None:
        world.calls("undo hang")

    @saga_step(compensation=undo)
    async def hang() -> None:
        begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            world.calls("hang has ended")

    @activity(retries=0)
    async def fail() -> None:
        await begun.wait()
        raise RuntimeError

    @workflow
    async def order(id: str) -> None:
        await world.reserve(id)
        await asyncio.gather(hang(), fail())

    with pytest.raises(WorkflowFailedError):
        await order("o")
    assert world.calls.names == ["reserve o", "hang has ended", "undo reserve o"]


async def test_a_step_that_is_recorded_together_with_a_cancel_is_undone(embedded: str) -> None:
    """Its caller never saw the result, but the journal has it."""
    calls = Calls()
    both = asyncio.Barrier(2)

    async def undo(name: str) -> None:
        calls(f"undo {name}")

    @saga_step(compensation=undo, max_retries=0)
    async def quick(name: str) -> None:
        await both.wait()

    @saga_step(max_retries=0)
    async def fail(name: str) -> None:
        await both.wait()
        raise RuntimeError

    @workflow
    async def order() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail("x"))
            group.create_task(quick("y"))

    for n in range(10):
        with pytest.raises(WorkflowFailedError):
            await order(run_id=f"o-{n}")
        done = ("quick", "activity", "completed") in await journal(f"o-{n}")
        assert calls.of("undo y") == int(done)
        calls.names.clear()


async def test_a_fault_of_the_platform_undoes_nothing(embedded: str, world: World) -> None:
    """The run has not failed: it is parked, and goes on with good code."""

    @workflow
    async def order(id: str) -> None:
        await world.reserve(id)
        async with saga():
            await world.charge(id)
            open("/dev/null").close()  # noqa: ASYNC230  # refused in a workflow

    with pytest.raises(durable.WorkflowGuardError):
        await order("o", run_id="o-1")
    assert (await durable.get_run("o-1")).status == "parked"
    assert world.calls.names == ["reserve o", "charge o"]


def test_errors_that_are_too_large_to_record_whole_stay_usable() -> None:
    """Their values are left out, their attributes are there: empty, not missing."""
    many = [f"step-{n}-{'x' * 200}" for n in range(20_000)]

    saga_error: Any = failures.rebuild(failures.record(durable.SagaError("s", ValueError("x"), many)))
    step_error: Any = failures.rebuild(failures.record(PipelineStepError("y" * 5_000_000, "r")))

    assert (saga_error.step_name, list(saga_error.compensated)) == ("s", [])
    assert isinstance(saga_error.cause, ValueError)
    assert (step_error.step_name, step_error.errors) == ("", [step_error])
    assert str(step_error)


async def test_a_database_used_for_a_block_is_read_with_the_codec_of_this_process(url: str) -> None:
    """`using` names another database, not other keys."""

    class Codec:
        name = "reversed"
        key_id = "k"
        accepts_plain = False

        def encode(self, data: bytes, context: bytes) -> bytes:
            return data[::-1]

        def decode(self, data: bytes, context: bytes) -> bytes:
            return data[::-1]

    codec: Any = Codec()
    try:
        durable.configure(codec=codec)
        with durable.using(url, durability="off"):
            engine = await engine_here()
        assert engine.client.address.codec is codec
    finally:
        durable.configure()
