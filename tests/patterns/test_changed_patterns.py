"""A pattern whose steps were changed while a run of it was open: the run is parked, and goes on with the code it began with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pytest

import durable
from durable import (
    AbstractSaga,
    FunctionStep,
    NonDeterminismError,
    OrchestratedStep,
    Pipeline,
    RunStatus,
    SagaOrchestrator,
    SagaStep,
    WorkflowBuilder,
    WorkflowEngine,
    parallel,
)
from tests.support.workers import Calls

Execute = Callable[[], Coroutine[Any, Any, Any]]


class Steps:
    """A step that is over at once, and one that ends when it is let; both count."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.begun = asyncio.Event()
        self.let = asyncio.Event()

    async def quick(self, ctx: Any) -> dict[str, Any]:
        self.calls("quick")
        return {}

    async def slow(self, ctx: Any) -> dict[str, Any]:
        self.calls("slow")
        self.begun.set()
        await self.let.wait()
        return {}


def pipeline(steps: Steps, name: str) -> Execute:
    made = Pipeline("changing", [FunctionStep(name, steps.quick), FunctionStep("slow", steps.slow)])
    return lambda: made.execute(run_id="r")


def group(steps: Steps, name: str) -> Execute:
    quick = [FunctionStep(name, steps.quick), FunctionStep("other", steps.quick)]
    made = Pipeline("changing", [parallel("group", quick), FunctionStep("slow", steps.slow)])
    return lambda: made.execute(run_id="r")


def graph(steps: Steps, name: str) -> Execute:
    builder = WorkflowBuilder("changing").add_node(name, node=steps.quick).add_node("other", node=steps.quick)
    builder.add_node("slow", node=steps.slow).add_edge(name, "slow").add_edge("other", "slow")
    made = WorkflowEngine(builder.build())
    return lambda: made.execute(run_id="r")


def saga(steps: Steps, name: str) -> Execute:
    made = AbstractSaga()
    made.add_step(SagaStep(name, steps.quick))
    made.add_step(SagaStep("slow", steps.slow))
    return lambda: made.execute(run_id="r")


def orchestrator(steps: Steps, name: str) -> Execute:
    made = SagaOrchestrator()
    both = [OrchestratedStep(name, steps.quick), OrchestratedStep("other", steps.quick)]
    made.define("changing", [OrchestratedStep("both", parallel=both), OrchestratedStep("slow", steps.slow)])

    async def execute() -> Any:
        await made.start("changing", saga_id="r")
        return await made.wait("r")

    return execute


PATTERNS: Final = [pipeline, group, graph, saga, orchestrator]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_renamed_step_is_found_out_and_nothing_is_lost(
    embedded: str, pattern: Callable[[Steps, str], Execute]
) -> None:
    """`NonDeterminismError` names what was recorded and what is asked for now; with the old code the run goes on where it was."""
    before, after = Steps(), Steps()

    async def begin() -> None:
        executing = asyncio.ensure_future(pattern(before, "reserve")())
        await before.begun.wait()
        executing.cancel()

    async def changed() -> None:
        with pytest.raises(NonDeterminismError) as e:
            await pattern(after, "charge")()
        expected, got = str(e.value.expected), str(e.value.got)
        assert (expected.rpartition("/")[2], got.rpartition("/")[2]) == ("reserve", "charge")
        assert e.value.run_id == "r"
        assert (await durable.get_run("r")).status == RunStatus.PARKED

    async def as_before() -> None:
        before.let.set()
        await pattern(before, "reserve")()
        assert (await durable.get_run("r")).status == RunStatus.COMPLETED

    asyncio.run(begin())
    asyncio.run(changed())
    assert after.calls.names == []
    before.begun, before.let = asyncio.Event(), asyncio.Event()
    asyncio.run(as_before())
    assert before.calls.of("quick") == (1 if pattern in (pipeline, saga) else 2)
