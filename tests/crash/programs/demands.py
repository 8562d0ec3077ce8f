"""What callers ask of the runs of one scene, repeatable from the start after any death.

A start names its run, a signal has an id; a cancel is not sent again if one is on record or on its way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from durable import Client, RunHandle, RunStatus, Signal, WorkflowStateError
from durable.journal.events import CancelRequested, OpenWait
from tests.crash.programs.workflows import cancellable, endless, everything, never, overdue, told

Start = Callable[..., Awaitable[RunHandle[Any]]]

WAIT_SECONDS: Final = 60.0


async def make(client: Client, start: Start) -> None:
    """Ask for everything; return when all runs are closed."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_everything(client, start))
        group.create_task(_cancelled(client, start))
        group.create_task(_terminated(client, start))
        group.create_task(_overdue(client, start))


async def _everything(client: Client, start: Start) -> None:
    run = await start(everything, "a", run_id="everything")
    for number, message_id in ((1, "one"), (2, "two"), (2, "two")):
        await _tell(run, number, message_id)
    if await is_waiting(client, run.run_id, told):
        await _tell(run, 3, "three")
    await closed(client, run.run_id)


async def roll(run: RunHandle[Any], signals: int) -> None:
    """Send the signals that a run of many generations reads, and wait for its end."""
    for number in range(1, signals + 1):
        await _tell(run, number, f"told-{number}")
        if number % 3 == 0:
            await asyncio.sleep(0.005)  # so that some race with a close, and others wait in the inbox
    await run.result(WAIT_SECONDS)


async def _tell(run: RunHandle[Any], number: int, message_id: str) -> None:
    try:
        await run.signal(told, number, id=message_id)
    except WorkflowStateError:
        raise AssertionError(f"the run closed without signal {number}, or forgot that it had it") from None


async def _cancelled(client: Client, start: Start) -> None:
    run = await start(cancellable, "c", run_id="cancelled")
    if await is_waiting(client, run.run_id, never) and not await is_cancel_known(client, run.run_id):
        try:
            await run.cancel("enough")
        except WorkflowStateError:
            pass  # the cancel of an earlier life has ended it
    await closed(client, run.run_id)


async def _terminated(client: Client, start: Start) -> None:
    run = await start(endless, "t", run_id="terminated")
    if await is_waiting(client, run.run_id, never):
        try:
            await run.terminate("no more")
        except WorkflowStateError:
            pass  # as above
    await closed(client, run.run_id)


async def _overdue(client: Client, start: Start) -> None:
    run = await start(overdue, "o", run_id="overdue")
    await closed(client, run.run_id)


async def is_waiting(client: Client, run_id: str, signal: Signal[Any]) -> bool:
    """Wait until the run waits for the signal for the last time it asks; False if it closed before."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not (await client.store.get_run(run_id)).status.is_closed:
            for entry in await client.events(run_id):
                if isinstance(entry, OpenWait) and entry.name == signal.name:
                    return True
            await asyncio.sleep(0.01)
    return False


async def is_cancel_known(client: Client, run_id: str) -> bool:
    if (await client.store.get_run(run_id)).unread:
        return True
    return any(isinstance(entry, CancelRequested) for entry in await client.events(run_id))


async def closed(client: Client, run_id: str) -> RunStatus:
    async with asyncio.timeout(WAIT_SECONDS):
        while not (status := (await client.store.get_run(run_id)).status).is_closed:
            if status is RunStatus.PARKED:
                raise AssertionError(f"{run_id} is parked: {(await client.store.get_run(run_id)).reason}")
            await asyncio.sleep(0.01)
    return status
