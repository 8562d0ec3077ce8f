"""The Postgres store: each verb of the contract as one transaction, or as a read.

Connections: a small pool for everything, one that listens, and one in the heartbeat's thread. Due times and leases are decided by
the server's clock; the `clock` of the opener learns it, so that what workers and clients compute agrees with it. An opener that
brings a clock of its own (tests do) owns due times instead; leases are the server's in any case.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from durable.errors import StoreBusyError, StoreError
from durable.seams import Clock, ServerClock, ThreadExecutor, pause, spawn
from durable.store.migrations import load_migrations
from durable.store.postgres import (
    completions,
    liveness,
    maintenance,
    messages,
    reading,
    reopening,
    schema,
    suspects,
)
from durable.store.postgres.committing import TurnWriter, lease_lost
from durable.store.postgres.connection import PACKAGE, Database, FenceSlots, Session
from durable.store.postgres.faults import KeyTaken
from durable.store.postgres.heartbeat import Heartbeat
from durable.store.postgres.location import Place
from durable.store.postgres.starting import SameInput, Starter, same_bytes
from durable.store.postgres.wakeups import Wakeups
from durable.store.records import (
    CRASHES_MAX,
    ActivityAnswer,
    AnswerVerdict,
    AttemptRow,
    Backlog,
    Claim,
    Close,
    ClosedRuns,
    DueOutcome,
    Expiry,
    HandBack,
    JournalRow,
    Message,
    NextGeneration,
    Park,
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
from durable.store.sqlite import forks
from durable.store.sqlite import reading as rows
from durable.store.sqlite.maintenance import open_runs

T = TypeVar("T")

LOST_SECONDS: Final = (
    30.0  # a worker that did not beat for so long is called lost; a rescue goes by its own lease
)
PATIENCE_SECONDS: Final = 30.0  # how long callers ride over a server that restarts
CLOCK_SAMPLES: Final = 3
SKIPPED_SECONDS: Final = 0.05  # before a run is read again whose close met somebody's open transaction
_RECENT_RUNS: Final = 10_000  # among which names of workflows are looked for
_CLOSED: Final = "the store is closed: open it again"
_FORKED: Final = (
    "the store was opened before a fork, in the parent process: open one of your own in this process"
)


class PostgresStore:
    """One schema, opened on one event loop. Implements the contract `durable.store.contract.Store`."""

    def __init__(self, database: Database, *, clock: Clock, durability: str, unwritable: str) -> None:
        self.url = database.shown
        self._database = database
        self._clock = clock
        self._durability = durability
        self._unwritable = unwritable
        self._slots = FenceSlots(liveness.FENCES)
        self._turns = TurnWriter(database, self._slots)
        self._starter = Starter(database, self._slots)
        self._heartbeat = Heartbeat(database)
        self._wakeups = Wakeups(database, asyncio.get_running_loop())
        self._workers: set[int] = set()  # registered here, not retired
        self._writing: set[asyncio.Task[list[Verdict]]] = set()
        self._skipped: set[int] = set()  # runs whose close met somebody's open transaction
        self._gone: str | None = None  # why the store cannot be used any more
        forks.track(self)

    @classmethod
    async def open(cls, place: Place, *, durability: str = "full", clock: Clock, create: bool = True) -> Self:
        """Connect; create and migrate the schema if needed. On a standby, and for a role without rights to write, read only."""
        database = Database(place, durability=durability, name="durable")
        try:
            server = await database.probe()
            if server["is_standby"]:
                unwritable = "the server is a standby; opened for reading, nothing was written"
                await schema.require_current(database)
            else:
                unwritable = ""
                await schema.migrate(database, create=create)
            if isinstance(clock, ServerClock):
                await _set_clock(clock, database)
        except BaseException:
            await database.close()
            raise
        return cls(database, clock=clock, durability=durability, unwritable=unwritable)

    async def close(self) -> None:
        """Give back every connection. Idempotent. Workers that were not retired can be rescued at once."""
        if self._gone is not None:
            return
        self._gone = _CLOSED
        forks.forget(self)
        await self._settle()
        await self._wakeups.close()
        if self._workers:
            try:
                await self._database.fetch("expire_beat", workers=list(self._workers))
            except StoreError:
                pass  # their leases run out by themselves
        executor = ThreadExecutor(1, name="durable-closing")
        try:
            await asyncio.shield(executor.submit(self._heartbeat.close))
        finally:
            executor.close()
            await self._database.close()

    def abandon(self) -> None:
        """In a forked child: refuse every use, close no connection."""
        self._gone = _FORKED
        self._wakeups.abandon()
        self._heartbeat.abandon()
        self._database.abandon()

    # ─ workers ──

    async def register_worker(self, info: WorkerInfo) -> int:
        """Insert the row, its first beat and its fences in one statement."""
        worker = await self._write(lambda db: liveness.register_worker(db, info, self._given()))
        self._workers.add(worker)
        return worker

    def beat(self, worker_id: int) -> bool:
        """Renew, from any thread, on the connection of the heartbeat's own thread."""
        self._require_usable()
        return self._heartbeat.beat(worker_id)

    async def retire_worker(self, worker_id: int) -> None:
        """Stop the incarnation and set its runs ready. Waits for what it is still writing."""
        released = await self._write(lambda db: liveness.retire_worker(db, worker_id, self._given()))
        self._workers.discard(worker_id)
        if released:
            self._wakeups.tell(work=True)

    async def rescue_dead_workers(self, lease_seconds: float, *, observer: int | None = None) -> list[Rescue]:
        """Take over workers whose last beat is a lease old, by the server's clock (P9)."""
        lease_us = round(lease_seconds * 1_000_000)
        rescued = []
        for row in await self._read("silent_workers", lease_us=lease_us):
            worker, name = row["id"], row["name"]
            if worker == observer:
                continue
            taken = await self._write(partial(self._take_over, worker, lease_us))
            if taken is not None:
                runs, poison = taken
                rescued.append(Rescue(worker_id=worker, name=name, runs=runs, poison=tuple(poison)))
        for row in await self._read("workers_with_strays"):
            await self._write(partial(self._release_strays, row["id"], row["is_crash"]))
        if rescued:
            self._wakeups.tell(work=True)
        return rescued

    async def _take_over(self, worker: int, lease_us: int, db: Session) -> tuple[int, list[str]] | None:
        return await liveness.take_over(db, worker, lease_us, self._given())

    async def _release_strays(self, worker: int, is_crash: bool, db: Session) -> None:
        await suspects.release_runs(db, worker, is_crash=is_crash, now_us=self._given(), are_strays=True)

    async def list_workers(self, *, alive_only: bool = True) -> list[WorkerRecord]:
        return [rows.worker_record(row) for row in await self._look("list_workers", alive_only=alive_only)]

    async def find_lost_workers(self) -> list[int]:
        """Only beats tell here, so a process that is gone counts as lost after 30 s; a rescue goes by its own lease."""
        found = await self._read("silent_workers", lease_us=round(LOST_SECONDS * 1_000_000))
        return [row["id"] for row in found]

    async def take_role(self, worker_id: int, role: str) -> bool:
        return await self._write(lambda db: liveness.take_role(db, worker_id, role))

    # ─ starting ──

    async def start_runs(
        self, requests: Sequence[StartRequest], now_us: int, *, same_input: SameInput | None = None
    ) -> list[StartOutcome]:
        """Decide all requests in one transaction. Safe to repeat: request ids tell what was done (P4)."""
        self._require_writable()
        outcomes = await self._patiently(
            lambda: self._starter.start_runs(
                requests, now_us, self._given(now_us), same_input=same_input or same_bytes
            )
        )
        if any(outcome.how == "started" for outcome in outcomes):
            self._wakeups.tell(
                work=any(outcome.how == "started" and outcome.claim is None for outcome in outcomes)
            )
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
        """One statement claims; what driving needs is read after it, when the runs are ours. An idle claimer writes nothing."""
        self._require_writable()
        if limit <= 0:
            return []
        parameters: dict[str, object] = {
            "worker": worker_id,
            "now_us": self._given(now_us),
            "count": limit,
            "workflows": [workflow for workflow, _ in definitions],
            "versions": [version for _, version in definitions],
        }
        name = "claim_ready_runs" if task_queue is not None else "claim_ready_runs_of_any_queue"
        if pks is not None:
            name = "claim_ready_runs_among"
            parameters["runs"] = list(pks)
        if task_queue is not None or pks is not None:
            parameters["task_queue"] = task_queue
        async with self._slots.take() as slot:
            found = await self._database.fetch(name, slot=slot, **parameters)
        if not found[0]["yes"]:
            raise lease_lost(worker_id)
        claimed = [row["id"] for row in found if row["id"] is not None]
        if not claimed:
            return []
        return await self._database.run(
            lambda db: reading.read_claims(db, worker_id, claimed), is_single=True
        )

    async def claim_parked_runs(
        self,
        worker_id: int,
        *,
        limit: int,
        task_queue: str,
        codes: Sequence[tuple[str, int, str]],
    ) -> list[Claim]:
        self._require_writable()
        async with self._slots.take() as slot:
            found = await self._database.fetch(
                "claim_parked_runs",
                worker=worker_id,
                slot=slot,
                count=limit,
                task_queue=task_queue,
                workflows=[workflow for workflow, _, _ in codes],
                versions=[version for _, version, _ in codes],
                codes=[code for _, _, code in codes],
            )
        if not found:
            return []
        if not found[0]["yes"]:
            raise lease_lost(worker_id)
        claimed = [row["id"] for row in found if row["id"] is not None]
        return await self._database.run(
            lambda db: reading.read_claims(db, worker_id, claimed), is_single=True
        )

    async def try_suspect(self, worker_id: int, trial: Trial) -> bool:
        self._require_writable()
        async with self._slots.take() as slot:
            parameters = suspects.trial_parameters(worker_id, slot, trial)
            ((alive, is_ours),) = await self._database.fetch("try_suspect", **parameters)
        if not alive:
            raise lease_lost(worker_id)
        return bool(is_ours)

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        """First waits until the server is done with whatever this incarnation sent it: then what is read is true (P16)."""
        self._require_usable()
        if not self._skipped.isdisjoint(pks):
            self._skipped.difference_update(pks)
            await pause(SKIPPED_SECONDS)

        await self._settle()

        async def settled(db: Session) -> list[Claim]:
            await liveness.settle_fences(db, worker_id)
            return await reading.read_claims(db, worker_id, pks)

        return await self._database.run(settled)

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        """Write a batch of turns; see `TurnWriter`. After an error nothing is known but through `read_claims`.

        "lost" after a journal-key conflict is made true: the run is handed back, and anybody may claim it anew.
        """
        self._require_writable()
        # If the caller is cancelled, the commit still ends one way or the other, and `read_claims` waits for it.
        writing = spawn(self._turns.write(worker_id, commits, self._given(now_us)), name="durable commit")
        self._writing.add(writing)
        writing.add_done_callback(self._written)
        verdicts = await asyncio.shield(writing)
        work = ends = changed = False
        for commit, verdict in zip(commits, verdicts, strict=True):
            if verdict == "messages":
                self._skipped.add(commit.pk)
            kind = commit.after.__class__
            if kind is not Stay:
                changed = True
                work = work or kind is HandBack or kind is NextGeneration
                ends = ends or kind is Close or kind is Park or kind is NextGeneration
        if changed:
            self._wakeups.tell(work=work, ends=ends)
        return verdicts

    def _written(self, writing: asyncio.Task[list[Verdict]]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled():
            writing.exception()  # whoever was cancelled meanwhile finds out by reading

    async def _settle(self) -> None:
        """Wait until nothing of ours is on its way to the server."""
        if self._writing:
            await asyncio.wait(set(self._writing))

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        """A server is never asked on the spot."""
        return None

    async def read_inbox(self, worker_id: int) -> list[Message]:
        return [rows.message(row) for row in await self._read("read_inbox_of_worker", worker=worker_id)]

    async def owned_runs(self, worker_id: int) -> dict[int, int]:
        return {row["id"]: row["claim_no"] for row in await self._read("owned_runs", worker=worker_id)}

    # ─ time ──

    async def wake_due_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        """Set due runs ready. `next_due_us` also knows the starts of delayed runs, which become claimable by themselves."""
        due, delayed, _, now = await self._look_at_times(now_us)
        woken = 0
        if due is not None and due <= now:
            self._require_writable()
            woken = await self._database.value("wake_due_runs", now_us=self._given(now_us), count=limit)
            due, delayed, _, now = await self._look_at_times(now_us)
        if woken:
            self._wakeups.tell(work=True)
        return DueOutcome(
            woken=woken, next_due_us=min((at for at in (due, delayed) if at is not None), default=None)
        )

    async def close_overdue_runs(self, now_us: int, limit: int = 1000) -> DueOutcome:
        """Close runs past their deadline; `woken` counts them, `next_due_us` is the next deadline."""
        _, _, deadline, now = await self._look_at_times(now_us)
        if deadline is None or deadline > now:
            return DueOutcome(woken=0, next_due_us=deadline)
        closed = await self._write_repeatedly(
            lambda db: messages.close_overdue_runs(db, self._given(now_us), limit)
        )
        _, _, deadline, _ = await self._look_at_times(now_us)
        if closed:
            self._wakeups.tell(work=True, ends=True)
        return DueOutcome(woken=closed, next_due_us=deadline)

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
        """Safe to repeat with a message id; without one, an error leaves open whether it was sent."""
        self._require_writable()
        outgoing = messages.Outgoing(
            run_id=run_id, kind=kind, name=name, data=data, message_id=message_id, unread_max=unread_max
        )

        async def send() -> SendOutcome:
            return await messages.send_message(self._database, outgoing, self._given(now_us))

        outcome = await (send() if message_id is None else self._patiently(send))
        if not outcome.duplicate:
            self._wakeups.tell(work=True)
        return outcome

    async def answer_activity(self, answer: ActivityAnswer, now_us: int) -> AnswerVerdict:
        """Safe to repeat: the second answer of an attempt is a duplicate."""
        self._require_writable()
        verdict = await self._patiently(
            lambda: self._database.run(
                lambda db: completions.answer_activity(db, answer, self._given(now_us))
            )
        )
        if verdict == "taken" and answer.kind != "heartbeat":
            self._wakeups.tell(work=True)
        return verdict

    async def expire_attempt(
        self, worker_id: int, *, pk: int, generation: int, claim_no: int, attempt: AttemptRow, now_us: int
    ) -> Expiry:
        self._require_writable()
        async with self._slots.take() as slot:
            return await self._database.run(
                lambda db: completions.expire_attempt(
                    db,
                    worker_id,
                    slot,
                    pk=pk,
                    claim_no=claim_no,
                    generation=generation,
                    attempt=attempt,
                    now_us=self._given(now_us),
                )
            )

    async def terminate_run(self, run_id: str, reason: str | None, now_us: int) -> None:
        await self._write_repeatedly(
            lambda db: messages.terminate_run(db, run_id, reason, self._given(now_us))
        )
        self._wakeups.tell(work=True, ends=True)

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        await self._write(lambda db: reopening.reopen_run(db, reopen, self._given(now_us)))
        self._wakeups.tell(work=True)

    async def unpark_run(self, run_id: str, now_us: int) -> bool:
        """Raises `RunNotFoundError` for an unknown id."""
        return await self._change_run(
            "unpark_run", run_id, now_us=self._given(now_us), crashes_max=CRASHES_MAX
        )

    async def wake_run(self, run_id: str, now_us: int) -> bool:
        """Raises `RunNotFoundError` for an unknown id."""
        return await self._change_run("wake_run", run_id, now_us=self._given(now_us))

    # ─ pauses ──

    async def pause_run(self, run_id: str, reason: str | None, now_us: int) -> bool:
        paused = await self._write(lambda db: messages.pause_run(db, run_id, reason, self._given(now_us)))
        self._wakeups.tell(work=True)
        return paused

    async def resume_run(self, run_id: str) -> bool:
        return await self._change_run("resume_run", run_id)

    async def pause(self, kind: PauseKind, name: str, reason: str | None, now_us: int) -> bool:
        values = {"kind": kind, "name": name, "reason": reason, "now_us": self._given(now_us)}
        paused = bool(await self._write(lambda db: db.fetch("pause", **values)))
        self._wakeups.tell(work=True)
        return paused

    async def resume(self, kind: PauseKind, name: str) -> bool:
        resumed = bool(await self._write(lambda db: db.fetch("resume", kind=kind, name=name)))
        self._wakeups.tell(work=True)
        return resumed

    async def list_pauses(self) -> list[PauseRecord]:
        return [
            PauseRecord(kind=kind, name=name, at_us=at_us, reason=reason)
            for kind, name, at_us, reason in await self._look("list_pauses")
        ]

    async def read_pauses(self, worker_id: int) -> Pauses:
        ((is_worker_paused, queues, pks),) = await self._read("read_pauses", worker=worker_id)
        return Pauses(is_worker_paused=is_worker_paused, task_queues=frozenset(queues), pks=frozenset(pks))

    # ─ reading ──

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        self._require_usable()
        now_us = self._clock.now_us()
        return await self._patiently(
            lambda: self._database.run(lambda db: reading.get_run(db, run_id, generation, now_us))
        )

    async def read_ended(self, runs: Sequence[tuple[int, int]]) -> list[RunRecord]:
        wanted = {"runs": [pk for pk, _ in runs], "generations": [generation for _, generation in runs]}
        found = await self._look("read_ended", **wanted)
        if any(generation > 0 for _, generation in runs) and len(found) < len(runs):
            found += await self._look("read_ended_earlier", **wanted)
        return self._records(found)

    async def find_gone(self, pks: Sequence[int]) -> list[int]:
        return [row[0] for row in await self._look("find_gone", runs=list(pks))]

    async def find_run_ids(self, text: str, limit: int = 5) -> list[str]:
        pattern = reading.as_literal_like(text)
        found = await self._look("find_run_ids", prefix=f"{pattern}%", suffix=f"%{pattern}", count=limit)
        return [row["run_id"] for row in found]

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        return self._records(await self._look("list_runs", **reading.filter_parameters(filter)))

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]:
        return [JournalRow(*row) for row in await self._look("read_journal", run=pk, generation=generation)]

    async def read_journal_page(
        self, pk: int, generation: int, *, after: tuple[int, int], limit: int
    ) -> list[JournalRow]:
        turn, part = after
        found = await self._look(
            "read_journal_page", run=pk, generation=generation, turn=turn, part=part, count=limit
        )
        return [JournalRow(*row) for row in found]

    async def read_attempts(self, pk: int, generation: int) -> list[AttemptRow]:
        found = await self._look("read_attempts", run=pk, generation=generation)
        return [rows.attempt_row(row) for row in found]

    async def count_backlog(self, task_queue: str | None, definitions: Sequence[tuple[str, int]]) -> Backlog:
        """Count open runs of these definitions, on `task_queue` or (None) on any."""
        found = await self._look(
            "count_backlog",
            task_queue=task_queue,
            workflows=[workflow for workflow, _ in definitions],
            versions=[version for _, version in definitions],
        )
        return rows.backlog(found[0])

    async def schema_version(self) -> int:
        return int((await self._look("read_schema_version"))[0][0])

    async def read_meta(self, key: str) -> str | None:
        """Return a fact about the database: "database_id", "hash_seed" (P28), "created_at_us"."""
        found = await self._look("read_meta", key=key)
        return str(found[0][0]) if found else None

    # ─ rows of patterns ──

    async def append_rows(
        self, table: str, key: str, *, after: int, rows: Sequence[bytes], now_us: int
    ) -> bool:
        self._require_writable()
        values = {"name": table, "key": key, "after": after, "now_us": self._given(now_us)}
        try:
            written = await self._database.fetch("append_rows", **values, rows=list(rows))
        except KeyTaken:
            return False
        if rows:
            return bool(written)
        return bool(await self._database.value("count_rows", name=table, key=key) == after)

    async def read_rows(self, table: str, key: str, *, after: int, limit: int) -> list[bytes]:
        found = await self._look("read_rows", name=table, key=key, after=after, count=limit)
        return [row["data"] for row in found]

    # ─ care ──

    async def read_health(self) -> StoreHealth:
        place = self._database.place
        groups = await self._look("open_runs", now_us=self._given(self._clock.now_us()))
        ((size,),) = await self._look("read_sizes", schema=place.schema)
        (settings,) = await self._look("read_settings", run_table=f'"{place.schema}".run')
        unwritable = self._unwritable or (
            "" if settings["may_write"] else "this role may only read; give it the rights of a worker"
        )
        return StoreHealth(
            engine=f"postgres {settings['version'].split()[0]}",
            journal_mode=f"wal (synchronous_commit {settings['synchronous_commit']}, fsync {settings['fsync']})",
            durability=self._durability,
            schema=Schema(version=await self.schema_version(), newest=len(load_migrations(PACKAGE))),
            database_bytes=size,
            log_bytes=None,
            free_bytes=None,
            locks=None,
            unwritable=unwritable,
            open_runs=open_runs(groups),
        )

    async def recent_workflows(self) -> list[str]:
        return [row[0] for row in await self._look("recent_workflows", count=_RECENT_RUNS)]

    async def back_up(self, target: Path) -> int:
        """Not done from here: the server's own tools copy a schema, and whole servers, better."""
        self._require_usable()
        raise StoreError(
            f"{self.url}: a Postgres schema is copied with the server's own tools, e.g. "
            f"pg_dump --schema={self._database.place.schema} --format=custom --file={target.name}; nothing was written"
        )

    async def count_closed_runs(self, chosen: ClosedRuns) -> int:
        found = await self._look("count_closed_runs", **maintenance.chosen_parameters(chosen))
        return int(found[0][0])

    async def find_closed_runs(
        self, chosen: ClosedRuns, *, after: tuple[int, int] | None, limit: int
    ) -> list[tuple[int, int]]:
        after_us, after_run = after or (-(1 << 62), 0)
        found = await self._look(
            "find_closed_runs",
            **maintenance.chosen_parameters(chosen),
            after_us=after_us,
            after_run=after_run,
            count=limit,
        )
        return [(row["created_at_us"], row["id"]) for row in found]

    async def prune_runs(self, pks: Sequence[int], chosen: ClosedRuns, now_us: int) -> PruneOutcome:
        return await self._write(lambda db: maintenance.prune_runs(db, pks, chosen, self._given(now_us)))

    # ─ being told ──

    def subscribe(self, worker_id: int | None, on_change: Callable[[], None]) -> Callable[[], None]:
        """Workers are told of work, others of runs that have ended, too."""
        self._require_usable()
        return self._wakeups.subscribe(on_change, for_ends=worker_id is None)

    # ─ behind the verbs ──

    def _given(self, now_us: int | None = None) -> int | None:
        """The time to act by: the server's own (None), unless the opener brought a clock."""
        if isinstance(self._clock, ServerClock):
            return None
        return self._clock.now_us() if now_us is None else now_us

    async def _look_at_times(self, now_us: int) -> tuple[int | None, int | None, int | None, int]:
        """Return the next timer, delayed start and deadline, and the time. Every look tells our clock what the server's says."""
        asked_at = self._clock.monotonic()
        ((due, delayed, deadline, now),) = await self._read("next_due", now_us=self._given(now_us))
        if isinstance(self._clock, ServerClock):
            self._clock.learn(now, asked_at, self._clock.monotonic())
        return due, delayed, deadline, now

    async def _read(self, name: str, /, **parameters: object) -> list[Any]:
        self._require_usable()
        return await self._database.fetch(name, **parameters)

    async def _look(self, name: str, /, **parameters: object) -> list[Any]:
        """Read for a caller who has no loop of his own to try again: ride over a restart."""
        return await self._patiently(lambda: self._read(name, **parameters))

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat what may be repeated, reads and writes that are recognised, while the server is away."""
        deadline, wait = self._clock.monotonic() + PATIENCE_SECONDS, 0.02
        while True:
            try:
                return await call()
            except StoreBusyError:
                if self._gone is not None or self._clock.monotonic() + wait > deadline:
                    raise
            await pause(wait)
            wait = min(wait * 2, 1.0)

    async def _write(self, work: Callable[[Session], Awaitable[T]]) -> T:
        self._require_writable()
        return await self._database.run(work)

    async def _write_repeatedly(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """For ends by force: a turn that was being written at that moment has the number first; look again."""
        self._require_writable()
        return await messages.until_first(self._database, work)

    async def _change_run(self, name: str, run_id: str, **parameters: object) -> bool:
        changed = await self._write(lambda db: messages.change_run(db, name, run_id, **parameters))
        if changed:
            self._wakeups.tell(work=True)
        return changed

    def _records(self, found: Sequence[Any]) -> list[RunRecord]:
        now_us = self._clock.now_us()
        return [rows.run_record(row, now_us) for row in found]

    def _require_usable(self) -> None:
        if self._gone is not None:
            raise StoreError(f"{self.url}: {self._gone}")

    def _require_writable(self) -> None:
        self._require_usable()
        if self._unwritable:
            raise StoreError(f"{self.url}: {self._unwritable}")


async def _set_clock(clock: ServerClock, database: Database) -> None:
    """Ask the server for its time; the quickest of a few answers counts."""
    for _ in range(CLOCK_SAMPLES):
        asked_at = clock.monotonic()
        now_us = await database.value("read_instant", now_us=None)
        clock.learn(now_us, asked_at, clock.monotonic())
