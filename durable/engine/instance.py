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
from typing import Any, Final, NoReturn, assert_never

import msgspec

from durable import failures, seams
from durable.definitions import ActivityDefinition, WorkflowDefinition
from durable.engine import anyio_scopes, guards
from durable.engine.agreement import NOTHING, Agreement
from durable.engine.awaiting import StartedChild, perform
from durable.engine.handlers import Conditions, Signals
from durable.engine.loop import DeterministicLoop, DetTask
from durable.engine.operations import Asked, Call, ChildCall, Ending, Errand, Marker, Operations
from durable.engine.origins import Origins
from durable.engine.runtime import (
    UNDONE,
    ActivityCall,
    ChildRequest,
    Continuation,
    Evicted,
    OnEnd,
    RunIdentity,
    SignalHandler,
    Unwind,
    continuation_in,
)
from durable.engine.sources import find_source
from durable.errors import DefinitionError, InternalError, PlatformFault, UndecodableError
from durable.journal.asks import question_of
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    Cancelled,
    CancelRequested,
    Command,
    Completed,
    ContinuedAsNew,
    Event,
    Failed,
    Noted,
    OpenWait,
    Retried,
    SignalReceived,
    Started,
    TimerFired,
    WorkflowEnd,
)
from durable.journal.matching import Mismatch, describe
from durable.journal.reopening import COMPENSATION
from durable.journal.turns import Activated
from durable.limits import DEFAULT_LIMITS, Limits
from durable.payloads import ValueType

UNSET: Final = msgspec.UNSET
_logger: Final = logging.getLogger("durable.engine")


class Instance:
    """The in-memory driver of one run; it also answers the run's own code (`runtime.Runtime`)."""

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
        "is_replaying",
        "next_input",
        "open_sagas",
        "outermost",
        "queries",
        "started_at_us",
        "timers",
        "unwind",
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
        self.is_cancel_requested = False
        self.cancel_reason: str | None = None
        self._fault: BaseException | None = None
        self._handler_error: BaseException | None = None
        self._is_unwinding = False  # the implicit saga of the workflow is being undone
        self._agreement: Agreement | None = None  # made when it is first needed
        self._origins = Origins()

    # ─ what the driver asks ──────────────────────────────────────────────────

    @property
    def tasks(self) -> list[DetTask]:
        """The tasks of the run, in the order of their creation; some may be done."""
        return self._loop.tasks

    @property
    def operations(self) -> Operations:
        """What the run has asked for. For those who look, not for those who drive."""
        return self._operations

    @property
    def warnings(self) -> list[str]:
        """What today's code asks for otherwise than the journal holds, without harm."""
        return [] if self._agreement is None else self._agreement.warnings

    @property
    def fault(self) -> BaseException | None:
        """What has stopped the run for good, in this memory."""
        return self._fault

    @property
    def loop(self) -> DeterministicLoop:
        """The run's own loop. For those who look."""
        return self._loop

    def unread(self) -> list[SignalReceived]:
        """Return the signals that were fed and that no code of the run has seen yet, in the order of their sending."""
        return [] if self._signals is None else self._signals.unread()

    def activate(
        self,
        event: Event,
        *,
        turn: int,
        index: int,
        value: object = UNSET,
        reserve: Callable[[], bool] | None = None,
        outer: asyncio.AbstractEventLoop | None = None,
    ) -> list[Command]:
        """Feed one event, run to rest, and return the commands in order of issue, numbered.

        `turn` and `index` say where the event will stand. `value` is the decoded result of an activity, if the driver
        has it already. `reserve` is asked once per activity, in order, whether its first attempt starts with this turn.
        `outer` is what `enter_thread` has returned, for a driver of many. Raises `PlatformFault`.
        """
        self._feed(event, turn, index, value, outer)
        operations = self._operations
        asked = operations.pending
        if len(asked) == 1 and self.end is None:  # one call, nearly always
            call = asked[0]
            if call.__class__ is Call and not call.dead:
                asked.clear()
                self.events += 2
                return [operations.number_call(call, reserve)]
        commands = operations.number(reserve, self._ending())
        self.events += 1 + len(commands)
        return commands

    def _ending(self) -> Ending:
        if self.end is None:
            return Ending.NONE
        is_retried = isinstance(self.end, Failed) and self.attempt <= self._definition.retries
        return Ending.TO_BE_RETRIED if is_retried else Ending.FOR_GOOD

    def replay(self, activated: Activated) -> None:
        """Feed a recorded event, run to rest, and match what was asked for with the record (P25).

        Raises `NonDeterminismError` when they disagree, or another `PlatformFault`.
        """
        self.is_replaying = True
        agreement = self._agreement or self._agreement_here()
        agreement.recorded = activated.commands
        try:
            self._feed(activated.event, activated.turn, activated.index, UNSET)
            asked = self._operations.asked(self._ending())
            if asked or activated.commands:
                self._adopt(agreement, activated, asked)
            self.events += 1 + len(activated.commands)
        finally:
            self.is_replaying = False
            agreement.recorded = NOTHING

    def evict(self) -> None:
        """End every coroutine of the run, inside its own loop; nothing they ask for is heard. Never raises."""
        self.is_evicting = self.is_replaying = self._is_over = True
        try:
            is_clean = self._loop.evict()
        except Exception:
            _logger.exception("run %s: eviction failed", self.identity.run_id)
            is_clean = False
        self._operations.clear()
        self._origins.clear()
        if is_clean:
            # Instance, loop and tasks refer to one another. Let go of the others here, or a worker that drives thousands of
            # runs a second leaves all of them to the garbage collector.
            self._signals = self._conditions = self._main = self.unwind = self.outermost = None
            del self._loop

    # ─ events ────────────────────────────────────────────────────────────────

    def _feed(
        self,
        event: Event,
        turn: int,
        index: int,
        value: object,
        outer: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if self._is_over:
            self._refuse(event)
        self._event_at = event.at
        loop = self._loop
        try:
            if event.__class__ is ActivityCompleted:
                if event.at > loop.now_us:
                    loop.advance(event.at)
                call = self._operations.activities.pop(event.op, None)
                if call is None:
                    call = self._operations.children.pop(event.op, None)
                if isinstance(call, Call) and not call.future.done():
                    if call.closing is not None and call.on_end is None:
                        value = None  # nobody will look at it
                    elif value is UNSET:
                        try:
                            value = call.definition.result.decode(memoryview(event.result))
                        except UndecodableError as error:
                            raise error.naming(f"the recorded result of {call.definition.name!r}") from None
                    if call.on_end is not None:
                        call.on_end(value, None, event.attempts)
                    call.future.set_result(value)
            else:
                self._deliver(event, turn, index)
            if not loop.stopped:
                loop.drain(outer)
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
                ask = (
                    0 if event.id is None else question_of(event.id, self._operations.key_prefix, event.name)
                )
                signals = self._signals_here()
                signals.receive(event, ask)
                signals.has_received()
            case ActivityFailed():
                self._fail_activity(event, turn, index)
            case CancelRequested():
                self._request_cancel(event)
            case Retried():
                self.attempt = self._operations.attempt = event.attempt
                if self._signals is not None:
                    self._signals.expect_no_more()
            case ActivityCompleted():
                raise AssertionError("handled above")
            case _:
                assert_never(event)

    def _start(self, event: Started) -> None:
        self._started = event
        self.attempt = self._operations.attempt = event.attempt
        self.started_at_us = event.at
        self._loop.start_clock(event.at)
        args, kwargs = self._definition.arguments.decode(self._input)
        if self._definition.prepare is not None:
            args, kwargs = self._definition.prepare(self, args, kwargs)
        if event.early:
            self._signals_here().expect_early(event.early)
        self._main = self._loop.create_own_task(self._run(args, kwargs), "main")

    def _fail_activity(self, event: ActivityFailed, turn: int, index: int) -> None:
        call = self._operations.take_call(event.op)
        if call is None or call.future.done():
            return
        error = call.error = failures.rebuild(event.failure)
        self._origins.note(error, (turn, index), event.failure)
        if call.on_end is not None:
            call.on_end(None, error, event.attempts)
        call.future.set_result(None)  # `perform` raises it: a future refuses StopIteration

    def _request_cancel(self, event: CancelRequested) -> None:
        self.is_cancel_requested = True
        self.cancel_reason = event.reason
        assert self._main is not None, "cancelled before it was started"
        self._main.cancel()

    # ─ the workflow ──────────────────────────────────────────────────────────

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        by_handler: BaseException | None = None
        try:
            try:
                result = await self._definition.fn(*args, **kwargs)
                if self._handler_error is not None:
                    raise self._handler_error
                data = self._definition.result.encode_result(result)
                if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
                    self._judge(data, "the result")
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

    def _fail_by_handler(self, error: BaseException) -> None:
        """What a handler raised is the run's error: the workflow is cancelled where it waits, cleans up, and ends with it."""
        if isinstance(error, PlatformFault) and self._origins.failure_of(error) is None:
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
        whose = self._origins.failure_of(error)
        if isinstance(error, PlatformFault) and whose is None:
            self._park(error)
            return
        # What was undone must not be kept: the retry begins with an empty journal (P7).
        self.failed_at = None if self.has_compensated else self._origins.place_of(error)
        failure = failures.record(error)
        if whose is not None:  # an activity's own: whose, and after how many attempts
            failure = msgspec.structs.replace(
                failure, activity=whose.activity, run_id=whose.run_id, attempts=whose.attempts
            )
        is_undone = self._definition.kind == "saga" and bool(getattr(type(error), UNDONE, False))
        self._finish(Failed(at=self._event_at, failure=failure, origin=self.failed_at, compensated=is_undone))

    def _is_final(self, error: BaseException) -> bool:
        """Whether this error ends the run for good, so that what was done is to be undone."""
        if self.is_evicting or isinstance(error, Evicted | GeneratorExit):
            return False
        if asyncio._get_running_loop() is not self._loop:
            return False  # thrown by a `finally` of coroutines that the interpreter takes down, not by the workflow
        if isinstance(error, PlatformFault) and self._origins.failure_of(error) is None:
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
        assert self._signals is not None, "handlers without signals"
        names = ", ".join(sorted(set(self._signals.open.values())))
        _logger.warning(
            "run %s ends while handlers of signals have not: %s. They are given up; "
            "`await wait_condition(all_handlers_finished)` before the end waits for them",
            self.identity.run_id, names,
        )  # fmt: skip

    def _park(self, fault: BaseException) -> None:
        if not self.is_evicting:
            self._fault = self._fault or fault
            self._is_over = self._loop.stopped = True

    # ─ replay ────────────────────────────────────────────────────────────────

    def _agreement_here(self) -> Agreement:
        if self._agreement is None:
            self._agreement = Agreement(self._operations)
        return self._agreement

    def _adopt(self, agreement: Agreement, activated: Activated, asked: list[Asked]) -> None:
        try:
            agreement.adopt(activated, asked)
        except Mismatch as mismatch:
            fault = self._non_determinism(mismatch, activated.event, activated.number, asked)
            self._park(fault)
            raise fault from None

    def _non_determinism(
        self,
        mismatch: Mismatch,
        event: Event,
        number: int,
        asked: Sequence[Asked] = (),
        *,
        ended: bool = False,
    ) -> PlatformFault:
        return self._agreement_here().fault(
            mismatch, event, number, asked, run_id=self.identity.run_id, started=self._started, ended=ended
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
            self.has_compensated = True
        source = find_source(sys._getframe(2)) or self._loop.task_source()
        data = definition.arguments.encode(args, kwargs)
        if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
            self._judge(data, f"the arguments of activity {definition.name!r}")
        call = Call(definition, data, source)
        call.on_end = on_end
        coroutine = perform(call, self._loop, self._operations)
        coroutine.__qualname__ = definition.name  # type: ignore[attr-defined]  # "coroutine ... was never awaited"
        return coroutine

    def call_child(
        self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        return perform(self._child(child, args, kwargs), self._loop, self._operations)

    def start_child(self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StartedChild:
        return StartedChild(self._child(child, args, kwargs), self._loop, self._operations)

    def _child(self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChildCall:
        source = find_source(sys._getframe(2)) or self._loop.task_source()
        workflow = child.workflow
        data = workflow.arguments.encode(args, kwargs)
        if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
            self._judge(data, f"the input of workflow {workflow.name!r}")
        if not self.is_replaying:
            workflow.arguments.check_types(data)
        return ChildCall(
            child.definition,
            data,
            source,
            workflow=workflow,
            run_id=child.run_id,
            task_queue=workflow.task_queue if child.task_queue is None else child.task_queue,
            on_parent_close=child.on_parent_close,
        )

    def _judge(self, data: bytes, what: str) -> None:
        """Refuse or warn of a large payload. Not in a replay: what is in the journal was let pass."""
        self._limits.judge(len(data), what=what, run_id=self.identity.run_id)

    def patched(self, id: str) -> bool:
        """Return whether the run takes the new side of a change; the first answer is journaled, and stays."""
        answer = self._agreement_here().answer(id)
        if answer is None:
            answer = self._mark(id, is_deprecated=False)
        return answer

    def deprecate_patch(self, id: str) -> None:
        """Declare that no run is left on the old side; its marker may be there or not."""
        agreement = self._agreement_here()
        agreement.deprecate(id)
        if agreement.answer(id) is None:
            self._mark(id, is_deprecated=True)

    def _mark(self, id: str, *, is_deprecated: bool) -> bool:
        if self.is_evicting:
            return False
        src = self._loop.source(sys._getframe(2))
        return self._agreement_here().mark(
            id, src, is_replaying=self.is_replaying, is_deprecated=is_deprecated
        )

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """End this generation, and open the next with these arguments, which are checked like a start's."""
        definition = self._definition
        if self.is_evicting:
            raise Evicted
        if definition.kind != "workflow":
            raise DefinitionError(f"a {definition.kind} cannot continue as new: {definition.name!r} is one")
        if self.unwind is not None or self.open_sagas:
            raise DefinitionError(
                f"run {self.identity.run_id!r} cannot continue as new in the middle of a saga: nobody could undo its steps any "
                "more; do them in a block of saga() that ends before"
            )
        data = definition.arguments.encode(args, kwargs)
        definition.arguments.check_types(data)
        if len(data) > self._limits.payload_bytes_warn and not self.is_replaying:
            self._judge(data, "the input of the next generation")
        raise Continuation(data)

    def note(self, name: str, status: str, kind: str) -> None:
        """Add a line to the run's story."""
        if not self.is_evicting:
            src = self._loop.source(sys._getframe(1))
            self._operations.mark(Marker(Noted(name=name, status=status, kind=kind, src=src)))

    async def wait_signal(self, name: str, value_type: ValueType, prompt: str | None = None) -> Any:
        source = self._loop.source(sys._getframe(1))
        if prompt is not None:
            return await self._signals_here().ask(name, value_type, source, prompt)
        return await self._signals_here().wait(name, value_type, source)

    def on_query(self, name: str, call: Callable[..., Any]) -> None:
        if self.queries is None:
            self.queries = {}
        self.queries[name] = call

    def on_signal(self, name: str, handler: SignalHandler) -> None:
        if not self.is_evicting:
            self._signals_here().on_signal(name, handler)

    async def early_signals(self) -> None:
        if self._signals is not None:
            await self._signals.early()

    @property
    def open_handlers(self) -> int:
        return 0 if self._signals is None else len(self._signals.open)

    def _signals_here(self) -> Signals:
        if self._signals is None:
            self._signals = Signals(
                self._loop, self._operations, fault=self._park, failed=self._fail_by_handler
            )
        return self._signals

    async def wait_condition(self, condition: Callable[[], bool]) -> None:
        if self._conditions is None:
            self._conditions = Conditions(self._loop, self._operations)
        await self._conditions.wait(condition, self._loop.source(sys._getframe(1)))
