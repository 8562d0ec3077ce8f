"""The course of one run: all that it is in memory, the body of its workflow, and how that ends.

Faults. What the author's code raises ends the run as `Failed`. What says that code or bytes do not suit the journal
(`PlatformFault`) parks it: it is raised to the driver, and the instance can only be evicted then. The first one counts, even if
the author's code swallows it.

Knows nothing of how events come in (`instance.py`) or of what the author's code asks for (`asking.py`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from random import Random as RandomSource
from typing import Any, Final, cast

import msgspec

from durable import failures
from durable.definitions import WorkflowDefinition
from durable.engine import anyio_scopes, guards
from durable.engine.agreement import Agreement
from durable.engine.handlers import Conditions, Signals
from durable.engine.loop import DeterministicLoop
from durable.engine.operations import ChildCall, Errand, Operations
from durable.engine.origins import Origins
from durable.engine.runtime import (
    UNDONE,
    ActivityCall,
    Evicted,
    RunIdentity,
    Runtime,
    Unwind,
    continuation_in,
)
from durable.engine.updates import Updates
from durable.errors import DefinitionError, PlatformFault
from durable.failures import Failure
from durable.journal.events import (
    OWED,
    Cancelled,
    Completed,
    ContinuedAsNew,
    Failed,
    OpenWait,
    Started,
    UpdateAnswered,
    WorkflowEnd,
)
from durable.limits import DEFAULT_LIMITS, Limits

_logger: Final = logging.getLogger("durable.engine")


class Course:
    """One run in memory: all its state, its body, and its end."""

    __slots__ = (  # beyond thirty attributes a dictionary of one's own costs more than all the rest of a start
        "_agreement",
        "_conditions",
        "_definition",
        "_event_at",
        "_fault",
        "_handler_error",
        "_input",
        "_is_over",
        "_is_unwinding",
        "_limits",
        "_loop",
        "_main",
        "_operations",
        "_origins",
        "_random",
        "_signals",
        "_started",
        "activities",
        "attempt",
        "cancel_reason",
        "children",
        "end",
        "entrusted",
        "errands",
        "events",
        "failed_at",
        "has_compensated",
        "identity",
        "is_cancel_requested",
        "is_evicting",
        "is_looking",
        "is_replaying",
        "next_input",
        "open_sagas",
        "outermost",
        "queries",
        "started_at_us",
        "timers",
        "unwind",
        "updates",
        "waits",
    )

    def __init__(
        self,
        identity: RunIdentity,
        definition: WorkflowDefinition,
        input: bytes,
        *,
        callbacks_max: int = 100_000,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        anyio_scopes.install()
        guards.install()
        for part in definition.parts:
            guards.watch(part)
        self.identity = identity
        self.attempt = 1
        self.started_at_us = 0
        self.is_replaying = False
        self.is_evicting = False
        self.is_looking = False
        self.end: WorkflowEnd | None = None
        self.failed_at: tuple[int, int] | None = None
        self.events = 0
        self._limits = limits
        self.unwind: Unwind | None = None
        self.outermost: object | None = None
        self.open_sagas = 0
        self.queries: dict[str, Callable[..., Any]] | None = None  # what answers them, by name
        self.next_input = b""  # of the generation that follows, once this one has ended as continued
        self.has_compensated = False
        self._definition = definition
        self._input = input
        self._operations = operations = Operations(
            f"{identity.run_id}@{identity.epoch}/", identity.task_queue
        )
        # The open activities by operation; one cancelled with "wait" stays, with `.closing`, until its outcome.
        self.activities: dict[int, ActivityCall] = operations.activities
        # Calls for workers of another queue that were numbered since the driver last took them.
        self.entrusted: list[ActivityCall] = operations.entrusted
        # The open timers: operation -> due, in microseconds UTC.
        self.timers: dict[int, int] = operations.timers
        # The open waits for signals and conditions, by operation.
        self.waits: dict[int, OpenWait] = operations.waits
        # The open runs of other workflows that this one has started, by operation.
        self.children: dict[int, ChildCall] = operations.children
        self.errands: list[Errand] = operations.errands
        self._loop = loop = DeterministicLoop(  # type: ignore[abstract]  # it refuses those by a table
            cast(Runtime, self),  # what is made of this is one
            operations,
            salt_id=identity.salt_id or identity.run_id,
            callbacks_max=callbacks_max,
        )
        loop.on_exit = self._fail
        loop.on_guard = self._park
        self._signals: Signals | None = None  # these three made when they are first needed
        self.updates: Updates | None = None
        self._conditions: Conditions | None = None
        self._started: Started | None = None
        self._random: RandomSource | None = None
        self._main: asyncio.Task[None] | None = None
        self._event_at = 0
        self._is_over = False  # ended, failed or evicted: no further event may be fed
        self.is_cancel_requested = False
        self.cancel_reason: str | None = None
        self._fault: BaseException | None = None
        self._handler_error: BaseException | None = None
        self._is_unwinding = False  # the implicit saga of the workflow is being undone
        self._agreement: Agreement | None = None  # made when it is first needed
        self._origins = Origins()

    # ─ the workflow ──────────────────────────────────────────────────────────

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_handler: BaseException | None = None
        try:
            try:
                try:
                    result = await self._definition.fn(*args, **kwargs)
                except BaseException as error:
                    continuation = continuation_in(error) if self._owes() else None
                    if continuation is not None:
                        await self._settle()
                        continuation.encode_again()
                    raise
                if self._owes():
                    await self._settle()
                if self._handler_error is not None:
                    raise self._handler_error
                data = self._definition.result.encode_result(result)
                self.judge(data, "the result")
            except BaseException as error:
                by_handler = self._handler_error_behind(error)
                if self.unwind is not None and self._is_final(by_handler or error):
                    self._is_unwinding = True
                    await self.unwind(by_handler or error)
                if by_handler is None:
                    raise
            if by_handler is not None:
                raise by_handler
        except asyncio.CancelledError as error:
            if self.is_evicting:
                return
            if self.is_cancel_requested:
                self._finish(Cancelled(at=self._event_at, reason=self.cancel_reason))
            else:
                self._fail(error)
        except Evicted:
            return
        except BaseException as error:
            if not self.is_evicting:
                continuation = continuation_in(error)
                if continuation is None:
                    self._fail(error)
                else:
                    self.next_input = continuation.input
                    self._finish(ContinuedAsNew(at=self._event_at))
        else:
            self._finish(Completed(at=self._event_at, result=msgspec.Raw(data)))

    def _owes(self) -> bool:
        return self.updates is not None and self.updates.owes

    async def _settle(self) -> None:
        """The workflow has come to a good end: wait for the handlers of updates whose callers a life before this one has given the
        result (I14). What comes of it may still take that in."""
        await self._conditions_here().wait(lambda: not self._owes(), "", name=OWED)

    def _conditions_here(self) -> Conditions:
        if self._conditions is None:
            self._conditions = Conditions(self._loop, self._operations)
        return self._conditions

    def _fail_by_handler(self, error: BaseException) -> None:
        """What a handler raised is the run's error: the workflow is cancelled where it waits, cleans up, and ends with it."""
        if self.is_fault(error):
            self._park(error)
            return
        if continuation_in(error) is not None:
            error = DefinitionError("a handler cannot continue as new: let it tell the workflow to")
        if self._handler_error is None and not self._is_unwinding:
            self._handler_error = error
            assert self._main is not None, "a handler before the start"
            if not self.is_cancel_requested:  # else it is cleaning up, which is not to be cancelled, too
                self._main.cancel()

    def _handler_error_behind(self, raised: BaseException) -> BaseException | None:
        """Return the handler's error of which the workflow was cancelled, unless what it raised says that it leaves the memory."""
        if self.is_evicting or isinstance(raised, Evicted | GeneratorExit):
            return None
        return self._handler_error

    def _fail(self, error: BaseException) -> None:
        if self.is_evicting or self.end is not None:
            return
        if self.is_fault(error):
            self._park(error)
            return
        # What was undone must not be kept: the retry begins with an empty journal (P7).
        self.failed_at = None if self.has_compensated else self._origins.place_of(error)
        failure = self.as_failure(error)
        is_undone = self._definition.kind == "saga" and bool(getattr(type(error), UNDONE, False))
        self._finish(Failed(at=self._event_at, failure=failure, origin=self.failed_at, compensated=is_undone))

    def _is_final(self, error: BaseException) -> bool:
        """Whether this error ends the run for good, so that what was done is to be undone."""
        if self.is_evicting or isinstance(error, Evicted | GeneratorExit):
            return False
        if asyncio._get_running_loop() is not self._loop:
            return False  # thrown by a `finally` of coroutines that the interpreter takes down, not by the workflow
        if self.is_fault(error):
            return False
        if continuation_in(error) is not None:
            return False
        is_cancelled = isinstance(error, asyncio.CancelledError) and self.is_cancel_requested
        return is_cancelled or self.attempt > self._definition.retries

    def _finish(self, end: WorkflowEnd) -> None:
        if not self.is_evicting:
            if self.open_handlers and isinstance(end, Completed | ContinuedAsNew) and not self.is_replaying:
                self._warn_of_handlers()
            self.end = end
            self._is_over = self._loop.stopped = True

    def _warn_of_handlers(self) -> None:
        opened = [one.open.values() for one in (self._signals, self.updates) if one is not None]
        names = ", ".join(sorted({name for names in opened for name in names}))
        _logger.warning(
            "run %s ends while handlers of signals or updates have not: %s. They are given up; "
            "`await wait_condition(all_handlers_finished)` before the end waits for them",
            self.identity.run_id, names,
        )  # fmt: skip

    def _park(self, fault: BaseException) -> None:
        if not self.is_evicting:
            self._fault = self._fault or fault
            self._is_over = self._loop.stopped = True

    @property
    def open_handlers(self) -> int:
        signals = 0 if self._signals is None else len(self._signals.open)
        return signals if self.updates is None else signals + len(self.updates.open)

    # ─ what updates ask (updates.UpdatedRun) ─────────────────────────────────

    @property
    def run_id(self) -> str:
        return self.identity.run_id

    def is_refused(self, msg: int) -> bool | None:
        """Return whether the journal refuses this update in the activation that is replayed; None if it is not a replay."""
        if not self.is_replaying:
            return None
        recorded = () if self._agreement is None else self._agreement.recorded
        return any(
            isinstance(one, UpdateAnswered) and one.msg == msg and one.how == "rejected" for one in recorded
        )

    def stop(self, fault: BaseException) -> None:
        """Park the run."""
        self._park(fault)

    def is_fault(self, error: BaseException) -> bool:
        """Return whether an error is a fault of the platform: not one of the author's code, nor an activity's."""
        return isinstance(error, PlatformFault) and self._origins.failure_of(error) is None

    def as_failure(self, error: BaseException) -> Failure:
        """Return an error of the author's code as the journal keeps it; an activity's own says whose, and after how many attempts."""
        failure = failures.record(error)
        whose = self._origins.failure_of(error)
        if whose is None:
            return failure
        return msgspec.structs.replace(
            failure, activity=whose.activity, run_id=whose.run_id, attempts=whose.attempts
        )

    def judge(self, data: bytes, what: str) -> None:
        """Raise if a payload is too large to be recorded. Not in a replay: what is in the journal was let pass."""
        if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
            self._limits.judge(len(data), what=what, run_id=self.identity.run_id)
