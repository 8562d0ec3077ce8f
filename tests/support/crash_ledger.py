"""The side-effect log of crash tests: one fsync'd line per start and end of an activity's body, from every process.

It stands for the world outside: it is written when the body runs, whatever the database says later.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from durable import activity_info

VARIABLE: Final = "CRASH_LEDGER"


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """`number` is the line's place in the log, from 1."""

    what: Literal["start", "end", "error", "cancelled"]
    run_id: str
    key: str
    attempt: int
    pid: int
    at_us: int
    value: Any = None
    number: int = 0


class Effect:
    """A body that is running. `value` is logged with its end."""

    value: Any = None


def append(path: Path, record: object) -> None:
    """Append one JSON line and see it safely on the disk; one write, so that processes do not mix theirs."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.write(descriptor, msgspec.json.encode(record) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def effect(value: object = None) -> Iterator[Effect]:
    """Log the start of the running activity, and how its body ended unless the process dies before."""
    running = Effect()
    _write("start", value)
    try:
        yield running
    except asyncio.CancelledError:
        _write("cancelled", None)
        raise
    except BaseException as error:
        _write("error", f"{type(error).__name__}: {error}")
        raise
    _write("end", running.value)


def _write(what: Literal["start", "end", "error", "cancelled"], value: object) -> None:
    info = activity_info()
    append(
        Path(os.environ[VARIABLE]),
        Line(
            what=what,
            run_id=info.run_id,
            key=info.idempotency_key,
            attempt=info.attempt,
            pid=os.getpid(),
            at_us=time.time_ns() // 1000,
            value=value,
        ),
    )


def read(path: Path) -> list[Line]:
    """Return the log so far. A last line without its end is one that is being written."""
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")[0]
    return [
        msgspec.structs.replace(msgspec.json.decode(line, type=Line), number=number)
        for number, line in enumerate(whole.splitlines(), 1)
    ]
