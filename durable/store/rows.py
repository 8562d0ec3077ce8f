"""Rows into records. Both databases name and order their columns alike; knows neither, nor any SQL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from durable.store.codes import HELD, READY, is_known, shown_status
from durable.store.records import (
    AttemptRow,
    CountBy,
    HeldTask,
    Message,
    OpenRuns,
    OpenTasks,
    RunRecord,
    Task,
    WorkerRecord,
)

NAMED_RUNS: Final = 10_000  # the newest ones, among which names of workflows are looked for

to_json: Final = msgspec.json.Encoder().encode


def json_text(value: object) -> str:
    """Return `value` as the JSON text that `json_each` takes."""
    return to_json(value).decode()


def run_record(row: Sequence[Any], now_us: int) -> RunRecord:
    """Return the record of a row of the view `run_seen`, with the run's retention behind it."""
    (
        pk, run_id, generation, epoch, workflow, version, task_queue, code, attempt, created, started, closed, deadline,
        due, ready_at, owner, owner_name, owner_is_alive, reason, input, result, failure, unread, paused_at, pause_reason,
        kind, parent, retention_us,
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
        kind=kind,
        parent=parent,
        retention_us=retention_us,
    )


def held_task(row: Sequence[Any]) -> HeldTask:
    task_id, claim_no, pk, generation, run_id, closing, close_reason = row
    return HeldTask(
        task_id=task_id,
        claim_no=claim_no,
        pk=pk,
        generation=generation,
        run_id=run_id,
        closing=closing,
        close_reason=close_reason,
    )


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


def messages_of(rows: Iterable[Sequence[Any]], pks: Sequence[int] | None) -> list[Message]:
    """The messages among `rows` that are of these runs; None: of any."""
    messages = [message(row) for row in rows]
    if pks is None or not messages:
        return messages
    chosen = frozenset(pks)
    return [one for one in messages if one.run_pk in chosen]


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


def task(row: Sequence[Any]) -> Task:
    """Return the record of a row of `read_task`."""
    (
        task_id, claim_no, pk, generation, op, run_id, epoch, workflow, task_queue, activity, name, key, args, policy,
        start_to_close, schedule_to_start, schedule_to_close, heartbeat, scheduled_at, state, ready_at, attempt, owner,
        owner_name, started_at, care_at, is_lost, failure, details, closing, close_reason, now_us,
    ) = row  # fmt: skip
    return Task(
        task_id=task_id,
        claim_no=claim_no,
        pk=pk,
        generation=generation,
        op=op,
        run_id=run_id,
        epoch=epoch,
        workflow=workflow,
        task_queue=task_queue,
        activity=activity,
        name=name,
        key=key,
        args=args,
        policy=policy,
        start_to_close_us=start_to_close,
        schedule_to_start_us=schedule_to_start,
        schedule_to_close_us=schedule_to_close,
        heartbeat_us=heartbeat,
        scheduled_at_us=scheduled_at,
        state=state,
        ready_at_us=ready_at,
        attempt=attempt,
        owner=owner,
        owner_name=owner_name,
        started_at_us=started_at,
        care_at_us=care_at,
        is_lost=bool(is_lost),
        failure=failure,
        details=details,
        closing=closing,
        close_reason=close_reason,
        now_us=now_us,
    )


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
        more_queues,
        activities,
        tasks,
        lease_us,
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
        more_queues=tuple(msgspec.json.decode(more_queues)),
        activities=tuple(msgspec.json.decode(activities)),
        tasks=tasks,
        lease_us=lease_us,
    )


def open_runs(rows: Sequence[Sequence[Any]]) -> tuple[OpenRuns, ...]:
    """Return the records of the rows of `open_runs`."""
    return tuple(
        OpenRuns(
            task_queue=task_queue,
            workflow=workflow,
            version=version,
            state=state,
            runs=runs,
            since_us=since_us,
        )
        for task_queue, workflow, version, state, runs, since_us in rows
    )


def open_tasks(rows: Sequence[Sequence[Any]]) -> tuple[OpenTasks, ...]:
    """Return the records of the rows of `open_tasks`."""
    return tuple(
        OpenTasks(task_queue=task_queue, activity=activity, state=state, tasks=tasks, since_us=since_us)
        for task_queue, activity, state, tasks, since_us in rows
    )


def counts_of(rows: Iterable[Sequence[Any]], by: CountBy | None) -> dict[str, int]:
    """Return what `count_runs` has found, the most first."""
    counts: Counter[str] = Counter()
    for name, count in rows:
        counts[_status_name(int(name)) if by == "status" else name] += count
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _status_name(code: int) -> str:
    """Return the status that `count_runs` means by a number."""
    return str(shown_status(READY, has_started=False) if code < 0 else shown_status(code, has_started=True))
