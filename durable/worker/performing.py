"""Activities: attempts, slots, timeouts, retries, threads.

An attempt is charged in the database before it starts (P22): by the turn that schedules it if a slot is free
then, else by a mark that rides on a later commit. Attempts belong to the run, not to its instance (P15). Knows how
to run user code; knows nothing of turns.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import Any, Final

import msgspec

from durable import failures
from durable.activities import ActivityInfo, _info
from durable.client import url_here
from durable.engine.runtime import ActivityCall
from durable.errors import ActivityTimeoutError, PayloadError, UndecodableError, WorkerLostError
from durable.failures import Failure
from durable.seams import Clock, Executor, Random, spawn
from durable.store.records import AttemptRow, TurnCommit
from durable.worker.live import Attempt, AttemptState, Item, LiveRun, Outcome, Phase

LATE_SECONDS: Final = 5.0  # how long a timed-out coroutine may take to unwind before it is given up
Performed = tuple[BaseException | None, bytes, Any]
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
        url: str,
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
        self.fence: Callable[[], bool] = lambda: True
        self._context = copy_context()
        self._context.run(url_here.set, url)
        self._queue: deque[Attempt] = deque()
        self._running: set[Attempt] = set()
        self.is_draining = False
        self.is_stopping: Callable[[], bool] = lambda: False
        self.on_idle: Callable[[], None] = lambda: None

    @property
    def running(self) -> int:
        """Attempts whose code runs now."""
        return len(self._running)

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

    async def unwind(self, limit_seconds: float) -> None:
        """Cancel every coroutine that still runs, abandoned ones too, and wait for their ends, at most so long.

        Threads cannot be stopped and are not waited for.
        """
        tasks: list[asyncio.Task[Any]] = []
        for attempt in self._running:
            attempt.state = AttemptState.DROPPED
            attempt.stop_timer()
            if isinstance(attempt.task, asyncio.Task):
                attempt.task.cancel()
                tasks.append(attempt.task)
        if tasks:
            await asyncio.wait(tasks, timeout=limit_seconds)

    def fill_slots(self) -> None:
        """Give free slots to whoever waits; their start marks join the next commit."""
        if not self._queue or self._free <= 0 or self.is_draining:
            return
        marks: dict[LiveRun, list[Attempt]] = {}
        while self._queue and self._free > 0:
            attempt = self._queue.popleft()
            if attempt.state is not AttemptState.QUEUED:
                continue
            attempt.state = AttemptState.MARKING
            attempt.has_slot = attempt.has_row = True
            self._free -= 1
            marks.setdefault(attempt.run, []).append(attempt)
        for run, attempts in marks.items():
            rows = [AttemptRow(op=a.call.op, attempt=a.number + 1, state="started") for a in attempts]
            self._mark(run, attempts, rows)

    def _mark(self, run: LiveRun, attempts: list[Attempt], rows: list[AttemptRow]) -> None:
        item = Item(
            run, TurnCommit(pk=run.pk, generation=run.generation, claim_no=run.claim_no, attempts=rows)
        )
        item.attempts = attempts
        self._on_marks(item)

    def marked(self, item: Item) -> None:
        """The marks of `item` are durable: start what they announced."""
        for attempt in item.attempts:
            if attempt.state is AttemptState.MARKING:
                attempt.number += 1
                self._begin(attempt)

    def unmarked(self, item: Item) -> None:
        """The marks of `item` were not written: its attempts wait for a slot again."""
        for attempt in item.attempts:
            if attempt.state is AttemptState.MARKING:
                self._free_slot(attempt)
                self._want_slot(attempt)

    # ─ what the driver asks ──

    def start(self, run: LiveRun, call: ActivityCall) -> None:
        """Start attempt 1: its slot is reserved and its charge is durable."""
        attempt = Attempt(run, call, 1, AttemptState.MARKING)
        attempt.has_slot = True
        run.attempts[call.op] = attempt
        self._begin(attempt)

    def enqueue(self, run: LiveRun, call: ActivityCall, charged: int = 0) -> None:
        """Start the next attempt as soon as there is a slot."""
        attempt = run.attempts[call.op] = Attempt(run, call, charged, AttemptState.QUEUED)
        self._want_slot(attempt)

    def recover(self, run: LiveRun, call: ActivityCall, row: AttemptRow | None, was_started: bool) -> None:
        """Go on with an activity of a run that was just claimed; an attempt lost with its worker has failed (P22)."""
        if row is None:
            if was_started:
                self._lost(run, call, 1)
            else:
                self.enqueue(run, call)
        elif row.state == "started":
            self._lost(run, call, row.attempt)
        elif row.state == "backoff":
            attempt = run.attempts[call.op] = Attempt(run, call, row.attempt, AttemptState.BACKOFF)
            self._wait_out(attempt, (row.due_at_us or 0) - self._clock.now_us())
        else:
            self.enqueue(run, call, row.attempt)
        if row is not None and call.op in run.attempts:
            run.attempts[call.op].has_row = True

    def _lost(self, run: LiveRun, call: ActivityCall, number: int) -> None:
        attempt = run.attempts[call.op] = Attempt(run, call, number, AttemptState.RUNNING)
        error = WorkerLostError(f"the worker of attempt {number} of {call.definition.name!r} died during it")
        failure = failures.record(error, activity=call.definition.name, run_id=run.run_id, attempts=number)
        self._retry_or_fail(attempt, failure, is_retryable=True)

    def close(self, run: LiveRun, op: int, how: str) -> None:
        """The workflow cancelled this activity: its cancellation type `how` is durable now."""
        attempt = run.attempts.get(op)
        if attempt is None:
            return
        if how == "wait":
            attempt.cancelled = True
            if attempt.state is AttemptState.RUNNING and attempt.task is not None:
                self._cancel_task(attempt)
            elif attempt.state in (AttemptState.QUEUED, AttemptState.BACKOFF):
                self._cancelled(attempt)
            return
        del run.attempts[op]
        if how == "abandon" and attempt.state is AttemptState.RUNNING:
            attempt.state = AttemptState.DROPPED
            attempt.stop_timer()
        else:
            self._drop(attempt)

    def drop(self, run: LiveRun) -> None:
        """The run left this worker: its attempts are cancelled and their outcomes go nowhere."""
        for attempt in run.attempts.values():
            self._drop(attempt)
        run.attempts.clear()
        run.outcomes.clear()

    def handed_back(self, run: LiveRun) -> list[AttemptRow]:
        """Return the rows that uncharge attempts which this worker gives up, though nothing was wrong with them.

        Also one that succeeded, if its run stops before the result could be recorded. A failure stays charged.
        """
        succeeded = {outcome.op for outcome in run.outcomes if outcome.failure is None}
        return [
            AttemptRow(op=op, attempt=attempt.number - 1, state="handed_back")
            for op, attempt in run.attempts.items()
            if attempt.state is AttemptState.RUNNING or op in succeeded
        ]

    def _drop(self, attempt: Attempt) -> None:
        was, attempt.state = attempt.state, AttemptState.DROPPED
        attempt.stop_timer()
        if was is AttemptState.RUNNING and attempt.task is not None:
            self._cancel_task(attempt)  # its slot is free once it has unwound
        else:
            self._free_slot(attempt)

    def _cancel_task(self, attempt: Attempt) -> None:
        task = attempt.task
        assert task is not None
        task.cancel()
        if attempt.call.definition.is_async and not attempt.begun:
            # asyncio never enters a coroutine that is cancelled before its first step: nobody else would tell its end.
            self._ended(attempt, task, asyncio.CancelledError(), b"", None)

    # ─ running user code ──

    def _begin(self, attempt: Attempt) -> None:
        attempt.state = AttemptState.RUNNING
        attempt.timed_out = False
        if attempt.cancelled:
            self._cancelled(attempt)
            return
        attempt.begun = False
        call, definition = attempt.call, attempt.call.definition
        context = self._context.copy()
        try:
            if definition.is_async:
                attempt.task = spawn(self._perform(attempt, self.fence), name=call.key, context=context)
            else:
                attempt.task = context.run(
                    self._executor.submit, partial(self._run_sync, attempt, attempt.number, self.fence)
                )
                attempt.task.add_done_callback(partial(self._thread_ended, attempt))
        except Exception as error:  # no thread to be had, say: the attempt is charged and has failed
            self._failed(attempt, error)
            return
        self._running.add(attempt)
        if definition.timeout_us is not None:
            attempt.timer = asyncio.get_running_loop().call_later(
                definition.timeout_us / 1_000_000, self._time_out, attempt
            )

    async def _perform(self, attempt: Attempt, fence: Callable[[], bool]) -> None:
        """The task of one attempt. It reports its own end: a done-callback would cost another turn of the loop."""
        attempt.begun = True
        task = attempt.task
        call = attempt.call
        definition = call.definition
        error: BaseException | None = None
        data, value = b"", None
        try:
            if not fence():
                raise _StaleError
            _info.set(partial(_tell_info, attempt, attempt.number))
            args, kwargs = definition.arguments.decode(call.args)
            value = await definition.fn(*args, **kwargs)
            data = definition.result.encode(value)
            value = definition.result.decode(data)
        except BaseException as raised:  # the boundary of user code: SystemExit must not stop the worker
            error = raised
        self._ended(attempt, task, error, data, value)

    def _run_sync(self, attempt: Attempt, number: int, fence: Callable[[], bool]) -> Performed:
        call = attempt.call
        definition = call.definition
        try:
            if not fence():
                raise _StaleError
            _info.set(partial(_tell_info, attempt, number))
            args, kwargs = definition.arguments.decode(call.args)
            value = definition.fn(*args, **kwargs)
            data = definition.result.encode(value)
            return None, data, definition.result.decode(data)
        except BaseException as error:
            return error, b"", None

    def _thread_ended(self, attempt: Attempt, task: asyncio.Future[Any]) -> None:
        if task.cancelled():
            self._ended(attempt, task, asyncio.CancelledError(), b"", None)
        elif (broken := task.exception()) is not None:
            self._ended(attempt, task, broken, b"", None)
        else:
            self._ended(attempt, task, *task.result())

    def _time_out(self, attempt: Attempt) -> None:
        attempt.timed_out = True
        assert attempt.task is not None
        if attempt.call.definition.is_async:
            attempt.task.cancel()
            attempt.timer = asyncio.get_running_loop().call_later(LATE_SECONDS, self._give_up, attempt)
        else:
            self._give_up(attempt)

    def _give_up(self, attempt: Attempt) -> None:
        """The late attempt has failed, whatever its code still does; its slot is free when that ends."""
        attempt.timer = None
        zombie = Attempt(attempt.run, attempt.call, attempt.number, AttemptState.DROPPED)
        zombie.task, zombie.has_slot = attempt.task, attempt.has_slot
        self._running.discard(attempt)
        self._running.add(zombie)
        attempt.task, attempt.has_slot = None, False
        self._timed_out(attempt)

    def _timed_out(self, attempt: Attempt) -> None:
        definition = attempt.call.definition
        limit = (definition.timeout_us or 0) / 1_000_000
        error = ActivityTimeoutError(
            f"attempt {attempt.number} of {definition.name!r} ran longer than its timeout of {limit:g} s"
        )
        self._failed(attempt, error)

    def _ended(
        self,
        attempt: Attempt,
        task: asyncio.Future[Any] | None,
        error: BaseException | None,
        data: bytes,
        value: Any,
    ) -> None:
        if attempt.task is not task:  # given up earlier: its zombie has the slot
            zombie = next((one for one in self._running if one.task is task), None)
            if zombie is not None:
                self._running.discard(zombie)
                self._free_slot(zombie)
            return
        self._running.discard(attempt)
        attempt.stop_timer()
        if attempt.state is AttemptState.DROPPED:
            self._free_slot(attempt)
        elif attempt.timed_out:
            self._timed_out(attempt)
        elif error is None:
            self._succeeded(attempt, data, value)
        elif isinstance(error, _StaleError):
            attempt.state = AttemptState.DROPPED
            self._free_slot(attempt)
            self._on_stale()
        elif isinstance(error, asyncio.CancelledError) and attempt.cancelled:
            self._cancelled(attempt)
        elif isinstance(error, asyncio.CancelledError) and self.is_stopping():
            self._free_slot(attempt)  # the loop is being torn down: the attempt is handed back
        else:
            self._failed(attempt, error)
        if not self._running:
            self.on_idle()

    def _free_slot(self, attempt: Attempt) -> None:
        if attempt.has_slot:
            attempt.has_slot = False
            self._free += 1
            if self._queue:
                self._on_slots()

    def _want_slot(self, attempt: Attempt) -> None:
        attempt.state = AttemptState.QUEUED
        self._queue.append(attempt)
        if self._free > 0:
            self._on_slots()

    # ─ what came of it ──

    def _succeeded(self, attempt: Attempt, data: bytes, value: Any) -> None:
        self._finish(attempt, Outcome(attempt.call.op, attempt.number, result=data, value=value))

    def _finish(self, attempt: Attempt, outcome: Outcome) -> None:
        self._free_slot(attempt)
        attempt.state = AttemptState.DONE
        run = attempt.run
        if run.phase is not Phase.GONE and run.attempts.get(outcome.op) is attempt:
            run.outcomes.append(outcome)
            self._on_outcome(run)

    def _cancelled(self, attempt: Attempt) -> None:
        attempt.stop_timer()
        failure = failures.record(
            asyncio.CancelledError("cancelled by the workflow"),
            activity=attempt.call.definition.name,
            run_id=attempt.run.run_id,
            attempts=attempt.number,
        )
        self._finish(attempt, Outcome(attempt.call.op, attempt.number, failure=failure))

    def _failed(self, attempt: Attempt, error: BaseException) -> None:
        failure = failures.record(
            error,
            activity=attempt.call.definition.name,
            run_id=attempt.run.run_id,
            attempts=attempt.number,
        )
        storable = not isinstance(error, (PayloadError, UndecodableError))
        policy = attempt.call.definition.retry
        self._retry_or_fail(attempt, failure, is_retryable=storable and policy.is_retryable(error))

    def _retry_or_fail(self, attempt: Attempt, failure: Failure, *, is_retryable: bool) -> None:
        self._free_slot(attempt)
        policy = attempt.call.definition.retry
        if attempt.cancelled:
            self._cancelled(attempt)
            return
        if not (is_retryable and policy.has_attempt_after(attempt.number)):
            self._finish(attempt, Outcome(attempt.call.op, attempt.number, failure=failure))
            return
        delay_us = policy.delay_us(attempt.number, self._random.fraction() if policy.jitter else 0.0)
        attempt.state = AttemptState.BACKOFF
        attempt.task = None
        attempt.has_row = True
        row = AttemptRow(
            op=attempt.call.op,
            attempt=attempt.number,
            state="backoff",
            due_at_us=self._clock.now_us() + delay_us,
            failure=msgspec.json.encode(failure),
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


def _tell_info(attempt: Attempt, number: int) -> ActivityInfo:
    """Return what the activity may know of itself; made only if it asks."""
    return ActivityInfo(
        run_id=attempt.run.run_id,
        workflow=attempt.run.definition.name,
        activity=attempt.call.definition.name,
        attempt=number,
        idempotency_key=attempt.call.key,
    )


class _StaleError(Exception):
    """The process slept between the commit that charged an attempt and its first step, and lost its lease meanwhile."""
