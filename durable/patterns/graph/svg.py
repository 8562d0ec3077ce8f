"""A graph as SVG: layers from top to bottom, as few crossings as a few sweeps give. Pure; needs no program beside.

Theory. An edge that would close a cycle is left out of the layout. A node's layer is the length of the longest path to it; what follows
a subgraph lies below the subgraph's nodes. Within a layer nodes are put in order of the mean place of their neighbours, downward and
upward in turns. Edges that lead back run along the right side.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Final, Protocol

HEIGHT: Final = 40
WIDTH_MIN: Final = 110
CHARACTER: Final = 8  # pixels, about
LABEL_MAX: Final = 32  # characters
GAP_X: Final = 36
GAP_Y: Final = 46
MARGIN: Final = 20
HEAD: Final = 34
SWEEPS: Final = 4
TAKEN: Final = "#2e7d32"
LINE: Final = "#546e7a"


class Node(Protocol):
    """A node to be drawn."""

    @property
    def path(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def status(self) -> str: ...


class Edge(Protocol):
    """An edge to be drawn, by the paths of its ends."""

    @property
    def source(self) -> str: ...
    @property
    def target(self) -> str: ...
    @property
    def is_conditional(self) -> bool: ...
    @property
    def is_taken(self) -> bool: ...
    @property
    def is_inner(self) -> bool: ...


def drawn(
    title: str, nodes: Sequence[tuple[Node, str]], edges: Sequence[Edge], colours: Mapping[str, str]
) -> str:
    """Return the picture of (node, label) pairs and edges. `colours` are those of statuses."""
    layers = _ordered(_layers([node.path for node, _ in nodes], edges), edges)
    labels = {node.path: _cut(label) for node, label in nodes}
    widths = {path: max(WIDTH_MIN, CHARACTER * len(label) + 30) for path, label in labels.items()}
    places, width, height = _placed(layers, widths)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" height="{height:g}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        *(_arrowhead(colour) for colour in (LINE, TAKEN)),
        f'<text x="{MARGIN}" y="{MARGIN + 4}" font-weight="bold">{escape(title)}</text>',
    ]
    lines.extend(_edge(edge, places, widths, width) for edge in edges)
    for node, _ in nodes:
        lines.extend(_node(node, labels[node.path], places[node.path], widths[node.path], colours))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _cut(label: str) -> str:
    return label if len(label) <= LABEL_MAX else f"{label[: LABEL_MAX - 1]}…"


# ─ where things are ──


def _layers(paths: Sequence[str], edges: Sequence[Edge]) -> list[list[str]]:
    below: dict[str, list[str]] = {path: [] for path in paths}
    for edge in edges:
        below[edge.source].append(edge.target)
        if not edge.is_inner:  # what follows a subgraph lies below all of it
            for path in paths:
                if path.startswith(f"{edge.source}/"):
                    below[path].append(edge.target)
    depth = dict.fromkeys(paths, 0)
    for path in _sorted(below):
        for target in below[path]:
            depth[target] = max(depth[target], depth[path] + 1)
    layers: list[list[str]] = [[] for _ in range(max(depth.values(), default=0) + 1)]
    for path in paths:
        layers[depth[path]].append(path)
    return [layer for layer in layers if layer]


def _sorted(below: dict[str, list[str]]) -> list[str]:
    """Return the nodes so that edges lead forward; take those out of `below` that lead back."""
    done: list[str] = []
    state: dict[str, int] = {}  # 1: on the way, 2: done
    for root in below:
        if root in state:
            continue
        state[root] = 1
        stack = [(root, iter(list(below[root])))]
        while stack:
            path, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                state[path] = 2
                done.append(path)
                stack.pop()
            elif state.get(target) == 1:
                below[path] = [one for one in below[path] if one != target]
            elif target not in state:
                state[target] = 1
                stack.append((target, iter(list(below[target]))))
    return done[::-1]


def _ordered(layers: list[list[str]], edges: Sequence[Edge]) -> list[list[str]]:
    near: dict[str, list[str]] = {path: [] for layer in layers for path in layer}
    for edge in edges:
        near[edge.source].append(edge.target)
        near[edge.target].append(edge.source)
    for sweep in range(SWEEPS):
        upward = bool(sweep % 2)
        sequence = layers[::-1] if upward else layers
        at: dict[str, float] = {}
        for layer in sequence:
            places = {path: index / len(layer) for index, path in enumerate(layer)}

            def mean(path: str, places: dict[str, float] = places, at: dict[str, float] = at) -> float:
                known = [at[one] for one in near[path] if one in at]
                return sum(known) / len(known) if known else places[path]

            layer.sort(key=mean)
            at.update((path, (index + 0.5) / len(layer)) for index, path in enumerate(layer))
    return layers


def _placed(
    layers: Sequence[Sequence[str]], widths: Mapping[str, int]
) -> tuple[dict[str, tuple[float, float]], float, float]:
    """Return the middle of each node, and the size of the picture."""
    spans = [sum(widths[path] for path in layer) + GAP_X * (len(layer) - 1) for layer in layers]
    inner = max(spans, default=0)
    places: dict[str, tuple[float, float]] = {}
    y = MARGIN + HEAD + HEIGHT / 2
    for layer, span in zip(layers, spans, strict=True):
        x = MARGIN + (inner - span) / 2
        for path in layer:
            places[path] = (x + widths[path] / 2, y)
            x += widths[path] + GAP_X
        y += HEIGHT + GAP_Y
    return places, inner + 2 * MARGIN + GAP_X, y - GAP_Y - HEIGHT / 2 + MARGIN


# ─ what they look like ──


def _arrowhead(colour: str) -> str:
    return (
        f'<marker id="head{colour[1:]}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


def _edge(
    edge: Edge, places: Mapping[str, tuple[float, float]], widths: Mapping[str, int], width: float
) -> str:
    (x1, y1), (x2, y2) = places[edge.source], places[edge.target]
    half = HEIGHT / 2
    if y2 > y1:
        middle = (y1 + y2) / 2
        path = f"M{x1:g} {y1 + half:g}C{x1:g} {middle:g} {x2:g} {middle:g} {x2:g} {y2 - half:g}"
    else:  # back, or round to itself
        side = width - MARGIN / 2
        left, right = x1 + widths[edge.source] / 2, x2 + widths[edge.target] / 2
        path = f"M{left:g} {y1 + 6:g}C{side:g} {y1 + 30:g} {side:g} {y2 - 30:g} {right:g} {y2 - 6:g}"
    colour = TAKEN if edge.is_taken else LINE
    dashed = ' stroke-dasharray="5 4"' if edge.is_conditional or edge.is_inner else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{2.5 if edge.is_taken else 1.3}"{dashed} '
        f'marker-end="url(#head{colour[1:]})"/>'
    )


def _node(
    node: Node, label: str, place: tuple[float, float], width: int, colours: Mapping[str, str]
) -> Iterator[str]:
    x, y = place
    fill = colours.get(node.status, "#ffffff")
    style = f'fill="{fill}" stroke="#37474f"'
    left, top, half = x - width / 2, y - HEIGHT / 2, HEIGHT / 2
    said = f"{node.path} ({node.kind}){f': {node.status}' if node.status else ''}"
    yield f"<g><title>{escape(said)}</title>"
    if node.kind == "gate":
        yield f'<polygon points="{x:g},{top:g} {x + width / 2:g},{y:g} {x:g},{y + half:g} {left:g},{y:g}" {style}/>'
    else:
        rounded = 0 if node.kind == "subworkflow" else 20 if node.kind == "human" else 6
        doubled = ' stroke-width="2.5"' if node.kind == "subworkflow" else ""
        yield f'<rect x="{left:g}" y="{top:g}" width="{width}" height="{HEIGHT}" rx="{rounded}" {style}{doubled}/>'
    yield f'<text x="{x:g}" y="{y + 5:g}" text-anchor="middle">{escape(label)}</text></g>'
