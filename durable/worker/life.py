"""A worker at work, from the first claim to the last hand-back: its parts, the loops that run them, and their end.

A worker that ends and is started again lives a second time, with parts of its own. One that was declared dead in between goes on
in this life as another incarnation (`tenure.py`), with the same parts emptied.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Self

from durable.connection import LocalWorker
from durable.engine.instance import Instance
from durable.errors import DurableError, StoreError
from durable.in_activity import spare_thread
from durable.journal.lifecycle import RunStatus
from durable.scheduler.due import fire_due
from durable.scheduler.rescue import rescue_dead
from durable.scheduler.retention import keep_retention
from durable.scheduler.strays import care_for_tasks
from durable.scheduler.wakeups import Wakeups
from durable.seams import pause, spawn
from durable.store.records import Rescue
from durable.worker.announcing import announce, tell_of_rescue
from durable.worker.claiming import POLL_SECONDS, Claimer
from durable.worker.committing import Committer
from durable.worker.completions import Completions
from durable.worker.driving import Driver
from durable.worker.live import Item, LiveRun
from durable.worker.performing import Performer
from durable.worker.releasing import Releaser
from durable.worker.reloading import Reloads
from durable.worker.serving import Settings
from durable.worker.suspects import Suspects
from durable.worker.tasks import Tasks
from durable.worker.tenure import Tenure
from durable.worker.watchdog import Watchdog

GRACE_SECONDS: Final = 30.0
HOUSEKEEPING_SECONDS: Final = 1.0
UNWIND_SECONDS: Final = 1.0
THREADS_SECONDS: Final = 0.25  # for threads that were told to stop, after the grace
log = logging.getLogger("durable.worker")


class Farewell:
    """Whether a worker was asked to stop, and how many seconds it has for it; it may be asked before its life has begun."""

    def __init__(self) -> None:
        self.is_asked = False
        self.grace_seconds = GRACE_SECONDS


class Life:
    """The parts of one worker, and what they ask of one another. Made by `begin`."""

    def __init__(self, settings: Settings, farewell: Farewell, *, secret: str) -> None:
        self.settings = settings
        self.farewell = farewell
        self.client = client = settings.client
        self.store = client.store
        self.is_over = False
        self.rescued: list[Rescue] = []
        self.task = _this_task()  # what does its work; until that has begun, whoever began the life
        self._clock = client.clock
        self._main = asyncio.Event()  # the main loop has something to look at
        self._is_torn_down = False
        self._forget: list[Callable[[], None]] = []
        self.care = Wakeups()
        self.executor = settings.threads.executor(settings.concurrency, name="durable-activity")
        self.watchdog = Watchdog(
            clock=self._clock,
            threads=settings.threads,
            activation_seconds=settings.activation_seconds,
            ends_process=not settings.own_only,
            attempt_of=self._attempt_of,
        )
        self.tenure = Tenure(
            settings,
            is_hopeless=lambda: self.watchdog.is_hopeless,
            on_loss=self._main.set,
            on_hint=self.hint,
        )
        self._make_driving()
        self._make_performing(secret)
        self.committer = Committer(
            self.store, self.driver, self._clock, self.tenure.present, self.tenure.lose
        )

    def _make_driving(self) -> None:
        settings, tenure = self.settings, self.tenure
        code_of = settings.fingerprints.of
        self.reloads = Reloads(
            self.client, worker_id=tenure.worker_id, is_lost=tenure.is_lost, on_lost=tenure.lose
        )
        self.driver = Driver(
            registry=settings.registry,
            clock=self._clock,
            random=self.client.random,
            on_work=self._on_work,
            on_ended=self._on_ended,
            on_reload=self.reloads.add,
            on_room=self._on_room,
            on_lost_run=self.client.watch.look,
            on_children=self._on_children,
            on_answered=self.client.watch.has_answered,
            code_of=code_of,
            capacity=settings.max_runs,
            limits=settings.limits,
        )
        self.driver.watch = self.watchdog.watch
        self.driver.on_tasks = self.care.hint
        # In a test environment there are no other workers: what names another queue is performed here.
        self.driver.entrusts = self.client.stand_in is None
        self.releaser = Releaser(self.driver, self._clock, capacity=settings.max_runs)
        self.claimer = Claimer(
            self.client,
            self.driver,
            self.releaser,
            name=settings.name,
            registry=settings.registry,
            task_queues=settings.task_queues,
            own_only=settings.own_only,
            worker_id=tenure.worker_id,
            may_claim=self._may_claim,
            on_lost=tenure.lose,
        )
        self.suspects = Suspects(
            self.store,
            self.driver,
            self._clock,
            worker_id=tenure.worker_id,
            on_lost=tenure.lose,
            code_of=code_of,
        )

    def _make_performing(self, secret: str) -> None:
        """Make what performs activities: of the runs driven here, and of others' runs."""
        settings, tenure = self.settings, self.tenure
        self.performer = Performer(
            slots=settings.concurrency,
            clock=self._clock,
            random=self.client.random,
            threads=settings.threads,
            executor=self.executor,
            address=self.client.address,
            limits=settings.limits,
            stand_in=self.client.stand_in,
            on_outcome=self.driver.mark,
            on_marks=self.driver.add_marks,
            on_slots=self.driver.schedule_pump,
        )
        self.performer.completions = self.completions = Completions(
            self.store,
            self.performer,
            self._clock,
            secret=secret,
            worker_id=tenure.worker_id,
            on_lost=tenure.lose,
        )
        self.tasks = Tasks(
            self.client,
            settings.threads,
            slots=settings.task_concurrency,
            task_queues=settings.task_queues,
            activities=settings.activities,
            limits=settings.limits,
            incarnation=tenure.present,
            is_lost=tenure.is_lost,
            on_lost=tenure.lose,
            on_settled=self.care.hint,
        )
        for performer in (self.performer, self.tasks.performer):
            performer.is_stopping = self._is_being_torn_down
            performer.on_idle = self._on_idle
        self.driver.connect(self.performer, self.suspects)

    # ─ begin, work, end ──

    @classmethod
    async def begin(cls, settings: Settings, farewell: Farewell, local: LocalWorker) -> Self:
        """Open the database and register; from here on runs can be its own. `work` must follow, and ends it.

        `local` is the worker as the clients of this process know it.
        """
        spare_thread()
        client = settings.client
        await client.open()
        secret = await client.store.read_meta("database_id") or ""
        rescued = await client.store.rescue_dead_workers(settings.lease_seconds)
        life = cls(settings, farewell, secret=secret)
        life.rescued = rescued
        try:
            await life._incarnate()
        except BaseException:
            life.watchdog.stop()
            raise
        life._forget = [
            client.watch.add_driver(life.driver.runs.__contains__),
            client.add_worker(local),
        ]
        return life

    async def _incarnate(self) -> None:
        await self.tenure.begin()
        self.driver.feeder.worker_id = self.tenure.worker_id()
        self.hint()
        try:
            self.claimer.pauses = await self.store.read_pauses(self.tenure.worker_id())
        except StoreError as error:
            # Not a reason for yet another life: this one beats, and would be left behind, alive, with whatever it has claimed.
            log.warning("pauses are read a little later: %s", error)

    async def work(self, *, drain: bool = False) -> None:
        """Work from the first claim to the last hand-back: until a farewell, cancelled, or with `drain` until nothing is left."""
        self.task = _this_task()
        loops = [
            *(spawn(self.committer.run(), name="durable commits") for _ in range(self.committer.lanes)),
            *(spawn(loop, name=name) for name, loop in (self._own_loops() | self._chores()).items()),
        ]
        for loop in loops:
            loop.add_done_callback(lambda _: self._main.set())
        try:
            await self._until_stopped(loops, drain)
            await self._quiesce()
        except asyncio.CancelledError:
            self._is_torn_down = True
            raise
        finally:
            await self._end(loops)

    def _own_loops(self) -> dict[str, Coroutine[Any, Any, None]]:
        loops = {
            "durable claims": self.claimer.run(),
            "durable reloads": self.reloads.run(self.driver),
            "durable suspects": self.suspects.run(),
            "durable completions": self.completions.run(),
            "durable housekeeping": self._keep_house(),
        }
        if self.settings.activities:
            loops["durable tasks"] = self.tasks.run()
        if not self.settings.own_only:
            loops["durable parked runs"] = self.claimer.retry_parked(self.settings.fingerprints)
        return loops

    def _chores(self) -> dict[str, Coroutine[Any, Any, None]]:
        """What is done for all workers of the database by each of them."""
        store, clock, worker_id = self.store, self._clock, self.tenure.worker_id
        chores = {
            "durable timers": fire_due(store, clock, self.claimer.wakeups.hint),
            "durable stray tasks": care_for_tasks(
                store, clock, self.client.random, wakeups=self.care, on_settled=self.hint
            ),
            "durable rescue": rescue_dead(
                store,
                lease_seconds=self.settings.lease_seconds,
                observer=worker_id,
                on_rescued=self._on_rescued,
            ),
        }
        if self.settings.retention_us is not None:
            chores["durable retention"] = keep_retention(
                store,
                clock,
                retention_us=self.settings.retention_us,
                tidied=self.settings.registry.tidied,
                worker_id=worker_id,
            )
        return chores

    async def _until_stopped(self, loops: Sequence[asyncio.Task[None]], drain: bool) -> None:
        if drain:
            self.driver.feeder.warm_us = 0
        while not self.farewell.is_asked:
            try:
                async with asyncio.timeout(0.2 if drain else None):
                    await self._main.wait()
            except TimeoutError:
                if await self._is_drained():
                    return
            self._main.clear()
            for loop in loops:
                if loop.done():
                    await loop  # raises what broke it: a worker with a dead loop must not look alive
            if self.tenure.is_lost():
                await self._reincarnate()

    async def _reincarnate(self) -> None:
        """This incarnation was declared dead: forget everything it held and begin another (P8)."""
        former = self.tenure.worker_id()
        log.warning("worker %d was declared dead; its runs belong to others; it begins anew", former)
        self.tenure.end()
        self.driver.lose_all()
        self.tasks.lose_all()
        # It stays lost until the new incarnation stands: news of the former one must not be its own.
        while not self.farewell.is_asked:
            try:
                # Its lock and socket; its runs, if we gave up too early.
                await self.store.retire_worker(self.tenure.worker_id())
                await self._incarnate()
                return
            except StoreError as error:
                log.warning("a new incarnation waits for the database: %s", error)
                await pause(POLL_SECONDS)

    def bid_farewell(self) -> None:
        """The farewell was asked for: begin nothing more."""
        self._drain()
        self._main.set()

    def _drain(self) -> None:
        self.performer.is_draining = True
        self.tasks.is_stopping = self.tasks.performer.is_draining = True

    async def _quiesce(self) -> None:
        """Wait, within the grace, until no activity runs and their outcomes are committed."""
        self._drain()
        grace = self.farewell.grace_seconds
        try:
            async with asyncio.timeout(grace):
                while self.running or self.driver.is_busy or self.tasks.is_busy:
                    self._main.clear()
                    try:
                        async with asyncio.timeout(0.05):
                            await self._main.wait()
                    except TimeoutError:
                        pass
        except TimeoutError:
            log.warning("%d activities outlast the grace of %g s: they are handed back", self.running, grace)

    async def _end(self, loops: Sequence[asyncio.Task[None]]) -> None:
        """Release everything; the rest of a teardown's patience is short, so no wait here is unbounded."""
        await self.committer.come_to_rest(UNWIND_SECONDS)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        self.performer.begin_no_more()
        self.tasks.performer.begin_no_more()
        for performer in (self.performer, self.tasks.performer):
            await performer.hear_out(coroutines_seconds=UNWIND_SECONDS, threads_seconds=THREADS_SECONDS)
        worker_id = self.tenure.worker_id()
        try:
            if not self.tenure.is_lost():
                await self._hand_back(worker_id)
        except DurableError as error:
            log.warning("worker %d could not hand back its runs, others will take them: %s", worker_id, error)
        finally:
            for forget in self._forget:
                forget()
            self.driver.stop()
            await self.performer.unwind(UNWIND_SECONDS)
            self.tasks.lose_all()
            await self.tasks.performer.unwind(UNWIND_SECONDS)
            self.tasks.close()
            self.watchdog.stop()
            self.tenure.end()
            self.is_over = True
            self.executor.close()

    async def _hand_back(self, worker_id: int) -> None:
        await self.committer.commit()
        await self._resolve_doubts(worker_id)
        self.releaser.hand_back_all()
        await self.committer.commit()
        await self.tasks.hand_back_all(worker_id)
        await self.store.retire_worker(worker_id)

    async def _resolve_doubts(self, worker_id: int) -> None:
        """Ask the store about turns whose commit was cancelled half-way: what they charged and never started is handed back."""
        doubts, self.committer.in_doubt = self.committer.in_doubt, []
        if doubts:
            claims = await self.store.read_claims(worker_id, [item.run.pk for item in doubts])
            by_pk = {claim.pk: claim for claim in claims}
            for item in doubts:
                self.releaser.resolve(item, by_pk.get(item.run.pk))

    async def _keep_house(self) -> None:
        """Show that the loop lives; release what only waits."""
        while True:
            self.watchdog.watch.moves += 1
            self.releaser.release_idle()
            self.driver.ring()  # the wall clock may have been set meanwhile
            await pause(
                0.05
                if self.driver.feeder.warm_us == 0
                else min(HOUSEKEEPING_SECONDS, self.watchdog.limits.soft / 2)
            )

    # ─ how it is ──

    @property
    def running(self) -> int:
        """Attempts of activities whose code runs now."""
        return self.performer.running + self.tasks.performer.running

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing of its runs can go on here without more time, messages, or the end of code that runs."""
        return (
            not self.tenure.is_lost()
            and not self.reloads
            and self.driver.is_at_rest
            and self.performer.is_at_rest
        )

    async def _is_drained(self) -> bool:
        """Whether no run it serves can go on without outside input."""
        if any(run.has_work for run in self.driver.runs.values()) or self.tasks.is_busy:
            return False
        return await self.claimer.has_nothing_left()

    def _may_claim(self) -> bool:
        return not (self.farewell.is_asked or self.tenure.is_lost())

    def _is_being_torn_down(self) -> bool:
        """Whether the loop is being torn down around us: then every task was cancelled, not our activities (P30)."""
        return self._is_torn_down or self.task.done() or self.task.cancelling() > 0

    def _attempt_of(self, task: asyncio.Task[Any]) -> str | None:
        return self.performer.attempt_of(task) or self.tasks.performer.attempt_of(task)

    # ─ what the parts report ──

    def hint(self) -> None:
        """Something in the store may have changed."""
        self.claimer.wakeups.hint()
        self.tasks.hint()

    def _on_idle(self) -> None:
        if self.farewell.is_asked:
            self._main.set()

    def _on_rescued(self, rescued: Sequence[Rescue]) -> None:
        tell_of_rescue(rescued)
        self.hint()
        self.care.hint()

    def _on_work(self) -> None:
        self.committer.wake()

    def _on_room(self) -> None:
        if self.driver.room == 1:
            self.claimer.wakeups.hint()

    def _on_children(self, run: LiveRun, instance: Instance) -> None:
        self.claimer.has_children(run, instance)

    def _on_ended(self, run: LiveRun, item: Item) -> None:
        """A durable item ended this run's stay here."""
        if item.status is None or item.status is RunStatus.RUNNING:
            return
        is_over = item.status.is_closed and item.status is not RunStatus.CONTINUED
        if is_over or item.status is RunStatus.PARKED:
            self.claimer.forget(run.pk)
        announce(self.client.watch, run, item, self._clock.now_us())


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None, "a worker lives in a task"
    return task
