"""What updating does to the tables of a server: `python -m tests.bench.churn factors|vacuum`.

`factors`: by fill factor, with and without an old snapshot. `vacuum`: by how many rows may be dead before the runs are cleaned up.
Nothing here depends on the speed of the machine: rows are counted, and pages. The server cleans nothing up by itself: every wave of work
ends with a VACUUM, which under an old snapshot removes nothing. The last one comes when the snapshot has been let go.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import msgspec

from durable import Retry, Signal, Worker, activity, activity_info, connect, heartbeat, workflow
from durable.store.postgres.location import locate
from tests.bench.claims import Side, fill
from tests.bench.place import SERVER_SETTINGS
from tests.bench.workloads import chain
from tests.support.postgres import Server, find_binaries, in_schema

UPDATED: Final = ("run", "run_payload", "attempt", "activity_task", "inbox")
FACTORS: Final = (100, 80, 50, 20)
CHAINS, LISTENERS, TASKS, BEATING = 500, 50, 300, 100  # runs a wave
STEPS, SIGNALS, BEATS = 10, 40, 20
VACUUMED: Final = ((50, 0.2), (1000, 0.1), (1000, 0.02), (1000, 0.005))  # the server's own defaults first
CLOSED, COMING, A_CYCLE = 200_000, 60_000, 1000  # runs
ELSEWHERE: Final = "elsewhere"

told = Signal("told", int)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of a table. Bytes are of its pages and of those of its indexes, before and after the last VACUUM."""

    table: str
    live: int
    inserted: int
    updated: int
    hot: int
    bytes_before: int
    index_bytes_before: int
    bytes_after: int
    index_bytes_after: int

    @property
    def hot_share(self) -> float | None:
        return self.hot / self.updated if self.updated else None


@workflow(name="churn-listening")
async def listening(signals: int) -> None:
    for _ in range(signals):
        await told.wait()


@activity(task_queue=ELSEWHERE, heartbeat_timeout=3, retry=Retry(initial=0.01))
async def far_away(number: int) -> int:
    """Fail once, and tell how far it has come."""
    if activity_info().attempt == 1:
        raise ConnectionError("not yet")
    for told_so_far in range(8):
        heartbeat({"done": told_so_far})
        await asyncio.sleep(0.5)
    return number


@workflow(name="churn-remote")
async def remote(number: int) -> int:
    return await far_away(number)


@activity(heartbeat_timeout=3)
async def beat(beats: int) -> int:
    """Tell how far it has come, more often than it is written down."""
    for told_so_far in range(beats):
        heartbeat({"done": told_so_far, "of": beats})
        await asyncio.sleep(0.25)
    return beats


@workflow(name="churn-beating")
async def beating(beats: int) -> int:
    return await beat(beats)


async def wave(url: str) -> None:
    """Runs that call activities here and elsewhere, take signals, and beat; all of them end."""
    async with (
        connect(url) as client,
        Worker(client, chain, listening, remote, beating, concurrency=1000),
        Worker(client, activities=[far_away], task_queue=ELSEWHERE, concurrency=1000),
    ):
        ears = await client.start_many(listening, [(SIGNALS,)] * LISTENERS)
        handles: list[Any] = [
            *ears,
            *await client.start_many(chain, [(STEPS,)] * CHAINS),
            *await client.start_many(remote, [(number,) for number in range(TASKS)]),
            *await client.start_many(beating, [(BEATS,)] * BEATING),
        ]

        async def tell(ear: Any) -> None:
            for number in range(SIGNALS):
                await ear.signal(told, number)

        await asyncio.gather(*[tell(ear) for ear in ears], *[handle.result() for handle in handles])


async def churned(url: str, *, factor: int, waves: int, is_snapshot_held: bool) -> list[Seen]:
    """Let so many waves pass over a fresh schema with that fill factor; return what its tables are like."""
    async with connect(url):
        pass  # the schema is made
    place = locate(url, "the server")
    db = await asyncpg.connect(place.dsn, server_settings={"search_path": place.schema})
    try:
        for table in UPDATED:
            await db.execute(f"ALTER TABLE {table} SET (fillfactor = {factor})")
        async with old_snapshot(place.dsn, is_held=is_snapshot_held):
            for _ in range(waves):
                await wave(url)
                await until_told(db)
                before = await sizes(db)
                await vacuum(db)
        await vacuum(db)
        return await seen(db, before)
    finally:
        await db.close()


@asynccontextmanager
async def old_snapshot(dsn: str, *, is_held: bool = True) -> AsyncIterator[None]:
    """Hold one for the block, as a long report or a forgotten session does: nothing that dies meanwhile can be removed."""
    if not is_held:
        yield
        return
    holder = await asyncpg.connect(dsn)
    try:
        async with holder.transaction(isolation="repeatable_read"):
            await holder.fetchval("SELECT count(*) FROM pg_class")
            yield
    finally:
        await holder.close()


async def until_told(db: Any) -> None:
    """Sessions count for themselves, and tell when they end: wait for the last of them."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND backend_xmin IS NULL"
    while await db.fetchval(others):  # noqa: ASYNC110  # nothing tells of it
        await asyncio.sleep(0.02)


async def vacuum(db: Any) -> None:
    for table in UPDATED:
        await db.execute(f"VACUUM {table}")


async def sizes(db: Any) -> dict[str, tuple[int, int]]:
    """Return the bytes of each table's pages, and of its indexes' pages."""
    rows = await db.fetch(
        "SELECT name, pg_relation_size(name::regclass) AS own, pg_indexes_size(name::regclass) AS indexes FROM unnest($1::text[]) AS name",
        UPDATED,
    )
    return {row["name"]: (row["own"], row["indexes"]) for row in rows}


async def seen(db: Any, before: dict[str, tuple[int, int]]) -> list[Seen]:
    """Return what the server has counted, and the sizes before the last VACUUM and now."""
    after = await sizes(db)
    rows = await db.fetch(
        """SELECT relname, n_tup_ins, n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
        WHERE schemaname = current_schema() AND relname = ANY ($1::text[]) ORDER BY array_position($1::text[], relname::text)""",
        UPDATED,
    )
    return [
        Seen(
            table=table, live=await db.fetchval(f"SELECT count(*) FROM {table}"),  # noqa: S608  # our own names
            inserted=inserted, updated=updated, hot=hot,
            bytes_before=before[table][0], index_bytes_before=before[table][1],
            bytes_after=after[table][0], index_bytes_after=after[table][1],
        )
        for table, inserted, updated, hot in rows
    ]  # fmt: skip


# ─ when to clean up ──


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What the table of runs comes to when it is cleaned up late or soon; a claim takes 50 runs."""

    dead_most: int
    vacuums: int
    index_bytes_most: int
    ready_bytes_most: int  # of the index that claims walk
    pages_a_run: float  # looked at, from start to close


async def kept(url: str, *, threshold: int, scale: float, closed: int, runs: int) -> Kept:
    """Let runs come and go beside closed ones; VACUUM whenever as many rows are dead as those settings allow."""
    place = locate(url, "the server")
    dead = most = ready = indexes = vacuums = 0
    async with Side.of(url) as side:
        await fill(url, closed)
        db = await asyncpg.connect(place.dsn, server_settings={"search_path": place.schema})
        try:
            await vacuum(db)
            began = await _pages(db)
            for done in range(0, runs, A_CYCLE):
                await side.cycle(A_CYCLE)
                dead += 2 * A_CYCLE  # claimed and closed: none of it in place
                most = max(most, dead)
                now = await db.fetchrow(
                    "SELECT pg_indexes_size('run') AS indexes, pg_relation_size('run_ready') AS ready"
                )
                indexes, ready = max(indexes, now["indexes"]), max(ready, now["ready"])
                if dead > threshold + scale * (closed + done):
                    await vacuum(db)
                    dead, vacuums = 0, vacuums + 1
        finally:
            await db.close()
    db = await asyncpg.connect(place.dsn, server_settings={"search_path": place.schema})
    try:
        await until_told(db)
        pages = (await _pages(db) - began) / runs
    finally:
        await db.close()
    return Kept(
        dead_most=most, vacuums=vacuums, index_bytes_most=indexes, ready_bytes_most=ready, pages_a_run=pages
    )


async def _pages(db: Any) -> int:
    """Return how many pages of the runs, and of their indexes, have been looked at."""
    return int(
        await db.fetchval(
            """SELECT heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read FROM pg_statio_user_tables
            WHERE schemaname = current_schema() AND relname = 'run'"""
        )
    )


# ─ the command line ──


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.churn", description=__doc__)
    parser.add_argument("what", choices=("factors", "vacuum"))
    parser.add_argument("--waves", type=int, default=4)
    parser.add_argument("--factors", type=int, nargs="+", default=FACTORS)
    options = parser.parse_args(arguments)
    server = Server(find_binaries(), {**SERVER_SETTINGS, "autovacuum": "off"})
    try:
        if options.what == "vacuum":
            vacuums(server)
        else:
            for is_held in (False, True):
                factors(server, options.factors, options.waves, is_held=is_held)
    finally:
        server.remove()
    return 0


def factors(server: Server, candidates: Sequence[int], waves: int, *, is_held: bool) -> None:
    print(f"\n{'with' if is_held else 'without'} an old snapshot, {waves} waves\n{HEADING}")
    lines = []
    for factor in candidates:
        url = in_schema(server.url, f"churn_{factor}_{int(is_held)}")
        found = asyncio.run(churned(url, factor=factor, waves=waves, is_snapshot_held=is_held))
        lines += [(UPDATED.index(one.table), shown(one, factor)) for one in found]
    for _, line in sorted(lines, key=lambda one: one[0]):
        print(line, flush=True)


def vacuums(server: Server) -> None:
    print(
        "| threshold, scale | dead rows, at most | vacuums | indexes of run | index of ready runs | pages a run |"
    )
    print("|---|---|---|---|---|---|")
    for number, (threshold, scale) in enumerate(VACUUMED):
        url = in_schema(server.url, f"kept_{number}")
        one = asyncio.run(kept(url, threshold=threshold, scale=scale, closed=CLOSED, runs=COMING))
        print(
            f"| {threshold}, {scale} | {one.dead_most:,} | {one.vacuums} | {one.index_bytes_most / 1048576:.1f} MiB "
            f"| {one.ready_bytes_most / 1024:,.0f} KiB | {one.pages_a_run:.1f} |",
            flush=True,
        )


HEADING: Final = (
    "| table | fill factor | live rows | updates | HOT | table, indexes before the VACUUM | after |\n"
    "|---|---|---|---|---|---|---|"
)


def shown(one: Seen, factor: int) -> str:
    hot = "" if one.hot_share is None else f"{one.hot_share:.0%}"
    before, after = (
        f"{table / 1024:,.0f}, {indexes / 1024:,.0f} KiB"
        for table, indexes in (
            (one.bytes_before, one.index_bytes_before),
            (one.bytes_after, one.index_bytes_after),
        )
    )
    return f"| {one.table} | {factor} | {one.live:,} | {one.updated:,} | {hot} | {before} | {after} |"


if __name__ == "__main__":
    sys.exit(main())
