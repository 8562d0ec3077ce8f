"""The doors to time, chance, threads and tasks. Nothing else in the library opens them (a test enforces it).

They exist so that a whole cluster can run in one thread under one seed, and so that tests own the clock.
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import os
import random
import signal
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar

from durable.unwinding import Landing

T = TypeVar("T")

SAMPLE_SECONDS: Final = 30.0  # what a server said of its clock counts for so long
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TRIES: Final = 10  # at what is raised meanwhile
STUCK_STATUS: Final = 70  # of a process that ended itself because its loop stood still (EX_SOFTWARE)
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # no i, l, o, u: ids are typed by people


_PAIRS: Final = [first + second for first in _ALPHABET for second in _ALPHABET]


class Timer(Protocol):
    """A callback that is due some day."""

    def cancel(self) -> None:
        """Do not call it. Idempotent."""
        ...

    def when(self) -> float:
        """Return the loop's time at which it is due."""
        ...


class Clock(Protocol):
    """Time as one node sees it."""

    def now_us(self) -> int:
        """Return the wall clock, in microseconds UTC. Decides due times and log stamps, never leases."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards. Decides leases and every local deadline."""
        ...

    def elapsed(self) -> float:
        """Return `monotonic`, plus what a test has skipped: what authors' own waits and limits are measured by."""
        ...

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        """Call back on the running loop when `elapsed` has grown by `delay`."""
        ...


class Random(Protocol):
    """Chance as one node sees it: ids, seeds, jitter."""

    def run_suffix(self) -> str:
        """Return 8 characters, short enough to type, unlikely enough to clash within one workflow's runs."""
        ...

    def request_id(self) -> str:
        """Return a globally unique id."""
        ...

    def seed(self) -> int:
        """Return 63 random bits, as a non-negative integer."""
        ...

    def fraction(self) -> float:
        """Return a float in [0, 1)."""
        ...


class Executor(Protocol):
    """Threads for sync activities and for whatever must not block the loop."""

    def submit(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        """Run `fn` in a thread, in a copy of the current context; must be called on a running loop."""
        ...

    def close(self) -> None:
        """Take no more work. Threads that still run are not waited for."""
        ...


class Repeating(Protocol):
    """Something that is called again and again, until stopped."""

    def stop(self, wait_seconds: float = 1.0) -> None:
        """Ask it to end and give it `wait_seconds` to do so. Idempotent."""
        ...


class Threads(Protocol):
    """Where one node's threads come from; a simulation has none and brings its own."""

    def executor(self, threads: int, *, name: str) -> Executor:
        """Return a pool of at most `threads` threads."""
        ...

    def repeat(self, fn: Callable[[], bool], interval: float, *, name: str) -> Repeating:
        """Call `fn` every `interval` seconds beside the loop, until stopped or it returns False."""
        ...

    def interrupt(
        self, thread: int, error: type[BaseException] | None, landing: Landing | None = None
    ) -> bool:
        """Raise `error` in a thread as soon as it runs Python code; None takes back what was not raised yet, in the caller's own.

        Nothing reaches a thread inside a call of C code before that call returns. With a `landing`, nothing is raised, and False
        returned, while it is where Python would skip what cleans up around it: to be tried again in a few milliseconds.
        """
        ...

    def guard_process(self, seconds: float | None) -> None:
        """End this process, its stacks printed, once it has computed for `seconds` without another call of this.

        It works while C code holds the interpreter's lock, where no Python code can. None calls it off. Counts time
        on the processor, so that a stopped process is safe. Does nothing where the system has no such timer.
        """
        ...

    def end_process(self) -> None:
        """Print the stacks of all threads and end the process at once; nothing is unwound, others take over."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000

    monotonic = staticmethod(time.monotonic)  # asked many times a step: not through a function of ours
    elapsed = monotonic

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback, *args)


class ServerClock(SystemClock):
    """A server's wall clock, as far as it can be known from here: never ahead of it, behind by a round trip at most.

    Whoever asks the server for its time tells us; until then, this machine's clock has to do.
    """

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()  # (monotonic, offset), the youngest last
        self._offset: float | None = None  # server's seconds = monotonic + offset
        self._last_us = 0

    def learn(self, server_us: int, asked_at: float, answered_at: float) -> None:
        """The server said `server_us` at some moment between the two monotonic instants."""
        lower, upper = server_us / 1e6 - answered_at, server_us / 1e6 - asked_at
        if any(upper < offset for _, offset in self._samples):
            self._samples.clear()  # it was set back
            self._last_us = 0
        while self._samples and self._samples[0][0] < answered_at - SAMPLE_SECONDS:
            self._samples.popleft()
        while self._samples and self._samples[-1][1] <= lower:
            self._samples.pop()
        self._samples.append((answered_at, lower))
        self._offset = self._samples[0][1]

    def now_us(self) -> int:
        if self._offset is None:
            return super().now_us()
        self._last_us = max(self._last_us, int((self.monotonic() + self._offset) * 1e6))
        return self._last_us


class SystemRandom:
    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def run_suffix(self) -> str:
        bits = int.from_bytes(os.urandom(5), "big")
        return (
            _PAIRS[bits & 1023]
            + _PAIRS[bits >> 10 & 1023]
            + _PAIRS[bits >> 20 & 1023]
            + _PAIRS[bits >> 30 & 1023]
        )

    def request_id(self) -> str:
        return os.urandom(16).hex()

    def seed(self) -> int:
        return int.from_bytes(os.urandom(8), "big") >> 1

    def fraction(self) -> float:
        return self._random.random()


class ThreadExecutor:
    """At most `threads` threads, started when needed."""

    def __init__(self, threads: int, name: str = "durable") -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix=name)

    def submit(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        context = contextvars.copy_context()
        return asyncio.get_running_loop().run_in_executor(self._pool, context.run, fn)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def join(self) -> None:
        """Take no more work, and wait for what runs."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def spawn(
    coroutine: Coroutine[Any, Any, T], *, name: str, context: contextvars.Context | None = None
) -> asyncio.Task[T]:
    """Start a task on the running loop. The caller owns it: keep the reference, await or cancel it."""
    return asyncio.get_running_loop().create_task(coroutine, name=name, context=context)


def thread_id() -> int:
    """Return the number of the current thread."""
    return threading.get_ident()


def start_thread(target: Callable[[], None], *, name: str) -> threading.Thread:
    """Start a daemon thread; whoever starts it must be able to stop it."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    thread.start()
    return thread


async def pause(seconds: float) -> None:
    """Let `seconds` of monotonic time pass (0: one turn of the loop)."""
    await asyncio.sleep(seconds)


def random_bytes(count: int) -> bytes:
    """Return bytes fit for keys and nonces. Never from a seed: not even a simulation may repeat them."""
    return os.urandom(count)


def seeded(seed: int) -> random.Random:
    """Return the reproducible source of chance of one run; its seed is journaled."""
    return random.Random(seed)


def uuid4() -> uuid.UUID:
    """Return a random UUID of this process (runs have their own, journaled source)."""
    return uuid.uuid4()


class Repeater:
    """Calls `fn` every `interval` seconds on a daemon thread of its own, until stopped or `fn` returns False."""

    def __init__(self, fn: Callable[[], bool], interval: float, *, name: str) -> None:
        self._fn = fn
        self._interval = interval
        self._stopped = threading.Event()
        self._thread = start_thread(self._loop, name=name)

    def _loop(self) -> None:
        while not self._stopped.wait(self._interval):
            if not self._fn():
                return

    def stop(self, wait_seconds: float = 1.0) -> None:
        """Ask the thread to end and give it `wait_seconds` to do so. Idempotent."""
        self._stopped.set()
        if self._thread is not threading.current_thread():
            self._thread.join(wait_seconds)


class SystemThreads:
    def executor(self, threads: int, *, name: str) -> Executor:
        return ThreadExecutor(threads, name=name)

    def repeat(self, fn: Callable[[], bool], interval: float, *, name: str) -> Repeating:
        return Repeater(fn, interval, name=name)

    def interrupt(
        self, thread: int, error: type[BaseException] | None, landing: Landing | None = None
    ) -> bool:
        import ctypes  # here, because only code that is stuck or cancelled needs it

        raising = partial(ctypes.pythonapi.PyThreadState_SetAsyncExc, ctypes.c_ulong(thread))
        if error is None:
            assert thread == thread_id(), "each thread takes back what would be raised in itself"
            _take_back(partial(raising, ctypes.py_object(_TakenBack)))
            return True
        raise_there = partial(raising, ctypes.py_object(error))
        if landing is not None:
            return landing.seize(thread, raise_there, time.monotonic())
        raise_there()
        return True

    def guard_process(self, seconds: float | None) -> None:
        if not hasattr(signal, "setitimer"):
            return
        if seconds is not None:
            _print_stacks_at(signal.SIGVTALRM)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds or 0.0)

    def end_process(self) -> NoReturn:
        try:
            faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
        finally:
            os._exit(STUCK_STATUS)


class _TakenBack(BaseException):
    """Takes the place of an exception that is taken back, and is caught at once."""


def _take_back(raise_here: Callable[[], object]) -> None:
    """Take back what is about to be raised in this thread; what is raised only now is raised when that is done.

    To raise nothing in its place leaves Python 3.11 and 3.12 looking for it at every call, in every thread, for good: calls then cost
    half as much again, and 3.11 stands still at the first function that is traced (by a debugger, by coverage).
    """
    came: BaseException | None = None
    for _ in range(_TRIES):
        try:
            raise_here()
            _look()
        except _TakenBack:
            break
        except BaseException as error:  # this, or what a signal's handler raises
            came = error
    if came is not None:
        try:
            raise came
        finally:
            del came  # else it, its traceback and this frame were a ring


def _look() -> None:
    """Have the interpreter look whether anything is to be raised: it does so whenever a function begins."""


def _print_stacks_at(number: int) -> None:
    """Let a signal print all stacks and then do what it does by default: end the process."""
    try:
        faulthandler.register(number, file=sys.__stderr__ or 2, all_threads=True, chain=True)
    except (OSError, ValueError, RuntimeError):  # no standard error to write to: the signal alone will do
        pass
