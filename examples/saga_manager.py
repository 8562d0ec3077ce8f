"""Sagas as classes with decorated methods, started and followed by a manager.

    python examples/saga_manager.py

What a step writes to the context is kept in the journal with its result.
"""

from __future__ import annotations

import asyncio

from durable import SagaBase, SagaConfig, SagaContext, SagaManager, SagaRecord, saga_step

manager = SagaManager(config=SagaConfig(default_timeout_seconds=60, retry_delay_seconds=0.1))


@manager.register
class Checkout(SagaBase):
    """Its steps run in the order in which they stand here."""

    @saga_step()
    async def reserve(self, ctx: SagaContext) -> dict[str, int]:
        ctx["shelf"] = 4
        return {"items": len(ctx["basket"])}

    @saga_step("reserve", compensation=True)
    async def put_back(self, ctx: SagaContext) -> None:
        print(f"{ctx.saga_id}: put back to shelf {ctx['shelf']}")

    @saga_step(max_retries=2)
    def charge(self, ctx: SagaContext) -> str:
        items = ctx.step_results["reserve"]["items"]
        print(f"{ctx.saga_id}: charging for {items} items under key {ctx.idempotency_key}")
        return f"payment of {100 * items}"

    @saga_step("charge", compensation=True)
    def refund(self, ctx: SagaContext) -> None:
        print(f"{ctx.saga_id}: {ctx.step_results['charge']} refunded")

    @saga_step(max_retries=0)
    async def ship(self, ctx: SagaContext) -> None:
        if "anvil" in ctx["basket"]:
            raise RuntimeError("too heavy")


def told(record: SagaRecord) -> str:
    steps = ", ".join(f"{one.step_name} {one.status}" for one in record.steps.values())
    return f"{record.saga_id}: {record.status} ({steps})"


async def main() -> None:
    for saga_id, basket in (("light", ["feather", "leaf"]), ("heavy", ["anvil"])):
        await manager.start("Checkout", {"basket": basket}, saga_id=saga_id)
        print(told(await manager.wait(saga_id)))
    print("compensated:", [record.saga_id for record in await manager.list(status="compensated")])


if __name__ == "__main__":
    asyncio.run(main())
