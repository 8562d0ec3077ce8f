"""`SagaRecord`: a saga as its run and journal tell it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from durable import Entry, Run, RunStatus
from durable.patterns.saga.context import merged
from durable.patterns.saga.states import SagaState, saga_state

_UNDO: Final = "/compensation"
_STATES: Final = {
    "completed": SagaState.COMPLETED,
    "failed": SagaState.FAILED,
    "cancelled": SagaState.FAILED,
    "scheduled": SagaState.PENDING,
}


@dataclasses.dataclass(kw_only=True)
class SagaStepRecord:
    """One step: its last call. `status` is pending, running, completed, failed or compensated; a failed compensation leaves failed."""

    step_name: str
    status: SagaState = SagaState.PENDING
    started_at: datetime | None = None
    completed_at: datetime | None = None
    output: Any = None
    error: str | None = None
    attempts: int = 0


@dataclasses.dataclass(kw_only=True)
class SagaRecord:
    """A saga: a view over its run and its journal, as of when it was read. `steps` are by name, in order."""

    saga_id: str
    saga_name: str
    status: SagaState | RunStatus
    data: dict[str, Any]
    steps: dict[str, SagaStepRecord]
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None = None
    error: str | None = None


def record_of(
    run: Run, planned: Iterable[str] = (), groups: Mapping[str, Sequence[str]] | None = None
) -> SagaRecord:
    """Return the record of a run; `planned` are the steps its definition knows, called or not.

    `groups` are those that do nothing themselves, with the steps side by side that they are made of.
    """
    steps = {name: SagaStepRecord(step_name=name) for name in planned}
    given = run.input.get("data") if isinstance(run.input, dict) else None
    data: dict[str, Any] = dict(given) if isinstance(given, dict) else {}
    updated = run.closed_at or run.started_at or run.created_at
    for entry in run.journal:
        if not entry.is_activity or entry.kind == "predicate":
            continue
        if entry.kind == "compensation":
            name = entry.name.removesuffix(_UNDO)
            _undone(steps.setdefault(name, SagaStepRecord(step_name=name)), entry)
        else:
            steps[entry.name] = _done(entry)
        data = _data_after(data, entry)
        for at in (entry.started_at, entry.finished_at):
            updated = at if run.closed_at is None and at is not None and at > updated else updated
    if isinstance(run.result, dict) and isinstance(run.result.get("data"), dict):
        data = run.result["data"]
    for name, inner in reversed(list((groups or {}).items())):  # one inside of another is defined behind it
        steps[name] = _together(name, [steps[one] for one in inner])
    return SagaRecord(
        saga_id=run.run_id,
        saga_name=run.workflow,
        status=saga_state(run.status),
        data=data,
        steps=steps,
        created_at=run.created_at,
        updated_at=updated,
        completed_at=run.closed_at,
        error=run.error,
    )


def _data_after(data: dict[str, Any], entry: Entry) -> dict[str, Any]:
    """Return a saga's data with what a step, or a compensation, has changed in it: others ran beside it, perhaps."""
    if entry.status != "completed" or not isinstance(entry.result, dict) or not isinstance(entry.input, dict):
        return data
    given, written = entry.input.get("context"), entry.result.get("data")
    if not isinstance(given, dict) or not isinstance(written, dict):
        return data
    return merged(data, given["data"], written)


def _done(entry: Entry) -> SagaStepRecord:
    result = entry.result
    return SagaStepRecord(
        step_name=entry.name,
        status=_STATES.get(entry.status, SagaState.RUNNING),
        started_at=entry.started_at,
        completed_at=entry.finished_at,
        output=result.get("output") if isinstance(result, dict) else result,
        error=entry.error,
        attempts=entry.attempts,
    )


def _undone(step: SagaStepRecord, entry: Entry) -> None:
    if entry.status == "completed":
        step.status = SagaState.COMPENSATED
    elif entry.status == "failed":
        step.status, step.error = SagaState.FAILED, entry.error


def _together(name: str, inner: Sequence[SagaStepRecord]) -> SagaStepRecord:
    """Return the record of a step that is nothing but others: as far as the one of them that matters most."""
    states = {step.status for step in inner}
    begun = [step.started_at for step in inner if step.started_at is not None]
    ended = [step.completed_at for step in inner if step.completed_at is not None]
    failed = next((step for step in inner if step.status == SagaState.FAILED), None)
    if len(states) == 1:
        status = inner[0].status
    elif failed is not None:
        status = SagaState.FAILED
    else:
        status = SagaState.RUNNING
    merged: dict[str, Any] = {}
    for step in inner:
        merged.update(step.output if isinstance(step.output, dict) else {step.step_name: step.output})
    is_done = status not in (SagaState.PENDING, SagaState.RUNNING)
    return SagaStepRecord(
        step_name=name,
        status=status,
        started_at=min(begun, default=None),
        completed_at=max(ended, default=None) if is_done else None,
        output=merged if status in (SagaState.COMPLETED, SagaState.COMPENSATED) else None,
        error=None if failed is None else failed.error,
        attempts=max(step.attempts for step in inner),
    )
