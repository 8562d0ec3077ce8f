"""A graph as a picture, with the state of a run in it, if wanted: data, mermaid, dot, or SVG. Draws; reads nothing.

What a run did is read off its story: a node's last entry is its state, and an edge was taken if its source ended and, where it had a
choice, chose its target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

import msgspec

from durable import Entry, Run
from durable.patterns.graph.definition import WorkflowGraph
from durable.patterns.graph.nodes import GateNode
from durable.patterns.graph.subgraph import SubworkflowNode
from durable.patterns.graph.svg import drawn

_MERMAID_SHAPES: Final = {
    "gate": ('{"', '"}'),
    "human": ('[/"', '"/]'),
    "subworkflow": ('[["', '"]]'),
}
_DOT_SHAPES: Final = {"gate": "diamond", "human": "parallelogram", "subworkflow": "box3d"}
_COLOURS: Final = {
    "completed": "#c8e6c9",
    "received": "#c8e6c9",
    "running": "#b3e5fc",
    "scheduled": "#b3e5fc",
    "retrying": "#fff9c4",
    "waiting": "#bbdefb",
    "failed": "#ffcdd2",
    "cancelled": "#ffe0b2",
}
_DONE: Final = ("completed", "received")


class NodeView(msgspec.Struct, kw_only=True):
    """One node. `path` is its name, within subgraphs `sub/name`; `status` that of its last run, "" if there was none."""

    path: str
    kind: str
    status: str = ""
    runs: int = 0
    attempts: int = 0
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None
    prompt: str = ""
    is_start: bool = False


class EdgeView(msgspec.Struct, kw_only=True):
    """One edge, by the paths of its ends. `is_inner` leads from a subgraph's node to where the subgraph begins."""

    source: str
    target: str
    is_conditional: bool = False
    is_taken: bool = False
    is_inner: bool = False


class GraphView(msgspec.Struct, kw_only=True):
    """A graph to be drawn, the nodes of its subgraphs included."""

    name: str
    version: int
    run_id: str = ""
    status: str = ""
    nodes: list[NodeView]
    edges: list[EdgeView]

    def mermaid(self) -> str:
        """Return it as a mermaid flowchart."""
        return "\n".join(_mermaid(self)) + "\n"

    def dot(self) -> str:
        """Return it in the language of Graphviz."""
        return "\n".join(_dot(self)) + "\n"

    def svg(self) -> str:
        """Return it as a picture by itself, for a browser."""
        title = f"{self.name} · {self.run_id} {self.status}" if self.run_id else self.name
        return drawn(title, [(node, _label(node)) for node in self.nodes], self.edges, _COLOURS)


def view_of(graph: WorkflowGraph, run: Run | None = None) -> GraphView:
    """Return a graph, with what a run of it, or one that it is part of, did."""
    entries = {} if run is None else _entries(run, "" if run.kind == "graph" else f"{graph.name}/")
    nodes: list[NodeView] = []
    edges: list[EdgeView] = []
    _collect(graph, "", entries, nodes, edges)
    for name in graph.starts():
        next(node for node in nodes if node.path == name).is_start = True
    return GraphView(
        name=graph.name,
        version=graph.version,
        run_id="" if run is None else run.run_id,
        status="" if run is None else str(run.status),
        nodes=nodes,
        edges=edges,
    )


def _entries(run: Run, prefix: str) -> dict[str, list[Entry]]:
    """Return the entries of the story by their path within the graph."""
    found: dict[str, list[Entry]] = {}
    for entry in run.journal:
        if entry.name.startswith(prefix) and (entry.is_activity or entry.kind == "signal"):
            found.setdefault(entry.name.removeprefix(prefix), []).append(entry)
    return found


def _collect(
    graph: WorkflowGraph,
    prefix: str,
    entries: Mapping[str, list[Entry]],
    nodes: list[NodeView],
    edges: list[EdgeView],
) -> None:
    for name, node in graph.nodes.items():
        path = f"{prefix}{name}"
        view = NodeView(path=path, kind=str(node.node_type))
        nodes.append(view)
        if isinstance(node, SubworkflowNode):
            first = len(nodes)
            inner = [
                EdgeView(source=path, target=f"{path}/{start}", is_inner=True)
                for start in node.graph.starts(node.entry)
            ]
            edges.extend(inner)
            _collect(node.graph, f"{path}/", entries, nodes, edges)
            _summarise(view, nodes[first:])
            for edge_in in inner:
                edge_in.is_taken = bool(view.status)
        else:
            _fill(view, [entry for entry in entries.get(path, []) if entry.kind != "predicate"])
        chosen = _chosen(view, entries)
        is_choice = isinstance(node, GateNode)
        for edge in graph.outgoing(name):
            is_taken = view.status in _DONE if chosen is None else edge.target in chosen
            edges.append(
                EdgeView(
                    source=path,
                    target=f"{prefix}{edge.target}",
                    is_conditional=is_choice or edge.condition is not None,
                    is_taken=is_taken,
                )
            )


def _fill(view: NodeView, entries: list[Entry]) -> None:
    if entries:
        last = entries[-1]
        view.status, view.runs, view.attempts = str(last.status), len(entries), last.attempts
        view.started_at, view.finished_at = last.started_at, last.finished_at
        view.error, view.prompt = last.error, last.prompt


def _summarise(view: NodeView, inner: list[NodeView]) -> None:
    """A subgraph is where its nodes are: the worst of them, or the one that is not done."""
    reached = [node for node in inner if node.status]
    if not reached:
        return
    open_ones = [node for node in reached if node.status not in _DONE]
    view.status = open_ones[0].status if open_ones else "completed"
    view.runs = 1
    view.started_at = min((node.started_at for node in reached if node.started_at), default=None)
    ends = [node.finished_at for node in reached]
    view.finished_at = (
        max((end for end in ends if end is not None), default=None) if None not in ends else None
    )


def _chosen(view: NodeView, entries: Mapping[str, list[Entry]]) -> set[str] | None:
    """Return all targets that the node has ever chosen; None if it had no choice."""
    asked = entries.get(f"{view.path}/edges", [])
    choices = [entry for entry in asked if entry.kind == "predicate"]
    choices += [entry for entry in entries.get(view.path, []) if entry.kind == "gate"]
    if not choices and view.kind != "gate":
        return None
    return {target for entry in choices if isinstance(entry.result, list) for target in entry.result}


# ─ mermaid and dot ───────────────────────────────────────────────────────────


def _label(node: NodeView) -> str:
    name = node.path.rpartition("/")[2]
    times = f" ×{node.runs}" if node.runs > 1 else ""
    return f"{name}{times}"


def _groups(view: GraphView) -> Iterator[tuple[int, str, NodeView | None]]:
    """Yield the nodes with their depth, and, before the nodes of a subgraph, its path."""
    open_path: list[str] = []
    for node in view.nodes:
        parent = node.path.rpartition("/")[0]
        while open_path and not f"{parent}/".startswith(f"{open_path[-1]}/"):
            open_path.pop()
            yield len(open_path), "", None
        if parent and (not open_path or open_path[-1] != parent):
            yield len(open_path), parent, None
            open_path.append(parent)
        yield len(open_path), "", node
    while open_path:
        open_path.pop()
        yield len(open_path), "", None


def _mermaid(view: GraphView) -> Iterator[str]:
    numbers = {node.path: number for number, node in enumerate(view.nodes)}
    yield "flowchart TD"
    for depth, group, node in _groups(view):
        indent = "    " * (depth + 1)
        if node is not None:
            left, right = _MERMAID_SHAPES.get(node.kind, ('["', '"]'))
            state = f":::{node.status}" if node.status in _COLOURS else ""
            yield f"{indent}n{numbers[node.path]}{left}{_mermaid_text(_label(node))}{right}{state}"
        elif group:
            yield f'{indent}subgraph g{numbers[group]}["{_mermaid_text(group)}"]'
        else:
            yield f"{indent}end"
    for edge in view.edges:
        arrow = "-.->" if edge.is_conditional or edge.is_inner else "-->"
        yield f"    n{numbers[edge.source]} {arrow} n{numbers[edge.target]}"
    taken = [str(number) for number, edge in enumerate(view.edges) if edge.is_taken]
    if taken:
        yield f"    linkStyle {','.join(taken)} stroke:#2e7d32,stroke-width:3px"
    for status in sorted({node.status for node in view.nodes} & set(_COLOURS)):
        yield f"    classDef {status} fill:{_COLOURS[status]},stroke:#37474f,color:#000"


def _mermaid_text(text: str) -> str:
    return text.replace("&", "#amp;").replace('"', "#quot;").replace("<", "#lt;").replace(">", "#gt;")


def _dot(view: GraphView) -> Iterator[str]:
    yield f"digraph {_dot_text(view.name)} {{"
    yield '    node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif"];'
    for depth, group, node in _groups(view):
        indent = "    " * (depth + 1)
        if node is not None:
            options = [f"label={_dot_text(_label(node))}"]
            if node.kind in _DOT_SHAPES:
                options.append(f"shape={_DOT_SHAPES[node.kind]}, style=filled")
            if node.status in _COLOURS:
                options.append(f'fillcolor="{_COLOURS[node.status]}"')
            yield f"{indent}{_dot_text(node.path)} [{', '.join(options)}];"
        elif group:
            yield f"{indent}subgraph {_dot_text(f'cluster {group}')} {{"
            yield f"{indent}    label={_dot_text(group)};"
        else:
            yield f"{indent}}}"
    for edge in view.edges:
        options = ["style=dashed"] if edge.is_conditional or edge.is_inner else []
        options += ['color="#2e7d32"', "penwidth=2"] if edge.is_taken else []
        tail = f" [{', '.join(options)}]" if options else ""
        yield f"    {_dot_text(edge.source)} -> {_dot_text(edge.target)}{tail};"
    yield "}"


def _dot_text(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
