"""One run in memory: events in, commands out. Where loop, operations, signals and matching meet.

Theory. A run is a function of its journal. `activate` feeds one event, lets the workflow run until nothing is ready, and
returns what it asked for. `replay` does the same with a recorded event and, instead of numbering what was asked for,
matches it with the recorded commands. One event per activation: the order of events in the journal then decides everything.

Faults. What the author's code raises ends the run as `Failed`. What says that code or bytes do not suit the journal
(`PlatformFault`) is raised from `activate` and `replay`: the instance is unusable then, but can still be evicted. The
first one counts, even if the author's code swallows it.

Knows nothing of stores, workers, wall clocks or threads.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Coroutine, Sequence
from random import Random as RandomSource
from typing import Any, Final, assert_never

import msgspec

from durable import failures, seams
from durable.definitions import ActivityDefinition, WorkflowDefinition
from durable.engine import anyio_scopes, guards
from durable.engine.awaiting import perform
from durable.engine.handlers import Conditions, Signals
from durable.engine.loop import DeterministicLoop, DetTask
from durable.engine.operations import Asked, Call, Closing, Marker, Operations
from durable.engine.runtime import (
    UNDONE,
    WRAPS,
    ActivityCall,
    Evicted,
    OnEnd,
    RunIdentity,
    Unwind,
)
from durable.engine.sources import find_source, source_text
from durable.errors import InternalError, PlatformFault, UndecodableError
from durable.failures import Failure
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    Cancelled,
    CancelRequested,
    Command,
    Completed,
    Event,
    Failed,
    Noted,
    OpenWait,
    Patched,
    Retried,
    SignalReceived,
    Started,
    TimerFired,
    WorkflowEnd,
)
from durable.journal.matching import Mismatch, describe, label, match, non_determinism
from durable.journal.reopening import COMPENSATION
from durable.journal.turns import Activated
from durable.limits import DEFAULT_LIMITS, Limits
from durable.payloads import ValueType

UNSET: Final = msgspec.UNSET
_logger: Final = logging.getLogger("durable.engine")


class Instance:
    """The in-memory driver of one run; it also answers the run's own code (`runtime.Runtime`)."""

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
        guards.watch(definition.fn)
        self.identity = identity
        self.attempt = 1
        self.started_at_us = 0
        self.is_replaying = False
        self.is_evicting = False
        self.end: WorkflowEnd | None = None
        self.failed_at: tuple[int, int] | None = None
        self.events = 0
        self.warnings: list[str] = []
        self._limits = limits
        self.unwind: Unwind | None = None
        self.outermost: object | None = None
        self._has_compensated = False
        self._definition = definition
        self._input = input
        self._operations = operations = Operations(f"{identity.run_id}@{identity.epoch}/")
        # The open activities by operation; one cancelled with "wait" stays, with `.closing`, until its outcome.
        self.activities: dict[int, ActivityCall] = operations.activities
        # The open timers: operation -> due, in microseconds UTC.
        self.timers: dict[int, int] = operations.timers
        # The open waits for signals and conditions, by operation.
        self.waits: dict[int, OpenWait] = operations.waits
        self._loop = loop = DeterministicLoop(  # type: ignore[abstract]  # it refuses those by a table
            self, operations, salt_id=identity.salt_id or identity.run_id, callbacks_max=callbacks_max
        )
        loop.on_exit = self._fail
        loop.on_guard = self._park
        self._signals: Signals | None = None  # both made when they are first needed
        self._conditions: Conditions | None = None
        self._started: Started | None = None
        self._random: RandomSource | None = None
        self._main: asyncio.Task[None] | None = None
        self._event_at = 0
        self._is_over = False  # ended, failed or evicted: no further event may be fed
        self._is_cancel_requested = False
        self._cancel_reason: str | None = None
        self._fault: BaseException | None = None
        self._patches: dict[str, bool] = {}  # what `patched` has answered: it never changes within a run
        self._deprecated: set[str] = set()
        self._replayed: Sequence[Command] = ()  # the commands of the activation that is replayed
        # Rebuilt failures by identity, kept alive so that an id means one object: where each came from (P7).
        self._failures: dict[int, tuple[BaseException, int, int, Failure]] = {}

    # ─ what the driver asks ──────────────────────────────────────────────────

    @property
    def tasks(self) -> list[DetTask]:
        """The tasks of the run, in the order of their creation; some may be done."""
        return self._loop.tasks

    @property
    def operations(self) -> Operations:
        """What the run has asked for. For those who look, not for those who drive."""
        return self._operations

    def activate(
        self,
        event: Event,
        *,
        turn: int,
        index: int,
        value: object = UNSET,
        reserve: Callable[[], bool] | None = None,
    ) -> list[Command]:
        """Feed one event, run to rest, and return the commands in order of issue, numbered.

        `turn` and `index` say where the event will stand. `value` is the decoded result of an activity, if the driver
        has it already. `reserve` is asked once per activity, in order, whether its first attempt starts with this turn.
        Raises `PlatformFault`.
        """
        self._feed(event, turn, index, value)
        operations = self._operations
        asked = operations.pending
        if len(asked) == 1 and self.end is None:  # one call, nearly always
            call = asked[0]
            if call.__class__ is Call and not call.dead:
                asked.clear()
                self.events += 2
                return [operations.number_call(call, reserve is not None and reserve())]
        commands = operations.number(reserve, self.end is not None)
        self.events += 1 + len(commands)
        return commands

    def replay(self, activated: Activated) -> None:
        """Feed a recorded event, run to rest, and match what was asked for with the record (P25).

        Raises `NonDeterminismError` when they disagree, or another `PlatformFault`.
        """
        self.is_replaying = True
        self._replayed = activated.commands
        try:
            self._feed(activated.event, activated.turn, activated.index, UNSET)
            asked = self._operations.asked(ended=self.end is not None)
            if asked or activated.commands:
                self._adopt(activated, asked)
            self.events += 1 + len(activated.commands)
        finally:
            self.is_replaying = False
            self._replayed = ()

    def evict(self) -> None:
        """End every coroutine of the run, inside its own loop; nothing they ask for is heard. Never raises."""
        self.is_evicting = self.is_replaying = self._is_over = True
        try:
            is_clean = self._loop.evict()
        except Exception:
            _logger.exception("run %s: eviction failed", self.identity.run_id)
            is_clean = False
        self._operations.clear()
        self._failures.clear()
        if is_clean:
            # Instance, loop and tasks refer to one another. Let go of the others here, or a worker that drives thousands of
            # runs a second leaves all of them to the garbage collector.
            self._signals = self._conditions = self._main = self.unwind = self.outermost = None
            del self._loop

    # ─ events ────────────────────────────────────────────────────────────────

    def _feed(self, event: Event, turn: int, index: int, value: object) -> None:
        if self._is_over:
            self._refuse(event)
        self._event_at = event.at
        loop = self._loop
        try:
            if event.__class__ is ActivityCompleted:
                if event.at > loop.now_us:
                    loop.advance(event.at)
                call = self._operations.activities.pop(event.op, None)
                if call.__class__ is Call and not call.future.done():
                    if call.closing is not None and call.on_end is None:
                        value = None  # nobody will look at it
                    elif value is UNSET:
                        value = call.definition.result.decode(memoryview(event.result))
                    if call.on_end is not None:
                        call.on_end(value, None)
                    call.future.set_result(value)
            else:
                self._deliver(event, turn, index)
            if not loop.stopped:
                loop.drain()
        except PlatformFault as fault:
            self._park(fault)
        if self._fault is not None:
            if isinstance(self._fault, UndecodableError) and self._fault.run_id is None:
                self._fault.run_id = self.identity.run_id
            raise self._fault

    def _refuse(self, event: Event) -> None:
        run = self.identity.run_id
        if self.end is None or not self.is_replaying:
            raise InternalError(
                f"run {run!r} was fed {describe(event)} after it had ended, failed or been evicted"
            )
        raise self._non_determinism(Mismatch(None, None), event, self.events + 1, ended=True)

    def _deliver(self, event: Event, turn: int, index: int) -> None:
        match event:
            case TimerFired():
                timer = self._operations.take_timer(event.op)
                if timer is not None:
                    self._loop.fire(timer)
                return
            case Started():
                self._start(event)
                return
        self._loop.advance(event.at)
        match event:
            case SignalReceived():
                self._signals_here().receive(event.name, event.value)
            case ActivityFailed():
                self._fail_activity(event, turn, index)
            case CancelRequested():
                self._request_cancel(event)
            case Retried():
                self.attempt = event.attempt
            case ActivityCompleted():
                raise AssertionError("handled above")
            case _:
                assert_never(event)

    def _start(self, event: Started) -> None:
        self._started = event
        self.attempt = event.attempt
        self.started_at_us = event.at
        self._loop.start_clock(event.at)
        args, kwargs = self._definition.arguments.decode(self._input)
        if self._definition.prepare is not None:
            args, kwargs = self._definition.prepare(self, args, kwargs)
        self._main = self._loop.create_main_task(self._run(args, kwargs))

    def _fail_activity(self, event: ActivityFailed, turn: int, index: int) -> None:
        call = self._operations.take_call(event.op)
        if call is None or call.future.done():
            return
        error = call.error = failures.rebuild(event.failure)
        self._failures[id(error)] = (error, turn, index, event.failure)
        if call.on_end is not None:
            call.on_end(None, error)
        call.future.set_result(None)  # `perform` raises it: a future refuses StopIteration

    def _request_cancel(self, event: CancelRequested) -> None:
        self._is_cancel_requested = True
        self._cancel_reason = event.reason
        assert self._main is not None, "cancelled before it was started"
        self._main.cancel()

    # ─ the workflow ──────────────────────────────────────────────────────────

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        try:
            try:
                result = await self._definition.fn(*args, **kwargs)
                data = self._definition.result.encode(result)
                if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
                    self._judge(data, "the result")
            except BaseException as error:
                if self.unwind is not None and self._is_final(error):
                    await self.unwind(error)
                raise
        except asyncio.CancelledError as error:
            if self.is_evicting:
                return
            if self._is_cancel_requested:
                self._finish(Cancelled(at=self._event_at, reason=self._cancel_reason))
            else:
                self._fail(error)
        except Evicted:
            return
        except BaseException as error:
            if not self.is_evicting:
                self._fail(error)
        else:
            self._finish(Completed(at=self._event_at, result=msgspec.Raw(data)))

    def _fail(self, error: BaseException) -> None:
        if self.is_evicting or self.end is not None:
            return
        if isinstance(error, PlatformFault) and id(error) not in self._failures:
            self._park(error)
            return
        # What was undone must not be kept: the retry begins with an empty journal (P7).
        self.failed_at = None if self._has_compensated else self._origin(error)
        failure = failures.record(error)
        known = self._failures.get(id(error))
        if known is not None:  # an activity's own: whose, and after how many attempts
            whose = known[3]
            failure = msgspec.structs.replace(
                failure, activity=whose.activity, run_id=whose.run_id, attempts=whose.attempts
            )
        is_undone = self._definition.kind == "saga" and bool(getattr(type(error), UNDONE, False))
        self._finish(Failed(at=self._event_at, failure=failure, origin=self.failed_at, compensated=is_undone))

    def _is_final(self, error: BaseException) -> bool:
        """Whether this error ends the run for good, so that what was done is to be undone."""
        if self.is_evicting or isinstance(error, Evicted | GeneratorExit):
            return False
        if isinstance(error, PlatformFault) and id(error) not in self._failures:
            return False
        is_cancelled = isinstance(error, asyncio.CancelledError) and self._is_cancel_requested
        return is_cancelled or self.attempt > self._definition.retries

    def _origin(self, error: BaseException) -> tuple[int, int] | None:
        """Return the event whose failure this is; of a group, the earliest, if every leaf is an activity's."""
        if isinstance(error, BaseExceptionGroup) and id(error) not in self._failures:
            origins = [self._origin(leaf) for leaf in error.exceptions]
            known = [origin for origin in origins if origin is not None]
            return min(known) if len(known) == len(origins) else None
        if getattr(type(error), WRAPS, False) and error.__cause__ is not None:
            return self._origin(error.__cause__)
        recorded = self._failures.get(id(error))
        return None if recorded is None else (recorded[1], recorded[2])

    def _finish(self, end: WorkflowEnd) -> None:
        if not self.is_evicting:
            self.end = end
            self._is_over = self._loop.stopped = True

    def _park(self, fault: BaseException) -> None:
        if not self.is_evicting:
            self._fault = self._fault or fault
            self._is_over = self._loop.stopped = True

    # ─ replay ────────────────────────────────────────────────────────────────

    def _adopt(self, activated: Activated, asked: list[Asked]) -> None:
        try:
            aligned, changed = match(activated.commands, asked, self._deprecated)
        except Mismatch as mismatch:
            fault = self._non_determinism(mismatch, activated.event, activated.number, asked)
            self._park(fault)
            raise fault from None
        for command, operation in changed:
            self._warn(command, operation, activated)
        self._operations.adopt(activated.commands, aligned)

    def _warn(self, command: Command, operation: Asked, activated: Activated) -> None:
        what = label(operation.kind, operation.name)
        differs = "another duration" if operation.kind == "timer" else "other arguments"
        recorded = getattr(command, "src", "")
        self.warnings.append(
            f"event {activated.number}: {what} ({operation.src}) asks with {differs} than the journal holds "
            f"({recorded}); the journal's are used"
        )
        if isinstance(operation, Call):
            operation.args = bytes(command.args)  # type: ignore[union-attr]  # a call matches a ScheduleActivity

    def _non_determinism(
        self,
        mismatch: Mismatch,
        event: Event,
        number: int,
        asked: Sequence[Asked] = (),
        *,
        ended: bool = False,
    ) -> PlatformFault:
        closed = {one.operation.op: one.name for one in asked if isinstance(one, Closing)}
        return non_determinism(
            mismatch,
            run_id=self.identity.run_id,
            number=number,
            event=event,
            started=self._started,
            closed=lambda op: closed.get(op) or self._operations.label(op),
            source_text=source_text,
            ended=ended,
        )

    # ─ what the author's code asks (runtime.Runtime) ─────────────────────────

    def now_us(self) -> int:
        return self._loop.now_us

    @property
    def random(self) -> RandomSource:
        if self._random is None:
            assert self._started is not None, "asked before it was started"
            self._random = seams.seeded(self._started.seed)
        return self._random

    def call_activity(
        self,
        definition: ActivityDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_end: OnEnd | None = None,
    ) -> Coroutine[Any, Any, Any]:
        if definition.kind == COMPENSATION:
            self._has_compensated = True
        source = find_source(sys._getframe(2)) or self._loop.task_source()
        data = definition.arguments.encode(args, kwargs)
        if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
            self._judge(data, f"the arguments of activity {definition.name!r}")
        call = Call(definition, data, source)
        call.on_end = on_end
        coroutine = perform(call, self._loop, self._operations)
        coroutine.__qualname__ = definition.name  # type: ignore[attr-defined]  # "coroutine ... was never awaited"
        return coroutine

    def _judge(self, data: bytes, what: str) -> None:
        """Refuse or warn of a large payload. Not in a replay: what is in the journal was let pass."""
        self._limits.judge(len(data), what=what, run_id=self.identity.run_id)

    def patched(self, id: str) -> bool:
        """Return whether the run takes the new side of a change; the first answer is journaled, and stays."""
        answer = self._patches.get(id)
        if answer is None:
            answer = self._mark(id, is_deprecated=False)
        return answer

    def deprecate_patch(self, id: str) -> None:
        """Declare that no run is left on the old side; its marker may be there or not."""
        self._deprecated.add(id)
        if id not in self._patches:
            self._mark(id, is_deprecated=True)

    def _mark(self, id: str, *, is_deprecated: bool) -> bool:
        if self.is_evicting:
            return False
        is_new = not self.is_replaying or any(
            isinstance(command, Patched) and command.id == id for command in self._replayed
        )
        self._patches[id] = is_new
        if is_new:
            src = self._loop.source(sys._getframe(2))
            self._operations.mark(Marker(Patched(id=id, src=src, deprecated=is_deprecated)))
        return is_new

    def note(self, name: str, status: str, kind: str) -> None:
        """Add a line to the run's story."""
        if not self.is_evicting:
            src = self._loop.source(sys._getframe(1))
            self._operations.mark(Marker(Noted(name=name, status=status, kind=kind, src=src)))

    async def wait_signal(self, name: str, value_type: ValueType) -> Any:
        return await self._signals_here().wait(name, value_type, self._loop.source(sys._getframe(1)))

    def _signals_here(self) -> Signals:
        if self._signals is None:
            self._signals = Signals(self._loop, self._operations, self._park)
        return self._signals

    async def wait_condition(self, condition: Callable[[], bool]) -> None:
        if self._conditions is None:
            self._conditions = Conditions(self._loop, self._operations)
        await self._conditions.wait(condition, self._loop.source(sys._getframe(1)))
