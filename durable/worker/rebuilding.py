"""A live run's instance, made from its journal, and paired with the work at hand: what runs goes on, what was lost begins again.

Raises the platform faults for which a run is parked. Knows nothing of turns to come.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import msgspec

from durable.engine.instance import Instance
from durable.engine.runtime import RunIdentity
from durable.errors import InternalError
from durable.journal.events import Event, Retried, ScheduleActivity
from durable.journal.turns import Activated, joined, split_activations
from durable.limits import Limits
from durable.worker.leaving import too_long
from durable.worker.live import LiveRun
from durable.worker.performing import Performer
from durable.worker.reading import check_attempts
from durable.worker.recovering import recover

log = logging.getLogger("durable.worker")


class Rebuilt(NamedTuple):
    """An instance, and of its activities, by operation: when they were asked for, and which began with the turn that asked."""

    instance: Instance
    scheduled: dict[int, int]
    started: set[int]
    is_retried: bool  # the journal ends where the workflow is tried again


def rebuild(run: LiveRun, limits: Limits, *, entrusts: bool) -> Rebuilt:
    """Replay the journal into a fresh instance. `entrusts`: activities that name another queue are performed there."""
    claim = run.claim
    instance = Instance(RunIdentity.of(claim), run.definition, claim.input, limits=limits)
    instance.operations.entrusts = entrusts
    run.instance = instance
    run.turn = 0
    started: set[int] = set()
    scheduled: dict[int, int] = {}
    recorded = joined(claim.journal, last_turn=claim.last_turn)
    check_attempts(claim.attempts)
    if run.definition.retries:
        run.recorded = recorded
    event: Event | None = None
    for activated in split_activations(recorded):
        if not isinstance(activated, Activated):
            raise InternalError(f"the journal of open run {claim.run_id!r} has an end")
        instance.replay(activated)
        run.turn = activated.turn
        event = activated.event
        if type(event) is Retried:
            started.clear()
            # a new life, once it may be claimed: all limits begin anew
            scheduled = dict.fromkeys(scheduled, event.at + run.definition.retry_delay_us)
        for command in activated.commands:
            if type(command) is ScheduleActivity:
                scheduled[command.op] = event.at
                if command.started:
                    started.add(command.op)
    if instance.events >= limits.journal_events and not run.definition.is_long:
        raise too_long(run, instance, limits)
    for warning in instance.warnings:
        log.warning("run %r: %s", run.run_id, warning, extra=run.log_fields)
    return Rebuilt(instance, scheduled, started, type(event) is Retried)


def take_up(run: LiveRun, rebuilt: Rebuilt, performer: Performer) -> None:
    """Pair the open activities of an instance with the attempts that are here, and see to those that are not."""
    claim = run.claim
    activities, scheduled = rebuilt.instance.activities, rebuilt.scheduled
    rows = {row.op: row for row in claim.attempts}
    if claim.journal or claim.inbox or claim.attempts:  # read: not to be kept
        run.claim = msgspec.structs.replace(claim, journal=[], inbox=[], attempts=[])
    is_first, run.is_recovered = not run.is_recovered, True
    for op, call in activities.items():
        attempt = run.attempts.get(op)
        if attempt is not None:
            attempt.call = call
            if call.closing == "wait" and not attempt.cancelled:
                performer.close(run, op, "wait")  # that was written, though we were not told
        elif not is_first and not call.queue:
            # its turn was written, but its first attempt never begun
            performer.enqueue(run, call, scheduled[op])
        else:
            recover(
                performer,
                run,
                call,
                rows.get(op),
                was_started=op in rebuilt.started,
                scheduled_at_us=scheduled[op],
            )
    for op in [op for op in run.attempts if op not in activities]:
        performer.close(run, op, "try")
