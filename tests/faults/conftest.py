"""A Postgres to be hurt: one of this room's own, and a proxy before it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import without_server
from tests.support.postgres import NoServer, Server, find_binaries
from tests.support.proxy import Proxy


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
