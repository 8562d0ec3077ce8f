"""Choices and groups in a pipeline: what is skipped, what is cancelled, what is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import durable
from durable import (
    ConditionalStep,
    FunctionStep,
    ParallelStep,
    Pipeline,
    PipelineStepError,
    conditional,
    parallel,
    step,
    workflow,
)
from tests.support.workers import Calls


def returns(name: str, value: Any) -> FunctionStep:
    async def answer(ctx: dict[str, Any]) -> Any:
        return value

    return FunctionStep(name, answer)


def fails(name: str, error: Exception) -> FunctionStep:
    async def fail(ctx: dict[str, Any]) -> Any:
        raise error

    return FunctionStep(name, fail, retries=0)


def is_vip(ctx: dict[str, Any]) -> bool:
    return bool(ctx["vip"])


async def journal(run_id: str) -> list[tuple[str, str, str]]:
    run = await durable.get_run(run_id)
    return [(entry.name, entry.kind, entry.status) for entry in run.journal]


# ─ choices ──


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_predicate_is_journaled_and_chooses(embedded: str, is_async: bool) -> None:
    """Sync or async; the step that runs has the name of the choice."""

    async def later(ctx: dict[str, Any]) -> bool:
        return is_vip(ctx)

    condition: Callable[..., Any] = later if is_async else is_vip

    @conditional("gift", condition, otherwise=returns("card", "a card"))
    async def gift(ctx: dict[str, Any]) -> str:
        return "a gift"

    assert isinstance(gift, ConditionalStep)
    pipeline = Pipeline("gifts", [gift])

    assert await pipeline.execute({"vip": True}, run_id="yes") == "a gift"
    assert await pipeline.execute({"vip": False}, run_id="no") == "a card"
    for run_id in ("yes", "no"):
        assert await journal(run_id) == [
            ("gift/condition", "predicate", "completed"),
            ("gift", "activity", "completed"),
        ]


async def test_a_false_condition_without_else_skips(embedded: str) -> None:
    """The value is None; the story has an entry `skipped`."""

    @conditional("gift", is_vip)
    @step
    async def gift(ctx: dict[str, Any]) -> str:
        return "a gift"

    pipeline = Pipeline("gifts", [gift, FunctionStep("look", lambda ctx: [ctx["gift"], "gift" in ctx])])

    assert await pipeline.execute({"vip": False}, run_id="no") == [None, True]
    assert await pipeline.execute({"vip": False}, run_id="no") == [None, True]
    assert await journal("no") == [
        ("gift/condition", "predicate", "completed"),
        ("gift", "step", "skipped"),
        ("look", "activity", "completed"),
    ]


async def test_a_raising_predicate_fails_the_step(embedded: str) -> None:
    """At once: asked again, it would answer the same. What is no bool is no answer."""
    calls = Calls()

    def broken(ctx: dict[str, Any]) -> bool:
        calls("broken")
        raise RuntimeError("no idea")

    for condition, error in ((broken, RuntimeError), (lambda ctx: 1, TypeError)):
        pipeline = Pipeline(f"of-{error.__name__}", [ConditionalStep("x", condition, returns("y", 1))])
        with pytest.raises(PipelineStepError) as e:
            await pipeline.execute(run_id=f"run-{error.__name__}")
        assert e.value.step_name == "x"
        assert isinstance(e.value.__cause__, error)
    assert calls.of("broken") == 1


# ─ groups ──


async def test_a_group_gives_a_dict_by_name(embedded: str) -> None:
    """In the order of the steps; each is in the journal as `group/sub`."""
    group = ParallelStep("notify", [returns("email", 1), returns("sms", 2)])
    pipeline = Pipeline("p", [group, FunctionStep("last", lambda ctx: ctx["notify"]["sms"])])

    assert await pipeline.execute(run_id="p-1") == 2
    assert [name for name, _, _ in await journal("p-1")] == ["notify/email", "notify/sms", "last"]
    assert await Pipeline("q", [group]).execute() == {"email": 1, "sms": 2}


async def test_a_fold_makes_the_value_of_a_group(embedded: str) -> None:
    """`parallel` decorates a function of the results, or of context and results; it is a step itself."""

    @parallel("total", [returns("a", 1), returns("b", 2)])
    def total(results: dict[str, int]) -> int:
        return sum(results.values())

    @parallel("more", [returns("a", 1)])
    async def more(ctx: dict[str, Any], results: dict[str, int]) -> int:
        return int(ctx["total"]) + results["a"] + int(ctx["by"])

    assert await Pipeline("p", [total, more]).execute({"by": 10}, run_id="p-1") == 14
    assert [name for name, _, _ in await journal("p-1")] == ["total/a", "total/b", "total", "more/a", "more"]


async def test_the_first_failure_in_time_cancels_the_others(embedded: str) -> None:
    """They have ended when it is raised, under the name `group/sub`; the step after the group never runs."""
    calls = Calls()
    has_begun = asyncio.Event()

    async def slow(ctx: dict[str, Any]) -> None:
        has_begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            calls("slow has ended")

    async def bad(ctx: dict[str, Any]) -> None:
        await has_begun.wait()
        raise ValueError("bad")

    pipeline = Pipeline("p", [parallel("group", [slow, bad]), FunctionStep("after", lambda: calls("after"))])

    with pytest.raises(PipelineStepError) as e:
        await pipeline.execute(run_id="p-1")
    assert e.value.step_name == "group/bad"
    assert isinstance(e.value.__cause__, ValueError)
    assert [error.step_name for error in e.value.errors] == ["group/bad"]
    assert calls.names == ["slow has ended"]


async def test_all_failures_are_listed_in_order_of_time(embedded: str) -> None:
    """`fail_fast=False` lets every step end; `errors` has all that failed, each with its cause."""
    first = asyncio.Event()

    async def late(ctx: dict[str, Any]) -> None:
        await first.wait()
        raise KeyError("late")

    async def early(ctx: dict[str, Any]) -> None:
        first.set()
        raise ValueError("early")

    group = parallel("g", [late, early, returns("fine", 1)], fail_fast=False)

    for _ in range(2):  # live, and from the record
        with pytest.raises(PipelineStepError) as e:
            await Pipeline("p", [group]).execute(run_id="p-1")
        assert [error.step_name for error in e.value.errors] == ["g/early", "g/late"]
        assert [type(error.__cause__) for error in e.value.errors] == [ValueError, KeyError]
        assert isinstance(e.value.__cause__, ValueError)
        assert "1 more of its group" in str(e.value)


async def test_max_concurrency_bounds_a_group(embedded: str) -> None:
    """At most so many steps at a time; all run."""
    running: list[int] = []

    def group(limit: int, at_once: int) -> ParallelStep:
        together = asyncio.Barrier(at_once)

        async def work(ctx: dict[str, Any]) -> None:
            running.append(1)
            try:
                async with asyncio.timeout(20):
                    await together.wait()
                assert len(running) <= at_once
            finally:
                running.pop()

        return ParallelStep("g", [FunctionStep(f"s{i}", work) for i in range(6)], max_concurrency=limit)

    assert len(await Pipeline("two", [group(2, at_once=2)]).execute()) == 6
    assert len(await Pipeline("all", [group(0, at_once=6)]).execute()) == 6


async def test_groups_and_choices_nest(embedded: str) -> None:
    """Names are paths, wherever the pipeline runs."""
    inner = parallel("inner", [returns("s", 1), conditional("maybe", is_vip)(returns("t", 2))])
    pipeline = Pipeline("deep", [parallel("outer", [inner, returns("u", 3)])])

    @workflow
    async def around() -> Any:
        return await pipeline.execute({"vip": False})

    assert await around(run_id="r") == {"inner": {"s": 1, "maybe": None}, "u": 3}
    assert {name for name, _, _ in await journal("r")} == {
        "deep/outer/inner/s",
        "deep/outer/inner/maybe/condition",
        "deep/outer/inner/maybe",
        "deep/outer/u",
    }
    with pytest.raises(PipelineStepError) as e:
        await Pipeline("f", [parallel("a", [parallel("b", [fails("c", ValueError("x"))])])]).execute()
    assert e.value.step_name == "a/b/c"


def test_names_in_a_group_are_unique() -> None:
    """ValueError, as in a pipeline."""
    with pytest.raises(ValueError, match="called 'a'"):
        parallel("g", [returns("a", 1), returns("a", 2)])
    with pytest.raises(ValueError, match="max_concurrency"):
        parallel("g", [], max_concurrency=-1)


async def test_a_cancelled_pipeline_cancels_its_steps(embedded: str) -> None:
    """The run is cancelled, not failed, and nothing of it runs on."""
    calls = Calls()
    has_begun = asyncio.Event()

    async def slow(ctx: dict[str, Any]) -> None:
        has_begun.set()
        try:
            await asyncio.sleep(60)
        finally:
            calls("ended")

    handle = await Pipeline("p", [parallel("g", [slow, returns("x", 1)])]).start(run_id="p-1")
    await has_begun.wait()
    await handle.cancel("enough")

    with pytest.raises(durable.RunCancelledError, match="enough"):
        await handle.result()
    assert calls.names == ["ended"]
