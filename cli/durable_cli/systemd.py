"""What a service manager is told (sd_notify): READY, RELOADING, STOPPING, and a WATCHDOG sign of life from the loop.

A datagram to the socket in NOTIFY_SOCKET; without it nothing happens. A manager that cannot be reached is no reason to stop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Mapping


class Manager:
    """The service manager that started this process, if one did and wants to know."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        environ = os.environ if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._watchdog = _watchdog_seconds(environ) if self._address else None

    def ready(self, status: str) -> None:
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """The process is about to start itself anew, under the same process id."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        self._tell("STOPPING=1", f"STATUS={status}")

    async def keep_watch(self) -> None:
        """Give a sign of life twice as often as the manager asks for, as long as this loop turns."""
        while self._watchdog is not None:
            self._tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog / 2)

    def _tell(self, *lines: str) -> None:
        if self._address[:1] not in ("/", "@"):
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto("\n".join(lines).encode(), address)
        except OSError:
            pass


def _watchdog_seconds(environ: Mapping[str, str]) -> float | None:
    """Return the manager's limit, if it means this process."""
    microseconds, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) <= 0 or pid not in ("", str(os.getpid())):
        return None
    return int(microseconds) / 1_000_000
