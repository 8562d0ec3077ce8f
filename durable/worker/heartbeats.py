"""What heartbeats tell: noted at once, written in batches.

The first detail after a pause opens a batch for all activities of the same interval, which becomes one mark per run, all in
one group commit. An attempt that ends in order hands its details on with its own mark. Knows nothing of limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from durable.in_activity import Pulse
from durable.store.records import AttemptRow
from durable.worker.live import Attempt, AttemptState, LiveRun

DETAILS_SHARE: Final = 0.8  # of the heartbeat timeout: how often details are written
DETAILS_SECONDS_MIN: Final = 0.05
DETAILS_SECONDS_MAX: Final = 3.0


class Heartbeats:
    """The heartbeats of one worker's attempts. `write` lets rows of a run ride on the next commit."""

    def __init__(self, write: Callable[[LiveRun, list[AttemptRow]], None]) -> None:
        self._write = write
        # By interval: the timer of the next write, and who has something to tell.
        self.batches: dict[float, tuple[asyncio.TimerHandle, list[tuple[Attempt, Pulse]]]] = {}

    def note(self, pulse: Pulse) -> None:
        """An attempt has something new to tell: it is written with the next batch of its interval."""
        attempt: Attempt = pulse.owner
        if attempt.pulse is not pulse or attempt.state is not AttemptState.RUNNING:
            return
        if (
            pulse.has_token and not attempt.has_row
        ):  # at once: an answer may come any moment, and looks for the row
            pulse.is_noted = False
            self._write(attempt.run, [_started_row(attempt, pulse)])
            return
        limit_us = attempt.call.definition.heartbeat_us
        interval = DETAILS_SECONDS_MAX
        if limit_us is not None:
            interval = min(max(DETAILS_SHARE * limit_us / 1_000_000, DETAILS_SECONDS_MIN), interval)
        if interval not in self.batches:
            timer = asyncio.get_running_loop().call_later(interval, self._write_batch, interval)
            self.batches[interval] = timer, []
        self.batches[interval][1].append((attempt, pulse))

    def stop(self) -> None:
        """Write no more."""
        for timer, _ in self.batches.values():
            timer.cancel()
        self.batches.clear()

    def _write_batch(self, interval: float) -> None:
        _, batch = self.batches.pop(interval)
        rows: dict[LiveRun, list[AttemptRow]] = {}
        for attempt, pulse in batch:
            pulse.is_noted = False  # before they are read: what a thread tells from here on is noted anew
            if attempt.pulse is pulse and attempt.state is AttemptState.RUNNING:
                rows.setdefault(attempt.run, []).append(_started_row(attempt, pulse))
        for run, listed in rows.items():
            self._write(run, listed)


def _started_row(attempt: Attempt, pulse: Pulse) -> AttemptRow:
    """Return the row of an attempt that runs, with what it tells of itself."""
    return AttemptRow(
        op=attempt.call.op,
        attempt=attempt.number,
        state="started",
        due_at_us=attempt.started_at_us or attempt.scheduled_at_us,
        details=pulse.details,
    )
