"""Scenarios of patterns: what a step of one costs beside a bare activity of a run of the same length.

The raw limit of these rows is that bare activity, measured in turns with the pattern: a ratio of 67 % is 1.5 times its cost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any, Final

from durable import (
    AbstractSaga,
    FunctionStep,
    Pipeline,
    SagaBase,
    SagaManager,
    SagaStep,
    WorkflowBuilder,
    WorkflowEngine,
    configure,
    saga_step,
    workflow,
)
from tests.bench.place import Settings, fresh_url, settled
from tests.bench.rows import Row, rated
from tests.bench.workloads import TEXT, chain

STEPS: Final = 10

Once = Callable[[], Awaitable[object]]


async def do(ctx: dict[str, Any]) -> int:
    return 1


async def undo(ctx: dict[str, Any]) -> None: ...


pipeline: Final = Pipeline("bench-pipeline", [FunctionStep(f"step-{i}", do) for i in range(STEPS)])


async def node(state: dict[str, Any]) -> None: ...


def _graph(name: str, *, is_chain: bool) -> WorkflowEngine:
    builder = WorkflowBuilder(name)
    for i in range(STEPS):
        builder.add_node(f"node-{i}", node=node)
        if i:
            builder.add_edge(f"node-{i - 1 if is_chain else 0}", f"node-{i}")
    return WorkflowEngine(builder.build())


chained: Final = _graph("bench-graph", is_chain=True)
fanned: Final = _graph("bench-graph-wave", is_chain=False)


class BenchSaga(AbstractSaga):
    def __init__(self) -> None:
        super().__init__()
        for i in range(STEPS):
            self.add_step(SagaStep(f"step-{i}", do, undo))


class BenchSteps(SagaBase):
    """As many steps, made below."""


for _number in range(STEPS):
    setattr(BenchSteps, f"step_{_number}", saga_step(f"step-{_number}", compensation=undo)(do))

manager: Final = SagaManager()
manager.register(BenchSteps)


@saga_step(compensation=undo)
async def step(ctx: dict[str, Any]) -> int:
    return 1


@workflow(name="bench-saga-scope")
async def scoped() -> None:
    for _ in range(STEPS):
        await step({"text": TEXT})


async def _managed() -> None:
    await manager.wait(await manager.start("BenchSteps", {"text": TEXT}))


def pipelines(settings: Settings) -> list[Row]:
    """Runs of ten steps, one after the other, in a plain script."""
    return [_beside(settings, "pipeline", lambda: pipeline.execute({"text": TEXT}))]


def graphs(settings: Settings) -> list[Row]:
    """Runs of a chain of ten nodes, and of one node that nine others follow side by side, in a plain script."""
    return [
        _beside(settings, "graph/chain", lambda: chained.execute(state={"text": TEXT})),
        _beside(settings, "graph/wave", lambda: fanned.execute(state={"text": TEXT})),
    ]


def sagas(settings: Settings) -> list[Row]:
    """The same for the three ways to write a saga that takes its steps in order."""
    return [
        _beside(settings, "saga/scope", scoped),
        _beside(settings, "saga/steps", lambda: BenchSaga().execute()),
        _beside(settings, "saga/manager", _managed),
    ]


def _beside(settings: Settings, scenario: str, pattern: Once) -> Row:
    runs = settings.size(100)

    async def measure() -> Row:
        took = {True: 0.0, False: 0.0}
        await chain(STEPS)
        await pattern()
        await settled()
        for turn in range(2 * runs):
            is_bare = turn % 2 == 0
            began = perf_counter()
            await (chain(STEPS) if is_bare else pattern())
            took[is_bare] += perf_counter() - began
        steps = runs * STEPS
        return rated(scenario, steps / took[False], "steps/s", steps / took[True], runs=runs)

    with fresh_url(settings) as url:
        configure(url, durability=settings.durability)
        return asyncio.run(measure())
