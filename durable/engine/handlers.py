"""What reaches a run from outside its own calls: signals, buffered by name, and conditions, looked at when at rest.

A signal goes to the coroutine that has waited longest for its name, else into a buffer, first in, first out.
One that was handed to a coroutine which is cancelled before it could look at it goes back to the front. Values are decoded as
late as their type is known; bytes that do not fit are a fault of the platform, not an exception in the author's code.

A question to a person is a wait for a signal, too: one with a number. It takes the answer to that number, else any signal of its name.

A name may have a handler instead, which is then given every signal of it: each in a task of its own, and these take their first steps in the
order of arrival, before anything else that the same event sets going. What came before the handler is given to it when it comes. What a handler
raises is the run's error: whoever made this is told, and cancels the workflow.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from durable.engine.awaiting import outcome, refused
from durable.engine.loop import DeterministicLoop
from durable.engine.operations import Operations, Wait
from durable.engine.runtime import Evicted, SignalHandler
from durable.errors import DefinitionError, UndecodableError
from durable.journal.events import SignalReceived
from durable.payloads import ValueType


class _SignalWait(Wait):
    __slots__ = ("is_answered", "signal", "value_type")

    def __init__(self, name: str, src: str, future: asyncio.Future[Any], value_type: ValueType) -> None:
        super().__init__("signal", name, src, future)
        self.value_type = value_type
        self.signal: SignalReceived | None = None
        self.is_answered = False  # by a message to this very question


def _misfit(error: UndecodableError, signal: SignalReceived) -> UndecodableError:
    """Return the fault that a signal's value is not of the type which its reader takes."""
    return error.naming(f"the value of signal {signal.name!r} (message {signal.msg})")


class Signals:
    """The signals of one run. `fault` is told of bytes that do not fit: it stops the run. `failed` is told of what a handler raised."""

    def __init__(
        self,
        loop: DeterministicLoop,
        operations: Operations,
        *,
        fault: Callable[[BaseException], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._loop = loop
        self._operations = operations
        self._fault = fault
        self._failed = failed
        self._handlers: dict[str, SignalHandler] = {}
        self.open: dict[
            int, str
        ] = {}  # the calls of handlers that have not ended: number of the message -> name
        self._early = 0  # signals that are still to come before the first step
        self._gate: asyncio.Future[None] | None = None
        self._buffered: dict[str, deque[SignalReceived]] = {}
        self._waiting: dict[str, deque[_SignalWait]] = {}
        self._asked: dict[str, int] = {}
        self._answers: dict[tuple[str, int], SignalReceived] = {}
        self._unread: dict[int, SignalReceived] = {}  # by number: nobody's code has seen them

    def receive(self, signal: SignalReceived, ask: int = 0) -> None:
        """Hand a signal to who waits longest, or keep it; the answer to question `ask` to that one alone."""
        if ask:
            self._answer(signal, ask)
            return
        self._unread[signal.msg] = signal
        handler = self._handlers.get(signal.name)
        if handler is not None:
            self._handle(handler, signal)
        elif not self._hand_over(signal):
            self._buffered.setdefault(signal.name, deque()).append(signal)

    def unread(self) -> list[SignalReceived]:
        """Return the signals that nobody has seen, in the order of sending. Answers are none: they belong to their questions."""
        return [self._unread[msg] for msg in sorted(self._unread)]

    # ─ handlers ──

    def on_signal(self, name: str, handler: SignalHandler) -> None:
        """Give the signals of a name to a handler, in place of another one if there is any; first of all those that are kept."""
        if any(not wait.future.done() for wait in self._waiting.get(name, ())):
            raise DefinitionError(
                f"signal {name!r} is being waited for: it cannot be given to a handler as well"
            )
        self._handlers[name] = handler
        for signal in self._buffered.pop(name, ()):
            self._handle(handler, signal)

    def expect_early(self, count: int) -> None:
        """So many signals are to be taken in before `early` returns."""
        self._early = count

    def has_received(self) -> None:
        """One more signal has been taken in: the last of the early ones lets the workflow take its first step, after its handler."""
        if self._early == 1:
            self.expect_no_more()
        elif self._early:
            self._early -= 1

    def expect_no_more(self) -> None:
        """Let the workflow take its first step. Said of a life that begins with a part of another one's journal: the rest may never come."""
        self._early = 0
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)

    async def early(self) -> None:
        """Return once the early signals have been taken in."""
        if self._early:
            self._gate = asyncio.Future(loop=self._loop)
            await self._gate

    def _handle(self, handler: SignalHandler, signal: SignalReceived) -> None:
        try:
            value = handler.value_type.decode(memoryview(signal.value))
        except UndecodableError as error:
            self._fault(_misfit(error, signal))
            return
        self.open[signal.msg] = signal.name
        self._loop.create_own_task(self._handled(handler, signal, value), f"signal {signal.name}")

    async def _handled(self, handler: SignalHandler, signal: SignalReceived, value: Any) -> None:
        self._unread.pop(signal.msg, None)
        try:
            outcome = handler.call(value) if handler.takes_value else handler.call()
            if asyncio.iscoroutine(outcome):
                await outcome
        except Evicted:
            return
        except BaseException as error:
            if not self._loop.is_evicting:
                self._failed(error)
        finally:
            self.open.pop(signal.msg, None)

    # ─ waits ──

    def _refuse_beside_handler(self, name: str) -> None:
        if name in self._handlers:
            raise DefinitionError(
                f"signal {name!r} has a handler, which is given all of them: nobody can wait for it as well"
            )

    async def ask(self, name: str, value_type: ValueType, src: str, prompt: str) -> Any:
        """Wait for the answer to a question."""
        self._refuse_beside_handler(name)
        n = self._asked[name] = self._asked.get(name, 0) + 1
        answer = self._answers.pop((name, n), None)
        if answer is not None:
            return await self._decoded(value_type, answer)
        return await self.wait(name, value_type, src, prompt=prompt, n=n)

    async def wait(self, name: str, value_type: ValueType, src: str, *, prompt: str = "", n: int = 0) -> Any:
        loop = self._loop
        if loop.is_evicting:
            await refused(loop)
        self._refuse_beside_handler(name)
        buffered = self._buffered.get(name)
        if buffered:
            signal = buffered.popleft()
            value = await self._decoded(value_type, signal)
            self._unread.pop(signal.msg, None)
            return value
        wait = _SignalWait(name, src, asyncio.Future(loop=loop), value_type)
        wait.prompt, wait.n = prompt, n
        self._waiting.setdefault(name, deque()).append(wait)
        self._operations.open(wait)
        try:
            value = await outcome(wait, loop)
        except asyncio.CancelledError:
            self._give_up(wait)
            raise
        if wait.signal is not None:
            self._unread.pop(wait.signal.msg, None)
        return value

    async def _decoded(self, value_type: ValueType, signal: SignalReceived) -> Any:
        try:
            return value_type.decode(memoryview(signal.value))
        except UndecodableError as error:
            self._fault(_misfit(error, signal))
            return await asyncio.Future(loop=self._loop)  # the run is stopped: this never returns

    def _hand_over(self, signal: SignalReceived) -> bool:
        waiting = self._waiting.get(signal.name)
        while waiting:
            wait = waiting.popleft()
            if not wait.future.done():  # else: cancelled in this very activation
                self._resolve(wait, signal)
                return True
        return False

    def _answer(self, answer: SignalReceived, ask: int) -> None:
        """Hand an answer to its question, or keep it: the question may be about to be asked again (P7)."""
        name = answer.name
        for wait in self._waiting.get(name, ()):
            if wait.n == ask and not wait.future.done():
                self._waiting[name].remove(wait)
                wait.is_answered = True
                self._resolve(wait, answer)
                return
        self._answers[name, ask] = answer

    def _resolve(self, wait: _SignalWait, signal: SignalReceived) -> None:
        try:
            value = wait.value_type.decode(memoryview(signal.value))
        except UndecodableError as error:
            self._fault(_misfit(error, signal))
            return
        wait.signal = signal
        wait.future.set_result(value)
        self._operations.close_wait(wait)

    def _give_up(self, wait: _SignalWait) -> None:
        if wait.signal is None:
            self._operations.close_wait(wait)
            self._waiting[wait.name].remove(wait)
        elif wait.is_answered:
            return  # it was meant for nobody else
        elif not self._hand_over(wait.signal):
            self._buffered.setdefault(wait.name, deque()).appendleft(wait.signal)


class _ConditionWait(Wait):
    __slots__ = ("condition",)

    def __init__(
        self, condition: Callable[[], bool], name: str, src: str, future: asyncio.Future[Any]
    ) -> None:
        super().__init__("condition", name, src, future)
        self.condition = condition


class Conditions:
    """The conditions a run waits for, in order of creation."""

    def __init__(self, loop: DeterministicLoop, operations: Operations) -> None:
        self._loop = loop
        self._operations = operations
        self._waiting: list[_ConditionWait] = []

    async def wait(self, condition: Callable[[], bool], src: str, name: str = "") -> None:
        loop = self._loop
        if loop.is_evicting:
            await refused(loop)
        if condition():
            return
        wait = _ConditionWait(condition, name, src, asyncio.Future(loop=loop))
        self._waiting.append(wait)
        self._operations.open(wait)
        loop.at_rest = self.look
        try:
            await outcome(wait, loop)
        except asyncio.CancelledError:
            if wait in self._waiting:
                self._waiting.remove(wait)
            self._operations.close_wait(wait)
            raise

    def look(self) -> bool:
        """Look at every condition once; wake who waits for a true one. Return whether any was."""
        if not self._waiting:
            self._loop.at_rest = None
            return False
        still: list[_ConditionWait] = []
        for wait in self._waiting:
            if wait.future.done() or self._is_met(wait):
                continue
            still.append(wait)
        changed = len(still) != len(self._waiting)
        self._waiting = still
        return changed

    def _is_met(self, wait: _ConditionWait) -> bool:
        try:
            if not wait.condition():
                return False
        except BaseException as error:
            wait.error = error
        wait.future.set_result(None)
        self._operations.close_wait(wait)
        return True
