"""Care of a file: which schema it has, how it fares, copies of it, and the deletion of what is old. Knows no worker's work.

The journal is append-only for everybody. Retention alone may delete from it: it marks a closed run in the transaction that
deletes the run, the trigger lets the marked run's rows go, and the mark is removed before the commit. Each batch leaves a
row in the table `retention`.
"""

from __future__ import annotations

import os
import socket
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from durable.errors import StoreError
from durable.seams import SystemRandom
from durable.store.migrations import Migration, load_migrations
from durable.store.records import ClosedRuns, OpenRuns, PendingMigration, PruneOutcome, Schema
from durable.store.sqlite.codes import filter_codes
from durable.store.sqlite.connection import Mode, connect, connect_reader
from durable.store.sqlite.faults import explaining
from durable.store.sqlite.liveness import Liveness, LiveWorker, beat_before_boot, is_foreign
from durable.store.sqlite.location import check_place
from durable.store.sqlite.reading import json_text
from durable.store.sqlite.schema import PACKAGE, probe
from durable.store.statements import Statements, load_statements

BATCH_ROWS_MAX: Final = (
    5000  # deleted rows after which a batch takes no further run: a few milliseconds of the lock
)
_BELONGINGS: Final = (
    "prune_attempts",
    "prune_inbox",
    "prune_message_ids",
    "prune_requests",
    "prune_payloads",
    "prune_large_payloads",
    "prune_generations",
)


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


def open_runs(rows: Sequence[Sequence[Any]]) -> tuple[OpenRuns, ...]:
    """Return the records of the rows of `open_runs`."""
    return tuple(
        OpenRuns(
            task_queue=task_queue,
            workflow=workflow,
            version=version,
            state=state,
            runs=runs,
            since_us=since_us,
        )
        for task_queue, workflow, version, state, runs, since_us in rows
    )


def lost_workers(liveness: Liveness, workers: Sequence[LiveWorker], now_us: int) -> list[int]:
    """Return those whose lock can be had: their process is gone (P10). The lock is let go at once."""
    lost = []
    for worker in workers:
        if is_foreign(worker) and not beat_before_boot(worker, now_us):
            continue  # on another machine, for all we know
        if (grip := liveness.grip(worker.worker)) is not None:
            grip.let_go(remove=False)
            lost.append(worker.worker)
    return lost


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
    partial = target.with_name(f"{target.name}.partial-{SystemRandom().run_suffix()}")
    try:
        with closing(connect_reader(database, mode=mode)) as source, explaining(partial):
            _copy(source, partial)
        _publish(partial, target)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)
    return size_of(target)


def _copy(source: sqlite3.Connection, partial: Path) -> None:
    with closing(connect(partial, mode="rwc", durability="full")) as copy:
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
    if target.exists() or target.is_symlink():
        raise StoreError(f"{target} exists; a backup overwrites nothing: name a new file")


# ─ retention ─────────────────────────────────────────────────────────────────


def chosen_parameters(chosen: ClosedRuns) -> dict[str, object]:
    """Return the bound values by which statements find closed runs."""
    return {
        "before_us": chosen.before_us,
        "statuses": json_text(filter_codes(chosen.status)) if chosen.status else None,
    }


def prune_runs(
    db: sqlite3.Connection, sql: Statements, pks: Sequence[int], chosen: ClosedRuns, now_us: int
) -> PruneOutcome:
    """Delete runs, one after the other, until the batch is full; see the contract."""
    which = chosen_parameters(chosen)
    who = f"process {os.getpid()} of user {os.getuid()} on {socket.gethostname()}"
    retention = db.execute(sql["begin_retention"], {**which, "now_us": now_us, "who": who}).lastrowid
    seen = runs = rows = journal_rows = 0
    for pk in pks:
        if rows >= BATCH_ROWS_MAX:
            break
        seen += 1
        run = {"run": pk}
        if not db.execute(sql["mark_run"], {**which, **run, "retention": retention}).rowcount:
            continue  # started anew, or deleted, since it was found
        journal = db.execute(sql["prune_journal"], run).rowcount
        rows += 1 + journal + sum(db.execute(sql[name], run).rowcount for name in _BELONGINGS)
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
