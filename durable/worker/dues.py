"""When runs that are kept in memory are due: one timer of the loop for the nearest, so that waiting costs nothing.

The heap may tell of runs that are gone, or have set other timers since: whoever is called looks, and finds nothing to do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Final

from durable.seams import Clock, Timer

DUE_SECONDS_MAX: Final = 30 * 86_400.0  # no timer of the loop is set for longer


class Dues:
    """The due times of one worker's runs. `on_due` is called with a run's key, once for each time that was armed."""

    def __init__(self, clock: Clock, on_due: Callable[[int], None]) -> None:
        self._clock = clock
        self._on_due = on_due
        self._heap: list[tuple[int, int]] = []  # (due_us, pk)
        self._timer: Timer | None = None
        self._timer_at = 0

    def arm(self, due_us: int, pk: int) -> None:
        """Call at an instant of the wall clock."""
        heapq.heappush(self._heap, (due_us, pk))
        if self._timer is None or due_us < self._timer_at:
            self._set_timer()

    def ring(self) -> None:
        """Call for all that are due, and set the timer for the next; also whenever the wall clock may have been set."""
        now = self._clock.now_us()
        while self._heap and self._heap[0][0] <= now:
            _, pk = heapq.heappop(self._heap)
            self._on_due(pk)
        self._set_timer()

    def stop(self) -> None:
        """Call no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self.stop()
        if self._heap:
            self._timer_at = self._heap[0][0]
            delay = min(max(self._timer_at - self._clock.now_us(), 0) / 1_000_000, DUE_SECONDS_MAX)
            self._timer = self._clock.call_later(delay, self.ring)
