"""What SQLite's errors mean to an operator. No `sqlite3.Error` leaves the store: they all pass here."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from durable.errors import NotADatabaseError, StoreBusyError, StoreError


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code (the low byte of the extended one); 0 if the error carries none."""
    return (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def explained(error: sqlite3.Error, path: Path) -> StoreError:
    """Return the error of ours that stands for `error`; the caller chains it."""
    match primary_code(error):
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return StoreBusyError(
                f"{path}: another process holds the write lock; nothing was written, try again"
            )
        case sqlite3.SQLITE_NOTADB:
            return NotADatabaseError(
                f"{path} is not an SQLite database; it was not touched. Name another file"
            )
        case sqlite3.SQLITE_CORRUPT:
            return StoreError(
                f"{path} is damaged ({error}); stop its workers, keep a copy, and restore a backup or run "
                "sqlite3's .recover on the copy"
            )
        case sqlite3.SQLITE_FULL:
            return StoreError(f"{path}: the disk is full; nothing was written. Free some space and try again")
        case sqlite3.SQLITE_READONLY:
            return StoreError(
                f"{path} cannot be written ({error}); nothing was written. Check the permissions of the file and its directory"
            )
        case sqlite3.SQLITE_CANTOPEN:
            return StoreError(
                f"{path} cannot be opened ({error}); check that it exists and the permissions of its directory"
            )
        case sqlite3.SQLITE_IOERR:
            return StoreError(f"{path}: the disk failed ({error}); nothing was half-written. Check the disk")
        case _:
            return StoreError(f"{path}: {error}")


@contextmanager
def explaining(path: Path) -> Iterator[None]:
    """Raise what SQLite raises inside the block as errors of ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise explained(error, path) from error
