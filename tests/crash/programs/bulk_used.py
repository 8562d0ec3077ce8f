"""The bulk operations and state machines of the crash suite: a script that may be killed, and is run again with the same ids.

`python -m tests.crash.programs.bulk_used DIRECTORY PLAN [poisoned|children|limits]`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

import durable
from durable import (
    BulkOperation,
    BulkOperationConfig,
    BulkOperationTimeoutError,
    CircuitBreakerConfig,
    StateMachine,
    Transition,
    workflow,
)
from tests.support import crash_ledger, crash_points
from tests.support.crash_ledger import effect
from tests.support.crash_points import Plan

ITEMS: Final = 14
WIDTH: Final = 3  # items in work at a time
PADDING: Final = "x" * 6000  # so that the items of one operation do not fit into the run's input
CONFIG: Final = BulkOperationConfig(batch_size=4, max_concurrency=WIDTH, retry_attempts=2, retry_delay=0.01)
PROMPT: Final = 4  # items that take no time
LATE_SECONDS: Final = 0.6  # how long an operation may take whose other items take for ever
RESULTS: Final = [item * 10 for item in range(ITEMS) if item != 5]
CHILDREN: Final = ("starting@1/apart#1", "starting@1/apart/keep#1/apart#1")
STORY: Final = ["open", "lock"]


async def process(item: dict[str, Any]) -> int:
    with effect() as done:
        number = int(item["number"])
        if number == 5 or (number == 8 and durable.activity_info().attempt == 1):
            raise RuntimeError(f"not {number}")
        if number == 2:
            await asyncio.sleep(0.02)  # left by its slice
        done.value = number * 10
        return number * 10


apart: Final = BulkOperation(process, CONFIG, name="apart")
inside: Final = BulkOperation(process, CONFIG, name="inside")


def url(directory: Path) -> str:
    """The database: the one in the environment, else a file in the directory."""
    return os.environ.get("CRASH_URL") or f"sqlite:///{directory / 'runs.db'}"


def items(padding: str = "") -> list[dict[str, Any]]:
    return [{"number": number, "padding": padding} for number in range(ITEMS)]


def door(machine_id: str, directory: Path) -> StateMachine:
    def note(name: str) -> Any:
        return lambda: crash_ledger.append(directory / "callbacks.jsonl", [machine_id, name])

    return StateMachine(
        "shut",
        {
            "shut": {"open": "open"},
            "open": [Transition("lock", "locked", on_transition=note("locking"))],
            "locked": {},
        },
        machine_id=machine_id,
        on_enter={"open": note("opened")},
    )


@workflow
async def holding(directory: str) -> list[Any]:
    """A bulk operation and a state machine as parts of one run."""
    machine = door("inside", Path(directory))
    states = [await machine.transition("open")]
    found = (await inside.execute(items())).unwrap()
    states.append(await machine.transition("lock"))
    return [states, found.results, [error.index for error in found.errors]]


@workflow
async def starting() -> list[Any]:
    """Operations as children: one whose items are its input, one whose items are stored before."""
    small, large = await apart.start(items()), await apart.enqueue(items(PADDING))
    return [small.run_id, await small.result(), large.run_id, await large.result()]


async def children(directory: Path) -> None:
    """Repeatable from the start after any death."""
    durable.configure(url(directory), durability="process")
    counts = {"total": ITEMS, "succeeded": ITEMS - 1, "failed": 1}
    assert await starting(run_id="starting") == [CHILDREN[0], counts, CHILDREN[1], counts]


async def once_refused(item: int) -> int:
    """No item gets through at its first attempt: the breaker opens, and again when one that may try fails."""
    with effect() as done:
        if durable.activity_info().attempt == 1:
            raise ConnectionError(f"not {item} yet")
        done.value = item * 10
        return item * 10


async def hanging(item: int) -> int:
    """The later items take for ever."""
    with effect() as done:
        if item >= PROMPT:
            await asyncio.sleep(3600)
        done.value = item * 10
        return item * 10


streamed: Final = BulkOperation(process, CONFIG, name="streamed")
breaking: Final = BulkOperation(
    once_refused,
    BulkOperationConfig(
        batch_size=2,
        max_concurrency=WIDTH,
        retry_attempts=5,
        retry_delay=0.01,
        circuit_breaker_config=CircuitBreakerConfig(failure_threshold=3, reset_timeout=0.03),
    ),
    name="breaking",
)
late: Final = BulkOperation(
    hanging,
    BulkOperationConfig(batch_size=2, max_concurrency=WIDTH, timeout=LATE_SECONDS, retry_delay=0.01),
    name="late",
)


async def limits(directory: Path) -> None:
    """Results as they come, a breaker that opens, a time limit with what was done by then. Repeatable from the start after any death."""
    durable.configure(url(directory), durability="process")
    async with asyncio.TaskGroup() as group:
        for one in (_stream(), _break(), _be_late(directory)):
            group.create_task(one)


async def _stream() -> None:
    stream = streamed.stream(items(), run_id="streamed")
    assert sorted([value async for value in stream]) == RESULTS
    assert [error.index for error in stream.errors] == [5]


async def _break() -> None:
    found = (await breaking.execute(range(2 * WIDTH), run_id="breaking")).unwrap()
    assert found.results == [item * 10 for item in range(2 * WIDTH)], found


async def _be_late(directory: Path) -> None:
    error = (await late.execute(range(2 * PROMPT), run_id="late")).unwrap_err()
    assert isinstance(error, BulkOperationTimeoutError), error
    directory.joinpath("partial.json").write_bytes(msgspec.json.encode(error.partial.results))


async def deadly(item: int) -> int:
    if item == 3:
        os._exit(9)
    return item


async def poisoned(directory: Path) -> None:
    """One item kills the process, each time; its neighbours are innocent."""
    durable.configure(url(directory), durability="process")
    config = BulkOperationConfig(max_concurrency=6, retry_attempts=1, retry_delay=0.01)
    found = (await BulkOperation(deadly, config).execute(range(6), run_id="poisoned")).unwrap()
    assert found.results == [0, 1, 2, 4, 5]
    (error,) = found.errors
    assert (error.index, error.error_type, error.attempts) == (3, "WorkerLostError", 2)


async def main(directory: Path) -> None:
    durable.configure(url(directory), durability="process")
    await execute_all(directory)


async def execute_all(directory: Path) -> None:
    """Repeatable from the start after any death."""
    found = (await apart.execute(items(PADDING), run_id="apart")).unwrap()
    assert (found.results, [(error.index, error.attempts >= 3) for error in found.errors]) == (
        RESULTS,
        [(5, True)],
    ), found
    told = await holding(str(directory), run_id="holding")
    assert told == [["open", "locked"], RESULTS, [5]], told
    machine = door("plain", directory)
    for event in STORY[len(await machine.history()) :]:
        await machine.transition(event)
    assert await machine.recover() == "locked"


if __name__ == "__main__":
    where = Path(sys.argv[1])
    os.environ[crash_ledger.VARIABLE] = str(where / "ledger.jsonl")
    logging.basicConfig(level=logging.WARNING)
    crash_points.install(msgspec.json.decode(sys.argv[2], type=Plan), where / "deaths.jsonl")
    programs = {"poisoned": poisoned, "children": children, "limits": limits}
    asyncio.run((programs[sys.argv[3]] if sys.argv[3:] else main)(where))
    print("write transactions:", len(crash_points.points.names))
