"""Workers and clients at work while something goes wrong, and the check of what came of it.

Each run calls activities one after the other, sleeps, and takes signals. The ledger notes every start of a body, outside of the
database: what it shows must agree with the journals, whatever happened in between.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from durable import Client, Retry, RunHandle, Signal, StoreError, activity, connect, workflow
from durable.journal.events import ActivityCompleted, SignalReceived
from durable.journal.turns import decode_turn
from tests.support.workers import running_worker

STEPS: Final = 4
LEASE_SECONDS: Final = 1.0
HEALED_SECONDS: Final = 60.0  # after the last fault every run must get on within this

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
        await asyncio.sleep(0.02)
        told.append(await number.wait())
    return told


class World:
    """Two workers over one schema, runs and signals on their way."""

    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients
        self._numbers = itertools.count()
        self.sent: list[tuple[RunHandle[list[Any]], int]] = []
        self._stopping = False

    async def trade(self) -> None:
        """Start runs and send signals, each until it is acknowledged, until told to stop."""
        while not self._stopping:
            n = next(self._numbers)
            client = self.clients[n % len(self.clients)]
            run_id = f"run-{n}"
            run = await acknowledged(lambda c=client, r=run_id: c.start(shop, r, run_id=r))
            for value in range(STEPS):
                await acknowledged(lambda c=client, r=run_id, v=value: c.signal(r, number, v, id=f"s{v}"))
            self.sent.append((run, STEPS))
            await asyncio.sleep(0.01)

    async def check(self) -> None:
        """Every acknowledged run ends with what it must; nothing is lost or doubled."""
        async with asyncio.timeout(HEALED_SECONDS):
            for run, _ in self.sent:
                told = await acknowledged(lambda r=run: r.result(HEALED_SECONDS))
                expected = [value for step in range(STEPS) for value in (f"{run.run_id}/{step}", step)]
                assert told == expected, (run.run_id, told)
        for run, _ in self.sent:
            await self._check_journal(run.run_id)
        self._check_ledger()

    async def _check_journal(self, run_id: str) -> None:
        store = self.clients[0].store
        record = await store.get_run(run_id)
        rows = await store.read_journal(record.pk, record.generation)
        assert [row.turn for row in rows] == list(range(1, len(rows) + 1)), run_id
        entries = [entry for row in rows for entry in decode_turn(row.data).entries]
        assert sum(isinstance(entry, ActivityCompleted) for entry in entries) == STEPS, run_id
        assert sum(isinstance(entry, SignalReceived) for entry in entries) == STEPS, run_id

    def _check_ledger(self) -> None:
        """At least once each; and once a later step has begun, no earlier one begins again (I3)."""
        latest: dict[str, int] = {}
        for run, step in ledger:
            assert step >= latest.get(run, 0), f"{run}: step {step} began again after step {latest[run]}"
            latest[run] = max(step, latest.get(run, 0))
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
            await stack.enter_async_context(running_worker(client, shop, lease_seconds=LEASE_SECONDS))
        trading = asyncio.ensure_future(world.trade())
        try:
            yield world
            world.stop()
            await asyncio.wait_for(trading, HEALED_SECONDS)
            await world.check()
        finally:
            trading.cancel()
            await asyncio.gather(trading, return_exceptions=True)
