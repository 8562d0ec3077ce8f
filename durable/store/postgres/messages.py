"""Messages to a run, and due times: what makes a sleeping run ready. One function per transaction.

A message is one statement: count on the run's row and row in the inbox, or neither. Two senders with one message id: the second
meets the unique key, is undone, and finds the first one's number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from durable.errors import InboxFullError, StoreBusyError
from durable.seams import ServerClock
from durable.store.codes import is_closed
from durable.store.postgres.closing import terminate, time_out
from durable.store.postgres.connection import Database, Session
from durable.store.postgres.faults import KeyTaken
from durable.store.postgres.opened import Opened
from durable.store.postgres.reading import run_not_found
from durable.store.records import BOUNDED, CRASH, CRASHES_MAX, DueOutcome, Outgoing, SendOutcome
from durable.store.refusals import run_is_closed

T = TypeVar("T")

LOOKS_MAX: Final = 10  # how often a run may change between our looks at it


class Messages(Opened):
    """The verbs that wake a run, or end it by force."""

    async def send_message(self, message: Outgoing, now_us: int) -> SendOutcome:
        """Safe to repeat with a message id; without one, an error leaves open whether it was sent."""
        self._require_writable()

        async def send() -> SendOutcome:
            return await send_message(
                self._database, message, self._given(now_us), channel=channel, sender=self._wakeups.name
            )

        with self._wakeups.lend() as channel:
            outcome = await (send() if message.message_id is None else self._patiently(send))
        if not outcome.duplicate:
            self._wakeups.tell(work=channel is None)
        return outcome

    async def unpark_run(self, run_id: str, now_us: int) -> bool:
        return await self._change_run(
            "unpark_run", run_id, now_us=self._given(now_us), crashes_max=(CRASHES_MAX - 1) * CRASH
        )

    async def wake_run(self, run_id: str, now_us: int) -> bool:
        return await self._change_run("wake_run", run_id, now_us=self._given(now_us))

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        await self._write_repeatedly(lambda db: terminate_run(db, run_id, reason, self._given(now_us)))
        self._wakeups.tell(work=True, ends=True)

    # ─ time ──

    async def wake_due_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        due, delayed, _, now = await self._look_at_times(now_us)
        woken = 0
        if due is not None and due <= now:
            self._require_writable()
            woken = await self._database.value("wake_due_runs", now_us=self._given(now_us), count=limit)
            due, delayed, _, now = await self._look_at_times(now_us)
        if woken:
            self._wakeups.tell(work=True)
        return DueOutcome(
            woken=woken, next_due_us=min((at for at in (due, delayed) if at is not None), default=None)
        )

    async def close_overdue_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        _, _, deadline, now = await self._look_at_times(now_us)
        if deadline is None or deadline > now:
            return DueOutcome(woken=0, next_due_us=deadline)
        closed = await self._write_repeatedly(lambda db: close_overdue_runs(db, self._given(now_us), limit))
        _, _, deadline, _ = await self._look_at_times(now_us)
        if closed:
            self._wakeups.tell(work=True, ends=True)
        return DueOutcome(woken=closed, next_due_us=deadline)

    async def _look_at_times(self, now_us: int) -> tuple[int | None, int | None, int | None, int]:
        """Return the next timer, delayed start and deadline, and the time. Every look tells our clock what the server's says."""
        asked_at = self._clock.monotonic()
        ((due, delayed, deadline, now),) = await self._read("next_due", now_us=self._given(now_us))
        if isinstance(self._clock, ServerClock):
            self._clock.learn(now, asked_at, self._clock.monotonic())
        return due, delayed, deadline, now

    # ─ ways to write ──

    async def _write_repeatedly(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """For ends by force: a turn that was being written at that moment has the number first; look again."""
        self._require_writable()
        return await until_first(self._database, work)

    async def _change_run(self, name: str, run_id: str, **parameters: object) -> bool:
        changed = await self._write(lambda db: change_run(db, name, run_id, **parameters))
        if changed:
            self._wakeups.tell(work=True)
        return changed


async def send_message(
    database: Database, message: Outgoing, now_us: int | None, *, channel: str | None, sender: str
) -> SendOutcome:
    """Count the message on the run row and put it into the inbox under that number (P2). Others are told through `channel`."""
    values = {**msgspec.structs.asdict(message), "now_us": now_us, "channel": channel, "sender": sender}
    if message.kind not in BOUNDED:
        values["unread_max"] = None
    for _ in range(LOOKS_MAX):
        try:
            msg = await database.value("send_message", **values)
        except KeyTaken:
            msg = None  # the same message id, at the same moment: it is there now
        if msg is not None:
            return SendOutcome(msg=msg, duplicate=False)
        if (outcome := await database.run(lambda db: _why_not(db, message))) is not None:
            return outcome
    raise StoreBusyError(f"run {message.run_id!r} kept changing; the message was not sent, try again")


async def _why_not(db: Session, message: Outgoing) -> SendOutcome | None:
    """Say why nothing was sent: taken in before, closed, full, unknown. None: none of it is true any more."""
    row = await db.row("address_of_run", run_id=message.run_id)
    if row is None:
        raise await run_not_found(db, message.run_id)
    run, _, code, started = row
    if message.message_id is not None:
        msg = await db.value("find_message_id", run=run, message_id=message.message_id)
        if msg is not None:
            await db.fetch("wait_for_disk")  # the first one may still be on its way there
            is_unread = await db.value("is_unread", run=run, msg=msg)
            return SendOutcome(msg=msg, duplicate=True, is_unread=is_unread)
    if is_closed(code):
        raise run_is_closed(message.run_id, code, started, "it takes no more messages")
    if message.kind in BOUNDED and message.unread_max is not None:
        unread = await db.value("count_unread", run=run, count=message.unread_max)
        if unread >= message.unread_max:
            raise InboxFullError(message.run_id, message.unread_max)
    return None


async def terminate_run(db: Session, run_id: str, reason: str | None, now_us: int | None) -> None:
    row = await db.row("lock_address_of_run", run_id=run_id, now_us=now_us)
    if row is None:
        raise await run_not_found(db, run_id)
    run, _, code, started, now = row
    if not await terminate(db, run, reason, now):
        raise run_is_closed(run_id, code, started, "there is nothing to terminate")


async def change_run(db: Session, name: str, run_id: str, **parameters: object) -> bool:
    """Run the statement `name` on one run; False if it changed nothing. `RunNotFoundError` for an unknown id."""
    if await db.fetch(name, run_id=run_id, **parameters):
        return True
    if await db.row("address_of_run", run_id=run_id) is None:
        raise await run_not_found(db, run_id)
    return False


async def close_overdue_runs(db: Session, now_us: int | None, limit: int) -> int:
    """Close runs past their deadline; return how many."""
    overdue = await db.fetch("overdue_runs", now_us=now_us, count=limit)
    if not overdue:
        return 0
    return await time_out(db, [row["id"] for row in overdue], overdue[0]["now_us"])


async def until_first(database: Database, work: Callable[[Session], Awaitable[T]]) -> T:
    """Repeat an end by force as long as a turn of the owner takes its place in the journal first."""
    for _ in range(LOOKS_MAX):
        try:
            return await database.run(work)
        except KeyTaken:
            continue
    raise StoreBusyError(f"{database.shown}: the run kept committing; nothing was written, try again")
