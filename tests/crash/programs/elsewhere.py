"""Workers of two queues in processes of their own: `python -m tests.crash.programs.elsewhere URL ROLE LEDGER [POINT]`.

ROLE is "owner" (drives runs), "gpu" (performs their activities) or "narrow" (performs few of them at a time). With a POINT the process kills itself there, the first time it comes by.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from durable import ActivityTimeoutError, Retry, Worker, activity, activity_info, connect, workflow

AGAIN = Retry(max_attempts=4, initial=0.05, maximum=0.05)
LEASE_SECONDS = 1.0
LIMIT_SECONDS = 1.5  # until an activity must have begun
SLOTS = 2  # of a "narrow" worker
plan = {"point": "", "ledger": ""}


def die_at(point: str) -> None:
    if plan["point"] == point:
        os.kill(os.getpid(), signal.SIGKILL)


@activity(task_queue="gpu", retry=AGAIN)
async def work(step: int) -> int:
    """Note that it has begun, where a crash cannot undo it."""
    info = activity_info()
    with open(plan["ledger"], "a") as ledger:  # noqa: ASYNC230
        ledger.write(f"{info.idempotency_key} {info.attempt}\n")
    await asyncio.sleep(0.05)
    die_at("in_body")
    return step * 10


@workflow
async def chain(steps: int) -> list[int]:
    return [await work(step) for step in range(steps)]


@activity(task_queue="gpu", retry=Retry(max_attempts=3, initial=0.05, maximum=0.05))
async def deadly() -> None:
    await asyncio.sleep(0.05)
    os._exit(1)


@activity(task_queue="gpu", retry=AGAIN)
async def harmless(number: int) -> int:
    await asyncio.sleep(0.3)
    return number


@workflow
async def neighbours(many: int) -> list[Any]:
    found = await asyncio.gather(deadly(), *(harmless(n) for n in range(many)), return_exceptions=True)
    return [type(one).__name__ if isinstance(one, BaseException) else one for one in found]


@activity(task_queue="gpu", retry=Retry(max_attempts=20, initial=0.01, maximum=0.01))
async def busy(number: int) -> int:
    """Note when it begins and ends, by the one clock of the machine."""
    note(f"begin {number}")
    await asyncio.sleep(0.1)
    note(f"end {number}")
    return number


def note(what: str) -> None:
    with open(plan["ledger"], "a") as ledger:
        ledger.write(f"{what} {os.getpid()} {time.monotonic()}\n")


@workflow
async def crowd(many: int) -> list[int]:
    return await asyncio.gather(*(busy(number) for number in range(many)))


@activity(task_queue="gpu", retry=AGAIN, schedule_to_start_timeout=LIMIT_SECONDS)
async def prompt() -> str:
    note("begin prompt")
    return "begun"


@workflow
async def prompted() -> str:
    try:
        return await prompt()
    except ActivityTimeoutError as error:
        return f"{error.kind} passed"


def dying(store: Any) -> None:
    """Have the store's transactions end the process at the point of the plan."""

    def around(verb: str, name: str, counts: Callable[[tuple[Any, ...], Any], bool]) -> None:
        inner: Callable[..., Awaitable[Any]] = getattr(store, verb)

        async def outer(*given: Any, **options: Any) -> Any:
            if counts(given, None):
                die_at(f"before_{name}")
            done = await inner(*given, **options)
            if counts(given, done):
                die_at(f"after_{name}")
            return done

        setattr(store, verb, outer)

    store.commit_turns_now = lambda worker_id, commits, now_us: None
    around("claim_tasks", "claim", lambda given, done: bool(done))
    around("end_tasks", "end", lambda given, done: True)
    around("commit_turns", "schedule", lambda given, done: any(one.tasks for one in given[1]))
    around("commit_turns", "take", lambda given, done: any(one.consumed for one in given[1]))


async def main(url: str, role: str) -> None:
    async with connect(url, durability="process") as client:
        dying(client.store)
        if role == "owner":
            worker = Worker(client, chain, neighbours, crowd, prompted, lease_seconds=LEASE_SECONDS)
        elif role == "narrow":
            worker = Worker(
                client,
                activities=[busy],
                task_queue="gpu",
                task_concurrency=SLOTS,
                lease_seconds=LEASE_SECONDS,
            )
        else:
            worker = Worker(
                client,
                activities=[work, deadly, harmless, prompt],
                task_queue="gpu",
                lease_seconds=LEASE_SECONDS,
            )
        await worker.run()


if __name__ == "__main__":
    plan["ledger"] = str(Path(sys.argv[3]))
    plan["point"] = sys.argv[4] if len(sys.argv) > 4 else ""
    asyncio.run(main(sys.argv[1], sys.argv[2]))
