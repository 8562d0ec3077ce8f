"""From a URL to an opened store: the one place that imports a database package, and only when asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

from durable.errors import DefinitionError
from durable.seams import Clock, ServerClock, SystemClock, ThreadExecutor
from durable.store.contract import Store
from durable.store.records import PendingMigration, Schema

POSTGRES: Final = ("postgresql://", "postgres://")
Durability = Literal["full", "process", "off"]
T = TypeVar("T")


# The password of a URL ends at its last @: one that is not percent-encoded may hold any sign before that.
_AUTHORITY: Final = re.compile(r"(://[^:/@?#]*):.*@(?=[^@]*$)", re.S)
# Names of parameters that hold secrets, in a URL's query or in a `key=value` string.
_SECRET: Final = re.compile(
    r"""(?i)([a-z_]*(?:password|passwd|pwd|secret|token)\s*=\s*)('(?:[^'\\]|\\.)*'|"[^"]*"|[^&\s]*)"""
)


def masked(url: str) -> str:
    """Return the URL (or `key=value` string) with its password replaced by `***`. Rather hides too much than too little."""
    return _SECRET.sub(r"\1***", _AUTHORITY.sub(r"\1:***@", url))


def clock_for(url: str) -> Clock:
    """Return the clock that decides due times in the database of `url`: this machine's for a file, the server's for a server."""
    return ServerClock() if normalised(url).startswith(POSTGRES) else SystemClock()


def normalised(url: str) -> str:
    """Return `sqlite:///…` or `postgresql://…` for what a person may write, a bare path included; raise `DefinitionError`."""
    if not isinstance(url, str):
        raise DefinitionError(
            f"a database is named by text (sqlite:///file.db, a path, postgresql://host/database), not {url!r}"
        )
    if url.startswith(POSTGRES):
        return "postgresql://" + url.split("://", 1)[1]
    if url.startswith("sqlite:"):
        if not url.startswith("sqlite:///"):
            raise DefinitionError(
                f"a SQLite URL is sqlite:///relative.db or sqlite:////absolute.db, not {masked(url)!r}"
            )
        return url
    if "://" in url:
        raise DefinitionError(
            f"no store for {masked(url)!r}: use sqlite:///file.db, a path, or postgresql://host/database"
        )
    return f"sqlite:///{url}"


async def open_store(
    url: str, *, durability: Durability = "full", clock: Clock | None = None, create: bool = True
) -> Store:
    """Open the database behind `url`, creating and migrating it when needed (`create=False`: it must exist)."""
    url = normalised(url)
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        if path in ("", ":memory:"):
            raise DefinitionError(
                "an in-memory database cannot be shared by threads and processes: name a file"
            )
        from durable.store.sqlite.store import SqliteStore

        return await SqliteStore.open(
            _file(path), durability=durability, clock=clock or SystemClock(), create=create
        )
    from durable.store.postgres.location import locate
    from durable.store.postgres.store import PostgresStore

    return await PostgresStore.open(
        locate(url, masked(url)), durability=durability, clock=clock or clock_for(url), create=create
    )


async def read_schema(url: str) -> Schema:
    """Return the schema of an existing database, without bringing it up to date."""
    url = normalised(url)
    if url.startswith(POSTGRES):
        from durable.store.postgres import schema
        from durable.store.postgres.location import locate

        return await schema.read_schema(locate(url, masked(url)))
    database = _file_of(url)
    from durable.store.sqlite import maintenance

    return await _in_thread(lambda: maintenance.read_schema(database))


async def read_pending_migrations(url: str) -> list[PendingMigration]:
    """Return what opening an existing database would run, in order, without running it."""
    url = normalised(url)
    if url.startswith(POSTGRES):
        from durable.store.postgres import schema
        from durable.store.postgres.location import locate

        return await schema.pending_migrations(locate(url, masked(url)))
    database = _file_of(url)
    from durable.store.sqlite import maintenance

    return await _in_thread(lambda: maintenance.pending_migrations(database))


def _file_of(url: str) -> Path:
    return _file(url.removeprefix("sqlite:///"))


async def _in_thread(look: Callable[[], T]) -> T:
    executor = ThreadExecutor(1, name="durable-schema")
    try:
        return await executor.submit(look)
    finally:
        executor.close()


def _file(path: str) -> Path:
    """Return the path made absolute: a store outlives changes of the working directory."""
    return Path(path).absolute()
