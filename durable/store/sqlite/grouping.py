"""Small writes that are asked for at the same moment share a transaction: one wait for the disk for all of them.

Each is a plain function over the connection, as every write. Whoever asked is answered only after the commit. Each stands behind
a savepoint: what one raises undoes that one alone, and is its caller's. If the transaction itself fails, nothing of it is
written, and all callers are told the same. While one group is being written, those who come wait for the next; order is kept.
A caller that is cancelled before its group begins has written nothing; after that, its write ends one way or the other.

Knows nothing of what is written.
"""

from __future__ import annotations

import asyncio
import contextvars
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from durable.errors import StoreError
from durable.seams import spawn
from durable.store.sqlite.connection import Writer
from durable.store.sqlite.faults import explained

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], Any]

GROUP_MAX: Final = 200  # so that a group holds the loop for some milliseconds at most


class _Asked(NamedTuple):
    work: Work
    answer: asyncio.Future[Any]


class _Failure(NamedTuple):
    error: Exception


class Groups:
    """The small writes of one store. On the loop's thread."""

    def __init__(self, writer: Writer, loop: asyncio.AbstractEventLoop) -> None:
        self._writer = writer
        self._loop = loop
        self._asked: deque[_Asked] = deque()
        self._is_due = False
        self._writing: asyncio.Task[None] | None = None
        self._refusal: Exception | None = None

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in one transaction with whatever else is asked for in this turn of the loop; return what it returns.

        Raises what `work` raises (it is rolled back, alone), or what became of the transaction.
        """
        asked = _Asked(work, self._loop.create_future())
        self._asked.append(asked)
        self._see_to_it()
        answer: T = await asked.answer
        return answer

    async def close(self, refusal: Exception) -> None:
        """Write nothing more: refuse what has not begun, wait for what has."""
        self._refusal = refusal
        if self._writing is not None:
            await asyncio.wait({self._writing})
        self._fail(list(self._asked), refusal)
        self._asked.clear()

    def _see_to_it(self) -> None:
        if not self._is_due and self._writing is None:
            self._is_due = True
            self._loop.call_soon(self._write_group, context=contextvars.Context())

    def _write_group(self) -> None:
        self._is_due = False
        group = self._next_group()
        if not group:
            return
        together = partial(write_all, [asked.work for asked in group], self._writer.database)
        try:
            done = self._writer.try_run(together) if self._refusal is None else None
        except Exception as error:
            self._fail(group, error)
        except BaseException:  # Ctrl-C, say: rolled back, and nobody may wait for it for ever
            self._fail(group, StoreError(f"{self._writer.database}: interrupted; nothing was written"))
            raise
        else:
            if done is None:
                self._writing = spawn(self._wait_for(group, together), name="durable writes")
                return
            self._answer(group, done[0])
        if self._asked:
            self._see_to_it()

    def _next_group(self) -> list[_Asked]:
        group = [asked for asked in islice(self._asked, GROUP_MAX) if not asked.answer.done()]
        for _ in range(min(GROUP_MAX, len(self._asked))):
            self._asked.popleft()
        return group

    async def _wait_for(self, group: Sequence[_Asked], together: Callable[[sqlite3.Connection], Any]) -> None:
        """Something is in the way: let the writer's thread wait for it."""
        try:
            if self._refusal is not None:
                raise self._refusal
            self._answer(group, await self._writer.run(together))
        except Exception as error:
            self._fail(group, error)
        except asyncio.CancelledError:  # with its loop; the thread goes on, and nobody is there to be told
            for asked in group:
                asked.answer.cancel()
            raise
        finally:
            self._writing = None
            if self._asked:
                self._see_to_it()

    def _answer(self, group: Sequence[_Asked], outcomes: Sequence[Any]) -> None:
        for asked, outcome in zip(group, outcomes, strict=True):
            if asked.answer.done():  # cancelled meanwhile
                continue
            if outcome.__class__ is _Failure:
                asked.answer.set_exception(outcome.error)
            else:
                asked.answer.set_result(outcome)

    def _fail(self, group: Sequence[_Asked], error: Exception) -> None:
        for asked in group:
            if not asked.answer.done():
                asked.answer.set_exception(error)


def write_all(works: Sequence[Work], database: Path, db: sqlite3.Connection) -> list[Any]:
    """Run each behind a savepoint. What the database itself meets (a full disk, say) ends the transaction."""
    outcomes: list[Any] = []
    for work in works:
        db.execute("SAVEPOINT one")
        try:
            outcome = work(db)
        except sqlite3.IntegrityError as error:
            outcome = _undone(db, explained(error, database))
        except sqlite3.Error:
            raise
        except Exception as error:
            outcome = _undone(db, error)
        db.execute("RELEASE one")
        outcomes.append(outcome)
    return outcomes


def _undone(db: sqlite3.Connection, error: Exception) -> _Failure:
    db.execute("ROLLBACK TO one")
    return _Failure(error)
