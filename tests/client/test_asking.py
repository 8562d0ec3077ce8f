"""Questions to people: who sees them, who may answer, and that each takes one answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import durable
from durable import (
    ArgumentsError,
    Client,
    RunNotFoundError,
    WorkflowStateError,
    activity,
    scope,
    wait_answer,
    workflow,
)
from durable.store.records import Outgoing
from tests.support.workers import Calls, is_released, is_waiting, running_worker


@workflow
async def approval(order: str) -> Any:
    return await wait_answer("approve", f"Ship {order}?")


@workflow
async def twice() -> list[Any]:
    return [await wait_answer("ok", "First?"), await wait_answer("ok", "Second?")]


@workflow
async def both() -> list[Any]:
    async def ask(name: str) -> Any:
        with scope(name):
            return await wait_answer("ok", f"{name}?")

    return list(await asyncio.gather(ask("left"), ask("right")))


@workflow
async def impatient() -> list[Any]:
    first = await wait_answer("ok", "Quick?", timeout=0.05, default="nobody")
    return [first, await wait_answer("ok", "Now?")]


async def test_a_question_is_seen_and_answered_from_elsewhere(client: Client) -> None:
    """In `Run.prompt`, in what the run waits for, and in the inbox, until it is answered."""
    async with running_worker(client, approval, warm_us=0):
        run = await client.start(approval, "o-7", run_id="r")
        await is_released(run)

        seen = await run.describe()
        (asked,) = await client.asks()
        assert seen.status == "waiting"
        assert seen.prompt == "Ship o-7?"
        assert seen.waiting_on[0].text == 'answer to "approve": Ship o-7?'
        assert (asked.run_id, asked.workflow, asked.name, asked.prompt, asked.id) == (
            "r",
            "approval",
            "approve",
            "Ship o-7?",
            "r@1/approve#1",
        )
        assert asked.since is not None

        await client.answer("r", {"by": "ann"})

        assert await run.result() == {"by": "ann"}
        seen = await run.describe()
        assert seen.prompt is None
        assert [(e.kind, e.name, e.status, e.result) for e in seen.journal] == [
            ("signal", "approve", "received", {"by": "ann"})
        ]
        assert await client.asks() == []


async def test_a_signal_of_its_name_answers_too(client: Client) -> None:
    """Also one that was sent before anybody was asked."""
    async with running_worker(client, twice):
        run = await client.start(twice, run_id="r")
        await run.signal("ok", 1)
        await run.signal("ok", 2)

        assert await run.result() == [1, 2]


async def test_a_question_takes_one_answer(client: Client) -> None:
    """The second is refused, also before the first was read; so is an answer to a closed run, or to one that asks nothing."""
    run = await client.start(approval, "o", run_id="r")
    with pytest.raises(WorkflowStateError, match="asks nothing of anybody"):
        await run.answer(1)
    async with running_worker(client, approval, warm_us=0):
        await is_released(run)
    await run.answer(1)

    with pytest.raises(WorkflowStateError, match="question 'approve' of run 'r' was answered already"):
        await run.answer(2)
    async with running_worker(client, approval):
        assert await run.result() == 1
    with pytest.raises(WorkflowStateError, match="completed"):
        await run.answer(3)
    with pytest.raises(RunNotFoundError):
        await client.answer("nobody", 1)


async def test_an_answer_is_for_one_question(client: Client) -> None:
    """A question that is asked again is another one: the answer to the first does not answer it."""
    async with running_worker(client, twice):
        run = await client.start(twice, run_id="r")
        await is_waiting(run, "signal")
        await client.answer("r", "a", ask="r@1/ok#1")
        await run_asks(client, "r@1/ok#2")

        with pytest.raises(WorkflowStateError, match="asks no question 'r@1/ok#1'"):
            await client.answer("r", "again", ask="r@1/ok#1")
        await run.answer("b")

        assert await run.result() == ["a", "b"]


async def test_several_questions_are_told_apart_by_name(client: Client) -> None:
    """By the whole path, or its end if that is clear."""
    async with running_worker(client, both):
        run = await client.start(both, run_id="r")
        await is_waiting(run, "signal")

        with pytest.raises(ArgumentsError, match="'left/ok', 'right/ok'"):
            await run.answer(0)
        with pytest.raises(ArgumentsError):
            await run.answer(0, name="ok")
        with pytest.raises(WorkflowStateError):
            await run.answer(0, name="middle")
        await run.answer(2, name="right/ok")
        await run_asks(client, "r@1/left/ok#1")
        await run.answer(1, name="ok")

        assert await run.result() == [1, 2]


async def test_an_expired_question_cannot_be_answered(client: Client) -> None:
    """And what was meant for it does not answer the next one of its name."""
    async with running_worker(client, impatient):
        run = await client.start(impatient, run_id="r")
        await run_asks(client, "r@1/ok#2")

        with pytest.raises(WorkflowStateError):
            await client.answer("r", "late", ask="r@1/ok#1")
        late = Outgoing(run_id="r", kind="signal", name="ok", data=b'"late"', message_id="answer:r@1/ok#1")
        await client.store.send_message(late, 0)
        await run.answer("in time")

        assert await run.result() == ["nobody", "in time"]
        told = [(e.name, e.status) for e in (await run.describe()).journal if e.kind == "signal"]
        assert told == [("ok", "cancelled"), ("ok", "received"), ("ok", "received")]


async def test_a_recorded_answer_survives_a_workflow_retry(client: Client) -> None:
    """It is part of the journal that is kept: nobody is asked again."""
    calls = Calls()

    @activity
    async def broken() -> None:
        if calls("broken") == 1:
            raise ValueError("no")

    @workflow(retries=1, retry_delay=0)
    async def retried() -> Any:
        answer = await wait_answer("ok", "Sure?")
        await broken()
        return answer

    async with running_worker(client, retried):
        run = await client.start(retried, run_id="r")
        await is_waiting(run, "signal")
        await run.answer("yes")

        assert await run.result() == "yes"


@workflow(retries=1, retry_delay=0)
async def starts_anew() -> Any:
    answer = await wait_answer("ok", "Sure?")
    if durable.info().attempt == 1:
        raise ValueError("no activity's failure: the journal is dropped")
    return answer


async def test_an_answer_is_delivered_again_when_the_journal_was_dropped(client: Client) -> None:
    """The same question of the next attempt has its answer already."""
    async with running_worker(client, starts_anew):
        run = await client.start(starts_anew, run_id="r")
        await is_waiting(run, "signal")
        await run.answer("yes")

        assert await run.result() == "yes"


async def test_the_default_database_is_asked_by_plain_functions(embedded: str) -> None:
    """`durable.inbox()` and `durable.answer(...)`."""
    run = await approval.start("o", run_id="r")
    await is_waiting(run, "signal")

    assert [one.id for one in await durable.inbox()] == ["r@1/approve#1"]
    await durable.answer("r", True)

    assert await run.result() is True


async def run_asks(client: Client, ask: str) -> None:
    """Wait until this is the only open question."""
    async with asyncio.timeout(60):
        while [one.id for one in await client.asks()] != [ask]:  # noqa: ASYNC110  # the database tells nobody
            await asyncio.sleep(0.005)
