"""Plain functions that return something to be awaited: `lambda: charge(order)`. From there on they are like coroutine functions."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
import warnings
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

from durable import (
    ActivityTimeoutError,
    Client,
    activity,
    activity_info,
    heartbeat,
    make_activity,
    raise_complete_async,
    workflow,
)
from durable.worker import timeouts
from tests.support.workers import AT_ONCE, Calls, is_released, running_worker, status_is, until

shade: contextvars.ContextVar[str] = contextvars.ContextVar("shade", default="none")


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What blocking threads wait for; opened at the end of the test at the latest."""
    opened = threading.Event()
    yield opened
    opened.set()


# ─ where it runs ──


async def test_its_thread_is_given_back_and_its_slot_is_lent(client: Client) -> None:
    """Runs that wait for runs three levels deep, in one slot, each with work for a thread at its end: nothing stands still."""
    at_once, most = 0, 0

    @activity
    def works(depth: int) -> int:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        threading.Event().wait(0.002)
        at_once -= 1
        return depth

    async def goes_deeper(depth: int) -> int:
        run = await client.start(nested, depth - 1, run_id=f"{activity_info().idempotency_key}/deeper")
        return await run.result(60)

    begins = activity(name="begins")(lambda depth: goes_deeper(depth))

    @workflow
    async def nested(depth: int) -> int:
        value: int = await begins(depth) if depth else await works(7)
        return value

    async with running_worker(client, nested, concurrency=1):
        runs = [await client.start(nested, 3) for _ in range(4)]
        assert [await run.result(20) for run in runs] == [7] * 4
    assert most == 1


async def test_it_runs_on_the_loop_in_the_context_of_the_function(client: Client) -> None:
    """What the function set in a context variable is there, and who the activity is; the result is decoded by its hint."""
    here = asyncio.get_running_loop()

    async def looks() -> tuple[bool, str, int]:
        await asyncio.sleep(0)
        return asyncio.get_running_loop() is here, shade.get(), activity_info().attempt

    @activity
    def paints(name: str) -> Awaitable[tuple[bool, str, int]]:
        shade.set(name)
        return looks()

    @workflow
    async def works() -> list[Any]:
        return await asyncio.gather(*[paints(name) for name in ("red", "blue")])

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == [[True, "red", 1], [True, "blue", 1]]


@pytest.mark.parametrize("shape", ["lambda", "partial", "object", "awaitable object"])
async def test_whatever_can_be_awaited_will_do(client: Client, shape: str) -> None:
    """A partial of a coroutine function, an object whose call is one, an object that is awaited."""

    async def answers(value: int) -> int:
        await asyncio.sleep(0)
        return value

    class Caller:
        def __call__(self) -> Awaitable[int]:
            return answers(7)

    class Later:
        def __await__(self) -> Any:
            return answers(7).__await__()

    shapes: dict[str, Any] = {
        "lambda": lambda: answers(7),
        "partial": functools.partial(answers, 7),
        "object": Caller(),
        "awaitable object": lambda: Later(),
    }
    made = make_activity(shapes[shape], name="made")

    @workflow
    async def works() -> int:
        value: int = await made()
        return value

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 7


# ─ limits ──


@pytest.mark.parametrize("limit", ["timeout", "heartbeat_timeout"])
async def test_a_late_one_is_cancelled_and_has_ended_before_the_next_attempt(
    client: Client, limit: str
) -> None:
    """As a coroutine function is: not left to run beside the next attempt."""
    told: list[str] = []

    async def hangs() -> int:
        attempt = activity_info().attempt
        told.append(f"begin {attempt}")
        try:
            if attempt == 1:
                await asyncio.sleep(3600)
        finally:
            told.append(f"end {attempt}")
        return attempt

    options: dict[str, Any] = {limit: 0.05, "retry": AT_ONCE}
    asks = activity(name="asks", **options)(lambda: hangs())

    @workflow
    async def works() -> int:
        value: int = await asks()
        return value

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 2
    assert told == ["begin 1", "end 1", "begin 2", "end 2"]


async def test_one_that_ignores_its_end_holds_up_no_retry(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is given up after a while; its slot stays taken until it ends."""
    monkeypatch.setattr(timeouts, "LATE_SECONDS", 0.05)
    ended = asyncio.Event()

    async def stubborn() -> int:
        attempt = activity_info().attempt
        while attempt == 1 and not ended.is_set():
            try:
                await ended.wait()
            except asyncio.CancelledError:
                continue
        return attempt

    asks = activity(name="asks", timeout=0.03, retry=AT_ONCE)(lambda: stubborn())

    @workflow
    async def works() -> int:
        value: int = await asks()
        return value

    async with running_worker(client, works, concurrency=2) as worker:
        try:
            assert await (await client.start(works)).result(60) == 2
            assert worker.life.performer._free == 1
        finally:
            ended.set()
        await until(lambda: worker.life.performer._free == 2)


async def test_its_heartbeats_count(client: Client) -> None:
    """They extend the allowed silence, from the loop as from a thread."""

    async def beats() -> int:
        for number in range(8):
            await asyncio.sleep(0.04)
            heartbeat(number)
        return activity_info().attempt

    asks = activity(name="asks", heartbeat_timeout=0.2, retries=0)(lambda: beats())

    @workflow
    async def works() -> int:
        value: int = await asks()
        return value

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 1


async def test_a_function_that_is_late_before_it_returns_is_never_awaited(
    client: Client, gate: threading.Event
) -> None:
    """It was told to stop in its thread: the next attempt runs by then, and nothing may run beside it."""
    calls = Calls()

    async def rest(attempt: int) -> int:
        calls(f"rest {attempt}")
        return attempt

    @activity(timeout=0.05, retry=AT_ONCE)
    def returns_late() -> Any:
        attempt = activity_info().attempt
        if attempt == 1:
            gate.wait(60)
        return rest(attempt)

    @workflow
    async def works() -> int:
        value: int = await returns_late()
        return value

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a coroutine that was never awaited, too
        async with running_worker(client, works) as worker:
            assert await (await client.start(works)).result(60) == 2
            gate.set()
            await until(lambda: worker.life.performer.running == 0)
    assert calls.names == ["rest 2"]


async def test_a_timeout_names_its_kind(client: Client) -> None:
    """The workflow sees what it would of a coroutine function."""
    asks = activity(name="asks", timeout=0.05, retries=0)(lambda: asyncio.sleep(3600))

    @workflow
    async def works() -> str:
        try:
            await asks()
        except ActivityTimeoutError as error:
            return error.kind
        return ""

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == "start_to_close"


# ─ cancelling ──


async def test_a_cancel_stops_it(client: Client) -> None:
    """With the reason as its message, and the run ends."""
    told: list[str] = []

    async def hangs() -> None:
        told.append("begun")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError as error:
            told.append(str(error))
            raise

    asks = activity(name="asks")(lambda: hangs())

    @workflow
    async def works() -> None:
        await asks()

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: told)
        await run.cancel("out of stock")
        await status_is(run, "cancelled")
        await until(lambda: worker.life.performer._free == worker.concurrency)
    assert len(told) == 2, "it was cancelled, once"


async def test_cancellation_wait_waits_for_its_clean_up(client: Client) -> None:
    """The run ends after what runs on the loop has ended."""
    told: list[str] = []

    async def cleans_up() -> None:
        told.append("begun")
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.03)
            told.append("clean")

    asks = activity(name="asks", cancellation="wait")(lambda: cleans_up())

    @workflow
    async def works() -> None:
        try:
            await asks()
        finally:
            told.append("workflow goes on")

    async with running_worker(client, works):
        run = await client.start(works)
        await until(lambda: told)
        await run.cancel()
        await status_is(run, "cancelled")
    assert told == ["begun", "clean", "workflow goes on"]


async def test_cancelled_in_its_thread_it_is_never_awaited(client: Client, gate: threading.Event) -> None:
    """Its run is over when it returns: nobody waits for what it would do."""
    calls = Calls()

    async def rest() -> None:
        calls("rest")

    @activity
    def returns_late() -> Any:
        calls("thread")
        gate.wait(60)
        return rest()

    @workflow
    async def works() -> None:
        await returns_late()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        async with running_worker(client, works) as worker:
            run = await client.start(works)
            await until(lambda: calls.names)
            await run.cancel()
            await status_is(run, "cancelled")
            gate.set()
            await until(lambda: worker.life.performer.running == 0)
    assert calls.names == ["thread"]


async def test_a_worker_that_stops_hands_it_on(client: Client) -> None:
    """It is cancelled with its worker, and begun again by the next."""
    told: list[str] = []

    async def hangs_at_first() -> str:
        told.append("begin")
        try:
            if len(told) == 1:
                await asyncio.sleep(3600)
        finally:
            told.append("end")
        return "done"

    asks = activity(name="asks", retries=0)(lambda: hangs_at_first())

    @workflow
    async def works() -> str:
        value: str = await asks()
        return value

    async with running_worker(client, works) as worker:
        run = await client.start(works)
        await until(lambda: told)
        worker.stop(0)
    assert told == ["begin", "end"]
    async with running_worker(client, works):
        assert await run.result(60) == "done"


# ─ ends ──


async def test_what_it_raises_is_the_activitys_failure(client: Client) -> None:
    """Retried by the policy; what would stop a process stops nothing."""

    async def leaves() -> int:
        attempt = activity_info().attempt
        if attempt == 1:
            raise OSError("flaky")
        if attempt == 2:
            raise SystemExit(3)
        return attempt

    asks = activity(name="asks", retry=AT_ONCE)(lambda: leaves())

    @workflow
    async def works() -> int:
        value: int = await asks()
        return value

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 3


async def test_it_may_leave_its_end_to_somebody_else(client: Client) -> None:
    """`raise_complete_async` works from there, too: nothing of it takes a slot, and the answer is its result."""
    tokens: list[str] = []

    async def hands_on() -> int:
        await asyncio.sleep(0)
        tokens.append(activity_info().task_token)
        raise_complete_async()

    asks = activity(name="asks")(lambda: hands_on())

    @workflow
    async def works() -> int:
        value: int = await asks()
        return value

    async with running_worker(client, works, warm_us=0):
        run = await client.start(works)
        await is_released(run)
        await client.complete_activity(tokens[0], 7)
        assert await run.result(60) == 7
