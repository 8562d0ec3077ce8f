"""The real SQLite store under one node's feet, with faults at its transactions, and the door to it with faults at its verbs."""

from __future__ import annotations

import asyncio
import inspect
import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from durable.errors import StoreBusyError, StoreError
from durable.store.contract import Store
from durable.store.records import FailedAttempt, TurnCommit, Verdict, WorkerInfo
from durable.store.sqlite import liveness, location
from durable.store.sqlite.preparing import Prepared
from durable.store.sqlite.store import SqliteStore
from tests.simulation.faults import ROWS
from tests.simulation.node import Node, VirtualExecutor

VERBS: Final = frozenset(
    name
    for name, verb in vars(Store).items()
    if inspect.iscoroutinefunction(verb) and not name.startswith("_") and name != "close"
)
QUIET: Final = frozenset(  # told only if something came of them
    {
        "claim_ready_runs",
        "claim_tasks",
        "close_overdue_runs",
        "find_stray_tasks",
        "owned_runs",
        "read_held_tasks",
        "read_ended",
        "read_inbox",
        "rescue_dead_workers",
        "wake_due_runs",
    }
)


# A note in the worker's own file: production does not suspend there, and the code that it speaks of follows at once.
AT_ONCE: Final = ("note_code",)
WRITES: Final = ("commit_turns", "append_rows", "claim_tasks", "end_tasks")  # a worker may die of them


class _LoopOfNode:
    """What liveness asks of a worker's loop: is it closed, i.e. is its process gone?"""

    def __init__(self, node: Node) -> None:
        self._node = node

    def is_closed(self) -> bool:
        return self._node.is_dead


class SimStore(SqliteStore):
    """Production's store; only threads, sockets and the transaction's door are the simulation's."""

    node: Node

    def __init__(self, prepared: Prepared, *, durability: str, clock: Any, executor: Any) -> None:
        super().__init__(prepared, durability=durability, clock=clock, executor=executor)
        self.node = executor._node
        self._loop = _LoopOfNode(self.node)  # type: ignore[assignment]
        self._checkpointer = None
        self._wakeups.listen = lambda name: False  # type: ignore[method-assign]  # hints come by polling alone
        assert self._writer is not None
        self._writer.run = self._transact(self._writer.run)  # type: ignore[method-assign]
        self._turns.write = self._checked(self._turns.write)  # type: ignore[method-assign]
        self.checker = self.node.simulation.checker
        self.checker.guard(self._writer._connection)
        self.node.at_death.append(self._die)

    @classmethod
    async def of(cls, node: Node, database: Path) -> SimStore:
        return await cls.open(database, durability="off", clock=node.clock, executor=VirtualExecutor(node, 1))

    def _die(self) -> None:
        """What the system does for a process that is gone: its descriptors are closed, its locks dropped."""
        if self._gone is None:
            self._gone = "its process is dead"
            self._close_files()

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        """As production's, with the faults of a transaction that show on the spot; the others make it the committer's."""
        self.node.require_alive()
        faults = self.node.simulation.faults
        if faults.fraction() < 0.5:
            return None  # somebody is in the way
        match faults.transaction():
            case "busy" | "busy once":
                return None
            case "disk full" | "rolled back" as fault:
                raise StoreError(f"the commit failed: {fault}")
            case "unknown":
                super().commit_turns_now(worker_id, commits, now_us)
                raise StoreError("the commit's reply was lost")
        return super().commit_turns_now(worker_id, commits, now_us)

    async def register_worker(self, info: WorkerInfo) -> int:
        worker = await super().register_worker(info)
        self.checker.workers[worker] = self.node
        self.checker.beats[worker] = self.node.loop.now
        return worker

    async def retry_now(self, failed: FailedAttempt, now_us: int) -> bool:
        """As production's, and told: before anything can come of it, and also where the reply is lost."""
        self.checker.hurried.add(failed)
        is_moved = await super().retry_now(failed, now_us)
        if not is_moved:
            self.checker.hurried.discard(failed)
        return is_moved

    async def _scan(self, name: str, parameters: dict[str, object]) -> list[Any]:
        with self._reading() as reader:
            return reader.execute(self._sql[name], parameters).fetchall()

    def _transact(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap `Writer.run`: rolled back, busy, full, or committed and nobody says so. Never suspends by itself."""
        faults = self.node.simulation.faults

        async def transact(work: Callable[[sqlite3.Connection], Any]) -> Any:
            self.node.require_alive()
            fault = faults.transaction()
            tries = 0

            def doing(db: sqlite3.Connection) -> Any:
                nonlocal tries
                tries += 1
                result = work(db)
                if fault == "busy once" and tries == 1:
                    raise _sqlite_error("database is locked", sqlite3.SQLITE_BUSY)
                if fault == "disk full":
                    raise _sqlite_error("database or disk is full", sqlite3.SQLITE_FULL)
                if fault == "rolled back":
                    raise _sqlite_error("disk I/O error", sqlite3.SQLITE_IOERR)
                return result

            if fault == "busy":
                raise StoreBusyError("another process held the write lock; nothing was written")
            result = await run(doing)
            if fault == "unknown":
                raise StoreError("the commit's reply was lost")
            return result

        return transact

    def _write_turns(
        self, db: sqlite3.Connection, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict]:
        """As production's; which children there are is asked before and after (I16)."""
        before = self.checker.children_asked_for(db, commits)
        verdicts = super()._write_turns(db, worker_id, commits, now_us)
        self.checker.check_refused(db, before, commits, verdicts)
        return verdicts

    def _checked(self, write: Callable[..., list[Verdict]]) -> Callable[..., list[Verdict]]:
        """Wrap the group commit: who may write is asked independently, in the same transaction (I4)."""
        checker = self.node.simulation.checker

        def checked(
            db: sqlite3.Connection, worker: int, commits: Sequence[TurnCommit], now_us: int
        ) -> list[Verdict]:
            before = checker.owners(db, worker, [commit.pk for commit in commits])
            charged = checker.charged(db, commits)
            verdicts = write(db, worker, commits, now_us)
            checker.check_fence(db, before, charged, worker, commits, verdicts)
            return verdicts

        return checked


class NodeStore:
    """The store as one node reaches it: every verb may be held up or refused; a dead node reaches nothing."""

    def __init__(self, real: SimStore, node: Node) -> None:
        self._real = real
        self._node = node
        self._faults = node.simulation.faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if name not in VERBS:
            return value

        async def verb(*args: Any, **kwargs: Any) -> Any:
            return await self._call(name, value, args, kwargs)

        self.__dict__[name] = verb
        return verb

    async def _call(self, name: str, real: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        node = self._node
        if name == "settle_tasks":
            self._real.checker.on_settled(
                *args[:1]
            )  # that they are over has been seen, whenever it is written
        await self._held_up(name)
        node.require_alive()
        if name in ("claim_ready_runs", "claim_tasks") and (struck := self._faults.claim()) is not None:
            node.simulation.machine.strike_here(node, *struck)
            await asyncio.sleep(0)
        if self._faults.verb() is not None:
            self._trace(name, "refused")
            raise StoreError(f"{name}: the database cannot be reached")
        try:
            result = await real(*args, **kwargs)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            self._trace(name, type(error).__name__)
            raise
        finally:
            node.is_leaving |= name == "retire_worker"
        self._trace(name, _told(name, args, result))
        if name == "append_rows" and self._faults.draw(ROWS) is not None:
            raise StoreError("the reply was lost")
        if name == "start_runs":
            self._real.checker.on_started(result)
        if name == "claim_ready_runs":
            self._real.checker.on_claimed(result)
        if name == "rescue_dead_workers":
            self._real.checker.check_rescue(result, node)
        if name in WRITES and (struck := self._faults.commit()) is not None:
            node.simulation.machine.strike_here(node, *struck)
            await asyncio.sleep(0)  # the dead never come back from here, the paused late
        await self._held_up(name)
        node.require_alive()
        return result

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        verdicts = self._real.commit_turns_now(worker_id, commits, now_us)
        if verdicts is not None:
            self._trace("commit_turns_now", _told("commit_turns", (worker_id, commits), verdicts))
        return verdicts

    async def _held_up(self, name: str) -> None:
        delay = -1.0 if name in AT_ONCE else self._faults.delay()
        if delay >= 0:
            await asyncio.sleep(delay)

    def _trace(self, name: str, what: str) -> None:
        if what or name not in QUIET:
            self._node.simulation.trace(self._node.name, name, what)

    def beat(self, worker_id: int) -> bool:
        self._node.require_alive()
        fault = self._faults.transaction()
        if fault in ("rolled back", "busy", "disk full"):
            raise StoreError(f"no beat: {fault}")
        alive = self._real.beat(worker_id)
        if alive:
            self._real.checker.beats[worker_id] = self._node.loop.now
        if fault == "unknown":
            raise StoreError("the beat's reply was lost")
        return alive

    def subscribe(self, worker_id: int | None, on_change: Callable[[], None]) -> Callable[[], None]:
        loop = self._node.loop
        self._node.has_begun |= worker_id is not None

        def hint() -> None:
            match self._faults.hint():
                case "hint lost":
                    return
                case "hint doubled":
                    on_change()
                    loop.call_soon(on_change)
                case "hint late":
                    loop.call_later(self._faults.fraction() * 2, on_change)
                case _:
                    on_change()

        return self._real.subscribe(worker_id, hint)

    async def close(self) -> None:
        await self._real.close()
        self._node.has_let_go = True


def drop_locks(database: Path) -> None:
    """Give back what nodes held that died on their way: the next seed's directory may have the same number."""
    side = location.side_directory(database)
    if side.is_dir():
        found = os.stat(side)
        for key in [key for key in liveness._held if key[:2] == (found.st_dev, found.st_ino)]:
            os.close(liveness._held.pop(key).descriptor)


def _sqlite_error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


def _told(name: str, args: Any, result: Any) -> str:
    """Return what of a verb's result belongs into the trace; "" for nothing of note."""
    match name:
        case "commit_turns":
            return " ".join(
                f"{commit.pk}:{commit.turn}:{type(commit.after).__name__}:{verdict}"
                for commit, verdict in zip(args[1], result, strict=True)
            )
        case "claim_ready_runs" | "read_claims":
            return " ".join(f"{claim.pk}#{claim.claim_no}" for claim in result)
        case "rescue_dead_workers":
            return " ".join(f"{one.worker_id}:{one.runs}" for one in result)
        case "wake_due_runs" | "close_overdue_runs":
            return str(result.woken) if result.woken else ""
        case "claim_tasks":
            return " ".join(f"{task.task_id}#{task.claim_no}" for task in result)
        case "end_tasks" | "settle_tasks":
            ends = args[1] if name == "end_tasks" else args[0]
            return " ".join(
                f"{end.task.task_id}:{end.how}:{verdict}" for end, verdict in zip(ends, result, strict=True)
            )
        case "register_worker":
            return str(result)
        case "start_runs":
            return " ".join(f"{one.run.run_id}:{one.how}" for one in result)
        case "send_message":
            return f"{args[0].run_id} {result.msg} {result.duplicate}"
        case "read_ended":
            return " ".join(f"{one.pk}:{one.status}" for one in result)
        case _:
            return ""
