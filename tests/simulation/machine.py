"""The machine of one seed: worker processes, the supervisor who starts them anew, what strikes them, and how all is healed."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any, Final

from durable import Client, DurableError, Worker
from durable.store.sealing import sealed
from durable.workflows import DEFAULT_TASK_QUEUE
from tests.simulation import listening, programs
from tests.simulation.activities import ELSEWHERE, SERVED_ELSEWHERE
from tests.simulation.codec import BlindCodec
from tests.simulation.faults import Strike
from tests.simulation.node import Node, NodeClock, VirtualThreads
from tests.simulation.store import NodeStore, SimStore

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

ALIVE: Final = "SELECT name FROM worker WHERE is_alive = 1"
SLOTS_OF_SCRIPTS: Final = 100


class Place:
    """Where a worker runs: the node that is there now, if any, and the machine's clock."""

    def __init__(self, name: str, clock: NodeClock, chance: random.Random) -> None:
        self.name = name
        self.clock = clock
        self.concurrency = chance.choice((1, 3, 50))
        self.task_concurrency = chance.choice((1, 3, 50))
        self.drives_runs = True
        self.performs_tasks = True
        self.lives = 0
        self.node: Node | None = None
        self.worker: Worker | None = None
        self.serving: asyncio.Task[None] | None = None
        self.has_stopped = False


class Machine:
    """All processes of one seed. What it is like is drawn from `chance`, by whose order of draws a seed stays the world that it was."""

    def __init__(self, simulation: Simulation, chance: random.Random) -> None:
        self._simulation = simulation
        self._loop = simulation.loop
        self._faults = simulation.faults
        self.newest = 1  # which code a process that starts now has
        self.nodes: list[Node] = []
        self.is_shutting_down = False
        self._workers: list[Worker] = []
        self.places = [Place(f"w{i}", self._clock(chance), chance) for i in range(chance.randint(1, 3))]
        if len(self.places) > 1:  # the first drives runs, the last performs tasks, at the least
            for place in self.places[:-1]:
                place.performs_tasks = chance.random() < 0.5
            self.places[-1].drives_runs = len(self.places) > 2 and chance.random() < 0.5

    def _clock(self, chance: random.Random) -> NodeClock:
        if not self._faults.is_skewed:
            return NodeClock(self._loop)
        self._faults.count("clock skew")
        return NodeClock(
            self._loop,
            offset=chance.choice((0.0, 0.2, -0.2, 5.0, -5.0)),
            rate=chance.choice((1.0, 1.0, 0.98, 1.02)),
            base=chance.uniform(0, 1e5),
        )

    def slots_of(self, name: str, *, is_task: bool) -> int:
        """Return how many activities a node's worker may perform at a time, of its own runs or of others'."""
        for place in self.places:
            if name.startswith(f"{place.name}."):
                return place.task_concurrency if is_task else place.concurrency
        return SLOTS_OF_SCRIPTS

    # ─ processes ──

    async def connect(self, node: Node) -> Client:
        """Return a client of the one database, as a process of this machine reaches it."""
        codec = self._simulation.codec
        if codec is not None and node.is_blind:
            codec = BlindCodec()
        behind: Any = NodeStore(await SimStore.of(node, self._simulation.database), node)
        client = Client(
            f"sqlite:///{self._simulation.database}",
            durability="off",
            codec=codec,
            clock=node.clock,
            random=node.random,
        )
        client.use(sealed(behind, codec))
        return client

    def boot(self) -> None:
        """Start a worker process in every place."""
        for place in self.places:
            self._start(place)

    def _start(self, place: Place) -> None:
        place.lives += 1
        node = place.node = Node(self._simulation, f"{place.name}.{place.lives}", place.clock)
        self.nodes.append(node)
        node.code = self.newest
        self._simulation.stumbling.afflict(node)
        place.has_stopped = False
        place.worker = None
        self._simulation.trace(node.name, "boots")
        place.serving = node.spawn(self._serve(place, node), f"process {node.name}")
        place.serving.add_done_callback(lambda task: self._on_exit(place, node, task))

    async def _serve(self, place: Place, node: Node) -> None:
        """What a worker process does: open, work, close."""
        client = node.client = await self.connect(node)
        queues = [DEFAULT_TASK_QUEUE] * place.drives_runs + [ELSEWHERE] * place.performs_tasks
        worker = Worker(
            client,
            *((*programs.WORKFLOWS, *listening.WORKFLOWS) if place.drives_runs else ()),
            activities=SERVED_ELSEWHERE if place.performs_tasks else (),
            task_queue=queues,
            concurrency=place.concurrency,
            task_concurrency=place.task_concurrency,
            lease_seconds=self._simulation.lease,
            name=node.name,
            threads=VirtualThreads(node),
        )
        self._workers.append(worker)
        worker._settings.fingerprints.of = lambda definition: node.fingerprint  # type: ignore[method-assign]
        place.worker = worker
        if self._simulation.warm_us is not None:
            node.loop.call_later(0.01, self._set_warmth, worker)
        await worker.run()
        free = worker.life.performer._free
        # Only at the last stop: an earlier one may cut a commit short, whose slots die with the worker.
        if self.is_shutting_down and free != place.concurrency and not worker.life.performer.running:
            self._simulation.violation(f"slots leaked on {node}: {free} of {place.concurrency} are free")
        await client.close()
        # The process ends a moment later, on the full hundredth: Pythons differ in how many steps it takes to end a task group.
        await asyncio.sleep(0.02 - self._loop.now % 0.01)

    def _set_warmth(self, worker: Worker) -> None:
        if worker.worker_id and self._simulation.warm_us is not None:
            worker.life.driver.feeder.warm_us = self._simulation.warm_us

    def _on_exit(self, place: Place, node: Node, task: asyncio.Task[None]) -> None:
        """A worker process is over: a new one is started, as a supervisor would."""
        if node.is_dead or task.cancelled():
            return
        error = task.exception()
        self._simulation.trace(node.name, "exits", type(error).__name__ if error else "")
        if error is not None and (node.has_begun or not isinstance(error, DurableError)):
            self._simulation.violation(f"worker {node} died of {error!r}")
        place.has_stopped = error is None
        self._loop.call_later(0.0, self._bury, node, context=self._loop.god.context())
        if place.node is node:
            delay = 0.0 if self._faults.is_over else 1.0
            self._loop.call_later(delay, self._restart, place, node, context=self._loop.god.context())

    @staticmethod
    def _bury(node: Node) -> None:
        if not node.is_dead:
            node.kill()

    def _restart(self, place: Place, former: Node) -> None:
        if place.node is former and not self.is_shutting_down:
            self._start(place)

    # ─ what strikes ──

    async def strike(self, strike: Strike) -> None:
        """Wait for the strike's time, and let it happen, if what it would hit is there."""
        await asyncio.sleep(strike.at)
        if strike.kind == "client crash":
            await self._crash_client(strike)
            return
        place = self.places[strike.victim % len(self.places)]
        node = place.node
        if not self._faults.is_on(strike.kind) or node is None or node.is_dead:
            return
        self._faults.count(strike.kind)
        self._simulation.trace(node.name, strike.kind, f"{strike.amount:.3f}")
        match strike.kind:
            case "crash":
                node.kill()
                await asyncio.sleep(strike.amount)
                self._restart(place, node)
            case "pause" | "blocked loop":
                node.freeze(heart_too=strike.kind == "pause")
                await asyncio.sleep(strike.amount)
                node.thaw()
                self._simulation.trace(node.name, "goes on")
            case "graceful stop":
                if place.worker is not None and node.has_begun:
                    node.main.run(place.worker.stop, strike.amount)
            case "clock step":
                place.clock.offset += strike.amount
            case _:
                self._faults.outage = "disk full" if strike.kind == "full disk for a while" else "busy"
                await asyncio.sleep(strike.amount)
                self._faults.outage = None

    async def _crash_client(self, strike: Strike) -> None:
        if not self._faults.is_on(strike.kind):
            return
        self._faults.count(strike.kind)
        self._simulation.trace("god", strike.kind)
        desk = self._simulation.desks[strike.victim % len(self._simulation.desks)]
        if desk.node.is_dead:
            return
        if desk.is_script and strike.victim % 3 == 0 and not desk.is_ending:
            await desk.end()
        await desk.replace(desk.node, strike.amount)

    async def deploy(self) -> None:
        """Roll other code out: to one worker, which hands its runs back now and then, and with the end of the faults to all."""
        await asyncio.sleep(self._faults.deploys_at)
        if not self._simulation.is_deploying or not self._faults.is_on("deploy"):
            return
        self._faults.count("deploy")
        self._simulation.trace("god", "deploy")
        self.newest = 2
        place = self.places[0]
        while True:
            if place.node is not None and place.worker is not None and place.node.has_begun:
                place.node.main.run(place.worker.stop, 0.5)
            await asyncio.sleep(self._faults.length / 8)

    def strike_here(self, node: Node, kind: str, seconds: float) -> None:
        """Kill or pause a worker in the middle of what it is doing."""
        place = next((place for place in self.places if place.node is node), None)
        desk = next((desk for desk in self._simulation.desks if desk.node is node), None)
        if (place is None and desk is None) or self.is_shutting_down:
            return
        self._simulation.trace(node.name, kind, f"{seconds:.3f}")
        god = self._loop.god.context()
        if kind.startswith("pause"):
            node.freeze(heart_too=True)
            self._loop.call_later(seconds, node.thaw, context=god)
        else:
            self._loop.call_soon(node.kill, context=god)
            node.freeze(heart_too=True)
            if desk is not None:
                self._simulation.god(desk.replace(node, 1.0))
            else:
                self._loop.call_later(1.0, self._restart, place, node, context=god)

    # ─ the end ──

    async def heal(self) -> None:
        """End all faults; whoever is dead, or has old code, is replaced."""
        self._simulation.trace("god", "heals")
        self._faults.is_over = True
        self._faults.outage = None
        for desk in self._simulation.desks:
            desk.node.thaw()
            if desk.is_ending or desk.node.is_dead or self._is_outdated(desk.node):
                await desk.replace(desk.node, 0.0)
        await self._simulation.operator.leave()
        for place in self.places:
            assert place.node is not None
            if self._is_outdated(place.node) and not place.node.has_begun:
                place.node.kill()  # there is nothing to stop yet
            if place.node.is_dead:
                self._restart(place, place.node)
                continue
            place.node.thaw()
            if self._is_outdated(place.node) and place.worker is not None and place.node.has_begun:
                place.node.main.run(place.worker.stop, 5)
        self._simulation.healed_at = self._loop.now

    def _is_outdated(self, node: Node) -> bool:
        return node.code < self.newest or node.is_bad

    async def shut_down(self) -> None:
        """Stop all workers; each must end, and leave nothing of its own behind."""
        for desk in self._simulation.desks:
            await desk.end()
        while not self._are_all_up():  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.is_shutting_down = True
        for place in self.places:
            if place.node is not None and place.worker is not None and not place.node.is_dead:
                place.node.main.run(place.worker.stop, 5)
        deadline = self._loop.now + 30
        while any(place.serving is not None and not place.serving.done() for place in self.places):
            if self._loop.now > deadline:
                self._simulation.violation(f"not all workers stop: {[place.node for place in self.places]}")
            await asyncio.sleep(0.1)
        alive = self._simulation.checker.query(ALIVE)
        if alive:
            self._simulation.violation(f"workers that have stopped are called alive: {alive}")

    def _are_all_up(self) -> bool:
        """Whether every place has a worker at work, those just replaced included, and all others that are called alive were found dead."""
        if not all(self._is_up(place.node) for place in self.places):
            return False
        there = {place.node.name for place in self.places if place.node is not None}
        return not {name for (name,) in self._simulation.checker.query(ALIVE)} - there

    @staticmethod
    def _is_up(node: Node | None) -> bool:
        return node is not None and node.has_begun and not node.is_dead

    def bring_down(self) -> None:
        """End every process, and give back what the end of a real one would give back."""
        self.is_shutting_down = True
        for node in self.nodes:
            if not node.is_dead:
                node.kill()
        for worker in self._workers:
            if worker._life is not None:
                try:
                    worker.life.driver.stop()
                except Exception as error:
                    self._simulation.note(f"while cleaning up: {error!r}")
