"""A process life of its own, without a process: an event loop whose time jumps, and the clock, chance and threads that go with it.

When nothing is ready, the loop's time jumps to its next timer, unless real work is under way outside of it (a thread, a socket):
that is waited for. The same seed gives the same order, as long as nothing outside takes part.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final, TypeVar

from durable.seams import Executor, SystemClock, ThreadExecutor, Timer, seeded
from durable.unwinding import Landing

T = TypeVar("T")
STEP_SECONDS: Final = (
    1e-6  # each round of the loop takes some time, so that whoever waits for a deadline by looking gets there
)
OUTSIDE_SECONDS: Final = 0.05  # between looks at what is under way outside
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


class _JumpingSelector(selectors.BaseSelector):
    """The system's selector, except that waiting for nothing but time takes none."""

    def __init__(self) -> None:
        self._real = selectors.DefaultSelector()
        self._machine = SystemClock()
        self.now = 0.0
        self.outside = 0  # threads whose end somebody waits for

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.now += STEP_SECONDS
        found = self._real.select(0)
        if found or (timeout is not None and timeout <= 0):
            return found
        if self.outside or len(self._real.get_map()) > 1:  # the first is the loop's own
            since = self._machine.monotonic()
            found = self._real.select(OUTSIDE_SECONDS if timeout is None else min(timeout, OUTSIDE_SECONDS))
            self.now += self._machine.monotonic() - since
        elif timeout is not None:
            self.now += timeout
        else:
            raise RuntimeError("nothing is ready, and nothing ever will be")
        return found

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()

    def close(self) -> None:
        self._real.close()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time begins at `now` and jumps."""

    def __init__(self, now: float) -> None:
        self.jumping = _JumpingSelector()
        self.jumping.now = now
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Run a function in a thread; while it runs, the loop's time does not jump."""
        future: asyncio.Future[Any] = super().run_in_executor(executor, func, *args)
        self.jumping.outside += 1
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: asyncio.Future[Any]) -> None:
        self.jumping.outside -= 1


class VirtualClock:
    """The loop's time as a machine's clock. `offset_us` is its error, or what somebody set it forward by."""

    def __init__(self, loop: VirtualLoop, offset_us: int) -> None:
        self._loop = loop
        self.offset_us = offset_us
        self.monotonic: Callable[[], float] = loop.time

    def now_us(self) -> int:
        return self.offset_us + round(self._loop.time() * 1_000_000)

    def elapsed(self) -> float:
        return self._loop.time()

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        return self._loop.call_later(delay, callback, *args)


class SeededRandom:
    """Chance of a seed. The seed of a run is always the same, whichever life of the process begins it."""

    def __init__(self, seed: int) -> None:
        self._random = seeded(seed)
        self._run_seed = seeded(seed + 1).getrandbits(63)

    def run_suffix(self) -> str:
        return "".join(self._random.choice(_ALPHABET) for _ in range(8))

    def request_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def seed(self) -> int:
        return self._run_seed

    def fraction(self) -> float:
        return self._random.random()


class InlineExecutor:
    """What the store asks of a thread is done at once, on the loop."""

    def submit(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        try:
            done.set_result(fn())
        except Exception as error:
            done.set_exception(error)
        return done

    def close(self) -> None:
        """There is nothing to close."""


class VirtualThreads:
    """The threads of a life: a real one for activities, none for what repeats, which the loop does between its callbacks."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self._pools: list[ThreadExecutor] = []

    def executor(self, threads: int, *, name: str) -> Executor:
        pool = ThreadExecutor(1, name=name)  # one thread, so that they come one after the other
        self._pools.append(pool)
        return pool

    def join(self) -> None:
        """Wait until no activity runs in a thread any more: one cannot be stopped."""
        for pool in self._pools:
            pool.join()

    def repeat(self, fn: Callable[[], bool], interval: float, *, name: str) -> VirtualRepeater:
        return VirtualRepeater(self._loop, fn, interval)

    def interrupt(
        self, thread: int, error: type[BaseException] | None, landing: Landing | None = None
    ) -> bool:
        """Nothing is raised: the watchdog sees no time pass while code runs, and where a cancel would hit no seed can tell."""
        return True

    def guard_process(self, seconds: float | None) -> None:
        """As `interrupt`."""

    def end_process(self) -> None:
        """As `interrupt`."""


class VirtualRepeater:
    def __init__(self, loop: VirtualLoop, fn: Callable[[], bool], interval: float) -> None:
        self._loop = loop
        self._fn = fn
        self._interval = interval
        self._timer = loop.call_later(interval, self._again)

    def _again(self) -> None:
        if self._fn():
            self._timer = self._loop.call_later(self._interval, self._again)

    def stop(self, wait_seconds: float = 1.0) -> None:
        self._timer.cancel()


def throw_away(task: asyncio.Task[Any]) -> None:
    """End a coroutine of the dead, whatever its `finally` blocks would like to do."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Coroutine[Any, Any, Any] = task.get_coro()  # type: ignore[assignment]
    for _ in range(100):
        try:
            coroutine.close()
        except BaseException:
            continue
        return
