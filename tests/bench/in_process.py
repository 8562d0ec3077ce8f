"""Scenarios of one process: sequential, throughput, latency."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Final

from durable_cli.serving import COLLECTOR_THRESHOLDS

from durable import Client, Worker, configure, connect
from durable.default import engine_here
from tests.bench.place import Settings, Stopwatch, fresh_url, rate, raw_of, served, settled
from tests.bench.raw import CommitMeter, raw_rows_per_second
from tests.bench.rows import Row, rated
from tests.bench.workloads import chain, held

STEPS_OF_A_RUN: Final = 10


def sequential(settings: Settings) -> list[Row]:
    """One run of 1,000 activities, called in a plain script."""
    steps = settings.size(1000)

    async def measure() -> Row:
        engine = await engine_here()
        meter = CommitMeter()
        meter.attach(engine.client.store)
        await chain(20)
        before = await raw_of(engine.client, meter)
        await settled()
        with Stopwatch(meter) as watch:
            await chain(steps)
        return await rate("sequential", engine.client, meter, watch, steps=steps, before=before)

    with fresh_url(settings) as url:
        configure(url, durability=settings.durability)
        return [asyncio.run(measure())]


def throughput(settings: Settings) -> list[Row]:
    """Runs of 10 activities, so many at once; with as many activity slots, and once with the default 100."""
    return [
        asyncio.run(_waves(settings, runs=10, waves=settings.size(50))),
        asyncio.run(_waves(settings, runs=100, waves=settings.size(10))),
        asyncio.run(_waves(settings, runs=settings.size(1000), waves=1, name="throughput/1000")),
        asyncio.run(
            _waves(
                settings, runs=settings.size(1000), waves=1, name="throughput/1000-on-100-slots", slots=100
            )
        ),
        asyncio.run(_embedded_wave(settings, runs=100, waves=settings.size(10))),
    ]


async def _waves(
    settings: Settings, *, runs: int, waves: int, name: str | None = None, slots: int | None = None
) -> Row:
    """Start a wave in one transaction, wait for all results, start the next."""
    with fresh_url(settings) as url:
        async with connect(url, durability=settings.durability) as client:
            meter = CommitMeter()
            meter.attach(client.store)

            async def wave(count: int) -> None:
                handles = await client.start_many(chain, [(STEPS_OF_A_RUN,)] * count)
                await asyncio.gather(*[handle.result() for handle in handles])

            gc.set_threshold(*COLLECTOR_THRESHOLDS)  # as `durable worker` does
            async with Worker(client, chain, held, concurrency=slots or max(runs, 100)):
                await wave(runs)
                before = await raw_of(client, meter)
                await settled()
                with Stopwatch(meter) as watch:
                    for _ in range(waves):
                        await wave(runs)
            steps = runs * waves * STEPS_OF_A_RUN
            return await rate(
                name or f"throughput/{runs}",
                client,
                meter,
                watch,
                steps=steps,
                before=before,
                runs=runs,
                waves=waves,
            )


async def _embedded_wave(settings: Settings, *, runs: int, waves: int) -> Row:
    """So many workflow calls in one `asyncio.gather` of a plain script: each start is a transaction of its own."""
    async with _embedded(settings) as client:
        meter = CommitMeter()
        meter.attach(client.store)
        await asyncio.gather(*[chain(STEPS_OF_A_RUN) for _ in range(runs)])
        before = await raw_of(client, meter)
        await settled()
        with Stopwatch(meter) as watch:
            for _ in range(waves):
                await asyncio.gather(*[chain(STEPS_OF_A_RUN) for _ in range(runs)])
        steps = runs * waves * STEPS_OF_A_RUN
        return await rate(
            f"throughput/{runs}-embedded", client, meter, watch, steps=steps, before=before, runs=runs
        )


@asynccontextmanager
async def _embedded(settings: Settings) -> AsyncIterator[Client]:
    """Yield the client of a plain script's engine, which is closed before its database goes."""
    with fresh_url(settings) as url:
        configure(url, durability=settings.durability)
        engine = await engine_here()
        try:
            yield engine.client
        finally:
            await engine.close()


def latency(settings: Settings) -> list[Row]:
    """Start to result of a one-step run: called in a plain script, and through a client beside a worker."""
    repetitions = settings.size(500)
    return [
        *asyncio.run(_embedded_latency(settings, repetitions)),
        *asyncio.run(_served_latency(settings, repetitions)),
    ]


async def _embedded_latency(settings: Settings, repetitions: int) -> list[Row]:
    async def call() -> None:
        await chain(1)

    async with _embedded(settings) as client:
        times = await _times(call, repetitions)
        raw = 1000 / await raw_rows_per_second(client, batch=1, row_size=200)
    return _quantiles("latency/embedded", times, raw, transactions=3)


async def _served_latency(settings: Settings, repetitions: int) -> list[Row]:
    with fresh_url(settings) as url:
        async with served(url, durability=settings.durability) as (client, _, _meter):

            async def call() -> None:
                handle = await client.start(chain, 1)
                await handle.result()

            times = await _times(call, repetitions)
            raw = 1000 / await raw_rows_per_second(client, batch=1, row_size=200)
    return _quantiles("latency/client", times, raw, transactions=4)


async def _times(call: Callable[[], Awaitable[None]], repetitions: int) -> list[float]:
    """Return milliseconds of so many calls in a row, after some to warm up."""
    times: list[float] = []
    for number in range(repetitions + 20):
        began = time.perf_counter()
        await call()
        if number >= 20:
            times.append((time.perf_counter() - began) * 1000)
    return times


def _quantiles(name: str, times: list[float], raw_commit_ms: float, *, transactions: int) -> list[Row]:
    """Return p50 and p99 beside the raw limit: as many single-row commits as the run needs transactions."""
    hundredths = quantiles(times, n=100)
    raw = raw_commit_ms * transactions
    return [
        rated(f"{name} p50", hundredths[49], "ms", raw, transactions=transactions, samples=len(times)),
        rated(f"{name} p99", hundredths[98], "ms", raw, transactions=transactions, samples=len(times)),
    ]
