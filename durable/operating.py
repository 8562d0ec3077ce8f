"""What operators do to runs, and to the database that holds them: retry, resume, delete. Each verb of the store is one transaction."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from durable.connection import Connection
from durable.definitions import check_reason, check_run_id, check_text
from durable.errors import ArgumentsError, InternalError, WorkflowStateError
from durable.finding import Statuses, closed_statuses
from durable.journal import view
from durable.journal.events import ScheduleActivity
from durable.journal.lifecycle import RunStatus
from durable.journal.reopening import FailedActivity, Reopening, failed_activities, reopening
from durable.journal.turns import encode_turn, joined
from durable.reading import decode_entries
from durable.redelivery import redelivery_of
from durable.retry import Seconds, seconds
from durable.scheduler.retention import Deleted, delete_closed
from durable.store.contract import Store
from durable.store.records import ClosedRuns, FailedAttempt, PauseKind, Reopen, RunRecord


class Pruned(msgspec.Struct, frozen=True, kw_only=True):
    """What retention deleted; with `is_dry` what it would have."""

    runs: int
    journal_rows: int
    before: datetime  # only runs closed before this instant
    is_dry: bool


class Reopened(msgspec.Struct, frozen=True, kw_only=True):
    """The generation that a retry opened; with `is_dry` what it would be.

    `forgotten` names the activities that were completed and are not part of it, in that order: what they did is not undone,
    and the workflow asks for them again if it comes to them.
    """

    run_id: str
    generation: int
    kept_events: int  # of the former generation's journal
    forgotten: list[str]
    is_dry: bool


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A finished copy of a database."""

    path: str
    bytes: int


async def retry_run(
    connection: Connection, run_id: str, *, activity: str | int | None, from_start: bool, dry_run: bool
) -> Reopened:
    """See `RunHandle.retry`. Atomic: a run that somebody else retries meanwhile is not retried twice."""
    store = connection.store
    record = await store.get_run(check_run_id(run_id))
    if not record.status.is_closed or record.status is RunStatus.COMPLETED:
        text = f"run {run_id!r} is {record.status}: only a run that was closed without success can be retried"
        raise WorkflowStateError(run_id, str(record.status), text)
    turns = joined(await store.read_journal(record.pk, record.generation))
    now_us = connection.clock.now_us()
    failed = None if activity is None else _failed(record, failed_activities(turns), activity)
    kept = reopening(turns, now_us=now_us, attempt=record.attempt + 1, failed=failed)
    if kept is None:
        raise InternalError(f"run {run_id!r} is {record.status}, and its journal does not say how it ended")
    if failed is not None and (from_start or kept.is_undone):
        why = (
            "keeps nothing" if from_start else f"is there no more: run {run_id!r} has undone what it had done"
        )
        raise ArgumentsError(f"what stood before the failure of {failed.name!r} {why}; leave activity out")
    from_start = from_start or kept.is_undone
    if not dry_run:
        await store.reopen_run(_reopen(record, kept, from_start), now_us)
    return Reopened(
        run_id=run_id,
        generation=record.generation + 1,
        kept_events=0 if from_start else kept.kept_events,
        forgotten=list(kept.completed if from_start else kept.forgotten),
        is_dry=dry_run,
    )


def _failed(record: RunRecord, found: Sequence[FailedActivity], activity: str | int) -> FailedActivity:
    """Return the one failed activity that is meant."""
    meant = [one for one in found if is_meant(activity, number=one.number, name=one.name)]
    if not meant:
        names = ", ".join(f"{one.name} ({one.number})" for one in found) or "none did"
        raise ArgumentsError(f"no activity {activity!r} of run {record.run_id!r} failed: {names}")
    if len(meant) > 1:
        numbers = ", ".join(str(one.number) for one in meant)
        raise ArgumentsError(
            f"activity {activity!r} of run {record.run_id!r} failed {len(meant)} times: say which, by its number: {numbers}"
        )
    return meant[0]


async def retry_now(
    connection: Connection, run_id: str, activity: str | int | None, *, dry_run: bool
) -> list[str]:
    """See `RunHandle.retry_now`. One transaction for each activity."""
    store = connection.store
    record = await store.get_run(check_run_id(run_id))
    waiting = [] if record.status.is_closed else await _waiting_for_retry(store, record)
    meant = [
        one for one in waiting if activity is None or is_meant(activity, number=one.number, name=one.name)
    ]
    now_us = connection.clock.now_us
    begun = [one.name for one in meant if dry_run or await store.retry_now(one.failed, now_us())]
    if not begun:
        what = "no activity" if activity is None else f"no activity {activity!r}"
        others = f"; these do: {', '.join(one.name for one in waiting)}" if waiting and not meant else ""
        text = f"run {run_id!r} is {record.status}, and {what} of it waits for a retry{others}"
        raise WorkflowStateError(run_id, str(record.status), text)
    return begun


class _Waiting(NamedTuple):
    number: int
    name: str
    failed: FailedAttempt


async def _waiting_for_retry(store: Store, record: RunRecord) -> list[_Waiting]:
    """Return the activities of an open run that have failed, and whose next attempt is not due yet."""
    rows = await store.read_attempts(record.pk, record.generation)
    attempts = {row.op: row.attempt for row in rows if row.state == "backoff"}
    if any(row.completion == "remote" for row in rows):
        tasks = await store.read_tasks(record.pk, record.generation)
        attempts |= {
            task.op: task.attempt
            for task in tasks
            if task.attempt and task.state == "ready" and task.ready_at_us > task.now_us
        }
    entries = decode_entries(await store.read_journal(record.pk, record.generation)) if attempts else []
    return [
        _Waiting(
            number,
            entry.name,
            FailedAttempt(
                run_id=record.run_id,
                generation=record.generation,
                op=entry.op,
                attempt=attempts[entry.op],
            ),
        )
        for number, entry in enumerate(entries, 1)
        if isinstance(entry, ScheduleActivity) and entry.op in attempts
    ]


def is_meant(activity: str | int, *, number: int, name: str) -> bool:
    """Whether an activity is meant by its number in the journal, its name, or the end of its path."""
    if isinstance(activity, int):
        return number == activity
    return name == activity or name.endswith(f"/{activity}")


async def resume_run(connection: Connection, run_id: str) -> None:
    """See `RunHandle.resume`."""
    store, now_us = connection.store, connection.clock.now_us()
    was_paused = await store.resume_run(check_run_id(run_id), now_us)
    was_parked = await store.unpark_run(run_id, now_us)
    if not was_paused and not was_parked:
        status = (await store.get_run(run_id)).status
        text = f"run {run_id!r} is {status}: only a paused or parked run can be resumed"
        raise WorkflowStateError(run_id, str(status), text)


async def pause_named(connection: Connection, kind: PauseKind, name: str, *, reason: str | None) -> bool:
    """Hold a task queue, or the workers of a name, back; return False if they were paused already."""
    check_text(name, f"a {kind.replace('_', ' ')}")
    return await connection.store.pause(kind, name, check_reason(reason), connection.clock.now_us())


async def prune(
    connection: Connection,
    older_than: Seconds,
    *,
    status: Statuses,
    workflow: str | None,
    heeds_retention: bool,
    dry_run: bool,
) -> Pruned:
    """See `Client.prune`. Each batch is a transaction of its own: interrupted, it has deleted less."""
    store, clock = connection.store, connection.clock
    now_us = clock.now_us()
    before_us = now_us - round(seconds(older_than, what="older_than") * 1_000_000)
    chosen = ClosedRuns(
        before_us=before_us,
        expiry_us=now_us if heeds_retention else None,
        status=closed_statuses(status),
        workflow=workflow,
    )
    if dry_run:
        deleted = Deleted(runs=await store.count_closed_runs(chosen), journal_rows=0)
    else:
        deleted = await delete_closed(store, clock, chosen)
    return Pruned(
        runs=deleted.runs,
        journal_rows=deleted.journal_rows,
        before=view.instant(before_us),
        is_dry=dry_run,
    )


async def delete_run(connection: Connection, run_id: str) -> None:
    """See `Client.delete`. One that is opened again meanwhile stays."""
    store = connection.store
    record = await store.get_run(check_run_id(run_id))
    if not record.status.is_closed:
        raise WorkflowStateError(
            run_id,
            str(record.status),
            f"run {run_id!r} is {record.status}: only a closed run can be deleted",
        )
    now_us = connection.clock.now_us()
    await store.prune_runs([record.pk], ClosedRuns(before_us=now_us + 1, status=()), now_us)


def _reopen(record: RunRecord, kept: Reopening, from_start: bool) -> Reopen:
    """Return what the store is to do; from the start: the next epoch with an empty journal, as a new start would."""
    last = Reopen(
        pk=record.pk, run_id=record.run_id, generation=record.generation, attempt=record.attempt + 1
    )
    if from_start:
        return msgspec.structs.replace(last, attempt=1, new_epoch=True)
    return msgspec.structs.replace(
        last,
        copy_turns=kept.copy_turns,
        parts=encode_turn(0, kept.entries) if kept.entries else (),
        redeliver=tuple(map(redelivery_of, kept.messages)),
    )
