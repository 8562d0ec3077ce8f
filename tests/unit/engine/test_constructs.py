"""What works inside a run: every construct of asyncio and anyio, live, repeated, in another order and in replay."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from durable.errors import DefinitionError
from tests.support.engine_constructs import ANYIO, ASYNCIO, Workflow
from tests.support.engine_harness import EngineRun, driven

ROOT = Path(__file__).parents[3]
CONSTRUCTS = [pytest.param(*pair, id=name) for name, pair in (ASYNCIO | ANYIO).items()]


def at_random(seed: int) -> Callable[[Sequence[int]], int]:
    return random.Random(seed).choice


@pytest.mark.parametrize(("workflow", "expected"), CONSTRUCTS)
def test_a_construct_gives_what_it_gives_outside(workflow: Workflow, expected: Any) -> None:
    """A workflow is ordinary asyncio or anyio code; its journal replays to the same end."""
    run = driven(workflow)

    assert run.result == expected


@pytest.mark.parametrize(("workflow", "expected"), CONSTRUCTS)
def test_a_construct_has_one_trace_per_run_id(workflow: Workflow, expected: Any) -> None:
    """The same run issues the same commands every time, whatever the addresses of its objects."""
    ballast: list[object] = []
    traces = set()
    for _ in range(12):
        traces.add(tuple(driven(workflow).trace()))
        ballast.append(bytearray(random.randrange(1, 4096)))  # moves what is allocated next

    assert len(traces) == 1


@pytest.mark.parametrize(("workflow", "expected"), CONSTRUCTS)
def test_a_construct_replays_whatever_order_its_activities_ended_in(
    workflow: Workflow, expected: Any
) -> None:
    """The order of events in the journal decides everything, so every order must replay."""
    for seed in range(5):
        driven(workflow, choose=at_random(seed), run_id=f"run-{seed}")
    driven(workflow, choose=max)


@pytest.mark.parametrize(
    "name",
    [
        "task_group_failure",
        "wait_over_gathers",
        "wait_first_completed",
        "anyio_task_group_failure",
        "anyio_nested_scopes_cancelled",
    ],
)
def test_a_trace_does_not_depend_on_the_process(name: str) -> None:
    """Sets of tasks are ordered by creation, also under another PYTHONHASHSEED."""
    outputs = {
        subprocess.run(
            [sys.executable, "-m", "tests.support.engine_constructs", name],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(["", *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "77")
    }

    assert len(outputs) == 1
    assert json.loads(outputs.pop()) == driven((ASYNCIO | ANYIO)[name][0]).trace()


def test_what_a_set_of_tasks_is_ordered_by_is_salted_per_run() -> None:
    """Without the salt the tasks of all runs would collide in asyncio's registry."""
    import asyncio

    async def hash_of_main() -> int:
        return hash(asyncio.current_task())

    assert driven(hash_of_main, run_id="a").result != driven(hash_of_main, run_id="b").result


def refused(code: Callable[[], Any]) -> str:
    async def workflow() -> Any:
        return await code()

    run = EngineRun(workflow).drive()
    failure = run.failure
    run.instance.evict()
    while failure.group:
        failure = failure.group[0]
    assert failure.type == f"{DefinitionError.__module__}:{DefinitionError.__qualname__}", failure
    return failure.message


def test_threads_are_refused() -> None:
    """A thread's result could not be delivered; the error says where such work belongs."""
    import asyncio

    import anyio.to_thread

    async def in_executor() -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, print)

    assert "@activity" in refused(lambda: asyncio.to_thread(print))
    assert "@activity" in refused(in_executor)
    assert "@activity" in refused(lambda: anyio.to_thread.run_sync(print))


def test_the_network_and_processes_are_refused() -> None:
    """Only activities may touch the world."""
    import asyncio

    import anyio

    assert "network" in refused(lambda: asyncio.open_connection("127.0.0.1", 1))
    assert "network" in refused(lambda: anyio.connect_tcp("127.0.0.1", 1))
    assert "processes" in refused(lambda: asyncio.create_subprocess_exec("true"))


def test_loops_within_loops_are_refused() -> None:
    """`run_until_complete` says to await instead."""
    import asyncio

    async def nested() -> Any:
        return asyncio.get_running_loop().run_until_complete(asyncio.sleep(0))

    assert "await the coroutine" in refused(nested)


@pytest.mark.filterwarnings("ignore:coroutine")
def test_as_completed_over_bare_coroutines_says_what_to_use() -> None:
    """asyncio puts them into a set of addresses: no hash of ours can order that."""
    import asyncio

    async def bare() -> Any:
        for one in asyncio.as_completed([asyncio.sleep(0)]):
            await one

    assert "durable.as_completed" in refused(bare)


def test_as_completed_of_ours_times_out() -> None:
    """What is not done after `timeout` raises TimeoutError, as in asyncio."""
    import asyncio

    from durable.engine.awaiting import as_completed

    async def workflow() -> list[Any]:
        seen: list[Any] = []
        for one in as_completed([asyncio.sleep(1, "first"), asyncio.sleep(10, "second")], timeout=5):
            try:
                seen.append(await one)
            except TimeoutError:
                seen.append("late")
        return seen

    assert driven(workflow).result == ["first", "late"]
