"""Plain `def` activities that are to stop: it is raised in their thread, and nowhere else."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from durable import (
    ActivityTimeoutError,
    Client,
    DefinitionError,
    RunCancelledError,
    RunStatus,
    Worker,
    WorkflowFailedError,
    activity,
    activity_info,
    heartbeat,
    shield_thread,
    sleep,
    workflow,
)
from tests.support.workers import AT_ONCE, running_worker, until


def computes() -> None:
    while True:
        sum(range(100))


def sleeps() -> None:
    while True:
        time.sleep(0.001)


async def cancelled(run: Any) -> None:
    with pytest.raises(RunCancelledError):
        await run.result(60)


def waits_for_its_end(worker: Worker) -> bool:
    """Whether an activity that runs here was told to stop, and its workflow waits for that."""
    return any(attempt.cancelled for attempt in worker.life.performer._running)


# ─ raised in the thread ──


@pytest.mark.parametrize("works", [computes, sleeps])
@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_thread_is_interrupted_and_learns_why(
    elsewhere: bool, works: Callable[[], None], client: Client
) -> None:
    """In plain Python that asks for nothing; with "wait", the workflow goes on when its clean-up has ended."""
    begun, order = threading.Event(), list[str | None]()

    @activity(cancellation="wait", task_queue="cpu" if elsewhere else None)
    def busy() -> None:
        try:
            begun.set()
            works()
        except Exception:
            order.append("taken for an error")
        except asyncio.CancelledError as error:
            order.extend([str(error), activity_info().cancel_reason])
            raise
        finally:
            order.append("cleaned up")

    @workflow
    async def waits() -> None:
        try:
            await busy()
        finally:
            order.append("workflow")

    async with running_worker(client, waits, activities=[busy], task_queue=["default", "cpu"]):
        run = await client.start(waits)
        await until(begun.is_set)
        await run.cancel("customer left")
        await cancelled(run)
    assert order == ["customer left", "customer left", "cleaned up", "workflow"]


async def test_a_body_that_swallows_it_has_returned(client: Client) -> None:
    """What it comes to counts, as if nobody had asked: here its worker, which writes it down before it is gone."""
    begun, calls = threading.Event(), list[int]()

    @activity
    def stubborn() -> str:
        calls.append(activity_info().attempt)
        try:
            begun.set()
            sleeps()
        except BaseException:
            return "done all the same"
        return ""

    @workflow
    async def waits() -> str:
        return await stubborn()

    async with running_worker(client, waits) as worker:
        run = await client.start(waits)
        await until(begun.is_set)
        worker.stop(0)
    async with running_worker(client, waits):
        assert await run.result(60) == "done all the same"
    assert calls == [1]


async def test_a_shield_finishes_its_block(client: Client) -> None:
    """What comes meanwhile is told to whoever asks, not raised by heartbeats, and raised at the block's end."""
    begun, told, order = threading.Event(), threading.Event(), list[str]()

    @activity(cancellation="wait")
    def books() -> None:
        with shield_thread():
            order.append("debit")
            begun.set()
            while not activity_info().is_cancelled:
                time.sleep(0.001)
            heartbeat()
            told.set()
            order.append("credit")
        order.append("the next booking")

    @workflow
    async def waits() -> None:
        await books()

    async with running_worker(client, waits):
        run = await client.start(waits)
        await until(begun.is_set)
        await run.cancel()
        await until(told.is_set)
        await cancelled(run)
    assert order == ["debit", "credit"]


async def test_an_abandoned_thread_is_not_interrupted(client: Client) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), list[object]()

    @activity(cancellation="abandon")
    def alone() -> None:
        begun.set()
        while not may_end.is_set():
            time.sleep(0.001)
        ended.append(activity_info().cancel_reason)

    @workflow
    async def waits() -> None:
        await alone()

    async with running_worker(client, waits):
        run = await client.start(waits)
        await until(begun.is_set)
        await run.cancel()
        await cancelled(run)
        may_end.set()
        await until(lambda: ended)
    assert ended == [None]


# ─ other reasons ──


async def test_a_late_thread_is_interrupted_and_its_slot_is_free_again(client: Client) -> None:
    """The timeout is what the attempt fails with, and what the thread reads; the next attempt has the only slot."""
    reasons: list[str] = []

    @activity(timeout=0.2, retry=AT_ONCE)
    def slow_at_first() -> int:
        try:
            if not reasons:
                computes()
        except asyncio.CancelledError as error:
            reasons.append(str(error))
            raise
        return activity_info().attempt

    @workflow
    async def waits() -> int:
        return await slow_at_first()

    async with running_worker(client, waits, concurrency=1):
        assert await (await client.start(waits)).result(60) >= 2
    assert "ran longer than its timeout of 0.2 s" in reasons[0]


async def test_a_late_thread_fails_with_its_timeout(client: Client) -> None:
    @activity(timeout=0.05, retries=0)
    def slow() -> None:
        computes()

    @workflow
    async def waits() -> None:
        await slow()

    async with running_worker(client, waits):
        with pytest.raises(WorkflowFailedError) as failed:
            await (await client.start(waits)).result(60)
    cause = failed.value.__cause__
    assert isinstance(cause, ActivityTimeoutError)
    assert cause.kind == "start_to_close"


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_thread_whose_worker_stops_is_interrupted_and_handed_back(
    elsewhere: bool, client: Client
) -> None:
    """As a coroutine is: its attempt is not charged, and the next worker begins it at once."""
    begun, seen = threading.Event(), list[tuple[int, str]]()

    @activity(retries=0, task_queue="cpu" if elsewhere else None)
    def busy() -> str:
        if seen:
            return f"attempt {activity_info().attempt}"
        try:
            begun.set()
            computes()
        except asyncio.CancelledError as error:
            seen.append((activity_info().attempt, str(error)))
            raise
        return ""

    @workflow
    async def waits() -> str:
        return await busy()

    options: dict[str, Any] = {"activities": [busy], "task_queue": ["default", "cpu"]}
    async with running_worker(client, waits, **options) as worker:
        run = await client.start(waits)
        await until(begun.is_set)
        worker.stop(0)
    assert seen == [(1, "its worker stops")]
    async with running_worker(client, waits, **options):
        assert await run.result(60) == "attempt 1"


# ─ and nowhere else ──


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_quick_activities_cancelled_at_any_moment_hit_nobody_else(seed: int, client: Client) -> None:
    """Some hundred in two threads, every second cancelled: each has returned or was interrupted, for its own reason."""
    chance = random.Random(seed)
    ends: Counter[str] = Counter()
    wrong: list[str] = []

    @activity(cancellation="wait")
    def quick(rounds: int) -> int:
        me = activity_info().run_id
        try:
            for _ in range(rounds):
                sum(range(50))
        except asyncio.CancelledError as error:
            ends[me] += 1
            if str(error) != f"because of {me}":
                wrong.append(f"{me}: {error}")
            raise
        except BaseException as error:
            wrong.append(f"{me}: {error!r}")
            raise
        ends[me] += 1
        return rounds

    @workflow
    async def waits(rounds: int) -> int:
        return await quick(rounds)

    async def lives(number: int) -> str:
        run = await client.start(waits, chance.randrange(1, 2000), run_id=f"r-{number}")
        if number % 2:
            await asyncio.sleep(chance.random() * 0.02)
            try:
                await run.cancel(f"because of {run.run_id}")
            except Exception:
                assert (await run.describe()).status.is_closed
        try:
            await run.result(60)
        except RunCancelledError:
            return "cancelled"
        return "completed"

    async with running_worker(client, waits, concurrency=2):
        results: list[str] = []
        for first in range(0, 240, 12):
            results += await asyncio.gather(*(lives(number) for number in range(first, first + 12)))
    assert wrong == []
    assert all(count == 1 for count in ends.values())
    assert set(results[::2]) == {"completed"}


async def test_runs_that_a_thread_drives_itself_see_nothing_of_it(client: Client) -> None:
    """They are other runs, with their own lives: the thread is told, by its heartbeats, and not hit in the middle of them."""
    begun, may_end = threading.Event(), threading.Event()
    told: list[str] = []

    @activity
    async def lasts() -> None:
        begun.set()
        await until(may_end.is_set)

    @workflow
    async def inner() -> str:
        try:
            await lasts()
            await sleep(0.005)
        except BaseException as error:
            return f"hit: {error!r}"
        return "whole"

    async def drives() -> str:
        value = await inner(run_id="inner")
        try:
            heartbeat()
        except asyncio.CancelledError as error:
            told.append(str(error))
        return value

    @activity(cancellation="wait")
    def nests() -> str:
        return asyncio.run(drives())

    @workflow
    async def waits() -> str:
        return await nests()

    async with running_worker(client, waits) as worker:
        run = await client.start(waits)
        await until(begun.is_set)
        await run.cancel("stop")
        await until(lambda: waits_for_its_end(worker))
        may_end.set()
        await cancelled(run)
        seen = await (await client.get("inner")).describe()
    assert seen.status == RunStatus.COMPLETED
    assert await (await client.get("inner")).result(60) == "whole"
    assert told == ["stop"]


# ─ where a shield makes no sense ──


async def test_a_shield_is_for_threads(client: Client) -> None:
    """A coroutine has asyncio's, and a workflow, too; outside of runs there is nothing to be shielded from."""

    @activity(retries=0)
    async def coroutine() -> None:
        with shield_thread():
            pass

    @workflow
    async def waits() -> str:
        try:
            with shield_thread():
                pass
        except DefinitionError as error:
            await asyncio.sleep(0)
            first = str(error)
        try:
            await coroutine()
        except DefinitionError as error:
            return f"{first}; {error}"
        return ""

    with shield_thread():
        pass
    async with running_worker(client, waits):
        told = await (await client.start(waits)).result(60)
    assert told.count("use asyncio.shield") == 2
