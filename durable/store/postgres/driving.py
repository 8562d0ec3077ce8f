"""Claims and turns: what a worker that drives runs asks for all the time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

from durable.errors import StoreError
from durable.seams import Clock, ServerClock, pause, spawn
from durable.store.postgres.claiming import LookOut
from durable.store.postgres.committing import TurnWriter
from durable.store.postgres.connection import Database, Session
from durable.store.postgres.opened import Opened
from durable.store.postgres.reading import read_claims
from durable.store.postgres.suspects import trial_parameters
from durable.store.postgres.workers import settle_fences
from durable.store.records import (
    Claim,
    Close,
    HandBack,
    Message,
    NextGeneration,
    Park,
    Stay,
    Trial,
    TurnCommit,
    Verdict,
)
from durable.store.refusals import lease_lost
from durable.store.rows import messages_of

log = logging.getLogger("durable.store")
SKIPPED_SECONDS: Final = 0.05  # before a run is read again whose close met somebody's open transaction


class Driving(Opened):
    """The verbs of whoever drives runs."""

    def __init__(self, database: Database, *, clock: Clock, durability: str, unwritable: str) -> None:
        super().__init__(database, clock=clock, durability=durability, unwritable=unwritable)
        self._turns = TurnWriter(database, self._slots)

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
        if pks is not None:
            found = await self._claim(
                "claim_ready_runs_among", **parameters, runs=list(pks), task_queue=task_queue
            )
        elif task_queue is None:
            found = await self._claim("claim_ready_runs_of_any_queue", **parameters)
        else:
            found = await self._claim_of_queue(worker_id, task_queue, limit, **parameters)
        if not found[0]["yes"]:
            raise lease_lost(worker_id)
        claimed = [row["id"] for row in found if row["id"] is not None]
        if not claimed:
            return []
        return await self._database.run(lambda db: read_claims(db, worker_id, claimed), is_single=True)

    async def _claim(self, name: str, /, **parameters: object) -> list[Any]:
        async with self._slots.take() as slot:
            return await self._database.fetch(name, slot=slot, **parameters)

    async def _claim_of_queue(
        self, worker_id: int, task_queue: str, limit: int, /, **parameters: object
    ) -> list[Any]:
        """The claim of workers: where the look begins is decided by what earlier ones at this queue took."""
        key = worker_id, task_queue
        parameters["task_queue"] = task_queue
        look_out = self._look_outs.setdefault(key, LookOut())
        began = self._clock.monotonic()
        since_us = 0
        if isinstance(self._clock, ServerClock):
            since_us = look_out.since_us()
            if look_out.is_back_due(began) and key not in self._looking_back:
                wanted = {
                    name: parameters[name] for name in ("now_us", "task_queue", "workflows", "versions")
                }
                looking = spawn(
                    self._look_back(look_out, before_us=since_us, **wanted), name="durable look back"
                )
                self._looking_back[key] = looking
                looking.add_done_callback(lambda _: self._looking_back.pop(key, None))
        found = await self._claim("claim_ready_runs", **parameters, since_us=since_us)
        is_full = len(found) == limit and found[0]["id"] is not None
        reached_us = found[0]["ready_at_us"] if is_full else found[0]["now_us"]
        now = self._clock.monotonic()
        if found[0]["has_looked"]:
            look_out.looked(since_us, now, took=now - began, reached_us=reached_us)
        return found

    async def _look_back(self, look_out: LookOut, /, **parameters: object) -> None:
        """Look for what became ready late, while claims go on. If that fails, the next claim begins it anew."""
        began = self._clock.monotonic()
        try:
            earliest_us = await self._database.value("earliest_ready_run", **parameters)
        except StoreError as error:
            log.debug("looking back for ready runs failed and will be tried again: %s", error)
            return
        now = self._clock.monotonic()
        look_out.looked_back(now, took=now - began, earliest_us=earliest_us)
        if earliest_us is not None:
            self._wakeups.tell()

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
        return await self._database.run(lambda db: read_claims(db, worker_id, claimed), is_single=True)

    async def try_suspect(self, worker_id: int, trial: Trial) -> bool:
        self._require_writable()
        async with self._slots.take() as slot:
            parameters = trial_parameters(worker_id, slot, trial)
            ((alive, is_ours),) = await self._database.fetch("try_suspect", **parameters)
        if not alive:
            raise lease_lost(worker_id)
        return bool(is_ours)

    async def note_code(self, worker_id: int, suspect: tuple[int, int], *, is_running: bool) -> None:
        """That it runs is noted with the trial: one statement is saved, and who dies in between is blamed for more than is sure."""
        if not is_running:
            self._require_writable()
            run, claim_no = suspect
            await self._database.fetch("rest_suspect", run=run, worker=worker_id, claim_no=claim_no)

    async def read_claims(self, worker_id: int, pks: Sequence[int]) -> list[Claim]:
        """First waits until the server is done with whatever this incarnation sent it: then what is read is true (P16)."""
        self._require_usable()
        if not self._skipped.isdisjoint(pks):
            self._skipped.difference_update(pks)
            await pause(SKIPPED_SECONDS)

        await self._settle()

        async def settled(db: Session) -> list[Claim]:
            await settle_fences(db, worker_id)
            return await read_claims(db, worker_id, pks)

        return await self._database.run(settled)

    # ─ turns ──

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        """After an error nothing is known but through `read_claims`."""
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
            if commit.is_awaited:
                changed = ends = True
            kind = commit.after.__class__
            is_told = bool(commit.errands or commit.tasks or commit.tasks_closed)
            if kind is not Stay or is_told:
                changed = True
                after = commit.after
                is_told = is_told or (isinstance(after, Close) and after.wakes_others)
                work = work or kind is HandBack or kind is NextGeneration or is_told
                ends = ends or kind is Close or kind is Park or kind is NextGeneration
        if changed:
            self._wakeups.tell(work=work, ends=ends)
        return verdicts

    def _written(self, writing: asyncio.Task[list[Verdict]]) -> None:
        self._writing.discard(writing)
        if not writing.cancelled():
            writing.exception()  # whoever was cancelled meanwhile finds out by reading

    def commit_turns_now(
        self, worker_id: int, commits: Sequence[TurnCommit], now_us: int
    ) -> list[Verdict] | None:
        """A server is never asked on the spot."""
        return None

    # ─ what is owned ──

    async def read_inbox(self, worker_id: int, pks: Sequence[int] | None = None) -> list[Message]:
        look_out = self._look_outs.setdefault((worker_id, None), LookOut())
        began = self._clock.monotonic()
        if pks is not None and look_out.avoids_owners(began):
            rows = await self._read("read_inbox_of_runs", worker=worker_id, runs=list(pks))
        else:
            rows = await self._read("read_inbox_of_worker", worker=worker_id)
            now = self._clock.monotonic()
            look_out.looked_at_owner(now, took=now - began)
        return messages_of(rows, pks)

    async def owned_runs(self, worker_id: int) -> dict[int, int]:
        return {row["id"]: row["claim_no"] for row in await self._read("owned_runs", worker=worker_id)}
