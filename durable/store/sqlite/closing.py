"""Ends that the store writes itself, without running any code of the workflow: terminated, timed out."""

from __future__ import annotations

import sqlite3

from durable.journal.events import Terminated, TimedOut
from durable.journal.turns import encode_turn
from durable.store.codes import TERMINATED, TIMED_OUT
from durable.store.sqlite.committing import FIRST_PART
from durable.store.statements import Statements


def terminate(
    db: sqlite3.Connection, sql: Statements, run: int, generation: int, reason: str | None, now_us: int
) -> bool:
    """Close an open run; return False if it was closed already."""
    return _close_by_force(
        db, sql, run, generation, code=TERMINATED, end=Terminated(at=now_us, reason=reason), now_us=now_us
    )


def time_out(db: sqlite3.Connection, sql: Statements, run: int, generation: int, now_us: int) -> bool:
    """Close an open run whose deadline passed; return False if it was closed already."""
    return _close_by_force(db, sql, run, generation, code=TIMED_OUT, end=TimedOut(at=now_us), now_us=now_us)


def _close_by_force(
    db: sqlite3.Connection,
    sql: Statements,
    run: int,
    generation: int,
    *,
    code: int,
    end: Terminated | TimedOut,
    now_us: int,
) -> bool:
    """Status, journal row, inbox and attempts in the caller's transaction; the owner, if any, is fenced out."""
    reason = end.reason if isinstance(end, Terminated) else None
    closed = db.execute(
        sql["close_run_by_force"], {"run": run, "status": code, "now_us": now_us, "reason": reason}
    )
    if not closed.rowcount:
        return False
    key = {"run": run, "generation": generation}
    (last_turn,) = db.execute(sql["last_turn"], key).fetchone()
    db.executemany(
        sql["insert_turn"],
        [
            (run, generation, last_turn + 1, part, data, None)  # a reason is short
            for part, data in enumerate(encode_turn(0, [end]), FIRST_PART)
        ],
    )
    # What a parked run stopped on is not what it ended with.
    db.execute(sql["forget_fault"], key)
    db.execute(sql["empty_inbox"], {"run": run})
    db.execute(sql["delete_attempts"], (run, generation))
    return True
