"""Builds graphs, and says all that is wrong with one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Self

from durable import Seconds, Workflow
from durable.patterns.graph.config import GraphConfig
from durable.patterns.graph.definition import Edge, Reducer, WorkflowGraph
from durable.patterns.graph.engine import WorkflowEngine
from durable.patterns.graph.errors import GraphValidationError
from durable.patterns.graph.nodes import (
    AbstractWorkflowNode,
    FunctionNode,
    GateNode,
    HumanNode,
    Predicate,
)
from durable.patterns.graph.services import AgentNode, LLMNode, ToolNode
from durable.patterns.graph.subgraph import SubworkflowNode
from durable.patterns.running import joined_name


class WorkflowBuilder:
    """Collects nodes and edges, in any order; `build` checks them and makes the graph.

    `version` must be raised when a change breaks open runs. `reducers` say, by key, how a value that is there and a new one
    become one: `reducer(old, new)`; it is not called for the first value. It must depend on these alone: it is called in replays, too.
    `retention` (seconds, timedelta or "forever") is how long runs are kept once they are closed, as with `@workflow`.
    Without a name the graph is called by its nodes' names.
    """

    def __init__(
        self,
        name: str | None = None,
        config: GraphConfig | None = None,
        *,
        version: int = 1,
        reducers: Mapping[str, Reducer] | None = None,
        retention: Seconds | Literal["forever"] | None = None,
    ) -> None:
        self._name = name
        self._config = config or GraphConfig()
        self._version = version
        self._retention = retention
        self._reducers = dict(reducers or {})
        self._nodes: list[tuple[str, AbstractWorkflowNode]] = []
        self._edges: list[Edge] = []
        self._entry: str | None = None
        self._terminals: dict[str, Predicate | None] = {}

    def add_node(
        self,
        name: str | AbstractWorkflowNode | Callable[..., Any],
        *,
        node: AbstractWorkflowNode | Callable[..., Any] | None = None,
        llm: Any = None,
        agent: Any = None,
        tool: Any = None,
        subworkflow: Any = None,
        human_prompt: str | None = None,
        prompt: str | None = None,
        output_key: str | None = None,
    ) -> Self:
        """Add a node: an object, a function or activity; or a name with what is to be done under it.

        `llm=`, `agent=`, `tool=`, `subworkflow=` and `human_prompt=` make a node of that kind. `prompt` is the template of an LLM's prompt or an
        agent's message, `output_key` where the node writes.
        """
        kinds = {
            "node": node,
            "llm": llm,
            "agent": agent,
            "tool": tool,
            "subworkflow": subworkflow,
            "human_prompt": human_prompt,
        }
        given = [kind for kind, value in kinds.items() if value is not None]
        if not isinstance(name, str):
            if given:
                raise TypeError(f"give a node, or a name with {given[0]}=, not both")
            made = as_node(name)
            self._nodes.append((made.name, made))
            return self
        if len(given) != 1:
            raise TypeError(
                f"node {name!r} needs one of {', '.join(f'{kind}=' for kind in kinds)}; given: {given or 'none'}"
            )
        options = {"prompt": prompt, "output_key": output_key}
        self._nodes.append((name, _made(name, given[0], kinds[given[0]], options)))
        return self

    def add_gate(self, name: str, routes: Mapping[str, Predicate]) -> Self:
        """Add a gate, with an edge to each target, which may be added later. All targets follow whose `predicate(state)` is true."""
        return self.add_node(GateNode(name, routes))

    def add_edge(self, a: str, b: str, *, condition: Predicate | None = None) -> Self:
        """Let node `b` follow node `a`: always, or if `condition(state)` is true, which is journaled."""
        if condition is not None and not callable(condition):
            raise TypeError(
                f"the condition of edge {a!r} -> {b!r} is a predicate of the state, not {condition!r}"
            )
        self._edges.append(Edge(a, b, condition))
        return self

    def set_entry(self, node: str) -> Self:
        """Begin there, unless `execute` is told otherwise."""
        self._entry = node
        return self

    def set_terminal(self, node: str, *, condition: Predicate | None = None) -> Self:
        """Let nothing follow a node: ever, or if `condition(state)` is true once it is merged."""
        self._terminals[node] = condition
        return self

    def build(self) -> WorkflowGraph:
        """Return the graph. Raises `GraphValidationError`, which names all that is wrong."""
        routes = [
            Edge(name, target)
            for name, node in self._nodes
            if isinstance(node, GateNode)
            for target in node.routes
        ]
        edges = [*self._edges, *routes]
        name = self._name or joined_name("graph", (name for name, _ in self._nodes))
        problems = list(self._problems(edges))
        if not problems:
            graph = WorkflowGraph(
                name,
                nodes=dict(self._nodes),
                edges=edges,
                config=self._config,
                version=self._version,
                retention=self._retention,
                entry=self._entry,
                terminals=self._terminals,
                reducers=self._reducers,
                serve=_served,
            )
            problems = list(_unreachable(graph))
            if not problems:
                return graph
        raise GraphValidationError(f"graph {name!r} is not right: {'; '.join(problems)}")

    def _problems(self, edges: list[Edge]) -> Iterator[str]:
        names = Counter(name for name, _ in self._nodes)
        if not names:
            yield "it has no nodes"
        for name, count in names.items():
            if count > 1:
                yield f"{count} nodes are called {name!r}"
            if not isinstance(name, str) or not name or not name.isprintable() or "/" in name:
                yield f"{name!r} is no name for a node: printable text without a slash"
        for (a, b), count in Counter((edge.source, edge.target) for edge in edges).items():
            missing = [repr(end) for end in dict.fromkeys((a, b)) if end not in names]
            if missing:
                yield f"the edge {a!r} -> {b!r} hangs in the air: there is no node {' and no node '.join(missing)}"
            if count > 1:
                yield f"{count} edges lead from {a!r} to {b!r}"
        for what, node in [("entry", self._entry), *(("terminal", node) for node in self._terminals)]:
            if what == "terminal" and any(
                name == node and isinstance(one, GateNode) for name, one in self._nodes
            ):
                yield f"gate {node!r} cannot be an end: it chooses what follows"
            if node is not None and node not in names:
                yield f"there is no node {node!r}, which is to be {'the entry' if what == 'entry' else 'an end'}"


def _served(graph: WorkflowGraph) -> Iterable[Workflow[..., Any]]:
    return WorkflowEngine(graph).__durable_workflows__()


def _unreachable(graph: WorkflowGraph) -> Iterator[str]:
    if graph.entry is not None:
        lost = [node for node in graph.nodes if node not in graph.reachable([graph.entry])]
        if lost:
            yield f"nothing leads from the entry {graph.entry!r} to {', '.join(map(repr, lost))}"


def as_node(
    value: AbstractWorkflowNode | Callable[..., Any], name: str | None = None
) -> AbstractWorkflowNode:
    """Return a node as it is, and one made of a function or activity."""
    if isinstance(value, AbstractWorkflowNode):
        if not value.name:
            raise TypeError(
                f"{type(value).__name__} needs a name: as a class attribute, or by super().__init__(name)"
            )
        return value
    if isinstance(value, type) and issubclass(value, AbstractWorkflowNode):
        raise TypeError(f"add a node, {value.__name__}(...), not its class")
    return FunctionNode(name, value)


def _made(name: str, kind: str, value: Any, options: Mapping[str, str | None]) -> AbstractWorkflowNode:
    """Return the node of a kind; TypeError for an option that this kind does not have."""
    template = {"llm": "prompt_template", "agent": "message_template"}.get(kind)
    takes = {"prompt": template, "output_key": None if kind == "node" else "output_key"}
    chosen: dict[str, Any] = {}
    for option, given in options.items():
        if given is not None:
            target = takes[option]
            if target is None:
                raise TypeError(f"node {name!r}, given by {kind}=, takes no {option}=")
            chosen[target] = given
    match kind:
        case "node":
            return as_node(value, name)
        case "llm":
            return LLMNode(name, llm=value, **chosen)
        case "agent":
            return AgentNode(name, agent=value, **chosen)
        case "tool":
            return ToolNode(name, tool=value, **chosen)
        case "subworkflow":
            return SubworkflowNode(name, workflow=value, **chosen)
        case _:
            return HumanNode(name, prompt=value, **chosen)
