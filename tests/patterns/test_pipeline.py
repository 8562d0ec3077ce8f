"""Pipelines: what a step is called with, what comes out, what failing means."""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Any, TypedDict

import msgspec
import pytest

import durable
from durable import (
    ActivityTimeoutError,
    Client,
    Err,
    FunctionStep,
    Ok,
    Pipeline,
    PipelineStepError,
    Result,
    Retry,
    RunConflictError,
    RunStatus,
    StepAnswerError,
    StepContext,
    StepTimeoutError,
    WorkflowTimeoutError,
    WorkflowVersionMismatchError,
    activity,
    step,
    workflow,
)
from tests.support.workers import Calls, running_worker


class Order(msgspec.Struct):
    cents: int


class Receipt(msgspec.Struct):
    total: int


class Given(TypedDict):
    cents: int


@step
async def fetch(ctx: dict[str, Any]) -> dict[str, Any]:
    return {"mail": f"{ctx['user']}@example.org"}


@step
async def greet(ctx: dict[str, Any]) -> str:
    return f"hello {ctx['fetch']['mail']}"


async def test_execute_returns_the_output_of_the_last_step(embedded: str) -> None:
    """Raw, not a Result; each step sees the input and the results so far, under the steps' names."""
    seen: list[dict[str, Any]] = []

    async def look(ctx: dict[str, Any]) -> str:
        seen.append(dict(ctx))
        return "done"

    pipeline = Pipeline("welcome", [fetch, greet, step("look", look)])

    assert await pipeline.execute({"user": "u"}, run_id="w-1") == "done"
    assert seen == [{"user": "u", "fetch": {"mail": "u@example.org"}, "greet": "hello u@example.org"}]
    run = await durable.get_run("w-1")
    assert (run.kind, run.workflow, run.status, run.result) == ("pipeline", "welcome", "completed", "done")
    assert [(entry.name, entry.kind, entry.status) for entry in run.journal] == [
        ("fetch", "activity", "completed"),
        ("greet", "activity", "completed"),
        ("look", "activity", "completed"),
    ]


async def test_the_same_run_id_returns_the_recorded_output(embedded: str) -> None:
    """A recorded step never runs again; other input under the id is refused."""
    calls = Calls()

    async def count(ctx: dict[str, Any]) -> int:
        return calls("count")

    pipeline = Pipeline("counted", [count])

    assert await pipeline.execute({"a": 1}, run_id="c-1") == 1
    assert await pipeline.execute({"a": 1}, run_id="c-1") == 1
    assert await pipeline.execute({"a": 1}) == 2
    with pytest.raises(RunConflictError):
        await pipeline.execute({"a": 2}, run_id="c-1")


async def test_any_callable_may_be_a_step(embedded: str) -> None:
    """Async or not, a method, lambda, partial or object, with the context or with nothing."""

    class Shop:
        async def price(self, ctx: dict[str, Any]) -> int:
            return int(ctx["cents"])

        def __call__(self, ctx: dict[str, Any]) -> str:
            return "called"

    async def add(more: int, ctx: dict[str, Any]) -> int:
        return int(ctx["price"]) + more

    def nothing() -> str:
        return "nothing"

    pipeline = Pipeline("any", [Shop().price, FunctionStep("added", partial(add, 5)), nothing])
    pipeline.add_step(FunctionStep("object", Shop()))
    pipeline.add_step(FunctionStep("later", lambda ctx: add(1, ctx)))

    assert await pipeline.execute({"cents": 7}) == 8
    assert [one.name for one in pipeline.steps] == ["price", "added", "nothing", "object", "later"]
    run = await durable.get_run((await durable.list_runs())[0].run_id)
    assert [entry.result for entry in run.journal] == [7, 12, "nothing", "called", 8]


async def test_a_typed_context_is_decoded_by_its_hint(embedded: str) -> None:
    """A Struct or TypedDict takes what it names; results of steps are typed by their own hints."""

    async def charge(order: Order) -> Receipt:
        return Receipt(total=order.cents)

    async def ship(ctx: Given) -> Receipt:
        return Receipt(total=ctx["cents"] + 1)

    assert await Pipeline("typed", [charge, ship]).execute({"cents": 3}) == Receipt(total=4)


async def test_the_context_knows_its_run(embedded: str) -> None:
    """A step's context is a dict with the run's id, the attempt, and the idempotency key."""

    async def who(ctx: StepContext) -> list[Any]:
        return [ctx.run_id, ctx.attempt, ctx.idempotency_key]

    assert await Pipeline("who", [who]).execute(run_id="me") == ["me", 1, "me@1/who#1"]


async def test_values_are_snapshots(embedded: str) -> None:
    """What a step does to its context, nobody else sees: live as in a replay."""

    async def spoil(ctx: dict[str, Any]) -> list[int]:
        ctx["items"].append(4)
        ctx["more"] = 1
        return list(ctx["items"])

    async def look(ctx: dict[str, Any]) -> list[Any]:
        return [ctx["items"], ctx["spoil"], "more" in ctx]

    given = {"items": [1]}
    assert await Pipeline("snapshots", [spoil, look]).execute(given) == [[1], [1, 4], False]
    assert given == {"items": [1]}


async def test_a_failed_step_raises_its_name_and_cause(embedded: str) -> None:
    """`PipelineStepError(step_name, run_id, errors)`, its cause the step's own error; the run has failed."""

    class DeclinedError(Exception):
        pass

    async def charge(ctx: dict[str, Any]) -> None:
        raise ValueError("declined")

    pipeline = Pipeline("failing", [fetch, FunctionStep("charge", charge)])

    for _ in range(2):  # the second time from the record
        with pytest.raises(
            PipelineStepError, match="step 'charge' of run 'f-1' failed: ValueError: declined"
        ) as e:
            await pipeline.execute({"user": "u"}, run_id="f-1")
        assert (e.value.step_name, e.value.run_id) == ("charge", "f-1")
        assert [error.step_name for error in e.value.errors] == ["charge"]
        assert isinstance(e.value.__cause__, ValueError)
    assert (await durable.get_run("f-1")).status == RunStatus.FAILED


async def test_attempts_are_one_and_the_retries(embedded: str) -> None:
    """Raised errors are retried, as often as `retries` says; programming errors are not."""
    calls = Calls()

    async def flaky(ctx: dict[str, Any]) -> str:
        if calls("flaky") < 3:
            raise OSError("down")
        return "up"

    async def wrong(ctx: dict[str, Any]) -> None:
        calls("wrong")
        raise KeyError("x")

    async def never(ctx: dict[str, Any]) -> None:
        calls("never")
        raise OSError

    assert await Pipeline("a", [FunctionStep("flaky", flaky, retries=2, retry_delay=0)]).execute() == "up"
    with pytest.raises(PipelineStepError):
        await Pipeline("b", [FunctionStep("never", never, retries=1, retry_delay=0)]).execute()
    with pytest.raises(PipelineStepError):
        await Pipeline("c", [FunctionStep("wrong", wrong)]).execute()
    assert (calls.of("flaky"), calls.of("never"), calls.of("wrong")) == (3, 2, 1)


async def test_an_activity_keeps_its_own_options(embedded: str) -> None:
    """`@step(retries=…)` and `@activity(retry=…)` hold inside a pipeline."""
    calls = Calls()

    @step(retries=1, retry_delay=0)
    async def twice(ctx: dict[str, Any]) -> None:
        calls("twice")
        raise OSError

    @activity(name="once-only", retry=Retry(max_attempts=1))
    def once(ctx: dict[str, Any]) -> None:
        calls("once")
        raise OSError

    for one, name in ((twice, "twice"), (once, "once-only")):
        with pytest.raises(PipelineStepError) as e:
            await Pipeline(None, [one]).execute()
        assert e.value.step_name == name
    assert (calls.of("twice"), calls.of("once")) == (2, 1)


async def test_a_returned_err_fails_the_step_without_a_retry(embedded: str) -> None:
    """An answer, not an accident: also with a timeout, and also without a type hint. `Ok` stands for its value."""
    calls = Calls()

    async def answer(ctx: dict[str, Any]) -> Result[int, str]:
        calls("answer")
        return Err("declined")

    async def raises(ctx):  # type: ignore[no-untyped-def]  # as people write them
        return Err(ValueError("no"))

    async def fine(ctx: dict[str, Any]) -> Result[int, str]:
        return Ok(5)

    with pytest.raises(PipelineStepError, match="declined") as e:
        await Pipeline("x", [FunctionStep("answer", answer, timeout=10)]).execute()
    assert isinstance(e.value.__cause__, StepAnswerError)
    assert calls.of("answer") == 1
    with pytest.raises(PipelineStepError) as e:
        await Pipeline("y", [raises]).execute()
    assert isinstance(e.value.__cause__, ValueError)
    assert await Pipeline("z", [fine]).execute() == 5


async def test_a_step_timeout_limits_each_attempt(embedded: str) -> None:
    """`StepTimeoutError` is the activity's own timeout error, and retried."""
    calls = Calls()

    async def slow(ctx: dict[str, Any]) -> None:
        calls("slow")
        await asyncio.sleep(60)

    with pytest.raises(PipelineStepError) as e:
        await Pipeline("s", [FunctionStep("slow", slow, timeout=0.05, retries=1, retry_delay=0)]).execute()
    assert isinstance(e.value.__cause__, StepTimeoutError)
    assert StepTimeoutError is ActivityTimeoutError
    assert calls.of("slow") == 2


async def test_the_timeout_of_a_pipeline_limits_the_run(embedded: str) -> None:
    """Also inside another run, where it is a part."""

    async def slow(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    pipeline = Pipeline("slow", [slow], timeout=0.1)

    @workflow
    async def outer() -> str:
        try:
            await pipeline.execute()
        except WorkflowTimeoutError as error:
            return error.run_id
        return "?"

    with pytest.raises(WorkflowTimeoutError):
        await pipeline.execute(run_id="t-1")
    assert (await durable.get_run("t-1")).status == RunStatus.TIMED_OUT
    assert await outer(run_id="o-1") == "o-1"


async def test_another_version_is_refused(embedded: str) -> None:
    """Code of version 2 does not drive a run of version 1."""

    async def wait(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    handle = await Pipeline("v", [wait]).enqueue(run_id="v-1")
    assert handle.run_id == "v-1"

    with pytest.raises(WorkflowVersionMismatchError) as e:
        await Pipeline("v", [wait], version=2).execute(run_id="v-1")
    assert (e.value.stored_version, e.value.code_version) == (1, 2)


async def test_a_pipeline_inside_a_workflow_is_part_of_its_run(embedded: str) -> None:
    """Its steps are in the parent's journal under its name; one failure of it keeps its cause."""
    pipeline = Pipeline("notify", [fetch, greet])

    @workflow
    async def order(user: str) -> list[str]:
        return [await pipeline.execute({"user": user}), await pipeline.execute({"user": "v"})]

    assert await order("u", run_id="o-1") == ["hello u@example.org", "hello v@example.org"]
    run = await durable.get_run("o-1")
    assert [entry.name for entry in run.journal] == ["notify/fetch", "notify/greet"] * 2
    assert len(await durable.list_runs()) == 1


async def test_a_run_id_inside_a_run_is_refused(embedded: str) -> None:
    """It would name a run that does not exist."""
    pipeline = Pipeline("notify", [fetch])

    @workflow
    async def order() -> None:
        with pytest.raises(durable.DefinitionError, match="leave run_id out"):
            await pipeline.execute({"user": "u"}, run_id="x")

    await order()


async def test_a_pipeline_inside_a_step_is_a_run_of_its_own(embedded: str) -> None:
    """Its id derives from the idempotency key: a retried step attaches to it and starts no second one."""
    calls = Calls()
    inner = Pipeline("inner", [fetch])

    @step(retry_delay=0)
    async def outer(ctx: dict[str, Any]) -> str:
        found = await inner.execute({"user": "u"})
        if calls("outer") == 1:
            raise OSError
        return str(found["mail"])

    assert await Pipeline("outside", [outer]).execute(run_id="out") == "u@example.org"
    assert calls.of("outer") == 2
    assert sorted(run.run_id for run in await durable.list_runs()) == ["out", "out@1/outer#1/inner#1"]


def test_two_steps_of_one_name_are_refused() -> None:
    """ValueError, when the pipeline is made."""
    with pytest.raises(ValueError, match="called 'fetch'"):
        Pipeline("twice", [fetch, fetch])
    with pytest.raises(ValueError, match="called 'fetch'"):
        Pipeline("twice", [fetch]).add_step(fetch)


def test_a_builtin_that_does_not_say_what_it_takes_is_refused() -> None:
    """When the pipeline is made, by an error that says what to do."""
    with pytest.raises(durable.DefinitionError, match="what 'dict' takes: call it in a function"):
        Pipeline("builtin", [dict])


def test_misspelt_options_are_type_errors() -> None:
    """No option is taken and forgotten."""
    with pytest.raises(TypeError):
        Pipeline("x", [], timeot=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        FunctionStep("x", fetch, retry=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        durable.parallel("x", [], failfast=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        durable.conditional("x", lambda ctx: True, otherwize=None)  # type: ignore[call-arg]


async def test_the_input_is_a_mapping(embedded: str) -> None:
    """Results are merged into it."""
    with pytest.raises(TypeError, match="mapping"):
        await Pipeline("x", [fetch]).execute(5)  # type: ignore[arg-type]
    assert await Pipeline("empty").execute({"a": 1}) is None


def test_a_pipeline_without_a_name_is_called_by_its_steps() -> None:
    """So a worker that builds the same one finds its runs."""
    assert Pipeline(steps=[fetch, greet]).name == "fetch-greet"
    assert len(Pipeline(steps=[FunctionStep(f"{i}-{'x' * 50}", fetch) for i in range(9)]).name) <= 200


async def test_two_pipelines_of_one_name_are_refused(embedded: str) -> None:
    """As with workflows: whoever recovers a run could not tell them apart. The same one made again is the same."""
    await Pipeline("same", [fetch]).execute({"user": "u"})
    await Pipeline("same", [fetch]).execute({"user": "u"})

    with pytest.raises(durable.DefinitionError, match="two workflows are called 'same'"):
        await Pipeline("same", [fetch, greet]).execute({"user": "u"})


welcome = Pipeline("welcome", [fetch, greet])


async def test_a_worker_that_imports_the_module_finishes_a_pipeline(client: Client) -> None:
    """The pipeline is a variable of the module. Given by itself it will do, too; what stands for no workflow will not."""
    (made,) = welcome.__durable_workflows__()
    first = await client.start(made, {"user": "u"}, run_id="w-1")
    async with running_worker(client, sys.modules[__name__]):
        assert await first.result() == "hello u@example.org"

    second = await client.start(made, {"user": "v"}, run_id="w-2")
    async with running_worker(client, welcome):
        assert await second.result() == "hello v@example.org"
    assert (await client.describe("w-2")).kind == "pipeline"
    with pytest.raises(durable.DefinitionError):
        durable.Worker(client, 5)  # type: ignore[arg-type]


async def test_steps_that_run_other_patterns_hold_no_slot(client: Client) -> None:
    """A lambda that executes a pipeline is enough: more of them than the worker has slots, two levels deep, do not stand still."""

    def told(ctx: dict[str, Any]) -> str:
        return f"hello {ctx['user']}"

    innermost = Pipeline("innermost", [step("told", told)])
    inner = Pipeline("inner", [step("deeper", lambda ctx: innermost.execute({"user": ctx["user"]}))])
    outer = Pipeline("outer", [step("deep", lambda ctx: inner.execute({"user": ctx["user"]}))])
    (made,) = outer.__durable_workflows__()

    async with running_worker(client, innermost, inner, outer, concurrency=2):
        runs = [await client.start(made, {"user": f"u{number}"}) for number in range(8)]
        assert [await run.result(60) for run in runs] == [f"hello u{number}" for number in range(8)]


async def test_a_retried_workflow_keeps_what_its_pipeline_has_done(embedded: str) -> None:
    """A failed step is an activity's failure: the journal up to it is kept."""
    calls = Calls()

    async def first(ctx: dict[str, Any]) -> None:
        calls("first")

    async def flaky(ctx: dict[str, Any]) -> None:
        if calls("flaky") == 1:
            raise OSError

    pipeline = Pipeline("p", [first, FunctionStep("flaky", flaky, retries=0)])

    @workflow(retries=1, retry_delay=0)
    async def outer() -> None:
        await pipeline.execute()

    await outer()
    assert calls.names == ["first", "flaky", "flaky"]


async def test_recover_finishes_pipelines_of_imported_modules(embedded: str) -> None:
    """Those that a script left behind."""
    await welcome.enqueue({"user": "u"}, run_id="w-1")

    (run,) = await durable.recover(wait=True)

    assert (run.run_id, run.status, run.result) == ("w-1", "completed", "hello u@example.org")
