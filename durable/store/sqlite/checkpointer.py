"""Moves the write-ahead log into the database, beside the writers: one thread per database, whoever gets the lock.

A PASSIVE checkpoint waits for nobody, but the log starts over only when all of it was copied while nobody appended. So
when it has grown, the thread stands at the writers' gate for the few milliseconds that the last second's remainder takes.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

from durable.errors import StoreError
from durable.seams import Clock, start_thread
from durable.store.sqlite.connection import connect
from durable.store.sqlite.write_lock import WriteLock, open_lock_file

PERIOD_SECONDS: Final = 1.0
LOG_PAGES_MAX: Final = 4096  # 16 MiB: above, make the log start over
_GATE_SECONDS: Final = 0.5


class Checkpointer:
    """Started with the first worker of a store, stopped when the store closes."""

    def __init__(self, database: Path, side: Path, *, durability: str, clock: Clock) -> None:
        self._database = database
        self._side = side
        self._durability = durability
        self._clock = clock
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._descriptors: tuple[int, ...] = ()

    def start(self) -> None:
        """Idempotent."""
        if self._thread is None:
            self._thread = start_thread(self._run, name="durable-checkpoint")

    def stop(self) -> None:
        """Wait for the checkpoint at hand, if any. Blocks."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(10.0)

    def abandon(self) -> None:
        """In a forked child, where the thread is gone: drop the copies of its locks."""
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._descriptors = ()

    def _run(self) -> None:
        try:
            duty = open_lock_file(self._side / "checkpoint.lock")
            gate = WriteLock(self._side)
        except StoreError:
            return  # the side directory is gone; writers checkpoint on their own
        self._descriptors = (duty, *gate.descriptors())
        try:
            while not self._stopping.wait(PERIOD_SECONDS):
                try:
                    fcntl.flock(duty, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    continue  # another process is at it
            self._serve(gate)
        finally:
            self._descriptors = ()
            gate.close()
            os.close(duty)

    def _serve(self, gate: WriteLock) -> None:
        connection: sqlite3.Connection | None = None
        try:
            while not self._stopping.wait(PERIOD_SECONDS):
                try:
                    if connection is None:
                        connection = connect(self._database, mode="rw", durability=self._durability)
                    self._checkpoint(connection, gate)
                except (sqlite3.Error, StoreError):
                    continue  # busy, or the disk is full: the log waits
        finally:
            if connection is not None:
                connection.close()

    def _checkpoint(self, connection: sqlite3.Connection, gate: WriteLock) -> None:
        _, pages, _ = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if pages > LOG_PAGES_MAX and gate.acquire(self._clock, self._clock.monotonic() + _GATE_SECONDS):
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            finally:
                gate.release()
