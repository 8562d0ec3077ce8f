"""Care of a schema: how it fares, and the deletion of what is old. Knows no worker's work.

The journal is append-only for everybody. Retention alone may delete from it: it marks closed runs in the transaction that
deletes them, the trigger lets the marked runs' rows go, and the marks are removed before the commit. Each batch leaves a
row in the table `retention`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from itertools import accumulate

from durable.store.postgres.connection import Session
from durable.store.records import ClosedRuns, PruneOutcome
from durable.store.sqlite import maintenance
from durable.store.sqlite.codes import filter_codes
from durable.store.sqlite.reading import json_text


def chosen_parameters(chosen: ClosedRuns) -> dict[str, object]:
    """Return the bound values by which statements find closed runs."""
    return {
        "before_us": chosen.before_us,
        "statuses": filter_codes(chosen.status) if chosen.status else None,
    }


async def prune_runs(db: Session, pks: Sequence[int], chosen: ClosedRuns, now_us: int | None) -> PruneOutcome:
    """Delete runs until the batch is full; see the contract. One transaction."""
    found = {
        row["id"]: row
        for row in await db.fetch("lock_closed_runs", runs=list(pks), **chosen_parameters(chosen))
    }
    before = accumulate((found[pk]["rows"] if pk in found else 0 for pk in pks), initial=0)
    seen = [pk for pk, rows in zip(pks, before, strict=False) if rows < maintenance.BATCH_ROWS_MAX]
    runs = [pk for pk in seen if pk in found]
    if not runs:
        return PruneOutcome(seen=len(seen), runs=0, journal_rows=0)
    sequence = f'"{db.schema}".epoch_floor'
    await db.fetch("raise_epoch_floor", epoch_sequence=sequence, epoch=max(found[pk]["epoch"] for pk in runs))
    retention = await db.value(
        "begin_retention",
        now_us=now_us,
        before_us=chosen.before_us,
        statuses=json_text(filter_codes(chosen.status)) if chosen.status else None,
        who=f"process {os.getpid()} of user {os.getuid()} on {socket.gethostname()}",
    )
    await db.fetch("mark_runs", runs=runs, retention=retention)
    journal_rows = int(await db.value("prune_journal", runs=runs))
    await db.fetch("prune_belongings", runs=runs)
    await db.fetch("unmark_runs", runs=runs)
    await db.fetch("end_retention", retention=retention, runs=len(runs), journal_rows=journal_rows)
    return PruneOutcome(seen=len(seen), runs=len(runs), journal_rows=journal_rows)
