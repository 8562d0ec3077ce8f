"""How a run awaits what its journal answers: cancellation is never lost, and never livelocks.

The usual way to await a remote operation under cancellation is to swallow the `CancelledError`, tell the other side and
keep waiting. Under anyio, whose scopes cancel again and again until the task has left them, that never ends. Here:

- a cancel that arrives together with the outcome stays a cancel;
- "try" and "abandon" journal the end of the call and raise at once;
- "wait" journals it and waits for the outcome inside a shielded scope, which anyio's cancellation leaves alone, and then
  raises the cancel.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Awaitable, Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

from durable.errors import DefinitionError

if TYPE_CHECKING:
    from durable.engine.loop import DeterministicLoop
    from durable.engine.operations import Call, ChildCall, Operations, Wait

T = TypeVar("T")


async def perform(call: Call, loop: DeterministicLoop, operations: Operations) -> Any:
    """Ask for an activity and return its result, or raise its failure."""
    if loop.is_evicting:
        await refused(loop)
    # A plain future: nobody but this coroutine ever sees it, so it is in no set and needs no stable hash.
    future = call.future = Future(loop=loop)
    operations.open(call)
    try:
        value = await future
    except asyncio.CancelledError:
        if loop.is_evicting:
            await refused(loop)
        if future.cancelled():
            await _give_up(call, loop, operations)
        raise
    except GeneratorExit:
        if asyncio._get_running_loop() is loop and not loop.is_evicting:
            operations.close_call(call, "abandon" if call.definition.cancellation == "abandon" else "try")
        raise
    if call.error is not None:
        raise call.error
    return value


class StartedChild:
    """A child that runs beside the workflow (`runtime.Child`)."""

    def __init__(self, call: ChildCall, loop: DeterministicLoop, operations: Operations) -> None:
        self._call = call
        self._loop = loop
        self._operations = operations
        call.future = Future(loop=loop)
        if not loop.is_evicting:
            operations.open(call)
            self._run_id = operations.key_of_child(call)

    @property
    def run_id(self) -> str:
        return self._call.key or self._run_id

    async def outcome(self) -> Any:
        if self._loop.is_evicting:
            await refused(self._loop)
        # Whoever is cancelled here leaves the future to others, and to the outcome.
        await asyncio.wait([self._call.future])
        if self._call.error is not None:
            raise self._call.error
        return self._call.future.result()

    def cancel(self, reason: str | None = None) -> None:
        call = self._call
        if not (call.future.done() or call.closing or self._loop.is_evicting):
            self._operations.cancel_child(call, reason)


async def _give_up(call: Call, loop: DeterministicLoop, operations: Operations) -> None:
    how = call.definition.cancellation
    operations.close_call(call, how)
    if how != "wait" or call.dead:
        return
    import anyio  # here, so that importing durable does not import it

    with anyio.CancelScope(shield=True):
        while True:
            future = call.future = Future(loop=loop)
            try:
                await future
            except asyncio.CancelledError:
                # A further cancel of the same task; the first is raised in the end and asyncio has counted both.
                if loop.is_evicting:
                    await refused(loop)
                if future.cancelled():
                    continue
            return


async def outcome(wait: Wait, loop: DeterministicLoop) -> Any:
    """Return what a signal or condition wait was waiting for, or raise its error, or the cancel."""
    try:
        value = await wait.future
    except asyncio.CancelledError:
        if loop.is_evicting:
            await refused(loop)
        raise
    if wait.error is not None:
        raise wait.error
    return value


async def refused(loop: DeterministicLoop) -> None:
    """Raise `Evicted`; for code that swallows it again and again, wait for ever."""
    loop.refuse()
    await Future(loop=loop)


def as_completed(
    aws: Iterable[Awaitable[T]], timeout: float | None = None
) -> Iterator[Coroutine[Any, Any, T]]:
    """Yield awaitables that give the results of `aws` in the order of completion.

    As `asyncio.as_completed`, but bare coroutines are started in the given order, which replay needs. After `timeout`
    seconds the remaining ones raise TimeoutError.
    """
    if asyncio.isfuture(aws) or asyncio.iscoroutine(aws):
        raise DefinitionError(f"as_completed expects an iterable of awaitables, not {type(aws).__name__}")
    futures: list[Future[T]] = [asyncio.ensure_future(one) for one in dict.fromkeys(aws)]
    return _as_completed(futures, timeout)


def _as_completed(futures: list[Future[T]], timeout: float | None) -> Iterator[Coroutine[Any, Any, T]]:
    done: asyncio.Queue[Future[T] | None] = asyncio.Queue()
    left = dict.fromkeys(futures)
    timer: asyncio.TimerHandle | None = None

    def completed(future: Future[T]) -> None:
        if future in left:
            del left[future]
            done.put_nowait(future)
            if not left and timer is not None:
                timer.cancel()

    def timed_out() -> None:
        for future in left:
            future.remove_done_callback(completed)
            done.put_nowait(None)
        left.clear()

    async def next_one() -> T:
        future = await done.get()
        if future is None:
            raise TimeoutError
        return future.result()

    for future in futures:
        future.add_done_callback(completed)
    if futures and timeout is not None:
        timer = asyncio.get_running_loop().call_later(timeout, timed_out)
    for _ in futures:
        yield next_one()
