"""Append-only tables of patterns: rows by key, in order, with compare-and-set. Knows nothing of runs."""

from __future__ import annotations

from collections.abc import Sequence

from durable.store.postgres.faults import KeyTaken
from durable.store.postgres.opened import Opened


class PatternRows(Opened):
    """The verbs about rows of patterns."""

    async def append_rows(
        self, table: str, key: str, *, after: int, rows: Sequence[bytes], now_us: int
    ) -> bool:
        self._require_writable()
        values = {"name": table, "key": key, "after": after, "now_us": self._given(now_us)}
        try:
            written = await self._database.fetch("append_rows", **values, rows=list(rows))
        except KeyTaken:
            return False
        if rows:
            return bool(written)
        return bool(await self._database.value("count_rows", name=table, key=key) == after)

    async def read_rows(self, table: str, key: str, *, after: int, limit: int) -> list[bytes]:
        found = await self._look("read_rows", name=table, key=key, after=after, count=limit)
        return [row["data"] for row in found]
