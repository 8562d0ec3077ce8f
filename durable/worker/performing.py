"""Activities: attempts, slots, timeouts, retries, threads.

An attempt is charged in the database before it starts (P22): by the turn that schedules it if a slot is free
then, else by a mark that rides on a later commit. Attempts belong to the run, not to its instance (P15). Knows how
to run user code; knows nothing of turns.

Time. An attempt has one timer, set for the nearest of its limits, and what is due is decided anew whenever it rings: a
heartbeat sets no timer. Limits that began before this worker (since the schedule, since the attempt was due) are
measured by the wall clock, those of the attempt itself by the loop's.

Heartbeats. What they tell is noted at once and written in batches: the first detail after a pause opens a batch for all
activities of the same interval, which becomes one mark per run, all in one group commit. An attempt that ends in order hands
its details on with its own mark.

Stopping. A coroutine is cancelled. A thread cannot be: it is told by `Pulse.cancel_reason`, and keeps its slot until it ends.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import partial
from typing import Any, Final, assert_never

import msgspec

from durable import failures
from durable.activities import ActivityInfo, CompleteAsync, Pulse, _pulse, decode_details
from durable.client import Address, address_here
from durable.definitions import ActivityDefinition
from durable.engine.runtime import ActivityCall
from durable.errors import (
    ActivityTimeoutError,
    PayloadError,
    PayloadTooLargeError,
    UndecodableError,
    WorkerLostError,
)
from durable.failures import Failure
from durable.limits import Limits
from durable.retry import asked_delay_us
from durable.seams import Clock, Executor, Random
from durable.store.records import AttemptRow
from durable.worker.completions import Completions
from durable.worker.live import Attempt, AttemptState, Item, LiveRun, Outcome, Phase, TimeoutKind
from durable.worker.probation import Probation
from durable.worker.runners import Runners, StaleError
from durable.worker.watchdog import Interrupted, blocked

GROUP_SECONDS: Final = 0.1  # how long an outcome waits for others that it may share a commit with
LATE_SECONDS: Final = 5.0  # how long a timed-out coroutine may take to unwind before it is given up
HELD_UP_SECONDS: Final = 0.05  # a timer that rings so late was held up with the loop, and so were heartbeats
DETAILS_SHARE: Final = 0.8  # of the heartbeat timeout: how often details are written
DETAILS_SECONDS_MIN: Final = 0.05
DETAILS_SECONDS_MAX: Final = 3.0
NOT_RETRIED: Final = frozenset[TimeoutKind]({"schedule_to_start", "schedule_to_close"})
_LOSS: Final = f"{WorkerLostError.__module__}:{WorkerLostError.__qualname__}"
UNAWAITED: Final = "the workflow no longer waits for it"
Performed = tuple[BaseException | None, bytes, Any]
_RUNNING: Final = AttemptState.RUNNING  # looking a member up costs more than the rest of a comparison
_DONE: Final = AttemptState.DONE
_DROPPED: Final = AttemptState.DROPPED
_GONE: Final = Phase.GONE
log = logging.getLogger("durable.worker")


class Performer:
    """Performs the activities of one worker's runs, at most `slots` at a time."""

    def __init__(
        self,
        *,
        slots: int,
        clock: Clock,
        random: Random,
        executor: Executor,
        address: Address,
        limits: Limits,
        on_outcome: Callable[[LiveRun], None],
        on_marks: Callable[[Item], None],
        on_slots: Callable[[], None],
        on_stale: Callable[[], None],
    ) -> None:
        self._free = slots
        self.reserved = 0  # slots reserved so far, ever
        self._clock = clock
        self._random = random
        self._executor = executor
        self._on_outcome = on_outcome
        self._on_marks = on_marks
        self._on_slots = on_slots
        self._on_stale = on_stale
        # Whether the commit whose effects are being released still proves the lease; set before they are (P11).
        # Until `fresh_until` (monotonic) there is no need to ask.
        self.fence: Callable[[], bool] = lambda: True
        self.fresh_until = 0.0
        self._allowed = limits
        self._context = copy_context()
        self._context.run(address_here.set, address)
        self._runners = Runners(clock=clock, context=self._context, on_ended=self._ended)
        self._loop = asyncio.get_running_loop()
        self._on_details = self._note
        self._describe = self._describe_attempt
        self._queue: deque[Attempt] = deque()
        self._probation = Probation(on_slots)
        self._running: set[Attempt] = set()
        # By interval: the timer of the next write, and who has something to tell.
        self._batches: dict[float, tuple[asyncio.TimerHandle, list[tuple[Attempt, Pulse]]]] = {}
        self.is_draining = False
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

    def reserve(self) -> bool:
        """Take a slot for an activity whose schedule is about to be committed, if one is free and nobody is ahead."""
        if self._free > 0 and not self._queue and not self.is_draining:
            self._free -= 1
            self.reserved += 1
            return True
        return False

    def unreserve(self, slots: int) -> None:
        """Give back slots whose turn was not committed."""
        self._free += slots
        if slots and self._queue:
            self._on_slots()

    def begin_no_more(self) -> None:
        """Let no coroutine take its first step any more: whatever has not begun is about to be handed back."""
        self._runners.close()

    async def unwind(self, limit_seconds: float) -> None:
        """Cancel every coroutine that still runs, abandoned ones too, and wait for their ends, at most so long.

        Threads cannot be stopped and are not waited for; those that ask are told.
        """
        for timer, _ in self._batches.values():
            timer.cancel()
        self._batches.clear()
        self._runners.close()
        self._probation.stop()
        tasks: list[asyncio.Task[Any]] = []
        for attempt in self._running:
            attempt.state = AttemptState.DROPPED
            attempt.stop_timer()
            if attempt.pulse is not None and attempt.pulse.cancel_reason is None:
                attempt.pulse.cancel_reason = "its worker stops"
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
        now_us = self._clock.now_us()
        marks: dict[LiveRun, list[Attempt]] = {}
        held: list[Attempt] = []
        while self._queue and self._free > 0:
            attempt = self._queue.popleft()
            if attempt.state is not AttemptState.QUEUED:
                continue
            if attempt.run.is_held:
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

    def marked(self, item: Item) -> None:
        """The marks of `item` are durable: start what they announced."""
        for attempt in item.marked:
            if attempt.state is AttemptState.MARKING:
                attempt.number += 1
                self._begin(attempt)

    def unmarked(self, item: Item) -> None:
        """The marks of `item` were not written: its attempts wait for a slot again."""
        for attempt in item.marked:
            if attempt.state is AttemptState.MARKING:
                self._free_slot(attempt)
                self._want_slot(attempt)

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
        self.recover(run, call, None, was_started=False, scheduled_at_us=scheduled_at_us)

    def recover(
        self,
        run: LiveRun,
        call: ActivityCall,
        row: AttemptRow | None,
        *,
        was_started: bool,
        scheduled_at_us: int,
    ) -> None:
        """Go on with an activity of a run that was just claimed; an attempt lost with its worker has failed (P22)."""
        attempt = Attempt(run, call, int(was_started), AttemptState.QUEUED, scheduled_at_us, scheduled_at_us)
        run.attempts[call.op] = attempt
        if row is not None:
            attempt.number, attempt.details, attempt.has_row = row.attempt, row.details, True
        if call.closing == "wait":
            attempt.cancelled = True
            self._cancelled(attempt)  # what ran of it ended with its worker, or was handed back
        elif row is not None and row.completion:
            self.completions.reopened(attempt, row)
        elif row.state == "started" if row is not None else was_started:
            attempt.started_at_us = scheduled_at_us if row is None else row.due_at_us or scheduled_at_us
            self._lost(attempt)
        elif row is not None and row.state == "backoff":
            attempt.state = AttemptState.BACKOFF
            attempt.started_at_us = scheduled_at_us
            attempt.is_lost = _is_loss(row.failure)
            attempt.queued_at_us = row.due_at_us or 0
            self._wait_out(attempt, attempt.queued_at_us - self._clock.now_us())
        else:
            if row is not None:  # handed back: it waits anew
                attempt.queued_at_us = self._clock.now_us()
            self._want_slot(attempt)

    def _lost(self, attempt: Attempt) -> None:
        attempt.state = AttemptState.RUNNING
        attempt.is_lost = True
        name = attempt.call.definition.name
        error = WorkerLostError(f"the worker of attempt {attempt.number} of {name!r} died during it")
        failure = self._record(attempt, error)
        left_us = self._left_us(attempt)
        if left_us is not None and left_us <= 0:
            attempt.failure = failure
            self._expire(attempt, "schedule_to_close")
        else:
            policy = attempt.call.definition.retry
            self._retry_or_fail(attempt, failure, is_retryable=not isinstance(error, policy.no_retry))

    def close(self, run: LiveRun, op: int, how: str, reason: str = UNAWAITED) -> None:
        """The workflow cancelled this activity: its cancellation type `how` is durable now."""
        attempt = run.attempts.get(op)
        if attempt is None:
            return
        if how == "wait":
            attempt.cancelled = True
            if attempt.state is AttemptState.RUNNING:
                self._stop_code(attempt, reason)
            elif attempt.state in (AttemptState.QUEUED, AttemptState.BACKOFF, AttemptState.OPEN):
                if attempt.state is AttemptState.OPEN:
                    self.completions.closed(attempt)
                self._cancelled(attempt)
            return
        del run.attempts[op]
        if attempt.state is AttemptState.OPEN:
            self.completions.closed(attempt)
        if how == "abandon" and attempt.state is AttemptState.RUNNING:
            attempt.state = AttemptState.DROPPED
            attempt.stop_timer()
        else:
            self._drop(attempt, reason)

    def drop(self, run: LiveRun) -> None:
        """The run left this worker: its attempts are cancelled and their outcomes go nowhere."""
        reason = "its worker stops" if self.is_draining else "its run is closed, or another worker's"
        for attempt in run.attempts.values():
            self._drop(attempt, reason)
        run.attempts.clear()
        run.outcomes.clear()

    def handed_back(self, run: LiveRun) -> list[AttemptRow]:
        """Return the rows that uncharge attempts which this worker gives up, though nothing was wrong with them.

        Also one that succeeded, if its run stops before the result could be recorded. A failure stays charged, and so does an
        attempt whose policy forbids another after a lost one: it was interrupted, and nobody knows how far it came. An answer
        from outside waits in the inbox.
        """
        succeeded = {
            outcome.op
            for outcome in run.outcomes
            if outcome.failure is None and run.attempts[outcome.op].answer is None
        }
        return [
            AttemptRow(
                op=op, attempt=attempt.number - 1, state="handed_back", details=attempt.latest_details()
            )
            for op, attempt in run.attempts.items()
            if ((attempt.state is AttemptState.RUNNING and attempt.answer is None) or op in succeeded)
            and not issubclass(WorkerLostError, attempt.call.definition.retry.no_retry)
        ]

    def _drop(self, attempt: Attempt, reason: str) -> None:
        was, attempt.state = attempt.state, AttemptState.DROPPED
        attempt.stop_timer()
        if was is AttemptState.RUNNING:
            if attempt.task is not None and attempt.task.done():
                self._free_slot(attempt)
            else:
                self._stop_code(attempt, reason)  # its slot is free once it has ended
        else:
            self._free_slot(attempt)

    def _stop_code(self, attempt: Attempt, reason: str) -> None:
        """Tell the code of an attempt to stop: a coroutine is cancelled, a thread finds out when it asks."""
        if attempt.pulse is not None:
            attempt.pulse.cancel_reason = reason
        if not attempt.call.definition.is_async:
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
            self._cancelled(attempt)
            return
        left_us = self._left_us(attempt)
        if left_us is not None and left_us <= 0:  # its time passed while its start was written
            self._expire(attempt, "schedule_to_close")
            return
        try:
            earlier = () if attempt.details is None else decode_details(attempt.details)
        except UndecodableError as error:
            self._failed(attempt, error)
            return
        self._run(attempt, earlier)

    def _run(self, attempt: Attempt, earlier: tuple[Any, ...]) -> None:
        """Have the attempt's code run; nothing is in its way any more."""
        definition = attempt.call.definition
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
        elif not self._start_thread(attempt, pulse):
            return
        if definition.is_limited:
            attempt.began_at = pulse.beat_at = self._loop.time()
            self._watch(attempt)

    def _start_thread(self, attempt: Attempt, pulse: Pulse) -> bool:
        try:
            attempt.task = self._context.copy().run(
                self._executor.submit, partial(self._run_sync, attempt.call, pulse)
            )
        except Exception as error:  # no thread to be had, say: the attempt is charged and has failed
            self._running.discard(attempt)
            attempt.keep_details()
            self._failed(attempt, error)
            return False
        attempt.task.add_done_callback(partial(self._thread_ended, attempt))
        return True

    def _run_sync(self, call: ActivityCall, pulse: Pulse) -> Performed:
        definition = call.definition
        try:
            if pulse.fence is not None and not pulse.fence():
                raise StaleError
            _pulse.set(pulse)
            args, kwargs = definition.arguments.decode(call.args)
            value = definition.fn(*args, **kwargs)
            if inspect.isawaitable(value):  # `lambda: charge(order)`, say: it belongs on the loop
                value = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop).result()
            data = definition.result.encode(value)
            return None, data, definition.result.decode(data)
        except BaseException as error:
            return error, b"", None

    def _judged(self, attempt: Attempt, data: bytes) -> PayloadTooLargeError | None:
        """Return the refusal of a result that is too large; warn of one that is nearly so."""
        what = f"the result of activity {attempt.call.definition.name!r}"
        try:
            self._allowed.judge(len(data), what=what, run_id=attempt.run.run_id)
        except PayloadTooLargeError as refusal:
            return refusal
        return None

    def _thread_ended(self, attempt: Attempt, task: asyncio.Future[Any]) -> None:
        if task.cancelled():
            self._ended(attempt, task, asyncio.CancelledError(), b"", None)
        elif (broken := task.exception()) is not None:
            self._ended(attempt, task, broken, b"", None)
        else:
            self._ended(attempt, task, *task.result())

    def _describe_attempt(self, pulse: Pulse) -> ActivityInfo:
        """Return what the activity may know of itself; made only if it asks."""
        attempt: Attempt = pulse.owner
        return ActivityInfo(
            run_id=attempt.run.run_id,
            workflow=attempt.run.definition.name,
            activity=attempt.call.definition.name,
            attempt=pulse.number,
            idempotency_key=attempt.call.key,
            heartbeat_details=pulse.earlier,
            _pulse=pulse,
            _make_token=partial(self.completions.token, attempt, pulse.number),
        )

    # ─ limits ──

    def _left_us(self, attempt: Attempt) -> int | None:
        """Return how long all of its attempts together may still take."""
        limit = attempt.call.definition.schedule_to_close_us
        return None if limit is None else attempt.scheduled_at_us + limit - self._clock.now_us()

    def _limits(self, attempt: Attempt) -> list[tuple[float, TimeoutKind]]:
        """Return the limits that hold for an attempt that waits for a slot or runs, each with the seconds left."""
        definition = attempt.call.definition
        limits: list[tuple[float, TimeoutKind]] = []
        if (left_us := self._left_us(attempt)) is not None:
            limits.append((left_us / 1_000_000, "schedule_to_close"))
        if attempt.state is AttemptState.QUEUED:
            if (limit_us := definition.schedule_to_start_us) is not None:
                left_us = attempt.queued_at_us + limit_us - self._clock.now_us()
                limits.append((left_us / 1_000_000, "schedule_to_start"))
        elif attempt.pulse is not None:
            now = asyncio.get_running_loop().time()
            if (limit_us := definition.timeout_us) is not None:
                limits.append((attempt.began_at + limit_us / 1_000_000 - now, "start_to_close"))
            # One that was cancelled with "wait" cleans up: it has better things to do than to beat.
            if (limit_us := definition.heartbeat_us) is not None and not attempt.cancelled:
                limits.append((attempt.pulse.beat_at + limit_us / 1_000_000 - now, "heartbeat"))
        return limits

    def _watch(self, attempt: Attempt) -> None:
        """Set the attempt's timer for the nearest of its limits."""
        limits = self._limits(attempt)
        if limits:
            left, _ = min(limits)
            attempt.timer = asyncio.get_running_loop().call_later(max(left, 0.001), self._look, attempt)

    def _look(self, attempt: Attempt) -> None:
        """The timer rang: see which limit has passed, if one has."""
        loop = asyncio.get_running_loop()
        late = 0.0 if attempt.timer is None else loop.time() - attempt.timer.when()
        attempt.timer = None
        limits = self._limits(attempt)
        if not limits or attempt.state not in (AttemptState.QUEUED, AttemptState.RUNNING):
            return
        left, kind = min(limits)
        if left > 0:
            self._watch(attempt)
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
        self._stop_code(attempt, _late_text(attempt.call.definition, attempt.number, kind))
        if attempt not in self._running:
            return  # it had not begun, and is over already
        if attempt.call.definition.is_async:
            attempt.timer = asyncio.get_running_loop().call_later(LATE_SECONDS, self._give_up, attempt)
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

    def _expire(self, attempt: Attempt, kind: TimeoutKind) -> None:
        """A limit of the attempt has passed and its code is done, given up, or was never begun."""
        definition = attempt.call.definition
        error = ActivityTimeoutError(_late_text(definition, attempt.number, kind), kind=kind)
        failure = self._record(attempt, error)
        if kind in NOT_RETRIED:
            failure = msgspec.structs.replace(failure, cause=attempt.failure)
        is_retryable = kind not in NOT_RETRIED and definition.retry.is_retryable(error)
        self._retry_or_fail(attempt, failure, is_retryable=is_retryable)

    # ─ heartbeats ──

    def _note(self, pulse: Pulse) -> None:
        """An attempt has something new to tell: it is written with the next batch of its interval."""
        attempt: Attempt = pulse.owner
        if attempt.pulse is not pulse or attempt.state is not AttemptState.RUNNING:
            return
        if (
            pulse.has_token and not attempt.has_row
        ):  # at once: an answer may come any moment, and looks for the row
            pulse.is_noted = False
            self._mark(attempt.run, [], [_started_row(attempt, pulse)])
            return
        limit_us = attempt.call.definition.heartbeat_us
        interval = DETAILS_SECONDS_MAX
        if limit_us is not None:
            interval = min(max(DETAILS_SHARE * limit_us / 1_000_000, DETAILS_SECONDS_MIN), interval)
        if interval not in self._batches:
            timer = asyncio.get_running_loop().call_later(interval, self._write_details, interval)
            self._batches[interval] = timer, []
        self._batches[interval][1].append((attempt, pulse))

    def _write_details(self, interval: float) -> None:
        """Let the details of a whole batch ride on the next commit."""
        _, batch = self._batches.pop(interval)
        rows: dict[LiveRun, list[AttemptRow]] = {}
        for attempt, pulse in batch:
            pulse.is_noted = False  # before they are read: what a thread tells from here on is noted anew
            if attempt.pulse is pulse and attempt.state is AttemptState.RUNNING:
                row = _started_row(attempt, pulse)
                rows.setdefault(attempt.run, []).append(row)
        for run, listed in rows.items():
            self._mark(run, [], listed)

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
            error = self._judged(attempt, data)
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
                self._free_slot(zombie)
            return
        # Task, context, pulse, attempt: a ring that only the garbage collector could take apart.
        attempt.task = None
        self._running.discard(attempt)
        if attempt.timer is not None:
            attempt.stop_timer()
        attempt.keep_details()
        if attempt.state is _DROPPED:
            self._free_slot(attempt)
        elif attempt.answer is not None:
            self.completions.settle(attempt)
        elif error is None:
            assert attempt.timed_out is not None, "else it has succeeded"
            self._expire(attempt, attempt.timed_out)
        elif isinstance(error, StaleError):
            attempt.state = AttemptState.DROPPED
            self._free_slot(attempt)
            self._on_stale()
        elif isinstance(error, CompleteAsync) and not attempt.cancelled and attempt.timed_out is None:
            self.completions.opened(attempt)
        elif isinstance(error, asyncio.CancelledError | CompleteAsync):
            self._was_cancelled(attempt, error)
        elif isinstance(error, Interrupted):
            self._failed(attempt, blocked(attempt.call.definition.name, attempt.number, error))
        else:
            self._failed(attempt, error)
        if self.is_draining and not self._running:
            self.on_idle()

    def _was_cancelled(self, attempt: Attempt, error: BaseException) -> None:
        if attempt.timed_out is not None:
            self._expire(attempt, attempt.timed_out)
        elif attempt.cancelled:
            self._cancelled(attempt)
        elif self.is_stopping():
            self._free_slot(attempt)  # the loop is being torn down: the attempt is handed back
        else:
            unasked = asyncio.CancelledError("raised by the activity, unasked")
            self._failed(attempt, error if error.args else unasked)

    def _free_slot(self, attempt: Attempt) -> None:
        if attempt.has_slot:
            attempt.has_slot = False
            self._free += 1
            if self._queue:
                self._on_slots()

    def _want_slot(self, attempt: Attempt) -> None:
        attempt.state = AttemptState.QUEUED
        if attempt.call.definition.is_limited:
            left, kind = min(self._limits(attempt), default=(1.0, None))
            if left <= 0 and kind is not None:
                self._expire(attempt, kind)
                return
            self._watch(attempt)
        if attempt.is_lost:
            self._probation.add(attempt)
        else:
            self._queue.append(attempt)
        if self._free > 0:
            self._on_slots()

    # ─ what completions ask ──

    def free_slot(self, attempt: Attempt) -> None:
        """Give back the slot of an attempt, if it has one."""
        self._free_slot(attempt)

    def finish(self, attempt: Attempt, outcome: Outcome) -> None:
        """Let `outcome` be what became of the activity."""
        self._finish(attempt, outcome)

    def expire(self, attempt: Attempt, kind: TimeoutKind) -> None:
        """A limit of the attempt has passed."""
        self._expire(attempt, kind)

    def retry_or_fail(
        self, attempt: Attempt, failure: Failure, *, is_retryable: bool, delay_us: int | None = None
    ) -> None:
        """An attempt has failed: begin the next, or let that be the outcome."""
        self._retry_or_fail(attempt, failure, is_retryable=is_retryable, delay_us=delay_us)

    def write(self, run: LiveRun, rows: Sequence[AttemptRow]) -> None:
        """Let rows that tell of what has happened ride on the next commit."""
        self._mark(run, [], list(rows))

    def resume(self, run: LiveRun) -> None:
        """See that the run is driven."""
        self._on_outcome(run)

    # ─ what came of it ──

    def _succeeded(self, attempt: Attempt, outcome: Outcome) -> None:
        """`_ended` and `_finish` in one, for what nearly every attempt comes to."""
        pulse = attempt.pulse
        if pulse is not None:
            pulse.on_details = attempt.pulse = None
        attempt.task = None
        attempt.state = _DONE
        if attempt.timer is not None:
            attempt.stop_timer()
        running = self._running
        running.discard(attempt)
        attempt.has_slot = False
        self._free += 1
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

    def _finish(self, attempt: Attempt, outcome: Outcome) -> None:
        if attempt.has_slot:
            self._free_slot(attempt)
        attempt.state = _DONE
        run = attempt.run
        if run.phase is not _GONE and run.attempts.get(outcome.op) is attempt:
            run.outcomes.append(outcome)
            self._on_outcome(run)

    def _report_grouped(self, attempt: Attempt) -> None:
        """Let the outcome wait a moment for those that are to be recorded together with it, if some have not ended yet."""
        run, group = attempt.run, attempt.call.definition.group
        are_open = any(
            other.call.definition.group is group and other.state not in (_DONE, _DROPPED)
            for other in run.attempts.values()
        )
        if are_open and not self.is_draining:
            asyncio.get_running_loop().call_later(GROUP_SECONDS, self._report_held, run)
        else:
            self._on_outcome(run)

    def _report_held(self, run: LiveRun) -> None:
        """The others take their time: record what is there."""
        if run.outcomes and run.phase is not _GONE:
            self._on_outcome(run)

    def _cancelled(self, attempt: Attempt) -> None:
        attempt.stop_timer()
        failure = self._record(attempt, asyncio.CancelledError("cancelled by the workflow"))
        self._finish(attempt, Outcome(attempt.call.op, attempt.number, failure=failure))

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        storable = not isinstance(error, (PayloadError, UndecodableError))
        policy = attempt.call.definition.retry
        self._retry_or_fail(
            attempt,
            self._record(attempt, error),
            is_retryable=storable and policy.is_retryable(error),
            delay_us=asked_delay_us(error),
        )

    def _record(self, attempt: Attempt, error: BaseException) -> Failure:
        return failures.record(
            error,
            activity=attempt.call.definition.name,
            run_id=attempt.run.run_id,
            attempts=attempt.number,
        )

    def _retry_or_fail(
        self, attempt: Attempt, failure: Failure, *, is_retryable: bool, delay_us: int | None = None
    ) -> None:
        """An attempt has failed: begin the next after `delay_us`, or the policy's interval, or let that be the outcome."""
        self._free_slot(attempt)
        attempt.stop_timer()
        policy = attempt.call.definition.retry
        if attempt.cancelled:
            self._cancelled(attempt)
            return
        if delay_us is None:
            delay_us = policy.delay_us(
                max(attempt.number, 1), self._random.fraction() if policy.jitter else 0.0
            )
        left_us = self._left_us(attempt)
        in_time = left_us is None or delay_us < left_us
        if not (is_retryable and in_time and policy.has_attempt_after(attempt.number)):
            self._finish(attempt, Outcome(attempt.call.op, attempt.number, failure=failure))
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
        self._mark(attempt.run, [], [row])
        self._wait_out(attempt, delay_us)

    def _wait_out(self, attempt: Attempt, delay_us: int) -> None:
        attempt.timer = asyncio.get_running_loop().call_later(
            max(delay_us, 0) / 1_000_000, self._backed_off, attempt
        )

    def _backed_off(self, attempt: Attempt) -> None:
        attempt.timer = None
        self._want_slot(attempt)


def _started_row(attempt: Attempt, pulse: Pulse) -> AttemptRow:
    """Return the row of an attempt that runs, with what it tells of itself."""
    return AttemptRow(
        op=attempt.call.op,
        attempt=attempt.number,
        state="started",
        due_at_us=attempt.started_at_us or attempt.scheduled_at_us,
        details=pulse.details,
    )


def _is_loss(failure: bytes | None) -> bool:
    """Whether an attempt failed by the death of its worker."""
    try:
        return failure is not None and msgspec.json.decode(failure, type=Failure).type == _LOSS
    except msgspec.DecodeError:
        return False


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _late_text(definition: ActivityDefinition, number: int, kind: TimeoutKind) -> str:
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
