"""Group commit: whatever is ready goes into one transaction, and only then do its effects happen.

A batch whose commit failed is not in the database (or, if that is unknown, the journal will say so): its instances are
discarded and rebuilt from the journal, the work they had consumed comes back (P6, P15, P16).

A store behind a network takes several batches at once, each in a lane of its own. Then a batch is no more than a share of what
is ready and under way: with all of it in one, loop and server would take turns instead of working side by side. Nothing of a run is
taken while a batch with something of it is under way, so what is written of one run is written in order.
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
from durable.worker.incarnation import Incarnation
from durable.worker.live import Item

TROUBLE_SECONDS: Final = 0.25
DRIVEN_COMMITS: Final = 4  # so long as these take, runs are driven for one batch: more would only wait, and leave the processor's caches
BATCH_MIN: Final = 50  # below this, another commit costs more than working side by side gains
log = logging.getLogger("durable.worker")


class Committer:
    """Commits the driver's items with no linger, in as many lanes as the store takes commits at once."""

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
        self.lanes = store.commits_at_once
        self._idle: list[asyncio.Future[None]] = []  # lanes that wait for work
        self._has_work = False
        self._has_left = False  # the last batch left something for the next
        self._under_way: set[int] = set()  # keys of the runs of all batches under way; one lane does without
        self._batches = 0  # under way
        self._in_trouble = False  # the last commit failed: a pause before the next
        self._is_refused = False  # marks are to be written again: a pause of the lane that wrote them
        self._is_ending = False
        self._at_rest: asyncio.Future[None] | None = None
        self.in_doubt: list[Item] = []  # cancelled in the middle of their commit: written or not, nobody said

    def wake(self) -> None:
        """There are items: commit them here and now if the store can, else as soon as it can."""
        if self._is_ending:
            return
        if self._batches or self._in_trouble or self._has_work or not self._commit_now():
            self._call_lane()

    def _call_lane(self) -> None:
        self._has_work = True
        while self._idle:
            waiting = self._idle.pop()
            if not waiting.done():
                waiting.set_result(None)
                return

    async def run(self) -> None:
        """One lane: commit what could not be committed on the spot, until cancelled or `come_to_rest`."""
        loop = asyncio.get_running_loop()
        while not self._is_ending:
            if not self._has_work:
                waiting = loop.create_future()
                self._idle.append(waiting)
                await waiting
                continue
            if self._in_trouble:
                await pause(TROUBLE_SECONDS)
                self._in_trouble = False
            await self._commit(self._take())
            if self._is_refused:
                self._is_refused = False
                await pause(TROUBLE_SECONDS)  # this lane; others go on

    async def come_to_rest(self, seconds: float) -> None:
        """Begin no batch any more, and wait for those under way, so long at most: that is better than to be in doubt about them."""
        self._is_ending = True
        if self._batches:
            self._at_rest = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._at_rest], timeout=seconds)  # the rest is cancelled, and asked for

    async def commit(self) -> None:
        """Commit all that is there, after the lanes have ended, and release its effects; no second try."""
        self._in_trouble = False
        while not self._in_trouble and (batch := self._take(is_last=True)):
            await self._commit(batch)
            refused = {id(item) for item in batch}
            self._driver.items = [item for item in self._driver.items if id(item) not in refused]

    def _take(self, *, is_last: bool = False) -> list[Item]:
        """Take the next batch off what is ready."""
        driver, self._has_work, self._has_left = self._driver, False, False
        ready, driver.items = driver.items, []
        under_way = self._under_way
        if self.lanes == 1:
            return ready
        room = len(ready) if is_last else max(BATCH_MIN, (len(ready) + len(under_way) + 1) // 2)
        batch: list[Item] = []
        left: list[Item] = []
        for item in ready:
            if room and item.pk not in under_way:
                under_way.add(item.pk)
                batch.append(item)
                room -= 1
            else:
                left.append(item)
        if left:
            driver.items = left
            self._has_left = True
            if not room:
                self._call_lane()
        return batch

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
        driver.batch_seconds = self._store.commit_seconds * DRIVEN_COMMITS
        self._release(items, verdicts, incarnation, since)
        return True

    async def _commit(self, items: list[Item]) -> None:
        """Commit one batch, and release its effects."""
        if not items:
            return
        incarnation = self._incarnation()
        since = self._clock.monotonic()
        self._batches += 1
        try:
            verdicts = await self._store.commit_turns(incarnation.worker_id, items, self._clock.now_us())
        except asyncio.CancelledError:
            self.in_doubt.extend(items)
            raise
        except (LeaseLostError, StoreError) as error:
            self._failed(items, incarnation, error)
        else:
            self._release(items, verdicts, incarnation, since)
        finally:
            self._end_batch(items)

    def _end_batch(self, items: list[Item]) -> None:
        self._batches -= 1
        if self.lanes > 1:
            self._under_way.difference_update([item.pk for item in items])
            if self._has_left:
                self._call_lane()
        if not self._batches and self._at_rest is not None and not self._at_rest.done():
            self._at_rest.set_result(None)

    def _release(
        self, items: list[Item], verdicts: Sequence[Verdict], incarnation: Incarnation, since: float
    ) -> None:
        """The items are durable, or refused one by one: let their effects happen, if the lease still holds."""
        driver = self._driver
        if incarnation is self._incarnation():  # else: its runs are gone, and nothing of them will begin
            until = incarnation.proven_until(since)
            if self._clock.monotonic() >= until:
                try:
                    is_fresh = incarnation.is_fresh(since)
                except StoreError as error:
                    self._failed(items, incarnation, error)
                    return
                if not is_fresh:
                    # Written, but by the time we know, others may own these runs: they will find it in the journal.
                    self._give_up(items, incarnation)
                    return
                until = incarnation.proven_until(since)
            # That the worker lives proves nothing for single runs: one that was terminated meanwhile, and tried again, may be
            # driven elsewhere. So what takes its first step later than this is written anew before (`Performer.never_begun`).
            driver.performer.fence = partial(incarnation.is_recent, since)
            driver.performer.fresh_until = until
        for item, verdict in zip(items, verdicts, strict=True):
            if verdict == "messages" and item.is_marks:
                self._has_work = self._is_refused = True  # nothing else need come for it to be written again
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
        if incarnation is self._incarnation():
            self._driver.lose_all()
            self._on_lost(incarnation.worker_id)
