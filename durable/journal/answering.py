"""Which of a run's open questions somebody means to answer. Knows nothing of stores."""

from __future__ import annotations

from collections.abc import Sequence

from durable.errors import ArgumentsError, WorkflowStateError
from durable.journal.lifecycle import RunStatus
from durable.journal.view import Entry


def choose_ask(
    run_id: str, status: RunStatus, asks: Sequence[Entry], *, name: str | None, ask: str | None
) -> Entry:
    """Return the one question that is meant by its name, the end of its path, or its address, or because there is but one.

    Raises `WorkflowStateError` if there is none, `ArgumentsError` if there are several.
    """
    meant = list(asks)
    if ask is not None:
        meant = [one for one in asks if one.ask == ask]
    elif name is not None:
        exact = [one for one in asks if one.name == name]
        meant = exact or [one for one in asks if one.name.endswith(f"/{name}")]
    if not meant:
        what = "nothing" if name is None and ask is None else f"no question {ask or name!r}"
        now = f"is {status}: it asks" if status.is_closed else "asks"
        raise WorkflowStateError(run_id, str(status), f"run {run_id!r} {now} {what} of anybody")
    if len(meant) > 1:
        names = ", ".join(repr(one.name) for one in meant)
        raise ArgumentsError(
            f"run {run_id!r} asks {len(meant)} questions: name the one that is answered: {names}"
        )
    return meant[0]


def answered_already(run_id: str, status: RunStatus, name: str) -> WorkflowStateError:
    """Return the error of a second answer to one question."""
    return WorkflowStateError(
        run_id, str(status), f"question {name!r} of run {run_id!r} was answered already"
    )
