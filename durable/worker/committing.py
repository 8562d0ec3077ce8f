"""Group commit: whatever is ready goes into one transaction, and only then do its effects happen.

A batch whose commit failed is not in the database (or, if that is unknown, the journal will say so): its instances are
discarded and rebuilt from the journal, the work they had consumed comes back (P6, P15, P16).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Final

from durable.errors import LeaseLostError, StoreError
from durable.seams import Clock, pause
from durable.store.contract import Store
from durable.worker.driving import Driver
from durable.worker.incarnation import Incarnation
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
        self.in_doubt: list[Item] = []  # cancelled in the middle of their commit: written or not, nobody said

    def wake(self) -> None:
        """There are items."""
        self._has_work = True
        if self._work is not None and not self._work.done():
            self._work.set_result(None)

    async def run(self) -> None:
        """Commit until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._has_work:
                self._work = loop.create_future()
                await self._work
            self._has_work = False
            await self.commit()

    async def commit(self) -> None:
        """Commit what is there now, and release its effects."""
        driver = self._driver
        items, driver.items = driver.items, []
        if not items:
            return
        incarnation = self._incarnation()
        since = self._clock.monotonic()
        try:
            verdicts = await self._store.commit_turns(
                incarnation.worker_id, [item.commit for item in items], self._clock.now_us()
            )
        except LeaseLostError:
            self._give_up(items, incarnation)
            return
        except asyncio.CancelledError:
            self.in_doubt.extend(items)
            raise
        except StoreError as error:
            log.warning("a commit of %d items failed and will be tried again: %s", len(items), error)
            for item in items:
                if not item.is_report:
                    driver.discard(item)
            driver.repeat([item for item in items if item.is_report])
            for item in items:
                if not item.is_marks:
                    driver.doubt(item.run)
            await pause(TROUBLE_SECONDS)
            self._has_work = self._has_work or bool(driver.items)
            return
        if not incarnation.is_fresh(since):
            # Written, but by the time we know, others may own these runs: they will find it in the journal.
            self._give_up(items, incarnation)
            return
        driver.performer.fence = partial(incarnation.is_fresh, since)
        for item, verdict in zip(items, verdicts, strict=True):
            try:
                driver.settle(item, verdict)
            except Exception:  # a fault of ours in one run must not stop the commits of all
                log.exception("run %r: its commit could not be settled; it is read again", item.run.run_id)
                driver.doubt(item.run)

    def _give_up(self, items: list[Item], incarnation: Incarnation) -> None:
        """The incarnation is over: drop everything now, before any body that was released can take its first step."""
        for item in items:
            self._driver.discard(item)
        self._driver.lose_all()
        self._on_lost(incarnation.worker_id)
