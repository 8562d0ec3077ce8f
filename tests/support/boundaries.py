"""What a process hands to the disk, or to a server, call by call: where it dies, a call fails, or the power goes.

A small library in C, compiled here and preloaded, counts the calls of a process that change files (write, fsync, truncate,
unlink, rename) whose path begins like its database's: the database, its log, its locks. With a server's port it counts what
is sent there instead. A boundary says what happens at the N-th of them:

- "half": the process is killed in the middle of a write or a message (a call that is neither: before it); "after": after it;
- "fail": the call fails with the error number given, once;
- "power": the process is killed, and what no fsync has followed is gone: all of it at every third point, else a part;
- "lost": the message arrives, and its connection breaks before the answer.

The library knows nothing of SQLite or Postgres, nor they of it.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Final, Literal

import msgspec

SOURCE: Final = Path(__file__).with_suffix(".c")
KINDS: Final = ("count", "half", "after", "fail", "power", "lost")


class Boundary(msgspec.Struct, frozen=True, kw_only=True):
    """What happens at the `n`-th call. Needs a process that was started with the library."""

    kind: Literal["count", "half", "after", "fail", "power", "lost"] = "count"
    n: int = 0
    error: int = 0  # an errno

    def __str__(self) -> str:
        return f"{self.kind} {self.n}" + (f" errno {self.error}" if self.error else "")


class NoCompilerError(Exception):
    """There is no C compiler here."""


def build(directory: Path, source: Path = SOURCE) -> Path:
    """Compile a library into `directory`, and return its path."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError(f"no C compiler here: what {source.name} does to processes is NOT tested")
    library = directory / f"{source.stem}.so"
    subprocess.run(
        [
            compiler,
            "-O1",
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
            str(source),
            "-lpthread",
        ],
        check=True,
        capture_output=True,
    )
    return library


def arm(boundary: Boundary, *, files: Path, port: int, deaths: Path) -> None:
    """From here on count the calls of this process on files whose path begins with `files`, or, unless `port` is 0, to that server."""
    ctypes.CDLL(None).boundaries_arm(
        str(files).encode(),
        port,
        str(deaths).encode(),
        KINDS.index(boundary.kind),
        ctypes.c_long(boundary.n),
        boundary.error,
    )


def reached() -> int:
    """Return how many calls were counted."""
    count = ctypes.CDLL(None).boundaries_reached
    count.restype = ctypes.c_long
    return int(count())
