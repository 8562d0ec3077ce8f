"""The durable stack of a run: where each of its coroutines stands, what it awaits, and since when.

Rebuilt by replaying the journal with the workflow's code, in this process, without a worker and without effects: activities
are answered from the journal, nothing is written. Without the code, what the journal itself tells of what is open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from durable.definitions import WorkflowDefinition
from durable.engine.inspecting import Frame, Standing, standings
from durable.engine.instance import Instance
from durable.engine.runtime import RunIdentity
from durable.journal import view
from durable.journal.turns import Activated, joined, split_activations
from durable.journal.view import Story
from durable.store.records import JournalRow, RunRecord


class StackFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the author's code. `function` and `text` are empty where only the journal was at hand.

    `values`, if asked for, are the local variables of the function at that line, as short text.
    """

    function: str
    source: str  # package/file.py:line
    text: str
    values: Mapping[str, str] = {}


class Standpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where one coroutine of a run stands: frames outermost first, and what the innermost awaits."""

    task: str
    frames: tuple[StackFrame, ...]
    awaits: str  # for people: activity "charge", timer 3600s
    kind: str  # activity, timer, signal, condition, task or future
    name: str
    since: datetime | None
    due: datetime | None


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """All of them. `is_rebuilt`: by replay, else as the journal recorded it when each operation was asked for."""

    run_id: str
    generation: int
    workflow: str
    is_rebuilt: bool
    standpoints: tuple[Standpoint, ...]


def rebuilt_stack(
    record: RunRecord,
    rows: Sequence[JournalRow],
    definition: WorkflowDefinition,
    *,
    with_values: bool = False,
) -> Stack:
    """Replay and look. Blocks, and runs the workflow's code: call it in a thread. Raises `PlatformFault`."""
    instance = Instance(
        RunIdentity.of(record),
        definition,
        record.input,
    )
    try:
        opened: dict[int, int] = {}
        for activated in split_activations(joined(rows)):
            if not isinstance(activated, Activated):
                break
            instance.replay(activated)
            for command in activated.commands:
                opened.setdefault(getattr(command, "op", 0), activated.event.at)
        found = tuple(
            _standpoint(one, instance, opened) for one in standings(instance, with_values=with_values)
        )
    finally:
        instance.evict()
    return _stack(record, found, is_rebuilt=True)


def recorded_stack(record: RunRecord, story: Story) -> Stack:
    """Return what the journal knows without the code: the line that asked for each operation that is open."""
    found = [
        Standpoint(
            task="",
            frames=(StackFrame(function="", source=line.source, text=""),) if line.source else (),
            awaits=awaited_text(line.kind, line.name),
            kind=line.kind,
            name=line.name,
            since=line.started_at,
            due=line.due_at,
        )
        for line in story.open
    ]
    return _stack(record, tuple(found), is_rebuilt=False)


def _stack(record: RunRecord, found: tuple[Standpoint, ...], *, is_rebuilt: bool) -> Stack:
    return Stack(
        run_id=record.run_id,
        generation=record.generation,
        workflow=record.workflow,
        is_rebuilt=is_rebuilt,
        standpoints=found,
    )


def _standpoint(standing: Standing, instance: Instance, opened: dict[int, int]) -> Standpoint:
    since, due = opened.get(standing.op), instance.timers.get(standing.op)
    return Standpoint(
        task=standing.task,
        frames=tuple(map(_frame, standing.frames)),
        awaits=awaited_text(standing.kind, standing.name),
        kind=standing.kind,
        name=standing.name,
        since=view.instant(since) if since is not None and standing.op else None,
        due=None if due is None else view.instant(due),
    )


def _frame(frame: Frame) -> StackFrame:
    return StackFrame(function=frame.function, source=frame.source, text=frame.text, values=frame.values)


def awaited_text(kind: str, name: str) -> str:
    """Return `activity charge`, `timer 3600s`, `signal "approved"`, `condition`, `task Task-2`, `Queue.get`."""
    match kind:
        case "signal":
            return f'signal "{name}"'
        case "future":
            return name or "a future"
        case _:
            return f"{kind} {name}".rstrip()
