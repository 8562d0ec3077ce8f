"""How a pattern runs: as part of the run it is used in, else as a run of its own. What a pattern is built on.

A pattern is an object with a coroutine function `body(input)` that is workflow code: deterministic, its units of work are
activities. Building one:

1. `durable.make_workflow(body, name=, kind=, origin=, version=, timeout=, result=)` makes its definition; make it anew when the
   object changes. `origin_of` makes an origin out of the parts, so that two objects with one name are told apart.
2. A method `__durable_workflows__(self)` that returns a list of these definitions lets workers, which import the module that
   holds the object, find them.
3. Units of work are made at run time by `durable.make_activity(fn, name=, kind=, retry=, timeout=)`, or by
   `activity.replaced(...)` from one that the author decorated; `calling.py` has what they have in common. Their values pass the codec,
   so live code sees what a replay will.
4. `execute` is `await perform(self._workflow(), self._inline, input, run_id=run_id, own=ItsError)`. Inside a run that awaits
   `self._inline(input)` under `durable.scope(name)`: activities go into that run's journal as `name/...`. Elsewhere it is a run of its own;
   inside an activity its id derives from the idempotency key, so that a retried attempt attaches to it.
5. To fail, the body raises. An error class of the pattern's own holds JSON values, or errors, as attributes, and has its cause as
   `__cause__`: so it comes out of the journal as it went in. `__durable_wraps__ = True` on the class says that it stands for its cause (a
   workflow that is retried then keeps its journal up to there); `__durable_compensated__ = True` closes the run as compensated.
6. What did not happen is told by `durable.note(name, "skipped")`.

Knows nothing of any particular pattern.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, NoReturn

import durable
from durable import DefinitionError, Workflow, WorkflowFailedError

NAME_LENGTH_MAX: Final = 100  # of names that are made up of others


def current_run_id() -> str | None:
    """Return the id of the run whose workflow code this is, or None elsewhere."""
    try:
        return durable.info().run_id
    except DefinitionError:
        return None


async def perform(
    workflow: Workflow[..., Any],
    inline: Callable[..., Coroutine[Any, Any, Any]],
    *args: Any,
    run_id: str | None = None,
    own: type[Exception] = WorkflowFailedError,
) -> Any:
    """Run a pattern and return its result: inline inside a run, else as a run of its own in this process.

    A failure of class `own` is raised as itself, with the cause it had, wherever the pattern ran.
    """
    if current_run_id() is not None:
        if run_id is not None:
            raise DefinitionError(
                f"{workflow.definition.kind} {workflow.name!r} is part of the run that executes it: leave run_id out"
            )
        with durable.scope(workflow.name):
            return await inline(*args)
    try:
        handle = await workflow.options(run_id=run_id).start(*args)
        return await handle.result()
    except WorkflowFailedError as failed:
        raise_own(failed, own)


async def hint_unfinished(kind: str, name: str) -> None:
    """Say on stderr that runs of this name lie about unfinished: what starts now is a new one, which people do not expect.

    For patterns that make ids themselves; where the id is left to `Workflow.start`, that says so.
    """
    found = await durable.list_runs(
        workflow=name, status=("pending", "running", "waiting", "parked"), limit=6
    )
    left = [run.run_id for run in found if run.worker is None]
    if left:
        ids = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        print(
            f"durable: this starts a new run of {kind} {name!r}; unfinished: {ids} "
            "(give run_id= to go on with one, or finish them by `durable worker` or durable.recover())",
            file=sys.stderr,
        )


def raise_own(failed: WorkflowFailedError, own: type[Exception]) -> NoReturn:
    """Raise the pattern's own error that a run failed with, or the failure as it is."""
    cause = failed.__cause__
    if isinstance(cause, own):
        raise cause from cause.__cause__
    raise failed


def joined_name(kind: str, names: Iterable[str]) -> str:
    """Return the name of a pattern that was given none: its parts' names, joined."""
    name = "-".join(names) or kind
    if len(name) <= NAME_LENGTH_MAX:
        return name
    return f"{name[: NAME_LENGTH_MAX - 9]}-{digest(name)}"


def origin_of(kind: str, parts: Iterable[tuple[str, object]]) -> str:
    """Return where a pattern comes from: its parts, by name and function."""
    listed = ", ".join(f"{name} ({_place(fn)})" if fn is not None else name for name, fn in parts)
    return f"{kind} of {listed or 'nothing'}"


def _place(fn: object) -> str:
    fn = getattr(fn, "func", fn)  # of a partial
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    code = getattr(fn, "__code__", None)
    line = f":{code.co_firstlineno}" if code is not None and name.endswith("<lambda>") else ""
    # A script is `__main__` when it runs, and has its own name when a worker imports it: the name says nothing.
    return f"{name}{line}"


def digest(text: str) -> str:
    """Return eight characters that stand for a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]
