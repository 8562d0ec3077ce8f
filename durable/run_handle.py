"""One run, seen from outside: its result, its story, and what may be done to it.

Knows nothing of workers: whoever drives the run, here or elsewhere, the store is the truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

import msgspec

from durable import failures
from durable.definitions import ForEver, WorkflowDefinition, check_reason
from durable.engine.runtime import Child
from durable.errors import (
    DefinitionError,
    InternalError,
    RunCancelledError,
    RunNotFoundError,
    RunParkedError,
    RunTerminatedError,
    UndecodableError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowFailedError,
    WorkflowTimeoutError,
)
from durable.failures import Failure
from durable.in_activity import lending_slot
from durable.journal.events import ActivityCompleted, ActivityFailed, AnyEntry, CloseOp, ScheduleActivity
from durable.journal.lifecycle import RunStatus
from durable.journal.view import Blocker, Entry
from durable.journal.why import Why
from durable.messages import Signal
from durable.payloads import ValueType
from durable.payloads.codec import shown_text
from durable.querying import ask_run
from durable.reading import decode_entries, decode_failure
from durable.retry import Seconds, seconds
from durable.seams import spawn
from durable.stacks import Stack
from durable.store.records import RunRecord
from durable.updating import Answer, call_update
from durable.workflows import Named

if TYPE_CHECKING:
    from durable.client import Client
    from durable.operating import Reopened

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")
_ANY: Final = ValueType.of(Any)

FOLLOW_ROWS: Final = 500  # of the journal, read at a time
FOLLOW_SECONDS_MIN: Final = 0.02  # between two looks at it, while there is news
FOLLOW_SECONDS_MAX: Final = 0.25


class Run(msgspec.Struct, kw_only=True):
    """A run as `get_run` tells it: one generation, read once. Payloads are plain JSON data.

    `waiting_on` says what an open run waits for (never empty while it is open); `reason` why it is parked, cancelled or
    terminated; `error` is one line, `failure` the whole record, with the stack (of a parked run, of what stopped it).
    """

    run_id: str
    kind: str
    workflow: str
    version: int
    generation: int
    status: RunStatus
    task_queue: str
    attempts: int
    input: Any
    result: Any
    error: str | None
    failure: Failure | None
    reason: str | None
    created_at: datetime
    started_at: datetime | None
    closed_at: datetime | None
    deadline: datetime | None
    worker: str | None
    journal: list[Entry]
    waiting_on: list[Blocker]
    paused_at: datetime | None = None
    pause_reason: str | None = None
    parent: str | None = None  # the run id of the run whose child it is
    retention: timedelta | ForEver | None = None  # once it is closed; None: as workers are told

    @property
    def prompt(self) -> str | None:
        """What a person is asked, if the run waits for an answer: the first question that is open."""
        return next((one.prompt for one in self.waiting_on if one.ask), None)


class ActivityOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """How one activity of a run ended, as the journal has it. `input` and `result` are its JSON; one that failed has `failure`."""

    name: str
    kind: str
    input: bytes
    result: bytes | None
    failure: Failure | None
    attempts: int


class RunHandle(Generic[R]):
    """The address of one run, and what may be done to it. Made by a client; cheap, holds no connection."""

    def __init__(
        self,
        client: Client,
        run_id: str,
        *,
        pk: int,
        generation: int,
        result_type: ValueType | None = None,
        definition: WorkflowDefinition | None = None,
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._pk = pk
        self._generation = generation
        self._result_type = result_type
        self._definition = definition
        self.address = run_id  # what it was got by: `id@2` is asked as it was then. Internal to this library
        self._detach: Callable[[int], None] | None = None

    @property
    def run_id(self) -> str:
        return self._run_id

    def __repr__(self) -> str:
        return f"<run {self._run_id}>"

    async def result(self, timeout: Seconds | None = None) -> R:
        """Wait until the run is closed and return its result.

        Raises `WorkflowFailedError` (the workflow's error is `__cause__`), `RunCancelledError`, `RunTerminatedError`,
        `WorkflowTimeoutError`; for a parked run at once the platform fault, or `RunParkedError` if it parked in another
        process. `UndecodableError`: the result cannot be read here, e.g. without the codec that wrote it. After `timeout`
        (seconds or timedelta) TimeoutError; the run goes on. If retention deleted the run, `RunNotFoundError`.
        """
        try:
            with lending_slot():
                if timeout is None:
                    record = await self._client.watch.ended(self._pk, self._generation)
                else:
                    async with asyncio.timeout(seconds(timeout, what="timeout")):
                        record = await self._client.watch.ended(self._pk, self._generation, look_alone=True)
        except RunNotFoundError:
            raise RunNotFoundError(self._run_id) from None
        return self._outcome(record)

    def _outcome(self, record: RunRecord) -> R:
        if record.status is RunStatus.COMPLETED:
            data = record.result if record.result is not None else b"null"
            try:
                result: R = (self._result_type or _ANY).decode(data)
            except (
                UndecodableError
            ) as error:  # it returned what its hint does not say, or the hint has changed
                raise error.naming(f"the result of run {self._run_id!r}") from None
            return result
        raise self.failure_of(record)

    def failure_of(self, record: RunRecord) -> Exception:
        """Return what `result` raises for a run that did not complete. Internal to this library."""
        run_id = record.run_id
        match record.status:
            case RunStatus.FAILED | RunStatus.COMPENSATED:
                failure = decode_failure(record.failure)
                text = failures.describe(failure) if failure is not None else "no failure was recorded"
                failed = WorkflowFailedError(f"run {run_id!r} failed: {text}", run_id=run_id)
                failed.__cause__ = failures.rebuild(failure) if failure is not None else None
                return failed
            case RunStatus.CANCELLED:
                return RunCancelledError(run_id, shown_text(record.reason))
            case RunStatus.TERMINATED:
                return RunTerminatedError(run_id, shown_text(record.reason))
            case RunStatus.TIMED_OUT:
                return WorkflowTimeoutError(run_id)
            case RunStatus.PARKED:
                fault = self._client.watch.fault(self._pk)
                if fault is not None:
                    return fault
                return RunParkedError(run_id, shown_text(record.reason) or "unknown reason")
            case _:
                raise InternalError(f"run {run_id!r} was reported ended but is {record.status}")

    @overload
    async def signal(
        self, signal: Callable[[Any, T], object], value: T, *, id: str | None = None
    ) -> None: ...

    @overload
    async def signal(self, signal: Callable[[Any], object], *, id: str | None = None) -> None: ...

    @overload
    async def signal(
        self, signal: Signal[Any] | str, value: object = None, *, id: str | None = None
    ) -> None: ...

    async def signal(self, signal: Any, value: object = None, *, id: str | None = None) -> None:
        """Send a signal. Returned means stored: it will be delivered once, in order, whatever dies next.

        It is named by a `Signal`, by the method of a workflow class that takes it (the value is of the type that these say, else
        `ArgumentsError`), or by text. `id` makes the call repeatable: a second signal with the same id is dropped. Raises `RunNotFoundError`,
        `WorkflowStateError` if the run is closed, `PayloadError`.
        """
        await self._client.signal(self._run_id, signal, value, id=id)

    @overload
    async def update(
        self,
        update: Callable[[Any, V], Coroutine[Any, Any, T]],
        value: V,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self,
        update: Callable[[Any], Coroutine[Any, Any, T]],
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self,
        update: Callable[[Any, V], T],
        value: V,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self, update: Callable[[Any], T], *, id: str | None = None, timeout: Seconds | None = None
    ) -> T: ...

    @overload
    async def update(
        self, update: str, value: object = None, *, id: str | None = None, timeout: Seconds | None = None
    ) -> Any: ...

    async def update(
        self,
        update: Any,
        value: object = None,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> Any:
        """Call into the run, and return the answer: `await run.update(Checkout.add, item)`. Its effect and the answer are recorded in one commit.

        It is named by the method that takes it (the value and the answer are of its types, else `ArgumentsError`), or by text. It waits until the run
        has a worker and answers. `id` makes the call repeatable: whoever asks again with it, here or elsewhere, now or after the run has
        closed, gets the same answer, and nothing is done twice. After `timeout` (seconds or timedelta) TimeoutError; the update stays sent. Raises
        `UpdateRejectedError`: the run refused it, without any effect; `UpdateFailedError`: its handler raised (`__cause__`), or the run
        ended before it was answered; of a parked run what `result` raises, though the update waits there; `WorkflowStateError` if
        the run is closed, `RunNotFoundError`, `InboxFullError`, `PayloadError`.
        """
        limit = None if timeout is None else seconds(timeout, what="timeout")
        with lending_slot():
            async with asyncio.timeout(limit):
                answer = await call_update(
                    self._client, self._run_id, update, value=value, id=id, known=self._definition
                )
        if answer.parked is not None:
            raise self.failure_of(answer.parked)
        return self._told(answer)

    def _told(self, answer: Answer) -> Any:
        name, found, result_type, _ = answer
        what = f"update {name!r} of run {self._run_id!r}"
        if found is not None and found.how == "completed":
            try:
                return result_type.decode(bytes(found.result))
            except UndecodableError as error:
                raise error.naming(f"the result of {what}") from None
        failure = None if found is None else found.failure
        text = "no reason was recorded" if failure is None else failures.describe(failure)
        raised: UpdateFailedError | UpdateRejectedError
        if found is None or found.how == "given_up":
            raised = UpdateFailedError(
                f"{what}: the run ended before it was answered", run_id=self._run_id, update=name
            )
        elif found.how == "rejected":
            raised = UpdateRejectedError(f"{what} was refused: {text}", run_id=self._run_id, update=name)
        else:
            raised = UpdateFailedError(f"{what} failed: {text}", run_id=self._run_id, update=name)
        raised.__cause__ = None if failure is None else failures.rebuild(failure)
        raise raised

    @overload
    async def query(
        self, query: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def query(self, query: str, *args: object, **kwargs: object) -> Any: ...

    async def query(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Ask the run, open or closed, parked or not, and return its answer: `await run.query(Checkout.status)`, or by name.

        It is rebuilt in this process by replaying its committed journal: no worker is needed, no activity runs, nothing is written. So the
        workflow's code must be here: that of the handle (from `start`, or `client.get(run_id, Checkout)`), else of a module that is imported. The answer
        is of the last turn that was committed; a handle of `id@2` asks that generation. Raises what the query raises; `WorkflowStateError` before the run's first turn, `UnknownWorkflowError`
        without the code, `ArgumentsError` for a query that it does not answer or arguments that do not fit, `DefinitionError` if the query did more than look,
        `PlatformFault` if the code does not fit the journal.
        """
        return await ask_run(
            self._client, self.address, query, args=args, kwargs=kwargs, known=self._definition
        )

    async def answer(self, value: object = None, *, name: str | None = None) -> None:
        """Answer the question that the run asks a person; see `Client.answer`."""
        await self._client.answer(self._run_id, value, name=name)

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the run to cancel: `CancelledError` is raised in it where it waits. Closed: `WorkflowStateError`."""
        await self._client.cancel(self._run_id, reason)

    async def terminate(self, reason: str | None = None) -> None:
        """Close the run at once; no code of it runs any more. Closed: `WorkflowStateError`."""
        await self._client.terminate(self._run_id, reason)

    async def pause(self, reason: str | None = None) -> None:
        """Hold the run back until it is resumed: within a second its worker begins nothing more of it.

        Activities that run may end, and are recorded; then nobody holds the run. Messages are kept, timers that fall due wait.
        Its deadline (`timeout=`) still counts. Pausing a paused run changes nothing; closed: `WorkflowStateError`.
        """
        await self._client.pause(self._run_id, reason)

    async def resume(self) -> None:
        """Let a paused or parked run go on, from where it stopped: a worker takes it as soon as one has its code.

        A parked one is not helped by that alone: with the same code or bytes it parks again. Neither paused nor parked:
        `WorkflowStateError`.
        """
        await self._client.resume(self._run_id)

    async def stack(self, workflow: Named[Any] | None = None, *, values: bool = False) -> Stack:
        """Return where each coroutine of the run stands; with its `workflow`, rebuilt by replay. See `Client.stack`."""
        return await self._client.stack(self._run_id, workflow, values=values)

    async def retry_now(self, activity: str | int | None = None, *, dry_run: bool = False) -> list[str]:
        """Let activities that have failed and wait for their next attempt have it now; return their names.

        All of the run, or one: `activity` is its name, or its number in the raw journal. Attempts are counted on as ever, and the limits
        of the activity hold. Returned means stored; on whatever queue the activity is performed, an attempt begins as soon as there is a
        slot. `dry_run` changes nothing and says which it would be. None waits for a retry (any more), or the run is closed:
        `WorkflowStateError`.
        """
        return await self._client.retry_now(self._run_id, activity, dry_run=dry_run)

    async def retry(
        self, *, activity: str | int | None = None, from_start: bool = False, dry_run: bool = False
    ) -> Reopened:
        """Try a failed, timed-out, cancelled or terminated run again: open its next generation, for a worker to take.

        It keeps the journal up to what went wrong: before the activity whose failure escaped from the workflow, before the
        request to cancel; if its time was up or it was terminated, all of it. What is kept is not done again, idempotency keys
        stay the same, and the time until `timeout=` begins anew. If an error of the workflow's own code ended it, nothing is
        kept: completed activities run again, under the same keys. `from_start` keeps nothing either and gives new keys, as a
        new start with the same input would. `activity` names the failed activity that is to be tried again, if it is not the one whose
        failure ended the run: what stood before that failure is kept. A name, or if several calls of it failed the number in the raw
        journal. `dry_run` changes nothing and says what would be.

        **Look at `forgotten`**: if one of those activities undid what earlier ones had done, a retry without `from_start` goes
        on as if it had not. Open or completed: `WorkflowStateError`; no such activity failed, or it is not clear which is meant:
        `ArgumentsError`.
        """
        return await self._client.retry(
            self._run_id, activity=activity, from_start=from_start, dry_run=dry_run
        )

    async def why(self) -> Why:
        """Return the one reason why the run is not moving."""
        return await self._client.why(self._run_id)

    async def describe(self) -> Run:
        """Return what the run is now, with its story."""
        return await self._client.describe(self._run_id)

    async def events(self) -> list[AnyEntry]:
        """Return the raw journal: numbered from 1 by position, without gaps."""
        return await self._client.events(self._run_id)

    async def outcomes(self) -> AsyncGenerator[list[ActivityOutcome], None]:
        """Yield the outcomes of the run's activities as they become durable, some at a time, until it is closed or parked.

        In bounded memory: what was yielded is not kept. Begins with those that are on record already. Yields an empty list now and
        then while there is no news.
        """
        client = self._client
        ended = spawn(client.watch.ended(self._pk, self._generation), name="durable outcomes")
        asked: dict[int, ScheduleActivity] = {}
        after, wait = (0, 0), FOLLOW_SECONDS_MIN
        try:
            while True:
                is_over = ended.done()
                rows = await client.store.read_journal_page(
                    self._pk, self._generation, after=after, limit=FOLLOW_ROWS
                )
                yield _outcomes(decode_entries(rows, after=after), asked)
                if rows:
                    after = (rows[-1].turn, rows[-1].part)
                if is_over and len(rows) < FOLLOW_ROWS:
                    ended.result()
                    return
                if len(rows) < FOLLOW_ROWS:
                    wait = FOLLOW_SECONDS_MIN if rows else min(2 * wait, FOLLOW_SECONDS_MAX)
                    with lending_slot():
                        await asyncio.wait([ended], timeout=wait)
        finally:
            ended.cancel()

    def on_detach(self, detach: Callable[[int], None]) -> None:
        """Say who drives the run in this process. Internal to this library."""
        self._detach = detach

    async def detach(self) -> None:
        """Stop driving the run in this process and release it to whatever worker has its code."""
        if self._detach is not None:
            self._detach(self._pk)


class ChildHandle(RunHandle[Any]):
    """What workflow code has of a child that it started: the id, the result, and a way to cancel it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._detach = None

    @property
    def run_id(self) -> str:
        return self._child.run_id

    def __repr__(self) -> str:
        return f"<child run {self.run_id}>"

    async def result(self, timeout: Seconds | None = None) -> Any:
        """Wait until the child is closed and return its result. Raises what any handle does; cancelled, it leaves the child alone."""
        if timeout is None:
            return await self._child.outcome()
        async with asyncio.timeout(seconds(timeout, what="timeout")):
            return await self._child.outcome()

    async def cancel(self, reason: str | None = None) -> None:
        """Ask the child to cancel; nothing, if it is closed. Without a `reason` it is told which run asked."""
        self._child.cancel(check_reason(reason))

    def __getattr__(self, name: str) -> Any:
        """Whatever else a handle can do needs its client, which workflow code has none of."""
        if name != "_client":
            raise AttributeError(name)
        raise DefinitionError(
            f"of child {self.run_id!r} a workflow may use run_id, result() and cancel(); do the rest in an activity"
        )


def _outcomes(entries: list[AnyEntry], asked: dict[int, ScheduleActivity]) -> list[ActivityOutcome]:
    """Return the outcomes among the next entries of a journal; `asked` holds what was asked for and is open."""
    found: list[ActivityOutcome] = []
    for entry in entries:
        match entry:
            case ScheduleActivity():
                asked[entry.op] = entry
            case ActivityCompleted() if entry.op in asked:
                found.append(_outcome_of(asked.pop(entry.op), entry.attempts, result=bytes(entry.result)))
            case ActivityFailed() if entry.op in asked:
                found.append(_outcome_of(asked.pop(entry.op), entry.attempts, failure=entry.failure))
            case CloseOp() if entry.how != "wait":
                asked.pop(entry.op, None)
    return found


def _outcome_of(
    one: ScheduleActivity, attempts: int, *, result: bytes | None = None, failure: Failure | None = None
) -> ActivityOutcome:
    return ActivityOutcome(
        name=one.name,
        kind=one.kind or "activity",
        input=bytes(one.args),
        result=result,
        failure=failure,
        attempts=attempts,
    )
