"""A pipeline: steps in order, a choice, and some side by side. Each is done once, whatever happens to the process.

    python examples/pipeline.py

Every step gets a dict: the input, and the results so far by step. Run the script again: the same run id returns the
recorded result, and nothing is sent twice.
"""

from __future__ import annotations

import asyncio
from typing import Any

from durable import Pipeline, PipelineStepError, conditional, parallel, step

Context = dict[str, Any]


@step
async def price(ctx: Context) -> int:
    print(f"(pricing {ctx['items']} items)")
    return 250 * int(ctx["items"])


@conditional("discount", lambda ctx: ctx["price"] >= 1000)
async def discount(ctx: Context) -> int:
    return int(ctx["price"]) // 10


@step(retries=5, retry_delay=0.1)
async def email(ctx: Context) -> str:
    print("(sending an email)")
    return "sent"


@step
def print_label(ctx: Context) -> str:  # a plain function runs in a thread
    return f"label for {ctx['customer']}"


@step
async def receipt(ctx: Context) -> str:
    to_pay = ctx["price"] - (ctx["discount"] or 0)  # None: the step was skipped
    return f"{ctx['customer']} pays {to_pay}; {ctx['tell']['print_label']}"


order = Pipeline("order", [price, discount, parallel("tell", [email, print_label]), receipt], timeout=3600)


async def main() -> None:
    print(await order.execute({"customer": "Ada", "items": 4}, run_id="order-ada"))
    print(await order.execute({"customer": "Bob", "items": 1}, run_id="order-bob"))
    try:
        await order.execute({"customer": "Eve", "items": "many"}, run_id="order-eve")
    except PipelineStepError as error:
        print(f"order-eve: step {error.step_name} failed: {error.__cause__}")


if __name__ == "__main__":
    asyncio.run(main())  # what happened: durable show order-ada
