"""Scopes of sagas for the crash suite: in a row, in each other, in a child, cancelled while they undo. Whatever dies, they end the same way.

What takes something gives it back under the same name, so that the journal tells in which order.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import durable
from durable import (
    Client,
    DefinitionError,
    NonRetryableError,
    Retry,
    RunCancelledError,
    RunStatus,
    Signal,
    WorkflowCompensationError,
    activity,
    activity_info,
    continue_as_new,
    saga,
    saga_step,
    workflow,
)
from durable.journal.events import CancelRequested, ScheduleActivity
from tests.crash.programs import demands
from tests.crash.programs.demands import Start
from tests.support import crash_ledger
from tests.support.crash_ledger import effect

DELAY: Final = 0.01  # seconds, after an attempt that was lost
FOR_EVER: Final = 3600.0
RETRY: Final = Retry(initial=DELAY, maximum=DELAY)
now: Final = Signal("now", int)

OUTCOMES: Final = {
    "scopes": RunStatus.FAILED,
    "withdrawn": RunStatus.CANCELLED,
    "stopped": RunStatus.CANCELLED,
    "cared": RunStatus.COMPLETED,
    "cared@1/kept#1": RunStatus.CANCELLED,
    "again": RunStatus.COMPLETED,
    "carried": RunStatus.COMPLETED,
}
RESULTS: Final = {
    "cared": "cancelled: enough",
    "again": ["cup", "second"],
    "carried": ["refused", "lent", 1, "refused", "lent", 2],
}
# What each generation gives back, in this order; in braces: in any.
GIVEN_BACK: Final[dict[tuple[str, int], list[set[str]]]] = {
    ("scopes", 1): [
        {"car"},
        {"flight"},
        {"left", "right"},
        {"late"},
        {"outer"},
        {"stuck's neighbour"},
        {"['take'] without ['take_for_good']"},  # what was said of the scope before
        {"room"},
    ],
    ("withdrawn", 1): [{"seat"}, {"car"}, {"flight"}, {"room"}],
    ("stopped", 1): [{"perhaps maybe"}, {"inner"}, {"outer"}],
    ("cared@1/kept#1", 1): [{"lamp"}, {"desk"}, {"key"}],
    ("again", 1): [{"cup"}],
    ("again", 2): [],
    ("carried", 1): [{"lent"}],
    ("carried", 2): [{"lent"}],
}
KEPT: Final = "scopes@1/take_for_good/compensation#1"  # fails for good


class NoRoom(NonRetryableError):
    """It cannot be had."""


async def give_back(what: str) -> str:
    with effect() as done:
        done.value = what
        return what


async def give_back_when_let(what: str) -> str:
    """Ends once somebody has said so."""
    with effect() as done:
        while not gate(activity_info().run_id).exists():  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.005)
        done.value = what
        return what


async def give_back_perhaps(what: str, uncertain: bool) -> str:
    with effect() as done:
        done.value = f"{'perhaps ' if uncertain else ''}{what}"
        return done.value


async def keep(what: str) -> None:
    with effect():
        raise NoRoom(what)


@saga_step(compensation=give_back, retry_delay=DELAY)
async def take(what: str) -> str:
    with effect() as done:
        done.value = what
        return what


@saga_step(compensation=give_back_when_let, retry_delay=DELAY)
def take_slowly(what: str) -> str:
    with effect() as done:
        done.value = what
        return what


@saga_step(compensation=give_back_perhaps, retry_delay=DELAY)
async def reach_for(what: str) -> str:
    """Takes for ever."""
    with effect():
        await asyncio.sleep(FOR_EVER)
    return what


@saga_step(compensation=keep, retry_delay=DELAY)
async def take_for_good(what: str) -> str:
    with effect() as done:
        done.value = what
        return what


@activity(retry=RETRY)
async def refuse(what: str) -> str:
    with effect():
        raise NoRoom(what)


@activity(retry=RETRY)
async def wait_for_ever(what: str) -> str:
    with effect():
        await asyncio.sleep(FOR_EVER)
    return what


@workflow
async def scopes() -> None:
    """One that fails; one that ends well, and stays; one in another; one whose undoing fails; and the body, which fails at last."""
    await take("room")
    try:
        async with saga():
            await take("flight")
            await take("car")
            await refuse("hotel")
    except NoRoom:
        pass
    async with saga():
        await take("insurance")
    await _nested()
    try:
        async with saga():
            await take_for_good("stuck")
            await take("stuck's neighbour")
            await refuse("hotel")
    except WorkflowCompensationError as error:
        told = f"{error.compensated} without {error.failed_compensations}"
    async with saga():  # the body's failure is this block's
        await take(told)
        await refuse("everything")


async def _nested() -> None:
    try:
        async with saga():
            await take("outer")
            try:
                async with saga():
                    await asyncio.gather(take("left"), take("right"))
                    raise ValueError("inner")
            except ValueError:
                await take("late")
            raise LookupError("outer")
    except LookupError:
        pass


@workflow
async def withdrawn() -> None:
    """Is cancelled while it undoes."""
    await take("room")
    async with saga():
        await take("flight")
        await take_slowly("car")
        await take("seat")
        await refuse("hotel")


@workflow
async def stopped() -> None:
    """Is cancelled in a scope in a scope, while a step is on its way."""
    async with saga():
        await take("outer")
        async with saga():
            await take("inner")
            await reach_for("maybe")


@workflow
async def kept() -> None:
    await take("key")
    async with saga():
        await take("desk")
        await take_slowly("lamp")
        await refuse("chair")


@workflow
async def cared() -> str:
    """Cancels its child while that undoes."""
    child = await kept.start()
    await now.wait()
    await child.cancel("enough")
    try:
        await child.result()
    except RunCancelledError as error:
        return f"cancelled: {error.reason}"
    return "not cancelled"


@workflow(retries=1, retry_delay=DELAY)
async def again() -> list[str]:
    """Fails once, and has undone its scope by then."""
    async with saga():
        cup = await take("cup")
        if durable.info().attempt == 1:
            await refuse("saucer")
    return [cup, "second"]


@workflow
async def carried(seen: list[Any]) -> list[Any]:
    """Cannot continue as new within a scope; does so behind it, and leaves an activity behind that nobody awaits any more."""
    try:
        async with saga():
            lent = await take("lent")
            try:
                continue_as_new([*seen, "lost"])
            except DefinitionError:
                seen = [*seen, "refused", lent]
            raise LookupError("back with it")
    except LookupError:
        seen = [*seen, durable.info().generation]
    if durable.info().generation == 1:
        left = asyncio.create_task(wait_for_ever("left"))
        await asyncio.sleep(DELAY)
        assert not left.done()
        continue_as_new(seen)
    return seen


# ─ asking for all of it ──


async def make(client: Client, start: Start) -> None:
    """Ask for all of them, again after a death; return when all are closed."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_run(client, start, scopes, "scopes"))
        group.create_task(_run(client, start, again, "again"))
        group.create_task(_run(client, start, carried, "carried", []))
        group.create_task(_withdraw(client, start))
        group.create_task(_stop(client, start))
        group.create_task(_care(client, start))


async def _run(client: Client, start: Start, workflow: Any, run_id: str, *arguments: Any) -> None:
    await start(workflow, *arguments, run_id=run_id)
    await demands.closed(client, run_id)


async def _withdraw(client: Client, start: Start) -> None:
    run = await start(withdrawn, run_id="withdrawn")
    if await _is_undoing(client, run.run_id) and not await demands.is_cancel_known(client, run.run_id):
        await run.cancel("enough")
    await _let_go(client, run.run_id)


async def _stop(client: Client, start: Start) -> None:
    run = await start(stopped, run_id="stopped")

    def is_reaching(_: object) -> bool:
        return any(line.key == "stopped@1/reach_for#1" for line in crash_ledger.read(_ledger()))

    if await _seen(client, run.run_id, is_reaching) and not await demands.is_cancel_known(client, run.run_id):
        await run.cancel("enough")
    await demands.closed(client, run.run_id)


async def _care(client: Client, start: Start) -> None:
    run = await start(cared, run_id="cared")
    await _seen(client, run.run_id, lambda entries: len(entries) > 1)  # so that its child is there
    if await _is_undoing(client, "cared@1/kept#1"):
        await run.signal(now, 1, id="now")
    await _let_go(client, "cared@1/kept#1")
    await demands.closed(client, run.run_id)


async def _is_undoing(client: Client, run_id: str) -> bool:
    """Wait until the compensation is asked for that somebody must let end; False if the run has closed."""

    def is_asked(entries: list[Any]) -> bool:
        names = [entry.name for entry in entries if isinstance(entry, ScheduleActivity)]
        return "take_slowly/compensation" in names

    return await _seen(client, run_id, is_asked)


async def _let_go(client: Client, run_id: str) -> None:
    """Let the compensation end, but not before the run has read that it is cancelled."""
    await _seen(client, run_id, lambda entries: any(isinstance(one, CancelRequested) for one in entries))
    gate(run_id).touch()
    await demands.closed(client, run_id)


async def _seen(client: Client, run_id: str, condition: Callable[[list[Any]], bool]) -> bool:
    """Wait until the condition holds for the run's journal; False if the run closed before."""
    async with asyncio.timeout(demands.WAIT_SECONDS):
        while not (await client.store.get_run(run_id)).status.is_closed:
            if condition(await client.events(run_id)):
                return True
            await asyncio.sleep(0.01)
    return False


def gate(run_id: str) -> Path:
    return Path(os.environ["CRASH_DIRECTORY"]) / f"let-{run_id.replace('/', '-')}"


def _ledger() -> Path:
    return Path(os.environ[crash_ledger.VARIABLE])
