"""Sagas as tables of steps: transitions, failures that go elsewhere, steps side by side."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

import durable
from durable import (
    Client,
    DefinitionError,
    OrchestratedStep,
    SagaConfig,
    SagaContext,
    SagaOrchestrator,
    SagaStepResult,
)
from tests.support.workers import Calls, running_worker, until

calls = Calls()


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.names.clear()


class Act:
    """An action that notes what it does."""

    def __init__(self, name: str, output: Any = None, fails: Exception | None = None) -> None:
        self.name = name
        self.output = output
        self.fails = fails

    async def execute(self, ctx: SagaContext) -> Any:
        calls(self.name)
        ctx[self.name] = "done"
        if self.fails is not None:
            raise self.fails
        return self.output

    async def compensate(self, ctx: SagaContext) -> None:
        calls(f"undo {self.name}")


def act(name: str, output: Any = None, **options: Any) -> OrchestratedStep:
    return OrchestratedStep(name, Act(name, output), **options)


def failing(name: str, **options: Any) -> OrchestratedStep:
    return OrchestratedStep(name, Act(name, fails=RuntimeError(f"{name} is broken")), **options)


async def finished(
    steps: list[OrchestratedStep], data: dict[str, Any] | None = None, **options: Any
) -> durable.SagaRecord:
    start = options.pop("start", None)
    orchestrator = SagaOrchestrator(**options)
    orchestrator.define("table", steps, start)
    return await orchestrator.wait(await orchestrator.start("table", data, saga_id="t"))


async def test_without_transitions_the_order_is_that_of_the_list(embedded: str) -> None:
    """Actions are objects with `execute(ctx)`, or callables, async or not; what they write is kept."""
    record = await finished([act("a", 1), OrchestratedStep("b", lambda ctx: ctx.step_results["a"] + 1)])

    assert (record.status, record.data) == ("completed", {"a": "done"})
    assert [(one.step_name, one.output) for one in record.steps.values()] == [("a", 1), ("b", 2)]


async def test_a_failure_undoes_what_was_done_in_reverse(embedded: str) -> None:
    """`compensate(ctx)` of the actions that have one."""
    record = await finished([act("a"), act("b"), OrchestratedStep("c", lambda: None), failing("d"), act("e")])

    assert calls.names == ["a", "b", "d", "undo b", "undo a"]
    assert {name: one.status for name, one in record.steps.items()} == {
        "a": "compensated",
        "b": "compensated",
        "c": "completed",
        "d": "failed",
        "e": "pending",
    }
    assert record.status == "compensated"


async def test_transitions_are_names_none_or_functions(embedded: str) -> None:
    """A function gets the context and the `SagaStepResult`; an omitted transition is not `None`, which ends."""

    def after_b(ctx: SagaContext, result: SagaStepResult) -> str | None:
        assert isinstance(result, SagaStepResult)
        return "d" if result.output > ctx["limit"] else None

    def steps() -> list[OrchestratedStep]:
        return [
            act("start", next_step="b"),
            act("skipped"),
            act("b", 5, next_step=after_b),
            act("never"),
            act("d"),
            act("e", next_step=None),
            act("f"),
        ]

    record = await finished(steps(), {"limit": 3})
    assert calls.names == ["start", "b", "d", "e"]
    assert record.status == "completed"
    run = await durable.get_run("t")
    assert ("b/next", "predicate") in [(entry.name, entry.kind) for entry in run.journal]
    assert "b/next" not in record.steps

    calls.names.clear()
    orchestrator = SagaOrchestrator()
    orchestrator.define("other", steps())
    await orchestrator.wait(await orchestrator.start("other", {"limit": 9}))
    assert calls.names == ["start", "b"]


async def test_a_failure_may_go_elsewhere(embedded: str) -> None:
    """`on_failure` goes on instead of undoing; a handler is not entered by falling through; later failures undo all."""
    record = await finished(
        [failing("a", on_failure="rescue"), act("b", next_step="c"), act("rescue"), act("c")]
    )
    assert calls.names == ["a", "rescue", "c"]
    assert (record.status, record.steps["a"].status) == ("completed", "failed")

    calls.names.clear()
    orchestrator = SagaOrchestrator()
    orchestrator.define("second", [act("x"), failing("a", on_failure="rescue"), failing("rescue")])
    await orchestrator.wait(await orchestrator.start("second"))
    assert calls.names == ["x", "a", "rescue", "undo x"]


async def test_steps_side_by_side_are_steps(embedded: str) -> None:
    """They have records and compensations of their own; the output merges theirs, in order of declaration."""
    record = await finished(
        [
            OrchestratedStep("both", parallel=[act("a", {"x": 1, "y": 1}), act("b", {"y": 2}), act("c", 3)]),
            OrchestratedStep("look", lambda ctx: ctx.step_results["both"]),
            failing("end"),
        ]
    )

    assert record.steps["look"].output == {"x": 1, "y": 2, "c": 3}
    assert {record.steps[name].status for name in "abc"} == {"compensated"}
    assert sorted(calls.names[-3:]) == ["undo a", "undo b", "undo c"]


async def test_what_steps_side_by_side_write_is_merged_by_key(embedded: str) -> None:
    """None is lost, and none sees another's; of two that write one key the later one of the list wins, however long it takes."""
    go = asyncio.Event()
    seen: dict[str, dict[str, Any]] = {}

    def writes(name: str, *, waits: bool = False, **parallel: Any) -> OrchestratedStep:
        async def write(ctx: SagaContext) -> dict[str, Any]:
            seen[name] = dict(ctx)
            if waits:
                await go.wait()
            else:
                go.set()
            ctx[name] = ctx["shared"] = name
            ctx.metadata[name] = True
            ctx.pop(f"not for {name}", None)
            return {}

        return OrchestratedStep(name, write, **parallel)

    record = await finished(
        [
            OrchestratedStep(
                "both",
                parallel=[
                    writes("slow", waits=True),
                    writes("quick", parallel=[writes("left"), writes("right")]),
                ],
            ),
            OrchestratedStep(
                "look", lambda ctx: {"metadata": ctx.metadata, "results": list(ctx.step_results)}
            ),
        ],
        {"not for slow": 1, "not for left": 1, "one": 1},
    )

    names = ["slow", "quick", "left", "right"]
    assert record.data == {"one": 1, "shared": "right"} | {name: name for name in names}
    assert record.steps["look"].output["metadata"] == dict.fromkeys(names, True)
    assert set(record.steps["look"].output["results"]) == {*names, "both"}
    assert "quick" not in seen["slow"]
    assert "slow" not in seen["quick"] | seen["left"]
    assert "left" not in seen["right"]
    assert seen["right"]["quick"] == "quick"


async def test_what_is_undone_sees_what_steps_side_by_side_have_written(embedded: str) -> None:
    """Also if one of them failed: those that are recorded count."""

    class Writes(Act):
        async def compensate(self, ctx: SagaContext) -> None:
            calls(f"undo {self.name} of {ctx['a']}, {ctx.step_results['a']}")

    async def fail(ctx: SagaContext) -> None:
        await until(is_recorded)
        raise RuntimeError("no")

    async def is_recorded() -> bool:
        run = await durable.get_run("t")
        return any(entry.name == "a" and entry.status == "completed" for entry in run.journal)

    first, a = OrchestratedStep("first", Writes("first")), OrchestratedStep("a", Writes("a", "output"))
    both = OrchestratedStep("both", parallel=[a, OrchestratedStep("fail", fail)])
    record = await finished([first, both])

    assert record.data == {"first": "done", "a": "done"}
    assert "RuntimeError: no" in (record.error or "")
    assert calls.names == ["first", "a", "undo a of done, output", "undo first of done, output"]


def table_of_groups(second: OrchestratedStep) -> list[OrchestratedStep]:
    pair = OrchestratedStep("pair", parallel=[act("b", {"y": 2}), act("c", 3)])
    return [
        OrchestratedStep("all", parallel=[act("a", {"x": 1}), pair]),
        OrchestratedStep("more", parallel=[act("d"), second]),
        OrchestratedStep("last", parallel=[act("f")]),
    ]


async def test_a_step_that_is_nothing_but_others_is_as_far_as_they_are(embedded: str) -> None:
    """Groups in groups, too: their records tell the state, the times and the output of what they are made of."""
    steps = (await finished(table_of_groups(act("e")))).steps

    assert {name: step.status for name, step in steps.items()} == dict.fromkeys(steps, "completed")
    assert steps["all"].output == {"x": 1, "y": 2, "c": 3}
    assert steps["all"].started_at == min(
        one.started_at for one in map(steps.get, "abc") if one and one.started_at
    )
    assert steps["pair"].completed_at == max(
        one.completed_at for one in map(steps.get, "bc") if one and one.completed_at
    )


async def test_a_group_of_which_a_step_failed_has_failed(embedded: str) -> None:
    """Those before it are undone with their steps, those behind it have not begun."""
    steps = (await finished(table_of_groups(failing("e", max_retries=0)))).steps

    told = {name: str(steps[name].status) for name in ("all", "pair", "more", "last")}
    assert told == {"all": "compensated", "pair": "compensated", "more": "failed", "last": "pending"}
    assert "e is broken" in (steps["more"].error or "")


async def test_the_first_failure_side_by_side_stops_the_others(embedded: str) -> None:
    """They have ended before anything is undone; steps of the table may be named."""
    begun = asyncio.Event()

    class Slow(Act):
        async def execute(self, ctx: SagaContext) -> None:
            begun.set()
            try:
                await asyncio.sleep(60)
            finally:
                calls("slow has ended")

    async def fail(ctx: SagaContext) -> None:
        await begun.wait()
        raise RuntimeError("no")

    record = await finished(
        [
            act("first"),
            OrchestratedStep("both", parallel=[OrchestratedStep("slow", Slow("slow")), "fail"]),
            OrchestratedStep("fail", fail),
        ]
    )
    assert calls.names == ["first", "slow has ended", "undo first"]
    assert record.steps["fail"].status == "failed"


async def test_retries_are_those_of_the_step(embedded: str) -> None:
    """None by default; the delay is the configuration's."""
    await finished(
        [failing("a", on_failure="b"), failing("b", max_retries=2)], config=SagaConfig(retry_delay_seconds=0)
    )
    assert calls.names == ["a", "b", "b", "b"]


async def test_a_saga_may_begin_elsewhere(embedded: str) -> None:
    """`start` names the first step."""
    await finished([act("a"), act("b"), act("c")], start="b")
    assert calls.names == ["b", "c"]


async def test_a_transition_to_nowhere_fails_the_saga(embedded: str) -> None:
    """One that a function gives, that is: what can be known before is refused in `define`."""
    record = await finished([act("a", next_step=lambda ctx, result: "nowhere")])
    assert record.status == "compensated"
    assert "nowhere" in (record.error or "")

    for wrong in (
        [act("a", next_step="nowhere")],
        [act("a", on_failure="nowhere")],
        [OrchestratedStep("a", parallel=["nowhere"])],
        [act("a"), act("a")],
        [],
    ):
        with pytest.raises(ValueError):
            SagaOrchestrator().define("wrong", wrong)
    with pytest.raises(ValueError, match="the start"):
        SagaOrchestrator().define("wrong", [act("a")], start="b")


def test_definitions_are_checked() -> None:
    """Misspelt options are TypeErrors; an action must be something to call."""
    with pytest.raises(TypeError):
        OrchestratedStep("a", print, retries=3)  # type: ignore[call-arg]
    with pytest.raises(DefinitionError):
        OrchestratedStep("a", 5)
    with pytest.raises(DefinitionError):
        OrchestratedStep("a")
    with pytest.raises(ValueError, match="max_retries"):
        OrchestratedStep("a", print, max_retries=-1)


shop = SagaOrchestrator()
shop.define("shop", [act("reserve"), OrchestratedStep("both", parallel=[act("pack"), failing("charge")])])


async def test_a_worker_that_imports_the_module_finishes_a_saga(client: Client) -> None:
    """The orchestrator is a variable of the module: its tables are found."""
    (workflow,) = shop.__durable_workflows__()
    handle = await client.start(workflow, {}, None, run_id="w")

    async with running_worker(client, sys.modules[__name__]):
        with pytest.raises(durable.WorkflowFailedError):
            await handle.result()
    assert (await client.describe("w")).status == "compensated"
    assert calls.names[-1] == "undo reserve"


async def test_a_cancelled_saga_is_undone(embedded: str) -> None:
    """As with a manager: the runtime is the same."""
    begun = asyncio.Event()

    async def hang(ctx: SagaContext) -> None:
        begun.set()
        await asyncio.sleep(60)

    orchestrator = SagaOrchestrator()
    orchestrator.define("table", [act("a"), OrchestratedStep("hang", hang)])
    saga_id = await orchestrator.start("table")
    await begun.wait()
    await orchestrator.cancel(saga_id)

    record = await orchestrator.wait(saga_id)
    assert (record.status, record.steps["a"].status) == ("cancelled", "compensated")
    with pytest.raises(KeyError):
        await orchestrator.start("nothing")
