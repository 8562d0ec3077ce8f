"""The worker: start, drain, stop. One task group of small loops around a driver, a committer and a performer.

As an embedded engine (`own_only`) it drives only runs that its own process started or asked for (P30).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from types import ModuleType, TracebackType
from typing import Any, Final, Protocol, Self

from durable.client import Client
from durable.definitions import LOCAL_TASK_QUEUE, Registry, WorkflowDefinition
from durable.errors import DefinitionError, DurableError, LeaseLostError, PlatformFault, StoreError
from durable.journal.lifecycle import RunStatus
from durable.limits import Limits
from durable.retry import Seconds, seconds
from durable.scheduler.due import fire_due
from durable.scheduler.rescue import rescue_dead
from durable.scheduler.retention import RETENTION_DAYS, keep_retention
from durable.scheduler.wakeups import Wakeups
from durable.seams import SystemThreads, Threads, pause, spawn
from durable.store.records import Claim, Close, Park, Pauses, Rescue, RunRecord, StartRequest, WorkerInfo
from durable.worker.committing import Committer
from durable.worker.completions import Completions
from durable.worker.driving import Driver
from durable.worker.fingerprint import Fingerprints
from durable.worker.incarnation import Incarnation
from durable.worker.live import Item, LiveRun, Phase
from durable.worker.parked import retry_parked
from durable.worker.performing import Performer
from durable.worker.suspects import Suspects
from durable.worker.watchdog import ACTIVATION_SECONDS, Watchdog
from durable.workflows import DEFAULT_TASK_QUEUE, Workflow

LEASE_SECONDS: Final = 10.0
GRACE_SECONDS: Final = 30.0
POLL_SECONDS: Final = 0.5  # behind the store's hints
CLAIM_MAX: Final = 500
CACHE_MAX: Final = 10_000
RETENTION: Final = timedelta(days=RETENTION_DAYS)
RETENTION_SECONDS_MIN: Final = 60.0
HOUSEKEEPING_SECONDS: Final = 1.0
OWNERSHIP_SECONDS: Final = 0.1  # between looks for runs that were taken away
OWNERSHIP_SHARE: Final = (
    20  # a look that took long, for there are many, is followed by a pause this many times as long
)
OWNERSHIP_SECONDS_MAX: Final = 1.0
UNWIND_SECONDS: Final = 1.0
SERVES: Final = "__durable_workflows__"
log = logging.getLogger("durable.worker")


class Serving(Protocol):
    """Something that stands for workflows: a pipeline, say."""

    def __durable_workflows__(self) -> Iterable[Workflow[..., Any]]: ...


Served = Workflow[..., Any] | Serving | ModuleType


class Worker:
    """Drives runs of the given workflows. Several workers may serve one database.

    `workflows` are `@workflow` functions, pipelines and other patterns, or modules that hold some. `task_queue` is where it claims runs; `concurrency` how
    many activities it performs at a time. `lease_seconds` (default 10, or `DURABLE_LEASE_TTL`) is how long a worker that
    hangs keeps its runs; one that died on this host loses them at once. Runs closed longer ago than `retention` (seconds or
    timedelta, default 30 days; None: never) are deleted, by one of the workers for all: give all the same. `limits` default to
    the client's. `threads` is where its threads come from (simulations).
    `activation_limit` (seconds, default 30) is how long a workflow may compute without awaiting anything durable: past that
    it is interrupted and its run is parked. A loop that stands still for twice that ends this process, so that others take over.
    """

    def __init__(
        self,
        client: Client,
        *workflows: Served,
        task_queue: str = DEFAULT_TASK_QUEUE,
        concurrency: int = 100,
        lease_seconds: Seconds | None = None,
        name: str | None = None,
        limits: Limits | None = None,
        own_only: bool = False,
        retention: Seconds | None = RETENTION,
        threads: Threads | None = None,
        activation_limit: Seconds = ACTIVATION_SECONDS,
    ) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise DefinitionError(f"concurrency must be an integer >= 1, not {concurrency!r}")
        self.client = client
        self.registry = Registry(definitions_in(workflows))
        if task_queue == LOCAL_TASK_QUEUE:
            raise DefinitionError(f"task queue {task_queue!r} is for runs that no worker can drive")
        self.task_queue = task_queue
        self.concurrency = concurrency
        self.lease_seconds = lease_from(lease_seconds)
        self.activation_seconds = seconds(activation_limit, what="activation_limit")
        if self.activation_seconds <= 0:
            raise DefinitionError(f"activation_limit must be above 0 s, not {activation_limit!r}")
        self.name = name or f"{platform.node()}:{os.getpid()}"
        self.limits = client.limits if limits is None else limits
        self.rescued: list[Rescue] = []
        self._own_only = own_only
        self._retention_us = retention_us_of(retention)
        self._interest: set[int] = set()
        self._clock = client.clock
        self._threads = threads or SystemThreads()
        self._fingerprints = Fingerprints()
        self._incarnation: Incarnation | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._stopping = False
        self._pauses = Pauses()
        self._torn_down = False
        self._grace = GRACE_SECONDS
        self._background: asyncio.Task[None] | None = None

    # ─ what a user sees ──

    @property
    def worker_id(self) -> int:
        """The id of the current incarnation (0 before the start)."""
        return 0 if self._incarnation is None else self._incarnation.worker_id

    @property
    def workflows(self) -> list[str]:
        """The names of the workflows it serves."""
        return self.registry.names()

    async def run(self, *, drain: bool = False) -> None:
        """Work until `stop()` or cancelled; `drain=True`: until no run it serves can go on without outside input.

        Cancelled, it stops like a process that is shut down: what runs is handed back, nothing is cancelled in a run.
        """
        await self._begin()
        await self._work(drain)

    def stop(self, grace_seconds: Seconds = GRACE_SECONDS) -> None:
        """Claim nothing more, let activities end within the grace, hand the rest back uncharged; then `run` returns."""
        self._grace = seconds(grace_seconds, what="grace_seconds")
        self._stopping = True
        if self._incarnation is not None:
            self._performer.is_draining = True
            self._driver.is_draining = True
            self._wake_main()

    async def __aenter__(self) -> Self:
        await self._begin()
        self._background = spawn(self._work(drain=False), name=f"durable worker {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop(self._grace if error is None else 0)
        if self._background is not None:
            await self._background

    # ─ what the default engine asks ──

    def adopt(self, claim: Claim) -> None:
        """Drive a run this process has just started as its owner."""
        self._interest.add(claim.pk)
        self._driver.adopt(claim)
        if self._pauses != Pauses():
            self._hold_paused()

    def reserve_room(self, request: StartRequest, wanted: int) -> int:
        """Take places for up to `wanted` runs of this kind: none beyond what its slots keep busy. Give them back in any case."""
        if (
            self._own_only
            or self._stopping
            or self._lost
            or request.ready_at_us is not None
            or request.task_queue != self.task_queue
            or self._pauses != Pauses()
            or self.registry.find(request.workflow, request.version) is None
        ):
            return 0
        driver = self._driver
        room = min(driver.room, self.concurrency - len(driver.runs) - driver.promised, wanted)
        driver.promised += max(room, 0)
        return max(room, 0)

    def return_room(self, places: int) -> None:
        """Give back what `reserve_room` took; runs that came of it are counted as runs."""
        self._driver.promised = max(0, self._driver.promised - places)  # of a life before: nothing

    def ask_for(self, pk: int) -> None:
        """Claim this run as soon as it is ready (embedded engines)."""
        self._interest.add(pk)
        self._wakeups.hint()

    def detach(self, pk: int) -> None:
        """Stop driving this run here and hand it to whoever has its code."""
        self._interest.discard(pk)
        self._driver.hand_back(pk)

    # ─ life ──

    async def _begin(self) -> None:
        if self._incarnation is not None:
            raise DefinitionError("this worker is running already")
        await self.client.open()
        self._store = self.client.store
        self._stopping = self._torn_down = False
        self._pauses = Pauses()
        self._main = asyncio.Event()
        self._lost = False
        self._wakeups = Wakeups()
        self._reloads: list[LiveRun] = []
        self._reload_wakeups = Wakeups()
        self._strays: dict[
            int, int
        ] = {}  # pk -> claim_no of runs that are ours but not driven, as of the last look
        self._executor = self._threads.executor(self.concurrency, name="durable-activity")
        self._driver = Driver(
            registry=self.registry,
            clock=self._clock,
            random=self.client.random,
            on_work=self._on_work,
            on_ended=self._on_ended,
            on_reload=self._on_reload,
            on_room=self._on_room,
            on_lost_run=self.client.watch.look,
            code_of=self._fingerprints.of,
            capacity=CACHE_MAX,
            limits=self.limits,
        )
        self._driver.suspects = self._suspects = Suspects(
            self._store,
            self._driver,
            self._clock,
            worker_id=lambda: self.worker_id,
            on_lost=self._on_lost,
            code_of=self._fingerprints.of,
        )
        self._performer = Performer(
            slots=self.concurrency,
            clock=self._clock,
            random=self.client.random,
            executor=self._executor,
            address=self.client.address,
            limits=self.limits,
            on_outcome=self._driver.mark,
            on_marks=self._driver.add_marks,
            on_slots=self._driver.schedule_pump,
            on_stale=self._on_stale,
        )
        self._performer.is_stopping = self._is_torn_down
        self._performer.on_idle = self._on_idle
        self._driver.performer = self._performer
        self._performer.completions = self._completions = Completions(
            self._store,
            self._performer,
            self._clock,
            secret=await self._store.read_meta("database_id") or "",
            worker_id=lambda: self.worker_id,
            on_lost=self._on_lost,
        )
        self._committer = Committer(
            self._store, self._driver, self._clock, self._current_incarnation, self._on_lost
        )
        self.rescued = await self._store.rescue_dead_workers(self.lease_seconds)
        self._watchdog = Watchdog(
            clock=self._clock,
            threads=self._threads,
            activation_seconds=self.activation_seconds,
            ends_process=not self._own_only,
            attempt_of=self._performer.attempt_of,
        )
        self._driver.watch = self._watchdog.watch
        try:
            await self._incarnate()
        except BaseException:
            self._watchdog.stop()
            raise
        self._forget_driver = self.client.watch.add_driver(self._driver.runs.__contains__)
        self._forget_worker = self.client.add_worker(self)

    async def _incarnate(self) -> None:
        info = WorkerInfo(
            name=self.name,
            task_queue=self.task_queue,
            definitions=tuple(self.registry.keys()),
            embedded=self._own_only,
        )
        self._incarnation = await Incarnation.begin(
            self._store,
            info,
            clock=self._clock,
            threads=self._threads,
            lease_seconds=self.lease_seconds,
            on_lost=self._on_lost,
            is_hopeless=lambda: self._watchdog.is_hopeless,
        )
        self._lost = False
        self._driver.worker_id = self._incarnation.worker_id
        log.info("worker %d (%s) serves queue %r", self.worker_id, self.name, self.task_queue)
        self._pauses = await self._store.read_pauses(self.worker_id)
        self._unsubscribe = self._store.subscribe(self._incarnation.worker_id, self._wakeups.hint)
        self._wakeups.hint()

    async def _work(self, drain: bool) -> None:
        """The body of a worker's life, from the first claim to the last hand-back."""
        self._task = asyncio.current_task()
        loops = [
            spawn(self._committer.run(), name="durable commits"),
            spawn(self._sync(), name="durable claims"),
            spawn(self._reload(), name="durable reloads"),
            spawn(self._suspects.run(), name="durable suspects"),
            spawn(self._completions.run(), name="durable completions"),
            spawn(self._keep_house(), name="durable housekeeping"),
            spawn(fire_due(self._store, self._clock, self._wakeups.hint), name="durable timers"),
            spawn(
                rescue_dead(
                    self._store,
                    lease_seconds=self.lease_seconds,
                    observer=lambda: self.worker_id,
                    on_rescued=self._on_rescued,
                ),
                name="durable rescue",
            ),
        ]
        if self._retention_us is not None:
            keeping = keep_retention(
                self._store,
                self._clock,
                retention_us=self._retention_us,
                worker_id=lambda: self.worker_id,
            )
            loops.append(spawn(keeping, name="durable retention"))
        if not self._own_only:
            loops.append(spawn(self._retry_parked(), name="durable parked runs"))
        for loop in loops:
            loop.add_done_callback(lambda _: self._wake_main())
        try:
            await self._until_stopped(loops, drain)
            await self._quiesce()
        except asyncio.CancelledError:
            self._torn_down = True
            raise
        finally:
            await self._end(loops)

    async def _until_stopped(self, loops: Sequence[asyncio.Task[None]], drain: bool) -> None:
        if drain:
            self._driver.warm_us = 0
        while not self._stopping:
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
            if self._lost:
                await self._reincarnate()

    async def _reincarnate(self) -> None:
        """This incarnation was declared dead: forget everything it held and begin another life (P8)."""
        log.warning("worker %d was declared dead; its runs belong to others; it begins anew", self.worker_id)
        former = self.worker_id
        self._close_incarnation()
        self._driver.lose_all()
        # `_lost` stays true until the new incarnation stands: news of the former one must not be its own.
        while True:
            try:
                await self._store.retire_worker(
                    former
                )  # its lock and socket; its runs, if we gave up too early
                await self._incarnate()
                return
            except StoreError as error:
                log.warning("a new incarnation waits for the database: %s", error)
                await pause(POLL_SECONDS)

    async def _quiesce(self) -> None:
        """Wait, within the grace, until no activity runs and their outcomes are committed."""
        self._performer.is_draining = True
        self._driver.is_draining = True
        try:
            async with asyncio.timeout(self._grace):
                while self._performer.running or self._driver.is_busy:
                    self._main.clear()
                    try:
                        async with asyncio.timeout(0.05):
                            await self._main.wait()
                    except TimeoutError:
                        pass
        except TimeoutError:
            log.warning(
                "%d activities outlast the grace of %g s: they are handed back",
                self._performer.running,
                self._grace,
            )

    async def _end(self, loops: Sequence[asyncio.Task[None]]) -> None:
        """Release everything; the rest of a teardown's patience is short, so no wait here is unbounded."""
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        self._performer.begin_no_more()
        try:
            if not self._lost:
                await self._committer.commit()
                await self._resolve_doubts()
                self._driver.hand_back_all()
                await self._committer.commit()
                await self._store.retire_worker(self.worker_id)
        except DurableError as error:
            log.warning(
                "worker %d could not hand back its runs, others will take them: %s", self.worker_id, error
            )
        finally:
            self._forget_driver()
            self._forget_worker()
            self._driver.stop()
            await self._performer.unwind(UNWIND_SECONDS)
            self._watchdog.stop()
            self._close_incarnation()
            self._incarnation = None
            self._executor.close()

    async def _resolve_doubts(self) -> None:
        """Ask the store about turns whose commit was cancelled half-way: what they charged and never started is handed back."""
        doubts, self._committer.in_doubt = self._committer.in_doubt, []
        if doubts:
            claims = await self._store.read_claims(self.worker_id, [item.run.pk for item in doubts])
            by_pk = {claim.pk: claim for claim in claims}
            for item in doubts:
                self._driver.resolve(item, by_pk.get(item.run.pk))

    def _close_incarnation(self) -> None:
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._incarnation is not None:
            self._incarnation.end()

    # ─ the loops ──

    async def _sync(self) -> None:
        """Claim ready runs, take in messages, notice runs that were taken away: at every hint, else now and then."""
        checked_at = self._clock.monotonic()
        check_pause = OWNERSHIP_SECONDS
        while True:
            again = False
            worker_id = self.worker_id
            try:
                again = await self._claim()
                if self._driver.runs:
                    self._driver.deliver(await self._store.read_inbox(self.worker_id))
                began_at = self._clock.monotonic()
                if began_at - checked_at > check_pause:
                    await self._check_ownership()
                    await self._obey_pauses()
                    checked_at = self._clock.monotonic()
                    took = checked_at - began_at
                    check_pause = min(max(OWNERSHIP_SECONDS, OWNERSHIP_SHARE * took), OWNERSHIP_SECONDS_MAX)
            except LeaseLostError:
                self._on_lost(worker_id)
            except StoreError as error:
                log.warning("claims wait for the database: %s", error)
            if again:
                await pause(0)
            else:
                await self._wakeups.wait(POLL_SECONDS)

    async def _claim(self) -> bool:
        """Claim what there is room for; return whether there may be more."""
        if self._stopping or self._lost or (self._own_only and not self._interest):
            return False
        room = min(self._driver.room, CLAIM_MAX)
        if room <= 0 or not len(self.registry):
            return False
        self._driver.promised += room
        try:
            claims = await self._store.claim_ready_runs(
                self.worker_id,
                now_us=self._clock.now_us(),
                limit=room,
                task_queue=None if self._own_only else self.task_queue,
                definitions=self.registry.keys(),
                pks=sorted(self._interest) if self._own_only else None,
            )
        finally:
            self._driver.promised -= room
        for claim in claims:
            self._driver.adopt(claim)
        return len(claims) == room

    async def _retry_parked(self) -> None:
        await retry_parked(
            self._store,
            task_queue=self.task_queue,
            worker_id=lambda: self.worker_id,
            room=self._room_for_parked,
            codes=lambda: [
                (one.name, one.version, self._fingerprints.of(one)) for one in self.registry.all()
            ],
            adopt=self._driver.adopt,
        )

    def _room_for_parked(self) -> int:
        is_paused = self._pauses.is_worker_paused or self.task_queue in self._pauses.task_queues
        return 0 if self._stopping or self._lost or is_paused else self._driver.room

    async def _obey_pauses(self) -> None:
        """Hold back what is paused: this worker, task queues, single runs. Each is told when it begins."""
        pauses = await self._store.read_pauses(self.worker_id)
        if pauses == self._pauses == Pauses():
            return
        if pauses.is_worker_paused is not self._pauses.is_worker_paused:
            log.warning("worker %s is %s", self.name, "paused" if pauses.is_worker_paused else "resumed")
        self._pauses = pauses
        self._hold_paused()

    def _hold_paused(self) -> None:
        pauses = self._pauses
        self._driver.hold(
            lambda run: (
                pauses.is_worker_paused or run.claim.task_queue in pauses.task_queues or run.pk in pauses.pks
            )
        )

    async def _check_ownership(self) -> None:
        """Compare what the store says is ours with what is driven here: drop what was taken away, take up what was left lying."""
        owned = await self._store.owned_runs(self.worker_id)
        for run in list(self._driver.runs.values()):
            if owned.get(run.pk) != run.claim_no and run.is_settled:
                self._driver.lose(run)
        strays = {pk: claim_no for pk, claim_no in owned.items() if pk not in self._driver.runs}
        twice = [pk for pk, claim_no in strays.items() if self._strays.get(pk) == claim_no]
        self._strays = strays
        if twice:  # its starter was cancelled between the commit and the adoption, say
            for claim in await self._store.read_claims(self.worker_id, twice):
                if self.registry.find(claim.workflow, claim.version) is not None:
                    self._driver.adopt(claim)

    async def _reload(self) -> None:
        """Read again what the store says of runs whose turn was refused."""
        while True:
            await self._reload_wakeups.wait(POLL_SECONDS)
            while self._reloads and not self._lost:
                # One that was lost meanwhile may have been claimed anew, and be waiting here a second time.
                runs = [run for run in self._reloads if run.phase is Phase.LOADING]
                self._reloads = []
                worker_id = self.worker_id
                try:
                    claims = await self._store.read_claims(worker_id, [run.pk for run in runs])
                except StoreError as error:
                    log.warning("%d runs wait for the database: %s", len(runs), error)
                    self._reloads.extend(runs)
                    await pause(POLL_SECONDS)
                    continue
                except LeaseLostError:
                    self._on_lost(worker_id)
                    break
                found = {claim.pk: claim for claim in claims}
                for run in runs:
                    claim = found.get(run.pk)
                    if claim is None or claim.claim_no != run.claim_no:
                        self._driver.lose(run)
                    else:
                        self._driver.reload(run, claim)

    async def _keep_house(self) -> None:
        """Show that the loop lives; release what only waits."""
        while True:
            self._watchdog.watch.moves += 1
            self._driver.release_idle()
            self._driver.ring()  # the wall clock may have been set meanwhile
            await pause(
                0.05
                if self._driver.warm_us == 0
                else min(HOUSEKEEPING_SECONDS, self._watchdog.limits.soft / 2)
            )

    async def _is_drained(self) -> bool:
        if any(run.has_work for run in self._driver.runs.values()):
            return False
        try:
            backlog = await self._store.count_backlog(self.task_queue, self.registry.keys())
        except StoreError:
            return False
        return not (backlog.ready or backlog.owned or backlog.timers)

    # ─ what the parts report ──

    def _current_incarnation(self) -> Incarnation:
        assert self._incarnation is not None
        return self._incarnation

    def _wake_main(self) -> None:
        self._main.set()

    def _on_idle(self) -> None:
        if self._stopping:
            self._wake_main()

    def _is_torn_down(self) -> bool:
        """Whether the loop is being torn down around us: then every task was cancelled, not our activities (P30)."""
        task = self._background if self._background is not None else self._task
        return self._torn_down or (task is not None and (task.done() or task.cancelling() > 0))

    def _on_stale(self) -> None:
        self._driver.lose_all()
        self._on_lost(self.worker_id)

    def _on_lost(self, worker_id: int) -> None:
        if worker_id == self.worker_id:  # else: late news of an earlier life
            self._lost = True
            self._wake_main()

    def _on_rescued(self, rescued: Sequence[Rescue]) -> None:
        for one in rescued:
            log.warning("took back %d runs of worker %s, which is dead", one.runs, one.name)
            for run_id in one.poison:
                log.error("run %r is parked: it ended its worker too often; see `durable show`", run_id)
        self._wakeups.hint()

    def _on_work(self) -> None:
        self._committer.wake()

    def _on_reload(self, run: LiveRun) -> None:
        self._reloads.append(run)
        self._reload_wakeups.hint()

    def _on_room(self) -> None:
        if self._driver.room == 1:
            self._wakeups.hint()

    def _on_ended(self, run: LiveRun, item: Item) -> None:
        """A durable item ended this run's stay here."""
        if item.status is None or item.status is RunStatus.RUNNING:
            return
        if item.status.is_closed and item.status is not RunStatus.CONTINUED:
            self._interest.discard(run.pk)
        watch = self.client.watch
        if item.status is RunStatus.PARKED:
            self._interest.discard(run.pk)
            fault = item.fault
            told = f"its text: durable why {run.run_id}"  # it may quote what the run holds
            if isinstance(fault, PlatformFault) and fault.is_clear:
                told = str(fault)
            log.error(
                "run %r is parked: %s: %s", run.run_id, type(fault).__name__, told, extra=run.log_fields
            )
        elif log.isEnabledFor(logging.INFO) and item.status is not RunStatus.WAITING:
            log.info("run %r is %s", run.run_id, item.status, extra=run.log_fields)
        if item.fault is not None or watch.is_awaited(run.pk, run.generation):
            watch.announce(_record(run, item, self._clock.now_us()), _fault(item))


def _fault(item: Item) -> PlatformFault | None:
    if item.fault is None or isinstance(item.fault, PlatformFault):
        return item.fault
    fault = PlatformFault(str(item.fault))
    fault.__cause__ = item.fault
    return fault


def _record(run: LiveRun, item: Item, now_us: int) -> RunRecord:
    """Return what a reader of the store would now see of a run that just ended."""
    claim, after = run.claim, item.after
    assert item.status is not None
    return RunRecord(
        pk=run.pk,
        run_id=run.run_id,
        generation=run.generation,
        epoch=claim.epoch,
        workflow=claim.workflow,
        version=claim.version,
        task_queue=claim.task_queue,
        status=item.status,
        attempt=claim.attempt,
        created_at_us=claim.created_at_us,
        started_at_us=claim.created_at_us,
        closed_at_us=now_us,
        deadline_us=claim.deadline_us,
        due_at_us=None,
        owner=None,
        owner_name=None,
        owner_is_alive=False,
        reason=after.reason if isinstance(after, (Close, Park)) else None,
        input=claim.input,
        result=after.result if isinstance(after, Close) else None,
        failure=after.failure if isinstance(after, (Close, Park)) else None,
    )


def definitions_in(sources: Iterable[Served]) -> list[WorkflowDefinition]:
    """Return the definitions of workflows and patterns, and of all that are found in modules."""
    found: dict[int, WorkflowDefinition] = {}
    for source in sources:
        inside = list(vars(source).values()) if isinstance(source, ModuleType) else [source]
        workflows = [one for value in inside for one in _workflows_of(value)]
        if not workflows and not isinstance(source, ModuleType):
            raise DefinitionError(
                f"a worker serves @workflow functions, patterns, or modules that hold some, not {source!r}"
            )
        for one in workflows:
            found[id(one.definition)] = one.definition
    return list(found.values())


def retention_us_of(value: Seconds | None) -> int | None:
    """Return how long closed runs are kept, in microseconds; None: for ever."""
    if value is None:
        return None
    kept = seconds(value, what="retention")
    if kept < RETENTION_SECONDS_MIN:
        raise DefinitionError(
            f"a retention below {RETENTION_SECONDS_MIN:g} s would delete results before anybody sees them: {kept:g} s"
        )
    return round(kept * 1_000_000)


def _workflows_of(value: object) -> Iterable[Workflow[..., Any]]:
    """Return the workflow that a value is, or those that it stands for: a pipeline, a class of sagas, a manager of some."""
    if isinstance(value, Workflow):
        return (value,)
    # Asked of the classes' own names: a variable of a user's module may be a proxy that answers to anything.
    cls: Any = value if issubclass(type(value), type) else type(value)
    if not any(SERVES in vars(base) for base in cls.__mro__):
        return ()
    method = getattr(value, SERVES)
    # Not the plain function that it is on the pattern's own class.
    return list(method()) if inspect.ismethod(method) else ()


def lease_from(value: Seconds | None) -> float:
    """Return the lease in seconds: as given, else `DURABLE_LEASE_TTL`, else 10. At least 0.2."""
    if value is None:
        text = os.environ.get("DURABLE_LEASE_TTL", "")
        try:
            value = float(text) if text else LEASE_SECONDS
        except ValueError:
            raise DefinitionError(f"DURABLE_LEASE_TTL must be seconds, not {text!r}") from None
    lease = seconds(value, what="lease_seconds")
    if lease < 0.2:
        raise DefinitionError(f"a lease below 0.2 s cannot be kept: {lease} s")
    return lease
