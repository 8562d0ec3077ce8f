"""What a worker is given: workflows and activities, by themselves or in modules, and its settings. Checks them, and makes definitions of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, Protocol

import msgspec

from durable.activities import Activity
from durable.client import Client
from durable.declared import workflows_of
from durable.definitions import LOCAL_TASK_QUEUE, ActivityDefinition, Registry, WorkflowDefinition, check_name
from durable.errors import DefinitionError
from durable.limits import Limits
from durable.retry import Seconds, seconds
from durable.seams import Threads
from durable.store.records import WorkerInfo
from durable.worker.fingerprint import Fingerprints
from durable.workflow_classes import Runnable
from durable.workflows import Workflow

LEASE_SECONDS: Final = 10.0
log = logging.getLogger("durable.worker")


class Serving(Protocol):
    """Something that stands for workflows: a pipeline, say."""

    def __durable_workflows__(self) -> Iterable[Workflow[..., Any]]: ...


Served = Workflow[..., Any] | type[Runnable[Any]] | Serving | ModuleType


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker was given, checked: the same for all its lives. `Worker` says what each means."""

    client: Client
    registry: Registry
    activities: Mapping[str, ActivityDefinition]  # by the name under which tasks ask for them
    task_queues: tuple[str, ...]
    concurrency: int
    task_concurrency: int
    max_runs: int
    lease_seconds: float
    activation_seconds: float
    name: str
    limits: Limits
    own_only: bool
    retention_us: int | None
    threads: Threads
    fingerprints: Fingerprints

    def info(self) -> WorkerInfo:
        """Return what the database is told of the worker; asked anew for each incarnation, for an embedded engine learns workflows."""
        return WorkerInfo(
            name=self.name,
            task_queue=self.task_queues[0],
            definitions=tuple(self.registry.keys()),
            embedded=self.own_only,
            more_queues=self.task_queues[1:],
            activities=tuple(sorted(self.activities)),
            lease_us=round(self.lease_seconds * 1_000_000),
        )


def definitions_in(sources: Iterable[Served]) -> list[WorkflowDefinition]:
    """Return the definitions of workflows and patterns, and of all that are found in modules."""
    found: dict[int, WorkflowDefinition] = {}
    for source in sources:
        inside = list(vars(source).values()) if isinstance(source, ModuleType) else [source]
        workflows = [one for value in inside for one in workflows_of(value)]
        if not workflows and not isinstance(source, ModuleType):
            raise DefinitionError(
                f"a worker serves what @workflow decorates, patterns, or modules that hold some, not {source!r}"
            )
        for one in workflows:
            found[id(one.definition)] = one.definition
    return list(found.values())


def activities_in(
    sources: Iterable[Served], named: Iterable[Activity[..., Any] | ModuleType]
) -> dict[str, ActivityDefinition]:
    """Return activities by the name under which tasks ask for them: those that were named, and all that are found in modules.

    Two functions of one name among those that were named are a mistake; of two in modules, of which nobody asked that either be served to
    others, none is.
    """
    asked: dict[str, ActivityDefinition] = {}
    for source in named:
        if isinstance(source, ModuleType):
            _add_found(asked, source)
        elif not isinstance(source, Activity):
            raise DefinitionError(
                f"activities= takes @activity functions, or modules that hold some, not {source!r}"
            )
        else:
            known = asked.setdefault(source.definition.served_as, source.definition)
            if known.fn is not source.definition.fn:
                raise DefinitionError(
                    f"two activities are called {source.definition.served_as!r}; give one of them another name="
                )
    found: dict[str, ActivityDefinition] = {}
    for module in sources:
        if isinstance(module, ModuleType):
            _add_found(found, module)
    return found | asked


def _add_found(found: dict[str, ActivityDefinition], module: ModuleType) -> None:
    doubtful: set[str] = set()
    for value in vars(module).values():
        if isinstance(value, Activity):
            definition = value.definition
            if found.setdefault(definition.served_as, definition).fn is not definition.fn:
                doubtful.add(definition.served_as)
    for name in doubtful:
        log.warning("two activities are called %r: no task of that name is taken from a queue", name)
        del found[name]


def queues_from(task_queue: str | Sequence[str]) -> tuple[str, ...]:
    """Return the queues a worker serves, each once, in their order."""
    given = (task_queue,) if isinstance(task_queue, str) else tuple(task_queue)
    if not given:
        raise DefinitionError("a worker serves at least one task queue")
    for one in given:
        if check_name(one, "a task queue") == LOCAL_TASK_QUEUE:
            raise DefinitionError(f"task queue {one!r} is for runs that no worker can drive")
    return tuple(dict.fromkeys(given))


def slots_from(value: int, what: str) -> int:
    """Return a number of slots; raise `DefinitionError` unless it is an integer above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise DefinitionError(f"{what} must be an integer >= 1, not {value!r}")
    return value


def lease_from(value: Seconds | None) -> float:
    """Return the lease in seconds: as given, else `DURABLE_LEASE_TTL`, else 10. At least 0.2."""
    if value is None:
        text = os.environ.get("DURABLE_LEASE_TTL", "")
        try:
            value = float(text) if text else LEASE_SECONDS
        except ValueError:
            raise DefinitionError(f"DURABLE_LEASE_TTL must be seconds, not {text!r}") from None
    lease = seconds(value, what="lease_seconds")
    if lease < 0.2:
        raise DefinitionError(f"a lease below 0.2 s cannot be kept: {lease} s")
    return lease
