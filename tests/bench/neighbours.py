"""Scenarios of processes that depend on one another: takeover of a dead worker's runs, wake-up of another process."""

from __future__ import annotations

import asyncio
import time
from statistics import quantiles
from typing import Final

from durable import Client, Worker, connect
from tests.bench.place import Settings, fresh_url
from tests.bench.processes import Child
from tests.bench.raw import raw_rows_per_second
from tests.bench.rows import Row, rated
from tests.bench.workloads import go, listening, stuck

LEASE_SECONDS: Final = 2.0
KILLS: Final = 5
PAUSE_SECONDS: Final = 0.02  # between signals: each is a wake-up of its own


def takeover(settings: Settings) -> list[Row]:
    """Kill a worker that owns 1,000 runs; how long until each of them is owned by the one that is left."""
    return asyncio.run(_takeover(settings, settings.size(1000)))


async def _takeover(settings: Settings, runs: int) -> list[Row]:
    delays: list[float] = []
    for _ in range(KILLS):
        with fresh_url(settings) as url:
            delays += await _one_takeover(url, runs)
    hundredths = quantiles(delays, n=100)
    return [
        rated(f"takeover/1000 {name}", hundredths[place], "ms", LEASE_SECONDS * 1000, runs=runs, kills=KILLS)
        for name, place in (("p50", 49), ("p99", 98))
    ]


async def _one_takeover(url: str, runs: int) -> list[float]:
    """Return the milliseconds from the kill to the new owner, of each run."""
    child = await asyncio.to_thread(Child, "hold", url, runs, LEASE_SECONDS)
    try:
        await asyncio.to_thread(child.answer)
        async with (
            connect(url) as client,
            Worker(client, stuck, concurrency=runs, lease_seconds=LEASE_SECONDS) as heir,
        ):
            killed_at = time.monotonic()
            child.kill()
            delays: list[float] = []
            while len(delays) < runs:
                owned = len(await client.store.owned_runs(heir.worker_id))
                delays += [(time.monotonic() - killed_at) * 1000] * (owned - len(delays))
                await asyncio.sleep(0.005)
            heir.stop(0)
        return delays
    finally:
        child.kill()


def wakeup(settings: Settings) -> list[Row]:
    """Signals to a run that another process drives: from the call to its having read them."""
    return asyncio.run(_wakeup(settings, settings.size(500)))


async def _wakeup(settings: Settings, signals: int) -> list[Row]:
    with fresh_url(settings) as url:
        async with connect(url, durability=settings.durability) as client:
            run = await client.start(listening, 10**9)
            child = await asyncio.to_thread(Child, "hear", url, run.run_id)
            await asyncio.to_thread(child.answer)
            sent = await _send(client, run.run_id, signals)
            heard = (await asyncio.to_thread(child.end))["heard"]
            raw = 1000 / await raw_rows_per_second(client, batch=1, row_size=200)
    delays = [(heard[name] - at) * 1000 for name, at in sent.items() if name in heard]
    hundredths = quantiles(delays, n=100)
    return [
        rated(
            f"wakeup {name}", hundredths[place], "ms", raw, signals=signals, unheard=signals - len(delays), most=max(delays)
        )
        for name, place in (("p50", 49), ("p99", 98))
    ]  # fmt: skip


async def _send(client: Client, run_id: str, signals: int) -> dict[str, float]:
    """Send them one by one; return when each was sent."""
    sent: dict[str, float] = {}
    for number in range(signals):
        name = f"w{number}"
        sent[name] = time.monotonic()
        await client.signal(run_id, go, True, id=name)
        await asyncio.sleep(PAUSE_SECONDS)
    await asyncio.sleep(1.0)  # the last one may need a look of its own
    return sent
