"""Scenarios of several processes: resume, restart, workers, import."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from tempfile import TemporaryDirectory
from typing import Any

from durable import Client, connect
from durable.workflows import DEFAULT_TASK_QUEUE
from tests.bench.place import Settings, fresh_url
from tests.bench.raw import raw_rows_per_second
from tests.bench.rows import Row, rated
from tests.bench.workloads import chain, go

PATIENCE_SECONDS = 120.0


class Child:
    """One process of `tests.bench.child`, and when it was started."""

    def __init__(self, role: str, url: str, *arguments: object) -> None:
        command = [sys.executable, "-m", "tests.bench.child", role, url, *map(str, arguments)]
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def answer(self) -> dict[str, Any]:
        """Return its next line; raise `RuntimeError` if it ended without one."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a child process ended with status {self._process.wait()} and no answer")
        fields: dict[str, Any] = json.loads(line)
        return fields

    def ask(self) -> dict[str, Any]:
        """Send it a line, and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        return self.answer()

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._process.kill()
        self._process.wait()

    def end(self) -> dict[str, Any]:
        """Close its input, return its last answer, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        answer = self.answer()
        self._process.wait(PATIENCE_SECONDS)
        return answer


def _answered(role: str, url: str, *arguments: object) -> tuple[float, dict[str, Any]]:
    """Return the seconds from the start of a child process to the end it reports, and its answer."""
    child = Child(role, url, *arguments)
    answer = child.end()
    return answer["ended"] - child.started_at, answer


async def _with_client(url: str, use: Callable[[Client], Any]) -> Any:
    async with connect(url) as client:
        return await use(client)


def _leave_and_release(url: str, runs: int, steps: int) -> None:
    """Kill a worker whose runs all wait for a signal, then send it to each."""
    child = Child("leave", url, runs, steps)
    child.answer()
    child.kill()

    async def release(client: Client) -> None:
        for number in range(runs):
            await client.signal(f"bench-{number}", go, True)

    asyncio.run(_with_client(url, release))


def resume(settings: Settings) -> list[Row]:
    """A run with 5,000 recorded steps whose process was killed, called again by a fresh process."""
    steps = settings.size(5000)
    with fresh_url(settings) as url:
        _leave_and_release(url, 1, steps)
        whole, answer = _answered("resume", url, "bench-0", steps)
        raw, raw_answer = _answered("read", url, "bench-0")
    engine = answer["ended"] - answer["called"]
    raw_engine = raw_answer["ended"] - raw_answer["imported"]
    return [
        rated("resume", whole * 1000, "ms", raw * 1000, steps=steps),
        rated(
            "resume/engine",
            engine * 1000,
            "ms",
            raw_engine * 1000,
            steps=steps,
            us_per_step=engine / steps * 1e6,
        ),
    ]


def restart(settings: Settings) -> list[Row]:
    """1,000 waiting runs whose worker was killed, all finished by a fresh process."""
    runs = settings.size(1000)
    with fresh_url(settings) as url:
        _leave_and_release(url, runs, 1)
        whole, answer = _answered("finish", url, runs)
        batch = max(1, round(runs / answer["commits"]))
        raw, raw_answer = _answered("write", url, runs, batch)
    engine = answer["ended"] - answer["imported"]
    # The raw process wrote more rows than needed: only as many as there are runs count.
    raw_whole = raw_answer["imported"] - raw_answer["began"] + raw_answer["seconds"]
    return [
        rated("restart", whole * 1000, "ms", (whole - engine + raw_answer["seconds"]) * 1000, runs=runs),
        rated(
            "restart/engine",
            engine * 1000,
            "ms",
            raw_answer["seconds"] * 1000,
            runs=runs,
            raw_process_ms=raw * 1000,
            raw_import_and_write_ms=raw_whole * 1000,
        ),
    ]


def workers(settings: Settings) -> list[Row]:
    """Runs of 10 steps, served by 1, 2 and 4 worker processes on one file."""
    return [asyncio.run(_workers(settings, count)) for count in (1, 2, 4)]


async def _workers(settings: Settings, count: int) -> Row:
    runs, steps = settings.size(2000), 10
    with fresh_url(settings) as url:
        async with connect(url) as client:
            children = [Child("serve", url) for _ in range(count)]
            for child in children:
                child.answer()
            began = time.perf_counter()
            await client.start_many(chain, [(steps,)] * runs)
            served = [(chain.name, chain.version)]
            while True:
                if not await client.store.has_backlog([DEFAULT_TASK_QUEUE], served):
                    break
                await asyncio.sleep(0.01)
            seconds = time.perf_counter() - began
            answers = [child.end() for child in children]
            turns = sum(answer["turns"] for answer in answers)
            batch = max(1, round(turns / sum(answer["calls"] for answer in answers)))
            row_size = max(1, round(sum(answer["row_bytes"] for answer in answers) / turns))
            raw = await raw_rows_per_second(client, batch=batch, row_size=row_size)
    done = runs * steps
    return rated(
        f"workers/{count}",
        done / seconds,
        "steps/s",
        raw * done / turns,
        batch=batch,
        row_bytes=row_size,
        runs=runs,
        runs_of_each=[answer["closed"] for answer in answers],
    )


def imports(settings: Settings) -> list[Row]:
    """`import durable` and `durable --help` as processes, beside a bare interpreter; best of five."""
    bare = _best_ms(["-c", "pass"])
    return [
        rated("import/durable", _best_ms(["-c", "import durable"]), "ms", bare),
        rated("import/help", _best_ms(["-m", "durable_cli", "--help"]), "ms", bare),
    ]


def _best_ms(arguments: Sequence[str]) -> float:
    times: list[float] = []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with TemporaryDirectory() as caches:  # compiled by the first, as by an installation
        environment["PYTHONPYCACHEPREFIX"] = caches
        for _ in range(6):
            began = time.perf_counter()
            subprocess.run(
                [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment
            )
            times.append((time.perf_counter() - began) * 1000)
    return min(times)
