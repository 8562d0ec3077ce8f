"""Attempts that are completed from outside: one answer each, or none once their time is up; decided by the database."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from store_steps import NOW, SECOND, a_worker, claim, close, commit, signal, started_by, status, turn

from durable.errors import LeaseLostError, RunNotFoundError
from durable.journal.lifecycle import RunStatus
from durable.store import migrations
from durable.store.contract import Store
from durable.store.opening import open_store
from durable.store.records import (
    RETRY_NOW,
    ActivityAnswer,
    AttemptRow,
    Claim,
    Expiry,
    FailedAttempt,
    Park,
    Wait,
    answered_attempt,
)
from durable.store.sqlite import preparing, schema

DUE = NOW + 10 * SECOND


def opened(op: int = 1, attempt: int = 1, **changes: Any) -> AttemptRow:
    values: dict[str, Any] = {"completion": "open", "due_at_us": DUE, "limit_at_us": DUE}
    return AttemptRow(op=op, attempt=attempt, state="started", **{**values, **changes})


def answer(kind: Any = "completed", data: bytes = b"1", **changes: Any) -> ActivityAnswer:
    values: dict[str, Any] = {"run_id": "r", "epoch": 1, "generation": 1, "op": 1, "attempt": 1}
    return ActivityAnswer(kind=kind, data=data, **{**values, **changes})


async def with_open_attempt(store: Store, row: AttemptRow | None = None) -> tuple[int, Claim]:
    """Return a worker and its claim of run "r", whose first attempt is open."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "r")
    assert await commit(store, worker, turn(held, 1, attempts=[row or opened()])) == ["committed"]
    return worker, held


async def attempts(store: Store, held: Claim) -> list[AttemptRow]:
    return await store.read_attempts(held.pk, held.generation)


async def expire(
    store: Store, worker: int, held: Claim, now_us: int = DUE, row: AttemptRow | None = None
) -> Expiry:
    return await store.expire_attempt(
        worker,
        pk=held.pk,
        generation=held.generation,
        claim_no=held.claim_no,
        attempt=row or opened(),
        now_us=now_us,
    )


async def test_an_answer_is_a_message_of_its_run(store: Store) -> None:
    """Counted as any, with the attempt in its id; the row says that there is one."""
    worker, held = await with_open_attempt(store)

    assert await store.answer_activity(answer(data=b'"yes"'), NOW) == "taken"

    (message,) = await store.read_inbox(worker)
    assert (message.kind, message.name, message.data, message.msg) == ("activity", "completed", b'"yes"', 1)
    assert answered_attempt(message.message_id) == (1, 1, 1)
    (row,) = await attempts(store, held)
    assert row == opened(completion="answered")


async def test_an_answer_wakes_a_run_that_rests(store: Store) -> None:
    """A wait that was decided without it is refused (P2)."""
    worker, held = await with_open_attempt(store)
    rest = turn(held, None, after=Wait(due_at_us=DUE))
    assert await commit(store, worker, rest) == ["committed"]
    await store.answer_activity(answer(), NOW)
    (again,) = await claim(store, worker)

    assert [message.kind for message in again.inbox] == ["activity"]
    assert again.attempts == [opened(completion="answered")]
    refused = turn(again, None, after=Wait(due_at_us=None), seen=0)
    assert await commit(store, worker, refused) == ["stayed"]


async def test_only_the_first_answer_is_taken(store: Store) -> None:
    """Of either kind; also after it was consumed, and its attempt is long over."""
    worker, held = await with_open_attempt(store)
    answers = [store.answer_activity(answer(data=str(number).encode()), NOW) for number in range(5)]
    assert sorted(await asyncio.gather(*answers)) == ["duplicate"] * 4 + ["taken"]
    (message,) = await store.read_inbox(worker)
    consuming = turn(held, 2, consumed=[message.inbox_id], seen=1, attempts_done=[1])
    assert await commit(store, worker, consuming) == ["committed"]

    assert await store.answer_activity(answer(), NOW) == "duplicate"
    assert await store.answer_activity(answer("failed"), NOW) == "duplicate"
    assert await store.read_inbox(worker) == []


@pytest.mark.parametrize(
    "changes",
    [{"op": 2}, {"attempt": 2}, {"generation": 2}, {"epoch": 2}, {"attempt": 0}],
    ids=["op", "later", "life", "former run", "none"],
)
async def test_an_answer_for_another_attempt_is_not_taken(store: Store, changes: dict[str, Any]) -> None:
    """Each token is good for one attempt of one life."""
    worker, _ = await with_open_attempt(store)

    assert await store.answer_activity(answer(**changes), NOW) == "closed"
    assert await store.read_inbox(worker) == []


async def test_an_attempt_without_a_row_or_between_two_takes_no_answer(store: Store) -> None:
    """There is nothing that waits for one."""
    worker, held = await with_open_attempt(store, AttemptRow(op=1, attempt=1, state="backoff", due_at_us=DUE))
    assert await store.answer_activity(answer(), NOW) == "closed"
    await commit(store, worker, turn(held, 2, attempts_done=[1]))
    assert await store.answer_activity(answer(), NOW) == "closed"
    with pytest.raises(RunNotFoundError):
        await store.answer_activity(answer(run_id="x"), NOW)


async def test_an_attempt_whose_code_still_runs_takes_an_answer(store: Store) -> None:
    """Tokens are given out before the function ends."""
    await with_open_attempt(store, AttemptRow(op=1, attempt=1, state="started"))

    assert await store.answer_activity(answer(), NOW) == "taken"


async def test_closed_and_parked_runs(store: Store) -> None:
    """A closed one takes no answers; a parked one keeps them until it goes on."""
    worker, held = await with_open_attempt(store)
    await commit(store, worker, turn(held, None, after=Park(reason="x")))
    assert await store.answer_activity(answer(), NOW) == "taken"
    assert await status(store, "r") is RunStatus.PARKED
    await store.terminate_run("r", None, NOW)
    assert await store.answer_activity(answer(attempt=2), NOW) == "closed"

    other = await started_by(store, worker, "s")
    await commit(store, worker, turn(other, 1, attempts=[opened()]))
    await close(store, worker, other, number=2)
    assert await store.answer_activity(answer(run_id="s"), NOW) == "closed"


async def test_heartbeats_move_the_instant_within_its_limit(store: Store) -> None:
    """Their details stay in the row; they are no messages and no answers."""
    row = opened(due_at_us=NOW + SECOND, limit_at_us=NOW + 3 * SECOND, heartbeat_us=SECOND)
    worker, held = await with_open_attempt(store, row)

    for after, due in ((0, 1), (1, 2), (2, 3), (2.5, 3)):
        at = NOW + round(after * SECOND)
        assert await store.answer_activity(answer("heartbeat", f"[{after}]".encode()), at) == "taken"
        (now,) = await attempts(store, held)
        assert (now.due_at_us, now.details) == (NOW + due * SECOND, f"[{after}]".encode())
    assert await store.read_inbox(worker) == []
    assert await store.answer_activity(answer(), NOW) == "taken"
    assert await store.answer_activity(answer("heartbeat", b"[]"), NOW) == "duplicate"


async def test_heartbeats_without_a_timeout_move_nothing(store: Store) -> None:
    _, held = await with_open_attempt(store, opened(due_at_us=None, limit_at_us=None))
    assert await store.answer_activity(answer("heartbeat", b"[1]"), NOW) == "taken"
    assert await attempts(store, held) == [opened(due_at_us=None, limit_at_us=None, details=b"[1]")]


async def test_an_open_attempt_expires_when_its_instant_has_come(store: Store) -> None:
    """Not before; and then it takes no answer any more."""
    worker, held = await with_open_attempt(store)
    assert await expire(store, worker, held, DUE - 1) == Expiry(expired=False, due_at_us=DUE)
    assert await expire(store, worker, held) == Expiry(expired=True)
    assert await expire(store, worker, held) == Expiry(expired=True), "asked again after a lost reply"

    assert await store.answer_activity(answer(), NOW) == "closed"
    assert await store.answer_activity(answer("heartbeat", b"[]"), NOW) == "closed"
    assert await attempts(store, held) == [opened(completion="expired")]


async def test_what_was_answered_does_not_expire(store: Store) -> None:
    """Also if the worker wrote "open" after the answer had come."""
    worker, held = await with_open_attempt(store)
    await store.answer_activity(answer(), NOW)
    await commit(store, worker, turn(held, 2, attempts=[opened()]))

    assert await expire(store, worker, held) == Expiry(expired=False)


async def test_only_its_owner_lets_an_attempt_expire(store: Store) -> None:
    """Fenced like any write of a worker; a run that was taken away is no reason to die."""
    worker, held = await with_open_attempt(store)
    other = await a_worker(store, "other")
    assert await expire(store, other, held) == Expiry(expired=False)
    await store.retire_worker(worker)
    with pytest.raises(LeaseLostError):
        await expire(store, worker, held)
    assert await attempts(store, held) == [opened()]


async def test_signals_and_answers_share_one_order(store: Store) -> None:
    worker, _ = await with_open_attempt(store)
    await signal(store, "r")
    await store.answer_activity(answer(), NOW)
    await signal(store, "r")

    assert [(m.msg, m.kind) for m in await store.read_inbox(worker)] == [
        (1, "signal"),
        (2, "activity"),
        (3, "signal"),
    ]


async def test_the_inbox_survives_its_migration(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages stay, and no id of the old table is ever given out again (P3), also if the inbox was empty."""
    every = migrations.load_migrations("durable.store.sqlite")
    before = [one.name for one in every].index("completions")
    with monkeypatch.context() as older:
        for module in (schema, preparing):
            older.setattr(module, "load_migrations", lambda package: every[:before])
        older.setattr(preparing, "_refuse_foreign_workers", lambda *given: None)  # asks in today's words
        store = await open_store(f"sqlite:///{database}", durability="off")
        await store.close()
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        # As the code of that time wrote it: today's needs today's columns.
        db.execute(
            "INSERT INTO run (id, run_id, workflow, version, task_queue, status, msg_seq, ready_at_us, created_at_us) "
            "VALUES (1, 'r', 'w', 1, 'default', 0, 3, 1, 1)"
        )
        db.execute("INSERT INTO run_payload (run, generation, input) VALUES (1, 1, x'5b5d')")
        for msg in (1, 2, 3):
            db.execute(
                "INSERT INTO inbox (run, msg, kind, name, data, sent_at_us) VALUES (1, ?, 'signal', 'go', x'31', 1)",
                (msg,),
            )
        db.execute("DELETE FROM inbox WHERE id > 1")
    store = await open_store(f"sqlite:///{database}", durability="off")
    try:
        await signal(store, "r")
        worker = await a_worker(store)
        await claim(store, worker)
        assert [(m.inbox_id, m.msg) for m in await store.read_inbox(worker)] == [(1, 1), (4, 4)]
    finally:
        await store.close()


# ─ hurried on ──


def backed_off(attempt: int = 1) -> AttemptRow:
    return AttemptRow(op=1, attempt=attempt, state="backoff", due_at_us=DUE, failure=b'{"type":"x"}')


def failed(attempt: int = 1, **changes: Any) -> FailedAttempt:
    values: dict[str, Any] = {"run_id": "r", "generation": 1, "op": 1, "attempt": attempt}
    return FailedAttempt(**{**values, **changes})


async def test_the_attempt_after_a_failed_one_is_made_due(store: Store) -> None:
    """In its row, which outlives its worker, and its worker is told; what the row says of the failure stays. Once, however often."""
    worker, held = await with_open_attempt(store, backed_off())

    assert [await store.retry_now(failed(), NOW) for _ in range(3)] == [True] * 3

    (row,) = await attempts(store, held)
    assert row.due_at_us is not None
    assert row.due_at_us < DUE
    assert (row.state, row.attempt, row.failure) == ("backoff", 1, b'{"type":"x"}')
    (message,) = await store.read_inbox(worker)
    assert (message.kind, message.name, answered_attempt(message.message_id)) == (
        "activity",
        RETRY_NOW,
        (1, 1, 1),
    )


async def test_only_what_waits_for_its_next_attempt_is_hurried_on(store: Store) -> None:
    """Not one that runs, nor after another attempt than is meant, nor of another generation, nor of a closed run: nothing is written."""
    worker, held = await with_open_attempt(store, backed_off(attempt=2))

    for other in (failed(), failed(2, op=2), failed(2, generation=2)):
        assert not await store.retry_now(other, NOW)
    running = AttemptRow(op=1, attempt=3, state="started", due_at_us=NOW)
    assert await commit(store, worker, turn(held, None, attempts=[running])) == ["committed"]
    assert not await store.retry_now(failed(3), NOW)
    assert await store.read_inbox(worker) == []

    assert await commit(store, worker, turn(held, None, attempts=[backed_off(3)])) == ["committed"]
    await close(store, worker, held, number=2)
    assert not await store.retry_now(failed(3), NOW)
    with pytest.raises(RunNotFoundError):
        await store.retry_now(failed(run_id="other"), NOW)
