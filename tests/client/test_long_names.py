"""A hundred thousand characters where a name belongs: refused at the call, or found nowhere, with an error that can be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import pytest

from durable import Client, Signal, Worker, activity, workflow
from durable.errors import ArgumentsError, DefinitionError, RunNotFoundError

LONG: Final = "x" * 100_000
go = Signal("go", int)


@workflow
async def waits() -> int:
    return await go.wait()


Call = Callable[[Client], Awaitable[Any]]

REFUSED: Final[dict[str, Call]] = {
    "run id": lambda client: client.start(waits, run_id=LONG),
    "run id of a call": lambda client: waits(run_id=LONG),
    "queue of a start": lambda client: client.start(waits, task_queue=LONG),
    "signal": lambda client: client.signal("r", LONG, 1),
    "run id of a signal": lambda client: client.signal(LONG, go, 1),
    "message id": lambda client: client.signal("r", go, 1, id=LONG),
    "reason of a cancel": lambda client: client.cancel("r", LONG),
    "reason of a termination": lambda client: client.terminate("r", LONG),
    "reason of a pause": lambda client: client.pause("r", LONG),
    "run id of a cancel": lambda client: client.cancel(LONG),
    "run id of a retry": lambda client: client.retry(LONG),
    "run id of a deletion": lambda client: client.delete(LONG),
    "paused queue": lambda client: client.pause_task_queue(LONG),
    "paused worker": lambda client: client.pause_worker(LONG),
    "pattern of run ids": lambda client: client.list(run_id=LONG),
    "pattern of stars": lambda client: client.list(workflow="*" * 100_000),
    "task token": lambda client: client.complete_activity(LONG, 1),
    "key of rows": lambda client: client.append_rows("t", LONG, [b"1"], after=0),
}
FOUND_NOWHERE: Final[dict[str, Call]] = {
    "get": lambda client: client.get(LONG),
    "describe": lambda client: client.describe(LONG),
    "generation": lambda client: client.describe("r@" + "9" * 100_000),
    "events": lambda client: client.events(LONG),
    "why": lambda client: client.why(LONG),
    "stack": lambda client: client.stack(LONG),
}
EMPTY: Final[dict[str, Call]] = {
    "queue of a list": lambda client: client.list(task_queue=LONG),
    "completion": lambda client: client.complete_run_id(LONG),
    "paused queue": lambda client: client.resume_task_queue(LONG),
    "paused worker": lambda client: client.resume_worker(LONG),
    "rows": lambda client: client.read_rows("t", LONG),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_would_be_stored_is_refused(client: Client, what: str) -> None:
    """By an error of ours that does not repeat all of it; nothing is written."""
    await client.start(waits, run_id="r")
    before = await client.describe("r")

    with pytest.raises(ArgumentsError) as refused:
        await REFUSED[what](client)

    assert len(str(refused.value)) < 300
    assert await client.list() == [before]
    assert await client.pauses() == []


@pytest.mark.parametrize("what", FOUND_NOWHERE)
async def test_what_is_looked_for_is_not_there(client: Client, what: str) -> None:
    """The error names it, cut short."""
    with pytest.raises(RunNotFoundError) as unknown:
        await FOUND_NOWHERE[what](client)

    assert len(str(unknown.value)) < 300


@pytest.mark.parametrize("what", EMPTY)
async def test_what_cannot_exist_fits_nothing(client: Client, what: str) -> None:
    """No error: an answer."""
    assert not await EMPTY[what](client)


@pytest.mark.parametrize(
    "define",
    [
        lambda client: workflow(name=LONG)(waits.function),
        lambda client: activity(name=LONG)(lambda: None),
        lambda client: workflow(task_queue=LONG),
        lambda client: Signal(LONG, int),
        lambda client: Worker(client, waits, name=LONG),
        lambda client: Worker(client, waits, task_queue=LONG),
    ],
)
async def test_what_is_defined_is_refused(client: Client, define: Callable[[Client], object]) -> None:
    """Before anything can be started by it."""
    with pytest.raises(DefinitionError) as refused:
        define(client)

    assert len(str(refused.value)) < 300
