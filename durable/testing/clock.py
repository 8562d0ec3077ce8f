"""A clock that a test may set forward: due times and limits come at once, while the machine's time goes on as ever.

The wall clock and `elapsed` jump; `monotonic` does not, since leases and watchdogs live by it. Timers that were set through
`call_later` ring when their time is skipped, in order; without a skip they ring when the time has really passed.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from durable.seams import EPOCH, Clock, SystemClock


class SkippedTimer:
    """A timer of the loop that a skip may ring before its time."""

    def __init__(self, due: float, callback: Callable[..., object], args: tuple[object, ...]) -> None:
        self.due = due  # by `elapsed`
        self._callback = callback
        self._args = args
        self._is_over = False
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, delay: float) -> None:
        """Ring after `delay` seconds, if nobody skips that."""
        self._handle = asyncio.get_running_loop().call_later(delay, self.ring)

    @property
    def is_over(self) -> bool:
        """Whether it has rung or was cancelled."""
        return self._is_over

    def ring(self) -> None:
        """Call back, once."""
        if not self._is_over:
            self.cancel()
            self._callback(*self._args)

    def cancel(self) -> None:
        self._is_over = True
        if self._handle is not None:
            self._handle.cancel()

    def when(self) -> float:
        return 0.0 if self._handle is None else self._handle.when()


class SkippingClock:
    """A machine's clock, set forward by what was skipped. `start` is what it shows at first; default: what the machine's shows."""

    def __init__(self, machine: Clock | None = None, *, start: datetime | None = None) -> None:
        self._machine = machine or SystemClock()
        self.monotonic = self._machine.monotonic
        self._skipped_us = 0
        self._offset_us = 0
        self._timers: list[tuple[float, int, SkippedTimer]] = []
        self._numbers = itertools.count()
        if start is not None:
            self._offset_us = (start - EPOCH) // timedelta(microseconds=1) - self._machine.now_us()

    def now_us(self) -> int:
        return self._machine.now_us() + self._offset_us + self._skipped_us

    def elapsed(self) -> float:
        return self.monotonic() + self._skipped_us / 1_000_000

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> SkippedTimer:
        timer = SkippedTimer(self.elapsed() + delay, callback, args)
        timer.arm(delay)
        heapq.heappush(self._timers, (timer.due, next(self._numbers), timer))
        return timer

    def now(self) -> datetime:
        """Return the time it shows."""
        return EPOCH.astimezone(UTC) + timedelta(microseconds=self.now_us())

    def next_us(self) -> int | None:
        """Return when the next timer is due, by the wall clock; None: none is set."""
        while self._timers and self._timers[0][2].is_over:
            heapq.heappop(self._timers)
        if not self._timers:
            return None
        return self.now_us() + max(0, round((self._timers[0][0] - self.elapsed()) * 1_000_000))

    def skip_to(self, at_us: int) -> None:
        """Set it forward to an instant, and ring what is due then. It never goes back."""
        self._skipped_us += max(0, at_us - self.now_us())
        reached = self.elapsed() + 1e-6  # what was rounded down to its microsecond is due, too
        while self._timers and (self._timers[0][0] <= reached or self._timers[0][2].is_over):
            heapq.heappop(self._timers)[2].ring()
