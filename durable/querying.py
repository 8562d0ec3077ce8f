"""Queries, asked from outside: the run is rebuilt from its committed journal in this process, and answers.

So no worker is needed, nothing is written, and nobody sees a turn that is not committed. The workflow's code is needed, and runs here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from durable.connection import Connection
from durable.declared import imported_workflows
from durable.definitions import WorkflowDefinition
from durable.engine.instance import Instance
from durable.engine.queries import answer
from durable.engine.runtime import RunIdentity
from durable.errors import ArgumentsError, UnknownWorkflowError, WorkflowStateError
from durable.finding import find_run, read_recorded
from durable.journal.events import Started
from durable.recorded import RecordedRun
from durable.replaying import feed_recorded
from durable.seams import ThreadExecutor
from durable.store.records import RunRecord
from durable.workflow_classes import marked_query

Asked = str | Callable[..., object]  # by its name, or by the method that answers it


async def ask_run(
    connection: Connection,
    run_id: str,
    query: Asked,
    *,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    known: WorkflowDefinition | None = None,
) -> Any:
    """See `RunHandle.query`. `known` is the workflow that the caller takes the run to be of."""
    name = _name_of(query)
    record = await find_run(connection.store, run_id)
    definition = _code_of(record, known)
    recorded = await read_recorded(connection.store, record)
    if not any(isinstance(entry, Started) for entry in recorded.events):
        why = (
            "ended before it had begun: there is nothing to ask"
            if record.status.is_closed
            else "has not begun: there is nothing to ask yet"
        )
        raise WorkflowStateError(record.run_id, record.status, f"run {record.run_id!r} {why}")
    executor = ThreadExecutor(1, name="durable-query")
    try:
        return await executor.submit(partial(_answer, recorded, definition, name, args, kwargs))
    finally:
        executor.close()


def _answer(
    recorded: RecordedRun,
    definition: WorkflowDefinition,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Replay, ask, forget. Blocks, and runs the workflow's code: to be called in a thread."""
    instance = Instance(RunIdentity.of(recorded), definition, recorded.input)
    try:
        feed_recorded(instance, recorded)
        return answer(instance, name, args, kwargs)
    finally:
        instance.evict()


def _name_of(query: Asked) -> str:
    if isinstance(query, str):
        return query
    method = marked_query(query)
    if method is None:
        raise ArgumentsError(
            f"a query is named by text, or by a method that is marked with @workflow.query, not {query!r}"
        )
    return method.name


def _code_of(record: RunRecord, known: WorkflowDefinition | None) -> WorkflowDefinition:
    """Return the code of a run, in its version: what the caller has at hand, else what is imported."""
    key = record.workflow, record.version
    if known is not None and (known.name, known.version) == key:
        return known
    found = imported_workflows().get(key, [])
    if len(found) == 1:
        return found[0]
    what = f"workflow {record.workflow!r} version {record.version}"
    why = (
        f"{' and '.join(one.origin for one in found)} are both that"
        if found
        else "no module that is imported here has it"
    )
    raise UnknownWorkflowError(
        f"run {record.run_id!r} is answered by the code of {what}, but {why}: import the module, "
        "or ask a handle from client.get(run_id, workflow)",
        name=record.workflow,
    )
