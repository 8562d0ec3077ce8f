"""One suite for every store: a test takes `store`, and runs once for each database there is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from durable.store.contract import Store
from durable.store.opening import open_store

sys.path.insert(0, str(Path(__file__).parent))

STORES = ("sqlite",)

Opener = Callable[[], Awaitable[Store]]


@pytest.fixture(params=STORES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that does not exist yet."""
    assert request.param == "sqlite"
    return f"sqlite:///{tmp_path / 'durable.db'}"


@pytest.fixture
async def opener(url: str) -> AsyncIterator[Opener]:
    """Opens stores on the same database, as other processes would; all are closed at the end."""
    opened: list[Store] = []

    async def another() -> Store:
        opened.append(await open_store(url, durability="off"))
        return opened[-1]

    yield another
    for one in opened:
        await one.close()


@pytest.fixture
async def store(opener: Opener) -> Store:
    return await opener()


@pytest.fixture
def database(url: str) -> Path:
    """The file behind a SQLite store."""
    return Path(url.removeprefix("sqlite:///"))
