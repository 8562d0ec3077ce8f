"""Care of a database: its schema, its health, and the closed runs that are to go."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from durable.journal.lifecycle import RunStatus


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """Which schema a database has (0: it is empty), and the newest this code knows."""

    version: int
    newest: int


class PendingMigration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that a database lacks, and the SQL that brings it, as one transaction for the database's own shell."""

    number: int
    name: str
    sql: str


class OpenRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Open runs of one queue, definition and state. `since_us`: since when the longest of them has been ready."""

    task_queue: str
    workflow: str
    version: int
    state: Literal["ready", "delayed", "owned", "waiting", "parked", "paused"]
    runs: int
    since_us: int


class OpenTasks(msgspec.Struct, frozen=True, kw_only=True):
    """Activity tasks of one queue, activity and state that somebody waits for. `since_us`: since when the first has been due."""

    task_queue: str
    activity: str
    state: Literal["ready", "delayed", "started", "paused"]
    tasks: int
    since_us: int


class StoreHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to know of a database; read at one moment, decides nothing."""

    engine: str  # "sqlite 3.45.1"
    journal_mode: str
    durability: str  # as this process opened it; each opener chooses
    schema: Schema
    database_bytes: int
    log_bytes: int | None  # None: the log is the server's own business
    free_bytes: int | None  # inside the database: reused before it grows; None: not known
    locks: (
        str | None
    )  # the directory of locks and sockets; empty if it is missing, None if there is none to be had
    unwritable: str  # why it can only be read; empty if it can be written
    open_runs: tuple[OpenRuns, ...]
    open_tasks: tuple[OpenTasks, ...] = ()


RUN_ROWS_TABLE: Final = (
    "durable_bulk_items"  # rows of patterns that go with their run: their keys are `run_id/number`
)


# Deleted rows after which a batch takes no further run: a few milliseconds of SQLite's write lock.
BATCH_ROWS_MAX: Final = 5000


class ClosedRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Which closed runs retention means: closed before an instant, with one of `status` (none: any), of one `workflow` (None: any).

    With `expiry_us` only those whose workflow does not say itself how long its runs are kept, or whose own time was up at that instant;
    without, whatever workflows say. `has_own`: those of workflows that do say so, and none else.
    """

    before_us: int
    expiry_us: int | None = None
    status: tuple[RunStatus, ...] = ()
    workflow: str | None = None
    has_own: bool = False


class PruneOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch deleted. `seen` runs of those named were looked at; the batch was full before the rest."""

    seen: int
    runs: int
    journal_rows: int
