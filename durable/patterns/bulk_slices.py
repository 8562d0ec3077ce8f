"""A slice of a bulk operation: some items side by side, as one journaled activity. The part that touches the world.

A slice ends when its items have ended, or soon after the first has: what is ready is then recorded, and items that still run are *left*.
Their tasks run on, and each is taken over by a slice of its own, which the workflow schedules for it: at once, also when no slot is free or
the worker stops. So a slow item holds up nobody's record and nobody's slot but its own. If that slice is performed elsewhere, or after a
crash, the item is begun anew: it was in flight. A slice that is stopped tells what its items had come to, and has left the others.
"""

from __future__ import annotations

import asyncio
import inspect
import types
from collections.abc import Awaitable, Callable, Coroutine
from datetime import timedelta
from typing import Any, Final, NamedTuple

import anyio
import anyio.to_thread
import msgspec

import durable
from durable import (
    Activity,
    ActivityTimeoutError,
    DurableError,
    Retry,
    make_activity,
)
from durable.patterns.bulk_config import Orders
from durable.patterns.bulk_items import CHUNK_ITEMS, ItemStore, codec
from durable.patterns.calling import result_hint, settled

PATIENCE_SECONDS: Final = 0.002  # for the others, after the first item of a slice has ended
UNWIND_SECONDS: Final = 5.0  # for items that are to stop
LOST_MAX: Final = 2  # times that a slice may be lost with its worker before its items are suspects
NAME: Final = "items"


class FailedItem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One failed attempt. `at` is the item's place in its slice; with `delay` (seconds) it is tried again."""

    at: int
    error: str
    type: str
    attempts: int
    delay: float | None = None


class SliceInput(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader of the journal needs to know of a slice's arguments."""

    first: int
    attempt: int
    alone: bool = False


class SliceOutcome(NamedTuple):
    """What came of a slice. `done` are the places of `values`, None: all. `left` are those of items that still run."""

    values: list[Any]
    done: list[int] | None
    failed: list[FailedItem]
    left: list[int]


class _Failure(NamedTuple):
    error: BaseException


class _Work:
    """A slice that is being performed: its items and their names, what came of those that ended at once, and the tasks of the others."""

    __slots__ = ("contexts", "cut", "ended", "items", "names", "runner", "tasks")

    def __init__(self, items: list[Any], names: list[str], attempt: int) -> None:
        self.items = items
        self.names = names
        self.contexts = [durable.part_context(name=name, attempt=attempt) for name in names]
        self.ended: list[Any] = [None] * len(items)
        self.tasks: dict[int, asyncio.Task[Any]] = {}
        self.runner: asyncio.Task[Any] | None = None  # as long as it takes first steps
        self.cut: set[int] = set()  # those that were interrupted, and came to no result

    def pending(self) -> list[tuple[int, asyncio.Task[Any]]]:
        return [(at, task) for at, task in self.tasks.items() if not task.done()]


class Slices:
    """Makes the activities of one operation, and performs them. `fn` is called with one item."""

    def __init__(self, fn: Callable[[Any], Any], hint: object, store: ItemStore) -> None:
        self._fn = fn
        self._is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
            getattr(fn, "__call__", None)  # noqa: B004  # an object whose call is a coroutine
        )
        self._is_quick = self._is_async  # whether items are likely to end at their first step
        self._hint = hint
        self._store = store
        self._timers: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}
        self._late: dict[asyncio.Task[Any], float] = {}  # cancelled by their timers
        self._units: dict[tuple[Orders, int, bool], Activity[..., Any]] = {}
        values: Any = result_hint(fn)
        self._values = codec(list[values])
        self._outcome_hint = tuple[list[values], list[int] | None, list[FailedItem], list[int]]
        self._outcome = codec(self._outcome_hint)

    def decode(self, data: bytes) -> SliceOutcome:
        """Return a recorded outcome."""
        return SliceOutcome(*self._outcome.decode(data))

    def unit(self, orders: Orders, attempt: int, alone: bool, is_left: bool) -> Activity[..., Any]:
        """Return the activity for a slice. If its one item goes alone, a loss counts as the item's attempt; one that was left runs already."""
        lost_max = max(orders.attempts_max - attempt + 1, 1) if alone else LOST_MAX
        key = orders, lost_max, is_left
        found = self._units.get(key)
        if found is None:
            unit = self._unit(orders, lost_max, is_left)
            found = self._units[key] = unit.taking_over() if is_left else unit
        return found

    def _unit(self, orders: Orders, lost_max: int, is_left: bool) -> Activity[..., Any]:
        policy = retry_policy(orders)

        async def work(
            first: int,
            count: int,
            attempt: int,
            alone: bool = False,
            items: Any = None,
            chunk: str | None = None,
            token: str = "",
        ) -> Any:
            found = items
            if chunk is not None:
                run_id = durable.activity_info().run_id
                whole = await self._store.chunk(run_id, first // CHUNK_ITEMS, chunk)
                found = whole[first % CHUNK_ITEMS : first % CHUNK_ITEMS + count]
            number = attempt + durable.activity_info().attempt - 1 if alone else attempt
            return await self._perform(found, first, number, token, orders, policy, is_left)

        hint: Any = self._hint
        work.__annotations__["items"] = list[hint] | None
        return make_activity(
            work,
            name=NAME,
            kind="bulk",
            retry=Retry(
                lost_max, initial=orders.retry_delay, maximum=max(100.0, orders.retry_delay), retry_on=()
            ),
            result=self._outcome_hint,
        )

    # ─ performing ──

    async def _perform(
        self,
        items: list[Any],
        first: int,
        number: int,
        token: str,
        orders: Orders,
        policy: Retry,
        is_left: bool,
    ) -> SliceOutcome:
        info = durable.activity_info()
        mark = f"item-{token}" if token else "item"
        work = _Work(items, [f"{mark}#{first + at}" for at in range(1, len(items) + 1)], number)
        if is_left:
            for at, context in enumerate(work.contexts):
                if (part := durable.take_part(context)) is not None:
                    work.tasks[at], work.contexts[at] = part
        self._start(work)
        try:
            pending = await self._wait(work, orders.item_timeout)
        except asyncio.CancelledError:
            await self._cut_short(work, info.cancel_reason or "its slice was cancelled")
            if work.runner is not None or len(work.cut) == len(items):
                raise
            return self._collect(work, number, policy)
        for at, task in pending:
            durable.leave_part(work.contexts[at], task)
        return self._collect(work, number, policy)

    def _start(self, work: _Work) -> None:
        """Begin what was not left over: in one task as long as items end at their first step, else each in its own."""
        if self._is_quick and not work.tasks:
            work.runner = durable.start_part(self._take_steps, work, name=NAME)
        else:
            self._start_alone(work, 0)

    def _start_alone(self, work: _Work, first: int) -> None:
        """Begin the items from `first` on, each in a task of its own."""
        work.runner = None
        for at in range(first, len(work.items)):
            if at not in work.tasks:
                context, name = work.contexts[at], work.names[at]
                work.tasks[at] = durable.start_part(self._attempt, work.items[at], name=name, context=context)

    async def _take_steps(self, work: _Work) -> Any:
        """Take the first steps of the items, one after the other. One that suspends keeps this task, and is its value.

        The others get their own then: where one waits for the world, most do.
        """
        task = asyncio.current_task()
        assert task is not None, "a task runs this"
        for at, item in enumerate(work.items):
            context = work.contexts[at]
            try:
                coroutine, waited = context.run(_first_step, self._fn, item)
            except StopIteration as returned:
                work.ended[at] = _settled(returned.value)
            except BaseException as error:  # the boundary of user code: SystemExit must not stop the worker
                work.ended[at] = _Failure(error)
            else:
                self._is_quick = False
                task.set_name(work.names[at])
                work.tasks[at] = task
                self._start_alone(work, at + 1)
                return await self._see_through(durable.finish_part(coroutine, context, waited))
            if task.cancelling():  # the item has cancelled its own task: not the next one's business
                work.ended[at] = _Failure(asyncio.CancelledError())
                return self._start_alone(work, at + 1)
        work.runner = None
        return None

    async def _wait(self, work: _Work, limit: float) -> list[tuple[int, asyncio.Task[Any]]]:
        """Wait until all have ended, or one has and the others do not soon; return those that have not, with their places."""
        await asyncio.sleep(0)
        while work.runner is not None:  # noqa: ASYNC110  # this task came first: no loop promises an order
            await asyncio.sleep(0)
        pending = work.pending()
        if pending:
            for _, task in pending:
                self._limit(task, limit)
            if len(pending) == len(work.items):
                await asyncio.wait([task for _, task in pending], return_when=asyncio.FIRST_COMPLETED)
                pending = work.pending()
        if pending:
            await asyncio.wait([task for _, task in pending], timeout=PATIENCE_SECONDS)
            pending = work.pending()
        elif work.tasks:
            self._is_quick = self._is_async
        return pending

    def _limit(self, task: asyncio.Task[Any], limit: float) -> None:
        """Cancel a task that is still at it after `limit` seconds; one that was left has its timer already."""
        if task in self._timers:
            return
        loop = asyncio.get_running_loop()
        self._timers[task] = loop.call_later(limit, self._ring, task, limit)
        task.add_done_callback(self._end)

    def _ring(self, task: asyncio.Task[Any], limit: float) -> None:
        self._late[task] = limit
        task.cancel(_late_text(limit))

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._timers.pop(task).cancel()
        self._late.pop(task, None)

    async def _cut_short(self, work: _Work, reason: str) -> None:
        """The slice is to stop: its items, too; they have a moment to unwind. What has ended counts, and what ends well all the same."""
        running = work.pending()
        tasks = [task for _, task in running] + ([] if work.runner is None else [work.runner])
        for task in tasks:
            task.cancel(reason)
        if tasks:
            await asyncio.wait(tasks, timeout=UNWIND_SECONDS)
        work.cut = {
            at
            for at, task in running
            if not task.done() or task.cancelled() or task.result().__class__ is _Failure
        }

    async def _attempt(self, item: Any) -> Any:
        """Return what the processor makes of an item, or how it failed. Raises only if it is cancelled by us."""
        return await self._see_through(self._call(item))

    async def _call(self, item: Any) -> Any:
        if self._is_async:
            return await self._fn(item)
        value = await _in_thread(self._fn, item)
        return await value if inspect.isawaitable(value) else value

    async def _see_through(self, rest: Awaitable[Any]) -> Any:
        try:
            return settled(await rest)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None, "a task runs this"
            limit = self._late.get(task)
            if limit is not None:
                return _Failure(ActivityTimeoutError(_late_text(limit), kind="start_to_close"))
            if task.cancelling():
                raise
            return _Failure(error)
        except BaseException as error:  # the boundary of user code: SystemExit must not stop the worker
            return _Failure(error)

    def _collect(self, work: _Work, number: int, policy: Retry) -> SliceOutcome:
        values: list[Any] = []
        done: list[int] = []
        failed: list[FailedItem] = []
        left: list[int] = []
        for at, value in enumerate(work.ended):
            if (task := work.tasks.get(at)) is not None:
                if at in work.cut or not task.done():
                    left.append(at)
                    continue
                value = _Failure(asyncio.CancelledError()) if task.cancelled() else task.result()
            if type(value) is _Failure:
                failed.append(failed_item(at, value.error, number, policy))
            else:
                done.append(at)
                values.append(value)
        try:
            self._values.encode(values)
        except DurableError:
            values, done = self._sort_out(values, done, failed, number)
        return SliceOutcome(values, None if len(done) == len(work.items) else done, failed, left)

    def _sort_out(
        self, values: list[Any], done: list[int], failed: list[FailedItem], number: int
    ) -> tuple[list[Any], list[int]]:
        """Some value cannot be stored: that item has failed, the others have not."""
        kept: list[tuple[int, Any]] = []
        for at, value in zip(done, values, strict=True):
            try:
                self._values.encode([value])
            except DurableError as error:
                failed.append(failed_item(at, error, number, None))
            else:
                kept.append((at, value))
        return [value for _, value in kept], [at for at, _ in kept]


async def _in_thread(fn: Callable[[Any], Any], item: Any) -> Any:
    """Call a plain function in a thread. If the item is cancelled, so is the thread; one that does not end soon is left alone."""
    thread = durable.PartThread()
    try:
        error, value = await anyio.to_thread.run_sync(
            thread.call, fn, item, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
        )
    except asyncio.CancelledError as cancelled:
        await thread.stop(str(cancelled))
        raise
    if error is not None:
        raise error
    return value


def _first_step(fn: Callable[[Any], Any], item: Any) -> tuple[Coroutine[Any, Any, Any], Any]:
    """Call a processor and step its coroutine; return that, and what it waits for. `StopIteration`: it returned."""
    try:
        called: Any = fn(item)
    except StopIteration as error:  # of the function itself, not of its coroutine
        raise RuntimeError("the processor raised StopIteration") from error
    coroutine = called if called.__class__ is types.CoroutineType else _awaited(called)
    return coroutine, coroutine.send(None)


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _late_text(limit: float) -> str:
    return f"the item ran longer than its timeout of {limit:g} s"


def _settled(value: Any) -> Any:
    try:
        return settled(value)
    except Exception as error:  # an `Err` that it returned
        return _Failure(error)


def retry_policy(orders: Orders) -> Retry:
    return Retry(
        orders.attempts_max,
        initial=orders.retry_delay,
        maximum=max(100.0, orders.retry_delay),
        retry_on=BaseException if orders.retries_all else None,
    )


def failed_item(at: int, error: BaseException, number: int, policy: Retry | None) -> FailedItem:
    """Return how an attempt failed, and whether and when another follows. Without a policy none does."""
    delay: float | None = None
    if policy is not None and policy.is_retryable(error) and policy.has_attempt_after(number):
        delay = _asked_delay(error)
        if delay is None:
            delay = policy.delay_us(number) / 1_000_000
    cause = error.__cause__ if isinstance(error, durable.StepAnswerError) else None
    return FailedItem(
        at=at,
        error=_text(cause or error),
        type=type(cause or error).__name__,
        attempts=number,
        delay=delay,
    )


def _text(error: BaseException) -> str:
    try:
        return str(error).encode("utf-8", "backslashreplace").decode()
    except Exception:  # a hostile __str__ may raise anything
        return f"<its text is lost: {type(error).__name__}.__str__ raised>"


def _asked_delay(error: BaseException) -> float | None:
    try:
        asked = getattr(error, "next_retry_delay", None)
        seconds = asked.total_seconds() if isinstance(asked, timedelta) else asked
        return None if seconds is None else max(float(seconds), 0.0)
    except Exception:  # an attribute of somebody else's
        return None
