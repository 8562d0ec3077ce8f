"""Activities that somebody outside completes: their attempts are open, with no code, no slot and, if the run rests, no memory.

An answer is a message of the run. The first one that is written counts, and whether an answer or the attempt's limit came
first is decided in the database (`Store.answer_activity`, `Store.expire_attempt`): nobody is told "taken" whose answer is
then dropped. An answer that comes while the body still runs waits for it to end, and then counts, whatever the body did.

An answer is consumed by the turn that takes in its outcome, or, if the activity is tried again, by one that says nothing else:
until then its row stays in the inbox, and a crash loses nothing.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from durable import failures
from durable.errors import LeaseLostError, StoreError, UndecodableError
from durable.failures import Failure
from durable.retry import asked_delay_us
from durable.scheduler.wakeups import HINTED_SECONDS, Wakeups
from durable.seams import Clock, pause
from durable.store.contract import Store
from durable.store.records import KEPT, RETRY_NOW, AttemptRow, Message, answered_attempt
from durable.tokens import TaskToken, token_text
from durable.worker.endings import Endings
from durable.worker.endings import Performing as Performs
from durable.worker.live import Attempt, AttemptState, LiveRun, Outcome, TimeoutKind

TROUBLE_SECONDS: Final = 0.25
TIMER_SECONDS_MAX: Final = 3600.0  # then the wall clock is asked again
_RESULTS: Final = ("completed", KEPT)
log = logging.getLogger("durable.worker")


class Performing(Performs, Protocol):
    """What is asked of the performer."""

    endings: Endings


class Completions:
    """The open attempts of one worker's runs."""

    def __init__(
        self,
        store: Store,
        performer: Performing,
        clock: Clock,
        *,
        secret: str,
        worker_id: Callable[[], int],
        on_lost: Callable[[int], None],
    ) -> None:
        self._store = store
        self._performer = performer
        self._clock = clock
        self._secret = secret
        self._worker_id = worker_id
        self._on_lost = on_lost
        self._todo: deque[Attempt] = deque()  # open ones whose time is up, and failed ones
        self._wakeups = Wakeups()

    def token(self, attempt: Attempt, number: int) -> str:
        """Return the token of an attempt; from any thread."""
        run = attempt.run
        token = TaskToken(run.run_id, run.claim.epoch, run.generation, attempt.call.op, number)
        return token_text(token, self._secret)

    # ─ from running to open ──

    def opened(self, attempt: Attempt) -> None:
        """The body has ended and left the rest to somebody outside."""
        if attempt.answer is not None:
            self.settle(attempt)
            return
        self._performer.free_slot(attempt)
        definition = attempt.call.definition
        now_us = self._clock.now_us()
        limits = []
        if definition.timeout_us is not None:
            ran_us = round((self._clock.elapsed() - attempt.began_at) * 1_000_000)
            limits.append(now_us - ran_us + definition.timeout_us)
        if definition.schedule_to_close_us is not None:
            limits.append(attempt.scheduled_at_us + definition.schedule_to_close_us)
        attempt.limit_at_us = min(limits, default=None)
        if definition.heartbeat_us is not None:
            limits.append(now_us + definition.heartbeat_us)
        attempt.open_until_us = min(limits, default=None)
        self._wait(attempt)
        row = AttemptRow(
            op=attempt.call.op,
            attempt=attempt.number,
            state="started",
            details=attempt.details,
            completion="open",
            due_at_us=attempt.open_until_us,
            limit_at_us=attempt.limit_at_us,
            heartbeat_us=definition.heartbeat_us,
        )
        self._performer.write(attempt.run, [row])

    def entrusted(self, attempt: Attempt) -> None:
        """The activity is a task on another queue: its outcome will come as an answer."""
        self._wait(attempt)

    def reopened(self, attempt: Attempt, row: AttemptRow) -> None:
        """An attempt of a run that was just claimed is open, was answered, or has expired."""
        attempt.limit_at_us, attempt.open_until_us = row.limit_at_us, row.due_at_us
        if row.completion == "expired":
            attempt.state = AttemptState.RUNNING
            self._performer.endings.expire(attempt, self._kind(attempt))
            return
        if row.completion == "answered":
            attempt.open_until_us = None  # the answer is in the inbox, and counts
        self._wait(attempt)

    def _wait(self, attempt: Attempt) -> None:
        attempt.state = AttemptState.OPEN
        attempt.run.has_open = True
        attempt.run.opened += 1
        self._arm(attempt)

    def closed(self, attempt: Attempt) -> None:
        """Nobody waits for an open attempt any more."""
        attempt.run.opened -= 1
        attempt.stop_timer()

    # ─ answers ──

    def answered(self, run: LiveRun, message: Message) -> None:
        """Take in an answer from the inbox: it waits with the attempt, or with the run to be consumed for nothing.

        Or the wish that the attempt after a failed one begins now. Its row says so already, so a crash does not lose that.
        """
        run.has_open = True
        generation, op, number = answered_attempt(message.message_id)
        attempt = run.attempts.get(op)
        is_known = generation == run.generation and attempt is not None
        if message.name == RETRY_NOW:
            if is_known and attempt is not None and attempt.number == number:
                self._performer.endings.hasten(attempt)
            run.spent.append(message)
            return
        if is_known and attempt is not None and (attempt.number == number or attempt.is_remote):
            attempt.number = number
            if attempt.state is AttemptState.OPEN:
                attempt.answer = message
                self.closed(attempt)
                attempt.state = AttemptState.RUNNING
                if message.name in _RESULTS or attempt.is_remote:
                    self.settle(attempt)
                else:  # once it is known what its heartbeats told: the next attempt wants that
                    self._todo.append(attempt)
                    self._wakeups.hint()
                return
            if attempt.state is AttemptState.RUNNING:
                attempt.answer = message
                return
            if attempt.state is AttemptState.DONE and attempt.answer is not None:
                return  # read once more: its outcome is on its way
        run.spent.append(message)

    def settle(self, attempt: Attempt) -> None:
        """Let an attempt end as its answer says."""
        message, run = attempt.answer, attempt.run
        assert message is not None
        attempt.state = AttemptState.RUNNING
        if message.name in _RESULTS:
            self._complete(attempt, message)
            return  # the turn that takes in the outcome consumes the message; a run that parks leaves it where it is
        self._fail(attempt, message)
        if attempt.state is AttemptState.DONE:
            return
        attempt.answer = None
        run.spent.append(message)
        self._performer.resume(run)

    def _complete(self, attempt: Attempt, message: Message) -> None:
        op, number = attempt.call.op, attempt.number
        try:
            value = attempt.call.definition.result.decode(message.data)
        except UndecodableError as error:
            if attempt.is_remote or message.name == KEPT:
                self._misread(attempt, error)
                return
            failure = failures.record(
                error, activity=attempt.call.definition.name, run_id=attempt.run.run_id, attempts=number
            )
            self._performer.endings.finish(attempt, Outcome(op, number, failure=failure))
        else:
            self._performer.endings.finish(attempt, Outcome(op, number, result=message.data, value=value))

    def _misread(self, attempt: Attempt, error: UndecodableError) -> None:
        """An activity has done its work, and today's code takes its result for something else: the run parks, the answer stays.

        It did not fail: its workflow would undo, or begin anew, what was done well. What a token's holder says is not ours to
        trust: there the activity fails.
        """
        fault = error.naming(f"the result of activity {attempt.call.definition.name!r}")
        fault.run_id = fault.run_id or attempt.run.run_id
        attempt.run.fault = fault
        self._performer.resume(attempt.run)

    def _fail(self, attempt: Attempt, message: Message) -> None:
        definition = attempt.call.definition
        try:
            told = msgspec.json.decode(message.data, type=Failure)
        except msgspec.DecodeError as broken:
            told = failures.record(UndecodableError(f"the failure of an activity cannot be read: {broken}"))
        error = failures.rebuild(told)
        failure = msgspec.structs.replace(
            told, activity=definition.name, run_id=attempt.run.run_id, attempts=attempt.number
        )
        if attempt.is_remote:  # its policy was heeded where it was performed
            outcome = Outcome(attempt.call.op, attempt.number, failure=told)
            self._performer.endings.finish(attempt, outcome)
            return
        is_retryable = not told.non_retryable and definition.retry.is_retryable(error)
        self._performer.endings.retry_or_fail(
            attempt, failure, is_retryable=is_retryable, delay_us=asked_delay_us(error)
        )

    # ─ limits ──

    def _arm(self, attempt: Attempt) -> None:
        if attempt.open_until_us is not None:
            left = max(attempt.open_until_us - self._clock.now_us(), 0) / 1_000_000
            delay = min(left, TIMER_SECONDS_MAX)
            attempt.timer = self._clock.call_later(delay, self._ring, attempt)

    def _ring(self, attempt: Attempt) -> None:
        attempt.timer = None
        if attempt.open_until_us is not None and attempt.open_until_us > self._clock.now_us():
            self._arm(attempt)
        else:
            self._todo.append(attempt)
            self._wakeups.hint()

    async def run(self) -> None:
        """Let open attempts expire when their time is up, and fail those that failed, until cancelled."""
        while True:
            await self._wakeups.wait(HINTED_SECONDS)
            while self._todo:
                attempt = self._todo[0]
                worker_id = self._worker_id()
                try:
                    if attempt.state is AttemptState.OPEN:
                        await self._expire(worker_id, attempt)
                    elif attempt.state is AttemptState.RUNNING and attempt.answer is not None:
                        await self._read_details(attempt)
                        if attempt.state is AttemptState.RUNNING:
                            self.settle(attempt)
                except LeaseLostError:
                    self._on_lost(worker_id)
                except StoreError as error:
                    log.warning("%d open activities wait for the database: %s", len(self._todo), error)
                    await pause(TROUBLE_SECONDS)
                    continue
                self._todo.popleft()

    async def _read_details(self, attempt: Attempt) -> None:
        """Learn what heartbeats from outside told."""
        rows = await self._store.read_attempts(attempt.run.pk, attempt.run.generation)
        for row in rows:
            if row.op == attempt.call.op and row.details is not None:
                attempt.details = row.details

    async def _expire(self, worker_id: int, attempt: Attempt) -> None:
        run = attempt.run
        row = AttemptRow(op=attempt.call.op, attempt=attempt.number, state="started")
        expiry = await self._store.expire_attempt(
            worker_id,
            pk=run.pk,
            generation=run.generation,
            claim_no=run.claim_no,
            attempt=row,
            now_us=self._clock.now_us(),
        )
        if attempt.state is not AttemptState.OPEN or not (expiry.expired or expiry.due_at_us):
            return  # closed meanwhile; or answered, and the answer is on its way
        if not expiry.expired:
            attempt.open_until_us = expiry.due_at_us  # somebody sent a heartbeat
            self._arm(attempt)
            return
        await self._read_details(attempt)
        if attempt.state is AttemptState.OPEN:
            kind = self._kind(attempt)
            self.closed(attempt)
            attempt.state = AttemptState.RUNNING
            self._performer.endings.expire(attempt, kind)

    def _kind(self, attempt: Attempt) -> TimeoutKind:
        """Return which limit it was."""
        definition, limit = attempt.call.definition, attempt.limit_at_us
        if definition.heartbeat_us is not None and (limit is None or (attempt.open_until_us or 0) < limit):
            return "heartbeat"
        close_us = definition.schedule_to_close_us
        if close_us is not None and limit == attempt.scheduled_at_us + close_us:
            return "schedule_to_close"
        return "start_to_close"
