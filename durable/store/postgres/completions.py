"""Attempts that somebody outside has a say in: answered, or hurried on. All meet in the attempt's row. One function per transaction.

All lock the run's row first, so whichever comes second sees what the first one wrote.
"""

from __future__ import annotations

from typing import Final

from durable.store.codes import is_closed
from durable.store.postgres.connection import Session
from durable.store.postgres.inbox import put_message
from durable.store.postgres.opened import Opened
from durable.store.postgres.reading import run_not_found
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
from durable.store.refusals import lease_lost

SKIPPED_US: Final = 50_000  # before an attempt is looked at again whose run somebody's open transaction holds


class Completions(Opened):
    """The verbs about attempts that somebody outside completes, or hurries on."""

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        """Safe to repeat: the second answer of an attempt is a duplicate."""
        self._require_writable()
        verdict = await self._patiently(
            lambda: self._database.run(lambda db: answer_activity(db, answer, self._given(now_us)))
        )
        if verdict == "taken" and answer.kind != "heartbeat":
            self._wakeups.tell(work=True)
        return verdict

    async def retry_now(self, failed: FailedAttempt, now_us: int) -> bool:
        """Safe to repeat: what is due already stays so."""
        self._require_writable()
        is_moved = await self._patiently(
            lambda: self._database.run(lambda db: retry_now(db, failed, self._given(now_us)))
        )
        if is_moved:
            self._wakeups.tell(work=True)
        return is_moved

    async def expire_attempt(
        self, worker_id: int, *, pk: int, generation: int, claim_no: int, attempt: AttemptRow, now_us: int
    ) -> Expiry:
        self._require_writable()
        async with self._slots.take() as slot:
            return await self._database.run(
                lambda db: expire_attempt(
                    db,
                    worker_id,
                    slot,
                    pk=pk,
                    claim_no=claim_no,
                    generation=generation,
                    attempt=attempt,
                    now_us=self._given(now_us),
                )
            )


async def answer_activity(db: Session, answer: ActivityAnswer, now_us: int | None) -> AnswerVerdict:
    """Make the first answer of an attempt a message of its run."""
    row = await db.row("lock_address_of_run", run_id=answer.run_id, now_us=now_us)
    if row is None:
        raise await run_not_found(db, answer.run_id)
    run, generation, code, _, _ = row
    if not await db.fetch("has_life", run=run, generation=answer.generation, epoch=answer.epoch):
        return "closed"
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
    message = Outgoing(
        run_id=answer.run_id, kind="activity", name=answer.kind, data=answer.data, message_id=message_id
    )
    await put_message(db, message, now_us)
    return "taken"


async def retry_now(db: Session, failed: FailedAttempt, now_us: int | None) -> bool:
    """Move the instant at which the next attempt is due, of a task or of the run's own worker, which is told."""
    row = await db.row("lock_address_of_run", run_id=failed.run_id, now_us=now_us)
    if row is None:
        raise await run_not_found(db, failed.run_id)
    run, generation, code, _, _ = row
    if is_closed(code) or generation != failed.generation:
        return False
    key = {"run": run, "generation": generation, "op": failed.op, "attempt": failed.attempt, "now_us": now_us}
    if await db.fetch("hasten_task", **key):
        return True
    if not await db.fetch("hasten_attempt", **key):
        return False
    message_id = retry_id(generation, failed.op, failed.attempt)
    await db.fetch(
        "send_message",
        run_id=failed.run_id,
        kind="activity",
        name=RETRY_NOW,
        data=b"null",
        message_id=message_id,
        unread_max=None,
        now_us=now_us,
        channel=None,
        sender=None,
    )  # nothing, if that message is there, or was
    return True


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
