"""Claims and turns: what a worker that drives runs asks for all the time."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Sequence
from functools import partial

from durable.store.records import (
    Claim,
    Close,
    HandBack,
    Message,
    NextGeneration,
    Stay,
    Trial,
    TurnCommit,
    Verdict,
)
from durable.store.refusals import lease_lost
from durable.store.rows import json_text, messages_of
from durable.store.sqlite.children import do_errands
from durable.store.sqlite.committing import require_alive
from durable.store.sqlite.opened import Opened
from durable.store.sqlite.pausing import is_worker_paused
from durable.store.sqlite.reading import read_claims
from durable.store.sqlite.suspects import try_suspect


class Driving(Opened):
    """The verbs of whoever drives runs."""

    # ─ claims ──

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
            "definitions": json_text(definitions),
        }
        name = "find_ready_runs" if task_queue is not None else "find_ready_runs_of_any_queue"
        if pks is not None:
            name = "find_ready_runs_among"
            parameters["runs"] = json_text(list(pks))
        with self._reading() as reader:
            found = [row[0] for row in reader.execute(self._sql[name], parameters)]
            if not found and reader.execute(self._sql["worker_is_alive"], (worker_id,)).fetchone() is None:
                raise lease_lost(worker_id)
            if not found or is_worker_paused(reader, self._sql, worker_id):
                return []
        return await self._write(partial(self._claim, worker_id, found, now_us))

    def _claim(self, worker: int, found: list[int], now_us: int, db: sqlite3.Connection) -> list[Claim]:
        require_alive(db, self._sql, worker)
        chosen = {"worker": worker, "runs": json_text(found), "now_us": now_us}
        taken = {row[0] for row in db.execute(self._sql["claim_runs"], chosen).fetchall()}
        return read_claims(db, self._sql, worker, [run for run in found if run in taken])

    async def claim_parked_runs(
        self,
        worker_id: int,
        *,
        limit: int,
        task_queue: str,
        codes: Sequence[tuple[str, int, str]],
    ) -> list[Claim]:
        chosen = {"task_queue": task_queue, "codes": json_text(codes), "count": limit}
        with self._reading() as reader:
            found = reader.execute(self._sql["find_parked_runs"], chosen).fetchall()
            if found and is_worker_paused(reader, self._sql, worker_id):
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
        claims = read_claims(db, self._sql, worker, taken)
        for claim in claims:
            db.execute(self._sql["forget_fault"], {"run": claim.pk, "generation": claim.generation})
        return claims

    async def try_suspect(self, worker_id: int, trial: Trial) -> bool:
        return await self._write(lambda db: try_suspect(db, self._sql, worker_id, trial))

    async def note_code(self, worker_id: int, suspect: tuple[int, int], *, is_running: bool) -> None:
        """In the worker's own file, whose lock tells whether it lives: so no transaction is needed."""
        self._require_liveness().note_code(worker_id, is_running=is_running)

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        with self._snapshot() as reader:
            return read_claims(reader, self._sql, worker_id, pks)

    # ─ turns ──

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        """Does not suspend when nothing is in the way."""
        if self._writer is None or self._gone is not None:
            raise self._refusal()
        verdicts = await self._writer.run(lambda db: self._write_turns(db, worker_id, commits, now_us))
        self._tell_of(commits)
        return verdicts

    @property
    def commit_seconds(self) -> float:
        return math.inf if self._writer is None else max(0.0, self._writer.commit_seconds)

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        if self._writer is None or self._gone is not None:
            raise self._refusal()
        done = self._writer.try_run(lambda db: self._write_turns(db, worker_id, commits, now_us))
        if done is None:
            return None
        self._tell_of(commits)
        return done[0]

    def _write_turns(
        self, db: sqlite3.Connection, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict]:
        verdicts = self._turns.write(db, worker_id, commits, now_us)
        if any(commit.errands for commit in commits):
            do_errands(db, self._sql, commits, verdicts, now_us)
        return verdicts

    def _tell_of(self, commits: Sequence[TurnCommit]) -> None:
        """Wake whoever may have something to do now that these are written."""
        for commit in commits:
            if commit.after.__class__ is not Stay or commit.errands or commit.tasks or commit.tasks_closed:
                self._wakeups.tell(others=any(_lets_others_go_on(commit) for commit in commits))
                break

    # ─ what is owned ──

    async def read_inbox(self, worker_id: int, pks: Sequence[int] | None = None) -> list[Message]:
        with self._reading() as reader:
            rows = reader.execute(self._sql["read_inbox_of_worker"], {"worker": worker_id})
            return messages_of(rows, pks)

    async def owned_runs(self, worker_id: int) -> dict[int, int]:
        with self._reading() as reader:
            return dict(reader.execute(self._sql["owned_runs"], {"worker": worker_id}).fetchall())


def _lets_others_go_on(commit: TurnCommit) -> bool:
    after = commit.after
    if commit.errands or commit.tasks or commit.tasks_closed:
        return True
    if isinstance(after, Close):
        return after.wakes_others
    return isinstance(after, HandBack | NextGeneration)
