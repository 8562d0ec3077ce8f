"""Workers: registered, kept alive, retired, and taken over when they are dead. Who is dead is decided without a wall clock."""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Callable
from functools import partial

import msgspec

from durable.errors import StoreError
from durable.seams import SystemRandom
from durable.store.records import (
    Rescue,
    WorkerInfo,
    WorkerRecord,
)
from durable.store.rows import json_text, worker_record
from durable.store.sqlite.committing import require_alive
from durable.store.sqlite.liveness import (
    Grip,
    LiveWorker,
    beat_before_boot,
    is_foreign,
)
from durable.store.sqlite.location import boot_id
from durable.store.sqlite.opened import Opened
from durable.store.sqlite.suspects import release_runs


class Workers(Opened):
    """The verbs about workers."""

    async def register_worker(self, info: WorkerInfo) -> int:
        """Insert the row, holding the liveness lock before anybody can see it; open the wake-up socket."""
        liveness = self._require_liveness()
        socket_name = f"wake-{SystemRandom().request_id()[:12]}.sock"
        name = socket_name if self._wakeups.listen(socket_name) else None
        taken: list[int] = []

        def insert(db: sqlite3.Connection) -> int:
            now_us = self._clock.now_us()
            worker = db.execute(
                self._sql["insert_worker"],
                {
                    "name": info.name,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "boot_id": boot_id(),
                    "task_queue": info.task_queue,
                    "definitions": json_text(info.definitions),
                    "is_embedded": int(info.embedded),
                    "wake_addr": name,
                    "now_us": now_us,
                    "more_queues": json_text(info.more_queues),
                    "activities": json_text(info.activities),
                    "lease_us": info.lease_us,
                },
            ).lastrowid
            assert worker is not None, "an inserted row has a rowid"
            db.execute(self._sql["insert_heartbeat"], {"worker": worker, "now_us": now_us})
            if worker not in taken:  # this may run more than once
                liveness.hold(worker, self._loop)
                taken.append(worker)
            return worker

        try:
            worker = await self._write(insert)
        except BaseException:
            for held in taken:
                liveness.drop(held, remove=False)
            if name is not None:
                self._wakeups.close_socket(name)
            raise
        self._workers[worker] = name
        if self._checkpointer is not None:
            self._checkpointer.start()
        return worker

    def beat(self, worker_id: int) -> bool:
        """Renew, on a connection of the heartbeat thread's own."""
        self._notice_moved()
        self._require_usable()
        if self._heartbeat is None:
            raise self._refusal()
        return self._heartbeat.beat(worker_id)

    async def retire_worker(self, worker_id: int) -> None:
        """Stop the incarnation and set its runs ready, then drop its lock."""
        liveness = self._require_liveness()
        released = await self._write(partial(self._stop_worker, worker_id, None, False))
        liveness.drop(worker_id, remove=True)
        if (name := self._workers.pop(worker_id, None)) is not None:
            self._wakeups.close_socket(name)
        if released is not None and (released.runs or released.tasks):
            self._wakeups.tell(others=True)

    async def list_workers(self, *, alive_only: bool = True) -> list[WorkerRecord]:
        rows = await self._scan("list_workers", {"alive_only": int(alive_only)})
        return [worker_record(row) for row in rows]

    async def take_role(self, worker_id: int, role: str) -> bool:
        def take(db: sqlite3.Connection) -> bool:
            require_alive(db, self._sql, worker_id)
            return bool(db.execute(self._sql["take_role"], {"worker": worker_id, "role": role}).rowcount)

        return await self._write(take)

    # ─ the dead ──

    async def rescue_dead_workers(self, lease_seconds: float, *, observer: int | None = None) -> list[Rescue]:
        liveness = self._require_liveness()
        live = self._read_live_workers()
        self._watch.keep_only({worker.worker for worker in live})
        rescued = []
        for worker in live:
            if worker.worker == observer:
                continue
            grip = liveness.grip(worker.worker)
            stopped = None
            try:
                if grip is not None and (
                    not is_foreign(worker) or beat_before_boot(worker, self._clock.now_us())
                ):
                    stopped = await self._write(self._stopping_dead(worker.worker, None, grip))
                elif await self._is_silent(worker, max(lease_seconds, worker.lease_us / 1_000_000)):
                    stopped = await self._write(self._stopping_dead(worker.worker, worker.beat, grip))
            finally:
                if grip is not None:
                    grip.let_go(remove=stopped is not None)
            if stopped is None:
                continue
            liveness.remove(worker.worker)
            if worker.wake_addr is not None:
                self._wakeups.remove_socket(worker.wake_addr)
            rescued.append(msgspec.structs.replace(stopped, name=worker.name))
        if rescued:
            self._wakeups.tell(others=True)
        return rescued

    async def find_lost_workers(self) -> list[int]:
        if self._liveness is None:
            return []  # opened for reading: nobody can be asked
        lost, now_us = [], self._clock.now_us()
        for worker in self._read_live_workers():
            if is_foreign(worker) and not beat_before_boot(worker, now_us):
                continue  # on another machine, for all we know
            if (grip := self._liveness.grip(worker.worker)) is not None:
                grip.let_go(remove=False)
                lost.append(worker.worker)
        return lost

    def _read_live_workers(self) -> list[LiveWorker]:
        with self._reading() as reader:
            return [LiveWorker(*row) for row in reader.execute(self._sql["live_workers"])]

    async def _is_silent(self, worker: LiveWorker, lease_seconds: float) -> bool:
        """Whether the worker's counter stood still for a lease, while we could write."""
        monotonic = self._clock.monotonic
        if is_foreign(worker) and self._watch.has_moved(worker.worker, worker.beat):
            raise StoreError(
                f"{self._database} is in use by a worker on another machine ({worker.name}): SQLite files cannot be "
                "shared between machines. Stop one of them"
            )
        if self._watch.moved(worker.worker, worker.beat, monotonic()):
            return False
        try:
            beat = await self._write(partial(self._prove_writable, worker.worker))
        except StoreError:
            self._watch.could_not_write(worker.worker, monotonic())
            raise
        if beat is None or self._watch.moved(worker.worker, beat, monotonic()):
            return False
        return self._watch.silent_seconds(worker.worker, monotonic(), lease_seconds) >= lease_seconds

    def _prove_writable(self, worker: int, db: sqlite3.Connection) -> int | None:
        rows = db.execute(self._sql["prove_writable"], {"worker": worker}).fetchall()
        return rows[0][0] if rows else None

    def _stopping_dead(
        self, worker: int, beat: int | None, grip: Grip | None
    ) -> Callable[[sqlite3.Connection], Rescue | None]:
        is_at_rest = self._require_liveness().is_at_rest(worker, grip)
        return partial(self._stop_worker, worker, beat, True, is_at_rest=is_at_rest)

    def _stop_worker(
        self,
        worker: int,
        beat: int | None,
        is_crash: bool,
        db: sqlite3.Connection,
        *,
        is_at_rest: bool = False,
    ) -> Rescue | None:
        """Mark a live worker stopped and set its runs ready; None if it was not alive, or has beaten since `beat`."""
        now = {"worker": worker, "now_us": self._clock.now_us()}
        if beat is not None:
            (last,) = db.execute(self._sql["read_beat"], now).fetchone()
            if last != beat:
                return None
        if not db.execute(self._sql["stop_worker"], now).rowcount:
            return None
        runs, poison = release_runs(
            db, self._sql, worker, is_crash=is_crash, now_us=now["now_us"], is_at_rest=is_at_rest
        )
        lost = db.execute(self._sql["lose_tasks_of_worker"], {"worker": worker}).rowcount
        return Rescue(worker_id=worker, name="", runs=runs, poison=tuple(poison), tasks=lost)
