"""Connections: how they are set up, and the hot writer that runs every write of a store.

A write is a plain function over the connection, run between BEGIN IMMEDIATE and COMMIT. It runs *inline* on the loop
thread when nothing is in the way: a commit costs a fifth of a millisecond, a hop to a thread as much again. It runs in the
writer *thread* when the write lock is not free at once, while others have been writing lately, or when commits have
become slow; there it may wait, up to a deadline. The function may be run more than once (each time from the start, the
attempt before rolled back), so it must keep what it returns to itself until it returns.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar
from urllib.parse import quote

from durable.errors import StoreBusyError
from durable.seams import Clock, Executor
from durable.store.sqlite.faults import explained, explaining, is_busy
from durable.store.sqlite.write_lock import WriteLock

T = TypeVar("T")

Mode = Literal["rwc", "rw", "ro", "immutable"]

_SYNCHRONOUS: Final = {
    "full": "PRAGMA synchronous = FULL",
    "process": "PRAGMA synchronous = NORMAL",
    "off": "PRAGMA synchronous = OFF",
}
_PRAGMAS: Final = (
    "PRAGMA fullfsync = 1",  # macOS: fsync alone leaves the data in the drive's cache; elsewhere no effect
    "PRAGMA foreign_keys = OFF",
    "PRAGMA recursive_triggers = ON",  # a run's end may end its children, and theirs
    "PRAGMA temp_store = MEMORY",
    "PRAGMA journal_size_limit = 67108864",
)

OPEN_SECONDS: Final = 10.0
WAIT_SECONDS: Final = 30.0  # how long a write may queue before StoreBusyError
# Mean of COMMIT above this: the loop must not wait for the disk. What the rows themselves take does not count: a loop that
# made a thousand turns ready has just spent more on each, and a thread would fight it for the interpreter at every row.
SLOW_COMMIT_SECONDS: Final = 0.003
ROW_SECONDS: Final = 0.00001
CONTENDED_SECONDS: Final = 0.03  # after another writer was met, this long in the thread
LOOK_SECONDS: Final = 0.002  # an inline writer looks at the turnstile this often
WAL_LOOK_SECONDS: Final = 0.1
WAL_BYTES_MAX: Final = 64 << 20


def database_uri(database: Path, mode: Mode, *, rights_of: Path | None = None) -> str:
    """Return the URI that opens `database` through SQLite in `mode`; if that makes it, with the rights of `rights_of`."""
    query = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    if rights_of is not None:
        query += f"&modeof={quote(str(rights_of))}"
    return f"file:{quote(str(database))}?{query}"


def connect(
    database: Path, *, mode: Mode, durability: str, rights_of: Path | None = None
) -> sqlite3.Connection:
    """Open one connection in autocommit mode, with the settings all of ours have; raises errors of ours.

    A database that does not exist is made with the rights of the file `rights_of`: by SQLite itself, since nobody else may
    open it (P31). Its log gets them from it.
    """
    with explaining(database):
        connection = sqlite3.connect(
            database_uri(database, mode, rights_of=rights_of),
            uri=True,
            timeout=OPEN_SECONDS,  # others may be opening, recovering or closing it at this moment
            isolation_level=None,
            check_same_thread=False,  # the writer thread and the loop take turns, never at once
            cached_statements=256,
        )
        try:
            connection.execute(
                "PRAGMA schema_version"
            ).fetchone()  # the probe: reads the header or says why not
            connection.execute(_SYNCHRONOUS[durability])
            for pragma in _PRAGMAS:
                connection.execute(pragma)
            connection.execute("PRAGMA busy_timeout = 0")
        except BaseException:
            connection.close()
            raise
    return connection


def connect_reader(database: Path, *, mode: Mode) -> sqlite3.Connection:
    """Open a connection that cannot write. Readers never wait for writers; the timeout is for recovery after a crash."""
    reader = connect(database, mode=mode, durability="process")
    with explaining(database):
        reader.execute("PRAGMA query_only = 1")
        reader.execute("PRAGMA busy_timeout = 2000")
    return reader


class Writer:
    """The one connection of a store that writes. All methods on the loop's thread."""

    def __init__(
        self,
        database: Path,
        connection: sqlite3.Connection,
        lock: WriteLock,
        *,
        executor: Executor,
        clock: Clock,
    ) -> None:
        self.database = database
        self.data_version = 0  # as last seen by this connection, whose own commits do not change it
        self.wait_seconds = WAIT_SECONDS
        self._wal = database.with_name(database.name + "-wal")
        self._connection = connection
        self._execute = connection.execute
        self._lock = lock
        self._executor = executor
        self._clock = clock
        self._monotonic = clock.monotonic
        self._in_thread: set[asyncio.Future[object]] = set()
        self._contended_until = 0.0
        self._looked_at = 0.0
        # The mean of the last twenty or so, less what their rows are thought to have taken.
        self.commit_seconds = 0.0
        self._wal_checked_at = 0.0

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction and return what it returns. Does not suspend if it can run inline.

        Raises what `work` raises (rolled back), `StoreBusyError` past the deadline, `StoreError` for the database's own
        troubles. If the caller is cancelled while the thread is at it, the transaction still ends one way or the other.
        """
        done = self.try_run(work)
        if done is not None:
            return done[0]
        return await self.run_in_thread(work)

    async def run_in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """`run` for what takes so long that the loop must not stand still for it."""
        return await asyncio.shield(self._submit(lambda: self._run_waiting(work)))

    def try_run(self, work: Callable[[sqlite3.Connection], T]) -> tuple[T] | None:
        """Run `work` in one transaction here and now and return what it returns, or do nothing: somebody is in the way.

        Raises what `work` raises (rolled back), and `StoreError` for the database's own troubles.
        """
        now = self._monotonic()
        if self._in_thread or now < self._contended_until or self.commit_seconds > SLOW_COMMIT_SECONDS:
            return None
        look = now - self._looked_at >= LOOK_SECONDS
        if look:
            self._looked_at = now
        if self._lock.try_acquire(look=look):
            try:
                return (self._transaction(work),)
            except sqlite3.Error as error:
                if not is_busy(error):
                    raise explained(error, self.database) from error
            finally:
                self._lock.release()
                if now - self._wal_checked_at >= WAL_LOOK_SECONDS:
                    self._look_at_wal(now)
        self._contended_until = now + CONTENDED_SECONDS
        return None

    async def settle(self) -> None:
        """Wait until nothing of this writer runs in the thread."""
        while self._in_thread:
            await asyncio.wait(set(self._in_thread))

    def read_data_version(self) -> int:
        """Return what changes when anybody else commits; the last known value while the thread is busy."""
        if not self._in_thread:
            self.data_version = self._execute("PRAGMA data_version").fetchone()[0]
        return self.data_version

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        execute = self._execute
        connection = self._connection
        changes = connection.total_changes
        execute("BEGIN IMMEDIATE")
        try:
            result = work(connection)
            changes -= connection.total_changes
            before = self._monotonic()
            execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise
        waited = self._monotonic() - before + changes * ROW_SECONDS
        self.commit_seconds += 0.05 * (waited - self.commit_seconds)
        return result

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            try:
                self._execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite rolled back on its own; the first error is the one to tell

    def _submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        future = self._executor.submit(call)
        self._in_thread.add(future)  # type: ignore[arg-type]  # a set of futures of anything
        future.add_done_callback(self._in_thread.discard)
        return future

    def _run_waiting(self, work: Callable[[sqlite3.Connection], T]) -> T:
        deadline = self._monotonic() + self.wait_seconds
        while True:
            if not self._lock.acquire(self._clock, deadline):
                raise StoreBusyError(
                    f"{self.database}: another process held the write lock for {self.wait_seconds:g} s; nothing was "
                    "written. Look for a stopped process or an open transaction, and try again"
                )
            try:
                result = self._transaction(work)
                self.data_version = self._execute("PRAGMA data_version").fetchone()[0]
                return result
            except sqlite3.Error as error:
                if not is_busy(error) or self._monotonic() >= deadline:
                    raise explained(error, self.database) from error
            finally:
                self._lock.release()
            self._lock.wait(0.002)  # a program that does not know our lock holds SQLite's own

    def _look_at_wal(self, now: float) -> None:
        """Above 64 MiB of log, checkpoint here: the checkpointer, if there is one, cannot keep up or was stopped."""
        self._wal_checked_at = now
        try:
            size = self._wal.stat().st_size
        except OSError:
            return
        if size > WAL_BYTES_MAX and not self._in_thread:
            self._submit(self._checkpoint)

    def _checkpoint(self) -> None:
        """Copy the log into the database while no other of our writers can append, so that the log starts over."""
        if not self._lock.acquire(self._clock, self._monotonic() + 1.0):
            return
        try:
            self._execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:
            pass  # the log grows on; the next look tries again
        finally:
            self._lock.release()

    def close(self) -> None:
        """Close the connection; only when idle."""
        with explaining(self.database):
            self._connection.close()
        self._lock.close()
