"""Where a database lives: its side directory, and whether the place can hold one. Opens no database.

Only SQLite may open or close the database, -wal and -shm files: closing any other descriptor of them drops the locks of
this process (P31). All files of ours are in the side directory `<database>-durable`.
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import Final

from durable.errors import StoreError

_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "ceph",
        "fuse.sshfs",
        "glusterfs",
        "fuse.glusterfs",
    }
)


def side_directory(database: Path) -> Path:
    return database.with_name(database.name + "-durable")


def make_side_directory(database: Path) -> Path:
    """Return the directory of locks and sockets beside the database, made if missing, for this user only."""
    side = side_directory(database)
    try:
        side.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{side} cannot be made ({error.strerror}); check the permissions of its directory"
        ) from error
    return side


def check_place(database: Path, *, create: bool) -> None:
    """Raise `StoreError` if no database can be at `database`, saying what to do."""
    try:
        if database.is_dir():
            raise StoreError(f"{database} is a directory; name a file in it")
        if not database.parent.is_dir():
            raise StoreError(f"there is no directory {database.parent}; make it first")
        exists = database.exists()
    except (OSError, ValueError) as error:  # not permitted; too long a name, a NUL in it
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(f"{str(database)[:200]} cannot be reached: {(why or str(error)).lower()}") from error
    if not exists and not create:
        raise StoreError(f"no database at {database}; a workflow's first run or `durable worker` makes one")
    kind = file_system(database.parent)
    if kind in _NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"{database} is on a network file system ({kind}), where SQLite loses data; use a local disk"
        )


def file_system(directory: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """Return the type of the file system that holds `directory`, or None where that cannot be known."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    wanted = os.path.realpath(directory)
    best, kind = "", None
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = fields[1].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):  # the later of two mounts at one point hides the earlier
            best, kind = point, fields[2]
    return kind


def file_identity(path: Path) -> tuple[int, int] | None:
    """Return which file a name leads to now; None: to none. Opens nothing."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


@cache
def boot_id() -> str:
    """Return what changes when the machine does or starts anew; the host name where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"host:{socket.gethostname()}"


def seconds_since_boot() -> float | None:
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):
        return None
