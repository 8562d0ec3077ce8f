"""The status numbers of the `run` table, and what each is called. Knows nothing of SQL or files."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from durable.journal.lifecycle import RunStatus

READY: Final = 0  # claimable from ready_at_us on
OWNED: Final = 1
WAITING: Final = 2
PARKED: Final = 3
HELD: Final = 4  # it would be ready, but is paused
COMPLETED: Final = 10  # from here on: closed
FAILED: Final = 11
CANCELLED: Final = 12
TERMINATED: Final = 13
TIMED_OUT: Final = 14
CONTINUED: Final = 15
COMPENSATED: Final = 16

CODES: Final = MappingProxyType(
    {
        RunStatus.WAITING: WAITING,
        RunStatus.PARKED: PARKED,
        RunStatus.COMPLETED: COMPLETED,
        RunStatus.FAILED: FAILED,
        RunStatus.CANCELLED: CANCELLED,
        RunStatus.TERMINATED: TERMINATED,
        RunStatus.TIMED_OUT: TIMED_OUT,
        RunStatus.CONTINUED: CONTINUED,
        RunStatus.COMPENSATED: COMPENSATED,
    }
)
_SHOWN: Final = MappingProxyType({code: status for status, code in CODES.items()})


def are_troubled(codes: list[int]) -> bool:
    """Whether all of these are parked or ended otherwise than well: the runs of the index `run_troubled`."""
    return all(code == PARKED or code > COMPLETED for code in codes)


def is_closed(code: int) -> bool:
    return code >= COMPLETED


def is_known(code: int) -> bool:
    """Whether it is a status at all; a damaged row may hold any number."""
    return READY <= code <= HELD or code in _SHOWN


def shown_status(code: int, *, has_started: bool) -> RunStatus:
    """Return what a person sees: a ready run is pending until somebody drove it, then running.

    One that nobody knows is shown as parked: nothing will move it, and somebody must look at it.
    """
    if code in (READY, HELD) and not has_started:
        return RunStatus.PENDING
    if code in (READY, OWNED, HELD):
        return RunStatus.RUNNING
    return _SHOWN.get(code, RunStatus.PARKED)


def filter_codes(statuses: tuple[RunStatus, ...]) -> list[int]:
    """Return the numbers that `list_runs` compares: -1 stands for ready and never started."""
    codes: list[int] = []
    for status in statuses:
        if status is RunStatus.PENDING:
            codes.append(-1)
        elif status is RunStatus.RUNNING:
            codes.extend((READY, OWNED, HELD))
        else:
            codes.append(CODES[status])
    return codes
