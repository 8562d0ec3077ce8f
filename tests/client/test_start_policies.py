"""Starts: what is decided in one transaction when the run id is taken, and what many starts have in common."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest

from durable import (
    ArgumentsError,
    Client,
    DefinitionError,
    PayloadError,
    RunCancelledError,
    RunConflictError,
    RunStatus,
    RunTerminatedError,
    Signal,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.support.workers import Calls, is_waiting, no_durability, running_worker

number = Signal("number", int)


@workflow
async def waits(value: int) -> int:
    return value + await number.wait()


@workflow
async def ends(value: int) -> int:
    if value < 0:
        raise ValueError(value)
    return value


async def test_an_open_run_is_attached_to_by_default(client: Client) -> None:
    """The same address, the same result."""
    first, second = await client.start(waits, 1, run_id="r"), await client.start(waits, 1, run_id="r")
    async with running_worker(client, waits):
        await first.signal(number, 1)
        assert [await run.result(60) for run in (first, second)] == [2, 2]
    assert len(await client.list()) == 1


async def test_an_open_run_can_be_a_conflict(client: Client) -> None:
    """With "fail" also for the same input."""
    await client.start(waits, 1, run_id="r")
    with pytest.raises(RunConflictError, match="open"):
        await client.start(waits, 1, run_id="r", if_open="fail")
    with pytest.raises(RunConflictError, match="other input"):
        await client.start(waits, 2, run_id="r")


async def test_an_open_run_can_be_replaced(client: Client) -> None:
    """Terminated and started anew, in one transaction; other input is no conflict then."""
    async with running_worker(client, waits):
        old = await client.start(waits, 1, run_id="r")
        await is_waiting(old, "signal")
        new = await client.start(waits, 2, run_id="r", if_open="terminate")
        await new.signal(number, 10)

        assert await new.result(60) == 12
        with pytest.raises(RunTerminatedError, match="replaced"):
            await old.result(60)
    assert [(await client.describe(f"r@{n}")).status for n in (1, 2)] == ["terminated", "completed"]


async def test_a_closed_run_is_returned_restarted_or_refused(client: Client) -> None:
    """As the policy says; a new one opens the next generation."""
    async with running_worker(client, ends):
        first = await client.start(ends, 1, run_id="r")
        await first.result(60)
        assert await (await client.start(ends, 1, run_id="r")).result(60) == 1
        with pytest.raises(RunConflictError):
            await client.start(ends, 2, run_id="r")
        with pytest.raises(RunConflictError):
            await client.start(ends, 1, run_id="r", if_closed="fail")
        with pytest.raises(RunConflictError):
            await client.start(ends, 2, run_id="r", if_closed="new_if_failed")
        assert await (await client.start(ends, 2, run_id="r", if_closed="new")).result(60) == 2
        assert await first.result(60) == 1
    assert (await client.describe("r")).generation == 2


@pytest.mark.parametrize("how", ["failed", "cancelled", "terminated"])
async def test_a_run_that_did_not_succeed_can_be_tried_again_under_its_id(client: Client, how: str) -> None:
    """ "new_if_failed" is for whatever is not completed."""
    async with running_worker(client, ends, waits):
        if how == "failed":
            run: Any = await client.start(ends, -1, run_id="r")
            with pytest.raises(WorkflowFailedError):
                await run.result(60)
        else:
            run = await client.start(waits, 1, run_id="r")
            await (run.cancel() if how == "cancelled" else run.terminate())
            with pytest.raises(RunCancelledError):
                await run.result(60)
        assert (await run.describe()).status == how

        assert await (await client.start(ends, 5, run_id="r", if_closed="new_if_failed")).result(60) == 5


async def test_a_signal_of_an_earlier_life_is_not_seen_in_the_next(client: Client) -> None:
    """A new start under a closed id begins with an empty inbox."""
    async with running_worker(client, waits):
        old = await client.start(waits, 1, run_id="r")
        await old.signal(number, 1)
        await old.result(60)
    old = await client.start(waits, 1, run_id="r", if_closed="new")
    await old.signal(number, 50)
    new = await client.start(waits, 1, run_id="r", if_open="terminate")
    async with running_worker(client, waits):
        await is_waiting(new, "signal")
        await new.signal(number, 3)
        assert await new.result(60) == 4


async def test_wrong_policies_and_delays_are_refused(client: Client) -> None:
    """Before anything is written."""
    wrong: list[dict[str, Any]] = [
        {"if_open": "queue?"},
        {"if_closed": "maybe"},
        {"run_id": ""},
        {"run_id": "a\x00"},
    ]
    for options in wrong:
        with pytest.raises(ArgumentsError):
            await client.start(ends, 1, **options)
    with pytest.raises(DefinitionError):
        await client.start(ends, 1, delay=-1)
    assert await client.list() == []


@pytest.mark.parametrize("queue", ["", "a\nb", 7])
async def test_a_task_queue_needs_a_name(client: Client, queue: Any) -> None:
    """A run on a queue that nobody can name would wait for ever."""
    with pytest.raises((ArgumentsError, DefinitionError)):
        await client.start(ends, 1, task_queue=queue)
    assert await client.list() == []


async def test_options_of_the_workflow_apply_to_clients_too(client: Client) -> None:
    """What the call itself says wins."""
    chosen = ends.options(run_id="chosen", task_queue="special")
    first, second = (
        await client.start(chosen, 1),
        await client.start(chosen, 2, run_id="other", task_queue="q"),
    )

    assert (first.run_id, second.run_id) == ("chosen", "other")
    assert {run.run_id: run.task_queue for run in await client.list()} == {"chosen": "special", "other": "q"}


async def test_many_starts_are_all_or_none(client: Client) -> None:
    """One bad input, one conflict: nothing of the batch is written."""
    await client.start(ends, 9, run_id="taken")
    with pytest.raises(ArgumentsError):
        await client.start_many(ends, [(1,), ("text",)])
    with pytest.raises(RunConflictError):
        await client.start_many(ends, [(1,), (2,)], run_ids=["new", "taken"])
    with pytest.raises(ArgumentsError):
        await client.start_many(ends, [(1,)], run_ids=["a", "b"])
    assert [run.run_id for run in await client.list()] == ["taken"]


async def test_a_thousand_starts_in_one_go(client: Client) -> None:
    """Handles in the order of the inputs."""
    async with running_worker(client, ends):
        runs = await client.start_many(ends, [(value,) for value in range(1000)])
        assert [await run.result(60) for run in runs] == list(range(1000))


async def test_racing_clients_make_one_run(client: Client, url: str) -> None:
    """Any number of clients, any timing, one run per id (I10)."""
    calls = Calls()

    @activity
    async def note(run_id: str) -> None:
        calls(run_id)

    @workflow
    async def once(name: str) -> str:
        await note(name)
        return name

    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(no_durability(url)) for _ in range(4)]
        await stack.enter_async_context(running_worker(client, once))
        names = [f"r{position % 25}" for position in range(200)]
        starts = [clients[i % 4].start(once, name, run_id=name) for i, name in enumerate(names)]
        runs = await asyncio.gather(*starts)

        assert [await run.result(60) for run in runs] == names
    assert Counter(calls.names) == Counter(set(names))


async def test_an_input_that_cannot_be_stored_is_refused_and_nothing_written(client: Client) -> None:
    """The error names the place."""

    @workflow
    async def takes(value: Any) -> None: ...

    with pytest.raises(PayloadError) as refusal:
        await client.start(takes, {"a": [{1, 2}, object()]})
    assert refusal.value.path.startswith("$")
    for value in (float("nan"), float("inf"), "\ud800"):
        with pytest.raises(PayloadError):
            await client.start(takes, value)
    assert await client.list() == []


async def test_awkward_but_storable_values_come_back_as_they_were(client: Client) -> None:
    """Depth, size, NUL, emptiness, names that look like ours."""

    @workflow
    async def echoes(value: Any) -> Any:
        return value

    deep: Any = "bottom"
    for _ in range(200):
        deep = [deep]
    values: list[Any] = [
        deep,
        "x" * 1_000_000,
        "a\x00b",
        {},
        [],
        "",
        {"$type": "x"},
        {"e": "completed"},
        2**53,
        -0.5,
    ]
    async with running_worker(client, echoes):
        for value in values:
            assert await (await client.start(echoes, value)).result(60) == value


async def test_run_ids_may_be_any_printable_text(client: Client) -> None:
    """Also text that looks like SQL, globs or paths."""
    ids = [
        "a'; DROP TABLE run; --",
        "*",
        "[x]",
        "../../etc/passwd",
        "naïve ☃",
        "a@b",
        "@1",
        "x" * 200,
        "%s{0}",
    ]
    async with running_worker(client, ends):
        for position, run_id in enumerate(ids):
            assert await (await client.start(ends, position, run_id=run_id)).result(60) == position
        for position, run_id in enumerate(ids):
            seen = await client.describe(run_id)
            assert (seen.run_id, seen.result, seen.status) == (run_id, position, RunStatus.COMPLETED)
