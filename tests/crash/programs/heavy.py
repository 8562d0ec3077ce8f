"""A worker of runs whose payloads take a megabyte each: `python -m tests.crash.programs.heavy URL`.

It ends when the backlog is done, and prints how many megabytes it has held at most.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final

from durable import Retry, Worker, activity, connect, workflow

MEGABYTE: Final = 1 << 20
PAYLOADS: Final = 4  # of a run: its input, two results, its own
SIDE_BY_SIDE: Final = 8  # activities at a time
RUNS_MAX: Final = 16  # in the worker's hands


@activity(retry=Retry(max_attempts=5, initial=0.01))
async def turn(text: str) -> str:
    await asyncio.sleep(0.001)
    return text[-1] + text[:-1]


@workflow
async def carries(text: str) -> str:
    return await turn(await turn(text))


async def main(url: str) -> None:
    async with connect(url, durability="process") as client:
        worker = Worker(client, carries, concurrency=SIDE_BY_SIDE, max_runs=RUNS_MAX)
        await worker.run(drain=True)
    print(held_megabytes())


def held_megabytes() -> int:
    """Return the most that this process has held; `getrusage` would count what its parent held when it was started."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return int(kilobytes) // 1024


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
