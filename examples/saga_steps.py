"""A saga made of steps, each an action with its compensation: `AbstractSaga`.

    python examples/saga_steps.py

A worker that imports this module can finish a saga that this script left behind: it makes the object anew from the
constructor's arguments, which are stored with the run.
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable import AbstractSaga, SagaStep, SagaStepResult


class Order(AbstractSaga):
    VERSION = 1  # raise it when a change breaks open runs

    def __init__(self, order_id: str, cents: int) -> None:
        super().__init__()
        self.order_id = order_id
        self.cents = cents
        self.add_step(SagaStep("reserve", self.reserve, self.release))
        self.add_step(SagaStep("charge", self.charge, self.refund, max_retries=5, idempotent=False))
        self.add_step(SagaStep("ship", self.ship, timeout=30))

    def get_id(self) -> str:
        return f"order-{self.order_id}"

    async def reserve(self) -> str:
        return f"shelf 4 for {self.order_id}"

    async def release(self, ctx: dict[str, Any]) -> None:
        print(f"{ctx['reserve']}: free again")

    async def charge(self) -> dict[str, Any]:
        return {"payment": f"p-{self.order_id}", "cents": self.cents}

    async def refund(self, ctx: dict[str, Any]) -> None:
        print(f"{ctx['charge']['payment']}: {ctx['charge']['cents']} given back")

    async def ship(self) -> object:
        if self.cents > 1000:
            return SagaStepResult.fail("no truck is big enough")  # an answer: it is not tried again
        return SagaStepResult.Ok("on its way")


async def main() -> None:
    good = await Order("anvil", 500).execute()
    print("anvil:", good.unwrap()["ship"])

    saga = Order("rocket", 5000)
    bad = await saga.execute()
    error = bad.unwrap_err()
    print(f"rocket: {saga.state}, because {error.step_name} failed: {error.cause}")
    print(f"undone: {', '.join(error.compensated)}")


if __name__ == "__main__":
    asyncio.run(main())  # durable show order-rocket
