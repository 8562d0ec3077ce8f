"""Workflows that are classes, for the crash suite. Whatever dies, their runs end the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from durable import (
    Client,
    Retry,
    RunHandle,
    RunStatus,
    activity,
    all_handlers_finished,
    child,
    continue_as_new,
    wait_condition,
    workflow,
    workflow_of,
)
from tests.support.crash_ledger import effect

RETRY: Final = Retry(initial=0.01, maximum=0.01)
GENERATIONS: Final = 2
RESULT: Final = [4, 16, 1, 1]
OUTCOMES: Final = {
    "till": RunStatus.COMPLETED,
    "till@1/Receipt#1": RunStatus.COMPLETED,
    "till@2/Receipt#1": RunStatus.COMPLETED,
    "desk": RunStatus.COMPLETED,
}
EARLY: Final = 4  # messages to the desk before anybody drives it
MESSAGES: Final = 12
# What the desk has read, in order, whatever died; and the squares of it, of which each is on record once.
READ: Final = list(range(MESSAGES))
SQUARES: Final = [number * number for number in READ]


@activity(retry=RETRY)
async def square(number: int) -> int:
    with effect() as done:
        done.value = number * number
        return number * number


@workflow
class Receipt:
    def __init__(self, number: int) -> None:
        self.number = number

    async def run(self) -> int:
        return await square(self.number)


@workflow
class Till:
    """An activity, a timer and a child in each generation."""

    def __init__(self, generations: int, taken: list[int] | None = None) -> None:
        self.generations = generations
        self.taken = taken or []

    async def run(self) -> list[int]:
        self.taken.append(await square(self.generations))
        await asyncio.sleep(0.002)
        self.taken.append(await child(Receipt, self.generations**2))
        if self.generations > 1:
            continue_as_new(self.generations - 1, self.taken)
        return self.taken


@workflow
class Desk:
    """Handles what it is told, an activity for each, in two or three generations."""

    def __init__(self, read: list[int], squares: list[int], before: int = 0) -> None:
        self.read = read
        self.squares = squares
        self.before = before

    async def run(self) -> list[list[int]]:
        await asyncio.sleep(0.002)
        await wait_condition(lambda: len(self.read) >= min(self.before + 5, MESSAGES))
        await wait_condition(all_handlers_finished)
        if len(self.read) < MESSAGES:
            continue_as_new(self.read, self.squares, len(self.read))
        return [self.read, sorted(self.squares)]

    @workflow.signal
    async def tell(self, number: int) -> None:
        self.read.append(number)
        self.squares.append(await square(number))


async def tell_all(run: RunHandle[Any], numbers: Iterable[int]) -> None:
    """Send what the desk is to read. Each message has an id: whoever begins again sends nothing twice."""
    for number in numbers:
        await run.signal(Desk.tell, number, id=f"told-{number}")
        if number % 3 == 0:
            await asyncio.sleep(0.005)


async def execute_all() -> None:
    """In this process."""
    desk = await workflow_of(Desk).enqueue([], [], run_id="desk")
    await tell_all(desk, range(EARLY))
    await workflow_of(Desk).start([], [], run_id="desk")
    telling = asyncio.create_task(tell_all(desk, range(EARLY, MESSAGES)))
    await workflow_of(Till)(GENERATIONS, run_id="till")
    await telling
    await desk.result()


async def store_all(client: Client) -> None:
    """For a worker."""
    await client.start(Till, GENERATIONS, run_id="till")
    await tell_all(await client.start(Desk, [], [], run_id="desk"), range(EARLY))


async def tell_the_rest(client: Client) -> None:
    await tell_all(await client.get("desk"), range(EARLY, MESSAGES))
