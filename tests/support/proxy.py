"""A TCP proxy before a Postgres, that does to connections what networks do. It knows enough of the protocol to lose one reply.

Runs in a thread of its own: a worker's loop may block on a heartbeat that passes through here.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Final

from tests.support.postgres import free_port

_NO_TYPE: Final = (
    80877103,
    80877104,
    80877102,
)  # SSL, GSS and cancel requests: like a startup, without a type byte


class Proxy:
    """Forwards to `port`. What is set on it from any thread counts for the next bytes."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.port = free_port()
        self.refuses = False  # connections are closed at once
        self.is_deaf = False  # nothing of the server's comes through, nobody is told
        self.delay = 0.0  # seconds, each way
        self.marks: tuple[bytes, ...] = ()  # texts in the statements that the next two are about
        self.lost_replies = 0  # how many replies of marked statements are still to be lost
        self.cut_statements = (
            0  # how many marked statements are still to be cut off before the server gets them
        )
        self.done = 0  # how many of both there were
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="proxy")
        self._thread.start()
        self._ready.wait(60)

    def close(self) -> None:
        self.reset()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def reset(self) -> None:
        """Cut all connections."""
        asyncio.run_coroutine_threadsafe(self._reset(), self._loop).result(60)

    async def _reset(self) -> None:
        for link in list(self._links):
            link.cut()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            there = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, (reader, writer), there)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)


class _Link:
    """One connection, both ways, message by message."""

    def __init__(
        self,
        proxy: Proxy,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = client
        self._from_server, self._to_server = server
        self._marked: set[bytes] = set()  # names of prepared statements that are to be hurt
        self._is_losing = False

    async def run(self) -> None:
        ways = [asyncio.ensure_future(self._there()), asyncio.ensure_future(self._back())]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        self.cut()
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)

    def cut(self) -> None:
        for writer in (self._to_client, self._to_server):
            writer.transport.abort()

    async def _there(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await self._from_client.readexactly(4)
                length = int.from_bytes(head, "big")
                body = await self._from_client.readexactly(length - 4)
                await self._send(self._to_server, head + body)
                if int.from_bytes(body[:4], "big") not in _NO_TYPE:
                    break
            while True:
                kind = await self._from_client.readexactly(1)
                head = await self._from_client.readexactly(4)
                body = await self._from_client.readexactly(int.from_bytes(head, "big") - 4)
                if self._is_marked(kind, body):
                    if self._takes("cut_statements"):
                        return
                    if self._takes("lost_replies"):
                        self._is_losing = True
                await self._send(self._to_server, kind + head + body)

    async def _back(self) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                data = await self._from_server.read(65536)
                if not data:
                    return
                if self._is_losing:
                    await self._until_ready(data)
                    return
                if not self._proxy.is_deaf:
                    await self._send(self._to_client, data)

    async def _until_ready(self, data: bytes) -> None:
        """Swallow what the server says until it is done: ReadyForQuery. Outside of a transaction it has committed by then."""
        while data[-6:-1] != b"Z\x00\x00\x00\x05":
            more = await self._from_server.read(65536)
            if not more:
                return
            data = data[-8:] + more

    def _is_marked(self, kind: bytes, body: bytes) -> bool:
        """Whether the message executes a statement whose text has one of the marks."""
        if kind == b"P":
            name, text, *_ = body.split(b"\0")
            if any(mark in text for mark in self._proxy.marks):
                self._marked.add(name)
        elif kind == b"B":
            _, name, *_ = body.split(b"\0", 2)
            return name in self._marked
        elif kind == b"Q":
            return any(mark in body for mark in self._proxy.marks)
        return False

    def _takes(self, what: str) -> bool:
        left = getattr(self._proxy, what)
        if left:
            setattr(self._proxy, what, left - 1)
            self._proxy.done += 1
        return bool(left)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        if self._proxy.delay:
            await asyncio.sleep(self._proxy.delay)
        writer.write(data)
        await writer.drain()
