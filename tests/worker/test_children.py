"""Children: calling a workflow inside a workflow starts a run of its own; its outcome comes back, whatever happens to either."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Final

import pytest

import durable
from durable import (
    Client,
    DefinitionError,
    Encryption,
    RunCancelledError,
    RunConflictError,
    RunHandle,
    RunStatus,
    Signal,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
    activity,
    activity_info,
    connect,
    continue_as_new,
    saga_step,
    workflow,
)
from durable.definitions import Registry
from durable.journal.events import Terminated
from durable.recorded import RecordedRun
from durable.testing.replaying import replayed_all
from tests.support.workers import (
    Calls,
    file_of,
    is_released,
    is_waiting,
    running_worker,
    status_is,
    tampered,
    until,
)

go = Signal("go", int)
OPEN: Final = [status for status in RunStatus if not status.is_closed]


@workflow
async def waits() -> int:
    return await go.wait()


async def test_calling_a_workflow_runs_it_as_a_child(client: Client) -> None:
    """The call returns the child's own result; the child is a run, with a journal and keys of its own, called after its place."""
    keys: list[str] = []

    @activity
    async def double(number: int) -> int:
        keys.append(activity_info().idempotency_key)
        return 2 * number

    @workflow
    async def inner(number: int) -> int:
        return await double(number) + 1

    @workflow
    async def outer() -> list[int]:
        with durable.scope("both"):
            first = await inner(1)
        return [first, await inner(2), await durable.child(inner, 3)]

    async with running_worker(client, outer, inner):
        run = await client.start(outer, run_id="o")
        assert await run.result(60) == [3, 5, 7]
        seen = await run.describe()
        child = await client.describe("o@1/inner#2")

    assert [(one.name, one.kind, one.status, one.result, one.child) for one in seen.journal] == [
        ("both/inner", "child", "completed", 3, "o@1/both/inner#1"),
        ("inner", "child", "completed", 5, "o@1/inner#1"),
        ("inner", "child", "completed", 7, "o@1/inner#2"),
    ]
    assert (child.status, child.workflow, child.input) == ("completed", "inner", {"number": 3})
    assert (child.parent, seen.parent) == ("o", None)
    assert keys[0] == "o@1/both/inner#1@1/double#1"


@pytest.mark.slow  # as long as a run stays in memory
async def test_children_run_side_by_side_and_their_parent_leaves_the_memory(client: Client) -> None:
    """A parent that only waits for children is a row, like any run that waits."""

    @workflow
    async def outer() -> list[int]:
        return list(await asyncio.gather(waits(), waits()))

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/waits#2"))
        await is_released(run)
        assert {one.text for one in (await run.describe()).waiting_on} == {
            "child run o@1/waits#1",
            "child run o@1/waits#2",
        }
        await client.signal("o@1/waits#2", go, 2)
        await client.signal("o@1/waits#1", go, 1)
        assert await run.result(60) == [1, 2]


async def test_many_children_are_started_by_one_commit(client: Client) -> None:
    """And one among them that cannot be started harms no other."""

    @workflow
    async def inner(number: int) -> int:
        return number

    @workflow
    async def other() -> None: ...

    @workflow
    async def outer() -> list[Any]:
        calls: list[Any] = [inner(number) for number in range(60)]
        calls.append(inner(0, run_id="strange"))
        *results, refused = await asyncio.gather(*calls, return_exceptions=True)
        return [sum(results), f"{type(refused).__name__} {refused.run_id}"]

    async with running_worker(client, outer, inner, other):
        await (await client.start(other, run_id="strange")).result(60)
        run = await client.start(outer, run_id="o")
        assert await run.result(60) == [1_770, "RunConflictError strange"]


async def test_a_handle_of_a_child_is_awaited_later_or_never(client: Client) -> None:
    """`start` returns at once. Result and id are all that a workflow needs; other things it does in activities."""

    timed_out: list[bool] = []

    @workflow
    async def outer() -> list[Any]:
        child = await waits.start()
        with pytest.raises(TimeoutError):
            await child.result(timeout=0.01)
        timed_out.append(True)
        with pytest.raises(DefinitionError, match="in an activity"):
            await child.describe()
        return [child.run_id, await child.result(), await child.result()]

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        await until(lambda: timed_out)
        await client.signal("o@1/waits#1", go, 7)
        assert await run.result(60) == ["o@1/waits#1", 7, 7]


async def test_the_failure_of_a_child_is_that_of_any_run(client: Client) -> None:
    """`WorkflowFailedError` with the child's error as its cause, live and in a replay; and however else it ended."""

    @workflow
    async def breaks() -> None:
        raise KeyError("child")

    @workflow(timeout=0.05)
    async def late() -> None:
        await durable.sleep(60)

    @workflow
    async def outer() -> list[str]:
        told = []
        for child in (breaks, late, waits):
            try:
                await child()
            except (WorkflowFailedError, WorkflowTimeoutError, durable.RunTerminatedError) as error:
                told.append(f"{type(error).__name__} of {error.run_id}: {error.__cause__!r}")
        return told

    async with running_worker(client, outer, breaks, late, waits):
        run = await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/waits#1"))
        await client.terminate("o@1/waits#1")
        assert await run.result(60) == [
            "WorkflowFailedError of o@1/breaks#1: KeyError('child')",
            "WorkflowTimeoutError of o@1/late#1: None",
            "RunTerminatedError of o@1/waits#1: None",
        ]


async def test_cancelling_the_call_cancels_the_child_and_waits_for_its_end(client: Client) -> None:
    """What the child has done is undone before the parent goes on."""
    calls = Calls()

    async def give_back() -> None:
        calls("give back")

    @saga_step(compensation=give_back)
    async def take() -> None:
        calls("take")

    @workflow
    async def inner() -> None:
        await take()
        await go.wait()

    @activity
    async def mark() -> None:
        calls("parent goes on")

    @workflow
    async def outer() -> str:
        call = asyncio.ensure_future(inner())
        await go.wait()
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            await mark()
            return "cancelled"
        return "not cancelled"

    async with running_worker(client, outer, inner):
        run = await client.start(outer, run_id="o")
        await is_waiting(await _found(client, "o@1/inner#1"), "signal")
        await run.signal(go, 1)
        assert await run.result(60) == "cancelled"
        assert (await client.describe("o@1/inner#1")).status == "cancelled"
    assert calls.names == ["take", "give back", "parent goes on"]


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "terminated", "timed_out"])
async def test_children_do_not_outlive_their_parent_unless_they_may(client: Client, end: str) -> None:
    """However it ends: open children are asked to cancel, in the same transaction; abandoned ones go on."""

    @workflow(timeout=3 if end == "timed_out" else 600)
    async def outer() -> None:
        await waits.start()
        await waits.options(on_parent_close="abandon", run_id="left-alone").start()
        if await go.wait():
            raise ValueError("to fail")

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        await is_waiting(run, "signal")
        if end in ("completed", "failed"):
            await run.signal(go, int(end == "failed"))
        elif end == "cancelled":
            await run.cancel()
        elif end == "terminated":
            await run.terminate()
        await status_is(run, end)
        await status_is(await client.get("o@1/waits#1"), "cancelled")
        left = await client.get("left-alone")
        assert (await left.describe()).status in (RunStatus.RUNNING, RunStatus.WAITING)
        await left.signal(go, 5)
        assert await left.result(60) == 5


@pytest.mark.parametrize("end", ["completed", "cancelled", "terminated", "timed_out", "continued"])
async def test_children_may_be_terminated_with_their_parent(client: Client, end: str) -> None:
    """However it ends, in the same transaction: none of their code runs any more, and theirs are ended with them, as they say."""
    calls = Calls()
    on_parent_close: Any = "terminate"

    @activity
    async def works_for_long() -> None:
        calls("begun")
        try:
            await asyncio.sleep(60)
        finally:
            calls("interrupted")

    @workflow
    async def busy() -> None:
        await works_for_long()

    @workflow
    async def middle() -> None:
        await busy.options(on_parent_close=on_parent_close).start()
        await waits.options(run_id="asked").start()
        await waits.options(run_id="left", on_parent_close="abandon").start()
        await go.wait()

    @workflow(timeout=3 if end == "timed_out" else 600)
    async def outer(round: int) -> None:
        if round == 2:
            return
        await middle.options(on_parent_close=on_parent_close).start()
        await go.wait()
        if end == "continued":
            continue_as_new(2)

    async with running_worker(client, outer, middle, busy, waits):
        run = await client.start(outer, 1, run_id="o")
        await until(lambda: calls.names == ["begun"])
        await is_waiting(await _found(client, "left"), "signal")
        if end in ("completed", "continued"):
            await run.signal(go, 0)
        elif end == "cancelled":
            await run.cancel()
        elif end == "terminated":
            await run.terminate()
        await status_is(run, "completed" if end == "continued" else end)
        middle_run = await client.describe("o@1/middle#1")
        busy_run = await client.describe("o@1/middle#1@1/busy#1")
        assert (middle_run.status, busy_run.status) == ("terminated", "terminated")
        assert middle_run.reason == busy_run.reason == "its parent has ended"
        events = await (await client.get("o@1/middle#1")).events()
        assert events[-1] == Terminated(at=events[-1].at, reason="its parent has ended")
        await status_is(await client.get("asked"), "cancelled")
        assert (await client.describe("left")).status in (RunStatus.RUNNING, RunStatus.WAITING)
        await until(lambda: calls.names == ["begun", "interrupted"])


async def test_a_child_that_was_asked_to_cancel_is_terminated_all_the_same(client: Client) -> None:
    """It need not have heeded the request by the time its parent ends."""

    @workflow
    async def stubborn() -> None:
        try:
            await go.wait()
        finally:
            await go.wait()

    @workflow
    async def outer() -> None:
        child = await stubborn.options(on_parent_close="terminate").start()
        await go.wait()
        await child.cancel()
        await go.wait()

    async with running_worker(client, outer, stubborn):
        run = await client.start(outer, run_id="o")
        await is_waiting(await _found(client, "o@1/stubborn#1"), "signal")
        await run.signal(go, 1)
        await run.signal(go, 2)
        await run.result(60)
        assert (await client.describe("o@1/stubborn#1")).status == "terminated"


@pytest.mark.parametrize("end", ["completed", "failed", "cancelled", "continued"])
async def test_a_child_that_outlives_its_parent_may_be_the_last_thing_it_starts(
    client: Client, end: str
) -> None:
    """`start` has returned: the child is stored by the very commit that closes the parent. Once, though a failure is tried again."""

    @workflow
    async def heir() -> int:
        return await go.wait()

    @workflow(retries=1, retry_delay=0)
    async def outer(round: int) -> None:
        if round == 2:
            return
        try:
            await go.wait()
        finally:
            await heir.options(on_parent_close="abandon").start()
        if end == "continued":
            continue_as_new(2)
        if end == "failed":
            raise ValueError

    async with running_worker(client, outer, heir):
        run = await client.start(outer, 1, run_id="o")
        await is_waiting(run, "signal")
        await (run.cancel() if end == "cancelled" else run.signal(go, 1))
        await status_is(run, "completed" if end == "continued" else end)

        heirs = await client.list(workflow="heir")
        assert [one.run_id for one in heirs] == [f"o@1/heir#1{'~2' if end == 'failed' else ''}"]
        await client.signal(heirs[0].run_id, go, 7)
        assert await (await client.get(heirs[0].run_id)).result(60) == 7


async def test_a_child_is_cancelled_by_the_activation_that_starts_it(client: Client) -> None:
    """Its start and the request are one commit; whoever waits for its end gets it, and so does a replay."""
    calls = Calls()

    @workflow
    async def outer() -> str:
        child = await waits.start()
        await child.cancel("on second thoughts")
        calls("outer")
        try:
            await child.result()
        except RunCancelledError as error:
            await go.wait()
            return str(error.reason)
        return "not cancelled"

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        await is_waiting(run, "signal")
    async with running_worker(client, outer, waits):
        await run.signal(go, 1)
        assert await run.result(60) == "on second thoughts"
    assert calls.names == ["outer", "outer"]
    assert (await client.describe("o@1/waits#1")).status == "cancelled"


async def test_a_child_hears_why_it_is_to_cancel(client: Client) -> None:
    """The reason that its parent's code gives, else the one that its parent was given, else what became of its parent."""

    @workflow
    async def outer(how: str) -> None:
        if how == "awaits":
            await waits(run_id="child-awaits")
        handle = await waits.start(run_id=f"child-{how}")
        await go.wait()
        if how == "asks":
            await handle.cancel("too late")
        elif how == "asks in silence":
            await handle.cancel()
        if how != "ends":
            await handle.result()

    async def reason(how: str) -> str | None:
        child = await client.get(f"child-{how}")
        await status_is(child, "cancelled")
        return (await child.describe()).reason

    async with running_worker(client, outer, waits):
        for how in ("awaits", "asks", "asks in silence", "ends"):
            run = await client.start(outer, how, run_id=how)
            await is_waiting(await _found(client, f"child-{how}"), "signal")
            if how == "awaits":
                await run.cancel("no longer wanted")
            else:
                await run.signal(go, 1)

        assert await reason("awaits") == "no longer wanted"
        assert await reason("asks") == "too late"
        assert await reason("asks in silence") == "its parent 'asks in silence' waits for it no longer"
        assert await reason("ends") == "its parent 'ends' has ended"


@pytest.mark.parametrize("how", ["completed", "failed", "continued"])
async def test_a_child_started_in_the_turn_that_closes_its_parent_goes_with_it(
    client: Client, how: str
) -> None:
    """One commit does both; what holds for children that were there before holds for it."""

    @workflow
    async def outer(round: int) -> None:
        if round == 1:
            await waits.start()
            await waits.options(on_parent_close="abandon", run_id="left-alone").start()
            await waits.options(on_parent_close="terminate", run_id="ended").start()
            assert await go.wait() == 1  # it is there already
            if how == "continued":
                durable.continue_as_new(2)
        if how == "failed":
            raise ValueError("at once")

    run = await client.start(outer, 1, run_id="o")
    await run.signal(go, 1)
    async with running_worker(client, outer, waits):
        await status_is(run, "failed" if how == "failed" else "completed")
        child = await client.get("o@1/waits#1")
        await status_is(child, "cancelled")
        assert (await child.describe()).reason == "its parent 'o' has ended"
        ended = await client.describe("ended")
        assert (ended.status, ended.reason) == ("terminated", "its parent has ended")
        left = await client.get("left-alone")
        await is_waiting(left, "signal")
        await left.signal(go, 5)
        assert await left.result(60) == 5


async def test_a_child_that_is_to_stay_is_started_by_the_last_thing_its_parent_does(client: Client) -> None:
    """Nobody is left to wait for it, and it was to be left alone: it is not forgotten for that."""

    @workflow
    async def outer() -> str:
        child = await waits.options(on_parent_close="abandon").start()
        return child.run_id

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        child = await client.get(await run.result(60))
        await is_waiting(child, "signal")
        await child.signal(go, 5)
        assert await child.result(60) == 5
        assert (await child.describe()).parent == "o"
    runs = [one async for one in client.recorded_runs() if isinstance(one, RecordedRun)]
    assert len(replayed_all(runs, Registry([outer.definition, waits.definition]))) == 2


async def test_a_child_that_began_anew_goes_with_its_parent_again(client: Client) -> None:
    """What its parent asked for at its start holds again, though it had been cancelled once."""

    @workflow
    async def outer() -> int:
        return await waits()

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/waits#1"))
        await run.cancel()
        await status_is(run, "cancelled")

        await run.retry()
        child = await client.get("o@1/waits#1")
        await until(lambda: _is_open(client, "o@1/waits#1"))
        await run.terminate()
        await status_is(child, "cancelled")


async def _is_open(client: Client, run_id: str) -> bool:
    return not (await client.describe(run_id)).status.is_closed


async def test_a_cancel_of_the_parent_reaches_the_child_it_awaits(client: Client) -> None:
    """And the parent is closed when the child is."""

    @workflow
    async def outer() -> int:
        return await waits()

    async with running_worker(client, outer, waits):
        run = await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/waits#1"))
        await run.cancel("no longer wanted")
        with pytest.raises(RunCancelledError):
            await run.result(60)
        assert (await client.describe("o@1/waits#1")).status == "cancelled"


async def test_an_id_of_the_authors_attaches_or_returns(client: Client) -> None:
    """As any start with an id does: the open run goes on, a closed one has its result; another workflow's is a conflict."""

    @workflow
    async def other() -> None: ...

    @workflow
    async def outer(run_id_of_child: str) -> Any:
        try:
            return await waits(run_id=run_id_of_child)
        except RunConflictError as error:
            return error.run_id

    async with running_worker(client, outer, waits, other):
        known = await client.start(waits, run_id="known")
        first = await client.start(outer, "known", run_id="first")
        await is_waiting(known, "signal")
        await until(lambda: _has_child(client, "first"))
        await known.signal(go, 3)
        assert await first.result(60) == 3
        assert await (await client.start(outer, "known")).result(60) == 3
        await (await client.start(other, run_id="strange")).result(60)
        assert await (await client.start(outer, "strange")).result(60) == "strange"


async def test_a_retried_workflow_tries_its_failed_child_again(client: Client) -> None:
    """The child that failed begins anew, under new keys; those that had completed are not repeated."""
    calls = Calls()
    keys: list[str] = []

    @activity(retries=0)
    async def flaky() -> str:
        keys.append(activity_info().idempotency_key)
        if calls("flaky") == 1:
            raise OSError("once")
        return "done"

    @workflow
    async def good() -> int:
        return calls("good")

    @workflow
    async def bad() -> str:
        return await flaky()

    @workflow(retries=1, retry_delay=0)
    async def outer() -> list[Any]:
        return [await good(), await bad(), await good()]

    async with running_worker(client, outer, good, bad):
        run = await client.start(outer, run_id="o")
        assert await run.result(60) == [1, "done", 2]
        assert (await client.describe("o@1/bad#1")).generation == 2
        assert (await client.describe("o@1/good#2~2")).status == "completed"
    assert keys == ["o@1/bad#1@1/flaky#1", "o@1/bad#1@2/flaky#1"]


async def test_a_run_that_an_operator_retries_goes_on_with_its_children(client: Client) -> None:
    """`durable retry`: one that had completed is not repeated; one that was cancelled with its parent begins anew."""
    calls = Calls()

    @workflow
    async def good() -> int:
        return calls("good")

    @workflow
    async def outer() -> list[int]:
        return [await good(), await waits()]

    async with running_worker(client, outer, good, waits):
        run = await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/waits#1"))
        await run.terminate("too early")
        await status_is(await client.get("o@1/waits#1"), "cancelled")

        await run.retry()
        await until(lambda: _known(client, "o@1/waits#1"))
        await client.signal("o@1/waits#1", go, 8)

        assert await (await client.get("o")).result(60) == [1, 8]
        assert (await client.describe("o@1/waits#1")).generation == 2
    assert calls.names == ["good"]


async def test_a_child_that_was_cancelled_before_its_parent_was_retried_has_ended_of_that(
    client: Client,
) -> None:
    """What is kept of the journal has asked it to cancel: it is not begun anew, for nobody would ask it again."""
    calls, may_end = Calls(), asyncio.Event()

    @activity
    async def tidy() -> None:
        calls("tidy")
        await may_end.wait()

    @workflow
    async def inner() -> None:
        try:
            await go.wait()
        finally:
            await tidy()

    @workflow
    async def outer() -> str:
        try:
            async with asyncio.timeout(0.05):
                await inner()
        except TimeoutError:
            return "late"
        return "in time"

    async with running_worker(client, outer, inner):
        run = await client.start(outer, run_id="o")
        await until(lambda: calls.names)
        await run.terminate("for now")
        may_end.set()
        await status_is(await client.get("o@1/inner#1"), "cancelled")
        await run.retry()

        assert await (await client.get("o")).result(10) == "late"
        assert (await client.describe("o@1/inner#1")).generation == 1


async def test_a_child_that_went_on_in_another_generation_has_not_ended(client: Client) -> None:
    """Whoever takes up a run that was retried asks for its children again: one that was continued meanwhile is not closed."""

    @workflow
    async def inner(round: int) -> int:
        value = await go.wait()
        if round == 1:
            continue_as_new(2)
        return value

    @workflow
    async def outer() -> int:
        return await inner(1)

    async with running_worker(client, outer, inner):
        run = await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/inner#1"))
        await run.terminate("too early")
        await status_is(await client.get("o@1/inner#1"), "cancelled")
        await run.retry()
        await until(lambda: _is_open_in(client, "o@1/inner#1", generation=2))
        await client.signal("o@1/inner#1", go, 1)
        await until(lambda: _is_open_in(client, "o@1/inner#1", generation=3))
    async with running_worker(client, outer, inner):
        await client.signal("o", go, 0)  # has it taken up
        await until(lambda: _is_told(client, "o"))
        await client.signal("o@1/inner#1", go, 4)

        assert await (await client.get("o")).result(10) == 4


async def _is_open_in(client: Client, run_id: str, *, generation: int) -> bool:
    run = await client.describe(run_id)
    return not run.status.is_closed and run.generation == generation


async def _is_told(client: Client, run_id: str) -> bool:
    return any(one.kind == "signal" for one in (await client.describe(run_id)).journal)


async def test_a_run_that_continues_as_new_lets_its_children_go(client: Client) -> None:
    """Those of the generation that ends are asked to cancel; what they answer is nobody's any more."""

    @workflow
    async def outer(round: int) -> int:
        child = await waits.start()
        if round == 1:
            await durable.sleep(0.01)
            durable.continue_as_new(2)
        return await child.result()

    async with running_worker(client, outer, waits):
        run = await client.start(outer, 1, run_id="o")
        await status_is(await _found(client, "o@1/waits#1"), "cancelled")
        second = await _found(client, "o@2/waits#1")
        await second.signal(go, 6)
        assert await run.result(60) == 6


async def test_a_script_drives_the_children_of_its_runs(embedded: str) -> None:
    """No worker is needed, and their workflows need not be in a variable."""

    @workflow
    async def inner(number: int) -> int:
        return number + 1

    @workflow
    async def outer() -> int:
        return await inner(await inner(1))

    assert await outer(run_id="o") == 3
    assert (await durable.get_run("o@1/inner#2")).result == 3


async def test_children_of_children(client: Client) -> None:
    """Ids tell the way; one that would be too long is shortened."""

    @workflow
    async def down(levels: int) -> list[str]:
        here = durable.info().run_id
        return [here, *(await down(levels - 1))] if levels else [here]

    async with running_worker(client, down):
        run = await client.start(down, 30, run_id="d")
        ids = await run.result(60)
    assert ids[:3] == ["d", "d@1/down#1", "d@1/down#1@1/down#1"]
    assert len(set(ids)) == 31
    assert max(map(len, ids)) <= 200


async def test_children_are_sealed_like_any_run(url: str) -> None:
    """Under a codec no input, no result and no reason of a child is readable in the database; it works all the same."""

    @workflow
    async def inner(word: str) -> str:
        if word == "bad":
            raise ValueError(f"{word} canary")
        return f"{word} canary"

    @workflow
    async def outer() -> list[str]:
        told = [await inner("good")]
        try:
            await inner("bad")
        except WorkflowFailedError as error:
            told.append(str(error.__cause__))
        child = await waits.start(run_id="child")
        await child.cancel("a canary")
        try:
            await child.result()
        except RunCancelledError as error:
            told.append(str(error.reason))
        return told

    codec = Encryption({"k": b"0123456789abcdef0123456789abcdef"})
    async with (
        connect(url, durability="off", codec=codec) as client,
        running_worker(client, outer, inner, waits),
    ):
        run = await client.start(outer, run_id="o")
        assert await run.result(60) == ["good canary", "bad canary", "a canary"]
    async with connect(url, durability="off") as client:
        for run_id in ("o@1/inner#1", "o@1/inner#2", "child"):
            assert "canary" not in f"{await client.describe(run_id)}"


DAMAGE: Final = (
    "UPDATE inbox SET message_id = 'child/x/y' WHERE kind = 'child'",
    "UPDATE inbox SET message_id = NULL WHERE kind = 'child'",
    "UPDATE inbox SET name = 'completed', data = x'7b' WHERE kind = 'child'",
)


@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_notice_parks_the_parent_and_nobody_else(client: Client, damage: str) -> None:
    """What it says of the outcome counts for nothing, though: that is read from the child."""

    @workflow
    async def outer() -> str:
        try:
            await waits()
        except durable.RunTerminatedError:
            return "terminated"
        return "not terminated"

    @workflow
    async def neighbour() -> int:
        return 1

    async with running_worker(client, outer, waits):
        await client.start(outer, run_id="o")
        await until(lambda: _known(client, "o@1/waits#1"))
    await client.terminate("o@1/waits#1")
    tampered(file_of(client), damage)
    async with running_worker(client, outer, neighbour):
        run = await client.get("o")
        if damage == DAMAGE[-1]:
            assert await run.result(60) == "terminated"
            return
        seen = await status_is(run, "parked")
        assert "about a child" in str(seen.reason)
        assert await (await client.start(neighbour)).result(60) == 1


async def test_child_is_for_workflows_only(client: Client) -> None:
    """Outside, a workflow is called, or started by a client."""
    with pytest.raises(DefinitionError, match="inside a workflow"):
        await durable.child(waits)
    with pytest.raises(DefinitionError, match="'cancel', 'terminate' or 'abandon'"):
        waits.options(on_parent_close="kill")  # type: ignore[arg-type]  # not one of them


async def _found(client: Client, run_id: str) -> RunHandle[Any]:
    async def look() -> RunHandle[Any] | None:
        try:
            return await client.get(run_id)
        except durable.RunNotFoundError:
            return None

    return await until(look, what=run_id)  # type: ignore[return-value]  # not None: it was found


async def _known(client: Client, run_id: str) -> bool:
    try:
        return (await client.describe(run_id)).status in (RunStatus.RUNNING, RunStatus.WAITING)
    except durable.RunNotFoundError:
        return False


async def _timer_fired(run: RunHandle[Any]) -> bool:
    return any(entry.status == "fired" for entry in (await run.describe()).journal)


async def _has_child(client: Client, run_id: str) -> bool:
    return any(entry.kind == "child" for entry in (await client.describe(run_id)).journal)


async def test_a_family_without_end_holds_up_nobody_and_can_be_stopped(client: Client) -> None:
    """Its queue is paused, all of it terminated, the queue resumed: nothing of it is left, and others go on."""

    @workflow
    async def spawns(depth: int) -> int:
        return await spawns(depth + 1)

    @workflow
    async def neighbour(value: int) -> int:
        return value

    async def members() -> list[Any]:
        return await client.list(workflow="spawns", status=OPEN, limit=1000)

    async def has_grown() -> bool:
        return len(await members()) >= 50

    async with running_worker(client, spawns, neighbour):
        await client.start(spawns, 0)
        await until(has_grown)
        assert await (await client.start(neighbour, 4)).result(60) == 4

        await client.pause_task_queue("default", "a family without end")
        while family := await members():
            for one in family:
                with suppress(WorkflowStateError):  # it has closed with its parent
                    await client.terminate(one.run_id)
        await client.resume_task_queue("default")
        assert await (await client.start(neighbour, 5)).result(60) == 5
        assert await members() == []
