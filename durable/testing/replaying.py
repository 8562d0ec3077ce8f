"""Replay in tests: does today's code still fit what was recorded?

Each replay has a thread of its own, since the workflow's event loop must not run within another one's.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import TypeVar

from durable.definitions import Registry, WorkflowDefinition
from durable.errors import WorkflowVersionMismatchError
from durable.recorded import RecordedRun
from durable.replaying import Replayed, replay_run
from durable.seams import start_thread
from durable.worker.serving import Served, definitions_in

T = TypeVar("T")


def replay(recorded: RecordedRun | str | Path, *workflows: Served) -> Replayed:
    """Replay a recorded run with today's code, without a database and without effects; return what is to be said of it.

    `recorded` is `await client.recorded(run_id)`, or a file that `durable show ID --events -o json` wrote; `workflows` are workflows,
    patterns, or modules that hold some. Raises `NonDeterminismError` if today's code takes another way (of a closed run:
    also if it comes to another kind of end), `UnknownWorkflowError`, `WorkflowVersionMismatchError`, `UndecodableError`.
    """
    run = (
        recorded if isinstance(recorded, RecordedRun) else RecordedRun.from_json(Path(recorded).read_bytes())
    )
    definition = definition_of(run, Registry(definitions_in(workflows)))
    return in_thread(lambda: replay_run(run, definition))


def definition_of(run: RecordedRun, registry: Registry) -> WorkflowDefinition:
    """Return the workflow of a run; raise `UnknownWorkflowError` or `WorkflowVersionMismatchError`."""
    definition = registry.find(run.workflow, run.version)
    if definition is None:
        nearest = registry.get(run.workflow)  # raises, with near names
        raise WorkflowVersionMismatchError(run.run_id, run.version, nearest.version)
    return definition


def replayed_all(runs: list[RecordedRun], registry: Registry) -> list[Replayed]:
    """Replay those of the runs whose workflow is known; raise what the first raises that does not fit.

    Left out are those of a workflow that was defined again meanwhile, since nobody knows which one drove them, and a script's own.
    """
    known = [
        (run, registry.find(run.workflow, run.version))
        for run in runs
        if not run.is_local and (run.workflow, run.version) not in registry.redefined
    ]
    return in_thread(
        lambda: [replay_run(run, definition) for run, definition in known if definition is not None]
    )


def in_thread(work: Callable[[], T]) -> T:
    """Do something in a thread of its own, and wait for it."""
    done: list[T] = []
    raised: list[BaseException] = []
    context = copy_context()

    def run() -> None:
        try:
            done.append(context.run(work))
        except BaseException as error:
            raised.append(error)

    start_thread(run, name="durable replay").join()
    if raised:
        raise raised[0]
    return done[0]
