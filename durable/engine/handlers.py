"""What reaches a run from outside its own calls: signals, buffered by name, and conditions, looked at when at rest.

A signal goes to the coroutine that has waited longest for its name, else into a buffer, first in, first out.
One that was handed to a coroutine which is cancelled before it could look at it goes back to the front. Values are decoded as
late as their type is known; bytes that do not fit are a fault of the platform, not an exception in the author's code.

A question to a person is a wait for a signal, too: one with a number. It takes the answer to that number, else any signal of its name.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from durable.engine.awaiting import outcome, refused
from durable.engine.loop import DeterministicLoop
from durable.engine.operations import Operations, Wait
from durable.errors import UndecodableError
from durable.payloads import ValueType


class _SignalWait(Wait):
    __slots__ = ("is_answered", "raw", "value_type")

    def __init__(self, name: str, src: str, future: asyncio.Future[Any], value_type: ValueType) -> None:
        super().__init__("signal", name, src, future)
        self.value_type = value_type
        self.raw: msgspec.Raw | None = None
        self.is_answered = False  # by a message to this very question


class Signals:
    """The signals of one run. `fault` is told of bytes that do not fit; it stops the run and does not return."""

    def __init__(
        self, loop: DeterministicLoop, operations: Operations, fault: Callable[[BaseException], None]
    ) -> None:
        self._loop = loop
        self._operations = operations
        self._fault = fault
        self._buffered: dict[str, deque[msgspec.Raw]] = {}
        self._waiting: dict[str, deque[_SignalWait]] = {}
        self._asked: dict[str, int] = {}
        self._answers: dict[tuple[str, int], msgspec.Raw] = {}

    def receive(self, name: str, raw: msgspec.Raw, ask: int = 0) -> None:
        """Hand a signal to who waits longest, or keep it; the answer to question `ask` to that one alone."""
        if ask:
            self._answer(name, raw, ask)
        elif not self._hand_over(name, raw):
            self._buffered.setdefault(name, deque()).append(raw)

    async def ask(self, name: str, value_type: ValueType, src: str, prompt: str) -> Any:
        """Wait for the answer to a question."""
        n = self._asked[name] = self._asked.get(name, 0) + 1
        answer = self._answers.pop((name, n), None)
        if answer is not None:
            return await self._decoded(value_type, answer)
        return await self.wait(name, value_type, src, prompt=prompt, n=n)

    async def wait(self, name: str, value_type: ValueType, src: str, *, prompt: str = "", n: int = 0) -> Any:
        loop = self._loop
        if loop.is_evicting:
            await refused(loop)
        buffered = self._buffered.get(name)
        if buffered:
            return await self._decoded(value_type, buffered.popleft())
        wait = _SignalWait(name, src, asyncio.Future(loop=loop), value_type)
        wait.prompt, wait.n = prompt, n
        self._waiting.setdefault(name, deque()).append(wait)
        self._operations.open(wait)
        try:
            return await outcome(wait, loop)
        except asyncio.CancelledError:
            self._give_up(wait)
            raise

    async def _decoded(self, value_type: ValueType, raw: msgspec.Raw) -> Any:
        try:
            return value_type.decode(memoryview(raw))
        except UndecodableError as error:
            self._fault(error)
            return await asyncio.Future(loop=self._loop)  # the run is stopped: this never returns

    def _hand_over(self, name: str, raw: msgspec.Raw) -> bool:
        waiting = self._waiting.get(name)
        while waiting:
            wait = waiting.popleft()
            if not wait.future.done():  # else: cancelled in this very activation
                self._resolve(wait, raw)
                return True
        return False

    def _answer(self, name: str, raw: msgspec.Raw, ask: int) -> None:
        """Hand an answer to its question, or keep it: the question may be about to be asked again (P7)."""
        for wait in self._waiting.get(name, ()):
            if wait.n == ask and not wait.future.done():
                self._waiting[name].remove(wait)
                wait.is_answered = True
                self._resolve(wait, raw)
                return
        self._answers[name, ask] = raw

    def _resolve(self, wait: _SignalWait, raw: msgspec.Raw) -> None:
        try:
            value = wait.value_type.decode(memoryview(raw))
        except UndecodableError as error:
            self._fault(error)
            return
        wait.raw = raw
        wait.future.set_result(value)
        self._operations.close_wait(wait)

    def _give_up(self, wait: _SignalWait) -> None:
        if wait.raw is None:
            self._operations.close_wait(wait)
            self._waiting[wait.name].remove(wait)
        elif wait.is_answered:
            return  # it was meant for nobody else
        elif not self._hand_over(wait.name, wait.raw):
            self._buffered.setdefault(wait.name, deque()).appendleft(wait.raw)


class _ConditionWait(Wait):
    __slots__ = ("condition",)

    def __init__(self, condition: Callable[[], bool], src: str, future: asyncio.Future[Any]) -> None:
        super().__init__("condition", "", src, future)
        self.condition = condition


class Conditions:
    """The conditions a run waits for, in order of creation."""

    def __init__(self, loop: DeterministicLoop, operations: Operations) -> None:
        self._loop = loop
        self._operations = operations
        self._waiting: list[_ConditionWait] = []

    async def wait(self, condition: Callable[[], bool], src: str) -> None:
        loop = self._loop
        if loop.is_evicting:
            await refused(loop)
        if condition():
            return
        wait = _ConditionWait(condition, src, asyncio.Future(loop=loop))
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
