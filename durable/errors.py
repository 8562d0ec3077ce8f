"""Every exception this library raises, split by who has to act.

Knows nothing of stores, workers or workflows: it only holds what went wrong, as fields.

    DurableError
    ├── the author of the code acts
    │   ├── DefinitionError             a decorator, a signature or a registration is wrong
    │   ├── PayloadError                a value cannot be stored (says where in the value)
    │   │   └── PayloadTooLargeError    (says how large it is, and whose)
    │   └── PlatformFault               parks the run; good code resumes it
    │       ├── NonDeterminismError     today's code asks for something else than the journal holds
    │       ├── UndecodableError        stored bytes do not fit the type that receives them
    │       ├── LivelockError           an activation never came to rest
    │       ├── StuckWorkflowError      an activation did not return
    │       ├── PoisonError             driving the run ended its worker, again and again
    │       ├── JournalLimitError       the journal has reached its limit
    │       ├── EndlessContinuationError    it continues as new for ever, and waits for nothing
    │       └── WorkflowGuardError      a workflow used real time, chance, threads or I/O
    ├── the caller acts
    │   ├── ArgumentsError              arguments do not fit the signature
    │   ├── UnknownWorkflowError        no workflow of that name is known here
    │   ├── RunNotFoundError            no run of that id
    │   ├── RunConflictError            the id is taken, by other input or by policy
    │   ├── WorkflowStateError          the run is closed (or otherwise in the wrong status)
    │   ├── ActivityClosedError         a task token is no longer good for anything
    │   ├── InboxFullError              too many messages wait for the run
    │   ├── WorkflowVersionMismatchError
    │   │   └── SagaVersionMismatchError
    │   ├── RunParkedError              the run stopped on a platform fault, elsewhere
    │   ├── UpdateRejectedError         an update was refused; the reason is `__cause__`
    │   ├── UpdateFailedError           the handler of an update raised (`__cause__`), or the run ended before
    │   ├── WorkflowFailedError         the workflow raised; the reason is `__cause__`
    │   ├── WorkflowTimeoutError        the workflow's own deadline passed
    │   └── RunCancelledError
    │       └── RunTerminatedError
    ├── the workflow's own code acts
    │   ├── ActivityError               an activity failed and its own class could not be rebuilt
    │   ├── ActivityTimeoutError        (also a TimeoutError)
    │   ├── WorkerLostError             the worker of the last attempt died
    │   ├── SagaError                   a saga failed, and undid what it had done
    │   │   └── WorkflowCompensationError   ... except for what could not be undone
    │   └── NonRetryableError           raise it in an activity: no further attempt
    │       (RetryAfter, in retry.py: try again after its delay)
    ├── the operator acts
    │   ├── CodecError                  a codec cannot decode: another key, or bytes that were changed
    │   ├── StoreError                  the database could not be read or written
    │   │   ├── StoreBusyError          another process held the write lock too long
    │   │   ├── NotADatabaseError
    │   │   └── SchemaVersionError      the database is newer than this code, or much older
    │   └── LeaseLostError              this worker was declared dead, or lost one run
    └── InternalError                   an assertion of ours failed: please report it
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal


class DurableError(Exception):
    """Base of every error of this library."""


# ─ the author of the code acts ───────────────────────────────────────────────


class DefinitionError(DurableError):
    """A workflow, activity or signal is defined or registered wrongly. Fix the definition."""


class PayloadError(DurableError):
    """A value cannot be turned into stored bytes. `path` says where in the value, e.g. `$.items[3]`."""

    def __init__(self, message: str, *, path: str = "$") -> None:
        super().__init__(message)
        self.path = path


class PayloadTooLargeError(PayloadError):
    """A payload is larger than `Limits.payload_bytes`. Nothing was written.

    `what` says which, e.g. "the result of activity 'scan'"; `size` and `limit` are bytes; `run_id` is None for a run
    that was to get a generated id.
    """

    def __init__(self, *, run_id: str | None, what: str, size: int, limit: int) -> None:
        whose = "a new run" if run_id is None else f"run {run_id!r}"
        super().__init__(
            f"{what} of {whose} takes {size:,} bytes, more than the limit of {limit:,}: store it elsewhere (a file, a "
            "bucket) and pass its name, or raise Limits.payload_bytes"
        )
        self.run_id = run_id
        self.what = what
        self.size = size
        self.limit = limit


class PlatformFault(DurableError):
    """The run cannot go on with the code or the bytes at hand. It is parked, its journal untouched.

    `is_clear`: the text names code and places, never values; it may be logged, and stored beside encrypted payloads.
    """

    is_clear: ClassVar[bool] = False


class NonDeterminismError(PlatformFault):
    """Replay asked for something else than the journal holds.

    `expected` and `got` name the recorded and the requested operation (None: nothing).
    """

    is_clear = True

    def __init__(
        self,
        message: str,
        *,
        run_id: str,
        expected: str | None = None,
        got: str | None = None,
        event: int | None = None,
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.expected = expected
        self.got = got
        self.event = event


class UndecodableError(PlatformFault):
    """Stored bytes do not fit the type that should receive them."""

    is_clear = True

    def __init__(self, message: str, *, run_id: str | None = None) -> None:
        super().__init__(message)
        self.run_id = run_id

    def naming(self, what: str) -> UndecodableError:
        """Return it saying which value it was, if it only says "stored value"; whoever reads values by type does not know that."""
        message = str(self)
        rest = message.removeprefix("stored value")
        return self if rest == message else UndecodableError(what + rest, run_id=self.run_id)


class LivelockError(PlatformFault):
    """An activation ran more callbacks than its cap without coming to rest."""

    is_clear = True


class JournalLimitError(PlatformFault):
    """A journal has as many events as `Limits.journal_events` allows. All of it is kept; with a higher limit the run goes on."""

    is_clear = True

    def __init__(self, *, run_id: str, events: int, limit: int) -> None:
        super().__init__(
            f"the journal of run {run_id!r} has {events:,} events, and the limit is {limit:,}: let the worker have a higher "
            "Limits.journal_events and resume the run, or terminate it; let the workflow continue as new"
        )
        self.run_id = run_id
        self.events = events
        self.limit = limit


class EndlessContinuationError(PlatformFault):
    """A workflow continued as new `generations` times, one after the other, and none of them waited for anything."""

    is_clear = True

    def __init__(self, *, run_id: str, generations: int) -> None:
        super().__init__(
            f"run {run_id!r} continued as new {generations} times in a row without waiting for an activity, a timer or a signal: "
            "it would do so for ever; repair the workflow and resume the run, or terminate it"
        )
        self.run_id = run_id
        self.generations = generations


class StuckWorkflowError(PlatformFault):
    """A workflow computed or blocked for longer than its worker's limit, without awaiting anything durable.

    `source` is the author's line it was at, `stack` all of them, `seconds` how long it took.
    """

    def __init__(
        self, message: str, *, run_id: str, seconds: float = 0.0, source: str = "", stack: str = ""
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.seconds = seconds
        self.source = source
        self.stack = stack


class PoisonError(PlatformFault):
    """Workers died while they drove this run and nothing else, `crashes` times in a row."""

    def __init__(self, message: str, *, run_id: str, crashes: int = 0) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.crashes = crashes


class WorkflowGuardError(PlatformFault):
    """A workflow used real time, chance, a thread, a file, a socket or a process, which no replay can repeat.

    `call` is what it used, `source` the place (`package/file.py:line`, or ""), `instead` what to write there.
    """

    is_clear = True

    def __init__(
        self, message: str, *, run_id: str, call: str = "", source: str = "", instead: str = ""
    ) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.call = call
        self.source = source
        self.instead = instead


# ─ the caller acts ───────────────────────────────────────────────────────────


class ArgumentsError(DurableError):
    """Arguments do not fit the signature of the workflow, activity or signal. Nothing was written."""


class UnknownWorkflowError(DurableError):
    """No workflow of that name and version is known here. `suggestions` are near names."""

    def __init__(self, message: str, *, name: str, suggestions: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.suggestions = tuple(suggestions)


class RunNotFoundError(DurableError):
    """No run has this id. `suggestions` are near ids."""

    def __init__(self, run_id: str, *, suggestions: Sequence[str] = ()) -> None:
        hint = f" (did you mean {' or '.join(repr(s) for s in suggestions)}?)" if suggestions else ""
        text = repr(run_id) if len(run_id) <= 300 else f"{run_id[:40]!r}… ({len(run_id):,} characters)"
        super().__init__(f"no run {text}{hint}")
        self.run_id = run_id
        self.suggestions = tuple(suggestions)


class RunConflictError(DurableError):
    """The run id is taken: by a run with other input, or by one the policy refuses to touch."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class WorkflowStateError(DurableError):
    """The run's status does not allow this, e.g. a signal to a closed run."""

    def __init__(self, run_id: str, status: str, message: str | None = None) -> None:
        super().__init__(message or f"run {run_id!r} is {status}")
        self.run_id = run_id
        self.status = status


class ActivityClosedError(DurableError):
    """The attempt that a task token names is over: it timed out, was cancelled, or its run is closed. Nothing was written."""

    def __init__(self, run_id: str, attempt: int) -> None:
        super().__init__(
            f"run {run_id!r} no longer waits for attempt {attempt} of this activity: it timed out, was cancelled or "
            "tried anew, or the run is closed"
        )
        self.run_id = run_id
        self.attempt = attempt


class InboxFullError(DurableError):
    """As many messages wait for the run as `Limits.unread_messages` allows. This one was not taken in; send it later."""

    def __init__(self, run_id: str, limit: int) -> None:
        super().__init__(
            f"run {run_id!r} has {limit:,} unread messages, the limit: this one was not taken in; durable why {run_id} says what holds it up"
        )
        self.run_id = run_id
        self.limit = limit


class WorkflowVersionMismatchError(DurableError):
    """The run was started by another version of the workflow than the code at hand."""

    def __init__(self, run_id: str, stored_version: int, code_version: int) -> None:
        super().__init__(
            f"run {run_id!r} belongs to version {stored_version} of its workflow, the code here is version "
            f"{code_version}; run a worker that still has version {stored_version}, or start a new run"
        )
        self.run_id = run_id
        self.stored_version = stored_version
        self.code_version = code_version


class SagaVersionMismatchError(WorkflowVersionMismatchError):
    """The saga was started by another `VERSION` of its class; `is_compatible_with(stored)` may say that this does no harm."""

    def __init__(self, saga_id: str, stored_version: int, code_version: int) -> None:
        super().__init__(saga_id, stored_version, code_version)
        self.saga_id = saga_id


class RunParkedError(DurableError):
    """The run stopped on a platform fault in another process; `reason` is that fault's text."""

    def __init__(self, run_id: str, reason: str) -> None:
        super().__init__(f"run {run_id!r} is parked: {reason}")
        self.run_id = run_id
        self.reason = reason


class UpdateRejectedError(DurableError):
    """The run refused the update, which has had no effect. Why is `__cause__`: what the validator raised, or `ArgumentsError`."""

    def __init__(self, message: str, *, run_id: str, update: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.update = update


class UpdateFailedError(DurableError):
    """The handler of the update raised: that, rebuilt from the journal, is `__cause__`. The run goes on.

    Without a `__cause__` the run ended before the update was answered; what had been done for it by then is as the run left it.
    """

    def __init__(self, message: str, *, run_id: str, update: str) -> None:
        super().__init__(message)
        self.run_id = run_id
        self.update = update


class WorkflowFailedError(DurableError):
    """The workflow raised. The error itself, rebuilt from the journal, is `__cause__`."""

    def __init__(self, message: str, *, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class WorkflowTimeoutError(DurableError):
    """The deadline of the workflow passed before it was done. No code of it ran after that."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id!r} timed out: its workflow timeout passed before it completed")
        self.run_id = run_id


class RunCancelledError(DurableError):
    """The run was cancelled on request; `reason` is what the requester said."""

    def __init__(self, run_id: str, reason: str | None = None) -> None:
        super().__init__(f"run {run_id!r} was cancelled" + (f": {reason}" if reason else ""))
        self.run_id = run_id
        self.reason = reason


class RunTerminatedError(RunCancelledError):
    """The run was terminated: closed at once, without running any of its code."""

    def __init__(self, run_id: str, reason: str | None = None) -> None:
        super().__init__(run_id, reason)
        self.args = (f"run {run_id!r} was terminated" + (f": {reason}" if reason else ""),)


# ─ the workflow's own code acts ──────────────────────────────────────────────


class ActivityError(DurableError):
    """An activity failed with an error whose class cannot be rebuilt here: this stands for it.

    It also stands for such an error of a workflow's own code, and for one that is another's cause; then `activity` is "".
    """

    def __init__(
        self, message: str, *, activity: str, type: str, attempts: int = 1, run_id: str | None = None
    ) -> None:
        super().__init__(": ".join(part for part in (activity, type, message) if part))
        self.activity = activity
        self.type = type
        self.message = message
        self.attempts = attempts
        self.run_id = run_id


class ActivityTimeoutError(DurableError, TimeoutError):
    """A limit of an activity passed; `kind` says which. Start-to-close and heartbeat timeouts are retried by default."""

    def __init__(
        self,
        *args: object,
        kind: Literal[
            "start_to_close", "schedule_to_start", "schedule_to_close", "heartbeat"
        ] = "start_to_close",
    ) -> None:
        super().__init__(*args)
        self.kind = kind


class WorkerLostError(DurableError):
    """The worker of an activity's last allowed attempt died before it reported an outcome."""


class SagaError(DurableError):
    """A saga failed, and what it had done was undone. The error that made it fail is `cause`, and `__cause__`.

    `step_name` is the step that failed ("" if it was none of them). `compensated` and `failed_compensations` are names of steps, in
    the order in which they were undone, or were not.
    """

    __durable_wraps__ = True
    __durable_compensated__ = True
    # What is left of one that was too large to be recorded with its values.
    step_name: str = ""
    compensated: Sequence[str] = ()
    failed_compensations: Sequence[str] = ()

    def __init__(
        self,
        step_name: str,
        cause: BaseException | None = None,
        compensated: Sequence[str] = (),
        failed_compensations: Sequence[str] = (),
    ) -> None:
        super().__init__(step_name)
        self.step_name = step_name
        self.compensated = list(compensated)
        self.failed_compensations = list(failed_compensations)
        self.__cause__ = cause

    @property
    def cause(self) -> BaseException | None:
        return self.__cause__

    def __str__(self) -> str:
        cause = self.__cause__
        reason = "" if cause is None else f": {type(cause).__name__}: {cause}".rstrip(": ")
        where = f"step {self.step_name!r} failed" if self.step_name else "the saga failed"
        return f"{where}{reason}; {self._undone()}"

    def _undone(self) -> str:
        return f"undone: {', '.join(self.compensated)}" if self.compensated else "there was nothing to undo"


class WorkflowCompensationError(SagaError):
    """A saga failed, and some of what it had done could not be undone: `failed_compensations`. A person must see to these."""

    __durable_wraps__ = False
    __durable_compensated__ = False

    def _undone(self) -> str:
        done = f"; {super()._undone()}" if self.compensated else ""
        return f"NOT undone: {', '.join(self.failed_compensations)}{done}"


class NonRetryableError(DurableError):
    """Raise it (or a subclass) in an activity to fail it without another attempt."""


class BlockedLoopError(NonRetryableError):
    """An `async def` activity computed or blocked on its worker's loop, which stood still for all runs meanwhile.

    Await what takes time, or make the activity a plain `def`, which runs in a thread.
    """


# ─ the operator acts ─────────────────────────────────────────────────────────


class CodecError(DurableError):
    """A codec cannot decode a payload: another key wrote it, or it was changed or moved. Raised by codecs.

    Its text becomes the reason why a run is parked: it names keys by their ids and holds no content.
    """


class StoreError(DurableError):
    """The database could not be read or written. Nothing was half-written."""


class StoreBusyError(StoreError):
    """Another process held the database's write lock longer than the deadline."""


class NotADatabaseError(StoreError):
    """The file exists but is no SQLite database (or not one of ours). It was not touched."""


class SchemaVersionError(StoreError):
    """The database's schema is newer than this code understands. Upgrade the code."""


class LeaseLostError(DurableError):
    """This worker was declared dead and its runs were taken over: its write was refused."""


class InternalError(DurableError):
    """An assertion of this library failed. Please report it; the run's journal is intact."""
