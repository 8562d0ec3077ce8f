"""The scenario of bulk operations: trivial items, executed in a plain script and streamed, and what the process's memory does meanwhile.

The raw limit is the same journal rows alone, in items: rows per second times the items of a row.
"""

from __future__ import annotations

import asyncio
import gc
import resource
from typing import Final

from durable_cli.serving import COLLECTOR_THRESHOLDS

from durable import BulkOperation, BulkOperationConfig, configure
from durable.default import engine_here
from tests.bench.place import Settings, Stopwatch, fresh_url, rate, raw_of, settled
from tests.bench.raw import CommitMeter
from tests.bench.rows import Row

CONCURRENCY: Final = 100
BATCH_SIZES: Final = (10, 100)


async def double(item: int) -> int:
    return item * 2


def bulk(settings: Settings) -> list[Row]:
    """100,000 items, a hundred at a time: with slices of ten, as by default, and with slices of a hundred."""
    items = settings.size(100_000)
    return [asyncio.run(_streamed(settings, items, size)) for size in BATCH_SIZES]


async def _streamed(settings: Settings, items: int, batch_size: int) -> Row:
    with fresh_url(settings) as url:
        configure(url, durability=settings.durability)
        client = (await engine_here()).client
        meter = CommitMeter()
        meter.attach(client.store)
        op = BulkOperation(
            double,
            BulkOperationConfig(batch_size=batch_size, max_concurrency=CONCURRENCY, timeout=3600),
            name="bench-bulk",
        )
        gc.set_threshold(*COLLECTOR_THRESHOLDS)  # as `durable worker` does
        await _count(op, 10 * CONCURRENCY)
        before = await raw_of(client, meter)
        await settled()
        resident = _resident_bytes()
        with Stopwatch(meter) as watch:
            assert await _count(op, items) == items
        grown = _resident_bytes() - resident
        row = await rate(
            f"bulk/{batch_size}",
            client,
            meter,
            watch,
            steps=items,
            before=before,
            grown_bytes_per_item=grown / items,
            peak_megabytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        row.unit = "items/s"
        return row


async def _count(op: BulkOperation[int, int], items: int) -> int:
    count = 0
    async for _ in op.stream(range(items)):
        count += 1
    return count


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
