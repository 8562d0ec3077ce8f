"""Sleeping runs: what 100,000 of them cost a worker that has nothing to do, and how they wake when all are due at once."""

from __future__ import annotations

import asyncio
import time
from statistics import quantiles
from typing import Final

from durable import Client, Worker, connect
from durable.store.records import RunFilter
from durable.workflows import DEFAULT_TASK_QUEUE
from tests.bench.place import Settings, fresh_url
from tests.bench.processes import Child
from tests.bench.raw import raw_rows_per_second
from tests.bench.rows import Row, rated
from tests.bench.workloads import sleeping

REST_SECONDS: Final = 10.0
AWAKE_SECONDS: Final = 6.0  # shorter sleeps stay in the memory of their worker
AHEAD_SECONDS: Final = 12.0
CHUNK: Final = 5000
DAY: Final = 86_400.0


def sleepers(settings: Settings) -> list[Row]:
    """Rest beside 100,000 sleeping runs; then 1,000 and 100,000 that are due at the same instant."""
    many, few = settings.size(100_000), settings.size(1000)
    with fresh_url(settings) as url:
        empty = _rest(url)
    with fresh_url(settings) as url:
        built = asyncio.run(_put_to_sleep(url, many, time.time() + DAY))
        full = _rest(url)
    rows = [
        Row(
            scenario=f"sleepers/{many} memory",
            value=full["rss_mib"],
            unit="MiB",
            raw=empty["rss_mib"],
            ratio=empty["rss_mib"] / full["rss_mib"],
            extra={"seconds_to_put_to_sleep": built},
        ),
        Row(
            scenario=f"sleepers/{many} idle CPU",
            value=full["cpu_share"] * 100,
            unit="% of a core",
            raw=empty["cpu_share"] * 100,
        ),
    ]
    for runs, workers in ((few, 1), (many, 1), (many, 2)):
        rows += _due_at_once(settings, runs, AHEAD_SECONDS + built * 2 * runs / many, workers)
    return rows


def _rest(url: str) -> dict[str, float]:
    child = Child("rest", url, REST_SECONDS)
    return child.answer()


def _due_at_once(settings: Settings, runs: int, ahead: float, workers: int) -> list[Row]:
    """Put runs to sleep until one instant, and let fresh worker processes wake them."""
    with fresh_url(settings) as url:
        due = time.time() + ahead
        asyncio.run(_put_to_sleep(url, runs, due))
        children = [Child("wake", url) for _ in range(workers)]
        for child in children:
            child.answer()
        asyncio.run(_until_closed(url, due))
        answers = [child.end() for child in children]
        late, raw = asyncio.run(_lateness(url, runs, due))
    spread = quantiles(late, n=100)
    told = {
        "runs": runs,
        "early": sum(one < 0 for one in late),
        "first_ms": min(late) * 1000,
        "closed": [answer["closed"] for answer in answers],
        "commits": sum(answer["commits"] for answer in answers),
        "worker_cpu_seconds": sum(answer["cpu_seconds"] for answer in answers),
        "worker_rss_mib": max(answer["rss_mib"] for answer in answers),
    }
    name = f"sleepers/{runs}" + (f" on {workers} workers" if workers > 1 else "")
    return [
        rated(f"{name} due p99", spread[98] * 1000, "ms", raw * 1000, **told),
        rated(f"{name} all closed", max(late) * 1000, "ms", raw * 1000, **told),
    ]


async def _until_closed(url: str, due: float) -> None:
    """Return when no run is open."""
    await asyncio.sleep(due - time.time())
    served = [(sleeping.name, sleeping.version)]
    async with connect(url) as client:
        while True:
            if not await client.store.has_backlog([DEFAULT_TASK_QUEUE], served):
                return
            await asyncio.sleep(0.2)


async def _asleep(client: Client) -> int:
    return sum(one.runs for one in (await client.store.read_health()).open_runs if one.state == "waiting")


async def _put_to_sleep(url: str, runs: int, until: float) -> float:
    """Start runs and wait until all sleep and nobody holds them; return the seconds that took."""
    began = time.perf_counter()
    async with connect(url, durability="process") as client, Worker(client, sleeping):
        for first in range(0, runs, CHUNK):
            await client.start_many(sleeping, [(until,)] * min(CHUNK, runs - first))
        while await _asleep(client) < runs:  # nothing tells of it
            await asyncio.sleep(0.05)
            if time.time() > until - AWAKE_SECONDS:
                raise RuntimeError(f"{runs} runs were not asleep in time: this machine is too slow just now")
    return time.perf_counter() - began


async def _lateness(url: str, runs: int, due: float) -> tuple[list[float], float]:
    """Return by how many seconds each run was closed after the instant, and what the closing rows alone would take."""
    late: list[float] = []
    async with connect(url) as client:
        before: tuple[int, int] | None = None
        while page := await client.store.list_runs(RunFilter(limit=1000, before=before)):
            late += [(record.closed_at_us or 0) / 1e6 - due for record in page]
            before = (page[-1].created_at_us, page[-1].pk)
        raw = await _raw_seconds(client, runs)
    return late, raw


async def _raw_seconds(client: Client, runs: int) -> float:
    return runs / await raw_rows_per_second(client, batch=min(runs, 500), row_size=120)
