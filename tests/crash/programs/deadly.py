"""A worker process whose workflows and activities end it, in every way there is: `python -m tests.crash.programs.deadly URL LIMIT LEASE`."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import sys
import time

import durable
from durable import Retry, Signal, Worker, activity, activity_info, raise_complete_async, workflow

MEMORY_MAX = 2 << 30  # bytes of address space: hunger hurts nobody else
AT_ONCE = Retry(max_attempts=3, initial=0.01, maximum=0.01)
go = Signal("go", int)


def die(how: str) -> None:
    """Do what ends the process, or holds it up; after a colon: a file to leave behind first."""
    how, _, mark = how.partition(":")
    if mark:
        with open(mark, "w"):
            pass
    match how:
        case "exit":
            os._exit(1)
        case "abort":
            os.abort()
        case "sleep":
            time.sleep(3600)
        case "lock":  # C code that holds the interpreter's lock, for longer than anybody waits
            re.match(r"(a+)+$", "a" * 60 + "b")
        case "recursion":
            die("recursion")
        case "spin":
            while True:
                pass
        case "hunger":
            hoard = []
            while True:
                hoard.append(b"x" * (1 << 20))
        case "greed":  # asks for more than there is, and uses none of it
            claims = []
            while True:
                claims.append(bytearray(1 << 20))
        case _:
            raise AssertionError(how)


@activity(retry=AT_ONCE)
async def step(value: int) -> int:
    return value


@activity(retry=AT_ONCE)
async def deadly_async(how: str) -> None:
    die(how)


@activity(retry=AT_ONCE)
def deadly_thread(how: str) -> None:
    die(how)


@activity(retry=AT_ONCE)
async def patient(gate: str) -> str:
    """Runs until the file `gate` exists."""
    while not await asyncio.to_thread(os.path.exists, gate):  # noqa: ASYNC110  # a file
        await asyncio.sleep(0.01)
    return "done"


@activity(retry=Retry(max_attempts=1))
async def ask_person(tray: str) -> int:
    """Leaves its token in the file `tray`; somebody outside answers."""
    line = f"{activity_info().task_token}\n"
    await asyncio.to_thread(_append, tray, line)
    raise_complete_async()


@activity(retry=Retry(max_attempts=100, initial=3600, maximum=3600))
async def reluctant(tray: str) -> int:
    """Notes its attempt; succeeds at the twelfth."""
    attempt = activity_info().attempt
    await asyncio.to_thread(_append, tray, f"{attempt}\n")
    if attempt < 12:
        raise ConnectionError("not yet")
    return attempt


def _append(path: str, line: str) -> None:
    with open(path, "a") as file:
        file.write(line)


@workflow
async def asks(tray: str) -> int:
    return await ask_person(tray) + await step(1)


@workflow
async def insists(tray: str) -> int:
    return await reluctant(tray)


@workflow
async def holds(gate: str) -> str:
    return await patient(gate)


@workflow
async def deadly(how: str) -> None:
    with durable.unguarded():
        die(how)


@workflow
async def deadly_later(how: str) -> None:
    """Gets on for two steps before it ends its worker."""
    await step(1)
    await step(2)
    with durable.unguarded():
        die(how)


@workflow
async def calls(where: str, how: str) -> str:
    try:
        await (deadly_thread(how) if where == "thread" else deadly_async(how))
    except Exception as error:
        return type(error).__name__
    return "it ended"


@workflow
async def neighbour(steps: int) -> int:
    total = await go.wait()
    for number in range(steps):
        total += await step(number)
    return total


@workflow
async def rests(seconds: float) -> str:
    await durable.sleep(seconds)
    return "rested"


async def main(url: str, limit: float, lease: float) -> None:
    async with durable.connect(url, durability="process") as client:
        await Worker(client, sys.modules[__name__], activation_limit=limit, lease_seconds=lease).run()


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.WARNING, format="%(created)f %(process)d %(levelname)s %(name)s %(message)s"
    )
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MAX, MEMORY_MAX))
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
