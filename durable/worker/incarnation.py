"""One life of a worker: its id, its beat, and how it learns that it is over.

The beat runs on a thread of its own with its own connection, so that a busy loop does not lose the lease; it beats
only until the watchdog has given the loop up (P11), so that a stuck loop does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from durable.errors import StoreError
from durable.seams import Clock, Threads
from durable.store.contract import Store
from durable.store.records import WorkerInfo

FRESH_SHARE: Final = 2 / 3  # of the lease: a fence checked longer ago is checked again (P11)
log = logging.getLogger("durable.worker")


class Incarnation:
    """A registered worker. `on_lost` is called on the loop, with its id, when it was declared dead.

    `is_hopeless` tells whether its loop stands still for good.
    """

    def __init__(
        self,
        store: Store,
        worker_id: int,
        *,
        clock: Clock,
        threads: Threads,
        lease_seconds: float,
        began_at: float,
        on_lost: Callable[[int], None],
        is_hopeless: Callable[[], bool],
    ) -> None:
        self.worker_id = worker_id
        self.lease_seconds = lease_seconds
        self._store = store
        self._clock = clock
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._is_hopeless = is_hopeless
        self._beat_at = began_at  # when (monotonic) the last beat that was written set out
        self._heart = threads.repeat(self._beat, lease_seconds / 4, name=f"durable heartbeat {worker_id}")

    @classmethod
    async def begin(
        cls,
        store: Store,
        info: WorkerInfo,
        *,
        clock: Clock,
        threads: Threads,
        lease_seconds: float,
        on_lost: Callable[[int], None],
        is_hopeless: Callable[[], bool],
    ) -> Incarnation:
        """Register a new incarnation and start its heartbeat."""
        began_at = clock.monotonic()
        worker_id = await store.register_worker(info)
        return cls(
            store,
            worker_id,
            clock=clock,
            threads=threads,
            lease_seconds=lease_seconds,
            began_at=began_at,
            on_lost=on_lost,
            is_hopeless=is_hopeless,
        )

    def proven_until(self, since: float) -> float:
        """Return until when (monotonic) a fence that was checked at `since` proves the lease (P11).

        It says that nobody had taken the lease until then; whoever takes it waits for a lease since the last beat.
        """
        return min(since, self._beat_at) + self.lease_seconds * FRESH_SHARE

    def is_recent(self, since: float) -> bool:
        """Whether a fence that was checked at `since` (monotonic) still proves the lease."""
        return self._clock.monotonic() < self.proven_until(since)

    def is_fresh(self, since: float) -> bool:
        """As `is_recent`; if it is not, the database is asked whether this worker is alive. `StoreError`: it does not say."""
        return self.is_recent(since) or self._renew()

    def end(self) -> None:
        """Stop beating."""
        self._heart.stop()

    def _beat(self) -> bool:
        """On the heartbeat thread: renew; return whether to go on."""
        if self._loop.is_closed():
            return False  # nobody drives the runs any more: a beat would only keep them from others
        if self._is_hopeless():
            return True
        try:
            alive = self._renew()
        except StoreError as error:
            log.warning("heartbeat of worker %d: %s", self.worker_id, error)
            return True
        if not alive:
            try:
                self._loop.call_soon_threadsafe(self._on_lost, self.worker_id)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                pass
            return False
        return True

    def _renew(self) -> bool:
        at = self._clock.monotonic()
        alive = self._store.beat(self.worker_id)
        if alive:
            self._beat_at = at
        return alive
