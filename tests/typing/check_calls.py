"""Never run: mypy reads it. The types that authors and callers see."""

from __future__ import annotations

from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, assert_type
from uuid import UUID

from durable import (
    Activity,
    BulkOperation,
    BulkResult,
    Client,
    Retry,
    Run,
    RunHandle,
    Signal,
    Workflow,
    activity,
    connect,
    get_run,
    info,
    list_runs,
    now,
    random,
    recover,
    step,
    uuid4,
    workflow,
)
from durable.in_workflow import RunInfo


class Order:
    id: str


class Receipt:
    amount: int


@activity
async def charge(order: Order, cents: int = 0) -> Receipt:
    raise NotImplementedError


@activity(timeout=30, retry=Retry(max_attempts=5))
def ship(order: Order) -> str:
    raise NotImplementedError


@activity(timeout=timedelta(minutes=1), retries=2, cancellation="wait")
async def refund(receipt: Receipt) -> None: ...


@step
def count(text: str) -> int:
    raise NotImplementedError


@step(retries=1, retry_delay=0.5, no_retry=(OSError,))
async def fetch(page: int) -> list[str]:
    raise NotImplementedError


async def plain(page: int) -> bytes:
    raise NotImplementedError


named = step("named", plain)


@workflow
async def checkout(order: Order, gift: bool = False) -> Receipt:
    receipt = await charge(order, cents=5)
    assert_type(receipt, Receipt)
    assert_type(await ship(order), str)
    return receipt


@workflow(
    name="monthly", version=2, timeout=timedelta(days=3), retries=1, task_queue="slow", retention="forever"
)
async def report(pages: int) -> list[str]:
    return await fetch(pages)


approved = Signal("approved", bool)
anything = Signal("anything")


async def activities() -> None:
    coroutine: Coroutine[Any, Any, Receipt] = charge(Order(), 3)
    assert_type(await coroutine, Receipt)
    assert_type(await charge(Order()), Receipt)
    assert_type(await charge.options(timeout=3, retries=0)(Order(), cents=1), Receipt)
    assert_type(await ship(Order()), str)
    assert_type(await count("a"), int)
    assert_type(await fetch(1), list[str])
    assert_type(await named(1), bytes)
    assert_type(charge.name, str)
    options: Activity[[int], list[str]] = fetch.options(name="other")
    assert_type(await options(1), list[str])

    await charge("no order")  # type: ignore[arg-type]
    await charge()  # type: ignore[call-arg]
    await charge(Order(), euros=3)  # type: ignore[call-arg]
    await charge.options(retrys=3)(Order())  # type: ignore[call-arg]
    await charge.options(timeout=3)("no order")  # type: ignore[arg-type]


async def workflows() -> None:
    assert_type(await checkout(Order()), Receipt)
    assert_type(await checkout(Order(), gift=True), Receipt)
    assert_type(await checkout(Order(), run_id="order-7"), Receipt)
    assert_type(await checkout.start(Order()), RunHandle[Receipt])
    assert_type(await checkout.start(Order(), run_id="order-7"), RunHandle[Receipt])
    assert_type(await report.enqueue(3), RunHandle[list[str]])
    assert_type(await report.enqueue(3, run_id="report"), RunHandle[list[str]])
    assert_type(await report.options(run_id="report", task_queue="fast")(3), list[str])
    assert_type(await (await report.start(3)).result(), list[str])
    assert_type(await (await report.start(3)).result(timeout=timedelta(seconds=3)), list[str])
    typed: Workflow[[int], list[str]] = report
    assert_type(typed.version, int)

    await report.options(run_id="report")("three")  # type: ignore[call-overload]
    await report.options(run="report")(3)  # type: ignore[call-arg]
    await checkout(3)  # type: ignore[call-overload]
    await checkout.start(order=Order(), presents=True)  # type: ignore[call-overload]


async def signals() -> None:
    assert_type(await approved.wait(), bool)
    assert_type(await approved.wait(3), bool)
    assert_type(await approved.wait(timeout=timedelta(days=1), default=None), bool | None)
    assert_type(await approved.wait(1, default="late"), bool | str)
    await approved.wait("long")  # type: ignore[call-overload]


async def clients() -> None:
    assert_type(connect("sqlite:///x.db"), Client)
    async with connect("sqlite:///x.db", durability="process") as client:
        assert_type(client, Client)
        run = await client.start(
            checkout, Order(), run_id="order-7", delay=3, if_open="fail", if_closed="new"
        )
        assert_type(run, RunHandle[Receipt])
        assert_type(await run.result(), Receipt)
        assert_type(await client.start_many(report, [(1,), (2,)]), list[RunHandle[list[str]]])
        assert_type(await client.get("report", report), RunHandle[list[str]])
        assert_type(await client.describe("report"), Run)
        assert_type(await client.list(status="running", limit=3), list[Run])
        assert_type(await run.describe(), Run)
        await run.signal(approved, True)
        await run.signal("approved", {"any": "value"})
        await client.start(checkout, Order(), if_open="perhaps")  # type: ignore[arg-type]
    connect("sqlite:///x.db", durability="perhaps")  # type: ignore[arg-type]


async def shortcuts() -> None:
    assert_type(await get_run("r"), Run)
    assert_type(await list_runs(workflow="x"), list[Run])
    assert_type(await recover(wait=True), list[Run])
    assert_type(info(), RunInfo)
    assert_type(random(), float)
    assert_type(uuid4(), UUID)
    assert_type((now() - now()), timedelta)


def not_async(value: int) -> int:
    raise NotImplementedError


workflow(not_async)  # type: ignore[arg-type]
activity(retrys=3)  # type: ignore[call-overload]
workflow(retry=3)  # type: ignore[call-overload]
workflow(retention="never")  # type: ignore[call-overload]
step(retry=Retry())  # type: ignore[call-overload]


# ─ bulk operations ──


async def measured(item: str) -> int:
    return len(item)


def measured_in_a_thread(item: str) -> int:
    return len(item)


async def bulk_operations() -> None:
    for op in (
        BulkOperation(measured),
        BulkOperation(measured_in_a_thread),
        BulkOperation[str, int](processor=measured),
    ):
        assert_type(op, BulkOperation[str, int])
        found = (await op.execute(["a"])).unwrap()
        assert_type(found, BulkResult[int])
        assert_type(found.results, list[int])
        async for value in op.stream(["a"]):
            assert_type(value, int)
