"""Why a run is not moving: gathers from the store what `journal/why.py` explains. Changes nothing."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from durable import failures
from durable.connection import Connection
from durable.describing import read_story
from durable.holding import hold_of
from durable.journal import view
from durable.journal.events import Retried
from durable.journal.lifecycle import RunStatus
from durable.journal.why import Facts, Why, explain
from durable.payloads.codec import shown_text
from durable.reading import decode_failure
from durable.seams import EPOCH
from durable.store.records import RunRecord, WorkerRecord

# A worker that did not beat for its lease counts as lost in what people are told; one that does not tell its lease, after so long.
SILENT_SECONDS: Final = 30.0


async def read_why(connection: Connection, record: RunRecord) -> Why:
    """Look at a run, its journal, and which workers are alive; return the one reason."""
    entries, story, fault = await read_story(connection.store, record)
    is_beginning = not entries or isinstance(entries[-1], Retried)
    return explain(await _facts(connection, record, fault=fault, is_beginning=is_beginning), story)


async def _facts(connection: Connection, record: RunRecord, *, fault: str, is_beginning: bool) -> Facts:
    """Return what there is to know besides the journal; `fault` says why that cannot be read."""
    store, now_us = connection.store, connection.clock.now_us()
    workers = await store.list_workers()
    lost = set(await store.find_lost_workers())
    lost.update(one.worker_id for one in workers if _is_silent(one, now_us))
    living = [one for one in workers if one.worker_id not in lost and not one.embedded]
    failure = decode_failure(record.failure)
    error = None if failure is None else failures.describe(failure)
    wanted = (record.workflow, record.version)
    serving = tuple(
        one.name for one in living if record.task_queue in one.task_queues and wanted in one.definitions
    )
    hold = hold_of(record, await store.list_pauses(), now_us, serving=serving)
    return Facts(
        run_id=record.run_id,
        generation=record.generation,
        workflow=record.workflow,
        version=record.version,
        task_queue=record.task_queue,
        status=record.status,
        outcome=_outcome(record, fault, error),
        now=EPOCH + timedelta(microseconds=now_us),
        due_at=None if record.due_at_us is None else view.instant(record.due_at_us),
        closed_at=None if record.closed_at_us is None else view.instant(record.closed_at_us),
        owner=record.owner_name,
        owner_fault=_owner_fault(record, lost),
        unread=record.unread,
        is_beginning=is_beginning,
        serving=serving,
        pause="" if hold is None else hold.text,
        paused_at=None if hold is None else hold.since,
        paused_name="" if hold is None else hold.name,
        nearby=_nearby(record, living),
    )


def _is_silent(worker: WorkerRecord, now_us: int) -> bool:
    """Whether its last beat is so old that any other worker would take it over."""
    lease_us = worker.lease_us or round(SILENT_SECONDS * 1_000_000)
    return worker.beat_at_us is not None and worker.beat_at_us < now_us - lease_us


def _owner_fault(record: RunRecord, lost: set[int]) -> str:
    """Say why the owner of a run counts as lost; nothing if it does not."""
    if record.owner is None or (record.owner_is_alive and record.owner not in lost):
        return ""
    return "is dead or hangs"


def _outcome(record: RunRecord, unreadable: str, error: str | None) -> str:
    """Say how a run ended; of a parked one, what its worker met, which names more than we do; `unreadable`: why its journal is."""
    reason = shown_text(record.reason)
    found = (reason, unreadable, error) if record.status is RunStatus.PARKED else (unreadable, error, reason)
    return next((one for one in found if one), "")


def _nearby(record: RunRecord, living: list[WorkerRecord]) -> str:
    """Say which living worker nearly serves a run: the right queue with another version, or the other way round."""
    for worker in living:
        versions = [version for workflow, version in worker.definitions if workflow == record.workflow]
        if record.version in versions:
            return f'worker {worker.name} serves it on queue "{", ".join(worker.task_queues)}"'
        if versions and record.task_queue in worker.task_queues:
            return f"worker {worker.name} serves version {', '.join(map(str, versions))}"
    return ""
