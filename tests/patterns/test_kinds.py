"""What a run is, is known from the moment it is stored."""

from __future__ import annotations

import durable
from durable import (
    Client,
    FunctionStep,
    Pipeline,
    SagaBase,
    SagaManager,
    WorkflowBuilder,
    WorkflowEngine,
    saga_step,
    workflow,
)


@workflow
async def plain() -> None: ...


async def test_a_run_says_what_it_is_before_anybody_has_driven_it(client: Client) -> None:
    """Also in a list that reads no journals; and it still says so when it starts anew."""

    class Trip(SagaBase):
        @saga_step()
        async def book(self) -> None: ...

    manager = SagaManager()
    manager.register(Trip)
    engine = WorkflowEngine(WorkflowBuilder("drawn").add_node("a", node=lambda state: {}).build())
    made = [Pipeline("line", [FunctionStep("a", lambda ctx: 1)]), engine, manager]
    for pattern in made:
        (definition,) = pattern.__durable_workflows__()
        await client.start(
            definition, *([{}] if pattern is not engine else []), run_id=f"of {definition.name}"
        )
    await client.start_many(plain, [(), ()], run_ids=["plain 1", "plain 2"])

    assert {run.run_id: run.kind for run in await client.list()} == {
        "of line": "pipeline",
        "of drawn": "graph",
        "of Trip": "saga",
        "plain 1": "workflow",
        "plain 2": "workflow",
    }
    assert (await client.describe("of line")).kind == "pipeline"


async def test_a_child_that_is_a_pattern_says_so_too(embedded: str) -> None:
    """Its parent is told in either case."""
    line = Pipeline("line", [FunctionStep("a", lambda ctx: 1)])
    (definition,) = line.__durable_workflows__()

    @workflow
    async def outer() -> int:
        result: int = await definition({})
        return result

    assert await outer(run_id="o") == 1
    child = await durable.get_run("o@1/line#1")
    assert (child.kind, child.parent) == ("pipeline", "o")


async def test_a_pattern_that_is_started_in_a_workflow_is_a_child(embedded: str) -> None:
    """`execute` is part of the run, `start` a run of its own: its id follows from the parent's, so that a replay finds it."""
    line = Pipeline("line", [FunctionStep("a", lambda ctx: ctx["n"] + 1)])
    drawn = WorkflowEngine(WorkflowBuilder("drawn").add_node("a", node=lambda state: {"n": 5}).build())

    @workflow
    async def outer() -> list[object]:
        first, second = await line.start({"n": 1}), await line.start({"n": 2})
        third = await drawn.enqueue()
        results = [await first.result(), await second.result(), (await third.result()).final_state]
        return [*results, first.run_id, second.run_id, third.run_id]

    for _ in range(2):  # the second time from the record
        assert await outer(run_id="o") == [2, 3, {"n": 5}, "o@1/line#1", "o@1/line#2", "o@1/drawn#1"]
    assert {run.run_id: run.parent for run in await durable.list_runs()} == {
        "o": None,
        "o@1/line#1": "o",
        "o@1/line#2": "o",
        "o@1/drawn#1": "o",
    }
