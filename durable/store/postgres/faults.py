"""What Postgres's errors mean to an operator. No driver's exception leaves the store: they all pass here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import asyncpg

from durable.errors import StoreBusyError, StoreError

UNSURE: Final = "whether the last statement was written is unknown until it is read again"
# SQLSTATE, or its class -> (what happened, what to do). All of these pass by themselves, or once an operator has acted.
_PASSING: Final = {
    "08": ("the connection was lost", f"{UNSURE}; it is tried again"),
    "57P01": ("the server ended the connection (restart or pg_terminate_backend)", f"{UNSURE}; it is tried again"),
    "57P02": ("the server crashed", f"{UNSURE}; it is tried again"),
    "57P03": ("the server is starting up or shutting down", "it is tried again"),
    "57P05": ("the server closed an idle connection", "it is tried again"),
    "57014": ("the statement was cancelled (statement_timeout, or by hand)", "it is tried again"),
    "25P03": ("a transaction idled too long and was ended", "it is tried again"),
    "25006": (
        "the server is read-only, probably a standby",
        "it is tried again; point the URL at the primary, or name all hosts and target_session_attrs=read-write",
    ),
    "40001": ("the transaction collided with another", "nothing was written; it is tried again"),
    "40P01": ("a deadlock was resolved at our cost", "nothing was written; it is tried again"),
    "55P03": ("a lock was not to be had in time", "nothing was written; it is tried again"),
    "53300": ("the server has no connection left", "raise max_connections, lower the workers' number, or use a pooler"),
    "53100": ("the server's disk is full", "free some space; nothing was written"),
    "53200": ("the server is out of memory", "nothing was written; it is tried again"),
    "53": ("the server is out of resources", "nothing was written; it is tried again"),
    "58": ("the server's file system failed", "look at its log"),
}  # fmt: skip
_LASTING: Final = {
    "28": "the server refused the user or password; check the URL and pg_hba.conf",
    "3D000": "there is no such database; create it first: createdb",
    "3F000": "there is no such schema; open it once with the role that may create it, or run durable migrate",
    "42P01": "a table is missing; run durable migrate with the role that owns the schema",
    "42501": "the role may not do this; grant it the role of its task (docs/guides/postgres.md)",
    "22021": "text with a NUL or bytes that are no UTF-8 cannot be stored in Postgres; nothing was written",
    "XX001": "the database is damaged; stop its workers and restore a backup",
    "XX002": "an index is damaged; stop its workers and REINDEX it, or restore a backup",
}
_TAKEN: Final = ("23505", "22012")  # unique key; `start_run` divides by zero when its epoch has become stale
_AGAIN: Final = ("40001", "40P01")
# What the driver raises for a connection that is gone; nothing of it says what the server has done. The internal error is one of
# them: news that a session was ended may find the driver in the middle of something.
LOST: Final = (
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)
DRIVER_ERRORS: Final = (asyncpg.PostgresError, *LOST)


class KeyTaken(StoreError):
    """Somebody wrote the same key first: nothing was written, and the caller looks again. Stays within this package."""


def sqlstate(error: BaseException) -> str:
    return str(getattr(error, "sqlstate", None) or "")


def is_worth_repeating(error: BaseException) -> bool:
    """Whether the whole function may be repeated at once: the server undid all of it (P18)."""
    return sqlstate(error) in _AGAIN


def explained(error: BaseException, shown: str) -> StoreError:
    """Return the error of ours that stands for `error`; the caller chains it. `shown` names the database."""
    state = sqlstate(error)
    if isinstance(error, TimeoutError):
        return StoreBusyError(f"{shown}: the server did not answer in time; {UNSURE}; it is tried again")
    if state in _TAKEN:
        return KeyTaken(f"{shown}: another transaction was first ({_first_line(error)}); nothing was written")
    for key in (state, state[:2]):
        if key and key in _PASSING:
            happened, so_what = _PASSING[key]
            return StoreBusyError(f"{shown}: {happened} ({_first_line(error)}); {so_what}")
        if key and key in _LASTING:
            return StoreError(f"{shown}: {_first_line(error)}: {_LASTING[key]}")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return StoreError(f"{shown} cannot be used ({_first_line(error)}): correct the URL")
    if isinstance(error, asyncpg.DataError | ValueError):
        return StoreError(f"{shown}: a value cannot be stored ({_first_line(error)}); nothing was written")
    if isinstance(error, LOST):
        return StoreBusyError(f"{shown}: no connection ({_first_line(error)}); {UNSURE}; it is tried again")
    return StoreError(f"{shown}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    """The error's own words, without the values that a DETAIL line could hold."""
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__


@contextmanager
def explaining(shown: str) -> Iterator[None]:
    """Raise what the driver raises inside the block as errors of ours."""
    try:
        yield
    except DRIVER_ERRORS as error:
        raise explained(error, shown) from error
