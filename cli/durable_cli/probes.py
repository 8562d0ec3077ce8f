"""`--health`: a server of two pages for whoever asks whether a worker lives (/healthz) and takes work (/readyz).

Answers GET and HEAD of those two, and nothing else; tells numbers and names of queues, no run and no payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import click

from durable_cli.output import json_text
from durable_cli.problems import Problem

REQUEST_BYTES_MAX: Final = 8192
REQUEST_SECONDS: Final = 5.0
ASKERS_MAX: Final = 50
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}

Page = Callable[[], Awaitable[tuple[bool, dict[str, Any]]]]


class Address(NamedTuple):
    """Where to listen."""

    host: str
    port: int


def address_option(text: str) -> Address:
    """Return the address of `host:port`, `:port` or `port`; the host is 127.0.0.1 unless it is named."""
    host, _, port = text.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or not 0 <= int(port) <= 65535:
        raise click.BadParameter(f"{text!r} is no address; write 127.0.0.1:8081, or :8081")
    return Address(host or "127.0.0.1", int(port))


@asynccontextmanager
async def answering(address: Address, pages: Mapping[str, Page]) -> AsyncIterator[Address]:
    """Answer with the pages while the block runs; yield the address, with the port that was found for port 0."""
    askers = asyncio.Semaphore(ASKERS_MAX)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with askers, asyncio.timeout(REQUEST_SECONDS):
                writer.write(await _response(await reader.readuntil(b"\r\n\r\n"), pages))
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever asked has gone, or asks for something else
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(answer, *address, limit=REQUEST_BYTES_MAX)
    except OSError as error:
        raise Problem(f"cannot listen on {address.host}:{address.port}: {error.strerror or error}") from error
    async with server:
        yield Address(address.host, server.sockets[0].getsockname()[1])


async def _response(request: bytes, pages: Mapping[str, Page]) -> bytes:
    words = request.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return _told(400, {"status": "bad request"}, is_head=False)
    method, path, _ = words
    is_head = method == "HEAD"
    page = pages.get(path.partition("?")[0])
    if page is None:
        return _told(404, {"status": "not found", "pages": sorted(pages)}, is_head=is_head)
    if method not in ("GET", "HEAD"):
        return _told(405, {"status": "method not allowed"}, is_head=False)
    is_well, body = await page()
    return _told(200 if is_well else 503, body, is_head=is_head)


def _told(code: int, body: dict[str, Any], *, is_head: bool) -> bytes:
    data = (json_text(body) + "\n").encode()
    head = (
        f"HTTP/1.1 {code} {_REASONS[code]}\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if is_head else data)
