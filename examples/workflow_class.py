"""A workflow as a class: what it knows is in attributes, methods take signals and answer queries.

    python examples/workflow_class.py

Kill it in the middle and start it again. While it waits, from another terminal:

    durable query checkout-1 status --app examples/workflow_class.py
    durable signal checkout-1 approve '"bob"'
"""

from __future__ import annotations

import asyncio

from durable import activity, wait_condition, workflow, workflow_of


@activity
async def charge(order: str, cents: int) -> str:
    await asyncio.sleep(0.2)  # a real moment, in the real world
    return f"{cents} cents for {order}"


@workflow
class Checkout:
    """Charge an order once two people have approved it."""

    def __init__(self, order: str, cents: int) -> None:
        self.order = order
        self.cents = cents
        self.approved_by: list[str] = []

    async def run(self) -> str:
        await wait_condition(lambda: len(self.approved_by) >= 2, timeout=86_400)
        return await charge(self.order, self.cents)

    @workflow.signal
    def approve(self, by: str) -> None:
        if by not in self.approved_by:
            self.approved_by.append(by)

    @workflow.query
    def status(self) -> str:
        return f"approved by {' and '.join(self.approved_by) or 'nobody'}"


async def main() -> None:
    run = await workflow_of(Checkout).start("anvil", 1200, run_id="checkout-1")
    for person in ("ann", "ann", "bob"):
        await run.signal(Checkout.approve, person, id=f"approval-{person}")
    print(await run.result())
    print(await run.query(Checkout.status))


if __name__ == "__main__":
    asyncio.run(main())
