"""One activity in a workflow: the smallest thing that survives a crash.

    python examples/hello.py Ada

Run it twice: the second time nothing is done again, the recorded result comes back from durable.db.
"""

from __future__ import annotations

import asyncio
import sys

from durable import activity, workflow


@activity
async def greet(name: str) -> str:
    print(f"(greeting {name}, for real)")  # an effect: seen once, unless the process dies in the middle of it
    return f"Hello, {name}!"


@workflow
async def hello(name: str) -> str:
    return await greet(name)


if __name__ == "__main__":
    name = sys.argv[1] if len(sys.argv) > 1 else "world"
    print(asyncio.run(hello(name, run_id=f"hello-{name}")))
