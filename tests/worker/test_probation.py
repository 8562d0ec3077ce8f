"""Activities lost with their worker begin again a few at a time: the one that had begun last first, alone."""

from __future__ import annotations

import asyncio

from durable import Client, activity, activity_info, workflow
from durable.worker import probation
from tests.support.workers import AT_ONCE, declare_dead, running_worker, until


async def test_lost_activities_begin_again_in_growing_numbers(client: Client) -> None:
    """First the last, alone; each that has run for a while makes room for more; none is forgotten."""
    begun: list[tuple[int, int]] = []  # number, attempt
    running: set[int] = set()
    first_alone: list[set[int]] = []

    @activity(retry=AT_ONCE)
    async def holds(number: int) -> int:
        attempt = activity_info().attempt
        begun.append((number, attempt))
        if attempt == 1:
            await asyncio.sleep(3600)
        running.add(number)
        first_alone.append(set(running))
        await asyncio.sleep(0.01)
        return number

    @workflow
    async def calls(number: int) -> int:
        return await holds(number)

    async with running_worker(client, calls) as worker:
        runs = []
        for number in range(12):
            runs.append(await client.start(calls, number))
            await until(lambda: len(begun) == len(runs))
        await declare_dead(client, worker)
        assert sorted([await run.result(60) for run in runs]) == list(range(12))
        assert worker.life.performer._probation.waiting == []
    again = [number for number, attempt in begun if attempt == 2]
    assert again[0] == 11
    assert sorted(again) == list(range(12))
    assert len(begun) == 24
    assert first_alone[0] == {11}


async def test_what_runs_on_makes_room_after_a_while(client: Client) -> None:
    """A long activity on probation holds up the others for half a second, not until its end."""
    begun: list[str] = []
    gate = asyncio.Event()

    @activity(retry=AT_ONCE)
    async def holds(name: str) -> str:
        begun.append(name)
        if activity_info().attempt == 1:
            await asyncio.sleep(3600)
        await gate.wait()
        return name

    @workflow
    async def calls(name: str) -> str:
        return await holds(name)

    async with running_worker(client, calls) as worker:
        runs = [await client.start(calls, name) for name in "abc"]
        await until(lambda: len(begun) == 3)
        await declare_dead(client, worker)
        await until(lambda: len(begun) == 6)
        gate.set()
        assert [await run.result(60) for run in runs] == ["a", "b", "c"]


async def test_an_activity_that_was_not_lost_is_not_held_up(client: Client) -> None:
    """Neighbours keep their pace."""
    lost: list[int] = []
    gate = asyncio.Event()

    @activity(retry=AT_ONCE)
    async def holds() -> int:
        lost.append(1)
        if len(lost) <= 5:
            await asyncio.sleep(3600)
        await gate.wait()
        return 1

    @activity
    async def quick() -> int:
        return 2

    @workflow
    async def calls() -> int:
        return await holds()

    @workflow
    async def goes_on() -> int:
        return await quick()

    async with running_worker(client, calls, goes_on) as worker:
        runs = [await client.start(calls) for _ in range(5)]
        await until(lambda: len(lost) == 5)
        await declare_dead(client, worker)
        await until(lambda: len(lost) == 6)
        assert await (await client.start(goes_on)).result(probation.PROBATION_SECONDS * 10) == 2
        gate.set()
        assert [await run.result(60) for run in runs] == [1] * 5
