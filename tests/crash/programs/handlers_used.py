"""Handlers that functions register, handlers that fail, and questions to people, for the crash suite. Whatever dies, their runs end the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import durable
from durable import (
    Client,
    NonRetryableError,
    Retry,
    RunHandle,
    RunStatus,
    Signal,
    WorkflowStateError,
    activity,
    all_handlers_finished,
    continue_as_new,
    on_signal,
    wait_answer,
    wait_condition,
    workflow,
    workflow_of,
)
from tests.crash.programs import demands
from tests.crash.programs.demands import Start
from tests.crash.programs.scopes_used import take
from tests.crash.programs.workflows import fragile
from tests.support.crash_ledger import effect

RETRY: Final = Retry(initial=0.01, maximum=0.01)
told: Final = Signal("told", int)
EARLY: Final = 3  # messages before anybody drives the run
MESSAGES: Final = 8
OUTCOMES: Final = {
    "ears": RunStatus.COMPLETED,
    "offended": RunStatus.FAILED,
    "touchy": RunStatus.COMPLETED,
    "rude": RunStatus.FAILED,
    "asking": RunStatus.COMPLETED,
}
RESULTS: Final = {
    "ears": [list(range(MESSAGES)), [number * number for number in range(MESSAGES)]],
    "touchy": ["before", "after all touchy"],
    "asking": [["yes", "no"], "late", ["blue", "red"]],
}
ERRORS: Final = {"offended": "I do not hear 2", "rude": "declined rude"}  # the handlers' own
CLEANED: Final = {"offended": "offended goes", "rude": "rude goes"}  # noted on the way out
ANSWERS: Final = {
    "asking@1/first#1": "yes",
    "asking@1/first#2": "no",
    "asking@2/colour#1": "blue",
    "asking@2/colour#2": "red",
}


class Offended(NonRetryableError):
    """A handler's error."""


@activity(retry=RETRY)
async def square(number: int) -> int:
    with effect() as done:
        done.value = number * number
        return number * number


@activity(retry=RETRY)
async def note(what: str) -> str:
    with effect() as done:
        done.value = what
        return what


@activity(retry=RETRY)
async def decline(what: str) -> str:
    with effect():
        raise Offended(f"declined {what}")


@workflow
async def ears(heard: list[int], squares: list[int]) -> list[list[int]]:
    """Two generations or more, each with a handler of its own: an activity for each message."""
    before = len(heard)

    async def hear(number: int) -> None:
        heard.append(number)
        squares.append(await square(number))

    await note("nobody hears yet")
    on_signal(told, hear)
    await wait_condition(lambda: len(heard) >= min(before + 5, MESSAGES))
    await wait_condition(all_handlers_finished)
    if len(heard) < MESSAGES:
        continue_as_new(heard, squares)
    return [heard, sorted(squares)]


@workflow
async def offended() -> None:
    """A handler that fails: the workflow is cancelled where it waits, cleans up, and gives back."""

    def hear(number: int) -> None:
        if number == 2:
            raise Offended(f"I do not hear {number}")

    await take("seat")
    on_signal(told, hear)
    try:
        await wait_condition(lambda: False)
    except asyncio.CancelledError:
        await note("offended goes")
        raise


@workflow(retries=1, retry_delay=0.01)
class Touchy:
    """An activity of its handler fails for good, which is tried again with the workflow."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def run(self) -> list[str]:
        self.heard.append(await note("before"))
        await wait_condition(lambda: len(self.heard) == 2)
        return self.heard

    @workflow.signal
    async def tell(self, what: str) -> None:
        await wait_condition(lambda: bool(self.heard))  # what is on its way in a life that fails begins anew
        self.heard.append(await fragile(what))


@workflow
class Rude:
    """An activity of its handler fails for good, while the workflow sleeps."""

    def __init__(self) -> None:
        self.is_seated = False

    async def run(self) -> None:
        await take("chair")
        self.is_seated = True
        try:
            await durable.sleep(3600)
        finally:
            if not durable.is_evicting():
                await note("rude goes")

    @workflow.signal
    async def tell(self, what: str) -> None:
        await wait_condition(lambda: self.is_seated)
        await take("table")
        await decline(what)


@workflow
async def asking(said: list[Any] | None = None) -> list[Any]:
    """Two questions of a name, one after the other; one that nobody answers; in the next generation two at once."""
    if said is None:
        answers = [await wait_answer("first", "May I?"), await wait_answer("first", "Really?")]
        silence = await wait_answer("second", "Anybody?", timeout=0.03, default="late")
        continue_as_new([answers, silence])
    colours = await asyncio.gather(wait_answer("colour", "Which?"), wait_answer("colour", "And then?"))
    return [*said, [await note(one) for one in colours]]


# ─ asking for all of it ──


async def store_early(client: Client) -> None:
    """Store what is told before anybody drives it."""
    await _tell(await client.start(ears, [], [], run_id="ears"), range(EARLY))


async def make(client: Client, start: Start) -> None:
    """Ask for all of them, again after a death; return when all are closed."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_ears(client, start))
        group.create_task(_offended(client, start))
        group.create_task(_told(client, start, Touchy, "touchy"))
        group.create_task(_told(client, start, Rude, "rude"))
        group.create_task(_answered(client, start))


async def _ears(client: Client, start: Start) -> None:
    await _tell(await start(ears, [], [], run_id="ears"), range(EARLY, MESSAGES))
    await demands.closed(client, "ears")


async def _tell(run: RunHandle[Any], numbers: Iterable[int]) -> None:
    """Each message has an id: whoever begins again sends nothing twice."""
    for number in numbers:
        await run.signal(told, number, id=f"told-{number}")
        if number % 3 == 0:
            await asyncio.sleep(0.005)


async def _offended(client: Client, start: Start) -> None:
    await _tell(await start(offended, run_id="offended"), (1, 2))
    await demands.closed(client, "offended")


async def _told(client: Client, start: Start, workflow: type[Touchy | Rude], run_id: str) -> None:
    run = await start(workflow_of(workflow), run_id=run_id)
    await run.signal(workflow.tell, run_id, id="told")
    await demands.closed(client, run_id)


async def _answered(client: Client, start: Start) -> None:
    await start(asking, run_id="asking")
    async with asyncio.timeout(demands.WAIT_SECONDS):
        while not (await client.store.get_run("asking")).status.is_closed:
            for ask in await client.asks(workflow="asking"):
                try:
                    if ask.id in ANSWERS:
                        await client.answer("asking", ANSWERS[ask.id], ask=ask.id)
                except WorkflowStateError:
                    pass  # in an earlier life, or the run has not read it yet
            await asyncio.sleep(0.01)
