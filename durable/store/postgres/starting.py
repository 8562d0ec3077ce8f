"""Starts: decided by their policies, all of a call in one transaction.

A single start under an id that is free is one statement: that is its atomicity, and the unique key of the id decides between two
of them. Everything else is a transaction: rows that a policy may end or begin anew are locked, in one order, before
anything is looked up, so that a decision still holds when it is written; plain new runs are inserted in bulk, and if somebody
was faster with one of their keys, all of it is undone and decided again. A request id that is known returns its run (P4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from durable.errors import InternalError, StoreBusyError
from durable.store.codes import OWNED, READY
from durable.store.postgres.closing import terminate
from durable.store.postgres.connection import Session, columns
from durable.store.postgres.faults import KeyTaken
from durable.store.postgres.opened import Opened
from durable.store.postgres.reading import get_run, get_run_by_pk, read_claims
from durable.store.records import RunRecord, SameInput, StartOutcome, StartRequest, same_bytes
from durable.store.refusals import lease_lost
from durable.store.starts import (
    FIRST_CLAIM,
    REPLACED,
    Known,
    New,
    begun,
    decide,
    may_begin_anew,
    repeated,
    started,
)

LOOKS_MAX: Final = 10  # how often a start is decided anew because others were faster


class Starting(Opened):
    """The verb that starts runs."""

    async def start_runs(
        self, requests: Sequence[StartRequest], now_us: int, *, same_input: SameInput | None = None
    ) -> list[StartOutcome]:
        """Safe to repeat: request ids tell what was done (P4)."""
        self._require_writable()
        outcomes = await self._patiently(lambda: self._start_all(requests, now_us, same_input or same_bytes))
        if any(outcome.how == "started" for outcome in outcomes):
            self._wakeups.tell(
                work=any(outcome.how == "started" and outcome.claim is None for outcome in outcomes)
            )
        return outcomes

    async def _start_all(
        self, requests: Sequence[StartRequest], asked_at_us: int, same_input: SameInput
    ) -> list[StartOutcome]:
        """Start all of `requests` or, raising, none.

        Their delays and deadlines count from `asked_at_us`, by the caller's clock; here they begin when the server takes them in.
        """
        now_us = self._given(asked_at_us)
        if not requests:
            return []
        if (
            len(requests) == 1
            and (outcome := await self._start_at_once(requests[0], asked_at_us, now_us)) is not None
        ):
            return [outcome]
        for _ in range(LOOKS_MAX):
            try:
                async with self._slots.take() as slot:
                    return await self._database.run(
                        lambda db: _decide_all(db, slot, requests, asked_at_us, now_us, same_input=same_input)
                    )
            except KeyTaken:
                continue
        raise StoreBusyError(
            f"{self._database.shown}: others kept starting runs of the same ids; nothing was written, try again"
        )

    async def _start_at_once(
        self, request: StartRequest, asked_at_us: int, now_us: int | None
    ) -> StartOutcome | None:
        """Start a run whose id is free; None if it is not, or if the caller is not the worker it says: decide at leisure."""
        try:
            async with self._slots.take() as slot:
                row = await self._database.row(
                    "start_run",
                    run_id=request.run_id,
                    request_id=request.request_id,
                    workflow=request.workflow,
                    version=request.version,
                    task_queue=request.task_queue,
                    input=request.input,
                    owner=request.owner,
                    slot=slot,
                    delay_us=max(0, (request.ready_at_us or asked_at_us) - asked_at_us),
                    timeout_us=None if request.deadline_us is None else request.deadline_us - asked_at_us,
                    parent=request.parent,
                    kind=request.kind,
                    retention_us=request.retention_us,
                    now_us=now_us,
                )
        except KeyTaken:
            return None
        if row is None:
            return None
        new = New(
            pk=row["id"],
            epoch=row["epoch"],
            ready_at_us=row["ready_at_us"],
            is_delayed=row["is_delayed"],
            deadline_us=row["deadline_us"],
            created_at_us=row["created_at_us"],
        )
        return started(request, new, row["owner_name"])


async def _decide_all(
    db: Session,
    slot: int,
    requests: Sequence[StartRequest],
    asked_at_us: int,
    now_us: int | None,
    *,
    same_input: SameInput,
) -> list[StartOutcome]:
    names = {
        owner: await _hold_fence(db, owner, slot) for owner in sorted({r.owner for r in requests if r.owner})
    }
    decided = [request.run_id for request in requests if may_begin_anew(request)]
    if decided:
        await db.fetch("lock_runs_by_run_ids", run_ids=decided)
    now = int(await db.value("read_instant", now_us=now_us))
    begun = [_begun(one, now - asked_at_us) for one in requests]
    return await _Starts(db, begun, now, names, same_input).decide_all()


async def decide_all(
    db: Session, requests: Sequence[StartRequest], asked_at_us: int, now_us: int | None
) -> list[StartOutcome]:
    """Start runs that nobody owns within a transaction of somebody else's. A known id is known by its workflow alone."""
    return await _decide_all(db, 0, requests, asked_at_us, now_us, same_input=lambda *_: True)


def _begun(request: StartRequest, shift_us: int) -> StartRequest:
    """Move what was reckoned by the caller's clock to the server's."""
    if not shift_us or (request.ready_at_us is None and request.deadline_us is None):
        return request
    ready_at_us = None if request.ready_at_us is None else request.ready_at_us + shift_us
    deadline_us = None if request.deadline_us is None else request.deadline_us + shift_us
    return msgspec.structs.replace(request, ready_at_us=ready_at_us, deadline_us=deadline_us)


async def _hold_fence(db: Session, worker: int, slot: int) -> str:
    name = await db.value("hold_fence", worker=worker, slot=slot)
    if name is None:
        raise lease_lost(worker)
    return str(name)


class _Starts:
    """One call's requests. New rows are collected, and written before anything reads them back."""

    def __init__(
        self,
        db: Session,
        requests: Sequence[StartRequest],
        now_us: int,
        owner_names: dict[int, str],
        same_input: SameInput,
    ) -> None:
        self._db = db
        self._requests = requests
        self._now_us = now_us
        self._owner_names = owner_names
        self._same_input = same_input
        self._by_request: dict[str, tuple[int, int]] = {}
        self._known: dict[str, Known] = {}
        self._keys: list[tuple[int, int]] = []  # (pk, first epoch) for new runs
        self._epochs: list[int] = []  # of the runs inserted
        self._runs: list[tuple[Any, ...]] = []
        self._payloads: list[tuple[int, int, bytes]] = []
        self._seen: list[tuple[str, int, int]] = []

    async def decide_all(self) -> list[StartOutcome]:
        await self._look_up()
        outcomes = [await self._decide(request) for request in self._requests]
        await self._flush()
        if self._epochs and min(self._epochs) <= await self._db.value("epoch_floor"):
            raise KeyTaken("retention deleted a run of one of these ids meanwhile")
        return outcomes

    async def _look_up(self) -> None:
        db, requests = self._db, self._requests
        for row in await db.fetch("runs_of_requests", request_ids=[one.request_id for one in requests]):
            self._by_request[row["request_id"]] = row["run"], row["generation"]
        for row in await db.fetch("runs_by_run_ids", run_ids=list({one.run_id for one in requests})):
            run_id, pk, generation, code, workflow, input = row
            self._known[run_id] = Known(pk, generation, code, workflow, input)
        free = len({one.run_id for one in requests} - self._known.keys())
        if free:
            table = f'"{self._db.schema}".run'
            self._keys = [
                (row["id"], row["epoch"]) for row in await db.fetch("next_runs", run_table=table, count=free)
            ]
            self._keys.reverse()

    async def _decide(self, request: StartRequest) -> StartOutcome:
        if (before := self._by_request.get(request.request_id)) is not None:
            return await self._repeat(request, *before)
        known = self._known.get(request.run_id)
        if known is None:
            return self._insert(request)
        match decide(request, known, self._same_input):
            case "attach":
                self._remember(request, known.pk, known.generation)
                return StartOutcome(how="attached", run=await self._read(known.pk))
            case "replace":
                await self._flush()
                await terminate(self._db, known.pk, REPLACED, self._now_us)
                return await self._restart(request, known)
            case "restart":
                return await self._restart(request, known)
            case "return":
                return StartOutcome(how="returned", run=await self._read(known.pk))

    async def _repeat(self, request: StartRequest, run: int, generation: int) -> StartOutcome:
        """The call was made before and its answer lost: tell what it did (P4)."""
        record = await self._read(run)
        if record.generation != generation:
            record = await get_run(self._db, record.run_id, generation, self._now_us)
        claims = []
        if request.owner is not None and record.owner == request.owner:
            claims = await read_claims(self._db, request.owner, [run])
        return repeated(record, claims)

    def _insert(self, request: StartRequest) -> StartOutcome:
        pk, epoch = self._keys.pop()
        now_us, owner = self._now_us, request.owner
        ready_at_us = now_us if request.ready_at_us is None else request.ready_at_us
        is_delayed = ready_at_us > now_us and owner is None
        code = READY if owner is None else OWNED
        started_at_us = None if owner is None else now_us
        claim_no = 0 if owner is None else FIRST_CLAIM
        self._runs.append(
            (
                pk, request.run_id, epoch, request.workflow, request.version, request.task_queue, code, claim_no,
                owner, ready_at_us, is_delayed, request.deadline_us, now_us, started_at_us, request.parent,
                request.kind, request.retention_us,
            )
        )  # fmt: skip
        self._epochs.append(epoch)
        self._payloads.append((pk, 1, request.input))
        self._remember(request, pk, 1)
        self._known[request.run_id] = Known(pk, 1, code, request.workflow, request.input)
        new = New(
            pk=pk,
            epoch=epoch,
            ready_at_us=ready_at_us,
            is_delayed=is_delayed,
            deadline_us=request.deadline_us,
            created_at_us=now_us,
        )
        return started(request, new, None if owner is None else self._owner_names[owner])

    async def _restart(self, request: StartRequest, known: Known) -> StartOutcome:
        """Open the next generation, in the next epoch, of a closed run."""
        await self._flush()
        db, now_us, owner = self._db, self._now_us, request.owner
        if not await db.fetch("archive_generation", run=known.pk):
            raise InternalError(f"run {request.run_id!r} was to start anew but is not closed")
        ready_at_us = now_us if request.ready_at_us is None else request.ready_at_us
        code = READY if owner is None else OWNED
        generation, _epoch, claim_no, msg_seq = await db.row(
            "restart_run",
            run=known.pk,
            workflow=request.workflow,
            version=request.version,
            task_queue=request.task_queue,
            status=code,
            owner=owner,
            ready_at_us=ready_at_us,
            is_delayed=ready_at_us > now_us and owner is None,
            deadline_us=request.deadline_us,
            now_us=now_us,
            started_at_us=None if owner is None else now_us,
            parent=request.parent,
            kind=request.kind,
            retention_us=request.retention_us,
        )
        self._payloads.append((known.pk, generation, request.input))
        self._remember(request, known.pk, generation)
        self._known[request.run_id] = Known(known.pk, generation, code, request.workflow, request.input)
        return begun(await self._read(known.pk), owner, claim_no=claim_no, msg_seq=msg_seq)

    def _remember(self, request: StartRequest, run: int, generation: int) -> None:
        self._by_request[request.request_id] = (run, generation)
        self._seen.append((request.request_id, run, generation))

    async def _read(self, run: int) -> RunRecord:
        await self._flush()
        return await get_run_by_pk(self._db, run, self._now_us)

    async def _flush(self) -> None:
        if self._runs:
            await self._db.fetch(
                "insert_run", **dict(zip(_RUN_COLUMNS, columns(self._runs, len(_RUN_COLUMNS)), strict=True))
            )
            self._runs = []
        if self._payloads:
            runs, generations, inputs = columns(self._payloads, 3)
            await self._db.fetch("insert_run_payload", runs=runs, generations=generations, inputs=inputs)
            self._payloads = []
        if self._seen:
            ids, runs, generations = columns(self._seen, 3)
            await self._db.fetch("insert_request", request_ids=ids, runs=runs, generations=generations)
            self._seen = []


_RUN_COLUMNS: Final = (
    "ids",
    "run_ids",
    "epochs",
    "workflows",
    "versions",
    "task_queues",
    "statuses",
    "claim_nos",
    "owners",
    "ready_ats_us",
    "are_delayed",
    "deadlines_us",
    "created_ats_us",
    "started_ats_us",
    "parents",
    "kinds",
    "retentions_us",
)
