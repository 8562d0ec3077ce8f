"""Workflows that call workflows: each child is a run of its own, and all of them survive whatever dies.

    python examples/children.py

Kill it in the middle and start it again; or let workers share the work: durable worker examples/children.py
"""

from __future__ import annotations

import asyncio

from durable import WorkflowFailedError, activity, workflow


@activity
async def pack(item: str) -> str:
    await asyncio.sleep(0.2)  # a real second, in the real world
    print(f"packed {item}")
    return f"box of {item}s"


@workflow(retries=1, timeout=3600)
async def shipment(item: str) -> str:
    if item == "anvil":
        raise ValueError("too heavy")
    return await pack(item)


@workflow
async def order(items: list[str]) -> list[str]:
    shipments = [await shipment.start(item) for item in items]  # side by side
    told = []
    for item, child in zip(items, shipments, strict=True):
        try:
            told.append(await child.result())
        except WorkflowFailedError as failed:
            told.append(f"no {item}: {failed.__cause__}")
    return told


if __name__ == "__main__":
    for line in asyncio.run(order(["feather", "anvil", "leaf"], run_id="order-1")):
        print(line)
