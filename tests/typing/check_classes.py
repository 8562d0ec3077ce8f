"""Never run: mypy reads it. What a type checker knows of workflows that are classes."""

from __future__ import annotations

from typing import assert_type

from durable import (
    Client,
    RunHandle,
    Signal,
    Worker,
    Workflow,
    child,
    on_query,
    on_signal,
    on_update,
    signal,
    workflow,
    workflow_of,
)
from durable.testing import crash_everywhere


class Order:
    id: str


class Receipt:
    amount: int


@workflow
class Checkout:
    def __init__(self, order: Order, gift: bool = False) -> None:
        self.order = order

    async def run(self) -> Receipt:
        raise NotImplementedError

    @workflow.signal
    def approve(self, by: str) -> None: ...

    @workflow.query
    def status(self, part: int, *, verbose: bool = False) -> str:
        raise NotImplementedError

    @workflow.signal
    def hurry(self) -> None: ...

    @workflow.signal(name="remark")
    async def add_remark(self, text: str) -> None: ...

    @workflow.update
    async def add(self, count: int) -> list[str]:
        raise NotImplementedError

    @add.validator
    def check(self, count: int) -> None: ...

    @workflow.update(name="size")
    def count(self) -> int:
        return 1

    @count.validator
    def check_size(self) -> None: ...


@workflow(name="monthly", version=2, timeout=3)
class Report:
    async def run(self) -> list[str]:
        return [str(await child(Checkout, Order(), gift=True))]


@workflow
async def plain(page: int) -> bytes:
    raise NotImplementedError


class Undecided:
    async def stroll(self) -> None: ...


async def objects() -> None:
    assert_type(Checkout(Order()), Checkout)
    assert_type(await Checkout(Order(), gift=True).run(), Receipt)
    assert_type(Checkout(Order()).approve("ann"), None)
    await Checkout(Order()).add_remark("well")
    assert_type(await Checkout(Order()).add(3), list[str])
    assert_type(Checkout(Order()).count(), int)
    Checkout(Order()).check("three")  # type: ignore[arg-type]
    Checkout(Order()).approve(3)  # type: ignore[arg-type]
    Checkout("no order")  # type: ignore[arg-type]


async def clients(client: Client) -> None:
    run = await client.start(Checkout, Order(), run_id="order-7", if_open="fail")
    assert_type(run, RunHandle[Receipt])
    assert_type(await run.result(), Receipt)
    assert_type(await client.start(plain, 3), RunHandle[bytes])
    assert_type(await client.start_many(Report, [(), ()]), list[RunHandle[list[str]]])
    assert_type(await client.get("report", Report), RunHandle[list[str]])
    await run.signal(Checkout.approve, "ann")
    await run.signal(Checkout.hurry)
    await run.signal("hurry")
    await run.signal(Checkout.approve, 3)  # type: ignore[arg-type]
    await run.signal(Checkout.approve)  # type: ignore[arg-type]
    await run.signal(Checkout.hurry, 3)  # type: ignore[arg-type]
    await signal("order-7", Checkout.approve, "ann")
    await signal("order-7", Checkout.approve, 3)  # type: ignore[arg-type]
    assert_type(await run.query(Checkout.status, 1, verbose=True), str)
    assert_type(await client.query("order-7", Checkout.status, 1), str)
    answer: int = await run.query("status", 1)
    assert_type(answer, int)
    assert_type(await run.update(Checkout.add, 3, id="a", timeout=5), list[str])
    assert_type(await run.update(Checkout.count), int)
    assert_type(await client.update("order-7", Checkout.add, 3), list[str])
    assert_type(await client.update("order-7", Checkout.count, id="a"), int)
    told: int = await run.update("add", 3)
    assert_type(told, int)
    await run.update(Checkout.add, "three")  # type: ignore[arg-type]
    await run.update(Checkout.add)  # type: ignore[arg-type]
    await run.update(Checkout.count, 3)  # type: ignore[arg-type]
    await run.query(Checkout.status, "one")  # type: ignore[call-overload]
    await run.query(Checkout.status, 1, loud=True)  # type: ignore[call-arg]
    await client.signal("order-7", Checkout.add_remark, "well", id="m1")
    await client.stack("report", Report, values=True)
    Worker(client, Checkout, plain)
    crash_everywhere(Checkout, Order())
    await client.start(Undecided)  # type: ignore[arg-type]


def handlers() -> None:
    on_signal("go", print)
    on_query("status", lambda: "well")
    on_update("add", lambda count: count + 1, lambda count: None)
    on_update("add", 3)  # type: ignore[arg-type]
    workflow.update(nome="x")  # type: ignore[call-overload]
    on_signal(Signal("number", int), lambda number: None)
    workflow.signal(nome="x")  # type: ignore[call-overload]


async def children() -> None:
    assert_type(await child(Checkout, Order()), Receipt)
    assert_type(await child(Report), list[str])
    assert_type(await child(plain, 3), bytes)
    assert_type(await child(workflow_of(Checkout).options(run_id="x"), Order(), gift=True), Receipt)
    await child(Checkout, "no order")  # type: ignore[call-overload]
    await child(plain, "three")  # type: ignore[call-overload]


async def here() -> None:
    typed: Workflow[[int], bytes] = workflow_of(plain)
    assert_type(await typed(3), bytes)
    assert_type(await workflow_of(Checkout)(Order()), Receipt)
    assert_type(await workflow_of(Checkout)(Order(), run_id="order-7"), Receipt)
    assert_type(await workflow_of(Checkout).start(Order()), RunHandle[Receipt])
    assert_type(await workflow_of(Report).options(run_id="march").enqueue(), RunHandle[list[str]])
    await workflow_of(Checkout).options(run_id="x")("no order")  # type: ignore[call-overload]


workflow(Undecided)  # type: ignore[arg-type]
