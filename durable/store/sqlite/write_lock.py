"""Who writes next, between processes: two advisory locks in the side directory, taken before BEGIN IMMEDIATE.

SQLite alone lets one process starve for seconds. Writers pass a turnstile: whoever holds it waits for the gate alone, and
whoever just wrote has to queue at the turnstile again. There the longer somebody has waited, the more often he looks: of
those who are there when it opens, the one who has waited longest is the likeliest to pass. A writer in a hurry (inline, on a
loop thread) tries the gate only and looks at the turnstile every few milliseconds: if somebody waits there, it queues, too.

`flock`, released explicitly: descriptors of one process exclude each other, so that a heartbeat thread and the loop are two
writers like any others. The locks are manners, not safety; SQLite's own lock decides.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from durable.errors import StoreError
from durable.seams import Clock

_PATIENCE: Final = 0.00005  # a pause at the turnstile (seconds) times what was waited before it


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
        if not self._poll(self._turnstile, clock, deadline, pause_in_queue):
            return False
        try:
            return self._poll(self._gate, clock, deadline, _pause_before_gate)
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

    def _poll(self, descriptor: int, clock: Clock, deadline: float, pause: Callable[[float], float]) -> bool:
        begin = 0.0
        while not _try(descriptor):
            now = clock.monotonic()
            if now >= deadline or self._stopped.is_set():
                return False
            begin = begin or now
            self._stopped.wait(pause(now - begin))
        return True


def pause_in_queue(waited: float) -> float:
    """Return how long (seconds) to pause at the turnstile: the less, the longer one has waited."""
    return 0.001 if waited < 0.05 else max(0.0002, _PATIENCE / waited)


def _pause_before_gate(waited: float) -> float:
    """Most writes are over in a moment."""
    return 0.00005 if waited < 0.002 else 0.0005 if waited < 0.012 else 0.002


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
