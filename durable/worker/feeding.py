"""One turn: what has happened to a run is fed to its instance, one event per activation, and becomes an item of the next commit.

Order: messages, then outcomes, then due timers. Whatever is raised on the way leaves the run as it was: what had been taken off its
inbox and its outcomes is back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from typing import Final

import msgspec

from durable.definitions import WorkflowDefinition
from durable.engine.instance import Instance
from durable.errors import UndecodableError
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    AnyEntry,
    CloseOp,
    ContinuedAsNew,
    Event,
    Failed,
    Started,
    TimerFired,
    UpdateAnswered,
    UpdateReceived,
    WorkflowEnd,
)
from durable.journal.matching import environment
from durable.journal.turns import ENGINE_VERSION, encode_turn
from durable.limits import Limits
from durable.seams import Random
from durable.store.records import After, Message, Stay
from durable.worker.children import errands_of, is_awaited
from durable.worker.entrusting import entrust_and_close
from durable.worker.leaving import close, heed_length, is_near_limit, waits_or_stays
from durable.worker.live import AttemptState, Item, LiveRun, Outcome, new_item
from durable.worker.performing import Performer
from durable.worker.reading import check_answer, child_event, message_event

TURN_EVENTS_MAX: Final = 500  # P19
TURN_BYTES_MAX: Final = 1 << 20
HANDLED: Final = ("signal", "update", "accepted", "answered")  # the kinds of messages that handlers are given
WARM_US: Final = 5_000_000  # a wait shorter than this, or of unknown length for so long, stays in memory


class Feeder:
    """Makes the turns of one worker's runs. `warm_us` is how short a wait must be to be spent in memory; 0: none is."""

    def __init__(
        self,
        performer: Performer,
        *,
        random: Random,
        limits: Limits,
        code_of: Callable[[WorkflowDefinition], str],
    ) -> None:
        self.worker_id = 0
        self.outer: asyncio.AbstractEventLoop | None = (
            None  # the worker's loop, once it has entered its thread
        )
        self.warm_us = WARM_US
        self._performer = performer
        self._random = random
        self._limits = limits
        self._code_of = code_of

    def turn(self, run: LiveRun, instance: Instance, now: int) -> Item | None:
        """Feed all that there is, up to a turn's bounds; return the item of what came of it, None if there is nothing to write."""
        performer = self._performer
        entries: list[AnyEntry] = []
        messages: list[Message] = []
        taken: list[Outcome] = []
        bytes_fed = 0
        turn = run.turn + 1
        reserve = partial(performer.reserve_for, run) if run.is_held or run.left else performer.reserve
        reserved = performer.reserved
        if instance.events == 0:
            started = self._started(run, now)
            commands = instance.activate(started, turn=turn, index=0, reserve=reserve)
            entries.append(started)
            entries.extend(commands)
        while instance.end is None and len(entries) < TURN_EVENTS_MAX and bytes_fed < TURN_BYTES_MAX:
            event: Event | None = None
            value: object = msgspec.UNSET
            if run.inbox:
                message = run.inbox.popleft()
                if message.kind == "activity":
                    try:
                        check_answer(message)
                    except UndecodableError:
                        self.undo(run, messages, taken, performer.reserved - reserved)
                        raise
                    performer.completions.answered(run, message)
                    continue
                messages.append(message)
                bytes_fed += len(message.data)
                if message.kind == "child":
                    try:
                        is_for_somebody = is_awaited(message, instance)
                    except UndecodableError:
                        self.undo(run, messages, taken, performer.reserved - reserved)
                        raise
                    if not is_for_somebody:
                        continue
            elif run.outcomes:
                outcome = run.outcomes.popleft()
                taken.append(outcome)
                if outcome.op not in instance.activities:
                    continue  # closed meanwhile: nobody waits for it
                if outcome.failure is None:
                    assert outcome.result is not None
                    value = outcome.value
                    bytes_fed += len(outcome.result)
                    event = ActivityCompleted(
                        op=outcome.op, at=now, result=msgspec.Raw(outcome.result), attempts=outcome.attempts
                    )
                else:
                    event = ActivityFailed(
                        op=outcome.op, at=now, failure=outcome.failure, attempts=outcome.attempts
                    )
            else:
                op = _due_timer(instance, now)
                if op is None:
                    break
                event = TimerFired(op=op, at=now)
            try:
                if event is None:
                    told = messages[-1]
                    if told.kind == "child":
                        event = child_event(told, now)
                    else:
                        event = message_event(told, now, parent=run.claim.parent)
                commands = instance.activate(
                    event, turn=turn, index=len(entries), value=value, reserve=reserve
                )
            except BaseException:
                self.undo(run, messages, taken, performer.reserved - reserved)
                raise
            entries.append(event)
            entries.extend(commands)
        slots = performer.reserved - reserved
        try:
            return self.item_of(run, instance, entries, messages=messages, taken=taken, slots=slots, now=now)
        except BaseException:
            self.undo(run, messages, taken, slots)
            raise

    def common_turn(self, run: LiveRun, instance: Instance, outcome: Outcome, now: int) -> Item | None:
        """`turn` for one result and what it makes the workflow ask for: nearly every turn is such."""
        op = outcome.op
        activities = instance.activities
        if op not in activities:
            return self.turn(run, instance, now)
        run.outcomes.clear()
        performer = self._performer
        reserved = performer.reserved
        turn = run.turn + 1
        event = ActivityCompleted(
            op=op,
            at=now,
            result=msgspec.Raw(outcome.result),  # type: ignore[arg-type]  # it has not failed
            attempts=outcome.attempts,
        )
        try:
            commands = instance.activate(
                event,
                turn=turn,
                index=0,
                value=outcome.value,
                reserve=partial(performer.reserve_for, run) if run.left else performer.reserve,
                outer=self.outer,
            )
        except BaseException:
            self.undo(run, (), (outcome,), performer.reserved - reserved)
            raise
        entries: list[AnyEntry] = [event, *commands]
        slots = performer.reserved - reserved
        if (
            instance.end is not None
            or not activities
            or instance.entrusted
            or instance.errands
            or instance.updates is not None
            or (instance.events >= self._limits.journal_events_warn and not run.definition.is_long)
        ):
            return self.item_of(run, instance, entries, messages=[], taken=[outcome], slots=slots, now=now)
        run.release_asked = False
        attempt = run.attempts.get(op)
        begins = None
        if slots == 1 and len(commands) == 1:
            begins = activities[commands[0].op]  # type: ignore[union-attr]  # it took a slot: an activity
        return Item(
            pk=run.pk,
            generation=run.generation,
            claim_no=run.claim_no,
            turn=turn,
            parts=encode_turn(self.worker_id, entries),
            seen=run.seen,
            attempts_done=(op,) if attempt is None or attempt.has_row else (),
            run=run,
            entries=entries,
            at_us=now,
            taken=(outcome,),
            slots=slots,
            begins=begins,
        )

    def item_of(
        self,
        run: LiveRun,
        instance: Instance,
        entries: list[AnyEntry],
        *,
        messages: list[Message],
        taken: list[Outcome],
        slots: int,
        now: int,
    ) -> Item | None:
        """Return the item of a turn that was made: what it consumed, what it asks for, and whether the run stays."""
        end = instance.end
        if end is not None:
            self._take_rest(run, end, entries, messages, now)
            entries.append(end)
        if run.has_open:
            messages.extend(_answers(run, taken, is_over=end is not None))
        after: After = Stay()  # the end has its own
        if end is None:
            after = waits_or_stays(
                run,
                instance,
                taken=len(taken),
                now=now,
                warm_us=self.warm_us,
                is_draining=self._performer.is_draining,
            )
        if not entries and not taken and not messages and type(after) is Stay:
            return None
        item = new_item(run, after=after)
        if instance.errands:
            item.errands = errands_of(run.claim, instance, now)
        if entries:
            item.turn = run.turn + 1
            item.parts = encode_turn(self.worker_id, entries)
        if messages:
            item.consumed = [message.inbox_id for message in messages]
            item.seen = max(run.seen, *(message.msg for message in messages)) if run.inbox else run.received
        if taken:
            attempts = run.attempts
            done = [o.op for o in taken if (attempt := attempts.get(o.op)) is None or attempt.has_row]
            if done:
                item.attempts_done = done
        if run.opened:
            item.attempts_done = [*item.attempts_done, *_closed_open(run, entries)]
        if instance.updates is not None or end is not None:
            item.is_awaited = any(type(entry) is UpdateAnswered for entry in entries)
        item.entries = entries
        item.at_us = now
        item.taken = taken
        item.slots = slots
        if instance.entrusted or run.opened:
            entrust_and_close(item, instance, is_over=end is not None)
        if end is not None:
            close(item, instance, end, now=now, worker_id=self.worker_id)
        elif is_near_limit(run, instance, self._limits):
            code = self._code_of(run.definition)
            heed_length(run, instance, item, limits=self._limits, code=code)
        return item

    def undo(self, run: LiveRun, messages: Sequence[Message], taken: Sequence[Outcome], slots: int) -> None:
        """Give back what a turn had taken that will not be written."""
        run.take_back(messages, taken)
        self._performer.unreserve(slots)

    def _started(self, run: LiveRun, now: int) -> Started:
        python, hash_seed = environment()
        return Started(
            at=now,
            seed=self._random.seed(),
            attempt=run.claim.attempt,
            kind="" if run.definition.kind == "workflow" else run.definition.kind,
            engine=ENGINE_VERSION,
            python=python,
            hash_seed=hash_seed,
            early=_leading_messages(run.inbox) if run.definition.signals or run.definition.updates else 0,
            answered=tuple(message.msg for message in run.inbox if message.kind == "answered")
            if run.inbox
            else (),
        )

    def _take_rest(
        self, run: LiveRun, end: WorkflowEnd, entries: list[AnyEntry], messages: list[Message], now: int
    ) -> None:
        """See to what else was sent when a generation ends: it is delivered, though nobody reads it any more.

        If the run goes on as new, it stays in the inbox for the next generation; what became of activities and children of this one does not.
        Callers of updates are told that nobody will, unless the workflow is tried again.
        """
        is_retried = type(end) is Failed and run.claim.attempt <= run.definition.retries
        kept: deque[Message] = deque()
        while run.inbox:
            message = run.inbox.popleft()
            if message.kind in ("activity", "child"):
                messages.append(message)
            elif type(end) is ContinuedAsNew:
                kept.append(message)
            else:
                messages.append(message)
                event = message_event(message, now, parent=run.claim.parent)
                entries.append(event)
                if type(event) is UpdateReceived and not is_retried:
                    entries.append(UpdateAnswered(msg=event.msg, name=event.name, how="given_up"))
        run.inbox = kept


def _leading_messages(inbox: Iterable[Message]) -> int:
    return sum(1 for _ in takewhile(lambda message: message.kind in HANDLED, inbox))


def _due_timer(instance: Instance, now: int) -> int | None:
    timers = instance.timers
    if not timers:
        return None
    due, op = min((due, op) for op, due in timers.items())
    return op if due <= now else None


def _answers(run: LiveRun, taken: Sequence[Outcome], *, is_over: bool) -> list[Message]:
    """Return the answers from outside that a turn consumes: with their outcome, for nothing, or with the run's end."""
    found, run.spent = run.spent, []
    for op in list(run.attempts) if is_over else [outcome.op for outcome in taken]:
        attempt = run.attempts.get(op)
        if attempt is not None and attempt.answer is not None:
            found.append(attempt.answer)
    return found


def _closed_open(run: LiveRun, entries: Sequence[AnyEntry]) -> list[int]:
    """Return the open attempts that the turn closes: with their rows gone, nobody can answer them any more."""
    return [
        entry.op
        for entry in entries
        if type(entry) is CloseOp
        and (attempt := run.attempts.get(entry.op)) is not None
        and attempt.state is AttemptState.OPEN
        and not (attempt.is_remote and entry.how == "wait")
    ]
