"""Who is alive: registration, retirement, and taking over from the dead (P9). One function per transaction.

A worker is alive while its fence rows are there. Silent for a lease, its own or the observer's if that is longer, by the server's clock,
it is dead. Taking it over
locks its fence rows first, which waits for whatever it is writing; then looks at the beat again, in a statement that sees
what was committed meanwhile; then deletes the fence; and only then, in one more statement, sets its runs ready. A worker that
was only slow finds its fence gone at its next write, and writes nothing.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Final

import msgspec

from durable.store.postgres.connection import FENCES, Session
from durable.store.postgres.opened import Opened
from durable.store.postgres.suspects import release_runs
from durable.store.records import Rescue, WorkerInfo, WorkerRecord
from durable.store.refusals import lease_lost
from durable.store.rows import worker_record

LOST_SECONDS: Final = 30.0  # one that did not beat for so long is called lost, if it does not tell its lease
_LOCK_WAIT: Final = "SET LOCAL lock_timeout = 5000"  # then StoreBusyError; whoever asked asks again


class Workers(Opened):
    """The verbs about workers."""

    async def register_worker(self, info: WorkerInfo) -> int:
        """Insert the row, its first beat and its fences in one statement."""
        worker = await self._write(lambda db: register_worker(db, info, self._given()))
        self._workers.add(worker)
        return worker

    def beat(self, worker_id: int) -> bool:
        """Renew, from any thread, on the connection of the heartbeat's own thread."""
        self._require_usable()
        return self._heartbeat.beat(worker_id)

    async def retire_worker(self, worker_id: int) -> None:
        """Stop the incarnation and set its runs ready. Waits for what it is still writing."""
        released = await self._write(lambda db: retire_worker(db, worker_id, self._given()))
        self._workers.discard(worker_id)
        for key in [key for key in self._look_outs if key[0] == worker_id]:
            del self._look_outs[key]
        if released:
            self._wakeups.tell(work=True)

    async def list_workers(self, *, alive_only: bool = True) -> list[WorkerRecord]:
        return [worker_record(row) for row in await self._look("list_workers", alive_only=alive_only)]

    async def take_role(self, worker_id: int, role: str) -> bool:
        return await self._write(lambda db: take_role(db, worker_id, role))

    # ─ the dead ──

    async def rescue_dead_workers(self, lease_seconds: float, *, observer: int | None = None) -> list[Rescue]:
        lease_us = round(lease_seconds * 1_000_000)
        rescued = []
        for row in await self._look("silent_workers", lease_us=lease_us):
            worker, name = row["id"], row["name"]
            if worker == observer:
                continue
            # One that was written without an answer has no second one: it is told by nobody, and found by the next poll.
            taken = await self._patiently(partial(self._write, partial(self._take_over, worker, lease_us)))
            if taken is not None:
                rescued.append(msgspec.structs.replace(taken, name=name))
        for row in await self._look("workers_with_strays"):
            await self._patiently(
                partial(self._write, partial(self._release_strays, row["id"], row["is_crash"]))
            )
        if rescued:
            self._wakeups.tell(work=True)
        return rescued

    async def _take_over(self, worker: int, lease_us: int, db: Session) -> Rescue | None:
        return await take_over(db, worker, lease_us, self._given())

    async def _release_strays(self, worker: int, is_crash: bool, db: Session) -> None:
        await release_runs(db, worker, is_crash=is_crash, now_us=self._given(), are_strays=True)

    async def find_lost_workers(self) -> list[int]:
        """Only beats tell here, so a process that is gone counts as lost after its lease, as it does for whoever takes it over."""
        found = await self._look("lost_workers", unsaid_us=round(LOST_SECONDS * 1_000_000))
        return [row["id"] for row in found]


async def register_worker(db: Session, info: WorkerInfo, now_us: int | None) -> int:
    return int(
        await db.value(
            "insert_worker",
            name=info.name,
            host=socket.gethostname(),
            pid=os.getpid(),
            task_queue=info.task_queue,
            definitions=msgspec.json.encode(info.definitions).decode(),
            is_embedded=info.embedded,
            more_queues=msgspec.json.encode(info.more_queues).decode(),
            activities=msgspec.json.encode(info.activities).decode(),
            lease_us=info.lease_us,
            now_us=now_us,
            slots=FENCES,
        )
    )


async def retire_worker(db: Session, worker: int, now_us: int | None) -> int:
    """Stop the incarnation and set its runs ready; return how many, tasks included. Nothing happens if it is stopped already."""
    released = await _stop(db, worker, is_crash=False, now_us=now_us)
    return released.runs + released.tasks


async def declare_dead(db: Session, worker: int, now_us: int | None) -> Rescue:
    """Take a worker's runs back whatever its beat says."""
    return await _stop(db, worker, is_crash=True, now_us=now_us)


async def _stop(db: Session, worker: int, *, is_crash: bool, now_us: int | None) -> Rescue:
    await db.execute(_LOCK_WAIT)
    if not await db.fetch("wait_for_worker", worker=worker):
        return Rescue(worker_id=worker, name="", runs=0)
    await db.fetch("lock_fences", worker=worker)
    await db.fetch("stop_heartbeat", worker=worker)
    await db.fetch("stop_worker", worker=worker, now_us=now_us)
    return await _release(db, worker, is_crash=is_crash, now_us=now_us)


async def _release(db: Session, worker: int, *, is_crash: bool, now_us: int | None) -> Rescue:
    runs, poison = await release_runs(db, worker, is_crash=is_crash, now_us=now_us)
    lost = await db.fetch("lose_tasks_of_worker", worker=worker)
    return Rescue(worker_id=worker, name="", runs=runs, poison=tuple(poison), tasks=len(lost))


async def take_over(db: Session, worker: int, lease_us: int, now_us: int | None) -> Rescue | None:
    """Take a silent worker's runs and tasks back; return how many, and which runs were parked as poison.

    None: it beat again, or somebody else is at it.
    """
    await db.execute(_LOCK_WAIT)
    if not await db.fetch("lock_worker", worker=worker):
        return None
    await db.fetch("lock_fences", worker=worker)
    if not await db.fetch("stop_silent_heartbeat", worker=worker, lease_us=lease_us):
        return None
    await db.fetch("stop_worker", worker=worker, now_us=now_us)
    return await _release(db, worker, is_crash=True, now_us=now_us)


async def take_role(db: Session, worker: int, role: str) -> bool:
    """Take the role if nobody alive has it. `LeaseLostError` for a dead worker."""
    if not await db.value("worker_is_alive", worker=worker):
        raise lease_lost(worker)
    if await db.value("role_of", role=role) == worker:
        return True
    return bool(await db.fetch("take_role", worker=worker, role=role))


async def settle_fences(db: Session, worker: int) -> None:
    """Wait until nothing that this incarnation sent is being executed any more (P16). Its fences stay locked meanwhile."""
    await db.execute(_LOCK_WAIT)
    await db.fetch("lock_fences", worker=worker)
