"""Messages to a run, and due times: what makes a sleeping run ready. One function per transaction."""

from __future__ import annotations

import sqlite3

from durable.errors import InboxFullError
from durable.store.codes import is_closed
from durable.store.records import BOUNDED, CRASH, CRASHES_MAX, DueOutcome, Outgoing, SendOutcome
from durable.store.refusals import run_is_closed
from durable.store.sqlite.closing import terminate, time_out
from durable.store.sqlite.inbox import put_message
from durable.store.sqlite.opened import Opened
from durable.store.sqlite.reading import run_not_found
from durable.store.statements import Statements


class Messages(Opened):
    """The verbs that wake a run, or end it by force."""

    async def send_message(self, message: Outgoing, now_us: int) -> SendOutcome:
        outcome = await self._write_grouped(lambda db: send_message(db, self._sql, message, now_us))
        if not outcome.duplicate:
            self._wakeups.tell(others=True)
        return outcome

    async def unpark_run(self, run_id: str, now_us: int) -> bool:
        unparked = await self._write(lambda db: unpark_run(db, self._sql, run_id, now_us))
        if unparked:
            self._wakeups.tell(others=True)
        return unparked

    async def wake_run(self, run_id: str, now_us: int) -> bool:
        woken = await self._write(lambda db: wake_run(db, self._sql, run_id, now_us))
        if woken:
            self._wakeups.tell(others=True)
        return woken

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        await self._write(lambda db: terminate_run(db, self._sql, run_id, reason, now_us))
        self._wakeups.tell(others=True)

    # ─ time ──

    async def wake_due_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        with self._reading() as reader:
            due, delayed = reader.execute(self._sql["next_due"], {"now_us": now_us}).fetchone()
        if due is None or due > now_us:
            return DueOutcome(woken=0, next_due_us=min(filter(None, (due, delayed)), default=None))
        outcome = await self._write(lambda db: wake_due_runs(db, self._sql, now_us, limit))
        if outcome.woken:
            self._wakeups.tell(others=True)
        return outcome

    async def close_overdue_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        with self._reading() as reader:
            deadline = next_deadline(reader, self._sql)
        if deadline is None or deadline > now_us:
            return DueOutcome(woken=0, next_due_us=deadline)
        outcome = await self._write(lambda db: close_overdue_runs(db, self._sql, now_us, limit))
        if outcome.woken:
            self._wakeups.tell(others=True)
        return outcome


def send_message(db: sqlite3.Connection, sql: Statements, message: Outgoing, now_us: int) -> SendOutcome:
    """Count the message on the run row, then put it into the inbox under that number (P2)."""
    run, _, code, started = address(db, sql, message.run_id)
    if message.message_id is not None:
        key = {"run": run, "message_id": message.message_id}
        if (row := db.execute(sql["find_message_id"], key).fetchone()) is not None:
            unread = db.execute(sql["is_unread"], {"run": run, "msg": row[0]}).fetchone()[0]
            return SendOutcome(msg=row[0], duplicate=True, is_unread=bool(unread))
    if is_closed(code):
        raise run_is_closed(message.run_id, code, started, "it takes no more messages")
    if message.kind in BOUNDED and message.unread_max is not None:
        bounded = {"run": run, "count": message.unread_max}
        if db.execute(sql["count_unread"], bounded).fetchone()[0] >= message.unread_max:
            raise InboxFullError(message.run_id, message.unread_max)
    return SendOutcome(msg=put_message(db, sql, run, message, now_us), duplicate=False)


def terminate_run(
    db: sqlite3.Connection, sql: Statements, run_id: str, reason: str | None, now_us: int
) -> None:
    run, generation, code, started = address(db, sql, run_id)
    if not terminate(db, sql, run, generation, reason, now_us):
        raise run_is_closed(run_id, code, started, "there is nothing to terminate")


def unpark_run(db: sqlite3.Connection, sql: Statements, run_id: str, now_us: int) -> bool:
    run, generation, _, _ = address(db, sql, run_id)
    chosen = {"run_id": run_id, "now_us": now_us, "crashes_max": (CRASHES_MAX - 1) * CRASH}
    if not db.execute(sql["unpark_run"], chosen).rowcount:
        return False
    db.execute(sql["forget_fault"], {"run": run, "generation": generation})
    return True


def wake_run(db: sqlite3.Connection, sql: Statements, run_id: str, now_us: int) -> bool:
    address(db, sql, run_id)
    return bool(db.execute(sql["wake_run"], {"run_id": run_id, "now_us": now_us}).rowcount)


def wake_due_runs(db: sqlite3.Connection, sql: Statements, now_us: int, limit: int) -> DueOutcome:
    woken = db.execute(sql["wake_due_runs"], {"now_us": now_us, "count": limit}).rowcount
    return DueOutcome(woken=woken, next_due_us=next_due(db, sql, now_us))


def next_due(db: sqlite3.Connection, sql: Statements, now_us: int) -> int | None:
    """Return the next timer of a waiting run or start of a delayed one."""
    instants = db.execute(sql["next_due"], {"now_us": now_us}).fetchone()
    return min((instant for instant in instants if instant is not None), default=None)


def close_overdue_runs(db: sqlite3.Connection, sql: Statements, now_us: int, limit: int) -> DueOutcome:
    overdue = db.execute(sql["overdue_runs"], {"now_us": now_us, "count": limit}).fetchall()
    for run, generation in overdue:
        time_out(db, sql, run, generation, now_us)
    return DueOutcome(woken=len(overdue), next_due_us=next_deadline(db, sql))


def next_deadline(db: sqlite3.Connection, sql: Statements) -> int | None:
    (instant,) = db.execute(sql["next_deadline"]).fetchone()
    return None if instant is None else int(instant)


def address(db: sqlite3.Connection, sql: Statements, run_id: str) -> tuple[int, int, int, int | None]:
    """Return (key, generation, status number, start) of a run id; `RunNotFoundError` with near ids."""
    row = db.execute(sql["address_of_run"], {"run_id": run_id}).fetchone()
    if row is None:
        raise run_not_found(db, sql, run_id)
    run, generation, code, started = row
    return run, generation, code, started
