"""Workers under test: how they are started, watched and waited for. Nothing here decides what is right.

A worker made by `running_worker` must leave no slot taken, no exception in a callback and no internal error behind, whatever
the test was about: that is checked when it has stopped.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from durable import Client, Retry, Run, RunHandle, Worker, Workflow, connect
from durable.store.postgres.workers import declare_dead as declared_dead
from durable.store.sqlite.store import SqliteStore
from tests.support import postgres

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
AT_ONCE = Retry(initial=0.01, maximum=0.01)  # the default number of attempts, without the default waiting


def no_durability(url: str) -> Client:
    """Return a client that leaves flushing to the operating system."""
    return connect(url, durability="off")


def file_of(client: Client) -> Any:
    """Return what leads to a client's database past the library: its file, or the URL of its schema."""
    if client.url.startswith("sqlite:///"):
        return Path(client.url.removeprefix("sqlite:///"))
    return client.address.url


def through_commit_turns(store: Any) -> None:
    """Have every commit of a store go through `commit_turns`, where a test may stand in its way."""
    store.commit_turns_now = lambda worker_id, commits, now_us: None


async def until(
    condition: Callable[[], T | Awaitable[T]], *, seconds: float = PATIENCE_SECONDS, what: str = ""
) -> T:
    """Wait until `condition()` is true and return what it returned. Ends the test if it never is."""
    try:
        async with asyncio.timeout(seconds):
            while True:
                found = condition()
                value = await found if isinstance(found, Awaitable) else found
                if value:
                    return value
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"did not happen within {seconds:g} s: {what or condition}") from None


async def status_is(run: RunHandle[Any], status: str) -> Run:
    """Wait until a run has a status, and return it as it is then."""

    async def reached() -> Run | None:
        seen = await run.describe()
        return seen if seen.status == status else None

    return await until(reached, what=f"{run} is {status}")  # type: ignore[return-value]  # not None: it was true


async def is_waiting(run: RunHandle[Any], *kinds: str) -> Run:
    """Wait until a run waits for something of these kinds, e.g. "signal"."""

    async def reached() -> Run | None:
        seen = await run.describe()
        return seen if {blocker.kind for blocker in seen.waiting_on} & set(kinds) else None

    return await until(reached, what=f"{run} waits for {kinds}")  # type: ignore[return-value]  # not None: it was true


async def is_released(run: RunHandle[Any]) -> Run:
    """Wait until a run waits and no worker holds it."""

    async def reached() -> Run | None:
        seen = await run.describe()
        return seen if seen.status == "waiting" and seen.worker is None else None

    return await until(reached, what=f"{run} is released")  # type: ignore[return-value]  # not None: it was true


@asynccontextmanager
async def running_worker(
    client: Client, *workflows: Workflow[..., Any] | ModuleType, warm_us: int | None = None, **options: Any
) -> AsyncIterator[Worker]:
    """Run a worker for the length of the block; `warm_us=0` releases whatever only waits, at once."""
    worker = Worker(client, *workflows, **options)
    with faults_noticed() as faults:
        async with worker:
            if warm_us is not None:
                worker.life.driver.feeder.warm_us = warm_us
            yield worker
        await until(
            lambda: not worker.life.performer.running or faults,
            seconds=60,
            what="cancelled activities have unwound",
        )
        assert not faults, "\n".join(faults)
    assert worker.life.performer._free == worker.concurrency, "slots leaked"


@contextmanager
def faults_noticed() -> Iterator[list[str]]:
    """Collect exceptions in callbacks of the loop, and internal errors that were only logged."""
    faults: list[str] = []
    loop = asyncio.get_running_loop()
    previous = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: faults.append(f"in a callback: {context}"))
    handler = _Faults(faults)
    logging.getLogger("durable").addHandler(handler)
    try:
        yield faults
    finally:
        loop.set_exception_handler(previous)
        logging.getLogger("durable").removeHandler(handler)


class _Faults(logging.Handler):
    def __init__(self, faults: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._faults = faults

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "internal error" in text or "InternalError" in text or "eviction failed" in text:
            error = record.exc_info[1] if record.exc_info else None
            self._faults.append(f"{text}: {error!r}")


async def declare_dead(client: Client, worker: Worker) -> int:
    """Do to a worker what others do that think it dead; return the id it had."""
    worker_id = worker.worker_id
    store: Any = client.store
    if isinstance(store, SqliteStore):
        await store._write(lambda db: store._stop_worker(worker_id, None, True, db))
    else:
        await store._write(lambda db: declared_dead(db, worker_id, None))
    return worker_id


def looked_up(database: Path | str, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Read rows past the library, written as for SQLite."""
    if isinstance(database, str):
        return postgres.looked_up(database, postgres.as_postgres(statement), *parameters)
    with closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as db:
        return db.execute(statement, parameters).fetchall()


def tampered(database: Path | str, *statements: str, parameters: tuple[Any, ...] = ()) -> None:
    """Change rows behind the library's back, as a damaged disk or a stranger's script would."""
    if isinstance(database, str):
        postgres.tampered(database, *statements, parameters=parameters)
        return
    with closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            db.execute(statement, parameters)
        for _, sql in triggers:
            db.execute(sql)
        db.execute("COMMIT")


class Calls:
    """Counts what was called, by name, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> int:
        """Note a call and return how many of this name there were, this one included."""
        self.names.append(name)
        return self.names.count(name)

    def of(self, name: str) -> int:
        return self.names.count(name)
