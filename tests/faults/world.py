"""Workers and clients at work while something goes wrong, and the check of what came of it.

There are shops, which call activities one after the other, sleep, and take signals; and trips, sagas whose last step fails. Every start
is asked for twice at once, under one id. The ledger notes every start of a body, outside of the database: what it shows must
agree with the journals, whatever happened in between. Which promise a check is about is said beside it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from durable import (
    Client,
    Retry,
    RunHandle,
    Signal,
    StoreError,
    WorkflowFailedError,
    activity,
    connect,
    saga_step,
    workflow,
)
from durable.journal.events import (
    ActivityCompleted,
    AnyEntry,
    ScheduleActivity,
    SignalReceived,
    StartTimer,
    TimerFired,
)
from durable.journal.turns import decode_turn
from tests.support.workers import running_worker

STEPS: Final = 4
LEASE_SECONDS: Final = 1.0
HEALED_SECONDS: Final = 60.0  # after the last fault every run must get on within this
NAP_SECONDS: Final = 0.02
BOOKINGS: Final = ("train", "hotel", "guide")
DEPARTURES_MAX: Final = 3
UNDO: Final = 100  # the number of a compensation in the ledger, above that of its step
TRIPS: Final = 4  # which runs are trips: every fourth

number = Signal("number", int)
ledger: list[tuple[str, int]] = []  # (run, step) of every body that was started, in order


@activity(retry=Retry(max_attempts=0, initial=0.01, maximum=0.05))
async def pay(run: str, step: int) -> str:
    ledger.append((run, step))
    await asyncio.sleep(0.002)
    return f"{run}/{step}"


@workflow(name="shop")
async def shop(run: str) -> list[Any]:
    """Pay, sleep, pay, take a signal, ... and tell everything that was seen."""
    told: list[Any] = []
    for step in range(STEPS):
        told.append(await pay(run, step))
        await asyncio.sleep(NAP_SECONDS)
        told.append(await number.wait())
    return told


async def unbook(run: str, what: str) -> None:
    ledger.append((run, UNDO + BOOKINGS.index(what)))


@saga_step(compensation=unbook, max_retries=1_000_000, retry_delay=0.01)
async def book(run: str, what: str) -> None:
    ledger.append((run, BOOKINGS.index(what)))
    await asyncio.sleep(0.002)


@activity(retry=Retry(max_attempts=DEPARTURES_MAX, initial=0.01, maximum=0.01))
async def depart(run: str) -> None:
    ledger.append((run, len(BOOKINGS)))
    raise RuntimeError("no trains today")


@workflow(name="trip")
async def trip(run: str) -> None:
    """Book one after the other; it comes to nothing, so all of it is undone."""
    for what in BOOKINGS:
        await book(run, what)
    await depart(run)


class World:
    """Two workers over one schema, runs and signals on their way."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self._numbers = itertools.count()
        self.sent: list[tuple[RunHandle[list[Any]], int]] = []
        self.trips: list[RunHandle[Any]] = []
        self._stopping = False

    async def trade(self) -> None:
        """Start runs and send signals, each until it is acknowledged, until told to stop."""
        while not self._stopping:
            n = next(self._numbers)
            run_id = f"run-{n}"
            if n % TRIPS == TRIPS - 1:
                self.trips.append(await self._start(trip, run_id))
                continue
            run = await self._start(shop, run_id)
            client = self.clients[n % len(self.clients)]
            for value in range(STEPS):
                await acknowledged(lambda c=client, r=run_id, v=value: c.signal(r, number, v, id=f"s{v}"))
            self.sent.append((run, STEPS))
            await asyncio.sleep(0.01)

    async def _start(self, workflow: Any, run_id: str) -> RunHandle[Any]:
        """Two ask for the same run at once: there is one (I10), which the ledger and the journal show."""
        first, _ = await asyncio.gather(
            *(
                acknowledged(lambda c=client: c.start(workflow, run_id, run_id=run_id))
                for client in (self.clients[0], self.clients[-1])
            )
        )
        return first  # type: ignore[no-any-return]  # of `start`

    async def check(self) -> None:
        """Every acknowledged run ends with what it must (I2, I17); nothing is lost or doubled."""
        async with asyncio.timeout(HEALED_SECONDS):
            for run, _ in self.sent:
                told = await acknowledged(lambda r=run: r.result(HEALED_SECONDS))
                expected = [value for step in range(STEPS) for value in (f"{run.run_id}/{step}", step)]
                assert told == expected, (run.run_id, told)
            for run in self.trips:
                await self._check_failed(run)
        for run, _ in self.sent:
            await self._check_shop(run.run_id)
        for run in self.trips:
            await self._check_trip(run.run_id)
        self._check_ledger()

    async def _check_failed(self, run: RunHandle[Any]) -> None:
        try:
            await acknowledged(lambda: run.result(HEALED_SECONDS))
        except WorkflowFailedError:
            pass  # there are no trains today, or the last attempt to find one died with its worker
        else:
            raise AssertionError(f"{run.run_id} arrived")

    async def _journal(self, run_id: str) -> list[AnyEntry]:
        """Return what is recorded of a run: turns without a gap (I1); who reads it makes no difference to its end (I15)."""
        records = [await client.store.get_run(run_id) for client in self.clients]
        assert len({(one.status, one.result, one.failure, one.closed_at_us) for one in records}) == 1, run_id
        record = records[0]
        rows = await self.clients[0].store.read_journal(record.pk, record.generation)
        assert [row.turn for row in rows] == list(range(1, len(rows) + 1)), run_id
        assert record.generation == 1, run_id
        return [entry for row in rows for entry in decode_turn(row.data).entries]

    async def _check_shop(self, run_id: str) -> None:
        entries = await self._journal(run_id)
        assert sum(isinstance(entry, ActivityCompleted) for entry in entries) == STEPS, run_id
        assert sum(isinstance(entry, SignalReceived) for entry in entries) == STEPS, run_id
        dues = {entry.op: entry.due for entry in entries if isinstance(entry, StartTimer)}
        for entry in entries:
            if isinstance(entry, TimerFired):
                assert entry.at >= dues[entry.op], f"{run_id}: a timer fired early"  # I6
        assert sum(isinstance(entry, TimerFired) for entry in entries) == STEPS, run_id

    async def _check_trip(self, run_id: str) -> None:
        """What was recorded is undone, in reverse order of recording, and no attempt was one too many (I5, I7)."""
        entries = await self._journal(run_id)
        names = {entry.op: entry.name for entry in entries if isinstance(entry, ScheduleActivity)}
        done = [names[entry.op] for entry in entries if isinstance(entry, ActivityCompleted)]
        assert len(done) == 2 * len(BOOKINGS), (run_id, done)
        seen = [step for run, step in ledger if run == run_id]
        assert list(dict.fromkeys(seen)) == [*range(len(BOOKINGS) + 1), *(UNDO + n for n in (2, 1, 0))], seen
        assert seen.count(len(BOOKINGS)) <= DEPARTURES_MAX, seen

    def _check_ledger(self) -> None:
        """At least once each; and once a later step has begun, no earlier one begins again (I3)."""
        latest: dict[str, int] = {}
        for run, step in ledger:
            order = step if step < UNDO else 2 * UNDO - step
            assert order >= latest.get(run, 0), f"{run}: step {step} began again after a later one"
            latest[run] = order
        starts = Counter(ledger)
        for run, _ in self.sent:
            assert all(starts[run.run_id, step] for step in range(STEPS)), run.run_id

    def stop(self) -> None:
        self._stopping = True


async def acknowledged(call: Callable[[], Awaitable[Any]]) -> Any:
    """Repeat a call, as a user would, until the database takes it."""
    while True:
        try:
            return await call()
        except StoreError:
            await asyncio.sleep(0.05)


@asynccontextmanager
async def at_work(*urls: str, workers: int = 2) -> AsyncIterator[World]:
    """A world over the given ways to one schema; leaving the block heals nothing, so heal before, then it is checked."""
    ledger.clear()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(url)) for url in urls]
        world = World(clients)
        for n in range(workers):
            client = clients[n % len(clients)]
            await stack.enter_async_context(running_worker(client, shop, trip, lease_seconds=LEASE_SECONDS))
        trading = asyncio.ensure_future(world.trade())
        try:
            yield world
            world.stop()
            await asyncio.wait_for(trading, HEALED_SECONDS)
            await world.check()
        finally:
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)
