"""The deterministic loop: a ready queue, a clock that events move, and tasks whose hash is a creation number.

It is driven from a plain callback of a real loop: each `drain` runs what is ready and returns at rest. Three facts
make one journal lead to one order of execution:

- callbacks run in the order in which they were scheduled, and nothing outside of a drain schedules any;
- time stands still during a drain. A `call_later` in the future becomes a durable timer (see `operations.py`);
- `asyncio.wait`, `TaskGroup`, and anyio iterate *sets* of tasks, so tasks, futures and scopes hash to a number counted
  per run, plus a salt per run (without the salt all runs collide in asyncio's global registry of tasks).

anyio cancels by *level*: `CancelScope._deliver_cancellation` re-arms itself with `call_soon` until its tasks have left
the scope. Run from the ready queue, that would never come to rest while a shielded activity is awaited. Here
the re-arm is parked, and looked at again only after other callbacks ran, `PARKED_ROUNDS_MAX` times per scope and drain.

Knows nothing of journals, workflows or stores.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio.events import _get_running_loop, _set_running_loop
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, copy_context
from math import ceil
from types import FrameType, MethodType
from typing import Any, Final, NoReturn, Protocol
from zlib import crc32

from durable.engine.generators import disown, enter_thread
from durable.engine.refusals import refuse_the_rest
from durable.engine.runtime import Evicted, RunLoop, Runtime
from durable.engine.sources import end_walks_at, find_source, is_within_as_completed
from durable.errors import DefinitionError, LivelockError

PARKED_ROUNDS_MAX: Final = 3
EVICTION_ROUNDS_MAX: Final = 8
EVICTION_CALLBACKS_MAX: Final = 10_000
REFUSALS_MAX: Final = 100
TIMER_US_MAX: Final = 1 << 53  # 285 years: later than this is never
_FLOAT_NOISE_US: Final = (
    0.05  # what float arithmetic on deadlines may add; far below the resolution of a timer
)
_LIVELOCK_TAIL: Final = 5

_logger: Final = logging.getLogger("durable.engine")

# Coroutines that refused to end at eviction, and everything they hold. Kept for ever on purpose: collecting them would
# run their `finally` blocks at a random moment, on a random thread, inside another run.
_stubborn: Final[list[object]] = []


class DetTask(asyncio.Task[Any]):
    """A task that hashes to its creation number."""

    __slots__ = ("det", "source")

    def __init__(
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        loop: DeterministicLoop,
        name: str | None,
        context: Context | None,
    ) -> None:
        # Before super(): it hashes the task into asyncio's global registry.
        self.det = det = loop.next_hash()
        self.source = ""
        super().__init__(coro, loop=loop, name=name or f"Task-{det - loop.salt}", context=context)
        self._log_destroy_pending = False

    def __hash__(self) -> int:
        return self.det


class DetFuture(asyncio.Future[Any]):
    """A future that hashes to its creation number."""

    __slots__ = ("det",)

    def __init__(self, *, loop: DeterministicLoop) -> None:
        self.det = loop.next_hash()
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.det


class _Handle(asyncio.Handle):
    """A handle that does only what asyncio and anyio use; one is made per callback."""

    __slots__ = ()

    _callback: Callable[..., Any]
    _args: tuple[Any, ...]
    _context: Context

    def cancel(self) -> None:
        self._cancelled = True

    def __repr__(self) -> str:
        return f"<{self._callback!r} of {getattr(self._callback, '__self__', None)!r}>"


_new_handle: Final = _Handle.__new__


class Timer(asyncio.TimerHandle):
    """A `call_later` in the future: as a handle what asyncio expects, as an operation what the journal holds."""

    __slots__ = ("dead", "due", "duration", "op", "src")

    kind: Final = "timer"
    name: Final = ""
    how: Final = ""

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: DeterministicLoop,
        context: Context | None,
    ) -> None:
        self._context = copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = False
        self.op = 0
        self.dead = False
        self.duration = 0
        self.due = 0
        self.src = ""

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def detail(self) -> int:
        return self.duration

    def cancel(self) -> None:
        if not self._cancelled:
            self._loop._timer_handle_cancelled(self)
        asyncio.Handle.cancel(self)


class Timers(Protocol):
    """What keeps the timers of a run."""

    @property
    def open(self) -> Callable[[Timer], None]: ...

    def close_timer(self, timer: Timer) -> None: ...


class DeterministicLoop(RunLoop):
    """The event loop of one run.

    `stopped` ends a drain at once, with callbacks left in the queue. `at_rest` is asked when nothing is ready, and returns
    whether it made something ready. `on_exit` is told of a SystemExit or KeyboardInterrupt that a task raised, `on_guard`
    of what a guard raised.
    """

    def __init__(self, runtime: Runtime, timers: Timers, *, salt_id: str, callbacks_max: int) -> None:
        self.runtime = runtime
        self.salt: Final = crc32(salt_id.encode())
        self.now_us = 0
        self.started_at_us = 0
        self.stopped = False
        self.is_evicting = False
        self.on_exit: Callable[[BaseException], None] = _raise
        self.on_guard: Callable[[BaseException], None] = _raise
        self.at_rest: Callable[[], bool] | None = None
        self._timers = timers
        self._callbacks_max = callbacks_max
        self._ready: deque[asyncio.Handle] = deque()
        self._parked: list[asyncio.Handle] = []
        self._parked_rounds: dict[int, int] = {}
        self._generators: set[int] = set()  # ids of the async generators begun here
        self._created = 0
        self._time = 0.0
        self._running = False
        self._closed = False
        self._tasks: list[DetTask] = []
        self._prune_at = 64
        self._refusals = 0
        self._orphans: list[AsyncGenerator[Any, Any]] = []
        self._exception_handler: Callable[..., Any] | None = None

    # ─ the clock ─────────────────────────────────────────────────────────────

    def time(self) -> float:
        """Return logical seconds since the run started, so that floats stay exact to the microsecond."""
        return self._time

    def start_clock(self, at_us: int) -> None:
        self.started_at_us = self.now_us = at_us

    def advance(self, at_us: int) -> None:
        """Move the clock to an instant; it never runs backwards."""
        if at_us > self.now_us:
            self.now_us = at_us
            seconds = (at_us - self.started_at_us) / 1_000_000
            if seconds > self._time:
                self._time = seconds

    def fire(self, timer: Timer) -> None:
        """Move the clock to a timer's due time and let its callback run.

        asyncio and anyio compare `time()` with the deadline they computed in floats; reaching exactly that float keeps
        them from arming a second timer for the rounding error.
        """
        self.advance(timer.due)
        if timer._when > self._time:
            self._time = timer._when
        self._ready.append(timer)

    # ─ scheduling ────────────────────────────────────────────────────────────

    def call_soon(  # type: ignore[override]  # the base class's TypeVarTuple adds nothing here
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        # Without a constructor of its own: one is made per callback.
        handle = _new_handle(_Handle)
        handle._context = copy_context() if context is None else context
        handle._callback = callback
        handle._args = args
        handle._cancelled = False
        if callback.__class__ is MethodType and callback.__func__.__name__ == "_deliver_cancellation":
            self._parked.append(handle)
        elif not self._closed:
            self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]  # as call_soon
        self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self._start_timer(delay, self._time + delay, callback, args, context)

    def call_at(  # type: ignore[override]  # as call_soon
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self._start_timer(when - self._time, when, callback, args, context)

    def _start_timer(
        self,
        delay: float,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        context: Context | None,
    ) -> Timer:
        if self.runtime.is_looking:
            raise DefinitionError("a validator only looks: it cannot wait for time to pass")
        if self.is_evicting and callback.__name__ == "_set_result_unless_cancelled":
            self.refuse()  # a sleep; a deadline, by contrast, is entered half-way and must not raise
        timer = Timer(when, callback, args, self, context)
        if delay <= 0:
            self._ready.append(timer)
        elif delay * 1_000_000 < TIMER_US_MAX and not self.is_evicting:
            timer.duration = max(1, ceil(delay * 1_000_000 - _FLOAT_NOISE_US))
            timer.due = self.now_us + timer.duration
            timer.src = self.source(sys._getframe(2))
            self._timers.open(timer)
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        assert isinstance(handle, Timer)
        if handle.duration and not self.is_evicting:
            self._timers.close_timer(handle)

    def source(self, frame: FrameType) -> str:
        """Return the author's line behind a frame: the nearest on the stack, else where the task was created."""
        return find_source(frame) or self.task_source()

    def task_source(self) -> str:
        """Return the author's line that created the current task."""
        task = asyncio.current_task(self)
        return task.source if isinstance(task, DetTask) else ""

    def next_hash(self) -> int:
        """Return the next creation number of this run, salted."""
        self._created += 1
        return self.salt + self._created

    def create_future(self) -> DetFuture:
        return DetFuture(loop=self)

    def create_task(  # type: ignore[override]  # any coroutine
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: Context | None = None,
        **_ignored: object,  # eager_start: an eager step would run outside of the ready queue's order
    ) -> DetTask:
        if self._closed:
            coro.close()
            raise RuntimeError("Event loop is closed: the run has left this process's memory")
        if self.runtime.is_looking:
            coro.close()
            raise DefinitionError("a validator only looks: it cannot start tasks; let the handler do that")
        frame = sys._getframe(1)
        if is_within_as_completed(frame):
            coro.close()
            raise DefinitionError(
                "asyncio.as_completed over bare coroutines starts them in the order of a set of addresses, which no "
                "replay can repeat; use durable.as_completed, or hand it tasks from asyncio.create_task"
            )
        task = DetTask(coro, loop=self, name=name, context=context)
        task.source = find_source(frame)
        self._keep(task)
        return task

    def create_own_task(self, coroutine: Coroutine[Any, Any, Any], name: str) -> DetTask:
        """Create a task that the engine asks for, not the author's code: in a context of its own, and of no source line."""
        task = DetTask(coroutine, loop=self, name=name, context=Context())
        self._keep(task)
        return task

    def _keep(self, task: DetTask) -> None:
        tasks = self._tasks
        tasks.append(task)
        if len(tasks) >= self._prune_at:
            self._tasks = tasks = [task for task in tasks if not task.done()]
            self._prune_at = 2 * len(tasks) + 64

    @property
    def tasks(self) -> list[DetTask]:
        """The tasks, in the order of their creation; some may be done."""
        return self._tasks

    # ─ running ───────────────────────────────────────────────────────────────

    def drain(self, outer: asyncio.AbstractEventLoop | None = None) -> None:
        """Run callbacks until nothing is ready, `at_rest` has no more to offer, and no parked delivery helps.

        `outer` is the loop that runs in this thread, for callers who know it from `enter_thread`.
        """
        # One function on purpose: it is the hottest of the engine.
        callbacks_max = self._callbacks_max
        if outer is None:
            outer = enter_thread()
        _set_running_loop(self)
        self._running = True
        if self._parked_rounds:
            self._parked_rounds.clear()
        ready = self._ready
        steps, before = 0, -1  # a new event is progress: a parked delivery gets another look
        try:
            while True:
                while ready:
                    handle = ready.popleft()
                    if handle._cancelled:
                        continue
                    steps += 1
                    if steps > callbacks_max:
                        self._livelock(handle, callbacks_max)
                    try:
                        handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # not in typeshed
                    except (SystemExit, KeyboardInterrupt) as error:
                        self.on_exit(error)
                    except BaseException as error:
                        self._callback_failed(handle, error)
                    if self.stopped:
                        return
                if self.at_rest is not None and self.at_rest():
                    continue
                if not self._parked or steps == before or not self._deliver_parked():
                    return
                before = steps
        finally:
            self._running = False
            _set_running_loop(outer)

    def call_now(self, call: Callable[[], Any]) -> Any:
        """Call a function as code of this run, while it rests. What that makes ready is not run."""
        outer = enter_thread()
        _set_running_loop(self)
        self._running = True
        try:
            return call()
        finally:
            _set_running_loop(outer)
            self._running = False

    @property
    def ready(self) -> int:
        """How many callbacks are to run in the next drain."""
        return len(self._ready)

    def _livelock(self, handle: asyncio.Handle, callbacks_max: int) -> NoReturn:
        run = self.runtime.identity.run_id
        last = ", ".join(repr(one) for one in [handle, *list(self._ready)[: _LIVELOCK_TAIL - 1]])
        raise LivelockError(
            f"run {run!r} ran {callbacks_max} callbacks in one activation without coming to rest; code that loops "
            f"without waiting for anything (an activity, a timer, a signal) does that. In the queue: {last}"
        )

    def _deliver_parked(self) -> bool:
        """Run anyio's parked re-deliveries, each scope at most `PARKED_ROUNDS_MAX` times; return whether any ran."""
        rounds = self._parked_rounds
        due: list[asyncio.Handle] = []
        rest: list[asyncio.Handle] = []
        for handle in self._parked:
            if handle._cancelled:
                continue
            scope = id(handle._callback.__self__)  # type: ignore[attr-defined]  # a bound method, see call_soon
            count = rounds[scope] = rounds.get(scope, 0) + 1
            (due if count <= PARKED_ROUNDS_MAX else rest).append(handle)
        self._parked = rest
        for handle in due:
            try:
                handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # not in typeshed
            except Exception as error:
                self._callback_failed(handle, error)
        return bool(due)

    def _callback_failed(self, handle: asyncio.Handle, error: BaseException) -> None:
        self.call_exception_handler(
            {"message": "Exception in callback", "exception": error, "handle": handle}
        )

    def adopt_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._generators.add(id(generator))

    def finalize_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        # Python calls this wherever the last reference went, which may be a garbage collection in another run.
        if self._running and _get_running_loop() is self:
            self.create_task(generator.aclose())
        elif not self._closed:
            self._orphans.append(generator)

    # ─ eviction ──────────────────────────────────────────────────────────────

    def evict(self) -> bool:
        """Cancel every task and run until all have ended, within bounds; return whether all have.

        What refuses to is kept for ever.
        """
        self.is_evicting = True
        self._callbacks_max = EVICTION_CALLBACKS_MAX
        self.stopped = False
        self.at_rest = None
        for generator in self._orphans:
            self.create_task(generator.aclose())
        self._orphans.clear()
        for _ in range(EVICTION_ROUNDS_MAX):
            pending = [task for task in self._tasks if not task.done()]
            if not pending and not self._ready:
                break
            for task in pending:
                task.cancel()
            try:
                self.drain()
            except LivelockError:
                break
        stubborn = [task for task in self._tasks if not task.done()]
        if stubborn:
            _stubborn.append((stubborn, list(self._ready), self))
        self._closed = True
        self._ready.clear()
        self._parked.clear()
        disown(self, self._generators)
        self._generators.clear()
        if stubborn:
            return False
        self._tasks.clear()
        return True

    def refuse(self) -> None:
        """Raise `Evicted` out of an operation that a `finally` asks for at eviction.

        Code that swallows it in a loop would spin without ever giving control back: after `REFUSALS_MAX` times this
        returns, and the caller must wait for ever instead.
        """
        self._refusals += 1
        if self._refusals <= REFUSALS_MAX:
            raise Evicted

    # ─ the rest of what asyncio and anyio ask of a loop ──────────────────────

    get_debug = staticmethod(bool)  # False; every future asks, so that it is not a function of ours

    def set_debug(self, enabled: bool) -> None:
        """Accepted and ignored."""

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> Callable[..., Any] | None:
        return self._exception_handler

    def set_exception_handler(self, handler: Callable[..., Any] | None) -> None:
        self._exception_handler = handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        if not self.is_evicting:
            run = self.runtime.identity.run_id
            _logger.error("run %s: %s", run, context.get("message"), exc_info=context.get("exception"))

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self._exception_handler is not None and not self.is_evicting:
            self._exception_handler(self, context)
        else:
            self.default_exception_handler(context)

    async def shutdown_asyncgens(self) -> None:
        """Nothing to do: generators are finalised as they are abandoned."""

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Nothing to do: there is no executor."""


def _raise(error: BaseException) -> NoReturn:
    raise error


refuse_the_rest(DeterministicLoop)
end_walks_at(DeterministicLoop.drain)
