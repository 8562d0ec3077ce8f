"""Who waits for which run to end, and how they are told: announced by a worker of this process, else polled.

One poller serves all waiters of a client. Knows nothing of results' types.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from durable.errors import PlatformFault, RunNotFoundError, StoreError
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
        self._waiting: dict[Key, list[asyncio.Future[RunRecord]]] = {}
        self._faults: dict[int, PlatformFault] = {}
        self._poller: asyncio.Task[None] | None = None
        self._hint = asyncio.Event()
        self._to_look: list[Key] = []  # at what was just asked for
        self._looking: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._drivers: list[Callable[[int], bool]] = []
        self._listening: dict[int, list[Callable[[], None]]] = {}
        self._pause = HINT_SECONDS_MIN

    def add_driver(self, drives: Callable[[int], bool]) -> Callable[[], None]:
        """Register a worker of this process that announces the runs for which `drives(pk)`; return the undoing.

        Hints do not make us look for those; only the slow poll does.
        """
        self._drivers.append(drives)
        return lambda: self._drivers.remove(drives)

    async def ended(self, pk: int, generation: int, *, look_alone: bool = False) -> RunRecord:
        """Return the record once the run is closed or parked; a workflow-level retry is followed.

        Raises `RunNotFoundError`, by its key, if retention deletes the run.

        `look_alone` looks before it suspends for the first time: an end that stands is found even without any patience.
        """
        while True:
            key = (pk, generation)
            waiter: asyncio.Future[RunRecord] = asyncio.get_running_loop().create_future()
            # Before the look: an announcement in between must find it.
            self._waiting.setdefault(key, []).append(waiter)
            try:
                if self._poller is None or self._poller.done():
                    self._start_poller()
                if not self.is_driven_here(pk):
                    if look_alone:
                        self._tell_all(await self._store.read_ended([key]))
                        if not waiter.done():
                            self._give_up(await self._store.find_gone([pk]))
                    else:
                        self._look_soon(key)
                record = await waiter
            finally:
                self._forget(key, waiter)
            if record.status is not RunStatus.CONTINUED:
                return record
            generation = record.generation + 1

    def _forget(self, key: Key, waiter: asyncio.Future[RunRecord]) -> None:
        waiters = self._waiting.get(key)
        if waiters is not None and waiter in waiters:
            waiters.remove(waiter)
            if not waiters:
                del self._waiting[key]

    def _look_soon(self, key: Key) -> None:
        """Look once; all who ask within one turn of the loop share a statement."""
        self._to_look.append(key)
        if self._looking is None:
            self._looking = spawn(self._look_together(), name="durable outcome")

    async def _look_together(self) -> None:
        keys, self._to_look, self._looking = self._to_look, [], None
        try:
            self._tell_all(await self._store.read_ended(keys))
        except StoreError as error:
            for key in keys:
                for waiter in self._waiting.get(key, ()):
                    if not waiter.done():
                        waiter.set_exception(error)

    def _tell_all(self, ended: Iterable[RunRecord]) -> None:
        for record in ended:
            self._tell(record)

    def _tell(self, record: RunRecord) -> None:
        waiters = self._waiting.pop((record.pk, record.generation), None)
        if waiters is not None:
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(record)

    def announce(self, record: RunRecord, fault: PlatformFault | None = None) -> None:
        """Tell waiters that a run ended, without a look at the database: a worker of this process committed it."""
        if fault is not None:
            self._faults[record.pk] = fault
        else:
            self._faults.pop(record.pk, None)
        self._tell(record)

    def listen(self, pk: int, wake: Callable[[], None]) -> Callable[[], None]:
        """Call `wake` when a worker of this process has recorded answers of that run to its callers; return the undoing."""
        self._listening.setdefault(pk, []).append(wake)

        def forget() -> None:
            self._listening[pk].remove(wake)
            if not self._listening[pk]:
                del self._listening[pk]

        return forget

    def has_answered(self, pk: int) -> None:
        """Tell who listens that there are answers of the run, and durable."""
        for wake in self._listening.get(pk, ()):
            wake()

    def look(self) -> None:
        """Look at the store soon: a run that was driven here was closed by somebody else."""
        self._hint.set()

    def is_awaited(self, pk: int, generation: int) -> bool:
        """Whether somebody in this process waits for that run's end."""
        return (pk, generation) in self._waiting

    @property
    def has_waiters(self) -> bool:
        """Whether somebody in this process waits for the end of any run."""
        return bool(self._waiting)

    def fault(self, pk: int) -> PlatformFault | None:
        """Return the fault with which a worker of this process parked the run."""
        return self._faults.get(pk)

    def _start_poller(self) -> None:
        if self._unsubscribe is None:
            self._unsubscribe = self._store.subscribe(None, self._hint.set)
        self._poller = spawn(self._poll(), name="durable outcomes")

    async def _poll(self) -> None:
        looked_at = self._monotonic()  # for runs that are gone: hints do not tell of those
        while self._waiting:
            hinted = await self._hinted()
            keys = [key for key in self._waiting if not (hinted and self.is_driven_here(key[0]))]
            if not keys:
                continue
            since = self._monotonic()
            try:
                ended = await self._store.read_ended(keys)
                gone: Sequence[int] = ()
                if since - looked_at >= POLL_SECONDS:
                    looked_at = since
                    gone = await self._store.find_gone([pk for pk, _ in keys])
            except StoreError as error:
                self._fail(error)
                return
            self._pause = max(HINT_SECONDS_MIN, min((self._monotonic() - since) * LOOK_SHARE, POLL_SECONDS))
            self._tell_all(ended)
            self._give_up(gone)

    def _give_up(self, gone: Sequence[int]) -> None:
        """Tell whoever waits for runs that were deleted that they will never end."""
        for key, waiters in list(self._waiting.items()) if gone else ():
            for waiter in waiters if key[0] in gone else ():
                if not waiter.done():
                    waiter.set_exception(RunNotFoundError(f"key {key[0]}"))

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

    def is_driven_here(self, pk: int) -> bool:
        """Whether a worker of this process drives the run, and so announces what becomes of it."""
        for drives in self._drivers:  # noqa: SIM110  # any() would make a generator for each of a thousand waiters
            if drives(pk):
                return True
        return False

    def _fail(self, error: StoreError) -> None:
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(error)

    async def close(self) -> None:
        """Stop polling; whoever still waits is cancelled."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        if self._looking is not None:
            self._looking.cancel()
        for waiters in list(self._waiting.values()):
            for waiter in waiters:
                waiter.cancel()
