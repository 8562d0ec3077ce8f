"""The reads that more than one verb needs, and what patterns people write become in SQL. Writes nothing."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any, Final

from durable.errors import RunNotFoundError
from durable.store.postgres.connection import Session
from durable.store.records import Claim, JournalRow, RunFilter, RunRecord
from durable.store.sqlite.codes import filter_codes
from durable.store.sqlite.reading import attempt_row, message, run_record

_RECENT: Final = 500  # ids compared with a mistyped one


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
        near = [f"{run_id}@{known}" for known in (1, record.generation)]
        raise RunNotFoundError(f"{run_id}@{generation}", suggestions=list(dict.fromkeys(near)))
    return run_record(row, now_us)


async def get_run_by_pk(db: Session, run: int, now_us: int) -> RunRecord:
    return run_record(await db.row("get_run_by_pk", run=run), now_us)


async def run_not_found(db: Session, run_id: str) -> RunNotFoundError:
    recent = [row[0] for row in await db.fetch("recent_run_ids", count=_RECENT)]
    return RunNotFoundError(run_id, suggestions=difflib.get_close_matches(run_id, recent, n=3))


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
        msg_seq, suspicion, last_turn, *told,
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
