"""A graph as data: nodes, edges, and what may follow what. Checked when it is built; knows nothing of runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from durable import Seconds, Workflow
from durable.patterns.graph.config import GraphConfig
from durable.patterns.graph.errors import GraphValidationError
from durable.patterns.graph.nodes import AbstractWorkflowNode, GateNode, Predicate

Reducer = Callable[[Any, Any], Any]


class Edge(NamedTuple):
    """`target` may follow `source`: always, or if `condition(state)` is true once `source` is merged."""

    source: str
    target: str
    condition: Predicate | None = None


class Serving(Protocol):
    """What runs a graph."""

    def __durable_workflows__(self) -> Iterable[Workflow[..., Any]]: ...


class WorkflowGraph:
    """A graph that was built, and is right. Made by `WorkflowBuilder.build`; run it by a `WorkflowEngine`.

    `nodes` and `edges` are in the order of declaration. `entry` is where it begins, None: with all that nothing leads to.
    """

    def __init__(
        self,
        name: str,
        *,
        nodes: Mapping[str, AbstractWorkflowNode],
        edges: Iterable[Edge],
        config: GraphConfig,
        version: int,
        entry: str | None,
        terminals: Mapping[str, Predicate | None],
        reducers: Mapping[str, Reducer],
        retention: Seconds | Literal["forever"] | None = None,
        serve: Callable[[WorkflowGraph], Iterable[Workflow[..., Any]]] | None = None,
    ) -> None:
        self.name = name
        self._serve = serve
        self._engine: weakref.ref[Serving] | None = None
        self.nodes = MappingProxyType(dict(nodes))
        self.edges = tuple(edges)
        self.config = config
        self.version = version
        self.retention = retention
        self.entry = entry
        self.terminals = MappingProxyType(dict(terminals))
        self.reducers = MappingProxyType(dict(reducers))
        self._order = {node: number for number, node in enumerate(self.nodes)}
        self._roots: list[str] | None = None
        self._outgoing = {node: self._edges_of(node) for node in self.nodes}
        # What leads to a node, loops aside.
        self.sources: Mapping[str, frozenset[str]] = {
            node: frozenset(edge.source for edge in self.edges if edge.target == node != edge.source)
            & frozenset(source for source, edges in self._outgoing.items() if edges)
            for node in self.nodes
        }

    def __durable_workflows__(self) -> Iterable[Workflow[..., Any]]:
        """A module that holds a graph is served by the engine made of it last, else as if it held one."""
        engine = None if self._engine is None else self._engine()
        if engine is None:
            return () if self._serve is None else self._serve(self)
        return engine.__durable_workflows__()

    def set_engine(self, engine: Serving) -> None:
        """Note who runs it."""
        self._engine = weakref.ref(engine)

    def __repr__(self) -> str:
        return f"<graph {self.name} of {', '.join(self.nodes)}>"

    def in_order(self, nodes: Iterable[str]) -> list[str]:
        """Return nodes in the order of their declaration."""
        return sorted(nodes, key=self._order.__getitem__)

    def outgoing(self, node: str) -> list[Edge]:
        """Return the edges that a node can fire; one that always ends the graph fires none."""
        return self._outgoing[node]

    def _edges_of(self, node: str) -> list[Edge]:
        if node in self.terminals and self.terminals[node] is None:
            return []
        return [edge for edge in self.edges if edge.source == node]

    def starts(self, entry: str | None = None) -> list[str]:
        """Return where it begins: the entry, else all nodes that nothing leads to, so that none is left out.

        Of a cycle that nothing leads to it is the first declared. GraphValidationError: there is no such node.
        """
        entry = self.entry if entry is None else entry
        if entry is not None:
            if entry not in self.nodes:
                raise GraphValidationError(
                    f"graph {self.name!r} has no node {entry!r} to begin with; it has: {', '.join(self.nodes)}"
                )
            return [entry]
        if self._roots is None:  # a graph never changes, and each of its runs asks, in every replay, too
            self._roots = self._find_roots()
        return list(self._roots)

    def _find_roots(self) -> list[str]:
        led_to = {edge.target for edge in self.edges if edge.target != edge.source}
        roots = [node for node in self.nodes if node not in led_to]
        reached = self.reachable(roots)
        for node in self.nodes:
            if node not in reached:
                roots.append(node)
                reached |= self.reachable([node])
        return self.in_order(roots)

    def reachable(self, nodes: Iterable[str], *, without: str | None = None) -> set[str]:
        """Return these nodes and all that edges lead to from them, on ways that do not pass through `without`."""
        found: set[str] = set()
        queue = [node for node in nodes if node != without]
        while queue:
            node = queue.pop()
            if node not in found:
                found.add(node)
                queue.extend(
                    edge.target for edge in self.edges if edge.source == node and edge.target != without
                )
        return found

    def parts(self) -> Iterable[tuple[str, object]]:
        """Yield names with functions or classes: what tells two graphs of one name apart."""
        for name, node in self.nodes.items():
            work = node.work()
            yield name, getattr(work, "fn", work)
            inner = getattr(node, "graph", None)
            if isinstance(inner, WorkflowGraph):
                yield from ((f"{name}/{part}", fn) for part, fn in inner.parts())
            if isinstance(node, GateNode):
                for target, predicate in node.routes.items():
                    yield f"{name} -> {target}", predicate
        for edge in self.edges:
            yield f"{edge.source} -> {edge.target}", edge.condition
        for name, condition in self.terminals.items():
            yield f"{name} ends", condition
