"""What an activity told before its process was killed reaches the next attempt, in another process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from durable import Retry, Worker, activity, activity_info, connect, heartbeat, workflow

ROOT: Final = Path(__file__).parents[2]
WAIT_SECONDS: Final = 60.0
DIRECTORY: Final = "HEARTBEAT_DIRECTORY"
LAST: Final = 1_000_000  # far more steps than a first attempt gets to make


def note(*what: Any) -> None:
    """Append a line to the log of what bodies saw; one write, safely on the disk."""
    descriptor = os.open(Path(os.environ[DIRECTORY]) / "seen.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, msgspec.json.encode(what) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resumed() -> int:
    """Note this attempt and return the step from which it goes on."""
    info = activity_info()
    note(info.attempt, os.getpid(), list(info.heartbeat_details))
    return info.heartbeat_details[1] if info.heartbeat_details else 0


QUICK: Final = Retry(max_attempts=3, initial=0.01)


@activity(retry=QUICK, heartbeat_timeout=1)
async def counts() -> int:
    step = resumed()
    while activity_info().attempt == 1 and step < LAST:
        step += 1
        heartbeat("step", step)
        await asyncio.sleep(0.005)
    return step


@activity(retry=QUICK, heartbeat_timeout=1)
def counts_in_a_thread() -> int:
    step = resumed()
    while activity_info().attempt == 1 and step < LAST:
        step += 1
        heartbeat("step", step)
        time.sleep(0.005)
    return step


@workflow
async def counting() -> int:
    return await counts()


@workflow
async def counting_in_a_thread() -> int:
    return await counts_in_a_thread()


def serve(url: str) -> None:
    """What a worker's process does."""

    async def work() -> None:
        async with connect(url) as client:
            await Worker(client, counting, counting_in_a_thread).run()

    asyncio.run(work())


@contextmanager
def a_worker(url: str, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker in a process of its own; kill it in the end."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"from tests.crash.test_heartbeat_details import serve; serve({url!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, DIRECTORY: str(directory)},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(WAIT_SECONDS)


def seen(directory: Path) -> list[list[Any]]:
    path = directory / "seen.jsonl"
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def until(what: str, condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = condition()
        value = await found if asyncio.iscoroutine(found) else found
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {WAIT_SECONDS:g} s: {what}"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_details_survive_a_kill_and_reach_the_next_attempt_in_another_process(
    kind: str, tmp_path: Path
) -> None:
    """At most those of one interval are lost; the killed attempt counts (P22)."""
    url = f"sqlite:///{tmp_path / 'runs.db'}"
    chosen = counting if kind == "async" else counting_in_a_thread

    with ExitStack() as processes:
        async with connect(url) as client:
            run = await client.start(chosen)
            first = processes.enter_context(a_worker(url, tmp_path))

            async def written() -> bytes | None:
                rows = await client.store.read_attempts(1, 1)
                return rows[0].details if rows else None

            early = await until("details are in the database", written)

            async def newer() -> bytes | None:
                details = await written()
                return details if details != early else None

            await until("newer ones are", newer)
            first.send_signal(signal.SIGKILL)
            first.wait(WAIT_SECONDS)
            left = await written()
            assert left is not None

            second = processes.enter_context(a_worker(url, tmp_path))
            result = await run.result(WAIT_SECONDS)
            rows = await client.store.read_attempts(1, 1)

    details = msgspec.json.decode(left)
    assert seen(tmp_path) == [[1, first.pid, []], [2, second.pid, details]]
    assert details[0] == "step"
    assert result == details[1] > 0
    assert rows == []
