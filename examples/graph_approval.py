"""A graph that works side by side, asks a person, and goes where the answer says.

python examples/graph_approval.py                          # reserves and scores, then asks, and ends: nobody need wait
durable inbox
durable graph examples/graph_approval.py order-7           # where it stands
durable answer order-7 true
python examples/graph_approval.py                          # goes on after the question: nothing is reserved again
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable import Err, HumanInputRequiredError, HumanNode, WorkflowBuilder, WorkflowEngine, step

State = dict[str, Any]


@step(retries=5)
async def reserve(state: State) -> State:
    return {"reserved": f"{state['item']} in shelf 3"}


@step
async def score(state: State) -> State:
    return {"risk": len(state["item"]) / 10}


@step
async def ship(state: State) -> State:
    return {"output": f"shipped {state['reserved']}"}


@step
async def release(state: State) -> State:
    return {"output": f"released {state['reserved']}"}


builder = WorkflowBuilder("order")
builder.add_node(reserve).add_node(score)
builder.add_node(HumanNode("approve", prompt="Ship {item}? The risk is {risk}.", output_key="approved"))
builder.add_gate("decide", {"ship": lambda s: s["approved"], "release": lambda s: not s["approved"]})
builder.add_node(ship).add_node(release)
builder.add_edge("reserve", "approve").add_edge("score", "approve").add_edge("approve", "decide")

engine = WorkflowEngine(builder.build())


async def main() -> None:
    result = await engine.execute(initial_state={"item": "lamp"}, run_id="order-7")
    match result:
        case Err(HumanInputRequiredError() as asked):
            print(f"{asked.prompt}  durable answer {asked.run_id} true")
        case Err(error):
            print(f"failed: {error}")
        case _:
            print(result.unwrap().output)


if __name__ == "__main__":
    asyncio.run(main())
