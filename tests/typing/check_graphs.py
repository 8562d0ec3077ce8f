"""What a type checker knows of graphs and questions. Never run."""

from __future__ import annotations

from typing import Any, assert_type

import durable
from durable import (
    AbstractWorkflowNode,
    Ask,
    Err,
    GraphConfig,
    GraphExecutionError,
    GraphResult,
    HumanInputRequiredError,
    HumanNode,
    Ok,
    RunHandle,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowGraph,
    WorkflowRunner,
    step,
)


class Fetch(AbstractWorkflowNode):
    name = "fetch"
    retries = 5

    async def execute(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"n": 1}


class Approve(HumanNode):
    name = "approve"
    prompt = "Well?"


@step
async def ship(state: dict[str, Any]) -> dict[str, Any]:
    return {}


builder = WorkflowBuilder("order", GraphConfig(max_iterations=5), reducers={"n": lambda old, new: old + new})
builder.add_node(Fetch()).add_node(Approve()).add_node(ship).add_node("more", node=lambda state: None)
builder.add_gate("gate", {"ship": lambda state: True}).add_edge(
    "fetch", "approve", condition=lambda state: True
)
assert_type(builder.build(), WorkflowGraph)
engine = WorkflowEngine(builder.build(), config=GraphConfig(on_conflict="last"))
GraphConfig(max_iteration=5)  # type: ignore[call-arg]
GraphConfig(on_conflict="first")  # type: ignore[arg-type]
builder.add_edge("a", "b", condition=True)  # type: ignore[arg-type]


async def main() -> None:
    result = await engine.execute(initial_state={"x": 1}, run_id="r")
    assert_type(result, Ok[GraphResult] | Err[GraphExecutionError])
    assert_type(await engine.resume("r", True, node="approve"), Ok[GraphResult] | Err[GraphExecutionError])
    match result:
        case Ok(done):
            assert_type(done.final_state, dict[str, Any])
        case Err(HumanInputRequiredError() as asked):
            assert_type(asked.checkpoint_id, str | None)
            await WorkflowRunner(engine).resume(checkpoint_id=asked.checkpoint_id or "", input=True)
        case Err(error):
            assert_type(error.run_id, str)
    assert_type(await engine.start(), RunHandle[GraphResult])
    assert_type(await durable.inbox(), list[Ask])
    await durable.answer("r", True, name="approve")
    print(engine.view(await durable.get_run("r")).mermaid())
