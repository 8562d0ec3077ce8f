"""A database per test, without flushing; the default engine pointed at it.

Tests of stores, workers and clients run once for each kind of database there is. One that is about files says so with
`pytest.mark.stores("sqlite")`, or by taking the file (`database`).
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn

import hypothesis
import pytest

import durable
from durable import Client
from tests.support.postgres import NoPooler, NoServer, Pooler, Server, find_binaries, granted, in_schema
from tests.support.workers import no_durability

# A machine that is slow for a moment fails no test.
hypothesis.settings.register_profile("durable", deadline=None)
hypothesis.settings.load_profile("durable")

KINDS: Final = ("sqlite", "postgres")
POOLED: Final = pytest.param("pgbouncer", marks=pytest.mark.slow)  # the contract through a pooler, too
# The contract runs on both by default; what stands on it, on a server, is part of the long suite (`pytest -m slow`), and
# there it has no more rights than docs/guides/postgres-roles.sql gives a worker.
AS_WORKER: Final = pytest.param("postgres-as-worker", marks=pytest.mark.slow)
SERVER_IS_SLOW: Final = pytest.param("postgres", marks=pytest.mark.slow)
ON_BOTH: Final = ("client", "crash", "patterns", "store", "testing", "worker")
_numbers = itertools.count(1)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "store_kind" not in metafunc.fixturenames:
        return
    here = Path(__file__).parent
    room = metafunc.definition.path.relative_to(here).parts[0]
    marker = metafunc.definition.get_closest_marker("stores")
    kinds: tuple[Any, ...] = KINDS if room in ON_BOTH else KINDS[:1]
    if room == "store":
        kinds = (*KINDS, POOLED, AS_WORKER)
    elif room in ("client", "patterns", "testing", "worker"):
        kinds = ("sqlite", AS_WORKER)
    elif room == "crash":
        kinds = ("sqlite", SERVER_IS_SLOW)
    if marker is not None:
        kinds = marker.args
    elif "database" in metafunc.fixturenames:
        kinds = KINDS[:1]
    metafunc.parametrize("store_kind", kinds, scope="function")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every point of a program to die at is looked at on SQLite, a sample of them on a server, and the rest by hand (`-m long`)."""
    for item in items:
        is_exhaustive = "_any" in item.name.split("[")[0] or "again_and_again" in item.name
        if "postgres" in item.name and (
            (is_exhaustive and "crash" in item.path.parts) or item.get_closest_marker("long_on_postgres")
        ):
            item.add_marker(pytest.mark.long)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A Postgres of our own for this session. Without any: a loud skip, and a failure where that would hide something (CI)."""
    try:
        server = Server(find_binaries())
    except NoServer as missing:
        without_server(str(missing))
    yield server
    server.remove()


@pytest.fixture(scope="session")
def pooler(postgres: Server) -> Iterator[Pooler]:
    """A pgbouncer in transaction mode before it."""
    try:
        pooler = Pooler(postgres)
    except NoPooler as missing:
        pytest.skip(str(missing))  # the distribution's own program: not everywhere to be had
    yield pooler
    pooler.remove()


def without_server(why: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def store_kind(request: pytest.FixtureRequest) -> str:
    """Which database a test runs on; see `pytest_generate_tests`."""
    return str(request.param)


@pytest.fixture
def url(store_kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The address of a database that does not exist yet."""
    if store_kind == "sqlite":
        return f"sqlite:///{tmp_path / 'durable.db'}"
    schema = f"t{os.getpid()}_{next(_numbers)}"
    if store_kind == "pgbouncer":
        return in_schema(request.getfixturevalue("pooler").url, schema)
    if store_kind == "postgres-as-worker":
        return granted(in_schema(request.getfixturevalue("postgres").url, schema), "durable_worker")
    if (given := os.environ.get("DURABLE_TEST_PG")) is not None:
        return in_schema(given, schema)
    return in_schema(request.getfixturevalue("postgres").url, schema)


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
