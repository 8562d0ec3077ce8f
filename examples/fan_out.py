"""Many activities at once, with plain asyncio and plain anyio: both are deterministic inside a workflow.

    python examples/fan_out.py

Kill it half-way (Ctrl-C will do) and run it again: pages that were counted are not fetched again.
"""

from __future__ import annotations

import asyncio

import anyio

from durable import activity, as_completed, workflow

PAGES = [f"page-{number}" for number in range(1, 21)]


@activity(retries=5, timeout=10)
async def count_words(page: str) -> int:
    await asyncio.sleep(0.1)  # stands for a download
    print(f"counted {page}")
    return len(page) * 100


@workflow
async def count_all(pages: list[str]) -> dict[str, int]:
    async with asyncio.TaskGroup() as group:
        tasks = {page: group.create_task(count_words(page)) for page in pages}
    return {page: task.result() for page, task in tasks.items()}


@workflow
async def count_a_few(pages: list[str], at_a_time: int) -> int:
    total = 0
    slots = anyio.CapacityLimiter(at_a_time)

    async def count(page: str) -> None:
        nonlocal total
        async with slots:
            words = await count_words(page)
        total += words  # not `total += await …`: that reads total before it waits

    async with anyio.create_task_group() as group:
        for page in pages:
            group.start_soon(count, page)
    return total


@workflow
async def first_of(pages: list[str]) -> int:
    for next_result in as_completed([count_words(page) for page in pages]):
        return await next_result  # the order of completion is journaled: a replay sees the same winner
    raise ValueError("no pages")


async def main() -> None:
    counts = await count_all(PAGES, run_id="count-all")
    print("asyncio.TaskGroup:", sum(counts.values()), "words")
    print("anyio, four at a time:", await count_a_few(PAGES, 4, run_id="count-a-few"), "words")
    print("the first one:", await first_of(PAGES[:3], run_id="first-of"), "words")


if __name__ == "__main__":
    asyncio.run(main())
