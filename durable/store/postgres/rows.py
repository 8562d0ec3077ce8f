"""Append-only tables of patterns: rows by key, in order, with compare-and-set. Knows nothing of runs.

Writers of one key queue for an advisory lock, which their transaction's end releases: the count and the insert belong together.
"""

from __future__ import annotations

from collections.abc import Sequence

from durable.store.postgres.connection import Session


async def append_rows(
    db: Session, table: str, key: str, after: int, rows: Sequence[bytes], now_us: int | None
) -> bool:
    """Append if `key` has exactly `after` rows; return whether it had."""
    if await db.value("find_rows_table", table=table) is None:
        await db.value("lock_rows", name=table)  # two that make it at once would clash in the catalogue
        await db.fetch_of("make_rows", table)
    await db.value("lock_rows", name=f"{table}\n{key}")
    ((count,),) = await db.fetch_of("count_rows", table, key=key)
    if count != after:
        return False
    if rows:
        await db.fetch_of("append_row", table, key=key, after=after, rows=list(rows), now_us=now_us)
    return True


async def read_rows(db: Session, table: str, key: str, after: int, limit: int) -> list[bytes]:
    """Return rows of `key` behind the first `after`; none if there is no such table."""
    if await db.value("find_rows_table", table=table) is None:
        return []
    return [row[0] for row in await db.fetch_of("read_rows", table, key=key, after=after, count=limit)]
