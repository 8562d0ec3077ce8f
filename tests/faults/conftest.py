"""A Postgres to be hurt: one of this room's own, and a proxy before it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.conftest import without_server
from tests.support.postgres import NoServer, Server, find_binaries, in_schema
from tests.support.proxy import Proxy

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def victim() -> Iterator[Server]:
    """A server that tests may stop, flood and misconfigure. Few connections, so that they can be used up."""
    try:
        server = Server(find_binaries(), {"max_connections": "60", "superuser_reserved_connections": "5"})
    except NoServer as missing:
        without_server(str(missing))
    server.sql("CREATE ROLE app LOGIN", "CREATE DATABASE runs OWNER app")
    yield server
    server.remove()


@pytest.fixture
def proxy(victim: Server) -> Iterator[Proxy]:
    proxy = Proxy(victim.port)
    yield proxy
    proxy.close()


@pytest.fixture
def schema() -> str:
    return f"f{os.getpid()}_{next(_numbers)}"


@pytest.fixture
def direct(victim: Server, schema: str) -> str:
    """The way that no proxy is on, as a role without any privilege but its own database."""
    return in_schema(f"postgresql://app@127.0.0.1:{victim.port}/runs", schema)


@pytest.fixture
def through(proxy: Proxy, schema: str) -> str:
    return in_schema(f"postgresql://app@127.0.0.1:{proxy.port}/runs", schema)
