"""Who is alive, without a clock (P10): a lock that dies with its process, and a counter that only a running one moves.

Each worker holds a POSIX lock on a file of its own in the side directory. Whoever can take that lock knows that the process
is gone and takes over at once. A process that is stopped, not gone, keeps its lock; it is dead once its beat counter has
not moved for one lease (the longer of the two's) of the *observer's* monotonic time, in pieces during which the observer itself could write: a disk
that nobody can write to, or a freeze of the whole machine, kills nobody.

POSIX locks do not exclude within one process, and closing any descriptor of the file drops them. So workers of one process
know each other through a registry and never open one another's files. A worker whose event loop is closed is dead.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from pathlib import Path
from typing import Final

import msgspec

from durable.errors import StoreError
from durable.store.sqlite.location import boot_id, seconds_since_boot
from durable.store.sqlite.write_lock import open_lock_file

_Key = tuple[int, int, int]  # device and inode of the side directory, worker id


class _Held(msgspec.Struct, frozen=True):
    descriptor: int
    loop: asyncio.AbstractEventLoop


# Process-wide because POSIX locks are: see above.
_held: Final[dict[_Key, _Held]] = {}


class LiveWorker(msgspec.Struct, frozen=True):
    """A worker that the database calls alive."""

    worker: int
    name: str
    boot_id: str
    beat: int
    beat_at_us: int
    wake_addr: str | None
    lease_us: int  # its own; 0: it did not say


# What stands in a worker's file while the code of a suspect runs, driven alone (P14).
_CODE_RUNS: Final = b"c"
_AT_REST: Final = b"r"


class Grip(msgspec.Struct, frozen=True):
    """Proof that a worker's process is gone: its lock is ours, until `let_go`."""

    key: _Key
    path: Path
    descriptor: int

    def let_go(self, *, remove: bool) -> None:
        if remove:
            self.path.unlink(missing_ok=True)
        _held.pop(self.key, None)
        os.close(self.descriptor)


class Liveness:
    """The lock files of one side directory."""

    def __init__(self, side: Path) -> None:
        self._side = side
        found = os.stat(side)
        self._device, self._inode = found.st_dev, found.st_ino

    def hold(self, worker: int, loop: asyncio.AbstractEventLoop) -> None:
        """Take the liveness lock of a new incarnation; before its row can be seen by anybody.

        `StoreError` if another registration of this process holds it: one whose transaction is being rolled back, and whose
        number is given out again. One whose loop was closed in the middle of that will never give it up, and is over.
        """
        key = self._key(worker)
        if (held := _held.get(key)) is not None:
            if not held.loop.is_closed():
                raise StoreError(
                    f"worker {worker} is being registered by somebody else in this process; try again"
                )
            self.drop(worker, remove=False)
        path = self._path(worker)
        descriptor = open_lock_file(path)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StoreError(
                f"{path} cannot be locked ({error.strerror}); put the database on a local disk"
            ) from error
        _held[key] = _Held(descriptor, loop)

    def drop(self, worker: int, *, remove: bool) -> None:
        """Give the lock up; `remove` only once the database no longer calls the worker alive."""
        if (held := _held.get(self._key(worker))) is not None:
            Grip(self._key(worker), self._path(worker), held.descriptor).let_go(remove=remove)

    def note_code(self, worker: int, *, is_running: bool) -> None:
        """Note in the file of a worker of ours whether a suspect's code runs. It stays there when the process dies."""
        held = _held.get(self._key(worker))
        if held is not None:
            try:
                os.pwrite(held.descriptor, _CODE_RUNS if is_running else _AT_REST, 0)
            except OSError as error:
                raise StoreError(f"{self._path(worker)} cannot be written ({error.strerror})") from error

    def is_at_rest(self, worker: int, grip: Grip | None) -> bool:
        """Whether no suspect's code ran when the worker died, as far as its file can tell. `grip`: our hold of it, if we have one."""
        if grip is not None:
            return os.pread(grip.descriptor, 1, 0) != _CODE_RUNS
        if self._key(worker) in _held:
            return False  # of this process, and hung: what else could be to blame?
        try:
            descriptor = os.open(self._path(worker), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return os.pread(descriptor, 1, 0) != _CODE_RUNS
        finally:
            os.close(descriptor)

    def grip(self, worker: int) -> Grip | None:
        """Take the lock of a worker that may be dead; None: it is held, or cannot tell."""
        key, path = self._key(worker), self._path(worker)
        if (held := _held.get(key)) is not None:
            return Grip(key, path, held.descriptor) if held.loop.is_closed() else None
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return None  # removed by somebody: only the beats can tell
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return None
            raise StoreError(
                f"{path} cannot be locked ({error.strerror}); put the database on a local disk"
            ) from error
        return Grip(key, path, descriptor)

    def is_locked(self, worker: int) -> bool:
        """Whether another process holds the worker's lock right now."""
        if self._key(worker) in _held or not self._path(worker).exists():
            return False
        if (grip := self.grip(worker)) is None:
            return True
        grip.let_go(remove=False)
        return False

    def remove(self, worker: int) -> None:
        """Remove the file of a worker that is no longer alive, whoever may still hold it."""
        self._path(worker).unlink(missing_ok=True)

    def _path(self, worker: int) -> Path:
        return self._side / f"worker-{worker}.lock"

    def _key(self, worker: int) -> _Key:
        return (self._device, self._inode, worker)


def forget_inherited() -> None:
    """In a forked child: the parent's workers are not ours, and none of their locks came along."""
    _held.clear()


def is_foreign(worker: LiveWorker) -> bool:
    """Whether it was registered under another boot: on another machine, or on this one before it started anew."""
    return worker.boot_id != boot_id()


def beat_before_boot(worker: LiveWorker, now_us: int) -> bool:
    """Whether its last beat is older than this machine's start, so that its lock being free proves its death."""
    up = seconds_since_boot()
    return up is not None and worker.beat_at_us < now_us - int(up * 1e6)


class _Seen(msgspec.Struct):
    beat: int
    silent: float  # seconds without a beat, during which we could write
    checked: float


class BeatWatch:
    """How long each worker has been silent, by the observer's own monotonic time."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}

    def moved(self, worker: int, beat: int, now: float) -> bool:
        """Note the counter; True if it was seen for the first time or has moved since."""
        seen = self._seen.get(worker)
        if seen is not None and seen.beat == beat:
            return False
        self._seen[worker] = _Seen(beat, 0.0, now)
        return True

    def has_moved(self, worker: int, beat: int) -> bool:
        """Whether the counter is known and another than before: somebody runs there."""
        seen = self._seen.get(worker)
        return seen is not None and seen.beat != beat

    def silent_seconds(self, worker: int, now: float, lease_seconds: float) -> float:
        """Count the time since the last check as silent and return the sum. Call it after a write of one's own.

        One check counts half a lease at most: if this process was stopped itself, the other one may have been, too.
        """
        seen = self._seen[worker]
        seen.silent += min(now - seen.checked, lease_seconds / 2)
        seen.checked = now
        return seen.silent

    def could_not_write(self, worker: int, now: float) -> None:
        """The silence so far proves nothing: the other could not write either."""
        seen = self._seen[worker]
        seen.silent, seen.checked = 0.0, now

    def keep_only(self, workers: set[int]) -> None:
        for worker in self._seen.keys() - workers:
            del self._seen[worker]
