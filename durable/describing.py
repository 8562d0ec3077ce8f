"""A run as people are told of it: its row, its story, what it waits for. Reads; why it does not move is `reasons.py`'s business."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial

from durable import failures
from durable.connection import Connection
from durable.definitions import FOR_EVER, LOCAL_TASK_QUEUE, ForEver, WorkflowDefinition
from durable.errors import ArgumentsError, UndecodableError, WorkflowVersionMismatchError
from durable.finding import next_page
from durable.holding import hold_of
from durable.journal import view
from durable.journal.events import AnyEntry, Started
from durable.journal.lifecycle import RunStatus
from durable.journal.reopening import COMPENSATION
from durable.journal.view import Ask, AttemptView, Blocker
from durable.journal.why import LOCAL_ADVICE
from durable.payloads.codec import shown_text
from durable.reading import decode_entries, decode_failure
from durable.run_handle import Run
from durable.seams import EPOCH, ThreadExecutor
from durable.stacks import Stack, rebuilt_stack, recorded_stack
from durable.store.contract import Store
from durable.store.records import AttemptRow, RunFilter, RunRecord


async def describe_found(
    connection: Connection, chosen: RunFilter, wanted: Sequence[RunStatus], *, limit: int, journals: bool
) -> list[Run]:
    """Return the runs that fit, at most `limit`: of those whose rows do, the ones that are told to be in a wanted status."""
    found: list[Run] = []
    page: RunFilter | None = chosen
    while page is not None and len(found) < limit:
        records = await connection.store.list_runs(page)
        described = [await describe(connection, record, with_journal=journals) for record in records]
        found.extend(run for run in described if not wanted or run.status in wanted)
        page = next_page(page, records)
    return found[:limit]


async def read_story(store: Store, record: RunRecord) -> tuple[list[AnyEntry], view.Story | None, str]:
    """Return the journal and its story; None and why, if it cannot be read."""
    try:
        rows = await store.read_journal(record.pk, record.generation)
        attempts = await store.read_attempts(record.pk, record.generation)
        entries = decode_entries(rows)
        story = view.tell(
            entries,
            {
                row.op: AttemptView(
                    attempt=row.attempt,
                    state="open" if row.completion in ("open", "answered") else row.state,
                    due_at_us=row.due_at_us,
                    failure=decode_failure(row.failure),
                )
                for row in attempts
                if row.attempt or row.state == "handed_back"
            }
            | await _read_tasks(store, record, attempts),
            key_prefix=f"{record.run_id}@{record.epoch}/",
        )
    except UndecodableError as error:
        return [], None, str(error)
    return entries, story, ""


async def _read_tasks(store: Store, record: RunRecord, rows: Sequence[AttemptRow]) -> dict[int, AttemptView]:
    """Return how the activities of a run stand that workers of other queues perform."""
    if not any(row.completion == "remote" for row in rows):
        return {}
    living = [one for one in await store.list_workers() if not one.embedded]
    paused = {one.name for one in await store.list_pauses() if one.kind == "task_queue"}
    found = {}
    for task in await store.read_tasks(record.pk, record.generation):
        serving = any(
            task.task_queue in one.task_queues and task.activity in one.activities for one in living
        )
        is_due = task.ready_at_us <= task.now_us
        state = {"ready": "queued" if is_due else "backoff", "lost": "queued"}.get(task.state, task.state)
        found[task.op] = AttemptView(
            attempt=task.attempt,
            state=state,
            due_at_us=task.ready_at_us,
            failure=decode_failure(task.failure),
            worker=task.owner_name or "",
            hold="paused" if task.task_queue in paused else "" if serving else "no_worker",
        )
    return found


async def describe(connection: Connection, record: RunRecord, *, with_journal: bool = True) -> Run:
    """Return what is told of a run; without its journal only as much of that is read as it takes to say what it waits for."""
    now_us = connection.clock.now_us()
    now = EPOCH + timedelta(microseconds=now_us)
    blocker = None if record.status.is_closed else await _blocker(connection.store, record, now_us)
    story: view.Story | None = None
    told: list[AnyEntry] = []
    fault = ""
    if with_journal or (blocker is None and not record.status.is_closed):
        told, story, fault = await read_story(connection.store, record)
    status = record.status
    waiting = [] if blocker is None else [blocker]
    if fault:
        waiting = [Blocker(kind="nothing", name="", text=fault)]
    elif story is not None and not status.is_closed:
        waiting = waiting or _waiting_on(story, now)
        if (
            status is RunStatus.RUNNING
            and record.owner_is_alive
            and story.open
            and not record.unread
            and not any(line.is_activity for line in story.open)
        ):
            status = RunStatus.WAITING  # kept warm by its worker, yet it waits
        if not status.is_closed and any(line.kind == COMPENSATION for line in story.open):
            status = RunStatus.COMPENSATING
    failure = decode_failure(record.failure)
    return Run(
        run_id=record.run_id,
        kind=record.kind or _kind_of(told),
        parent=record.parent,
        workflow=record.workflow,
        version=record.version,
        generation=record.generation,
        status=status,
        task_queue=record.task_queue,
        attempts=record.attempt,
        input=view.plain(record.input),
        result=view.plain(record.result),
        error=None if failure is None else failures.describe(failure),
        failure=failure,
        reason=shown_text(record.reason),
        created_at=view.instant(record.created_at_us),
        started_at=None if record.started_at_us is None else view.instant(record.started_at_us),
        closed_at=None if record.closed_at_us is None else view.instant(record.closed_at_us),
        deadline=None if record.deadline_us is None else view.instant(record.deadline_us),
        worker=record.owner_name,
        journal=story.entries if story is not None and with_journal else [],
        waiting_on=waiting,
        paused_at=None if record.paused_at_us is None else view.instant(record.paused_at_us),
        pause_reason=shown_text(record.pause_reason),
        retention=_retention(record.retention_us),
    )


def _retention(retention_us: int | None) -> timedelta | ForEver | None:
    if retention_us is None:
        return None
    return "forever" if retention_us == FOR_EVER else timedelta(microseconds=retention_us)


async def _blocker(store: Store, record: RunRecord, now_us: int) -> Blocker | None:
    """Return what an open run waits for, as far as its row says it; None: its journal does."""
    if record.status is RunStatus.PARKED:
        return Blocker(kind="nothing", name="parked", text=shown_text(record.reason) or "parked")
    hold = hold_of(record, await store.list_pauses(), now_us)
    if hold is not None:
        return Blocker(kind="nothing", name="paused", text=hold.text)
    if record.owner is None and record.status is not RunStatus.WAITING:
        if record.due_at_us is not None and record.due_at_us > now_us:
            text = f"start in {view.duration_text((record.due_at_us - now_us) / 1_000_000)}"
            return Blocker(kind="timer", name="start", text=text, due_at=view.instant(record.due_at_us))
        if record.task_queue == LOCAL_TASK_QUEUE:
            text = f"its own script, run again: {LOCAL_ADVICE}"
            return Blocker(kind="nothing", name="script", text=text)
        text = f'a worker for {record.workflow} version {record.version} on queue "{record.task_queue}"'
        return Blocker(kind="nothing", name="worker", text=text)
    if record.owner is not None and not record.owner_is_alive:
        return Blocker(kind="nothing", name="worker", text="its worker died: another will take over")
    if record.unread:
        return Blocker(kind="nothing", name="worker", text=f"its worker: {record.unread} unread messages")
    return None


def _waiting_on(story: view.Story, now: datetime) -> list[Blocker]:
    if not story.entries and story.last_at is None:
        return [Blocker(kind="nothing", name="worker", text="its worker: first turn")]
    return view.blockers(story, now)


def _kind_of(entries: list[AnyEntry]) -> str:
    """Return "workflow", or the pattern a run was made from: of one that was stored before its row told that."""
    first = entries[0] if entries else None
    return (first.kind or "workflow") if isinstance(first, Started) else "workflow"


def open_asks(run: Run) -> list[Ask]:
    """Return the questions that a run, described with its journal, waits to have answered by people."""
    since = {line.ask: line.started_at for line in run.journal if line.ask}
    return [
        Ask(
            run_id=run.run_id,
            workflow=run.workflow,
            name=one.name,
            prompt=one.prompt,
            id=one.ask,
            since=since[one.ask],
            due_at=one.due_at,
        )
        for one in run.waiting_on
        if one.ask
    ]


async def read_stack(
    store: Store, record: RunRecord, definition: WorkflowDefinition | None, *, with_values: bool = False
) -> Stack:
    """Return where a run stands: rebuilt by replay in a thread, if there is its code and it is open; else from its journal."""
    if definition is not None:
        _check_same(record, definition)
    if definition is None or record.status.is_closed:
        _, story, fault = await read_story(store, record)
        if story is None:
            raise UndecodableError(fault, run_id=record.run_id)
        return recorded_stack(record, story)
    rows = await store.read_journal(record.pk, record.generation)
    executor = ThreadExecutor(1, name="durable-stack")
    try:
        return await executor.submit(
            partial(rebuilt_stack, record, rows, definition, with_values=with_values)
        )
    finally:
        executor.close()


def _check_same(record: RunRecord, definition: WorkflowDefinition) -> None:
    if record.workflow != definition.name:
        raise ArgumentsError(
            f"run {record.run_id!r} is of workflow {record.workflow!r}, not {definition.name!r}"
        )
    if record.version != definition.version:
        raise WorkflowVersionMismatchError(record.run_id, record.version, definition.version)
