"""Probation: activities whose worker died during them begin again a few at a time, so that a deadly one takes few along (P14).

Nobody knows which of the activities that ran has ended the process. Each of them has lost an attempt; were they all begun
again at once, the deadly one would cost all the others the next attempt too, until none had any left. So the one that had
begun last is begun first, alone: what kills usually does so soon. Whenever one has run for a while, or has ended, twice as many may be on
probation at a time. Activities that were not lost are not held up. Knows nothing of rows or turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from durable.worker.live import Attempt, AttemptState

PROBATION_SECONDS: Final = 0.5  # one that has run for so long is not what killed within moments
GATHER_SECONDS: Final = 0.2  # before the first begins: until all that were lost together are known
LOOK_SECONDS: Final = 0.05
AT_ONCE_MAX: Final = 1 << 20
_ON_PROBATION: Final = (AttemptState.QUEUED, AttemptState.MARKING, AttemptState.RUNNING)


class Probation:
    """The lost activities of one worker's runs that are to begin again. `on_room` is called when more of them may."""

    def __init__(self, on_room: Callable[[], None]) -> None:
        self.waiting: list[Attempt] = []
        self._on_room = on_room
        self._begun: dict[Attempt, float] = {}  # on probation -> until when, by the loop's time
        self._at_once = 1
        self._not_before = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, attempt: Attempt) -> None:
        """A lost activity is due again."""
        if not self.waiting and not self._begun:
            self._not_before = asyncio.get_running_loop().time() + GATHER_SECONDS
        self.waiting.append(attempt)
        self._arm()

    def take(self, slots: int) -> list[Attempt]:
        """Return those that may begin now, at most `slots`: first what had begun last."""
        now = asyncio.get_running_loop().time()
        taken: list[Attempt] = []
        if now < self._not_before or len(self._begun) >= self._at_once:
            return taken
        self.waiting.sort(key=lambda attempt: attempt.started_at_us)
        while self.waiting and len(taken) < slots and len(self._begun) < self._at_once:
            attempt = self.waiting.pop()
            if attempt.state is AttemptState.QUEUED:
                taken.append(attempt)
                self._begun[attempt] = now + PROBATION_SECONDS
        self._arm()
        return taken

    def stop(self) -> None:
        """Call no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if (self._begun or self.waiting) and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for attempt, until in list(self._begun.items()):
            if now >= until or attempt.state not in _ON_PROBATION:
                del self._begun[attempt]
                self._at_once = min(self._at_once * 2, AT_ONCE_MAX)
        if self.waiting:
            self._on_room()
        elif not self._begun:
            self._at_once = 1  # the next death begins anew
        self._arm()
