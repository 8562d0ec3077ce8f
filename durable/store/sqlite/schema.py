"""Makes a file ours: probes it, switches it to WAL, applies migrations. Safe when two processes do so at once."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from durable.errors import NotADatabaseError, SchemaVersionError, StoreBusyError, StoreError
from durable.seams import Clock, SystemRandom
from durable.store.migrations import load_migrations
from durable.store.sqlite.faults import explaining, is_busy
from durable.store.sqlite.write_lock import WriteLock
from durable.store.statements import Statements

PACKAGE: Final = "durable.store.sqlite"
APPLICATION_ID: Final = 0x64757262  # "durb" in the header; the first migration writes it
_SQLITE_OLDEST: Final = (3, 37, 0)  # STRICT tables


def check_library() -> None:
    if sqlite3.sqlite_version_info < _SQLITE_OLDEST:
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: this library needs 3.37 or later")


def probe(connection: sqlite3.Connection, sql: Statements, database: Path) -> int:
    """Return the schema version of a database of ours, 0 for an empty file; refuse any other without touching it."""
    with explaining(database):
        (tables,) = connection.execute(sql["count_tables"]).fetchone()
        if tables == 0:
            return 0
        # After the tables: the transaction of somebody who makes the file this very moment writes both.
        (application_id,) = connection.execute("PRAGMA application_id").fetchone()
        if application_id != APPLICATION_ID:
            raise NotADatabaseError(
                f"{database} is an SQLite database of another program; it was not touched. Name another file"
            )
        version = connection.execute(sql["read_schema_version"]).fetchone()[0] or 0
    newest = len(load_migrations(PACKAGE))
    if version > newest:
        raise SchemaVersionError(
            f"{database} has schema {version}, this code knows schemas up to {newest}; upgrade the library"
        )
    return int(version)


def migrate(
    connection: sqlite3.Connection,
    sql: Statements,
    database: Path,
    *,
    lock: WriteLock,
    clock: Clock,
    seconds: float,
) -> None:
    """Bring the schema up to date, one transaction per migration, waiting up to `seconds` for other openers."""
    deadline = clock.monotonic() + seconds
    with explaining(database):
        while not _try_migrate(connection, sql, database, lock=lock, clock=clock, deadline=deadline):
            lock.wait(0.005)


def _try_migrate(
    connection: sqlite3.Connection,
    sql: Statements,
    database: Path,
    *,
    lock: WriteLock,
    clock: Clock,
    deadline: float,
) -> bool:
    if not lock.acquire(clock, deadline):
        raise StoreBusyError(f"{database}: another process held the write lock too long; it was not opened")
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise StoreError(
                f"{database} cannot use a write-ahead log (mode {mode!r}); put it on a local disk"
            )
        for migration in load_migrations(PACKAGE):
            _apply(connection, sql, database, migration.number, clock.now_us())
        return True
    except sqlite3.OperationalError as error:
        if not is_busy(error) or clock.monotonic() >= deadline:
            raise
        return False  # a program that does not know our lock is at work
    finally:
        lock.release()


def _apply(connection: sqlite3.Connection, sql: Statements, database: Path, number: int, now_us: int) -> None:
    migration = load_migrations(PACKAGE)[number - 1]
    if number <= probe(connection, sql, database):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if number > probe(connection, sql, database):  # again, now that nobody else can
            if number == 1:
                connection.execute(sql["create_migration_table"])
            for statement in migration.statements:
                connection.execute(statement)
            if number == 1:
                _write_meta(connection, sql, now_us)
            connection.execute(
                sql["record_migration"], {"number": number, "name": migration.name, "now_us": now_us}
            )
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _write_meta(connection: sqlite3.Connection, sql: Statements, now_us: int) -> None:
    random = SystemRandom()
    for key, value in (
        ("database_id", random.request_id()),
        ("hash_seed", str(random.seed() % (1 << 32))),
        ("created_at_us", str(now_us)),
    ):
        connection.execute(sql["write_meta"], {"key": key, "value": value})
