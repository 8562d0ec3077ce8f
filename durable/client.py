"""The client: start runs, find them, talk to them. Knows the store; drives nothing."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, ParamSpec, Protocol, Self, TypeVar

import msgspec

from durable import failures
from durable.definitions import LOCAL_TASK_QUEUE, WorkflowDefinition, shown
from durable.errors import (
    ActivityClosedError,
    ArgumentsError,
    DefinitionError,
    InternalError,
    LeaseLostError,
    UndecodableError,
    WorkflowStateError,
    WorkflowVersionMismatchError,
)
from durable.holding import hold_of
from durable.journal import view
from durable.journal.answering import answered_already, choose_ask
from durable.journal.asks import answer_id
from durable.journal.events import AnyEntry, Retried, Started
from durable.journal.lifecycle import RunStatus
from durable.journal.reopening import COMPENSATION, Reopening, reopening
from durable.journal.turns import encode_turn, joined
from durable.journal.view import Ask, AttemptView, Blocker
from durable.journal.why import LOCAL_ADVICE, Facts, Why, explain
from durable.limits import DEFAULT_LIMITS, NAME_LENGTH_MAX, REASON_LENGTH_MAX, Limits
from durable.outcomes import OutcomeWatch
from durable.payloads import ValueType
from durable.payloads.codec import PayloadCodec, check_codec, shown_text
from durable.retry import Seconds, seconds
from durable.run_handle import Run, RunHandle, decode_entries, decode_failure
from durable.scheduler.retention import Deleted, delete_closed
from durable.seams import EPOCH, Clock, Random, SystemRandom, ThreadExecutor, pause
from durable.stacks import Stack, rebuilt_stack, recorded_stack
from durable.store.contract import Store
from durable.store.opening import (
    Durability,
    clock_for,
    masked,
    open_store,
    read_pending_migrations,
    read_schema,
)
from durable.store.records import (
    ActivityAnswer,
    Claim,
    ClosedRuns,
    IfClosed,
    IfOpen,
    PauseKind,
    PauseRecord,
    PendingMigration,
    Redelivery,
    Reopen,
    Rescue,
    RunFilter,
    RunRecord,
    Schema,
    StartOutcome,
    StartRequest,
    StoreHealth,
    WorkerRecord,
)
from durable.store.sealing import sealed
from durable.tokens import parse_token
from durable.workflows import Signal, Workflow

P = ParamSpec("P")
R = TypeVar("R")

TABLE_LENGTH_MAX: Final = 63  # what Postgres keeps of a name
LIST_PAGE_MAX = 1000
TOKEN_SECONDS: Final = 1.0  # a token may be quicker than the note that it was given out
TOKEN_LOOK_SECONDS: Final = 0.02
SILENT_SECONDS: Final = (
    30.0  # a worker whose last beat is older than this counts as lost in what people are told
)


class Address(NamedTuple):
    """How to reach one database, and to read it."""

    url: str  # with its password
    codec: PayloadCodec | None = None
    limits: Limits = DEFAULT_LIMITS

    def __repr__(self) -> str:
        return f"<address {masked(self.url)}>"


# The database of the worker whose activity is running: what the activity starts goes there, not to the default.
address_here: ContextVar[Address | None] = ContextVar("durable_address", default=None)
_any = ValueType.of(Any)


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
    forgotten: builtins.list[str]
    is_dry: bool


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """A finished copy of a database."""

    path: str
    bytes: int


class LocalWorker(Protocol):
    """A worker on this client's store and loop, as the client sees it."""

    @property
    def worker_id(self) -> int:
        """Return its incarnation, 0 if it has none."""

    def reserve_room(self, request: StartRequest, wanted: int) -> int:
        """Take places for up to `wanted` runs of this kind that it would begin to drive at once; return how many."""
        ...

    def return_room(self, places: int) -> None:
        """Give back what `reserve_room` took."""
        ...

    def adopt(self, claim: Claim) -> None:
        """Drive a run that was started as its own."""


class Client:
    """A connection to one database of runs. Use it as `async with durable.connect(url) as client`.

    One client belongs to one event loop; it may be shared by everything on that loop.
    """

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = "full",
        create: bool = True,
        codec: PayloadCodec | None = None,
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        if codec is not None:
            check_codec(codec)
        self._url = url
        self._codec = codec
        self.limits = limits
        self._durability = durability
        self._create = create
        self.clock = clock or clock_for(url)
        self.random = random or SystemRandom()
        self._store: Store | None = None
        self._watch: OutcomeWatch | None = None
        self._workers: builtins.list[LocalWorker] = []

    # ─ opening ──

    async def open(self) -> Self:
        """Open (create, migrate) the database. `async with` does this."""
        if self._store is None:
            store = await open_store(
                self._url, durability=self._durability, clock=self.clock, create=self._create
            )
            self._store = sealed(store, self._codec)
            self._watch = OutcomeWatch(self._store, self.clock)
        return self

    async def close(self) -> None:
        """Close the database. Idempotent."""
        store, watch = self._store, self._watch
        self._store = self._watch = None
        if watch is not None:
            await watch.close()
        if store is not None:
            await store.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The database's address, password masked."""
        return masked(self._url)

    @property
    def address(self) -> Address:
        """The address with its password, the codec and the limits. Internal to this library."""
        return Address(self._url, self._codec, self.limits)

    @property
    def store(self) -> Store:
        """The opened store; internal to this library."""
        if self._store is None:
            raise DefinitionError("the client is not open: use `async with durable.connect(url) as client`")
        return self._store

    @property
    def watch(self) -> OutcomeWatch:
        """Who waits for which run; internal to this library."""
        if self._watch is None:
            raise DefinitionError("the client is not open: use `async with durable.connect(url) as client`")
        return self._watch

    # ─ starting ──

    async def start(
        self,
        workflow: Workflow[P, R],
        *args: object,
        run_id: str | None = None,
        task_queue: str | None = None,
        delay: Seconds | None = None,
        if_open: IfOpen = "attach",
        if_closed: IfClosed = "return",
        **kwargs: object,
    ) -> RunHandle[R]:
        """Store a run for a worker, and return its handle. Returned means it will run, whatever dies next.

        `run_id` defaults to `name-xxxxxxxx`. `delay` (seconds or timedelta) holds the start back. If the id has an open run:
        "attach" to it, "fail" with `RunConflictError`, or "terminate" it and start anew. If it has a closed one:
        "return" that, "fail", start "new", or "new_if_failed". Attaching and returning need the same input. All of it is
        decided in one transaction. Raises `ArgumentsError`, `PayloadError`, `RunConflictError`.
        """
        definition = workflow.definition
        request = self.start_request(
            definition,
            args,
            kwargs,
            run_id=workflow.run_id if run_id is None else run_id,
            task_queue=workflow.task_queue if task_queue is None else task_queue,
            delay=delay,
            if_open=if_open,
            if_closed=if_closed,
        )
        (outcome,) = await self._start_runs([request])
        return self.handle_of(outcome.run, definition.result)

    async def start_many(
        self,
        workflow: Workflow[P, R],
        inputs: Sequence[tuple[object, ...]],
        *,
        run_ids: Sequence[str] | None = None,
        task_queue: str | None = None,
    ) -> builtins.list[RunHandle[R]]:
        """Store one run per argument tuple, all in one transaction: all or none. Errors as in `start`."""
        if run_ids is not None and len(run_ids) != len(inputs):
            raise ArgumentsError(f"{len(inputs)} inputs but {len(run_ids)} run ids")
        definition = workflow.definition
        requests = [
            self.start_request(
                definition,
                args,
                {},
                run_id=run_ids[i] if run_ids is not None else None,
                task_queue=workflow.task_queue if task_queue is None else task_queue,
            )
            for i, args in enumerate(inputs)
        ]
        outcomes = await self._start_runs(requests)
        return [self.handle_of(outcome.run, definition.result) for outcome in outcomes]

    async def _start_runs(self, requests: builtins.list[StartRequest]) -> builtins.list[StartOutcome]:
        """Start runs of one workflow and queue: as many as a worker of this process has room for are its own from the start.

        That spares the transaction that claims them. If the caller is cancelled before the worker is told, it finds them.
        """
        for worker in self._workers:
            owner = worker.worker_id
            room = worker.reserve_room(requests[0], len(requests)) if owner and requests else 0
            if room <= 0:
                continue
            owned = [msgspec.structs.replace(request, owner=owner) for request in requests[:room]]
            try:
                outcomes = await self.store.start_runs(owned + requests[room:], self.clock.now_us())
            except LeaseLostError:
                break  # it was declared dead, and does not know yet
            finally:
                worker.return_room(room)
            for outcome in outcomes:
                if outcome.claim is not None and worker.worker_id == owner:
                    worker.adopt(outcome.claim)
            return outcomes
        return await self.store.start_runs(requests, self.clock.now_us())

    def add_worker(self, worker: LocalWorker) -> Callable[[], None]:
        """Let a worker of this process drive what is started here; return the undoing. Internal to this library."""
        self._workers.append(worker)
        return lambda: self._workers.remove(worker)

    def start_request(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        run_id: str | None = None,
        task_queue: str | None = None,
        delay: Seconds | None = None,
        if_open: IfOpen = "attach",
        if_closed: IfClosed = "return",
        owner: int | None = None,
    ) -> StartRequest:
        """Return the checked request for one start; nothing is written. Internal to this library."""
        if if_open not in ("attach", "fail", "terminate"):
            raise ArgumentsError(f"if_open is 'attach', 'fail' or 'terminate', not {if_open!r}")
        if if_closed not in ("return", "fail", "new", "new_if_failed"):
            raise ArgumentsError(
                f"if_closed is 'return', 'fail', 'new' or 'new_if_failed', not {if_closed!r}"
            )
        queue = definition.task_queue if task_queue is None else task_queue
        if not isinstance(queue, str) or not queue or len(queue) > NAME_LENGTH_MAX or not queue.isprintable():
            raise ArgumentsError(
                f"a task queue is printable text of 1 to {NAME_LENGTH_MAX} characters, not {shown(queue)}"
            )
        data = definition.arguments.encode(args, kwargs)
        if len(data) > self.limits.payload_bytes_warn:
            self.limits.judge(len(data), what=f"the input of workflow {definition.name!r}", run_id=run_id)
        definition.arguments.check_types(data)
        now = self.clock.now_us()
        ready = None if delay is None else now + round(seconds(delay, what="delay") * 1_000_000)
        return StartRequest(
            run_id=f"{definition.name}-{self.random.run_suffix()}"
            if run_id is None
            else check_run_id(run_id),
            request_id=self.random.request_id(),
            workflow=definition.name,
            version=definition.version,
            task_queue=queue,
            input=data,
            deadline_us=None if definition.timeout_us is None else now + definition.timeout_us,
            ready_at_us=ready,
            if_open=if_open,
            if_closed=if_closed,
            owner=owner,
        )

    def handle_of(self, record: RunRecord, result_type: ValueType | None = None) -> RunHandle[Any]:
        """Return a handle of a run that was just read. Internal to this library."""
        return RunHandle(
            self, record.run_id, pk=record.pk, generation=record.generation, result_type=result_type
        )

    # ─ finding ──

    async def get(self, run_id: str, workflow: Workflow[P, R] | None = None) -> RunHandle[R]:
        """Return a handle; with `workflow`, its result is decoded by that workflow's types. `id@2` is a generation.

        Raises `RunNotFoundError`, with near ids.
        """
        record = await self._record(run_id)
        return self.handle_of(record, None if workflow is None else workflow.definition.result)

    async def describe(self, run_id: str) -> Run:
        """Return a run with its story and what it waits for."""
        return await self._describe(await self._record(run_id))

    async def events(self, run_id: str) -> builtins.list[AnyEntry]:
        """Return the raw journal of a run (`id@2`: of one generation)."""
        record = await self._record(run_id)
        rows = await self.store.read_journal(record.pk, record.generation)
        return decode_entries(rows)

    async def list(
        self,
        *,
        status: RunStatus | str | Sequence[RunStatus | str] | None = None,
        workflow: str | None = None,
        task_queue: str | None = None,
        run_id: str | None = None,
        since: Seconds | datetime | None = None,
        until: Seconds | datetime | None = None,
        limit: int = 100,
        journals: bool = False,
        with_large_payloads: bool = True,
    ) -> builtins.list[Run]:
        """Return runs that fit all filters, newest first. `workflow` and `run_id` may hold `*`.

        `since` and `until` are instants, or how long ago in seconds or timedelta. Without `journals` each run's `journal` is
        left empty: it is read for those open runs only that it takes to say what they wait for. Without `with_large_payloads`
        inputs and results of more than some 32 KiB may be left out: a text that tells their size stands in their place.
        """
        wanted = _wanted(status)
        asked = wanted
        if set(wanted) & _DRIVEN:
            # A run that waits in its worker's memory is shown as waiting, but its row says running: look at both. The same for
            # one that compensates.
            asked = tuple(({*wanted} | _DRIVEN) - {RunStatus.COMPENSATING})
        chosen = RunFilter(
            status=asked,
            workflow=workflow,
            task_queue=task_queue,
            run_id=run_id,
            created_since_us=self._instant_us(since),
            created_until_us=self._instant_us(until),
            limit=min(limit, LIST_PAGE_MAX),
        )
        found: builtins.list[Run] = []
        while len(found) < limit:
            records = await self.store.list_runs(chosen)
            described = [await self._describe(record, with_journal=journals) for record in records]
            found.extend(run for run in described if not wanted or run.status in wanted)
            if len(records) < chosen.limit:
                break
            last = records[-1]
            chosen = msgspec.structs.replace(chosen, before=(last.created_at_us, last.pk))
        return found[:limit]

    async def stack(self, run_id: str, workflow: Workflow[..., Any] | None = None) -> Stack:
        """Return where each coroutine of a run stands, what it awaits and since when; see `Stack`.

        With `workflow` it is rebuilt by replay in this process: the workflow's code runs, no activity does, nothing is written.
        Without, the journal tells what is open and which line asked for it. A closed run stands nowhere. Raises
        `RunNotFoundError`; `WorkflowVersionMismatchError` and `ArgumentsError` for a workflow that is not the run's;
        `PlatformFault` if its code does not fit the journal.
        """
        record = await self._record(run_id)
        if workflow is not None:
            _check_same(record, workflow.definition)
        if workflow is None or record.status.is_closed:
            _, story, fault = await self._read_story(record)
            if story is None:
                raise UndecodableError(fault, run_id=record.run_id)
            return recorded_stack(record, story)
        rows = await self.store.read_journal(record.pk, record.generation)
        executor = ThreadExecutor(1, name="durable-stack")
        try:
            return await executor.submit(partial(rebuilt_stack, record, rows, workflow.definition))
        finally:
            executor.close()

    async def why(self, run_id: str) -> Why:
        """Return the one reason why a run is not moving: `why.reason` for programs, `why.text` for people.

        Looks at the run, its journal, and which workers are alive; changes nothing. Raises `RunNotFoundError`.
        """
        record = await self._record(run_id)
        entries, story, fault = await self._read_story(record)
        facts = await self._facts(record, fault)
        facts = msgspec.structs.replace(facts, is_beginning=not entries or isinstance(entries[-1], Retried))
        return explain(facts, story)

    async def complete_run_id(self, text: str, limit: int = 5) -> builtins.list[str]:
        """Return run ids that begin or end with `text`, newest first."""
        return await self.store.find_run_ids(text, limit)

    async def workflow_names(self) -> builtins.list[str]:
        """Return the workflows of recent runs and of living workers, by name."""
        names = set(await self.store.recent_workflows())
        for worker in await self.store.list_workers():
            names.update(workflow for workflow, _ in worker.definitions)
        return sorted(names)

    async def workers(self) -> builtins.list[WorkerRecord]:
        """Return the living workers."""
        return await self.store.list_workers()

    # ─ talking ──

    async def signal(
        self, run_id: str, signal: Signal[Any] | str, value: object = None, *, id: str | None = None
    ) -> None:
        """Send a signal to an open run; see `RunHandle.signal`."""
        if isinstance(signal, Signal):
            name = signal.name
            data = signal.value_type.encode(value)
            try:
                signal.value_type.decode(data)
            except UndecodableError as error:
                raise ArgumentsError(f"signal {name!r} takes another type: {error}") from error
        else:
            name, data = signal, _any.encode(value)
        if not isinstance(name, str) or not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
            raise ArgumentsError(f"a signal's name is printable text of 1 to {NAME_LENGTH_MAX} characters")
        if id is not None and (not isinstance(id, str) or len(id) > NAME_LENGTH_MAX or not id.isprintable()):
            raise ArgumentsError(f"a signal's id is printable text of at most {NAME_LENGTH_MAX} characters")
        if len(data) > self.limits.payload_bytes_warn:
            self.limits.judge(len(data), what=f"the signal {name!r}", run_id=run_id)
        await self.store.send_message(
            check_run_id(run_id),
            kind="signal",
            name=name,
            data=data,
            message_id=id or self.random.request_id(),
            now_us=self.clock.now_us(),
            unread_max=self.limits.unread_messages,
        )

    async def answer(
        self, run_id: str, value: object = None, *, name: str | None = None, ask: str | None = None
    ) -> None:
        """Answer the question that an open run asks a person. Returned means stored; each question takes one answer.

        `name` (or the end of its path) says which, if there are several; `ask` is the very question, by its address. Raises
        `WorkflowStateError` if nothing (of that name) is asked, or was answered already, `ArgumentsError` if it is not clear
        which question is meant, `RunNotFoundError`, `PayloadError`.
        """
        data = _any.encode(value)
        if len(data) > self.limits.payload_bytes_warn:
            self.limits.judge(len(data), what="the answer", run_id=run_id)
        record = await self.store.get_run(check_run_id(run_id))
        _, story, fault = await self._read_story(record)
        if story is None:
            raise UndecodableError(f"the journal of run {run_id!r} cannot be read: {fault}")
        is_open = not record.status.is_closed
        asks = [line for line in story.open if line.ask and is_open]
        chosen = choose_ask(run_id, record.status, asks, name=name, ask=ask)
        outcome = await self.store.send_message(
            run_id,
            kind="signal",
            name=chosen.name,
            data=data,
            message_id=answer_id(chosen.ask),
            now_us=self.clock.now_us(),
        )
        if outcome.duplicate:
            raise answered_already(run_id, record.status, chosen.name)

    async def asks(self, *, workflow: str | None = None, limit: int = 100) -> builtins.list[Ask]:
        """Return the questions that runs wait to have answered by people, those of the newest runs first."""
        found: builtins.list[Ask] = []
        for run in await self.list(
            status=(RunStatus.WAITING, RunStatus.RUNNING), workflow=workflow, limit=limit, journals=True
        ):
            since = {line.ask: line.started_at for line in run.journal if line.ask}
            found.extend(
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
            )
        return found

    async def cancel(self, run_id: str, reason: str | None = None) -> None:
        """Ask an open run to cancel; see `RunHandle.cancel`."""
        await self.store.send_message(
            check_run_id(run_id),
            kind="cancel",
            name="cancel",
            data=msgspec.json.encode(_checked_reason(reason)),
            message_id=self.random.request_id(),
            now_us=self.clock.now_us(),
        )

    async def terminate(self, run_id: str, reason: str | None = None) -> None:
        """Close an open run at once; see `RunHandle.terminate`."""
        await self.store.terminate_run(check_run_id(run_id), _checked_reason(reason), self.clock.now_us())

    async def retry(self, run_id: str, *, from_start: bool = False, dry_run: bool = False) -> Reopened:
        """Try a failed, timed-out, cancelled or terminated run again; see `RunHandle.retry`."""
        record = await self.store.get_run(check_run_id(run_id))
        if not record.status.is_closed or record.status is RunStatus.COMPLETED:
            text = f"run {run_id!r} is {record.status}: only a run that was closed without success can be retried"
            raise WorkflowStateError(run_id, str(record.status), text)
        rows = await self.store.read_journal(record.pk, record.generation)
        now_us = self.clock.now_us()
        kept = reopening(joined(rows), now_us=now_us, attempt=record.attempt + 1)
        if kept is None:
            raise InternalError(
                f"run {run_id!r} is {record.status}, and its journal does not say how it ended"
            )
        from_start = from_start or kept.is_undone
        if not dry_run:
            await self.store.reopen_run(_reopen(record, kept, from_start), now_us)
        return Reopened(
            run_id=run_id,
            generation=record.generation + 1,
            kept_events=0 if from_start else kept.kept_events,
            forgotten=list(kept.completed if from_start else kept.forgotten),
            is_dry=dry_run,
        )

    async def pause(self, run_id: str, reason: str | None = None) -> None:
        """Hold an open run back; see `RunHandle.pause`."""
        await self.store.pause_run(check_run_id(run_id), _checked_reason(reason), self.clock.now_us())

    async def resume(self, run_id: str) -> None:
        """Let a paused or parked run go on; see `RunHandle.resume`."""
        was_paused = await self.store.resume_run(check_run_id(run_id))
        was_parked = await self.store.unpark_run(run_id, self.clock.now_us())
        if not was_paused and not was_parked:
            status = (await self.store.get_run(run_id)).status
            text = f"run {run_id!r} is {status}: only a paused or parked run can be resumed"
            raise WorkflowStateError(run_id, str(status), text)

    async def pause_task_queue(self, task_queue: str, reason: str | None = None) -> bool:
        """Hold a task queue back, for all workers, until `resume_task_queue`; return False if it was paused already.

        Within a second nothing of its runs begins any more; activities that run may end, and are recorded. Embedded
        engines obey, too. The queue need not exist yet.
        """
        return await self._pause("task_queue", task_queue, reason)

    async def resume_task_queue(self, task_queue: str) -> bool:
        """Let a task queue go on; return False if it was not paused."""
        return await self.store.resume("task_queue", task_queue)

    async def pause_worker(self, name: str, reason: str | None = None) -> bool:
        """Hold the workers of this name back until `resume_worker`; return False if they were paused already.

        They claim nothing more, let running activities end, and hand their runs to others; they go on living. The pause
        is kept by name, so a restart under the same name is paused, too.
        """
        return await self._pause("worker", name, reason)

    async def resume_worker(self, name: str) -> bool:
        """Let the workers of this name go on; return False if they were not paused."""
        return await self.store.resume("worker", name)

    async def pauses(self) -> builtins.list[PauseRecord]:
        """Return the task queues and workers that are paused."""
        return await self.store.list_pauses()

    async def _pause(self, kind: PauseKind, name: str, reason: str | None) -> bool:
        if not isinstance(name, str) or not name or len(name) > NAME_LENGTH_MAX or not name.isprintable():
            raise ArgumentsError(
                f"a {kind.replace('_', ' ')} is printable text of 1 to {NAME_LENGTH_MAX} characters, not {shown(name)}"
            )
        return await self.store.pause(kind, name, _checked_reason(reason), self.clock.now_us())

    # ─ activities completed from outside ──

    async def complete_activity(self, token: str, value: object = None) -> bool:
        """Complete the attempt that a task token names, with its result; see `raise_complete_async`.

        Returned means stored: the workflow will see it, whatever dies next. True if this call did it, False if the attempt
        had been completed or failed before (repeat a call whose reply was lost as often as you like). Raises
        `ActivityClosedError` if nobody waits for that attempt any more, `ArgumentsError` for text that is no token of
        this database, `PayloadError`. A value that does not fit the activity's return type fails the activity.
        """
        return await self._answer(token, "completed", _any.encode(value))

    async def fail_activity(self, token: str, error: BaseException | str) -> bool:
        """Fail the attempt that a task token names; the activity's retry policy decides what follows, by the class of `error`.

        Text becomes a RuntimeError, which is retried by default. Returns and raises as `complete_activity`.
        """
        failure = failures.record(error if isinstance(error, BaseException) else RuntimeError(error))
        return await self._answer(token, "failed", msgspec.json.encode(failure))

    async def heartbeat_activity(self, token: str, *details: object) -> None:
        """Say that the attempt which a task token names is being worked on; `details` reach the next attempt, if there is one.

        Raises `ActivityClosedError` if there is nothing left to do: it was cancelled, timed out, or answered by somebody.
        """
        if not await self._answer(token, "heartbeat", _any.encode(list(details))):
            named = parse_token(token, await self._secret())
            raise ActivityClosedError(named.run_id, named.attempt)

    async def _answer(
        self, token: str, kind: Literal["completed", "failed", "heartbeat"], data: bytes
    ) -> bool:
        named = parse_token(token, await self._secret())
        if len(data) > self.limits.payload_bytes_warn:
            self.limits.judge(len(data), what="the answer of an activity", run_id=named.run_id)
        answer = ActivityAnswer(
            run_id=named.run_id,
            generation=named.generation,
            op=named.op,
            attempt=named.attempt,
            kind=kind,
            data=data,
        )
        deadline = self.clock.monotonic() + TOKEN_SECONDS
        while (verdict := await self.store.answer_activity(answer, self.clock.now_us())) == "closed":
            if self.clock.monotonic() >= deadline:
                raise ActivityClosedError(named.run_id, named.attempt)
            await pause(TOKEN_LOOK_SECONDS)
        return verdict == "taken"

    async def _secret(self) -> str:
        return await self.store.read_meta("database_id") or ""

    # ─ care of the database ──

    async def rescue(self, lease_seconds: float = 10.0) -> builtins.list[Rescue]:
        """Take the runs of dead workers back, so that living ones go on with them."""
        return await self.store.rescue_dead_workers(lease_seconds)

    async def find_lost_workers(self) -> builtins.list[int]:
        """Return the ids of workers whose process is gone and whose runs nobody has taken back yet."""
        return await self.store.find_lost_workers()

    async def health(self) -> StoreHealth:
        """Return sizes and settings of the database, and its open runs by queue and workflow."""
        return await self.store.read_health()

    async def schema(self) -> Schema:
        """Return which schema the database has, without opening the client: opening would bring it up to date.

        Raises `SchemaVersionError` if it is newer than this code, `StoreError` if there is no database.
        """
        return await read_schema(self._url)

    async def pending_migrations(self) -> builtins.list[PendingMigration]:
        """Return what opening would do to an existing database's schema, as SQL, without opening the client.

        Errors as in `schema`.
        """
        return await read_pending_migrations(self._url)

    async def backup(self, path: str | Path) -> Backup:
        """Copy the database as it is at one moment into a new file, under load; return when the copy is complete.

        Raises `StoreError`: the file exists, or could not be written. Then nothing is left behind.
        """
        return Backup(path=str(path), bytes=await self.store.back_up(Path(path)))

    async def prune(
        self,
        older_than: Seconds,
        *,
        status: RunStatus | str | Sequence[RunStatus | str] | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Delete runs that have been closed for longer than `older_than`, with all that belongs to them, in small batches.

        `status`: only those that ended so. A deleted run is unknown afterwards: its id may be started anew, and a start
        or signal that is repeated is no longer recognised. Open runs are never touched.
        """
        before_us = self.clock.now_us() - round(seconds(older_than, what="older_than") * 1_000_000)
        chosen = ClosedRuns(before_us=before_us, status=_closed_statuses(status))
        if dry_run:
            deleted = Deleted(runs=await self.store.count_closed_runs(chosen), journal_rows=0)
        else:
            deleted = await delete_closed(self.store, self.clock, chosen)
        return Pruned(
            runs=deleted.runs,
            journal_rows=deleted.journal_rows,
            before=view.instant(before_us),
            is_dry=dry_run,
        )

    async def delete(self, run_id: str) -> None:
        """Delete a closed run, with all that belongs to it: its id is unknown afterwards, as after `prune`.

        Raises `RunNotFoundError`, `WorkflowStateError` if it is open.
        """
        record = await self.store.get_run(check_run_id(run_id))
        if not record.status.is_closed:
            raise WorkflowStateError(
                run_id,
                str(record.status),
                f"run {run_id!r} is {record.status}: only a closed run can be deleted",
            )
        now_us = self.clock.now_us()
        await self.store.prune_runs([record.pk], ClosedRuns(before_us=now_us + 1, status=()), now_us)

    # ─ rows of patterns ──

    async def append_rows(self, table: str, key: str, rows: Sequence[bytes], *, after: int) -> bool:
        """Append rows to those of `key` in a table of the caller's naming, made at its first use. For builders of patterns.

        Compare-and-set: nothing is written, and False returned, unless `key` has exactly `after` rows. All rows or none. ValueError:
        `table` is no identifier.
        """
        return await self.store.append_rows(
            check_table_name(table), key, after=after, rows=rows, now_us=self.clock.now_us()
        )

    async def read_rows(
        self, table: str, key: str, *, after: int = 0, limit: int = 1_000_000
    ) -> builtins.list[bytes]:
        """Return up to `limit` rows of `key` behind the first `after`, in order; none if there is no such table yet."""
        return await self.store.read_rows(check_table_name(table), key, after=after, limit=limit)

    # ─ the rest is private ──

    async def _record(self, run_id: str) -> RunRecord:
        base, generation = split_run_id(run_id)
        if generation is not None:
            from_exact = [found for found in await self.store.find_run_ids(run_id, 1) if found == run_id]
            if from_exact:
                base, generation = run_id, None
        return await self.store.get_run(base, generation)

    async def _read_story(self, record: RunRecord) -> tuple[builtins.list[AnyEntry], view.Story | None, str]:
        """Return the journal and its story; None and why, if it cannot be read."""
        try:
            rows = await self.store.read_journal(record.pk, record.generation)
            attempts = await self.store.read_attempts(record.pk, record.generation)
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
                },
                key_prefix=f"{record.run_id}@{record.epoch}/",
            )
        except UndecodableError as error:
            return [], None, str(error)
        return entries, story, ""

    async def _facts(self, record: RunRecord, fault: str) -> Facts:
        """Return what `why` needs to know besides the journal; `is_beginning` is left for it to say."""
        workers = [one for one in await self.store.list_workers() if not one.embedded]
        lost = set(await self.store.find_lost_workers())
        silent_us = self.clock.now_us() - round(SILENT_SECONDS * 1_000_000)
        lost.update(one.worker_id for one in workers if (one.beat_at_us or silent_us) < silent_us)
        living = [one for one in workers if one.worker_id not in lost]
        failure = decode_failure(record.failure)
        error = None if failure is None else failures.describe(failure)
        wanted = (record.workflow, record.version)
        serving = tuple(
            one.name for one in living if one.task_queue == record.task_queue and wanted in one.definitions
        )
        hold = hold_of(record, await self.store.list_pauses(), self.clock.now_us(), serving=serving)
        return Facts(
            run_id=record.run_id,
            generation=record.generation,
            workflow=record.workflow,
            version=record.version,
            task_queue=record.task_queue,
            status=record.status,
            outcome=_outcome(record, fault, error),
            now=EPOCH + timedelta(microseconds=self.clock.now_us()),
            due_at=None if record.due_at_us is None else view.instant(record.due_at_us),
            closed_at=None if record.closed_at_us is None else view.instant(record.closed_at_us),
            owner=record.owner_name,
            owner_fault=_owner_fault(record, lost),
            unread=record.unread,
            is_beginning=False,
            serving=serving,
            pause="" if hold is None else hold.text,
            paused_at=None if hold is None else hold.since,
            paused_name="" if hold is None else hold.name,
            nearby=_nearby(record, living),
        )

    async def _describe(self, record: RunRecord, *, with_journal: bool = True) -> Run:
        now = EPOCH + timedelta(microseconds=self.clock.now_us())
        blocker = None if record.status.is_closed else await self._blocker(record, now)
        story: view.Story | None = None
        told: builtins.list[AnyEntry] = []
        fault = ""
        if with_journal or (blocker is None and not record.status.is_closed):
            told, story, fault = await self._read_story(record)
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
            kind=_kind_of(told),
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
        )

    async def _blocker(self, record: RunRecord, now: datetime) -> Blocker | None:
        """Return what an open run waits for, as far as its row says it; None: its journal does."""
        if record.status is RunStatus.PARKED:
            return Blocker(kind="nothing", name="parked", text=shown_text(record.reason) or "parked")
        hold = hold_of(record, await self.store.list_pauses(), self.clock.now_us())
        if hold is not None:
            return Blocker(kind="nothing", name="paused", text=hold.text)
        if record.owner is None and record.status is not RunStatus.WAITING:
            due = None if record.due_at_us is None else view.instant(record.due_at_us)
            if due is not None and due > now:
                text = f"start in {view.duration_text((due - now).total_seconds())}"
                return Blocker(kind="timer", name="start", text=text, due_at=due)
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

    def _instant_us(self, value: Seconds | datetime | None) -> int | None:
        if value is None:
            return None
        if isinstance(value, datetime):
            if value.tzinfo is None:
                raise ArgumentsError("since and until need aware datetimes")
            return (value - EPOCH) // timedelta(microseconds=1)
        return self.clock.now_us() - round(seconds(value, what="since") * 1_000_000)


def connect(
    url: str,
    *,
    durability: Durability = "full",
    create: bool = True,
    codec: PayloadCodec | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Client:
    """Return a client for `sqlite:///file.db`, a path, or `postgresql://host/database?schema=name`; use it with `async with`.

    `durability="full"` (default) survives power loss; "process" survives a killed process only; "off" is for tests.
    `create=False`: the database must exist. `codec` turns every payload into other bytes before it is stored, for example
    `Encryption`; whoever reads or drives the runs needs the same. `limits` hold for what this client sends, and for workers made
    with it.
    """
    return Client(url, durability=durability, create=create, codec=codec, limits=limits)


def check_run_id(run_id: str) -> str:
    """Return the id if it may be one; raise `ArgumentsError` otherwise."""
    if not isinstance(run_id, str) or not run_id or len(run_id) > NAME_LENGTH_MAX or not run_id.isprintable():
        raise ArgumentsError(
            f"a run id is printable text of 1 to {NAME_LENGTH_MAX} characters, not {shown(run_id)}"
        )
    return run_id


def _check_same(record: RunRecord, definition: WorkflowDefinition) -> None:
    if record.workflow != definition.name:
        raise ArgumentsError(
            f"run {record.run_id!r} is of workflow {record.workflow!r}, not {definition.name!r}"
        )
    if record.version != definition.version:
        raise WorkflowVersionMismatchError(record.run_id, record.version, definition.version)


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
        redeliver=tuple(
            Redelivery(msg=e.msg, kind="signal", name=e.name, data=bytes(e.value), message_id=e.id)
            for e in kept.signals
        ),
    )


def check_table_name(name: str) -> str:
    """Return the name if it may be a table of a pattern's rows: an identifier. ValueError otherwise."""
    if (
        not isinstance(name, str)
        or not name.isidentifier()
        or not name.isascii()
        or len(name) > TABLE_LENGTH_MAX
    ):
        raise ValueError(
            f"a table's name is an identifier of at most {TABLE_LENGTH_MAX} letters, digits and underscores, not {name!r}"
        )
    return name


def split_run_id(run_id: str) -> tuple[str, int | None]:
    """Return (id, generation) of `id@2`; only a final `@digits` means a generation."""
    base, at, digits = run_id.rpartition("@")
    if at and base and digits.isascii() and digits.isdigit():
        return base, int(digits)
    return run_id, None


def _waiting_on(story: view.Story, now: datetime) -> builtins.list[Blocker]:
    if not story.entries and story.last_at is None:
        return [Blocker(kind="nothing", name="worker", text="its worker: first turn")]
    return view.blockers(story, now)


def _wanted(status: RunStatus | str | Sequence[RunStatus | str] | None) -> tuple[RunStatus, ...]:
    statuses = (status,) if isinstance(status, str) else tuple(status or ())
    try:
        return tuple(RunStatus(one) for one in statuses)
    except ValueError as error:
        raise ArgumentsError(f"{error}; statuses: {', '.join(RunStatus)}") from None


_DRIVEN: Final = {RunStatus.WAITING, RunStatus.RUNNING, RunStatus.COMPENSATING}


def _kind_of(entries: builtins.list[AnyEntry]) -> str:
    """Return "workflow", or the pattern a run was made from; it is known once the run was driven."""
    first = entries[0] if entries else None
    return (first.kind or "workflow") if isinstance(first, Started) else "workflow"


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


def _nearby(record: RunRecord, living: builtins.list[WorkerRecord]) -> str:
    """Say which living worker nearly serves a run: the right queue with another version, or the other way round."""
    for worker in living:
        versions = [version for workflow, version in worker.definitions if workflow == record.workflow]
        if record.version in versions:
            return f'worker {worker.name} serves it on queue "{worker.task_queue}"'
        if versions and worker.task_queue == record.task_queue:
            return f"worker {worker.name} serves version {', '.join(map(str, versions))}"
    return ""


def _closed_statuses(
    status: RunStatus | str | Sequence[RunStatus | str] | None,
) -> tuple[RunStatus, ...]:
    """Return the statuses; raise `ArgumentsError` for one that is unknown, or of open runs."""
    closed = [str(one) for one in RunStatus if one.is_closed and one is not RunStatus.CONTINUED]
    wanted = (status,) if isinstance(status, str) else tuple(status or ())
    for one in wanted:
        if one not in closed:
            raise ArgumentsError(f"{str(one)!r} is no status of a closed run: {', '.join(closed)}")
    return tuple(RunStatus(one) for one in wanted)


def _checked_reason(reason: str | None) -> str | None:
    if reason is not None and (not isinstance(reason, str) or len(reason) > REASON_LENGTH_MAX):
        raise ArgumentsError(f"a reason is text of at most {REASON_LENGTH_MAX:,} characters")
    return reason
