"""Turns: feed what happened, collect what was asked, hand it to the next group commit, release its effects.

One callback of the worker's loop drives every run that became ready, never from inside a task (a callback per
run costs twice as much, and Python 3.14 refuses nested steps). Order inside a turn: messages, then outcomes,
then due timers. An instance whose turn did not commit is discarded and rebuilt from the journal; the work of its
activities is not (P15).
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from durable import failures
from durable.definitions import Registry, WorkflowDefinition
from durable.engine.instance import Instance
from durable.engine.runtime import RunIdentity
from durable.errors import (
    InternalError,
    JournalLimitError,
    PlatformFault,
    StuckWorkflowError,
    UndecodableError,
)
from durable.failures import Failure
from durable.journal.events import (
    EVENT_TYPES,
    ActivityCompleted,
    ActivityFailed,
    AnyEntry,
    Cancelled,
    CancelRequested,
    CloseOp,
    Completed,
    Event,
    Failed,
    Retried,
    ScheduleActivity,
    SignalReceived,
    Started,
    TimerFired,
)
from durable.journal.lifecycle import RunStatus
from durable.journal.matching import environment
from durable.journal.turns import ENGINE_VERSION, Activated, encode_turn, joined, split_activations
from durable.limits import DEFAULT_LIMITS, Limits
from durable.seams import Clock, Random
from durable.store.records import (
    After,
    AttemptRow,
    Claim,
    Close,
    HandBack,
    Message,
    NextGeneration,
    Park,
    Redelivery,
    Stay,
    Verdict,
    Wait,
)
from durable.worker.live import AttemptState, Item, LiveRun, Outcome, Phase
from durable.worker.performing import UNAWAITED, Performer
from durable.worker.reading import check_answer, check_attempts, message_event
from durable.worker.suspects import Suspects
from durable.worker.watchdog import Interrupted, Watch

TURN_EVENTS_MAX: Final = 500  # P19
TURN_BYTES_MAX: Final = 1 << 20
PUMP_SECONDS_MAX: Final = 0.05  # then the loop breathes
WARM_US: Final = 5_000_000  # a wait shorter than this, or of unknown length for so long, stays in memory
# Looking a member of an enumeration up costs more than comparing it.
_IDLE: Final = Phase.IDLE
_COMMITTING: Final = Phase.COMMITTING
_GONE: Final = Phase.GONE
log = logging.getLogger("durable.worker")


class Driver:
    """The live runs of one worker. Synchronous: commits are somebody else's."""

    def __init__(
        self,
        *,
        registry: Registry,
        clock: Clock,
        random: Random,
        on_work: Callable[[], None],
        on_ended: Callable[[LiveRun, Item], None],
        on_reload: Callable[[LiveRun], None],
        on_room: Callable[[], None],
        on_lost_run: Callable[[], None],
        code_of: Callable[[WorkflowDefinition], str],
        capacity: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.runs: dict[int, LiveRun] = {}
        self.items: list[Item] = []
        self.worker_id = 0
        self.warm_us = WARM_US
        self.is_draining = False
        self.performer: Performer  # set by the worker: the two need one another
        self.watch: Watch  # likewise: it is told whose code runs
        self.suspects: Suspects  # likewise: who drives what the pump leaves alone
        self.is_trying = False  # something is driven alone
        self._registry = registry
        self._clock = clock
        self._random = random
        self._on_work = on_work
        self._on_ended = on_ended
        self._on_reload = on_reload
        self._on_room = on_room
        self._on_lost_run = on_lost_run
        self._code_of = code_of
        self._capacity = capacity
        self._limits = limits
        self.promised = 0  # places of runs that are being claimed or started at this moment
        self._dirty: deque[LiveRun] = deque()  # those that say `is_dirty`, and some that no longer do
        self._evictions: list[Instance] = []
        self._pump_is_due = False
        self._now_us = 0  # of the turns that are being made
        self._dues: list[tuple[int, int]] = []  # (due_us, pk), a heap; stale entries are harmless
        self._due_timer: asyncio.TimerHandle | None = None
        self._due_at = 0

    @property
    def room(self) -> int:
        """How many more runs may be claimed."""
        return self._capacity - len(self.runs) - self.promised

    # ─ what comes in ──

    def adopt(self, claim: Claim) -> None:
        """Drive a run that was just claimed."""
        definition = self._registry.find(claim.workflow, claim.version)
        if definition is None:
            raise InternalError(f"claimed {claim.run_id!r}, but {claim.workflow!r} is not registered here")
        known = self.runs.get(claim.pk)
        if known is not None:
            if known.claim_no == claim.claim_no:
                return  # driven already under this very claim
            self._leave(known)
        run = LiveRun(claim, definition)
        self.runs[claim.pk] = run
        self.mark(run)

    def reload(self, run: LiveRun, claim: Claim) -> None:
        """The store's word on a run whose turn did not commit: rebuild from there."""
        if run.phase is Phase.LOADING:
            run.take(claim)
            run.phase = Phase.IDLE
            self.mark(run)
            if run.leave_asked:
                self._release(run)

    def deliver(self, messages: Iterable[Message]) -> None:
        """Take in unread messages of runs driven here."""
        by_run: dict[int, list[Message]] = {}
        for message in messages:
            by_run.setdefault(message.run_pk, []).append(message)
        for pk, batch in by_run.items():
            run = self.runs.get(pk)
            if run is not None and run.phase is not Phase.LOADING and run.add_messages(batch):
                self.mark(run)

    def mark(self, run: LiveRun) -> None:
        """Something happened to this run: drive it in the next round."""
        if not run.is_dirty and run.phase is not _GONE:  # else a slot may have become free
            run.is_dirty = True
            self._dirty.append(run)
        if not self._pump_is_due:
            self.schedule_pump()

    def add_marks(self, item: Item) -> None:
        """Let the marks of attempts ride on the next commit."""
        self.items.append(item)
        self.schedule_pump()

    def schedule_pump(self) -> None:
        """See that the one callback runs soon."""
        if not self._pump_is_due:
            self._pump_is_due = True
            asyncio.get_running_loop().call_soon(self._pump)

    # ─ the one callback ──

    def _pump(self) -> None:
        self._pump_is_due = False
        if self.is_trying:
            return  # whoever holds it schedules the next one
        self.performer.fill_slots()
        if self._evictions:
            evictions, self._evictions = self._evictions, []
            for instance in evictions:
                self._evict(instance)
        dirty = self._dirty
        deadline = self._clock.monotonic() + PUMP_SECONDS_MAX
        self._now_us = self._clock.now_us()  # one instant for the turns of a moment
        driven = 0
        for _ in range(len(dirty)):  # what is marked from here on waits for the next round
            run = dirty.popleft()
            if not run.is_dirty:
                continue
            run.is_dirty = False
            if run.phase is _IDLE:
                if run.is_suspect:
                    if not run.is_held:
                        self.suspects.add(run)
                    continue
                self._drive_watched(run)
                driven += 1
                if driven & 15 == 0:
                    self._now_us = self._clock.now_us()
                    if self._clock.monotonic() > deadline:
                        break
        if dirty and not self._pump_is_due:
            self.schedule_pump()
        if self.items:
            self._on_work()

    def drive_alone(self, run: LiveRun) -> bool:
        """Drive one suspect now; return whether it adds a turn. It is no longer among those that wait for the pump."""
        run.is_dirty = False
        self._now_us = self._clock.now_us()
        self._drive_watched(run)
        adds_turn = any(item.run is run and item.turn is not None for item in self.items)
        if self.items:
            self._on_work()
        return adds_turn

    def _drive_watched(self, run: LiveRun) -> None:
        """Drive a run under the watchdog's eyes. The order of these lines is part of its theory."""
        watch = self.watch
        watch.activations += 1
        try:
            watch.subject = run.run_id
            self._drive(run)
            watch.subject = None
        except Interrupted:
            pass
        if watch.interrupted:
            self._cut_short(run)

    def _drive(self, run: LiveRun) -> None:
        if run.is_held and not run.outcomes:
            return
        try:
            instance = run.instance
            if instance is None:
                item = self._turn(run, self._rebuild(run))
            elif (
                len(run.outcomes) == 1
                and not run.inbox
                and not run.is_held
                and run.outcomes[0].failure is None
                and not run.has_open
            ):
                item = self._common_turn(run, instance, run.outcomes[0])
            else:
                item = self._turn(run, instance)
        except PlatformFault as fault:
            item = self._park(run, fault)
        except Exception as error:  # a fault of ours must not take the neighbours along
            log.exception("run %r met an internal error and is parked", run.run_id, extra=run.log_fields)
            internal = InternalError(f"{type(error).__name__}: {error}")
            internal.__cause__ = error
            item = self._park(run, internal)
        if item is not None:
            run.phase = _COMMITTING
            self.items.append(item)
        elif run.instance is not None:
            self._rest(run, run.instance)

    def _cut_short(self, run: LiveRun) -> None:
        """The watchdog broke into the run's activation: whatever came of that is void, and the run is parked."""
        self._end_watch()
        last = self.items[-1] if self.items else None
        if last is not None and last.run is run and not last.is_marks:
            self.items.pop()
            self._undo(run, [], last.taken, last.slots)
        fault = self.watch.fault(run.run_id)
        log.error("%s", fault)
        run.phase = _COMMITTING
        self.items.append(self._park(run, fault))

    def _evict(self, instance: Instance) -> None:
        """Unwind an instance; its `finally` blocks are the author's code and may hang like any other."""
        watch = self.watch
        watch.activations += 1
        try:
            watch.subject = instance.identity.run_id
            instance.evict()
            watch.subject = None
        except Interrupted:
            pass
        if watch.interrupted:
            self._end_watch()
            log.error("run %r did not end its clean-up when it left the memory", instance.identity.run_id)

    def _end_watch(self) -> None:
        """After an interrupt; it may be raised as late as here."""
        while True:
            try:
                self.watch.subject = None
                self.watch.settle()
                return
            except Interrupted:
                continue

    def _rest(self, run: LiveRun, instance: Instance) -> None:
        """Nothing to do for this run now: note since when, and see to its next timer."""
        if not run.attempts:
            run.idle_since = self._clock.monotonic()
        if instance.timers:
            self._arm(min(instance.timers.values()), run.pk)

    def _park(self, run: LiveRun, fault: Exception) -> Item:
        item = self._item(run, after=self._parked(run, fault))
        item.attempts = self.performer.handed_back(run)
        item.fault = fault
        item.status = RunStatus.PARKED
        return item

    # ─ rebuilding ──

    def _rebuild(self, run: LiveRun) -> Instance:
        """Replay the journal into a fresh instance and pair its open activities with the work at hand."""
        claim = run.claim
        instance = Instance(
            RunIdentity(
                run_id=claim.run_id,
                workflow=claim.workflow,
                version=claim.version,
                generation=claim.generation,
                epoch=claim.epoch,
                task_queue=claim.task_queue,
            ),
            run.definition,
            claim.input,
            limits=self._limits,
        )
        run.instance = instance
        run.turn = 0
        started: set[int] = set()
        scheduled: dict[int, int] = {}
        recorded = joined(claim.journal, last_turn=claim.last_turn)
        check_attempts(claim.attempts)
        if run.definition.retries:
            run.recorded = recorded
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
        if instance.events >= self._limits.journal_events and not run.definition.is_long:
            raise self._too_long(run, instance)
        for warning in instance.warnings:
            log.warning("run %r: %s", run.run_id, warning, extra=run.log_fields)
        rows = {row.op: row for row in claim.attempts}
        if claim.journal or claim.inbox or claim.attempts:  # read: not to be kept
            run.claim = msgspec.structs.replace(claim, journal=[], inbox=[], attempts=[])
        is_first, run.is_recovered = not run.is_recovered, True
        for op, call in instance.activities.items():
            attempt = run.attempts.get(op)
            if attempt is not None:
                attempt.call = call
                if call.closing == "wait" and not attempt.cancelled:
                    self.performer.close(run, op, "wait")  # that was written, though we were not told
            elif not is_first:
                # its turn was written, but its first attempt never begun
                self.performer.enqueue(run, call, scheduled[op])
            else:
                self.performer.recover(
                    run, call, rows.get(op), was_started=op in started, scheduled_at_us=scheduled[op]
                )
        for op in [op for op in run.attempts if op not in instance.activities]:
            self.performer.close(run, op, "try")
        return instance

    # ─ one turn ──

    def _turn(self, run: LiveRun, instance: Instance) -> Item | None:
        now = self._now_us
        entries: list[AnyEntry] = []
        messages: list[Message] = []
        taken: list[Outcome] = []
        bytes_fed = 0
        turn = run.turn + 1
        reserve = self.performer.reserve if not run.is_held else _none_reserved
        reserved = self.performer.reserved
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
                        self._undo(run, messages, taken, self.performer.reserved - reserved)
                        raise
                    self.performer.completions.answered(run, message)
                    continue
                messages.append(message)
                bytes_fed += len(message.data)
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
                    event = message_event(messages[-1], now)
                commands = instance.activate(
                    event, turn=turn, index=len(entries), value=value, reserve=reserve
                )
            except BaseException:
                self._undo(run, messages, taken, self.performer.reserved - reserved)
                raise
            entries.append(event)
            entries.extend(commands)
        slots = self.performer.reserved - reserved
        try:
            return self._close_turn(run, instance, turn, entries, messages, taken, slots, now)
        except BaseException:
            self._undo(run, messages, taken, slots)
            raise

    def _common_turn(self, run: LiveRun, instance: Instance, outcome: Outcome) -> Item | None:
        """`_turn` for one result and what it makes the workflow ask for: nearly every turn is such."""
        op = outcome.op
        if op not in instance.activities:
            return self._turn(run, instance)
        run.outcomes.clear()
        performer = self.performer
        reserved = performer.reserved
        turn = run.turn + 1
        now = self._now_us
        assert outcome.result is not None
        event = ActivityCompleted(
            op=op, at=now, result=msgspec.Raw(outcome.result), attempts=outcome.attempts
        )
        try:
            commands = instance.activate(
                event, turn=turn, index=0, value=outcome.value, reserve=performer.reserve
            )
        except BaseException:
            self._undo(run, [], [outcome], performer.reserved - reserved)
            raise
        entries: list[AnyEntry] = [event, *commands]
        slots = performer.reserved - reserved
        if (
            instance.end is not None
            or not instance.activities
            or (instance.events >= self._limits.journal_events_warn and not run.definition.is_long)
        ):
            return self._close_turn(run, instance, turn, entries, [], [outcome], slots, now)
        run.release_asked = False
        attempt = run.attempts.get(op)
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
        )

    def _close_turn(
        self,
        run: LiveRun,
        instance: Instance,
        turn: int,
        entries: list[AnyEntry],
        messages: list[Message],
        taken: list[Outcome],
        slots: int,
        now: int,
    ) -> Item | None:
        end = instance.end
        if end is not None:
            while run.inbox:  # whatever else was sent is delivered, though nobody reads it any more
                message = run.inbox.popleft()
                messages.append(message)
                if message.kind != "activity":
                    entries.append(message_event(message, now))
            entries.append(end)
        if run.has_open:
            messages.extend(_answers(run, taken, is_over=end is not None))
        after = self._after(run, instance, entries, taken, now)
        if not entries and not taken and not messages and type(after) is Stay:
            return None
        item = self._item(run, after=after)
        if entries:
            item.turn = turn
            item.parts = encode_turn(self.worker_id, entries)
        if messages:
            item.consumed = [message.inbox_id for message in messages]
            item.seen = max(run.seen, *(message.msg for message in messages))
        if taken:
            attempts = run.attempts
            done = [o.op for o in taken if (attempt := attempts.get(o.op)) is None or attempt.has_row]
            if done:
                item.attempts_done = done
        if run.opened:
            item.attempts_done = [*item.attempts_done, *_closed_open(run, entries)]
        item.entries = entries
        item.at_us = now
        item.taken = taken
        item.slots = slots
        if end is not None:
            self._end(run, instance, item, end, messages, now)
        elif instance.events >= self._limits.journal_events_warn and not run.definition.is_long:
            self._heed_length(run, instance, item)
        return item

    def _heed_length(self, run: LiveRun, instance: Instance, item: Item) -> None:
        """Warn once of a long journal. At its limit the turn is kept, and the run parks: nothing it asked for begins."""
        before = instance.events - len(item.entries)
        if before < self._limits.journal_events_warn:
            log.warning(
                "run %r: its journal has %d events; at %d it will be parked",
                run.run_id, instance.events, self._limits.journal_events,
            )  # fmt: skip
        if instance.events < self._limits.journal_events or not item.entries:
            return
        uncharged = [
            AttemptRow(op=entry.op, attempt=0, state="handed_back")
            for entry in item.entries
            if type(entry) is ScheduleActivity and entry.started
        ]
        fault = self._too_long(run, instance)
        item.after = self._parked(run, fault)
        item.attempts = [*self.performer.handed_back(run), *uncharged]
        item.fault = fault
        item.status = RunStatus.PARKED

    def _parked(self, run: LiveRun, fault: Exception) -> Park:
        return Park(
            reason=f"{type(fault).__name__}: {fault}",
            failure=msgspec.json.encode(_as_failure(fault)),
            code=self._code_of(run.definition),
            is_clear=isinstance(fault, PlatformFault) and fault.is_clear,
        )

    def _too_long(self, run: LiveRun, instance: Instance) -> JournalLimitError:
        return JournalLimitError(run_id=run.run_id, events=instance.events, limit=self._limits.journal_events)

    def _item(self, run: LiveRun, *, after: After) -> Item:
        return Item(
            pk=run.pk,
            generation=run.generation,
            claim_no=run.claim_no,
            seen=run.seen,
            after=after,
            run=run,
        )

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
        )

    def _after(
        self, run: LiveRun, instance: Instance, entries: list[AnyEntry], taken: list[Outcome], now: int
    ) -> After:
        """Decide whether the run stays: it goes when nothing of it runs here and it waits for long (P12)."""
        if instance.end is not None:
            return Stay()  # replaced by `_end`
        opened = run.opened
        if run.outcomes or len(instance.activities) > opened or len(run.attempts) - len(taken) > opened:
            run.release_asked = False
            return Stay()
        due = min(instance.timers.values(), default=None)
        if opened:
            if run.inbox:
                return Stay()
            due = min(filter(None, [due, *_open_until(run)]), default=None)
        asked, run.release_asked = run.release_asked, False
        far = due is None or due - now > self.warm_us
        if far and (
            asked or self.warm_us == 0 or self.is_draining or (due is not None and not instance.waits)
        ):
            return Wait(due_at_us=due)
        if asked and due is not None and due > now:
            return Wait(due_at_us=due)
        return Stay()

    def _end(
        self,
        run: LiveRun,
        instance: Instance,
        item: Item,
        end: Completed | Failed | Cancelled,
        messages: list[Message],
        now: int,
    ) -> None:
        match end:
            case Completed():
                item.status = RunStatus.COMPLETED
                item.after = Close(status=RunStatus.COMPLETED, result=bytes(end.result))
            case Cancelled():
                item.status = RunStatus.CANCELLED
                item.after = Close(status=RunStatus.CANCELLED, reason=end.reason)
            case Failed():
                failure = msgspec.json.encode(end.failure)
                if run.claim.attempt <= run.definition.retries:
                    item.status = RunStatus.CONTINUED
                    item.after = self._next_generation(run, instance, item, failure, messages, now)
                else:
                    item.status = RunStatus.COMPENSATED if end.compensated else RunStatus.FAILED
                    item.after = Close(status=item.status, failure=failure)

    def _next_generation(
        self,
        run: LiveRun,
        instance: Instance,
        item: Item,
        failure: bytes,
        messages: list[Message],
        now: int,
    ) -> NextGeneration:
        """A workflow-level retry (P7): the journal before the event whose failure escaped is kept."""
        attempt = run.claim.attempt + 1
        ready_at = now + run.definition.retry_delay_us
        turn, index = instance.failed_at if instance.failed_at is not None else (1, 0)
        this_turn = item.turn
        kept: list[AnyEntry] = []
        dropped: list[AnyEntry] = []
        for number, recorded in run.recorded or ():
            if number == turn:
                kept = list(recorded[:index])
            if number >= turn:
                dropped.extend(recorded[index:] if number == turn else recorded)
        if turn == this_turn:
            kept = list(item.entries[:index])
            dropped = list(item.entries[index:])
        else:
            dropped.extend(item.entries)
        kept_any = turn > 1 or bool(kept)
        if kept_any:
            kept.append(Retried(at=now, attempt=attempt))
        redeliver = tuple(redelivery for redelivery in map(_redelivery, dropped) if redelivery is not None)
        return NextGeneration(
            failure=failure,
            copy_turns=turn - 1,
            parts=encode_turn(self.worker_id, kept) if kept_any else (),
            redeliver=redeliver,
            ready_at_us=ready_at,
            attempt=attempt,
        )

    # ─ what the commit said ──

    def settle(self, item: Item, verdict: Verdict) -> None:
        """Release the effects of a durable item, or take it back."""
        run = item.run
        if run.is_suspect:
            self.suspects.settled()
        if verdict == "committed" and item.turn is not None and run.phase is _COMMITTING:
            if item.after.__class__ is Stay:
                self._go_on(run, item)
            else:
                self._settle_end(run, item)
        elif item.is_marks:
            if verdict == "lost":
                self.performer.unmarked(item)
                self.doubt(run)
            else:
                self.performer.marked(item)
        elif verdict not in ("committed", "stayed"):
            self.discard(item)
            self.doubt(run)
        elif run.phase is _GONE:
            self.performer.unreserve(item.slots)
            self._on_ended(run, item)
        elif type(item.after) is not Stay and verdict == "committed":
            self._settle_end(run, item)
        else:
            self._go_on(run, item)

    def _settle_end(self, run: LiveRun, item: Item) -> None:
        """The item ended the run's stay here."""
        if item.turn is not None:
            run.turn = item.turn
        run.seen = item.seen
        for outcome in item.taken:
            run.attempts.pop(outcome.op, None)
        self.performer.unreserve(item.slots)
        for index, entry in enumerate(item.entries):
            if type(entry) is CloseOp and entry.how in ("abandon", "try"):
                # it was let go before the end, or is to know why it is stopped
                self.performer.close(run, entry.op, entry.how, _reason(item.entries, index))
        self._on_ended(run, item)
        self._leave(run)

    def _go_on(self, run: LiveRun, item: Item) -> None:
        """The turn is durable and the run stays: do what it asked for."""
        if item.turn is not None:
            run.turn = item.turn
        run.seen = item.seen
        for outcome in item.taken:
            run.attempts.pop(outcome.op, None)
        instance = run.instance
        assert instance is not None
        performer = self.performer
        entries = item.entries
        for index, entry in enumerate(entries):
            kind = entry.__class__
            if kind is ScheduleActivity:
                call = instance.activities.get(entry.op)  # type: ignore[union-attr]
                if call is None:
                    if entry.started:  # type: ignore[union-attr]
                        performer.unreserve(1)
                elif entry.started:  # type: ignore[union-attr]
                    performer.start(run, call, item.at_us)
                else:
                    performer.enqueue(run, call, item.at_us)
            elif kind is CloseOp:
                performer.close(run, entry.op, entry.how, _reason(entries, index))  # type: ignore[union-attr]
        if run.recorded is not None and entries:
            run.recorded.append((run.turn, list(entries)))
        run.phase = _IDLE
        if instance.timers or not run.attempts:
            self._rest(run, instance)
        if run.leave_asked or (run.is_held and self._is_still(run)):
            self._release(run)
        elif run.inbox or run.outcomes:
            self.mark(run)

    def discard(self, item: Item) -> None:
        """The item is not in the database: its instance goes, the work it had consumed comes back (P15)."""
        run = item.run
        if run.phase is Phase.GONE:
            self.performer.unreserve(item.slots)
            return
        if item.is_marks:
            if item.is_report:
                self.repeat([item])
            else:
                self.performer.unmarked(item)
            return
        self._undo(run, [], item.taken, item.slots)
        self._forget_instance(run)

    def repeat(self, marks: Sequence[Item]) -> None:
        """Write marks that tell of what has happened with the next commit, before anything that came after them."""
        self.items[:0] = [item for item in marks if item.run.phase is not Phase.GONE]

    def _undo(self, run: LiveRun, messages: list[Message], taken: Sequence[Outcome], slots: int) -> None:
        run.inbox.extendleft(reversed(messages))
        run.outcomes.extendleft(reversed(taken))
        self.performer.unreserve(slots)

    def _forget_instance(self, run: LiveRun) -> None:
        if run.instance is not None:
            self._evictions.append(run.instance)
            run.instance = None

    def doubt(self, run: LiveRun) -> None:
        """Ask the store what is true of this run before anything else is done with it."""
        if run.is_suspect:
            self.suspects.settled()
        if run.phase is not Phase.GONE and run.phase is not Phase.LOADING:
            self._forget_instance(run)
            run.phase = Phase.LOADING
            self._on_reload(run)

    def resolve(self, item: Item, claim: Claim | None) -> None:
        """A worker that stops hands back a run whose last commit may or may not have happened; `claim` is the truth."""
        run = item.run
        self.performer.unreserve(item.slots)
        item.slots = 0
        if run.phase is Phase.GONE or claim is None:
            return
        written = bool(claim.journal) and claim.journal[-1].turn == item.turn
        marks = {row.op: row for row in claim.attempts if row.state == "started"}
        never_begun = [a.call.op for a in item.marked if a.call.op in marks]
        rows = [AttemptRow(op=op, attempt=marks[op].attempt - 1, state="handed_back") for op in never_begun]
        if written:
            rows.extend(
                AttemptRow(op=entry.op, attempt=0, state="handed_back")
                for entry in item.entries
                if type(entry) is ScheduleActivity and entry.started
            )
        self._release(run, rows)

    def lose(self, run: LiveRun) -> None:
        """The run is no longer ours: cancel what runs of it, record nothing."""
        if run.phase is not Phase.GONE:
            self._leave(run)
            self._on_lost_run()

    def lose_all(self) -> None:
        """This incarnation was fenced out: nothing it holds is its own any more."""
        for run in list(self.runs.values()):
            self._leave(run)
        for item in self.items:
            self.performer.unreserve(item.slots)
        self.items.clear()

    def _leave(self, run: LiveRun) -> None:
        run.phase = Phase.GONE
        if run.is_suspect:
            self.suspects.settled()
        if (
            self.runs.get(run.pk) is run
        ):  # else: given up, and claimed anew before its last commit was settled
            del self.runs[run.pk]
        run.is_dirty = False
        self.performer.drop(run)
        self._forget_instance(run)
        self.schedule_pump()
        self._on_room()

    # ─ waiting and leaving ──

    def _arm(self, due_us: int, pk: int) -> None:
        heapq.heappush(self._dues, (due_us, pk))
        if self._due_timer is None or due_us < self._due_at:
            self._set_due_timer()

    def _set_due_timer(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if self._dues:
            self._due_at = self._dues[0][0]
            delay = min(max(self._due_at - self._clock.now_us(), 0) / 1_000_000, 3600.0)
            self._due_timer = asyncio.get_running_loop().call_later(delay, self.ring)

    def ring(self) -> None:
        """Drive the runs whose timers are due, and set the timer for the next."""
        now = self._clock.now_us()
        while self._dues and self._dues[0][0] <= now:
            _, pk = heapq.heappop(self._dues)
            run = self.runs.get(pk)
            if run is not None:
                self.mark(run)
        self._set_due_timer()

    def release_idle(self) -> None:
        """Ask runs that have waited here for long to go; under pressure those that wait longest go at once."""
        now = self._clock.monotonic()
        idle = [
            run
            for run in self.runs.values()
            if run.phase is Phase.IDLE and not run.has_work and run.instance is not None
        ]
        crowded = len(self.runs) > self._capacity * 0.9
        idle.sort(key=lambda run: run.idle_since)
        for position, run in enumerate(idle):
            pressed = crowded and position < len(self.runs) // 5
            if pressed or now - run.idle_since > self.warm_us / 1_000_000:
                run.release_asked = True
                self.mark(run)

    @property
    def is_busy(self) -> bool:
        """Whether something is on its way into the database."""
        return bool(self.items) or any(run.outcomes or not run.is_settled for run in self.runs.values())

    def hand_back(self, pk: int) -> None:
        """Release one run as ready for others, at once or when what is on its way has arrived."""
        run = self.runs.get(pk)
        if run is None:
            return
        if run.phase is Phase.IDLE:
            self._release(run)
        else:
            run.leave_asked = True

    def hand_back_all(self) -> None:
        """Release every run that is not in the middle of a commit."""
        for run in list(self.runs.values()):
            if run.is_settled:
                self._release(run)

    def _release(self, run: LiveRun, rows: Sequence[AttemptRow] = ()) -> None:
        """Hand the run back; what still runs of it is not charged (P22). One that only waits goes on waiting, with nobody."""
        item = self._item(run, after=self._how_to_leave(run))
        item.attempts = [*self.performer.handed_back(run), *rows]
        item.status = RunStatus.RUNNING
        run.phase = Phase.COMMITTING
        self.items.append(item)
        self.schedule_pump()

    def _how_to_leave(self, run: LiveRun) -> HandBack | Wait:
        instance = run.instance
        if instance is None or instance.events == 0 or run.has_work or run.inbox or run.spent:
            return HandBack()
        if len(instance.activities) > run.opened:
            return HandBack()
        return Wait(due_at_us=min([*instance.timers.values(), *_open_until(run)], default=None))

    def hold(self, is_held: Callable[[LiveRun], bool]) -> None:
        """Hold back the runs that are paused, let go on those that no longer are.

        A run is handed back once nothing of it runs and what had run is recorded.
        """
        for run in list(self.runs.values()):
            was, run.is_held = run.is_held, is_held(run)
            if run.is_held and run.phase is Phase.IDLE and self._is_still(run):
                self._release(run)
            elif was and not run.is_held:
                self.mark(run)

    def _is_still(self, run: LiveRun) -> bool:
        """Whether nothing of a run that is held back runs, and what had run is recorded."""
        return not run.outcomes and not run.has_running_attempts

    def stop(self) -> None:
        """Drop whatever is left and set no more callbacks."""
        self.lose_all()
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        for instance in self._evictions:
            self._evict(instance)
        self._evictions.clear()


def _none_reserved() -> bool:
    return False


def _answers(run: LiveRun, taken: Sequence[Outcome], *, is_over: bool) -> list[Message]:
    """Return the answers from outside that a turn consumes: with their outcome, for nothing, or with the run's end."""
    found, run.spent = run.spent, []
    for op in list(run.attempts) if is_over else [outcome.op for outcome in taken]:
        attempt = run.attempts.get(op)
        if attempt is not None and attempt.answer is not None:
            found.append(attempt.answer)
    return found


def _open_until(run: LiveRun) -> list[int]:
    """Return when attempts that somebody outside completes expire."""
    return [
        one.open_until_us
        for one in run.attempts.values()
        if one.state is AttemptState.OPEN and one.open_until_us
    ]


def _closed_open(run: LiveRun, entries: Sequence[AnyEntry]) -> list[int]:
    """Return the open attempts that the turn closes: with their rows gone, nobody can answer them any more."""
    return [
        entry.op
        for entry in entries
        if type(entry) is CloseOp
        and (attempt := run.attempts.get(entry.op)) is not None
        and attempt.state is AttemptState.OPEN
    ]


def _due_timer(instance: Instance, now: int) -> int | None:
    timers = instance.timers
    if not timers:
        return None
    due, op = min((due, op) for op, due in timers.items())
    return op if due <= now else None


def _reason(entries: Sequence[AnyEntry], index: int) -> str:
    """Say why the activation in which `entries[index]` stands closed an activity: the words of a cancel request, if it was one."""
    for entry in reversed(entries[:index]):
        if type(entry) is CancelRequested:
            return entry.reason or "the run was cancelled"
        if isinstance(entry, EVENT_TYPES):
            break
    return UNAWAITED


def _as_failure(fault: Exception) -> Failure:
    """Return a fault as data, with the stack of the author's code where the fault itself was raised elsewhere."""
    failure = failures.record(fault)
    if isinstance(fault, StuckWorkflowError) and fault.stack:
        return msgspec.structs.replace(failure, traceback=fault.stack, fields=None)
    return failure


def _redelivery(entry: AnyEntry) -> Redelivery | None:
    if isinstance(entry, SignalReceived):
        return Redelivery(
            msg=entry.msg, kind="signal", name=entry.name, data=bytes(entry.value), message_id=entry.id
        )
    if isinstance(entry, CancelRequested):
        return Redelivery(
            msg=entry.msg,
            kind="cancel",
            name="cancel",
            data=msgspec.json.encode(entry.reason),
            message_id=None,
        )
    return None
