"""A process that runs out of something: descriptors, threads, memory. Whatever needed it fails and is tried again; the others go on."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from durable import Client, Retry, Signal, activity, activity_info, workflow
from tests.support.workers import Calls, running_worker

ROOT: Final = Path(__file__).parents[2]
AGAIN: Final = Retry(max_attempts=5, initial=0.05)
go = Signal("go", int)
calls = Calls()


@activity(retry=AGAIN)
async def takes_all_descriptors() -> str:
    """Its first attempt opens files until there are none left, and holds them for a while."""
    if activity_info().attempt > 1:
        return "done"
    held: list[int] = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        await asyncio.sleep(0.5)
        raise
    finally:
        for descriptor in held:
            os.close(descriptor)


@activity(retry=AGAIN)
async def part(number: int) -> int:
    await asyncio.sleep(0.01)
    return number


@workflow
async def greedy() -> str:
    return await takes_all_descriptors()


@workflow
async def neighbour(length: int) -> int:
    return sum([await part(number) for number in range(length)])


async def test_a_process_without_descriptors_goes_on_when_there_are_some(client: Client) -> None:
    """Runs that need none do not notice; whatever could not be opened is tried again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running_worker(client, greedy, neighbour):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 400), hard))
        try:
            bad = await client.start(greedy)
            others = [await client.start(neighbour, 10) for _ in range(10)]

            assert [await run.result(60) for run in others] == [45] * 10
            assert await bad.result(60) == "done"
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@activity(retry=AGAIN)
def in_a_thread(number: int) -> int:
    calls(f"in a thread {number}")
    return number


@workflow
async def threaded(number: int) -> int:
    return await in_a_thread(number)


async def test_without_threads_activities_in_threads_are_tried_again(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system gives no thread: the attempt has failed, the worker has not."""
    refusals = 0

    async with running_worker(client, threaded, neighbour) as worker:
        executor: Any = worker.life.executor
        submit = executor.submit

        def none_left(work: Any) -> Any:
            nonlocal refusals
            if refusals < 3:
                refusals += 1
                raise RuntimeError("can't start new thread")
            return submit(work)

        monkeypatch.setattr(executor, "submit", none_left)
        runs = [await client.start(threaded, number) for number in range(3)]
        other = await client.start(neighbour, 5)

        assert [await run.result(60) for run in runs] == [0, 1, 2]
        assert await other.result(60) == 10
    assert refusals == 3


MEMORY: Final = """
import asyncio, resource, sys
sys.path.insert(0, sys.argv[2])
from durable import Retry, Worker, WorkflowFailedError, activity, activity_info, connect, workflow

@activity(retry=Retry(max_attempts=3, initial=0.01))
async def hungry() -> int:
    if activity_info().attempt < 3:
        return len(bytearray(8 << 30))
    return 7

@workflow
async def eats() -> int:
    return await hungry()

@workflow
async def eats_itself() -> int:
    return len(bytearray(8 << 30))

@workflow
async def modest(number: int) -> int:
    return number

async def main():
    async with connect(sys.argv[1], durability="process") as client:
        async with Worker(client, eats, eats_itself, modest):
            limit = 4 << 30
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            first, second = await client.start(eats), await client.start(eats_itself)
            others = [await client.start(modest, number) for number in range(20)]
            try:
                await second.result(60)
            except WorkflowFailedError as failed:
                print(type(failed.__cause__).__name__)
            print(await first.result(60), sum([await run.result(60) for run in others]))
asyncio.run(main())
"""


@pytest.mark.stores("sqlite")
async def test_memory_that_is_refused_fails_what_asked_for_it(url: str) -> None:
    """An activity is tried again, a workflow has failed; the process lives, and so do the others."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", MEMORY, url, str(ROOT), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()

    assert out.decode().split() == ["MemoryError", "7", "190"]


BIG: Final = "x" * (1 << 20)


@activity(retry=AGAIN)
async def big(number: int) -> str:
    return f"{number}{BIG}"


@workflow
async def gathers(count: int) -> int:
    pieces = await asyncio.gather(*(big(number) for number in range(count)))
    return await go.wait() + sum(map(len, pieces))


@pytest.mark.slow
async def test_very_many_large_results_are_recorded_and_replayed(client: Client) -> None:
    """A hundred megabytes in one run: turns are split, nothing else of the worker stands still, and a replay gets them all."""
    async with running_worker(client, gathers, neighbour, warm_us=0):
        run = await client.start(gathers, 100)
        other = await client.start(neighbour, 10)
        assert await other.result(60) == 45
        await run.signal(go, 0)

        assert await run.result(60) == 100 * len(BIG) + 190
