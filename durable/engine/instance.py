"""One run in memory, as its driver sees it: events in, commands out. Where loop, operations, signals and matching meet.

Theory. A run is a function of its journal. `activate` feeds one event, lets the workflow run until nothing is ready, and
returns what it asked for. `replay` does the same with a recorded event and, instead of numbering what was asked for,
matches it with the recorded commands. One event per activation: the order of events in the journal then decides everything.

Knows nothing of stores, workers, wall clocks or threads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, assert_never

import msgspec

from durable import failures
from durable.definitions import ActivityDefinition
from durable.engine.agreement import NOTHING, Agreement
from durable.engine.asking import Asking
from durable.engine.loop import DeterministicLoop, DetTask
from durable.engine.operations import Asked, Call, Ending, Operations
from durable.errors import InternalError, PlatformFault, UndecodableError
from durable.journal.asks import question_of
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    CancelRequested,
    Command,
    ContinuedAsNew,
    Event,
    Failed,
    Retried,
    SignalReceived,
    Started,
    TimerFired,
    UpdateReceived,
)
from durable.journal.matching import Mismatch, describe
from durable.journal.turns import Activated

UNSET: Final = msgspec.UNSET
_logger: Final = logging.getLogger("durable.engine")


class Instance(Asking):
    """The in-memory driver of one run; it also answers the run's own code."""

    __slots__ = ()

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

    def unread(self) -> list[SignalReceived | UpdateReceived]:
        """Return the signals and updates that were fed and that no code of the run has seen yet, in the order of their sending."""
        signals = [] if self._signals is None else self._signals.unread()
        updates = [] if self.updates is None else self.updates.unread()
        return sorted([*signals, *updates], key=lambda message: message.msg)

    def begun_updates(self) -> frozenset[int]:
        """Return the numbers of the updates that are being handled."""
        return frozenset() if self.updates is None else self.updates.begun()

    def activate(
        self,
        event: Event,
        *,
        turn: int,
        index: int,
        value: object = UNSET,
        reserve: Callable[[ActivityDefinition], bool] | None = None,
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
            self._signals = self._conditions = self.updates = self._main = self.unwind = self.outermost = None
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
        if self.end is not None and self.updates is not None and self._ending() is not Ending.TO_BE_RETRIED:
            self.updates.give_up(goes_on=isinstance(self.end, ContinuedAsNew))
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
            case UpdateReceived():
                self._updates_here().receive(event)
                if self._signals is not None:
                    self._signals.has_received()
            case ActivityFailed():
                self._fail_activity(event, turn, index)
            case CancelRequested():
                self._request_cancel(event)
            case Retried():
                self.attempt = self._operations.attempt = event.attempt
                if event.answered:
                    self._updates_here().owe(event.answered)
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
        if event.answered:
            self._updates_here().owe(event.answered)
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

    # ─ replay ────────────────────────────────────────────────────────────────

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
