"""The life of a worker: what it claims, how it stops, drains, dies and begins anew, and who takes over."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest

from durable import (
    Client,
    DefinitionError,
    Retry,
    RunHandle,
    RunStatus,
    Signal,
    StoreError,
    Worker,
    WorkerLostError,
    WorkflowFailedError,
    activity,
    activity_info,
    heartbeat,
    info,
    shield_thread,
    sleep,
    workflow,
)
from durable.seams import SystemThreads
from durable.worker.incarnation import Incarnation
from durable.worker.live import Outcome
from tests.support.workers import (
    AT_ONCE,
    Calls,
    declare_dead,
    is_released,
    is_waiting,
    no_durability,
    running_worker,
    through_commit_turns,
    until,
)

number = Signal("number", int)


@workflow
async def waits() -> int:
    return await number.wait()


# ─ what it claims ──


async def test_a_run_of_an_unknown_workflow_stays_pending_and_says_why(client: Client) -> None:
    """A worker claims only what it has (P13): the run is not parked, not failed, and names what it waits for."""

    @workflow
    async def strange() -> int:
        return 1

    async with running_worker(client, waits):
        stranger = await client.start(strange)
        done = await client.start(waits)
        await done.signal(number, 1)
        await done.result(60)
        seen = await stranger.describe()

    assert seen.status is RunStatus.PENDING
    assert seen.journal == []
    (blocker,) = seen.waiting_on
    assert blocker.text == 'a worker for strange version 1 on queue "default"'
    async with running_worker(client, strange):
        assert await stranger.result(60) == 1


async def test_a_run_of_another_version_waits_for_a_worker_that_has_it(client: Client) -> None:
    """Versions are never mixed; several may be served at once."""

    def version_of(number_: int) -> Any:
        @workflow(name="versioned", version=number_)
        async def versioned() -> int:
            return number_

        return versioned

    one, two = version_of(1), version_of(2)
    old = await client.start(one)
    async with running_worker(client, two):
        new = await client.start(two)
        assert await new.result(60) == 2
        assert (await old.describe()).waiting_on[0].text.startswith("a worker for versioned version 1")
    async with running_worker(client, one, two):
        assert await old.result(60) == 1


async def test_two_workers_serve_their_own_queues(client: Client) -> None:
    """A run goes to a worker of its task queue and to no other."""

    @workflow
    async def where() -> str:
        return info().task_queue

    async with running_worker(client, where, task_queue="left", name="l"):
        left = await client.start(where, task_queue="left")
        right = await client.start(where, task_queue="right")
        assert await left.result(60) == "left"
        assert (await right.describe()).status is RunStatus.PENDING
        async with running_worker(client, where, task_queue="right", name="r"):
            assert await right.result(60) == "right"


async def test_two_workers_of_one_process_share_the_runs_of_a_queue(client: Client, url: str) -> None:
    """Every run is driven by one of them, each activity once."""
    calls = Calls()

    @activity
    async def note(value: int) -> None:
        calls(str(value))
        await asyncio.sleep(0.001)

    @workflow
    async def works(value: int) -> int:
        await note(value)
        await sleep(0.001)
        return value

    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(no_durability(url))
        await stack.enter_async_context(running_worker(client, works, name="a", warm_us=0))
        await stack.enter_async_context(running_worker(other, works, name="b", warm_us=0))
        assert {worker.name for worker in await client.workers()} == {"a", "b"}
        runs = await client.start_many(works, [(value,) for value in range(100)])

        assert [await run.result(60) for run in runs] == list(range(100))
    assert sorted(calls.names) == sorted(map(str, range(100)))


async def test_a_worker_takes_workflows_from_modules(client: Client) -> None:
    """A module stands for all workflows in it; anything else is refused when the worker is made."""
    module = ModuleType("orders")
    vars(module)["waits"] = waits

    assert Worker(client, module).workflows == ["waits"]
    for wrong in (activity(lambda: None), "waits", None):
        with pytest.raises(DefinitionError):
            Worker(client, wrong)  # type: ignore[arg-type]  # the mistake under test
    with pytest.raises(DefinitionError, match="concurrency"):
        Worker(client, waits, concurrency=0)
    with pytest.raises(DefinitionError, match="lease"):
        Worker(client, waits, lease_seconds=0.01)


# ─ stopping ──


async def test_stopping_lets_activities_end_within_the_grace(client: Client) -> None:
    """What is nearly done is finished and recorded; nothing new is begun."""
    gate, begun = asyncio.Event(), asyncio.Event()
    calls = Calls()

    @activity
    async def first() -> int:
        calls("first")
        begun.set()
        await gate.wait()
        return 1

    @activity
    async def second() -> int:
        calls("second")
        return 2

    @workflow
    async def works() -> int:
        return await first() + await second()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await begun.wait()
        worker.stop(grace_seconds=10)
        pending = await client.start(waits)
        gate.set()
    assert calls.names == ["first"]
    seen = await run.describe()
    assert seen.journal[0].status == "completed"
    assert seen.worker is None
    assert (await pending.describe()).status is RunStatus.PENDING
    async with running_worker(client, works):
        assert await run.result(60) == 3
    assert calls.names == ["first", "second"]


async def test_what_outlasts_the_grace_is_handed_back_uncharged(client: Client) -> None:
    """A deploy must not use up attempts (P22): with no retries left, the activity still runs again."""
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
        return 5

    @workflow
    async def works() -> int:
        return await long()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: attempts)
        worker.stop(grace_seconds=0)
        await until(stopped.is_set)
    async with running_worker(client, works):
        assert await run.result(60) == 5
    assert attempts == [1, 1]


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_thread_that_outlasts_the_grace_has_had_its_attempt(client: Client, retries: int) -> None:
    """Nothing stops it, be it shielded or in C code, and it may act at any time: to whoever takes the run its attempt is lost, and counts."""
    attempts: list[int] = []
    told: list[tuple[Any, ...]] = []
    may_end = threading.Event()

    @activity(retry=Retry(initial=0.01, max_attempts=1 + retries))
    def charge() -> int:
        with shield_thread():
            attempts.append(activity_info().attempt)
            if len(attempts) == 1:
                heartbeat("half")
            told.append(activity_info().heartbeat_details)
            if len(attempts) == 1:
                may_end.wait(60)
        return 5

    @workflow
    async def pays() -> int:
        return await charge()

    try:
        async with Worker(client, pays) as worker:
            run = await client.start(pays)
            await until(lambda: told)
            worker.stop(grace_seconds=0.05)
        async with running_worker(client, pays):
            if retries:
                assert await run.result(60) == 5
            else:
                with pytest.raises(WorkflowFailedError) as failed:
                    await run.result(60)
                assert isinstance(failed.value.__cause__, WorkerLostError)
    finally:
        may_end.set()
    assert (attempts, told) == (([1, 2], [(), ("half",)]) if retries else ([1], [()]))


async def test_a_stopped_worker_leaves_nothing_owned(client: Client) -> None:
    """Another one can go on at once, without waiting for a lease."""
    async with running_worker(client, waits):
        run = await client.start(waits)
        await is_waiting(run, "signal")
        assert (await run.describe()).worker is not None
    assert (await run.describe()).worker is None
    assert await client.workers() == []
    await run.signal(number, 1)
    async with running_worker(client, waits):
        assert await run.result(60) == 1


async def test_a_function_that_waits_for_its_thread_does_not_begin_after_it_was_handed_back(
    client: Client,
) -> None:
    """It is another worker's by then, uncharged: here it finds that it was told to stop."""
    calls, threads = Calls(), HeldThreads()

    @activity
    def charge() -> None:
        calls("charge")

    @workflow
    async def pays() -> None:
        await charge()

    worker = Worker(client, pays, threads=threads)
    async with worker:
        run = await client.start(pays, run_id="r")
        await until(lambda: threads.held)
        worker.stop(0)
        await until(lambda: _has_no_owner(client, "r"))
        error, _, _ = threads.held[0]()
    assert isinstance(error, asyncio.CancelledError)
    assert calls.names == []

    async with running_worker(client, pays):
        await run.result(60)
    assert calls.names == ["charge"]


class HeldThreads(SystemThreads):
    """Threads that are all busy: what is given to them waits until the test calls it."""

    def __init__(self) -> None:
        self.held: list[Callable[[], Any]] = []

    def executor(self, threads: int, *, name: str) -> Any:
        return self

    def submit(self, fn: Callable[[], Any]) -> asyncio.Future[Any]:
        self.held.append(fn)
        return asyncio.get_running_loop().create_future()

    def close(self) -> None: ...


async def _has_no_owner(client: Client, run_id: str) -> bool:
    return (await client.describe(run_id)).worker is None


async def test_an_outcome_that_nobody_waits_for_any_more_does_not_hold_up_a_stop(client: Client) -> None:
    """The activity was closed by a turn that was being written when it ended: its run is handed back like any other."""
    async with running_worker(client, waits) as worker:
        run = await client.start(waits)
        await is_waiting(run, "signal")
        (live,) = worker.life.driver.runs.values()
        live.outcomes.append(Outcome(op=99, attempts=1, result=b"1"))
        worker._farewell.grace_seconds = 0
    assert (await run.describe()).worker is None

    await run.signal(number, 1)
    async with running_worker(client, waits):
        assert await run.result(60) == 1


async def test_a_cancelled_worker_cancels_no_run(client: Client) -> None:
    """Being shut down is not a cancellation of what it drives (P30)."""
    begun = asyncio.Event()
    seen: list[int] = []

    @activity(retries=0)
    async def long() -> int:
        seen.append(activity_info().attempt)
        begun.set()
        if len(seen) == 1:
            await asyncio.sleep(3600)
        return 1

    @workflow
    async def works() -> int:
        return await long()

    worker = Worker(client, works)
    task = asyncio.ensure_future(worker.run())
    run = await client.start(works)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await run.describe()).worker is None
    async with running_worker(client, works):
        assert await run.result(60) == 1
    assert seen == [1, 1]


async def test_a_worker_can_be_run_again(client: Client) -> None:
    """After it has stopped; not while it runs."""
    worker = Worker(client, waits)
    for value in range(2):
        async with worker:
            with pytest.raises(DefinitionError, match="running already"):
                await worker.run()
            run = await client.start(waits)
            await run.signal(number, value)
            assert await run.result(60) == value


# ─ draining ──


async def drained(client: Client, *workflows: Any) -> None:
    async with asyncio.timeout(60):
        await Worker(client, *workflows).run(drain=True)


async def test_draining_ends_when_only_signals_are_waited_for(client: Client) -> None:
    """What can go on without outside input has; what cannot is left released."""

    @workflow
    async def ends() -> int:
        return 1

    done, waiting = await client.start(ends), await client.start(waits)
    await drained(client, ends, waits)

    assert await done.result(60) == 1
    seen = await waiting.describe()
    assert (seen.status, seen.worker) == (RunStatus.WAITING, None)


async def test_draining_waits_for_timers_retries_and_delayed_starts(client: Client) -> None:
    """They need nobody from outside."""
    calls = Calls()

    @activity(retry=Retry(initial=0.3))
    async def flaky() -> None:
        if calls("flaky") == 1:
            raise OSError

    @workflow
    async def naps() -> int:
        await sleep(0.4)
        return 1

    @workflow
    async def retries() -> int:
        await flaky()
        return 2

    @workflow
    async def ends() -> int:
        return 3

    runs = [await client.start(naps), await client.start(retries), await client.start(ends, delay=0.3)]
    await drained(client, naps, retries, ends)

    assert [await run.result(60) for run in runs] == [1, 2, 3]


async def test_draining_does_not_wait_for_what_it_does_not_serve(client: Client) -> None:
    """Runs of other workflows and of other queues are somebody else's."""

    @workflow
    async def strange() -> int:
        return 1

    @workflow
    async def ends() -> int:
        return 1

    await client.start(strange)
    await client.start(ends, task_queue="elsewhere")
    done = await client.start(ends)
    await drained(client, ends)

    assert await done.result(60) == 1


# ─ dying and beginning anew ──


async def test_a_worker_that_was_declared_dead_begins_anew_and_goes_on(client: Client) -> None:
    """The old incarnation writes nothing more; the new one claims and finishes the runs."""
    async with running_worker(client, waits) as worker:
        run = await client.start(waits)
        await is_waiting(run, "signal")
        dead = await declare_dead(client, worker)
        await until(lambda: worker.worker_id not in (0, dead))
        await run.signal(number, 7)

        assert await run.result(60) == 7
        assert [one.worker_id for one in await client.workers()] == [worker.worker_id]


async def test_an_attempt_lost_with_its_incarnation_counts_and_is_followed_by_the_next(
    client: Client,
) -> None:
    """The attempt may have had its effect: it is charged (I5), and its late result goes nowhere."""
    attempts: list[int] = []
    begun = asyncio.Event()

    @activity(retry=AT_ONCE)
    async def works() -> int:
        attempts.append(activity_info().attempt)
        begun.set()
        if len(attempts) == 1:
            await asyncio.sleep(3600)
        return activity_info().attempt

    @workflow
    async def asks() -> int:
        return await works()

    async with running_worker(client, asks) as worker:
        run = await client.start(asks)
        await begun.wait()
        await declare_dead(client, worker)

        assert await run.result(60) == 2
    assert attempts == [1, 2]


async def test_a_commit_of_a_dead_incarnation_writes_nothing(client: Client) -> None:
    """The fence is checked within the write (P8): the outcome of its activity is not recorded."""
    gate, begun = asyncio.Event(), asyncio.Event()
    attempts: list[int] = []

    @activity(retries=1)
    async def works() -> int:
        attempts.append(activity_info().attempt)
        begun.set()
        await gate.wait()
        return activity_info().attempt

    @workflow
    async def asks() -> int:
        return await works.options(retry=AT_ONCE)()

    async with running_worker(client, asks) as worker:
        run = await client.start(asks)
        await begun.wait()
        await declare_dead(client, worker)
        gate.set()

        assert await run.result(60) == 2
    assert attempts == [1, 2]


async def test_what_begins_long_after_its_commit_is_written_anew_first(client: Client) -> None:
    """Bad code holds the loop up between a commit and a first step: that is not charged for it, even if nothing may be lost of it."""

    @activity
    async def holds_up() -> None:
        time.sleep(1.5)  # noqa: ASYNC251  # of the lease two thirds, and more

    @activity(retries=0)
    async def comes_after() -> int:
        return activity_info().attempt

    @workflow
    async def both() -> list[Any]:
        return await asyncio.gather(holds_up(), comes_after(), comes_after())

    async with running_worker(client, both, lease_seconds=2) as worker:
        life = worker.worker_id
        assert await (await client.start(both)).result(60) == [None, 1, 1]
        assert worker.worker_id == life


async def test_nothing_begins_of_a_former_life_of_its_run(client: Client) -> None:
    """A worker is held up between a commit and a first step, and the run is terminated and tried again elsewhere: not begun twice."""
    calls = Calls()

    @activity
    async def holds_up() -> None:
        if calls("holds up") == 1:
            elsewhere = threading.Thread(target=lambda: asyncio.run(tried_again()))
            elsewhere.start()
            elsewhere.join()

    @activity
    async def comes_after() -> None:
        calls("comes after")

    @workflow
    async def both() -> None:
        await asyncio.gather(holds_up(), comes_after())

    async def tried_again() -> None:
        began = time.monotonic()
        async with no_durability(client.url) as other:
            await other.pause_worker("held up")
            await other.terminate(run.run_id)
            await other.retry(run.run_id)
            async with running_worker(other, both):
                await (await other.get(run.run_id)).result(60)
            await asyncio.sleep(max(0.0, began + 1.5 - time.monotonic()))

    async with running_worker(client, both, lease_seconds=2, name="held up") as worker:
        run = await client.start(both)
        await until(lambda: calls.of("comes after") == 1 and not worker.life.driver.runs)
        await client.resume_worker("held up")
        assert (await run.describe()).status == RunStatus.COMPLETED
    assert calls.of("holds up") == 2
    assert calls.of("comes after") == 1


async def test_a_lease_is_proven_for_as_long_as_nobody_may_take_it() -> None:
    """Whoever takes it waits for a lease since the last beat: a commit that came late in it proves less than another would (P11)."""
    lease, now = 9.0, 100.0
    clock, store, threads = Mock(), Mock(), Mock()
    clock.monotonic = lambda: now
    store.beat = Mock(return_value=True)
    incarnation = Incarnation(
        store,
        1,
        clock=clock,
        threads=threads,
        lease_seconds=lease,
        began_at=now,
        on_lost=lambda worker_id: None,
        is_hopeless=lambda: False,
    )
    now += 5
    committed_at = now
    assert incarnation.is_recent(committed_at)
    now += 2
    assert not incarnation.is_recent(committed_at)
    assert store.beat.call_count == 0
    assert incarnation.is_fresh(committed_at)
    assert store.beat.call_count == 1
    assert incarnation.is_recent(committed_at)
    now += 5
    assert not incarnation.is_recent(committed_at)
    store.beat.return_value = False
    assert not incarnation.is_fresh(committed_at)
    store.beat.side_effect = StoreError("it does not say")
    with pytest.raises(StoreError):
        incarnation.is_fresh(committed_at)


async def test_what_is_started_while_a_worker_asks_what_it_owns_stays_with_it(client: Client) -> None:
    """The answer tells of a moment that is over."""
    calls, gate = Calls(), asyncio.Event()

    @activity(retries=0)
    async def held() -> int:
        calls("held")
        await gate.wait()
        return 3

    @workflow
    async def holds() -> int:
        return await held()

    async with running_worker(client, holds) as worker:
        store = worker.life.store
        real = store.owned_runs
        runs: list[RunHandle[int]] = []

        async def owned_runs(worker_id: int) -> dict[int, int]:
            found = await real(worker_id)
            if not runs:
                runs.append(await client.start(holds))
                await until(lambda: calls.of("held") == 1)
            return found

        store.owned_runs = owned_runs  # type: ignore[method-assign]  # a slow answer
        await worker.life.claimer._check_ownership()
        gate.set()
        assert await runs[0].result(60) == 3
    assert calls.of("held") == 1


async def test_late_news_of_an_old_incarnation_leave_the_new_one_alone(client: Client) -> None:
    """The heartbeat thread may report a loss that the loop has dealt with already."""
    async with running_worker(client, waits) as worker:
        run = await client.start(waits)
        await is_waiting(run, "signal")
        old = worker.life.tenure.incarnation
        dead = await declare_dead(client, worker)
        await until(lambda: worker.worker_id not in (0, dead))
        new = worker.worker_id
        threading.Thread(target=old._beat).start()
        await is_waiting(run, "signal")
        await asyncio.sleep(0.05)

        assert worker.worker_id == new
        await run.signal(number, 3)
        assert await run.result(60) == 3


async def test_a_worker_declared_dead_during_a_commit_survives_its_late_reply(client: Client) -> None:
    """The turn was written, the run is no longer its own: it forgets it and lives on."""

    @activity(retry=AT_ONCE)
    async def work() -> int:
        return 1

    @workflow
    async def works() -> int:
        return await work() + await number.wait()

    async with running_worker(client, works) as worker:
        through_commit_turns(worker.life.store)
        real = worker.life.store.commit_turns
        died: list[int] = []

        async def commit(*arguments: Any) -> Any:
            verdicts = await real(*arguments)
            if not died:
                died.append(await declare_dead(client, worker))
                await until(lambda: worker.worker_id not in (0, died[0]))
            return verdicts

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a slow database
        run = await client.start(works)
        await is_waiting(run, "signal")
        await run.signal(number, 4)

        assert await run.result(60) == 5
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was


async def test_a_silent_worker_of_the_same_process_is_taken_over_after_a_lease(
    client: Client, url: str
) -> None:
    """Somebody who hangs keeps its runs for a lease and no longer (P10)."""
    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(no_durability(url))
        worker = await stack.enter_async_context(
            running_worker(client, waits, lease_seconds=0.4, name="hangs")
        )
        run = await client.start(waits)
        await is_waiting(run, "signal")
        silent = worker.worker_id
        worker.life.tenure.incarnation._heart.stop()
        async with running_worker(other, waits, lease_seconds=0.4, name="lives"):
            await until(lambda: worker.worker_id not in (0, silent))
            await run.signal(number, 4)
            assert await run.result(60) == 4


async def test_a_run_terminated_while_its_turn_is_written_stays_terminated(client: Client) -> None:
    """One terminal state per run (I15): the owner's close is refused."""

    @activity
    async def work() -> int:
        return 1

    @workflow
    async def works() -> int:
        return await work()

    async with running_worker(client, works) as worker:
        through_commit_turns(worker.life.store)
        real = worker.life.store.commit_turns

        async def commit(worker_id: int, commits: Any, now_us: int) -> Any:
            if any(type(one.after).__name__ == "Close" for one in commits):
                await client.terminate("t", "first")
            return await real(worker_id, commits, now_us)

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        run = await client.start(works, run_id="t")
        await until(lambda: _closed(run))
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was
        await until(lambda: not worker.life.driver.runs)
        assert (await run.describe()).status is RunStatus.TERMINATED


async def _closed(run: Any) -> bool:
    return (await run.describe()).status.is_closed  # type: ignore[no-any-return]  # a bool


async def test_many_runs_survive_one_lost_incarnation_after_another(client: Client) -> None:
    """However often the worker is declared dead: every run ends, and no activity starts more often than it may."""
    calls = Calls()

    @activity(retry=Retry(max_attempts=0, initial=0.01, maximum=0.01))
    async def note(value: int) -> int:
        calls(str(value))
        await asyncio.sleep(0.01)
        return value

    @workflow
    async def works(value: int) -> int:
        total = 0
        for _ in range(5):
            total += await note(value)
            await sleep(0.005)
        return total

    async with running_worker(client, works, concurrency=10) as worker:
        runs = await client.start_many(works, [(value,) for value in range(30)])
        for _ in range(4):
            await asyncio.sleep(0.05)
            dead = await declare_dead(client, worker)
            await until(lambda dead=dead: worker.worker_id not in (0, dead))

        assert [await run.result(60) for run in runs] == [5 * value for value in range(30)]
    assert all([await _is_gapless(client, run.run_id) for run in runs])
    assert await is_released_or_closed(client)


async def _is_gapless(client: Client, run_id: str) -> bool:
    record = await client.store.get_run(run_id)
    turns = [row.turn for row in await client.store.read_journal(record.pk, record.generation)]
    return turns == list(range(1, len(turns) + 1))


async def is_released_or_closed(client: Client) -> bool:
    return all(run.worker is None for run in await client.list(limit=1000))


async def test_a_released_run_is_found_by_whoever_comes_first(client: Client, url: str) -> None:
    """A waiting run belongs to nobody: the next worker of its queue goes on with it."""
    async with running_worker(client, waits, name="first", warm_us=0):
        run = await client.start(waits)
        await is_released(run)
    async with no_durability(url) as other, running_worker(other, waits, name="second"):
        await run.signal(number, 9)
        assert await run.result(60) == 9
