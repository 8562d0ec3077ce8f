"""Time and chance: both move with the journal, never with the world."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest

from durable.journal.events import StartTimer, TimerFired
from tests.support.engine_harness import START_US, EngineRun, an_activity, driven, here, next_signal


@an_activity
async def work(x: int) -> int:
    return x


def test_the_clock_moves_with_events() -> None:
    """It stands still within an activation and moves to the instant of the next event."""
    seen: list[int] = []

    async def workflow() -> None:
        seen.append(here().now_us())
        await work(1)
        seen.append(here().now_us())

    run = EngineRun(workflow).drive()

    assert seen == [START_US, START_US + 1_000]
    assert run.instance.started_at_us == START_US


def test_a_timer_that_fires_late_fires_at_its_due_time() -> None:
    """The clock goes to exactly the deadline, however late the driver is."""

    async def workflow() -> int:
        await asyncio.sleep(1)
        return here().now_us()

    run = EngineRun(workflow)
    run.fire(late_us=5_000_000)

    assert run.result == START_US + 1_000_000
    run.check_replay().evict()


def test_the_clock_never_runs_backwards() -> None:
    """An event stamped earlier than the last, or a timer due before it, leaves the clock where it is."""

    async def workflow() -> list[int]:
        task = asyncio.create_task(asyncio.sleep(1))
        await next_signal("go")
        first = here().now_us()
        await task
        second = here().now_us()
        await next_signal("go")
        return [first, second, here().now_us()]

    run = EngineRun(workflow)
    run.now_us += 3_000_000
    run.signal("go")
    run.fire()
    run.now_us -= 2_000_000
    run.signal("go")

    at = START_US + 3_001_000
    assert run.result == [at, at, at]
    run.check_replay().evict()


@pytest.mark.parametrize("delay", [0.0004, 0.1, 0.3, 1 / 3, 1.1, 86_400.7, 31_536_000.123456])
@pytest.mark.parametrize("start", [0.0, 0.1, 1e6 / 7])
def test_a_deadline_takes_exactly_one_timer(delay: float, start: float) -> None:
    """Rounding to microseconds never makes asyncio or anyio look too early and arm a second timer."""

    async def workflow() -> None:
        await asyncio.sleep(start)
        with anyio.move_on_after(delay):
            await asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(delay):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            pass
        await asyncio.sleep(delay)

    run = driven(workflow)

    timers = [c for c in run.commands() if isinstance(c, StartTimer)]
    assert len(timers) == 3 + (start > 0)
    assert run.result is None
    for timer in timers[-3:]:
        assert abs(timer.duration - delay * 1e6) <= 1


def test_durations_are_rounded_up_to_microseconds() -> None:
    """But float noise is no microsecond."""

    async def workflow() -> None:
        for delay in (0.1, 0.0000011, 1e-9):
            await asyncio.sleep(delay)

    timers = [c for c in driven(workflow).commands() if isinstance(c, StartTimer)]

    assert [t.duration for t in timers] == [100_000, 2, 1]


def test_zero_and_negative_delays_take_no_timer() -> None:
    """They are the next turn of the loop."""

    async def workflow() -> str:
        await asyncio.sleep(0)
        await asyncio.sleep(-5)
        asyncio.get_running_loop().call_later(0, lambda: None)
        with anyio.move_on_after(0):
            await work(1)
        return "done"

    run = driven(workflow)

    assert run.commands() == []


def test_equal_due_times_fire_one_by_one() -> None:
    """Each fire is an event of its own; their order in the journal is the order of execution."""

    async def workflow() -> list[int]:
        seen: list[int] = []

        async def one(x: int) -> None:
            await asyncio.sleep(1)
            seen.append(x)

        await asyncio.gather(*(one(x) for x in range(3)))
        return seen

    run = EngineRun(workflow)
    for op in (2, 3, 1):
        run.fire(op)

    assert run.result == [1, 2, 0]
    run.check_replay().evict()


def test_a_fire_of_a_closed_timer_is_ignored() -> None:
    """The driver may be late: nothing happens."""

    async def workflow() -> Any:
        handle = asyncio.get_running_loop().call_later(1, print, "never")
        await work(1)
        handle.cancel()
        handle.cancel()
        return await next_signal("go")

    run = EngineRun(workflow)
    run.complete(2, 1)
    assert run.feed(TimerFired(op=1, at=run.later())) == []
    run.signal("go", "went")
    assert run.result == "went"
    run.check_replay().evict()


def test_chance_comes_from_the_journaled_seed() -> None:
    """The same seed gives the same numbers, in every replay; another seed gives others."""

    async def workflow() -> list[float]:
        first = here().random.random()
        await work(1)
        return [first, here().random.random()]

    one, again, other = driven(workflow, seed=1), driven(workflow, seed=1), driven(workflow, seed=2)

    assert one.result == again.result
    assert one.result != other.result


def test_a_workflow_level_retry_moves_the_clock_and_counts_the_attempt() -> None:
    """Open operations stay open; the workflow notices nothing else."""

    async def workflow() -> list[int]:
        await work(1)
        return [here().attempt, here().now_us() - START_US]

    run = EngineRun(workflow)
    run.now_us += 9_000
    assert run.retry(2) == []
    assert list(run.instance.activities) == [1]
    run.perform(1)

    assert run.result == [2, 11_000]
    run.check_replay().evict()
