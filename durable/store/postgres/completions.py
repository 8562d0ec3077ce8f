"""Activities completed from outside: the answer and the limit meet in the attempt's row. One function per transaction.

Both lock the run's row first, so whichever comes second sees what the first one wrote.
"""

from __future__ import annotations

from typing import Final

from durable.store.postgres.committing import lease_lost
from durable.store.postgres.connection import Session
from durable.store.postgres.reading import run_not_found
from durable.store.records import ActivityAnswer, AnswerVerdict, AttemptRow, Expiry, answer_id
from durable.store.sqlite.codes import is_closed

SKIPPED_US: Final = 50_000  # before an attempt is looked at again whose run somebody's open transaction holds


async def answer_activity(db: Session, answer: ActivityAnswer, now_us: int | None) -> AnswerVerdict:
    """Make the first answer of an attempt a message of its run."""
    row = await db.row("lock_address_of_run", run_id=answer.run_id, now_us=now_us)
    if row is None:
        raise await run_not_found(db, answer.run_id)
    run, generation, code, _, _ = row
    message_id = answer_id(answer.generation, answer.op, answer.attempt)
    if await db.fetch("find_message_id", run=run, message_id=message_id):
        return "duplicate"
    key = {"run": run, "generation": answer.generation, "op": answer.op}
    attempt = await db.row("started_attempt", **key, attempt=answer.attempt)
    if is_closed(code) or generation != answer.generation or attempt is None or attempt[0] == "expired":
        return "closed"
    if answer.kind == "heartbeat":
        await db.fetch("beat_attempt", **key, details=answer.data, now_us=now_us)
        return "taken"
    await db.fetch("settle_attempt", **key, completion="answered")
    await db.fetch(
        "send_message",
        run_id=answer.run_id,
        kind="activity",
        name=answer.kind,
        data=answer.data,
        message_id=message_id,
        unread_max=None,
        now_us=now_us,
    )
    return "taken"


async def expire_attempt(
    db: Session,
    worker: int,
    slot: int,
    *,
    pk: int,
    claim_no: int,
    generation: int,
    attempt: AttemptRow,
    now_us: int | None,
) -> Expiry:
    """Mark an open attempt expired if its instant has come and nobody has answered it. Fenced."""
    if not await db.fetch("hold_fence", worker=worker, slot=slot):
        raise lease_lost(worker)
    now = int(await db.value("read_instant", now_us=now_us))
    if not await db.fetch("hold_run", run=pk, worker=worker, claim_no=claim_no):
        is_ours = await db.value("is_owned", run=pk, worker=worker, claim_no=claim_no)
        return Expiry(expired=False, due_at_us=now + SKIPPED_US if is_ours else None)
    key = {"run": pk, "generation": generation, "op": attempt.op}
    message_id = answer_id(generation, attempt.op, attempt.attempt)
    row = await db.row("started_attempt", **key, attempt=attempt.attempt)
    if row is None or await db.fetch("find_message_id", run=pk, message_id=message_id):
        return Expiry(expired=False)
    completion, due_at_us = row
    if completion == "open" and due_at_us is not None and due_at_us > now:
        return Expiry(expired=False, due_at_us=due_at_us)
    await db.fetch("settle_attempt", **key, completion="expired")
    return Expiry(expired=True)
