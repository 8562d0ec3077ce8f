"""Recorded runs are carried away as JSON and replayed with today's code: in a test, offline, or all that a test has made."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import msgspec
import pytest

import durable
from durable import (
    Client,
    NonDeterminismError,
    RecordedRun,
    Signal,
    UndecodableError,
    Workflow,
    activity,
    wait_answer,
    workflow,
)
from durable.errors import UnknownWorkflowError, WorkflowVersionMismatchError
from durable.journal.events import SignalReceived
from durable.testing import Environment, Journals, replay

go = Signal("go", dict[str, int])
_calls = itertools.count()


@activity
async def price(item: str) -> float:
    return 1.5


@activity
async def fail(item: str) -> None:
    raise ValueError(f"no {item} «here»")


@workflow
async def shopping(items: list[str]) -> float:
    total = sum(await asyncio.gather(*(price(item) for item in items)))
    try:
        await fail(items[0])
    except ValueError:
        await asyncio.sleep(3600)
    answer = await wait_answer("size", "Which size?")
    extra = await go.wait(timeout=60, default={"extra": 1})
    return total + extra["extra"] + answer + (0 if durable.patched("p") else 1)


@workflow(name="shopping")
async def shopping_changed(items: list[str]) -> float:
    await asyncio.sleep(1)
    return await price(items[0])


@workflow(name="shopping", version=2)
async def shopping_2(items: list[str]) -> float:
    return 0


@workflow
async def summing(numbers: list[int]) -> int:
    return sum(numbers)


@workflow(name="summing")
async def failing(numbers: list[int]) -> int:
    raise ValueError("today's code fails")


@workflow(name="summing")
async def going_on(numbers: list[int]) -> int:
    await go.wait()
    return 0


@workflow(name="summing")
async def summing_otherwise(numbers: list[int]) -> int:
    return sum(numbers) + 1


@workflow
async def erratic() -> None:
    for _ in range(1 + next(_calls) % 2):
        await price("x")


async def recorded_shopping(env: Environment) -> RecordedRun:
    run = await shopping.start(["a", "b"], run_id="s-1")
    await env.sleep(4000)
    await run.answer(40, name="size")
    assert await run.result() == 44
    return await env.client.recorded("s-1")


async def test_a_run_survives_its_way_through_json(tmp_path: Path) -> None:
    """With every kind of entry: the very same events, and a replay from the file."""
    async with Environment() as env:
        recorded = await recorded_shopping(env)
    file = tmp_path / "s-1.json"
    file.write_text(recorded.to_json())

    assert RecordedRun.from_json(file.read_text()) == recorded
    replayed = replay(file, shopping)
    assert (replayed.events, replayed.warnings) == (len(recorded.events), ())


async def test_changed_code_is_found_with_both_source_lines() -> None:
    async with Environment() as env:
        recorded = await recorded_shopping(env)

    with pytest.raises(NonDeterminismError) as found:
        replay(recorded, shopping_changed)
    text = str(found.value)
    assert "activity 'price' (call 1), asked for at testing/test_replay.py:" in text
    assert "timer of 1 s, asked for at testing/test_replay.py:" in text
    assert "await asyncio.sleep(1)" in text


@pytest.mark.parametrize(("changed", "told"), [(failing, "ends failed"), (going_on, "wait for signal 'go'")])
async def test_another_end_of_a_closed_run_is_found(changed: Workflow[..., int], told: str) -> None:
    """A worker never replays a closed run; whoever changes code still wants to know."""
    async with Environment() as env:
        await summing([1, 2], run_id="sum")
        recorded = await env.client.recorded("sum")

    with pytest.raises(NonDeterminismError, match=told):
        replay(recorded, changed)


async def test_another_result_of_a_closed_run_is_a_warning() -> None:
    async with Environment() as env:
        await summing([1, 2], run_id="sum")
        recorded = await env.client.recorded("sum")

    assert replay(recorded, summing_otherwise).warnings == (
        "today's code returns another result; the journal's stands",
    )


async def test_messages_nobody_read_are_no_difference() -> None:
    """A signal that came while the last turn was made stands before the end."""
    async with Environment() as env:
        await summing([1], run_id="sum")
        recorded = await env.client.recorded("sum")
    *before, end = recorded.events
    late = SignalReceived(at=end.at, name="go", value=msgspec.Raw(b"{}"), msg=1)  # type: ignore[union-attr]

    assert replay(msgspec.structs.replace(recorded, events=(*before, late, end)), summing).warnings == ()


async def test_code_that_is_not_there_is_told_of() -> None:
    async with Environment() as env:
        recorded = await recorded_shopping(env)

    with pytest.raises(UnknownWorkflowError, match="shopping"):
        replay(recorded, summing)
    with pytest.raises(WorkflowVersionMismatchError):
        replay(recorded, shopping_2)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"v": 2}', '{"v": 1, "events": [{}]}', "\x00"])
def test_what_is_no_recorded_run_is_refused(text: str) -> None:
    with pytest.raises(UndecodableError):
        RecordedRun.from_json(text)


async def test_an_environment_replays_what_it_recorded() -> None:
    """Code that cannot be replayed is found where it is tested."""
    with pytest.raises(NonDeterminismError):
        async with Environment():
            await erratic()


async def test_a_workflow_that_is_defined_again_is_left_out() -> None:
    """As in a notebook, or a pattern that is configured anew: nobody knows which of them drove a run."""

    def defined(activities: int) -> Workflow[[], None]:
        @workflow
        async def again() -> None:
            for _ in range(activities):
                await price("x")

        return again

    async with Environment():
        await defined(1)()
        await defined(2)()


async def test_the_fixture_gives_an_environment(durable_env: Environment) -> None:
    async with durable_env as env:
        assert await summing([1, 2]) == 3
        assert [run.workflow async for run in env.client.recorded_runs()] == ["summing"]


async def test_every_journal_of_a_test_is_replayed(client: Client) -> None:
    """`durable_journals` does this after the test; here its parts."""
    journals = Journals()
    with journals.kept():
        async with durable.Worker(client, erratic, summing):
            await (await client.start(summing, [1], run_id="one")).result()
            await (await client.start(erratic, run_id="two")).result()
        await client.close()

    assert {run.run_id for run in journals.runs} == {"one", "two"}
    with pytest.raises(NonDeterminismError):
        journals.replay()


async def test_runs_are_read_page_by_page(client: Client) -> None:
    """With filters, and no more than was asked for."""
    await client.start_many(summing, [([n],) for n in range(1200)])

    assert len({run.run_id async for run in client.recorded_runs()}) == 1200
    assert len([run async for run in client.recorded_runs(limit=1100)]) == 1100
    assert [run async for run in client.recorded_runs(workflow="other")] == []
