"""Who writes next, between processes: two advisory locks in the side directory, taken before BEGIN IMMEDIATE.

SQLite alone lets one process starve for seconds. Writers pass a turnstile: whoever holds it waits for the gate alone, and
whoever just wrote has to queue at the turnstile again. A writer in a hurry (inline, on a loop thread) tries the gate only
and looks at the turnstile every few milliseconds: if somebody waits there, it queues, too.

`flock`, released explicitly: descriptors of one process exclude each other, so that a heartbeat thread and the loop are two
writers like any others. The locks are manners, not safety; SQLite's own lock decides.
"""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import Final

from durable.errors import StoreError
from durable.seams import Clock

_PAUSES: Final = (0.00005,) * 20 + (0.0005,) * 20 + (0.002,)  # seconds between tries; the last one repeats


class WriteLock:
    """One writer's pair of descriptors. Not for two threads at a time."""

    def __init__(self, side: Path) -> None:
        self._gate = open_lock_file(side / "write.lock")
        self._turnstile = open_lock_file(side / "turn.lock")
        self._stopped = threading.Event()

    def try_acquire(self, *, look: bool) -> bool:
        """Take the gate if it is free; with `look`, only if nobody waits at the turnstile either."""
        if look:
            if not _try(self._turnstile):
                return False
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)
        return _try(self._gate)

    def acquire(self, clock: Clock, deadline: float) -> bool:
        """Queue for the gate until `deadline` (monotonic seconds); False if it passed. Blocks: not for a loop thread."""
        if not self._poll(self._turnstile, clock, deadline):
            return False
        try:
            return self._poll(self._gate, clock, deadline)
        finally:
            fcntl.flock(self._turnstile, fcntl.LOCK_UN)

    def release(self) -> None:
        fcntl.flock(self._gate, fcntl.LOCK_UN)

    def wait(self, seconds: float) -> None:
        """Let a writer thread pause; returns early once the lock is closed."""
        self._stopped.wait(seconds)

    def stop(self) -> None:
        """Make a waiting `acquire` give up."""
        self._stopped.set()

    def close(self) -> None:
        self.stop()
        os.close(self._gate)
        os.close(self._turnstile)

    def descriptors(self) -> tuple[int, int]:
        return self._gate, self._turnstile

    def _poll(self, descriptor: int, clock: Clock, deadline: float) -> bool:
        tries = 0
        while not _try(descriptor):
            if clock.monotonic() >= deadline or self._stopped.is_set():
                return False
            self._stopped.wait(_PAUSES[min(tries, len(_PAUSES) - 1)])
            tries += 1
        return True


def open_lock_file(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"{path} cannot be opened ({error.strerror}); check its permissions") from error


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
