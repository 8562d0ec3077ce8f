"""Leaving memory: every coroutine ends inside its own loop, nothing it asks for is heard, nothing hangs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from tests.support.engine_harness import EngineRun, an_activity, here, next_signal, until


@an_activity
async def work(x: int) -> int:
    return x


def evicted(run: EngineRun) -> None:
    """Evict a run and check that it left nothing behind."""
    before = asyncio._get_running_loop()
    run.instance.evict()
    assert asyncio._get_running_loop() is before
    assert not run.instance.activities
    assert not run.instance.timers
    assert run.instance.end is None


def test_finally_blocks_run_and_what_they_ask_for_is_not_heard() -> None:
    """`finally` runs at eviction too; an activity, a sleep or a wait in it ends it at once."""
    seen: list[Any] = []

    async def workflow() -> None:
        try:
            await work(1)
        finally:
            seen.append(here().is_evicting)
            seen.append(here().is_replaying)
            try:
                await work(2)
            finally:
                seen.append("unwound")

    run = EngineRun(workflow)
    evicted(run)

    assert seen == [True, True, "unwound"]
    assert len(run.commands()) == 1


@pytest.mark.parametrize(
    "blocked_on", ["activity", "sleep", "signal", "condition", "future", "child", "group"]
)
def test_a_coroutine_ends_whatever_it_waits_for(blocked_on: str) -> None:
    """Activities, timers, signals, conditions, plain futures and other tasks."""
    ended: list[str] = []

    async def block() -> None:
        match blocked_on:
            case "activity":
                await work(1)
            case "sleep":
                await asyncio.sleep(1)
            case "signal":
                await next_signal("never")
            case "condition":
                await until(lambda: False)
            case "future":
                await asyncio.get_running_loop().create_future()
            case "child":
                await asyncio.create_task(work(1))
            case "group":
                async with anyio.create_task_group() as group:
                    group.start_soon(work, 1)
                    group.start_soon(anyio.sleep, 1)

    async def workflow() -> None:
        try:
            await block()
        finally:
            ended.append("finally")
            await asyncio.sleep(0)
            ended.append("and on")

    evicted(EngineRun(workflow))

    assert ended == ["finally", "and on"]


def test_sleeping_in_finally_does_not_hold_up_eviction() -> None:
    """A sleep, a deadline and a shielded scope in `finally` end without a timer."""
    seen: list[str] = []

    async def workflow() -> None:
        try:
            await work(1)
        finally:
            try:
                with anyio.move_on_after(5, shield=True):
                    await asyncio.sleep(1)
            finally:
                seen.append("unwound")

    evicted(EngineRun(workflow))

    assert seen == ["unwound"]


def test_context_variables_can_be_reset() -> None:
    """A token belongs to the context it was made in: each task unwinds in its own."""
    span: contextvars.ContextVar[str] = contextvars.ContextVar("span")
    errors: list[BaseException] = []

    async def workflow() -> None:
        token = span.set("open")
        try:
            await work(1)
        finally:
            try:
                span.reset(token)
            except ValueError as error:
                errors.append(error)

    evicted(EngineRun(workflow))

    assert errors == []


def test_async_generators_are_closed() -> None:
    """A generator that the workflow holds at eviction runs its `finally`, inside the loop."""
    seen: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield await work(1)
            yield await work(2)
        finally:
            await asyncio.sleep(0)
            seen.append(here().is_evicting)

    async def workflow() -> None:
        async for _ in numbers():
            pass

    run = EngineRun(workflow)
    run.complete(1, 1)
    evicted(run)

    assert seen == [True]


def test_a_generator_collected_outside_of_an_activation_waits_for_eviction() -> None:
    """The garbage collector must not start tasks in a run; the generator is closed when the run is evicted."""
    seen: list[str] = []
    held: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("closed")

    async def workflow() -> None:
        generator = numbers()
        held.append(generator)
        async for _ in generator:
            break
        del generator
        await work(1)

    run = EngineRun(workflow)
    held.clear()
    gc.collect()
    assert seen == []

    evicted(run)
    assert seen == ["closed"]


def test_no_group_of_anyio_complains() -> None:
    """Scopes are left by the task that entered them: nothing is raised but the eviction itself."""
    errors: list[str] = []

    async def workflow() -> None:
        try:
            async with anyio.create_task_group() as group:
                for x in range(3):
                    group.start_soon(work, x)
                with anyio.move_on_after(9):
                    await work(9)
        except BaseException as error:
            errors.append(repr(error))
            raise

    evicted(EngineRun(workflow))

    assert "RuntimeError" not in errors[0]


def test_code_that_swallows_everything_in_a_loop_is_left_behind() -> None:
    """A stubborn coroutine is kept, unfinished, rather than hang the worker; nothing of it is heard again."""
    rounds = 0

    async def workflow() -> None:
        nonlocal rounds
        while True:
            try:
                await work(1)
            except BaseException:
                rounds += 1

    run = EngineRun(workflow)
    evicted(run)
    after = rounds
    gc.collect()

    assert 1 < after < 1000
    assert rounds == after


def test_code_that_spins_on_sleep_zero_is_left_behind() -> None:
    """Eviction runs a bounded number of callbacks."""
    rounds = 0

    async def workflow() -> None:
        nonlocal rounds
        await_on = True
        while True:
            try:
                if await_on:
                    await_on = False
                    await work(1)
                await asyncio.sleep(0)
            except BaseException:
                rounds += 1

    evicted(EngineRun(workflow))

    assert rounds > 0


def test_eviction_leaves_other_runs_alone() -> None:
    """Unwinding one run, and collecting its garbage, schedules nothing on another."""

    async def workflow() -> int:
        try:
            return await work(1)
        finally:
            await work(2)

    one, other = EngineRun(workflow, run_id="one"), EngineRun(workflow, run_id="other")
    one.instance.evict()
    gc.collect()

    assert other.drive().result == 1
    assert len(other.commands()) == 2


def test_an_ended_run_leaves_its_other_tasks_to_eviction() -> None:
    """The run is over when its main coroutine is: what other tasks ask for afterwards is not heard."""
    seen: list[str] = []

    async def background() -> None:
        try:
            while True:
                await work(1)
        finally:
            seen.append("unwound")

    async def workflow() -> str:
        keep = asyncio.create_task(background())
        await asyncio.sleep(0)
        assert not keep.done()
        return "done"

    run = EngineRun(workflow)
    assert run.result == "done"
    assert run.commands() == []
    assert seen == []

    run.instance.evict()
    assert seen == ["unwound"]


def test_evicting_twice_or_before_the_start_does_nothing() -> None:
    """Eviction never raises."""

    async def workflow() -> None:
        await work(1)

    run = EngineRun(workflow, start=False)
    run.instance.evict()
    run.instance.evict()


def test_a_run_that_is_dropped_without_eviction_undoes_nothing() -> None:
    """Its process is about to end: coroutines are closed from outside, where their context variables are others."""
    undone: list[str] = []
    variable = contextvars.ContextVar("variable", default=0)

    async def workflow() -> None:
        token = variable.set(1)
        try:
            await work(1)
        finally:
            variable.reset(token)  # a ValueError, if the interpreter closes it

    run = EngineRun(workflow)

    async def unwind(error: BaseException) -> None:
        undone.append(repr(error))

    run.instance.unwind = unwind
    del run
    gc.collect()

    assert undone == []
