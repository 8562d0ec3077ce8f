"""Pattern programs: pipelines, graphs, sagas, bulk operations and state machines, built from what a plan says.

Each is built and performed in a workflow; `expected` is the model: the one value that may come of it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from durable import (
    AbstractSaga,
    BulkOperation,
    BulkOperationConfig,
    ConditionalStep,
    DatabaseStatePersistence,
    Err,
    NonRetryableError,
    ParallelStep,
    Pipeline,
    SagaStep,
    StateError,
    StateMachine,
    WorkflowBuilder,
    WorkflowEngine,
    activity_info,
    make_activity,
    uuid4,
)
from tests.simulation.activities import body, persistent, this_node

Spec = list[Any]
PATTERNS: Final = ("pipeline", "graph", "saga class", "bulk", "machine")
EVENTS: Final = {"idle": {"go": "busy"}, "busy": {"go": "idle", "stop": "done"}, "done": {}}


def _unit(name: str, value: Any, failures: int, *, takes: int = 1) -> Any:
    """Return an activity that fails so often, then returns the value."""

    async def perform() -> Any:
        with body():
            await asyncio.sleep(0.1)
            if activity_info().attempt <= failures:
                raise OSError(name)
            return value

    async def perform_with(context: dict[str, Any]) -> Any:
        return await perform()

    fn: Callable[..., Any] = perform_with if takes else perform
    return make_activity(fn, name=name, retry=persistent, result=Any)


# ─ pipeline: [[kind, failures or choice], ...] ──


async def run_pipeline(key: str, spec: Spec) -> Any:
    steps: list[Any] = []
    for number, (kind, detail) in enumerate(spec):
        name = f"{kind}{number}"
        if kind == "step":
            steps.append(_unit(name, number, detail))
        elif kind == "both":
            steps.append(ParallelStep(name, [_unit("left", number, detail), _unit("right", -number, 0)]))
        else:
            steps.append(ConditionalStep(name, _is(bool(detail)), _unit("then", number, 1)))
    return await Pipeline(f"pipeline{key}", steps).execute({})


def _is(value: bool) -> Callable[[dict[str, Any]], bool]:
    def choose(context: dict[str, Any]) -> bool:
        return value

    return choose


def _expect_pipeline(spec: Spec) -> Any:
    number = len(spec) - 1
    kind, detail = spec[-1]
    if kind == "both":
        return {"left": number, "right": -number}
    return number if kind == "step" or detail else None


# ─ graph: [[failures of a node, ...] of a wave, ...]; each node follows all of the wave before ──


async def run_graph(key: str, spec: Spec) -> Any:
    builder = WorkflowBuilder(f"graph{key}")
    former: list[str] = []
    for wave, nodes in enumerate(spec):
        names = [f"n{wave}{chr(97 + i)}" for i in range(len(nodes))]
        for name, failures in zip(names, nodes, strict=True):
            builder.add_node(_unit(name, {name: wave}, failures))
            for before in former:
                builder.add_edge(before, name)
        former = names
    result = await WorkflowEngine(builder.build()).execute(initial_state={"begun": True})
    if isinstance(result, Err):
        raise result.error
    return dict(sorted(result.unwrap().final_state.items()))


def _expect_graph(spec: Spec) -> Any:
    state: dict[str, Any] = {"begun": True}
    for wave, nodes in enumerate(spec):
        state |= {f"n{wave}{chr(97 + i)}": wave for i in range(len(nodes))}
    return dict(sorted(state.items()))


# ─ saga class: [steps, the one that answers with a failure or -1] ──


class Trip(AbstractSaga):
    def __init__(self, key: str, steps: int, failing: int) -> None:
        super().__init__()
        self.key = key
        for number in range(steps):
            self.add_step(
                SagaStep(
                    f"s{number}",
                    self._action(number, number == failing),
                    self._undo(number),
                    max_retries=200,
                    retry_delay=0.1,
                )
            )

    def _action(self, number: int, is_failing: bool) -> Callable[[], Any]:
        async def act() -> int:
            with body(None):
                await asyncio.sleep(0.1)
                if is_failing:
                    raise ValueError(f"step {number} of {self.key}")
                return number

        return act

    def _undo(self, number: int) -> Callable[[], Any]:
        async def undo() -> None:
            with body(None):
                await asyncio.sleep(0.1)

        return undo


async def run_saga_class(key: str, spec: Spec) -> Any:
    result = await Trip(key, *spec).execute()
    if isinstance(result, Err):
        return ["undone", result.error.step_name, result.error.compensated]
    return ["done", sorted(result.unwrap())]


def _expect_saga_class(spec: Spec) -> Any:
    steps, failing = spec
    if failing < 0:
        return ["done", [f"s{number}" for number in range(steps)]]
    return ["undone", f"s{failing}", [f"s{number}" for number in reversed(range(failing))]]


# ─ bulk: [items, which fail for good, batch size] ──


async def run_bulk(key: str, spec: Spec) -> Any:
    count, bad, batch = spec

    async def double(item: int) -> int:
        with body(None, is_part=True):
            await asyncio.sleep(0.05)
            if item in bad:
                raise NonRetryableError(f"item {item}")
            return 2 * item

    config = BulkOperationConfig(
        batch_size=batch, max_concurrency=3, retry_attempts=200, retry_delay=0.1, timeout=100_000.0
    )
    result = (await BulkOperation(double, config, name=f"bulk{key}").execute(range(count))).unwrap()
    return [result.results, [error.index for error in result.errors]]


def _expect_bulk(spec: Spec) -> Any:
    count, bad, _ = spec
    return [[2 * item for item in range(count) if item not in bad], sorted(bad)]


# ─ machine: [events], kept in the database of the node that performs the transition ──


class _Here:
    """The client of whatever node this is."""

    async def append_rows(self, table: str, key: str, rows: Sequence[bytes], *, after: int) -> bool:
        return bool(await this_node().client.append_rows(table, key, rows, after=after))

    async def read_rows(self, table: str, key: str) -> list[bytes]:
        return list(await this_node().client.read_rows(table, key))


def machine_here(machine_id: str) -> StateMachine:
    """Return a machine that is kept in the database of whatever node this is."""
    return StateMachine("idle", EVENTS, machine_id=machine_id, persistence=DatabaseStatePersistence(_Here()))


async def run_machine(spec: Spec) -> Any:
    machine = machine_here(str(uuid4()))  # another life has another machine
    refused = 0
    for event in spec:
        try:
            await machine.transition(event)
        except StateError:
            refused += 1
    return [machine.current_state, refused, [move.to_state for move in await machine.history()]]


def _expect_machine(spec: Spec) -> Any:
    state, refused, moves = "idle", 0, []
    for event in spec:
        if event in EVENTS[state]:
            state = EVENTS[state][event]
            moves.append(state)
        else:
            refused += 1
    return [state, refused, moves]


# ─ all of them ──


async def run(kind: str, key: str, spec: Spec) -> Any:
    match kind:
        case "pipeline":
            return await run_pipeline(key, spec)
        case "graph":
            return await run_graph(key, spec)
        case "saga class":
            return await run_saga_class(key, spec)
        case "bulk":
            return await run_bulk(key, spec)
        case _:
            return await run_machine(spec)


def expected(kind: str, spec: Spec) -> Any:
    """Return what a pattern's value must be: the model."""
    return {
        "pipeline": _expect_pipeline,
        "graph": _expect_graph,
        "saga class": _expect_saga_class,
        "bulk": _expect_bulk,
        "machine": _expect_machine,
    }[kind](spec)


def make_spec(kind: str, chance: random.Random) -> Spec:
    failures = (0, 0, 0, 1, 2)
    match kind:
        case "pipeline":
            kinds = ("step", "step", "both", "if")
            return [[chance.choice(kinds), chance.choice(failures)] for _ in range(chance.randint(1, 4))]
        case "graph":
            return [
                [chance.choice(failures) for _ in range(chance.randint(1, 3))]
                for _ in range(chance.randint(1, 3))
            ]
        case "saga class":
            steps = chance.randint(1, 4)
            return [steps, chance.choice((-1, chance.randrange(steps)))]
        case "bulk":
            count = chance.choice((1, 4, 12))
            bad = sorted(chance.sample(range(count), chance.choice((0, 0, 1))))
            return [count, bad, chance.choice((2, 5))]
        case _:
            return [chance.choice(("go", "go", "go", "stop")) for _ in range(chance.randint(2, 6))]
