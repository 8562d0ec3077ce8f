"""Where a scenario runs: a fresh database in a directory of its own, and how it was measured."""

from __future__ import annotations

import asyncio
import atexit
import gc
import itertools
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import msgspec

from durable import Client, Worker, connect
from tests.bench.raw import CommitMeter, raw_rows_per_second
from tests.bench.rows import Row, rated
from tests.bench.workloads import chain, held
from tests.support.postgres import Server, find_binaries, in_schema

Durability = Literal["full", "process"]
_schemas = itertools.count(1)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line chose. `directory` decides the file system."""

    store: str
    directory: Path
    durability: Durability = "full"
    quick: bool = False

    def size(self, full: int) -> int:
        """Return a number of runs, steps or repetitions: a fifth of it if it must be quick."""
        return max(1, full // 5) if self.quick else full


SERVER_SETTINGS: Final = {  # one that flushes, as people's do
    "fsync": "on",
    "full_page_writes": "on",
    "shared_buffers": "1GB",
    "max_wal_size": "8GB",
}


@cache
def server() -> Server:
    """The Postgres of this process's measurements, by its socket; it goes with the process."""
    made = Server(find_binaries(), SERVER_SETTINGS)
    atexit.register(made.remove)
    return made


@contextmanager
def fresh_url(settings: Settings) -> Iterator[str]:
    """Yield the URL of a database that does not exist yet; it is removed in the end."""
    if settings.store == "postgres":
        schema = f"bench_{next(_schemas)}"
        try:
            yield in_schema(server().url, schema)
        finally:
            server().sql("SET client_min_messages = warning", f"DROP SCHEMA IF EXISTS {schema} CASCADE")
        return
    directory = Path(tempfile.mkdtemp(prefix="durable-bench-", dir=settings.directory))
    try:
        yield f"sqlite:///{directory / 'bench.db'}"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@asynccontextmanager
async def served(
    url: str, *, durability: Durability = "full", concurrency: int = 100
) -> AsyncIterator[tuple[Client, Worker, CommitMeter]]:
    """Yield a client, with a worker beside it in this process, and the meter of its commits."""
    async with connect(url, durability=durability) as client:
        meter = CommitMeter()
        meter.attach(client.store)
        async with Worker(client, chain, held, concurrency=concurrency) as worker:
            yield client, worker, meter


class Stopwatch:
    """Wall and CPU time of a block. `loop_cpu` is this thread's, without what it spent inside the store's commits."""

    def __init__(self, meter: CommitMeter) -> None:
        self._meter = meter
        self.wall = self.cpu = self.loop_cpu = 0.0

    def __enter__(self) -> Self:
        gc.collect()
        self._meter.reset()
        self._began = time.perf_counter(), time.process_time(), time.thread_time()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wall, cpu, thread = self._began
        self.wall = time.perf_counter() - wall
        self.cpu = time.process_time() - cpu
        self.loop_cpu = time.thread_time() - thread - self._meter.cpu_seconds


async def raw_of(client: Client, meter: CommitMeter) -> float:
    """Return the raw rows per second of the shape that the meter has seen since it was reset."""
    return await raw_rows_per_second(client, batch=meter.batch, row_size=meter.row_size)


async def rate(
    scenario: str,
    client: Client,
    meter: CommitMeter,
    watch: Stopwatch,
    *,
    steps: int,
    before: float,
    **extra: Any,
) -> Row:
    """Return steps per second beside the raw limit of the same shape, in the same process and database.

    The raw limit is the mean of the one `before` the run (of its warm-up's shape) and one taken now. It is turned into
    steps as the run was: it wrote `turns` rows for `steps` steps.
    """
    counted = {
        "loop_cpu_us_per_step": watch.loop_cpu / steps * 1e6,
        "cpu_us_per_step": watch.cpu / steps * 1e6,
        "commit_us_per_step": meter.seconds / steps * 1e6,
        "commits": meter.calls,
        "items": meter.items,
        "turns": meter.turns,
        "batch": meter.batch,
        "row_bytes": meter.row_size,
        "seconds": watch.wall,
    }
    turns = meter.turns
    after = await raw_of(client, meter)
    rows_per_second = (before + after) / 2
    return rated(
        scenario,
        steps / watch.wall,
        "steps/s",
        rows_per_second * steps / turns,
        raw_rows_per_second=rows_per_second,
        raw_before=before,
        raw_after=after,
        **counted,
        **extra,
    )


async def settled() -> None:
    """Let background work of the last start-up pass."""
    await asyncio.sleep(0.05)
