"""What operators and people outside do to the runs of the crash suite, repeatable from the start after any death.

Pauses and resumes of a run, of a task queue and of a worker, a retry of a failed run, an attempt that is hurried on, an answer by
token, heartbeats that tell something, payloads too large for a row, rows of a pattern, a backup of a file, a deletion, a pruning, a
closed run that is started anew, one that is deleted and started again. What they ask for is asked for again until it is so.
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
    RetryAfter,
    RunNotFoundError,
    RunStatus,
    Worker,
    WorkflowStateError,
    activity,
    activity_info,
    heartbeat,
    raise_complete_async,
    sleep,
    workflow,
)
from tests.crash.programs import demands, workflows
from tests.crash.programs.workflows import QUICK
from tests.support.crash_ledger import effect

LARGE: Final = "x" * 40_000
ROWS: Final = [b"[1]", b"[2]", b"[3]"]
HELD: Final = "held"  # a worker's name, and its queue's
PASSING: Final = [f"passing-{number}" for number in range(3)]
FOR_EVER: Final = 3600.0


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


@activity(retry=QUICK)
async def hurried(order: str) -> str:
    """Would wait for an hour after its first attempt, if nobody hurried it on."""
    with effect() as done:
        if activity_info().attempt == 1:
            raise RetryAfter(FOR_EVER)
        done.value = f"hurried {order}"
        return done.value


@workflow
async def retried(order: str) -> list[str]:
    return [await workflows.reserve(order), await mended(order)]


@workflow
async def large(order: str) -> str:
    return str(len(await copied(order)))


@workflow
async def asking(order: str) -> str:
    return await asked(order)


@workflow
async def hurrying(order: str) -> str:
    return await hurried(order)


@workflow
async def passing(burden: str) -> str:
    """Closes, and is pruned."""
    await sleep(0.001)
    return burden


OUTCOMES: Final = {
    "paused": [0, 1, 4],
    "retried": ["reserved r", "mended r"],
    "large": "40000",
    "asking": "yes",
    "hurrying": "hurried h",
    "held": [0, 1],
    "anew": [0, 1],
    "reborn": [0, 1],
}
FUNCTIONS: Final = (workflows.chain, retried, large, asking, hurrying, passing)


def directory() -> Path:
    return Path(os.environ["CRASH_DIRECTORY"])


async def operate(client: Client, *, lease_seconds: float) -> None:
    """Do all of it, with a worker beside; return when everything is as it should be."""
    await client.start(workflows.chain, 3, run_id="paused")
    await _pause(client)
    async with (
        Worker(client, *FUNCTIONS, lease_seconds=lease_seconds),
        Worker(client, *FUNCTIONS, task_queue=HELD, name=HELD, lease_seconds=lease_seconds),
        asyncio.TaskGroup() as group,
    ):
        for work in (_resume, _retry, _answer, _large, _hurry, _resume_worker, _start_anew, _prune):
            group.create_task(work(client))
    await _keep(client, lease_seconds=lease_seconds)


async def _pause(client: Client) -> None:
    try:
        await client.pause("paused", "not yet")
    except WorkflowStateError:
        pass  # done in an earlier life
    await client.pause_task_queue("elsewhere", "for ever")
    await client.pause_worker(HELD, "not yet")
    await client.start(workflows.chain, 2, run_id=HELD, task_queue=HELD)


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


async def _hurry(client: Client) -> None:
    await client.start(hurrying, "h", run_id="hurrying")
    while not (await client.store.get_run("hurrying")).status.is_closed:
        try:
            await client.retry_now("hurrying")
        except WorkflowStateError:
            pass  # it waits for nothing yet, or no more
        await asyncio.sleep(0.01)


async def _resume_worker(client: Client) -> None:
    await client.resume_worker(HELD)
    await demands.closed(client, HELD)


async def _start_anew(client: Client) -> None:
    """A closed run; and one that was deleted before."""
    try:
        await client.get("anew")
    except RunNotFoundError:
        await client.start(workflows.chain, 1, run_id="anew")
    await demands.closed(client, "anew")
    if (await client.store.get_run("anew")).generation == 1:
        await client.start(workflows.chain, 2, run_id="anew", if_closed="new")
    if not (former := directory() / "reborn").exists():
        await client.start(workflows.chain, 0, run_id="reborn")
        await demands.closed(client, "reborn")
        former.touch()
    try:
        if not await (await client.get("reborn")).result():
            await client.delete("reborn")
    except RunNotFoundError:
        pass  # an earlier life deleted it
    await client.start(workflows.chain, 2, run_id="reborn")
    for run_id in ("anew", "reborn"):
        await demands.closed(client, run_id)


async def _prune(client: Client) -> None:
    if (done := directory() / "pruned").exists():
        return
    for run_id in PASSING:
        await client.start(passing, LARGE, run_id=run_id)
    for run_id in PASSING:
        await demands.closed(client, run_id)
    await client.prune(0, workflow="passing")
    done.touch()


async def _keep(client: Client, *, lease_seconds: float) -> None:
    """Rows of a pattern, a copy of it all, and away with a run that nobody needs."""
    kept = len(await client.read_rows("kept_rows", "k"))
    await client.append_rows("kept_rows", "k", ROWS[kept:], after=kept)
    copy = directory() / "copy.db"
    if not copy.exists() and client.url.startswith("sqlite"):
        await client.backup(copy)
    try:
        await client.get("gone")
    except RunNotFoundError:
        if directory().joinpath("deleted").exists():
            return
        await client.start(workflows.chain, 0, run_id="gone")
        directory().joinpath("deleted").touch()
    async with Worker(client, *FUNCTIONS, lease_seconds=lease_seconds):
        await demands.closed(client, "gone")
    await client.delete("gone")
