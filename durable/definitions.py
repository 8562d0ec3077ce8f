"""What authors declared, as data: workflows, activities, and the registry a worker looks them up in.

Definitions have no behaviour: `workflows.py` and `activities.py` make them, the engine and the worker read them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal

from durable.errors import DefinitionError, UnknownWorkflowError
from durable.limits import NAME_LENGTH_MAX
from durable.payloads import Arguments, ValueType
from durable.retry import Retry

CancellationType = Literal["try", "wait", "abandon"]
# Where runs wait whose code lives in one process only, e.g. in closures: workers leave them alone.
LOCAL_TASK_QUEUE: Final = "local"


class ActivityDefinition:
    """One activity with the options of one call site; `fn.options(...)` makes changed copies.

    `timeout_us` limits one attempt from its start to its end; `is_limited` says whether any of the four limits is set.
    `kind` is what its entries are in the run's story; "" is an ordinary activity. Outcomes of calls with the same `group` object are
    recorded together, if they come soon one after the other.
    """

    __slots__ = (
        "arguments",
        "cancellation",
        "fn",
        "group",
        "heartbeat_us",
        "is_async",
        "is_limited",
        "is_simple",
        "kind",
        "name",
        "result",
        "retry",
        "schedule_to_close_us",
        "schedule_to_start_us",
        "timeout_us",
    )

    def __init__(
        self,
        *,
        name: str,
        fn: Callable[..., Any],
        is_async: bool,
        arguments: Arguments,
        result: ValueType,
        retry: Retry,
        timeout_us: int | None,
        cancellation: CancellationType,
        schedule_to_start_us: int | None = None,
        schedule_to_close_us: int | None = None,
        heartbeat_us: int | None = None,
        kind: str = "",
    ) -> None:
        self.name = name
        self.kind = kind
        self.group: object | None = None
        self.fn = fn
        self.is_async = is_async
        self.arguments = arguments
        self.result = result
        self.retry = retry
        self.timeout_us = timeout_us
        self.schedule_to_start_us = schedule_to_start_us
        self.schedule_to_close_us = schedule_to_close_us
        self.heartbeat_us = heartbeat_us
        limits = (timeout_us, schedule_to_start_us, schedule_to_close_us, heartbeat_us)
        self.is_limited = any(limit is not None for limit in limits)
        self.is_simple = is_async and not self.is_limited  # nothing to see to before its first step
        self.cancellation = cancellation

    def renamed(self, name: str) -> ActivityDefinition:
        """Return a copy of that name."""
        copy = object.__new__(ActivityDefinition)
        for slot in ActivityDefinition.__slots__:
            setattr(copy, slot, getattr(self, slot))
        copy.name = name
        return copy


class WorkflowDefinition:
    """One workflow. `timeout_us` is its whole life; `retries` the workflow-level retries (attempts - 1).

    `kind` is "workflow" or the pattern it was made from. `origin` says where the code comes from, as `module:qualname`: two
    definitions of one origin are the same one, defined again. `prepare(runtime, args, kwargs)` returns the arguments to call `fn`
    with, if these are not the decoded ones. `is_long`: the limit of events in a journal is not for its runs.
    """

    __slots__ = (
        "arguments",
        "fn",
        "is_long",
        "kind",
        "name",
        "origin",
        "prepare",
        "result",
        "retries",
        "retry_delay_us",
        "task_queue",
        "timeout_us",
        "version",
    )

    def __init__(
        self,
        *,
        name: str,
        version: int,
        fn: Callable[..., Any],
        arguments: Arguments,
        result: ValueType,
        timeout_us: int | None,
        retries: int,
        retry_delay_us: int,
        task_queue: str,
        kind: str = "workflow",
        origin: str | None = None,
        prepare: Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, ...]] | None = None,
        is_long: bool = False,
    ) -> None:
        self.name = name
        self.kind = kind
        self.is_long = is_long
        self.prepare = prepare
        self.origin = f"{fn.__module__}:{fn.__qualname__}" if origin is None else origin
        self.version = version
        self.fn = fn
        self.arguments = arguments
        self.result = result
        self.timeout_us = timeout_us
        self.retries = retries
        self.retry_delay_us = retry_delay_us
        self.task_queue = task_queue


class Registry:
    """The workflows one worker serves, by name and version."""

    def __init__(self, workflows: Iterable[WorkflowDefinition] = ()) -> None:
        self._workflows: dict[tuple[str, int], WorkflowDefinition] = {}
        for definition in workflows:
            self.add(definition)

    def add(self, definition: WorkflowDefinition) -> bool:
        """Add a workflow and return whether it was new.

        The same function defined again (a notebook cell run twice) replaces the old one; another function under a
        taken name and version raises `DefinitionError`.
        """
        key = (definition.name, definition.version)
        known = self._workflows.get(key)
        if known is not None and known.fn is not definition.fn and known.origin != definition.origin:
            raise DefinitionError(
                f"two workflows are called {definition.name!r} (version {definition.version}): "
                f"{known.origin} and {definition.origin}; give one of them another name= or version="
            )
        self._workflows[key] = definition
        return known is None

    def find(self, name: str, version: int) -> WorkflowDefinition | None:
        return self._workflows.get((name, version))

    def get(self, name: str) -> WorkflowDefinition:
        """Return the highest version of a workflow; raise `UnknownWorkflowError` with near names."""
        versions = [d for (known, _), d in self._workflows.items() if known == name]
        if not versions:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"known: {', '.join(self.names()) or 'none'}"
            )
            raise UnknownWorkflowError(f"no workflow {name!r} here ({hint})", name=name, suggestions=near)
        return max(versions, key=lambda d: d.version)

    def names(self) -> list[str]:
        return sorted({name for name, _ in self._workflows})

    def keys(self) -> list[tuple[str, int]]:
        """The (name, version) pairs served here."""
        return list(self._workflows)

    def all(self) -> list[WorkflowDefinition]:
        return list(self._workflows.values())

    def __len__(self) -> int:
        return len(self._workflows)


def shown(name: object) -> str:
    """Return what was given for a name, short enough for an error."""
    text = repr(name)
    return text if len(text) <= NAME_LENGTH_MAX else f"{text[:40]}… ({len(text):,} characters)"


def check_name(name: str, what: str) -> str:
    """Return `name` if it may be stored and printed; raise `DefinitionError` otherwise."""
    if not isinstance(name, str) or not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise DefinitionError(
            f"{what} needs a printable name of 1 to {NAME_LENGTH_MAX} characters, not {shown(name)}"
        )
    return name
