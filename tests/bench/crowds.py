"""Scenarios of many at once in one process: enqueue, signals, fanout, heartbeats."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any, Final

from durable_cli.serving import COLLECTOR_THRESHOLDS

from durable import Client, Worker, connect
from durable.starting import start_request
from durable.store.records import Outgoing
from durable.worker.heartbeats import DETAILS_SECONDS_MAX
from tests.bench.place import Settings, Stopwatch, fresh_url, rate, raw_of, settled
from tests.bench.raw import CommitMeter, raw_rows_per_second
from tests.bench.rows import Row, rated
from tests.bench.workloads import beating, chain, fan, go, listening

SENDERS: Final = 50
BEATING_RUNS: Final = 100
BEATING_SECONDS: Final = 24.0


# ─ enqueue ───────────────────────────────────────────────────────────────────


def enqueue(settings: Settings) -> list[Row]:
    """Store 10,000 runs for workers: all in one call, and (a tenth of them) one by one."""
    return asyncio.run(_enqueue(settings))


async def _enqueue(settings: Settings) -> list[Row]:
    runs = settings.size(10_000)
    alone = runs // 10
    with fresh_url(settings) as url:
        async with connect(url, durability=settings.durability) as client:
            await client.start_many(chain, [(1,)] * 10)
            gc.collect()
            raw = await _raw_starts(client, runs, batch=runs)
            began = time.perf_counter()
            await client.start_many(chain, [(1,)] * runs)
            together = time.perf_counter() - began
            raw_alone = await _raw_starts(client, alone, batch=1)
            began = time.perf_counter()
            for _ in range(alone):
                await client.start(chain, 1)
            one_by_one = time.perf_counter() - began
    return [
        rated("enqueue/10000", together * 1000, "ms", raw * 1000, runs=runs),
        rated("enqueue/one-by-one", alone / one_by_one, "runs/s", alone / raw_alone, runs=alone),
    ]


async def _raw_starts(client: Client, runs: int, *, batch: int) -> float:
    """Return the seconds that the store's call takes, with requests that stand ready."""
    requests = [start_request(client, chain.definition, (1,)) for _ in range(runs)]
    began = time.perf_counter()
    for first in range(0, runs, batch):
        await client.store.start_runs(requests[first : first + batch], client.clock.now_us())
    return time.perf_counter() - began


# ─ signals ───────────────────────────────────────────────────────────────────


def signals(settings: Settings) -> list[Row]:
    """Signals from send to consumption, to 1 and to 100 waiting runs, sent by so many senders at once."""
    return [
        asyncio.run(_signals(settings, runs=1, each=settings.size(2000))),
        asyncio.run(_signals(settings, runs=100, each=settings.size(50))),
    ]


async def _signals(settings: Settings, *, runs: int, each: int) -> Row:
    with fresh_url(settings) as url:
        async with connect(url, durability=settings.durability) as client:
            meter = CommitMeter()
            meter.attach(client.store)
            async with Worker(client, listening):
                idle = await client.start(listening, 10**9)
                handles = await client.start_many(listening, [(each,)] * runs)
                await settled()
                raw_send = await _raw_sends(client, idle.run_id)
                await settled()
                left = [handle for handle in handles for _ in range(each)]
                with Stopwatch(meter) as watch:
                    await asyncio.gather(*[_send(left) for _ in range(SENDERS)])
                    await asyncio.gather(*[handle.result() for handle in handles])
                total = runs * each
                turns, batch = meter.turns, meter.batch
                rows = await raw_rows_per_second(client, batch=batch, row_size=meter.row_size)
                await idle.terminate()
    return rated(
        f"signals/{runs}",
        total / watch.wall,
        "signals/s",
        total / (total / raw_send + turns / rows),
        signals=total,
        turns=turns,
        batch=batch,
        raw_sends_per_second=raw_send,
        loop_cpu_us_per_signal=watch.loop_cpu / total * 1e6,
    )


async def _send(left: list[Any]) -> None:
    while left:
        await left.pop().signal(go, True)


async def _raw_sends(client: Client, run_id: str, sends: int = 300) -> float:
    """Return the signals per second that the store takes in, alone."""
    store = client.store
    began = time.perf_counter()
    for _ in range(sends):
        message_id = client.random.request_id()
        message = Outgoing(run_id=run_id, kind="signal", name=go.name, data=b"true", message_id=message_id)
        await store.send_message(message, client.clock.now_us())
    return sends / (time.perf_counter() - began)


# ─ fanout ────────────────────────────────────────────────────────────────────


def fanout(settings: Settings) -> list[Row]:
    """1,000 activities at once in one run; with as many slots, and with the default 100."""
    return [
        asyncio.run(_fanout(settings, slots=1000, name="fanout/1000")),
        asyncio.run(_fanout(settings, slots=100, name="fanout/1000-on-100-slots")),
    ]


async def _fanout(settings: Settings, *, slots: int, name: str) -> Row:
    width = settings.size(1000)
    with fresh_url(settings) as url:
        async with connect(url, durability=settings.durability) as client:
            meter = CommitMeter()
            meter.attach(client.store)
            gc.set_threshold(*COLLECTOR_THRESHOLDS)  # as `durable worker` does
            async with Worker(client, fan, concurrency=slots):
                await (await client.start(fan, 50)).result()
                before = await raw_of(client, meter)
                await settled()
                with Stopwatch(meter) as watch:
                    await (await client.start(fan, width)).result()
                return await rate(name, client, meter, watch, steps=width, before=before)


# ─ heartbeats ────────────────────────────────────────────────────────────────


def heartbeats(settings: Settings) -> list[Row]:
    """10,000 activities that beat twice a second: commits per interval in which details are written."""
    return [asyncio.run(_heartbeats(settings))]


async def _heartbeats(settings: Settings) -> Row:
    each = settings.size(100)
    with fresh_url(settings) as url:
        async with connect(url, durability=settings.durability) as client:
            meter = CommitMeter()
            meter.attach(client.store)
            gc.set_threshold(*COLLECTOR_THRESHOLDS)
            async with Worker(client, beating, concurrency=BEATING_RUNS * each) as worker:
                handles = await client.start_many(beating, [(each, BEATING_SECONDS)] * BEATING_RUNS)
                while worker.life.performer.running < BEATING_RUNS * each:  # noqa: ASYNC110  # nothing tells of it
                    await asyncio.sleep(0.01)
                await asyncio.sleep(DETAILS_SECONDS_MAX)  # the starts are behind us
                intervals = 5
                with Stopwatch(meter) as watch:
                    await asyncio.sleep(intervals * DETAILS_SECONDS_MAX)
                calls, items, seconds = meter.calls, meter.items, meter.seconds
                await asyncio.gather(*[handle.result() for handle in handles])
    return Row(
        scenario="heartbeats/10000",
        value=calls / intervals,
        unit="commits/interval",
        raw=1.0,
        extra={
            "activities": BEATING_RUNS * each,
            "interval_seconds": DETAILS_SECONDS_MAX,
            "items_per_commit": items / max(1, calls),
            "commit_ms": seconds / max(1, calls) * 1000,
            "cpu_share": watch.cpu / watch.wall,
        },
    )
