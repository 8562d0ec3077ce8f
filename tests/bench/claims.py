"""What a claim costs on a server: in an empty schema, beside a million closed runs, and while somebody holds an old snapshot.

Every figure is measured in turn with one of an empty schema of the same server, so that both meet the same machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from statistics import quantiles
from typing import Any, Final

import asyncpg

from durable import Client, connect
from durable.journal.lifecycle import RunStatus
from durable.store.postgres.location import locate
from durable.store.records import Claim, Close, TurnCommit, WorkerInfo
from tests.bench.place import Settings, fresh_url
from tests.bench.rows import Row
from tests.bench.workloads import chain

BATCH: Final = 50
SERVED: Final = ((chain.name, chain.version),)
SLICE: Final = 100_000  # rows a statement
HELD_SECONDS: Final = 600  # an old snapshot


def claims(settings: Settings) -> list[Row]:
    """Claims of 50 runs: beside 1,000,000 closed runs, and with a snapshot held open for ten minutes while runs come and go."""
    if settings.store != "postgres":
        return []
    return [
        *asyncio.run(_beside_closed(settings, settings.size(1_000_000))),
        *asyncio.run(_under_snapshot(settings, settings.size(HELD_SECONDS))),
    ]


class Side:
    """One schema, a worker registered in it, and how long its claims took."""

    def __init__(self, client: Client, worker: int) -> None:
        self.client = client
        self.worker = worker
        self.claimed_ms: list[float] = []

    @classmethod
    @asynccontextmanager
    async def of(cls, url: str) -> AsyncIterator[Side]:
        async with connect(url) as client:
            info = WorkerInfo(name="claims", task_queue="default", definitions=SERVED)
            yield cls(client, await client.store.register_worker(info))

    async def cycle(self, runs: int) -> None:
        """Let so many runs come and go: started, claimed in batches, one turn each, closed."""
        await self.client.start_many(chain, [(1,)] * runs)
        left = runs
        while left:
            began = time.perf_counter()
            claimed = await self.client.store.claim_ready_runs(
                self.worker, now_us=0, limit=BATCH, task_queue="default", definitions=SERVED
            )
            self.claimed_ms.append((time.perf_counter() - began) * 1000)
            assert claimed, "runs were started and are not to be had"
            left -= len(claimed)
            await self._close(claimed)

    async def _close(self, claimed: list[Claim]) -> None:
        for turn in (1, 2):
            commits = [
                TurnCommit(
                    pk=one.pk,
                    generation=1,
                    claim_no=one.claim_no,
                    turn=turn,
                    parts=(b"x" * 300,),
                    **({"after": Close(status=RunStatus.COMPLETED, result=b"1")} if turn == 2 else {}),
                )
                for one in claimed
            ]
            await self.client.store.commit_turns(self.worker, commits, 0)


async def _beside_closed(settings: Settings, closed: int) -> list[Row]:
    with fresh_url(settings) as url, fresh_url(settings) as empty_url:
        async with Side.of(url) as full, Side.of(empty_url) as empty:
            await fill(url, closed)
            for _ in range(10):
                for side in (empty, full):
                    await side.cycle(500)
    return _compared("claim/closed-1000000", full, empty, closed=closed)


async def fill(url: str, closed: int) -> None:
    """Write closed runs, each with its payload and three turns, past the library."""
    place = locate(url, url)
    db = await asyncpg.connect(place.dsn, server_settings={"search_path": place.schema})
    try:
        for first in range(0, closed, SLICE):
            last = min(first + SLICE, closed)
            await db.execute(
                f"""WITH made AS (
                    INSERT INTO run (run_id, epoch, workflow, version, task_queue, status, claim_no, ready_at_us, created_at_us,
                        started_at_us, closed_at_us)
                    SELECT 'closed-' || n, 1, '{chain.name}', {chain.version}, 'default', 10, 1, n, n, n, n
                    FROM generate_series({first + 1}, {last}) AS n
                    RETURNING id
                ), filled AS (
                    INSERT INTO run_payload (run, generation, input, result) SELECT id, 1, '[1]', '1' FROM made
                )
                INSERT INTO journal (run, generation, turn, part, data)
                SELECT id, 1, turn, 1, convert_to(repeat('x', 200), 'UTF8') FROM made, generate_series(1, 3) AS turn""",  # noqa: S608  # our own names and numbers
                timeout=300,
            )
        await db.execute("ANALYZE run; ANALYZE run_payload; ANALYZE journal")
    finally:
        await db.close()


async def _under_snapshot(settings: Settings, seconds: int) -> list[Row]:
    """An old snapshot keeps every dead row and index entry: claims must not have to walk past them."""
    with fresh_url(settings) as url, fresh_url(settings) as empty_url:
        place = locate(url, url)
        async with Side.of(url) as crowded:
            holder = await asyncpg.connect(place.dsn)
            try:
                transaction = holder.transaction(isolation="repeatable_read")
                await transaction.start()
                await holder.fetchval("SELECT count(*) FROM pg_class")
                runs, began = 0, time.perf_counter()
                while time.perf_counter() - began < seconds:
                    await crowded.cycle(1000)
                    runs += 1000
                crowded.claimed_ms.clear()
                async with Side.of(empty_url) as empty:
                    for _ in range(10):
                        for side in (empty, crowded):
                            await side.cycle(500)
                await transaction.rollback()
            finally:
                await holder.close()
    return _compared("claim/old-snapshot", crowded, empty, runs=runs, held_seconds=seconds)


def _compared(name: str, side: Side, empty: Side, **extra: Any) -> list[Row]:
    rows = []
    for place, label in ((49, "p50"), (98, "p99")):
        value, raw = (quantiles(one.claimed_ms, n=100)[place] for one in (side, empty))
        rows.append(
            Row(
                scenario=f"{name} {label}", value=value, unit="ms", raw=raw, ratio=raw / value,
                extra={**extra, "claims": len(side.claimed_ms), "times_slower": value / raw},
            )
        )  # fmt: skip
    return rows
