"""Starts: many requests decided by their policies in one transaction. Knows nothing of files or threads.

The decision for each request is made in memory, over two bulk look-ups; plain new runs are then inserted in bulk. Keys of
new runs are given out here: the transaction holds the write lock, so nobody else gives any.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from durable.errors import InternalError
from durable.store.codes import OWNED, READY
from durable.store.records import RunRecord, SameInput, StartOutcome, StartRequest, same_bytes
from durable.store.rows import json_text
from durable.store.sqlite.closing import terminate
from durable.store.sqlite.committing import require_alive
from durable.store.sqlite.large import placed
from durable.store.sqlite.opened import Opened
from durable.store.sqlite.reading import get_run, get_run_by_pk, read_claims
from durable.store.starts import FIRST_CLAIM, REPLACED, Known, New, begun, decide, repeated, started
from durable.store.statements import Statements


class Starting(Opened):
    """The verb that starts runs."""

    async def start_runs(
        self, requests: Sequence[StartRequest], now_us: int, *, same_input: SameInput | None = None
    ) -> list[StartOutcome]:
        """A few share their transaction with others' writes, thousands do not hold up the loop."""
        same = same_input or same_bytes
        outcomes = await self._write_sized(
            len(requests), lambda db: start_runs(db, self._sql, requests, now_us, same_input=same)
        )
        if any(outcome.how == "started" for outcome in outcomes):
            claimable = any(outcome.how == "started" and outcome.claim is None for outcome in outcomes)
            self._wakeups.tell(others=claimable)
        return outcomes


def start_runs(
    db: sqlite3.Connection,
    sql: Statements,
    requests: Sequence[StartRequest],
    now_us: int,
    *,
    same_input: SameInput = same_bytes,
) -> list[StartOutcome]:
    """Start all of `requests` or, raising, none; see the contract."""
    owners = {request.owner for request in requests if request.owner is not None}
    names = {owner: _live_name(db, sql, owner) for owner in owners}
    return _Starts(db, sql, requests, now_us, names, same_input).decide_all()


def _live_name(db: sqlite3.Connection, sql: Statements, worker: int) -> str:
    require_alive(db, sql, worker)
    (name,) = db.execute(sql["name_of_worker"], {"worker": worker}).fetchone()
    return str(name)


class _Starts:
    """One call's requests. New rows are collected, and written before anything reads them back."""

    def __init__(
        self,
        db: sqlite3.Connection,
        sql: Statements,
        requests: Sequence[StartRequest],
        now_us: int,
        owner_names: dict[int, str],
        same_input: SameInput,
    ) -> None:
        self._db = db
        self._sql = sql
        self._requests = requests
        self._now_us = now_us
        self._owner_names = owner_names
        self._same_input = same_input
        ids = json_text([request.request_id for request in requests])
        self._by_request: dict[str, tuple[int, int]] = {
            request_id: (run, generation)
            for request_id, run, generation in db.execute(sql["runs_of_requests"], {"request_ids": ids})
        }
        run_ids = json_text([request.run_id for request in requests])
        self._known: dict[str, Known] = {
            run_id: Known(pk, generation, code, workflow, input)
            for run_id, pk, generation, code, workflow, input in db.execute(
                sql["runs_by_run_ids"], {"run_ids": run_ids}
            )
        }
        self._last_pk, last_epoch_pruned = db.execute(sql["last_run"]).fetchone()
        self._first_epoch = last_epoch_pruned + 1  # an id may have been used by a run that retention deleted
        self._runs: list[tuple[Any, ...]] = []
        self._payloads: list[tuple[int, int, bytes | None, int | None]] = []
        self._seen: list[tuple[str, int, int]] = []

    def decide_all(self) -> list[StartOutcome]:
        outcomes = [self._decide(request) for request in self._requests]
        self._flush()
        return outcomes

    def _decide(self, request: StartRequest) -> StartOutcome:
        if (before := self._by_request.get(request.request_id)) is not None:
            return self._repeat(request, *before)
        known = self._known.get(request.run_id)
        if known is None:
            return self._insert(request)
        match decide(request, known, self._same_input):
            case "attach":
                self._remember(request, known.pk, known.generation)
                return StartOutcome(how="attached", run=self._read(known.pk))
            case "replace":
                self._flush()
                terminate(self._db, self._sql, known.pk, known.generation, REPLACED, self._now_us)
                return self._restart(request, known)
            case "restart":
                return self._restart(request, known)
            case "return":
                return StartOutcome(how="returned", run=self._read(known.pk))

    def _repeat(self, request: StartRequest, run: int, generation: int) -> StartOutcome:
        """The call was made before and its answer lost: tell what it did (P4)."""
        self._flush()
        record = self._read(run)
        if record.generation != generation:
            record = get_run(self._db, self._sql, record.run_id, generation, self._now_us)
        claims = []
        if request.owner is not None and record.owner == request.owner:
            claims = read_claims(self._db, self._sql, request.owner, [run])
        return repeated(record, claims)

    def _insert(self, request: StartRequest) -> StartOutcome:
        self._last_pk = pk = self._last_pk + 1
        now_us, owner = self._now_us, request.owner
        ready_at_us = now_us if request.ready_at_us is None else request.ready_at_us
        is_delayed = ready_at_us > now_us and owner is None
        code = READY if owner is None else OWNED
        started_at_us = None if owner is None else now_us
        claim_no = 0 if owner is None else FIRST_CLAIM
        self._runs.append(
            (
                pk,
                request.run_id,
                self._first_epoch,
                request.workflow,
                request.version,
                request.task_queue,
                code,
                claim_no,
                owner,
                ready_at_us,
                int(is_delayed),
                request.deadline_us,
                now_us,
                started_at_us,
                request.parent,
                request.kind,
                request.retention_us,
            )
        )
        self._payloads.append((pk, 1, *placed(self._db, self._sql, pk, request.input)))
        self._remember(request, pk, 1)
        self._known[request.run_id] = Known(pk, 1, code, request.workflow, request.input)
        new = New(
            pk=pk,
            epoch=self._first_epoch,
            ready_at_us=ready_at_us,
            is_delayed=is_delayed,
            deadline_us=request.deadline_us,
            created_at_us=now_us,
        )
        return started(request, new, None if owner is None else self._owner_names[owner])

    def _restart(self, request: StartRequest, known: Known) -> StartOutcome:
        """Open the next generation, in the next epoch, of a closed run."""
        self._flush()
        db, sql, now_us, owner = self._db, self._sql, self._now_us, request.owner
        if not db.execute(sql["archive_generation"], {"run": known.pk}).rowcount:
            raise InternalError(f"run {request.run_id!r} was to start anew but is not closed")
        ready_at_us = now_us if request.ready_at_us is None else request.ready_at_us
        code = READY if owner is None else OWNED
        ((generation, _epoch, claim_no, msg_seq),) = db.execute(
            sql["restart_run"],
            {
                "run": known.pk,
                "workflow": request.workflow,
                "version": request.version,
                "task_queue": request.task_queue,
                "status": code,
                "owner": owner,
                "ready_at_us": ready_at_us,
                "is_delayed": int(ready_at_us > now_us and owner is None),
                "deadline_us": request.deadline_us,
                "now_us": now_us,
                "started_at_us": None if owner is None else now_us,
                "parent": request.parent,
                "kind": request.kind,
                "retention_us": request.retention_us,
            },
        ).fetchall()
        db.execute(
            sql["insert_run_payload"], (known.pk, generation, *placed(db, sql, known.pk, request.input))
        )
        self._remember(request, known.pk, generation)
        self._known[request.run_id] = Known(known.pk, generation, code, request.workflow, request.input)
        return begun(self._read(known.pk), owner, claim_no=claim_no, msg_seq=msg_seq)

    def _remember(self, request: StartRequest, run: int, generation: int) -> None:
        self._by_request[request.request_id] = (run, generation)
        self._seen.append((request.request_id, run, generation))

    def _read(self, run: int) -> RunRecord:
        self._flush()
        return get_run_by_pk(self._db, self._sql, run, self._now_us)

    def _flush(self) -> None:
        if self._runs:
            self._db.executemany(self._sql["insert_run"], self._runs)
            self._db.executemany(self._sql["insert_run_payload"], self._payloads)
            self._runs, self._payloads = [], []
        if self._seen:
            self._db.executemany(self._sql["insert_request"], self._seen)
            self._seen = []
