"""The store behind a codec: nothing passes it in clear, and nothing that was moved or changed passes it at all."""

from __future__ import annotations

import inspect
import sqlite3
import typing
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from store_steps import NOW, a_worker, claim, commit, request, turn

from durable import Encryption, RunConflictError, UndecodableError
from durable.payloads.codec import sealed_fault
from durable.store import records
from durable.store.contract import Store
from durable.store.records import ActivityAnswer, AttemptRow, Park
from durable.store.sealing import PLAIN_VERBS, SealedStore, sealed

KEY = bytes(range(32))

# Every payload that crosses the contract. A field that is new here needs a place of its own in seals.py.
PAYLOADS = {
    "ActivityAnswer.data",
    "Park.failure",
    "StartRequest.input",
    "RunRecord.input",
    "RunRecord.result",
    "RunRecord.failure",
    "JournalRow.data",
    "AttemptRow.failure",
    "AttemptRow.details",
    "ChildCancel.data",
    "Message.data",
    "Outgoing.data",
    "Claim.input",
    "Close.result",
    "Close.failure",
    "NextGeneration.failure",
    "NextGeneration.input",
    "NextGeneration.parts",
    "Redelivery.data",
    "Reopen.parts",
    "TurnCommit.parts",
    "NewTask.args",
    "Task.args",
    "Task.failure",
    "Task.details",
    "TaskBeat.details",
    "TaskEnd.data",
    "TaskEnd.failure",
    "TaskEnd.details",
}


@pytest.fixture
def encrypted(store: Store) -> Store:
    return sealed(store, Encryption({"k1": KEY}))


def fields_of_bytes() -> Iterator[str]:
    for name, record in vars(records).items():
        if (
            isinstance(record, type)
            and issubclass(record, msgspec.Struct)
            and record.__module__.startswith(records.__name__)
        ):
            for field, hint in typing.get_type_hints(record).items():
                if "class 'bytes'" in str(hint) or "bytes |" in str(hint) or "[bytes" in str(hint):
                    yield f"{name}.{field}"


def test_every_field_of_bytes_is_known_to_be_a_payload() -> None:
    """Whoever adds one is reminded of the codec."""
    assert set(fields_of_bytes()) == PAYLOADS


def test_every_verb_is_sealed_or_known_to_carry_no_payload() -> None:
    """A verb that is on neither list would not exist behind a codec."""
    verbs = {
        name
        for name, verb in vars(Store).items()
        if name[0] != "_" and (inspect.isfunction(verb) or isinstance(verb, property))
    }
    verbs |= typing.get_type_hints(Store).keys()

    assert {name for name in vars(SealedStore) if name in verbs} | PLAIN_VERBS == verbs
    assert not PLAIN_VERBS & set(vars(SealedStore))


def test_without_a_codec_the_store_is_bare(store: Store) -> None:
    """No codec costs nothing."""
    assert sealed(store, None) is store


async def test_inputs_are_compared_as_they_were_given(encrypted: Store) -> None:
    """Equal inputs are stored as different bytes: attaching needs the codec's help."""
    (first,) = await encrypted.start_runs([request("x", input=b"[1]")], NOW)
    (again,) = await encrypted.start_runs([request("x", input=b"[1]")], NOW)

    assert (first.how, again.how, again.run.input) == ("started", "attached", b"[1]")
    with pytest.raises(RunConflictError, match="other input"):
        await encrypted.start_runs([request("x", input=b"[2]")], NOW)


async def test_an_input_of_another_key_cannot_be_compared(store: Store) -> None:
    """That is no conflict: nobody knows. Nothing is written."""
    await sealed(store, Encryption({"k1": KEY})).start_runs([request("x")], NOW)
    other = sealed(store, Encryption({"k2": KEY}))

    with pytest.raises(UndecodableError, match=r"'x' exists and its input cannot be compared.*key 'k1'"):
        await other.start_runs([request("new"), request("x")], NOW)
    assert await store.find_run_ids("new") == []


async def test_what_was_stored_before_the_codec_is_read(store: Store) -> None:
    """Unless the codec was told to take nothing but its own."""
    await store.start_runs([request("x", input=b"[1]")], NOW)
    codecs = [Encryption({"k1": KEY}, accept_plain=accepts) for accepts in (True, False)]
    lenient, strict = [(await sealed(store, codec).get_run("x")).input for codec in codecs]

    assert lenient == b"[1]"
    assert "not encoded" in (sealed_fault(strict) or "")


async def test_a_payload_moved_to_another_run_does_not_open(encrypted: Store, database: Path) -> None:
    """Its place is the run it was written for."""
    await encrypted.start_runs([request("a", input=b"[1]"), request("b", input=b"[2]")], NOW)
    rewrite(
        database, "UPDATE run_payload SET input = (SELECT input FROM run_payload WHERE run = 1) WHERE run = 2"
    )

    assert (await encrypted.get_run("a")).input == b"[1]"
    assert "moved" in (sealed_fault((await encrypted.get_run("b")).input) or "")


async def test_reasons_are_sealed_too(encrypted: Store, store: Store) -> None:
    """They are the words of whoever terminated the run; the store's own journal row holds them as it got them."""
    await encrypted.start_runs([request("x")], NOW)
    await encrypted.terminate_run("x", "the CANARY died", NOW)

    assert (await encrypted.get_run("x")).reason == "the CANARY died"
    assert b"CANARY" in (await encrypted.read_journal(1, 1))[-1].data
    assert "CANARY" not in ((await store.get_run("x")).reason or "")
    assert b"CANARY" not in (await store.read_journal(1, 1))[-1].data


async def test_a_codec_that_breaks_costs_the_payload_only(store: Store) -> None:
    """What it raises is told by its type: its text might quote what it was given."""

    class Broken(Encryption):
        def decode(self, data: bytes, place: bytes, key_id: str) -> bytes:
            raise RuntimeError("CANARY")

    codec = Broken({"k1": KEY})
    await sealed(store, codec).start_runs([request("x")], NOW)
    record = await sealed(store, codec).get_run("x")

    assert sealed_fault(record.input) == "the codec 'aes-256-gcm' raised RuntimeError"


def rewrite(database: Path, statement: str, *parameters: Any) -> None:
    """Change rows behind the library's back."""
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute(statement, parameters)


async def test_answers_from_outside_and_faults_are_sealed(store: Store) -> None:
    """Whoever reads the database sees neither what an activity was completed with nor what a run stopped on."""
    encrypted = sealed(store, Encryption({"k1": KEY}))
    await encrypted.start_runs([request("x")], NOW)
    worker = await a_worker(encrypted)
    (held,) = await claim(encrypted, worker)
    mark = AttemptRow(op=1, attempt=1, state="started", completion="open")
    await commit(encrypted, worker, turn(held, None, attempts=[mark]))

    beat = ActivityAnswer(
        run_id="x", epoch=1, generation=1, op=1, attempt=1, kind="heartbeat", data=b'["canary"]'
    )
    done = msgspec.structs.replace(beat, kind="completed", data=b'"canary"')
    assert await encrypted.answer_activity(beat, NOW) == "taken"
    assert await encrypted.answer_activity(done, NOW) == "taken"

    (row,) = await encrypted.read_attempts(held.pk, 1)
    (bare_row,) = await store.read_attempts(held.pk, 1)
    (message,) = await encrypted.read_inbox(worker)
    (bare_message,) = await store.read_inbox(worker)
    assert (row.details, message.data) == (b'["canary"]', b'"canary"')
    assert b"canary" not in (bare_row.details or b"") + bare_message.data

    park = Park(reason="it holds canary", failure=b'{"type":"x","message":"canary"}')
    await commit(encrypted, worker, turn(held, None, after=park))
    opened, bare = await encrypted.get_run("x"), await store.get_run("x")
    assert (opened.reason, opened.failure) == (park.reason, park.failure)
    assert b"canary" not in (bare.failure or b"") + (bare.reason or "").encode()


async def test_rows_of_patterns_are_sealed_in_their_order(store: Store) -> None:
    """A state machine's moves are payloads, too; one that was moved is not opened."""
    encrypted = sealed(store, Encryption({"k1": KEY}))
    assert await encrypted.append_rows("moves", "a", after=0, rows=[b"[1]", b"[2]"], now_us=NOW)
    assert await encrypted.append_rows("moves", "a", after=2, rows=[b"[3]"], now_us=NOW)

    assert await encrypted.read_rows("moves", "a", after=0, limit=9) == [b"[1]", b"[2]", b"[3]"]
    assert await encrypted.read_rows("moves", "a", after=1, limit=1) == [b"[2]"]
    bare = await store.read_rows("moves", "a", after=0, limit=9)
    assert not {b"[1]", b"[2]", b"[3]"} & set(bare)

    assert await store.append_rows("moves", "b", after=0, rows=bare[1:2], now_us=NOW)
    (moved,) = await encrypted.read_rows("moves", "b", after=0, limit=9)
    assert sealed_fault(moved) is not None
