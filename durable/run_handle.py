"""One run, seen from outside: its result, its story, and what may be done to it.

Knows nothing of workers: whoever drives the run, here or elsewhere, the store is the truth.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from durable import failures
from durable.errors import (
    InternalError,
    RunCancelledError,
    RunNotFoundError,
    RunParkedError,
    RunTerminatedError,
    WorkflowFailedError,
    WorkflowTimeoutError,
)
from durable.failures import Failure
from durable.journal.events import AnyEntry
from durable.journal.lifecycle import RunStatus
from durable.journal.turns import joined
from durable.journal.view import Blocker, Entry
from durable.journal.why import Why
from durable.payloads import ValueType
from durable.payloads.codec import sealed_fault, shown_text
from durable.retry import Seconds, seconds
from durable.stacks import Stack
from durable.store.records import JournalRow, RunRecord
from durable.workflows import Signal, Workflow

if TYPE_CHECKING:
    from durable.client import Client, Reopened

R = TypeVar("R")
_ANY: Final = ValueType.of(Any)


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
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._pk = pk
        self._generation = generation
        self._result_type = result_type
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
            if timeout is None:
                record = await self._client.watch.ended(self._pk, self._generation)
            else:
                async with asyncio.timeout(seconds(timeout, what="timeout")):
                    record = await self._client.watch.ended(self._pk, self._generation, look_alone=True)
        except RunNotFoundError:
            raise RunNotFoundError(self._run_id) from None
        return self._outcome(record)

    def _outcome(self, record: RunRecord) -> R:
        run_id = record.run_id
        match record.status:
            case RunStatus.COMPLETED:
                data = record.result if record.result is not None else b"null"
                result: R = (self._result_type or _ANY).decode(data)
                return result
            case RunStatus.FAILED | RunStatus.COMPENSATED:
                failure = decode_failure(record.failure)
                text = failures.describe(failure) if failure is not None else "no failure was recorded"
                cause = failures.rebuild(failure) if failure is not None else None
                raise WorkflowFailedError(f"run {run_id!r} failed: {text}", run_id=run_id) from cause
            case RunStatus.CANCELLED:
                raise RunCancelledError(run_id, shown_text(record.reason))
            case RunStatus.TERMINATED:
                raise RunTerminatedError(run_id, shown_text(record.reason))
            case RunStatus.TIMED_OUT:
                raise WorkflowTimeoutError(run_id)
            case RunStatus.PARKED:
                fault = self._client.watch.fault(self._pk)
                raise (
                    fault
                    if fault is not None
                    else RunParkedError(run_id, shown_text(record.reason) or "unknown reason")
                )
            case _:
                raise InternalError(f"run {run_id!r} was reported ended but is {record.status}")

    async def signal(self, signal: Signal[Any] | str, value: object = None, *, id: str | None = None) -> None:
        """Send a signal. Returned means stored: it will be delivered once, in order, whatever dies next.

        `id` makes the call repeatable: a second signal with the same id is dropped. Raises `RunNotFoundError`,
        `WorkflowStateError` if the run is closed, `PayloadError`.
        """
        await self._client.signal(self._run_id, signal, value, id=id)

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

    async def stack(self, workflow: Workflow[..., Any] | None = None) -> Stack:
        """Return where each coroutine of the run stands; with its `workflow`, rebuilt by replay. See `Client.stack`."""
        return await self._client.stack(self._run_id, workflow)

    async def retry(self, *, from_start: bool = False, dry_run: bool = False) -> Reopened:
        """Try a failed, timed-out, cancelled or terminated run again: open its next generation, for a worker to take.

        It keeps the journal up to what went wrong: before the activity whose failure escaped from the workflow, before the
        request to cancel; if its time was up or it was terminated, all of it. What is kept is not done again, idempotency keys
        stay the same, and the time until `timeout=` begins anew. If an error of the workflow's own code ended it, nothing is
        kept: completed activities run again, under the same keys. `from_start` keeps nothing either and gives new keys, as a
        new start with the same input would. `dry_run` changes nothing and says what would be.

        **Look at `forgotten`**: if one of those activities undid what earlier ones had done, a retry without `from_start` goes
        on as if it had not. Open or completed: `WorkflowStateError`.
        """
        return await self._client.retry(self._run_id, from_start=from_start, dry_run=dry_run)

    async def why(self) -> Why:
        """Return the one reason why the run is not moving."""
        return await self._client.why(self._run_id)

    async def describe(self) -> Run:
        """Return what the run is now, with its story."""
        return await self._client.describe(self._run_id)

    async def events(self) -> list[AnyEntry]:
        """Return the raw journal: numbered from 1 by position, without gaps."""
        return await self._client.events(self._run_id)

    def on_detach(self, detach: Callable[[int], None]) -> None:
        """Say who drives the run in this process. Internal to this library."""
        self._detach = detach

    async def detach(self) -> None:
        """Stop driving the run in this process and release it to whatever worker has its code."""
        if self._detach is not None:
            self._detach(self._pk)


def decode_failure(data: bytes | None) -> Failure | None:
    """Return the stored failure, or one that says it cannot be read."""
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Failure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = sealed_fault(data) or type(error).__name__
        return Failure(
            type="durable.errors:UndecodableError", message=f"the failure cannot be read: {reason}"
        )


def decode_entries(rows: Sequence[JournalRow]) -> list[AnyEntry]:
    """Return the entries of stored journal rows, in order; raise `UndecodableError`, which names the row."""
    return [entry for _, entries in joined(rows) for entry in entries]
