"""The SQLite store: the rooms that together are the contract. Knows nothing else."""

from __future__ import annotations

from durable.store.sqlite.completions import Completions
from durable.store.sqlite.driving import Driving
from durable.store.sqlite.maintenance import Care
from durable.store.sqlite.messages import Messages
from durable.store.sqlite.pattern_rows import PatternRows
from durable.store.sqlite.pausing import Pausing
from durable.store.sqlite.reading import Reading
from durable.store.sqlite.reopening import Reopening
from durable.store.sqlite.starting import Starting
from durable.store.sqlite.tasks import Tasks
from durable.store.sqlite.workers import Workers


class SqliteStore(
    Workers,
    Starting,
    Driving,
    Messages,
    Completions,
    Tasks,
    Reopening,
    Pausing,
    Reading,
    PatternRows,
    Care,
):
    """One database file, opened on one event loop. Implements the contract `durable.store.contract.Store`.

    Each room is a class over `Opened`: the verbs of one topic, above the transactions they run.
    """

    commits_at_once = 1  # one writer at a time
