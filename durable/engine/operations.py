"""What a run has asked for: open operations, and those that the current activation opened or closed.

An operation is numbered when the activation is at rest: live by counting, in replay from the journal. One
that was opened and closed within one activation was never there: it is not journaled and takes no number.
Knows nothing of loops or of matching.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from durable.definitions import ActivityDefinition
from durable.engine.loop import Timer
from durable.engine.runtime import ActivityCall, OnEnd
from durable.journal.events import CloseOp, Command, Noted, OpenWait, Patched, ScheduleActivity, StartTimer
from durable.journal.matching import label


class Call(ActivityCall):
    """An activity call as the engine sees it. `future` is set when the outcome is there; `error` if it failed."""

    __slots__ = ("dead", "error", "future", "on_end")

    kind: Final = "activity"
    how: Final = ""

    def __init__(self, definition: ActivityDefinition, args: bytes, src: str) -> None:
        # Not super(): this is the hottest constructor of the engine.
        self.op = 0
        self.n = 0
        self.definition = definition
        self.args = args
        self.key = ""
        self.src = src
        self.closing = None
        self.dead = False
        self.error: BaseException | None = None
        self.future: asyncio.Future[Any]
        self.on_end: OnEnd | None = None

    @property
    def name(self) -> str:
        return self.definition.name

    @property
    def detail(self) -> bytes:
        return self.args


class Wait:
    """A wait for a signal or a condition. `future` is set to the value, or to None with `error`."""

    __slots__ = ("dead", "error", "future", "kind", "n", "name", "op", "prompt", "src")

    detail: Final = None
    how: Final = ""

    def __init__(self, kind: str, name: str, src: str, future: asyncio.Future[Any]) -> None:
        self.op = 0
        self.n = 0  # of questions to people: which one of this name
        self.prompt = ""
        self.kind = kind
        self.name = name
        self.src = src
        self.future = future
        self.dead = False
        self.error: BaseException | None = None


class Closing:
    """The end of an operation that an earlier activation opened."""

    __slots__ = ("how", "operation")

    kind: Final = "closed"

    def __init__(self, operation: Operation, how: str) -> None:
        self.operation = operation
        self.how = how

    @property
    def name(self) -> str:
        return label(self.operation.kind, self.operation.name)

    @property
    def detail(self) -> int:
        return self.operation.op

    @property
    def src(self) -> str:
        return self.operation.src


class Marker:
    """A patch that takes effect here, or a line of the story. It waits for nothing and takes no number."""

    __slots__ = ("command", "detail", "kind", "name", "src")

    how: Final = ""

    def __init__(self, command: Patched | Noted) -> None:
        self.command = command
        self.src = command.src
        self.detail: str | None
        if isinstance(command, Patched):
            self.kind, self.name, self.detail = "patch", command.id, None
        else:
            self.kind, self.name, self.detail = "note", command.name, command.status


Operation = Call | Timer | Wait
Asked = Call | Timer | Wait | Closing | Marker


class Operations:
    """The open operations of one run by number, and `asked`: what the current activation opened and closed."""

    def __init__(self, key_prefix: str) -> None:
        self.activities: dict[int, ActivityCall] = {}
        self.timers: dict[int, int] = {}
        self.waits: dict[int, OpenWait] = {}
        self._handles: dict[int, Timer] = {}
        self.pending: list[Asked] = []  # what the current activation has asked for so far
        self.open: Callable[[Call | Wait | Timer], None] = self.pending.append
        self.key_prefix = key_prefix
        self._last_op = 0
        self._counts: dict[str, int] = {}

    @property
    def handles(self) -> dict[int, Timer]:
        """The handles of the open timers."""
        return self._handles

    # ─ during an activation ──────────────────────────────────────────────────

    def close_call(self, call: Call, how: str) -> None:
        """The workflow no longer waits for the call, or ("wait") only for it to end. `how` must suit `CloseOp`."""
        if not call.op:
            call.dead = True
            return
        self.pending.append(Closing(call, how))
        if how == "wait":
            call.closing = "wait"
        else:
            self.activities.pop(call.op, None)

    def close_timer(self, timer: Timer) -> None:
        if timer.dead:
            return
        timer.dead = True
        if timer.op:
            self.pending.append(Closing(timer, ""))
            self.timers.pop(timer.op, None)
            self._handles.pop(timer.op, None)

    def close_wait(self, wait: Wait) -> None:
        if wait.dead:
            return
        wait.dead = True
        if wait.op:
            self.pending.append(Closing(wait, ""))
            self.waits.pop(wait.op, None)

    def mark(self, marker: Marker) -> None:
        """A patch or a note: told in any case, even if the run ends in this activation."""
        self.pending.append(marker)

    def take_call(self, op: int) -> Call | None:
        """Remove and return an open activity whose outcome is there; None if it is closed."""
        call = self.activities.pop(op, None)
        return call if type(call) is Call else None

    def take_timer(self, op: int) -> Timer | None:
        """Remove and return a timer that fires; None if it is closed."""
        self.timers.pop(op, None)
        timer = self._handles.pop(op, None)
        if timer is not None:
            timer.dead = True
        return timer

    # ─ at rest ───────────────────────────────────────────────────────────────

    def asked(self, *, ended: bool) -> list[Asked]:
        """Return what the activation asked for and take it off the books.

        A run that has ended opens nothing: nobody would wait for it. What it closed still counts, and so do markers.
        """
        asked = [one for one in self.pending if isinstance(one, Closing | Marker) or not (ended or one.dead)]
        self.pending.clear()
        return asked

    def number(self, reserve: Callable[[], bool] | None, ended: bool) -> list[Command]:
        """Number what the activation asked for, in order, and return it as commands."""
        commands: list[Command] = []
        for one in self.pending:
            if isinstance(one, Closing):
                commands.append(CloseOp(op=one.operation.op, how=one.how))
            elif isinstance(one, Marker):
                commands.append(one.command)
            elif ended or one.dead:
                continue
            elif isinstance(one, Call):
                commands.append(self.number_call(one, reserve is not None and reserve()))
            else:
                commands.append(self._number_other(one))
        self.pending.clear()
        return commands

    def number_call(self, call: Call, started: bool) -> ScheduleActivity:
        self._last_op = op = call.op = self._last_op + 1
        name = call.definition.name
        call.n = n = self._counts.get(name, 0) + 1
        self._counts[name] = n
        call.key = f"{self.key_prefix}{name}#{n}"
        self.activities[op] = call
        return ScheduleActivity(
            op=op,
            name=name,
            n=n,
            args=msgspec.Raw(call.args),
            src=call.src,
            started=started,
            kind=call.definition.kind,
        )

    def _number_other(self, one: Timer | Wait) -> Command:
        self._last_op = op = one.op = self._last_op + 1
        if isinstance(one, Timer):
            self.timers[op] = one.due
            self._handles[op] = one
            return StartTimer(op=op, due=one.due, duration=one.duration, src=one.src)
        wait = self.waits[op] = OpenWait(
            op=op, wait=one.kind, name=one.name, src=one.src, prompt=one.prompt, n=one.n
        )
        return wait

    def adopt(self, recorded: Sequence[Command], asked: Sequence[Asked | None]) -> None:
        """Number what the activation asked for as the journal did; `asked` is aligned with `recorded`."""
        for command, one in zip(recorded, asked, strict=True):
            if isinstance(command, Patched | Noted) or isinstance(one, Marker) or one is None:
                continue
            op = command.op
            if isinstance(one, Closing):
                if isinstance(one.operation, Call) and command.how == "wait":  # type: ignore[union-attr]  # a CloseOp
                    one.operation.closing = (
                        "wait"  # even if today's code does not wait: the outcome is still due
                    )
                    self.activities[op] = one.operation
                continue
            one.op = op
            if op > self._last_op:
                self._last_op = op
            if isinstance(command, ScheduleActivity) and isinstance(one, Call):
                name, n = command.name, command.n
                one.n = n
                one.key = f"{self.key_prefix}{name}#{n}"
                if n > self._counts.get(name, 0):
                    self._counts[name] = n
                self.activities[op] = one
            elif isinstance(command, StartTimer) and isinstance(one, Timer):
                self.timers[op] = one.due = command.due
                self._handles[op] = one
            elif isinstance(command, OpenWait):
                self.waits[op] = command

    def label(self, op: int) -> str:
        """Return the name for people of an operation that is open."""
        if op in self.activities:
            return self.activities[op].definition.name
        if op in self.timers:
            return "timer"
        wait = self.waits.get(op)
        return label(wait.wait, wait.name) if wait else f"operation {op}"

    def clear(self) -> None:
        self.activities.clear()
        self.timers.clear()
        self.waits.clear()
        self._handles.clear()
        self.pending.clear()
