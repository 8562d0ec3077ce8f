"""Runs that park on mistakes of their code, and go on with code that has none; repeatable from the start after any death.

What an activity came to when its run parks is in nobody's journal yet: its body must not begin again for that.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from durable import Client, RunStatus, Worker, WorkflowStateError, workflow
from durable.journal.events import OpenWait
from tests.crash.programs import demands
from tests.crash.programs.workflows import pack, release, reserve, told

code: Final = {"is_bad": False}  # which of two versions is deployed
OUTCOMES: Final = {
    "guarded": ["reserved g", "packed g"],
    "diverged": ["reserved d", 1, "released d"],
}


@workflow
async def guarded(order: str) -> list[str]:
    """Bad code reaches for the network as soon as it has what the activity came to."""
    reserved = await reserve(order)
    if code["is_bad"]:
        socket.socket()
    return [reserved, await pack(order)]


@workflow
async def diverged(order: str) -> list[Any]:
    """Bad code asks for something else than the journal holds."""
    first = await (pack(order) if code["is_bad"] else reserve(order))
    return [first, await told.wait(), await release(order)]


async def park_and_mend(client: Client, *, lease_seconds: float) -> None:
    """Good code, bad code, good code again; return when both runs have come to their end."""
    one = await client.start(guarded, "g", run_id="guarded")
    other = await client.start(diverged, "d", run_id="diverged")
    code["is_bad"] = False
    async with Worker(client, diverged, lease_seconds=lease_seconds):
        await _waits_for_its_signal(client, "diverged")
    try:
        await other.signal(told, 1, id="one")
    except WorkflowStateError:
        pass  # taken in, and the run ended, in an earlier life
    code["is_bad"] = True
    async with Worker(client, guarded, diverged, lease_seconds=lease_seconds):
        for run_id in OUTCOMES:
            await _stopped(client, run_id)
    code["is_bad"] = False
    for run in (one, other):
        try:
            await run.resume()
        except WorkflowStateError:
            pass  # closed in an earlier life
    async with Worker(client, guarded, diverged, lease_seconds=lease_seconds):
        for run_id in OUTCOMES:
            await demands.closed(client, run_id)


async def _waits_for_its_signal(client: Client, run_id: str) -> None:
    async with asyncio.timeout(demands.WAIT_SECONDS):
        while not any(isinstance(entry, OpenWait) for entry in await client.events(run_id)):  # noqa: ASYNC110  # rows
            await asyncio.sleep(0.01)


async def _stopped(client: Client, run_id: str) -> None:
    async with asyncio.timeout(demands.WAIT_SECONDS):
        while True:
            status = (await client.store.get_run(run_id)).status
            if status is RunStatus.PARKED or status.is_closed:
                return
            await asyncio.sleep(0.01)
