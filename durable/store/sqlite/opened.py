"""A database file, opened: its connections, and the ways to write and to read through them. Knows none of the verbs.

Three connections per store: the writer's, a reader on the loop thread for what is looked up by key (microseconds), and
for lists and scans one in a thread, opened for the call, so that a long scan never holds up the loop. Heartbeats have
one more, in their thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from durable.errors import StoreError
from durable.seams import Clock, Executor, ThreadExecutor
from durable.store import forks
from durable.store.refusals import CLOSED, FORKED
from durable.store.sqlite.checkpointer import Checkpointer
from durable.store.sqlite.committing import TurnWriter
from durable.store.sqlite.connection import Writer, database_uri
from durable.store.sqlite.faults import explaining
from durable.store.sqlite.grouping import Groups
from durable.store.sqlite.heartbeat import Heartbeat
from durable.store.sqlite.liveness import (
    BeatWatch,
    Liveness,
    forget_inherited,
)
from durable.store.sqlite.location import file_identity
from durable.store.sqlite.preparing import Prepared, prepare
from durable.store.sqlite.schema import PACKAGE
from durable.store.sqlite.wakeups import Wakeups
from durable.store.statements import load_statements

T = TypeVar("T")

_FEW_ROWS: Final = 20
_SCANS_MAX: Final = 2  # at once; they are long, and nobody's turn waits for one
_MANY_ROWS: Final = 500  # some 10 ms on the loop
_MOVED: Final = (
    "the file was deleted or replaced while it was open here, and what would be written now would be lost with it: put it back, and "
    "start this process anew"
)


class Opened:
    """What every room of verbs stands on: one file, opened on one event loop."""

    def __init__(self, prepared: Prepared, *, durability: str, clock: Clock, executor: Executor) -> None:
        self.url = f"sqlite:///{prepared.database}"
        self._database = prepared.database
        self._clock = clock
        self._durability = durability
        self._executor = executor
        self._sql = load_statements(PACKAGE)
        self._turns = TurnWriter(self._sql)
        self._reader = prepared.reader
        self._reader_mode = prepared.reader_mode
        self._unwritable = prepared.unwritable
        self._writer: Writer | None = None
        self._groups: Groups | None = None
        self._liveness: Liveness | None = None
        self._heartbeat: Heartbeat | None = None
        self._checkpointer: Checkpointer | None = None
        if prepared.connection is not None and prepared.lock is not None and prepared.side is not None:
            self._writer = Writer(
                prepared.database, prepared.connection, prepared.lock, executor=executor, clock=clock
            )
            self._liveness = Liveness(prepared.side)
            self._heartbeat = Heartbeat(
                prepared.database, prepared.side, self._sql, durability=durability, clock=clock
            )
            self._checkpointer = Checkpointer(
                prepared.database, prepared.side, durability=durability, clock=clock
            )
        self._lock = prepared.lock
        self._loop = asyncio.get_running_loop()
        if self._writer is not None:
            self._groups = Groups(self._writer, self._loop)
        self._wakeups = Wakeups(
            prepared.side, self._loop, read_version=self._read_version, read_addresses=self._read_addresses
        )
        self._watch = BeatWatch()
        self._scanner: Executor = ThreadExecutor(_SCANS_MAX, name="durable-scan")
        self._scans: set[asyncio.Future[list[Any]]] = set()
        self._workers: dict[int, str | None] = {}  # registered here, not retired: their socket names
        self._gone: str | None = None  # why the store cannot be used any more
        self._place = file_identity(prepared.database)
        forks.track(self)

    @classmethod
    async def open(
        cls,
        database: Path,
        *,
        durability: str = "full",
        clock: Clock,
        create: bool = True,
        executor: Executor | None = None,
    ) -> Self:
        """Open the file, creating and migrating it if needed. `executor` needs one thread; it is closed with the store.

        A file that cannot be written is opened for reading; every write then raises `StoreError`.
        """
        executor = executor or ThreadExecutor(1, name="durable-store")
        opening = executor.submit(
            partial(prepare, database, durability=durability, clock=clock, create=create)
        )
        try:
            prepared = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            raise
        except BaseException:
            executor.close()
            raise
        return cls(prepared, durability=durability, clock=clock, executor=executor)

    async def close(self) -> None:
        """Give back every connection and file. Idempotent. Workers that were not retired can be rescued at once."""
        if self._gone in (CLOSED, FORKED):
            return
        self._gone = CLOSED
        self._wakeups.close()
        if self._scans:
            await asyncio.wait(self._scans)
        self._scanner.close()
        if self._groups is not None:
            await self._groups.close(self._refusal())
        if self._writer is not None:
            await self._writer.settle()
        await asyncio.shield(self._executor.submit(self._close_files))
        self._executor.close()

    def abandon(self) -> None:
        """In a forked child: refuse every use, close no connection."""
        self._gone = FORKED
        forget_inherited()
        self._wakeups.abandon()
        if self._checkpointer is not None:
            self._checkpointer.abandon()
        if self._heartbeat is not None:
            self._heartbeat.abandon()
        if self._lock is not None:
            for descriptor in self._lock.descriptors():
                os.close(descriptor)

    def _close_files(self) -> None:
        forks.forget(self)
        if self._checkpointer is not None:
            self._checkpointer.stop()
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._liveness is not None:
            for worker in self._workers:
                self._liveness.drop(worker, remove=False)

    # ─ being told ──

    def subscribe(self, worker_id: int | None, on_change: Callable[[], None]) -> Callable[[], None]:
        """A store's workers share its subscribers; who is one, with a socket, polls less."""
        self._require_usable()
        is_told = worker_id is not None and self._workers.get(worker_id) is not None
        return self._wakeups.subscribe(on_change, is_told=is_told)

    # ─ ways to write ──

    def _notice_moved(self) -> None:
        """See whether the file's name still leads to it. SQLite does not notice: it would write to a file that nobody finds any more.

        With every beat, and before all writes that are no turns. Only looked at, never opened (P31).
        """
        if self._gone is None and file_identity(self._database) != self._place:
            self._gone = _MOVED

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self._notice_moved()
        if self._writer is None or self._gone is not None:
            raise self._refusal()
        return await self._writer.run(work)

    async def _write_grouped(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write together with whatever else is asked for at this moment."""
        self._notice_moved()
        if self._groups is None or self._gone is not None:
            raise self._refusal()
        return await self._groups.write(work)

    async def _write_sized(self, rows: int, work: Callable[[sqlite3.Connection], T]) -> T:
        """Write so many rows where they hold up nobody: with others', at once, or in the thread."""
        if rows <= _FEW_ROWS:
            return await self._write_grouped(work)
        self._notice_moved()
        if rows <= _MANY_ROWS or self._writer is None or self._gone is not None:
            return await self._write(work)
        return await self._writer.run_in_thread(work)

    # ─ ways to read ──

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._require_usable()
        with explaining(self._database):
            yield self._reader

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Several reads of one state."""
        with self._reading() as reader:
            reader.execute("BEGIN")
            try:
                yield reader
            finally:
                reader.execute("COMMIT")

    async def _scan(self, name: str, parameters: dict[str, object]) -> list[Any]:
        """Run a read that may be long in a thread, on a connection of its own.

        To its end, also if the caller is cancelled. No task: a loop that ends cancels those at any of their steps, and
        would be gone when the thread answers; `close` waits for the future.
        """
        self._require_usable()
        scan = self._scanner.submit(partial(self._scan_through, self._sql[name], parameters))
        self._scans.add(scan)
        scan.add_done_callback(self._scanned)
        return await asyncio.shield(scan)

    def _scanned(self, scan: asyncio.Future[list[Any]]) -> None:
        self._scans.discard(scan)
        if not scan.cancelled():
            scan.exception()  # looked at, though nobody may wait for it any more

    def _scan_through(self, statement: str, parameters: dict[str, object]) -> list[Any]:
        with explaining(self._database):
            connection = sqlite3.connect(
                database_uri(self._database, self._reader_mode), uri=True, isolation_level=None
            )
            try:
                return connection.execute(statement, parameters).fetchall()
            finally:
                connection.close()

    def _read_version(self) -> int:
        self._require_usable()
        with explaining(self._database):
            if self._writer is not None:
                return self._writer.read_data_version()
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def _read_addresses(self) -> list[str]:
        with self._reading() as reader:
            return [row[0] for row in reader.execute(self._sql["wake_addresses"])]

    # ─ refusals ──

    def _require_usable(self) -> None:
        if self._gone is not None:
            raise StoreError(f"{self._database}: {self._gone}")

    def _require_liveness(self) -> Liveness:
        if self._liveness is None or self._gone is not None:
            raise self._refusal()
        return self._liveness

    def _refusal(self) -> StoreError:
        return StoreError(f"{self._database}: {self._gone or self._unwritable}")


def _close_unused(opening: asyncio.Future[Prepared]) -> None:
    """Whoever opened the store was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
