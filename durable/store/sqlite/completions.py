"""Attempts that somebody outside has a say in: answered, or hurried on. All meet in the attempt's row. One function per transaction."""

from __future__ import annotations

import sqlite3

from durable.store.codes import is_closed
from durable.store.records import (
    RETRY_NOW,
    ActivityAnswer,
    AnswerVerdict,
    AttemptRow,
    Expiry,
    FailedAttempt,
    Outgoing,
    answer_id,
    retry_id,
)
from durable.store.sqlite.committing import require_alive
from durable.store.sqlite.inbox import put_message
from durable.store.sqlite.messages import address
from durable.store.sqlite.opened import Opened
from durable.store.statements import Statements


class Completions(Opened):
    """The verbs about attempts that somebody outside completes, or hurries on."""

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        verdict = await self._write_grouped(lambda db: answer_activity(db, self._sql, answer, now_us))
        if verdict == "taken" and answer.kind != "heartbeat":
            self._wakeups.tell(others=True)
        return verdict

    async def retry_now(self, failed: FailedAttempt, now_us: int) -> bool:
        is_moved = await self._write_grouped(lambda db: retry_now(db, self._sql, failed, now_us))
        if is_moved:
            self._wakeups.tell(others=True)
        return is_moved

    async def expire_attempt(
        self, worker_id: int, *, pk: int, generation: int, claim_no: int, attempt: AttemptRow, now_us: int
    ) -> Expiry:
        return await self._write(
            lambda db: expire_attempt(
                db,
                self._sql,
                worker_id,
                pk=pk,
                claim_no=claim_no,
                generation=generation,
                attempt=attempt,
                now_us=now_us,
            )
        )


def answer_activity(
    db: sqlite3.Connection, sql: Statements, answer: ActivityAnswer, now_us: int
) -> AnswerVerdict:
    """Make the first answer of an attempt a message of its run."""
    run, generation, code, _ = address(db, sql, answer.run_id)
    life = {"run": run, "generation": answer.generation, "epoch": answer.epoch}
    if db.execute(sql["has_life"], life).fetchone() is None:
        return "closed"
    message_id = answer_id(answer.generation, answer.op, answer.attempt)
    if db.execute(sql["find_message_id"], {"run": run, "message_id": message_id}).fetchone() is not None:
        return "duplicate"
    key = {"run": run, "generation": answer.generation, "op": answer.op}
    row = db.execute(sql["started_attempt"], {**key, "attempt": answer.attempt}).fetchone()
    if is_closed(code) or generation != answer.generation or row is None or row[0] == "expired":
        return "closed"
    if answer.kind == "heartbeat":
        db.execute(sql["beat_attempt"], {**key, "details": answer.data, "now_us": now_us})
        return "taken"
    db.execute(sql["settle_attempt"], {**key, "completion": "answered"})
    message = Outgoing(
        run_id=answer.run_id, kind="activity", name=answer.kind, data=answer.data, message_id=message_id
    )
    put_message(db, sql, run, message, now_us)
    return "taken"


def retry_now(db: sqlite3.Connection, sql: Statements, failed: FailedAttempt, now_us: int) -> bool:
    """Move the instant at which the next attempt is due, of a task or of the run's own worker, which is told."""
    run, generation, code, _ = address(db, sql, failed.run_id)
    if is_closed(code) or generation != failed.generation:
        return False
    key = {"run": run, "generation": generation, "op": failed.op, "attempt": failed.attempt, "now_us": now_us}
    if db.execute(sql["hasten_task"], key).rowcount:
        return True
    if not db.execute(sql["hasten_attempt"], key).rowcount:
        return False
    message_id = retry_id(generation, failed.op, failed.attempt)
    if db.execute(sql["find_message_id"], {"run": run, "message_id": message_id}).fetchone() is None:
        message = Outgoing(
            run_id=failed.run_id, kind="activity", name=RETRY_NOW, data=b"null", message_id=message_id
        )
        put_message(db, sql, run, message, now_us)
    return True


def expire_attempt(
    db: sqlite3.Connection,
    sql: Statements,
    worker: int,
    *,
    pk: int,
    claim_no: int,
    generation: int,
    attempt: AttemptRow,
    now_us: int,
) -> Expiry:
    """Mark an open attempt expired if its instant has come and nobody has answered it."""
    require_alive(db, sql, worker)
    if db.execute(sql["is_owned"], (pk, worker, claim_no)).fetchone() is None:
        return Expiry(expired=False)
    key = {"run": pk, "generation": generation, "op": attempt.op}
    message_id = answer_id(generation, attempt.op, attempt.attempt)
    answered = db.execute(sql["find_message_id"], {"run": pk, "message_id": message_id}).fetchone()
    row = db.execute(sql["started_attempt"], {**key, "attempt": attempt.attempt}).fetchone()
    if row is None or answered is not None:
        return Expiry(expired=False)
    completion, due_at_us = row
    if completion == "open" and due_at_us is not None and due_at_us > now_us:
        return Expiry(expired=False, due_at_us=due_at_us)
    db.execute(sql["settle_attempt"], {**key, "completion": "expired"})
    return Expiry(expired=True)
