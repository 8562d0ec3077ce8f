"""How a run leaves its worker: closed, continued as new, parked, waiting with nobody, or handed back.

Says what the next commit is to write of it, and changes nothing else: an item may still be refused, and then the run stays. What
was consumed without effect, and what was charged and never began, is given back by the same transaction.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from durable import failures
from durable.engine.instance import Instance
from durable.errors import (
    EndlessContinuationError,
    JournalLimitError,
    PlatformFault,
    StuckWorkflowError,
    WorkerLostError,
)
from durable.failures import Failure
from durable.journal.events import (
    EVENT_TYPES,
    AnyEntry,
    Cancelled,
    Completed,
    ContinuedAsNew,
    Failed,
    Retried,
    ScheduleActivity,
    WorkflowEnd,
)
from durable.journal.lifecycle import RunStatus
from durable.journal.reopening import answered_before, delivered_again
from durable.journal.turns import encode_turn
from durable.limits import Limits
from durable.redelivery import redelivery_of
from durable.store.records import (
    KEPT,
    After,
    AttemptRow,
    Claim,
    Close,
    HandBack,
    NextGeneration,
    Outgoing,
    Park,
    Stay,
    Wait,
    answer_id,
    answered_attempt,
)
from durable.worker.live import Attempt, AttemptState, Item, LiveRun, new_item

IDLE_GENERATIONS_MAX: Final = (
    100  # that continue as new without having waited for anything, one after the other
)
log = logging.getLogger("durable.worker")


# ─ waiting ──


def waits_or_stays(
    run: LiveRun, instance: Instance, *, taken: int, now: int, warm_us: int, is_draining: bool
) -> After:
    """Decide whether the run stays after a turn that takes in `taken` outcomes: it goes when nothing of it runs here and it waits for long (P12)."""
    if run.outcomes or _has_activities_here(run, instance) or len(run.attempts) - taken > run.opened:
        run.release_asked = False
        return Stay()
    due = min(instance.timers.values(), default=None)
    if run.opened:
        if run.inbox:
            return Stay()
        due = min(filter(None, [due, *_open_until(run)]), default=None)
    asked, run.release_asked = run.release_asked, False
    far = due is None or due - now > warm_us
    if far and (
        asked
        or warm_us == 0
        or is_draining
        or (due is not None and not (instance.waits or instance.children))
    ):
        return Wait(due_at_us=due)
    if asked and due is not None and due > now:
        return Wait(due_at_us=due)
    return Stay()


def handed_back(run: LiveRun, rows: Sequence[AttemptRow] = ()) -> Item:
    """Hand the run back; what still runs of it is not charged (P22). One that only waits goes on waiting, with nobody."""
    item = new_item(run, after=_hand_back_or_wait(run))
    item.answers = _answers(run)
    item.attempts = [*_given_up(run), *_answered(item.answers), *rows]
    item.status = RunStatus.RUNNING
    return item


def _hand_back_or_wait(run: LiveRun) -> HandBack | Wait:
    instance = run.instance
    if instance is None or instance.events == 0 or run.has_work or run.inbox or run.spent or run.has_unread:
        return HandBack()
    if _has_activities_here(run, instance):
        return HandBack()
    return Wait(due_at_us=min([*instance.timers.values(), *_open_until(run)], default=None))


def _has_activities_here(run: LiveRun, instance: Instance) -> bool:
    """Whether the workflow waits for an activity that this worker performs, or is to begin.

    Not to be told by numbers: a turn may let go of one that others perform and ask for one that is performed here.
    """
    if not run.opened:
        return bool(instance.activities)
    attempts = run.attempts
    return any(
        (attempt := attempts.get(op)) is None or attempt.state is not AttemptState.OPEN
        for op in instance.activities
    )


def _open_until(run: LiveRun) -> list[int]:
    """Return when attempts that somebody outside completes expire."""
    return [
        one.open_until_us
        for one in run.attempts.values()
        if one.state is AttemptState.OPEN and one.open_until_us
    ]


def _given_up(run: LiveRun) -> list[AttemptRow]:
    """Return the rows that uncharge attempts which this worker gives up, though nothing was wrong with them.

    A failure stays charged, and so does an attempt whose policy forbids another after a lost one: it was interrupted, and nobody
    knows how far it came. So does one whose thread goes on and may act at any time: to whoever takes the run it is lost. An answer
    from outside waits in the inbox, and so does a result (`_answers`).
    """
    return [
        _begun(attempt)
        if attempt.goes_on
        else AttemptRow(
            op=op, attempt=attempt.number - 1, state="handed_back", details=attempt.latest_details()
        )
        for op, attempt in run.attempts.items()
        if attempt.state in (AttemptState.RUNNING, AttemptState.STOPPED)
        and attempt.answer is None
        and (attempt.is_misread or not issubclass(WorkerLostError, attempt.call.definition.retry.no_retry))
    ]


def _answers(run: LiveRun) -> list[Outgoing]:
    """Return the results that the run stops before it could record: in its inbox they wait for whoever goes on with it.

    As if somebody outside had completed the activities: their bodies do not begin again. A result that came from there is in
    the inbox already, and one whose activity was closed is nobody's.
    """
    return [
        Outgoing(
            run_id=run.run_id,
            kind="activity",
            name=KEPT,
            data=outcome.result,
            message_id=answer_id(run.generation, outcome.op, outcome.attempts),
        )
        for outcome in run.outcomes
        if outcome.result is not None
        and (attempt := run.attempts.get(outcome.op)) is not None
        and attempt.answer is None
    ]


def _answered(answers: Sequence[Outgoing]) -> list[AttemptRow]:
    """Return the rows of attempts whose results are in the inbox: they stay charged, and nobody begins them."""
    found = [answered_attempt(answer.message_id) for answer in answers]
    return [
        AttemptRow(op=op, attempt=attempt, state="started", completion="answered") for _, op, attempt in found
    ]


def _begun(attempt: Attempt) -> AttemptRow:
    """Return the row of an attempt that stays charged: that it has begun, and what it has told."""
    return AttemptRow(
        op=attempt.call.op,
        attempt=attempt.number,
        state="started",
        due_at_us=attempt.started_at_us or attempt.scheduled_at_us,
        details=attempt.latest_details(),
    )


def never_begun(item: Item, claim: Claim) -> list[AttemptRow]:
    """Return the rows that uncharge what an item of an unknown fate has charged and nobody began; `claim` is the truth."""
    written = bool(claim.journal) and claim.journal[-1].turn == item.turn
    marks = {row.op: row for row in claim.attempts if row.state == "started"}
    rows = [
        AttemptRow(op=op, attempt=marks[op].attempt - 1, state="handed_back")
        for op in (attempt.call.op for attempt in item.marked)
        if op in marks
    ]
    return rows + _uncharged(item.entries) if written else rows


def _uncharged(entries: Sequence[AnyEntry]) -> list[AttemptRow]:
    """Return the rows that uncharge the attempts which a turn was to begin."""
    return [
        AttemptRow(op=entry.op, attempt=0, state="handed_back")
        for entry in entries
        if type(entry) is ScheduleActivity and entry.started
    ]


# ─ parked ──


def parked(run: LiveRun, fault: Exception, *, code: str) -> Item:
    """Park the run; what runs of it is not charged, and what has ended well is kept."""
    item = new_item(run)
    _park(item, run, fault, code)
    item.answers = _answers(run)
    item.attempts = [*_given_up(run), *_answered(item.answers)]
    return item


def _park(item: Item, run: LiveRun, fault: Exception, code: str) -> None:
    item.after = Park(
        reason=f"{type(fault).__name__}: {fault}",
        failure=msgspec.json.encode(_as_failure(fault)),
        code=code,
        is_clear=isinstance(fault, PlatformFault) and fault.is_clear,
    )
    item.fault = fault
    item.status = RunStatus.PARKED


def _as_failure(fault: Exception) -> Failure:
    """Return a fault as data, with the stack of the author's code where the fault itself was raised elsewhere."""
    failure = failures.record(fault)
    if isinstance(fault, StuckWorkflowError) and fault.stack:
        return msgspec.structs.replace(failure, traceback=fault.stack, fields=None)
    return failure


def too_long(run: LiveRun, instance: Instance, limits: Limits) -> JournalLimitError:
    return JournalLimitError(run_id=run.run_id, events=instance.events, limit=limits.journal_events)


def is_near_limit(run: LiveRun, instance: Instance, limits: Limits) -> bool:
    return instance.events >= limits.journal_events_warn and not run.definition.is_long


def heed_length(run: LiveRun, instance: Instance, item: Item, *, limits: Limits, code: str) -> None:
    """Warn once of a long journal. At its limit the turn is kept, and the run parks: nothing it asked for begins.

    If code of it runs, that is raised: the code is to end first, and then the turn is made anew.
    """
    before = instance.events - len(item.entries)
    if before < limits.journal_events_warn:
        log.warning(
            "run %r: its journal has %d events; at %d it will be parked",
            run.run_id, instance.events, limits.journal_events,
        )  # fmt: skip
    if instance.events < limits.journal_events or not item.entries:
        return
    if run.has_running_attempts:
        raise too_long(run, instance, limits)
    _park(item, run, too_long(run, instance, limits), code)
    item.tasks = ()
    item.answers = _answers(run)
    item.attempts = [*_given_up(run), *_answered(item.answers), *_uncharged(item.entries)]


# ─ closed, or on to the next generation ──


def close(item: Item, instance: Instance, end: WorkflowEnd, *, now: int, worker_id: int) -> None:
    """The turn ends the generation: say what the run becomes."""
    run = item.run
    wakes_others = run.claim.parent is not None or bool(instance.children)
    match end:
        case Completed():
            item.status = RunStatus.COMPLETED
            item.after = Close(
                status=RunStatus.COMPLETED, result=bytes(end.result), wakes_others=wakes_others
            )
        case Cancelled():
            item.status = RunStatus.CANCELLED
            item.after = Close(status=RunStatus.CANCELLED, reason=end.reason, wakes_others=wakes_others)
        case ContinuedAsNew():
            item.status = RunStatus.CONTINUED
            item.seen = run.received  # what is left in the inbox moves on
            item.after = _continued(item, instance, now)
        case Failed():
            failure = msgspec.json.encode(end.failure)
            if run.claim.attempt <= run.definition.retries:
                item.status = RunStatus.CONTINUED
                item.after = _retried(item, instance, failure, now=now, worker_id=worker_id)
            else:
                item.status = RunStatus.COMPENSATED if end.compensated else RunStatus.FAILED
                item.after = Close(status=item.status, failure=failure, wakes_others=wakes_others)


def _continued(item: Item, instance: Instance, now: int) -> NextGeneration:
    """A workflow that continues as new. What was consumed and read by nobody goes back to the inbox."""
    run = item.run
    has_waited = sum(isinstance(entry, EVENT_TYPES) for entry in item.entries) > 1 or item.turn != 1
    idle = 0 if has_waited else run.claim.idle_generations + 1
    if idle > IDLE_GENERATIONS_MAX:
        raise EndlessContinuationError(run_id=run.run_id, generations=IDLE_GENERATIONS_MAX)
    return NextGeneration(
        failure=None,
        copy_turns=0,
        parts=(),
        redeliver=tuple(map(redelivery_of, instance.unread())),
        ready_at_us=now,
        attempt=1,
        input=instance.next_input,
        idle_generations=idle,
        new_epoch=True,
    )


def _retried(item: Item, instance: Instance, failure: bytes, *, now: int, worker_id: int) -> NextGeneration:
    """A workflow-level retry (P7): the journal before the event whose failure escaped is kept."""
    run = item.run
    attempt = run.claim.attempt + 1
    turn, index = instance.failed_at if instance.failed_at is not None else (1, 0)
    kept: list[AnyEntry] = []
    dropped: list[AnyEntry] = []
    for number, recorded in run.recorded or ():
        if number == turn:
            kept = list(recorded[:index])
        if number >= turn:
            dropped.extend(recorded[index:] if number == turn else recorded)
    if turn == item.turn:
        kept = list(item.entries[:index])
        dropped = list(item.entries[index:])
    else:
        dropped.extend(item.entries)
    kept_any = turn > 1 or bool(kept)
    if kept_any:
        kept.append(Retried(at=now, attempt=attempt, answered=answered_before(dropped)))
    return NextGeneration(
        failure=failure,
        copy_turns=turn - 1,
        parts=encode_turn(worker_id, kept) if kept_any else (),
        redeliver=tuple(map(redelivery_of, delivered_again(dropped, instance.begun_updates()))),
        ready_at_us=now + run.definition.retry_delay_us,
        attempt=attempt,
        new_epoch=instance.has_compensated,
    )
