"""Starts of runs: what is asked of the store, checked, and which worker of this process drives them. The store decides the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from durable.connection import Connection
from durable.definitions import WorkflowDefinition, check_run_id, check_text
from durable.errors import ArgumentsError, LeaseLostError
from durable.retry import Seconds, seconds
from durable.seams import pause
from durable.store.records import IfClosed, IfOpen, StartOutcome, StartRequest

REQUESTS_AT_A_TIME: Final = 200  # are made before the loop breathes


def start_request(
    connection: Connection,
    definition: WorkflowDefinition,
    args: tuple[Any, ...],
    *,
    kwargs: dict[str, Any] | None = None,
    run_id: str | None = None,
    task_queue: str | None = None,
    delay: Seconds | None = None,
    if_open: IfOpen = "attach",
    if_closed: IfClosed = "return",
    owner: int | None = None,
) -> StartRequest:
    """Return the checked request for one start; nothing is written. Raises as `Client.start`."""
    if if_open not in ("attach", "fail", "terminate"):
        raise ArgumentsError(f"if_open is 'attach', 'fail' or 'terminate', not {if_open!r}")
    if if_closed not in ("return", "fail", "new", "new_if_failed"):
        raise ArgumentsError(f"if_closed is 'return', 'fail', 'new' or 'new_if_failed', not {if_closed!r}")
    queue = check_text(definition.task_queue if task_queue is None else task_queue, "a task queue")
    data = definition.arguments.encode(args, kwargs or {})
    if len(data) > connection.limits.payload_bytes_warn:
        what = f"the input of workflow {definition.name!r}"
        connection.limits.judge(len(data), what=what, run_id=run_id)
    definition.arguments.check_types(data)
    now = connection.clock.now_us()
    random = connection.random
    return StartRequest(
        run_id=f"{definition.name}-{random.run_suffix()}" if run_id is None else check_run_id(run_id),
        request_id=random.request_id(),
        workflow=definition.name,
        version=definition.version,
        task_queue=queue,
        input=data,
        deadline_us=None if definition.timeout_us is None else now + definition.timeout_us,
        ready_at_us=None if delay is None else now + round(seconds(delay, what="delay") * 1_000_000),
        if_open=if_open,
        if_closed=if_closed,
        owner=owner,
        retention_us=definition.retention_us,
        kind="" if definition.kind == "workflow" else definition.kind,
    )


async def start_requests(
    connection: Connection,
    definition: WorkflowDefinition,
    inputs: Sequence[tuple[object, ...]],
    *,
    run_ids: Sequence[str] | None,
    task_queue: str | None,
) -> list[StartRequest]:
    """Return the checked requests for one run per argument tuple."""
    if run_ids is not None and len(run_ids) != len(inputs):
        raise ArgumentsError(f"{len(inputs)} inputs but {len(run_ids)} run ids")
    requests: list[StartRequest] = []
    for i, args in enumerate(inputs):
        if i and i % REQUESTS_AT_A_TIME == 0:
            await pause(0)
        run_id = None if run_ids is None else run_ids[i]
        requests.append(start_request(connection, definition, args, run_id=run_id, task_queue=task_queue))
    return requests


async def start_runs(connection: Connection, requests: list[StartRequest]) -> list[StartOutcome]:
    """Start runs of one workflow and queue: as many as a worker of this process has room for are its own from the start.

    That spares the transaction that claims them. If the caller is cancelled before the worker is told, it finds them.
    """
    store, clock = connection.store, connection.clock
    for worker in connection.workers_here:
        owner = worker.worker_id
        room = worker.reserve_room(requests[0], len(requests)) if owner and requests else 0
        if room <= 0:
            continue
        owned = [msgspec.structs.replace(request, owner=owner) for request in requests[:room]]
        try:
            outcomes = await store.start_runs(owned + requests[room:], clock.now_us())
        except LeaseLostError:
            break  # it was declared dead, and does not know yet
        finally:
            worker.return_room(room)
        for outcome in outcomes:
            if outcome.claim is not None and worker.worker_id == owner:
                worker.adopt(outcome.claim)
        return outcomes
    return await store.start_runs(requests, clock.now_us())
