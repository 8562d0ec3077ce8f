"""Closed runs that are deleted, for the crash suite: by somebody's call, or by a worker's retention. Repeatable from the start after any death."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final, Literal

from durable import BulkOperation, BulkOperationConfig, Client, Worker, continue_as_new, sleep, workflow
from durable.scheduler import retention
from durable.store.records import care
from tests.crash.programs import demands
from tests.crash.programs.children_used import add
from tests.crash.programs.workflows import chain, listener, part, told
from tests.support.crash_ledger import effect

BATCH_ROWS: Final = 12  # so that there are many batches
RETENTION_SECONDS: Final = 3600.0
LARGE: Final = "x" * 40_000
GONE: Final = (
    *(f"chain-{number}" for number in range(8)),
    "grown",
    "heard",
    "parent",
    "parent@1/add#1",
    "gathering",
    "gathering@1/stored/keep#1/stored#1",
    "shortly",
)
STAYING: Final = ("kept", "open")
AGAIN: Final = "chain-1"  # an id that is used again


async def measure(item: str) -> int:
    with effect() as done:
        done.value = len(item)
        return len(item)


stored: Final = BulkOperation(measure, BulkOperationConfig(batch_size=2), name="stored")


@workflow
async def grown(burden: str, generations: int) -> str:
    """Several generations, and payloads too large for a row."""
    await part(generations)
    if generations > 1:
        continue_as_new(burden, generations - 1)
    return burden


@workflow
async def parent() -> int:
    return await add(1, 2, deeper=False)


@workflow
async def gathering() -> Any:
    """An operation whose items are stored in rows of their own."""
    return await (await stored.enqueue([LARGE] * 4)).result()


@workflow(retention="forever")
async def kept() -> None:
    await sleep(0.001)


@workflow(retention=RETENTION_SECONDS)
async def shortly() -> None:
    await sleep(0.001)


FUNCTIONS: Final = (chain, listener, add, grown, parent, gathering, stored, kept, shortly)


async def make(client: Client, *, lease_seconds: float) -> None:
    """Runs of every kind, all closed but one."""
    async with Worker(client, *FUNCTIONS, lease_seconds=lease_seconds, retention=None):
        for number in range(8):
            await client.start(chain, number % 4, run_id=f"chain-{number}")
        await client.start(grown, LARGE, 3, run_id="grown")
        for run_id, count in (("heard", 2), ("open", 3)):
            run = await client.start(listener, count, run_id=run_id)
            for number in (1, 2):
                await run.signal(told, number, id=f"told-{number}")
        for one in (parent, gathering, kept, shortly):
            await client.start(one, run_id=one.name)
        for run_id in (*GONE, "kept"):
            await _there(client, run_id)
            await demands.closed(client, run_id)


async def prune(client: Client, how: Literal["call", "worker"], *, lease_seconds: float) -> None:
    """Delete what may go; then let the run that is open end, and use an id again."""
    care.BATCH_ROWS_MAX = BATCH_ROWS  # type: ignore[misc]
    if not (done := Path(os.environ["CRASH_DIRECTORY"]) / "pruned").exists():
        if how == "call":
            await client.prune(RETENTION_SECONDS)
        else:
            retention.FIRST_SECONDS = retention.LOOK_SECONDS = 0.01  # type: ignore[misc]
            async with Worker(client, kept, lease_seconds=lease_seconds, retention=RETENTION_SECONDS):
                while (await client.prune(RETENTION_SECONDS, dry_run=True)).runs:  # noqa: ASYNC110  # rows of a database
                    await asyncio.sleep(0.01)
        done.touch()
    async with Worker(client, *FUNCTIONS, lease_seconds=lease_seconds, retention=None):
        await (await client.get("open")).signal(told, 3, id="told-3")
        await client.start(chain, 2, run_id=AGAIN)
        for run_id in ("open", AGAIN):
            await demands.closed(client, run_id)


async def _there(client: Client, run_id: str) -> None:
    """Wait until a child is there."""
    async with asyncio.timeout(demands.WAIT_SECONDS):
        while run_id not in {run.run_id for run in await client.list(limit=1000)}:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
