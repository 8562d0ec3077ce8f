"""From a URL to an opened store: the one place that imports a database package, and only when asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from durable.errors import DefinitionError, StoreError
from durable.seams import Clock, SystemClock, ThreadExecutor
from durable.store.contract import Store
from durable.store.records import Schema

Durability = Literal["full", "process", "off"]


def masked(url: str) -> str:
    """Return the URL with its password replaced by `***`."""
    return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", url)


def normalised(url: str) -> str:
    """Return `sqlite:///…` or `postgresql://…` for what a person may write, a bare path included."""
    if url.startswith(("postgresql://", "postgres://")):
        return "postgresql://" + url.split("://", 1)[1]
    if url.startswith("sqlite:"):
        if not url.startswith("sqlite:///"):
            raise DefinitionError(
                f"a SQLite URL is sqlite:///relative.db or sqlite:////absolute.db, not {masked(url)!r}"
            )
        return url
    if "://" in url:
        raise DefinitionError(f"no store for {masked(url)!r}: use sqlite:///file.db or a path")
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
    raise StoreError(f"{masked(url)}: this version stores runs in SQLite only; use sqlite:///file.db")


async def read_schema(url: str) -> Schema:
    """Return the schema of an existing database, without bringing it up to date."""
    url = normalised(url)
    if not url.startswith("sqlite:///"):
        raise StoreError(f"{masked(url)}: this version stores runs in SQLite only; use sqlite:///file.db")
    from durable.store.sqlite import maintenance

    executor = ThreadExecutor(1, name="durable-schema")
    try:
        return await executor.submit(lambda: maintenance.read_schema(_file(url.removeprefix("sqlite:///"))))
    finally:
        executor.close()


def _file(path: str) -> Path:
    """Return the path made absolute: a store outlives changes of the working directory."""
    return Path(path).absolute()
