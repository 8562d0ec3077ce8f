"""Waiting: timers, conditions, what is released and woken, what is evicted, and what replay does not repeat."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest

from durable import (
    Client,
    Signal,
    Worker,
    activity,
    as_completed,
    info,
    is_replaying,
    logger,
    now,
    random,
    sleep,
    uuid4,
    wait_condition,
    workflow,
)
from durable.journal.events import StartTimer, TimerFired
from durable.worker import life as life_module
from tests.support.workers import Calls, is_released, is_waiting, running_worker, until

number = Signal("number", int)


# ─ timers ──


@pytest.mark.parametrize("warm_us", [None, 0], ids=["in memory", "released"])
async def test_a_timer_fires_when_it_is_due_and_never_before(client: Client, warm_us: int | None) -> None:
    """By the store's clock, whether the run slept in memory or as a row (I6)."""

    @workflow
    async def naps() -> float:
        before = now()
        await sleep(timedelta(milliseconds=120))
        return (now() - before).total_seconds()

    async with running_worker(client, naps, warm_us=warm_us):
        run = await client.start(naps)
        assert await run.result(60) == 0.12
        events = await run.events()
    (due,) = [event.due for event in events if isinstance(event, StartTimer)]
    (fired,) = [event.at for event in events if isinstance(event, TimerFired)]
    assert 0 <= fired - due < 30_000_000


async def test_a_long_sleep_is_a_row_and_nothing_else(client: Client) -> None:
    """No instance is kept for a run that sleeps for long, however many there are."""

    @workflow
    async def sleeps() -> None:
        await sleep(3600)

    async with running_worker(client, sleeps) as worker:
        runs = await client.start_many(sleeps, [()] * 200)
        await until(lambda: _all_wait(client, len(runs)))
        assert not worker.life.driver.runs
        seen = await runs[0].describe()
    assert seen.waiting_on[0].kind == "timer"
    assert seen.waiting_on[0].text.startswith("timer in 59m")


async def test_a_draining_worker_lets_go_of_a_run_with_the_turn_that_waits(client: Client) -> None:
    """For however short or unknown a time: others may wake it while this one waits for its activities."""
    begun, gates = Calls(), {"step": asyncio.Event(), "held": asyncio.Event()}

    @activity
    async def work(name: str) -> None:
        begun(name)
        await gates[name].wait()

    @workflow
    async def steps() -> int:
        await work("step")
        return await number.wait()

    @workflow
    async def holds() -> None:
        await work("held")

    async with running_worker(
        client, steps, holds, warm_us=3_600_000_000
    ) as worker:  # else it goes soon in any case
        run, other = await client.start(steps), await client.start(holds)
        await until(lambda: begun.of("step") and begun.of("held"))
        worker.stop(30)
        gates["step"].set()

        await until(lambda: is_released(run))
        assert (await other.describe()).worker is not None
        gates["held"].set()


async def _all_wait(client: Client, count: int) -> bool:
    return len(await client.list(status="waiting", limit=1000)) == count


async def test_a_timer_that_is_past_due_fires_at_once_when_a_worker_comes(client: Client) -> None:
    """What became due while nobody was there is not forgotten."""

    @workflow
    async def naps() -> str:
        await sleep(0.1)
        return "woke"

    async with running_worker(client, naps, warm_us=0):
        run = await client.start(naps)
        await is_released(run)
    record = await client.store.get_run(run.run_id)
    await until(lambda: client.clock.now_us() > (record.due_at_us or 0))
    async with running_worker(client, naps):
        assert await run.result(60) == "woke"


async def test_timers_fire_in_the_order_in_which_they_are_due(client: Client) -> None:
    """Also when a run is woken after all of them."""

    @workflow
    async def many() -> list[int]:
        order: list[int] = []

        async def one(position: int) -> None:
            await asyncio.sleep(0.02 * position)
            order.append(position)

        await asyncio.gather(*(one(position) for position in (3, 1, 2)))
        return order

    async with running_worker(client, many):
        assert await (await client.start(many)).result(60) == [1, 2, 3]


async def test_sleeping_for_nothing_makes_no_timer(client: Client) -> None:
    """`sleep(0)` only lets others run."""

    @workflow
    async def yields() -> None:
        await sleep(0)
        await asyncio.sleep(0)

    async with running_worker(client, yields):
        run = await client.start(yields)
        await run.result(60)
        assert not [event for event in await run.events() if isinstance(event, StartTimer)]


async def test_a_delayed_start_waits_for_its_time(client: Client) -> None:
    """`delay` holds a start back; the run says so."""

    @workflow
    async def at_last() -> int:
        return 1

    async with running_worker(client, at_last):
        later = await client.start(at_last, delay=3600)
        soon = await client.start(at_last, delay=timedelta(milliseconds=100))

        assert await soon.result(60) == 1
        seen, done = await later.describe(), await soon.describe()
    assert done.started_at is not None
    assert done.started_at - done.created_at >= timedelta(milliseconds=100)
    assert seen.status == "pending"
    assert seen.waiting_on[0].text.startswith("start in 59m")


# ─ release and wake ──


async def test_a_run_that_only_waits_for_a_signal_is_released_after_a_while(client: Client) -> None:
    """It is kept warm first, for the signal that comes at once; then it is a row."""

    @workflow
    async def waits() -> int:
        return await number.wait()

    async with running_worker(client, waits, warm_us=50_000) as worker:
        run = await client.start(waits)
        await is_waiting(run, "signal")
        assert (await run.describe()).status == "waiting"
        worker.life.releaser.release_idle()
        await until(lambda: _released_or_ask(worker, run))
        await run.signal(number, 5)

        assert await run.result(60) == 5


async def _released_or_ask(worker: Worker, run: object) -> bool:
    worker.life.releaser.release_idle()
    return not worker.life.driver.runs


async def test_a_run_with_a_running_activity_is_not_released(client: Client) -> None:
    """Another worker would start its activity again (P12)."""
    gate = asyncio.Event()
    calls = Calls()

    @activity
    async def works() -> int:
        calls("works")
        await gate.wait()
        return 1

    @workflow
    async def both() -> int:
        task = asyncio.create_task(works())
        await sleep(0.05)
        return await task

    async with running_worker(client, both, warm_us=0):
        run = await client.start(both)
        await until(lambda: _has_fired(run))
        seen = await run.describe()
        assert seen.worker is not None
        gate.set()
        assert await run.result(60) == 1
    assert calls.of("works") == 1


async def _has_fired(run: object) -> bool:
    return any(entry.status == "fired" for entry in (await run.describe()).journal)  # type: ignore[attr-defined]  # a handle


async def test_a_small_cache_keeps_all_runs_finishing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More open runs than a worker may hold: those that wait make room, none is forgotten or runs twice."""
    monkeypatch.setattr(life_module, "HOUSEKEEPING_SECONDS", 0.01)
    calls = Calls()

    @activity
    async def note(run_id: str, at: str) -> None:
        calls(f"{run_id} {at}")

    @workflow
    async def waits_twice() -> int:
        await note(info().run_id, "start")
        first = await number.wait()
        await note(info().run_id, "middle")
        await sleep(0.01)
        return first + await number.wait()

    async with running_worker(client, waits_twice, max_runs=5) as worker:
        runs = [await client.start(waits_twice, run_id=f"r{i}") for i in range(40)]
        for value in (1, 10):
            for run in runs:
                await run.signal(number, value)
                assert len(worker.life.driver.runs) <= 5

        assert [await run.result(60) for run in runs] == [11] * 40
    assert len(calls.names) == len(set(calls.names)) == 80


async def test_a_crowded_cache_releases_runs_that_wait_for_signals_alone(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warm runs give way to ready ones long before their warm time is over."""
    monkeypatch.setattr(life_module, "HOUSEKEEPING_SECONDS", 0.01)

    @workflow
    async def waits() -> int:
        return await number.wait()

    @workflow
    async def passes() -> int:
        return 1

    async with running_worker(client, waits, passes, max_runs=10):
        await client.start_many(waits, [()] * 20)

        assert await (await client.start(passes)).result(60) == 1


# ─ replay ──


async def test_the_logger_is_silent_while_a_run_is_replayed(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Each line once, with the run it belongs to, however often the run was rebuilt."""
    replays: list[bool] = []

    @workflow
    async def talks() -> None:
        for turn in range(3):
            logger.info("turn %d", turn)
            replays.append(is_replaying())
            await number.wait()

    caplog.set_level(logging.INFO, "durable.workflow")
    async with running_worker(client, talks, warm_us=0):
        run = await client.start(talks, run_id="talker")
        for value in range(3):
            await is_released(run)
            await run.signal(number, value)
        await run.result(60)

    lines = [record for record in caplog.records if record.name == "durable.workflow"]
    assert [record.getMessage() for record in lines] == ["turn 0", "turn 1", "turn 2"]
    assert {(record.run_id, record.workflow) for record in lines} == {("talker", "talks")}  # type: ignore[attr-defined]  # put there by the logger
    assert replays.count(True) >= 1


async def test_time_and_chance_are_the_same_in_every_replay(client: Client) -> None:
    """now, random, uuid4 and info come from the journal."""
    seen: list[tuple[object, ...]] = []

    @workflow
    async def looks() -> None:
        seen.append((now(), random(), uuid4(), info()))
        await number.wait()
        await number.wait()

    async with running_worker(client, looks, warm_us=0):
        run = await client.start(looks)
        for value in range(2):
            await is_released(run)
            await run.signal(number, value)
        await run.result(60)

    assert len(seen) >= 2
    assert len(set(map(repr, seen))) == 1


# ─ several at once ──


async def test_as_completed_gives_results_in_the_order_of_their_ends(client: Client) -> None:
    """And in the same order after a replay."""
    gates = {value: asyncio.Event() for value in range(3)}
    calls = Calls()

    @activity
    async def work(value: int) -> int:
        calls("work")
        await gates[value].wait()
        return value

    @workflow
    async def races() -> list[int]:
        order = [await one for one in as_completed([work(value) for value in range(3)])]
        await number.wait()
        return order

    async with running_worker(client, races, warm_us=0):
        run = await client.start(races)
        await until(lambda: calls.of("work") == 3)
        for done, value in enumerate((2, 0, 1), 1):
            gates[value].set()
            await until(lambda done=done: _completed(run, done))
        await is_released(run)
        await run.signal(number, 1)

        assert await run.result(60) == [2, 0, 1]


async def _completed(run: object, count: int) -> bool:
    journal = (await run.describe()).journal  # type: ignore[attr-defined]  # a handle
    return sum(entry.status == "completed" and entry.kind == "activity" for entry in journal) == count


async def test_a_condition_that_holds_at_once_waits_for_nothing(client: Client) -> None:
    """No wait is recorded for what is true already; a timeout is TimeoutError or the default."""

    @workflow
    async def looks() -> list[object]:
        seen: list[object] = [await wait_condition(lambda: True)]
        seen.append(await wait_condition(lambda: False, 0.01, default="never"))
        try:
            await wait_condition(lambda: False, timeout=0.01)
        except TimeoutError:
            seen.append("timeout")
        return seen

    async with running_worker(client, looks):
        assert await (await client.start(looks)).result(60) == [None, "never", "timeout"]


async def test_a_condition_that_raises_raises_where_it_is_awaited(client: Client) -> None:
    """An author's error in a condition is the workflow's, not the worker's."""

    @workflow
    async def looks() -> str:
        seen: list[int] = []

        async def listen() -> None:
            seen.append(await number.wait())

        task = asyncio.create_task(listen())
        try:
            await wait_condition(lambda: bool(seen) and 1 // (seen[0] - 1) > 0)
        except ZeroDivisionError:
            await task
            return "handled"
        return ""

    async with running_worker(client, looks):
        run = await client.start(looks)
        await is_waiting(run, "condition")
        await run.signal(number, 1)

        assert await run.result(60) == "handled"


async def test_a_large_fan_out_completes(client: Client) -> None:
    """More events than one turn takes (P19): they go into several, none is left behind."""

    @activity
    async def square(value: int) -> int:
        return value * value

    @workflow
    async def fans_out() -> int:
        return sum(await asyncio.gather(*(square(value) for value in range(1200))))

    async with running_worker(client, fans_out, concurrency=50):
        run = await client.start(fans_out)

        assert await run.result(60) == sum(value * value for value in range(1200))
