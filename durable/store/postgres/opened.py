"""A schema, opened: its connections, and the ways to write and to read through them. Knows none of the verbs.

Connections: a small pool for everything, one that listens, and one in the heartbeat's thread. Due times and leases are decided by
the server's clock; the `clock` of the opener learns it, so that what workers and clients compute agrees with it. An opener that
brings a clock of its own (tests do) owns due times instead; leases are the server's in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, Self, TypeVar

from durable.errors import StoreBusyError, StoreError
from durable.seams import Clock, ServerClock, ThreadExecutor, pause
from durable.store import forks
from durable.store.postgres import schema
from durable.store.postgres.claiming import LookOut
from durable.store.postgres.connection import FENCES, Database, FenceSlots, Session
from durable.store.postgres.heartbeat import Heartbeat
from durable.store.postgres.location import Place
from durable.store.postgres.wakeups import Wakeups
from durable.store.records import (
    Verdict,
)
from durable.store.refusals import CLOSED, FORKED

T = TypeVar("T")

LAST_BEAT_SECONDS: Final = 3.0  # for saying that workers which were not retired are gone
PATIENCE_SECONDS: Final = 30.0  # how long callers ride over a server that restarts
CLOCK_SAMPLES: Final = 3


class Opened:
    """What every room of verbs stands on: one schema, opened on one event loop."""

    def __init__(self, database: Database, *, clock: Clock, durability: str, unwritable: str) -> None:
        self.url = database.shown
        self._database = database
        self._clock = clock
        self._durability = durability
        self._unwritable = unwritable
        self._slots = FenceSlots(FENCES)
        self._heartbeat = Heartbeat(database)
        self._wakeups = Wakeups(database, asyncio.get_running_loop())
        self._workers: set[int] = set()  # registered here, not retired
        self._writing: set[asyncio.Task[list[Verdict]]] = set()
        self._look_outs: dict[tuple[int, str | None], LookOut] = {}  # by worker and queue; None: for messages
        self._looking_back: dict[tuple[int, str], asyncio.Task[None]] = {}  # by worker and queue
        self._skipped: set[int] = set()  # runs whose close met somebody's open transaction
        self._gone: str | None = None  # why the store cannot be used any more
        forks.track(self)

    @classmethod
    async def open(cls, place: Place, *, durability: str = "full", clock: Clock, create: bool = True) -> Self:
        """Connect; create and migrate the schema if needed. On a standby, and for a role without rights to write, read only."""
        database = Database(place, durability=durability, name="durable")
        try:
            server = await database.probe()
            if server["is_standby"]:
                unwritable = "the server is a standby; opened for reading, nothing was written"
                await schema.require_current(database)
            else:
                unwritable = ""
                await schema.migrate(database, create=create)
            if isinstance(clock, ServerClock):
                await _set_clock(clock, database)
        except BaseException:
            await database.close()
            raise
        return cls(database, clock=clock, durability=durability, unwritable=unwritable)

    async def close(self) -> None:
        """Give back every connection. Idempotent. Workers that were not retired can be rescued at once."""
        if self._gone is not None:
            return
        self._gone = CLOSED
        forks.forget(self)
        await self._settle()
        looking_back = list(self._looking_back.values())
        for looking in looking_back:
            looking.cancel()
        if looking_back:
            await asyncio.wait(looking_back)
        await self._wakeups.close()
        if self._workers:
            try:
                async with asyncio.timeout(LAST_BEAT_SECONDS):
                    await self._database.fetch("expire_beat", workers=list(self._workers))
            except (StoreError, TimeoutError):
                pass  # their leases run out by themselves
        executor = ThreadExecutor(1, name="durable-closing")
        try:
            await asyncio.shield(executor.submit(self._heartbeat.close))
        finally:
            executor.close()
            await self._database.close()

    def abandon(self) -> None:
        """In a forked child: refuse every use, close no connection."""
        self._gone = FORKED
        self._wakeups.abandon()
        self._heartbeat.abandon()
        self._database.abandon()

    async def _settle(self) -> None:
        """Wait until nothing of ours is on its way to the server."""
        if self._writing:
            await asyncio.wait(set(self._writing))

    # ─ being told ──

    def subscribe(self, worker_id: int | None, on_change: Callable[[], None]) -> Callable[[], None]:
        """Workers are told of work, others of runs that have ended, too."""
        self._require_usable()
        return self._wakeups.subscribe(on_change, for_ends=worker_id is None)

    # ─ time ──

    def _given(self, now_us: int | None = None) -> int | None:
        """The time to act by: the server's own (None), unless the opener brought a clock."""
        if isinstance(self._clock, ServerClock):
            return None
        return self._clock.now_us() if now_us is None else now_us

    # ─ ways to read ──

    async def _read(self, name: str, /, **parameters: object) -> list[Any]:
        self._require_usable()
        return await self._database.fetch(name, **parameters)

    async def _look(self, name: str, /, **parameters: object) -> list[Any]:
        """Read for a caller who has no loop of his own to try again: ride over a restart."""
        return await self._patiently(lambda: self._read(name, **parameters))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat what may be repeated, reads and writes that are recognised, while the server is away."""
        deadline, wait = self._clock.monotonic() + PATIENCE_SECONDS, 0.02
        while True:
            try:
                return await call()
            except StoreBusyError:
                if self._gone is not None or self._clock.monotonic() + wait > deadline:
                    raise
            await pause(wait)
            wait = min(wait * 2, 1.0)

    # ─ ways to write ──

    async def _write(self, work: Callable[[Session], Awaitable[T]]) -> T:
        self._require_writable()
        return await self._database.run(work)

    # ─ refusals ──

    def _require_usable(self) -> None:
        if self._gone is not None:
            raise StoreError(f"{self.url}: {self._gone}")

    def _require_writable(self) -> None:
        self._require_usable()
        if self._unwritable:
            raise StoreError(f"{self.url}: {self._unwritable}")


async def _set_clock(clock: ServerClock, database: Database) -> None:
    """Ask the server for its time; the quickest of a few answers counts."""
    for _ in range(CLOCK_SAMPLES):
        asked_at = clock.monotonic()
        now_us = await database.value("read_instant", now_us=None)
        clock.learn(now_us, asked_at, clock.monotonic())
