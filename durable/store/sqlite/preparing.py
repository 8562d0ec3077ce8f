"""Opening a file: what stands between a path and a store's connections. Blocks: runs in a thread."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final

import msgspec

from durable.errors import SchemaVersionError, StoreError
from durable.seams import Clock
from durable.store.migrations import load_migrations
from durable.store.sqlite.connection import Mode, connect, connect_reader
from durable.store.sqlite.faults import explaining
from durable.store.sqlite.liveness import Liveness, LiveWorker, is_foreign
from durable.store.sqlite.location import check_place, make_side_directory
from durable.store.sqlite.schema import PACKAGE, check_library, migrate, probe
from durable.store.sqlite.write_lock import WriteLock, open_lock_file
from durable.store.statements import Statements, load_statements

OPEN_WAIT_SECONDS: Final = 30.0


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """An opened file. Without a `connection` it can only be read, for the reason in `unwritable`."""

    database: Path
    reader: sqlite3.Connection
    reader_mode: Mode
    side: Path | None = None
    connection: sqlite3.Connection | None = None
    lock: WriteLock | None = None
    unwritable: str = ""

    def close(self) -> None:
        """Close what a caller who went away will not use."""
        self.reader.close()
        if self.connection is not None:
            self.connection.close()
        if self.lock is not None:
            self.lock.close()


def prepare(database: Path, *, durability: str, clock: Clock, create: bool) -> Prepared:
    """Check the place, open, migrate. Raises errors of ours, each saying what to do."""
    check_library()
    check_place(database, create=create)
    if (why := _why_unwritable(database)) is not None:
        return _prepare_for_reading(database, why)
    sql = load_statements(PACKAGE)
    rights_of = _own_file(database) if create and not database.exists() else None
    connection = connect(database, mode="rwc" if create else "rw", durability=durability, rights_of=rights_of)
    lock = None
    try:
        with explaining(database):  # others may be opening, recovering or closing it at this moment
            connection.execute("PRAGMA busy_timeout = 10000")
        version = probe(connection, sql, database)
        if version == 0 and not create:
            raise StoreError(f"{database} is empty: no run was ever started here")
        side = make_side_directory(database)
        lock = WriteLock(side)
        if version < len(load_migrations(PACKAGE)) or not _has_log(connection, database):
            migrate(connection, sql, database, lock=lock, clock=clock, seconds=OPEN_WAIT_SECONDS)
        with explaining(database):
            connection.execute("PRAGMA wal_autocheckpoint = 0")
        _refuse_foreign_workers(connection, sql, database, side)
        reader = connect_reader(database, mode="rw")
        with explaining(database):
            connection.execute("PRAGMA busy_timeout = 0")
    except BaseException:
        connection.close()
        if lock is not None:
            lock.close()
        raise
    return Prepared(
        database=database, reader=reader, reader_mode="rw", side=side, connection=connection, lock=lock
    )


def _own_file(database: Path) -> Path:
    """Return a file that is this user's alone: so is a database that is made like it. Payloads are nobody else's business."""
    path = make_side_directory(database) / "write.lock"
    os.close(open_lock_file(path))
    return path


def _why_unwritable(database: Path) -> str | None:
    """Say why an existing file cannot be written; SQLite itself would find out at the first write only."""
    if not database.exists():
        return None
    if not os.access(database, os.W_OK):
        return "the file is read-only for this user; opened for reading, nothing was written"
    if not os.access(database.parent, os.W_OK):
        return "its directory is read-only for this user; opened for reading, nothing was written"
    return None


def _prepare_for_reading(database: Path, why: str) -> Prepared:
    mode: Mode = "ro"
    try:
        reader = connect_reader(database, mode=mode)
    except StoreError as error:
        # SQLite cannot make the -shm file here. Without a log beside it, the file alone is the whole database.
        log = database.with_name(database.name + "-wal")
        if not isinstance(error.__cause__, sqlite3.OperationalError) or log.exists():
            raise
        mode = "immutable"
        reader = connect_reader(database, mode=mode)
    try:
        version = probe(reader, load_statements(PACKAGE), database)
        if version < len(load_migrations(PACKAGE)):
            raise SchemaVersionError(
                f"{database} has an older schema ({version}) and cannot be written ({why}); open it once with write access"
            )
    except BaseException:
        reader.close()
        raise
    return Prepared(database=database, reader=reader, reader_mode=mode, unwritable=why)


def _has_log(connection: sqlite3.Connection, database: Path) -> bool:
    with explaining(database):
        (mode,) = connection.execute("PRAGMA journal_mode").fetchone()
    return bool(mode == "wal")


def _refuse_foreign_workers(
    connection: sqlite3.Connection, sql: Statements, database: Path, side: Path
) -> None:
    """Refuse a file that a worker on another machine is using: it holds its lock, under another boot id (P10)."""
    liveness = Liveness(side)
    with explaining(database):
        workers = [LiveWorker(*row) for row in connection.execute(sql["live_workers"])]
    for worker in workers:
        if is_foreign(worker) and liveness.is_locked(worker.worker):
            raise StoreError(
                f"{database} is in use by a worker on another machine ({worker.name}): SQLite files cannot be shared "
                "between machines. Stop that worker first, or use a database of your own"
            )
