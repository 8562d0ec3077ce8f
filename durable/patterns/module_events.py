"""The event bus: who starts when something has happened. Choreography: publishers do not know their subscribers.

bus.subscribe("order.paid", ship)
await bus.publish("order.paid", {"order": "o-7"}, id="o-7")       # starts ship, once per event id
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, runtime_checkable

import durable
from durable import make_activity
from durable.patterns.graph.engine import WorkflowEngine
from durable.patterns.running import current_run_id, digest

RUN_ID_LENGTH_MAX: Final = 200


class Startable(Protocol):
    """A workflow, a pipeline, an engine of a graph, a bulk operation: what has runs."""

    @property
    def name(self) -> str: ...

    @property
    def start(self) -> Callable[..., Any]: ...

    @property
    def enqueue(self) -> Callable[..., Any]: ...


@runtime_checkable
class EventBusProtocol(Protocol):
    """Starts the runs of whoever subscribed to an event."""

    def subscribe(self, event: str, workflow: Startable) -> None:
        """Have `workflow` started with the payload of each event of that name."""
        ...

    async def publish(self, event: str, payload: Any = None, id: str | None = None) -> list[str]:
        """Start each subscriber's run, once per event id, and return the run ids."""
        ...


class EventBus:
    """Subscriptions of this process; the runs are durable. `enqueue=True` leaves them to workers, else this process drives them."""

    def __init__(self, *, enqueue: bool = False) -> None:
        self._enqueue = enqueue
        self._subscribers: dict[str, list[Startable]] = {}

    def subscribe(self, event: str, workflow: Startable) -> None:
        """Have `workflow` (or a pipeline, or the like) started with the payload of each event of that name; a graph with it as its state."""
        name = getattr(workflow, "name", None)
        if not callable(getattr(workflow, "start", None)) or not isinstance(name, str):
            raise TypeError(
                f"what subscribes to {event!r} is a workflow, a pipeline or the like, not {workflow!r}"
            )
        listed = self._subscribers.setdefault(_checked(event), [])
        if workflow not in listed:
            listed.append(workflow)

    async def publish(self, event: str, payload: Any = None, id: str | None = None) -> list[str]:
        """Start each subscriber's run and return the run ids, in the order of subscription.

        The run of an event id and a subscriber is started once: publishing it again returns the same run; with another payload it is a
        `RunConflictError`, after the others were started. Without `id` every call is an event of its own, but a retried attempt of an
        activity publishes the same one again. Inside a workflow it is an activity.
        """
        _checked(event)
        if current_run_id() is None:
            return await self._start_all(event, payload, id or durable.derived_run_id(event))
        unit = make_activity(self._start_all, name=f"publish {event}", kind="event", result=list[str])
        started: list[str] = await unit(event, payload, id or str(durable.uuid4()))
        return started

    async def _start_all(self, event: str, payload: Any, id: str | None) -> list[str]:
        id = id or durable.uuid4().hex
        started: list[str] = []
        failed: Exception | None = None
        for workflow in self._subscribers.get(event, ()):
            run_id = _run_id(workflow.name, event, id)
            try:
                await self._start(workflow, payload, run_id)
            except Exception as error:
                failed = failed or error
            else:
                started.append(run_id)
        if failed is not None:
            raise failed
        return started

    async def _start(self, workflow: Startable, payload: Any, run_id: str) -> None:
        begin = workflow.enqueue if self._enqueue else workflow.start
        if isinstance(workflow, WorkflowEngine):
            await begin(initial_state=payload, run_id=run_id)
        else:
            await begin(payload, run_id=run_id)


def _checked(event: str) -> str:
    if not isinstance(event, str) or not event or not event.isprintable():
        raise ValueError(f"an event has a printable name, not {event!r}")
    return event


def _run_id(workflow: str, event: str, id: str) -> str:
    run_id = f"{workflow}-{event}-{id}"
    return (
        run_id
        if len(run_id) <= RUN_ID_LENGTH_MAX
        else f"{workflow[:100]}-{digest(run_id)}{digest(run_id[::-1])}"
    )
