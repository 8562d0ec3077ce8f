"""A node that is a graph itself. It runs as a part of the outer one: its nodes are in the same journal, as `sub/node`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from durable.patterns.graph.config import GraphConfig
from durable.patterns.graph.definition import WorkflowGraph
from durable.patterns.graph.nodes import AbstractWorkflowNode, NodeType, State


class SubworkflowNode(AbstractWorkflowNode):
    """A node that runs a graph, beginning at `entry`.

    The inner state is the outer one, or what that holds under `input_key`: a dict as it is, anything else as the key "input".
    In the end the inner state is merged into the outer, or written under `output_key`. (A key with a reducer in both graphs would be
    folded twice: leave it to one of them.) When an inner node asks a person, the
    outer run waits; when one fails, this node fails. Limits are those of the inner graph's own config.
    """

    node_type = NodeType.SUBWORKFLOW

    def __init__(
        self,
        name: str | None = None,
        *,
        workflow: Any,
        entry: str | None = None,
        input_key: str | None = None,
        output_key: str | None = None,
    ) -> None:
        super().__init__(name)
        graph = getattr(workflow, "graph", workflow)
        if not isinstance(graph, WorkflowGraph):
            raise TypeError(
                f"node {self.name!r} needs a WorkflowGraph or a WorkflowEngine to run, not {workflow!r}"
            )
        graph.starts(entry)
        self.graph = graph
        self.config: GraphConfig = workflow.config
        self.entry = entry
        self.input_key = input_key
        self.output_key = output_key

    def execute(self, state: State) -> Any:
        """Not called: the outer graph runs the inner one's nodes."""
        raise NotImplementedError(f"node {self.name!r} is a graph: run it by a WorkflowEngine")

    def input_of(self, state: Mapping[str, Any]) -> State:
        """Return the state with which the inner graph begins; KeyError if the outer one lacks it."""
        if self.input_key is None:
            return dict(state)
        value = state[self.input_key]
        return dict(value) if isinstance(value, Mapping) else {"input": value}

    def output_of(self, state: State, written: set[str], outer: Mapping[str, Any]) -> State:
        """Return what the end of the inner graph writes into the outer state.

        What came in with the outer state, and no inner node wrote, is not written back: it would conflict with others' writes.
        """
        if self.output_key is not None:
            return {self.output_key: state}
        return {
            key: value
            for key, value in state.items()
            if key in written or key not in outer or outer[key] != value
        }
