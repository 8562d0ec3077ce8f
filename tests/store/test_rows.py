"""Append-only rows of patterns: by key, in order, with compare-and-set."""

from __future__ import annotations

import asyncio

import pytest

from durable import StoreError
from durable.store.contract import Store
from tests.store.conftest import Opener

NOW = 1_700_000_000_000_000


async def rows_of(store: Store, key: str, *, after: int = 0, limit: int = 100) -> list[bytes]:
    return await store.read_rows("moves", key, after=after, limit=limit)


async def test_rows_are_read_as_they_were_appended(store: Store) -> None:
    """By key, in order, in pages; before the first append there is nothing, not even a table."""
    assert await rows_of(store, "a") == []

    assert await store.append_rows("moves", "a", after=0, rows=[b"1", b"2"], now_us=NOW)
    assert await store.append_rows("moves", "a", after=2, rows=[b"\x00\xff"], now_us=NOW)
    assert await store.append_rows("moves", "b", after=0, rows=[b"other"], now_us=NOW)
    assert await store.append_rows("moves", "c", after=0, rows=[], now_us=NOW)

    assert await rows_of(store, "a") == [b"1", b"2", b"\x00\xff"]
    assert await rows_of(store, "a", after=1, limit=1) == [b"2"]
    assert await rows_of(store, "b") == [b"other"]
    assert await store.read_rows("other_table", "a", after=0, limit=100) == []


@pytest.mark.parametrize("after", [0, 1, 3])
async def test_nothing_is_appended_behind_another_number_of_rows(store: Store, after: int) -> None:
    """Whoever believed something else is told, and nothing is written."""
    assert await store.append_rows("moves", "a", after=0, rows=[b"1", b"2"], now_us=NOW)

    assert not await store.append_rows("moves", "a", after=after, rows=[b"x", b"y"], now_us=NOW)

    assert await rows_of(store, "a") == [b"1", b"2"]


async def test_of_many_that_append_at_once_one_is_written(opener: Opener) -> None:
    """From connections of their own, as processes have them; the first makes the table."""
    stores = [await opener() for _ in range(4)]

    written = await asyncio.gather(
        *(
            store.append_rows("moves", "a", after=0, rows=[b"%d" % number], now_us=NOW)
            for number, store in enumerate(stores)
        )
    )

    assert written.count(True) == 1
    assert len(await rows_of(stores[0], "a")) == 1


@pytest.mark.stores("sqlite")  # on a server all names share one table of their own
async def test_a_table_of_something_else_is_not_touched(store: Store) -> None:
    """It has other columns: the store says so."""
    with pytest.raises(StoreError):
        await store.append_rows("run", "a", after=0, rows=[b"1"], now_us=NOW)
