"""A family of runs for the crash suite. Whatever dies, and on whichever side, all of them end the same way."""

from __future__ import annotations

import asyncio
from typing import Final

import durable
from durable import (
    Client,
    Retry,
    RunCancelledError,
    RunStatus,
    Signal,
    WorkflowFailedError,
    activity,
    saga_step,
    workflow,
)
from tests.support.crash_ledger import effect

RETRY: Final = Retry(initial=0.01, maximum=0.01)
never: Final = Signal("never", int)
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
}
RESULT: Final = [3, 7, 16, "family@1/breaks#1"]
TAKERS: Final = (
    "family@1/breaks#1",
    "family@1/idle#1",
    "family@1/idle#2",
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


async def execute_all() -> None:
    """In this process; the child that was left behind is somebody's, too."""
    assert await family(run_id="family") == RESULT
    for run_id in ("family@1/idle#1", "family@1/idle#2"):
        try:
            await (await idle.attach(run_id)).result()
        except RunCancelledError:
            pass


async def store_all(client: Client) -> None:
    """Store the run for a worker."""
    await client.start(family, run_id="family")
