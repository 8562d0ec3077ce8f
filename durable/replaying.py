"""Replay of a recorded run with today's code, without a store, a worker or effects: activities are answered from the journal.

Stricter than what a worker does when it takes a run up: of a closed run it also says whether today's code would have come to the
same kind of end. Runs the workflow's code on the calling thread, under its guards.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec

from durable.definitions import WorkflowDefinition
from durable.engine.instance import Instance
from durable.engine.runtime import RunIdentity
from durable.errors import NonDeterminismError, WorkflowVersionMismatchError
from durable.journal.events import (
    AnyEntry,
    Cancelled,
    CancelRequested,
    Completed,
    ContinuedAsNew,
    End,
    Failed,
    SignalReceived,
    UpdateAnswered,
    UpdateReceived,
    WorkflowEnd,
)
from durable.journal.turns import Activated, split_activations
from durable.limits import DEFAULT_LIMITS, Limits
from durable.recorded import RecordedRun

_ENDS: Final = {
    Completed: "completed",
    Failed: "failed",
    Cancelled: "cancelled",
    ContinuedAsNew: "continued as new",
}


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """A run that today's code would take the same way. `warnings` tell what differs without doing harm."""

    run_id: str
    events: int
    warnings: tuple[str, ...]


def replay_run(
    recorded: RecordedRun, definition: WorkflowDefinition, *, limits: Limits = DEFAULT_LIMITS
) -> Replayed:
    """Replay a run; return what is to be said of it.

    Raises `NonDeterminismError` if today's code takes another way, `WorkflowVersionMismatchError` if it is of another version,
    or another `PlatformFault`: what a worker would park the run with.
    """
    if recorded.version != definition.version:
        raise WorkflowVersionMismatchError(recorded.run_id, recorded.version, definition.version)
    instance = Instance(
        RunIdentity.of(recorded),
        definition,
        recorded.input,
        limits=limits,
    )
    try:
        feed_recorded(instance, recorded)
        warnings = list(instance.warnings)
        if recorded.events:
            warnings += _end_warnings(instance.end, recorded.events[-1])
    finally:
        instance.evict()
    return Replayed(run_id=recorded.run_id, events=len(recorded.events), warnings=tuple(warnings))


def feed_recorded(instance: Instance, recorded: RecordedRun) -> None:
    """Replay the whole journal into a new instance. Raises as `replay_run`."""
    activations = list(split_activations([(1, recorded.events)]))
    for position, one in enumerate(activations):
        if not isinstance(one, Activated):
            _check_end(instance.end, one, recorded)
        elif instance.end is None or not _are_unread(activations[position:]):
            instance.replay(one)


def _are_unread(rest: Sequence[Activated | End]) -> bool:
    """Whether these are messages that came while the last turn was made: nobody reads them any more, then comes the end."""
    return isinstance(rest[-1], WorkflowEnd) and all(
        isinstance(one, Activated)
        and isinstance(one.event, SignalReceived | UpdateReceived | CancelRequested)
        and all(isinstance(command, UpdateAnswered) and command.how == "given_up" for command in one.commands)
        for one in islice(rest, len(rest) - 1)
    )


def _check_end(today: WorkflowEnd | None, recorded: End, run: RecordedRun) -> None:
    expected = _ENDS.get(type(recorded))
    got = None if today is None else _ENDS[type(today)]
    if expected is None or expected == got:
        return
    ends = "goes on" if got is None else f"ends {got}" + (f" ({_failure(today)})" if got == "failed" else "")
    lines = (
        f"run {run.run_id!r} cannot be replayed: at event {len(run.events)} (its end)",
        f"  the journal holds  the end: {expected}"
        + (f" ({_failure(recorded)})" if expected == "failed" else ""),
        f"  today's code       {ends}",
    )
    raise NonDeterminismError(
        "\n".join(lines), run_id=run.run_id, expected=expected, got=got, event=len(run.events)
    )


def _failure(end: End | None) -> str:
    return f"{end.failure.type}: {end.failure.message}" if isinstance(end, Failed) else ""


def _end_warnings(today: WorkflowEnd | None, recorded: AnyEntry) -> list[str]:
    match today, recorded:
        case Completed(), Completed() if bytes(today.result) != bytes(recorded.result):
            return ["today's code returns another result; the journal's stands"]
        case _:
            return []
