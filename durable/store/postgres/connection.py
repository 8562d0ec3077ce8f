"""Connections: a small pool of our own, and how a transaction is made on one of them.

Two ways, decided once per store. *Direct*: settings come with the connection, statements are prepared and kept, and one that
stands alone is its own transaction: one round trip. Through a *pooler* in transaction mode nothing outlives a transaction:
each one begins explicitly, says its settings itself, and no statement is kept. A pooler is recognised by the process number
that it makes up for us, or named in the URL.

READ COMMITTED is said explicitly in both (P18). A function that the server undid for a collision or a deadlock is repeated as
a whole. A connection in trouble is dropped, never mended: what its last statement did is found out under a fence (P16).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import asyncpg

from durable.errors import InternalError, StoreError
from durable.seams import pause, spawn
from durable.store.postgres.faults import (
    DRIVER_ERRORS,
    LOST,
    explained,
    explaining,
    is_worth_repeating,
)
from durable.store.postgres.location import Place
from durable.store.statements import Numbered, load_statements, numbered

T = TypeVar("T")

PACKAGE: Final = "durable.store.postgres"
CONNECTIONS_MAX: Final = 8  # of one store, beside the heartbeat's and the listener's
CONNECT_SECONDS: Final = 10.0
STATEMENT_SECONDS: Final = 30.0  # then the statement is cancelled and the caller told that it is busy
REPEATS_MAX: Final = 8
FENCES: Final = 4  # fenced statements of one store under way at once
# Ours in an open transaction that went silent; a stopped client must not hold fences and rows until TCP notices.
_IDLE_MS: Final = "10000"
_SYNCHRONOUS: Final = {"full": None, "process": "off", "off": "off"}
_BEGIN: Final = {
    None: "BEGIN ISOLATION LEVEL READ COMMITTED",
    "full": "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 10000; SET LOCAL jit = off",
    "off": "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = 10000; SET LOCAL jit = off; "
    "SET LOCAL synchronous_commit = off",
}


def statements_for(schema: str) -> dict[str, Numbered]:
    """Return the statements for one schema. Its name was checked: it is nothing but letters, digits and underscores."""
    return {name: numbered(in_schema(sql, schema)) for name, sql in load_statements(PACKAGE).items()}


def in_schema(sql: str, schema: str) -> str:
    """Put the schema in the place of `durable.`, and of `"durable"` where it stands alone."""
    return re.sub(
        r"\bdurable\.|\"durable\"",
        lambda found: f'"{schema}".' if found.group()[-1] == "." else f'"{schema}"',
        sql,
    )


class Session:
    """One connection while somebody uses it. Statements by name, parameters by name."""

    def __init__(self, connection: asyncpg.Connection[Any], database: Database) -> None:
        self.connection = connection
        self.schema = database.place.schema
        self._sql = database.sql

    async def fetch(self, name: str, /, **parameters: object) -> list[Any]:
        """Run a statement and return its rows."""
        statement = self._sql[name]
        if len(parameters) != len(statement.names):
            raise InternalError(f"statement {name!r} takes {statement.names}, not {tuple(parameters)}")
        values = [parameters[one] for one in statement.names]
        rows: list[Any] = await self.connection.fetch(statement.text, *values, timeout=STATEMENT_SECONDS)
        return rows

    async def row(self, name: str, /, **parameters: object) -> Any:
        """Return the first row, or None."""
        rows = await self.fetch(name, **parameters)
        return rows[0] if rows else None

    async def value(self, name: str, /, **parameters: object) -> Any:
        """Return the first column of the first row, or None."""
        rows = await self.fetch(name, **parameters)
        return rows[0][0] if rows else None

    async def execute(self, script: str) -> None:
        """Run a script of ours, without parameters."""
        await self.connection.execute(script, timeout=STATEMENT_SECONDS)


class Database:
    """The connections of one store, on one event loop. At most `size` at once; opened when needed, kept when healthy."""

    def __init__(self, place: Place, *, durability: str, name: str, size: int = CONNECTIONS_MAX) -> None:
        self.place = place
        self.shown = place.shown
        self.is_pooled = place.is_pooled
        self.sql = statements_for(place.schema)
        self._name = name
        self._durability = durability
        self._idle: deque[asyncpg.Connection[Any]] = deque()
        self._lent: set[asyncpg.Connection[Any]] = set()
        self._unwanted: set[asyncpg.Connection[Any]] = set()  # lent, to be closed when they come back
        self.on_left: list[Callable[[], None]] = []  # who else has connections: told when a server is left
        self._room = asyncio.Semaphore(size)
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    # ─ transactions ──

    async def fetch(self, name: str, /, **parameters: object) -> list[Any]:
        """Run one statement in a transaction of its own; repeat it if the server undid it for a collision."""
        return await self.run(lambda session: session.fetch(name, **parameters), is_single=True)

    async def row(self, name: str, /, **parameters: object) -> Any:
        rows = await self.fetch(name, **parameters)
        return rows[0] if rows else None

    async def value(self, name: str, /, **parameters: object) -> Any:
        rows = await self.fetch(name, **parameters)
        return rows[0][0] if rows else None

    async def run(self, work: Callable[[Session], Awaitable[T]], *, is_single: bool = False) -> T:
        """Run `work` in one transaction and return what it returns; repeat all of it after a collision or deadlock.

        So `work` keeps what it returns to itself until it returns. `is_single` promises that it is one statement. Raises what `work`
        raises (nothing is written then), and errors of ours for the database's.
        """
        for repeats in range(REPEATS_MAX):
            try:
                async with self.session() as session:
                    if is_single and not self.is_pooled:
                        return await work(session)
                    return await self._transaction(session, work)
            except asyncpg.PostgresError as error:
                if not is_worth_repeating(error) or repeats == REPEATS_MAX - 1:
                    raise explained(error, self.shown) from error
            await pause(0.001 * 2**repeats)
        raise InternalError("unreachable: the last repeat returned or raised")

    async def _transaction(self, session: Session, work: Callable[[Session], Awaitable[T]]) -> T:
        await session.execute(self._begin)
        try:
            result = await work(session)
        except Exception:
            await self._roll_back(session)
            raise
        await session.execute("COMMIT")
        return result

    async def _roll_back(self, session: Session) -> None:
        if not session.connection.is_closed():
            try:
                await session.execute("ROLLBACK")
            except DRIVER_ERRORS:
                session.connection.terminate()  # the first error is the one to tell

    @property
    def _begin(self) -> str:
        if not self.is_pooled:
            return _BEGIN[None]
        return _BEGIN["full" if _SYNCHRONOUS[self._durability] is None else "off"]

    # ─ connections ──

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        """A connection for the block. PostgresErrors pass as they are; a lost connection becomes an error of ours."""
        async with self._room:
            connection = await self._take()
            self._lent.add(connection)
            try:
                yield Session(connection, self)
            except asyncpg.PostgresError as error:
                self._give_back(connection)
                if error.sqlstate == "25006":
                    self._leave_server()
                raise
            except LOST as error:
                self._drop(connection, error)
                raise explained(error, self.shown) from error
            except asyncio.CancelledError:
                connection.terminate()  # whatever it is doing goes on, or not: nobody here hears of it
                raise
            except BaseException:
                self._give_back(connection)
                raise
            else:
                self._give_back(connection)
            finally:
                self._lent.discard(connection)
                self._unwanted.discard(connection)

    async def connect(
        self, *, role: str = "", extra: dict[str, str] | None = None
    ) -> asyncpg.Connection[Any]:
        """Open one more connection, outside the pool: the caller closes it. `role` tells operators what it is for."""
        settings = {"application_name": f"{self._name} {role}".strip()[:63]}
        if not self.is_pooled:
            settings |= {
                "default_transaction_isolation": "read committed",
                "idle_in_transaction_session_timeout": _IDLE_MS,
                "jit": "off",
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
            }
            synchronous = _SYNCHRONOUS[self._durability]
            if synchronous is not None:
                settings["synchronous_commit"] = synchronous
            settings |= extra or {}
        with explaining(self.shown):
            return await asyncpg.connect(
                self.place.dsn,
                server_settings=settings,
                timeout=CONNECT_SECONDS,
                statement_cache_size=0 if self.is_pooled else 200,
                max_cached_statement_lifetime=0,
                max_cacheable_statement_size=0,
            )

    async def probe(self) -> Any:
        """Open the first connection, find out whether a pooler stands between, and return what the server says of itself."""
        connection = await _connect_plainly(self.place, self._name)
        try:
            with explaining(self.shown):
                session = Session(connection, self)
                # In a transaction, so that a pooler keeps us on one server connection meanwhile; with our own limits, as the
                # role's may be shorter than a look.
                await session.execute(_BEGIN["full"])
                server = await session.row("look_at_server")
                await session.execute("COMMIT")
            if server["pid"] != connection.get_server_pid():
                self.is_pooled = True
        finally:
            await close_quietly(connection)
        return server

    async def close(self) -> None:
        """Close what is idle; what is in use is dropped when it comes back. Idempotent."""
        self._is_closed = True
        idle, self._idle = self._idle, deque()
        for connection in idle:
            await close_quietly(connection)
        while self._closing:
            await asyncio.wait(set(self._closing))

    def abandon(self) -> None:
        """In a forked child: touch no connection."""
        self._is_closed = True
        self._idle.clear()

    def _leave_server(self) -> None:
        """It takes no writes: perhaps it is no primary any more, and what it says is old. The next statement connects anew."""
        self._unwanted |= self._lent
        idle, self._idle = self._idle, deque()
        for connection in idle:
            connection.terminate()
        for leave in self.on_left:
            leave()

    async def _take(self) -> asyncpg.Connection[Any]:
        if self._is_closed:
            raise StoreError(f"{self.shown}: the store is closed: open it again")
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return await self.connect()

    def _give_back(self, connection: asyncpg.Connection[Any]) -> None:
        if connection.is_closed():
            return
        if self._is_closed or connection in self._unwanted or connection.is_in_transaction():
            connection.terminate()
        else:
            self._idle.append(connection)

    def _drop(self, connection: asyncpg.Connection[Any], error: BaseException) -> None:
        """A value that could not be encoded leaves the connection as it was; anything else ends it."""
        if isinstance(error, ValueError) and not isinstance(error, TimeoutError):
            self._give_back(connection)
        elif isinstance(error, TimeoutError) and not connection.is_closed():
            closing = spawn(close_quietly(connection), name="durable connection closing")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
        else:
            connection.terminate()


async def _connect_plainly(place: Place, name: str) -> asyncpg.Connection[Any]:
    """Connect with nothing that a pooler would refuse."""
    with explaining(place.shown):
        return await asyncpg.connect(
            place.dsn,
            server_settings={"application_name": name[:63]},
            timeout=CONNECT_SECONDS,
            statement_cache_size=0,
        )


async def close_quietly(connection: asyncpg.Connection[Any]) -> None:
    """Say good-bye, for at most a moment; then hang up."""
    try:
        await connection.close(timeout=1.0)
    except asyncio.CancelledError:
        connection.terminate()
        raise
    except DRIVER_ERRORS:
        connection.terminate()


class FenceSlots:
    """The fence rows of a worker, as tokens: a fenced transaction holds one, so that no two lock the same row (P9)."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count))
        self._room = asyncio.Semaphore(count)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[int]:
        async with self._room:
            slot = self._free.pop()
            try:
                yield slot
            finally:
                self._free.append(slot)


def columns(rows: Sequence[Sequence[Any]], count: int) -> list[list[Any]]:
    """Turn rows into `count` columns: what `unnest` takes."""
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(count)]
