"""The graphs of the crash suite. Whatever dies, they end the same way, and every body leaves its trace.

Between them: a fan-out with a join, a subgraph, a cycle, a gate, a reducer, people, a graph that fails, one inside a workflow, nodes that call a
model, an agent and a tool, and a saga in a graph's node in a pipeline's step in a workflow.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable
from typing import Any, Final

from durable import (
    AbstractSaga,
    AbstractWorkflowNode,
    AgentNode,
    Client,
    Err,
    FunctionStep,
    GraphConfig,
    HumanInputRequiredError,
    HumanNode,
    LLMNode,
    Pipeline,
    RunStatus,
    SagaStep,
    SubworkflowNode,
    ToolNode,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowStateError,
    workflow,
)
from tests.support.crash_ledger import effect

DELAY: Final = 0.01  # seconds, after an attempt that was lost
State = dict[str, Any]

OUTCOMES: Final = {
    "order": RunStatus.COMPLETED,
    "careful": RunStatus.COMPLETED,
    "refused": RunStatus.FAILED,
    "minds": RunStatus.COMPLETED,
    "inside": RunStatus.COMPLETED,
    "nested": RunStatus.COMPLETED,
    "nested@1/line/graph#1/inner#1": RunStatus.COMPLETED,
    "nested@1/line/graph#1/inner#1@1/saga#1/Trip#1": RunStatus.COMPENSATED,
}
FINAL_STATE: Final = {
    "log": ["reserve", "pack", "label", "insure", "bill"],
    "rounds": 2,
    "approved": True,
    "boxed": True,
    "output": "shipped",
    "box": {"boxed": True, "sealed": True, "log": ["reserve"]},
}


def act(value: Any) -> Any:
    with effect() as done:
        done.value = value
        return value


MINDS_STATE: Final = {
    "item": "lamp",
    "risk": "low risk: lamp",
    "plan": "ship low risk: lamp",
    "parcel": {"id": 7, "for": "ship low risk: lamp", "item": "lamp"},
}


class Node(AbstractWorkflowNode):
    """A node that does what a function of the state says."""

    retry_delay = DELAY

    def __init__(self, name: str, output: Callable[[State], Any]) -> None:
        super().__init__(name)
        self._output = output

    async def execute(self, state: State) -> Any:
        return act(self._output(state))


class Threaded(Node):
    def execute(self, state: State) -> Any:  # type: ignore[override]  # in a thread
        return act(self._output(state))


def logging(name: str) -> Callable[[State], State]:
    return lambda state: {"log": [name]}


def chosen(*targets: str) -> Callable[[State], bool]:
    """A predicate that is true, and leaves what the record of the choice will be."""
    return lambda state: bool(act(list(targets)))


def again(state: State) -> bool:
    return bool(act(["round"] if state["rounds"] < 2 else ["ask"]) == ["round"])


def order(name: str, *, checkpoint_enabled: bool) -> WorkflowEngine:
    box = WorkflowBuilder("box").add_node(Node("fold", lambda state: {"boxed": True}))
    box.add_node(Threaded("seal", lambda state: {"sealed": True})).add_edge("fold", "seal")
    config = GraphConfig(checkpoint_enabled=checkpoint_enabled)
    builder = WorkflowBuilder(name, config, reducers={"log": operator.add})
    builder.add_node(Node("reserve", logging("reserve")))
    for part in ("pack", "label", "insure"):
        builder.add_node(Node(part, logging(part))).add_edge("reserve", part).add_edge(part, "bill")
    builder.add_node(SubworkflowNode("box", workflow=box.build(), output_key="box"))
    builder.add_edge("reserve", "box").add_edge("box", "bill")
    builder.add_node(Threaded("bill", lambda state: {"log": ["bill"], "boxed": state["box"]["boxed"]}))
    builder.add_node(Node("round", lambda state: {"rounds": state.get("rounds", 0) + 1}))
    builder.add_edge("bill", "round").add_edge("round", "round", condition=again)
    builder.add_edge("round", "ask", condition=lambda state: state["rounds"] == 2)
    builder.add_node(HumanNode("ask", prompt="Ship after {rounds}?", output_key="approved"))
    builder.add_gate("gate", {"ship": chosen("ship"), "cancel": lambda state: not state["approved"]})
    builder.add_edge("ask", "gate")
    builder.add_node(Node("ship", lambda state: {"output": "shipped"}))
    builder.add_node(Node("cancel", lambda state: {"output": "cancelled"}))
    return WorkflowEngine(builder.build())


waves: Final = order("order", checkpoint_enabled=False)
careful: Final = order("careful", checkpoint_enabled=True)


def refuse(state: State) -> Any:
    with effect():
        return Err("no truck")


refused: Final = WorkflowEngine(
    WorkflowBuilder("refused")
    .add_node(Node("a", logging("a")))
    .add_node("b", node=refuse)
    .add_edge("a", "b")
    .build()
)


# ─ minds ──


class Mind:
    """A model, an agent and a tool. What it comes to is left as the node's output."""

    async def complete(self, messages: list[Any], **options: Any) -> Any:
        return act({"risk": f"{options['model']} risk: {messages[-1].content}"})["risk"]

    async def run(self, message: str) -> Any:
        return act({"plan": f"ship {message}"})["plan"]

    def execute(self, args: State) -> Any:
        return act({"parcel": {"id": 7, "for": args["input"], "item": args["item"]}})["parcel"]


def thinking() -> WorkflowEngine:
    builder = WorkflowBuilder("minds").add_node(Node("ask", lambda state: {"item": "lamp"}))
    for node in (
        LLMNode(
            "score", llm=Mind(), prompt_template="{item}", output_key="risk", model="low", retry_delay=DELAY
        ),
        AgentNode("plan", agent=Mind(), message_template="{risk}", output_key="plan", retry_delay=DELAY),
        ToolNode(
            "pack",
            tool=Mind(),
            input_key="plan",
            output_key="parcel",
            extra_keys=("item",),
            retry_delay=DELAY,
        ),
    ):
        builder.add_node(node)
    builder.add_edge("ask", "score").add_edge("score", "plan").add_edge("plan", "pack")
    return WorkflowEngine(builder.build())


minds: Final = thinking()


# ─ one in the other ──


class Trip(AbstractSaga):
    def __init__(self) -> None:
        super().__init__()
        self.add_step(SagaStep("book", lambda: act("booked"), lambda: act("cancelled"), retry_delay=DELAY))
        self.add_step(SagaStep("pay", lambda: refuse({})))


async def saga(state: State) -> State:
    result = await Trip().execute()
    return dict(act({"undone": result.unwrap_err().compensated}))


class SagaNode(AbstractWorkflowNode):
    name = "saga"
    retry_delay = DELAY

    async def execute(self, state: State) -> State:
        return await saga(state)


inner: Final = WorkflowEngine(WorkflowBuilder("inner").add_node(SagaNode()).build())


async def graph(ctx: State) -> Any:
    done = (await inner.execute()).unwrap()
    return act(done.final_state)


line: Final = Pipeline("line", [FunctionStep("graph", graph, retry_delay=DELAY)])


@workflow
async def nested() -> Any:
    return await line.execute()


@workflow
async def inside() -> Any:
    """A graph as a part of a workflow."""
    return (await careful.execute()).unwrap().final_state


# ─ asking for all of it ──


async def execute_all() -> None:
    """Execute each of them in this process, under its id, answer what is asked, and return when all are closed."""
    async with asyncio.TaskGroup() as group:
        group.create_task(_answered(waves, "order"))
        group.create_task(_answered(careful, "careful"))
        group.create_task(_inside())
        group.create_task(refused.execute(run_id="refused"))
        group.create_task(minds.execute(run_id="minds"))
        group.create_task(nested(run_id="nested"))


async def _answered(engine: WorkflowEngine, run_id: str) -> None:
    """Execute a graph; when it asks, answer. It may have been answered before a death."""
    result = await engine.execute(run_id=run_id)
    while isinstance(result.unwrap_err() if result.is_err() else None, HumanInputRequiredError):
        try:
            result = await engine.resume(run_id, True)
        except WorkflowStateError:
            result = await engine.execute(run_id=run_id)
    result.unwrap()


async def _inside() -> None:
    run = await inside.start(run_id="inside")
    asking = asyncio.ensure_future(run.result())
    while not asking.done():
        await _answer_once(run.answer)
    await asking


async def _answer_once(answer: Callable[[bool], Any]) -> None:
    try:
        await answer(True)
    except WorkflowStateError:
        await asyncio.sleep(0.02)  # not asked yet, or answered


async def store_all(client: Client) -> None:
    """Store a run of each, for a worker."""
    runs = ((waves, "order"), (careful, "careful"), (refused, "refused"), (minds, "minds"))
    for engine, run_id in runs:
        (made,) = engine.__durable_workflows__()
        await client.start(made, run_id=run_id)
    await client.start(inside, run_id="inside")
    await client.start(nested, run_id="nested")


async def answer_all(client: Client) -> None:
    """Answer whatever is asked, until all runs that ask are closed."""
    for run_id in ("order", "careful", "inside"):
        while not (await client.describe(run_id)).status.is_closed:
            await _answer_once((await client.get(run_id)).answer)
