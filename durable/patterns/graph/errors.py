"""How graphs fail.

GraphExecutionError
 ├─ GraphValidationError      the graph, or the entry asked for, makes no sense: the author acts
 ├─ NodeExecutionError        a node failed for good, or a predicate or reducer raised
 ├─ NoRouteError              no route of a gate was open
 ├─ CycleDetectedError        more nodes ran than `max_iterations` allows
 ├─ StateConflictError        two nodes of one wave wrote the same key
 ├─ GraphTimeoutError         `total_timeout` passed
 └─ HumanInputRequiredError   nothing but a person's answer is awaited: the run goes on once it is there
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from durable import DefinitionError, DurableError


class GraphExecutionError(DurableError):
    """A graph did not get to its end. `run_id` is the run it was, "" if it never was one."""

    run_id: str = ""

    def __str__(self) -> str:
        return f"{self._what()} (run {self.run_id!r})" if self.run_id else self._what()

    def _what(self) -> str:
        return super().__str__()


class GraphValidationError(GraphExecutionError, DefinitionError):
    """The graph has edges to nowhere, two nodes of one name, nodes that nothing leads to, or not the entry asked for."""


class NodeExecutionError(GraphExecutionError):
    """A node failed, after all its attempts. What it raised is `cause`, and `__cause__`; in a subgraph that is its error."""

    __durable_wraps__: Final = True

    def __init__(self, node: str, cause: BaseException | None = None) -> None:
        super().__init__(node)
        self.node = node
        self.__cause__ = cause

    @property
    def cause(self) -> BaseException | None:
        return self.__cause__

    def _what(self) -> str:
        cause = self.__cause__
        reason = "" if cause is None else f": {type(cause).__name__}: {cause}".rstrip(": ")
        return f"node {self.node!r} failed{reason}"


class NoRouteError(GraphExecutionError):
    """None of a gate's predicates was true: open a route for every state, e.g. a last one that is always true."""

    def __init__(self, node: str) -> None:
        super().__init__(node)
        self.node = node

    def _what(self) -> str:
        return f"no route of gate {self.node!r} is open"


class CycleDetectedError(GraphExecutionError):
    """So many nodes ran, and more were to follow: a cycle does not end, or `GraphConfig.max_iterations` is too small."""

    def __init__(self, iterations: int) -> None:
        super().__init__(iterations)
        self.iterations = iterations

    def _what(self) -> str:
        return f"the graph did not end within max_iterations ({self.iterations})"


class StateConflictError(GraphExecutionError):
    """Nodes side by side wrote the same key: give it a reducer, or the nodes other keys, or choose `on_conflict="last"`."""

    def __init__(self, key: str, nodes: Sequence[str]) -> None:
        super().__init__(key, list(nodes))
        self.key = key
        self.nodes = list(nodes)

    def _what(self) -> str:
        return (
            f"nodes {' and '.join(map(repr, self.nodes))} wrote {self.key!r} side by side; give it a reducer"
        )


class GraphTimeoutError(GraphExecutionError):
    """The graph's `total_timeout` (seconds) passed. No node of it runs any more."""

    def __init__(self, timeout: float) -> None:
        super().__init__(timeout)
        self.timeout = timeout

    def _what(self) -> str:
        return f"the graph did not end within {self.timeout:g} seconds"


class HumanInputRequiredError(GraphExecutionError):
    """Only a person's answer is awaited: the run waits, durably, for as long as it takes.

    Answer by `engine.resume(run_id, answer)`, `WorkflowRunner.resume(checkpoint_id=, input=)`, `durable.answer(...)`, or on the
    command line. `node` is the path of the node that asks `prompt`; `checkpoint_id` addresses this very question.
    """

    def __init__(
        self, prompt: str, node: str = "", run_id: str = "", checkpoint_id: str | None = None
    ) -> None:
        super().__init__(prompt)
        self.prompt = prompt
        self.node = node
        self.run_id = run_id
        self.checkpoint_id = checkpoint_id

    def _what(self) -> str:
        return f"human input required at {self.node!r}: {self.prompt}"
