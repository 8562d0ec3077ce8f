"""Append-only tables of patterns: rows by key, in order, with compare-and-set. Knows nothing of runs."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from durable.store.sqlite.opened import Opened
from durable.store.statements import Statements


class PatternRows(Opened):
    """The verbs about rows of patterns."""

    async def append_rows(
        self, table: str, key: str, *, after: int, rows: Sequence[bytes], now_us: int
    ) -> bool:
        return await self._write(lambda db: append_rows(db, self._sql, table, key, after, rows, now_us))

    async def read_rows(self, table: str, key: str, *, after: int, limit: int) -> list[bytes]:
        with self._reading() as reader:
            return read_rows(reader, self._sql, table, key, after, limit)


def named(sql: Statements, name: str, table: str) -> str:
    """Return a statement for one table. `table` is an identifier: whoever took it from outside has checked it."""
    assert table.isidentifier(), "checked by the client"
    return sql[name].replace("rows_table", table)


def append_rows(
    db: sqlite3.Connection,
    sql: Statements,
    table: str,
    key: str,
    after: int,
    rows: Sequence[bytes],
    now_us: int,
) -> bool:
    """Append if `key` has exactly `after` rows; return whether it had."""
    db.execute(named(sql, "make_rows", table))
    (count,) = db.execute(named(sql, "count_rows", table), {"key": key}).fetchone()
    if count != after:
        return False
    append = named(sql, "append_row", table)
    for number, data in enumerate(rows, after + 1):
        db.execute(append, {"key": key, "number": number, "now_us": now_us, "data": data})
    return True


def read_rows(
    db: sqlite3.Connection, sql: Statements, table: str, key: str, after: int, limit: int
) -> list[bytes]:
    """Return rows of `key` behind the first `after`; none if there is no such table."""
    if db.execute(sql["find_rows_table"], {"table": table}).fetchone() is None:
        return []
    chosen = {"key": key, "after": after, "count": limit}
    return [row[0] for row in db.execute(named(sql, "read_rows", table), chosen)]
