"""Which runs have to go, and when: those that have waited here for long, those that are paused or asked for elsewhere, and in the end all.

A run in the middle of a commit is left alone until that has come back. What is written of one that goes: `leaving.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from durable.seams import Clock
from durable.store.records import Claim
from durable.worker.driving import Driver
from durable.worker.leaving import never_begun
from durable.worker.live import Item, LiveRun, Phase

CROWDED_SHARE: Final = 0.9  # of the capacity: from here on runs leave before their time
PRESSED_PART: Final = 5  # one in so many of all runs, at each look


class Releaser:
    """Lets runs of one driver go."""

    def __init__(self, driver: Driver, clock: Clock, *, capacity: int) -> None:
        self._driver = driver
        self._clock = clock
        self._capacity = capacity

    def release_idle(self) -> None:
        """Ask runs that have waited here for long to go; under pressure those that wait longest go at once."""
        now = self._clock.monotonic()
        runs = self._driver.runs
        idle = [
            run
            for run in runs.values()
            if run.phase is Phase.IDLE and not run.has_work and run.instance is not None
        ]
        crowded = len(runs) > self._capacity * CROWDED_SHARE
        pressed = len(runs) // PRESSED_PART if crowded else 0
        patience = self._driver.feeder.warm_us / 1_000_000
        idle.sort(key=lambda run: run.idle_since)
        for position, run in enumerate(idle):
            if position < pressed or now - run.idle_since > patience:
                run.release_asked = True
                self._driver.mark(run)

    def hand_back(self, pk: int) -> None:
        """Release one run as ready for others, at once or when what is on its way has arrived."""
        run = self._driver.runs.get(pk)
        if run is None:
            return
        if run.phase is Phase.IDLE:
            self._driver.release(run)
        else:
            run.leave_asked = True

    def hand_back_all(self) -> None:
        """Release every run that is not in the middle of a commit."""
        for run in list(self._driver.runs.values()):
            if run.is_settled:
                self._driver.release(run)

    def hold(self, is_held: Callable[[LiveRun], bool]) -> None:
        """Hold back the runs that are paused, let go on those that no longer are.

        A run is handed back once nothing of it runs and what had run is recorded.
        """
        for run in list(self._driver.runs.values()):
            was, run.is_held = run.is_held, is_held(run)
            if run.is_held and run.phase is Phase.IDLE and run.is_still:
                self._driver.release(run)
            elif was and not run.is_held:
                self._driver.mark(run)

    def resolve(self, item: Item, claim: Claim | None) -> None:
        """A worker that stops hands back a run whose last commit may or may not have happened; `claim` is the truth."""
        run = item.run
        self._driver.performer.unreserve(item.slots)
        item.slots = 0
        if run.phase is not Phase.GONE and claim is not None:
            self._driver.release(run, never_begun(item, claim))
