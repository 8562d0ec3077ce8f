"""Telling each other that something may have changed. Hints only: they may be lost, late or for nothing.

Within a store, subscribers are called on the next turn of the loop. Other processes get one datagram per live worker, to a
socket in the side directory. Behind both, `PRAGMA data_version` is read while anybody is subscribed: every 50 ms for those that
nobody sends to (clients that wait), four times a second behind the datagrams of workers, whose idling it would double.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import socket
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from durable.errors import StoreError

POLL_SECONDS: Final = 0.05
TOLD_POLL_SECONDS: Final = 0.25  # behind datagrams
_SUN_PATH_BYTES: Final = 100  # a little below the limits of Linux (108) and macOS (104)


class Wakeups:
    """The subscribers of one store, and the sockets of its workers. On the loop's thread."""

    def __init__(
        self,
        side: Path | None,
        loop: asyncio.AbstractEventLoop,
        *,
        read_version: Callable[[], int],
        read_addresses: Callable[[], Iterable[str]],
    ) -> None:
        self._side = side
        self._loop = loop
        self._read_version = read_version
        self._read_addresses = read_addresses
        self._subscribers: dict[object, Callable[[], None]] = {}
        self._untold: set[object] = set()  # those of them whom no datagram reaches
        self._sockets: dict[str, socket.socket] = {}  # by name in the side directory
        self._sender: socket.socket | None = None
        self._directory: int | None = None
        self._version = 0
        self._poll_handle: asyncio.TimerHandle | None = None
        self._tells_here = False
        self._tells_others = False
        self._is_flushing = False
        self._is_closed = False

    def subscribe(self, on_change: Callable[[], None], *, is_told: bool) -> Callable[[], None]:
        """Call `on_change` at changes; `is_told`: a socket of this store's receives what others send."""
        key = object()
        self._subscribers[key] = on_change
        if self._poll_handle is None and not self._is_closed:
            self._version = self._read_version()
        elif self._poll_handle is not None and not is_told and not self._untold:
            self._poll_handle.cancel()  # it is set for later than the new one may wait
        if not is_told:
            self._untold.add(key)
        if (self._poll_handle is None or self._poll_handle.cancelled()) and not self._is_closed:
            self._poll_handle = self._call_later()

        def unsubscribe() -> None:
            self._subscribers.pop(key, None)
            self._untold.discard(key)
            if not self._subscribers and self._poll_handle is not None:
                self._poll_handle.cancel()
                self._poll_handle = None

        return unsubscribe

    def tell(self, *, others: bool) -> None:
        """Something changed: call the subscribers soon, and with `others` send to every other live worker, once a turn."""
        self._tells_here = True
        self._tells_others |= others
        if not self._is_flushing and not self._is_closed:
            self._is_flushing = True
            self._loop.call_soon(self._flush, context=contextvars.Context())

    def listen(self, name: str) -> bool:
        """Open the socket `name` in the side directory; False where there can be none (polling does it then)."""
        if self._side is None or not hasattr(socket, "AF_UNIX"):
            return False
        address = self._address(name)
        if address is None:
            return False
        receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            receiver.setblocking(False)
            receiver.bind(address)
            self._loop.add_reader(receiver, self._drain, receiver)
        except (OSError, NotImplementedError):
            receiver.close()
            return False
        self._sockets[name] = receiver
        return True

    def close_socket(self, name: str) -> None:
        if (receiver := self._sockets.pop(name, None)) is not None:
            if not self._loop.is_closed():
                self._loop.remove_reader(receiver)
            receiver.close()
        self.remove_socket(name)

    def remove_socket(self, name: str) -> None:
        """Remove the socket file of a worker that is gone. `name` comes from the database: it must not lead elsewhere."""
        if self._side is not None and os.sep not in name and name.endswith(".sock"):
            (self._side / name).unlink(missing_ok=True)

    def close(self) -> None:
        self._is_closed = True
        self._subscribers.clear()
        if self._poll_handle is not None:
            self._poll_handle.cancel()
            self._poll_handle = None
        for name in list(self._sockets):
            self.close_socket(name)
        if self._sender is not None:
            self._sender.close()
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None

    def abandon(self) -> None:
        """In a forked child: stay silent, close nothing."""
        self._is_closed = True
        self._subscribers.clear()

    def _flush(self) -> None:
        self._is_flushing = False
        here, others = self._tells_here, self._tells_others
        self._tells_here = self._tells_others = False
        if self._is_closed:
            return
        if here:
            self._call_subscribers()
        if others:
            self._send()

    def _call_subscribers(self) -> None:
        for key in self._subscribers:
            self._loop.call_soon(self._call, key, context=contextvars.Context())

    def _call(self, key: object) -> None:
        on_change = self._subscribers.get(key)
        if on_change is not None:  # else it has unsubscribed meanwhile, and hears nothing more
            on_change()

    def _send(self) -> None:
        try:
            names = set(self._read_addresses()) - self._sockets.keys()
        except StoreError:
            return  # a hint less
        for name in names:
            address = self._address(name)
            if address is None or os.sep in name:
                continue
            if self._sender is None:
                self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._sender.setblocking(False)
            try:
                self._sender.sendto(b"!", address)
            except OSError:
                pass  # full, gone or dead: whoever it was polls, or is rescued

    def _drain(self, receiver: socket.socket) -> None:
        try:
            while receiver.recv(16):
                pass
        except OSError:
            pass  # empty
        self._call_subscribers()

    def _poll(self) -> None:
        self._poll_handle = None
        if self._is_closed or not self._subscribers:
            return
        try:
            version = self._read_version()
        except StoreError:
            version = self._version  # the next verb will tell its caller
        if version != self._version:
            self._version = version
            self._call_subscribers()
        self._poll_handle = self._call_later()

    def _call_later(self) -> asyncio.TimerHandle:
        seconds = POLL_SECONDS if self._untold else TOLD_POLL_SECONDS
        return self._loop.call_later(seconds, self._poll, context=contextvars.Context())

    def _address(self, name: str) -> str | None:
        """Return an address for `name` that fits a socket address, through a descriptor if the path is too long."""
        if self._side is None:
            return None
        path = str(self._side / name)
        if len(os.fsencode(path)) <= _SUN_PATH_BYTES:
            return path
        if sys.platform != "linux":
            return None
        if self._directory is None:
            self._directory = os.open(self._side, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._directory}/{name}"
