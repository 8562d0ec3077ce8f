"""A family of runs for the crash suite. Whatever dies, and on whichever side, all of them end the same way."""

from __future__ import annotations

import asyncio
from typing import Final

import durable
from durable import (
    Client,
    Retry,
    RunCancelledError,
    RunHandle,
    RunStatus,
    Signal,
    WorkflowFailedError,
    activity,
    continue_as_new,
    saga_step,
    workflow,
)
from tests.crash.programs import demands
from tests.support.crash_ledger import effect

RETRY: Final = Retry(initial=0.01, maximum=0.01)
ANNEX: Final = "annex"  # the queue of one child
never: Final = Signal("never", int)
go: Final = Signal("go", int)
OUTCOMES: Final = {
    "family": RunStatus.COMPLETED,
    "family@1/add#1": RunStatus.COMPLETED,
    "family@1/add#2": RunStatus.COMPLETED,
    "family@1/add#3": RunStatus.COMPLETED,
    "family@1/add#3@1/add#1": RunStatus.COMPLETED,
    "family@1/breaks#1": RunStatus.FAILED,
    "family@1/idle#1": RunStatus.CANCELLED,
    "family@1/idle#2": RunStatus.CANCELLED,
    "family@1/doomed#1": RunStatus.TERMINATED,
    "estate": RunStatus.COMPLETED,
    "estate@1/climb#1": RunStatus.COMPLETED,
    "estate@1/add#1": RunStatus.COMPLETED,
    "estate@1/idle#1": RunStatus.CANCELLED,
    "estate@1/outlive#1": RunStatus.COMPLETED,
    "estate@2/outlive#1": RunStatus.COMPLETED,
}
RESULTS: Final = {
    "family": [3, 7, 16, "family@1/breaks#1"],
    "estate": [6, 11],
    "estate@1/climb#1": 6,
    "estate@1/outlive#1": 8,
    "estate@2/outlive#1": 9,
}
GENERATIONS: Final = {"estate": 2, "estate@1/climb#1": 3}
TAKERS: Final = (
    "family@1/breaks#1",
    "family@1/idle#1",
    "family@1/idle#2",
    "estate@1/idle#1",
)  # they give back what they have taken


@activity(retry=RETRY)
async def plus(a: int, b: int) -> int:
    with effect() as done:
        done.value = a + b
        return a + b


async def give_back(what: str) -> None:
    with effect() as done:
        done.value = None


@saga_step(compensation=give_back, retry_delay=0.01)
async def take(what: str) -> str:
    with effect() as done:
        done.value = what
        return what


@workflow
async def add(a: int, b: int, deeper: bool = False) -> int:
    return await plus(await add(a, b), 1) if deeper else await plus(a, b)


@workflow
async def breaks() -> None:
    await take("tools")
    raise ValueError("child")


@workflow
async def idle() -> int:
    await take("chair")
    return await never.wait()


@workflow
async def doomed() -> int:
    return await never.wait()


@workflow
async def family() -> list[object]:
    """Children one after the other and side by side; one fails, one is cancelled, one is left behind, one is ended."""
    await doomed.options(on_parent_close="terminate").start()
    left = await idle.start()
    sums = await asyncio.gather(add(1, 2), add(3, 4))
    deep = await add(7, 8, deeper=True)
    try:
        await breaks()
    except WorkflowFailedError as error:
        told = error.run_id
    cancelled = asyncio.ensure_future(idle())
    await durable.sleep(0.05)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    return [*sums, deep, told if left.run_id else None]


@workflow
async def climb(steps: int, height: int = 0) -> int:
    """Each step is a generation."""
    height = await plus(steps, height)
    if steps > 1:
        continue_as_new(steps - 1, height)
    return height


@workflow
async def outlive(number: int) -> int:
    """Goes on when its parent is closed."""
    return await plus(number, await go.wait())


@workflow
async def estate(queue: str, found: list[int] | None = None) -> list[int]:
    """A child that continues as new, one on another queue; in either generation one that outlives it, the second started as the last thing."""
    if found is None:
        await outlive.options(on_parent_close="abandon").start(1)
        await idle.start()
        climbed = await climb(3)
        continue_as_new(queue, [climbed, await add.options(task_queue=queue)(5, 6)])
    await outlive.options(on_parent_close="abandon").start(2)
    return found


async def execute_all() -> None:
    """In this process; the children that were left behind are somebody's, too."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_execute_family())
        group.create_task(_execute_estate())


async def _execute_family() -> None:
    assert await family(run_id="family") == RESULTS["family"]
    for run_id in ("family@1/idle#1", "family@1/idle#2"):
        await _see_cancelled(run_id)


async def _execute_estate() -> None:
    assert await estate("default", run_id="estate") == RESULTS["estate"]
    await _see_cancelled("estate@1/idle#1")
    for run_id in ("estate@1/outlive#1", "estate@2/outlive#1"):
        left = await outlive.attach(run_id)
        await _let(left)
        assert await left.result() == RESULTS[run_id]


async def _see_cancelled(run_id: str) -> None:
    try:
        await (await idle.attach(run_id)).result()
    except RunCancelledError:
        pass


async def _let(run: RunHandle[int]) -> None:
    await run.signal(go, 7, id="go")


async def store_all(client: Client) -> None:
    """Store the runs for a worker."""
    await client.start(family, run_id="family")
    await client.start(estate, ANNEX, run_id="estate")


async def let_all(client: Client) -> None:
    """Once it is closed, let the children go on that outlive their parent."""
    await demands.closed(client, "estate")
    for run_id in ("estate@1/outlive#1", "estate@2/outlive#1"):
        await _let(await client.get(run_id))
