"""Activities: attempts under way, and the slots they need.

An attempt is charged in the database before it starts (P22): by the turn that schedules it if a slot is free
then, else by a mark that rides on a later commit. Attempts belong to the run, not to its instance (P15). Knows how
to run user code; knows nothing of turns.

Stopping. A coroutine is cancelled. In a thread an exception is raised (`durable/interrupts.py`); it keeps its slot until it ends.
Before a run leaves, its code is stopped and has a moment to end (`stop_run`, `begin_no_more`): what acts, or ends well, after
it was written that it is given up would be done again by the next owner.

Here is what every attempt goes through: a slot, its code, its end. In rooms of their own: limits (`timeouts.py`), what becomes of an
attempt that failed (`endings.py`), what heartbeats tell (`heartbeats.py`), and what was left by a worker before (`recovering.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final

from durable.connection import Address, StandIn, address_here
from durable.definitions import ActivityDefinition
from durable.engine.runtime import ActivityCall
from durable.errors import (
    UndecodableError,
)
from durable.in_activity import (
    ActivityInfo,
    CompleteAsync,
    Pulse,
    decode_details,
    left_parts_here,
    threads_here,
    waits_here,
)
from durable.limits import Limits
from durable.payloads.codec import sealed_fault
from durable.seams import Clock, Executor, Random, Threads, pause
from durable.store.records import AttemptRow, NewTask
from durable.worker.closing import NOT_OURS, STOPPING, UNAWAITED
from durable.worker.completions import Completions
from durable.worker.endings import Endings, too_large
from durable.worker.entrusting import remote_attempt
from durable.worker.heartbeats import Heartbeats
from durable.worker.left_parts import LeftParts
from durable.worker.live import Attempt, AttemptState, Item, LiveRun, Outcome, Phase
from durable.worker.probation import Probation
from durable.worker.reading import Misread
from durable.worker.runners import Runners, StaleError
from durable.worker.thread_runners import ThreadRunners
from durable.worker.timeouts import Timeouts, left_us
from durable.worker.watchdog import Interrupted, blocked

_RUNNING: Final = AttemptState.RUNNING  # looking a member up costs more than the rest of a comparison
_DONE: Final = AttemptState.DONE
_DROPPED: Final = AttemptState.DROPPED
_GONE: Final = Phase.GONE
_TELLS: Final = (CompleteAsync, Misread, Interrupted)  # ends that say more than that it was stopped
log = logging.getLogger("durable.worker")


class Performer:
    """Performs the activities of one worker's runs, at most `slots` at a time."""

    def __init__(
        self,
        *,
        slots: int,
        clock: Clock,
        random: Random,
        threads: Threads,
        executor: Executor,
        address: Address,
        limits: Limits,
        stand_in: StandIn | None,
        on_outcome: Callable[[LiveRun], None],
        on_marks: Callable[[Item], None],
        on_slots: Callable[[], None],
        endings: type[Endings] = Endings,
    ) -> None:
        self._free = slots
        self.reserved = 0  # slots reserved so far, ever
        self.clock = clock
        self._on_outcome = on_outcome
        self._on_marks = on_marks
        self._on_slots = on_slots
        # Whether the commit whose effects are being released still proves the lease; set before they are (P11).
        # Until `fresh_until` (monotonic) there is no need to ask.
        self.fence: Callable[[], bool] = lambda: True
        self.fresh_until = 0.0
        self._allowed = limits
        self._stand_in = stand_in
        self._left_parts = LeftParts(on_ended=on_outcome)
        self._context = copy_context()
        self._context.run(address_here.set, address)
        self._context.run(waits_here.set, self.lend_slot)
        self._context.run(threads_here.set, threads)
        self._context.run(left_parts_here.set, self._left_parts)
        self._runners = Runners(clock=clock, context=self._context, on_ended=self._ended)
        runners = ThreadRunners(
            threads=threads, executor=executor, context=self._context, on_ended=self._ended
        )
        self._start_thread = runners.start
        self._running: set[Attempt] = set()
        self.endings = endings(self, clock, random)
        self._report_grouped = self.endings.report_grouped
        self._timeouts = Timeouts(clock, self._running, stop_code=self.stop_code, expire=self.endings.expire)
        self._set_timer = self._timeouts.watch
        self.heartbeats = Heartbeats(self.write)
        self._on_details = self.heartbeats.note
        self._loop = asyncio.get_running_loop()
        self._describe = self._describe_attempt
        self._queue: deque[Attempt] = deque()
        self._probation = Probation(on_slots)
        self.is_draining = False
        self.is_over = False  # nothing is waited for any more
        self.is_stopping: Callable[[], bool] = lambda: False
        self.on_idle: Callable[[], None] = lambda: None
        self.completions: Completions  # set by the worker: what is completed from outside

    @property
    def running(self) -> int:
        """Attempts whose code runs now."""
        return len(self._running)

    def attempt_of(self, task: asyncio.Task[Any]) -> str | None:
        """Return which attempt a task of the loop performs, in words; for the watchdog, from its thread, while the loop stands still."""
        in_first_step = self._runners.is_runner(task)
        for attempt in list(self._running):
            is_async = attempt.call.definition.is_async
            if attempt.task is task or (
                in_first_step and is_async and attempt.begun and attempt.task is None
            ):
                name = attempt.call.definition.name
                return f"attempt {attempt.number} of activity {name!r} of run {attempt.run.run_id!r}"
        return None

    # ─ slots ──

    def reserve(self, _: ActivityDefinition) -> bool:
        """Take a slot for an activity whose schedule is about to be committed, if one is free and nobody is ahead."""
        if self._free > 0 and not self._queue and not self.is_draining:
            self._free -= 1
            self.reserved += 1
            return True
        return False

    def reserve_for(self, run: LiveRun, definition: ActivityDefinition) -> bool:
        """Take a slot for an activity of a run that is held, or of which parts were left.

        One that takes over gets it in any case: what it goes on with runs already, and what that comes to nobody else could tell. If no
        slot is free, others have to wait for one more.
        """
        if definition.takes_over and run.left:
            self._free -= 1
            self.reserved += 1
            return True
        return not run.is_held and self.reserve(definition)

    def unreserve(self, slots: int) -> None:
        """Give back slots whose turn was not committed."""
        self._free += slots
        if slots and self._queue:
            self._on_slots()

    def begin_no_more(self) -> None:
        """Let no code take its first step any more, and what runs end: all of it is about to be handed back."""
        self._runners.close()
        self.is_stopping = lambda: True  # what ends by a cancellation from here on was stopped by us
        for attempt in list(self._running):
            if attempt.state is AttemptState.RUNNING:
                self._stop_for_good(attempt, STOPPING)
        self._left_parts.stop_all(STOPPING)

    async def hear_out(self, *, coroutines_seconds: float, threads_seconds: float) -> None:
        """Wait for the code that was told to stop, at most so long: what it came to must be known before it is given up."""
        running = [attempt for attempt in self._running if attempt.is_stopped]
        tasks = [attempt.task for attempt in running if isinstance(attempt.task, asyncio.Task)]
        tasks += self._left_parts.running
        if tasks:
            await asyncio.wait(tasks, timeout=coroutines_seconds)
        threads = [attempt.task for attempt in running if attempt.goes_on]
        if threads:
            await asyncio.wait(threads, timeout=threads_seconds)
        if tasks or threads:
            await pause(0)  # what they have come to is taken in
        self.is_over = True

    def stop_run(self, run: LiveRun) -> None:
        """The run leaves: let its code end. What comes of it is told like an outcome."""
        reason = STOPPING if self.is_draining else NOT_OURS
        self._left_parts.stop(run, reason)
        for attempt in list(run.attempts.values()):
            if attempt.state is AttemptState.RUNNING:
                self._stop_for_good(attempt, reason)
            elif attempt.state is AttemptState.MARKING:
                attempt.is_stopped = True

    def _stop_for_good(self, attempt: Attempt, reason: str) -> None:
        """Let the code of an attempt end whose run leaves: unless it comes to a result, it is as if it had never begun."""
        if attempt.is_stopped or attempt.timed_out is not None or attempt.cancelled:
            return  # it was told already, and its end counts
        attempt.is_stopped = True
        attempt.stop_timer()
        self.stop_code(attempt, reason)

    def stopped(self, attempt: Attempt) -> None:
        """Its code has ended, or never begun, because its run leaves."""
        self.free_slot(attempt)
        attempt.state = AttemptState.STOPPED
        self._on_outcome(attempt.run)

    @property
    def is_at_rest(self) -> bool:
        """Whether no attempt is about to begin that could; code that runs does not count."""
        return self._free <= 0 or not (self._queue or self._probation.waiting)

    async def unwind(self, limit_seconds: float) -> None:
        """Cancel every coroutine that still runs, abandoned ones too, and wait for their ends, at most so long.

        Threads are told, and not waited for.
        """
        self.heartbeats.stop()
        self._runners.close()
        self._probation.stop()
        tasks = self._left_parts.stop_all(STOPPING)
        for attempt in self._running:
            attempt.state = AttemptState.DROPPED
            attempt.stop_timer()
            if attempt.pulse is not None and attempt.pulse.cancel_reason is None:
                attempt.pulse.stop(STOPPING)
            if isinstance(attempt.task, asyncio.Task):
                attempt.task.cancel()
                tasks.append(attempt.task)
        if tasks:
            await asyncio.wait(tasks, timeout=limit_seconds)

    def fill_slots(self) -> None:
        """Give free slots to whoever waits; their start marks join the next commit."""
        if self._free <= 0 or self.is_draining:
            return
        if self._probation.waiting:
            self._queue.extendleft(reversed(self._probation.take(self._free)))
        if not self._queue:
            return
        now_us = self.clock.now_us()
        marks: dict[LiveRun, list[Attempt]] = {}
        held: list[Attempt] = []
        while self._queue and self._free > 0:
            attempt = self._queue.popleft()
            if attempt.state is not AttemptState.QUEUED:
                continue
            if attempt.run.is_held or attempt.run.is_leaving:
                held.append(attempt)
                continue
            attempt.state = AttemptState.MARKING
            attempt.stop_timer()
            attempt.has_slot = True
            attempt.is_lost = False
            attempt.started_at_us = now_us
            self._free -= 1
            marks.setdefault(attempt.run, []).append(attempt)
        self._queue.extendleft(reversed(held))
        for run, attempts in marks.items():
            rows = [
                AttemptRow(
                    op=a.call.op, attempt=a.number + 1, state="started", due_at_us=now_us, details=a.details
                )
                for a in attempts
            ]
            self._mark(run, attempts, rows)

    def _mark(self, run: LiveRun, attempts: list[Attempt], rows: list[AttemptRow]) -> None:
        item = Item(
            pk=run.pk,
            generation=run.generation,
            claim_no=run.claim_no,
            attempts=rows,
            run=run,
            marked=attempts,
        )
        for row in rows:
            if row.op in run.attempts:
                run.attempts[row.op].has_row = True
        self._on_marks(item)

    def write(self, run: LiveRun, rows: list[AttemptRow]) -> None:
        """Let rows that tell of what has happened ride on the next commit."""
        self._mark(run, [], rows)

    def resume(self, run: LiveRun) -> None:
        """See that the run is driven."""
        self._on_outcome(run)

    def marked(self, item: Item) -> None:
        """The marks of `item` are durable: start what they announced."""
        for attempt in item.marked:
            if attempt.state is AttemptState.MARKING:
                attempt.number += 1
                if attempt.is_stopped:
                    self.stopped(attempt)
                else:
                    self._begin(attempt)

    def unmarked(self, item: Item) -> None:
        """The marks of `item` were not written: its attempts wait for a slot again."""
        for attempt in item.marked:
            if attempt.state is AttemptState.MARKING:
                self.free_slot(attempt)
                self.want_slot(attempt)

    def lend_slot(self, pulse: Pulse) -> None:
        """An activity begins to wait for a run, or has ended waiting. It gets its slot back at once, if need be before others do."""
        attempt: Attempt = pulse.owner
        if attempt.pulse is not pulse or attempt.state is not _RUNNING or not attempt.is_on_loop:
            return  # over, or a thread's: there are no more threads than slots
        if pulse.waits:
            self.free_slot(attempt)
        elif not attempt.has_slot:
            attempt.has_slot = True
            self._free -= 1

    # ─ what the driver asks ──

    def start(self, run: LiveRun, call: ActivityCall, scheduled_at_us: int) -> None:
        """Start attempt 1: its slot is reserved and its charge is durable."""
        attempt = run.attempts[call.op] = Attempt(
            run, call, 1, _RUNNING, scheduled_at_us, scheduled_at_us, True
        )
        if call.definition.is_simple:
            self._run(attempt, ())
        else:
            self._begin(attempt)

    def enqueue(self, run: LiveRun, call: ActivityCall, scheduled_at_us: int) -> None:
        """Start the first attempt as soon as there is a slot."""
        attempt = run.attempts[call.op] = Attempt(
            run, call, 0, AttemptState.QUEUED, scheduled_at_us, scheduled_at_us
        )
        if call.closing == "wait":
            attempt.cancelled = True
            self.endings.cancelled(attempt)
        else:
            self.want_slot(attempt)

    def entrust(self, run: LiveRun, call: ActivityCall, scheduled_at_us: int) -> None:
        """Wait for an activity that workers of another queue perform: its task is durable."""
        attempt = run.attempts[call.op] = remote_attempt(run, call, scheduled_at_us)
        self.completions.entrusted(attempt)

    def entrust_anew(self, run: LiveRun, task: NewTask) -> None:
        """Write a task that none of the run's turns in this generation has asked for."""
        self._on_marks(
            Item(pk=run.pk, generation=run.generation, claim_no=run.claim_no, tasks=[task], run=run)
        )

    def close(self, run: LiveRun, op: int, how: str, reason: str = UNAWAITED) -> None:
        """The workflow cancelled this activity: its cancellation type `how` is durable now."""
        attempt = run.attempts.get(op)
        if attempt is None:
            return
        if how == "wait":
            attempt.cancelled = True
            if attempt.is_remote:
                return  # its task says so, to whoever performs it or cares for it: the outcome will come
            if attempt.state is AttemptState.RUNNING:
                self.stop_code(attempt, reason)
            elif attempt.state in (AttemptState.QUEUED, AttemptState.BACKOFF, AttemptState.OPEN):
                if attempt.state is AttemptState.OPEN:
                    self.completions.closed(attempt)
                self.endings.cancelled(attempt)
            return
        del run.attempts[op]
        if attempt.state is AttemptState.OPEN:
            self.completions.closed(attempt)
        has_begun = (
            attempt.begun or attempt.task is not None
        )  # else no code would ever end, and give its slot back
        if how == "abandon" and attempt.state is AttemptState.RUNNING and has_begun:
            attempt.state = AttemptState.DROPPED
            attempt.stop_timer()
        else:
            self._drop(attempt, reason)

    def drop(self, run: LiveRun) -> None:
        """The run left this worker: its attempts are cancelled and their outcomes go nowhere."""
        reason = STOPPING if self.is_draining else NOT_OURS
        for attempt in run.attempts.values():
            self._drop(attempt, reason)
        self._left_parts.drop(run, reason)
        run.attempts.clear()
        run.outcomes.clear()

    def _drop(self, attempt: Attempt, reason: str) -> None:
        was, attempt.state = attempt.state, AttemptState.DROPPED
        attempt.stop_timer()
        if was is AttemptState.RUNNING:
            is_over = attempt.task is not None and attempt.task.done()
            self.stop_code(attempt, reason)  # its slot is free once it has ended
            if is_over:
                self.free_slot(attempt)
        else:
            self.free_slot(attempt)

    def stop_code(self, attempt: Attempt, reason: str) -> None:
        """Tell the code of an attempt to stop: a coroutine is cancelled, in a thread it is raised."""
        if attempt.pulse is not None:
            attempt.pulse.stop(reason)
        if not attempt.is_on_loop:
            return
        if attempt.task is not None:
            attempt.task.cancel(reason)
        elif not attempt.begun:
            self._ended(attempt, None, asyncio.CancelledError(reason), b"", None)

    # ─ running user code ──

    def _begin(self, attempt: Attempt) -> None:
        attempt.state = AttemptState.RUNNING
        attempt.timed_out = None
        attempt.stop_timer()
        if attempt.cancelled:
            self.endings.cancelled(attempt)
            return
        left = left_us(attempt, self.clock)
        if left is not None and left <= 0:  # its time passed while its start was written
            self.endings.expire(attempt, "schedule_to_close")
            return
        try:
            earlier = () if attempt.details is None else decode_details(attempt.details)
        except UndecodableError as error:
            fault = error.naming(f"the heartbeat details of activity {attempt.call.definition.name!r}")
            if sealed_fault(attempt.details or b"") is None:
                self.endings.failed(attempt, fault)
            else:  # nothing is wrong with them: the key is not here
                self.endings.misread(attempt, fault)
            return
        self._run(attempt, earlier)

    def _run(self, attempt: Attempt, earlier: tuple[Any, ...]) -> None:
        """Have the attempt's code run; nothing is in its way any more."""
        definition = attempt.call.definition
        if self._stand_in is not None:
            definition = attempt.call.definition = self._stand_in(definition)
        pulse = attempt.pulse = Pulse(
            attempt,
            attempt.number,
            self.fence,
            self.fresh_until,
            self._describe,
            self._loop,
            self._on_details,
            attempt.details,
            earlier,
            self._allowed,
        )
        attempt.begun = False
        self._running.add(attempt)
        if definition.is_async:
            self._runners.add(pulse)
        elif (refusal := self._start_thread(attempt, pulse)) is not None:
            self._running.discard(attempt)
            attempt.keep_details()
            self.endings.failed(attempt, refusal)  # it is charged
            return
        if definition.is_limited:
            attempt.began_at = self.clock.elapsed()
            pulse.beat_at = self._loop.time()
            self._set_timer(attempt)

    def _describe_attempt(self, pulse: Pulse) -> ActivityInfo:
        """Return what the activity may know of itself; made only if it asks."""
        attempt: Attempt = pulse.owner
        return ActivityInfo(
            run_id=attempt.run.run_id,
            workflow=attempt.run.workflow,
            activity=attempt.call.definition.name,
            attempt=pulse.number,
            idempotency_key=attempt.call.key,
            heartbeat_details=pulse.earlier,
            _pulse=pulse,
            _make_token=partial(self.completions.token, attempt, pulse.number),
        )

    # ─ ends ──

    def _ended(
        self,
        attempt: Attempt,
        task: asyncio.Future[Any] | None,
        error: BaseException | None,
        data: bytes,
        value: Any,
    ) -> None:
        if len(data) > self._allowed.payload_bytes_warn:
            error = too_large(attempt, data, self._allowed)
        if (
            error is None
            and attempt.state is _RUNNING
            and attempt.task is task
            and attempt.timed_out is None
            and attempt.answer is None
        ):
            self._succeeded(attempt, Outcome(attempt.call.op, attempt.number, data, value))
            return
        if attempt.task is not task:  # given up earlier: its zombie has the slot
            zombie = next((one for one in self._running if one.task is task), None)
            if zombie is not None:
                self._running.discard(zombie)
                self.free_slot(zombie)
            return
        # Task, context, pulse, attempt: a ring that only the garbage collector could take apart.
        attempt.task = None
        self._running.discard(attempt)
        if attempt.timer is not None:
            attempt.stop_timer()
        attempt.keep_details()
        if attempt.state is _DROPPED:
            self.free_slot(attempt)
        elif attempt.answer is not None:
            self.completions.settle(attempt)
        elif attempt.is_stopped and not isinstance(error, _TELLS):
            self.stopped(attempt)
        elif error is None:
            assert attempt.timed_out is not None, "else it has succeeded"
            self.endings.expire(attempt, attempt.timed_out)
        elif isinstance(error, StaleError):
            self.never_begun(attempt)
        elif isinstance(error, CompleteAsync) and not attempt.cancelled and attempt.timed_out is None:
            self.completions.opened(attempt)
        elif isinstance(error, asyncio.CancelledError | CompleteAsync):
            self.endings.was_cancelled(attempt, error)
        elif isinstance(error, Misread):
            self.endings.misread(attempt, error.fault)
        elif isinstance(error, Interrupted):
            self.endings.failed(attempt, blocked(attempt.call.definition.name, attempt.number, error))
        else:
            self.endings.failed(attempt, error)
        if self.is_draining and not self._running:
            self.on_idle()

    def never_begun(self, attempt: Attempt) -> None:
        """So long after the commit that charged it nobody knows whose its run is by now: uncharge it, and begin it behind another commit (P11)."""
        attempt.number -= 1
        row = AttemptRow(
            op=attempt.call.op, attempt=attempt.number, state="handed_back", details=attempt.details
        )
        self.write(attempt.run, [row])
        self.free_slot(attempt)
        self.want_slot(attempt)

    def free_slot(self, attempt: Attempt) -> None:
        """Give back the slot of an attempt, if it has one."""
        if attempt.has_slot:
            attempt.has_slot = False
            self._free += 1
            if self._queue:
                self._on_slots()

    def want_slot(self, attempt: Attempt) -> None:
        """Begin the next attempt as soon as there is a slot."""
        attempt.state = AttemptState.QUEUED
        if attempt.call.definition.is_limited:
            left, kind = min(self._timeouts.limits(attempt), default=(1.0, None))
            if left <= 0 and kind is not None:
                self.endings.expire(attempt, kind)
                return
            self._set_timer(attempt)
        if attempt.is_lost:
            self._probation.add(attempt)
        else:
            self._queue.append(attempt)
        if self._free > 0:
            self._on_slots()

    # ─ what came of it ──

    def _succeeded(self, attempt: Attempt, outcome: Outcome) -> None:
        """`_ended` and `Endings.finish` in one, for what nearly every attempt comes to."""
        pulse = attempt.pulse
        if pulse is not None:
            pulse.on_details = attempt.pulse = None
        attempt.task = None
        attempt.state = _DONE
        if attempt.timer is not None:
            attempt.stop_timer()
        running = self._running
        running.discard(attempt)
        self._free += attempt.has_slot
        attempt.has_slot = False
        if self._queue:
            self._on_slots()
        run = attempt.run
        if run.phase is not _GONE and run.attempts.get(outcome.op) is attempt:
            run.outcomes.append(outcome)
            if attempt.call.definition.group is None:
                self._on_outcome(run)
            else:
                self._report_grouped(attempt)
        if self.is_draining and not running:
            self.on_idle()
