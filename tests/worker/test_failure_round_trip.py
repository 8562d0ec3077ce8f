"""A failure on its way from an activity through the journal into the workflow, and from there to the caller."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import pytest

from durable import (
    ActivityError,
    Client,
    RunStatus,
    Signal,
    WorkflowFailedError,
    activity,
    workflow,
)
from tests.support.workers import is_released, no_durability, running_worker

go = Signal("go", int)


class OutOfStock(Exception):
    """An error with fields of its own, whose constructor takes something else than its args."""

    def __init__(self, sku: str, *, left: int) -> None:
        super().__init__(f"{left} of {sku} left")
        self.sku = sku
        self.left = left


@activity(retries=0)
async def reserve(sku: str) -> None:
    raise OutOfStock(sku, left=2)


@activity(retries=0)
async def chained() -> None:
    try:
        try:
            {}["key"]
        except KeyError as error:
            raise ConnectionError("inner") from error
    except ConnectionError as error:
        raise OutOfStock("b", left=0) from error


async def error_of(client: Client, flow: Any, *args: Any) -> WorkflowFailedError:
    async with running_worker(client, flow):
        run = await client.start(flow, *args)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
        assert (await run.describe()).status is RunStatus.FAILED
    return failed.value


async def test_an_activitys_own_class_reaches_the_workflow_live_and_in_replay(client: Client) -> None:
    """`except OutOfStock` works, with its fields, each time the journal is read."""
    seen: list[tuple[str, int, str]] = []

    @workflow
    async def orders() -> str:
        try:
            await reserve("a")
        except OutOfStock as error:
            seen.append((error.sku, error.left, str(error)))
            await go.wait()
            return error.sku
        return ""

    async with running_worker(client, orders, warm_us=0):
        run = await client.start(orders)
        await is_released(run)
        await run.signal(go, 1)

        assert await run.result(60) == "a"
    assert seen == [("a", 2, "2 of a left")] * 2


async def test_the_arguments_of_an_error_are_the_same_live_and_in_replay(client: Client) -> None:
    """And of the types that they were raised with: tuples are no lists."""
    seen: list[tuple[Any, ...]] = []

    @activity(retries=0)
    async def locate() -> None:
        error = LookupError(("shelf", (3, [4])), {"at": (1, 2)})
        error.seen = (1, ("x",))  # type: ignore[attr-defined]
        raise error

    @workflow
    async def orders() -> str:
        try:
            await locate()
        except LookupError as error:
            seen.append((*error.args, error.seen))  # type: ignore[attr-defined]
            await go.wait()
        return "done"

    async with running_worker(client, orders, warm_us=0):
        run = await client.start(orders)
        await is_released(run)
        await run.signal(go, 1)
        assert await run.result(60) == "done"
    assert seen == [(("shelf", (3, [4])), {"at": (1, 2)}, (1, ("x",)))] * 2


async def test_the_caller_gets_the_workflows_error_as_cause(client: Client) -> None:
    """WorkflowFailedError says which run; the error itself is chained, with its fields and notes."""

    @workflow
    async def orders() -> None:
        await reserve("a")

    failed = await error_of(client, orders)
    cause = failed.__cause__

    assert isinstance(cause, OutOfStock)
    assert (cause.sku, cause.left) == ("a", 2)
    assert "OutOfStock: 2 of a left" in str(failed)
    (note,) = cause.__notes__
    assert note == f"activity 'reserve' of run {failed.run_id!r}, attempt 1"


async def test_the_chain_of_causes_survives(client: Client) -> None:
    """What was raised from what, each in its own class."""

    @workflow
    async def orders() -> None:
        await chained()

    cause = (await error_of(client, orders)).__cause__

    assert isinstance(cause, OutOfStock)
    assert isinstance(cause.__cause__, ConnectionError)
    assert cause.__cause__.args == ("inner",)
    assert isinstance(cause.__cause__.__cause__, KeyError)
    assert str(cause.__cause__.__cause__) == "'key'"


async def test_a_workflows_error_around_an_activitys_keeps_both(client: Client) -> None:
    """The workflow's `raise ... from` is part of the record."""

    @workflow
    async def orders() -> None:
        try:
            await reserve("a")
        except OutOfStock as error:
            raise LookupError("no order") from error

    cause = (await error_of(client, orders)).__cause__

    assert isinstance(cause, LookupError)
    assert isinstance(cause.__cause__, OutOfStock)
    assert cause.__cause__.sku == "a"


async def test_groups_of_failures_are_groups_again(client: Client) -> None:
    """`except*` works in the workflow, and the caller sees every leaf."""

    @workflow
    async def handles() -> int:
        caught = 0
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(reserve("a"))
                group.create_task(reserve("b"))
        except* OutOfStock as errors:
            caught = len(errors.exceptions)
        return caught

    @workflow
    async def raises() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(reserve("a"))

    async with running_worker(client, handles):
        assert await (await client.start(handles)).result(60) >= 1
    cause = (await error_of(client, raises)).__cause__
    assert isinstance(cause, ExceptionGroup)
    (leaf,) = cause.exceptions
    assert isinstance(leaf, OutOfStock)
    assert leaf.sku == "a"


async def test_an_error_of_a_class_that_is_gone_becomes_an_activity_error(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says the same: activity, type, message, attempts, run. Nothing is imported to find the class."""
    module = ModuleType("vendor_library")
    error_class = type("VendorError", (Exception,), {"__module__": "vendor_library"})
    module.VendorError = error_class  # type: ignore[attr-defined]  # made here
    monkeypatch.setitem(sys.modules, "vendor_library", module)

    @activity(retries=0)
    async def asks_vendor() -> None:
        raise error_class("down", 503)

    @workflow
    async def orders() -> None:
        await asks_vendor()

    async with running_worker(client, orders):
        run = await client.start(orders)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
        assert type(failed.value.__cause__) is error_class
    monkeypatch.delitem(sys.modules, "vendor_library")
    async with no_durability(url) as other:
        with pytest.raises(WorkflowFailedError, match="VendorError") as failed:
            await (await other.get(run.run_id)).result(60)
    stand_in = failed.value.__cause__
    assert isinstance(stand_in, ActivityError)
    assert stand_in.type == "vendor_library.VendorError"
    assert stand_in.message == "('down', 503)"
    assert stand_in.attempts in (0, 1)


async def test_a_failed_run_says_why_in_one_line_and_keeps_the_whole_record(client: Client) -> None:
    """`error` is for lists; `failure` has the traceback; the journal's entry has its own."""

    @workflow
    async def orders() -> None:
        await reserve("a")

    async with running_worker(client, orders):
        run = await client.start(orders)
        with pytest.raises(WorkflowFailedError):
            await run.result(60)
    seen = await run.describe()

    assert seen.error == "OutOfStock: 2 of a left"
    assert seen.failure is not None
    assert "orders" in seen.failure.traceback
    (entry,) = seen.journal
    assert (entry.status, entry.error) == ("failed", "OutOfStock: 2 of a left")
    assert entry.failure is not None
    assert "raise OutOfStock" in entry.failure.traceback


@pytest.mark.parametrize(
    "error",
    [
        OSError(2, "No such file", "x.txt"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        StopIteration(3),
        StopAsyncIteration(),
        RuntimeError(),
        ValueError("\ud800"),
        Exception({"a": [1]}, None),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_awkward_errors_reach_the_workflow(client: Client, error: Exception) -> None:
    """Also those that futures, coroutines or JSON dislike."""

    @activity(retries=0)
    async def awkward() -> None:
        raise error

    @workflow
    async def handles() -> str:
        try:
            await awkward()
        except Exception as caught:
            return type(caught).__name__
        return ""

    async with running_worker(client, handles):
        expected = "RuntimeError" if isinstance(error, StopIteration) else type(error).__name__
        assert await (await client.start(handles)).result(60) == expected


async def test_a_workflow_may_end_with_awkward_errors(client: Client) -> None:
    """SystemExit and the like fail the run, not the worker."""
    kinds: list[type[BaseException]] = [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError]

    @workflow
    async def leaves(position: int) -> None:
        raise kinds[position]("out")

    @workflow
    async def stays() -> int:
        return 1

    async with running_worker(client, leaves, stays):
        for position, kind in enumerate(kinds):
            with pytest.raises(WorkflowFailedError, match=kind.__name__):
                await (await client.start(leaves, position)).result(60)
        assert await (await client.start(stays)).result(60) == 1
