"""Heartbeats: what an activity tells reaches its next attempt, cheaply; and how a thread learns that it is to stop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from durable import (
    Activity,
    Client,
    DefinitionError,
    PayloadError,
    Retry,
    WorkflowFailedError,
    activity,
    activity_info,
    heartbeat,
    workflow,
)
from durable.errors import RunCancelledError, UndecodableError
from durable.worker import heartbeats
from tests.support.workers import (
    AT_ONCE,
    Calls,
    declare_dead,
    file_of,
    running_worker,
    tampered,
    through_commit_turns,
    until,
)

BOTH = pytest.mark.parametrize("kind", ["async", "thread"])


class Flaky(Exception):
    """An error that is worth another attempt."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What blocking threads wait for; opened at the end of the test at the latest."""
    opened = threading.Event()
    yield opened
    opened.set()


async def details_of(client: Client) -> bytes | None:
    """Return the details in the only attempt row of the first run."""
    rows = await client.store.read_attempts(1, 1)
    return rows[0].details if rows else None


# ─ details ──


@BOTH
async def test_the_last_details_of_a_failed_attempt_reach_the_next(kind: str, client: Client) -> None:
    """Also those that were never written by themselves, because it failed right after."""
    seen: list[tuple[Any, ...]] = []

    def body() -> int:
        info = activity_info()
        seen.append(info.heartbeat_details)
        heartbeat(info.attempt, "early")
        heartbeat(info.attempt, {"cursor": info.attempt * 10})
        if info.attempt < 3:
            raise Flaky
        return info.attempt

    async def coroutine() -> int:
        return body()

    def thread() -> int:
        return body()

    tells: Activity[[], int] = activity(retry=AT_ONCE)(coroutine if kind == "async" else thread)  # type: ignore[assignment]

    @workflow
    async def works() -> int:
        return await tells()

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 3
    assert seen == [(), (1, {"cursor": 10}), (2, {"cursor": 20})]


async def test_details_stay_until_there_are_newer_ones(client: Client) -> None:
    """A heartbeat without details is a sign of life and wipes nothing; neither does an attempt without heartbeats."""
    seen: list[tuple[Any, ...]] = []

    @activity(retry=AT_ONCE)
    async def tells() -> None:
        info = activity_info()
        seen.append(info.heartbeat_details)
        if info.attempt == 1:
            heartbeat("page", 7)
            heartbeat()
        if info.attempt < 4:
            raise Flaky

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works):
        await (await client.start(works)).result(60)
    assert seen == [(), ("page", 7), ("page", 7), ("page", 7)]


@BOTH
async def test_details_of_a_timed_out_attempt_reach_the_next(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """What a thread tells after it was given up is not heard: the next attempt has begun from what came before."""
    seen: list[tuple[Any, ...]] = []
    refused: list[str] = []

    @activity(timeout=0.1, retry=AT_ONCE)
    async def coroutine() -> None:
        seen.append(activity_info().heartbeat_details)
        heartbeat(len(seen))
        if len(seen) < 3:
            await asyncio.sleep(3600)

    @activity(timeout=0.1, retry=AT_ONCE)
    def thread() -> None:
        seen.append(activity_info().heartbeat_details)
        heartbeat(mine := len(seen))
        if mine < 3:
            with suppress(asyncio.CancelledError):
                gate.wait(60)
            try:
                heartbeat("late")
            except asyncio.CancelledError as error:
                refused.append(str(error))

    tells = coroutine if kind == "async" else thread

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works):
        await (await client.start(works)).result(60)
        gate.set()
        if kind == "thread":
            await until(lambda: len(refused) == 2)
    assert seen == [(), (1,), (2,)]
    assert all("ran longer than its timeout" in reason for reason in refused)


@BOTH
async def test_details_are_written_while_the_attempt_runs(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """Within an interval they are in the attempt's row, which counts the attempt as before, and goes with its end."""
    told = threading.Event()

    def body() -> None:
        heartbeat("half", [1, None])
        told.set()

    @activity(heartbeat_timeout=0.2)
    async def coroutine() -> None:
        body()
        while not gate.is_set():
            await asyncio.sleep(0.01)
            heartbeat()

    @activity(heartbeat_timeout=0.2)
    def thread() -> None:
        body()
        while not gate.wait(0.01):
            heartbeat()

    tells = coroutine if kind == "async" else thread

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(told.is_set)
        assert await until(lambda: details_of(client)) == b'["half",[1,null]]'
        (row,) = await client.store.read_attempts(1, 1)
        assert (row.attempt, row.state) == (1, "started")
        assert (await run.describe()).journal[0].status == "running"
        gate.set()
        await run.result(60)
    assert await client.store.read_attempts(1, 1) == []


async def test_written_details_survive_their_worker(client: Client) -> None:
    """The attempt lost with it counts (P22), and the next one goes on from what it had told."""
    seen: list[tuple[int, tuple[Any, ...]]] = []

    @activity(heartbeat_timeout=0.1, retry=AT_ONCE)
    async def tells() -> None:
        info = activity_info()
        seen.append((info.attempt, info.heartbeat_details))
        heartbeat(f"cursor {info.attempt}")
        while info.attempt == 1:
            heartbeat()
            await asyncio.sleep(0.01)

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: details_of(client))
        await declare_dead(client, worker)
        await run.result(60)
    assert seen == [(1, ()), (2, ("cursor 1",))]


@BOTH
async def test_details_of_what_is_handed_back_are_kept(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """A drain charges no attempt and loses no progress, written before or not; a thread that heeds that it is to stop has ended, too."""
    seen: list[tuple[int, tuple[Any, ...]]] = []
    reasons: list[str] = []

    def body() -> bool:
        info = activity_info()
        heartbeat("so far", len(seen) + 1)
        seen.append((info.attempt, info.heartbeat_details))
        return len(seen) == 1

    @activity(retries=0)
    async def coroutine() -> None:
        if body():
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError as error:
                reasons.append(str(error))
                raise

    @activity(retries=0)
    def thread() -> None:
        try:
            if body():
                while not gate.wait(0.01):
                    heartbeat()
        except asyncio.CancelledError as error:
            reasons.append(str(error))
            raise

    tells = coroutine if kind == "async" else thread

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: seen)
        worker.stop(grace_seconds=0)
    await until(lambda: reasons)
    assert await details_of(client) == b'["so far",1]'
    async with running_worker(client, works):
        await run.result(60)
    assert seen == [(1, ()), (1, ("so far", 1))]
    assert reasons == ["its worker stops"]


async def test_damaged_details_park_the_run(client: Client) -> None:
    """They are stored bytes that cannot be read: nothing is tried, or failed, on their account."""
    attempts = Calls()

    @activity(retry=Retry(initial=0.5))
    async def tells() -> str:
        if attempts("tells") == 1:
            heartbeat(1)
            raise Flaky
        return f"after {activity_info().heartbeat_details[0]}"

    @workflow
    async def works() -> str:
        return await tells()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(lambda: details_of(client))
    tampered(file_of(client), "UPDATE attempt SET details = x'5b31'")
    async with running_worker(client, works):
        with pytest.raises(UndecodableError, match="the attempt row of operation 1"):
            await run.result(60)
    assert attempts.of("tells") == 1

    tampered(file_of(client), "UPDATE attempt SET details = x'5b315d'")
    await run.resume()
    async with running_worker(client, works):
        assert await run.result(60) == "after 1"


async def test_many_activities_that_beat_cost_one_commit_per_interval(client: Client) -> None:
    """Details of all of them ride together, however often each tells something."""
    count, stop = 300, asyncio.Event()
    begun: list[int] = []

    @activity(heartbeat_timeout=0.5)
    async def tells(number: int) -> None:
        begun.append(number)
        beat = 0
        while not stop.is_set():
            heartbeat(number, beat := beat + 1)
            await asyncio.sleep(0.02)

    @workflow
    async def works(number: int) -> None:
        await tells(number)

    async with running_worker(client, works, concurrency=count) as worker:
        runs = [await client.start(works, number) for number in range(count)]
        await until(lambda: len(begun) == count)
        batches: list[int] = []
        through_commit_turns(client.store)
        commit_turns = client.store.commit_turns

        async def counted(worker_id: int, commits: Any, now_us: int) -> Any:
            batches.append(len(commits))
            return await commit_turns(worker_id, commits, now_us)

        client.store.commit_turns = counted  # type: ignore[method-assign]  # watched
        began = client.clock.monotonic()
        await until(lambda: sum(batches) >= 2 * count)
        took = client.clock.monotonic() - began
        client.store.commit_turns = commit_turns  # type: ignore[method-assign]  # as before
        stop.set()
        for run in runs:
            await run.result(60)

    print(f"{sum(batches)} marks in {len(batches)} commits within {took:.2f} s")
    assert not worker.life.performer.heartbeats.batches
    assert len(batches) <= (took / 0.4 + 2) * worker.life.committer.lanes


async def test_what_was_told_before_is_not_written_again(client: Client) -> None:
    """The same details over and over cost nothing."""
    stop = asyncio.Event()

    @activity(heartbeat_timeout=0.1)
    async def tells() -> None:
        while not stop.is_set():
            heartbeat("the same")
            await asyncio.sleep(0.005)

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: details_of(client))
        await until(lambda: not worker.life.performer.heartbeats.batches)
        await asyncio.sleep(0.2)
        assert not worker.life.performer.heartbeats.batches
        stop.set()
        await run.result(60)


# ─ where it may be called ──


async def test_details_that_cannot_be_stored_are_refused_at_the_call(client: Client) -> None:
    """With the place in the value; the attempt goes on if it likes."""
    paths: list[str] = []

    @activity
    async def tells() -> None:
        try:
            heartbeat("fine", {"socket": object()})
        except PayloadError as error:
            paths.append(error.path)

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works):
        await (await client.start(works)).result(60)
    assert paths == ["$[1].socket"]


async def test_a_workflow_has_no_heartbeat(client: Client) -> None:
    """Its journal says how far it is."""

    @workflow
    async def works() -> None:
        heartbeat(1)

    async with running_worker(client, works):
        with pytest.raises(WorkflowFailedError) as failed:
            await (await client.start(works)).result(60)
    assert isinstance(failed.value.__cause__, DefinitionError)


async def test_an_activity_called_outside_of_runs_may_beat() -> None:
    """So that it can be unit-tested; details are checked all the same."""

    @activity
    async def tells(value: object) -> str:
        heartbeat(value)
        return "told"

    assert await tells(1) == "told"
    with pytest.raises(PayloadError):
        await tells(object())


async def test_helper_threads_of_a_coroutine_beat_for_it(client: Client) -> None:
    """The context goes with `asyncio.to_thread`; there is one attempt to beat for."""
    seen: list[tuple[Any, ...]] = []

    @activity(heartbeat_timeout=0.3, retry=AT_ONCE)
    async def tells() -> None:
        seen.append(activity_info().heartbeat_details)
        for number in range(4):
            await asyncio.to_thread(threading.Event().wait, 0.1)
            await asyncio.to_thread(heartbeat, "helper", number)
        if len(seen) == 1:
            raise Flaky

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works):
        await (await client.start(works)).result(60)
    assert seen == [(), ("helper", 3)]


# ─ cancellation ──


async def cancelled(run: Any) -> None:
    with pytest.raises(RunCancelledError):
        await run.result(60)


def beating(begun: threading.Event, stopped: list[str], gate: threading.Event) -> None:
    """Beat until cancelled or the gate opens."""
    try:
        begun.set()
        while not gate.wait(0.01):
            heartbeat()
    except asyncio.CancelledError as error:
        info = activity_info()
        assert info.is_cancelled
        stopped.extend([str(error), str(info.cancel_reason)])
        raise


async def test_a_cancelled_thread_learns_of_it_and_why(client: Client, gate: threading.Event) -> None:
    """Type "try": the run does not wait for it."""
    begun, stopped = threading.Event(), list[str]()

    @activity(heartbeat_timeout=60)
    def thread() -> None:
        assert not activity_info().is_cancelled
        assert activity_info().cancel_reason is None
        beating(begun, stopped, gate)

    @workflow
    async def works() -> None:
        await thread()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(begun.is_set)
        await run.cancel("customer left")
        await cancelled(run)
        await until(lambda: stopped)
    assert stopped == ["customer left", "customer left"]


async def test_a_cancelled_coroutine_learns_why(client: Client) -> None:
    """By the message of its CancelledError, and by `cancel_reason`; a heartbeat in its clean-up raises nothing."""
    begun, stopped = asyncio.Event(), list[Any]()

    @activity(cancellation="wait", heartbeat_timeout=0.1)
    async def coroutine() -> None:
        begun.set()
        try:
            while True:
                heartbeat()
                await asyncio.sleep(0.01)
        except asyncio.CancelledError as error:
            await asyncio.sleep(0.25)  # longer than it may be silent otherwise
            heartbeat("cleaning up")
            stopped.extend([str(error), activity_info().cancel_reason])
            raise

    @workflow
    async def works() -> None:
        await coroutine()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(begun.is_set)
        await run.cancel("customer left")
        await cancelled(run)
    assert stopped == ["customer left", "customer left"]


async def test_the_workflow_giving_up_is_a_reason_of_its_own(client: Client, gate: threading.Event) -> None:
    """Nobody cancelled the run: its own timeout did."""
    begun, stopped = threading.Event(), list[str]()

    @activity
    def thread() -> None:
        beating(begun, stopped, gate)

    @workflow
    async def works() -> str:
        try:
            async with asyncio.timeout(0.1):
                await thread()
        except TimeoutError:
            return "gave up"
        return ""

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == "gave up"
        await until(lambda: stopped)
    assert stopped == ["the workflow no longer waits for it"] * 2


async def test_cancellation_try_drops_the_outcome_of_a_thread(client: Client, gate: threading.Event) -> None:
    """The run is over at once; the thread keeps its slot until it ends, and what it returns goes nowhere."""
    begun = threading.Event()

    @activity
    def deaf() -> int:
        begun.set()
        gate.wait(60)
        return 1

    @workflow
    async def works() -> int:
        return await deaf()

    async with running_worker(client, works, concurrency=2) as worker:
        run = await client.start(works)
        await until(begun.is_set)
        await run.cancel()
        await cancelled(run)
        assert worker.life.performer._free == 1
        gate.set()
        await until(lambda: worker.life.performer._free == 2)
    assert (await run.describe()).journal[0].status == "cancelled"


@pytest.mark.parametrize("listens", [True, False])
async def test_cancellation_wait_waits_for_the_end_of_a_thread(
    listens: bool, client: Client, gate: threading.Event
) -> None:
    """Whether it heeds the cancel or returns in its own time: the workflow goes on when it has ended."""
    order: list[str] = []
    begun, told = threading.Event(), threading.Event()

    @activity(cancellation="wait", retry=AT_ONCE)
    def careful() -> str:
        try:
            begun.set()
            while not gate.wait(0.01):
                pass
        except asyncio.CancelledError:
            assert activity_info().is_cancelled
            told.set()
            if listens:
                raise
            gate.wait(60)
        finally:
            threading.Event().wait(0.05)
            order.append(f"activity: {activity_info().cancel_reason}")
        return "done"

    @workflow
    async def works() -> str:
        try:
            return await careful()
        finally:
            order.append("workflow")

    async with running_worker(client, works):
        run = await client.start(works)
        await until(begun.is_set)
        await run.cancel("stop")
        if not listens:
            await until(told.is_set)
            assert order == []
            gate.set()
        await cancelled(run)
    assert order == ["activity: stop", "workflow"]


async def test_cancellation_wait_ends_at_the_threads_timeout(client: Client, gate: threading.Event) -> None:
    """A thread that never ends holds nobody up for longer than its own limit."""
    begun = threading.Event()

    @activity(cancellation="wait", timeout=0.2, retry=AT_ONCE)
    def hangs() -> None:
        begun.set()
        gate.wait(60)

    @workflow
    async def works() -> None:
        await hangs()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(begun.is_set)
        await run.cancel()
        await cancelled(run)
        gate.set()


async def test_cancellation_abandon_leaves_a_thread_alone(client: Client, gate: threading.Event) -> None:
    """It is not told, and ends by itself, unheard."""
    begun, ended = threading.Event(), list[Any]()

    @activity(cancellation="abandon")
    def alone() -> None:
        begun.set()
        gate.wait(60)
        heartbeat("still here")
        ended.append(activity_info().cancel_reason)

    @workflow
    async def works() -> None:
        await alone()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(begun.is_set)
        await run.cancel("no matter")
        await cancelled(run)
        gate.set()
        await until(lambda: ended)
    assert ended == [None]


async def test_a_cancel_with_wait_whose_worker_is_gone_is_over(client: Client, gate: threading.Event) -> None:
    """What was to be waited for has ended with the worker: it is not begun again, elsewhere, to be cancelled."""
    calls = Calls()

    @activity(cancellation="wait", retry=AT_ONCE)
    async def careful() -> None:
        calls("careful")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            calls("cancelled")
            await asyncio.sleep(3600)

    @workflow
    async def works() -> None:
        await careful()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: calls.names)
        await run.cancel()
        await until(lambda: calls.of("cancelled"))
        await declare_dead(client, worker)
        await cancelled(run)
    assert calls.of("careful") == 1


# ─ when the database refuses ──


async def test_marks_that_were_refused_are_written_in_their_order(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heartbeats and failures of a commit that failed come before what was told since: the row never goes back."""
    from durable.errors import StoreError
    from durable.worker import committing

    monkeypatch.setattr(committing, "TROUBLE_SECONDS", 0.05)
    seen: list[tuple[int, tuple[Any, ...]]] = []
    charged: list[bool] = []  # what the row says while an attempt runs: the first has none

    @activity(heartbeat_timeout=0.1, retry=Retry(max_attempts=0, initial=0.001, maximum=0.001))
    async def tells() -> None:
        info = activity_info()
        seen.append((info.attempt, info.heartbeat_details))
        charged.extend(
            row.attempt == info.attempt and row.state == "started"
            for row in await client.store.read_attempts(1, 1)
        )
        heartbeat(info.attempt)
        if info.attempt < 6:
            raise Flaky
        for _ in range(20):
            await asyncio.sleep(0.01)
            heartbeat()

    @workflow
    async def works() -> None:
        await tells()

    async with running_worker(client, works):
        through_commit_turns(client.store)
        commit_turns = client.store.commit_turns
        calls = Calls()

        async def unreliable(worker_id: int, commits: Any, now_us: int) -> Any:
            if calls("commit") % 2 == 0:
                await asyncio.sleep(0.02)
                raise StoreError("no")
            return await commit_turns(worker_id, commits, now_us)

        client.store.commit_turns = unreliable  # type: ignore[method-assign]  # in between
        run = await client.start(works)
        await until(lambda: len(seen) == 6)
        client.store.commit_turns = commit_turns  # type: ignore[method-assign]  # as before
        await run.result(60)
    assert seen == [(1, ())] + [(n, (n - 1,)) for n in range(2, 7)]
    assert charged == [True] * 5
    assert await client.store.read_attempts(1, 1) == []


def test_details_are_written_at_a_share_of_the_heartbeat_timeout_at_least_every_few_seconds() -> None:
    """The numbers that the documentation names."""
    assert heartbeats.DETAILS_SHARE == 0.8
    assert heartbeats.DETAILS_SECONDS_MAX == 3.0
