"""Rows into records, and the reads that need no transaction. Every function takes a connection and writes nothing."""

from __future__ import annotations

import difflib
import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from durable.errors import RunNotFoundError
from durable.store.records import (
    AttemptRow,
    Backlog,
    Claim,
    JournalRow,
    Message,
    RunFilter,
    RunRecord,
    WorkerRecord,
)
from durable.store.sqlite.codes import HELD, READY, filter_codes, is_known, shown_status
from durable.store.statements import Statements

_RECENT: Final = 500  # ids compared with a mistyped one

to_json: Final = msgspec.json.Encoder().encode


def json_text(value: object) -> str:
    """Return `value` as the JSON text that `json_each` takes."""
    return to_json(value).decode()


def run_record(row: Sequence[Any], now_us: int) -> RunRecord:
    """Return the record of a row of the view `run_seen`."""
    (
        pk, run_id, generation, epoch, workflow, version, task_queue, code, attempt, created, started, closed, deadline,
        due, ready_at, owner, owner_name, owner_is_alive, reason, input, result, failure, unread, paused_at, pause_reason,
    ) = row  # fmt: skip
    if code in (READY, HELD) and ready_at > now_us:
        due = ready_at
    if not is_known(code):
        reason = f"its row is damaged: there is no status {code}"
    return RunRecord(
        pk=pk,
        run_id=run_id,
        generation=generation,
        epoch=epoch,
        workflow=workflow,
        version=version,
        task_queue=task_queue,
        status=shown_status(code, has_started=started is not None),
        attempt=attempt,
        created_at_us=created,
        started_at_us=started,
        closed_at_us=closed,
        deadline_us=deadline,
        due_at_us=due,
        owner=owner,
        owner_name=owner_name,
        owner_is_alive=bool(owner_is_alive),
        reason=reason,
        input=b"" if input is None else input,  # its row is missing: as good as damaged
        result=result,
        failure=failure,
        unread=unread,
        paused_at_us=paused_at,
        pause_reason=pause_reason,
    )


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
        near = [f"{run_id}@{known}" for known in (1, record.generation)]
        raise RunNotFoundError(f"{run_id}@{generation}", suggestions=list(dict.fromkeys(near)))
    return run_record(row, now_us)


def get_run_by_pk(db: sqlite3.Connection, sql: Statements, run: int, now_us: int) -> RunRecord:
    return run_record(db.execute(sql["get_run_by_pk"], {"run": run}).fetchone(), now_us)


def run_not_found(db: sqlite3.Connection, sql: Statements, run_id: str) -> RunNotFoundError:
    recent = [row[0] for row in db.execute(sql["recent_run_ids"], {"count": _RECENT})]
    return RunNotFoundError(run_id, suggestions=difflib.get_close_matches(run_id, recent, n=3))


def message(row: Sequence[Any]) -> Message:
    inbox_id, run_pk, msg, kind, name, data, message_id, sent_at_us = row
    return Message(
        inbox_id=inbox_id,
        run_pk=run_pk,
        msg=msg,
        kind=kind,
        name=name,
        data=data,
        message_id=message_id,
        sent_at_us=sent_at_us,
    )


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
            msg_seq, suspicion, last_turn,
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
                last_turn=last_turn,
                journal=journals.get(pk, []),
                inbox=inboxes.get(pk, []),
                attempts=attempts.get(pk, []),
                is_suspect=suspicion > 0,
            )
        )
    return claims


def attempt_row(row: Sequence[Any]) -> AttemptRow:
    op, attempt, state, due_at_us, failure, details, completion, limit_at_us, heartbeat_us = row
    return AttemptRow(
        op=op,
        attempt=attempt,
        state=state,
        due_at_us=due_at_us,
        failure=failure,
        details=details,
        completion=completion,
        limit_at_us=limit_at_us,
        heartbeat_us=heartbeat_us,
    )


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


def worker_record(row: Sequence[Any]) -> WorkerRecord:
    (
        worker_id,
        name,
        host,
        pid,
        task_queue,
        is_embedded,
        is_alive,
        started,
        stopped,
        definitions,
        runs,
        beat,
    ) = row
    return WorkerRecord(
        worker_id=worker_id,
        name=name,
        host=host,
        pid=pid,
        task_queue=task_queue,
        embedded=bool(is_embedded),
        is_alive=bool(is_alive),
        started_at_us=started,
        stopped_at_us=stopped,
        runs=runs,
        definitions=tuple((workflow, version) for workflow, version in msgspec.json.decode(definitions)),
        beat_at_us=beat,
    )


def backlog(row: Sequence[int]) -> Backlog:
    ready, owned, timers, idle = row
    return Backlog(ready=ready, owned=owned, timers=timers, idle=idle)
