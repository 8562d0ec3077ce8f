"""A node: one simulated process, with a clock, a source of chance, lanes and an end of its own."""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from durable.errors import StoreError
from durable.unwinding import Landing
from tests.simulation.loop import Lane, SimLoop, here

if TYPE_CHECKING:
    from durable.default import EmbeddedEngine
    from tests.simulation.simulation import Simulation

T = TypeVar("T")
START_US: Final = 1_800_000_000_000_000  # when simulated time begins
_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"


class NodeClock:
    """True time, seen through a clock that may be off and may run fast or slow."""

    def __init__(self, loop: SimLoop, *, offset: float = 0.0, rate: float = 1.0, base: float = 0.0) -> None:
        self._loop = loop
        self.offset = offset  # of the wall clock, in seconds; may be set by an operator at any time
        self._rate = rate
        self._base = base

    def now_us(self) -> int:
        return START_US + round((self._loop.now * self._rate + self.offset) * 1_000_000)

    def monotonic(self) -> float:
        return self._base + self._loop.now * self._rate

    elapsed = monotonic

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, callback, *args)

    def true_time(self, monotonic: float) -> float:
        return (monotonic - self._base) / self._rate


class NodeRandom:
    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)

    def run_suffix(self) -> str:
        return "".join(self._random.choice(_ALPHABET) for _ in range(8))

    def request_id(self) -> str:
        return f"{self._random.getrandbits(128):032x}"

    def seed(self) -> int:
        return self._random.getrandbits(63)

    def fraction(self) -> float:
        return self._random.random()


class Node:
    """One life of one simulated process. Dead, it stays dead; a restart is another node."""

    def __init__(self, simulation: Simulation, name: str, clock: NodeClock) -> None:
        self.simulation = simulation
        self.name = name
        self.clock = clock
        self.loop = simulation.loop
        self.main = Lane(self.loop, self, "main")
        self.heart = Lane(self.loop, self, "heart")
        self.threads = Lane(self.loop, self, "threads")
        self.lanes = (self.main, self.heart, self.threads)
        self.random = NodeRandom(f"{simulation.seed} {name}")
        self.chance = random.Random(f"node {simulation.seed} {name}")
        self.is_dead = False
        self.has_let_go = False  # its worker has stopped and closed the database: others may take it for dead
        self.is_leaving = False  # its worker has retired: what is left of the process costs no time
        self.has_begun = False  # its worker has registered
        self.client: Any = None  # its connection to the database
        self.engine: EmbeddedEngine | None = None  # of a script
        self.code = 1  # which code was deployed here
        self.is_bad = False  # its code stumbles
        self.is_blind = False  # it cannot read what it is handed
        self.at_death: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return self.name

    def spawn(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start a task that belongs to this node."""
        return self.loop.create_task(coroutine, name=name, context=self.main.context())

    @property
    def fingerprint(self) -> str:
        """That of its code: what parked a run there is tried by another."""
        return f"code{self.code}{' (bad)' * self.is_bad}"

    def require_alive(self) -> None:
        if self.is_dead:
            raise StoreError(f"{self.name} is dead: this is a ghost")

    def freeze(self, *, heart_too: bool) -> None:
        """Let nothing of this node run (SIGSTOP), or (a blocked loop) nothing of its loop."""
        for lane in self.lanes:
            lane.is_frozen = heart_too or lane is self.main

    def thaw(self) -> None:
        for lane in self.lanes:
            lane.is_frozen = False

    def kill(self) -> None:
        """End it as kill -9 would: no callback of it runs any more, and the system takes its files and locks."""
        if self.is_dead:
            return
        self.is_dead = True
        for lane in self.lanes:
            lane.kill()
        for release in self.at_death:
            release()


class VirtualThreads:
    """The threads of one node, all of them lanes of the one real thread."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def executor(self, threads: int, *, name: str) -> VirtualExecutor:
        return VirtualExecutor(self._node, threads)

    def repeat(self, fn: Callable[[], bool], interval: float, *, name: str) -> VirtualRepeater:
        return VirtualRepeater(self._node.heart, fn, interval)

    def interrupt(
        self, thread: int, error: type[BaseException] | None, landing: Landing | None = None
    ) -> bool:
        """Never needed: nothing here takes real time."""
        return True

    def guard_process(self, seconds: float | None) -> None:
        """As `interrupt`."""

    def end_process(self) -> None:
        self._node.simulation.machine.strike_here(self._node, "ends itself", 0.0)


class VirtualExecutor:
    """At most `threads` functions between their begin and their end; each runs in one go, at a time of chance's choosing."""

    def __init__(self, node: Node, threads: int) -> None:
        self._node = node
        self._free = threads
        self._queue: deque[tuple[Callable[[], Any], contextvars.Context, asyncio.Future[Any]]] = deque()

    def submit(self, fn: Callable[[], T]) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self._node.loop.create_future()
        context = contextvars.copy_context()
        context.run(here.set, self._node.threads)
        self._queue.append((fn, context, future))
        self._next()
        return future

    def close(self) -> None:
        self._queue.clear()

    def _next(self) -> None:
        if self._free and self._queue:
            self._free -= 1
            fn, context, future = self._queue.popleft()
            delay = self._node.chance.choice((0.0, 0.0, 0.0005, 0.01))
            self._node.loop.call_later(delay, self._perform, fn, future, context=context)

    def _perform(self, fn: Callable[[], Any], future: asyncio.Future[Any]) -> None:
        try:
            result, error = fn(), None
        except BaseException as raised:
            result, error = None, raised
        self._node.loop.call_soon_threadsafe(self._tell, future, result, error)
        self._free += 1
        self._next()

    @staticmethod
    def _tell(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)


class VirtualRepeater:
    def __init__(self, lane: Lane, fn: Callable[[], bool], interval: float) -> None:
        self._lane = lane
        self._fn = fn
        self._interval = interval
        self._is_stopped = False
        self._arm()

    def _arm(self) -> None:
        self._lane.loop.call_later(self._interval, self._tick, context=self._lane.context())

    def _tick(self) -> None:
        if not self._is_stopped and self._fn():
            self._arm()

    def stop(self, wait_seconds: float = 1.0) -> None:
        self._is_stopped = True
