"""Activities that are plain functions run here: each attempt in a thread of the executor, in a context of its own.

One that is told to stop has an exception raised in its thread (`durable/interrupts.py`), and keeps its slot until it ends. A function that returns an
awaitable (`lambda: charge(order)`) has its thread only until then: the awaitable goes on in a task of the loop, and from there on the
attempt is like that of a coroutine function. Told to stop before that, it is never awaited. Knows how to call a function; what
its end means is told to it as `on_ended`, on the loop.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from contextvars import Context, copy_context
from functools import partial
from typing import Any, NamedTuple

from durable.definitions import ActivityDefinition
from durable.engine.runtime import ActivityCall
from durable.in_activity import Pulse, pulse_here
from durable.interrupts import BodyThread
from durable.seams import Executor, Threads, spawn
from durable.worker.live import Attempt
from durable.worker.reading import read_arguments
from durable.worker.runners import Ended, StaleError

Performed = tuple[BaseException | None, bytes, Any]


class _Rest(NamedTuple):
    """What a function has returned that is yet to be awaited, and the context it was made in."""

    awaitable: Awaitable[Any]
    context: Context

    def discard(self) -> None:
        """Never await it. Nothing of a coroutine that has not begun runs."""
        if inspect.iscoroutine(self.awaitable):
            self.awaitable.close()


class ThreadRunners:
    """Runs the plain functions of one worker's activities."""

    def __init__(self, *, threads: Threads, executor: Executor, context: Context, on_ended: Ended) -> None:
        self._threads = threads
        self._executor = executor
        self._context = context
        self._on_ended = on_ended

    def start(self, attempt: Attempt, pulse: Pulse) -> Exception | None:
        """Begin an attempt; return why it cannot begin, if it cannot: there is no thread to be had, say."""
        pulse.body = body = BodyThread(self._threads)
        try:
            task = self._context.copy().run(self._executor.submit, partial(_run, attempt.call, pulse, body))
        except Exception as error:
            return error
        attempt.task = task
        task.add_done_callback(partial(self._returned, attempt, pulse))
        return None

    def _returned(self, attempt: Attempt, pulse: Pulse, thread: asyncio.Future[Performed | _Rest]) -> None:
        """The thread is free again. What it has left to be awaited goes on here, unless the attempt is to stop."""
        rest = None if thread.cancelled() or thread.exception() is not None else thread.result()
        if not isinstance(rest, _Rest):
            self._ended(attempt, thread)
            return
        refusal = _refusal(pulse)
        if refusal is not None:
            rest.discard()
            self._on_ended(attempt, thread, refusal, b"", None)
            return
        rest_of_it = _see_through(rest.awaitable, attempt.call.definition)
        task = spawn(rest_of_it, name="durable activity", context=rest.context)
        attempt.task = task
        task.add_done_callback(partial(self._awaited, attempt, rest))

    def _awaited(self, attempt: Attempt, rest: _Rest, task: asyncio.Task[Performed]) -> None:
        if task.cancelled():  # before its first step
            rest.discard()
        self._ended(attempt, task)

    def _ended(self, attempt: Attempt, task: asyncio.Future[Any]) -> None:
        if task.cancelled():
            self._on_ended(attempt, task, asyncio.CancelledError(), b"", None)
        elif (broken := task.exception()) is not None:
            self._on_ended(attempt, task, broken, b"", None)
        else:
            self._on_ended(attempt, task, *task.result())


def _run(call: ActivityCall, pulse: Pulse, body: BodyThread) -> Performed | _Rest:
    """In the thread: call the function, and return what it raised, or its result stored, and as replay will read it."""
    definition = call.definition
    try:
        refusal = _refusal(pulse)
        if refusal is not None:
            return refusal, b"", None
        pulse_here.set(pulse)
        args, kwargs = read_arguments(definition, call.args)
        error, value = body.call(partial(definition.fn, *args, **kwargs))
        if error is not None:
            return error, b"", None
        if inspect.isawaitable(value):
            return _Rest(value, copy_context())
        return None, *definition.result.stored(value)
    except BaseException as error:
        return error, b"", None


def _refusal(pulse: Pulse) -> BaseException | None:
    """Return why code of an attempt must not begin: its lease is lost; or it was told to stop, and may be another worker's by now."""
    if pulse.fence is not None and not pulse.fence():
        return StaleError()
    return None if pulse.cancel_reason is None else asyncio.CancelledError(pulse.cancel_reason)


async def _see_through(rest: Awaitable[Any], definition: ActivityDefinition) -> Performed:
    try:
        return None, *definition.result.stored(await rest)
    except BaseException as error:  # the boundary of user code: SystemExit must not stop the worker
        return error, b"", None
