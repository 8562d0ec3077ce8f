"""Pauses: of a run on its row, of task queues and workers by name. One function per transaction, or a read."""

from __future__ import annotations

import sqlite3

from durable.store.records import PauseRecord, Pauses
from durable.store.sqlite.codes import is_closed
from durable.store.sqlite.messages import address, closed
from durable.store.statements import Statements


def pause_run(db: sqlite3.Connection, sql: Statements, run_id: str, reason: str | None, now_us: int) -> bool:
    run, _, code, started = address(db, sql, run_id)
    if is_closed(code):
        raise closed(run_id, code, started, "there is nothing to pause")
    return bool(db.execute(sql["pause_run"], {"run": run, "reason": reason, "now_us": now_us}).rowcount)


def resume_run(db: sqlite3.Connection, sql: Statements, run_id: str) -> bool:
    address(db, sql, run_id)
    return bool(db.execute(sql["resume_run"], {"run_id": run_id}).rowcount)


def pause(
    db: sqlite3.Connection, sql: Statements, kind: str, name: str, reason: str | None, now_us: int
) -> bool:
    values = {"kind": kind, "name": name, "reason": reason, "now_us": now_us}
    return bool(db.execute(sql["pause"], values).rowcount)


def resume(db: sqlite3.Connection, sql: Statements, kind: str, name: str) -> bool:
    return bool(db.execute(sql["resume"], {"kind": kind, "name": name}).rowcount)


def list_pauses(db: sqlite3.Connection, sql: Statements) -> list[PauseRecord]:
    return [
        PauseRecord(kind=kind, name=name, at_us=at_us, reason=reason)
        for kind, name, at_us, reason in db.execute(sql["list_pauses"])
    ]


def read_pauses(db: sqlite3.Connection, sql: Statements, worker: int) -> Pauses:
    """Three look-ups by key; what they return need not be of one moment."""
    return Pauses(
        is_worker_paused=is_worker_paused(db, sql, worker),
        task_queues=frozenset(row[0] for row in db.execute(sql["read_paused_queues"])),
        pks=frozenset(row[0] for row in db.execute(sql["read_paused_runs"], {"worker": worker})),
    )


def is_worker_paused(db: sqlite3.Connection, sql: Statements, worker: int) -> bool:
    return db.execute(sql["worker_is_paused"], {"worker": worker}).fetchone() is not None
