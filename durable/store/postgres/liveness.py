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

from durable.store.postgres.connection import Session
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
    await db.execute(_LOCK_WAIT)
    if not await db.fetch("wait_for_worker", worker=worker):
        return 0
    await db.fetch("lock_fences", worker=worker)
    await db.fetch("stop_heartbeat", worker=worker)
    return await _stop(db, worker, now_us)


async def take_over(db: Session, worker: int, lease_us: int, now_us: int | None) -> int | None:
    """Take a silent worker's runs back; return how many. None: it beat again, or somebody else is at it."""
    await db.execute(_LOCK_WAIT)
    if not await db.fetch("lock_worker", worker=worker):
        return None
    await db.fetch("lock_fences", worker=worker)
    if not await db.fetch("stop_silent_heartbeat", worker=worker, lease_us=lease_us):
        return None
    return await _stop(db, worker, now_us)


async def _stop(db: Session, worker: int, now_us: int | None) -> int:
    await db.fetch("stop_worker", worker=worker, now_us=now_us)
    return await release_runs(db, worker, now_us)


async def release_runs(db: Session, worker: int, now_us: int | None) -> int:
    """Set a stopped worker's runs ready; those that an open transaction holds are left, and remembered."""
    released = int(await db.value("release_runs_of_worker", worker=worker, now_us=now_us))
    await db.fetch("mark_strays", worker=worker)
    return released


async def settle_fences(db: Session, worker: int) -> None:
    """Wait until nothing that this incarnation sent is being executed any more (P16). Its fences stay locked meanwhile."""
    await db.execute(_LOCK_WAIT)
    await db.fetch("lock_fences", worker=worker)
