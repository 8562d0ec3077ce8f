"""Runs in memory: see that what is ready is driven, hand its turns to the next group commit, release their effects.

One callback of the worker's loop drives every run that became ready, never from inside a task (a callback per
run costs twice as much, and Python 3.14 refuses nested steps). An instance whose turn did not commit is discarded and rebuilt from
the journal; the work of its activities is not (P15).

Here is what happens around a turn, before (`_pump`, `_drive`) and after it is durable (`settle`; nearly always `_take_step`). The
turn itself is made in `feeding.py`, instances out of journals in `rebuilding.py`; how runs leave is in `leaving.py` (what is
written) and `releasing.py` (when).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from durable.definitions import Registry, WorkflowDefinition
from durable.engine.generators import enter_thread
from durable.engine.instance import Instance
from durable.engine.runtime import ActivityCall
from durable.errors import InternalError, PlatformFault
from durable.journal.events import CloseOp, ScheduleActivity
from durable.limits import DEFAULT_LIMITS, Limits
from durable.seams import Clock, Random
from durable.store.records import AttemptRow, Claim, Message, Stay, Verdict
from durable.worker.children import child_start
from durable.worker.closing import closing_reason
from durable.worker.dues import Dues
from durable.worker.feeding import Feeder
from durable.worker.leaving import handed_back, parked
from durable.worker.live import Item, LiveRun, Phase, new_item
from durable.worker.performing import Performer
from durable.worker.rebuilding import rebuild, take_up
from durable.worker.suspects import Suspects
from durable.worker.watchdog import Interrupted, Watch, evict

LEAVE_SECONDS: Final = 1.0  # for the code of a run that leaves, to end
PUMP_SECONDS_MAX: Final = 0.05  # then the loop breathes
BATCH_MIN: Final = 48  # of fewer turns no batch is made while there is more to drive
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
        on_children: Callable[[LiveRun, Instance], None],
        on_answered: Callable[[int], None],
        code_of: Callable[[WorkflowDefinition], str],
        capacity: int,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        self.runs: dict[int, LiveRun] = {}
        self.items: list[Item] = []
        self.performer: Performer  # these three by `connect`: the parts need one another
        self.feeder: Feeder
        self.suspects: Suspects  # who drive what the pump leaves alone
        self.watch: Watch  # set by the worker: it is told whose code runs
        self.entrusts = True  # activities that name another queue to the workers of that queue
        self.on_tasks: Callable[[], None] = lambda: None  # tasks of other queues were asked for, or let go of
        self.batch_seconds = math.inf  # after so long what there is is worth a commit; the committer knows
        self.is_trying = False  # something is driven alone
        self._registry = registry
        self._clock = clock
        self._random = random
        self._on_work = on_work
        self._on_ended = on_ended
        self._on_reload = on_reload
        self._on_room = on_room
        self._on_lost_run = on_lost_run
        self._on_children = on_children
        self._on_answered = on_answered
        self._code_of = code_of
        self._capacity = capacity
        self._limits = limits
        self.promised = 0  # places of runs that are being claimed or started at this moment
        self._dirty: deque[LiveRun] = deque()  # those that say `is_dirty`, and some that no longer do
        self._evictions: list[Instance] = []
        self._pump_is_due = False
        self._now_us = 0  # of the turns that are being made
        self._dues = Dues(clock, self._on_due)
        self._arm = self._dues.arm
        self.ring = self._dues.ring  # drives the runs whose timers are due

    def connect(self, performer: Performer, suspects: Suspects) -> None:
        """Get to know the other parts; before anything is driven."""
        self.performer, self.suspects = performer, suspects
        self.feeder = Feeder(performer, random=self._random, limits=self._limits, code_of=self._code_of)
        self._common_turn = self.feeder.common_turn

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
                self.release(run)

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
                evict(instance, self.watch)
        dirty = self._dirty
        self.feeder.outer = enter_thread()
        began = self._clock.monotonic()
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
                    spent = self._clock.monotonic() - began
                    if spent > PUMP_SECONDS_MAX or (
                        spent > self.batch_seconds and len(self.items) >= BATCH_MIN
                    ):
                        break
        if self.items:
            self._on_work()
        if dirty and not self._pump_is_due:
            self.schedule_pump()  # behind what the commit has let begin

    def drive_alone(self, run: LiveRun) -> bool:
        """Drive one suspect now; return whether it adds a turn. It is no longer among those that wait for the pump.

        What came of it is not written before `hand_over`.
        """
        run.is_dirty = False
        self.feeder.outer = enter_thread()
        self._now_us = self._clock.now_us()
        self._drive_watched(run)
        return any(item.run is run and item.turn is not None for item in self.items)

    def hand_over(self) -> None:
        """Let what there is be written."""
        if self.items:
            self._on_work()

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
        instance = run.instance
        outcomes = run.outcomes
        try:
            if (
                instance is not None
                and len(outcomes) == 1
                and not (run.inbox or run.is_held or run.has_open or run.fault or run.leave_asked)
                and (outcome := outcomes[0]).failure is None
            ):
                item = self._common_turn(run, instance, outcome, self._now_us)
            elif run.fault is not None:
                item = self._park(run, run.fault)
            elif run.leave_asked:
                self.release(run)
                return
            elif run.is_held and not outcomes:
                return
            else:
                instance = self._rebuild(run) if instance is None else instance
                item = self.feeder.turn(run, instance, self._now_us)
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
        self.watch.come_out()
        last = self.items[-1] if self.items else None
        if last is not None and last.run is run and not last.is_marks:
            self.items.pop()
            self.feeder.undo(run, (), last.taken, last.slots)
        fault = self.watch.fault(run.run_id)
        log.error("%s", fault)
        item = self._park(run, fault)
        if item is not None:
            run.phase = _COMMITTING
            self.items.append(item)

    def _rest(self, run: LiveRun, instance: Instance) -> None:
        """Nothing to do for this run now: note since when, and see to its next timer."""
        if len(run.attempts) == run.opened:
            run.idle_since = self._clock.monotonic()
        if instance.timers:
            self._arm(min(instance.timers.values()), run.pk)

    def _park(self, run: LiveRun, fault: Exception) -> Item | None:
        """Return what parks the run; None if code of it is to end first."""
        if not self._has_code_to_end(run):
            return parked(run, fault, code=self._code_of(run.definition))
        run.fault = fault
        self._forget_instance(run)  # it met the fault: nothing is fed to it any more
        return None

    def _has_code_to_end(self, run: LiveRun) -> bool:
        """Tell the code of a run that leaves to end; whether it has not done so yet, and has time left for it.

        What still ran when it was written that the run leaves could act, or end well, and would be begun again all the same.
        """
        if run.leaves_at is None and run.has_running_attempts and not self.performer.is_over:
            run.leaves_at = asyncio.get_running_loop().call_later(LEAVE_SECONDS, self._wait_no_more, run)
            self.performer.stop_run(run)
        return run.has_running_attempts and not (run.is_waited_out or self.performer.is_over)

    def _wait_no_more(self, run: LiveRun) -> None:
        run.is_waited_out = True
        self.mark(run)

    def _rebuild(self, run: LiveRun) -> Instance:
        """Replay the journal into a fresh instance and pair its open activities with the work at hand."""
        rebuilt = rebuild(run, self._limits, entrusts=self.entrusts)
        take_up(run, rebuilt, self.performer)
        instance = rebuilt.instance
        if instance.children:
            self._on_children(run, instance)
            if rebuilt.is_retried:
                # They may have ended after the point from which the workflow is retried: then they are started, or told of, anew.
                item = new_item(run)
                item.errands = [
                    child_start(run.claim, one, self._now_us) for one in instance.children.values()
                ]
                self.items.append(item)
        return instance

    # ─ what the commit said ──

    def settle(self, item: Item, verdict: Verdict) -> None:
        """Release the effects of a durable item, or take it back."""
        run = item.run
        if item.errands and verdict in ("committed", "stayed") and run.instance is not None:
            self._on_children(run, run.instance)
        if item.is_awaited and verdict in ("committed", "stayed"):
            self._on_answered(run.pk)
        if run.is_suspect:
            self.suspects.settled()
        if verdict == "committed" and item.turn is not None and run.phase is _COMMITTING:
            if item.begins is not None:
                self._take_step(run, item, item.begins)
            else:
                self._go_on(run, item, stays=item.after.__class__ is Stay)
        elif item.is_marks:
            if verdict == "lost":
                self.performer.unmarked(item)
                self.doubt(run)
            elif verdict == "messages":
                self.discard(item)  # somebody is about to close the run: whoever asks again is told
            else:
                self.performer.marked(item)
        elif verdict not in ("committed", "stayed"):
            self.discard(item)
            self.doubt(run)
        elif run.phase is _GONE:
            self.performer.unreserve(item.slots)
            self._on_ended(run, item)
        else:
            run.has_unread = verdict == "stayed"
            self._go_on(run, item, stays=verdict == "stayed" or item.after.__class__ is Stay)

    def _take_step(self, run: LiveRun, item: Item, call: ActivityCall) -> None:
        """`_go_on` for one result that led to one activity: nearly every turn is such."""
        run.turn = item.turn  # type: ignore[assignment]  # it has one
        run.attempts.pop(item.taken[0].op, None)
        self.performer.start(run, call, item.at_us)
        if run.recorded is not None:
            run.recorded.append((run.turn, list(item.entries)))
        run.phase = _IDLE
        if run.instance.timers:  # type: ignore[union-attr]  # discarding it would have discarded the item
            self._rest(run, run.instance)  # type: ignore[arg-type]
        if run.inbox or run.outcomes or run.leave_asked or run.is_held:
            self._leave_or_mark(run)

    def _go_on(self, run: LiveRun, item: Item, *, stays: bool) -> None:
        """The item is durable. If the run stays: do what it asked for."""
        if item.turn is not None:
            run.turn = item.turn
        run.seen = item.seen
        for outcome in item.taken:
            run.attempts.pop(outcome.op, None)
        if not stays:
            self._end_stay(run, item)
            return
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
                elif entry.queue:  # type: ignore[union-attr]
                    performer.entrust(run, call, item.at_us)
                else:
                    performer.enqueue(run, call, item.at_us)
            elif kind is CloseOp:
                performer.close(run, entry.op, entry.how, closing_reason(entries, index))  # type: ignore[union-attr]
        if item.tasks or item.tasks_closed:
            self.on_tasks()
        if run.recorded is not None and entries:
            run.recorded.append((run.turn, list(entries)))
        run.phase = _IDLE
        if instance.timers or len(run.attempts) == run.opened:
            self._rest(run, instance)
        self._leave_or_mark(run)

    def _end_stay(self, run: LiveRun, item: Item) -> None:
        """The run left with this item: let go of what it held here."""
        self.performer.unreserve(item.slots)
        for index, entry in enumerate(item.entries):
            if type(entry) is CloseOp and entry.how in ("abandon", "try"):
                # it was let go before the end, or is to know why it is stopped
                self.performer.close(run, entry.op, entry.how, closing_reason(item.entries, index))
        if item.tasks_closed:
            self.on_tasks()
        self._on_ended(run, item)
        self._leave(run)

    def _leave_or_mark(self, run: LiveRun) -> None:
        if run.leave_asked or (run.is_held and run.is_still):
            self.release(run)
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
        self.feeder.undo(run, (), item.taken, item.slots)
        self._forget_instance(run)

    def repeat(self, marks: Sequence[Item]) -> None:
        """Write marks that tell of what has happened with the next commit, before anything that came after them."""
        self.items[:0] = [item for item in marks if item.run.phase is not Phase.GONE]

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
        if run.leaves_at is not None:
            run.leaves_at.cancel()
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

    def _on_due(self, pk: int) -> None:
        run = self.runs.get(pk)
        if run is not None:
            self.mark(run)

    @property
    def is_busy(self) -> bool:
        """Whether something is on its way into the database, or begins as soon as that is there."""
        return bool(self.items) or any(
            run.outcomes or not run.is_settled or run.is_starting for run in self.runs.values()
        )

    @property
    def is_at_rest(self) -> bool:
        """Whether no run has anything to be driven, and nothing is on its way in or out."""
        if self._pump_is_due or self.items or self.promised or self.is_trying or self.suspects.has_work:
            return False
        return not any(
            run.is_dirty or run.inbox or run.outcomes or run.phase is not _IDLE or run.is_starting
            for run in self.runs.values()
        )

    def release(self, run: LiveRun, rows: Sequence[AttemptRow] = ()) -> None:
        """Hand back a run of which nothing is on its way, once its code has ended; `rows` tell of attempts that it does not know of itself."""
        run.leave_asked = True
        if self._has_code_to_end(run):
            return
        self.items.append(handed_back(run, rows))
        run.phase = Phase.COMMITTING
        self.schedule_pump()

    def stop(self) -> None:
        """Drop whatever is left and set no more callbacks."""
        self.lose_all()
        self._dues.stop()
        for instance in self._evictions:
            evict(instance, self.watch)
        self._evictions.clear()
