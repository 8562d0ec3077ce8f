"""The four timeouts of an activity, what they measure and what they stop; and delays that an error asks for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from durable import (
    Activity,
    ActivityTimeoutError,
    Client,
    DefinitionError,
    NonRetryableError,
    Retry,
    WorkerLostError,
    WorkflowFailedError,
    activity,
    activity_info,
    heartbeat,
    workflow,
)
from durable.retry import RetryAfter
from durable.worker import timeouts
from tests.support.workers import AT_ONCE, Calls, declare_dead, is_waiting, running_worker, until

AGAIN_AND_AGAIN = Retry(max_attempts=0, initial=0.01, maximum=0.01)
BOTH = pytest.mark.parametrize("kind", ["async", "thread"])


class Flaky(Exception):
    """An error that is worth another attempt."""


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What blocking threads wait for; opened at the end of the test at the latest."""
    opened = threading.Event()
    yield opened
    opened.set()


def made(
    kind: str, is_hanging: Callable[[], bool], gate: threading.Event, **options: Any
) -> Activity[[], Any]:
    """Return an activity, async or in a thread, that hangs in silence if `is_hanging()`, else returns its attempt number."""

    async def coroutine() -> int:
        if is_hanging():
            await asyncio.sleep(3600)
        return activity_info().attempt

    def thread() -> int:
        if is_hanging():
            gate.wait(60)
        return activity_info().attempt

    return activity(**options)(coroutine if kind == "async" else thread)  # type: ignore[return-value]  # as tested


async def failure_of(run: Any, seconds: float = 60) -> BaseException:
    with pytest.raises(WorkflowFailedError) as failed:
        await run.result(seconds)
    assert failed.value.__cause__ is not None
    return failed.value.__cause__


async def timeout_of(run: Any) -> ActivityTimeoutError:
    error = await failure_of(run)
    assert type(error) is ActivityTimeoutError
    return error


# ─ heartbeat ──


@BOTH
async def test_a_silent_attempt_is_given_up_and_followed_by_the_next(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """The heartbeat timeout is the longest silence of one attempt; it is retried."""
    calls = Calls()
    asks = made(kind, lambda: calls("body") < 3, gate, heartbeat_timeout=0.1, retry=AGAIN_AND_AGAIN)

    @workflow
    async def works() -> int:
        return await asks()

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) >= 3  # more, if one got no thread in time
        gate.set()


@BOTH
async def test_the_last_silent_attempt_is_a_timeout_of_kind_heartbeat(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """The workflow can tell from its field which limit it was."""
    asks = made(kind, lambda: True, gate, heartbeat_timeout=timedelta(milliseconds=50), retries=0)

    @workflow
    async def works() -> str:
        try:
            await asks()
        except ActivityTimeoutError as error:
            return f"{error.kind}: {error}"
        return ""

    async with running_worker(client, works):
        said = await (await client.start(works)).result(60)
        gate.set()
    assert said.startswith("heartbeat: attempt 1 of ")
    assert "silent for longer than its heartbeat timeout of 0.05 s" in said


@BOTH
async def test_an_attempt_that_beats_lives_as_long_as_it_likes(kind: str, client: Client) -> None:
    """Every heartbeat, with or without details, begins the allowed silence anew."""
    attempts: list[int] = []

    @activity(heartbeat_timeout=0.6, retries=0)
    async def coroutine() -> str:
        attempts.append(activity_info().attempt)
        for _ in range(20):
            await asyncio.sleep(0.04)
            heartbeat()
        return "done"

    @activity(heartbeat_timeout=0.6, retries=0)
    def thread() -> str:
        attempts.append(activity_info().attempt)
        for number in range(20):
            threading.Event().wait(0.04)
            heartbeat(number)
        return "done"

    beats = coroutine if kind == "async" else thread

    @workflow
    async def works() -> str:
        return await beats()

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == "done"
    assert attempts == [1]


async def test_a_loop_that_was_held_up_does_not_make_the_activities_on_it_late(client: Client) -> None:
    """Who could not beat because a neighbour blocked the loop gets a moment to do so."""

    @activity(heartbeat_timeout=0.1, retries=0)
    async def beats() -> str:
        for number in range(10):
            heartbeat(number)
            await asyncio.sleep(0.03)
        return "done"

    @activity
    async def blocks() -> None:
        threading.Event().wait(0.3)

    @workflow
    async def works() -> str:
        done, _ = await asyncio.gather(beats(), blocks())
        return done

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == "done"


# ─ start to close ──


@BOTH
async def test_an_attempt_that_beats_is_late_all_the_same(kind: str, client: Client) -> None:
    """Heartbeats do not extend the start-to-close timeout; a thread learns of it by its next heartbeat."""
    stopped: list[str] = []

    @activity(timeout=0.5, heartbeat_timeout=60, retries=0)
    async def coroutine() -> None:
        try:
            while True:
                heartbeat()
                await asyncio.sleep(0.01)
        except asyncio.CancelledError as error:
            stopped.append(str(error))
            raise

    @activity(timeout=0.5, heartbeat_timeout=60, retries=0)
    def thread() -> None:
        try:
            while True:
                heartbeat()
                threading.Event().wait(0.01)
        except asyncio.CancelledError as error:
            stopped.append(str(error))
            raise

    beats = coroutine if kind == "async" else thread

    @workflow
    async def works() -> None:
        await beats()

    async with running_worker(client, works):
        error = await timeout_of(await client.start(works))
        await until(lambda: stopped)
    assert error.kind == "start_to_close"
    assert stopped == [
        f"attempt 1 of {kind.replace('async', 'coroutine')!r} ran longer than its timeout of 0.5 s"
    ]


# ─ schedule to start ──


@BOTH
async def test_an_activity_that_gets_no_slot_in_time_fails_without_ever_starting(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """Schedule-to-start measures the wait for a slot, is not retried, and charges nothing."""
    calls = Calls()
    asks = made(kind, lambda: calls("body") < 0, gate, schedule_to_start_timeout=0.1, retry=AT_ONCE)

    @activity
    def blocks() -> None:
        gate.wait(60)

    @workflow
    async def works() -> str:
        other = asyncio.create_task(blocks())
        await asyncio.sleep(0)
        try:
            await asks()
        except ActivityTimeoutError as error:
            return str(error.kind)
        finally:
            await other
        return ""

    async with running_worker(client, works, concurrency=1):
        run = await client.start(works)

        async def timed_out() -> bool:
            return any(entry.status == "failed" for entry in (await run.describe()).journal)

        await until(timed_out)
        gate.set()
        assert await run.result(60) == "schedule_to_start"
    assert calls.names == []
    assert [entry.attempts for entry in (await run.describe()).journal if entry.status == "failed"] == [0]


async def test_an_activity_that_gets_its_slot_in_time_may_take_its_time(client: Client) -> None:
    """Once it has started, schedule-to-start is over."""

    @activity(schedule_to_start_timeout=2)
    async def works_long() -> str:
        await asyncio.sleep(2.5)
        return "done"

    @activity
    async def blocks() -> None:
        await asyncio.sleep(0.03)

    @workflow
    async def works() -> str:
        _, done = await asyncio.gather(blocks(), works_long())
        return done

    async with running_worker(client, works, concurrency=1):
        assert await (await client.start(works)).result(60) == "done"


async def test_the_wait_for_a_slot_goes_on_while_no_worker_is_there(client: Client) -> None:
    """It counts from the journaled call: a worker that comes too late does not begin it."""
    calls = Calls()

    @activity
    async def blocks() -> None:
        if calls("blocks") == 1:
            await asyncio.sleep(3600)

    @activity(schedule_to_start_timeout=0.4)
    async def waits() -> None:
        calls("waits")

    @workflow
    async def works() -> str:
        other = asyncio.create_task(blocks())
        await asyncio.sleep(0)
        try:
            await waits()
        except ActivityTimeoutError as error:
            return str(error.kind)
        finally:
            await other
        return ""

    async with running_worker(client, works, concurrency=1) as worker:
        run = await client.start(works)
        await until(lambda: calls.names)
        worker.stop(grace_seconds=0)
    await asyncio.sleep(0.45)
    async with running_worker(client, works, concurrency=2):
        assert await run.result(60) == "schedule_to_start"
    assert calls.names == ["blocks", "blocks"]


async def test_backoff_is_no_waiting_for_a_slot(client: Client) -> None:
    """A retry counts from when it is due."""

    @activity(schedule_to_start_timeout=0.1, retry=Retry(initial=0.2))
    async def flaky() -> int:
        if (attempt := activity_info().attempt) == 1:
            raise Flaky
        return attempt

    @workflow
    async def works() -> int:
        return await flaky()

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 2


# ─ schedule to close ──


@BOTH
async def test_schedule_to_close_stops_an_attempt_and_all_that_would_follow(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """It is the limit of everything: no retry."""
    calls = Calls()
    asks = made(kind, lambda: calls("body") > 0, gate, schedule_to_close_timeout=1, retry=AT_ONCE)

    @workflow
    async def works() -> None:
        await asks()

    async with running_worker(client, works):
        error = await timeout_of(await client.start(works))
        gate.set()
    assert error.kind == "schedule_to_close"
    assert calls.of("body") == 1


@BOTH
async def test_schedule_to_close_counts_over_all_attempts(
    kind: str, client: Client, gate: threading.Event
) -> None:
    """Attempts and delays together; the failure of the attempt before is the cause."""
    calls = Calls()
    asks = made(
        kind,
        lambda: calls("body") > 0,
        gate,
        timeout=0.08,
        schedule_to_close_timeout=0.8,
        retry=Retry(max_attempts=0, initial=0.001, maximum=0.001),
    )

    @workflow
    async def works() -> None:
        await asks()

    async with running_worker(client, works):
        began = client.clock.monotonic()
        error = await timeout_of(await client.start(works))
        took = client.clock.monotonic() - began
        gate.set()
    assert error.kind in ("schedule_to_close", "start_to_close")
    assert 2 <= calls.of("body") <= 10
    assert 0.7 < took < 60
    if error.kind == "schedule_to_close":
        assert isinstance(error.__cause__, ActivityTimeoutError)
        assert error.__cause__.kind == "start_to_close"


async def test_no_retry_is_begun_that_would_pass_schedule_to_close(client: Client) -> None:
    """The workflow learns at once, and of the activity's own error."""
    calls = Calls()

    @activity(schedule_to_close_timeout=30, retry=Retry(max_attempts=0, initial=60))
    async def flaky() -> None:
        calls("flaky")
        raise Flaky("no")

    @workflow
    async def works() -> None:
        await flaky()

    async with running_worker(client, works):
        assert type(await failure_of(await client.start(works))) is Flaky
    assert calls.of("flaky") == 1


async def test_schedule_to_close_also_ends_the_wait_for_a_slot(client: Client, gate: threading.Event) -> None:
    """It runs from the call on, whatever the activity is waiting for."""

    @activity(schedule_to_close_timeout=0.1)
    async def never() -> None: ...

    @activity
    def blocks() -> None:
        gate.wait(60)

    @workflow
    async def works() -> str:
        other = asyncio.create_task(blocks())
        await asyncio.sleep(0)
        try:
            await never()
        except ActivityTimeoutError as error:
            return str(error.kind)
        finally:
            other.cancel()
        return ""

    async with running_worker(client, works, concurrency=1):
        assert await (await client.start(works)).result(60) == "schedule_to_close"
        gate.set()


async def test_schedule_to_close_runs_on_while_no_worker_is_there(client: Client) -> None:
    """It counts from the journaled call: the next worker does not begin what is too late already."""
    attempts: list[int] = []

    @activity(schedule_to_close_timeout=0.4, retries=3)
    async def long() -> None:
        attempts.append(activity_info().attempt)
        await asyncio.sleep(3600)

    @workflow
    async def works() -> None:
        await long()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: attempts)
        worker.stop(grace_seconds=0)
    await asyncio.sleep(0.45)
    async with running_worker(client, works):
        assert (await timeout_of(run)).kind == "schedule_to_close"
    assert attempts == [1]


async def test_an_attempt_lost_with_its_worker_is_not_repeated_past_schedule_to_close(client: Client) -> None:
    """The takeover finds its time over; that its worker was lost is the cause."""
    attempts: list[int] = []

    @activity(schedule_to_close_timeout=0.3, retry=AT_ONCE)
    async def long() -> None:
        attempts.append(activity_info().attempt)
        threading.Event().wait(0.35)  # the loop hangs, and the worker with it
        await asyncio.sleep(3600)

    @workflow
    async def works() -> None:
        await long()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: worker.life.performer.running)
        await declare_dead(client, worker)
        error = await timeout_of(run)
    assert attempts == [1]
    assert error.kind == "schedule_to_close"
    assert isinstance(error.__cause__, WorkerLostError)


async def test_a_workflow_level_retry_begins_all_limits_anew(client: Client) -> None:
    """An activity that the next generation calls again has its whole time again; the delay before that is not its own."""
    calls = Calls()

    @activity(schedule_to_close_timeout=0.9, retries=0)
    async def quick() -> int:
        if calls("quick") == 1:
            await asyncio.sleep(0.1)
            raise Flaky
        return 7

    @workflow(retries=1, retry_delay=1)
    async def works() -> int:
        return await quick()

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 7


# ─ delays that an error asks for ──


async def test_an_error_says_when_to_try_again(client: Client) -> None:
    """`RetryAfter` replaces the policy's interval for that retry only."""
    began: list[float] = []

    @activity(retry=Retry(max_attempts=3, initial=3600, maximum=3600))
    async def asks_twice() -> int:
        began.append(client.clock.monotonic())
        if len(began) == 1:
            raise RetryAfter(0.2, "not yet")
        if len(began) == 2:
            raise RetryAfter(timedelta(seconds=0))
        return len(began)

    @workflow
    async def works() -> int:
        return await asks_twice()

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 3
    assert began[1] - began[0] >= 0.19
    assert began[2] - began[1] < 3


@BOTH
async def test_any_errors_attribute_is_heard_once(kind: str, client: Client) -> None:
    """`next_retry_delay` on an error of one's own; the failure after it waits as the policy says, and so do odd values."""
    calls = Calls()

    class Busy(Exception):
        def __init__(self, delay: Any) -> None:
            super().__init__("busy")
            self.next_retry_delay = delay

    def fails() -> None:
        raise Busy([0.001, 0.002, "soon"][calls("busy") - 1])

    async def coroutine() -> None:
        fails()

    def thread() -> None:
        fails()

    policy = Retry(max_attempts=4, initial=1800, backoff=2, maximum=7200)
    busy: Activity[[], None] = activity(retry=policy)(coroutine if kind == "async" else thread)  # type: ignore[assignment]

    @workflow
    async def works() -> None:
        await busy()

    async with running_worker(client, works):
        run = await client.start(works)

        async def third() -> Any:
            rows = await client.store.read_attempts(1, 1)
            return next((row for row in rows if (row.attempt, row.state) == (3, "backoff")), None)

        row = await until(third)
        assert row.due_at_us is not None
        assert 7100 < (row.due_at_us - client.clock.now_us()) / 1e6 <= 7200
        await is_waiting(run, "retry")
        await run.terminate()


async def test_asking_for_a_delay_neither_adds_attempts_nor_time(client: Client) -> None:
    """The policy's number and schedule-to-close still hold; the last one reaches the workflow, cause included."""
    calls = Calls()

    @activity(retry=Retry(max_attempts=2))
    async def often() -> None:
        calls("often")
        raise RetryAfter(0, "again") from Flaky("the reason")

    @activity(schedule_to_close_timeout=60)
    async def late() -> None:
        calls("late")
        raise RetryAfter(3600)

    @activity(retry=Retry(no_retry=RetryAfter))
    async def forbidden() -> None:
        calls("forbidden")
        raise RetryAfter(0)

    @workflow
    async def works(which: str) -> None:
        await {"often": often, "late": late, "forbidden": forbidden}[which]()

    async with running_worker(client, works):
        for which in ("often", "late", "forbidden"):
            error = await failure_of(await client.start(works, which))
            assert type(error) is RetryAfter
            if which == "often":
                assert str(error) == "again"
                assert isinstance(error.__cause__, Flaky)
    assert [calls.of(which) for which in ("often", "late", "forbidden")] == [2, 1, 1]


def test_retry_after_is_retried_under_any_list_of_classes() -> None:
    """It asks for a retry by itself; only `no_retry` and `NonRetryableError` say otherwise."""

    class Both(RetryAfter, NonRetryableError):
        """Contradicts itself: final wins."""

    assert Retry(retry_on=OSError).is_retryable(RetryAfter(1))
    assert not Retry(no_retry=RetryAfter).is_retryable(RetryAfter(1))
    assert not Retry().is_retryable(Both(1))
    with pytest.raises(DefinitionError):
        RetryAfter(-1)


# ─ options ──


@pytest.mark.parametrize(
    "name", ["timeout", "schedule_to_start_timeout", "schedule_to_close_timeout", "heartbeat_timeout"]
)
@pytest.mark.parametrize("value", [0, -1, "soon", float("nan")])
def test_a_timeout_that_makes_no_sense_is_refused_where_it_is_written(name: str, value: Any) -> None:
    """By its name, in the decorator and in `.options(...)`."""

    @activity
    async def fine() -> None: ...

    with pytest.raises(DefinitionError, match=f"^{name} must be"):
        activity(**{name: value})
    with pytest.raises(DefinitionError, match=f"^{name} must be"):
        fine.options(**{name: value})


def test_options_keep_what_they_do_not_name() -> None:
    """A copy with one limit changed has the other three."""

    @activity(timeout=1, schedule_to_start_timeout=2, schedule_to_close_timeout=3, heartbeat_timeout=4)
    async def limited() -> None: ...

    changed = limited.options(schedule_to_close_timeout=timedelta(minutes=1)).definition

    assert (changed.timeout_us, changed.schedule_to_start_us, changed.heartbeat_us) == (
        10**6,
        2 * 10**6,
        4 * 10**6,
    )
    assert changed.schedule_to_close_us == 60 * 10**6
    assert limited.definition.schedule_to_close_us == 3 * 10**6


async def test_a_late_coroutine_that_ignores_its_end_holds_up_no_retry(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a heartbeat timeout: it is given up, and its slot stays taken until it ends."""
    monkeypatch.setattr(timeouts, "LATE_SECONDS", 0.05)
    gate = asyncio.Event()

    @activity(heartbeat_timeout=0.03, retry=AT_ONCE)
    async def stubborn() -> int:
        attempt = activity_info().attempt
        while attempt == 1 and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return attempt

    @workflow
    async def works() -> int:
        return await stubborn()

    async with running_worker(client, works, concurrency=2) as worker:
        assert await (await client.start(works)).result(60) == 2
        assert worker.life.performer._free == 1
        gate.set()
        await until(lambda: worker.life.performer._free == 2)
