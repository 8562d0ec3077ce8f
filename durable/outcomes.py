"""Who waits for which run to end, and how they are told: announced by a worker of this process, else polled.

One poller serves all waiters of a client. Knows nothing of results' types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from durable.errors import PlatformFault, StoreError
from durable.journal.lifecycle import RunStatus
from durable.seams import Clock, pause, spawn
from durable.store.contract import Store
from durable.store.records import RunRecord

POLL_SECONDS: Final = 0.5  # behind the store's hints, in case one is lost
HINT_SECONDS_MIN: Final = 0.005  # hints closer together than this are looked at once
LOOK_SHARE: Final = 10  # a look that took long is followed by a pause this many times as long

Key = tuple[int, int]  # (pk, generation)


class OutcomeWatch:
    """The waiters of one client. `close()` cancels those that are left."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._monotonic = clock.monotonic
        self._waiting: dict[Key, asyncio.Future[RunRecord]] = {}
        self._faults: dict[int, PlatformFault] = {}
        self._poller: asyncio.Task[None] | None = None
        self._hint = asyncio.Event()
        self._asking: tuple[list[Key], asyncio.Task[list[RunRecord]]] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._drivers: list[Callable[[int], bool]] = []
        self._pause = HINT_SECONDS_MIN

    def add_driver(self, drives: Callable[[int], bool]) -> Callable[[], None]:
        """Register a worker of this process that announces the runs for which `drives(pk)`; return the undoing.

        Hints do not make us look for those; only the slow poll does.
        """
        self._drivers.append(drives)
        return lambda: self._drivers.remove(drives)

    async def ended(self, pk: int, generation: int, *, look_alone: bool = False) -> RunRecord:
        """Return the record once the run is closed or parked; a workflow-level retry is followed.

        `look_alone` looks before it suspends for the first time: an end that stands is found even without any patience.
        """
        while True:
            waiter = self._waiter(
                (pk, generation)
            )  # before the look: an announcement in between must find it
            if not waiter.done() and not self._is_driven_here(pk):
                key = (pk, generation)
                for record in await (self._store.read_ended([key]) if look_alone else self._read(key)):
                    if not waiter.done():
                        waiter.set_result(record)
            record = await asyncio.shield(waiter)
            if record.status is not RunStatus.CONTINUED:
                return record
            generation = record.generation + 1

    async def _read(self, key: Key) -> list[RunRecord]:
        """Look once; all who ask within one turn of the loop share a statement."""
        if self._asking is None:
            keys: list[Key] = []
            self._asking = keys, spawn(self._read_together(keys), name="durable outcome")
        keys, reading = self._asking
        keys.append(key)
        return [record for record in await asyncio.shield(reading) if (record.pk, record.generation) == key]

    async def _read_together(self, keys: list[Key]) -> list[RunRecord]:
        self._asking = None
        return await self._store.read_ended(keys)

    def _waiter(self, key: Key) -> asyncio.Future[RunRecord]:
        future = self._waiting.get(key)
        if future is None:
            future = self._waiting[key] = asyncio.get_running_loop().create_future()
            future.add_done_callback(lambda _: self._waiting.pop(key, None))
        self._ensure_poller()
        return future

    def announce(self, record: RunRecord, fault: PlatformFault | None = None) -> None:
        """Tell waiters that a run ended, without a look at the database: a worker of this process committed it."""
        if fault is not None:
            self._faults[record.pk] = fault
        else:
            self._faults.pop(record.pk, None)
        future = self._waiting.get((record.pk, record.generation))
        if future is not None and not future.done():
            future.set_result(record)

    def look(self) -> None:
        """Look at the store soon: a run that was driven here was closed by somebody else."""
        self._hint.set()

    def is_awaited(self, pk: int, generation: int) -> bool:
        """Whether somebody in this process waits for that run's end."""
        return (pk, generation) in self._waiting

    def fault(self, pk: int) -> PlatformFault | None:
        """Return the fault with which a worker of this process parked the run."""
        return self._faults.get(pk)

    def _ensure_poller(self) -> None:
        if self._poller is None or self._poller.done():
            if self._unsubscribe is None:
                self._unsubscribe = self._store.subscribe(None, self._hint.set)
            self._poller = spawn(self._poll(), name="durable outcomes")

    async def _poll(self) -> None:
        while self._waiting:
            hinted = await self._hinted()
            keys = [key for key in self._waiting if not (hinted and self._is_driven_here(key[0]))]
            if not keys:
                continue
            since = self._monotonic()
            try:
                ended = await self._store.read_ended(keys)
            except StoreError as error:
                self._fail(error)
                return
            self._pause = max(HINT_SECONDS_MIN, min((self._monotonic() - since) * LOOK_SHARE, POLL_SECONDS))
            for record in ended:
                waiter = self._waiting.get((record.pk, record.generation))
                if waiter is not None and not waiter.done():
                    waiter.set_result(record)

    async def _hinted(self) -> bool:
        """Wait for a hint, at most `POLL_SECONDS`; return whether there was one."""
        self._hint.clear()
        try:
            async with asyncio.timeout(POLL_SECONDS):
                await self._hint.wait()
        except TimeoutError:
            return False
        await pause(self._pause)
        return True

    def _is_driven_here(self, pk: int) -> bool:
        return any(drives(pk) for drives in self._drivers)

    def _fail(self, error: StoreError) -> None:
        for future in list(self._waiting.values()):
            if not future.done():
                future.set_exception(error)

    async def close(self) -> None:
        """Stop polling; whoever still waits is cancelled."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for future in list(self._waiting.values()):
            future.cancel()
