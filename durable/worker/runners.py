"""Runners: the tasks in which coroutine activities run.

Most activities of a batch that was just committed are done at their first step, or wait for the network after it. A
task for each would cost more than all the rest of a step. So one task, the runner, takes the first steps of all that are
due, one after the other, each in a context of its own. One that suspends keeps the runner: it is its task from its first
line to its last, so cancelling, timeouts, and whatever asks for the current task work as in any task; another
runner goes on with the others. A runner whose activity has suspended is never used again.

Knows how to step a coroutine; what its end means is told to it as `on_ended`.
"""

from __future__ import annotations

import asyncio
import logging
import types
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context
from typing import Any, Final

from durable.definitions import ActivityDefinition
from durable.in_activity import Pulse, finish_part, pulse_here
from durable.seams import Clock, pause, spawn
from durable.worker.live import Attempt, AttemptState
from durable.worker.reading import read_arguments

SLICE_SECONDS: Final = 0.02  # then the loop breathes
SLICE_STEPS: Final = 8  # between looks at the clock
_RUNNING: Final = AttemptState.RUNNING
log = logging.getLogger("durable.worker")

# attempt, its task (None: it never suspended), what it raised, its result stored, and as replay will read it
Ended = Callable[[Attempt, Any, BaseException | None, bytes, Any], None]


class StaleError(Exception):
    """The process slept between the commit that charged an attempt and its first step, and lost its lease meanwhile."""


class Runners:
    """Takes the first steps of coroutine activities, in order."""

    def __init__(self, *, clock: Clock, context: Context, on_ended: Ended) -> None:
        self._monotonic = clock.monotonic
        self._context = context
        self._on_ended = on_ended
        self._queue: deque[Pulse] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._runner: asyncio.Task[None] | None = None  # the one that looks at the queue
        self._is_closed = False

    def add(self, pulse: Pulse) -> None:
        """Take the first step of this execution soon, unless it is stopped before."""
        if self._is_closed:
            return
        self._queue.append(pulse)
        wake = self._wake
        if wake is not None:
            self._wake = None
            if not wake.done():
                wake.set_result(None)
        elif self._runner is None:
            self._runner = spawn(self._run(), name="durable activities")

    def is_runner(self, task: asyncio.Task[Any]) -> bool:
        """Whether a task takes first steps now; which one, only the attempt that has begun without a task tells."""
        return task is self._runner

    def close(self) -> None:
        """Take no first step any more: what has not begun is the caller's to hand back. Idempotent."""
        self._is_closed = True
        self._queue.clear()
        if self._runner is not None:
            self._runner.cancel()

    async def _run(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while True:
                if self._queue and await self._take_steps(task):
                    return
                self._wake = asyncio.get_running_loop().create_future()
                await self._wake
        finally:
            if self._runner is task:
                self._pass_on()

    def _pass_on(self) -> None:
        """This runner is taken, or over: another goes on with the queue."""
        self._runner = self._wake = None
        if self._queue and not self._is_closed:
            self._runner = spawn(self._run(), name="durable activities")

    async def _take_steps(self, task: asyncio.Task[Any]) -> bool:
        """Take first steps until none is due; return whether an activity has used this runner up."""
        queue, monotonic, on_ended = self._queue, self._monotonic, self._on_ended
        run_out = monotonic() + SLICE_SECONDS
        steps = 0
        while queue:
            pulse = queue.popleft()
            attempt: Attempt = pulse.owner
            if attempt.pulse is not pulse or attempt.state is not _RUNNING:
                continue  # stopped before its first step
            attempt.begun = True
            definition = attempt.call.definition
            context = self._context.copy()
            try:
                if monotonic() >= pulse.fresh_until and pulse.fence is not None and not pulse.fence():
                    raise StaleError
                coroutine, waited = context.run(_take_first_step, pulse, definition, attempt.call.args)
            except StopIteration as returned:
                value = returned.value
                try:
                    data, value = definition.result.stored(value)
                except BaseException as refusal:
                    on_ended(attempt, None, refusal, b"", None)
                else:
                    on_ended(attempt, None, None, data, value)
            except BaseException as error:  # the boundary of user code: SystemExit must not stop the worker
                on_ended(attempt, None, error, b"", None)
            else:
                attempt.task = task
                self._pass_on()
                if pulse.cancel_reason is not None:
                    task.cancel(pulse.cancel_reason)
                await self._see_through(attempt, task, finish_part(coroutine, context, waited))
                return True
            if (
                task.cancelling()
            ):  # an activity has cancelled its own task, and ended: not the next one's business
                self._pass_on()
                return True
            steps += 1
            if steps % SLICE_STEPS == 0 and monotonic() > run_out:
                await pause(0)
                run_out = monotonic() + SLICE_SECONDS
        return False

    async def _see_through(self, attempt: Attempt, task: asyncio.Task[Any], rest: Awaitable[Any]) -> None:
        """Wait for the end of an activity that has suspended."""
        error: BaseException | None = None
        data, value = b"", None
        try:
            data, value = attempt.call.definition.result.stored(await rest)
        except BaseException as raised:
            error = raised
        self._on_ended(attempt, task, error, data, value)


def _take_first_step(
    pulse: Pulse, definition: ActivityDefinition, stored: bytes
) -> tuple[Coroutine[Any, Any, Any], Any]:
    """Call the activity's function and step its coroutine; return that, and what it waits for. `StopIteration`: it returned."""
    pulse_here.set(pulse)
    args, kwargs = read_arguments(definition, stored)
    try:
        called: Any = definition.fn(*args, **kwargs)
    except StopIteration as error:  # of the function itself, not of its coroutine
        raise RuntimeError("the activity raised StopIteration") from error
    coroutine = called if called.__class__ is types.CoroutineType else _awaited(called)
    return coroutine, coroutine.send(None)


async def _awaited(awaitable: Any) -> Any:
    return await awaitable
