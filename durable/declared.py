"""Which workflows are at hand: what a value stands for, and what is in the modules that this process has imported."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

from durable.definitions import WorkflowDefinition
from durable.workflows import Workflow

SERVES: Final = "__durable_workflows__"


def workflows_of(value: object) -> Iterable[Workflow[..., Any]]:
    """Return the workflow that a value is, or those that it stands for: a class, a pipeline, a manager of sagas."""
    if isinstance(value, Workflow):
        return (value,)
    # Asked of the classes' own names: a variable of a user's module may be a proxy that answers to anything.
    cls: Any = value if issubclass(type(value), type) else type(value)
    if not any(SERVES in vars(base) for base in cls.__mro__):
        return ()
    method = getattr(value, SERVES)
    # Not the plain function that it is on the pattern's own class.
    return list(method()) if inspect.ismethod(method) else ()


def imported_workflows() -> dict[tuple[str, int], list[WorkflowDefinition]]:
    """Return the workflows of all imported modules by name and version; one defined twice counts once."""
    by_origin: dict[tuple[str, int], dict[str, WorkflowDefinition]] = {}
    for module in [one for one in list(sys.modules.values()) if isinstance(one, ModuleType)]:
        for value in list(vars(module).values()):
            for one in workflows_of(value):
                definition = one.definition
                key = definition.name, definition.version
                by_origin.setdefault(key, {})[definition.origin] = definition
    return {key: list(definitions.values()) for key, definitions in by_origin.items()}
