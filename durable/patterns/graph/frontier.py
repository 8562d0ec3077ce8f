"""Which nodes run next. Pure: counts fired edges, knows nothing of runs.

Theory. A node that an edge has fired is pending. One with several incoming edges waits for the others as long as they can still
fire, that is, as long as their source can be reached from something else that is pending, on a way that does not pass through the
node itself (so cycles do not block). If all that is pending waits for one another, the first declared goes. So a join runs once,
after the longest of its branches, whichever of them were taken.
"""

from __future__ import annotations

from collections.abc import Iterable

from durable.patterns.graph.definition import WorkflowGraph


class Frontier:
    """The pending nodes of one run of a graph."""

    def __init__(self, graph: WorkflowGraph) -> None:
        self._graph = graph
        self._pending: dict[str, set[str]] = {}  # node -> sources whose edges have fired since it ran last
        # (join, pending node) -> what can run before the join does
        self._reached: dict[tuple[str, str], set[str]] = {}

    def fire(self, source: str, targets: Iterable[str]) -> None:
        """Note that the edges from a node that ran to these targets have fired."""
        for target in targets:
            self._pending.setdefault(target, set()).add(source)

    def next_wave(self) -> list[str]:
        """Take the nodes that run next, in the order of declaration; none: the graph has ended."""
        pending = self._graph.in_order(self._pending)
        wave = [node for node in pending if not self._must_wait(node)] or pending[:1]
        for node in wave:
            del self._pending[node]
        return wave

    def _must_wait(self, node: str) -> bool:
        missing = self._graph.sources[node] - self._pending[node]
        return bool(missing) and any(
            missing & self._reach(node, other) for other in self._pending if other != node
        )

    def _reach(self, join: str, other: str) -> set[str]:
        key = (join, other)
        if key not in self._reached:
            self._reached[key] = self._graph.reachable([other], without=join)
        return self._reached[key]
