"""Which items of a bulk operation go next: workflow code, deterministic. Knows slices as activities, and nothing of how they work.

An item keeps its slot until what came of it is in the journal, retries and pauses included: of a million items no more than
`max_concurrency` are ever on the way. What is ready is committed as it comes; slices fill up by themselves while items are quick.

A slice that was lost with its worker more than once may hold an item that kills workers, or may have had such a neighbour. Its items are
*suspects*: each goes alone, with nothing else of the operation on the way, so that a loss is its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import durable
from durable import PlatformFault
from durable.patterns.bulk_config import Orders
from durable.patterns.bulk_slices import FailedItem, SliceOutcome

# (first, count, attempt, alone, whether it was left) -> the slice's outcome
Work = Callable[[int, int, int, bool, bool], Awaitable[Any]]
# (first, what came of the items from there on)
Heard = Callable[[int, SliceOutcome], Awaitable[None]]


class Breaker:
    """Counts failed attempts in a row; after too many it is open, then half open: one item may try. Without a threshold it never opens."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._row = 0
        self.is_open = False
        self.is_probing = False  # half open; the one item is on its way, or may be

    def note(self, *, failed: bool) -> bool:
        """Note an attempt; return whether the breaker opens by it."""
        if not self._threshold or self.is_open:
            return False
        if not failed:
            self._row = 0
            self.is_probing = False
            return False
        self._row += 1
        if self.is_probing or self._row >= self._threshold:
            self.is_open, self.is_probing = True, False
            return True
        return False

    def half_open(self) -> None:
        self.is_open, self.is_probing = False, True


class Schedule:
    """Drives `total` items to their ends. `chunk` bounds slices: none reaches across a multiple of it."""

    def __init__(self, orders: Orders, total: int, chunk: int, work: Work, heard: Heard) -> None:
        self.succeeded = 0
        self.failed = 0
        self.is_stopped = False
        self._orders = orders
        self._total = total
        self._chunk = chunk
        self._work = work
        self._heard = heard
        self._next = 0
        self._free = orders.max_concurrency
        self._again: deque[tuple[int, int]] = deque()  # (index, attempt): due, with a slot
        self._suspects: deque[tuple[int, int]] = deque()  # (index, attempt), with a slot
        self._running = 0  # slices
        self._breaker = Breaker(orders.threshold)
        self._pausing: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Return when every item has ended, or when those on the way have after a stop."""
        try:
            async with asyncio.TaskGroup() as self._group:
                self._fill()
        except BaseExceptionGroup as group:  # the first fault of a slice; the others were cancelled for it
            raise group.exceptions[0] from None

    def _fill(self) -> None:
        """Start what may start now."""
        if self._suspects and not self.is_stopped:
            if not self._running:
                index, attempt = self._suspects.popleft()
                self._start(index, 1, attempt, alone=True)
            return
        while not self.is_stopped and self._may_start():
            limit = 1 if self._breaker.is_probing else self._orders.batch_size
            if self._again:
                index, attempt = self._again.popleft()
                self._start(index, 1, attempt)
            elif self._free and self._next < self._total:
                first = self._next
                count = min(self._free, limit, self._total - first, self._chunk - first % self._chunk)
                self._next += count
                self._free -= count
                self._start(first, count, 1)
            else:
                return

    def _may_start(self) -> bool:
        return not self._breaker.is_open and not (self._breaker.is_probing and self._running)

    def _start(
        self, first: int, count: int, attempt: int, *, alone: bool = False, is_left: bool = False
    ) -> None:
        self._running += 1
        self._group.create_task(self._slice(first, count, attempt, alone, is_left))

    async def _slice(self, first: int, count: int, attempt: int, alone: bool, is_left: bool) -> None:
        outcome = await self._outcome(first, count, attempt, alone, is_left)
        self._running -= 1
        if outcome is None:
            self._suspects.extend((index, attempt) for index in range(first, first + count))
            self._fill()
            return
        self._take(first, count, attempt, outcome)
        if not self.is_stopped and self._orders.stop_on_error and self.failed:
            self.stop()
        await self._heard(first, outcome)
        self._fill()

    async def _outcome(
        self, first: int, count: int, attempt: int, alone: bool, is_left: bool
    ) -> SliceOutcome | None:
        """Return what came of a slice; None if it was lost with its worker, and nobody knows by whose fault."""
        try:
            return SliceOutcome(*await self._work(first, count, attempt, alone, is_left))
        except (PlatformFault, asyncio.CancelledError):
            raise
        except Exception as error:
            if not alone:
                return None
            failed = FailedItem(
                at=0, error=str(error), type=type(error).__name__, attempts=self._orders.attempts_max
            )
            return SliceOutcome([], [], [failed], [])

    def _take(self, first: int, count: int, attempt: int, outcome: SliceOutcome) -> None:
        self.succeeded += len(outcome.values)
        kept = len(outcome.left)
        for at in outcome.left:
            self._start(first + at, 1, attempt, is_left=True)
        opens = False
        for _ in outcome.values:
            self._breaker.note(failed=False)
        for one in outcome.failed:
            opens = self._breaker.note(failed=True) or opens
            if one.delay is None:
                self.failed += 1
            elif not self.is_stopped:
                kept += 1
                self._pause(self._retry(first + one.at, one.attempts + 1, one.delay))
        self._free += count - kept
        if opens:
            self._pause(self._reset())

    # ─ pauses ──

    def _pause(self, pausing: Any) -> None:
        task = self._group.create_task(pausing)
        self._pausing.add(task)
        task.add_done_callback(self._pausing.discard)

    async def _retry(self, index: int, attempt: int, delay: float) -> None:
        await durable.sleep(delay)
        self._again.append((index, attempt))
        self._fill()

    async def _reset(self) -> None:
        await durable.sleep(self._orders.reset_timeout)
        self._breaker.half_open()
        self._fill()

    def stop(self) -> None:
        """Start nothing any more; what is on the way ends, and is recorded."""
        self.is_stopped = True
        for task in self._pausing:
            task.cancel()
