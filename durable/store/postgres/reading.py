"""The reads that more than one verb needs, and what patterns people write become in SQL. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from durable.errors import RunNotFoundError
from durable.store import refusals
from durable.store.codes import are_troubled, filter_codes
from durable.store.postgres.connection import Session
from durable.store.postgres.opened import Opened
from durable.store.records import AttemptRow, Claim, CountBy, JournalRow, RunFilter, RunRecord
from durable.store.refusals import RECENT_RUNS, generation_not_found
from durable.store.rows import NAMED_RUNS, attempt_row, counts_of, message, run_record


class Reading(Opened):
    """The verbs that only look."""

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        self._require_usable()
        now_us = self._clock.now_us()
        return await self._patiently(
            lambda: self._database.run(lambda db: get_run(db, run_id, generation, now_us))
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
        pattern = as_literal_like(text)
        found = await self._look("find_run_ids", prefix=f"{pattern}%", suffix=f"%{pattern}", count=limit)
        return [row["run_id"] for row in found]

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        is_troubled = bool(filter.status) and are_troubled(filter_codes(filter.status))
        name = "list_troubled_runs" if is_troubled else "list_runs"
        return self._records(await self._look(name, **filter_parameters(filter)))

    async def count_runs(self, filter: RunFilter, by: CountBy | None) -> dict[str, int]:
        chosen = filter_parameters(filter)
        for name in ("before_us", "before_run", "count"):
            del chosen[name]
        return counts_of(await self._look("count_runs", **chosen, by=by), by)

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]:
        return [JournalRow(*row) for row in await self._look("read_journal", run=pk, generation=generation)]

    async def last_turn(self, pk: int, generation: int) -> int:
        ((turn,),) = await self._look("last_turn", run=pk, generation=generation)
        return int(turn)

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
        return [attempt_row(row) for row in found]

    async def has_backlog(self, task_queues: Sequence[str], definitions: Sequence[tuple[str, int]]) -> bool:
        found = await self._look(
            "has_backlog",
            task_queues=list(task_queues),
            workflows=[workflow for workflow, _ in definitions],
            versions=[version for _, version in definitions],
        )
        return bool(found[0][0])

    async def recent_workflows(self) -> list[str]:
        return [row[0] for row in await self._look("recent_workflows", count=NAMED_RUNS)]

    def _records(self, found: Sequence[Any]) -> list[RunRecord]:
        now_us = self._clock.now_us()
        return [run_record(row, now_us) for row in found]


async def get_run(db: Session, run_id: str, generation: int | None, now_us: int) -> RunRecord:
    """Return a generation of a run, the latest by default; `RunNotFoundError` with near ids."""
    row = await db.row("get_run", run_id=run_id)
    if row is None:
        raise await run_not_found(db, run_id)
    record = run_record(row, now_us)
    if generation is None or generation == record.generation:
        return record
    row = await db.row("get_generation", run_id=run_id, generation=generation)
    if row is None:
        raise generation_not_found(run_id, generation, latest=record.generation)
    return run_record(row, now_us)


async def get_run_by_pk(db: Session, run: int, now_us: int) -> RunRecord:
    return run_record(await db.row("get_run_by_pk", run=run), now_us)


async def run_not_found(db: Session, run_id: str) -> RunNotFoundError:
    recent = [row[0] for row in await db.fetch("recent_run_ids", count=RECENT_RUNS)]
    return refusals.run_not_found(run_id, recent)


async def read_claims(db: Session, worker: int, pks: Sequence[int]) -> list[Claim]:
    """Return what driving needs for those of `pks` that the worker owns, each once, in that order, as of one moment."""
    if not pks:
        return []
    return [
        _claim(row) for row in await db.fetch("read_owned_runs", runs=list(dict.fromkeys(pks)), worker=worker)
    ]


def _claim(row: Sequence[Any]) -> Claim:
    (
        pk, run_id, generation, epoch, claim_no, workflow, version, task_queue, attempt, input, deadline, created,
        msg_seq, suspicion, parent, last_turn, idle_generations, *told,
    ) = row  # fmt: skip
    turns, unread, tried = told[:3], told[3:10], told[10:]
    return Claim(
        pk=pk,
        run_id=run_id,
        generation=generation,
        epoch=epoch,
        claim_no=claim_no,
        workflow=workflow,
        version=version,
        task_queue=task_queue,
        attempt=attempt,
        input=input,
        deadline_us=deadline,
        created_at_us=created,
        msg_seq=msg_seq,
        journal=[JournalRow(*line) for line in _lines(turns)],
        inbox=[message((line[0], pk, *line[1:])) for line in _lines(unread)],
        attempts=[attempt_row(line) for line in _lines(tried)],
        is_suspect=suspicion > 0,
        idle_generations=idle_generations,
        parent=parent,
        last_turn=last_turn,
    )


def _lines(columns: Sequence[list[Any] | None]) -> Iterable[tuple[Any, ...]]:
    """Turn the columns of an aggregate into its rows; no rows are no columns."""
    return zip(*(column or () for column in columns), strict=True)


def filter_parameters(filter: RunFilter) -> dict[str, object]:
    """Return the bound values of `list_runs`. `*` is the only wildcard a person may use."""
    before = filter.before or (None, None)
    return {
        "statuses": filter_codes(filter.status) if filter.status else None,
        "workflow": None if filter.workflow is None else as_like(filter.workflow),
        "task_queue": filter.task_queue,
        "run_id": None if filter.run_id is None else as_like(filter.run_id),
        "since_us": filter.created_since_us,
        "until_us": filter.created_until_us,
        "before_us": before[0],
        "before_run": before[1],
        "count": filter.limit,
    }


def as_like(text: str) -> str:
    """Return a LIKE pattern in which only `*` is special."""
    return as_literal_like(text).replace("*", "%")


def as_literal_like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
