"""The engine of plain scripts: one per event loop, driving what this process started or asked for."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any

import pytest

import durable
from durable import (
    Client,
    DefinitionError,
    NonDeterminismError,
    RunConflictError,
    RunStatus,
    Signal,
    WorkerLostError,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowVersionMismatchError,
    activity,
    activity_info,
    shield_thread,
    sleep,
    workflow,
)
from durable.default import engine_here
from durable.worker.live import Phase
from tests.support.workers import (
    Calls,
    is_waiting,
    no_durability,
    running_worker,
    status_is,
    through_commit_turns,
    until,
)

number = Signal("number", int)
calls = Calls()


@activity
async def note(value: int) -> int:
    calls(str(value))
    return value


@workflow(name="embedded_adds")  # unique among all test modules: `recover` looks through them
async def adds(value: int) -> int:
    return await note(value) + await number.wait()


@workflow(name="embedded_ends")
async def ends(value: int) -> int:
    return await note(value)


@pytest.fixture(autouse=True)
def nothing_called() -> None:
    calls.names.clear()


# ─ run ids ──


async def test_the_same_id_and_input_attach_to_the_open_run(embedded: str) -> None:
    """Any number of callers, one run, one result."""
    callers = [asyncio.ensure_future(adds(1, run_id="a")) for _ in range(5)]
    run = await adds.start(1, run_id="a")
    await is_waiting(run, "signal")
    await durable.signal("a", number, 10)

    assert await asyncio.gather(*callers) == [11] * 5
    assert calls.names == ["1"]
    assert len(await durable.list_runs()) == 1


async def test_the_same_id_and_input_return_the_recorded_result(embedded: str) -> None:
    """A closed run is not run again."""
    assert [await ends(3, run_id="e") for _ in range(3)] == [3, 3, 3]
    assert calls.names == ["3"]


async def test_other_input_or_another_workflow_is_a_conflict(embedded: str) -> None:
    """Loud, open or closed: nobody gets a result of something else."""
    await adds.start(1, run_id="a")
    await ends(1, run_id="e")
    for other in (
        adds.start(2, run_id="a"),
        ends.start(2, run_id="e"),
        ends.start(1, run_id="a"),
        adds(1, run_id="e"),
    ):
        with pytest.raises(RunConflictError) as conflict:
            await other
        assert conflict.value.run_id in ("a", "e")


async def test_equal_input_spelt_differently_is_the_same_input(embedded: str) -> None:
    """By position or by name, in whatever order."""

    @workflow
    async def takes(value: dict[str, int], more: int = 0) -> int:
        return sum(value.values()) + more

    assert await takes({"a": 1, "b": 2}, more=3, run_id="t") == 6
    assert await takes(more=3, value={"b": 2, "a": 1}, run_id="t") == 6


async def test_an_open_run_of_another_version_is_refused(embedded: str) -> None:
    """Code of another version must not touch it; its recorded result, once closed, is anybody's."""

    def version_of(version: int) -> Any:
        @workflow(version=version)
        async def versioned() -> int:
            return await number.wait()

        return versioned

    await version_of(1).start(run_id="v")
    with pytest.raises(WorkflowVersionMismatchError) as mismatch:
        await version_of(2)(run_id="v")
    assert (mismatch.value.run_id, mismatch.value.stored_version, mismatch.value.code_version) == ("v", 1, 2)
    await durable.signal("v", number, 4)
    assert await version_of(1)(run_id="v") == 4
    assert await version_of(2)(run_id="v") == 4


async def test_two_functions_of_one_name_are_refused(embedded: str) -> None:
    """Otherwise one would be driven by the other's code."""

    @workflow(name="embedded_ends")
    async def other(value: int) -> int:
        return value

    await ends(1)
    with pytest.raises(DefinitionError, match="two workflows are called 'embedded_ends'"):
        await other(1)


@pytest.mark.parametrize("run_id", ["", "a\nb", "x" * 201, 7])
async def test_a_run_id_is_printable_text(embedded: str, run_id: Any) -> None:
    """People type it."""
    with pytest.raises(durable.ArgumentsError):
        await ends(1, run_id=run_id)


# ─ parking ──


def changing(*steps: Any) -> Any:
    @workflow
    async def changes() -> int:
        total = 0
        for one in steps:
            total += await one(1)
        return total + await number.wait()

    return changes


def test_a_parked_run_raises_at_once_and_fixed_code_finishes_it(embedded: str) -> None:
    """The awaiter gets the fault itself and never hangs; calling again with the id tries again."""
    other = note.options(name="other")

    async def begins() -> None:
        await is_waiting(await changing(note).start(run_id="c"), "signal")

    async def is_parked() -> None:
        with pytest.raises(NonDeterminismError) as fault:
            await changing(other)(run_id="c")
        assert (fault.value.expected, fault.value.got) == ("note", "other")
        assert (await durable.get_run("c")).status is RunStatus.PARKED
        with pytest.raises(NonDeterminismError):
            await changing(other)(run_id="c")

    async def is_fixed() -> int:
        run = await changing(note).start(run_id="c")
        await durable.signal("c", number, 5)
        return await run.result(60)  # type: ignore[no-any-return]  # an int

    asyncio.run(begins())
    asyncio.run(is_parked())
    assert asyncio.run(is_fixed()) == 6
    assert calls.names == ["1"]


# ─ loops and callers ──


def test_several_loops_of_one_process_go_on_with_one_another(embedded: str) -> None:
    """Each `asyncio.run` hands back what it drives; the next one resumes it by its id."""

    async def begins() -> None:
        await is_waiting(await adds.start(1, run_id="a"), "signal")

    async def looks() -> durable.Run:
        return await durable.get_run("a")

    async def finishes() -> int:
        run = await adds.start(1, run_id="a")
        await durable.signal("a", number, 2)
        return await run.result(60)

    asyncio.run(begins())
    seen = asyncio.run(looks())
    assert (seen.worker, seen.status.is_closed) == (None, False)
    assert asyncio.run(finishes()) == 3
    assert calls.names == ["1"]
    assert asyncio.run(ends(4)) == 4


def test_the_end_of_a_loop_is_not_a_cancellation(embedded: str) -> None:
    """`asyncio.run` cancels every task: the run is handed back, its activity not charged."""
    attempts: list[int] = []

    @activity(retries=0)
    async def long() -> int:
        attempts.append(activity_info().attempt)
        if len(attempts) == 1:
            await asyncio.sleep(3600)
        return 8

    @workflow
    async def works() -> int:
        return await long()

    async def begins() -> None:
        await works.start(run_id="w")
        await until(lambda: attempts)

    async def finishes() -> int:
        before = await durable.get_run("w")
        assert before.worker is None
        assert before.status is RunStatus.RUNNING
        return await works(run_id="w")

    asyncio.run(begins())
    assert asyncio.run(finishes()) == 8
    assert attempts == [1, 1]


def test_a_thread_that_outlives_the_loop_has_had_its_attempt(embedded: str) -> None:
    """Ctrl-C: the script waits for its threads, so it goes on to the end of what it does. It is not begun beside itself."""
    begun, may_end = threading.Event(), threading.Event()
    attempts: list[int] = []

    @activity(retries=0)
    def pay() -> None:
        with shield_thread():
            attempts.append(activity_info().attempt)
            begun.set()
            may_end.wait(60)

    @workflow
    async def buys() -> None:
        await pay()

    async def begins() -> None:
        await buys.start(run_id="b")
        await until(begun.is_set)

    async def finishes() -> None:
        await buys(run_id="b")

    asyncio.run(begins())
    try:
        with pytest.raises(WorkflowFailedError) as failed:
            asyncio.run(finishes())
    finally:
        may_end.set()
    assert isinstance(failed.value.__cause__, WorkerLostError)
    assert attempts == [1]


def test_an_error_that_ends_the_script_hands_the_runs_back(embedded: str) -> None:
    """Whatever ended the loop."""

    async def breaks() -> None:
        await is_waiting(await adds.start(1, run_id="a"), "signal")
        raise ZeroDivisionError

    async def looks() -> durable.Run:
        return await durable.get_run("a")

    with pytest.raises(ZeroDivisionError):
        asyncio.run(breaks())
    assert asyncio.run(looks()).worker is None


async def test_a_caller_that_is_cancelled_leaves_the_run_running(embedded: str) -> None:
    """Giving up waiting is not asking to stop."""
    caller = asyncio.ensure_future(adds(1, run_id="a"))
    await until(lambda: calls.names)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await durable.signal("a", number, 1)

    assert await adds(1, run_id="a") == 2
    assert calls.names == ["1"]


async def test_a_caller_that_times_out_leaves_the_run_running(embedded: str) -> None:
    """The same, by `asyncio.timeout` and by `result(timeout)`."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await adds(1, run_id="a")
    run = await adds.start(1, run_id="a")
    with pytest.raises(TimeoutError):
        await run.result(timeout=0.01)
    await run.signal(number, 1)
    assert await run.result(60) == 2


async def test_a_caller_cancelled_during_the_start_leaves_no_orphan(embedded: str) -> None:
    """The start may have been written: then the run is driven, or handed back, but never owned and forgotten."""
    engine = await engine_here()
    await engine.worker()
    store: Any = engine.client.store
    real = store.start_runs

    async def slow(*arguments: Any) -> Any:
        outcomes = await real(*arguments)
        await asyncio.sleep(0.05)
        return outcomes

    store.start_runs = slow
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await ends(1, run_id="e")
    store.start_runs = real

    assert await asyncio.wait_for(ends(1, run_id="e"), 60) == 1


async def test_a_run_that_is_started_here_is_driven_before_the_start_returns(embedded: str) -> None:
    """Not when the engine next looks for what is its own and lies about: that is for starts that went wrong."""
    worker = await (await engine_here()).worker()
    await adds.start(1, run_id="a")

    assert [run.run_id for run in worker.life.driver.runs.values()] == ["a"]


async def test_a_first_call_cancelled_at_any_moment_leaves_a_working_engine(embedded: str) -> None:
    """Opening the database and starting the worker can be given up half-way, again and again."""
    for steps in range(30):
        call = asyncio.ensure_future(ends(steps, run_id=f"e{steps}"))
        for _ in range(steps):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    assert [await asyncio.wait_for(ends(step, run_id=f"e{step}"), 60) for step in range(30)] == list(
        range(30)
    )
    assert len(await (await engine_here()).client.workers()) == 1


def test_outside_of_a_loop_there_is_a_clear_error(embedded: str) -> None:
    """No loop, no engine (and trio is none)."""
    coroutine = ends(1)
    with pytest.raises(DefinitionError, match="asyncio"):
        coroutine.send(None)


# ─ with workers beside it ──


async def test_a_run_driven_by_a_living_worker_is_attached_to(embedded: str) -> None:
    """A direct call does not compete: it waits and returns what the worker recorded."""
    async with no_durability(embedded) as client, running_worker(client, adds, name="worker"):
        run = await client.start(adds, 1, run_id="a")
        await is_waiting(run, "signal")
        call = asyncio.ensure_future(adds(1, run_id="a"))
        await asyncio.sleep(0.05)
        assert (await run.describe()).worker == "worker"
        await run.signal(number, 6)

        assert await asyncio.wait_for(call, 60) == 7
    assert calls.names == ["1"]


async def test_a_run_of_a_worker_that_stops_is_gone_on_with_here(embedded: str) -> None:
    """The attached caller takes over as soon as nobody else drives it."""
    async with no_durability(embedded) as client:
        async with running_worker(client, adds, name="worker"):
            run = await client.start(adds, 1, run_id="a")
            await is_waiting(run, "signal")
            call = asyncio.ensure_future(adds(1, run_id="a"))
            await asyncio.sleep(0.02)
        await run.signal(number, 6)

        assert await asyncio.wait_for(call, 60) == 7
    assert calls.names == ["1"]


async def test_detached_runs_go_to_whoever_has_their_code(embedded: str) -> None:
    """`detach()` stops driving here, not the run."""
    run = await adds.start(1, run_id="a")
    await is_waiting(run, "signal")
    await run.detach()
    await until(lambda: _is_free(run))
    async with no_durability(embedded) as client, running_worker(client, adds, name="worker"):
        await run.signal(number, 3)
        assert await run.result(60) == 4
    assert calls.names == ["1"]


async def _is_free(run: Any) -> bool:
    return (await run.describe()).worker is None


async def test_detach_in_the_middle_of_a_commit_hands_the_run_over(embedded: str) -> None:
    """The wish is kept until the commit is through."""
    through_commit_turns((await engine_here()).client.store)
    run = await adds.start(1, run_id="a")
    worker = await (await engine_here()).worker()
    (live,) = worker.life.driver.runs.values()
    async with asyncio.timeout(60):
        while live.phase is not Phase.COMMITTING:  # noqa: ASYNC110  # the state lasts for one turn of the loop
            await asyncio.sleep(0)
    await run.detach()

    await until(lambda: _is_free(run))
    assert not worker.life.driver.runs


async def test_an_embedded_engine_takes_nothing_it_was_not_asked_for(embedded: str) -> None:
    """Runs in the database that this process did not start are left alone, though it has their code (P30)."""
    async with no_durability(embedded) as client:
        other = await client.start(ends, 5)
        assert await ends(1) == 1
        assert await ends(2) == 2
        seen = await other.describe()
    assert (seen.status, seen.worker) == (RunStatus.PENDING, None)


async def test_recover_takes_over_what_nobody_drives(embedded: str) -> None:
    """Runs of workflows that this process has imported; `wait` until each is closed or needs something from outside."""
    async with no_durability(embedded) as client:
        done, waiting = await client.start(ends, 5), await client.start(adds, 6)
        strange = await client.start(workflow(name="not_imported")(_strange))
        recovered = {run.run_id: run.status for run in await durable.recover(wait=True)}

        assert recovered == {done.run_id: RunStatus.COMPLETED, waiting.run_id: RunStatus.WAITING}
        assert (await strange.describe()).status is RunStatus.PENDING


async def _strange() -> None: ...


async def test_a_clash_of_names_that_no_run_needs_does_not_stop_recover(
    embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two libraries may both have a workflow called "sync"."""
    for position in range(2):
        module = ModuleType(f"library_{position}")
        module.sync = workflow(name="sync")(_function_of(module.__name__))  # type: ignore[attr-defined]  # made here
        monkeypatch.setitem(sys.modules, module.__name__, module)
    async with no_durability(embedded) as client:
        run = await client.start(ends, 5)
        assert [(one.run_id, one.status) for one in await durable.recover(wait=True)] == [
            (run.run_id, "completed")
        ]


def _function_of(module: str) -> Any:
    async def sync() -> None: ...

    sync.__module__ = module
    return sync


async def test_many_concurrent_calls_are_all_driven(embedded: str) -> None:
    """A script that gathers a few hundred runs gets a few hundred results."""

    @workflow
    async def naps(value: int) -> int:
        await sleep(0.001)
        return await note(value)

    assert await asyncio.gather(*(naps(value) for value in range(200))) == list(range(200))
    assert len(calls.names) == 200


# ─ shortcuts ──


async def test_the_shortcuts_use_the_default_database(embedded: str) -> None:
    """get_run, list_runs, signal and cancel, without a client in sight."""
    first = await adds.start(1, run_id="one")
    second = await adds.start(2, run_id="two")
    await durable.signal("one", "number", 4)
    assert await first.result(60) == 5
    await durable.cancel("two", "enough")
    with pytest.raises(durable.RunCancelledError, match="enough"):
        await second.result(60)

    assert [run.run_id for run in await durable.list_runs()] == ["two", "one"]
    assert [run.run_id for run in await durable.list_runs(status="cancelled")] == ["two"]
    assert (await durable.get_run("one")).result == 5
    with pytest.raises(durable.RunNotFoundError):
        await durable.get_run("three")
    with pytest.raises(WorkflowStateError):
        await durable.signal("one", "number", 4)


async def test_wrong_settings_are_refused(embedded: str) -> None:
    """At `configure`, not at the first run."""
    with pytest.raises(DefinitionError, match="durability"):
        durable.configure(embedded, durability="perhaps")  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(DefinitionError, match="lease"):
        durable.configure(embedded, lease_ttl=0.0001)


async def test_two_databases_of_one_loop_are_two_engines(embedded: str, tmp_path: Any) -> None:
    """`configure` applies from then on; what runs elsewhere is not disturbed."""
    first = await adds.start(1, run_id="a")
    durable.configure(f"sqlite:///{tmp_path / 'second.db'}", durability="off")
    second = await adds.start(1, run_id="a")
    async with AsyncExitStack() as stack:
        one: Client = await stack.enter_async_context(no_durability(embedded))
        await one.signal("a", number, 1)
        await second.signal(number, 2)

        assert (await first.result(60), await second.result(60)) == (2, 3)
    await status_is(second, "completed")
