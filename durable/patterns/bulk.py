"""Bulk operations: one function over many items, some at a time, durably.

    op = BulkOperation(charge_invoice, BulkOperationConfig(max_concurrency=20))
    result = await op.execute(invoices, run_id="invoices-2024-07")     # Ok(BulkResult), with the items that failed in `errors`

How it is put together: `bulk_items.py` keeps the items, `bulk_schedule.py` is the workflow that says which go next, `bulk_slices.py` performs
some of them as one activity, `bulk_reading.py` reads what came of them from the journal, for `execute` and `stream`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import aclosing
from typing import Any, ClassVar, Final, Generic, Literal, TypeVar, overload
from weakref import WeakValueDictionary

import durable
from durable import (
    Activity,
    DefinitionError,
    Err,
    Ok,
    PlatformFault,
    Result,
    RunCancelledError,
    RunHandle,
    Seconds,
    Workflow,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
    make_activity,
    make_workflow,
)
from durable.patterns import settings
from durable.patterns.bulk_config import (
    BulkItemError,
    BulkOperationCancelledError,
    BulkOperationConfig,
    BulkOperationError,
    BulkOperationTimeoutError,
    BulkResult,
    Orders,
)
from durable.patterns.bulk_items import CHUNK_ITEMS, Batch, Items, ItemStore, each
from durable.patterns.bulk_reading import Gathering, slices_in
from durable.patterns.bulk_schedule import Schedule
from durable.patterns.bulk_slices import SliceOutcome, Slices
from durable.patterns.calling import parameter_hint
from durable.patterns.policies import ONCE, as_seconds
from durable.patterns.running import current_run_id, hint_unfinished, joined_name, origin_of

T = TypeVar("T")
R = TypeVar("R")
Hook = Callable[[int, int, str], Any]
STOPPED: Final = "stopped at the first item that failed"
log = logging.getLogger("durable.bulk")


class BulkOperation(Generic[T, R]):
    """`processor` over many items. `execute` collects what came of them, `stream` yields it as it becomes durable.

    `processor` is called with one item; it may be async, a `def` (each call in a thread), an activity, or an object to call. An `Err` that it
    returns fails the item without a retry. Hooks (`on_progress` whenever there is news, `on_error` for each item that failed, `on_complete` at the
    end) are called with (done, total, message), sync or async, in the process that executes; inside a workflow each call is an activity.
    One object may be used again and again, also at once. Without a name it is called by its processor's. `retention` (seconds, timedelta or
    "forever") is how long runs are kept once they are closed, as with `@workflow`.
    """

    # The objects that this process executes, by name and run id: a run uses its own object while there is one.
    _executed: ClassVar[WeakValueDictionary[tuple[str, str], BulkOperation[Any, Any]]] = WeakValueDictionary()
    _hinted: ClassVar[set[str]] = set()

    @overload
    def __init__(
        self,
        processor: Callable[[T], Coroutine[Any, Any, R]],
        config: BulkOperationConfig | None = None,
        *,
        name: str | None = None,
        on_progress: Hook | None = None,
        on_complete: Hook | None = None,
        on_error: Hook | None = None,
        retention: Seconds | Literal["forever"] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        processor: Callable[[T], R],
        config: BulkOperationConfig | None = None,
        *,
        name: str | None = None,
        on_progress: Hook | None = None,
        on_complete: Hook | None = None,
        on_error: Hook | None = None,
        retention: Seconds | Literal["forever"] | None = None,
    ) -> None: ...

    def __init__(
        self,
        processor: Callable[[T], Any],
        config: BulkOperationConfig | None = None,
        *,
        name: str | None = None,
        on_progress: Hook | None = None,
        on_complete: Hook | None = None,
        on_error: Hook | None = None,
        retention: Seconds | Literal["forever"] | None = None,
    ) -> None:
        fn: Any = processor.fn if isinstance(processor, Activity) else processor
        if not callable(fn):
            raise TypeError(f"the processor of a bulk operation is something to call, not {processor!r}")
        if config is not None and not isinstance(config, BulkOperationConfig):
            raise TypeError(f"config takes a BulkOperationConfig, not {config!r}")
        self._config = config
        self._hooks = {"on_progress": on_progress, "on_complete": on_complete, "on_error": on_error}
        for hook, given in self._hooks.items():
            if given is not None and not callable(given):
                raise TypeError(f"{hook} takes something to call, not {given!r}")
        called = (
            processor.name if isinstance(processor, Activity) else getattr(fn, "__name__", type(fn).__name__)
        )
        self._name = name or joined_name("bulk", [] if called == "<lambda>" else [called])
        self._fn = fn
        self._retention = retention
        hint = parameter_hint(fn)
        self._items = ItemStore(hint)
        self._slices = Slices(fn, hint, self._items)
        self._stops: set[_Stop] = set()

    @property
    def name(self) -> str:
        return self._name

    @property
    def config(self) -> BulkOperationConfig:
        """Its configuration: its own, else the application's, else the defaults."""
        return self._config or settings.bulk_config.get() or BulkOperationConfig()

    def __repr__(self) -> str:
        return f"<bulk operation {self._name}>"

    # ─ what a user calls ──

    async def execute(
        self, items: Items, *, run_id: str | None = None
    ) -> Result[BulkResult[R], BulkOperationError]:
        """Process all items; return `Ok` once each has succeeded or failed for good.

        `Err` if it was stopped (`stop_on_error`), timed out or cancelled; its error has what was done as `partial`. Inside a workflow it is part
        of that run. Elsewhere it is a run of its own, for which the items are stored first: the same `run_id` with the same items
        attaches, resumes, or reads the recorded results; with other items it is a `RunConflictError`.
        """
        if current_run_id() is not None:
            return await self._execute_inline(items, run_id)
        stream = BulkStream[R](self, (items, run_id), keeps_results=True)
        async for _ in stream:
            pass
        return Ok(stream.result) if stream.error is None else Err(stream.error)

    def stream(self, items: Items, *, run_id: str | None = None) -> BulkStream[R]:
        """Process all items, and yield the results as they become durable, in bounded memory; see `BulkStream`.

        Whoever stops listening does not stop the run. Inside a workflow the results come when all are there.
        """
        return BulkStream(self, (items, run_id), keeps_results=False)

    async def start(self, items: Items, *, run_id: str | None = None) -> RunHandle[Any]:
        """Store the items, start a run, drive it in this process, and return its handle. Its result is counts, by name.

        Inside a workflow the run is a child of that one, whose id follows from its parent's; of its handle use `run_id`, `result()` and `cancel()`.
        """
        handle, _ = await self._begin(items, run_id)
        return handle

    async def enqueue(self, items: Items, *, run_id: str | None = None) -> RunHandle[Any]:
        """Store the items and a run for a worker that serves the module of this operation, and return its handle; see `start` for the rest."""
        handle, _ = await self._begin(items, run_id, drive=False)
        return handle

    def cancel(self) -> Awaitable[None]:
        """Cancel whatever this object executes: each `execute` returns `Err(BulkOperationCancelledError)`. Awaiting it waits for that."""
        return _Cancelled([stop.cancel() for stop in self._stops])

    def __durable_workflows__(self) -> list[Workflow[..., Any]]:
        return [self._workflow()]

    # ─ as a run of its own ──

    def _workflow(self) -> Workflow[..., Any]:
        return make_workflow(
            self._body,
            name=self._name,
            kind="bulk",
            origin=origin_of("bulk operation", [(self._name, self._fn)]),
            timeout=self.config.timeout,
            retention=self._retention,
            result=dict[str, int],
            is_long=True,
        )

    async def _begin(
        self, items: Items, run_id: str | None, *, drive: bool = True
    ) -> tuple[RunHandle[Any], Batch]:
        if current_run_id() is not None:
            return await self._begin_child(items, run_id)
        if run_id is None:
            run_id = durable.derived_run_id(self._name)
        if run_id is None:
            if drive and self._name not in self._hinted:
                self._hinted.add(self._name)
                await hint_unfinished("bulk", self._name)
            run_id = f"{self._name}-{durable.uuid4().hex[:12]}"
        batch = await self._items.store(items, run_id)
        self._executed[self._name, run_id] = self
        workflow = self._workflow().options(run_id=run_id)
        handle = await (workflow.start(batch) if drive else workflow.enqueue(batch))
        return handle, batch

    async def _begin_child(self, items: Items, run_id: str | None) -> tuple[RunHandle[Any], Batch]:
        """Start a child of the run whose code this is, in the turn that records the call; large items are stored before, by an activity.

        A crash before that turn leaves rows that the activity finds when it is repeated; after it, the child is there, and a replay
        gets the same one.
        """
        with durable.scope(self._name):
            run_id, batch = await self._items.store_for_child(items, run_id, self._name)
        handle = await self._workflow().options(run_id=run_id).start(batch)
        self._executed[self._name, handle.run_id] = self
        return handle, batch

    async def _body(self, batch: Batch) -> dict[str, int]:
        """The workflow. It holds no results: they are in the journal."""
        key = self._name, durable.info().run_id
        op = self._executed.get(key, self)
        try:
            return await op._go_through(batch)
        finally:
            if not durable.is_evicting():
                self._executed.pop(key, None)

    async def _go_through(self, batch: Batch) -> dict[str, int]:
        orders = await self._settle_orders()
        items = [] if batch.items is None else self._items.restored(batch.items)

        async def work(first: int, count: int, attempt: int, alone: bool, is_left: bool) -> Any:
            unit = self._slices.unit(orders, attempt, alone, is_left)
            if batch.items is not None:
                return await unit(first, count, attempt, alone, items[first : first + count])
            return await unit(first, count, attempt, alone, chunk=batch.chunks[first // CHUNK_ITEMS])

        async def heard(first: int, outcome: SliceOutcome) -> None:
            return None

        schedule = Schedule(orders, batch.total, CHUNK_ITEMS, work, heard)
        await schedule.run()
        if schedule.is_stopped:
            raise BulkOperationError(STOPPED)
        return {"total": batch.total, "succeeded": schedule.succeeded, "failed": schedule.failed}

    async def _settle_orders(self) -> Orders:
        """Return the options by which this run goes to its end: those of whoever drove it first."""

        async def look() -> Orders:
            return self.config.orders()

        orders: Orders = await make_activity(look, name="settings", kind="bulk", result=Orders)()
        return orders

    # ─ as part of a run ──

    async def _execute_inline(
        self, items: Items, run_id: str | None
    ) -> Result[BulkResult[R], BulkOperationError]:
        if run_id is not None:
            raise DefinitionError(
                f"bulk operation {self._name!r} is part of the run that executes it: leave run_id out"
            )
        with durable.scope(self._name):
            listed = [item async for item in each(items)]
            orders = await self._settle_orders()
            return await self._perform_inline(listed, orders)

    async def _perform_inline(
        self, listed: list[Any], orders: Orders
    ) -> Result[BulkResult[R], BulkOperationError]:
        token = durable.uuid4().hex[:8]  # tells the items of two operations of one run apart
        began = durable.now()

        async def item_at(index: int) -> Any:
            return listed[index]

        gathering = Gathering(len(listed), item_at, keeps_results=True)
        told = _Told(self, gathering, inline=True)

        async def work(first: int, count: int, attempt: int, alone: bool, is_left: bool) -> Any:
            unit = self._slices.unit(orders, attempt, alone, is_left)
            return await unit(first, count, attempt, alone, listed[first : first + count], token=token)

        async def heard(first: int, outcome: SliceOutcome) -> None:
            await gathering.add(first, outcome)
            await told.news()

        def partial() -> BulkResult[R]:
            return gathering.result((durable.now() - began).total_seconds())

        schedule = Schedule(orders, len(listed), max(len(listed), 1), work, heard)
        stop = _Stop()
        self._stops.add(stop)
        try:
            error = await self._run_inline(schedule, stop)
        finally:
            self._stops.discard(stop)
            stop.ended()
        if error is not None:
            error.partial = partial()
            return Err(error)
        await told.end()
        return Ok(partial())

    async def _run_inline(self, schedule: Schedule, stop: _Stop) -> BulkOperationError | None:
        """Run to the end, and return why it was not the end of all items."""
        limit = as_seconds("timeout", self.config.timeout)
        running: asyncio.Task[None] | None = None

        async def watch() -> None:
            await stop.asked.wait()
            assert running is not None, "set before this task runs"
            running.cancel()

        try:
            async with asyncio.timeout(limit) as scope, asyncio.TaskGroup() as group:
                running = group.create_task(schedule.run())
                watching = group.create_task(watch())
                running.add_done_callback(lambda _: watching.cancel())
        except TimeoutError:
            if not scope.expired():
                raise
            return BulkOperationTimeoutError(f"bulk operation {self._name!r} took longer than {limit:g} s")
        except BaseExceptionGroup as group_error:
            raise group_error.exceptions[0] from None
        if running is not None and running.cancelled():
            return BulkOperationCancelledError(f"bulk operation {self._name!r} was cancelled")
        return BulkOperationError(STOPPED) if schedule.is_stopped else None


class BulkStream(Generic[R]):
    """The results of a run as they become durable: `async for result in op.stream(items)`. Results of items that failed are missing.

    `errors` has those, so far; `result` is the outcome so far, without the results. If the run is stopped, timed out or cancelled, the
    loop ends with its `BulkOperationError`. Made by `BulkOperation.stream`.
    """

    def __init__(
        self,
        op: BulkOperation[Any, R],
        given: tuple[Items, str | None],
        *,
        keeps_results: bool,
    ) -> None:
        self._op = op
        self._given = given
        self._keeps_results = keeps_results
        self._handle: RunHandle[Any] | None = None
        self._batch: Batch | None = None
        self._gathering = Gathering(0, self._item_at, keeps_results=False)
        self._duration = 0.0
        self.error: BulkOperationError | None = None

    @property
    def run_id(self) -> str | None:
        """The run, once it was started."""
        return None if self._handle is None else self._handle.run_id

    @property
    def errors(self) -> list[BulkItemError]:
        return list(self._gathering.errors)

    @property
    def result(self) -> BulkResult[R]:
        return self._gathering.result(self._duration)

    def __aiter__(self) -> AsyncIterator[R]:
        return self._each()

    async def _each(self) -> AsyncIterator[R]:
        if current_run_id() is not None:
            items, run_id = self._given
            result = (await self._op._execute_inline(items, run_id)).unwrap()
            for value in result.results:
                yield value
            return
        async with aclosing(self._follow()) as slices:
            async for values in slices:
                if not self._keeps_results:
                    for value in values:
                        yield value
        if self.error is not None and not self._keeps_results:
            raise self.error

    async def _follow(self) -> AsyncGenerator[list[R], None]:
        op = self._op
        stop = _Stop()
        op._stops.add(stop)
        try:
            self._handle, self._batch = handle, batch = await op._begin(*self._given)
            self._gathering = Gathering(batch.total, self._item_at, keeps_results=self._keeps_results)
            told = _Told(op, self._gathering, inline=False)
            async with aclosing(handle.outcomes()) as journal:
                async for outcomes in journal:
                    await stop.obey(handle.run_id)
                    for first, outcome in slices_in(outcomes, op._slices.decode):
                        await self._gathering.add(first, outcome)
                        yield outcome.values
                    await told.news()
            await self._end(handle, told)
        finally:
            op._stops.discard(stop)
            stop.ended()

    async def _end(self, handle: RunHandle[Any], told: _Told) -> None:
        try:
            await handle.result()
        except RunCancelledError as error:
            self.error = BulkOperationCancelledError(str(error))
        except WorkflowTimeoutError as error:
            self.error = BulkOperationTimeoutError(str(error))
        except WorkflowFailedError as failed:
            if not isinstance(failed.__cause__, BulkOperationError):
                raise
            self.error = BulkOperationError(str(failed.__cause__))
        client = await durable.default_client()
        for run in await client.list(run_id=handle.run_id, journals=False):  # a story would hold all slices
            if run.run_id == handle.run_id and run.closed_at is not None:
                self._duration = (run.closed_at - run.created_at).total_seconds()
        if self.error is not None:
            self.error.partial = self.result
        else:
            await told.end()

    async def _item_at(self, index: int) -> Any:
        batch, items = self._batch, self._op._items
        assert batch is not None, "known before any item failed"
        if batch.items is not None:
            return items.restored(batch.items)[index]
        assert self._handle is not None, "begun before any item failed"
        number = index // CHUNK_ITEMS
        chunk = await items.chunk(self._handle.run_id, number, batch.chunks[number])
        return chunk[index % CHUNK_ITEMS]


class _Told:
    """What the hooks of one execution have been told. A hook that raises harms nothing: it is logged."""

    def __init__(self, op: BulkOperation[Any, Any], gathering: Gathering, *, inline: bool) -> None:
        self._op = op
        self._gathering = gathering
        self._inline = inline
        self._done = 0
        self._errors = 0

    async def news(self) -> None:
        """Tell of what is new since the last call."""
        now = self._gathering
        while self._errors < len(now.errors):
            error = now.errors[self._errors]
            self._errors += 1
            await self._call(
                "on_error", now.done, f"item {error.index} failed: {error.error_type}: {error.error}"
            )
        if now.done > self._done and self._op.config.enable_progress_tracking:
            self._done = now.done
            await self._call("on_progress", now.done, self._line())

    async def end(self) -> None:
        await self._call("on_complete", self._gathering.done, self._line())

    def _line(self) -> str:
        now = self._gathering
        failed = f", {len(now.errors)} of them failed" if now.errors else ""
        return f"{now.done} of {now.total} items{failed}"

    async def _call(self, name: str, done: int, message: str) -> None:
        hook = self._op._hooks[name]
        if hook is None:
            return
        try:
            if self._inline:
                call = make_activity(hook, name=name, kind="hook", retry=ONCE, result=Any)
                await call(done, self._gathering.total, message)
            else:
                answer = hook(done, self._gathering.total, message)
                if hasattr(answer, "__await__"):
                    await answer
        except PlatformFault:
            raise
        except Exception:
            log.exception("%s of bulk operation %r raised", name, self._op.name)


class _Stop:
    """Of one execution: whether somebody asked to cancel it, and whether it has ended."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._over = asyncio.Event()
        self._is_obeyed = False

    def cancel(self) -> _Stop:
        self.asked.set()
        return self

    def ended(self) -> None:
        self._over.set()

    async def wait(self) -> None:
        await self._over.wait()

    async def obey(self, run_id: str) -> None:
        """Cancel the run, once, if somebody asked for that."""
        if self.asked.is_set() and not self._is_obeyed:
            self._is_obeyed = True
            try:
                await durable.cancel(run_id, "cancelled by its program")
            except WorkflowStateError:
                pass  # it was over before


class _Cancelled:
    """What `cancel()` returns: need not be awaited."""

    def __init__(self, stops: list[_Stop]) -> None:
        self._stops = stops

    def __await__(self) -> Generator[Any, None, None]:
        for stop in self._stops:
            yield from stop.wait().__await__()
