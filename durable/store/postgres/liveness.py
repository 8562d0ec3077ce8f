"""Who is alive: registration, retirement, and taking over from the dead (P9). One function per transaction.

A worker is alive while its fence rows are there. Its lease is the time since its last beat, by the server's clock. Taking it over
locks its fence rows first, which waits for whatever it is writing; then looks at the beat again, in a statement that sees
what was committed meanwhile; then deletes the fence; and only then, in one more statement, sets its runs ready. A worker that
was only slow finds its fence gone at its next write, and writes nothing.
"""

from __future__ import annotations

import os
import socket
from typing import Final

import msgspec

from durable.store.postgres.committing import lease_lost
from durable.store.postgres.connection import Session
from durable.store.postgres.suspects import release_runs
from durable.store.records import WorkerInfo

FENCES: Final = 4  # fenced statements of one store under way at once
_LOCK_WAIT: Final = "SET LOCAL lock_timeout = 5000"  # then StoreBusyError; whoever asked asks again


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
            now_us=now_us,
            slots=FENCES,
        )
    )


async def retire_worker(db: Session, worker: int, now_us: int | None) -> int:
    """Stop the incarnation and set its runs ready; return how many. Nothing happens if it is stopped already."""
    released, _ = await _stop(db, worker, is_crash=False, now_us=now_us)
    return released


async def declare_dead(db: Session, worker: int, now_us: int | None) -> tuple[int, list[str]]:
    """Take a worker's runs back whatever its beat says."""
    return await _stop(db, worker, is_crash=True, now_us=now_us)


async def _stop(db: Session, worker: int, *, is_crash: bool, now_us: int | None) -> tuple[int, list[str]]:
    await db.execute(_LOCK_WAIT)
    if not await db.fetch("wait_for_worker", worker=worker):
        return 0, []
    await db.fetch("lock_fences", worker=worker)
    await db.fetch("stop_heartbeat", worker=worker)
    await db.fetch("stop_worker", worker=worker, now_us=now_us)
    return await release_runs(db, worker, is_crash=is_crash, now_us=now_us)


async def take_over(
    db: Session, worker: int, lease_us: int, now_us: int | None
) -> tuple[int, list[str]] | None:
    """Take a silent worker's runs back; return how many, and which were parked as poison.

    None: it beat again, or somebody else is at it.
    """
    await db.execute(_LOCK_WAIT)
    if not await db.fetch("lock_worker", worker=worker):
        return None
    await db.fetch("lock_fences", worker=worker)
    if not await db.fetch("stop_silent_heartbeat", worker=worker, lease_us=lease_us):
        return None
    await db.fetch("stop_worker", worker=worker, now_us=now_us)
    return await release_runs(db, worker, is_crash=True, now_us=now_us)


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
