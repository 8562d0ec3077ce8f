"""Signals: each is delivered once, in order, to whoever waits, whenever it was sent."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from durable import (
    ArgumentsError,
    Client,
    RunNotFoundError,
    RunStatus,
    Signal,
    UndecodableError,
    WorkflowStateError,
    activity,
    wait_condition,
    wait_signal,
    workflow,
)
from tests.support.workers import (
    AT_ONCE,
    is_released,
    is_waiting,
    no_durability,
    running_worker,
    status_is,
    through_commit_turns,
    until,
)

number = Signal("number", int)


@workflow
async def collect(count: int) -> list[int]:
    return [await number.wait() for _ in range(count)]


async def test_signals_are_seen_in_the_order_they_were_sent(client: Client) -> None:
    """First sent, first seen; a signal sent before anyone waits is kept."""
    run = await client.start(collect, 5)
    for value in range(3):
        await run.signal(number, value)

    async with running_worker(client, collect):
        await is_waiting(run, "signal")
        await run.signal(number, 3)
        await run.signal("number", 4)

        assert await run.result(60) == [0, 1, 2, 3, 4]


async def test_a_storm_of_signals_to_a_warm_run_is_seen_once_and_in_order(client: Client) -> None:
    """Signals that arrive while a turn is being committed are not taken in twice."""
    async with running_worker(client, collect):
        run = await client.start(collect, 200)
        for value in range(200):
            await run.signal(number, value)
            await asyncio.sleep(0)

        assert await run.result(60) == list(range(200))


@pytest.mark.slow
async def test_a_thousand_signals_of_another_client_all_wake_a_run_that_sleeps(
    client: Client, url: str
) -> None:
    """No wake-up is lost between "nothing there" and "released", however often that happens (P2)."""
    chance = random.Random(4711)
    async with running_worker(client, collect, warm_us=0), no_durability(url) as other:
        run = await client.start(collect, 1000)
        for value in range(1000):
            await other.signal(run.run_id, number, value)
            if chance.random() < 0.3:
                await asyncio.sleep(chance.choice([0, 0, 0.0005, 0.005]))

        assert await run.result(60) == list(range(1000))


async def test_a_thousand_signals_over_many_runs_reach_each_in_order(client: Client, url: str) -> None:
    """What is interleaved between runs is in order within each."""
    chance = random.Random(815)
    sent: dict[str, list[int]] = {f"r{i}": [] for i in range(20)}
    async with running_worker(client, collect, warm_us=0), no_durability(url) as other:
        runs = [await client.start(collect, 50, run_id=run_id) for run_id in sent]
        places = [run_id for run_id in sent for _ in range(50)]
        chance.shuffle(places)
        for value, run_id in enumerate(places):
            sent[run_id].append(value)
            await other.signal(run_id, number, value)
            if value % 50 == 0:
                await asyncio.sleep(0.01)

        assert {run.run_id: await run.result(60) for run in runs} == sent


async def test_a_signal_id_is_taken_in_once(client: Client) -> None:
    """Sending again with the same id is no second signal, also after the first was seen, also to a closed run."""
    async with running_worker(client, collect):
        run = await client.start(collect, 3)
        await run.signal(number, 1, id="a")
        await run.signal(number, 1, id="a")
        await is_waiting(run, "signal")
        await run.signal(number, 99, id="a")
        await run.signal(number, 2, id="b")
        await run.signal(number, 3, id="c")

        assert await run.result(60) == [1, 2, 3]
        await run.signal(number, 3, id="c")


async def test_a_signal_to_a_closed_run_is_refused(client: Client) -> None:
    """Nobody would ever see it."""
    async with running_worker(client, collect):
        run = await client.start(collect, 0)
        await run.result(60)

        with pytest.raises(WorkflowStateError) as refusal:
            await run.signal(number, 1)

    assert refusal.value.run_id == run.run_id
    assert refusal.value.status == "completed"


async def test_a_signal_to_an_unknown_run_names_near_ids(client: Client) -> None:
    """A typing mistake is answered with what was probably meant."""
    await client.start(collect, 1, run_id="order-17")

    with pytest.raises(RunNotFoundError) as refusal:
        await client.signal("order-71", number, 1)

    assert "order-17" in refusal.value.suggestions


@pytest.mark.parametrize("value", ["text", None, [1]])
async def test_a_value_of_another_type_is_refused_at_the_sender(client: Client, value: Any) -> None:
    """The sender has the type at hand: nothing undecodable is written."""
    run = await client.start(collect, 1)

    with pytest.raises(ArgumentsError, match=r"^signal 'number' takes another type: expected `int`"):
        await run.signal(number, value)

    assert (await client.store.get_run(run.run_id)).unread == 0


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201])
async def test_a_name_that_cannot_be_printed_is_refused(client: Client, name: str) -> None:
    """Names stand in lists and in the journal."""
    run = await client.start(collect, 1)

    with pytest.raises(ArgumentsError):
        await run.signal(name, 1)


async def test_an_undecodable_signal_parks_the_run_and_code_that_reads_it_goes_on(client: Client) -> None:
    """It neither vanishes nor fails the run: whoever can read it resumes the run."""

    def version_of(hint: Any) -> Any:
        @workflow
        async def reads() -> object:
            return await Signal("number", hint).wait()

        return reads

    async with running_worker(client, version_of(int)):
        run = await client.start(version_of(int))
        await run.signal("number", "seven")
        with pytest.raises(UndecodableError) as fault:
            await run.result(60)
        assert fault.value.run_id == run.run_id
    parked = await run.describe()
    assert parked.status is RunStatus.PARKED
    assert "the value of signal 'number' (message 1): expected `int`" in (parked.reason or "")

    await client.store.unpark_run(run.run_id, client.clock.now_us())
    async with running_worker(client, version_of(str)):
        assert await run.result(60) == "seven"


async def test_signals_of_different_names_do_not_wait_for_one_another(client: Client) -> None:
    """Order holds within a name; names are independent."""

    @workflow
    async def two_names() -> list[Any]:
        return [await wait_signal("b"), await wait_signal("a")]

    async with running_worker(client, two_names):
        run = await client.start(two_names)
        await run.signal("a", 1)
        await run.signal("b", {"x": [2]})

        assert await run.result(60) == [{"x": [2]}, 1]


async def test_a_wait_that_times_out_raises_or_returns_its_default(client: Client) -> None:
    """TimeoutError is the workflow's own to handle; a later signal still finds the next wait."""

    @workflow
    async def impatient() -> list[Any]:
        seen: list[Any] = [await number.wait(0.01, default="nothing")]
        try:
            await number.wait(timeout=0.01)
        except TimeoutError:
            seen.append("timeout")
        seen.append(await number.wait())
        return seen

    async with running_worker(client, impatient):
        run = await client.start(impatient)
        await is_waiting(run, "signal")
        await until(lambda: _timers_fired(run, 2))
        await run.signal(number, 7)

        assert await run.result(60) == ["nothing", "timeout", 7]


async def _timers_fired(run: Any, count: int) -> bool:
    return sum(entry.status == "fired" for entry in (await run.describe()).journal) == count


async def test_a_condition_is_looked_at_after_every_event(client: Client) -> None:
    """wait_condition sees what handlers in the same run have changed."""

    @workflow
    async def counts() -> int:
        seen: list[int] = []

        async def listen() -> None:
            while True:
                seen.append(await number.wait())

        listener = asyncio.create_task(listen())
        await wait_condition(lambda: sum(seen) >= 10)
        listener.cancel()
        return len(seen)

    async with running_worker(client, counts):
        run = await client.start(counts)
        await is_waiting(run, "condition")
        for value in (4, 5, 6):
            await run.signal(number, value)

        assert await run.result(60) == 3


async def test_a_signal_that_arrives_at_completion_is_delivered_before_the_close(client: Client) -> None:
    """Whoever's signal was accepted by an open run finds it in the journal, though nobody read it (P2)."""
    sent = asyncio.Event()

    @activity
    async def last_one() -> int:
        return 1

    @workflow
    async def ends() -> list[int]:
        await last_one()
        return [await number.wait(0, default=-1)]

    async with running_worker(client, ends) as worker:
        through_commit_turns(worker.life.store)
        real = worker.life.store.commit_turns

        async def commit(worker_id: int, commits: Any, now_us: int) -> Any:
            closing = any(type(one.after).__name__ == "Close" for one in commits)
            if closing and not sent.is_set():
                sent.set()
                await run.signal(number, 5)  # after the turn was made, before it is written
            return await real(worker_id, commits, now_us)

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        run = await client.start(ends)

        assert await run.result(60) == [5]
        assert (await run.describe()).journal[0].attempts == 1
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was


async def test_many_runs_that_close_while_signals_arrive_lose_none(client: Client, url: str) -> None:
    """Either the sender is told that the run is closed, or the journal holds its signal."""

    @activity
    async def work() -> None:
        await asyncio.sleep(0)

    @workflow
    async def closes() -> None:
        await work()
        await work()

    accepted: dict[str, list[int]] = {}
    async with running_worker(client, closes), no_durability(url) as other:
        for position in range(40):
            run = await client.start(closes, run_id=f"c{position}")
            accepted[run.run_id] = []
            for value in range(20):
                try:
                    await other.signal(run.run_id, number, value)
                except WorkflowStateError:
                    break
                accepted[run.run_id].append(value)
                await asyncio.sleep(0)
            await run.result(60)

    for run_id, values in accepted.items():
        received = [
            entry.result for entry in (await client.describe(run_id)).journal if entry.kind == "signal"
        ]
        assert received == values


async def test_a_signal_wakes_a_released_run_of_a_workflow_that_retries_attempts(client: Client) -> None:
    """A released run that is woken replays and goes on with new activities."""
    starts: list[int] = []

    @activity(retry=AT_ONCE)
    async def add(value: int) -> int:
        starts.append(value)
        return value + 1

    @workflow
    async def adds() -> int:
        total = 0
        for _ in range(3):
            total = await add(total + await number.wait())
        return total

    async with running_worker(client, adds, warm_us=0):
        run = await client.start(adds)
        for value in (1, 10, 100):
            await is_released(run)
            await run.signal(number, value)
            await until(lambda value=value: len(starts) == len(str(value)))

        assert await run.result(60) == 114
        assert starts == [1, 12, 113]
        assert (await status_is(run, "completed")).attempts == 1
