"""The calling rule: what a call of an activity or a workflow does inside of a run and outside."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import durable
from durable import (
    ArgumentsError,
    DefinitionError,
    PayloadError,
    RunStatus,
    UndecodableError,
    WorkflowContext,
    WorkflowFailedError,
    activity,
    activity_info,
    info,
    step,
    wait_condition,
    wait_signal,
    workflow,
)
from tests.support.workers import Calls


@activity
async def double(value: int) -> int:
    return 2 * value


@step
def half(value: int) -> float:
    return value / 2


@workflow
async def sums(value: int, more: int = 0) -> int:
    return await double(value) + more


async def test_an_activity_outside_of_runs_just_runs() -> None:
    """Unit tests need no database: nothing is recorded, retried or encoded; a `def` is awaited, too."""
    calls = Calls()
    marker = object()

    @activity(retries=5)
    async def same(value: Any) -> Any:
        calls("same")
        return value

    @activity(retries=5)
    async def fails() -> None:
        calls("fails")
        raise OSError

    assert await double(4) == 8
    assert await half(5) == 2.5
    assert await same(marker) is marker
    with pytest.raises(OSError):
        await fails()
    with pytest.raises(DefinitionError):
        activity_info()
    assert calls.names == ["same", "fails"]


async def test_a_workflow_outside_of_runs_runs_durably(embedded: str) -> None:
    """It is recorded like any run; its activities are in its journal."""
    assert await sums(4) == 8

    (run,) = await durable.list_runs()
    assert (run.workflow, run.status, run.result) == ("sums", RunStatus.COMPLETED, 8)
    assert run.run_id.startswith("sums-")
    assert [(entry.name, entry.kind, entry.result) for entry in run.journal] == [("double", "activity", 8)]


async def test_a_workflow_inside_of_a_run_is_a_run_of_its_own(embedded: str) -> None:
    """Called in a workflow, in a plain script: a child, with an id derived from its parent's."""

    @workflow
    async def parent() -> int:
        return await sums(1)

    assert await parent(run_id="p") == await sums(1)
    assert "p@1/sums#1" in {run.run_id for run in await durable.list_runs()}


async def test_a_workflow_called_in_an_activity_is_a_run_of_its_own(embedded: str) -> None:
    """Activities may touch the world, other runs included."""

    @activity
    async def starts_another() -> int:
        return await sums(3, run_id="other")

    @workflow
    async def outer() -> int:
        return await starts_another()

    assert await outer() == 6
    assert (await durable.get_run("other")).status is RunStatus.COMPLETED


async def test_arguments_are_checked_before_anything_is_written(embedded: str) -> None:
    """Wrong arguments are the caller's error, not a failed run."""
    for wrong in ((), (1, 2, 3), ("text",)):
        with pytest.raises(ArgumentsError):
            await sums(*wrong)  # type: ignore[call-overload, arg-type]  # the mistake under test
    with pytest.raises(ArgumentsError):
        await sums(1, mor=2)  # type: ignore[call-overload]  # the mistake under test

    @workflow
    async def takes(value: Any) -> None: ...

    with pytest.raises(PayloadError) as refusal:
        await takes({"deep": [object()]})
    assert "deep" in refusal.value.path
    assert await durable.list_runs() == []


async def test_start_returns_at_once_and_drives_the_run_here(embedded: str) -> None:
    """The handle is there before the run has ended; the result comes without a worker."""
    gate = asyncio.Event()

    @activity
    async def waits() -> int:
        await gate.wait()
        return 5

    @workflow
    async def slow() -> int:
        return await waits()

    run = await slow.start()
    assert (await run.describe()).status is RunStatus.RUNNING
    with pytest.raises(TimeoutError):
        await run.result(timeout=0.01)
    gate.set()
    assert await run.result(60) == 5


async def test_enqueue_leaves_the_run_to_a_worker(embedded: str) -> None:
    """It is only inserted: this process does not drive it, whatever else it drives."""
    left = await sums.enqueue(1, run_id="left")
    assert await sums(2) == 4

    seen = await left.describe()
    assert (seen.status, seen.worker) == (RunStatus.PENDING, None)


async def test_options_name_the_run_and_its_queue(embedded: str) -> None:
    """A copy with options leaves the workflow as it was; `run_id=` in the call wins."""
    named = sums.options(run_id="named", task_queue="special")
    assert await named(1) == 2
    assert await named(5, run_id="other") == 10
    await named.options(run_id="third").enqueue(7)

    runs = {run.run_id: run for run in await durable.list_runs()}
    assert set(runs) == {"named", "other", "third"}
    assert {run.task_queue for run in runs.values()} == {"special"}
    assert runs["third"].status is RunStatus.PENDING
    assert sums.options().name == "sums"


async def test_what_belongs_into_a_workflow_says_so_outside() -> None:
    """A clear error rather than a hang."""
    for what in (info, lambda: wait_signal("x"), lambda: wait_condition(lambda: True)):
        with pytest.raises(DefinitionError, match="inside a workflow"):
            await what()  # type: ignore[misc]  # info() raises before there is anything to await


async def test_a_workflow_that_returns_what_its_hint_does_not_say_fails(embedded: str) -> None:
    """With the place in what it returned, while its clean-up can still run; not completed, for its callers to find out."""

    @workflow
    async def counts(which: str) -> dict[str, list[int]]:
        return {"seen": [1, "two"]} if which == "deep" else None  # type: ignore[list-item,return-value]  # the mistake

    for which, text in (
        ("deep", r"expected `int`, got `str` at `\$\[\.\.\.\]\[1\]`"),
        ("none", "expected `object`, got `null` at"),
    ):
        with pytest.raises(
            WorkflowFailedError, match=f"the result is not what the return hint says: {text}"
        ) as failed:
            await counts(which, run_id=which)
        assert isinstance(failed.value.__cause__, PayloadError)
        assert (await durable.get_run(which)).status is RunStatus.FAILED


async def test_a_result_that_todays_hint_cannot_read_names_the_run(embedded: str) -> None:
    """The run was completed by other code: its caller learns whose result it cannot read as that."""

    @workflow(name="counts")
    async def before() -> str:
        return "seven"

    @workflow(name="counts")
    async def today() -> int:
        return 7

    await before(run_id="c-1")
    run = await today.attach("c-1")
    with pytest.raises(UndecodableError, match=r"the result of run 'c-1': expected `int`, got `str`"):
        await run.result()
    assert (await durable.get_run("c-1")).status is RunStatus.COMPLETED


@pytest.mark.parametrize(
    "define",
    [
        lambda: workflow(lambda: None),
        lambda: workflow(sums),  # type: ignore[arg-type]
        lambda: workflow(type("Order", (), {})),  # type: ignore[arg-type]
        lambda: workflow(version=0),
        lambda: workflow(retries=-1),
        lambda: workflow(timeout=-1),
        lambda: workflow(name="a\nb"),
        lambda: activity(double),
        lambda: activity(timeout=0),
        lambda: activity(retries=-1),
        lambda: activity(cancellation="maybe"),  # type: ignore[call-overload]
        lambda: step("name"),  # type: ignore[call-overload]
    ],
)
def test_a_wrong_definition_is_refused_where_it_is_made(define: Any) -> None:
    """At import, not at the first run."""
    with pytest.raises(DefinitionError):
        define()


def test_a_misspelt_option_is_a_type_error() -> None:
    """Every option that exists is enforced, and no other is accepted."""
    for decorate in (workflow, activity, step):
        with pytest.raises(TypeError):
            decorate(retrys=3)  # type: ignore[call-overload]  # the mistake under test


def test_a_parameter_called_run_id_is_refused() -> None:
    """`run_id=` names the run at every call."""

    async def takes(run_id: str) -> None: ...

    with pytest.raises(DefinitionError, match="run_id"):
        workflow(takes)


@workflow("named", version=3)
async def by_name(ctx: WorkflowContext) -> list[Any]:
    return [dict(ctx), ctx["a"], ctx.run_id, ctx.attempt, ctx.idempotency_key, await same_dict(ctx)]


@activity
async def same_dict(given: dict[str, Any]) -> str:
    return type(given).__name__


async def test_a_parameter_called_ctx_knows_the_run(embedded: str) -> None:
    """A dict over the input, with run id, attempt and idempotency key; to an activity it travels as its dict."""

    @workflow
    async def plain(more: int, ctx: Any) -> Any:
        return ctx.run_id if isinstance(ctx, WorkflowContext) else ctx

    assert await by_name({"a": 1}, run_id="r") == [{"a": 1}, 1, "r", 1, "r@1", "dict"]
    assert (by_name.name, by_name.version) == ("named", 3)
    assert await plain(1, ctx={}, run_id="k") == "k"
    assert await plain(1, 5) == 5
    assert (await durable.get_run("r")).input == {"ctx": {"a": 1}}
