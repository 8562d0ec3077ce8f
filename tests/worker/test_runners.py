"""Coroutine activities share tasks until they suspend; nobody inside one can tell."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import anyio
import pytest

from durable import Client, activity, activity_info, workflow
from tests.support.workers import AT_ONCE, running_worker, until

COUNT = 30
shade: contextvars.ContextVar[str] = contextvars.ContextVar("shade", default="none")


async def test_each_activity_has_a_context_of_its_own(client: Client) -> None:
    """What one sets in a context variable no other sees, though all ran in one task."""
    tasks: set[int] = set()

    @activity
    async def paints(number: int) -> str:
        before = shade.get()
        shade.set(f"shade {number}")
        tasks.add(id(asyncio.current_task()))
        return before

    @workflow
    async def works() -> list[str]:
        return await asyncio.gather(*[paints(number) for number in range(COUNT)])

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == ["none"] * COUNT
    assert len(tasks) < COUNT


async def test_one_that_suspends_keeps_its_task_and_the_others_go_on(client: Client) -> None:
    """The task is the same before and after; a neighbour that waits for ever holds nobody up."""
    gate = asyncio.Event()
    done: list[int] = []

    @activity
    async def waits(number: int) -> bool:
        task = asyncio.current_task()
        if number % 2:
            await gate.wait()
        done.append(number)
        return task is asyncio.current_task()

    @workflow
    async def works() -> list[bool]:
        return await asyncio.gather(*[waits(number) for number in range(COUNT)])

    async with running_worker(client, works):
        run = await client.start(works)
        await until(lambda: len(done) == COUNT // 2)
        assert sorted(done) == list(range(0, COUNT, 2))
        gate.set()
        assert await run.result(60) == [True] * COUNT


@pytest.mark.parametrize("library", ["asyncio", "anyio"])
async def test_timeouts_inside_an_activity_work_from_its_first_line(library: str, client: Client) -> None:
    """They cancel the current task, which is the activity's own."""

    @activity
    async def gives_up() -> str:
        if library == "anyio":
            with anyio.move_on_after(0.01):
                await anyio.sleep(60)
            return "moved on"
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        except TimeoutError:
            return "moved on"
        return "slept"

    @activity
    async def has_children() -> int:
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(anyio.sleep, 0.001)
        return 3

    @workflow
    async def works() -> list[Any]:
        return await asyncio.gather(gives_up(), has_children(), gives_up())

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == ["moved on", 3, "moved on"]


async def test_a_task_that_was_cancelled_from_inside_is_not_used_again(client: Client) -> None:
    """An activity may cancel its own task and still return: that is not its neighbours' business."""

    @activity
    async def cancels_itself(number: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        if number % 3 == 0:
            task.cancel()
        return number

    @activity
    async def looks(number: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0)
        return task.cancelling()

    @workflow
    async def works() -> list[int]:
        calls = [cancels_itself(number) if number % 2 else looks(number) for number in range(COUNT)]
        return await asyncio.gather(*calls)

    async with running_worker(client, works):
        result = await (await client.start(works)).result(60)
    assert result == [number if number % 2 else 0 for number in range(COUNT)]


@pytest.mark.parametrize(
    "error",
    [SystemExit(3), KeyboardInterrupt(), StopIteration("odd"), GeneratorExit(), BaseException("bare")],
)
@pytest.mark.parametrize("first", [True, False], ids=["at its first step", "later"])
async def test_whatever_an_activity_raises_stays_its_own(
    first: bool, error: BaseException, client: Client
) -> None:
    """Neither the worker nor the other activities of the batch notice."""

    @activity(retry=AT_ONCE, retries=None)
    async def raises() -> None:
        if not first:
            await asyncio.sleep(0)
        if activity_info().attempt == 1:
            raise error

    @activity
    async def passes(number: int) -> int:
        return number

    @workflow
    async def works() -> list[Any]:
        return await asyncio.gather(passes(1), raises(), passes(2))

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == [1, None, 2]


async def test_an_object_that_is_awaited_is_as_good_as_a_coroutine(client: Client) -> None:
    """Decorators may return whatever can be awaited."""

    class Later:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return 7

    def returns_an_awaitable() -> Any:
        return Later()

    import inspect

    if not hasattr(inspect, "markcoroutinefunction"):
        pytest.skip("inspect.markcoroutinefunction came with Python 3.12")
    marked = activity(inspect.markcoroutinefunction(returns_an_awaitable))

    @workflow
    async def works() -> int:
        value: int = await marked()
        return value

    async with running_worker(client, works):
        assert await (await client.start(works)).result(60) == 7


async def test_a_busy_batch_lets_the_loop_breathe(client: Client) -> None:
    """First steps are taken in slices: a timer of the host's is not held up by all of them."""
    began: list[float] = []
    loop = asyncio.get_running_loop()

    @activity
    async def computes(number: int) -> None:
        began.append(loop.time())
        until_then = loop.time() + 0.004
        while loop.time() < until_then:
            pass

    @workflow
    async def works() -> None:
        await asyncio.gather(*[computes(number) for number in range(100)])

    ticks: list[float] = []

    async def ticking() -> None:
        while True:
            ticks.append(loop.time())
            await asyncio.sleep(0)

    async with running_worker(client, works):
        run = await client.start(works)
        ticker = asyncio.create_task(ticking())
        await run.result(60)
        ticker.cancel()
    inside = [tick for tick in ticks if began[0] < tick < began[-1]]
    assert len(inside) >= 3
