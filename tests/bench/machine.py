"""How fast this machine is right now: printed beside every absolute figure, since a shared machine's speed swings."""

from __future__ import annotations

import os
import platform
import sqlite3
import sys
import time
from pathlib import Path
from typing import Final

CALIBRATION_LOOPS: Final = 400_000
SYNC_BYTES: Final = 8192
SYNC_FILE_BYTES: Final = 4 << 20


def calibration_ms() -> float:
    """Return the process CPU milliseconds of a fixed pure-Python loop, the best of three."""
    return min(_loop_ms() for _ in range(3))


def _loop_ms() -> float:
    began = time.process_time()
    total = 0
    for number in range(CALIBRATION_LOOPS):
        total += number & 7
    return (time.process_time() - began) * 1000


def syncs_per_second(directory: Path, seconds: float = 0.25) -> float:
    """Return how many 8 KiB overwrites of a file, each with fdatasync, the file system takes per second."""
    path = directory / "sync.probe"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    sync = getattr(os, "fdatasync", os.fsync)
    data = os.urandom(SYNC_BYTES)
    try:
        os.write(descriptor, b"\0" * SYNC_FILE_BYTES)
        os.fsync(descriptor)
        count = 0
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            os.pwrite(descriptor, data, count * SYNC_BYTES % SYNC_FILE_BYTES)
            sync(descriptor)
            count += 1
        return count / elapsed
    finally:
        os.close(descriptor)
        path.unlink()


def description() -> str:
    """Return the versions and the number of processors; no host name."""
    version = ".".join(map(str, sys.version_info[:3]))
    return (
        f"Python {version}, SQLite {sqlite3.sqlite_version}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors"
    )
