"""`SagaRecord`: a saga as its run and journal tell it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from datetime import datetime
from typing import Any, Final

from durable import Entry, Run, RunStatus
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


def record_of(run: Run, planned: Iterable[str] = ()) -> SagaRecord:
    """Return the record of a run; `planned` are the steps its definition knows, called or not."""
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
        if entry.status == "completed" and isinstance(entry.result, dict) and "data" in entry.result:
            data = entry.result["data"]
        for at in (entry.started_at, entry.finished_at):
            updated = at if run.closed_at is None and at is not None and at > updated else updated
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
