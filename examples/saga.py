"""Sagas in a workflow: what `@saga_step`s have done is undone, in reverse, when the workflow fails or is cancelled.

    python examples/saga.py

The body of a workflow is one saga; `durable.saga()` makes a smaller one inside it.
"""

from __future__ import annotations

import asyncio

from durable import RunCancelledError, WorkflowFailedError, saga, saga_step, workflow


async def release(trip: str, what: str) -> None:
    print(f"{trip}: {what} released")


@saga_step(compensation=release, max_retries=5)
async def book(trip: str, what: str) -> str:
    print(f"{trip}: {what} booked")
    return f"{what}-7"


@saga_step(max_retries=0)
async def pay(trip: str, cents: int) -> None:
    if cents > 1000:
        raise RuntimeError("the card was declined")
    print(f"{trip}: paid")


@workflow
async def travel(trip: str, cents: int, patience: float) -> list[str]:
    booked = [await book(trip, "flight"), await book(trip, "hotel")]
    try:
        async with saga():  # undone by itself, if the car and its insurance do not both work out
            await book(trip, "car")
            raise LookupError("no insurance to be had")
    except LookupError:
        booked.append("a bus ticket")
    await asyncio.sleep(patience)
    await pay(trip, cents)
    return booked


async def main() -> None:
    print("cheap:", await travel("cheap", 900, 0.0))
    try:
        await travel("dear", 1200, 0.0)
    except WorkflowFailedError as failed:
        print("dear:", failed.__cause__)
    waiting = await travel.start("dropped", 500, 3600.0)
    try:
        await waiting.result(timeout=1.0)
    except TimeoutError:
        await waiting.cancel("changed our minds")
    try:
        await waiting.result()
    except RunCancelledError as cancelled:
        print("dropped:", cancelled.reason)


if __name__ == "__main__":
    asyncio.run(main())
