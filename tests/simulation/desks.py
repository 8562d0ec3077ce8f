"""Processes that are no workers: desks, at which clients' errands are run, and the operator, who meddles."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from durable import Client, RunNotFoundError, StoreError, WorkflowStateError
from durable.default import EmbeddedEngine
from durable.workflows import DEFAULT_TASK_QUEUE
from tests.simulation.activities import ELSEWHERE
from tests.simulation.node import Node, NodeClock, VirtualThreads

if TYPE_CHECKING:
    from tests.simulation.clients import Errand
    from tests.simulation.simulation import Simulation

STILL_ALIVE: Final = "SELECT 1 FROM worker WHERE id = ? AND is_alive = 1"
END_SECONDS: Final = 60.0  # a script may have to wait for a database that is away
Part = tuple["Errand", bool]  # and whether it is the main one


class Desk:
    """A client process; when it dies another takes its place, and goes on with the errands."""

    def __init__(self, simulation: Simulation, name: str, *, is_script: bool = False) -> None:
        self._simulation = simulation
        self._name = name
        self.is_script = is_script  # it drives the runs that it starts, by an engine of its own
        self._lives = 0
        self.is_ending = False
        self.parts: list[Part] = []
        self._tasks: list[asyncio.Task[None]] = []
        self.node: Node

    @property
    def client(self) -> Client:
        return self.node.client  # type: ignore[no-any-return]

    async def open(self) -> None:
        self._lives += 1
        self.is_ending = False
        self._tasks.clear()
        simulation = self._simulation
        node = Node(simulation, f"{self._name}.{self._lives}", NodeClock(simulation.loop))
        simulation.machine.nodes.append(node)
        node.code = simulation.machine.newest
        if self.is_script:
            simulation.stumbling.afflict(node)
            node.is_blind = False  # its client's reader would be, too
        node.client = await node.spawn(simulation.machine.connect(node), "connect")
        if self.is_script:
            engine = EmbeddedEngine(node.client, retention=None, threads=VirtualThreads(node))
            node.engine = await node.spawn(engine.open(), "open engine")
        self.node = node

    def begin(self) -> None:
        """Go on with all errands that are not done."""
        for errand, is_main in self.parts:
            if not errand.is_done:
                part = errand.run(self.client) if is_main else errand.help(self.client)
                task = self.node.spawn(part, f"errand {errand.run_id}")
                task.add_done_callback(self._on_end)
                self._tasks.append(task)

    async def replace(self, node: Node, seconds: float) -> None:
        """End the process, if it has not ended; `seconds` later the next one begins."""
        node.kill()
        await asyncio.sleep(seconds)
        if self.node is node:
            await self.open()
            self.begin()

    async def end(self) -> None:
        """Let a script come to its end, as `asyncio.run` does: what it drives is handed back, nothing is cancelled in a run (P30)."""
        node, engine = self.node, self.node.engine
        if engine is None or node.is_dead:
            return
        self.is_ending = True
        struck = self._simulation.faults.struck
        driver = 0 if engine._worker is None else engine._worker.worker_id
        self._simulation.features["script ended"] += 1
        for task in self._tasks:
            task.cancel()
        closing = node.spawn(engine.close(), "close engine")
        deadline = self._simulation.loop.now + END_SECONDS
        while not (closing.done() or node.is_dead):
            if self._simulation.loop.now > deadline:
                self._simulation.violation(f"P30: the engine of {node} does not close")
            await asyncio.sleep(0.01)
        work = engine._work
        if work is not None and work.done() and not work.cancelled() and (error := work.exception()):
            self._simulation.violation(f"P30: the engine of {node} died of {error!r}")
        is_calm = closing.done() and struck == self._simulation.faults.struck
        if is_calm and self._simulation.checker.query(STILL_ALIVE, driver):
            self._simulation.violation(f"P30: {node} has ended, and has not handed back what it drove")

    def _on_end(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._simulation.violation(f"an errand broke: {error!r} {getattr(error, 'exceptions', '')}")


class Operator:
    """Pauses and resumes runs, the queue and workers, as it likes; in the end all of them go on."""

    def __init__(self, simulation: Simulation, chance: random.Random) -> None:
        self._simulation = simulation
        self._chance = chance
        self._desk = Desk(simulation, "operator")
        self._pace = chance.choice((0.0, 0.0, 3.0, 10.0))  # 0: never at work
        self._paused: list[Callable[[], Awaitable[Any]]] = []  # how to undo what was done

    async def work(self) -> None:
        """Meddle, until cancelled."""
        if not self._pace:
            return
        await self._desk.open()
        while True:
            await asyncio.sleep(2 * self._pace * self._chance.random())
            await self._desk.node.spawn(self._meddle(), "meddling")

    async def leave(self) -> None:
        """Let everything go on."""
        if self._paused:
            await self._desk.node.spawn(self._resume_all(), "leaving")

    async def _resume_all(self) -> None:
        while self._paused:
            await self._insist(self._paused[-1])
            self._paused.pop()

    async def _meddle(self) -> None:
        if self._paused and self._chance.random() < 0.6:
            await self._insist(self._paused[-1])
            self._paused.pop()
            return
        what = self._chance.choice(("run", "run", "run", "queue", "worker", "look", "prune"))
        self._simulation.trace("operator", what)
        self._simulation.features[f"operator: {what}"] += 1
        await self._insist(getattr(self, f"_{what}"))

    async def _run(self) -> None:
        run_id = self._chance.choice(self._simulation.errands).run_id
        client = self._desk.client
        # What may have been done though nobody says so must be undone, too.
        self._paused.append(lambda: client.resume(run_id))
        await client.pause(run_id, "the operator wants it")

    async def _queue(self) -> None:
        client, queue = self._desk.client, self._chance.choice((DEFAULT_TASK_QUEUE, ELSEWHERE))
        self._paused.append(lambda: client.resume_task_queue(queue))
        await client.pause_task_queue(queue)

    async def _worker(self) -> None:
        node = self._chance.choice(self._simulation.machine.places).node
        if node is not None:
            client, name = self._desk.client, node.name
            self._paused.append(lambda: client.resume_worker(name))
            await client.pause_worker(name)

    async def _look(self) -> None:
        """Read what people read: it must be possible at any time, and change nothing."""
        run_id = self._chance.choice(self._simulation.errands).run_id
        client = self._desk.client
        await client.why(run_id)
        await client.stack(run_id)
        await client.list(limit=5, journals=True)
        await client.health()

    async def _prune(self) -> None:
        """Nothing is old enough."""
        pruned = await self._desk.client.prune(older_than=86_400)
        if pruned.runs:
            self._simulation.violation(f"I1: {pruned.runs} young runs were deleted")

    @staticmethod
    async def _insist(do: Callable[[], Awaitable[Any]]) -> None:
        while True:
            try:
                await do()
            except StoreError:
                await asyncio.sleep(0.2)
            except (RunNotFoundError, WorkflowStateError):
                return
            else:
                return
