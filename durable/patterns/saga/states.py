"""The states of a saga."""

from __future__ import annotations

from enum import StrEnum

from durable import RunStatus


class SagaState(StrEnum):
    """Where a saga is. Equal to, and printed as, text."""

    PENDING = "pending"
    RUNNING = "running"
    COMPENSATING = "compensating"
    COMPLETED = "completed"
    FAILED = "failed"
    COMPENSATED = "compensated"


def saga_state(status: RunStatus) -> SagaState | RunStatus:
    """Return the state of a saga whose run has this status; a cancelled or parked one is called as its run is."""
    if status is RunStatus.WAITING:
        return SagaState.RUNNING
    if status is RunStatus.TIMED_OUT:
        return SagaState.FAILED
    return SagaState(str(status)) if str(status) in {str(state) for state in SagaState} else status
