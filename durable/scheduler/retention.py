"""Retention: closed runs are deleted when their time is up, in small batches, by one worker for all.

Whoever has the role looks now and then. The role saves work; it is no lock: two that prune at once delete each run once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from durable.errors import LeaseLostError, StoreError
from durable.journal.lifecycle import RunStatus
from durable.seams import Clock, pause
from durable.store.contract import Store
from durable.store.records import ClosedRuns

RETENTION_DAYS: Final = 30
ROLE: Final = "retention"
FIRST_SECONDS: Final = 60.0  # after the start of a worker: scripts that are done by then leave it to others
LOOK_SECONDS: Final = 600.0
PAGE: Final = 200  # runs looked for at a time; a transaction may take fewer of them
PAUSE_SECONDS: Final = 0.005  # between batches, so that workers get at the database
log = logging.getLogger("durable.scheduler")


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    runs: int
    journal_rows: int

    @property
    def counts(self) -> tuple[int, int]:
        return self.runs, self.journal_rows


async def keep_retention(
    store: Store, clock: Clock, *, retention_us: int, tidied: Mapping[str, int], worker_id: Callable[[], int]
) -> None:
    """Delete what was closed longer ago than that, or than its workflow says, until cancelled. A database in trouble is tried again.

    `tidied` says, by workflow, how long runs that ended well are kept. Only who serves these workflows knows it, so no role is needed
    for that: two that do it at once delete each run once.
    """
    wait = FIRST_SECONDS
    while True:
        await pause(wait)
        wait = LOOK_SECONDS
        try:
            if await store.take_role(worker_id(), ROLE):
                await _delete(store, clock, _due(clock.now_us(), retention_us))
            await _delete(store, clock, _tidied(clock.now_us(), tidied))
        except LeaseLostError:
            pass  # a new incarnation follows
        except StoreError as error:
            log.warning("retention waits for the database: %s", error)


async def _delete(store: Store, clock: Clock, due: Iterable[tuple[ClosedRuns, str]]) -> None:
    for chosen, when in due:
        deleted = await delete_closed(store, clock, chosen)
        if deleted.runs:
            log.info("retention deleted %d runs with %d journal rows, %s", *deleted.counts, when)


def _tidied(now_us: int, tidied: Mapping[str, int]) -> Iterable[tuple[ClosedRuns, str]]:
    """Return which runs are to go that ended well, workflow by workflow."""
    for workflow, kept_us in list(tidied.items()):
        ended_well = (RunStatus.COMPLETED, RunStatus.COMPENSATED)
        chosen = ClosedRuns(
            before_us=now_us - kept_us, expiry_us=now_us, status=ended_well, workflow=workflow
        )
        yield chosen, f"{workflow} that ended well more than {kept_us / 3_600_000_000:g} h ago"


def _due(now_us: int, retention_us: int) -> tuple[tuple[ClosedRuns, str], ...]:
    """Return which runs are to go, and why: those whose workflow says nothing of it, and those whose workflow does."""
    return (
        (
            ClosedRuns(before_us=now_us - retention_us, expiry_us=now_us),
            f"closed more than {retention_us / 86_400_000_000:g} days ago",
        ),
        (
            ClosedRuns(before_us=now_us, expiry_us=now_us, has_own=True),
            "closed longer ago than their workflows want them kept",
        ),
    )


async def delete_closed(store: Store, clock: Clock, chosen: ClosedRuns) -> Deleted:
    """Delete the chosen runs, batch after batch, each a short transaction. Interrupted, it has deleted less."""
    runs = journal_rows = 0
    after: tuple[int, int] | None = None
    while page := await store.find_closed_runs(chosen, after=after, limit=PAGE):
        outcome = await store.prune_runs([pk for _, pk in page], chosen, clock.now_us())
        runs += outcome.runs
        journal_rows += outcome.journal_rows
        after = page[outcome.seen - 1]
        await pause(PAUSE_SECONDS)
    return Deleted(runs=runs, journal_rows=journal_rows)
