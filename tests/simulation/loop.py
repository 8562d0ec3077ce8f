"""An asyncio loop with virtual time: one thread, a seeded choice among all callbacks that are ready, on any node.

A *lane* is what one OS thread of a node would be. A frozen lane runs nothing until it is thawed, a dead one never again.
Each callback costs a little virtual time; when nothing is ready, time jumps to the next timer.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.simulation.node import Node

CALLBACK_SECONDS: Final = 0.00002
here: contextvars.ContextVar[Lane | None] = contextvars.ContextVar("simulated_lane", default=None)


class Livelock(Exception):
    """More callbacks than any honest run of this length needs."""


class Lane:
    """One thread of a node: the loop's, the heartbeat's, or those of sync functions."""

    def __init__(self, loop: SimLoop, node: Node | None, name: str) -> None:
        self.loop = loop
        self.node = node
        self.name = name
        self.ready: list[_Handle | _TimerHandle] = []
        self.is_frozen = False
        self.is_dead = False
        loop.lanes.append(self)

    def run(self, fn: Callable[..., Any], *args: Any) -> Any:
        """Call `fn` as if on this lane."""
        return self.context().run(fn, *args)

    def context(self) -> contextvars.Context:
        """Return a fresh context that belongs to this lane."""
        context = contextvars.Context()
        context.run(here.set, self)
        return context

    def kill(self) -> None:
        self.is_dead = True
        self.ready.clear()
        self.loop.lanes.remove(self)


class _Handle(asyncio.Handle):
    __slots__ = ("lane",)
    lane: Lane


class _TimerHandle(asyncio.TimerHandle):
    __slots__ = ("lane",)
    lane: Lane


class SimLoop(asyncio.BaseEventLoop):
    """`now` is the one true time, in seconds; a node sees it through its own clock."""

    _running: SimLoop | None = None  # there is one thread, and one world at a time in it

    def __init__(self, seed: int, *, is_fair: bool, callbacks_max: int) -> None:
        super().__init__()
        self.now = 0.0
        self.callbacks = 0
        self.lanes: list[Lane] = []
        self.god = Lane(self, None, "god")  # the harness itself: never frozen, true clock
        self.lane = self.god
        self._chance = random.Random(f"order {seed}")
        self._is_fair = is_fair  # each lane in order, as a real loop runs it; else any callback of any lane
        self._callbacks_max = callbacks_max
        self._heap: list[tuple[float, int, _TimerHandle]] = []
        self._count = 0
        self.tasks: list[asyncio.Task[Any]] = []  # all of them: those of the dead must not be collected
        self.is_ending = False

    @classmethod
    def current_lane(cls) -> Lane:
        """Return the lane whose callback runs now."""
        assert cls._running is not None
        return cls._running.lane

    def allow(self, callbacks: int) -> None:
        """Let so many more callbacks run."""
        self._callbacks_max = self.callbacks + callbacks

    def create_task(self, coroutine: Any, **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        task = super().create_task(coroutine, **options)
        self.tasks.append(task)
        return task

    # ─ what asyncio asks of a loop ──

    def time(self) -> float:
        node = self.lane.node
        return self.now if node is None else node.clock.monotonic()

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        handle.lane = lane = self._lane_of(context)
        if not lane.is_dead:
            lane.ready.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """From whatever thread of a node to its loop's."""
        node = self._lane_of(context).node
        lane = self.god if node is None else node.main
        return self.call_soon(callback, *args, context=lane.context())

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = _TimerHandle(when, callback, args, self, context)
        handle.lane = lane = self._lane_of(context)
        self._count += 1
        true = when if lane.node is None else lane.node.clock.true_time(when)
        heapq.heappush(self._heap, (true, self._count, handle))
        handle._scheduled = True  # type: ignore[attr-defined]
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass  # it is dropped when its time comes

    def _lane_of(self, context: contextvars.Context | None) -> Lane:
        return (here.get() if context is None else context.get(here)) or self.lane

    # ─ the turn of the loop ──

    def _run_once(self) -> None:
        heap = self._heap
        eligible = [lane for lane in self.lanes if lane.ready and not lane.is_frozen]
        if not eligible and not self._stopping:  # type: ignore[attr-defined]
            if not heap:
                raise Livelock("nothing is ready and nothing ever will be")
            self.now = max(self.now, heap[0][0])
        while heap and heap[0][0] <= self.now:
            handle = heapq.heappop(heap)[2]
            lane = handle.lane
            if not (handle._cancelled or lane.is_dead):
                lane.ready.append(handle)
                if not lane.is_frozen and lane not in eligible:
                    eligible.append(lane)
        if eligible:
            self._run_one(eligible)

    def _run_one(self, eligible: list[Lane]) -> None:
        # Pythons differ in how many steps it takes to end a task group: those of a process that ends cost neither time nor chance.
        leaving = next((lane for lane in eligible if lane.node is not None and lane.node.is_leaving), None)
        lane = leaving or (eligible[0] if len(eligible) == 1 else self._chance.choice(eligible))
        ready = lane.ready
        is_first = leaving is not None or self._is_fair or len(ready) == 1
        handle = ready.pop(0 if is_first else self._chance.randrange(len(ready)))
        if leaving is None:
            self.now += CALLBACK_SECONDS
        self.callbacks += 1
        if self.callbacks > self._callbacks_max:
            raise Livelock(f"more than {self._callbacks_max} callbacks by {self.now:.3f} s")
        if handle._cancelled:
            return
        self.lane = lane
        SimLoop._running = self
        try:
            handle._run()
        finally:
            self.lane = self.god

    def _process_events(self, event_list: Any) -> None:
        pass

    def _write_to_self(self) -> None:
        pass
