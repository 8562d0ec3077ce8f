"""Which recorded command answers which operation of today's code, in one activation (P25); and what to say if none.

Matching ignores the order of issue: it is by (kind, name), first where the detail is the same too (an activity's
arguments, a timer's duration, the operation that a close closes), in order of issue among equals. Per kind and name
one leftover pair may match with a warning. A patch marker may lack its call if the patch is deprecated. Anything else is
non-determinism. Knows nothing of loops or stores.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol, TypeVar
from zlib import crc32

from durable.errors import NonDeterminismError
from durable.journal.events import (
    CloseOp,
    Command,
    Event,
    Noted,
    OpenWait,
    Patched,
    ScheduleActivity,
    StartChild,
    Started,
    StartTimer,
    UpdateAnswered,
)
from durable.journal.turns import ENGINE_VERSION


class Asked(Protocol):
    """What today's code asked for. `kind` is "activity", "child", "timer", "signal", "condition", "closed", "patch", "note" or "update"."""

    @property
    def kind(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def detail(self) -> object: ...

    @property
    def src(self) -> str: ...

    @property
    def how(self) -> str:
        """The cancellation type with which an activity is closed, else ""."""
        ...


A = TypeVar("A", bound=Asked)


class Mismatch(Exception):  # control flow between this module's two halves
    """Recorded commands and today's operations do not pair up; the first of each that is left over."""

    def __init__(self, expected: Command | None, got: Asked | None) -> None:
        super().__init__(expected, got)
        self.expected = expected
        self.got = got


def match(
    recorded: Sequence[Command], asked: Sequence[A], deprecated: Collection[str] = ()
) -> tuple[list[A | None], list[tuple[Command, A]]]:
    """Return the operation for each recorded command, and the pairs that match although their details differ.

    The marker of a patch that is `deprecated` may have none. Raise `Mismatch` when the rest does not pair up.
    """
    if len(recorded) == len(asked):
        for command, operation in zip(recorded, asked, strict=True):
            if not _is_same(command, operation):
                break
        else:
            return list(asked), []
    return _match_slowly(recorded, asked, deprecated)


def _is_same(command: Command, asked: Asked) -> bool:
    # Not a match statement: replay spends its time here.
    kind = asked.kind
    if isinstance(command, ScheduleActivity):
        what = "child" if isinstance(command, StartChild) else "activity"
        return kind == what and command.name == asked.name and bytes(command.args) == asked.detail
    if isinstance(command, StartTimer):
        return kind == "timer" and command.duration == asked.detail
    if isinstance(command, OpenWait):
        return kind == command.wait and asked.name == command.name
    if isinstance(command, Patched):
        return kind == "patch" and asked.name == command.id
    if isinstance(command, Noted):
        return kind == "note" and asked.name == command.name and asked.detail == command.status
    if isinstance(command, UpdateAnswered):
        return kind == "update" and asked.detail == answer_of(command) and asked.name == _name_of(command)
    if kind != "closed" or command.op != asked.detail:
        return False
    if asked.how == "wait" and command.how != "wait":
        raise Mismatch(
            command, asked
        )  # it would wait for an outcome that never comes; the reverse does no harm
    return True


def _group(command: Command) -> tuple[str, str]:
    match command:
        case StartChild():
            return "child", command.name
        case ScheduleActivity():
            return "activity", command.name
        case StartTimer():
            return "timer", ""
        case OpenWait():
            return command.wait, command.name
        case CloseOp():
            return "closed", str(command.op)
        case Patched():
            return "patch", command.id
        case Noted():
            return "note", command.name
        case UpdateAnswered():
            return "update", _name_of(command)


def answer_of(command: UpdateAnswered) -> tuple[str, bytes]:
    """Return what an answer is compared by: what became of the update, and its result. Why it failed may be told otherwise today."""
    return command.how, bytes(command.result)


def _name_of(command: UpdateAnswered) -> str:
    return update_name(command.name, command.msg)


def update_name(name: str, msg: int) -> str:
    """Return what one update is called beside others of its name."""
    return f"{name} (message {msg})"


def _match_slowly(
    recorded: Sequence[Command], asked: Sequence[A], deprecated: Collection[str]
) -> tuple[list[A | None], list[tuple[Command, A]]]:
    groups: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for index, operation in enumerate(asked):
        name = str(operation.detail) if operation.kind == "closed" else operation.name
        groups[operation.kind, name].append(index)
    found: list[int | None] = []
    for command in recorded:
        candidates = groups[_group(command)]
        same = next((i for i in candidates if _is_same(command, asked[i])), None)
        if same is not None:
            candidates.remove(same)
        found.append(same)
    changed = _match_leftovers(recorded, asked, found, groups, deprecated)
    return [None if i is None else asked[i] for i in found], changed


def _match_leftovers(
    recorded: Sequence[Command],
    asked: Sequence[A],
    found: list[int | None],
    groups: dict[tuple[str, str], list[int]],
    deprecated: Collection[str],
) -> list[tuple[Command, A]]:
    waiting: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for position, index in enumerate(found):
        if index is None:
            waiting[_group(recorded[position])].append(position)
    changed: list[tuple[Command, A]] = []
    for group, positions in waiting.items():
        left = groups[group]
        if len(positions) == len(left) == 1:
            position, index = positions[0], left.pop()
            found[position] = index
            changed.append((recorded[position], asked[index]))
    expected = [
        command
        for command, index in zip(recorded, found, strict=True)
        if index is None
        and not (isinstance(command, Patched) and (command.deprecated or command.id in deprecated))
    ]
    got = [asked[index] for index in sorted(i for left in groups.values() for i in left)]
    if expected or got:
        # What was opened explains more than what was closed.
        raise Mismatch(
            min(expected, key=lambda c: isinstance(c, CloseOp), default=None),
            min(got, key=lambda a: a.kind == "closed", default=None),
        )
    return changed


# ─ what to say ───────────────────────────────────────────────────────────────


def environment() -> tuple[str, str]:
    """Return this process's Python version ("3.12") and a fingerprint of its hash seed, as `Started` keeps them."""
    return _PYTHON, _HASH_SEED


_PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
_HASH_SEED: Final = f"{crc32(str(hash('durable')).encode()):08x}"


def label(kind: str, name: str) -> str:
    """Return an operation's name for people: an activity's own name, "timer", "wait for signal 'x'", "condition"."""
    match kind:
        case "activity":
            return name
        case "child":
            return f"child run of {name!r}"
        case "signal":
            return f"wait for signal {name!r}"
        case "patch":
            return f"patch {name!r}"
        case "note":
            return f"note on {name!r}"
        case "update":
            return f"answer to update {name}"
        case _:
            return kind


def non_determinism(
    mismatch: Mismatch,
    *,
    run_id: str,
    number: int,
    event: Event,
    started: Started | None,
    closed: Callable[[int], str],
    source_text: Callable[[str], str],
    ended: bool = False,
) -> NonDeterminismError:
    """Return the error that tells the author what the journal holds, what today's code asks, and what to do.

    `closed(op)` names an operation that is still open; `source_text(label)` is the line behind a source label.
    `ended`: today's code had ended before this event.
    """
    expected, recorded = _recorded(mismatch.expected, closed)
    got, asked = _asked(mismatch.got, source_text)
    if ended:
        expected, recorded, asked = describe(event), "further events", "nothing: it ends before this event"
    lines = [
        f"run {run_id!r} cannot be replayed: at event {number} ({describe(event)})",
        f"  the journal holds  {recorded}",
        f"  today's code asks  {asked}",
        _advice(mismatch.expected),
        *_differences(started),
    ]
    return NonDeterminismError("\n".join(lines), run_id=run_id, expected=expected, got=got, event=number)


def _advice(expected: Command | None) -> str:
    if isinstance(expected, Patched):
        return (
            f"The run took the new side of patch {expected.id!r}, and the workflow no longer calls "
            f"`durable.patched({expected.id!r})` there. Put it back; or, if no run is left on the old side, call "
            f"`durable.deprecate_patch({expected.id!r})` in its place, followed by the new code alone."
        )
    return (
        "The workflow was changed while this run was open. Run the code it was started with, or guard the change so "
        'that open runs keep the old way: `if durable.patched("..."):` new code, `else:` old code.'
    )


def describe(event: Event) -> str:
    """Return an event in a few words."""
    words = str(event.__struct_config__.tag).replace("_", " ")
    op = getattr(event, "op", None)
    return f"{words}, operation {op}" if op is not None else words


def _recorded(command: Command | None, closed: Callable[[int], str]) -> tuple[str | None, str]:
    match command:
        case None:
            return None, "nothing more"
        case StartChild():
            name = label("child", command.name)
            return name, f"{name} (call {command.n}), asked for at {_place(command.src)}"
        case ScheduleActivity():
            return (
                command.name,
                f"activity {command.name!r} (call {command.n}), asked for at {_place(command.src)}",
            )
        case StartTimer():
            seconds = command.duration / 1_000_000
            return "timer", f"timer of {seconds:g} s, asked for at {_place(command.src)}"
        case OpenWait():
            name = label(command.wait, command.name)
            return name, f"{name}, asked for at {_place(command.src)}"
        case CloseOp():
            name = f"end of {closed(command.op)}"
            return name, f"{name} (operation {command.op}{_how(command.how)})"
        case Patched():
            name = label("patch", command.id)
            return name, f"{name}, asked for at {_place(command.src)}"
        case Noted():
            name = label("note", command.name)
            return name, f"{name} ({command.status}), asked for at {_place(command.src)}"
        case UpdateAnswered():
            name = label("update", _name_of(command))
            return name, f"{name}: {command.how.replace('_', ' ')}"


def _asked(asked: Asked | None, source_text: Callable[[str], str]) -> tuple[str | None, str]:
    if asked is None:
        return None, "nothing more"
    if asked.kind == "closed":
        name = f"end of {asked.name}"
        return name, f"{name} (operation {asked.detail}{_how(asked.how)})"
    name = label(asked.kind, asked.name)
    if asked.kind == "update":
        return name, name
    what = f"activity {name!r}" if asked.kind == "activity" else name
    if asked.kind == "timer":
        what = f"timer of {int(str(asked.detail)) / 1_000_000:g} s"
    text = source_text(asked.src)
    return name, f"{what}, asked for at {_place(asked.src)}" + (f": {text}" if text else "")


def _how(how: str) -> str:
    return f", cancelled with type {how!r}" if how else ""


def _place(src: str) -> str:
    return src or "an unknown place"


def _differences(started: Started | None) -> list[str]:
    if started is None:
        return []
    python, hash_seed = environment()
    found = []
    if started.python and started.python != python:
        found.append(f"Python {started.python} (this is {python})")
    if started.engine != ENGINE_VERSION:
        found.append(f"engine version {started.engine} (this is {ENGINE_VERSION})")
    if started.hash_seed and started.hash_seed != hash_seed:
        found.append("another PYTHONHASHSEED, which orders sets of strings differently")
    return [f"This part of the journal was recorded under {', '.join(found)}."] if found else []
