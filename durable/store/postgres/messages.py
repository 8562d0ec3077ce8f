"""Messages to a run, and due times: what makes a sleeping run ready. One function per transaction.

A message is one statement: count on the run's row and row in the inbox, or neither. Two senders with one message id: the second
meets the unique key, is undone, and finds the first one's number.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec

from durable.errors import InboxFullError, StoreBusyError, WorkflowStateError
from durable.store.postgres.closing import terminate, time_out
from durable.store.postgres.connection import Database, Session
from durable.store.postgres.faults import KeyTaken
from durable.store.postgres.reading import run_not_found
from durable.store.records import SendOutcome
from durable.store.sqlite.codes import is_closed, shown_status

T = TypeVar("T")

LOOKS_MAX: Final = 10  # how often a run may change between our looks at it


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A message on its way to a run's inbox."""

    run_id: str
    kind: str
    name: str
    data: bytes
    message_id: str | None
    unread_max: int | None = None


async def send_message(database: Database, message: Outgoing, now_us: int | None) -> SendOutcome:
    """Count the message on the run row and put it into the inbox under that number (P2)."""
    values = {**msgspec.structs.asdict(message), "now_us": now_us}
    if message.kind != "signal":
        values["unread_max"] = None  # a cancel or an answer always finds room
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
            return SendOutcome(msg=msg, duplicate=True)
    if is_closed(code):
        raise _closed(message.run_id, code, started, "it takes no more messages")
    if message.kind == "signal" and message.unread_max is not None:
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
        raise _closed(run_id, code, started, "there is nothing to terminate")


async def change_run(db: Session, name: str, run_id: str, **parameters: object) -> bool:
    """Run the statement `name` on one run; False if it changed nothing. `RunNotFoundError` for an unknown id."""
    if await db.fetch(name, run_id=run_id, **parameters):
        return True
    if await db.row("address_of_run", run_id=run_id) is None:
        raise await run_not_found(db, run_id)
    return False


async def pause_run(db: Session, run_id: str, reason: str | None, now_us: int | None) -> bool:
    """Hold an open run back; False if it was paused already."""
    if await db.fetch("pause_run", run_id=run_id, reason=reason, now_us=now_us):
        return True
    row = await db.row("address_of_run", run_id=run_id)
    if row is None:
        raise await run_not_found(db, run_id)
    _, _, code, started = row
    if is_closed(code):
        raise _closed(run_id, code, started, "there is nothing to pause")
    return False


async def close_overdue_runs(db: Session, now_us: int | None, limit: int) -> int:
    """Close runs past their deadline; return how many."""
    overdue = await db.fetch("overdue_runs", now_us=now_us, count=limit)
    if not overdue:
        return 0
    return await time_out(db, [row["id"] for row in overdue], overdue[0]["now_us"])


def _closed(run_id: str, code: int, started: int | None, so_what: str) -> WorkflowStateError:
    status = str(shown_status(code, has_started=started is not None))
    return WorkflowStateError(run_id, status, f"run {run_id!r} is {status}: {so_what}")


async def until_first(database: Database, work: Callable[[Session], Awaitable[T]]) -> T:
    """Repeat an end by force as long as a turn of the owner takes its place in the journal first."""
    for _ in range(LOOKS_MAX):
        try:
            return await database.run(work)
        except KeyTaken:
            continue
    raise StoreBusyError(f"{database.shown}: the run kept committing; nothing was written, try again")
