"""One seed: its setting, its workload, the course of things, and the verdict. The processes are `machine`'s."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import logging
import random
import shutil
import tempfile
import traceback
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Final

import msgspec

from durable import (
    ActivityClosedError,
    ActivityInfo,
    Client,
    Retry,
    RunNotFoundError,
    StoreError,
    WorkflowStateError,
    default,
    querying,
)
from durable.store.sqlite import wakeups
from durable.testing.virtual import throw_away
from durable.worker import driving
from durable.worker import worker as worker_module
from durable.worker.live import Attempt, Item, LiveRun
from durable.worker.task_performing import TaskRun
from tests.simulation.activities import Body, this_node
from tests.simulation.checker import Checker
from tests.simulation.choices import choices
from tests.simulation.clients import Errand
from tests.simulation.codec import PlaceCodec
from tests.simulation.desks import Desk, Operator
from tests.simulation.endings import Endings
from tests.simulation.faults import KINDS, Faults
from tests.simulation.listening import FEATURES as FEATURES_OF_LISTENERS
from tests.simulation.listening import Listeners
from tests.simulation.loop import Livelock, SimLoop
from tests.simulation.machine import Machine
from tests.simulation.node import Node, VirtualExecutor
from tests.simulation.programs import FEATURES
from tests.simulation.shrinking import WHOLE, Cut, Tried, shrunk
from tests.simulation.store import drop_locks
from tests.simulation.stumbling import Stumbling

CALLBACKS_MAX: Final = 3_000_000
PATIENCE_SECONDS: Final = 300.0  # after the last fault: longer than the longest plan can take
PARKED_RUNS: Final = "SELECT run_id FROM run WHERE status = 3"
OPEN_RUNS: Final = "SELECT run_id, status FROM run WHERE status < 10"
CANCEL_SECONDS: Final = 10.0  # I12


class Report(msgspec.Struct):
    """What one seed gave. `hash` is of everything that happened, in order."""

    seed: int
    hash: str
    violations: list[str]
    events: list[str]
    faults: dict[str, int]
    runs: int  # as drawn, before any cut
    strikes: int
    outcomes: dict[str, int]
    features: dict[str, int]
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


class Simulation:
    """Everything of one seed. `run` is called once."""

    def __init__(self, seed: int, *, cut: Cut, tail: int) -> None:
        chance = random.Random(f"setting {seed}")
        self.seed = seed
        self.is_fair = chance.random() < 0.5
        self.lease = chance.choice((2.0, 5.0, 10.0))
        self.cache = chance.choice((4, 10_000, 10_000))
        self.warm_us = chance.choice((None, None, 0, 500_000))
        self.poll = chance.choice(
            (0.05, 0.3, 0.3)
        )  # how often each process looks for what others have written
        self.loop = SimLoop(seed, is_fair=self.is_fair, callbacks_max=CALLBACKS_MAX)
        self.faults = Faults(seed, cut=cut, lease=self.lease)
        self.choices = choices(seed, is_narrow=cut.is_narrow)
        self.features: Counter[str] = Counter()
        self.failed_once: set[str] = set()
        self.told: dict[str, set[int]] = {}  # the heartbeats that attempts of an activity gave
        self.violations: list[str] = []
        self.bodies = 0
        self.healed_at: float | None = None
        self._directory = Path(tempfile.mkdtemp(prefix="durable-sim-", dir=_fast_directory()))
        self.database = self._directory / "runs.db"
        self.is_deploying = chance.random() < 0.3
        self.stumbling = Stumbling(seed)
        self.listeners = Listeners(seed)
        self.may_park = self.is_deploying or self.stumbling.is_on
        self.is_roomy = self.cache > 1000  # whatever is ready finds room at once
        self.checker = Checker(self, self.database)
        self.machine = Machine(self, chance)
        has_codec = chance.random() < 0.3
        self.codec = PlaceCodec() if has_codec or self.stumbling.is_blind else None
        if self.codec is not None:
            self.features["sealed"] += 1
        self.desks = [
            Desk(self, f"c{i}", is_script=chance.random() < 0.4) for i in range(chance.randint(1, 2))
        ]
        self.operator = Operator(self, chance)
        self.outcomes: Counter[str] = Counter()
        runs = range(chance.choice((3, 7, 12)))
        self.errands = [Errand(self, i, cut.steps) for i in runs if cut.runs is None or i in cut.runs]
        self._runs = len(runs)
        self._chance = chance
        self._hash = hashlib.sha256()
        self._tail: deque[str] = deque(maxlen=tail)
        self._main: asyncio.Task[None] | None = None

    @property
    def is_at_ease(self) -> bool:
        """Whether nothing has to wait for room or slots."""
        return self.is_roomy and all(
            min(place.concurrency, place.task_concurrency) > 3 for place in self.machine.places
        )

    @property
    def is_punctual(self) -> bool:
        """Whether all clocks agree, so that what is due is so everywhere."""
        return not self._slack()

    # ─ what the parts tell ──

    def trace(self, who: str, what: str, how: str = "") -> None:
        """Note an event; all of them together are the seed's fingerprint."""
        line = f"{self.loop.now:12.6f} {who} {what} {how}".rstrip()
        if not self.machine.is_shutting_down:  # Pythons differ in how many steps it takes to end a task group
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

    def on_body(self, info: ActivityInfo, node: Node, policy: Retry | None, *, is_part: bool) -> Body:
        self.bodies += 1
        pulse = info._pulse
        while not isinstance(attempt := pulse.owner, Attempt):  # of a part: of the whole
            pulse = attempt[0]
        body = Body(
            key=info.idempotency_key,
            activity=info.activity,
            attempt=info.attempt,
            node=node.name,
            begun=self.loop.now,
            policy=policy,
            generation=attempt.run.generation,
            is_task=isinstance(attempt.run, TaskRun),
        )
        self.trace(node.name, "body", f"{info.idempotency_key} {info.attempt}")
        self.checker.on_body(info, body, is_part=is_part)
        return body

    def post(self, body: Body, token: str, key: str) -> None:
        """Hand a token to somebody outside, who completes the activity some time, or fails it first, or forgets it."""
        chance = random.Random(f"token {self.seed} {body.key} {body.attempt}")
        if chance.random() < 0.15:
            return
        node = chance.choice(self.desks).node
        node.spawn(self._answer(node.client, body, token, key, chance), f"answers {key}")

    async def _answer(self, client: Client, body: Body, token: str, key: str, chance: random.Random) -> None:
        await asyncio.sleep(chance.choice((0.0, 0.5, 5.0, 40.0)) * chance.random())
        is_refusal = chance.random() < 0.2
        while True:
            try:
                if chance.random() < 0.3:
                    await client.heartbeat_activity(token, key)
                if is_refusal:
                    await client.fail_activity(token, "come again")
                elif await client.complete_activity(token, f"{key}!"):
                    self.checker.check_taken(body)
            except StoreError:
                await asyncio.sleep(0.1)
            except ActivityClosedError:
                self.trace("outside", key, "came too late")
                return
            else:
                self.features["failed by token" if is_refusal else "completed by token"] += 1
                self.trace("outside", key, "refused" if is_refusal else "answered")
                return

    # ─ the course of things ──

    def run(self) -> Report:
        handler = _Log(self)
        logger = logging.getLogger("durable")
        level, propagates, cache = logger.level, logger.propagate, worker_module.CACHE_MAX
        poll, lease = wakeups.POLL_SECONDS, default._settings.lease_ttl
        logger.addHandler(handler)
        logger.propagate = False
        worker_module.CACHE_MAX = self.cache  # type: ignore[misc]
        wakeups.POLL_SECONDS = self.poll  # type: ignore[misc]
        default._settings.lease_ttl = self.lease
        self.loop.set_exception_handler(self._on_exception)
        parked, handed_back = driving.parked, driving.handed_back
        driving.parked, driving.handed_back = self._looked_at(parked), self._looked_at(handed_back)
        threads_of_queries = querying.ThreadExecutor
        querying.ThreadExecutor = _thread_here  # type: ignore[assignment,misc]
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
                    self._tail.extend(traceback.format_exception(error))
                    self.violations.append(f"the simulation broke: {error!r}")
            self.loop.is_ending = True
            self.loop.allow(1_000_000)
            self.loop.run_until_complete(
                self.loop.create_task(self._clean_up(), context=self.loop.god.context())
            )
        finally:
            worker_module.CACHE_MAX = cache  # type: ignore[misc]
            wakeups.POLL_SECONDS = poll  # type: ignore[misc]
            default._settings.lease_ttl = lease
            driving.parked, driving.handed_back = parked, handed_back
            querying.ThreadExecutor = threads_of_queries  # type: ignore[misc]
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagates
            self.checker.close()
            self.loop.close()
            drop_locks(self.database)
            shutil.rmtree(self._directory, ignore_errors=True)
        return self._report()

    def _looked_at(self, decide: Callable[..., Item]) -> Callable[..., Item]:
        """Have the checker look at what a worker decides to write of a run that it lets go, before anything else can happen."""

        def decided(run: LiveRun, *args: Any, **options: Any) -> Item:
            item = decide(run, *args, **options)
            self.checker.on_given_up(run, item)
            return item

        return decided

    async def _live(self) -> None:
        await self._open_desks()
        self.machine.boot()
        for desk in self.desks:
            desk.begin()
        looking = self.god(self._look_often())
        meddling = self.god(self.operator.work())
        striking = [self.god(self.machine.strike(strike)) for strike in self.faults.strikes]
        striking.append(self.god(self.machine.deploy()))
        await asyncio.sleep(self.faults.length)
        for task in (meddling, *striking):
            task.cancel()
        await self.machine.heal()
        await self._see_to_the_end()
        looking.cancel()
        self.checker.look()
        Endings(self, self.checker).check(self.errands)
        await self.machine.shut_down()
        self.checker.look()

    async def _open_desks(self) -> None:
        for desk in self.desks:
            await desk.open()
        for i, errand in enumerate(self.errands):
            self.desks[i % len(self.desks)].parts.append((errand, True))
            self.desks[-1 - i % len(self.desks)].parts.append((errand, False))

    def god(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Start what is no part of any process: nothing strikes it."""
        return self.loop.create_task(coroutine, context=self.loop.god.context())

    async def _see_to_the_end(self) -> None:
        """I17: every errand ends; one that waits for what never comes says so, and can be cancelled (I12)."""
        client = self.desks[0].client
        deadline = self.loop.now + PATIENCE_SECONDS
        while any(not errand.is_done for errand in self.errands) or self.checker.query(OPEN_RUNS):
            for errand in self.errands:
                if errand.is_endless and errand.outcome is None and errand.is_started:
                    run = await client.describe(errand.run_id)
                    if any(one.name == "never" for one in run.waiting_on):
                        await self._cancel(client, errand)
            if self.stumbling.is_on:
                await self._resume_parked(client)
            if self.loop.now > deadline:
                await self._complain(client)
            await asyncio.sleep(1.0)

    async def _resume_parked(self, client: Client) -> None:
        """What good code has tried and bad code has parked again waits for a person, children too: it goes on by itself but once."""
        for (run_id,) in self.checker.query(PARKED_RUNS):
            with contextlib.suppress(WorkflowStateError, RunNotFoundError):
                await client.resume(run_id)
                self.features["resumed by a person"] += 1

    async def _cancel(self, client: Client, errand: Errand) -> None:
        await errand.end(client, "cancel")
        # With no room to claim it, or no slot for what it does at its end, it waits for what is there already.
        deadline = self.loop.now + self._slack() + (CANCEL_SECONDS if self.is_at_ease else PATIENCE_SECONDS)
        while errand.outcome is None:
            if self.loop.now > deadline:
                self.violation(f"I12: {errand.run_id} was cancelled and goes on")
            await asyncio.sleep(0.2)

    async def _complain(self, client: Client) -> None:
        """I17: say which runs are open, and what they claim to wait for."""
        for errand in self.errands:
            if errand.is_done:
                continue
            told = "not even started"
            if errand.is_started:
                run = await client.describe(errand.run_id)
                told = f"{run.status} on {run.worker}, waits for {[one.text for one in run.waiting_on]}"
            self.violation(f"I17: {errand.run_id} {errand.plan} is {told}")
        for run_id, _ in self.checker.query(OPEN_RUNS):  # children
            run = await client.describe(run_id)
            told = f"{run.status} on {run.worker}, waits for {[one.text for one in run.waiting_on]}"
            self.violation(f"I17: {run_id} of {run.workflow} is {told}")

    def _slack(self) -> float:
        """Clocks that disagree make what is due on one late on another."""
        offsets = [0.0, *(place.clock.offset for place in self.machine.places)]  # 0: the clients'
        is_off = self.faults.is_skewed or self.faults.counts["clock step"] or max(offsets) != min(offsets)
        return 60.0 if is_off else 0.0

    async def _look_often(self) -> None:
        while True:
            await asyncio.sleep(0.5 + 4 * self._chance.random())
            self.checker.look()

    async def _clean_up(self) -> None:
        """Nothing of this: give back what a process's end would give back."""
        self.machine.bring_down()
        this = asyncio.current_task()
        for task in self.loop.tasks:
            if task is not this and not task.done():
                throw_away(task)
        self.loop.tasks.clear()

    def _on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "handle" in context and not self.loop.is_ending:
            self.violation(f"in a callback: {context['message']}: {context.get('exception')!r}")

    def _report(self) -> Report:
        return Report(
            seed=self.seed,
            hash=self._hash.hexdigest(),
            violations=self.violations,
            events=list(self._tail),
            faults=self.faults.summary(),
            runs=self._runs,
            strikes=self.faults.drawn,
            outcomes=dict(self.outcomes),
            features=dict(self.features),
            virtual_seconds=self.loop.now,
            callbacks=self.loop.callbacks,
            bodies=self.bodies,
            setting=f"{len(self.machine.places)} workers, lease {self.lease:g} s, cache {self.cache}, warm {self.warm_us}, "
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
        is_expected = "has not moved" in text or (self._simulation.may_park and "is parked" in text)
        if record.levelno >= logging.ERROR and not is_expected:
            error = record.exc_info[1] if record.exc_info else None
            self._simulation.violation(f"logged: {text}: {error!r}")


def _thread_here(threads: int, *, name: str) -> VirtualExecutor:
    """Stand in for the thread in which a query is answered: of the process that asks."""
    return VirtualExecutor(this_node(), threads)


def _fast_directory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def run_seed(seed: int, *, cut: Cut = WHOLE, tail: int = 80) -> Report:
    """Run one seed, or what `cut` leaves of it, and return what came of it."""
    gc.disable()  # what the dead leave is finalized between seeds, not at a moment that no seed decides
    try:
        report = Simulation(seed, cut=cut, tail=tail).run()
    finally:
        gc.enable()
    if seed % 5 == 0:
        gc.collect()
    return report


def everything() -> set[str]:
    """Return what some hundreds of seeds have to come to: kinds of faults, and features of programs."""
    return {*KINDS, *FEATURES, *FEATURES_OF_LISTENERS}


def shrunk_command(seed: int, cut: Cut) -> str:
    """Return the command that shows a failure of this seed in the smallest form that was found."""

    def run(smaller: Cut) -> Tried:
        report = run_seed(seed, cut=smaller)
        return Tried(
            violations=report.violations,
            faults=list(report.faults),
            runs=report.runs,
            strikes=report.strikes,
        )

    return command(seed, shrunk(run, cut))


def command(seed: int, cut: Cut = WHOLE) -> str:
    """Return the command that runs a seed with a cut."""
    return f"python -m tests.simulation --seeds 1 --start {seed} {cut.options()}".rstrip()
