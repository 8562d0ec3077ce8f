"""Activities completed from outside: the answer and the limit meet in the attempt's row. One function per transaction."""

from __future__ import annotations

import sqlite3

from durable.store.records import ActivityAnswer, AnswerVerdict, AttemptRow, Expiry, answer_id
from durable.store.sqlite.codes import is_closed
from durable.store.sqlite.committing import require_alive
from durable.store.sqlite.messages import Outgoing, address, put_message
from durable.store.statements import Statements


def answer_activity(
    db: sqlite3.Connection, sql: Statements, answer: ActivityAnswer, now_us: int
) -> AnswerVerdict:
    """Make the first answer of an attempt a message of its run."""
    run, generation, code, _ = address(db, sql, answer.run_id)
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
