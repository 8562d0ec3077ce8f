"""Beats: sent from a thread with an event loop and a connection of its own, so that no busy loop holds them up.

The driver speaks asyncio only, and a beat may be asked for by any thread, the worker's own included, which then waits for the
answer. So the caller hands the beat to this thread's loop and blocks, for a bounded time.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import asyncpg

from durable.errors import StoreBusyError, StoreError
from durable.seams import start_thread
from durable.store.postgres.connection import Database, Session, close_quietly
from durable.store.postgres.faults import explained

T = TypeVar("T")

WAIT_SECONDS: Final = 3.0  # then the caller tries again: a beat that waits longer is no sign of life


class Heartbeat:
    """Renews leases. Safe to call from any thread; starts its thread and connects with the first beat."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._guard = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._connection: asyncpg.Connection[Any] | None = None
        self._turn = asyncio.Lock()  # beats of several workers take turns on the one connection
        self._is_closed = False

    def beat(self, worker: int) -> bool:
        """Renew; False if the worker is not alive. `StoreBusyError` if the server did not say so within 3 s."""
        try:
            return self._wait_for(self._beat(worker), WAIT_SECONDS)
        except TimeoutError:
            raise StoreBusyError(
                f"{self._database.shown}: no beat of worker {worker} within {WAIT_SECONDS:g} s; it is tried again"
            ) from None

    def close(self) -> None:
        """Hang up and end the thread. Blocks for a moment at most; idempotent."""
        with self._guard:
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
            self._is_closed = True
        if loop is None or thread is None:
            return
        try:
            asyncio.run_coroutine_threadsafe(self._hang_up(), loop).result(2.0)
        except TimeoutError:
            pass  # the process or the loop ends anyway
        loop.call_soon_threadsafe(loop.stop)
        thread.join(2.0)

    def abandon(self) -> None:
        """In a forked child: there is no thread, and the connection is the parent's."""
        self._is_closed = True
        self._loop = self._thread = None

    def _wait_for(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        with self._guard:
            if self._is_closed:
                work.close()
                raise StoreError(f"{self._database.shown}: the store is closed: open it again")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = start_thread(self._run, name="durable beats")
            loop = self._loop
        answer = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return answer.result(seconds)
        except TimeoutError:
            answer.cancel()
            raise

    def _run(self) -> None:
        loop = self._loop
        assert loop is not None, "the thread is started after its loop is made"
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()

    async def _beat(self, worker: int) -> bool:
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._database.connect(
                    role="beats", extra={"synchronous_commit": "off"}
                )
            try:
                session = Session(self._connection, self._database)
                if self._database.is_pooled:
                    return await self._beat_in_transaction(session, worker)
                return await session.value("beat", worker=worker) is not None
            except asyncio.CancelledError:
                self._connection.terminate()
                raise
            except (
                Exception
            ) as error:  # whatever it is: a beat that raised anything else would end its thread
                self._connection.terminate()  # a new one is cheap
                raise explained(error, self._database.shown) from error

    async def _beat_in_transaction(self, session: Session, worker: int) -> bool:
        await session.execute("BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off")
        renewed = await session.value("beat", worker=worker) is not None
        await session.execute("COMMIT")
        return renewed

    async def _hang_up(self) -> None:
        if self._connection is not None:
            await close_quietly(self._connection)
