"""A program as the guides of other libraries of patterns show them: lambdas over services, classes with add_step, one in another.

A pipeline whose step runs a graph, a node of which runs a saga; a managed saga, a step of which runs a bulk operation, that fails
and is undone. Each effect is a line in the file `EFFECTS`; after line `DIE_AFTER` the process kills itself.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

from durable import (
    AbstractSaga,
    AbstractWorkflowNode,
    BulkOperation,
    BulkOperationConfig,
    Err,
    FunctionStep,
    Ok,
    ParallelStep,
    Pipeline,
    Result,
    SagaBase,
    SagaManager,
    SagaStep,
    WorkflowBuilder,
    WorkflowEngine,
    conditional,
    saga_step,
)

EFFECTS = Path(os.environ["EFFECTS"])
DIE_AFTER = int(os.environ.get("DIE_AFTER", "0"))


def effect(text: str) -> None:
    with EFFECTS.open("a", encoding="utf-8") as ledger:
        ledger.write(text + "\n")
    if len(EFFECTS.read_text(encoding="utf-8").splitlines()) == DIE_AFTER:
        os.kill(os.getpid(), 9)


class Hotel:
    def __init__(self, *, is_paid: bool) -> None:
        self.is_paid = is_paid

    async def hold(self, booking: str) -> Result[str, str]:
        effect(f"hold {booking}")
        return Ok(f"room for {booking}")

    async def release(self, booking: str) -> None:
        effect(f"release {booking}")

    async def charge(self, booking: str) -> Result[str, str]:
        effect(f"charge {booking}")
        return Ok("paid") if self.is_paid else Err("card refused")


class HotelBooking(AbstractSaga):
    def __init__(self, booking: str, hotel: Hotel) -> None:
        super().__init__()
        self.add_step(SagaStep("hold", lambda: hotel.hold(booking), lambda: hotel.release(booking)))
        self.add_step(SagaStep("charge", lambda: hotel.charge(booking)))


class Grade(AbstractWorkflowNode):
    name = "grade"

    async def execute(self, state: dict[str, Any]) -> dict[str, Any]:
        effect("grade")
        return {"passed": state["score"] > 50}


class Book(AbstractWorkflowNode):
    name = "book"

    async def execute(self, state: dict[str, Any]) -> dict[str, Any]:
        done = await HotelBooking("nested", Hotel(is_paid=True)).execute()
        return {"booked": done.is_ok()}


engine = WorkflowEngine(
    WorkflowBuilder("grading").add_node(Grade()).add_node(Book()).add_edge("grade", "book").build()
)


def writes(name: str) -> FunctionStep:
    async def write(ctx: dict[str, Any]) -> int:
        effect(name)
        return len(ctx)

    return FunctionStep(name, write)


@conditional("maybe", lambda ctx: ctx["first"] == 1)
async def maybe(ctx: dict[str, Any]) -> str:
    effect("maybe")
    return "yes"


etl = Pipeline(
    "etl",
    [
        writes("first"),
        ParallelStep("both", [writes("left"), writes("right")]),
        maybe,
        FunctionStep("graded", lambda ctx: engine.execute("grade", {"score": 60})),
    ],
)


async def process(number: int) -> int:
    effect(f"item {number}")
    return number


items = BulkOperation(process, BulkOperationConfig(batch_size=2, max_concurrency=2), name="items")


class Order(SagaBase):
    @saga_step("reserve")
    async def reserve(self) -> None:
        effect("reserve")

    @saga_step("reserve", compensation=True)
    async def unreserve(self) -> None:
        effect("unreserve")

    @saga_step("items")
    async def pack(self) -> dict[str, Any]:
        return {"packed": (await items.execute(range(4))).unwrap().succeeded}

    @saga_step("pay", max_retries=0)
    async def pay(self) -> None:
        effect("pay")
        raise ValueError("no money")


manager = SagaManager()
manager.register(Order)


async def main() -> None:
    for booking, is_paid in (("first-trip", True), ("second-trip", False)):
        done = await HotelBooking(booking, Hotel(is_paid=is_paid)).execute(run_id=booking)
        print(booking, "is confirmed" if done.is_ok() else f"is undone: {done.unwrap_err().compensated}")
    print("graded", (await etl.execute({"x": 1}, run_id="etl"))["final_state"])
    order = await manager.wait(await manager.start("Order", {"id": 1}, "order"), 60)
    print("order", order.status, {name: str(step.status) for name, step in order.steps.items()})


if __name__ == "__main__":
    asyncio.run(main())
