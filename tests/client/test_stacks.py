"""The durable stack: rebuilt by replay in this process, without a worker, without effects; and what is known without code."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from durable import (
    ArgumentsError,
    Client,
    NonDeterminismError,
    RunHandle,
    Signal,
    Standpoint,
    UndecodableError,
    WorkflowVersionMismatchError,
    activity,
    patched,
    sleep,
    wait_condition,
    workflow,
)
from tests.support.workers import Calls, file_of, is_waiting, running_worker, tampered

approved = Signal("approved", bool)
calls = Calls()


@activity
async def hang(number: int) -> int:
    calls("hang")
    await asyncio.sleep(600)
    return number


@activity
async def note(number: int) -> int:
    calls("note")
    return number


async def ask() -> bool:
    async with asyncio.timeout(500):
        return await approved.wait()


async def take(queue: asyncio.Queue[int]) -> int:
    return await queue.get()


@workflow
async def many(number: int) -> None:
    number = await note(number)
    async with asyncio.TaskGroup() as group:
        group.create_task(ask(), name="approver")
        group.create_task(take(asyncio.Queue()), name="taker")
        group.create_task(sleep(3600), name="sleeper")
        group.create_task(wait_condition(lambda: False), name="watcher")
        await hang(number)


@workflow(name="many")
async def changed(number: int) -> None:
    await sleep(1)


@workflow(name="many", version=2)
async def newer(number: int) -> None:
    await sleep(1)


@workflow
async def other() -> None:
    if patched("side"):
        await approved.wait()


async def a_standing_run(client: Client) -> RunHandle[Any]:
    """Start `many`, bring it to rest, and take its worker away."""
    calls.names.clear()
    async with running_worker(client, many) as worker:
        run = await client.start(many, 3)
        await is_waiting(run, "signal")
        worker.stop(0)
    return run


def lines(one: Standpoint) -> list[tuple[str, str]]:
    return [(frame.function, frame.text) for frame in one.frames]


async def test_where_every_coroutine_stands(client: Client) -> None:
    """In the order of their creation; frames of the author only; and nothing ran for it."""
    run = await a_standing_run(client)
    before, ran = await run.events(), list(calls.names)

    stack = await run.stack(many)

    assert (stack.run_id, stack.workflow, stack.is_rebuilt) == (run.run_id, "many", True)
    assert [(one.task, one.awaits, lines(one)) for one in stack.standpoints] == [
        ("main", "activity hang", [("many", "await hang(number)")]),
        ("approver", 'signal "approved"', [("ask", "return await approved.wait()")]),
        ("taker", "Queue.get", [("take", "return await queue.get()")]),
        ("sleeper", "timer 3600s", [("", 'group.create_task(sleep(3600), name="sleeper")')]),
        (
            "watcher",
            "condition",
            [("", 'group.create_task(wait_condition(lambda: False), name="watcher")')],
        ),
    ]
    begin = (await run.describe()).journal[0].finished_at
    assert begin is not None
    assert [one.since for one in stack.standpoints] == [begin, begin, None, begin, begin]
    assert stack.standpoints[3].due == begin + timedelta(seconds=3600)
    assert (await run.events(), calls.names) == (before, ran)


class Mute:
    """Has no text."""

    def __repr__(self) -> str:
        raise ValueError("no words")


@workflow
async def knows(number: int) -> None:
    seen = [await note(number)]
    mute, long = Mute(), "x" * 5000
    seen.append(await note(number + 1))
    await approved.wait()
    del mute, long


async def test_what_a_waiting_run_knows_is_asked_without_a_worker(client: Client) -> None:
    """The variables of every frame, as replay makes them; only if they are asked for, and never more than can be read."""
    calls.names.clear()
    async with running_worker(client, knows) as worker:
        run = await client.start(knows, 3)
        await is_waiting(run, "signal")
        worker.stop(0)
    ran = list(calls.names)

    ((frame,),) = [one.frames for one in (await run.stack(knows, values=True)).standpoints]
    ((bare,),) = [one.frames for one in (await run.stack(knows)).standpoints]

    assert (frame.function, frame.values["number"], frame.values["seen"]) == ("knows", "3", "[3, 4]")
    assert frame.values["mute"].startswith("<Mute ")
    assert len(frame.values["long"]) <= 200
    assert bare.values == {}
    assert calls.names == ran


async def test_without_the_code_the_journal_tells_what_is_open(client: Client) -> None:
    """One line each: the one that asked."""
    run = await a_standing_run(client)
    stack = await run.stack()

    assert not stack.is_rebuilt
    assert [(one.awaits, len(one.frames)) for one in stack.standpoints] == [
        ("activity hang", 1),
        ("timer 500s", 1),
        ('signal "approved"', 1),
        ("timer 3600s", 1),
        ("condition", 1),
    ]
    assert all("test_stacks.py:" in one.frames[0].source for one in stack.standpoints)


async def test_code_that_is_not_the_runs(client: Client) -> None:
    """Another workflow, another version, a changed body: each says so."""
    run = await a_standing_run(client)
    for wrong, error in (
        (other, ArgumentsError),
        (newer, WorkflowVersionMismatchError),
        (changed, NonDeterminismError),
    ):
        with pytest.raises(error):
            await run.stack(wrong)  # type: ignore[arg-type]  # any workflow
    assert (await run.stack(many)).is_rebuilt


async def test_a_run_that_stands_nowhere(client: Client) -> None:
    """It has not begun, or it is over."""
    run = await client.start(many, 1)
    for workflow_of_it in (None, many):
        assert (await run.stack(workflow_of_it)).standpoints == ()
    await run.terminate()
    for workflow_of_it in (None, many):
        assert (await run.stack(workflow_of_it)).standpoints == ()


async def test_a_damaged_journal(client: Client) -> None:
    """An error, whatever it is asked of."""
    run = await a_standing_run(client)
    tampered(file_of(client), "UPDATE journal SET data = x'7b'")
    for workflow_of_it in (None, many):
        with pytest.raises(UndecodableError):
            await run.stack(workflow_of_it)


async def test_a_patch_is_part_of_the_story(client: Client) -> None:
    """Where it took effect."""
    async with running_worker(client, other):
        run = await client.start(other)
        seen = await is_waiting(run, "signal")

    assert [(one.kind, one.name, one.status) for one in seen.journal] == [
        ("patch", "side", "completed"),
        ("signal", "approved", "waiting"),
    ]
    assert "test_stacks.py:" in seen.journal[0].source
