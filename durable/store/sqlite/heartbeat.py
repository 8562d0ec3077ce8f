"""Beats: the one write that a thread other than the writer's makes, on a connection of its own."""

from __future__ import annotations

import os
import sqlite3
import threading
from pathlib import Path
from typing import Final

from durable.errors import StoreBusyError
from durable.seams import Clock
from durable.store.sqlite.connection import connect
from durable.store.sqlite.faults import explained, is_busy
from durable.store.sqlite.write_lock import WriteLock
from durable.store.statements import Statements

WAIT_SECONDS: Final = 2.0  # then the caller tries again: a beat that waits longer is no sign of life


class Heartbeat:
    """Raises beat counters. Safe to call from any thread; opens its files with the first beat."""

    def __init__(self, database: Path, side: Path, sql: Statements, *, durability: str, clock: Clock) -> None:
        self._database = database
        self._side = side
        self._sql = sql
        # A beat lost with the power is no loss: no fsync for it.
        self._durability = "off" if durability == "off" else "process"
        self._clock = clock
        self._guard = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._lock: WriteLock | None = None

    def beat(self, worker: int) -> bool:
        """Raise the counter; False if the worker is not alive. `StoreBusyError` if others held the lock for 2 s."""
        deadline = self._clock.monotonic() + WAIT_SECONDS
        with self._guard:
            while True:
                try:
                    return self._try_beat(worker, deadline)
                except sqlite3.Error as error:
                    if not is_busy(error) or self._clock.monotonic() >= deadline:
                        raise explained(error, self._database) from error
                if self._lock is not None:
                    self._lock.wait(0.002)

    def close(self) -> None:
        with self._guard:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def abandon(self) -> None:
        """In a forked child: drop the copies of the write lock, keep the connection untouched."""
        if self._lock is not None:
            for descriptor in self._lock.descriptors():
                os.close(descriptor)

    def _try_beat(self, worker: int, deadline: float) -> bool:
        if self._connection is None:
            self._connection = connect(self._database, mode="rw", durability=self._durability)
        if self._lock is None:
            self._lock = WriteLock(self._side)
        if not self._lock.acquire(self._clock, deadline):
            raise StoreBusyError(
                f"{self._database}: no beat within {WAIT_SECONDS:g} s, others held the write lock"
            )
        try:
            # A single statement: its own transaction, whose lock is taken before anything is read.
            changed = self._connection.execute(
                self._sql["beat"], {"worker": worker, "now_us": self._clock.now_us()}
            )
            return changed.rowcount == 1
        finally:
            self._lock.release()
