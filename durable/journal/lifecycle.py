"""The life of a run, as one table. Knows nothing of stores, workers or time."""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Final


class RunStatus(StrEnum):
    """What a person sees."""

    PENDING = "pending"  # nobody has driven it yet
    RUNNING = "running"  # a worker drives it, or will as soon as one is free
    WAITING = "waiting"  # for a timer, a signal or a condition; no worker holds it
    COMPENSATING = "compensating"  # running, to undo what it has done: only ever shown
    PARKED = "parked"  # stopped by a platform fault; good code resumes it
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TERMINATED = "terminated"
    TIMED_OUT = "timed_out"
    COMPENSATED = "compensated"  # a saga that failed, and undid all it had done
    CONTINUED = "continued"  # a closed generation that a workflow-level retry or continue-as-new followed

    @property
    def is_closed(self) -> bool:
        return not _NEXT[self]


_NEXT: Final = MappingProxyType(
    {
        RunStatus.PENDING: frozenset({RunStatus.RUNNING, RunStatus.TERMINATED, RunStatus.TIMED_OUT}),
        RunStatus.RUNNING: frozenset(
            {
                RunStatus.WAITING,
                RunStatus.PARKED,
                RunStatus.COMPLETED,
                RunStatus.FAILED,
                RunStatus.COMPENSATED,
                RunStatus.CANCELLED,
                RunStatus.TERMINATED,
                RunStatus.TIMED_OUT,
                RunStatus.CONTINUED,
            }
        ),
        RunStatus.WAITING: frozenset({RunStatus.RUNNING, RunStatus.TERMINATED, RunStatus.TIMED_OUT}),
        RunStatus.COMPENSATING: frozenset({RunStatus.RUNNING}),
        RunStatus.PARKED: frozenset({RunStatus.RUNNING, RunStatus.TERMINATED, RunStatus.TIMED_OUT}),
        RunStatus.COMPLETED: frozenset(),
        RunStatus.FAILED: frozenset(),
        RunStatus.COMPENSATED: frozenset(),
        RunStatus.CANCELLED: frozenset(),
        RunStatus.TERMINATED: frozenset(),
        RunStatus.TIMED_OUT: frozenset(),
        RunStatus.CONTINUED: frozenset(),
    }
)
assert set(_NEXT) == set(RunStatus), "a status without a row"
