"""The one upward door: what a workflow object does when it is called outside of any run.

`Workflow` lives below the client and the worker, yet calling it in a plain script must reach them. The import happens
at that call, in this file only; the layer test names it as the exception it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from durable.definitions import WorkflowDefinition
from durable.engine.runtime import Child

if TYPE_CHECKING:
    from durable.run_handle import RunHandle


def child_handle(child: Child) -> RunHandle[Any]:
    """Return the handle that workflow code gets of a child it has started."""
    from durable.run_handle import ChildHandle

    return ChildHandle(child)


async def attach_here(definition: WorkflowDefinition, run_id: str) -> RunHandle[Any]:
    """Return a handle of a run that exists; see that it goes on in this process unless it does elsewhere."""
    from durable.default import engine_here

    return await (await engine_here()).attach(definition, run_id)


async def start_here(
    definition: WorkflowDefinition,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    run_id: str | None,
    task_queue: str | None,
    drive: bool,
) -> RunHandle[Any]:
    """Start (or attach to) a run on this loop's default engine; `drive` False leaves it to a worker."""
    from durable.default import engine_here

    engine = await engine_here()
    return await engine.start(definition, args, kwargs, run_id=run_id, task_queue=task_queue, drive=drive)
