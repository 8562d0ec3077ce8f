"""Telling each other that something may have changed. Hints only: they may be lost, late or for nothing.

Within a store, subscribers are called on the next turn of the loop. Other processes are told by NOTIFY, always after the commit
and never inside it: NOTIFY takes a lock over the whole server while its transaction commits. However many commits ask for it,
one is under way at a time. There are two channels: *work*, for workers, and *ends*, for those who wait for runs to end.
Where LISTEN is not to be had (through a pooler, or while its connection is away) subscribers are called every so often.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import asyncpg

from durable.errors import StoreError
from durable.seams import SystemRandom, pause, spawn
from durable.store.postgres.connection import Database, close_quietly
from durable.store.postgres.faults import DRIVER_ERRORS

POLL_SECONDS: Final = 0.1  # without LISTEN
RECONNECT_SECONDS: Final = 1.0
ENDS_SECONDS: Final = 0.01  # ends closer together than this are told at once
log = logging.getLogger("durable.store")


class Wakeups:
    """The subscribers of one store. On the loop's thread."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        self._database = database
        self._loop = loop
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._waiters: set[object] = set()  # those of them that wait for ends
        self.name = SystemRandom().run_suffix()  # so that we do not listen to ourselves
        self._listening: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._pending: set[str] = set()  # channels
        self._tells_here = False
        self._is_flushing = False
        self._is_lent = False
        self._is_closed = False
        self._connection: asyncpg.Connection[Any] | None = None
        self.pid: int | None = None  # the server's process that listens for us
        database.on_left.append(self._leave)

    def subscribe(self, on_change: Callable[[], None], *, for_ends: bool) -> Callable[[], None]:
        key = object()
        self._subscribers[key] = on_change
        if for_ends:
            self._waiters.add(key)
        if self._listening is None and not self._is_closed:
            self._listening = self._spawn(self._listen(), "durable listener")

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)
            self._waiters.discard(key)
            if not self._subscribers and self._listening is not None:
                self._listening.cancel()
                self._listening = None

        return unsubscribe

    def tell(self, *, work: bool = False, ends: bool = False) -> None:
        """Something changed: call the subscribers soon. With `work` there is some for others; with `ends` runs have ended."""
        self._tells_here = True
        if work:
            self._pending.add(self._database.place.channel)
        if ends:
            self._pending.add(self._database.place.ends_channel)
        if not self._is_flushing and not self._is_closed:
            self._is_flushing = True
            self._loop.call_soon(self._flush, context=contextvars.Context())

    @contextmanager
    def lend(self) -> Iterator[str | None]:
        """For the block, whose transaction tells other workers itself: the channel; None if somebody tells already, or nobody can listen."""
        if self._is_lent or self._database.is_pooled or not (self._telling is None or self._telling.done()):
            yield None
            return
        self._is_lent = True
        try:
            yield self._database.place.channel
        finally:
            self._is_lent = False

    async def close(self) -> None:
        """Tell what is still to be told, stop listening."""
        self._is_closed = True
        self._subscribers.clear()
        tasks = [task for task in (self._listening,) if task is not None]
        for task in tasks:
            task.cancel()
        if self._telling is not None:
            tasks.append(self._telling)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._pending:
            await self._tell_others()

    def abandon(self) -> None:
        """In a forked child: stay silent, close nothing."""
        self._is_closed = True
        self._subscribers.clear()

    def _flush(self) -> None:
        self._is_flushing = False
        if self._is_closed:
            return
        if self._tells_here:
            self._tells_here = False
            self._call_subscribers()
        if self._pending and (self._telling is None or self._telling.done()):
            self._telling = self._spawn(self._tell_others(), "durable hints")

    def _call_subscribers(self, *, waiters_only: bool = False) -> None:
        for key in self._waiters if waiters_only else self._subscribers:
            self._loop.call_soon(self._call, key, context=contextvars.Context())

    def _call(self, key: object) -> None:
        on_change = self._subscribers.get(key)
        if on_change is not None:  # else it has unsubscribed meanwhile, and hears nothing more
            on_change()

    async def _tell_others(self) -> None:
        while self._pending:
            channels, self._pending = self._pending, set()
            for channel in channels:
                try:
                    await self._database.fetch("notify", channel=channel, sender=self.name)
                except StoreError as error:
                    log.debug("a hint less: %s", error)
            if self._database.place.ends_channel in channels:
                await pause(ENDS_SECONDS)

    async def _listen(self) -> None:
        """Listen as long as there are subscribers; while that does not work, call them every so often."""
        while True:
            try:
                if not self._database.is_pooled:
                    await self._listen_until_lost()
            except (StoreError, *DRIVER_ERRORS) as error:
                log.debug("no listening for the moment: %s", error)
            since = self._loop.time()
            while self._database.is_pooled or self._loop.time() - since < RECONNECT_SECONDS:
                self._call_subscribers()
                await pause(POLL_SECONDS)

    async def _listen_until_lost(self) -> None:
        self._connection = connection = await self._database.connect(role="listener")
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            for channel in (self._database.place.channel, self._database.place.ends_channel):
                await connection.add_listener(channel, self._on_notification)
            self.pid = connection.get_server_pid()
            self._call_subscribers()  # for what was told while nobody listened
            await lost.wait()
        finally:
            self.pid = self._connection = None
            await close_quietly(connection)

    def _leave(self) -> None:
        """The server takes no writes, so it has nothing to tell: listen where the others are."""
        if self._connection is not None:
            self._connection.terminate()

    def _on_notification(self, _connection: object, _pid: int, channel: str, sender: object) -> None:
        if sender != self.name:
            self._call_subscribers(waiters_only=channel == self._database.place.ends_channel)

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        return spawn(work, name=name, context=contextvars.Context())
