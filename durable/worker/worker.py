"""The worker as people see it: its options, and start, drain, stop. What is at work between those is a `Life`.

As an embedded engine (`own_only`) it drives only runs that its own process started or asked for (P30).
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from datetime import timedelta
from types import ModuleType, TracebackType
from typing import Any, Final, Self

from durable.activities import Activity
from durable.client import Client
from durable.definitions import Registry, check_name, retention_us_of
from durable.errors import DefinitionError
from durable.limits import Limits
from durable.retry import Seconds, seconds
from durable.scheduler.retention import RETENTION_DAYS
from durable.seams import SystemThreads, Threads, spawn
from durable.store.records import Claim, Rescue, StartRequest
from durable.worker.fingerprint import Fingerprints
from durable.worker.life import GRACE_SECONDS, Farewell, Life
from durable.worker.serving import (
    Served,
    Settings,
    activities_in,
    definitions_in,
    lease_from,
    queues_from,
    slots_from,
)
from durable.worker.watchdog import ACTIVATION_SECONDS
from durable.workflows import DEFAULT_TASK_QUEUE

CACHE_MAX: Final = 10_000
RETENTION: Final = timedelta(days=RETENTION_DAYS)


class Worker:
    """Drives runs of the given workflows. Several workers may serve one database.

    `workflows` are `@workflow` functions, pipelines and other patterns, or modules that hold some. `task_queue`, one or several, is
    where it claims runs, and tasks of activities that other workers' runs have called with that `task_queue`: of `activities`, and of
    those in the modules; without any workflow it performs activities only. Slots are apart: `concurrency` is how many
    activities of its own runs it performs at a time, `task_concurrency` (default: as many) how many of others', `max_runs`
    how many runs it drives or keeps at hand. `lease_seconds` (default 10, or `DURABLE_LEASE_TTL`) is how long a worker that
    hangs keeps its runs; one that died on this host loses them at once. Runs closed longer ago than `retention` (seconds or
    timedelta, default 30 days; None: never) are deleted, by one of the workers for all, unless their workflow says itself how long they
    are kept: give all workers the same. `limits` default to
    the client's. `threads` is where its threads come from (simulations).
    `activation_limit` (seconds, default 30) is how long a workflow may compute without awaiting anything durable: past that
    it is interrupted and its run is parked. A loop that stands still for twice that ends this process, so that others take over.
    """

    def __init__(
        self,
        client: Client,
        *workflows: Served,
        activities: Iterable[Activity[..., Any] | ModuleType] = (),
        task_queue: str | Sequence[str] = DEFAULT_TASK_QUEUE,
        concurrency: int = 100,
        task_concurrency: int | None = None,
        max_runs: int | None = None,
        lease_seconds: Seconds | None = None,
        name: str | None = None,
        limits: Limits | None = None,
        own_only: bool = False,
        retention: Seconds | None = RETENTION,
        threads: Threads | None = None,
        activation_limit: Seconds = ACTIVATION_SECONDS,
    ) -> None:
        self.client = client
        self.registry = Registry(definitions_in(workflows))
        self.task_queues = queues_from(task_queue)
        self.concurrency = slots_from(concurrency, "concurrency")
        self.task_concurrency = (
            concurrency if task_concurrency is None else slots_from(task_concurrency, "task_concurrency")
        )
        self.max_runs = slots_from(CACHE_MAX if max_runs is None else max_runs, "max_runs")
        self.lease_seconds = lease_from(lease_seconds)
        self.activation_seconds = seconds(activation_limit, what="activation_limit")
        if self.activation_seconds <= 0:
            raise DefinitionError(f"activation_limit must be above 0 s, not {activation_limit!r}")
        self.name = check_name(name or f"{platform.node()}:{os.getpid()}", "a worker")
        self.limits = client.limits if limits is None else limits
        self._settings = Settings(
            client=client,
            registry=self.registry,
            activities={} if own_only else activities_in(workflows, activities),
            task_queues=self.task_queues,
            concurrency=self.concurrency,
            task_concurrency=self.task_concurrency,
            max_runs=self.max_runs,
            lease_seconds=self.lease_seconds,
            activation_seconds=self.activation_seconds,
            name=self.name,
            limits=self.limits,
            own_only=own_only,
            retention_us=None if retention is None else retention_us_of(retention),
            threads=threads or SystemThreads(),
            fingerprints=Fingerprints(),
        )
        self._farewell = Farewell()
        self._is_beginning = False
        self._life: Life | None = None  # the last one, even when it is over

    # ─ what a user sees ──

    @property
    def worker_id(self) -> int:
        """The id of the current incarnation (0 before the start and after the end)."""
        return 0 if self._life is None or self._life.is_over else self._life.tenure.worker_id()

    @property
    def task_queue(self) -> str:
        """The first of the queues it serves."""
        return self.task_queues[0]

    @property
    def activities(self) -> list[str]:
        """The names of the activities whose tasks it takes from its queues."""
        return sorted(self._settings.activities)

    @property
    def workflows(self) -> list[str]:
        """The names of the workflows it serves."""
        return self.registry.names()

    @property
    def rescued(self) -> list[Rescue]:
        """The dead workers whose runs were taken back when it began."""
        return [] if self._life is None else self._life.rescued

    async def run(self, *, drain: bool = False) -> None:
        """Work until `stop()` or cancelled; `drain=True`: until no run it serves can go on without outside input.

        Cancelled, it stops like a process that is shut down: what runs is handed back, nothing is cancelled in a run.
        """
        await self.begin()
        await self.work(drain=drain)

    def stop(self, grace_seconds: Seconds = GRACE_SECONDS) -> None:
        """Claim nothing more, let activities end within the grace, hand the rest back uncharged; then `run` returns."""
        self._farewell.grace_seconds = seconds(grace_seconds, what="grace_seconds")
        self._farewell.is_asked = True
        if self.worker_id:
            self.life.bid_farewell()

    async def __aenter__(self) -> Self:
        await self.begin()
        self.life.task = spawn(self.work(), name=f"durable worker {self.name}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        working = self.life.task
        self.stop(self._farewell.grace_seconds if error is None else 0)
        await working

    # ─ life ──

    @property
    def life(self) -> Life:
        """What is at work now, or was last. Raises `DefinitionError` if it has never begun."""
        if self._life is None:
            raise DefinitionError(f"worker {self.name!r} has not begun yet")
        return self._life

    async def begin(self) -> None:
        """Begin a life: from here on it can own runs that this process starts. `work` must follow, and ends it."""
        if self._is_beginning or self.worker_id:
            raise DefinitionError("this worker is running already")
        self._is_beginning = True
        self._farewell = Farewell()
        try:
            self._life = await Life.begin(self._settings, self._farewell, self)
        finally:
            self._is_beginning = False

    async def work(self, *, drain: bool = False) -> None:
        """The body of a worker's life after `begin`, from the first claim to the last hand-back. Otherwise like `run`."""
        await self.life.work(drain=drain)

    # ─ what clients of this process, and the default engine, ask ──

    def adopt(self, claim: Claim) -> None:
        """Drive a run this process has just started as its owner."""
        self.life.claimer.adopt(claim)

    def reserve_room(self, request: StartRequest, wanted: int) -> int:
        """Take places for up to `wanted` runs of this kind: none beyond what its slots keep busy. Give them back in any case."""
        return self.life.claimer.reserve_room(request, wanted, self.concurrency)

    def return_room(self, places: int) -> None:
        """Give back what `reserve_room` took; runs that came of it are counted as runs."""
        driver = self.life.driver
        driver.promised = max(0, driver.promised - places)  # of a life before: nothing

    def ask_for(self, pk: int) -> None:
        """Claim this run as soon as it is ready (embedded engines)."""
        self.life.claimer.ask_for(pk)

    def detach(self, pk: int) -> None:
        """Stop driving this run here and hand it to whoever has its code."""
        self.life.claimer.forget(pk)
        self.life.releaser.hand_back(pk)

    # ─ what a test asks that skips time ──

    @property
    def running(self) -> int:
        """Attempts of activities whose code runs now."""
        return self.life.running

    async def look(self) -> bool:
        """Claim what is ready and take in messages; return whether there may be more to claim."""
        return await self.life.claimer.look()

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing of its runs can go on here without more time, messages, or the end of code that runs."""
        return self.life.is_at_rest
