"""The client: start runs, find them, talk to them. Knows the store; drives nothing."""

from __future__ import annotations

import builtins
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, Unpack, overload

import msgspec

from durable import finding, operating, querying, talking
from durable.connection import Connection
from durable.definitions import (
    WorkflowDefinition,
    check_limit,
    check_reason,
    check_row_key,
    check_run_id,
    check_table_name,
)
from durable.describing import describe, describe_found, open_asks, read_stack
from durable.journal.events import AnyEntry
from durable.journal.lifecycle import RunStatus
from durable.journal.view import Ask
from durable.journal.why import Why
from durable.limits import DEFAULT_LIMITS, NAME_LENGTH_MAX, Limits
from durable.messages import Signal
from durable.operating import Backup, Pruned, Reopened
from durable.payloads import ValueType
from durable.payloads.codec import PayloadCodec
from durable.reading import decode_entries
from durable.reasons import read_why
from durable.recorded import RecordedRun, UnreadableRun
from durable.retry import Seconds
from durable.run_handle import Run, RunHandle
from durable.stacks import Stack
from durable.starting import start_request, start_requests, start_runs
from durable.store.opening import Durability, read_pending_migrations, read_schema
from durable.store.records import (
    CountBy,
    IfClosed,
    IfOpen,
    Outgoing,
    PauseRecord,
    PendingMigration,
    Rescue,
    RunRecord,
    Schema,
    StoreHealth,
    WorkerRecord,
)
from durable.workflows import Named, workflow_of

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
V = TypeVar("V")


class Client(Connection):
    """A connection to one database of runs. Use it as `async with durable.connect(url) as client`.

    One client belongs to one event loop; it may be shared by everything on that loop.
    """

    # ─ starting ──

    async def start(
        self,
        workflow: Named[R],
        *args: object,
        run_id: str | None = None,
        task_queue: str | None = None,
        delay: Seconds | None = None,
        if_open: IfOpen = "attach",
        if_closed: IfClosed = "return",
        **kwargs: object,
    ) -> RunHandle[R]:
        """Store a run of a workflow, a function's or a class, for a worker, and return its handle. Returned means it will run, whatever dies next.

        `run_id` defaults to `name-xxxxxxxx`. `delay` (seconds or timedelta) holds the start back. If the id has an open run:
        "attach" to it, "fail" with `RunConflictError`, or "terminate" it and start anew. If it has a closed one:
        "return" that, "fail", start "new", or "new_if_failed". Attaching and returning need the same input. All of it is
        decided in one transaction. Raises `ArgumentsError`, `PayloadError`, `RunConflictError`.
        """
        named = workflow_of(workflow)
        definition = named.definition
        request = start_request(
            self,
            definition,
            args,
            kwargs=kwargs,
            run_id=named.run_id if run_id is None else run_id,
            task_queue=named.task_queue if task_queue is None else task_queue,
            delay=delay,
            if_open=if_open,
            if_closed=if_closed,
        )
        (outcome,) = await start_runs(self, [request])
        return self.handle_of(outcome.run, definition.result, definition)

    async def start_many(
        self,
        workflow: Named[R],
        inputs: Sequence[tuple[object, ...]],
        *,
        run_ids: Sequence[str] | None = None,
        task_queue: str | None = None,
    ) -> builtins.list[RunHandle[R]]:
        """Store one run per argument tuple, all in one transaction: all or none. Errors as in `start`."""
        named = workflow_of(workflow)
        definition = named.definition
        queue = named.task_queue if task_queue is None else task_queue
        requests = await start_requests(self, definition, inputs, run_ids=run_ids, task_queue=queue)
        outcomes = await start_runs(self, requests)
        return [self.handle_of(outcome.run, definition.result, definition) for outcome in outcomes]

    def handle_of(
        self,
        record: RunRecord,
        result_type: ValueType | None = None,
        definition: WorkflowDefinition | None = None,
    ) -> RunHandle[Any]:
        """Return a handle of a run that was just read. Internal to this library."""
        return RunHandle(
            self,
            record.run_id,
            pk=record.pk,
            generation=record.generation,
            result_type=result_type,
            definition=definition,
        )

    # ─ finding ──

    async def get(self, run_id: str, workflow: Named[R] | None = None) -> RunHandle[R]:
        """Return a handle; with `workflow`, its result is decoded by that workflow's types, and its code answers queries. `id@2` is a generation.

        Raises `RunNotFoundError`, with near ids.
        """
        record = await finding.find_run(self.store, run_id)
        definition = None if workflow is None else workflow_of(workflow).definition
        handle = self.handle_of(record, None if definition is None else definition.result, definition)
        handle.address = run_id
        return handle

    async def describe(self, run_id: str) -> Run:
        """Return a run with its story and what it waits for."""
        return await describe(self, await finding.find_run(self.store, run_id))

    async def events(self, run_id: str) -> builtins.list[AnyEntry]:
        """Return the raw journal of a run (`id@2`: of one generation)."""
        record = await finding.find_run(self.store, run_id)
        rows = await self.store.read_journal(record.pk, record.generation)
        return decode_entries(rows)

    async def recorded(self, run_id: str) -> RecordedRun:
        """Return a run with its whole journal, as a replay needs it: in a test, in another process, from a file.

        `id@2` is a generation. Raises `RunNotFoundError`, `UndecodableError`.
        """
        return await finding.read_recorded(self.store, await finding.find_run(self.store, run_id))

    async def recorded_runs(
        self,
        *,
        status: finding.Statuses = None,
        workflow: str | None = None,
        task_queue: str | None = None,
        run_id: str | None = None,
        since: Seconds | datetime | None = None,
        until: Seconds | datetime | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[RecordedRun | UnreadableRun, None]:
        """Yield the latest generations of the runs that fit all filters, newest first, with their journals; at most `limit`.

        Filters as in `list`. One whose journal cannot be read is yielded as an `UnreadableRun`.
        """
        filters = finding.Filters(
            status=status, workflow=workflow, task_queue=task_queue, run_id=run_id, since=since, until=until
        )
        chosen = finding.filter_of(self.clock, filters, finding.statuses_of(status))
        async with aclosing(finding.read_all_recorded(self.store, chosen, limit)) as found:
            async for one in found:
                yield one

    async def list(
        self,
        *,
        status: finding.Statuses = None,
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
        wanted = finding.statuses_of(status)
        filters = finding.Filters(
            status=status, workflow=workflow, task_queue=task_queue, run_id=run_id, since=since, until=until
        )
        chosen = finding.filter_of(
            self.clock, filters, finding.statuses_of_rows(wanted), limit=check_limit(limit)
        )
        return await describe_found(self, chosen, wanted, limit=limit, journals=journals)

    @overload
    async def count(self, **filters: Unpack[finding.Filters]) -> int: ...

    @overload
    async def count(self, *, by: CountBy, **filters: Unpack[finding.Filters]) -> dict[str, int]: ...

    async def count(
        self, *, by: CountBy | None = None, **filters: Unpack[finding.Filters]
    ) -> int | dict[str, int]:
        """Return how many runs fit all filters, those of `list`; with `by` ("status", "workflow", "queue") of each name that occurs, the most first.

        One query, which reads no journal: a run that waits in its worker's memory counts as running, and so does one that compensates.
        """
        counts = await self.store.count_runs(finding.counted(self.clock, filters), finding.check_by(by))
        return sum(counts.values()) if by is None else counts

    async def stack(self, run_id: str, workflow: Named[Any] | None = None, *, values: bool = False) -> Stack:
        """Return where each coroutine of a run stands, what it awaits and since when; see `Stack`.

        With `workflow` it is rebuilt by replay in this process: the workflow's code runs, no activity does, nothing is written.
        Without, the journal tells what is open and which line asked for it. `values` adds the local variables of every frame
        that is rebuilt, as short text: what a waiting run knows by now. A closed run stands nowhere. Raises
        `RunNotFoundError`; `WorkflowVersionMismatchError` and `ArgumentsError` for a workflow that is not the run's;
        `PlatformFault` if its code does not fit the journal.
        """
        record = await finding.find_run(self.store, run_id)
        definition = None if workflow is None else workflow_of(workflow).definition
        return await read_stack(self.store, record, definition, with_values=values)

    async def why(self, run_id: str) -> Why:
        """Return the one reason why a run is not moving: `why.reason` for programs, `why.text` for people.

        Looks at the run, its journal, and which workers are alive; changes nothing. Raises `RunNotFoundError`.
        """
        return await read_why(self, await finding.find_run(self.store, run_id))

    async def complete_run_id(self, text: str, limit: int = 5) -> builtins.list[str]:
        """Return run ids that begin or end with `text`, newest first."""
        return await self.store.find_run_ids(text, limit) if len(text) <= NAME_LENGTH_MAX else []

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

    @overload
    async def signal(
        self, run_id: str, signal: Callable[[Any, T], object], value: T, *, id: str | None = None
    ) -> None: ...

    @overload
    async def signal(
        self, run_id: str, signal: Callable[[Any], object], *, id: str | None = None
    ) -> None: ...

    @overload
    async def signal(
        self, run_id: str, signal: Signal[Any] | str, value: object = None, *, id: str | None = None
    ) -> None: ...

    async def signal(self, run_id: str, signal: Any, value: object = None, *, id: str | None = None) -> None:
        """Send a signal to an open run; see `RunHandle.signal`."""
        await talking.send_signal(self, run_id, signal, value=value, id=id)

    @overload
    async def update(
        self,
        run_id: str,
        update: Callable[[Any, V], Coroutine[Any, Any, T]],
        value: V,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self,
        run_id: str,
        update: Callable[[Any], Coroutine[Any, Any, T]],
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self,
        run_id: str,
        update: Callable[[Any, V], T],
        value: V,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self,
        run_id: str,
        update: Callable[[Any], T],
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> T: ...

    @overload
    async def update(
        self,
        run_id: str,
        update: str,
        value: object = None,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> Any: ...

    async def update(
        self,
        run_id: str,
        update: Any,
        value: object = None,
        *,
        id: str | None = None,
        timeout: Seconds | None = None,
    ) -> Any:
        """Call into an open run, and return the answer; see `RunHandle.update`. With the `id` of an earlier call that one's answer, also of a closed run."""
        handle = self.handle_of(await self.store.get_run(check_run_id(run_id)))
        return await handle.update(update, value, id=id, timeout=timeout)

    @overload
    async def query(
        self, run_id: str, query: Callable[Concatenate[Any, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T: ...

    @overload
    async def query(self, run_id: str, query: str, *args: object, **kwargs: object) -> Any: ...

    async def query(self, run_id: str, query: Any, *args: Any, **kwargs: Any) -> Any:
        """Ask a run, open or closed (`id@2`: one generation of it); see `RunHandle.query`."""
        return await querying.ask_run(self, run_id, query, args=args, kwargs=kwargs)

    async def answer(
        self, run_id: str, value: object = None, *, name: str | None = None, ask: str | None = None
    ) -> None:
        """Answer the question that an open run asks a person. Returned means stored; each question takes one answer.

        `name` (or the end of its path) says which, if there are several; `ask` is the very question, by its address. Raises
        `WorkflowStateError` if nothing (of that name) is asked, or was answered already, `ArgumentsError` if it is not clear
        which question is meant, `RunNotFoundError`, `PayloadError`.
        """
        await talking.send_answer(self, run_id, value, name=name, ask=ask)

    async def asks(self, *, workflow: str | None = None, limit: int = 100) -> builtins.list[Ask]:
        """Return the questions that runs wait to have answered by people, those of the newest runs first."""
        runs = await self.list(
            status=(RunStatus.WAITING, RunStatus.RUNNING), workflow=workflow, limit=limit, journals=True
        )
        return [one for run in runs for one in open_asks(run)]

    async def cancel(self, run_id: str, reason: str | None = None) -> None:
        """Ask an open run to cancel; see `RunHandle.cancel`."""
        request = Outgoing(
            run_id=check_run_id(run_id),
            kind="cancel",
            name="cancel",
            data=msgspec.json.encode(check_reason(reason)),
            message_id=self.random.request_id(),
        )
        await self.store.send_message(request, self.clock.now_us())

    async def terminate(self, run_id: str, reason: str | None = None) -> None:
        """Close an open run at once; see `RunHandle.terminate`."""
        await self.store.terminate_run(check_run_id(run_id), check_reason(reason), self.clock.now_us())

    async def retry(
        self,
        run_id: str,
        *,
        activity: str | int | None = None,
        from_start: bool = False,
        dry_run: bool = False,
    ) -> Reopened:
        """Try a failed, timed-out, cancelled or terminated run again; see `RunHandle.retry`."""
        return await operating.retry_run(
            self, run_id, activity=activity, from_start=from_start, dry_run=dry_run
        )

    async def retry_now(
        self, run_id: str, activity: str | int | None = None, *, dry_run: bool = False
    ) -> builtins.list[str]:
        """Let activities of an open run that wait for their next attempt have it now; see `RunHandle.retry_now`."""
        return await operating.retry_now(self, run_id, activity, dry_run=dry_run)

    async def pause(self, run_id: str, reason: str | None = None) -> None:
        """Hold an open run back; see `RunHandle.pause`."""
        await self.store.pause_run(check_run_id(run_id), check_reason(reason), self.clock.now_us())

    async def resume(self, run_id: str) -> None:
        """Let a paused or parked run go on; see `RunHandle.resume`."""
        await operating.resume_run(self, run_id)

    async def pause_task_queue(self, task_queue: str, reason: str | None = None) -> bool:
        """Hold a task queue back, for all workers, until `resume_task_queue`; return False if it was paused already.

        Within a second nothing of its runs begins any more; activities that run may end, and are recorded. Embedded
        engines obey, too. The queue need not exist yet.
        """
        return await operating.pause_named(self, "task_queue", task_queue, reason=reason)

    async def resume_task_queue(self, task_queue: str) -> bool:
        """Let a task queue go on; return False if it was not paused."""
        return await self.store.resume("task_queue", task_queue)

    async def pause_worker(self, name: str, reason: str | None = None) -> bool:
        """Hold the workers of this name back until `resume_worker`; return False if they were paused already.

        They claim nothing more, let running activities end, and hand their runs to others; they go on living. The pause
        is kept by name, so a restart under the same name is paused, too.
        """
        return await operating.pause_named(self, "worker", name, reason=reason)

    async def resume_worker(self, name: str) -> bool:
        """Let the workers of this name go on; return False if they were not paused."""
        return await self.store.resume("worker", name)

    async def pauses(self) -> builtins.list[PauseRecord]:
        """Return the task queues and workers that are paused."""
        return await self.store.list_pauses()

    # ─ activities completed from outside ──

    async def complete_activity(self, token: str, value: object = None) -> bool:
        """Complete the attempt that a task token names, with its result; see `raise_complete_async`.

        Returned means stored: the workflow will see it, whatever dies next. True if this call did it, False if the attempt
        had been completed or failed before (repeat a call whose reply was lost as often as you like). Raises
        `ActivityClosedError` if nobody waits for that attempt any more, `ArgumentsError` for text that is no token of
        this database, `PayloadError`. A value that does not fit the activity's return type fails the activity.
        """
        return await talking.complete_activity(self, token, value)

    async def fail_activity(self, token: str, error: BaseException | str) -> bool:
        """Fail the attempt that a task token names; the activity's retry policy decides what follows, by the class of `error`.

        Text becomes a RuntimeError, which is retried by default. Returns and raises as `complete_activity`.
        """
        return await talking.fail_activity(self, token, error)

    async def heartbeat_activity(self, token: str, *details: object) -> None:
        """Say that the attempt which a task token names is being worked on; `details` reach the next attempt, if there is one.

        Raises `ActivityClosedError` if there is nothing left to do: it was cancelled, timed out, or answered by somebody.
        """
        await talking.heartbeat_activity(self, token, details)

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
        status: finding.Statuses = None,
        workflow: str | None = None,
        heeds_retention: bool | None = None,
        dry_run: bool = False,
    ) -> Pruned:
        """Delete runs that have been closed for longer than `older_than`, with all that belongs to them, in small batches.

        `status`: only those that ended so. Runs with a longer `retention` of their own stay; with `workflow` only runs of
        that one go, whatever they say, unless `heeds_retention`. A deleted run is unknown afterwards: its id may be started anew, and a
        start or signal that is repeated is no longer recognised. Open runs are never touched.
        """
        return await operating.prune(
            self,
            older_than,
            status=status,
            workflow=workflow,
            heeds_retention=workflow is None if heeds_retention is None else heeds_retention,
            dry_run=dry_run,
        )

    async def delete(self, run_id: str) -> None:
        """Delete a closed run, with all that belongs to it: its id is unknown afterwards, as after `prune`.

        Raises `RunNotFoundError`, `WorkflowStateError` if it is open.
        """
        await operating.delete_run(self, run_id)

    # ─ rows of patterns ──

    async def append_rows(self, table: str, key: str, rows: Sequence[bytes], *, after: int) -> bool:
        """Append rows to those of `key` in a table of the caller's naming, made at its first use. For builders of patterns.

        Compare-and-set: nothing is written, and False returned, unless `key` has exactly `after` rows. All rows or none. ValueError:
        `table` is no identifier.
        """
        return await self.store.append_rows(
            check_table_name(table), check_row_key(key), after=after, rows=rows, now_us=self.clock.now_us()
        )

    async def read_rows(
        self, table: str, key: str, *, after: int = 0, limit: int = 1_000_000
    ) -> builtins.list[bytes]:
        """Return up to `limit` rows of `key` behind the first `after`, in order; none if there is no such table yet."""
        return await self.store.read_rows(check_table_name(table), key, after=after, limit=limit)


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
