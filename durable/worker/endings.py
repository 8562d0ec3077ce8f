"""What becomes of an attempt that has ended: the next one after a while, or the outcome that its run is told.

Knows policies, nothing of running code. A success takes a shorter way (`Performer._succeeded`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from durable import failures
from durable.errors import ActivityTimeoutError, PayloadError, PayloadTooLargeError, UndecodableError
from durable.failures import Failure
from durable.limits import Limits
from durable.retry import asked_delay_us
from durable.seams import Clock, Random
from durable.store.records import AttemptRow
from durable.worker.live import Attempt, AttemptState, LiveRun, Outcome, Phase, TimeoutKind
from durable.worker.timeouts import NOT_RETRIED, late_text, left_us

GROUP_SECONDS: Final = 0.1  # how long an outcome waits for others that it may share a commit with


class Performing(Protocol):
    """What is asked of the performer."""

    is_draining: bool
    is_stopping: Callable[[], bool]  # the loop is being torn down around everything

    def free_slot(self, attempt: Attempt) -> None: ...

    def want_slot(self, attempt: Attempt) -> None: ...

    def write(self, run: LiveRun, rows: list[AttemptRow]) -> None: ...

    def resume(self, run: LiveRun) -> None: ...


class Endings:
    """Ends the attempts of one performer."""

    def __init__(self, performer: Performing, clock: Clock, random: Random) -> None:
        self._performer = performer
        self._clock = clock
        self._random = random

    def finish(self, attempt: Attempt, outcome: Outcome) -> None:
        """Let `outcome` be what became of the activity."""
        self._performer.free_slot(attempt)
        attempt.state = AttemptState.DONE
        run = attempt.run
        if run.phase is not Phase.GONE and run.attempts.get(outcome.op) is attempt:
            run.outcomes.append(outcome)
            self._performer.resume(run)

    def cancelled(self, attempt: Attempt) -> None:
        """It was stopped as the workflow has asked."""
        attempt.stop_timer()
        failure = self.failure_of(attempt, asyncio.CancelledError("cancelled by the workflow"))
        self.finish(attempt, Outcome(attempt.call.op, attempt.number, failure=failure))

    def failed(self, attempt: Attempt, error: BaseException) -> None:
        """Its code has raised, or could not be begun."""
        storable = not isinstance(error, (PayloadError, UndecodableError))
        if isinstance(error, UndecodableError):
            error = error.naming(f"what activity {attempt.call.definition.name!r} returned")
        policy = attempt.call.definition.retry
        self.retry_or_fail(
            attempt,
            self.failure_of(attempt, error),
            is_retryable=storable and policy.is_retryable(error),
            delay_us=asked_delay_us(error),
        )

    def was_cancelled(self, attempt: Attempt, error: BaseException) -> None:
        """Its code has ended by a cancellation: ours, or one of its own."""
        if attempt.timed_out is not None:
            self.expire(attempt, attempt.timed_out)
        elif attempt.cancelled:
            self.cancelled(attempt)
        elif self._performer.is_stopping():
            self._performer.free_slot(attempt)  # the loop is being torn down: the attempt is handed back
        else:
            unasked = asyncio.CancelledError("raised by the activity, unasked")
            self.failed(attempt, error if error.args else unasked)

    def misread(self, attempt: Attempt, fault: UndecodableError) -> None:
        """The run stops: its attempts are handed back uncharged, this one in any case, since its code never began."""
        self._performer.free_slot(attempt)
        attempt.is_misread = True
        run = attempt.run
        fault.run_id = fault.run_id or run.run_id
        run.fault = fault
        self._performer.resume(run)

    def expire(self, attempt: Attempt, kind: TimeoutKind) -> None:
        """A limit of the attempt has passed and its code is done, given up, or was never begun."""
        definition = attempt.call.definition
        error = ActivityTimeoutError(late_text(definition, attempt.number, kind), kind=kind)
        failure = self.failure_of(attempt, error)
        if kind in NOT_RETRIED:
            failure = msgspec.structs.replace(failure, cause=attempt.failure)
        is_retryable = kind not in NOT_RETRIED and definition.retry.is_retryable(error)
        self.retry_or_fail(attempt, failure, is_retryable=is_retryable)

    def failure_of(self, attempt: Attempt, error: BaseException) -> Failure:
        """Return what an attempt has failed with, as data."""
        return failures.record(
            error,
            activity=attempt.call.definition.name,
            run_id=attempt.run.run_id,
            attempts=attempt.number,
        )

    def retry_or_fail(
        self, attempt: Attempt, failure: Failure, *, is_retryable: bool, delay_us: int | None = None
    ) -> None:
        """An attempt has failed: begin the next after `delay_us`, or the policy's interval, or let that be the outcome."""
        self._performer.free_slot(attempt)
        attempt.stop_timer()
        policy = attempt.call.definition.retry
        if attempt.cancelled:
            self.cancelled(attempt)
            return
        if delay_us is None:
            delay_us = policy.delay_us(
                max(attempt.number, 1), self._random.fraction() if policy.jitter else 0.0
            )
        left = left_us(attempt, self._clock)
        in_time = left is None or delay_us < left
        if not (is_retryable and in_time and policy.has_attempt_after(attempt.number)):
            self.finish(attempt, Outcome(attempt.call.op, attempt.number, failure=failure))
            return
        attempt.state = AttemptState.BACKOFF
        attempt.task = None
        attempt.failure = failure
        attempt.queued_at_us = self._clock.now_us() + delay_us
        row = AttemptRow(
            op=attempt.call.op,
            attempt=attempt.number,
            state="backoff",
            due_at_us=attempt.queued_at_us,
            failure=msgspec.json.encode(failure),
            details=attempt.details,
        )
        self._performer.write(attempt.run, [row])
        self.wait_out(attempt, delay_us)

    def hasten(self, attempt: Attempt) -> None:
        """Let the attempt that follows a failed one wait no longer, except for a slot."""
        if attempt.state is AttemptState.BACKOFF:
            attempt.stop_timer()
            attempt.queued_at_us = self._clock.now_us()
            self._performer.want_slot(attempt)

    def wait_out(self, attempt: Attempt, delay_us: int) -> None:
        """Want a slot for the next attempt after so long."""
        attempt.timer = self._clock.call_later(max(delay_us, 0) / 1_000_000, self._backed_off, attempt)

    def _backed_off(self, attempt: Attempt) -> None:
        attempt.timer = None
        self._performer.want_slot(attempt)

    def report_grouped(self, attempt: Attempt) -> None:
        """Let the outcome wait a moment for those that are to be recorded together with it, if some have not ended yet."""
        run, group = attempt.run, attempt.call.definition.group
        are_open = any(
            other.call.definition.group is group
            and other.state not in (AttemptState.DONE, AttemptState.DROPPED, AttemptState.STOPPED)
            for other in run.attempts.values()
        )
        if are_open and not self._performer.is_draining:
            asyncio.get_running_loop().call_later(GROUP_SECONDS, self._report_held, run)
        else:
            self._performer.resume(run)

    def _report_held(self, run: LiveRun) -> None:
        """The others take their time: record what is there."""
        if run.outcomes and run.phase is not Phase.GONE:
            self._performer.resume(run)


def too_large(attempt: Attempt, data: bytes, limits: Limits) -> PayloadTooLargeError | None:
    """Return the refusal of a result that is too large; warn of one that is nearly so."""
    what = f"the result of activity {attempt.call.definition.name!r}"
    try:
        limits.judge(len(data), what=what, run_id=attempt.run.run_id)
    except PayloadTooLargeError as refusal:
        return refusal
    return None
