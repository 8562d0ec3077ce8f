"""A graph with a cycle: a model drafts, a critic looks, until it is good or has been tried often enough.

python examples/graph_writing.py
durable graph examples/graph_writing.py --format mermaid
"""

from __future__ import annotations

import asyncio
import operator
from typing import Any

from durable import GraphConfig, LLMNode, Ok, WorkflowBuilder, WorkflowEngine

State = dict[str, Any]


class Model:
    """Stands for a language model: any object with `complete(messages, ...)`."""

    async def complete(self, messages: list[Any], **options: Any) -> Ok[str]:
        return Ok(messages[-1].content.upper())


def collect(state: State) -> State:
    return {"drafts": [state["draft"]]}


def critic(state: State) -> State:
    return {"is_good": len(state["drafts"]) == 3}


# `drafts` are added up; without a reducer the later value takes the place of the earlier.
builder = WorkflowBuilder("writing", GraphConfig(max_iterations=12), reducers={"drafts": operator.add})
builder.add_node(LLMNode("write", llm=Model(), prompt_template="On {topic}", output_key="draft"))
builder.add_node(collect).add_node(critic)
builder.add_edge("write", "collect").add_edge("collect", "critic")
builder.add_edge("critic", "write", condition=lambda state: not state["is_good"])

engine = WorkflowEngine(builder.build())


async def main() -> None:
    result = await engine.execute(initial_state={"topic": "durability", "drafts": []})
    done = result.unwrap()
    drafts = done.final_state["drafts"]
    print(f"{len(drafts)} drafts, {done.iterations} nodes ran, the last draft: {drafts[-1]}")


if __name__ == "__main__":
    asyncio.run(main())
