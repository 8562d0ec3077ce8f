"""Rows into records, and the reads that need no transaction. Every function takes a connection and writes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from durable.errors import RunNotFoundError
from durable.store import refusals
from durable.store.codes import are_troubled, filter_codes
from durable.store.records import (
    AttemptRow,
    Claim,
    CountBy,
    JournalRow,
    Message,
    RunFilter,
    RunRecord,
)
from durable.store.refusals import RECENT_RUNS, generation_not_found
from durable.store.rows import NAMED_RUNS, attempt_row, counts_of, json_text, message, run_record
from durable.store.sqlite.opened import Opened
from durable.store.statements import Statements


class Reading(Opened):
    """The verbs that only look."""

    async def get_run(self, run_id: str, generation: int | None = None) -> RunRecord:
        with self._reading() as reader:
            return get_run(reader, self._sql, run_id, generation, self._clock.now_us())

    async def read_ended(self, runs: Sequence[tuple[int, int]]) -> list[RunRecord]:
        wanted = {"runs": json_text(runs)}
        with self._snapshot() as reader:
            rows = reader.execute(self._sql["read_ended"], wanted).fetchall()
            rows += reader.execute(self._sql["read_ended_earlier"], wanted).fetchall()
        now_us = self._clock.now_us()
        return [run_record(row, now_us) for row in rows]

    async def find_gone(self, pks: Sequence[int]) -> list[int]:
        with self._reading() as reader:
            return [row[0] for row in reader.execute(self._sql["find_gone"], {"runs": json_text(list(pks))})]

    async def find_run_ids(self, text: str, limit: int = 5) -> list[str]:
        pattern = as_literal_glob(text)
        rows = await self._scan(
            "find_run_ids", {"prefix": f"{pattern}*", "suffix": f"*{pattern}", "count": limit}
        )
        return [row[0] for row in rows]

    async def list_runs(self, filter: RunFilter) -> list[RunRecord]:
        is_troubled = bool(filter.status) and are_troubled(filter_codes(filter.status))
        if filter.with_large_payloads:
            name = "list_troubled_runs" if is_troubled else "list_runs"
        else:
            name = (
                "list_troubled_runs_without_large_payloads"
                if is_troubled
                else "list_runs_without_large_payloads"
            )
        rows = await self._scan(name, filter_parameters(filter))
        now_us = self._clock.now_us()
        return [run_record(row, now_us) for row in rows]

    async def count_runs(self, filter: RunFilter, by: CountBy | None) -> dict[str, int]:
        return counts_of(await self._scan("count_runs", {**filter_parameters(filter), "by": by}), by)

    async def read_journal(self, pk: int, generation: int) -> list[JournalRow]:
        with self._reading() as reader:
            rows = reader.execute(self._sql["read_journal"], {"run": pk, "generation": generation})
            return [JournalRow(*row) for row in rows]

    async def last_turn(self, pk: int, generation: int) -> int:
        with self._reading() as reader:
            chosen = {"run": pk, "generation": generation}
            return int(reader.execute(self._sql["last_turn"], chosen).fetchone()[0])

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
            return [attempt_row(row) for row in rows]

    async def has_backlog(self, task_queues: Sequence[str], definitions: Sequence[tuple[str, int]]) -> bool:
        chosen = {"task_queues": json_text(task_queues), "definitions": json_text(definitions)}
        with self._reading() as reader:
            return bool(reader.execute(self._sql["has_backlog"], chosen).fetchone()[0])

    async def recent_workflows(self) -> list[str]:
        return [row[0] for row in await self._scan("recent_workflows", {"count": NAMED_RUNS})]


def get_run(
    db: sqlite3.Connection, sql: Statements, run_id: str, generation: int | None, now_us: int
) -> RunRecord:
    """Return a generation of a run, the latest by default; `RunNotFoundError` with near ids."""
    row = db.execute(sql["get_run"], {"run_id": run_id}).fetchone()
    if row is None:
        raise run_not_found(db, sql, run_id)
    record = run_record(row, now_us)
    if generation is None or generation == record.generation:
        return record
    row = db.execute(sql["get_generation"], {"run_id": run_id, "generation": generation}).fetchone()
    if row is None:
        raise generation_not_found(run_id, generation, latest=record.generation)
    return run_record(row, now_us)


def get_run_by_pk(db: sqlite3.Connection, sql: Statements, run: int, now_us: int) -> RunRecord:
    return run_record(db.execute(sql["get_run_by_pk"], {"run": run}).fetchone(), now_us)


def run_not_found(db: sqlite3.Connection, sql: Statements, run_id: str) -> RunNotFoundError:
    recent = [row[0] for row in db.execute(sql["recent_run_ids"], {"count": RECENT_RUNS})]
    return refusals.run_not_found(run_id, recent)


def read_claims(db: sqlite3.Connection, sql: Statements, worker: int, pks: Sequence[int]) -> list[Claim]:
    """Return what driving needs for those of `pks` that the worker owns, in that order. Run it in one transaction."""
    chosen = {"runs": json_text(list(dict.fromkeys(pks))), "worker": worker}  # named twice, told once
    journals: dict[int, list[JournalRow]] = {}
    inboxes: dict[int, list[Message]] = {}
    attempts: dict[int, list[AttemptRow]] = {}
    for run, turn, part, data in db.execute(sql["read_owned_journals"], chosen):
        journals.setdefault(run, []).append(JournalRow(turn, part, data))
    for row in db.execute(sql["read_owned_inboxes"], chosen):
        inboxes.setdefault(row[1], []).append(message(row))
    for row in db.execute(sql["read_owned_attempts"], chosen):
        attempts.setdefault(row[0], []).append(attempt_row(row[1:]))
    claims = []
    for row in db.execute(sql["read_owned_runs"], chosen):
        (
            pk, run_id, generation, epoch, claim_no, workflow, version, task_queue, attempt, input, deadline, created,
            msg_seq, suspicion, parent, last_turn, idle_generations,
        ) = row  # fmt: skip
        claims.append(
            Claim(
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
                parent=parent,
                last_turn=last_turn,
                journal=journals.get(pk, []),
                inbox=inboxes.get(pk, []),
                attempts=attempts.get(pk, []),
                is_suspect=suspicion > 0,
                idle_generations=idle_generations,
            )
        )
    return claims


def filter_parameters(filter: RunFilter) -> dict[str, object]:
    """Return the bound values of `list_runs`. `*` is the only wildcard a person may use."""
    before = filter.before or (None, None)
    return {
        "statuses": json_text(filter_codes(filter.status)) if filter.status else None,
        "workflow": None if filter.workflow is None else as_glob(filter.workflow),
        "task_queue": filter.task_queue,
        "run_id": None if filter.run_id is None else as_glob(filter.run_id),
        "since_us": filter.created_since_us,
        "until_us": filter.created_until_us,
        "before_us": before[0],
        "before_run": before[1],
        "count": filter.limit,
    }


def as_glob(text: str) -> str:
    """Return a GLOB pattern in which only `*` is special."""
    return text.replace("[", "[[]").replace("?", "[?]")


def as_literal_glob(text: str) -> str:
    return as_glob(text).replace("*", "[*]")
