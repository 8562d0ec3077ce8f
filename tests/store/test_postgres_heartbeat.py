"""Beats on a server: whatever goes wrong with one, the thread that asked for it can ask again."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from store_steps import a_worker

from durable.errors import StoreError
from durable.store.postgres.connection import Session

pytestmark = pytest.mark.stores("postgres")


@pytest.mark.parametrize(
    "trouble",
    [
        asyncpg.InternalClientError("another operation is in progress"),
        asyncpg.InterfaceError("the connection is closed"),
        asyncpg.ConnectionDoesNotExistError("closed in the middle"),
        ConnectionResetError("reset"),
        RuntimeError("something else"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
async def test_a_beat_that_fails_is_an_error_of_the_store_and_the_next_one_comes_through(
    store: Any, trouble: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver may raise anything when the server ends a session; a beat that let it through would end the worker's thread."""
    worker = await a_worker(store)
    assert await asyncio.to_thread(store.beat, worker)

    async def fails(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as troubled:
        troubled.setattr(Session, "value", fails)
        with pytest.raises(StoreError):
            await asyncio.to_thread(store.beat, worker)

    assert await asyncio.to_thread(store.beat, worker)
