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
from pathlib import Path

from durable.errors import StoreError
from durable.store.codes import filter_codes
from durable.store.migrations import load_migrations
from durable.store.postgres.connection import PACKAGE, Session
from durable.store.postgres.opened import Opened
from durable.store.records import RUN_ROWS_TABLE, ClosedRuns, PruneOutcome, Schema, StoreHealth, care
from durable.store.rows import json_text, open_runs, open_tasks


class Care(Opened):
    """The verbs of operators."""

    async def read_health(self) -> StoreHealth:
        place = self._database.place
        groups = await self._look("open_runs", now_us=self._given(self._clock.now_us()))
        ((version,),) = await self._look("read_schema_version")
        ((size,),) = await self._look("read_sizes", schema=place.schema)
        (settings,) = await self._look("read_settings", run_table=f'"{place.schema}".run')
        unwritable = self._unwritable or (
            "" if settings["may_write"] else "this role may only read; give it the rights of a worker"
        )
        return StoreHealth(
            engine=f"postgres {settings['version'].split()[0]}",
            journal_mode=f"wal (synchronous_commit {settings['synchronous_commit']}, fsync {settings['fsync']})",
            durability=self._durability,
            schema=Schema(version=version, newest=len(load_migrations(PACKAGE))),
            database_bytes=size,
            log_bytes=None,
            free_bytes=None,
            locks=None,
            unwritable=unwritable,
            open_runs=open_runs(groups),
            open_tasks=open_tasks(await self._look("open_tasks", now_us=self._given(self._clock.now_us()))),
        )

    async def read_meta(self, key: str) -> str | None:
        found = await self._look("read_meta", key=key)
        return str(found[0][0]) if found else None

    async def back_up(self, target: Path) -> int:
        """Not done from here: the server's own tools copy a schema, and whole servers, better."""
        self._require_usable()
        raise StoreError(
            f"{self.url}: a Postgres schema is copied with the server's own tools, e.g. "
            f"pg_dump --schema={self._database.place.schema} --format=custom --file={target.name}; nothing was written"
        )

    async def count_closed_runs(self, chosen: ClosedRuns) -> int:
        found = await self._look("count_closed_runs", **chosen_parameters(chosen))
        return int(found[0][0])

    async def find_closed_runs(
        self, chosen: ClosedRuns, *, after: tuple[int, int] | None, limit: int
    ) -> list[tuple[int, int]]:
        after_us, after_run = after or (-(1 << 62), 0)
        place = {"after_us": after_us, "after_run": after_run, "count": limit}
        if chosen.has_own:
            found = await self._look("find_expired_runs", expiry_us=chosen.expiry_us, **place)
        else:
            found = await self._look("find_closed_runs", **chosen_parameters(chosen), **place)
        return [(at_us, pk) for at_us, pk in found]

    async def prune_runs(self, pks: Sequence[int], chosen: ClosedRuns, now_us: int) -> PruneOutcome:
        return await self._write(lambda db: prune_runs(db, pks, chosen, self._given(now_us)))


def chosen_parameters(chosen: ClosedRuns) -> dict[str, object]:
    """Return the bound values by which statements find closed runs."""
    return {
        "before_us": chosen.before_us,
        "expiry_us": chosen.expiry_us,
        "workflow": chosen.workflow,
        "statuses": filter_codes(chosen.status) if chosen.status else None,
    }


async def prune_runs(db: Session, pks: Sequence[int], chosen: ClosedRuns, now_us: int | None) -> PruneOutcome:
    """Delete runs until the batch is full; see the contract. One transaction."""
    found = {
        row["id"]: row
        for row in await db.fetch(
            "lock_closed_runs", runs=list(pks), has_own=chosen.has_own, **chosen_parameters(chosen)
        )
    }
    before = accumulate((found[pk]["rows"] if pk in found else 0 for pk in pks), initial=0)
    seen = [pk for pk, rows in zip(pks, before, strict=False) if rows < care.BATCH_ROWS_MAX]
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
    await db.fetch("prune_belongings", runs=runs, rows_table=RUN_ROWS_TABLE)
    await db.fetch("unmark_runs", runs=runs)
    await db.fetch("end_retention", retention=retention, runs=len(runs), journal_rows=journal_rows)
    return PruneOutcome(seen=len(seen), runs=len(runs), journal_rows=journal_rows)
