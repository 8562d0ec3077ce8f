"""Where a process dies: it counts its own write transactions, and kills or stops itself at the one it was told.

Every connection that a process of the crash suite opens is of a class that sees BEGIN IMMEDIATE, COMMIT and what stands
between them; the store itself runs unchanged. A plan says what happens at the N-th write transaction:

- "before": killed when all of it is written and COMMIT is next;
- "after": killed when COMMIT has returned and nobody knows yet;
- "within": killed in the middle of its first statement that writes several rows, else like "before";
- "stop": stopped (SIGSTOP) just before it begins, holding no lock of the database.

"answered" counts something else: killed when the N-th call of a client has returned and was noted down.

Transactions in which an observer merely proves that it can write come and go with time: they are not counted.

On a server a transaction is mostly one message: "before" is before it is sent, "within" when it is sent and no answer has come.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from durable.store.postgres.connection import Database, Session
from durable.store.sqlite import grouping
from durable.store.sqlite.connection import Writer
from durable.store.sqlite.heartbeat import Heartbeat
from durable.store.sqlite.store import SqliteStore
from durable.worker import feeding
from tests.support.crash_ledger import append

UNCOUNTED: Final = frozenset({"prove_writable"})
SPILL_PAGES: Final = 2
Side = Literal["before", "after", "within"]
WITHIN_TURNS: Final = 6  # of the loop, until the message is on its way


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do at the `n`-th write transaction of the process (0: only count)."""

    kind: Literal[Side, "stop", "answered"] = "before"
    n: int = 0
    rows_least: int = 2  # "within": how many rows a statement must write to be cut in half
    only: str = ""  # count only transactions of this name
    later: bool = False  # count only from the moment that the program says

    def __str__(self) -> str:
        if self.kind == "answered":
            return f"after {self.n} answers"
        return f"{self.kind} write transaction {self.n}" + (f" of {self.only}" if self.only else "")


def at_commit(point: int, sides: Sequence[Side] = ("before", "after")) -> Plan:
    """Number the points of death from 1: before the first commit, after it, before the second, ..."""
    return Plan(kind=sides[(point - 1) % len(sides)], n=(point - 1) // len(sides) + 1)


class Death(msgspec.Struct, frozen=True, kw_only=True):
    """Left behind by a process that killed or stopped itself."""

    pid: int
    at_us: int
    where: str


class _Points:
    """The count of this process."""

    def __init__(self) -> None:
        self.plan = Plan()
        self.deaths = Path(os.devnull)
        self.is_counting = True
        self.begun = 0
        self.answered = 0
        self.stoppable: list[threading.Lock] = []
        self.names: list[str] = []

    def begin(self, name: str) -> bool:
        """Count a write transaction; return whether it is the one."""
        if not self.is_counting or name in UNCOUNTED or (self.plan.only and name != self.plan.only):
            return False
        self.begun += 1
        self.names.append(name)
        return self.begun == self.plan.n

    def count_from_here(self) -> None:
        """What a plan waits for that counts later."""
        self.is_counting = True

    def answer(self) -> None:
        """A call of a client has returned."""
        self.answered += 1
        if self.plan.kind == "answered" and self.answered == self.plan.n:
            self.die(str(self.plan))

    def die(self, where: str) -> None:
        append(self.deaths, Death(pid=os.getpid(), at_us=time.time_ns() // 1000, where=where))
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # the signal is on its way

    def stop(self, where: str) -> None:
        """Stop this process where it holds no lock that others of the database need; return when it is continued."""
        for lock in self.stoppable:
            lock.acquire()
        try:
            append(self.deaths, Death(pid=os.getpid(), at_us=time.time_ns() // 1000, where=where))
            os.kill(os.getpid(), signal.SIGSTOP)
        finally:
            for lock in self.stoppable:
                lock.release()


points: Final = _Points()


class CrashConnection(sqlite3.Connection):
    """Sees the boundaries of write transactions. The writer thread and the loop use one in turns, never at once."""

    _name = ""
    _writes = False
    _doomed = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "BEGIN IMMEDIATE":
            name = transaction_name()
            cursor = super().execute(sql, *args)
            self._name, self._writes = name, True
            self._doomed = points.plan.kind in ("before", "after", "within") and points.begin(name)
            return cursor
        if sql == "ROLLBACK":
            self._writes = self._doomed = False
        if sql != "COMMIT" or not self._writes:
            return super().execute(sql, *args)
        if self._doomed and points.plan.kind in ("before", "within"):
            points.die(f"{points.plan} ({self._name})")
        cursor = super().execute(sql, *args)
        if self._doomed:
            points.die(f"{points.plan} ({self._name})")
        self._writes = False
        return cursor

    def executemany(self, sql: str, rows: Iterable[Any], /) -> sqlite3.Cursor:
        if self._doomed and points.plan.kind == "within":
            listed = list(rows)
            if len(listed) >= points.plan.rows_least:
                rows = self._cut(listed)
        return super().executemany(sql, rows)

    def _cut(self, rows: list[Any]) -> Iterator[Any]:
        half = len(rows) // 2
        yield from rows[:half]
        points.die(f"{points.plan} ({self._name}), after row {half} of {len(rows)}")


def transaction_name() -> str:
    """Return the name of the store's function whose transaction is about to begin, e.g. `commit_turns`."""
    frame = sys._getframe(2)
    work = frame.f_locals.get("work")
    if work is None:
        return frame.f_code.co_name.lstrip("_")
    return name_of(work)


def name_of(work: Callable[..., Any]) -> str:
    while isinstance(work, partial):
        work = work.args[0][0] if work.func is grouping.write_all else work.func  # of a group: its first
    parts = [part for part in work.__qualname__.split(".") if not part.startswith("<")]
    name = parts[1] if len(parts) > 1 and parts[0][0].isupper() else parts[-1]
    return name.lstrip("_").removesuffix("_now")  # on the spot or not: the same transaction


def install(plan: Plan, deaths: Path, *, warm_us: int | None = None, spill: bool = False) -> None:
    """Make this process follow the plan. `spill`: SQLite writes half-done transactions to its log all the time."""
    points.plan, points.deaths, points.is_counting = plan, deaths, not plan.later
    if warm_us is not None:
        feeding.WARM_US = warm_us  # type: ignore[misc]
    connect = sqlite3.connect

    def crash_connect(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection = connect(*args, **(kwargs | {"factory": CrashConnection}))
        if spill:
            connection.execute(f"PRAGMA cache_size = {SPILL_PAGES}")
            connection.execute(f"PRAGMA cache_spill = {SPILL_PAGES}")
        return connection

    sqlite3.connect = crash_connect  # type: ignore[assignment]
    _watch_heartbeats()
    _watch_server()
    if plan.kind == "stop":
        _watch_writers()


def _watch_heartbeats() -> None:
    """Know the locks that keep a heartbeat out of the database while this process is about to be stopped."""
    initialise = Heartbeat.__init__

    def watched(self: Heartbeat, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        points.stoppable.append(self._guard)

    Heartbeat.__init__ = watched  # type: ignore[method-assign]


def _watch_writers() -> None:
    """Stop before the transaction takes any lock: a process that is stopped within it stops everybody."""
    run = Writer.run
    Writer.try_run = lambda self, work: None  # type: ignore[method-assign,assignment]
    SqliteStore.commit_turns_now = lambda self, worker_id, commits, now_us: None  # type: ignore[method-assign,misc]

    async def watched(self: Writer, work: Callable[[sqlite3.Connection], Any]) -> Any:
        name = name_of(work)
        if points.begin(name):
            await self.settle()
            points.stop(f"{points.plan} ({name})")
        return await run(self, work)

    Writer.run = watched  # type: ignore[method-assign,assignment]


# ─ a server ──

WRITES: Final = re.compile(r"\b(INSERT INTO|UPDATE \S+ SET|DELETE FROM|CALL)\b")
# Idle claimers ask, however often, and write nothing; beats come with time.
UNCOUNTED_THERE: Final = ("claim_ready_runs", "beat", "notify", "expire_beat")
TORN: Final = ", sent and not answered"
SAME: Final = {
    "commit_staying_turns": "commit_turns",
    "write_together": "commit_turns",
    "start_run": "start_runs",
    "start_all": "start_runs",
    "decide_all": "start_runs",
}
READING: Final = frozenset(
    {"get_run", "settled", "why_not", "probe", "read_claims", "find_stray_tasks"}
)  # several statements, none writes


def _watch_server() -> None:
    """Count transactions at the one door through which all of them go."""
    fetch, run = Database.fetch, Database.run

    async def watched_fetch(self: Database, name: str, /, **parameters: object) -> list[Any]:
        text = self.sql[name].text
        if not WRITES.search(text) or name.startswith(UNCOUNTED_THERE):
            return await fetch(self, name, **parameters)
        return await _counted(SAME.get(name, name), fetch(self, name, **parameters))

    async def watched_run(self: Database, work: Callable[[Session], Any], *, is_single: bool = False) -> Any:
        name = name_of(work)
        if is_single or name in READING:
            return await run(self, work, is_single=is_single)
        return await _counted(SAME.get(name, name), run(self, work))

    Database.fetch = watched_fetch  # type: ignore[method-assign]
    Database.run = watched_run  # type: ignore[method-assign]


async def _counted(name: str, work: Coroutine[Any, Any, Any]) -> Any:
    if not points.begin(name):
        return await work
    where = f"{points.plan} ({name})"
    match points.plan.kind:
        case "stop":
            points.stop(where)
        case "before":
            points.die(where)
        case "within":
            sending = asyncio.ensure_future(work)
            for _ in range(WITHIN_TURNS):
                await asyncio.sleep(0)
            points.die(where + TORN)
            await sending
    done = await work
    if points.plan.kind == "after":
        points.die(where)
    return done
