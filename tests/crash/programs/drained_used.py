"""Processes that stop in order, with much in their hands, for the crash suite: a worker that drains, a script that ends.

What they write from that moment on is counted: there they die.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

from durable import Client, Worker, workflow
from tests.crash.programs import demands
from tests.crash.programs.demands import Start
from tests.crash.programs.scopes_used import gate, withdrawn
from tests.crash.programs.workflows import (
    chain,
    held,
    listener,
    patient,
    patient_thread,
    sleeper,
    told,
)
from tests.support import crash_ledger
from tests.support.crash_points import points

ANNEX: Final = "annex"  # the queue of one activity
STEPS: Final = 60
GATE: Final = "gate"
GRACE_SECONDS: Final = 0.05
HELD: Final = ("patient@1/held#1", "patient_thread@1/held_thread#1", "withdrawn@1/take_slowly/compensation#1")
OUTCOMES: Final[dict[str, Any]] = {
    "patient": ["reserved gate", "gate", "released gate"],
    "patient_thread": ["reserved gate", "gate", "released gate"],
    "away": "gate",
    "sleeper": True,
    "listener": [1, 2],
    "chain": [number * number for number in range(STEPS)],
}


@workflow
async def away(where: str) -> str:
    """Waits for an activity on another queue, which the same worker performs if it serves that, too."""
    return await held.options(task_queue=ANNEX)(where)


FUNCTIONS: Final = (patient, patient_thread, away, sleeper, listener, chain, withdrawn)


async def begin(client: Client, start: Start, *, serves_all: bool) -> None:
    """Start all of them; return when what waits for others does so. From now on, count."""
    await start(patient, GATE, run_id="patient")
    await start(patient_thread, GATE, run_id="patient_thread")
    await start(away, GATE, run_id="away")
    await start(withdrawn, run_id="withdrawn")
    await start(sleeper, 0.5, run_id="sleeper")
    run = await start(listener, 2, run_id="listener")
    await run.signal(told, 1, id="told-1")
    wanted = {*HELD, *(["away@1/held#1"] if serves_all else [])}
    async with asyncio.timeout(demands.WAIT_SECONDS):
        while wanted - _begun():  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.005)
        await start(chain, STEPS, run_id="chain")
        while "chain@1/part#2" not in _begun():  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.001)
    points.count_from_here()


def _begun() -> set[str]:
    return {line.key for line in crash_ledger.read(Path(os.environ[crash_ledger.VARIABLE]))}


def serving_all(client: Client, lease_seconds: float) -> Worker:
    queues = ["default", ANNEX]
    return Worker(client, *FUNCTIONS, activities=[held], task_queue=queues, lease_seconds=lease_seconds)


async def drain(client: Client, *, lease_seconds: float) -> None:
    """A worker that is told to stop while it is at work."""
    serving = serving_all(client, lease_seconds)
    async with asyncio.TaskGroup() as group:
        working = group.create_task(serving.run())
        await begin(client, client.start, serves_all=True)
        serving.stop(GRACE_SECONDS)
        await working


async def finish(client: Client, *, lease_seconds: float) -> None:
    """Whoever comes next: lets everything go on, and sees its end."""
    (Path(os.environ["CRASH_DIRECTORY"]) / GATE).touch()
    gate("withdrawn").touch()
    async with serving_all(client, lease_seconds):
        await (await client.get("listener")).signal(told, 2, id="told-2")
        for run_id in (*OUTCOMES, "withdrawn"):
            await demands.closed(client, run_id)
