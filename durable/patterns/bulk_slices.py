"""A slice of a bulk operation: some items side by side, as one journaled activity. The part that touches the world.

A slice ends when its items have ended, or soon after the first has: what is ready is then recorded, and items that still run are *left*.
Their tasks run on, and each is taken over by a slice of its own, which the workflow schedules for it. So a slow item holds up nobody's
record and nobody's slot but its own. If that slice is performed elsewhere, or after a crash, the item is begun anew: it was in flight. A
task that nobody takes over is cancelled after `LEFT_SECONDS`.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
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
LEFT_SECONDS: Final = 5.0
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


class Slices:
    """Makes the activities of one operation, and performs them. `fn` is called with one item."""

    def __init__(self, fn: Callable[[Any], Any], hint: object, store: ItemStore) -> None:
        self._fn = fn
        self._is_async = inspect.iscoroutinefunction(fn) or inspect.iscoroutinefunction(
            getattr(fn, "__call__", None)  # noqa: B004  # an object whose call is a coroutine
        )
        self._hint = hint
        self._store = store
        self._left: dict[tuple[str, str], tuple[asyncio.Task[Any], asyncio.TimerHandle]] = {}
        self._timers: dict[asyncio.Task[Any], asyncio.TimerHandle] = {}
        self._late: dict[asyncio.Task[Any], float] = {}  # cancelled by their timers
        self._units: dict[tuple[Orders, int], Activity[..., Any]] = {}
        values: Any = result_hint(fn)
        self._values = codec(list[values])
        self._outcome_hint = tuple[list[values], list[int] | None, list[FailedItem], list[int]]
        self._outcome = codec(self._outcome_hint)

    def decode(self, data: bytes) -> SliceOutcome:
        """Return a recorded outcome."""
        return SliceOutcome(*self._outcome.decode(data))

    def unit(self, orders: Orders, attempt: int, alone: bool) -> Activity[..., Any]:
        """Return the activity for a slice. If its one item goes alone, a loss counts as the item's attempt."""
        lost_max = max(orders.attempts_max - attempt + 1, 1) if alone else LOST_MAX
        key = orders, lost_max
        found = self._units.get(key)
        if found is None:
            found = self._units[key] = self._unit(orders, lost_max)
        return found

    def _unit(self, orders: Orders, lost_max: int) -> Activity[..., Any]:
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
            return await self._perform(found, first, number, token, orders, policy)

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
        self, items: list[Any], first: int, number: int, token: str, orders: Orders, policy: Retry
    ) -> SliceOutcome:
        info = durable.activity_info()
        place = info.idempotency_key.rpartition(info.activity)[0]
        mark = f"item-{token}" if token else "item"
        tasks: list[asyncio.Task[Any]] = []
        for at, item in enumerate(items):
            name = f"{mark}#{first + at + 1}"
            left = self._left.pop((place, name), None)
            if left is None:
                tasks.append(durable.start_part(self._attempt, item, name=name, attempt=number))
            else:
                left[1].cancel()
                tasks.append(left[0])
        try:
            pending = await self._wait(tasks, orders.item_timeout)
        except BaseException:
            await _cancel(tasks)
            raise
        loop = asyncio.get_running_loop()
        for task in pending:
            timer = loop.call_later(LEFT_SECONDS, self._abandon, place, task)
            self._left[place, task.get_name()] = task, timer
        return self._collect(tasks, number, policy)

    def _abandon(self, place: str, task: asyncio.Task[Any]) -> None:
        """Nobody took over what a slice left: its run is gone, or another worker's."""
        self._left.pop((place, task.get_name()), None)
        task.cancel()

    async def _wait(self, tasks: list[asyncio.Task[Any]], limit: float) -> list[asyncio.Task[Any]]:
        """Wait until all have ended, or one has and the others do not soon; return those that have not."""
        await asyncio.sleep(0)
        pending = [task for task in tasks if not task.done()]
        if pending:
            for task in pending:
                self._limit(task, limit)
            if len(pending) == len(tasks):
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                pending = [task for task in tasks if not task.done()]
        if pending:
            await asyncio.wait(pending, timeout=PATIENCE_SECONDS)
            pending = [task for task in tasks if not task.done()]
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
        task.cancel()

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._timers.pop(task).cancel()
        self._late.pop(task, None)

    async def _attempt(self, item: Any) -> Any:
        """Return what the processor makes of an item, or how it failed. Raises only if it is cancelled by us."""
        try:
            if self._is_async:
                value = await self._fn(item)
            else:
                value = await anyio.to_thread.run_sync(
                    self._fn, item, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1)
                )
                if inspect.isawaitable(value):
                    value = await value
            return settled(value)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            assert task is not None, "a task runs this"
            limit = self._late.get(task)
            if limit is not None:
                text = f"the item ran longer than its timeout of {limit:g} s"
                return _Failure(ActivityTimeoutError(text, kind="start_to_close"))
            if task.cancelling():
                raise
            return _Failure(error)
        except BaseException as error:  # the boundary of user code: SystemExit must not stop the worker
            return _Failure(error)

    def _collect(self, tasks: list[asyncio.Task[Any]], number: int, policy: Retry) -> SliceOutcome:
        values: list[Any] = []
        done: list[int] = []
        failed: list[FailedItem] = []
        left: list[int] = []
        for at, task in enumerate(tasks):
            if not task.done():
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
        return SliceOutcome(values, None if len(done) == len(tasks) else done, failed, left)

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


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    """The slice is to stop: its items, too; they have a moment to unwind."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks, timeout=LEFT_SECONDS)
