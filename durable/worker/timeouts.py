"""The limits of attempts: which hold, when the nearest has passed, and what is said of one that has.

An attempt has one timer, set for the nearest of its limits, and what is due is decided anew whenever it rings: a
heartbeat sets no timer. Limits that began before this worker (since the schedule, since the attempt was due) are
measured by the wall clock, those of the attempt itself by the loop's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, assert_never

from durable.definitions import ActivityDefinition
from durable.seams import Clock
from durable.worker.live import Attempt, AttemptState, TimeoutKind

HELD_UP_SECONDS: Final = 0.05  # a timer that rings so late was held up with the loop, and so were heartbeats
LATE_SECONDS: Final = 5.0  # how long a timed-out coroutine may take to unwind before it is given up
NOT_RETRIED: Final = frozenset[TimeoutKind]({"schedule_to_start", "schedule_to_close"})


def left_us(attempt: Attempt, clock: Clock) -> int | None:
    """Return how long all attempts of the activity together may still take; None: as long as they like."""
    limit = attempt.call.definition.schedule_to_close_us
    return None if limit is None else attempt.scheduled_at_us + limit - clock.now_us()


class Timeouts:
    """Watches the limits of one worker's attempts. Of one whose code runs, that is stopped; it has expired once it is over, or given up."""

    def __init__(
        self,
        clock: Clock,
        running: set[Attempt],
        *,
        stop_code: Callable[[Attempt, str], None],
        expire: Callable[[Attempt, TimeoutKind], None],
    ) -> None:
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._running = running
        self._stop_code = stop_code
        self._expire = expire

    def limits(self, attempt: Attempt) -> list[tuple[float, TimeoutKind]]:
        """Return the limits that hold for an attempt that waits for a slot or runs, each with the seconds left."""
        definition = attempt.call.definition
        limits: list[tuple[float, TimeoutKind]] = []
        if (close_us := left_us(attempt, self._clock)) is not None:
            limits.append((close_us / 1_000_000, "schedule_to_close"))
        if attempt.state is AttemptState.QUEUED:
            if (limit_us := definition.schedule_to_start_us) is not None:
                start_us = attempt.queued_at_us + limit_us - self._clock.now_us()
                limits.append((start_us / 1_000_000, "schedule_to_start"))
        elif attempt.pulse is not None:
            if (limit_us := definition.timeout_us) is not None:
                left = attempt.began_at + limit_us / 1_000_000 - self._clock.elapsed()
                limits.append((left, "start_to_close"))
            # One that was cancelled with "wait" cleans up: it has better things to do than to beat.
            if (limit_us := definition.heartbeat_us) is not None and not attempt.cancelled:
                left = attempt.pulse.beat_at + limit_us / 1_000_000 - self._loop.time()
                limits.append((left, "heartbeat"))
        return limits

    def watch(self, attempt: Attempt) -> None:
        """Set the attempt's timer for the nearest of its limits."""
        limits = self.limits(attempt)
        if limits:
            left, kind = min(limits)
            # A sign of life takes real time: no test skips that.
            set_timer = self._loop.call_later if kind == "heartbeat" else self._clock.call_later
            attempt.timer = set_timer(max(left, 0.001), self._look, attempt)

    def _look(self, attempt: Attempt) -> None:
        """The timer rang: see which limit has passed, if one has."""
        loop = self._loop
        late = 0.0 if attempt.timer is None else loop.time() - attempt.timer.when()
        attempt.timer = None
        limits = self.limits(attempt)
        if not limits or attempt.state not in (AttemptState.QUEUED, AttemptState.RUNNING):
            return
        left, kind = min(limits)
        if left > 0:
            self.watch(attempt)
        elif kind == "heartbeat" and late > HELD_UP_SECONDS and -left < late + HELD_UP_SECONDS:
            # The loop was busy with something else: whoever could not beat meanwhile may do so now.
            attempt.timer = loop.call_later(HELD_UP_SECONDS, self._look, attempt)
        else:
            self._time_out(attempt, kind)

    def _time_out(self, attempt: Attempt, kind: TimeoutKind) -> None:
        if attempt.state is not AttemptState.RUNNING:
            self._expire(attempt, kind)
            return
        attempt.timed_out = kind
        self._stop_code(attempt, late_text(attempt.call.definition, attempt.number, kind))
        if attempt not in self._running:
            return  # it had not begun, and is over already
        if attempt.is_on_loop:
            attempt.timer = self._loop.call_later(LATE_SECONDS, self._give_up, attempt)
        else:
            self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        """The late attempt has failed, whatever its code still does; its slot is free when that ends."""
        attempt.timer = None
        zombie = Attempt(
            attempt.run,
            attempt.call,
            attempt.number,
            AttemptState.DROPPED,
            attempt.scheduled_at_us,
            attempt.queued_at_us,
            attempt.has_slot,
            attempt.task,
        )
        zombie.pulse = attempt.pulse
        attempt.keep_details()
        self._running.discard(attempt)
        self._running.add(zombie)
        kind = attempt.timed_out
        assert kind is not None
        attempt.task, attempt.has_slot = None, False
        self._expire(attempt, kind)


def late_text(definition: ActivityDefinition, number: int, kind: TimeoutKind) -> str:
    """Say that a limit of attempt `number` has passed."""
    name = definition.name
    match kind:
        case "start_to_close":
            limit_us = definition.timeout_us or 0
            return f"attempt {number} of {name!r} ran longer than its timeout of {limit_us / 1_000_000:g} s"
        case "heartbeat":
            limit_us = definition.heartbeat_us or 0
            return f"attempt {number} of {name!r} was silent for longer than its heartbeat timeout of {limit_us / 1_000_000:g} s"
        case "schedule_to_start":
            limit_us = definition.schedule_to_start_us or 0
            return f"{name!r} waited for a slot for longer than its schedule-to-start timeout of {limit_us / 1_000_000:g} s"
        case "schedule_to_close":
            limit_us = definition.schedule_to_close_us or 0
            return f"{name!r} was not done within its schedule-to-close timeout of {limit_us / 1_000_000:g} s"
        case _:
            assert_never(kind)
