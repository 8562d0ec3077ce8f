"""Activities of a run that was just claimed, or rebuilt: go on with each from where the store says it is.

An attempt that ran when its worker died is lost: it has failed, and counts (P22). One that was handed back was never charged. What
waits for a retry, for somebody outside, or for workers of another queue goes on waiting.
"""

from __future__ import annotations

from typing import Final

import msgspec

from durable.engine.runtime import ActivityCall
from durable.errors import WorkerLostError
from durable.failures import Failure
from durable.store.records import AttemptRow
from durable.worker.entrusting import new_task, remote_attempt
from durable.worker.live import Attempt, AttemptState, LiveRun
from durable.worker.performing import Performer
from durable.worker.timeouts import left_us

_LOSS: Final = f"{WorkerLostError.__module__}:{WorkerLostError.__qualname__}"


def recover(
    performer: Performer,
    run: LiveRun,
    call: ActivityCall,
    row: AttemptRow | None,
    *,
    was_started: bool,
    scheduled_at_us: int,
) -> None:
    """Go on with an activity that nothing here knows of; `row` is the store's word, None: it was never charged but by its turn."""
    if call.queue:
        _recover_remote(performer, run, call, row, scheduled_at_us)
        return

    attempt = Attempt(run, call, int(was_started), AttemptState.QUEUED, scheduled_at_us, scheduled_at_us)
    run.attempts[call.op] = attempt
    if row is not None:
        attempt.number, attempt.details, attempt.has_row = row.attempt, row.details, True
    if call.closing == "wait":
        attempt.cancelled = True
        performer.endings.cancelled(attempt)  # what ran of it ended with its worker, or was handed back
    elif row is not None and row.completion:
        performer.completions.reopened(attempt, row)
    elif row.state == "started" if row is not None else was_started:
        attempt.started_at_us = scheduled_at_us if row is None else row.due_at_us or scheduled_at_us
        _lost(performer, attempt)
    elif row is not None and row.state == "backoff":
        attempt.state = AttemptState.BACKOFF
        attempt.started_at_us = scheduled_at_us
        attempt.is_lost = _is_loss(row.failure)
        attempt.queued_at_us = row.due_at_us or 0
        performer.endings.wait_out(attempt, attempt.queued_at_us - performer.clock.now_us())
    else:
        if row is not None:  # handed back: it waits anew
            attempt.queued_at_us = performer.clock.now_us()
        performer.want_slot(attempt)


def _recover_remote(
    performer: Performer, run: LiveRun, call: ActivityCall, row: AttemptRow | None, scheduled_at_us: int
) -> None:
    """Wait again for an activity on another queue; one without a row was asked for in an earlier generation (P7)."""
    attempt = run.attempts[call.op] = remote_attempt(run, call, scheduled_at_us)
    attempt.cancelled = call.closing == "wait"
    if row is None:
        attempt.has_row = False
        if attempt.cancelled:
            performer.endings.cancelled(attempt)
            return
        attempt.has_row = True
        performer.entrust_anew(run, new_task(call))
    performer.completions.entrusted(attempt)


def _lost(performer: Performer, attempt: Attempt) -> None:
    """An attempt was under way when its worker died."""
    attempt.state = AttemptState.RUNNING
    attempt.is_lost = True
    name = attempt.call.definition.name
    error = WorkerLostError(
        f"the worker of attempt {attempt.number} of {name!r} died, or stopped, during it: nobody knows how far it came"
    )
    failure = performer.endings.failure_of(attempt, error)
    left = left_us(attempt, performer.clock)
    if left is not None and left <= 0:
        attempt.failure = failure
        performer.endings.expire(attempt, "schedule_to_close")
    else:
        policy = attempt.call.definition.retry
        performer.endings.retry_or_fail(attempt, failure, is_retryable=not isinstance(error, policy.no_retry))


def _is_loss(failure: bytes | None) -> bool:
    """Whether an attempt failed by the death of its worker."""
    try:
        return failure is not None and msgspec.json.decode(failure, type=Failure).type == _LOSS
    except msgspec.DecodeError:
        return False
