"""One suite for every store: a test takes `store`, and runs once for each database there is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from durable.store.contract import Store

sys.path.insert(0, str(Path(__file__).parent))

from store_steps import opened

Opener = Callable[[], Awaitable[Store]]


@pytest.fixture
async def opener(url: str) -> AsyncIterator[Opener]:
    """Opens stores on the same database, as other processes would; all are closed at the end."""
    stores: list[Store] = []

    async def another() -> Store:
        stores.append(await opened(url))
        return stores[-1]

    yield another
    for one in stores:
        await one.close()


@pytest.fixture
async def store(opener: Opener) -> Store:
    return await opener()


@pytest.fixture
def database(url: str) -> Path:
    """The file behind a SQLite store: a test that takes it runs on SQLite only."""
    return Path(url.removeprefix("sqlite:///"))
