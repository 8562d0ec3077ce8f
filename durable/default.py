"""The default client and embedded engine of plain scripts: one per (event loop, URL), opened at first use.

It closes with its loop: `asyncio.run` cancels every task at its end, which is a process stop, not a cancellation of
runs (P30): what is still driven is handed back. The one place of module-level state.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar, overload
from weakref import WeakKeyDictionary

import msgspec

from durable.client import Client, connect
from durable.connection import Address, address_here
from durable.declared import imported_workflows
from durable.definitions import LOCAL_TASK_QUEUE, WorkflowDefinition, retention_us_of
from durable.errors import (
    DefinitionError,
    DurableError,
    LeaseLostError,
    RunConflictError,
    WorkflowVersionMismatchError,
)
from durable.journal.lifecycle import RunStatus
from durable.journal.view import Ask
from durable.limits import DEFAULT_LIMITS, Limits
from durable.messages import Signal
from durable.payloads.codec import PayloadCodec, check_codec
from durable.retry import Seconds
from durable.run_handle import Run, RunHandle
from durable.seams import Threads, pause, spawn
from durable.starting import start_request
from durable.store.opening import Durability, normalised
from durable.store.records import RunFilter, StartOutcome, StartRequest
from durable.worker.serving import lease_from
from durable.worker.worker import RETENTION, Worker

T = TypeVar("T")

DEFAULT_URL: Final = "sqlite:///durable.db"
RETRY_SECONDS: Final = 0.05
STARTS_MAX: Final = 500  # in one transaction
log = logging.getLogger("durable.engine")
HINTED_MAX: Final = 5
RECOVER_MAX: Final = 100_000  # runs that one recover() takes over


class _Settings:
    """What `configure` said in this process."""

    def __init__(self) -> None:
        self.url: str | None = None
        self.lease_ttl: Seconds | None = None
        self.durability: Durability = "full"
        self.codec: PayloadCodec | None = None
        self.limits = DEFAULT_LIMITS
        self.retention: Seconds | None = RETENTION


_settings = _Settings()
_Key = tuple[str, int]
# Under None: what a test has put in the place of the default.
_engines: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[_Key | None, EmbeddedEngine]] = (
    WeakKeyDictionary()
)


def configure(
    url: str | None = None,
    *,
    lease_ttl: Seconds | None = None,
    durability: Durability = "full",
    retention: Seconds | None = RETENTION,
    codec: PayloadCodec | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> None:
    """Set the default database of this process (default: `DURABLE_DB`, else `sqlite:///durable.db`).

    `lease_ttl` is the lease of embedded engines in seconds (default: `DURABLE_LEASE_TTL`, else 10), `retention` how long closed runs
    are kept (default: 30 days; None: for ever; see `Worker`). `codec` and `limits`: as in `connect`. Applies to engines opened
    from now on: call it before the first run.
    """
    if url is not None:
        normalised(url)
    lease_from(lease_ttl)
    if retention is not None:
        retention_us_of(retention)
    if durability not in ("full", "process", "off"):
        raise DefinitionError(f"durability is 'full', 'process' or 'off', not {durability!r}")
    if codec is not None:
        check_codec(codec)
    _settings.url = url
    _settings.codec = codec
    _settings.limits = limits
    _settings.lease_ttl = lease_ttl
    _settings.durability = durability
    _settings.retention = retention


class _Start:
    """One call that waits for its run to be started."""

    __slots__ = ("definition", "handle", "request")

    def __init__(
        self,
        definition: WorkflowDefinition,
        request: StartRequest,
        handle: asyncio.Future[RunHandle[Any]],
    ) -> None:
        self.definition = definition
        self.request = request
        self.handle = handle

    def fail(self, error: BaseException) -> None:
        """Tell the caller, if it still waits."""
        if not self.handle.done():
            if isinstance(error, asyncio.CancelledError):
                self.handle.cancel()
            else:
                self.handle.set_exception(error)


_durability_here: ContextVar[Durability | None] = ContextVar("durable_durability", default=None)


@contextmanager
def using(url: str, *, durability: Durability = "full") -> Iterator[None]:
    """Make `url` the default database of this block, and of the tasks that are started in it.

    `durability` counts for the first use of a database in an event loop.
    """
    address = Address(url, _settings.codec, _settings.limits)
    here, how = address_here.set(address), _durability_here.set(durability)
    try:
        yield
    finally:
        address_here.reset(here)
        _durability_here.reset(how)


class EmbeddedEngine:
    """A client and, once something is driven here, a worker that drives only what this process asked for."""

    def __init__(
        self, client: Client, *, retention: Seconds | None = RETENTION, threads: Threads | None = None
    ) -> None:
        self.client = client
        self._threads = threads  # None: the system's
        self._retention = retention
        self._worker: Worker | None = None
        self._lock = asyncio.Lock()
        self._hinted: set[str] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._work: asyncio.Task[None] | None = None
        self._starting: list[_Start] = []
        self._start_tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> EmbeddedEngine:
        """Open the database; idempotent."""
        async with self._lock:
            if self._keeper is None or self._keeper.done():
                await self.client.open()
                self._keeper = spawn(self._keep(), name="durable engine")
        return self

    async def _keep(self) -> None:
        """Live as long as the loop; then close, after the worker has handed back its runs."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            if self._work is not None:
                await asyncio.gather(self._work, return_exceptions=True)
            await self.client.close()

    async def close(self) -> None:
        """Stop what is driven here and close the database, before the loop ends."""
        if self._worker is not None:
            self._worker.stop(0)
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def worker(self) -> Worker:
        """Return the embedded worker, started at first use."""
        async with self._lock:
            if self._worker is None or self._work is None or self._work.done():
                worker = Worker(
                    self.client,
                    lease_seconds=_settings.lease_ttl,
                    retention=self._retention,
                    threads=self._threads,
                    own_only=True,
                )
                await worker.begin()
                self._work = spawn(worker.work(), name="durable embedded worker")
                self._worker = worker
            return self._worker

    async def start(
        self,
        definition: WorkflowDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        run_id: str | None,
        task_queue: str | None,
        drive: bool,
    ) -> RunHandle[Any]:
        """Start or attach to a run; with `drive`, see that it goes on in this process unless it does elsewhere."""
        client = self.client
        request = start_request(client, definition, args, kwargs=kwargs, run_id=run_id, task_queue=task_queue)
        if run_id is None and drive:
            await self._hint(definition)
        if not drive:
            (outcome,) = await client.store.start_runs([request], client.clock.now_us())
            return client.handle_of(outcome.run, definition.result, definition)
        # Not awaited by the caller itself: one that is cancelled between the insert and the adoption must not leave a run
        # that is ours, undriven.
        start = _Start(definition, request, asyncio.get_running_loop().create_future())
        self._starting.append(start)
        if len(self._starting) == 1:
            task = spawn(self._start_all(), name="durable start")
            self._start_tasks.add(task)
            task.add_done_callback(self._start_tasks.discard)
        return await start.handle

    async def _hint(self, definition: WorkflowDefinition) -> None:
        """A start without an id is a new run: say once on stderr if earlier ones lie about unfinished, as people expect otherwise."""
        if definition.name in self._hinted:
            return
        self._hinted.add(definition.name)
        open_runs = (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING, RunStatus.PARKED)
        chosen = RunFilter(status=open_runs, workflow=definition.name, limit=HINTED_MAX + 1)
        left = [run.run_id for run in await self.client.store.list_runs(chosen) if not run.owner_is_alive]
        if left:
            ids = ", ".join(left[:HINTED_MAX]) + (", ..." if len(left) > HINTED_MAX else "")
            print(
                f"durable: this starts a new run of {definition.kind} {definition.name!r}; unfinished: {ids} "
                "(give run_id= to go on with one, or finish them by `durable worker` or durable.recover())",
                file=sys.stderr,
            )

    async def _start_all(self) -> None:
        """Start what was asked for within one turn of the loop, in one transaction."""
        starts, self._starting = self._starting, []
        for first in range(0, len(starts), STARTS_MAX):
            await self._start_together(starts[first : first + STARTS_MAX])

    async def _start_together(self, starts: list[_Start]) -> None:
        try:
            worker, outcomes = await self._insert(starts)
        except DurableError as error:
            if len(starts) == 1:
                starts[0].fail(error)
            else:  # one of them cannot be started, which is not the others' business
                for start in starts:
                    await self._start_together([start])
            return
        except BaseException as error:
            for start in starts:
                start.fail(error)
            raise
        for outcome in outcomes:
            if outcome.claim is not None:  # all of them first: nothing of ours is left undriven
                worker.adopt(outcome.claim)
        for start, outcome in zip(starts, outcomes, strict=True):
            try:
                handle = await self._attach(worker, start.definition, outcome)
            except BaseException as error:
                start.fail(error)
                if not isinstance(error, Exception):
                    raise
            else:
                if not start.handle.done():
                    start.handle.set_result(handle)

    async def _insert(self, starts: list[_Start]) -> tuple[Worker, list[StartOutcome]]:
        client = self.client
        while True:
            worker = await self.worker()
            for start in starts:
                worker.registry.add(start.definition)
            owned = [msgspec.structs.replace(start.request, owner=worker.worker_id) for start in starts]
            try:
                return worker, await client.store.start_runs(owned, client.clock.now_us())
            except LeaseLostError:  # the embedded worker slept too long and is being born again
                await pause(RETRY_SECONDS)

    async def _attach(
        self, worker: Worker, definition: WorkflowDefinition, outcome: StartOutcome
    ) -> RunHandle[Any]:
        record = outcome.run
        if outcome.claim is None and not record.status.is_closed:
            if record.version != definition.version:
                raise WorkflowVersionMismatchError(record.run_id, record.version, definition.version)
            await self.resume(worker, record.pk, record.run_id, record.status)
        handle = self.client.handle_of(record, definition.result, definition)
        handle.on_detach(worker.detach)
        return handle

    async def attach(self, definition: WorkflowDefinition, run_id: str) -> RunHandle[Any]:
        """Have a known run driven here, unless it is closed or driven elsewhere."""
        record = await self.client.store.get_run(run_id)
        handle = self.client.handle_of(record, definition.result, definition)
        if record.status.is_closed:
            return handle
        if record.workflow != definition.name:
            text = f"run {run_id!r} is of {record.workflow!r}, not of {definition.name!r}"
            raise RunConflictError(text, run_id=run_id)
        if record.version != definition.version:
            raise WorkflowVersionMismatchError(run_id, record.version, definition.version)
        worker = await self.worker()
        worker.registry.add(definition)
        await self.resume(worker, record.pk, run_id, record.status)
        handle.on_detach(worker.detach)
        return handle

    async def resume(self, worker: Worker, pk: int, run_id: str, status: RunStatus) -> None:
        """Have an open run driven here as soon as nobody else drives it."""
        client = self.client
        if status is RunStatus.PARKED:
            await client.store.unpark_run(run_id, client.clock.now_us())
        elif status is RunStatus.WAITING:
            await client.store.wake_run(
                run_id, client.clock.now_us()
            )  # today's code meets its journal now, not later
        await client.store.rescue_dead_workers(worker.lease_seconds, observer=worker.worker_id)
        worker.ask_for(pk)


async def engine_here() -> EmbeddedEngine:
    """Return this loop's engine for the default database, opened."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise DefinitionError(
            "durable needs a running asyncio event loop (trio is not supported): use asyncio.run(...)"
        ) from None
    engines = _engines.setdefault(loop, {})
    address = address_here.get()
    if address is None and None in engines:
        return engines[None]
    address = address or Address(
        _settings.url or os.environ.get("DURABLE_DB") or DEFAULT_URL, _settings.codec, _settings.limits
    )
    key = _key_of(address)
    engine = engines.get(key)
    if engine is None:
        durability = _durability_here.get() or _settings.durability
        client = connect(address.url, durability=durability, codec=address.codec, limits=address.limits)
        engine = engines[key] = EmbeddedEngine(client, retention=_settings.retention)
    return await engine.open()


def _key_of(address: Address) -> _Key:
    return address.url, id(address.codec)  # the engine keeps its codec, so the number means that one


def put_in_place(engine: EmbeddedEngine) -> Callable[[], None]:
    """Make `engine` the default of this loop, and the one of its database; return the undoing. For test environments."""
    engines = _engines.setdefault(asyncio.get_running_loop(), {})
    places: tuple[_Key | None, ...] = (None, _key_of(engine.client.address))
    former = {place: engines.get(place) for place in places}
    engines.update(dict.fromkeys(places, engine))

    def undo() -> None:
        for place, before in former.items():
            if before is None:
                del engines[place]
            else:
                engines[place] = before

    return undo


async def get_run(run_id: str) -> Run:
    """Return a run of the default database with its story; `id@2` is a generation. Raises `RunNotFoundError`."""
    return await (await engine_here()).client.describe(run_id)


async def list_runs(
    *,
    status: RunStatus | str | Sequence[RunStatus | str] | None = None,
    workflow: str | None = None,
    limit: int = 100,
) -> list[Run]:
    """Return runs of the default database, newest first, each with its journal."""
    client = (await engine_here()).client
    return await client.list(status=status, workflow=workflow, limit=limit, journals=True)


async def delete_run(run_id: str) -> None:
    """Delete a closed run of the default database, with all that belongs to it. Open: `WorkflowStateError`."""
    await (await engine_here()).client.delete(run_id)


async def default_client() -> Client:
    """Return the open client of the default database; it closes with the event loop. In an activity: of its run's database."""
    return (await engine_here()).client


async def get_handle(run_id: str) -> RunHandle[Any]:
    """Return a handle of a run of the default database. Raises `RunNotFoundError`."""
    return await (await engine_here()).client.get(run_id)


@overload
async def signal(run_id: str, signal: Callable[[Any, T], object], value: T) -> None: ...


@overload
async def signal(run_id: str, signal: Callable[[Any], object]) -> None: ...


@overload
async def signal(run_id: str, signal: Signal[Any] | str, value: object = None) -> None: ...


async def signal(run_id: str, signal: Any, value: object = None) -> None:
    """Send a signal to an open run of the default database; see `RunHandle.signal`."""
    await (await engine_here()).client.signal(run_id, signal, value)


async def answer(
    run_id: str, value: object = None, *, name: str | None = None, ask: str | None = None
) -> None:
    """Answer the question that an open run of the default database asks a person; see `Client.answer`."""
    await (await engine_here()).client.answer(run_id, value, name=name, ask=ask)


async def inbox(*, workflow: str | None = None, limit: int = 100) -> list[Ask]:
    """Return the questions that runs of the default database wait to have answered by people."""
    return await (await engine_here()).client.asks(workflow=workflow, limit=limit)


async def cancel(run_id: str, reason: str | None = None) -> None:
    """Ask an open run of the default database to cancel; see `RunHandle.cancel`."""
    await (await engine_here()).client.cancel(run_id, reason)


async def recover(wait: bool = False) -> list[Run]:
    """Take over open runs of this process's workflows that nobody drives, and drive them here.

    Workflows are found in the imported modules; a run whose name two of them claim is left alone, with a warning. With `wait`, return once each of them is closed, parked or waits for
    something from outside; the runs are returned as they are then.
    """
    engine = await engine_here()
    worker = await engine.worker()
    client = engine.client
    known = imported_workflows()
    await client.store.rescue_dead_workers(worker.lease_seconds, observer=worker.worker_id)
    found: list[str] = []
    open_runs = (RunStatus.PENDING, RunStatus.RUNNING, RunStatus.WAITING)
    for record in await client.store.list_runs(RunFilter(status=open_runs, limit=RECOVER_MAX)):
        definitions = known.get((record.workflow, record.version), [])
        if definitions and record.owner is None and record.task_queue != LOCAL_TASK_QUEUE:
            if len(definitions) > 1:
                origins = " and ".join(definition.origin for definition in definitions)
                log.warning(
                    "run %r is left alone: %s are both called %r (version %d)",
                    record.run_id, origins, record.workflow, record.version,
                )  # fmt: skip
                continue
            worker.registry.add(definitions[0])
            worker.ask_for(record.pk)
            found.append(record.run_id)
    return [await (_settled(client, run_id) if wait else client.describe(run_id)) for run_id in found]


async def _settled(client: Client, run_id: str) -> Run:
    """Wait until a run is closed, parked, or waits for something that is not a timer, retry or activity."""
    while True:
        run = await client.describe(run_id)
        if run.status.is_closed or run.status is RunStatus.PARKED:
            return run
        if run.status is RunStatus.WAITING and all(
            blocker.due_at is None and blocker.kind in ("signal", "condition") for blocker in run.waiting_on
        ):
            return run
        await pause(0.05)
