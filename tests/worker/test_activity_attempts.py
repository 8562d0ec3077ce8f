"""Activities in a run: attempts, retries, timeouts, slots, threads, and what may be stored."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import (
    ActivityError,
    ActivityTimeoutError,
    Client,
    NonRetryableError,
    PayloadError,
    Retry,
    UndecodableError,
    WorkflowFailedError,
    activity,
    activity_info,
    step,
    workflow,
)
from durable.worker import timeouts
from tests.support.workers import AT_ONCE, Calls, is_waiting, running_worker, until


class Flaky(Exception):
    """An error that is worth another attempt."""


class Final(NonRetryableError):
    """An error that is not."""


async def failure_of(run: Any, seconds: float = 60) -> BaseException:
    """Return the workflow's own error of a run that fails."""
    with pytest.raises(WorkflowFailedError) as failed:
        await run.result(seconds)
    assert failed.value.run_id == run.run_id
    assert failed.value.__cause__ is not None
    return failed.value.__cause__


# ─ retries ──


async def test_an_activity_is_tried_again_until_it_succeeds(client: Client) -> None:
    """Attempts count from 1; the default policy is four of them."""
    attempts: list[int] = []

    @activity(retry=AT_ONCE)
    async def flaky() -> int:
        attempts.append(activity_info().attempt)
        if len(attempts) < 4:
            raise Flaky(len(attempts))
        return 7

    @workflow
    async def tries() -> int:
        return await flaky()

    async with running_worker(client, tries):
        run = await client.start(tries)

        assert await run.result(60) == 7
    assert attempts == [1, 2, 3, 4]
    (entry,) = (await run.describe()).journal
    assert (entry.status, entry.attempts) == ("completed", 4)


async def test_the_last_attempts_failure_reaches_the_workflow(client: Client) -> None:
    """Attempts = 1 + retries; then the error is the workflow's to handle, in its own class."""
    calls = Calls()

    @activity(retry=Retry(max_attempts=3, initial=0.001))
    async def fails() -> int:
        raise Flaky(calls("fails"))

    @workflow
    async def handles() -> list[Any]:
        try:
            await fails()
        except Flaky as error:
            return list(error.args)
        return []

    async with running_worker(client, handles):
        run = await client.start(handles)

        assert await run.result(60) == [3]
    assert calls.of("fails") == 3


@pytest.mark.parametrize(
    "error",
    [
        ValueError("v"),
        TypeError("t"),
        KeyError("k"),
        AssertionError("a"),
        NotImplementedError("n"),
        Final("f"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_programming_error_is_not_retried(client: Client, error: Exception) -> None:
    """Trying again would fail again: once is enough, whatever the policy's number."""
    calls = Calls()

    @activity(retry=AT_ONCE)
    async def wrong() -> None:
        calls("wrong")
        raise error

    @workflow
    async def asks() -> None:
        await wrong()

    async with running_worker(client, asks):
        cause = await failure_of(await client.start(asks))

    assert type(cause) is type(error)
    assert cause.args == error.args
    assert calls.of("wrong") == 1


async def test_the_policy_says_what_is_retried(client: Client) -> None:
    """`retry_on` replaces the rule, `no_retry` adds to what is final, NonRetryableError always is."""
    calls = Calls()

    @activity(retry=Retry(initial=0.001, retry_on=(KeyError, Final)))
    async def on_key_error(kind: str) -> str:
        if calls(kind) < 3:
            raise {"key": KeyError, "flaky": Flaky, "final": Final}[kind]("no")
        return kind

    @step(retry_delay=0.001, no_retry=(Flaky,))
    async def not_on_flaky(kind: str) -> str:
        if calls(f"step {kind}") < 3:
            raise {"os": OSError, "flaky": Flaky}[kind]("no")
        return kind

    @workflow
    async def asks(which: str, kind: str) -> str:
        return await (on_key_error if which == "activity" else not_on_flaky)(kind)

    async with running_worker(client, asks):
        assert await (await client.start(asks, "activity", "key")).result(60) == "key"
        assert type(await failure_of(await client.start(asks, "activity", "flaky"))) is Flaky
        assert type(await failure_of(await client.start(asks, "activity", "final"))) is Final
        assert await (await client.start(asks, "step", "os")).result(60) == "os"
        assert type(await failure_of(await client.start(asks, "step", "flaky"))) is Flaky

    assert [calls.of(kind) for kind in ("key", "flaky", "final", "step os", "step flaky")] == [3, 1, 1, 3, 1]


async def test_options_apply_to_one_call_site(client: Client) -> None:
    """`.options(...)` is a copy: the activity itself keeps its policy."""
    calls = Calls()

    @activity(retries=0)
    async def fails(name: str) -> None:
        calls(name)
        raise Flaky(name)

    @workflow
    async def asks() -> list[str]:
        seen: list[str] = []
        for one in (
            fails,
            fails.options(retry=Retry(max_attempts=3, initial=0.001)),
            fails.options(name="other"),
        ):
            try:
                await one(one.name)
            except Flaky as error:
                seen.append(str(error))
        return seen

    async with running_worker(client, asks):
        run = await client.start(asks)

        assert await run.result(60) == ["fails", "fails", "other"]
    assert [calls.of("fails"), calls.of("other")] == [1 + 3, 1]
    assert [entry.name for entry in (await run.describe()).journal] == ["fails", "fails", "other"]


async def test_backoff_is_durable_and_shown(client: Client) -> None:
    """While it backs off, the store knows the attempt, its error and when the next is due."""

    @activity(retry=Retry(initial=3600, maximum=3600))
    async def fails() -> None:
        raise Flaky("try later")

    @workflow
    async def asks() -> None:
        await fails()

    async with running_worker(client, asks):
        run = await client.start(asks)
        seen = await is_waiting(run, "retry")
        (row,) = await client.store.read_attempts(1, 1)

    (entry,) = seen.journal
    assert (entry.status, entry.attempts, entry.error) == ("retrying", 1, "Flaky: try later")
    assert (row.attempt, row.state) == (1, "backoff")
    assert row.due_at_us is not None
    assert 3590e6 < row.due_at_us - client.clock.now_us() <= 3600e6
    assert "attempt 2 in 59m" in seen.waiting_on[0].text


async def test_an_attempt_number_survives_the_worker(client: Client) -> None:
    """The next worker goes on with the attempt after the recorded one, no sooner than it is due."""
    attempts: list[int] = []

    @activity(retry=Retry(max_attempts=2, initial=0.3))
    async def flaky() -> None:
        attempts.append(activity_info().attempt)
        raise Flaky

    @workflow
    async def asks() -> None:
        await flaky()

    async with running_worker(client, asks):
        run = await client.start(asks)
        await is_waiting(run, "retry")
        (row,) = await client.store.read_attempts(1, 1)
    async with running_worker(client, asks):
        await failure_of(run)

    assert attempts == [1, 2]
    assert client.clock.now_us() >= (row.due_at_us or 0)


# ─ keys ──


async def test_an_idempotency_key_is_the_same_for_every_attempt_and_differs_between_calls(
    client: Client,
) -> None:
    """`run@epoch/name#n`: what a payment provider needs to drop the second charge."""
    keys: list[tuple[str, int]] = []

    @activity(retry=AT_ONCE)
    async def charge(amount: int) -> None:
        info = activity_info()
        keys.append((info.idempotency_key, info.attempt))
        assert (info.run_id, info.workflow, info.activity) == ("order-7", "buys", "charge")
        if info.attempt < 2:
            raise Flaky

    @workflow
    async def buys() -> None:
        await charge(1)
        await charge(1)

    async with running_worker(client, buys):
        await (await client.start(buys, run_id="order-7")).result(60)

    assert keys == [
        ("order-7@1/charge#1", 1),
        ("order-7@1/charge#1", 2),
        ("order-7@1/charge#2", 1),
        ("order-7@1/charge#2", 2),
    ]


async def test_a_new_start_under_a_closed_id_gets_other_keys(client: Client) -> None:
    """The second month's charge must not look like the first one's (P6)."""
    keys: list[str] = []

    @activity
    async def charge() -> None:
        keys.append(activity_info().idempotency_key)

    @workflow
    async def buys() -> None:
        await charge()

    async with running_worker(client, buys):
        for _ in range(2):
            await (await client.start(buys, run_id="monthly", if_closed="new")).result(60)

    assert keys == ["monthly@1/charge#1", "monthly@2/charge#1"]


# ─ timeouts ──


async def test_an_async_attempt_that_is_late_is_cancelled_and_retried(client: Client) -> None:
    """Start-to-close is per attempt."""
    unwound: list[int] = []

    @activity(timeout=0.05, retry=AT_ONCE)
    async def slow() -> int:
        attempt = activity_info().attempt
        try:
            if attempt < 3:
                await asyncio.sleep(3600)
        finally:
            unwound.append(attempt)
        return attempt

    @workflow
    async def asks() -> int:
        return await slow()

    async with running_worker(client, asks):
        assert await (await client.start(asks)).result(60) == 3
    assert unwound == [1, 2, 3]


async def test_the_last_late_attempt_is_a_timeout_error(client: Client) -> None:
    """It is a TimeoutError, too, so that ordinary code handles it."""

    @activity(timeout=timedelta(milliseconds=20), retries=0)
    async def slow() -> None:
        await asyncio.sleep(3600)

    @workflow
    async def handles() -> str:
        try:
            await slow()
        except TimeoutError as error:
            return type(error).__name__
        return ""

    async with running_worker(client, handles):
        assert await (await client.start(handles)).result(60) == "ActivityTimeoutError"


async def test_an_attempt_that_answers_its_timeout_with_a_result_is_late_all_the_same(client: Client) -> None:
    """Swallowing the cancel does not make a late result timely."""

    @activity(timeout=0.02, retries=0)
    async def stubborn() -> int:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
        return 1

    @workflow
    async def asks() -> int:
        return await stubborn()

    async with running_worker(client, asks):
        assert isinstance(await failure_of(await client.start(asks)), ActivityTimeoutError)


async def test_the_result_of_a_late_thread_is_discarded(client: Client) -> None:
    """A thread cannot be stopped: the attempt has failed, whatever it returns later."""
    gate = threading.Event()

    @activity(timeout=0.05, retries=0)
    def blocks() -> int:
        gate.wait(60)
        return 1

    @workflow
    async def asks() -> int:
        return await blocks()

    async with running_worker(client, asks):
        run = await client.start(asks)
        assert isinstance(await failure_of(run), ActivityTimeoutError)
        gate.set()
    assert (await run.describe()).journal[0].status == "failed"


async def test_the_late_end_of_a_timed_out_attempt_is_not_the_end_of_the_next(client: Client) -> None:
    """Attempt 2 keeps its own timeout and its own result when the thread of attempt 1 ends during it."""
    gates = {number: threading.Event() for number in (1, 2)}
    begun = threading.Event()

    @activity(timeout=0.1, retry=AT_ONCE)
    def blocks() -> int:
        attempt = activity_info().attempt
        if attempt == 2:
            begun.set()
        if attempt < 3:
            gates[attempt].wait(60)
        return attempt

    @workflow
    async def asks() -> int:
        return await blocks()

    async with running_worker(client, asks, concurrency=3):
        run = await client.start(asks)
        await until(begun.is_set)
        gates[1].set()
        try:
            assert await run.result(60) == 3
        finally:
            gates[2].set()


async def test_an_attempt_that_ignores_its_timeout_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next attempt begins though the late one still runs; a slot is taken as long as it does."""
    monkeypatch.setattr(timeouts, "LATE_SECONDS", 0.05)
    gate = asyncio.Event()
    ended: list[int] = []

    @activity(timeout=0.02, retry=AT_ONCE)
    async def stubborn() -> int:
        attempt = activity_info().attempt
        while attempt == 1 and not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        ended.append(attempt)
        return attempt

    @workflow
    async def asks() -> int:
        return await stubborn()

    async with running_worker(client, asks, concurrency=2) as worker:
        assert await (await client.start(asks)).result(60) == 2
        assert worker.life.performer._free == 1
        gate.set()
        await until(lambda: ended == [2, 1])
        await until(lambda: worker.life.performer._free == 2)


async def test_nothing_of_a_worker_runs_on_after_it_has_stopped(client: Client) -> None:
    """Also what was abandoned or is late is cancelled with the grace's end: a stopped worker leaves no task behind."""
    begun, stopped = asyncio.Event(), asyncio.Event()

    @activity(cancellation="abandon")
    async def endless() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    @workflow
    async def gives_up() -> str:
        try:
            async with asyncio.timeout(0.05):
                await endless()
        except TimeoutError:
            return "gave up"
        return ""

    async with running_worker(client, gives_up) as worker:
        run = await client.start(gives_up)
        await begun.wait()
        assert await run.result(60) == "gave up"
        assert not stopped.is_set()
        worker.stop(grace_seconds=0)
    await until(stopped.is_set, seconds=2)


# ─ unrequested cancellation ──


async def test_a_result_that_does_not_fit_its_hint_names_the_activity(client: Client) -> None:
    """It fails at once, on the loop and in a thread: the same code would return the same."""
    calls = Calls()

    async def on_the_loop() -> int:
        calls("loop")
        return "seven"  # type: ignore[return-value]  # the mistake under test

    async def suspends() -> int:
        await asyncio.sleep(0)
        return await on_the_loop()

    def in_a_thread() -> int:
        calls("thread")
        return "seven"  # type: ignore[return-value]  # the mistake under test

    @workflow
    async def asks(which: str) -> int:
        kinds = {"loop": on_the_loop, "later": suspends, "thread": in_a_thread}
        return await activity(name="counts")(kinds[which])()

    async with running_worker(client, asks):
        for which in ("loop", "later", "thread"):
            error = await failure_of(await client.start(asks, which))
            assert isinstance(error, UndecodableError)
            assert str(error).startswith("what activity 'counts' returned: expected `int`, got `str`")
    assert (calls.of("loop"), calls.of("thread")) == (2, 1)


async def test_a_cancelled_error_that_nobody_requested_is_a_failure_of_the_activity(client: Client) -> None:
    """It is retried like any other and does not cancel the run (P29)."""
    calls = Calls()

    @activity(retry=Retry(max_attempts=2, initial=0.001))
    async def confused() -> None:
        calls("confused")
        raise asyncio.CancelledError("me")

    @workflow
    async def handles() -> str:
        try:
            await confused()
        except ActivityError as error:
            return error.type
        return ""

    async with running_worker(client, handles):
        run = await client.start(handles)
        assert "CancelledError" in await run.result(60)
    assert calls.of("confused") == 2


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("in_thread", [False, True])
async def test_exits_in_an_activity_do_not_stop_the_worker(
    client: Client, kind: type[BaseException], in_thread: bool
) -> None:
    """The boundary of user code catches everything: neighbours go on."""

    def in_a_thread() -> None:
        raise kind("no")

    async def on_the_loop() -> None:
        raise kind("no")

    leaves = activity(retries=0, name="leaves")(in_a_thread if in_thread else on_the_loop)

    @workflow
    async def asks(leave: bool) -> str:
        if leave:
            await leaves()
        return "stayed"

    async with running_worker(client, asks):
        error = await failure_of(await client.start(asks, True))
        assert isinstance(error, ActivityError)
        assert error.type == kind.__name__
        assert await (await client.start(asks, False)).result(60) == "stayed"


# ─ slots ──


async def test_no_more_activities_run_at_once_than_the_worker_may(client: Client) -> None:
    """`concurrency` bounds all runs of a worker together, and is used up fully."""
    running: set[int] = set()
    most = 0

    @activity
    async def occupies(number: int) -> int:
        nonlocal most
        running.add(number)
        most = max(most, len(running))
        await asyncio.sleep(0.002)
        running.discard(number)
        return number

    @workflow
    async def fans_out(first: int) -> list[int]:
        return list(await asyncio.gather(*(occupies(first + i) for i in range(20))))

    async with running_worker(client, fans_out, concurrency=3):
        runs = [await client.start(fans_out, first) for first in (0, 100)]

        assert [sum(await run.result(60)) for run in runs] == [190, 2190]
    assert most == 3


async def test_threads_are_bounded_by_the_same_number(client: Client) -> None:
    """Sync activities take slots like async ones."""
    lock = threading.Lock()
    running = most = 0

    @activity
    def occupies() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.005)
        with lock:
            running -= 1

    @workflow
    async def fans_out() -> None:
        await asyncio.gather(*(occupies() for _ in range(12)))

    async with running_worker(client, fans_out, concurrency=2):
        await (await client.start(fans_out)).result(60)
    assert most == 2


async def test_an_activity_that_waits_for_a_slot_is_not_charged(client: Client) -> None:
    """An attempt counts from its start, not from its schedule (P22); `describe` says what it waits for."""
    gate = asyncio.Event()

    @activity(retries=0)
    async def holds() -> int:
        await gate.wait()
        return activity_info().attempt

    @workflow
    async def two() -> list[int]:
        return list(await asyncio.gather(holds(), holds()))

    async with running_worker(client, two, concurrency=1):
        run = await client.start(two)
        await until(lambda: _has_line(run, "waiting for a free slot"))
        seen = await run.describe()
        assert [(entry.status, entry.attempts) for entry in seen.journal] == [
            ("running", 1),
            ("scheduled", 0),
        ]
        gate.set()

        assert await run.result(60) == [1, 1]


async def _has_line(run: Any, text: str) -> bool:
    return any(text in blocker.text for blocker in (await run.describe()).waiting_on)


@pytest.mark.parametrize("how", ["coroutine", "part"])
async def test_an_activity_that_waits_for_a_run_lends_its_slot(client: Client, how: str) -> None:
    """Else as many of them as there are slots would wait for ever for runs that wait for a slot. It is counted again once it goes on."""
    at_once, most = 0, 0

    @activity
    async def works(depth: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return depth

    async def goes_deeper(depth: int, part: int = 0) -> int:
        run = await client.start(nested, depth - 1, run_id=f"{activity_info().idempotency_key}/{part}")
        return await run.result(60)

    @activity
    async def begins(depth: int) -> int:
        if how == "coroutine":
            return await goes_deeper(depth)
        parts = [durable.start_part(goes_deeper, depth, part, name=f"part#{part}") for part in range(2)]
        return sum(await asyncio.gather(*parts))

    @workflow
    async def nested(depth: int) -> int:
        return await begins(depth) if depth else await works(1)

    async with running_worker(client, nested, concurrency=2):
        runs = [await client.start(nested, 3) for _ in range(5)]
        assert [await run.result(60) for run in runs] == [8 if how == "part" else 1] * 5
    assert most <= 2


async def test_a_backoff_holds_no_slot(client: Client) -> None:
    """With one slot, others run while one activity waits for its next attempt."""

    @activity(retry=Retry(initial=3600, maximum=3600))
    async def fails() -> None:
        raise Flaky

    @activity
    async def works() -> int:
        return 1

    @workflow
    async def asks(fail: bool) -> int:
        if fail:
            await fails()
        return await works()

    async with running_worker(client, asks, concurrency=1):
        await is_waiting(await client.start(asks, True), "retry")

        assert await (await client.start(asks, False)).result(60) == 1


# ─ values ──


async def test_a_result_that_cannot_be_stored_fails_the_activity_at_once(client: Client) -> None:
    """The error names the place; another attempt would return the same."""
    calls = Calls()

    @activity(retry=AT_ONCE)
    async def returns_a_socket() -> Any:
        calls("it")
        return {"items": [1, object()]}

    @workflow
    async def asks() -> None:
        await returns_a_socket()

    async with running_worker(client, asks):
        error = await failure_of(await client.start(asks))

    assert isinstance(error, PayloadError)
    assert error.path == "$.items[1]"
    assert calls.of("it") == 1


async def test_an_argument_that_cannot_be_stored_is_refused_in_the_workflow(client: Client) -> None:
    """At the call, where the author can see it; nothing is scheduled."""

    @activity
    async def takes(value: Any) -> None: ...

    @workflow
    async def asks() -> str:
        try:
            await takes(object())
        except PayloadError:
            return "refused"
        return ""

    async with running_worker(client, asks):
        run = await client.start(asks)

        assert await run.result(60) == "refused"
    assert (await run.describe()).journal == []


async def test_a_workflows_result_that_cannot_be_stored_fails_the_run(client: Client) -> None:
    """It is the author's error, not a reason to hang."""

    @workflow
    async def returns_an_object() -> Any:
        return object()

    async with running_worker(client, returns_an_object):
        assert isinstance(await failure_of(await client.start(returns_an_object)), PayloadError)


async def test_values_are_copied_by_the_codec_also_within_one_process(client: Client) -> None:
    """Live code must not see what replay would not: no shared mutable arguments or results (P21)."""
    kept: list[dict[str, list[int]]] = []

    @activity
    async def changes(value: dict[str, list[int]]) -> dict[str, list[int]]:
        value["a"].append(2)
        kept.append(value)
        return value

    @workflow
    async def asks() -> list[Any]:
        mine = {"a": [1]}
        result = await changes(mine)
        result["a"].append(3)
        return [mine, result]

    async with running_worker(client, asks):
        assert await (await client.start(asks)).result(60) == [{"a": [1]}, {"a": [1, 2, 3]}]
    assert kept == [{"a": [1, 2]}]
