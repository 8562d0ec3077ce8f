"""Patterns in patterns, for the crash suite. Whatever dies, they end the same way, and what has an effect leaves its trace.

Between them: each kind of saga in a step of each other, with a bulk operation innermost; a saga with an id of its own that a workflow waits for; a
state machine in a workflow and in an activity of it; a graph whose subgraph asks a person, and of which one node runs a saga.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from durable import (
    AbstractSaga,
    BulkOperation,
    BulkOperationConfig,
    Client,
    Err,
    HumanInputRequiredError,
    HumanNode,
    OrchestratedStep,
    RunStatus,
    SagaBase,
    SagaConfig,
    SagaContext,
    SagaManager,
    SagaOrchestrator,
    SagaStep,
    StateMachine,
    SubworkflowNode,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowStateError,
    activity,
    saga_step,
    workflow,
)
from tests.support.crash_ledger import effect

DELAY: Final = 0.01  # seconds, after an attempt that was lost
CONFIG: Final = SagaConfig(retry_delay_seconds=DELAY)
# Which kind has which in its step, from the outside in; all of them fail behind it, and are undone.
CHAINS: Final = {"abc": "ABC", "bca": "BCA", "cab": "CAB"}
OUTCOMES: Final = {
    **dict.fromkeys(CHAINS, RunStatus.COMPENSATED),
    "waits": RunStatus.COMPLETED,
    "own": RunStatus.COMPENSATED,
    "order": RunStatus.COMPLETED,
}
RESULTS: Final = {
    "waits": ["open", ["shut", "open"], "compensated", "shut"],
    "order": {"item": "lamp", "picked": True, "approved": True, "saga": "compensated", "shipped": True},
}


def act(value: Any) -> Any:
    with effect() as done:
        done.value = value
        return value


def in_context(output: Any) -> Any:
    """Act, and log what the journal entry of a step on a SagaContext will hold."""
    act({"output": output})
    return output


def refused() -> Any:
    with effect():
        return Err("no truck")


# ─ sagas in sagas ──


async def process(item: int) -> int:
    return int(act(item * 10))


items: Final = BulkOperation(
    process, BulkOperationConfig(batch_size=2, max_concurrency=2, retry_delay=DELAY), name="items"
)


async def perform(kinds: str) -> str:
    """Run a saga of the first of the kinds, with the others in it; the innermost one has a bulk operation."""
    if not kinds:
        return str((await items.execute(range(3))).unwrap().results)
    if kinds[0] == "A":
        return "completed" if (await Abstract(kinds[1:]).execute()).is_ok() else "compensated"
    runtime = manager if kinds[0] == "B" else orchestrator
    record = await runtime.wait(await runtime.start(NAMES[kinds[0]], {"inner": kinds[1:]}))
    return str(record.status)


class Abstract(AbstractSaga):
    def __init__(self, inner: str) -> None:
        super().__init__()
        self.inner = inner
        self.add_step(SagaStep("first", lambda: act("first"), lambda: act("undone"), retry_delay=DELAY))
        self.add_step(SagaStep("nest", self.nest, lambda: act("undone"), retry_delay=DELAY))
        self.add_step(SagaStep("last", refused))

    async def nest(self) -> str:
        return str(act(await perform(self.inner)))


class Managed(SagaBase):
    @saga_step(compensation=lambda: in_context(None))
    async def first(self) -> str:
        return str(in_context("first"))

    @saga_step(compensation=lambda: in_context(None))
    async def nest(self, ctx: SagaContext) -> str:
        return str(in_context(await perform(ctx["inner"])))

    @saga_step()
    async def last(self) -> Any:
        return refused()


class First:
    async def execute(self, ctx: SagaContext) -> str:
        return str(in_context("first"))

    async def compensate(self, ctx: SagaContext) -> None:
        in_context(None)


class Nest(First):
    async def execute(self, ctx: SagaContext) -> str:
        return str(in_context(await perform(ctx["inner"])))


manager: Final = SagaManager(config=CONFIG)
manager.register(Managed)
orchestrator: Final = SagaOrchestrator(config=CONFIG)
orchestrator.define(
    "Table",
    [
        OrchestratedStep("first", First(), max_retries=3),
        OrchestratedStep("nest", Nest(), max_retries=3),
        OrchestratedStep("last", lambda: refused(), max_retries=3),
    ],
)
NAMES: Final = {"B": "Managed", "C": "Table"}

# ─ in a workflow ──


def door(machine_id: str) -> StateMachine:
    return StateMachine("shut", {"shut": {"open": "open"}, "open": {"shut": "shut"}}, machine_id=machine_id)


@activity
async def swing() -> list[str]:
    machine = door("inner")
    with effect() as done:
        done.value = [await machine.transition("open"), await machine.transition("shut")][::-1]
        return list(done.value)


@workflow
async def waits() -> list[Any]:
    machine = door("outer")
    told: list[Any] = [await machine.transition("open"), await swing()]
    record = await manager.wait(await manager.start("Managed", {"inner": ""}, saga_id="own"))
    return [*told, str(record.status), await machine.transition("shut")]


# ─ in a graph ──


def writes(**values: Any) -> Any:
    return lambda state: act(values)


async def run_saga(state: dict[str, Any]) -> dict[str, Any]:
    return dict(act({"saga": await perform("CA")}))


asking: Final = (
    WorkflowBuilder("asking")
    .add_node("pick", node=writes(picked=True))
    .add_node(HumanNode("ask", prompt="Ship {item}?", output_key="approved"))
    .add_edge("pick", "ask")
    .build()
)
order: Final = WorkflowEngine(
    WorkflowBuilder("order")
    .add_node(SubworkflowNode("people", workflow=asking))
    .add_node("run_saga", node=run_saga)
    .add_node("ship", node=writes(shipped=True))
    .add_edge("people", "ship")
    .add_edge("run_saga", "ship")
    .build()
)
ITEM: Final = {"item": "lamp"}

# ─ asking for all of it ──


async def execute_all() -> None:
    """Execute each of them in this process, under its id; return when all are closed."""
    async with asyncio.TaskGroup() as group:
        group.create_task(Abstract("BC").execute(run_id="abc"))
        group.create_task(_followed(manager, "Managed", "bca"))
        group.create_task(_followed(orchestrator, "Table", "cab"))
        group.create_task(waits(run_id="waits"))
        group.create_task(_answered())


async def _followed(runtime: SagaManager | SagaOrchestrator, name: str, saga_id: str) -> None:
    await runtime.wait(await runtime.start(name, {"inner": CHAINS[saga_id][1:]}, saga_id=saga_id))


async def _answered() -> None:
    result = await order.execute(initial_state=ITEM, run_id="order")
    while result.is_err() and isinstance(result.unwrap_err(), HumanInputRequiredError):
        try:
            result = await order.resume("order", True)
        except WorkflowStateError:  # it was answered before a death
            result = await order.execute(initial_state=ITEM, run_id="order")
    result.unwrap()


async def store_all(client: Client) -> None:
    """Store a run of each, for a worker."""
    (abstract,) = Abstract.__durable_workflows__()
    (managed,) = Managed.__durable_workflows__()
    (table,) = orchestrator.__durable_workflows__()
    (graph,) = order.__durable_workflows__()
    stored = CONFIG.stored()
    await client.start(abstract, {"inner": "BC"}, run_id="abc")
    await client.start(managed, {"inner": "CA"}, stored, run_id="bca")
    await client.start(table, {"inner": "AB"}, stored, run_id="cab")
    await client.start(waits, run_id="waits")
    await client.start(graph, None, ITEM, run_id="order")


async def answer(client: Client) -> None:
    """Answer what is asked, until the run that asks is closed."""
    while not (await client.describe("order")).status.is_closed:
        try:
            await (await client.get("order")).answer(True)
        except WorkflowStateError:
            await asyncio.sleep(0.02)  # not asked yet, or answered
