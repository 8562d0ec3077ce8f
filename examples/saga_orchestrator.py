"""A saga as a table of steps: transitions, a way out of a failure, and steps side by side.

python examples/saga_orchestrator.py
"""

from __future__ import annotations

import asyncio

from durable import OrchestratedStep, SagaContext, SagaOrchestrator, SagaStepResult


class Reserve:
    """An action with its compensation."""

    async def execute(self, ctx: SagaContext) -> dict[str, int]:
        return {"shelf": 4}

    async def compensate(self, ctx: SagaContext) -> None:
        print(f"{ctx.saga_id}: shelf {ctx.step_results['reserve']['shelf']} is free again")


async def charge(ctx: SagaContext) -> SagaStepResult:
    if ctx["card"] == "expired":
        return SagaStepResult.fail("the card has expired")
    return SagaStepResult.Ok("paid by card")


async def send_invoice(ctx: SagaContext) -> str:
    return "to be paid later"


def after_payment(ctx: SagaContext, result: SagaStepResult) -> str | None:
    return "deliver" if ctx["deliver"] else None  # None: the saga ends here


async def pack(ctx: SagaContext) -> dict[str, str]:
    return {"parcel": "packed"}


async def book_truck(ctx: SagaContext) -> dict[str, str]:
    if ctx["deliver"] == "the moon":
        raise ValueError("no truck goes there")
    return {"truck": "booked"}


orders = SagaOrchestrator()
orders.define(
    "order",
    [
        OrchestratedStep("reserve", Reserve()),
        OrchestratedStep("charge", charge, next_step=after_payment, on_failure="invoice"),
        OrchestratedStep("invoice", send_invoice, next_step=after_payment),
        OrchestratedStep(
            "deliver", parallel=[OrchestratedStep("pack", pack), OrchestratedStep("truck", book_truck)]
        ),
    ],
)


async def main() -> None:
    for saga_id, data in {
        "pick-up": {"card": "fine", "deliver": ""},
        "expired": {"card": "expired", "deliver": "home"},
        "far": {"card": "fine", "deliver": "the moon"},
    }.items():
        record = await orders.wait(await orders.start("order", data, saga_id=saga_id))
        done = [one.step_name for one in record.steps.values() if one.status == "completed"]
        print(f"{saga_id}: {record.status}; done: {', '.join(done) or 'nothing'}")


if __name__ == "__main__":
    asyncio.run(main())
