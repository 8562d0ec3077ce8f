"""What a store answers when it refuses: the same words whichever database it is. Knows no SQL."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

from durable.errors import LeaseLostError, PoisonError, RunNotFoundError, WorkflowStateError
from durable.store.codes import shown_status
from durable.store.records import Reopen

RECENT_RUNS: Final = 500  # run ids compared with a mistyped one
CLOSED: Final = "the store is closed: open it again"
FORKED: Final = (
    "the store was opened before a fork, in the parent process: open one of your own in this process"
)


def lease_lost(worker: int) -> LeaseLostError:
    return LeaseLostError(
        f"worker {worker} was declared dead or has retired: nothing was written; register a new incarnation"
    )


def run_not_found(run_id: str, recent: Sequence[str]) -> RunNotFoundError:
    """Return the error for an unknown run id. `recent`: ids among which it may have been meant."""
    return RunNotFoundError(run_id, suggestions=difflib.get_close_matches(run_id, recent, n=3))


def generation_not_found(run_id: str, generation: int, *, latest: int) -> RunNotFoundError:
    near = [f"{run_id}@{known}" for known in (1, latest)]
    return RunNotFoundError(f"{run_id}@{generation}", suggestions=list(dict.fromkeys(near)))


def run_is_closed(run_id: str, code: int, started: int | None, so_what: str) -> WorkflowStateError:
    """Return the error for what a closed run cannot do any more."""
    status = str(shown_status(code, has_started=started is not None))
    return WorkflowStateError(run_id, status, f"run {run_id!r} is {status}: {so_what}")


def started_again(reopen: Reopen, code: int, started: int | None) -> WorkflowStateError:
    """Return the error for a generation that cannot be reopened: it is not the latest, or not closed."""
    status = str(shown_status(code, has_started=started is not None))
    return WorkflowStateError(
        reopen.run_id, status, f"run {reopen.run_id!r} was started again meanwhile and is {status}"
    )


def poison_reason(run_id: str, crashes: int) -> str:
    """Return why a run is parked that ended its workers (P14).

    A reason alone: it holds no value, and there is no stack, so nothing that a codec would have to seal.
    """
    fault = PoisonError(
        f"run {run_id!r} ended its worker {crashes} times while nothing else was driven there: its workflow kills the "
        "process (os._exit, a crash in C code, memory, a call that never returns). Repair the workflow, then resume the run",
        run_id=run_id,
        crashes=crashes,
    )
    return f"PoisonError: {fault}"
