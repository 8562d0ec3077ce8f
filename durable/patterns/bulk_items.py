"""The items of a bulk operation: where they are kept, and how those of one slice are found.

Few and small items are part of the run's input. Others are drained, chunk by chunk, into rows of the durable database before the run
starts, so that neither the starter nor a worker ever holds all of them. Storing the same items again finds them there; other items have
other digests, which makes another input, and that is a `RunConflictError`. Rows of a start that never came to be lie beside: a chunk is
called by its digest, and by which of the rows of its number it is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final

import msgspec

import durable
from durable import ArgumentsError, DurableError, UndecodableError, make_activity

CHUNK_ITEMS: Final = 1000
INPUT_BYTES_MAX: Final = 64 * 1024  # of items that are part of the run's input
TABLE: Final = "durable_bulk_items"
CACHED: Final = 4  # chunks
Items = Iterable[Any] | AsyncIterable[Any]


class Batch(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The input of a run: its items, or how many there are and what their chunks are called (`row:digest`)."""

    total: int
    items: list[Any] | None = None  # as plain data
    chunks: list[str] = []


class ItemStore:
    """Items of one type, stored and found."""

    def __init__(self, hint: Any) -> None:
        self._codec = codec(list[hint])
        self._cache: OrderedDict[tuple[str, str], list[Any]] = OrderedDict()

    def encode(self, items: list[Any], first: int) -> bytes:
        """Return the bytes of a chunk that was checked against the type. `ArgumentsError`: an item is not of that type."""
        try:
            data: bytes = self._codec.encode(items)
            self._codec.decode(data)
        except DurableError as error:
            place = f"items {first} to {first + len(items) - 1} of a bulk operation"
            raise ArgumentsError(f"{place} cannot be stored as what its processor takes: {error}") from error
        return data

    def restored(self, items: list[Any]) -> list[Any]:
        """Return items of the type, of plain data."""
        found: list[Any] = self._codec.decode(msgspec.json.encode(items))
        return found

    async def store(self, items: Items, run_id: str) -> Batch:
        """Drain the items and keep them for a run."""
        chunks: list[str] = []
        total = 0
        waiting: bytes | None = None  # the first chunk, which may be the only one
        async for chunk in _chunks(items):
            if waiting is not None:
                chunks.append(await self._keep(waiting, run_id, 0))
            data = self.encode(chunk, total)
            total += len(chunk)
            if not chunks and waiting is None:
                waiting = data
                continue
            waiting = None
            chunks.append(await self._keep(data, run_id, len(chunks)))
        if waiting is not None:
            if len(waiting) <= INPUT_BYTES_MAX:
                return Batch(total=total, items=msgspec.json.decode(waiting))
            chunks.append(await self._keep(waiting, run_id, 0))
        return Batch(total=total, chunks=chunks)

    async def store_for_child(self, items: Items, run_id: str | None, name: str) -> tuple[str | None, Batch]:
        """In a workflow, keep the items for a child called `name`; return the child's id, if it must have that one, and its input.

        What is kept is written by an activity, under the id that follows from its key unless one is given: repeated, it finds its own rows.
        """
        chunks: list[bytes] = []
        total = 0
        async for chunk in _chunks(items):
            chunks.append(self.encode(chunk, total))
            total += len(chunk)
        if not chunks:
            return run_id, Batch(total=0)
        if len(chunks) == 1 and len(chunks[0]) <= INPUT_BYTES_MAX:
            return run_id, Batch(total=total, items=msgspec.json.decode(chunks[0]))

        async def keep() -> tuple[str, list[str]]:
            kept_for = run_id or durable.derived_run_id(name)
            assert kept_for is not None, "of this activity"
            return kept_for, [await self._keep(data, kept_for, number) for number, data in enumerate(chunks)]

        child_id, called = await make_activity(keep, name="keep", kind="bulk", result=tuple[str, list[str]])()
        return child_id, Batch(total=total, chunks=called)

    async def _keep(self, data: bytes, run_id: str, number: int) -> str:
        client = await durable.default_client()
        key = _key(run_id, number)
        rows: list[bytes] = []
        while data not in rows and not await client.append_rows(TABLE, key, [data], after=len(rows)):
            rows = await client.read_rows(TABLE, key)
        row = rows.index(data) + 1 if data in rows else len(rows) + 1
        return f"{row}:{hashlib.sha256(data).hexdigest()[:32]}"

    async def chunk(self, run_id: str, number: int, called: str) -> list[Any]:
        """Return a chunk's items; the last few are kept at hand."""
        key = _key(run_id, number)
        found = self._cache.get((key, called))
        if found is None:
            client = await durable.default_client()
            row = int(called.partition(":")[0])
            rows = await client.read_rows(TABLE, key, after=row - 1, limit=1)
            if not rows:
                raise UndecodableError(f"items of run {run_id!r} are missing from table {TABLE}")
            found = self._cache[key, called] = self._codec.decode(rows[0])
            if len(self._cache) > CACHED:
                self._cache.popitem(last=False)
        return found


def codec(hint: Any) -> Any:
    """Return what encodes and decodes values of a type, as results of activities are."""

    async def typed() -> None: ...

    return make_activity(typed, name="typed", result=hint).definition.result


def _key(run_id: str, number: int) -> str:
    return f"{run_id}/{number}"


async def _chunks(items: Items) -> AsyncIterator[list[Any]]:
    chunk: list[Any] = []
    async for item in each(items):
        chunk.append(item)
        if len(chunk) == CHUNK_ITEMS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def each(items: Items) -> AsyncIterator[Any]:
    """Yield the items of an iterable of either kind. TypeError: it is none."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
        return
    if isinstance(items, str | bytes) or not isinstance(items, Iterable):
        raise TypeError(f"a bulk operation takes an iterable of items, not {items!r}")
    source: Iterator[Any] = iter(items)
    for item in source:
        yield item
