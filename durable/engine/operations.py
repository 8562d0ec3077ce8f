"""What a run has asked for: open operations, and those that the current activation opened or closed.

An operation is numbered when the activation is at rest: live by counting, in replay from the journal. One
that was opened and closed within one activation was never there: it is not journaled and takes no number.
Knows nothing of loops or of matching.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any, ClassVar, Final

import msgspec

from durable.definitions import ActivityDefinition, OnParentClose, WorkflowDefinition
from durable.engine.loop import Timer
from durable.engine.runtime import ActivityCall, OnEnd
from durable.journal.events import (
    CloseOp,
    Command,
    Noted,
    OpenWait,
    Patched,
    ScheduleActivity,
    StartChild,
    StartTimer,
    UpdateAnswered,
)
from durable.journal.matching import answer_of, label, update_name
from durable.limits import NAME_LENGTH_MAX


class Call(ActivityCall):
    """An activity call as the engine sees it. `future` is set when the outcome is there; `error` if it failed."""

    __slots__ = ("dead", "error", "future", "on_end")

    kind: ClassVar[str] = "activity"
    how: Final = ""

    def __init__(self, definition: ActivityDefinition, args: bytes, src: str) -> None:
        # Not super(): this is the hottest constructor of the engine.
        self.op = 0
        self.n = 0
        self.definition = definition
        self.args = args
        self.key_prefix = ""
        self.src = src
        self.queue = ""
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


class ChildCall(Call):
    """The call of another workflow, which makes a run of its own, `key`. What it is called with is in `args`, as for an activity."""

    __slots__ = ("child_id", "on_parent_close", "run_id", "task_queue", "workflow")

    kind: ClassVar[str] = "child"

    def __init__(
        self,
        definition: ActivityDefinition,
        args: bytes,
        src: str,
        *,
        workflow: WorkflowDefinition,
        run_id: str | None,
        task_queue: str,
        on_parent_close: OnParentClose,
    ) -> None:
        super().__init__(definition, args, src)
        self.child_id = ""  # until it is numbered
        self.workflow = workflow
        self.run_id = run_id  # as the author gave it, if so
        self.task_queue = task_queue
        self.on_parent_close = on_parent_close

    @property
    def key(self) -> str:
        """The child's run id."""
        return self.child_id


class Errand(msgspec.Struct, frozen=True, gc=False):
    """What the commit of an activation is to do for a child: to start it, or to ask it to cancel."""

    call: ChildCall
    is_cancel: bool = False
    reason: str | None = None  # of the cancel


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
    """The end of an operation that an earlier activation opened; or a child's cancel by the one that starts it, which the start implies."""

    __slots__ = ("how", "is_journaled", "operation", "reason")

    kind: Final = "closed"

    def __init__(self, operation: Operation, how: str, reason: str | None = None) -> None:
        self.operation = operation
        self.how = how
        self.is_journaled = operation.op != 0
        self.reason = reason  # for a child: told by the turn that cancels it, and not journaled

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
    """A patch that takes effect here, a line of the story, or the answer to an update. It waits for nothing and takes no number."""

    __slots__ = ("command", "detail", "kind", "name", "src")

    how: Final = ""

    def __init__(self, command: Patched | Noted | UpdateAnswered) -> None:
        self.command = command
        self.src = ""
        self.detail: object = None
        match command:
            case Patched():
                self.kind, self.name, self.src = "patch", command.id, command.src
            case Noted():
                self.kind, self.name, self.src, self.detail = (
                    "note",
                    command.name,
                    command.src,
                    command.status,
                )
            case UpdateAnswered():
                self.kind, self.name = "update", update_name(command.name, command.msg)
                self.detail = answer_of(command)


Operation = Call | Timer | Wait
Asked = Call | Timer | Wait | Closing | Marker


class Ending(Enum):
    """Whether an activation ends its generation, and whether the next one does over again what it asks for."""

    NONE = 0
    FOR_GOOD = 1
    TO_BE_RETRIED = 2


def _counts(one: Asked, ending: Ending) -> bool:
    """Whether what was asked for is to be journaled."""
    if isinstance(one, Closing):
        return one.is_journaled
    if isinstance(one, Marker):
        return True
    if one.dead or ending is Ending.TO_BE_RETRIED:
        return False
    return ending is Ending.NONE or (isinstance(one, ChildCall) and one.on_parent_close == "abandon")


class Operations:
    """The open operations of one run by number, and `asked`: what the current activation opened and closed."""

    __slots__ = (
        "_counts",
        "_handles",
        "_last_op",
        "_task_queue",
        "activities",
        "attempt",
        "children",
        "entrusted",
        "entrusts",
        "errands",
        "key_prefix",
        "open",
        "pending",
        "timers",
        "waits",
    )

    def __init__(self, key_prefix: str, task_queue: str = "") -> None:
        self.activities: dict[int, ActivityCall] = {}
        self.timers: dict[int, int] = {}
        self.waits: dict[int, OpenWait] = {}
        # Children apart from activities, which are somebody's work in this process.
        self.children: dict[int, ChildCall] = {}
        self.errands: list[Errand] = []
        self.attempt = 1  # the workflow's: children that a later one starts have keys of their own
        self._handles: dict[int, Timer] = {}
        self.pending: list[Asked] = []  # what the current activation has asked for so far
        self.open: Callable[[Call | Wait | Timer], None] = self.pending.append
        self.key_prefix = key_prefix
        self._task_queue = task_queue
        self.entrusts = True  # calls that name another queue are for the workers of that queue
        self.entrusted: list[ActivityCall] = []  # calls for other queues, numbered live
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
        elif isinstance(call, ChildCall):
            self.children.pop(call.op, None)
        else:
            self.activities.pop(call.op, None)

    def cancel_child(self, call: ChildCall, reason: str | None) -> None:
        """Ask a child that was started to cancel, also one that this activation starts: whoever has its handle waits for its end."""
        self.pending.append(Closing(call, "wait", reason))
        call.closing = "wait"

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
        """A patch, a note or an answer: told in any case, even if the run ends in this activation."""
        self.pending.append(marker)

    def take_call(self, op: int) -> Call | None:
        """Remove and return an open activity whose outcome is there; None if it is closed."""
        call = self.activities.pop(op, None) or self.children.pop(op, None)
        return call if isinstance(call, Call) else None

    def take_timer(self, op: int) -> Timer | None:
        """Remove and return a timer that fires; None if it is closed."""
        self.timers.pop(op, None)
        timer = self._handles.pop(op, None)
        if timer is not None:
            timer.dead = True
        return timer

    # ─ at rest ───────────────────────────────────────────────────────────────

    def asked(self, ending: Ending) -> list[Asked]:
        """Return what the activation asked for and take it off the books.

        A run that has ended opens nothing but children that are to outlive it: nobody would wait for it. What it closed still counts,
        and so do markers.
        """
        asked = [one for one in self.pending if _counts(one, ending)]
        self.pending.clear()
        return asked

    def number(self, reserve: Callable[[ActivityDefinition], bool] | None, ending: Ending) -> list[Command]:
        """Number what the activation asked for, in order, and return it as commands."""
        commands: list[Command] = []
        for one in self.pending:
            if isinstance(one, Closing):
                if one.is_journaled:
                    commands.append(CloseOp(op=one.operation.op, how=one.how))
                if one.operation.__class__ is ChildCall and one.operation.op and one.how != "abandon":
                    self.errands.append(Errand(one.operation, is_cancel=True, reason=one.reason))
            elif isinstance(one, Marker):
                commands.append(one.command)
            elif not _counts(one, ending):
                continue
            elif isinstance(one, ChildCall):
                commands.append(self._number_child(one))
            elif isinstance(one, Call):
                commands.append(self.number_call(one, reserve))
            else:
                commands.append(self._number_other(one))
        self.pending.clear()
        return commands

    def number_call(
        self, call: Call, reserve: Callable[[ActivityDefinition], bool] | None
    ) -> ScheduleActivity:
        """Number a call. One for another queue takes no slot here; else `reserve` says whether its first attempt starts now."""
        queue = call.definition.task_queue
        if queue is not None and queue != self._task_queue and self.entrusts:
            call.queue, reserve = queue, None
            self.entrusted.append(call)
        self._last_op = op = call.op = self._last_op + 1
        name = call.definition.name
        call.n = n = self._counts.get(name, 0) + 1
        self._counts[name] = n
        call.key_prefix = self.key_prefix
        self.activities[op] = call
        return ScheduleActivity(
            op=op,
            name=name,
            n=n,
            args=msgspec.Raw(call.args),
            src=call.src,
            started=reserve is not None and reserve(call.definition),
            kind=call.definition.kind,
            queue=call.queue,
        )

    def _number_child(self, call: ChildCall) -> StartChild:
        self._last_op = op = call.op = self._last_op + 1
        name = call.definition.name
        call.n = n = self._counts.get(name, 0) + 1
        self._counts[name] = n
        call.child_id = self.key_of_child(call, n)
        self.children[op] = call
        self.errands.append(Errand(call))
        return StartChild(
            op=op,
            name=name,
            n=n,
            args=msgspec.Raw(call.args),
            src=call.src,
            kind=call.definition.kind,
            run_id=call.key,
            workflow=call.workflow.name,
        )

    def key_of_child(self, call: ChildCall, n: int = 0) -> str:
        """Return the run id of a child: the author's, else `run_id@epoch/path#n`. `n` 0: what it will be called once it is numbered.

        One that a retried workflow starts is another run than what the same call started before, and was dropped.
        """
        if call.run_id is not None:
            return call.run_id
        name = call.definition.name
        if not n:
            before = self.pending[: self.pending.index(call)] if call in self.pending else self.pending
            n = self._counts.get(name, 0) + 1
            n += sum(isinstance(one, Call) and one.name == name and not one.dead for one in before)
        retried = f"~{self.attempt}" if self.attempt > 1 else ""
        key = f"{self.key_prefix}{name}#{n}{retried}"
        if len(key) <= NAME_LENGTH_MAX:
            return key
        return f"{call.workflow.name[:100]}-{hashlib.sha256(key.encode()).hexdigest()[:32]}"

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
            if (
                isinstance(command, Patched | Noted | UpdateAnswered)
                or isinstance(one, Marker)
                or one is None
            ):
                continue
            op = command.op
            if isinstance(one, Closing):
                if isinstance(one.operation, Call) and command.how == "wait":  # type: ignore[union-attr]  # a CloseOp
                    one.operation.closing = (
                        "wait"  # even if today's code does not wait: the outcome is still due
                    )
                    self._opened_by(one.operation)[op] = one.operation
                continue
            one.op = op
            if op > self._last_op:
                self._last_op = op
            if isinstance(command, ScheduleActivity) and isinstance(one, Call):
                name, n = command.name, command.n
                one.n = n
                one.key_prefix = self.key_prefix
                one.queue = command.queue
                if isinstance(command, StartChild) and isinstance(one, ChildCall):
                    one.child_id = command.run_id
                if n > self._counts.get(name, 0):
                    self._counts[name] = n
                self._opened_by(one)[op] = one
            elif isinstance(command, StartTimer) and isinstance(one, Timer):
                self.timers[op] = one.due = command.due
                self._handles[op] = one
            elif isinstance(command, OpenWait):
                self.waits[op] = command

    def _opened_by(self, call: Call) -> dict[int, Any]:
        return self.children if isinstance(call, ChildCall) else self.activities

    def label(self, op: int) -> str:
        """Return the name for people of an operation that is open."""
        if op in self.activities:
            return self.activities[op].definition.name
        if op in self.children:
            return label("child", self.children[op].name)
        if op in self.timers:
            return "timer"
        wait = self.waits.get(op)
        return label(wait.wait, wait.name) if wait else f"operation {op}"

    def clear(self) -> None:
        self.activities.clear()
        self.entrusted.clear()
        self.children.clear()
        self.errands.clear()
        self.timers.clear()
        self.waits.clear()
        self._handles.clear()
        self.pending.clear()
