"""Parts that activities leave running, for builders of patterns: taken over by later activities of the run, or stopped."""

from __future__ import annotations

import asyncio

import pytest

from durable import (
    Client,
    Signal,
    activity,
    activity_info,
    leave_part,
    part_context,
    start_part,
    take_part,
    workflow,
)
from tests.support.workers import AT_ONCE, running_worker, until


class Part:
    """A part that ends when it is let; `told` is what became of it."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.told: list[str] = []

    async def waits(self) -> int:
        self.told.append("begun")
        try:
            await self.may_end.wait()
        except asyncio.CancelledError as error:
            self.told.append(str(error))
            raise
        self.told.append("ended")
        return 7

    async def leaves(self) -> None:
        context = part_context(name="part")
        leave_part(context, start_part(self.waits, name="part", context=context))

    async def takes(self) -> int:
        """Ends with the part that was left, else with one of its own."""
        context = part_context(name="part")
        found = take_part(context)
        task = start_part(self.waits, name="part", context=context) if found is None else found[0]
        return await task


@pytest.fixture(autouse=True)
def _look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.worker.left_parts.LOOK_SECONDS", 0.01)


async def test_a_part_is_taken_over(client: Client) -> None:
    """It is kept as long as an activity that is to take it over is tried again."""
    part = Part()
    leaves = activity(name="leaves")(part.leaves)

    @activity(retry=AT_ONCE)
    async def takes() -> int:
        if activity_info().attempt < 4:
            raise OSError("not yet")
        part.may_end.set()
        return await part.takes()

    @workflow
    async def two() -> int:
        await leaves()
        return await takes.taking_over()()

    async with running_worker(client, two):
        assert await (await client.start(two)).result(60) == 7
    assert part.told == ["begun", "ended"]


async def test_a_part_that_nobody_takes_over_is_stopped(client: Client) -> None:
    part = Part()
    leaves, takes = activity(name="leaves")(part.leaves), activity(name="takes")(part.takes)

    @workflow
    async def thinks_again() -> int:
        await leaves()
        await Signal("go").wait()
        return await takes.taking_over()()

    async with running_worker(client, thinks_again):
        run = await client.start(thinks_again)
        await until(lambda: len(part.told) == 2)
        part.may_end.set()
        await run.signal("go")
        assert await run.result(60) == 7
    assert part.told == ["begun", "the workflow no longer waits for it", "begun", "ended"]


async def test_a_part_ends_with_its_run(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("durable.worker.left_parts.LOOK_SECONDS", 60.0)
    part = Part()
    leaves = activity(name="leaves")(part.leaves)

    @workflow
    async def ends() -> int:
        await leaves()
        return 1

    async with running_worker(client, ends):
        assert await (await client.start(ends)).result(60) == 1
        await until(lambda: len(part.told) == 2)
    assert part.told == ["begun", "its run is closed, or another worker's"]
