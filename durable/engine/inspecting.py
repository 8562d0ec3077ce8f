"""Where the coroutines of a run stand: what `durable show --stack` tells. Looks at an instance at rest; runs nothing.

A task is walked from its outermost coroutine inward along what each awaits. Frames of this package, asyncio and anyio are
looked through, as in `sources`; the innermost of them says what is awaited. Knows nothing of stores.
"""

from __future__ import annotations

import asyncio
import reprlib
from collections.abc import Iterator, Mapping
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import Any, Final, Literal

import msgspec

from durable.engine.instance import Instance
from durable.engine.loop import DetTask
from durable.engine.operations import Call, Operations, Wait
from durable.engine.sources import find_source, source_text

VALUE_LENGTH_MAX: Final = 200

AwaitedKind = Literal["activity", "timer", "signal", "condition", "task", "future"]


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the author's code: `source` is `package/file.py:line`, `text` that line, `values` its variables as short text."""

    function: str
    source: str
    text: str
    values: Mapping[str, str] = {}


class Standing(msgspec.Struct, frozen=True, kw_only=True):
    """Where one task stands: frames outermost first, and what the innermost awaits. `op` 0: no operation of the journal."""

    task: str
    frames: tuple[Frame, ...]
    kind: AwaitedKind
    name: str
    op: int


def standings(instance: Instance, *, with_values: bool = False) -> list[Standing]:
    """Return where each task of the run that is not done stands, in the order of their creation.

    With values, the author's `__repr__` methods run: of what stands in local variables.
    """
    return [_standing(task, instance.operations, with_values) for task in instance.tasks if not task.done()]


def _standing(task: DetTask, operations: Operations, with_values: bool) -> Standing:
    frames: list[Frame] = []
    kind: AwaitedKind = "future"
    name, op = "", 0
    for frame in _walk(task.get_coro()):
        if source := find_source(frame):  # a suspended frame has no caller: it is looked at alone
            frames.append(_told(frame, source, with_values))
            kind, name, op = "future", "", 0
            continue
        name = frame.f_code.co_qualname
        for value in (frame.f_locals.get("call"), frame.f_locals.get("wait")):
            if isinstance(value, Call):
                kind, name, op = "activity", value.name, value.op
                break
            if isinstance(value, Wait):
                kind, name, op = "signal" if value.kind == "signal" else "condition", value.name, value.op
                break
        if op:
            break
    if not frames and task.source:  # none of its frames is the author's: the line that made the task is
        frames.append(Frame(function="", source=task.source, text=source_text(task.source)))
    if not op:
        kind, name, op = _of_future(getattr(task, "_fut_waiter", None), operations, name)
    return Standing(task=task.get_name(), frames=tuple(frames), kind=kind, name=name, op=op)


def _of_future(awaited: Any, operations: Operations, inside: str) -> tuple[AwaitedKind, str, int]:
    """Say what a bare future stands for; `inside` is the library function that awaits it."""
    for op, timer in operations.handles.items():
        if timer._args and timer._args[0] is awaited:
            return "timer", f"{timer.duration / 1_000_000:g}s", op
    if isinstance(awaited, asyncio.Task):
        return "task", awaited.get_name(), 0
    return "future", inside, 0


def _walk(awaited: Any) -> Iterator[FrameType]:
    """Yield the frames of a chain of coroutines, outermost first."""
    while True:
        match awaited:
            case CoroutineType():
                frame, inner = awaited.cr_frame, awaited.cr_await
            case GeneratorType():
                frame, inner = awaited.gi_frame, awaited.gi_yieldfrom
            case AsyncGeneratorType():
                frame, inner = awaited.ag_frame, awaited.ag_await
            case _:
                return
        if frame is None:
            return
        yield frame
        awaited = inner


def _told(frame: FrameType, source: str, with_values: bool) -> Frame:
    return Frame(
        function=frame.f_code.co_qualname,
        source=source,
        text=source_text(source),
        values={name: _shown(value) for name, value in frame.f_locals.items()} if with_values else {},
    )


def _shown(value: object) -> str:
    try:
        return _short.repr(value)
    except Exception as error:  # a method of the author's class
        return f"<{type(value).__name__}: its text raised {type(error).__name__}>"


_short: Final = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = VALUE_LENGTH_MAX
_short.maxdict = _short.maxlist = _short.maxtuple = _short.maxset = 20
