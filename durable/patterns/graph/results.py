"""What came out of a graph. Data; stored as the result of its run."""

from __future__ import annotations

from typing import Any

import msgspec


class NodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one node. `attempts` counts from 1; `duration_ms` goes from the asking to the record, retries included."""

    node_name: str
    output: dict[str, Any]
    status: str = "completed"
    attempts: int = 1
    duration_ms: float = 0.0

    @property
    def succeeded(self) -> bool:
        return self.status == "completed"


class GraphResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a graph that got to its end leaves. All values are plain JSON data.

    `final_state` holds what was given and what nodes wrote; `node_results` one entry per run of a node, in order; `iterations`
    their number; `terminated_at` the node at which it ended (of several the last declared).
    """

    final_state: dict[str, Any]
    node_results: list[NodeResult]
    iterations: int
    duration_ms: float
    terminated_at: str | None
    run_id: str

    @property
    def succeeded(self) -> bool:
        return all(result.succeeded for result in self.node_results)

    @property
    def output(self) -> Any:
        """The value under the key "output", where LLM, agent and tool nodes write by default; None if there is none."""
        return self.final_state.get("output")
