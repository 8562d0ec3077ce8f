"""Code that does not give control back: who notices, what becomes of its run, and that the neighbours go on."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import pytest

from durable import (
    BlockedLoopError,
    Client,
    RunStatus,
    Signal,
    StuckWorkflowError,
    WorkflowFailedError,
    activity,
    activity_info,
    unguarded,
    workflow,
)
from durable.seams import SystemThreads
from tests.support.workers import is_waiting, running_worker, status_is, until

LIMIT = 0.3
go = Signal("go", int)


class TestThreads(SystemThreads):
    """Threads whose last resort is only noted: these tests share their process with others."""

    __test__ = False

    def __init__(self) -> None:
        self.ends: list[str] = []

    def guard_process(self, seconds: float | None) -> None:
        pass

    def end_process(self) -> None:  # type: ignore[override]  # it returns here
        self.ends.append("ended")


def patient(client: Client, *workflows: Any, limit: float = LIMIT, **options: Any) -> Any:
    """Return a worker with a short limit."""
    options.setdefault("threads", TestThreads())
    return running_worker(client, *workflows, activation_limit=limit, **options)


@activity
async def one() -> int:
    return 1


@workflow
async def neighbour() -> int:
    total = 0
    for _ in range(5):
        total += await one()
    return total


def spin() -> None:
    while True:
        pass


@workflow
async def spins() -> int:
    await one()
    spin()
    return 1


async def test_a_workflow_that_computes_for_ever_is_interrupted_and_parked(client: Client) -> None:
    """With its stack, its line and what to do; the worker and its neighbours go on (I19)."""
    async with patient(client, spins, neighbour) as worker:
        run = await client.start(spins, run_id="s")
        others = [await client.start(neighbour) for _ in range(3)]
        with pytest.raises(StuckWorkflowError) as fault:
            await run.result(60)

        assert [await other.result(60) for other in others] == [5, 5, 5]
        assert worker.life.driver.watch.subject is None
    assert fault.value.run_id == "s"
    assert fault.value.seconds >= LIMIT
    assert "in spin" in fault.value.stack
    assert "spin()" in fault.value.stack
    assert "driving.py" not in fault.value.stack
    assert "test_stuck_code.py" in fault.value.source
    seen = await run.describe()
    assert seen.status is RunStatus.PARKED
    assert (seen.reason or "").startswith("StuckWorkflowError: run 's'")
    assert seen.failure is not None
    assert "in spin" in seen.failure.traceback


async def test_good_code_resumes_an_interrupted_run(client: Client) -> None:
    """Nothing of the interrupted activation was kept; what an activity had come to by then is."""
    calls: list[str] = []

    @activity
    async def counted() -> int:
        calls.append("counted")
        return 1

    def computing(is_bad: bool) -> Any:
        @workflow
        async def computes() -> int:
            value = await counted()
            if is_bad:
                spin()
            return value + 1

        return computes

    async with patient(client, computing(True)):
        run = await client.start(computing(True))
        await status_is(run, "parked")
    await run.resume()
    assert (await run.describe()).failure is None
    async with patient(client, computing(False)):
        assert await run.result(60) == 2
    assert len(calls) == 1


async def test_swallowing_the_interrupt_does_not_help(client: Client) -> None:
    """The activation is void even if it ends after all."""
    caught: list[str] = []

    @workflow
    async def stubborn() -> str:
        for _ in range(3):
            try:
                spin()
            except BaseException as error:
                caught.append(type(error).__name__)
        return "I made it"

    async with patient(client, stubborn):
        run = await client.start(stubborn)
        with pytest.raises(StuckWorkflowError):
            await run.result(60)
    assert caught == ["Interrupted"] * 3


async def test_a_blocking_call_is_interrupted_when_it_returns(client: Client) -> None:
    """Python cannot break into `time.sleep`; what follows is not run any more."""
    reached: list[int] = []

    @workflow
    async def sleeps() -> None:
        with unguarded():
            time.sleep(LIMIT * 1.6)  # noqa: ASYNC251  # the mistake under test
            reached.append(1)

    async with patient(client, sleeps, neighbour):
        run, other = await client.start(sleeps), await client.start(neighbour)
        with pytest.raises(StuckWorkflowError, match="did not give control back"):
            await run.result(60)
        assert await other.result(60) == 5
    assert reached == []


async def test_the_soft_limit_warns_with_run_and_stack(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Once per activation, long before anything is done about it."""

    def warned() -> list[str]:
        return [one for one in map(str, caplog.messages) if "has not given control back" in one]

    @workflow
    async def slow() -> int:
        with unguarded():
            while not warned():  # however little time the watchdog gets: what it could not see does not count
                pass
        return 1

    async with patient(client, slow, limit=LIMIT * 10):
        with caplog.at_level(logging.WARNING, "durable.worker"):
            run = await client.start(slow, run_id="slow-one")
            assert await run.result(60) == 1
    warnings = warned()
    assert len(warnings) == 1
    assert "run 'slow-one'" in warnings[0]
    assert "in slow" in warnings[0]


async def test_activations_that_end_near_the_limit_harm_nobody(client: Client) -> None:
    """The interrupt meets the activation it is meant for or nothing: no other code of the loop ever sees it."""

    @workflow
    async def computes(seconds: float) -> float:
        with unguarded():
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                pass
        return seconds

    limit = 0.04
    async with patient(client, computes, neighbour, limit=limit) as worker:
        for step in range(40):
            run = await client.start(computes, limit - 0.02 + step * 0.001)
            other = await client.start(neighbour)
            assert await other.result(60) == 5
            await until(lambda run=run: _is_over(run))
        assert not worker.life.driver.watch.interrupted


async def _is_over(run: Any) -> bool:
    seen = await run.describe()
    return seen.status.is_closed or seen.status is RunStatus.PARKED


async def test_clean_up_that_hangs_is_interrupted_too(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """`finally` blocks run when a run leaves the memory; the run itself is not harmed by them."""
    is_bad = True

    @workflow
    async def cleans_up() -> int:
        try:
            return await go.wait()
        finally:
            if is_bad:
                spin()

    async with patient(client, cleans_up, neighbour) as worker:
        run = await client.start(cleans_up)
        await is_waiting(run, "signal")
        worker.detach(1)
        await until(lambda: "did not end its clean-up" in caplog.text)
        is_bad = False
        other = await client.start(neighbour)
        assert await other.result(60) == 5
        await run.signal(go, 7)
        assert await run.result(60) == 7


async def test_an_async_activity_that_blocks_the_loop_is_interrupted(client: Client) -> None:
    """It fails without another attempt, since the next would block everybody again; the workflow may go on."""
    attempts: list[int] = []

    @activity
    async def blocks() -> None:
        attempts.append(activity_info().attempt)
        spin()

    @workflow
    async def calls() -> str:
        try:
            await blocks()
        except BlockedLoopError as error:
            return str(error)
        return "?"

    async with patient(client, calls, neighbour) as worker:
        run = await client.start(calls)
        other = await client.start(neighbour)
        text = await run.result(60)
        assert await other.result(60) == 5
        assert worker.life.performer.running == 0
    assert "attempt 1 of 'blocks'" in text
    assert attempts == [1]


async def test_its_error_shows_where_it_blocked(client: Client) -> None:
    """The traceback in the journal is the activity's."""

    @activity
    async def blocks() -> None:
        spin()

    @workflow
    async def calls() -> None:
        await blocks()

    async with patient(client, calls):
        run = await client.start(calls)
        with pytest.raises(WorkflowFailedError):
            await run.result(60)
    (entry,) = (await run.describe()).journal
    assert entry.failure is not None
    assert "in spin" in entry.failure.traceback


@pytest.mark.parametrize("own_only", [False, True], ids=["worker", "embedded"])
async def test_a_loop_that_stands_still_for_good_is_given_up(
    client: Client, own_only: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """No beat is written any more, and a worker ends its process; an embedded engine leaves that to its host (P11)."""
    threads = TestThreads()
    async with patient(client, neighbour, limit=0.1, threads=threads, own_only=own_only) as worker:
        incarnation = worker.life.tenure.incarnation
        real = worker.life.store.beat
        beats: list[int] = []
        worker.life.store.beat = lambda worker_id: beats.append(worker_id) or real(worker_id)
        incarnation._beat()
        assert len(beats) == 1
        time.sleep(0.6)  # noqa: ASYNC251  # the mistake under test: neither a workflow nor an activity

        assert worker.life.watchdog.is_hopeless
        assert threads.ends == ([] if own_only else ["ended"])
        incarnation._beat()
        assert len(beats) == 1
        await until(lambda: not worker.life.watchdog.is_hopeless)
        incarnation._beat()
        assert len(beats) == 2
        worker.life.store.beat = real
    said = "this process ends" if not own_only else "the process is its host's"
    assert said in caplog.text


async def test_a_person_with_a_debugger_is_not_interrupted(client: Client) -> None:
    """Frames of a debugger in the stack mean that somebody looks at it."""
    import types

    debugger = types.ModuleType("pdb")
    exec("import time\ndef interact(seconds):\n    time.sleep(seconds)", vars(debugger))  # noqa: S102  # a stand-in

    @workflow
    async def looked_at() -> int:
        with unguarded():
            debugger.interact(LIMIT * 2)
        return 1

    async with patient(client, looked_at, limit=LIMIT / 2) as worker:
        run = await client.start(looked_at)
        assert await run.result(60) == 1
        assert not worker.life.watchdog.is_hopeless


async def test_deep_recursion_fails_the_run_and_nobody_else(client: Client) -> None:
    """A RecursionError is the author's error like any other."""

    def deeper(n: int) -> int:
        return deeper(n + 1)

    @workflow
    async def recurses() -> int:
        return deeper(0)

    @activity(retries=0)
    async def recursing() -> int:
        return deeper(0)

    @workflow
    async def calls() -> int:
        return await recursing()

    async with patient(client, recurses, calls, neighbour, limit=5):
        runs = [await client.start(recurses), await client.start(calls)]
        other = await client.start(neighbour)
        for run in runs:
            with pytest.raises(WorkflowFailedError, match="RecursionError"):
                await run.result(60)
        assert await other.result(60) == 5


class Bare(BaseException):
    pass


@pytest.mark.parametrize(
    "error", [Bare, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError]
)
@pytest.mark.parametrize("where", ["workflow", "activity", "thread"])
async def test_a_base_exception_is_a_failure_wherever_it_is_raised(
    client: Client, error: type[BaseException], where: str
) -> None:
    """It ends neither the worker nor a neighbour; the run ends visibly."""

    @activity(retries=0)
    async def raising() -> None:
        raise error("x")

    @activity(retries=0)
    def raising_in_thread() -> None:
        raise error("x")

    @workflow
    async def bad() -> None:
        if where == "workflow":
            raise error("x")
        await (raising() if where == "activity" else raising_in_thread())

    async with patient(client, bad, neighbour, limit=5):
        run, other = await client.start(bad), await client.start(neighbour)
        with pytest.raises(WorkflowFailedError):
            await run.result(60)
        assert await other.result(60) == 5
