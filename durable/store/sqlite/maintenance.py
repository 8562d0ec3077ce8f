"""Care of a file: which schema it has, how it fares, copies of it, and the deletion of what is old. Knows no worker's work.

The journal is append-only for everybody. Retention alone may delete from it: it marks a closed run in the transaction that
deletes the run, the trigger lets the marked run's rows go, and the mark is removed before the commit. Each batch leaves a
row in the table `retention`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Final

from durable.errors import StoreError
from durable.seams import SystemRandom, ThreadExecutor
from durable.store.codes import filter_codes
from durable.store.migrations import Migration, load_migrations
from durable.store.records import (
    RUN_ROWS_TABLE,
    ClosedRuns,
    PendingMigration,
    PruneOutcome,
    Schema,
    StoreHealth,
    care,
)
from durable.store.rows import json_text, open_runs, open_tasks
from durable.store.sqlite.connection import Mode, connect, connect_reader
from durable.store.sqlite.faults import explaining
from durable.store.sqlite.location import check_place, side_directory
from durable.store.sqlite.opened import Opened
from durable.store.sqlite.schema import PACKAGE, probe
from durable.store.statements import Statements, load_statements

_BELONGINGS: Final = (
    "prune_attempts",
    "prune_tasks",
    "prune_inbox",
    "prune_message_ids",
    "prune_requests",
    "prune_payloads",
    "prune_large_payloads",
    "prune_generations",
    "prune_children",
)


class Care(Opened):
    """The verbs of operators."""

    async def read_health(self) -> StoreHealth:
        groups = await self._scan("open_runs", {"now_us": self._clock.now_us()})
        with self._reading() as reader:
            (version,) = reader.execute(self._sql["read_schema_version"]).fetchone()
            (journal_mode,) = reader.execute("PRAGMA journal_mode").fetchone()
            (free_pages,) = reader.execute("PRAGMA freelist_count").fetchone()
            (page_bytes,) = reader.execute("PRAGMA page_size").fetchone()
        side = side_directory(self._database)
        newest = len(load_migrations(PACKAGE))
        return StoreHealth(
            engine=f"sqlite {sqlite3.sqlite_version}",
            journal_mode=journal_mode,
            durability=self._durability,
            schema=Schema(version=version, newest=newest),
            database_bytes=size_of(self._database),
            log_bytes=size_of(self._database.with_name(self._database.name + "-wal")),
            free_bytes=free_pages * page_bytes,
            locks=str(side) if side.is_dir() else "",
            unwritable=self._unwritable,
            open_runs=open_runs(groups),
            open_tasks=open_tasks(await self._scan("open_tasks", {"now_us": self._clock.now_us()})),
        )

    async def read_meta(self, key: str) -> str | None:
        with self._reading() as reader:
            row = reader.execute(self._sql["read_meta"], {"key": key}).fetchone()
        return None if row is None else str(row[0])

    async def back_up(self, target: Path) -> int:
        """In a thread of its own: the store's one is the writer's. Goes on to its end if the caller is cancelled."""
        self._require_usable()
        executor = ThreadExecutor(1, name="durable-backup")
        try:
            copying = partial(back_up, self._database, self._reader_mode, target)
            return await asyncio.shield(executor.submit(copying))
        finally:
            executor.close()

    async def count_closed_runs(self, chosen: ClosedRuns) -> int:
        rows = await self._scan("count_closed_runs", chosen_parameters(chosen))
        return int(rows[0][0])

    async def find_closed_runs(
        self, chosen: ClosedRuns, *, after: tuple[int, int] | None, limit: int
    ) -> list[tuple[int, int]]:
        after_us, after_run = after or (-(1 << 62), 0)
        place = {"after_us": after_us, "after_run": after_run, "count": limit}
        if chosen.has_own:
            rows = await self._scan("find_expired_runs", {"expiry_us": chosen.expiry_us, **place})
        else:
            rows = await self._scan("find_closed_runs", {**chosen_parameters(chosen), **place})
        return [(at_us, pk) for at_us, pk in rows]

    async def prune_runs(self, pks: Sequence[int], chosen: ClosedRuns, now_us: int) -> PruneOutcome:
        return await self._write(lambda db: prune_runs(db, self._sql, pks, chosen, now_us))


# ─ what there is ─────────────────────────────────────────────────────────────


def read_schema(database: Path) -> Schema:
    """Return the schema of an existing file without changing it. Blocks."""
    check_place(database, create=False)
    mode: Mode = "rw" if os.access(database, os.W_OK) and os.access(database.parent, os.W_OK) else "ro"
    with closing(connect_reader(database, mode=mode)) as reader:
        version = probe(reader, load_statements(PACKAGE), database)
    return Schema(version=version, newest=len(load_migrations(PACKAGE)))


def pending_migrations(database: Path) -> list[PendingMigration]:
    """Return the migrations that an existing file lacks, for SQLite's shell. Blocks."""
    version = read_schema(database).version
    return [
        PendingMigration(number=one.number, name=one.name, sql=_script(one))
        for one in load_migrations(PACKAGE)[version:]
    ]


def _script(migration: Migration) -> str:
    recorded = (
        "INSERT INTO migration (number, name, applied_at_us)\n"
        f"VALUES ({migration.number}, '{migration.name}', CAST(strftime('%s', 'now') AS INTEGER) * 1000000);"
    )
    return "\n\n".join(["BEGIN IMMEDIATE;", *migration.statements, recorded, "COMMIT;"])


def size_of(path: Path) -> int:
    """Return a file's size, 0 if there is none. Opens nothing."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


# ─ copies ────────────────────────────────────────────────────────────────────


def back_up(database: Path, mode: Mode, target: Path) -> int:
    """Copy the database into a new file through SQLite's backup interface; return its size. Blocks.

    In one step, so that one snapshot is read: writers go on beside it, and it need not start over. The copy is an ordinary
    single file. It is written under another name and linked to its own when it is complete, checked and flushed.
    """
    target = target.absolute()
    if not target.parent.is_dir():
        raise StoreError(f"there is no directory {target.parent}; make it first")
    _refuse_existing(target)
    partial = target.with_name(f"{target.name[:100]}.partial-{SystemRandom().run_suffix()}")
    try:
        with closing(connect_reader(database, mode=mode)) as source, explaining(partial):
            _copy(source, partial, database)
        _publish(partial, target)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
    return size_of(target)


def _copy(source: sqlite3.Connection, partial: Path, database: Path) -> None:
    with closing(connect(partial, mode="rwc", durability="full", rights_of=database)) as copy:
        source.backup(copy, pages=-1)
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
        found = [row[0] for row in copy.execute("PRAGMA quick_check(1)")]
        if found != ["ok"]:
            raise StoreError(f"the copy is damaged, and so is the database: {found[0]}")


def _publish(partial: Path, target: Path) -> None:
    try:
        os.link(partial, target)  # unlike a rename, never replaces what is there
    except FileExistsError:
        _refuse_existing(target)
        raise
    except OSError:  # a file system without links
        _refuse_existing(target)
        partial.rename(target)


def _refuse_existing(target: Path) -> None:
    try:
        target.lstat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:  # no file can have that name, or nobody may look
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(f"{str(target)[:200]} cannot be written: {why}; name another file") from error
    raise StoreError(f"{target} exists; a backup overwrites nothing: name a new file")


# ─ retention ─────────────────────────────────────────────────────────────────


def chosen_parameters(chosen: ClosedRuns) -> dict[str, object]:
    """Return the bound values by which statements find closed runs."""
    return {
        "before_us": chosen.before_us,
        "expiry_us": chosen.expiry_us,
        "workflow": chosen.workflow,
        "statuses": json_text(filter_codes(chosen.status)) if chosen.status else None,
    }


def prune_runs(
    db: sqlite3.Connection, sql: Statements, pks: Sequence[int], chosen: ClosedRuns, now_us: int
) -> PruneOutcome:
    """Delete runs, one after the other, until the batch is full; see the contract."""
    which = {**chosen_parameters(chosen), "has_own": int(chosen.has_own)}
    belongings = list(_BELONGINGS)
    if db.execute(sql["find_rows_table"], {"table": RUN_ROWS_TABLE}).fetchone() is not None:
        belongings.append("prune_rows_of_run")
    who = f"process {os.getpid()} of user {os.getuid()} on {socket.gethostname()}"
    retention = db.execute(sql["begin_retention"], {**which, "now_us": now_us, "who": who}).lastrowid
    seen = runs = rows = journal_rows = 0
    for pk in pks:
        if rows >= care.BATCH_ROWS_MAX:
            break
        seen += 1
        run = {"run": pk}
        if not db.execute(sql["mark_run"], {**which, **run, "retention": retention}).rowcount:
            continue  # started anew, or deleted, since it was found
        journal = db.execute(sql["prune_journal"], run).rowcount
        rows += 1 + journal + sum(db.execute(sql[name], run).rowcount for name in belongings)
        ((epoch,),) = db.execute(sql["prune_run"], run).fetchall()
        db.execute(sql["unmark_run"], run)
        for key, value in (("last_run_pruned", pk), ("last_epoch_pruned", epoch)):
            db.execute(sql["raise_meta"], {"key": key, "value": value})
        runs += 1
        journal_rows += journal
    done = {"retention": retention, "runs": runs, "journal_rows": journal_rows}
    if runs:
        db.execute(sql["end_retention"], done)
    else:
        db.execute(sql["drop_retention"], {"retention": retention})
    return PruneOutcome(seen=seen, runs=runs, journal_rows=journal_rows)
