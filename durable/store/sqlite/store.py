"""The SQLite store: each verb of the contract as one transaction, or as a read.

Three connections per store: the writer's, a reader on the loop thread for what is looked up by key (microseconds), and
for lists and scans one of `aiosqlite`, opened for the call, so that a long scan never holds up the loop. Heartbeats have
one more, in their thread.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import aiosqlite

from durable.errors import StoreError
from durable.seams import Clock, Executor, SystemRandom, ThreadExecutor, spawn
from durable.store.migrations import load_migrations
from durable.store.records import (
    ActivityAnswer,
    AnswerVerdict,
    AttemptRow,
    Backlog,
    Claim,
    ClosedRuns,
    DueOutcome,
    Expiry,
    HandBack,
    JournalRow,
    Message,
    NextGeneration,
    PauseKind,
    PauseRecord,
    Pauses,
    PruneOutcome,
    Reopen,
    Rescue,
    RunFilter,
    RunRecord,
    Schema,
    SendOutcome,
    StartOutcome,
    StartRequest,
    Stay,
    StoreHealth,
    Trial,
    TurnCommit,
    Verdict,
    WorkerInfo,
    WorkerRecord,
)
from durable.store.sqlite import (
    completions,
    forks,
    location,
    maintenance,
    messages,
    pausing,
    reading,
    suspects,
)
from durable.store.sqlite import rows as pattern_rows
from durable.store.sqlite.checkpointer import Checkpointer
from durable.store.sqlite.committing import TurnWriter, lease_lost, require_alive
from durable.store.sqlite.connection import Writer, database_uri
from durable.store.sqlite.faults import explaining
from durable.store.sqlite.heartbeat import Heartbeat
from durable.store.sqlite.liveness import (
    BeatWatch,
    Liveness,
    LiveWorker,
    beat_before_boot,
    forget_inherited,
    is_foreign,
)
from durable.store.sqlite.location import boot_id
from durable.store.sqlite.preparing import Prepared, prepare
from durable.store.sqlite.reopening import reopen_run
from durable.store.sqlite.schema import PACKAGE
from durable.store.sqlite.starting import SameInput, same_bytes, start_runs
from durable.store.sqlite.wakeups import Wakeups
from durable.store.statements import load_statements

T = TypeVar("T")

_RECENT_RUNS: Final = 10_000  # among which names of workflows are looked for
_CLOSED: Final = "the store is closed: open it again"
_FORKED: Final = (
    "the store was opened before a fork, in the parent process: open one of your own in this process"
)


class SqliteStore:
    """One database file, opened on one event loop. Implements the contract `durable.store.contract.Store`."""

    def __init__(self, prepared: Prepared, *, durability: str, clock: Clock, executor: Executor) -> None:
        self.url = f"sqlite:///{prepared.database}"
        self._database = prepared.database
        self._clock = clock
        self._durability = durability
        self._executor = executor
        self._sql = load_statements(PACKAGE)
        self._turns = TurnWriter(self._sql)
        self._reader = prepared.reader
        self._reader_mode = prepared.reader_mode
        self._unwritable = prepared.unwritable
        self._writer: Writer | None = None
        self._liveness: Liveness | None = None
        self._heartbeat: Heartbeat | None = None
        self._checkpointer: Checkpointer | None = None
        if prepared.connection is not None and prepared.lock is not None and prepared.side is not None:
            self._writer = Writer(
                prepared.database, prepared.connection, prepared.lock, executor=executor, clock=clock
            )
            self._liveness = Liveness(prepared.side)
            self._heartbeat = Heartbeat(
                prepared.database, prepared.side, self._sql, durability=durability, clock=clock
            )
            self._checkpointer = Checkpointer(
                prepared.database, prepared.side, durability=durability, clock=clock
            )
        self._lock = prepared.lock
        self._loop = asyncio.get_running_loop()
        self._wakeups = Wakeups(
            prepared.side, self._loop, read_version=self._read_version, read_addresses=self._read_addresses
        )
        self._watch = BeatWatch()
        self._scans: set[asyncio.Task[list[Any]]] = set()
        self._workers: dict[int, str | None] = {}  # registered here, not retired: their socket names
        self._gone: str | None = None  # why the store cannot be used any more
        forks.track(self)

    @classmethod
    async def open(
        cls,
        database: Path,
        *,
        durability: str = "full",
        clock: Clock,
        create: bool = True,
        executor: Executor | None = None,
    ) -> Self:
        """Open the file, creating and migrating it if needed. `executor` needs one thread; it is closed with the store.

        A file that cannot be written is opened for reading; every write then raises `StoreError`.
        """
        executor = executor or ThreadExecutor(1, name="durable-store")
        opening = executor.submit(
            partial(prepare, database, durability=durability, clock=clock, create=create)
        )
        try:
            prepared = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unused)
            raise
        except BaseException:
            executor.close()
            raise
        return cls(prepared, durability=durability, clock=clock, executor=executor)

    async def close(self) -> None:
        """Give back every connection and file. Idempotent. Workers that were not retired can be rescued at once."""
        if self._gone is not None:
            return
        self._gone = _CLOSED
        self._wakeups.close()
        if self._scans:
            await asyncio.wait(self._scans)
        if self._writer is not None:
            await self._writer.settle()
        await asyncio.shield(self._executor.submit(self._close_files))
        self._executor.close()

    def abandon(self) -> None:
        """In a forked child: refuse every use, close no connection."""
        self._gone = _FORKED
        forget_inherited()
        self._wakeups.abandon()
        if self._checkpointer is not None:
            self._checkpointer.abandon()
        if self._heartbeat is not None:
            self._heartbeat.abandon()
        if self._lock is not None:
            for descriptor in self._lock.descriptors():
                os.close(descriptor)

    def _close_files(self) -> None:
        forks.forget(self)
        if self._checkpointer is not None:
            self._checkpointer.stop()
        if self._heartbeat is not None:
            self._heartbeat.close()
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
        if self._liveness is not None:
            for worker in self._workers:
                self._liveness.drop(worker, remove=False)

    # ─ workers ──

    async def register_worker(self, info: WorkerInfo) -> int:
        """Insert the row, holding the liveness lock before anybody can see it; open the wake-up socket."""
        liveness = self._require_liveness()
        socket_name = f"wake-{SystemRandom().request_id()[:12]}.sock"
        name = socket_name if self._wakeups.listen(socket_name) else None
        taken: list[int] = []

        def insert(db: sqlite3.Connection) -> int:
            now_us = self._clock.now_us()
            worker = db.execute(
                self._sql["insert_worker"],
                {
                    "name": info.name,
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "boot_id": boot_id(),
                    "task_queue": info.task_queue,
                    "definitions": reading.json_text(info.definitions),
                    "is_embedded": int(info.embedded),
                    "wake_addr": name,
                    "now_us": now_us,
                },
            ).lastrowid
            assert worker is not None, "an inserted row has a rowid"
            db.execute(self._sql["insert_heartbeat"], {"worker": worker, "now_us": now_us})
            liveness.hold(worker, self._loop)
            taken.append(worker)
            return worker

        try:
            worker = await self._write(insert)
        except BaseException:
            for held in taken:
                liveness.drop(held, remove=False)
            if name is not None:
                self._wakeups.close_socket(name)
            raise
        self._workers[worker] = name
        if self._checkpointer is not None:
            self._checkpointer.start()
        return worker

    def beat(self, worker_id: int) -> bool:
        """Renew, on a connection of the heartbeat thread's own."""
        self._require_usable()
        if self._heartbeat is None:
            raise self._refusal()
        return self._heartbeat.beat(worker_id)

    async def retire_worker(self, worker_id: int) -> None:
        """Stop the incarnation and set its runs ready, then drop its lock."""
        liveness = self._require_liveness()
        released = await self._write(partial(self._stop_worker, worker_id, None, False))
        liveness.drop(worker_id, remove=True)
        if (name := self._workers.pop(worker_id, None)) is not None:
            self._wakeups.close_socket(name)
        if released is not None and released[0]:
            self._wakeups.tell(others=True)

    async def rescue_dead_workers(self, lease_seconds: float, *, observer: int | None = None) -> list[Rescue]:
        """Take over workers whose lock can be had, or who were silent for a lease (P9, P10)."""
        liveness = self._require_liveness()
        live = self._read_live_workers()
        self._watch.keep_only({worker.worker for worker in live})
        rescued = []
        for worker in live:
            if worker.worker == observer:
                continue
            grip = liveness.grip(worker.worker)
            stopped = None
            try:
                if grip is not None and (
                    not is_foreign(worker) or beat_before_boot(worker, self._clock.now_us())
                ):
                    stopped = await self._write(partial(self._stop_worker, worker.worker, None, True))
                elif await self._is_silent(worker, lease_seconds):
                    stopped = await self._write(partial(self._stop_worker, worker.worker, worker.beat, True))
            finally:
                if grip is not None:
                    grip.let_go(remove=stopped is not None)
            if stopped is None:
                continue
            runs, poison = stopped
            liveness.remove(worker.worker)
            if worker.wake_addr is not None:
                self._wakeups.remove_socket(worker.wake_addr)
            rescued.append(Rescue(worker_id=worker.worker, name=worker.name, runs=runs, poison=tuple(poison)))
        if rescued:
            self._wakeups.tell(others=True)
        return rescued

    async def list_workers(self, *, alive_only: bool = True) -> list[WorkerRecord]:
        rows = await self._scan("list_workers", {"alive_only": int(alive_only)})
        return [reading.worker_record(row) for row in rows]

    async def find_lost_workers(self) -> list[int]:
        if self._liveness is None:
            return []  # opened for reading: nobody can be asked
        return maintenance.lost_workers(self._liveness, self._read_live_workers(), self._clock.now_us())

    async def _is_silent(self, worker: LiveWorker, lease_seconds: float) -> bool:
        """Whether the worker's counter stood still for a lease, while we could write."""
        monotonic = self._clock.monotonic
        if is_foreign(worker) and self._watch.has_moved(worker.worker, worker.beat):
            raise StoreError(
                f"{self._database} is in use by a worker on another machine ({worker.name}): SQLite files cannot be "
                "shared between machines. Stop one of them"
            )
        if self._watch.moved(worker.worker, worker.beat, monotonic()):
            return False
        try:
            beat = await self._write(partial(self._prove_writable, worker.worker))
        except StoreError:
            self._watch.could_not_write(worker.worker, monotonic())
            raise
        if beat is None or self._watch.moved(worker.worker, beat, monotonic()):
            return False
        return self._watch.silent_seconds(worker.worker, monotonic(), lease_seconds) >= lease_seconds

    def _prove_writable(self, worker: int, db: sqlite3.Connection) -> int | None:
        rows = db.execute(self._sql["prove_writable"], {"worker": worker}).fetchall()
        return rows[0][0] if rows else None

    def _stop_worker(
        self, worker: int, beat: int | None, is_crash: bool, db: sqlite3.Connection
    ) -> tuple[int, list[str]] | None:
        """Mark a live worker stopped and set its runs ready; None if it was not alive, or has beaten since `beat`."""
        now = {"worker": worker, "now_us": self._clock.now_us()}
        if beat is not None:
            (last,) = db.execute(self._sql["read_beat"], now).fetchone()
            if last != beat:
                return None
        if not db.execute(self._sql["stop_worker"], now).rowcount:
            return None
        return suspects.release_runs(db, self._sql, worker, is_crash=is_crash, now_us=now["now_us"])

    async def take_role(self, worker_id: int, role: str) -> bool:
        def take(db: sqlite3.Connection) -> bool:
            require_alive(db, self._sql, worker_id)
            return bool(db.execute(self._sql["take_role"], {"worker": worker_id, "role": role}).rowcount)

        return await self._write(take)

    # ─ starting ──

    async def start_runs(
        self, requests: Sequence[StartRequest], now_us: int, *, same_input: SameInput | None = None
    ) -> list[StartOutcome]:
        """Decide all requests in one transaction."""
        same = same_input or same_bytes
        outcomes = await self._write(lambda db: start_runs(db, self._sql, requests, now_us, same_input=same))
        if any(outcome.how == "started" for outcome in outcomes):
            claimable = any(outcome.how == "started" and outcome.claim is None for outcome in outcomes)
            self._wakeups.tell(others=claimable)
        return outcomes

    # ─ claiming and driving ──

    async def claim_ready_runs(
        self,
        worker_id: int,
        *,
        now_us: int,
        limit: int,
        task_queue: str | None,
        definitions: Sequence[tuple[str, int]],
        pks: Sequence[int] | None = None,
    ) -> list[Claim]:
        """Look without a lock first: an idle claimer writes nothing."""
        if limit <= 0:
            return []
        parameters: dict[str, object] = {
            "now_us": now_us,
            "count": limit,
            "task_queue": task_queue,
            "definitions": reading.json_text(definitions),
        }
        name = "find_ready_runs" if task_queue is not None else "find_ready_runs_of_any_queue"
        if pks is not None:
            name = "find_ready_runs_among"
            parameters["runs"] = reading.json_text(list(pks))
        with self._reading() as reader:
            found = [row[0] for row in reader.execute(self._sql[name], parameters)]
            if not found and reader.execute(self._sql["worker_is_alive"], (worker_id,)).fetchone() is None:
                raise lease_lost(worker_id)
            if not found or pausing.is_worker_paused(reader, self._sql, worker_id):
                return []
        return await self._write(partial(self._claim, worker_id, found, now_us))

    def _claim(self, worker: int, found: list[int], now_us: int, db: sqlite3.Connection) -> list[Claim]:
        require_alive(db, self._sql, worker)
        chosen = {"worker": worker, "runs": reading.json_text(found), "now_us": now_us}
        taken = {row[0] for row in db.execute(self._sql["claim_runs"], chosen).fetchall()}
        return reading.read_claims(db, self._sql, worker, [run for run in found if run in taken])

    async def claim_parked_runs(
        self,
        worker_id: int,
        *,
        limit: int,
        task_queue: str,
        codes: Sequence[tuple[str, int, str]],
    ) -> list[Claim]:
        chosen = {"task_queue": task_queue, "codes": reading.json_text(codes), "count": limit}
        with self._reading() as reader:
            found = reader.execute(self._sql["find_parked_runs"], chosen).fetchall()
            if found and pausing.is_worker_paused(reader, self._sql, worker_id):
                return []
        return await self._write(partial(self._claim_parked, worker_id, found)) if found else []

    def _claim_parked(self, worker: int, found: list[tuple[int, str]], db: sqlite3.Connection) -> list[Claim]:
        require_alive(db, self._sql, worker)
        taken = [
            run
            for run, code in found
            if db.execute(
                self._sql["claim_parked_run"], {"run": run, "worker": worker, "code": code}
            ).rowcount
        ]
        claims = reading.read_claims(db, self._sql, worker, taken)
        for claim in claims:
            db.execute(self._sql["forget_fault"], {"run": claim.pk, "generation": claim.generation})
        return claims

    async def try_suspect(self, worker_id: int, trial: Trial) -> bool:
        return await self._write(lambda db: suspects.try_suspect(db, self._sql, worker_id, trial))

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        with self._snapshot() as reader:
            return reading.read_claims(reader, self._sql, worker_id, pks)

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        """Write a batch of turns. Does not suspend when nothing is in the way.

        "lost" after a journal-key conflict is made true: the run is handed back, and anybody may claim it anew.
        """
        if self._writer is None or self._gone is not None:
            raise self._refusal()
        verdicts = await self._writer.run(lambda db: self._turns.write(db, worker_id, commits, now_us))
        self._tell_of(commits)
        return verdicts

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        """Write a batch of turns on the loop's thread, if nothing is in the way."""
        if self._writer is None or self._gone is not None:
            raise self._refusal()
        done = self._writer.try_run(lambda db: self._turns.write(db, worker_id, commits, now_us))
        if done is None:
            return None
        self._tell_of(commits)
        return done[0]

    def _tell_of(self, commits: Sequence[TurnCommit]) -> None:
        """Wake whoever may have something to do now that these are written."""
        for commit in commits:
            if commit.after.__class__ is not Stay:
                self._wakeups.tell(others=any(_lets_others_go_on(commit) for commit in commits))
                break

    async def read_inbox(self, worker_id: int) -> list[Message]:
        with self._reading() as reader:
            rows = reader.execute(self._sql["read_inbox_of_worker"], {"worker": worker_id})
            return [reading.message(row) for row in rows]

    async def owned_runs(self, worker_id: int) -> dict[int, int]:
        with self._reading() as reader:
            return dict(reader.execute(self._sql["owned_runs"], {"worker": worker_id}).fetchall())

    # ─ time ──

    async def wake_due_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        """Set due runs ready. `next_due_us` also knows the starts of delayed runs, which become claimable by themselves."""
        with self._reading() as reader:
            due, delayed = reader.execute(self._sql["next_due"], {"now_us": now_us}).fetchone()
        if due is None or due > now_us:
            return DueOutcome(woken=0, next_due_us=min(filter(None, (due, delayed)), default=None))
        outcome = await self._write(lambda db: messages.wake_due_runs(db, self._sql, now_us, limit))
        if outcome.woken:
            self._wakeups.tell(others=True)
        return outcome

    async def close_overdue_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        """Close runs past their deadline; `woken` counts them, `next_due_us` is the next deadline."""
        with self._reading() as reader:
            deadline = messages.next_deadline(reader, self._sql)
        if deadline is None or deadline > now_us:
            return DueOutcome(woken=0, next_due_us=deadline)
        outcome = await self._write(lambda db: messages.close_overdue_runs(db, self._sql, now_us, limit))
        if outcome.woken:
            self._wakeups.tell(others=True)
        return outcome

    # ─ messages and control ──

    async def send_message(
        self,
        run_id: str,
        *,
        kind: str,
        name: str,
        data: bytes,
        message_id: str | None,
        now_us: int,
        unread_max: int | None = None,
    ) -> SendOutcome:
        outgoing = messages.Outgoing(
            run_id=run_id, kind=kind, name=name, data=data, message_id=message_id, unread_max=unread_max
        )
        outcome = await self._write(lambda db: messages.send_message(db, self._sql, outgoing, now_us))
        if not outcome.duplicate:
            self._wakeups.tell(others=True)
        return outcome

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        verdict = await self._write(lambda db: completions.answer_activity(db, self._sql, answer, now_us))
        if verdict == "taken" and answer.kind != "heartbeat":
            self._wakeups.tell(others=True)
        return verdict

    async def expire_attempt(
        self, worker_id: int, *, pk: int, generation: int, claim_no: int, attempt: AttemptRow, now_us: int
    ) -> Expiry:
        return await self._write(
            lambda db: completions.expire_attempt(
                db,
                self._sql,
                worker_id,
                pk=pk,
                claim_no=claim_no,
                generation=generation,
                attempt=attempt,
                now_us=now_us,
            )
        )

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        await self._write(lambda db: messages.terminate_run(db, self._sql, run_id, reason, now_us))
        self._wakeups.tell(others=True)

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        await self._write(lambda db: reopen_run(db, self._sql, reopen, now_us))
        self._wakeups.tell(others=True)

    async def unpark_run(self, run_id: str, now_us: int) -> bool:
        """Raises `RunNotFoundError` for an unknown id."""
        unparked = await self._write(lambda db: messages.unpark_run(db, self._sql, run_id, now_us))
        if unparked:
            self._wakeups.tell(others=True)
        return unparked

    async def wake_run(self, run_id: str, now_us: int) -> bool:
        """Raises `RunNotFoundError` for an unknown id."""
        woken = await self._write(lambda db: messages.wake_run(db, self._sql, run_id, now_us))
        if woken:
            self._wakeups.tell(others=True)
        return woken

    # ─ pauses ──

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        paused = await self._write(lambda db: pausing.pause_run(db, self._sql, run_id, reason, now_us))
        self._wakeups.tell(others=True)
        return paused

    async def resume_run(self, run_id: str) -> bool:
        resumed = await self._write(lambda db: pausing.resume_run(db, self._sql, run_id))
        self._wakeups.tell(others=True)
        return resumed

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        paused = await self._write(lambda db: pausing.pause(db, self._sql, kind, name, reason, now_us))
        self._wakeups.tell(others=True)
        return paused

    async def resume(self, kind: PauseKind, name: str) -> bool:
        resumed = await self._write(lambda db: pausing.resume(db, self._sql, kind, name))
        self._wakeups.tell(others=True)
        return resumed

    async def list_pauses(self) -> list[PauseRecord]:
        with self._reading() as reader:
            return pausing.list_pauses(reader, self._sql)

    async def read_pauses(self, worker_id: int) -> Pauses:
        with self._reading() as reader:
            return pausing.read_pauses(reader, self._sql, worker_id)

    # ─ reading ──

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        with self._reading() as reader:
            return reading.get_run(reader, self._sql, run_id, generation, self._clock.now_us())

    async def read_ended(self, runs: Sequence[tuple[int, int]]) -> list[RunRecord]:
        wanted = {"runs": reading.json_text(runs)}
        with self._snapshot() as reader:
            rows = reader.execute(self._sql["read_ended"], wanted).fetchall()
            rows += reader.execute(self._sql["read_ended_earlier"], wanted).fetchall()
        now_us = self._clock.now_us()
        return [reading.run_record(row, now_us) for row in rows]

    async def find_gone(self, pks: Sequence[int]) -> list[int]:
        with self._reading() as reader:
            return [
                row[0]
                for row in reader.execute(self._sql["find_gone"], {"runs": reading.json_text(list(pks))})
            ]

    async def find_run_ids(self, text: str, limit: int = 5) -> list[str]:
        pattern = reading.as_literal_glob(text)
        rows = await self._scan(
            "find_run_ids", {"prefix": f"{pattern}*", "suffix": f"*{pattern}", "count": limit}
        )
        return [row[0] for row in rows]

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        name = "list_runs" if filter.with_large_payloads else "list_runs_without_large_payloads"
        rows = await self._scan(name, reading.filter_parameters(filter))
        now_us = self._clock.now_us()
        return [reading.run_record(row, now_us) for row in rows]

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]:
        with self._reading() as reader:
            rows = reader.execute(self._sql["read_journal"], {"run": pk, "generation": generation})
            return [JournalRow(*row) for row in rows]

    async def read_journal_page(
        self, pk: int, generation: int, *, after: tuple[int, int], limit: int
    ) -> list[JournalRow]:
        turn, part = after
        chosen = {"run": pk, "generation": generation, "turn": turn, "part": part, "count": limit}
        with self._reading() as reader:
            return [JournalRow(*row) for row in reader.execute(self._sql["read_journal_page"], chosen)]

    async def read_attempts(self, pk: int, generation: int) -> list[AttemptRow]:
        with self._reading() as reader:
            rows = reader.execute(self._sql["read_attempts"], {"run": pk, "generation": generation})
            return [reading.attempt_row(row) for row in rows]

    async def count_backlog(self, task_queue: str | None, definitions: Sequence[tuple[str, int]]) -> Backlog:
        """Count open runs of these definitions, on `task_queue` or (None) on any."""
        rows = await self._scan(
            "count_backlog", {"task_queue": task_queue, "definitions": reading.json_text(definitions)}
        )
        return reading.backlog(rows[0])

    async def schema_version(self) -> int:
        with self._reading() as reader:
            return int(reader.execute(self._sql["read_schema_version"]).fetchone()[0])

    async def read_meta(self, key: str) -> str | None:
        """Return a fact about the database: "database_id", "hash_seed" (P28), "created_at_us"."""
        with self._reading() as reader:
            row = reader.execute(self._sql["read_meta"], {"key": key}).fetchone()
        return None if row is None else str(row[0])

    # ─ rows of patterns ──

    async def append_rows(
        self, table: str, key: str, *, after: int, rows: Sequence[bytes], now_us: int
    ) -> bool:
        return await self._write(
            lambda db: pattern_rows.append_rows(db, self._sql, table, key, after, rows, now_us)
        )

    async def read_rows(self, table: str, key: str, *, after: int, limit: int) -> list[bytes]:
        with self._reading() as reader:
            return pattern_rows.read_rows(reader, self._sql, table, key, after, limit)

    # ─ care ──

    async def read_health(self) -> StoreHealth:
        groups = await self._scan("open_runs", {"now_us": self._clock.now_us()})
        with self._reading() as reader:
            (journal_mode,) = reader.execute("PRAGMA journal_mode").fetchone()
            (free_pages,) = reader.execute("PRAGMA freelist_count").fetchone()
            (page_bytes,) = reader.execute("PRAGMA page_size").fetchone()
        side = location.side_directory(self._database)
        newest = len(load_migrations(PACKAGE))
        return StoreHealth(
            engine=f"sqlite {sqlite3.sqlite_version}",
            journal_mode=journal_mode,
            durability=self._durability,
            schema=Schema(version=await self.schema_version(), newest=newest),
            database_bytes=maintenance.size_of(self._database),
            log_bytes=maintenance.size_of(self._database.with_name(self._database.name + "-wal")),
            free_bytes=free_pages * page_bytes,
            locks=str(side) if side.is_dir() else "",
            unwritable=self._unwritable,
            open_runs=maintenance.open_runs(groups),
        )

    async def recent_workflows(self) -> list[str]:
        return [row[0] for row in await self._scan("recent_workflows", {"count": _RECENT_RUNS})]

    async def back_up(self, target: Path) -> int:
        """In a thread of its own: the store's one is the writer's. Goes on to its end if the caller is cancelled."""
        self._require_usable()
        executor = ThreadExecutor(1, name="durable-backup")
        try:
            copying = partial(maintenance.back_up, self._database, self._reader_mode, target)
            return await asyncio.shield(executor.submit(copying))
        finally:
            executor.close()

    async def count_closed_runs(self, chosen: ClosedRuns) -> int:
        rows = await self._scan("count_closed_runs", maintenance.chosen_parameters(chosen))
        return int(rows[0][0])

    async def find_closed_runs(
        self, chosen: ClosedRuns, *, after: tuple[int, int] | None, limit: int
    ) -> list[tuple[int, int]]:
        after_us, after_run = after or (-(1 << 62), 0)
        place = {"after_us": after_us, "after_run": after_run, "count": limit}
        rows = await self._scan("find_closed_runs", {**maintenance.chosen_parameters(chosen), **place})
        return [(created_at_us, pk) for created_at_us, pk in rows]

    async def prune_runs(self, pks: Sequence[int], chosen: ClosedRuns, now_us: int) -> PruneOutcome:
        return await self._write(lambda db: maintenance.prune_runs(db, self._sql, pks, chosen, now_us))

    # ─ being told ──

    def subscribe(self, worker_id: int | None, on_change: Callable[[], None]) -> Callable[[], None]:
        """`worker_id` is not needed here: a store's workers share its subscribers."""
        self._require_usable()
        return self._wakeups.subscribe(on_change)

    # ─ behind the verbs ──

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._writer is None or self._gone is not None:
            raise self._refusal()
        return await self._writer.run(work)

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        self._require_usable()
        with explaining(self._database):
            yield self._reader

    @contextmanager
    def _snapshot(self) -> Iterator[sqlite3.Connection]:
        """Several reads of one state."""
        with self._reading() as reader:
            reader.execute("BEGIN")
            try:
                yield reader
            finally:
                reader.execute("COMMIT")

    async def _scan(self, name: str, parameters: dict[str, object]) -> list[Any]:
        """Run a read that may be long in a thread of aiosqlite's.

        To its end, also if the caller is cancelled: aiosqlite would leave its connection open.
        """
        scan = spawn(self._scan_through(name, parameters), name="durable scan")
        self._scans.add(scan)
        scan.add_done_callback(self._scanned)
        return await asyncio.shield(scan)

    def _scanned(self, scan: asyncio.Task[list[Any]]) -> None:
        self._scans.discard(scan)
        if not scan.cancelled():
            scan.exception()  # looked at, though nobody may wait for it any more

    async def _scan_through(self, name: str, parameters: dict[str, object]) -> list[Any]:
        self._require_usable()
        with explaining(self._database):
            async with aiosqlite.connect(
                database_uri(self._database, self._reader_mode), uri=True, isolation_level=None
            ) as connection:
                return list(await connection.execute_fetchall(self._sql[name], parameters))

    def _read_live_workers(self) -> list[LiveWorker]:
        with self._reading() as reader:
            return [LiveWorker(*row) for row in reader.execute(self._sql["live_workers"])]

    def _read_version(self) -> int:
        self._require_usable()
        with explaining(self._database):
            if self._writer is not None:
                return self._writer.read_data_version()
            return int(self._reader.execute("PRAGMA data_version").fetchone()[0])

    def _read_addresses(self) -> list[str]:
        with self._reading() as reader:
            return [row[0] for row in reader.execute(self._sql["wake_addresses"])]

    def _require_usable(self) -> None:
        if self._gone is not None:
            raise StoreError(f"{self._database}: {self._gone}")

    def _require_liveness(self) -> Liveness:
        if self._liveness is None or self._gone is not None:
            raise self._refusal()
        return self._liveness

    def _refusal(self) -> StoreError:
        return StoreError(f"{self._database}: {self._gone or self._unwritable}")


def _lets_others_go_on(commit: TurnCommit) -> bool:
    return commit.after.__class__ is HandBack or commit.after.__class__ is NextGeneration


def _close_unused(opening: asyncio.Future[Prepared]) -> None:
    """Whoever opened the store was cancelled meanwhile."""
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
