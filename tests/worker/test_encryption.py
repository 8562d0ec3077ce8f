"""Encrypted runs: what they do is what plain ones do, and the database tells nobody what."""

from __future__ import annotations

import asyncio
import logging
import socket
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Encryption,
    PlatformFault,
    Retry,
    RunCancelledError,
    RunParkedError,
    Signal,
    UndecodableError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowFailedError,
    activity,
    activity_info,
    connect,
    continue_as_new,
    heartbeat,
    raise_complete_async,
    sleep,
    wait_condition,
    workflow,
)
from durable.worker import task_performing
from tests.support.workers import (
    Calls,
    file_of,
    is_released,
    is_waiting,
    running_worker,
    status_is,
    tampered,
    until,
)

KEY, OTHER = bytes(range(32)), bytes(32)
CANARY = "".join(("can", "ary-", "4711"))  # put together: tracebacks quote source lines

word = Signal("word", str)


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    """An open client of an empty database that is to be encrypted."""
    async with encrypted(url) as client:
        yield client


def encrypted(url: str, **keys: bytes) -> Client:
    return connect(url, durability="off", codec=Encryption(keys or {"k1": KEY}))


@activity(retry=Retry(max_attempts=3, initial=0.01))
async def echo(text: str) -> str:
    """Fail once, having told of the text."""
    if activity_info().attempt == 1:
        heartbeat(text, "first")
        error = ConnectionError(f"lost {text}")
        error.add_note(f"noted {text}")
        raise error from ValueError(text)
    details = activity_info().heartbeat_details
    return f"{details[0]}!"


@workflow
async def conversation(text: str) -> str:
    said = await echo(text)
    heard = await word.wait()
    return f"{said} {heard}"


@workflow
async def failing(text: str) -> None:
    raise LookupError(f"no {text}")


@workflow(retries=1, retry_delay=0.01)
async def second_chance(text: str) -> str:
    await echo(text)
    return await fragile(text)


chances = Calls()


@activity(retry=Retry(max_attempts=1))
async def fragile(text: str) -> str:
    if chances("fragile") == 1:
        raise RuntimeError(text)
    return text


@workflow
async def faulty(text: str) -> None:
    raise PlatformFault(text)


async def every_kind_of_payload(client: Client) -> None:
    """Run whatever stores a payload, with the canary in it."""
    talk = await client.start(conversation, CANARY, run_id="talk")
    await is_waiting(talk, "signal")
    await talk.signal(word, CANARY)
    assert await talk.result(60) == f"{CANARY}! {CANARY}"

    with pytest.raises(WorkflowFailedError, match=CANARY):
        await (await client.start(failing, CANARY, run_id="failing")).result(60)
    assert await (await client.start(second_chance, CANARY, run_id="twice")).result(60) == CANARY

    cancelled = await client.start(conversation, CANARY, run_id="cancelled")
    await is_waiting(cancelled, "signal")
    await cancelled.cancel(CANARY)
    with pytest.raises(RunCancelledError, match=CANARY):
        await cancelled.result(60)

    terminated = await client.start(conversation, CANARY, run_id="terminated")
    await is_waiting(terminated, "signal")
    await terminated.terminate(CANARY)
    with pytest.raises(RunCancelledError, match=CANARY):
        await terminated.result(60)

    parked = await client.start(faulty, CANARY, run_id="parked")
    await status_is(parked, "parked")
    assert CANARY in ((await parked.describe()).reason or "")
    await parked.signal(word, CANARY)  # stays in the inbox

    paused = await client.start(conversation, CANARY, run_id="paused", delay=3600)
    await client.pause("paused", CANARY)
    await client.pause_task_queue("elsewhere", CANARY)
    assert CANARY in (await paused.why()).text
    assert (await client.store.list_pauses())[0].reason == CANARY

    assert (await client.retry("failing")).generation == 2
    with pytest.raises(WorkflowFailedError, match=CANARY):
        await (await client.get("failing")).result(60)


def holders(directory: Path) -> list[str]:
    """Return the files that hold the canary, in any encoding it might have been stored in."""
    forms = [CANARY.encode(), CANARY.encode("utf-16-le"), CANARY.encode().hex().encode()]
    files = [path for path in directory.rglob("*") if path.is_file()]
    assert files
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


@pytest.mark.stores("sqlite")  # looks into files
async def test_no_payload_reaches_a_file(client: Client, tmp_path: Path) -> None:
    """Neither the database nor its log nor a backup, whatever happened to the runs."""
    async with running_worker(client, conversation, failing, second_chance, faulty):
        await every_kind_of_payload(client)
        await client.backup(tmp_path / "copy.db")
        assert holders(tmp_path) == []
    assert holders(tmp_path) == []
    async with connect(client.url) as plain:
        with pytest.raises(UndecodableError, match=r"encrypted \(key k1\), and no codec"):
            await (await plain.get("talk")).result(60)


@pytest.mark.stores("sqlite")  # looks into files
async def test_without_a_codec_the_canary_would_be_found(url: str, tmp_path: Path) -> None:
    """The search finds what is there: the test above means something."""
    chances.names.clear()
    async with connect(url) as plain:
        async with running_worker(plain, conversation, failing, second_chance, faulty):
            await every_kind_of_payload(plain)
        assert "durable.db" in {name.removesuffix("-wal") for name in holders(tmp_path)}


@pytest.mark.stores("sqlite")  # looks into files
async def test_answers_from_outside_are_encrypted(client: Client, tmp_path: Path) -> None:
    """Results, failures and heartbeats that come with a task token; by whoever has the codec."""
    tokens: list[str] = []

    @activity(retry=Retry(max_attempts=2, initial=0.01))
    async def asks() -> str:
        tokens.append(activity_info().task_token)
        if activity_info().attempt == 2:
            assert activity_info().heartbeat_details == (CANARY,)
        raise_complete_async()

    @workflow
    async def asked() -> str:
        return await asks()

    async with running_worker(client, asked):
        run = await client.start(asked, run_id="a")
        await until(lambda: tokens)
        await client.heartbeat_activity(tokens[0], CANARY)
        await client.fail_activity(tokens[0], ConnectionError(CANARY))
        await until(lambda: len(tokens) == 2)
        await client.complete_activity(tokens[1], CANARY)
        assert await run.result(60) == CANARY
        assert holders(tmp_path) == []


@pytest.mark.stores("sqlite")  # looks into files
async def test_updates_and_their_answers_are_encrypted(client: Client, tmp_path: Path) -> None:
    """What is asked, answered, refused and raised; also in the inbox, and where a life that is tried again takes it back."""

    @workflow(retries=1, retry_delay=0)
    class Talks:
        def __init__(self) -> None:
            self.heard: list[str] = []

        async def run(self) -> list[str]:
            await wait_condition(lambda: "end" in self.heard)
            await fragile("x")
            return self.heard

        @workflow.update
        def say(self, text: str) -> str:
            if text.endswith("?"):
                raise LookupError(f"no {text}")
            self.heard.append(text)
            return f"{text}!"

        @say.validator
        def check(self, text: str) -> None:
            if text.endswith("."):
                raise ValueError(f"not {text}")

    chances.names.clear()
    run = await client.start(Talks, run_id="t")
    asking = asyncio.create_task(run.update(Talks.say, CANARY, id="a", timeout=60))
    await until(lambda: _has_message(client, "t"))
    assert holders(tmp_path) == []
    async with running_worker(client, Talks):
        assert await asking == f"{CANARY}!"
        with pytest.raises(UpdateFailedError, match=f"no {CANARY}"):
            await run.update(Talks.say, f"{CANARY}?", timeout=60)
        with pytest.raises(UpdateRejectedError, match=f"not {CANARY}"):
            await run.update(Talks.say, f"{CANARY}.", timeout=60)
        await run.update(Talks.say, "end", timeout=60)
        assert await run.result(60) == [CANARY, "end"]
        async with encrypted(client.url) as other:
            assert await other.update("t", Talks.say, CANARY, id="a", timeout=60) == f"{CANARY}!"
    assert (await run.describe()).generation == 2
    assert holders(tmp_path) == []
    async with connect(client.url) as plain:
        with pytest.raises(UndecodableError, match=r"encrypted \(key k1\), and no codec"):
            await plain.update("t", "say", CANARY, id="a", timeout=60)


async def _has_message(client: Client, run_id: str) -> bool:
    return (await client.store.get_run(run_id)).unread > 0


async def test_a_retry_of_an_encrypted_run_is_run_now(url: str) -> None:
    """The wish itself holds nothing that were to be encrypted, and is no damaged answer."""

    @activity(retry=Retry(max_attempts=2, initial=3600, maximum=3600))
    async def tries() -> int:
        if activity_info().attempt == 1:
            raise ConnectionError("no line")
        return activity_info().attempt

    @workflow
    async def tried() -> int:
        return await tries()

    strict = connect(url, durability="off", codec=Encryption({"k1": KEY}, accept_plain=False))
    async with strict, running_worker(strict, tried):
        run = await strict.start(tried, run_id="t")
        await until(lambda: is_retrying(run))
        assert await run.retry_now() == ["tries"]
        assert await run.result(60) == 2


async def is_retrying(run: Any) -> bool:
    return any(one.status == "retrying" for one in (await run.describe()).journal)


async def test_an_answer_without_the_codec_parks_a_strict_run(client: Client, url: str) -> None:
    """It is no answer of ours: nothing of it is taken in until the codec accepts it."""
    tokens: list[str] = []

    @activity
    async def asks() -> str:
        tokens.append(activity_info().task_token)
        raise_complete_async()

    @workflow
    async def asked() -> str:
        return await asks()

    strict = connect(url, durability="off", codec=Encryption({"k1": KEY}, accept_plain=False))
    async with strict, running_worker(strict, asked):
        run = await strict.start(asked, run_id="a")
        await until(lambda: tokens)
        async with connect(url, durability="off") as plain:
            await plain.complete_activity(tokens[0], "forged")
        await status_is(run, "parked")
        assert "the answer of an activity: it is not encoded" in ((await run.describe()).reason or "")
    async with running_worker(client, asked):
        await client.resume("a")
        assert await (await client.get("a", asked)).result(60) == "forged"


async def test_what_a_parked_run_keeps_of_an_activity_is_encrypted(client: Client) -> None:
    """Like an answer from outside: sealed for its place, and read where it is taken in."""
    calls = Calls()

    @activity
    async def told() -> str:
        calls("told")
        return CANARY

    def telling(is_bad: bool) -> Any:
        @workflow
        async def tells() -> str:
            text = await told()
            if is_bad:
                socket.socket()
            return text

        return tells

    async with running_worker(client, telling(True)):
        run = await client.start(telling(True))
        await status_is(run, "parked")
    await run.resume()
    async with running_worker(client, telling(False)):
        assert await run.result(60) == CANARY
    assert calls.of("told") == 1


async def test_runs_wait_move_and_go_on_encrypted(client: Client) -> None:
    """What was released is replayed from sealed rows by another worker."""

    @workflow
    async def patient() -> list[str]:
        heard = [await word.wait(), await word.wait()]
        await sleep(0.01)
        return heard

    async with running_worker(client, patient, warm_us=0):
        run = await client.start(patient, run_id="p")
        await is_released(run)
        await run.signal(word, "one")
        await until(lambda: _unread(client, 0))
    await run.signal(word, "two")
    async with running_worker(client, patient):
        assert await run.result(60) == ["one", "two"]


async def _unread(client: Client, count: int) -> bool:
    return (await client.store.get_run("p")).unread == count


async def waiting_run(client: Client) -> Any:
    async with running_worker(client, conversation, warm_us=0):
        run = await client.start(conversation, "x", run_id="talk")
        await is_released(run)
    return run


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ({"k2": OTHER}, "key 'k1', which is not among the keys at hand (k2)"),
        ({"k1": OTHER}, "does not open with key 'k1'"),
        (None, "encrypted (key k1), and no codec was given"),
    ],
    ids=["missing key", "wrong key", "no codec"],
)
async def test_a_key_that_is_not_there_parks_the_run(
    client: Client, url: str, keys: dict[str, bytes] | None, reason: str
) -> None:
    """It is not failed, nothing of it is tried, the worker goes on; with the key it goes on, too."""
    run = await waiting_run(client)
    async with connect(url, durability="off", codec=None if keys is None else Encryption(keys)) as other:
        async with running_worker(other, conversation, failing):
            await run.signal(word, "y")
            await status_is(run, "parked")
            with pytest.raises(WorkflowFailedError):  # the worker lives
                await (await other.start(failing, "z")).result(60)
        why = await other.why("talk")
    assert (why.reason, reason in why.text) == ("parked", True), why.text
    with pytest.raises(RunParkedError, match="UndecodableError: turn 1, part 1"):
        await run.result(60)

    await run.resume()
    async with running_worker(client, conversation):
        assert await run.result(60) == "x! y"


async def test_an_activity_elsewhere_waits_for_a_worker_that_has_the_key(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it neither its arguments can be read nor what an earlier attempt has told: nothing fails, and nobody is charged."""
    monkeypatch.setattr(task_performing, "UNREADABLE_SECONDS", 0.05)
    told: list[tuple[int, tuple[Any, ...]]] = []
    has_told = asyncio.Event()

    @activity(task_queue="vault", retries=0)
    async def counts(limit: int) -> int:
        info = activity_info()
        told.append((info.attempt, info.heartbeat_details))
        if not info.heartbeat_details:
            heartbeat(limit - 2)
            has_told.set()
            await asyncio.sleep(3600)
        return int(info.heartbeat_details[0])

    @workflow
    async def asks() -> int:
        return await counts(5)

    async def was_tried_in_vain() -> bool:
        record = await client.store.get_run("r")
        (task,) = await client.store.read_tasks(record.pk, record.generation)
        return task.claim_no >= 3 and task.state == "ready"

    async with running_worker(client, asks):
        run = await client.start(asks, run_id="r")
        async with running_worker(client, activities=[counts], task_queue="vault") as worker:
            await has_told.wait()
            worker.stop(0)
        async with (
            connect(url, durability="off", codec=Encryption({"other": OTHER})) as stranger,
            running_worker(stranger, activities=[counts], task_queue="vault"),
        ):
            await until(was_tried_in_vain)
        async with running_worker(client, activities=[counts], task_queue="vault"):
            assert await run.result(60) == 3
    assert told == [(1, ()), (1, (3,))]


async def test_keys_rotate_under_open_runs(client: Client, url: str) -> None:
    """A run goes on under a new key; its first rows stay as they are and need the old one."""
    await waiting_run(client)
    async with encrypted(url, k2=OTHER, k1=KEY) as rotated:
        async with running_worker(rotated, conversation):
            await (await rotated.get("talk")).signal(word, "y")
            assert await (await rotated.get("talk")).result(60) == "x! y"
        assert [one.status for one in (await rotated.describe("talk")).journal] == ["completed", "received"]
    async with encrypted(url, k2=OTHER) as late:
        seen = await late.describe("talk")
        assert (seen.result, seen.input) == ("x! y", f"<unreadable: {_missing('k1', 'k2')}>")


def _missing(key: str, has: str) -> str:
    return f"it is encrypted with key {key!r}, which is not among the keys at hand ({has})"


async def test_rows_cannot_be_moved_within_a_run(client: Client) -> None:
    """A row copied over another is noticed when it is read, and parks the run."""

    @workflow
    async def steps() -> str:
        first, second = await word.wait(), await word.wait()
        return first + second + await word.wait()

    async with running_worker(client, steps, warm_us=0):
        run = await client.start(steps, run_id="s")
        for value in ("yes", "no"):
            await is_released(run)
            await run.signal(word, value)
            await until(lambda: _none_unread(client))
        await is_released(run)
    tampered(
        file_of(client), "UPDATE journal SET data = (SELECT data FROM journal WHERE turn = 2) WHERE turn = 3"
    )
    async with running_worker(client, steps):
        await run.signal(word, "!")
        await status_is(run, "parked")
    assert "turn 3, part 1" in ((await run.describe()).reason or "")


async def _none_unread(client: Client) -> bool:
    return (await client.store.get_run("s")).unread == 0


@pytest.mark.stores("sqlite")  # looks into files
async def test_a_retry_reads_the_rows_it_kept(client: Client) -> None:
    """They were written in an earlier generation. Rows of the failed attempt do not pass for those of the next."""
    chances.names.clear()
    async with running_worker(client, second_chance):
        run = await client.start(second_chance, "x", run_id="twice")
        assert await run.result(60) == "x"
        assert (await client.describe("twice@2")).attempts == 2
        assert (await client.describe("twice@1")).error == "RuntimeError: x"
    last = _turns(file_of(client), generation=1)[-1]
    assert last in _turns(file_of(client), generation=2)
    tampered(
        file_of(client),
        "UPDATE journal SET data = (SELECT data FROM journal AS later WHERE later.generation = 2 AND"
        " later.turn = journal.turn) WHERE generation = 1 AND turn = ?",
        parameters=(last,),
    )
    (told,) = (await client.describe("twice@1")).waiting_on
    assert "another generation" in told.text


def _turns(database: Path, *, generation: int) -> list[int]:
    with closing(sqlite3.connect(database)) as db:
        sql = "SELECT turn FROM journal WHERE generation = ? ORDER BY turn"
        return [row[0] for row in db.execute(sql, (generation,))]


@pytest.mark.parametrize("from_start", [True, False])
async def test_an_operators_retry_reads_the_rows_it_kept(client: Client, from_start: bool) -> None:
    """They are copied as they are, into the next generation and, from the start, into another epoch."""
    chances.names.clear()

    @workflow
    async def hopeful(text: str) -> str:
        return f"{await echo(text)} {await fragile(text)}"

    async with running_worker(client, hopeful):
        run = await client.start(hopeful, "x", run_id="h")
        with pytest.raises(WorkflowFailedError):
            await run.result(60)
        await client.retry("h", from_start=from_start)
        assert await (await client.get("h", hopeful)).result(60) == "x! x"
    assert [line.status for line in (await client.describe("h")).journal] == ["completed", "completed"]


@pytest.mark.stores("sqlite")  # looks into files
async def test_what_an_activity_starts_is_encrypted_too(client: Client, tmp_path: Path) -> None:
    """The default engine inside a worker uses its worker's database and codec."""

    @activity
    async def starts() -> str:
        return (await failing.enqueue(CANARY, run_id="inner")).run_id

    @workflow
    async def outer() -> str:
        return await starts()

    async with running_worker(client, outer):
        assert await (await client.start(outer)).result(60) == "inner"
    assert (await client.describe("inner")).input == {"text": CANARY}
    assert holders(tmp_path) == []


@pytest.mark.stores("sqlite")  # looks into files
async def test_the_default_engine_encrypts(url: str, tmp_path: Path) -> None:
    """`configure(codec=...)` is for plain scripts."""
    durable.configure(url, durability="off", codec=Encryption({"k1": KEY}))
    try:
        assert await asyncio.wait_for(quiet(CANARY), 60) == CANARY
        assert await asyncio.wait_for(quiet(CANARY, run_id="same"), 60) == CANARY
        assert await asyncio.wait_for(quiet(CANARY, run_id="same"), 60) == CANARY
    finally:
        durable.configure()
    assert holders(tmp_path) == []


@workflow
async def quiet(text: str) -> str:
    return text


@pytest.mark.parametrize("is_encrypted", [True, False])
async def test_no_payload_is_logged(url: str, caplog: pytest.LogCaptureFixture, is_encrypted: bool) -> None:
    """By a worker that runs, retries, fails, cancels and parks: at any level."""
    chances.names.clear()
    caplog.set_level(logging.DEBUG)
    async with (
        encrypted(url) if is_encrypted else connect(url) as client,
        running_worker(client, conversation, failing, second_chance, faulty),
    ):
        await every_kind_of_payload(client)
    texts = [logging.Formatter().format(record) for record in caplog.records]
    assert [text for text in texts if CANARY in text] == []


async def test_a_sealed_run_continues_as_new_with_its_unread_signals(client: Client) -> None:
    """The next input and the signals that move are sealed for their new place; a later start still finds the run."""

    @workflow
    async def reads(heard: str) -> str:
        heard = heard + await word.wait()
        if len(heard) < 3 * len(CANARY):
            continue_as_new(heard)
        return heard

    async with running_worker(client, reads):
        run = await client.start(reads, "", run_id="r")
        for _ in range(3):
            await run.signal(word, CANARY)
        assert await run.result(60) == CANARY * 3

        assert await (await client.start(reads, "", run_id="r")).result(60) == CANARY * 3
    assert (await client.describe("r@2")).input == {"heard": CANARY}
