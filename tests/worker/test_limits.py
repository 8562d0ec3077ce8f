"""Limits: what is too much is refused where it is asked for, by an error that names the run, the thing, its size and the limit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

import durable
from durable import (
    ArgumentsError,
    Client,
    DefinitionError,
    InboxFullError,
    JournalLimitError,
    Limits,
    PayloadError,
    PayloadTooLargeError,
    Retry,
    RunNotFoundError,
    Signal,
    WorkflowFailedError,
    activity,
    activity_info,
    connect,
    heartbeat,
    workflow,
)
from tests.support.workers import Calls, is_released, running_worker, status_is, until

SMALL = Limits(payload_bytes=1000, payload_bytes_warn=500)
TOO_MUCH, MUCH = "x" * 1000, "x" * 600

word = Signal("word", str)
calls = Calls()


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.names.clear()


@pytest.fixture
async def small(url: str) -> AsyncIterator[Client]:
    """A client with small limits."""
    async with connect(url, durability="off", limits=SMALL) as client:
        yield client


@activity
async def takes(text: str) -> int:
    calls("takes")
    return len(text)


@activity
async def gives(length: int) -> str:
    calls("gives")
    return "x" * length


@activity
def gives_in_a_thread(length: int) -> str:
    calls("gives")
    return "x" * length


@activity(retry=Retry(max_attempts=1))
async def beats(length: int) -> int:
    heartbeat("x" * length)
    return length


@workflow
async def asks(what: str, length: int) -> Any:
    match what:
        case "takes":
            return await takes("x" * length)
        case "gives":
            return await gives(length)
        case "gives in a thread":
            return await gives_in_a_thread(length)
        case "beats":
            return await beats(length)
    return "x" * length


@workflow
async def reads(text: str) -> int:
    return len(text)


@workflow
async def listens() -> str:
    return await word.wait()


async def test_an_input_that_is_too_large_is_refused_at_the_start(small: Client) -> None:
    """Nothing is written."""
    with pytest.raises(PayloadTooLargeError) as refused:
        await small.start(reads, TOO_MUCH, run_id="r")
    error = refused.value
    assert (error.run_id, error.what, error.size, error.limit) == (
        "r",
        "the input of workflow 'reads'",
        1011,
        1000,
    )
    assert "run 'r' takes 1,011 bytes, more than the limit of 1,000: store it elsewhere" in str(error)
    with pytest.raises(RunNotFoundError):
        await small.get("r")
    with pytest.raises(PayloadTooLargeError, match="a new run"):
        await small.start_many(reads, [("fits",), (TOO_MUCH,)])
    assert await small.list() == []


async def test_a_signal_that_is_too_large_is_refused_at_the_call(small: Client) -> None:
    """The run hears nothing of it."""
    async with running_worker(small, listens):
        run = await small.start(listens, run_id="r")
        with pytest.raises(PayloadTooLargeError, match=r"the signal 'word' of run 'r' takes 1,002 bytes"):
            await run.signal(word, TOO_MUCH)
        await run.signal(word, "short")
        assert await run.result(60) == "short"


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("takes", "the arguments of activity 'takes'"),
        ("gives", "the result of activity 'gives'"),
        ("gives in a thread", "the result of activity 'gives_in_a_thread'"),
        ("beats", "the heartbeat details of activity 'beats'"),
        ("returns", "the result"),
    ],
)
async def test_what_a_run_asks_for_is_refused_where_it_asks(small: Client, what: str, told: str) -> None:
    """As an error its code can handle; unhandled it fails the run. It is not retried: it would be as large again."""
    async with running_worker(small, asks):
        run = await small.start(asks, what, 1000, run_id="r")
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
        assert await (await small.start(asks, what, 100)).result(60) in (100, "x" * 100)
    cause = failed.value.__cause__
    assert isinstance(cause, PayloadTooLargeError)
    assert (cause.run_id, cause.what, cause.limit) == ("r", told, 1000)
    assert calls.of("takes") + calls.of("gives") <= 2  # one each for the run that fits


async def test_what_the_journal_holds_is_read_under_a_lower_limit(url: str) -> None:
    """A limit is for what is new: open runs go on."""

    @workflow
    async def patient() -> int:
        length = await takes(MUCH)
        return length + len(await gives(700)) + len(await word.wait())

    async with connect(url, durability="off") as client, running_worker(client, patient, warm_us=0):
        await is_released(await client.start(patient, run_id="p"))
    limits = Limits(payload_bytes=100)
    async with connect(url, durability="off", limits=limits) as client, running_worker(client, patient):
        run = await client.get("p", patient)
        await run.signal(word, "!")
        assert await run.result(60) == 1301


async def test_a_payload_that_is_nearly_too_large_is_warned_of(
    small: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """Once for each, by name and size; nothing of it is quoted."""
    caplog.set_level(logging.WARNING, "durable")
    async with running_worker(small, asks):
        await (await small.start(asks, "takes", 600, run_id="r")).result(60)
    assert [record.getMessage() for record in caplog.records] == [
        "run 'r': the arguments of activity 'takes' takes 611 bytes; the limit is 1,000"
    ]


async def test_unread_messages_are_bounded_and_cancels_pass(url: str) -> None:
    """The sender is told; what was taken in stays, and a repeated send of it is still recognised."""
    async with connect(url, durability="off", limits=Limits(unread_messages=3)) as client:
        run = await client.start(listens, run_id="r")
        for number in range(3):
            await run.signal(word, str(number), id=f"m{number}")
        with pytest.raises(InboxFullError, match=r"run 'r' has 3 unread messages, the limit") as refused:
            await run.signal(word, "3")
        assert (refused.value.run_id, refused.value.limit) == ("r", 3)
        await run.signal(word, "0", id="m0")
        await run.cancel("enough")
        assert (await client.store.get_run("r")).unread == 4
        async with running_worker(client, listens):
            await until(lambda: _is_closed(client))


async def _is_closed(client: Client) -> bool:
    return (await client.describe("r")).status.is_closed


# ─ the journal ──


@workflow
async def endless() -> int:
    total = 0
    while True:
        total += await takes("x")
        if total >= 30:
            return total


async def test_a_journal_at_its_limit_parks_the_run_and_keeps_all_of_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The results that are in are recorded, what was asked for next does not begin; with a higher limit it goes on."""
    limits = Limits(journal_events=20, journal_events_warn=10)
    async with connect(url, durability="off", limits=limits) as client, running_worker(client, endless):
        run = await client.start(endless, run_id="long")
        with pytest.raises(
            JournalLimitError, match=r"run 'long' has 20 events, and the limit is 20"
        ) as parked:
            await run.result(60)
        assert (parked.value.run_id, parked.value.events, parked.value.limit) == ("long", 20, 20)
        done = calls.of("takes")
        await run.resume()
        await status_is(run, "parked")  # at once: it is still as long
        assert calls.of("takes") == done
        assert (await run.why()).reason == "parked"
    warnings = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [text for text in warnings if "journal has" in text] == [
        "run 'long': its journal has 10 events; at 20 it will be parked"
    ]
    async with connect(url, durability="off") as client, running_worker(client, endless):
        run = await client.get("long", endless)
        await run.resume()
        assert await run.result(60) == 30
    assert calls.of("takes") == 30  # none twice


async def test_a_run_that_parks_at_the_limit_charges_no_attempt(url: str) -> None:
    """What was scheduled with the last turn never began: its first attempt is still its first."""
    numbers: list[int] = []

    @activity(retries=0)
    async def counts() -> int:
        numbers.append(activity_info().attempt)
        return 1

    @workflow
    async def wide() -> int:
        return sum(await asyncio.gather(*(counts() for _ in range(30))))

    limits = Limits(journal_events=20)
    async with connect(url, durability="off", limits=limits) as client, running_worker(client, wide):
        run = await client.start(wide, run_id="wide")
        await status_is(run, "parked")
        assert numbers == []
    async with connect(url, durability="off") as client, running_worker(client, wide):
        run = await client.get("wide", wide)
        await run.resume()
        assert await run.result(60) == 30
    assert numbers == [1] * 30


async def test_a_run_that_ends_at_the_limit_ends(url: str) -> None:
    """An end needs no room."""

    @workflow
    async def once() -> int:
        return await takes("x")

    limits = Limits(journal_events=4)
    async with connect(url, durability="off", limits=limits) as client, running_worker(client, once):
        assert await (await client.start(once)).result(60) == 1


# ─ names, depth, settings ──


async def test_names_are_short_and_errors_are_too(client: Client) -> None:
    """A hundred thousand characters are refused without being repeated."""
    long = "n" * 100_000
    run = await client.start(listens, run_id="r")
    for call in (
        client.start(listens, run_id=long),
        client.start(listens, task_queue=long),
        run.signal(long, "x"),
        run.signal(word, "x", id=long),
        run.cancel(long),
    ):
        with pytest.raises(ArgumentsError) as refused:
            await call
        assert len(str(refused.value)) < 300
    for define in (lambda: activity(name=long), lambda: Signal(long), lambda: workflow(name=long)):
        with pytest.raises(DefinitionError) as wrong:
            define()
        assert len(str(wrong.value)) < 500


async def test_depth_is_refused_at_every_call(client: Client) -> None:
    """It is a property of the value, not of the stack that happens to be there."""
    deep: Any = []
    for _ in range(300):
        deep = [deep]

    @workflow
    async def anything(value: Any) -> Any:
        return value

    run = await client.start(listens, run_id="r")
    with pytest.raises(PayloadError, match="nested more than 256"):
        await client.start(anything, deep)
    with pytest.raises(PayloadError, match="nested more than 256"):
        await run.signal("word", deep)


async def test_the_default_engine_has_limits(url: str) -> None:
    """`configure(limits=...)` is for plain scripts."""
    durable.configure(url, durability="off", limits=SMALL)
    try:
        with pytest.raises(PayloadTooLargeError):
            await reads(TOO_MUCH)
        assert await reads("short") == 5
    finally:
        durable.configure()


async def test_a_worker_may_have_limits_of_its_own(client: Client) -> None:
    """They are for what its runs ask for; a client's are for what it sends."""
    async with running_worker(client, asks, limits=SMALL):
        run = await client.start(asks, "takes", 1000)
        with pytest.raises(WorkflowFailedError, match="limit of 1,000"):
            await run.result(60)


@pytest.mark.parametrize("wrong", [{"payload_bytes": 0}, {"journal_events": -1}, {"unread_messages": 1.5}, {"payload_bytes": True}, {"payload_bytes": 1 << 40}])  # fmt: skip
def test_limits_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    """When they are set."""
    with pytest.raises(DefinitionError, match="limit"):
        Limits(**wrong)


def test_a_warning_comes_before_the_limit() -> None:
    """A limit below the default of its warning takes that along."""
    limits = Limits(payload_bytes=100, journal_events=7)

    assert (limits.payload_bytes_warn, limits.journal_events_warn) == (100, 7)
