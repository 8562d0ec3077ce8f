"""What operators and people outside do to the runs of the crash suite, repeatable from the start after any death.

Pauses and resumes, a retry of a failed run, an answer by token, heartbeats that tell something, payloads too large for a
row, rows of a pattern, a backup, a deletion. What they ask for is asked for again until it is so.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

from durable import (
    ActivityClosedError,
    Client,
    NonRetryableError,
    RunNotFoundError,
    RunStatus,
    Worker,
    WorkflowStateError,
    activity,
    activity_info,
    heartbeat,
    raise_complete_async,
    workflow,
)
from tests.crash.programs import demands, workflows
from tests.crash.programs.workflows import QUICK
from tests.support.crash_ledger import effect

LARGE: Final = "x" * 40_000
ROWS: Final = [b"[1]", b"[2]", b"[3]"]


@activity(retry=QUICK)
async def mended(order: str) -> str:
    """Fails for good until somebody mends it."""
    with effect() as done:
        if not directory().joinpath("mended").exists():
            raise NonRetryableError(order)
        done.value = f"mended {order}"
        return done.value


@activity(retry=QUICK)
async def copied(order: str) -> str:
    """Tells how far it is at each attempt; the third gets there."""
    with effect() as done:
        heartbeat({"at": activity_info().attempt})
        if activity_info().attempt < 3:
            raise ConnectionError(order)
        done.value = LARGE
        return LARGE


@activity(retry=QUICK)
async def asked(order: str) -> str:
    """Leaves its token; somebody outside answers with what this says here."""
    with effect() as done:
        done.value = "yes"
    directory().joinpath(f"token-{activity_info().attempt}").write_text(activity_info().task_token)
    raise_complete_async()


@workflow
async def retried(order: str) -> list[str]:
    return [await workflows.reserve(order), await mended(order)]


@workflow
async def large(order: str) -> str:
    return str(len(await copied(order)))


@workflow
async def asking(order: str) -> str:
    return await asked(order)


OUTCOMES: Final = {
    "paused": [0, 1, 4],
    "retried": ["reserved r", "mended r"],
    "large": "40000",
    "asking": "yes",
}
FUNCTIONS: Final = (workflows.chain, retried, large, asking)


def directory() -> Path:
    return Path(os.environ["CRASH_DIRECTORY"])


async def operate(client: Client, *, lease_seconds: float) -> None:
    """Do all of it, with a worker beside; return when everything is as it should be."""
    await client.start(workflows.chain, 3, run_id="paused")
    await _pause(client)
    async with Worker(client, *FUNCTIONS, lease_seconds=lease_seconds), asyncio.TaskGroup() as group:
        group.create_task(_resume(client))
        group.create_task(_retry(client))
        group.create_task(_answer(client))
        group.create_task(_large(client))
    await _keep(client)


async def _pause(client: Client) -> None:
    try:
        await client.pause("paused", "not yet")
    except WorkflowStateError:
        pass  # done in an earlier life
    await client.pause_task_queue("elsewhere", "for ever")


async def _resume(client: Client) -> None:
    try:
        await client.resume("paused")
    except WorkflowStateError:
        pass  # as above
    await demands.closed(client, "paused")


async def _retry(client: Client) -> None:
    run = await client.start(retried, "r", run_id="retried", if_closed="return")
    if await demands.closed(client, "retried") is RunStatus.FAILED:
        directory().joinpath("mended").touch()
        await run.retry()
    assert await demands.closed(client, "retried") is RunStatus.COMPLETED


async def _answer(client: Client) -> None:
    await client.start(asking, "a", run_id="asking")
    while not (await client.store.get_run("asking")).status.is_closed:
        for token in sorted(directory().glob("token-*")):
            try:
                await client.heartbeat_activity(token.read_text(), "soon")
                await client.complete_activity(token.read_text(), "yes")
            except ActivityClosedError:
                pass  # of an attempt that died before it was open
        await asyncio.sleep(0.01)


async def _large(client: Client) -> None:
    await client.start(large, LARGE, run_id="large")
    await demands.closed(client, "large")


async def _keep(client: Client) -> None:
    """Rows of a pattern, a copy of it all, and away with a run that nobody needs."""
    kept = len(await client.read_rows("kept_rows", "k"))
    await client.append_rows("kept_rows", "k", ROWS[kept:], after=kept)
    copy = directory() / "copy.db"
    if not copy.exists():
        await client.backup(copy)
    try:
        await client.get("gone")
    except RunNotFoundError:
        if directory().joinpath("deleted").exists():
            return
        await client.start(workflows.chain, 0, run_id="gone")
        directory().joinpath("deleted").touch()
    async with Worker(client, *FUNCTIONS):
        await demands.closed(client, "gone")
    await client.delete("gone")
