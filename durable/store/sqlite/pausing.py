"""Pauses: of a run on its row, of task queues and workers by name. One function per transaction, or a read."""

from __future__ import annotations

import sqlite3

from durable.store.codes import is_closed
from durable.store.records import PauseKind, PauseRecord, Pauses
from durable.store.refusals import run_is_closed
from durable.store.sqlite.messages import address
from durable.store.sqlite.opened import Opened
from durable.store.statements import Statements


class Pausing(Opened):
    """The verbs that hold back, and let go on."""

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        paused = await self._write(lambda db: pause_run(db, self._sql, run_id, reason, now_us))
        self._wakeups.tell(others=True)
        return paused

    async def resume_run(self, run_id: str, now_us: int) -> bool:
        resumed = await self._write(lambda db: resume_run(db, self._sql, run_id, now_us))
        self._wakeups.tell(others=True)
        return resumed

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        paused = await self._write(lambda db: pause(db, self._sql, kind, name, reason, now_us))
        self._wakeups.tell(others=True)
        return paused

    async def resume(self, kind: PauseKind, name: str) -> bool:
        resumed = await self._write(lambda db: resume(db, self._sql, kind, name))
        self._wakeups.tell(others=True)
        return resumed

    async def list_pauses(self) -> list[PauseRecord]:
        with self._reading() as reader:
            return [
                PauseRecord(kind=kind, name=name, at_us=at_us, reason=reason)
                for kind, name, at_us, reason in reader.execute(self._sql["list_pauses"])
            ]

    async def read_pauses(self, worker_id: int) -> Pauses:
        """Three look-ups by key; what they return need not be of one moment."""
        sql, worker = self._sql, {"worker": worker_id}
        with self._reading() as reader:
            return Pauses(
                is_worker_paused=is_worker_paused(reader, sql, worker_id),
                task_queues=frozenset(row[0] for row in reader.execute(sql["read_paused_queues"])),
                pks=frozenset(row[0] for row in reader.execute(sql["read_paused_runs"], worker)),
            )


def pause_run(db: sqlite3.Connection, sql: Statements, run_id: str, reason: str | None, now_us: int) -> bool:
    run, _, code, started = address(db, sql, run_id)
    if is_closed(code):
        raise run_is_closed(run_id, code, started, "there is nothing to pause")
    return bool(db.execute(sql["pause_run"], {"run": run, "reason": reason, "now_us": now_us}).rowcount)


def resume_run(db: sqlite3.Connection, sql: Statements, run_id: str, now_us: int) -> bool:
    address(db, sql, run_id)
    return bool(db.execute(sql["resume_run"], {"run_id": run_id, "now_us": now_us}).rowcount)


def pause(
    db: sqlite3.Connection, sql: Statements, kind: str, name: str, reason: str | None, now_us: int
) -> bool:
    values = {"kind": kind, "name": name, "reason": reason, "now_us": now_us}
    return bool(db.execute(sql["pause"], values).rowcount)


def resume(db: sqlite3.Connection, sql: Statements, kind: str, name: str) -> bool:
    return bool(db.execute(sql["resume"], {"kind": kind, "name": name}).rowcount)


def is_worker_paused(db: sqlite3.Connection, sql: Statements, worker: int) -> bool:
    return db.execute(sql["worker_is_paused"], {"worker": worker}).fetchone() is not None
