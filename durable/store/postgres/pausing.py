"""Pauses: of a run on its row, of task queues and workers by name."""

from __future__ import annotations

from durable.store.codes import is_closed
from durable.store.postgres.connection import Session
from durable.store.postgres.messages import change_run
from durable.store.postgres.opened import Opened
from durable.store.postgres.reading import run_not_found
from durable.store.records import (
    PauseKind,
    PauseRecord,
    Pauses,
)
from durable.store.refusals import run_is_closed


class Pausing(Opened):
    """The verbs that hold back, and let go on."""

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        paused = await self._write(lambda db: pause_run(db, run_id, reason, self._given(now_us)))
        self._wakeups.tell(work=True)
        return paused

    async def resume_run(self, run_id: str, now_us: int) -> bool:
        given = self._given(now_us)
        resumed = await self._write(lambda db: change_run(db, "resume_run", run_id, now_us=given))
        if resumed:
            self._wakeups.tell(work=True)
        return resumed

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        values = {"kind": kind, "name": name, "reason": reason, "now_us": self._given(now_us)}
        paused = bool(await self._write(lambda db: db.fetch("pause", **values)))
        self._wakeups.tell(work=True)
        return paused

    async def resume(self, kind: PauseKind, name: str) -> bool:
        resumed = bool(await self._write(lambda db: db.fetch("resume", kind=kind, name=name)))
        self._wakeups.tell(work=True)
        return resumed

    async def list_pauses(self) -> list[PauseRecord]:
        return [
            PauseRecord(kind=kind, name=name, at_us=at_us, reason=reason)
            for kind, name, at_us, reason in await self._look("list_pauses")
        ]

    async def read_pauses(self, worker_id: int) -> Pauses:
        ((is_worker_paused, queues, pks),) = await self._read("read_pauses", worker=worker_id)
        return Pauses(is_worker_paused=is_worker_paused, task_queues=frozenset(queues), pks=frozenset(pks))


async def pause_run(db: Session, run_id: str, reason: str | None, now_us: int | None) -> bool:
    """Hold an open run back; False if it was paused already."""
    if await db.fetch("pause_run", run_id=run_id, reason=reason, now_us=now_us):
        return True
    row = await db.row("address_of_run", run_id=run_id)
    if row is None:
        raise await run_not_found(db, run_id)
    _, _, code, started = row
    if is_closed(code):
        raise run_is_closed(run_id, code, started, "there is nothing to pause")
    return False
