"""The Postgres store: the rooms that together are the contract. Knows nothing else."""

from __future__ import annotations

import math

from durable.store.postgres.completions import Completions
from durable.store.postgres.driving import Driving
from durable.store.postgres.maintenance import Care
from durable.store.postgres.messages import Messages
from durable.store.postgres.pattern_rows import PatternRows
from durable.store.postgres.pausing import Pausing
from durable.store.postgres.reading import Reading
from durable.store.postgres.reopening import Reopening
from durable.store.postgres.starting import Starting
from durable.store.postgres.tasks import Tasks
from durable.store.postgres.workers import Workers


class PostgresStore(
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
    """One schema, opened on one event loop. Implements the contract `durable.store.contract.Store`.

    Each room is a class over `Opened`: the verbs of one topic, above the transactions they run.
    """

    # One for the server to write while the loop makes the other; fewer than there are fences.
    commits_at_once = 2
    commit_seconds = math.inf  # none on the spot
