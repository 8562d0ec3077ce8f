"""A database per test, without flushing; the default engine pointed at it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

import durable
from durable import Client
from tests.support.workers import no_durability

# A machine that is slow for a moment fails no test.
hypothesis.settings.register_profile("durable", deadline=None)
hypothesis.settings.load_profile("durable")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The address of a database that does not exist yet."""
    return f"sqlite:///{tmp_path / 'runs.db'}"


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    """An open client of an empty database."""
    async with no_durability(url) as client:
        yield client


@pytest.fixture
def embedded(url: str) -> Iterator[str]:
    """The default engine of this process uses the database of this test; its address."""
    durable.configure(url, durability="off")
    yield url
    durable.configure()
