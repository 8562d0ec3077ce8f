"""Where a look for ready runs begins, when all of them would take too long; and how messages are looked for then.

A run that is claimed leaves its entry in the index of ready ones until the server may remove it. While somebody holds an old
snapshot (a long report, a forgotten BEGIN) it may not, and every look would walk past all runs that were claimed since, in the order
in which they became ready. So once such a look has become costly, looks begin near where the last one
ended, and beside them somebody looks back now and then, in no claim's way: for what became ready late, with an older instant. If there is any,
the next look begins there. Nothing is lost by a look that begins too late, it is only found by a later one. Each queue has looks of its own, and a look that a pause has
held back counts for nothing; what is resumed is ready from then on.

The index of owners keeps entries of the same kind. Messages are looked for by it as long as that is cheap, which spares naming
every run; else by the runs themselves.
"""

from __future__ import annotations

from typing import Final

COSTLY_SECONDS: Final = 0.01  # a whole look that takes less is always made
BACK_SHARE: Final = 100  # after looking back, so many times as long before it is done again
BACK_SECONDS_MAX: Final = 10.0
SLACK_US: Final = (
    1_000_000  # before the end of the last look: transactions under way then, and runs that were locked
)


class LookOut:
    """Where one worker's looks at one queue begin. Not for stores with a clock of their own: that may be set back."""

    def __init__(self) -> None:
        self._next_us = 0
        self._is_costly = False
        self._back_at = 0.0  # monotonic
        self._owners_at = 0.0  # monotonic; until then the index of owners is left alone

    def since_us(self) -> int:
        """Return from when on to look; 0 for a whole look."""
        return self._next_us if self._is_costly else 0

    def looked(self, since_us: int, now: float, *, took: float, reached_us: int) -> None:
        """A look has ended at `now` (monotonic): nothing is left that was ready before `reached_us` and could be seen."""
        if since_us <= self._next_us:  # else somebody has looked back meanwhile, and found something
            self._next_us = max(self._next_us, reached_us - SLACK_US)
        if since_us == 0:
            self._judge(took, now)

    def is_back_due(self, now: float) -> bool:
        """Whether it is time to look for what became ready late."""
        return self._is_costly and now >= self._back_at

    def looked_back(self, now: float, *, took: float, earliest_us: int | None) -> None:
        """A look back has ended: this is the earliest run that is ready, before where looks begin."""
        if earliest_us is not None:
            self._next_us = min(self._next_us, earliest_us)
        self._judge(took, now)

    def _judge(self, took: float, now: float) -> None:
        self._is_costly = took > COSTLY_SECONDS
        self._back_at = now + min(BACK_SHARE * took, BACK_SECONDS_MAX)

    def avoids_owners(self, now: float) -> bool:
        """Whether to look for messages by run, at `now` (monotonic)."""
        return now < self._owners_at

    def looked_at_owner(self, now: float, *, took: float) -> None:
        """A look by owner has ended at `now`."""
        if took > COSTLY_SECONDS:
            self._owners_at = now + BACK_SECONDS_MAX
