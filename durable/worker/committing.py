"""Group commit: whatever is ready goes into one transaction, and only then do its effects happen.

A batch whose commit failed is not in the database (or, if that is unknown, the journal will say so): its instances are
discarded and rebuilt from the journal, the work they had consumed comes back (P6, P15, P16).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from durable.errors import DurableError, LeaseLostError, StoreError
from durable.seams import Clock, pause
from durable.store.contract import Store
from durable.store.records import Verdict
from durable.worker.driving import Driver
from durable.worker.incarnation import FRESH_SHARE, Incarnation
from durable.worker.live import Item

TROUBLE_SECONDS: Final = 0.25
log = logging.getLogger("durable.worker")


class Committer:
    """Commits the driver's items, one batch at a time, with no linger."""

    def __init__(
        self,
        store: Store,
        driver: Driver,
        clock: Clock,
        incarnation: Callable[[], Incarnation],
        on_lost: Callable[[int], None],
    ) -> None:
        self._store = store
        self._driver = driver
        self._clock = clock
        self._incarnation = incarnation
        self._on_lost = on_lost
        self._work: asyncio.Future[None] | None = None
        self._has_work = False
        self._is_committing = False
        self._in_trouble = False  # the last commit failed: a pause before the next
        self.in_doubt: list[Item] = []  # cancelled in the middle of their commit: written or not, nobody said

    def wake(self) -> None:
        """There are items: commit them here and now if the store can, else as soon as it can."""
        if self._is_committing or self._in_trouble or self._has_work or not self._commit_now():
            self._has_work = True
            if self._work is not None and not self._work.done():
                self._work.set_result(None)

    async def run(self) -> None:
        """Commit what could not be committed on the spot, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._has_work:
                self._work = loop.create_future()
                await self._work
            self._has_work = False
            if self._in_trouble:
                await pause(TROUBLE_SECONDS)
                self._in_trouble = False
            await self.commit()

    def _commit_now(self) -> bool:
        """Commit what is there without giving up control; return whether that was possible."""
        driver = self._driver
        items = driver.items
        incarnation = self._incarnation()
        since = self._clock.monotonic()
        try:
            verdicts = self._store.commit_turns_now(incarnation.worker_id, items, self._clock.now_us())
        except (LeaseLostError, StoreError) as error:
            driver.items = []
            self._failed(items, incarnation, error)
            return not self._in_trouble
        except (
            Exception
        ):  # a fault of ours: it is met again in the committer's task, whose end ends the worker
            log.exception("a commit on the spot met an internal error")
            return False
        if verdicts is None:
            return False
        driver.items = []
        self._release(items, verdicts, incarnation, since)
        return True

    async def commit(self) -> None:
        """Commit what is there now, and release its effects."""
        driver = self._driver
        items, driver.items = driver.items, []
        if not items:
            return
        incarnation = self._incarnation()
        since = self._clock.monotonic()
        self._is_committing = True
        try:
            verdicts = await self._store.commit_turns(incarnation.worker_id, items, self._clock.now_us())
        except asyncio.CancelledError:
            self.in_doubt.extend(items)
            raise
        except (LeaseLostError, StoreError) as error:
            self._failed(items, incarnation, error)
            return
        finally:
            self._is_committing = False
        self._release(items, verdicts, incarnation, since)

    def _release(
        self, items: list[Item], verdicts: Sequence[Verdict], incarnation: Incarnation, since: float
    ) -> None:
        """The items are durable, or refused one by one: let their effects happen, if the lease still holds."""
        driver = self._driver
        if not incarnation.is_fresh(since):
            # Written, but by the time we know, others may own these runs: they will find it in the journal.
            self._give_up(items, incarnation)
            return
        driver.performer.fence = partial(incarnation.is_fresh, since)
        driver.performer.fresh_until = since + incarnation.lease_seconds * FRESH_SHARE
        for item, verdict in zip(items, verdicts, strict=True):
            try:
                driver.settle(item, verdict)
            except Exception:  # a fault of ours in one run must not stop the commits of all
                log.exception(
                    "run %r: its commit could not be settled; it is read again",
                    item.run.run_id,
                    extra=item.run.log_fields,
                )
                driver.doubt(item.run)

    def _failed(self, items: list[Item], incarnation: Incarnation, error: DurableError) -> None:
        """The commit failed, as far as is known: take everything back, and ask the store what is true."""
        driver = self._driver
        if isinstance(error, LeaseLostError):
            self._give_up(items, incarnation)
            return
        log.warning("a commit of %d items failed and will be tried again: %s", len(items), error)
        for item in items:
            if not item.is_report:
                driver.discard(item)
        driver.repeat([item for item in items if item.is_report])
        for item in items:
            if not item.is_marks:
                driver.doubt(item.run)
        self._in_trouble = True
        self._has_work = self._has_work or bool(driver.items)

    def _give_up(self, items: list[Item], incarnation: Incarnation) -> None:
        """The incarnation is over: drop everything now, before any body that was released can take its first step."""
        for item in items:
            self._driver.discard(item)
        self._driver.lose_all()
        self._on_lost(incarnation.worker_id)
