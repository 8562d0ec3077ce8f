"""One seed: a machine with some workers and clients, its weather, its workload, and the verdict."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import logging
import random
import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Collection, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from durable import Client, DurableError, Worker
from durable.activities import ActivityInfo
from durable.outcomes import OutcomeWatch
from durable.worker import worker as worker_module
from tests.simulation import workload
from tests.simulation.checker import Checker
from tests.simulation.clients import Errand
from tests.simulation.faults import Faults, Strike
from tests.simulation.loop import Livelock, SimLoop
from tests.simulation.node import Node, NodeClock, VirtualThreads
from tests.simulation.store import NodeStore, SimStore
from tests.simulation.workload import Body

CALLBACKS_MAX: Final = 3_000_000
PATIENCE_SECONDS: Final = 500.0  # after the last fault: longer than the longest plan can take
CANCEL_SECONDS: Final = 10.0  # I12
WORKFLOWS: Final = (workload.life, workload.short_life, workload.waits_for_ever)


class Report(msgspec.Struct):
    """What one seed gave. `hash` is of everything that happened, in order."""

    seed: int
    hash: str
    violations: list[str]
    events: list[str]
    faults: dict[str, int]
    outcomes: dict[str, int]
    virtual_seconds: float
    callbacks: int
    bodies: int
    setting: str

    def text(self, command: str) -> str:
        lines = [
            f"seed {self.seed} ({self.setting})",
            *self.events,
            *(f"VIOLATION {one}" for one in self.violations),
        ]
        return "\n".join([*lines, f"reproduce: {command}"])


class Place:
    """Where a worker runs: the node that is there now, if any, and the machine's clock."""

    def __init__(self, name: str, clock: NodeClock, concurrency: int) -> None:
        self.name = name
        self.clock = clock
        self.concurrency = concurrency
        self.lives = 0
        self.node: Node | None = None
        self.worker: Worker | None = None
        self.serving: asyncio.Task[None] | None = None
        self.has_stopped = False


class Simulation:
    """Everything of one seed. `run` is called once."""

    def __init__(self, seed: int, *, without: Collection[str] = (), tail: int = 80) -> None:
        chance = random.Random(f"setting {seed}")
        self.seed = seed
        self.is_fair = chance.random() < 0.5
        self.lease = chance.choice((2.0, 5.0, 10.0))
        self.cache = chance.choice((4, 10_000, 10_000))
        self.warm_us = chance.choice((None, None, 0, 500_000))
        self.loop = SimLoop(seed, is_fair=self.is_fair, callbacks_max=CALLBACKS_MAX)
        self.faults = Faults(seed, without=without, lease=self.lease)
        self.failed_once: set[str] = set()
        self.violations: list[str] = []
        self.bodies = 0
        self.healed_at: float | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="durable-sim-", dir=_fast_directory()))
        self._database = self._directory / "runs.db"
        self.checker = Checker(self, self._database)
        self.places = [
            Place(f"w{i}", self._clock(chance), chance.choice((1, 3, 50)))
            for i in range(chance.randint(1, 3))
        ]
        self.errands = [Errand(self, i) for i in range(chance.choice((3, 8, 15)))]
        self._clients: list[Client] = []
        self._nodes: list[Node] = []
        self._workers: list[Worker] = []
        self._chance = chance
        self._hash = hashlib.sha256()
        self._tail: deque[str] = deque(maxlen=tail)
        self._main: asyncio.Task[None] | None = None

    def _clock(self, chance: random.Random) -> NodeClock:
        if not self.faults.is_skewed:
            return NodeClock(self.loop)
        self.faults.count("clock skew")
        return NodeClock(
            self.loop,
            offset=chance.choice((0.0, 0.2, -0.2, 5.0, -5.0)),
            rate=chance.choice((1.0, 1.0, 0.98, 1.02)),
            base=chance.uniform(0, 1e5),
        )

    # ─ what the parts tell ──

    def trace(self, who: str, what: str, how: str = "") -> None:
        """Note an event; all of them together are the seed's fingerprint."""
        line = f"{self.loop.now:12.6f} {who} {what} {how}".rstrip()
        self._hash.update(line.encode())
        self._tail.append(line)

    def note(self, text: str) -> None:
        """Keep a line for whoever reads about a failure; no part of the fingerprint."""
        self._tail.append(f"{self.loop.now:12.6f} {text}")

    def violation(self, text: str) -> None:
        """A promise was broken: the seed has failed and ends soon."""
        self.violations.append(f"{self.loop.now:.6f} {text}")
        self.note(f"VIOLATION {text}")
        if self._main is not None:
            self._main.cancel()

    def on_body(self, info: ActivityInfo, node: Node) -> Body:
        self.bodies += 1
        body = Body(
            key=info.idempotency_key,
            activity=info.activity,
            attempt=info.attempt,
            node=node.name,
            begun=self.loop.now,
        )
        self.trace(node.name, "body", f"{info.idempotency_key} {info.attempt}")
        self.checker.on_body(info, body)
        return body

    # ─ the course of things ──

    def run(self) -> Report:
        handler = _Log(self)
        logger = logging.getLogger("durable")
        level, propagates, cache = logger.level, logger.propagate, worker_module.CACHE_MAX
        logger.addHandler(handler)
        logger.propagate = False
        worker_module.CACHE_MAX = self.cache  # type: ignore[misc]
        self.loop.set_exception_handler(self._on_exception)
        try:
            self._main = self.loop.create_task(self._live(), context=self.loop.god.context())
            try:
                self.loop.run_until_complete(self._main)
            except asyncio.CancelledError:
                pass
            except Livelock as error:
                self.violations.append(f"livelock: {error}")
            except Exception as error:
                if not self.violations:
                    self.violations.append(f"{type(error).__name__}: {error}")
                    raise
            self.loop.is_ending = True
            self.loop.allow(1_000_000)
            self.loop.run_until_complete(
                self.loop.create_task(self._clean_up(), context=self.loop.god.context())
            )
        finally:
            worker_module.CACHE_MAX = cache  # type: ignore[misc]
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
            self.checker.close()
            self.loop.close()
            shutil.rmtree(self._directory, ignore_errors=True)
        return self._report()

    async def _live(self) -> None:
        clients = [await self._client(f"c{i}") for i in range(self._chance.randint(1, 2))]
        for place in self.places:
            self._start(place)
        errands = [
            self._node_of(clients[i % len(clients)]).spawn(
                errand.run(clients[i % len(clients)], clients[-1]), errand.run_id
            )
            for i, errand in enumerate(self.errands)
        ]
        for errand in errands:
            errand.add_done_callback(self._on_errand)
        looking = self._god(self._look_often())
        striking = [self._god(self._strike(strike)) for strike in self.faults.strikes]
        await asyncio.sleep(self.faults.length)
        for task in striking:
            task.cancel()
        self._heal()
        deadline = self.loop.now + PATIENCE_SECONDS
        while any(not task.done() for task in self._must_end(errands)):
            if self.loop.now > deadline:
                await self._complain(clients[0])
                break
            await asyncio.sleep(0.5)
        await self._end_the_endless(clients[0], errands)
        for task in errands:
            await task
        looking.cancel()
        self.checker.final(self.errands)
        await self._shut_down()
        self.checker.look()

    def _god(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        return self.loop.create_task(coroutine, context=self.loop.god.context())

    def _must_end(self, errands: list[asyncio.Task[None]]) -> list[asyncio.Task[None]]:
        return [
            task
            for task, errand in zip(errands, self.errands, strict=True)
            if errand.workflow is not workload.waits_for_ever or errand.ending is not None
        ]

    async def _complain(self, client: Client) -> None:
        """I17: say which runs are open, and what they claim to wait for."""
        for errand in self.errands:
            if errand.outcome is None and (
                errand.workflow is not workload.waits_for_ever or errand.ending is not None
            ):
                told = "not even started"
                if errand.is_started:
                    run = await client.describe(errand.run_id)
                    told = f"{run.status} on {run.worker}, waits for {[one.text for one in run.waiting_on]}"
                self.violation(f"I17: {errand.run_id} {errand.plan} is {told}")

    async def _end_the_endless(self, client: Client, errands: list[asyncio.Task[None]]) -> None:
        """I17, I12: what waits for a signal that never comes says so, and can be cancelled."""
        endless = [
            (errand, task) for errand, task in zip(self.errands, errands, strict=True) if not task.done()
        ]
        if not endless:
            return
        for errand, task in endless:
            if not await self._is_at_its_end(client, errand, task):
                continue
            await errand.end(client, "cancel")
        deadline = self.loop.now + CANCEL_SECONDS + self._slack()
        for errand, task in endless:
            while not task.done():
                if self.loop.now > deadline:
                    self.violation(f"I12: {errand.run_id} was cancelled and goes on")
                await asyncio.sleep(0.2)

    async def _is_at_its_end(self, client: Client, errand: Errand, task: asyncio.Task[None]) -> bool:
        """Wait until the run waits for what never comes, and says so; False if it has ended meanwhile."""
        deadline = self.loop.now + PATIENCE_SECONDS
        while not task.done():
            run = await client.describe(errand.run_id) if errand.is_started else None
            if run is not None and any(one.name == "never" for one in run.waiting_on):
                return True
            if self.loop.now > deadline:
                told = None if run is None else (run.status, run.worker, run.waiting_on)
                self.violation(f"I17: {errand.run_id} {errand.plan} stands at {told}")
            await asyncio.sleep(1.0)
        return False

    def _slack(self) -> float:
        """Clocks that disagree make what is due on one late on another."""
        offsets = [0.0, *(place.clock.offset for place in self.places)]  # 0: the clients'
        return 60.0 if self.faults.is_skewed or max(offsets) != min(offsets) else 0.0

    def _on_errand(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.violation(f"an errand broke: {error!r} {getattr(error, 'exceptions', '')}")

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(0.5 + 4 * self._chance.random())
            self.checker.look()

    # ─ nodes ──

    async def _client(self, name: str) -> Client:
        node = Node(self, name, NodeClock(self.loop))
        self._nodes.append(node)
        client = await node.spawn(self._connect(node), "connect")
        client.node = node  # type: ignore[attr-defined]
        self._clients.append(client)
        return client

    @staticmethod
    def _node_of(client: Client) -> Node:
        return client.node  # type: ignore[attr-defined, no-any-return]

    async def _connect(self, node: Node) -> Client:
        store = NodeStore(await SimStore.of(node, self._database), node)
        client = Client(f"sqlite:///{self._database}", durability="off", clock=node.clock, random=node.random)
        client._store = store  # type: ignore[assignment]
        client._watch = OutcomeWatch(store, node.clock)  # type: ignore[arg-type]
        return client

    def _start(self, place: Place) -> None:
        place.lives += 1
        node = place.node = Node(self, f"{place.name}.{place.lives}", place.clock)
        self._nodes.append(node)
        place.has_stopped = False
        place.worker = None
        self.trace(node.name, "boots")
        place.serving = node.spawn(self._serve(place, node), f"process {node.name}")
        place.serving.add_done_callback(lambda task: self._on_exit(place, node, task))

    async def _serve(self, place: Place, node: Node) -> None:
        """What a worker process does: open, work, close."""
        client = await self._connect(node)
        worker = Worker(
            client,
            *WORKFLOWS,
            concurrency=place.concurrency,
            lease_seconds=self.lease,
            name=node.name,
            threads=VirtualThreads(node),
        )
        self._workers.append(worker)
        place.worker = worker
        if self.warm_us is not None:
            node.loop.call_later(0.01, self._set_warmth, worker)
        await worker.run()
        free = worker._performer._free
        # Only at the last stop: an earlier one may cut a commit short, whose slots die with the worker.
        if self.is_shutting_down and free != place.concurrency and not worker._performer.running:
            self.violation(f"slots leaked on {node}: {free} of {place.concurrency} are free")
        await client.close()

    def _set_warmth(self, worker: Worker) -> None:
        if worker.worker_id and self.warm_us is not None:
            worker._driver.warm_us = self.warm_us

    def _on_exit(self, place: Place, node: Node, task: asyncio.Task[None]) -> None:
        """A worker process is over: a new one is started, as a supervisor would."""
        if node.is_dead or task.cancelled():
            return
        error = task.exception()
        self.trace(node.name, "exits", type(error).__name__ if error else "")
        if error is not None and (node.has_begun or not isinstance(error, DurableError)):
            self.violation(f"worker {node} died of {error!r}")
        place.has_stopped = error is None
        self.loop.call_later(0.0, self._bury, node, context=self.loop.god.context())
        if place.node is node:
            delay = 0.0 if self.faults.is_over else 1.0
            self.loop.call_later(delay, self._restart, place, node, context=self.loop.god.context())

    @staticmethod
    def _bury(node: Node) -> None:
        if not node.is_dead:
            node.kill()

    def _restart(self, place: Place, former: Node) -> None:
        if place.node is former and not self.is_shutting_down:
            self._start(place)

    is_shutting_down = False

    # ─ what strikes ──

    async def _strike(self, strike: Strike) -> None:
        await asyncio.sleep(strike.at)
        place = self.places[strike.victim % len(self.places)]
        node = place.node
        if not self.faults.is_on(strike.kind) or node is None or node.is_dead:
            return
        self.faults.count(strike.kind)
        self.trace(node.name, strike.kind, f"{strike.amount:.3f}")
        match strike.kind:
            case "crash":
                node.kill()
                await asyncio.sleep(strike.amount)
                self._restart(place, node)
            case "pause" | "blocked loop":
                node.freeze(heart_too=strike.kind == "pause")
                await asyncio.sleep(strike.amount)
                node.thaw()
                self.trace(node.name, "goes on")
            case "graceful stop":
                if place.worker is not None and node.has_begun:
                    node.main.run(place.worker.stop, strike.amount)
            case "clock step":
                place.clock.offset += strike.amount
            case _:
                self.faults.outage = "disk full" if strike.kind == "full disk for a while" else "busy"
                await asyncio.sleep(strike.amount)
                self.faults.outage = None

    def strike_here(self, node: Node, kind: str, seconds: float) -> None:
        """Kill or pause a worker in the middle of what it is doing."""
        place = next((place for place in self.places if place.node is node), None)
        if place is None or self.is_shutting_down:
            return
        self.trace(node.name, kind, f"{seconds:.3f}")
        god = self.loop.god.context()
        if kind == "pause at a commit":
            node.freeze(heart_too=True)
            self.loop.call_later(seconds, node.thaw, context=god)
        else:
            self.loop.call_soon(node.kill, context=god)
            node.freeze(heart_too=True)
            self.loop.call_later(1.0, self._restart, place, node, context=god)

    def _heal(self) -> None:
        self.trace("god", "heals")
        self.faults.is_over = True
        self.faults.outage = None
        self.healed_at = self.loop.now
        for place in self.places:
            assert place.node is not None
            if place.node.is_dead:
                self._restart(place, place.node)
            else:
                place.node.thaw()

    async def _shut_down(self) -> None:
        """Stop all workers; each must end, and leave nothing of its own behind."""
        while any(place.node is None or not place.node.has_begun for place in self.places):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        self.is_shutting_down = True
        for place in self.places:
            if place.node is not None and place.worker is not None and not place.node.is_dead:
                place.node.main.run(place.worker.stop, 5)
        deadline = self.loop.now + 30
        while any(place.serving is not None and not place.serving.done() for place in self.places):
            if self.loop.now > deadline:
                self.violation(f"not all workers stop: {[place.node for place in self.places]}")
            await asyncio.sleep(0.1)
        alive = self.checker._query("SELECT name FROM worker WHERE is_alive = 1")
        if alive:
            self.violation(f"workers that have stopped are called alive: {alive}")

    async def _clean_up(self) -> None:
        """Nothing of this: give back what a process's end would give back."""
        self.is_shutting_down = True
        for node in self._nodes:
            if not node.is_dead:
                node.kill()
        for worker in self._workers:
            if hasattr(worker, "_driver"):
                try:
                    worker._driver.stop()
                except Exception as error:
                    self.note(f"while cleaning up: {error!r}")
        this = asyncio.current_task()
        for task in self.loop.tasks:
            if task is not this and not task.done():
                _throw_away(task)
        self.loop.tasks.clear()

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "handle" in context and not self.loop.is_ending:
            self.violation(f"in a callback: {context['message']}: {context.get('exception')!r}")

    def _report(self) -> Report:
        outcomes = Counter(f"{errand.workflow.name} {errand.outcome}" for errand in self.errands)
        return Report(
            seed=self.seed,
            hash=self._hash.hexdigest(),
            violations=self.violations,
            events=list(self._tail),
            faults=self.faults.summary(),
            outcomes=dict(outcomes),
            virtual_seconds=self.loop.now,
            callbacks=self.loop.callbacks,
            bodies=self.bodies,
            setting=f"{len(self.places)} workers, lease {self.lease:g} s, cache {self.cache}, warm {self.warm_us}, "
            f"{'fair' if self.is_fair else 'any'} order, {len(self.errands)} runs",
        )


class _Log(logging.Handler):
    """Internal errors that were only logged count as broken promises."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(logging.WARNING)
        self._simulation = simulation

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        lane = self._simulation.loop.lane
        self._simulation.note(f"{lane.node or 'god'} logs: {text}")
        if self._simulation.loop.is_ending:
            return
        if record.levelno >= logging.ERROR and "has not moved" not in text:
            error = record.exc_info[1] if record.exc_info else None
            self._simulation.violation(f"logged: {text}: {error!r}")


def _throw_away(task: asyncio.Task[Any]) -> None:
    """End a coroutine of a dead node, whatever its `finally` blocks would like to do."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    coroutine: Any = task.get_coro()
    for _ in range(100):
        try:
            coroutine.close()
        except BaseException:
            continue
        return


def _fast_directory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run_seed(seed: int, *, without: Collection[str] = (), tail: int = 80) -> Report:
    """Run one seed and return what came of it."""
    report = Simulation(seed, without=without, tail=tail).run()
    if seed % 20 == 0:
        gc.collect()
    return report
