"""Small workflows, one per construct of asyncio and anyio that works inside a run.

Each is deterministic only if the loop makes it so. Run as a module it prints the trace of one of them, so that a test can
compare processes with different hash seeds: `python -m tests.support.engine_constructs task_group_failure`.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import anyio
import anyio.abc

from durable.engine.awaiting import as_completed
from tests.support.engine_harness import an_activity, driven

Workflow = Callable[[], Coroutine[Any, Any, Any]]

ASYNCIO: dict[str, tuple[Workflow, Any]] = {}
ANYIO: dict[str, tuple[Workflow, Any]] = {}


def on_asyncio(expected: Any) -> Callable[[Workflow], Workflow]:
    def keep(fn: Workflow) -> Workflow:
        ASYNCIO[fn.__name__] = (fn, expected)
        return fn

    return keep


def on_anyio(expected: Any) -> Callable[[Workflow], Workflow]:
    def keep(fn: Workflow) -> Workflow:
        ANYIO[fn.__name__] = (fn, expected)
        return fn

    return keep


@an_activity
async def work(x: int) -> int:
    return x * 10


@an_activity
def undo(x: int) -> int:
    return -x


@an_activity
async def boom(x: int) -> int:
    raise ValueError(f"boom {x}")


async def work_or_undo(x: int) -> int:
    try:
        return await work(x)
    finally:
        await undo(x)


# ─ asyncio ───────────────────────────────────────────────────────────────────


@on_asyncio([10, 20, 30])
async def gather_all() -> Any:
    return await asyncio.gather(*(work(x) for x in (1, 2, 3)))


@on_asyncio(["boom 2", -1])
async def gather_failure_leaves_siblings_running() -> Any:
    first = asyncio.ensure_future(work_or_undo(1))
    try:
        await asyncio.gather(boom(2), first)
    except ValueError as error:
        await first
        return [str(error), await undo(1)]


@on_asyncio([10, "boom 2", 30])
async def gather_return_exceptions() -> Any:
    outcomes = await asyncio.gather(work(1), boom(2), work(3), return_exceptions=True)
    return [str(o) if isinstance(o, Exception) else o for o in outcomes]


@on_asyncio(2.5)
async def sleeping() -> Any:
    started = asyncio.get_running_loop().time()
    await asyncio.sleep(2)
    await asyncio.sleep(0)
    await asyncio.sleep(0.5)
    return asyncio.get_running_loop().time() - started


@on_asyncio([30, 20, 10])
async def tasks_created_and_awaited() -> Any:
    tasks = [asyncio.create_task(work(x)) for x in (1, 2, 3)]
    return [await task for task in reversed(tasks)]


@on_asyncio(["cancelled", 10])
async def shielded() -> Any:
    inner = asyncio.create_task(work(1))
    try:
        async with asyncio.timeout(0):
            await asyncio.shield(inner)
    except TimeoutError:
        return ["cancelled", await inner]


@on_asyncio([0, 10, 20, 30, 40, 50, 60, 70])
async def task_group() -> Any:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(x)) for x in range(8)]
    return [task.result() for task in tasks]


@on_asyncio(["boom 0"])
async def task_group_failure() -> Any:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(boom(0))
            for x in range(1, 9):
                group.create_task(work_or_undo(x))
    except ExceptionGroup as errors:
        return [str(error) for error in errors.exceptions]


@on_asyncio("late")
async def timeout() -> Any:
    try:
        async with asyncio.timeout(1.5):
            await asyncio.sleep(10)
    except TimeoutError:
        return "late"


@on_asyncio(["inner", 1.0])
async def timeout_nested() -> Any:
    try:
        async with asyncio.timeout(5):
            try:
                async with asyncio.timeout(1):
                    await asyncio.sleep(10)
            except TimeoutError:
                return ["inner", asyncio.get_running_loop().time()]
    except TimeoutError:
        return "outer"


@on_asyncio(["in time", 3.0])
async def timeout_rescheduled() -> Any:
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(1) as scope:
        scope.reschedule(loop.time() + 9)
        await asyncio.sleep(3)
    return ["in time", loop.time()]


@on_asyncio("at once")
async def timeout_zero() -> Any:
    try:
        async with asyncio.timeout(0):
            await work(1)
    except TimeoutError:
        return "at once"


@on_asyncio([10, "late"])
async def wait_for() -> Any:
    first = await asyncio.wait_for(work(1), 5)
    try:
        await asyncio.wait_for(asyncio.sleep(10), 1)
    except TimeoutError:
        return [first, "late"]


@on_asyncio(8)
async def wait_first_completed() -> Any:
    pending = {asyncio.create_task(work(x)) for x in range(8)}
    count = 0
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await undo(task.result())
            count += 1
        for _ in pending:
            break
    return count


@on_asyncio(8)
async def wait_for_all_iterating_the_result() -> Any:
    done, _ = await asyncio.wait([asyncio.create_task(work(x)) for x in range(8)])
    for task in done:
        await undo(task.result())
    return len(done)


@on_asyncio(6)
async def wait_over_gathers() -> Any:
    gathers = [asyncio.gather(work(x), work(x + 10)) for x in range(6)]
    done, _ = await asyncio.wait(gathers)
    for one in done:
        await undo(one.result()[0])
    return len(done)


@on_asyncio(4)
async def sets_of_futures_made_by_hand() -> Any:
    loop = asyncio.get_running_loop()
    futures = {loop.create_future() for _ in range(4)}
    for number, future in enumerate(futures):
        future.set_result(await work(number))
    return len([await undo(future.result()) for future in futures])


@on_asyncio(5)
async def as_completed_over_tasks() -> Any:
    tasks = [asyncio.create_task(work(x)) for x in range(5)]
    count = 0
    for one in asyncio.as_completed(tasks):
        await undo(await one)
        count += 1
    return count


@on_asyncio(5)
async def as_completed_async_form() -> Any:
    tasks = [asyncio.create_task(work(x)) for x in range(5)]
    if sys.version_info < (3, 13):
        return len([await task for task in tasks])
    count = 0
    async for task in asyncio.as_completed(tasks):
        await undo(await task)
        count += 1
    return count


@on_asyncio(5)
async def as_completed_over_coroutines() -> Any:
    count = 0
    for one in as_completed([work(x) for x in range(5)], timeout=60):
        await undo(await one)
        count += 1
    return count


@on_asyncio([[0, 1, 2], [2, 1, 0], [0, 1, 2]])
async def queues() -> Any:
    results = []
    for queue in (asyncio.Queue[int](), asyncio.LifoQueue[int](), asyncio.PriorityQueue[int]()):
        for x in range(3):
            await work(x)
            queue.put_nowait(x)
        results.append([await queue.get() for _ in range(3)])
    return results


@on_asyncio([0, 1, 2, 3])
async def queue_between_tasks() -> Any:
    queue = asyncio.Queue[int](maxsize=1)

    async def produce() -> None:
        for x in range(4):
            await work(x)
            await queue.put(x)

    producer = asyncio.create_task(produce())
    got = [await queue.get() for _ in range(4)]
    await producer
    return got


@on_asyncio([0, 0, 1, 1, 2, 2])
async def lock() -> Any:
    guard, seen = asyncio.Lock(), []

    async def twice(x: int) -> None:
        async with guard:
            seen.append(x)
            await work(x)
            seen.append(x)

    await asyncio.gather(*(twice(x) for x in range(3)))
    return seen


@on_asyncio(["set", "set", "set"])
async def event() -> Any:
    gate = asyncio.Event()

    async def waiter() -> str:
        await gate.wait()
        return "set"

    tasks = [asyncio.create_task(waiter()) for _ in range(3)]
    await work(1)
    gate.set()
    return await asyncio.gather(*tasks)


@on_asyncio(2)
async def semaphore() -> Any:
    slots, inside, most = asyncio.Semaphore(2), 0, 0

    async def one(x: int) -> None:
        nonlocal inside, most
        async with slots:
            inside += 1
            most = max(most, inside)
            await work(x)
            inside -= 1

    await asyncio.gather(*(one(x) for x in range(5)))
    return most


@on_asyncio([3, 3])
async def condition() -> Any:
    guard, value = asyncio.Condition(), 0

    async def waiter() -> int:
        async with guard:
            await guard.wait_for(lambda: value == 3)
            return value

    tasks = [asyncio.create_task(waiter()) for _ in range(2)]
    for _ in range(3):
        await work(1)
        async with guard:
            value += 1
            guard.notify_all()
    return await asyncio.gather(*tasks)


@on_asyncio([True, True, True])
async def barrier() -> Any:
    meeting = asyncio.Barrier(3)

    async def one(x: int) -> bool:
        await work(x)
        await meeting.wait()
        return True

    return await asyncio.gather(*(one(x) for x in range(3)))


colour: contextvars.ContextVar[str] = contextvars.ContextVar("colour", default="none")


@on_asyncio(["none", "red", "blue", "none"])
async def contextvars_are_per_task() -> Any:
    async def paint(name: str) -> str:
        colour.set(name)
        await work(1)
        return colour.get()

    before = colour.get()
    return [before, *await asyncio.gather(paint("red"), paint("blue")), colour.get()]


@on_asyncio([0, "closed"])
async def abandoned_async_generator() -> Any:
    seen: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for x in range(10):
                yield x
        finally:
            await undo(0)
            seen.append("closed")

    async for x in numbers():
        seen.append(x)
        break
    await work(1)
    await work(2)
    return seen


@on_asyncio(["uncancelled", 0, 10])
async def uncancel() -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    try:
        await asyncio.sleep(1)
    except asyncio.CancelledError:
        return ["uncancelled", task.uncancel(), await work(1)]


@on_asyncio("nothing was asked for")
async def cancelled_before_start() -> Any:
    task = asyncio.create_task(work(1))
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "nothing was asked for"


@on_asyncio([10, 20])
async def eager_tasks() -> Any:
    if sys.version_info < (3, 12):
        return [await work(1), await work(2)]
    loop = asyncio.get_running_loop()
    tasks = [asyncio.eager_task_factory(loop, work(x)) for x in (1, 2)]
    return [await task for task in tasks]


# ─ anyio ─────────────────────────────────────────────────────────────────────


@on_anyio([1.25, 1.25, "main"])
async def anyio_basics() -> Any:
    await anyio.sleep(1.25)
    await anyio.lowlevel.checkpoint()
    return [anyio.current_time(), asyncio.get_running_loop().time(), anyio.get_current_task().name]


@on_anyio(["event", "lock", 3, "condition", 2])
async def anyio_synchronisation() -> Any:
    gate, guard, slots = anyio.Event(), anyio.Lock(), anyio.Semaphore(3)
    notice, limiter = anyio.Condition(), anyio.CapacityLimiter(2)
    seen: list[Any] = []

    async def waiter() -> None:
        await gate.wait()
        seen.append("event")
        async with guard:
            seen.append("lock")
        async with slots, limiter:
            seen.append(slots.value + 1)
        async with notice:
            notice.notify()

    async with anyio.create_task_group() as group:
        group.start_soon(waiter)
        await work(1)
        gate.set()
        async with notice:
            await notice.wait()
            seen.append("condition")
    return [*seen, limiter.available_tokens]


@on_anyio([0, 10, 20])
async def anyio_streams() -> Any:
    send, receive = anyio.create_memory_object_stream[int](0)
    got = []

    async def produce() -> None:
        async with send:
            for x in range(3):
                await send.send(await work(x))

    async with anyio.create_task_group() as group:
        group.start_soon(produce)
        async with receive:
            async for value in receive:
                got.append(value)
    return got


@on_anyio(["ready", 0, 10, 20])
async def anyio_task_group() -> Any:
    results: dict[int, int] = {}

    async def child(x: int) -> None:
        results[x] = await work(x)

    async def service(*, task_status: anyio.abc.TaskStatus[str]) -> None:
        await work(9)
        task_status.started("ready")
        await work(8)

    async with anyio.create_task_group() as group:
        started = await group.start(service)
        for x in range(3):
            group.start_soon(child, x)
    return [started, *results.values()]


@on_anyio([10, "late"])
async def anyio_mixed_with_asyncio() -> Any:
    async with asyncio.TaskGroup() as outer:
        task = outer.create_task(work(1))
        async with anyio.create_task_group() as inner:
            inner.start_soon(work, 2)
    try:
        async with asyncio.timeout(1), anyio.create_task_group() as inner:
            inner.start_soon(anyio.sleep, 10)
    except TimeoutError:
        return [task.result(), "late"]


@on_anyio([True, 1.0])
async def anyio_move_on_after() -> Any:
    with anyio.move_on_after(1) as scope:
        await anyio.sleep(10)
    return [scope.cancelled_caught, anyio.current_time()]


@on_anyio("late")
async def anyio_fail_after() -> Any:
    try:
        with anyio.fail_after(1):
            await anyio.sleep(10)
    except TimeoutError:
        return "late"


@on_anyio([True, False, 1.0])
async def anyio_nested_deadlines() -> Any:
    with anyio.move_on_after(5) as outer:
        with anyio.move_on_after(1) as inner:
            await anyio.sleep(10)
    return [inner.cancelled_caught, outer.cancelled_caught, anyio.current_time()]


@on_anyio([True, 3.0])
async def anyio_deadline_edited() -> Any:
    with anyio.move_on_after(1) as scope:
        scope.deadline += 2
        await anyio.sleep(10)
    return [scope.cancelled_caught, anyio.current_time()]


@on_anyio([True, 20])
async def anyio_shield() -> Any:
    value = 0
    with anyio.move_on_after(1) as scope:
        try:
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                value = await work(2)
    return [scope.cancelled_caught, value]


@on_anyio(["boom 0"])
async def anyio_task_group_failure() -> Any:
    async def compensating(x: int) -> None:
        try:
            await work(x)
        finally:
            with anyio.CancelScope(shield=True):
                await undo(x)

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(boom, 0)
            for x in range(1, 9):
                group.start_soon(compensating, x)
    except ExceptionGroup as errors:
        return [str(error) for error in errors.exceptions]


@on_anyio([True, 12])
async def anyio_nested_scopes_cancelled() -> Any:
    undone = 0

    async def scoped(x: int) -> None:
        nonlocal undone
        with anyio.CancelScope():
            try:
                await work(x)
            finally:
                with anyio.CancelScope(shield=True):
                    await undo(x)
                    undone += 1

    with anyio.CancelScope() as outer:
        async with anyio.create_task_group() as group:
            for x in range(12):
                group.start_soon(scoped, x)
            await work(99)
            outer.cancel()
            await anyio.sleep(1)
    return [outer.cancelled_caught, undone]


@on_anyio(["cancelled again", True])
async def anyio_await_in_finally_without_shield() -> Any:
    seen = ""
    with anyio.move_on_after(1) as scope:
        try:
            await anyio.sleep(10)
        finally:
            try:
                await work(1)
            except asyncio.CancelledError:
                seen = "cancelled again"
                raise
    return [seen, scope.cancelled_caught]


@on_anyio([5, 0.0])
async def anyio_scopes_cancelled_one_after_another() -> Any:
    caught = 0
    for _ in range(5):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.sleep(1)
        caught += scope.cancelled_caught
    return [caught, anyio.current_time()]


@on_anyio("forever is not a timer")
async def anyio_sleep_forever() -> Any:
    async with anyio.create_task_group() as group:
        group.start_soon(anyio.sleep_forever)
        await work(1)
        group.cancel_scope.cancel()
    return "forever is not a timer"


if __name__ == "__main__":
    chosen, _expected = (ASYNCIO | ANYIO)[sys.argv[1]]
    print(json.dumps(driven(chosen).trace()))
