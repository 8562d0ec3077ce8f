"""Who sets the clock of a test forward: whenever nothing can happen but by time, and somebody waits for it to.

Theory. Time is skipped only while the test waits for a run's end or for time itself, so that whatever it does in between (a
signal, a look) happens before the next timer. It is skipped to the very next thing that is due anywhere, never past
one: a timer or deadline in the store, a retry, a limit of an attempt. Code of activities that runs holds it up; one that a mock
lets sleep does not. All that is ready is claimed, and all messages are taken in, before a worker counts as at rest.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from durable.client import Client
from durable.errors import DurableError
from durable.seams import pause
from durable.testing.clock import SkippingClock

EAGER_LOOKS: Final = 100
IDLE_SECONDS_MIN: Final = 0.001
IDLE_SECONDS_MAX: Final = 0.02
TROUBLE_SECONDS: Final = 0.05
log = logging.getLogger("durable.testing")


class Skipper:
    """Skips the time of one client's workers. After `eager_looks` turns of the loop it looks less and less often, down to every `idle_seconds`."""

    def __init__(
        self,
        client: Client,
        clock: SkippingClock,
        *,
        eager_looks: int = EAGER_LOOKS,
        idle_seconds: float = IDLE_SECONDS_MAX,
    ) -> None:
        self._client = client
        self._clock = clock
        self._eager_looks = eager_looks
        self._idle_seconds = idle_seconds
        self._sleeping_tests = 0
        self._sleeping_mocks = 0

    async def sleep(self, duration: float) -> None:
        """Let `duration` seconds pass for the test, and everything in them happen."""
        self._sleeping_tests += 1
        try:
            await self._until_elapsed(duration)
        finally:
            self._sleeping_tests -= 1

    async def sleep_in_mock(self, duration: float) -> None:
        """Let `duration` seconds pass for an activity whose code does nothing else."""
        self._sleeping_mocks += 1
        try:
            await self._until_elapsed(duration)
        finally:
            self._sleeping_mocks -= 1

    async def _until_elapsed(self, duration: float) -> None:
        reached: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(duration, _reach, reached)
        try:
            await reached
        finally:
            timer.cancel()

    async def run(self) -> None:
        """Skip whenever nothing else can happen, until cancelled."""
        looks = 0
        while True:
            try:
                has_skipped = await self._skip()
            except DurableError as error:
                log.warning("no time is skipped: %s", error)
                await pause(TROUBLE_SECONDS)
                continue
            looks = 0 if has_skipped else looks + 1
            late = looks - self._eager_looks
            await pause(0 if late < 0 else min(IDLE_SECONDS_MIN * 2 ** min(late, 20), self._idle_seconds))

    async def _skip(self) -> bool:
        """Skip to what is due next, if that is the next thing to happen; return whether it did."""
        if not self._is_time():
            return False
        for worker in self._client.workers_here:
            await worker.look()
        due = await self._next_due()
        if due is None or not self._is_time():
            return False
        self._clock.skip_to(due)
        await self._next_due()
        return True

    def _is_time(self) -> bool:
        workers = self._client.workers_here
        return (
            (self._client.watch.has_waiters or self._sleeping_tests > 0)
            and sum(worker.running for worker in workers) == self._sleeping_mocks
            and all(worker.is_at_rest for worker in workers)
        )

    async def _next_due(self) -> int | None:
        """Wake what is due now, in the store, and return the instant of what is due next; None: nothing ever."""
        store, now_us = self._client.store, self._clock.now_us()
        outcomes = (await store.wake_due_runs(now_us), await store.close_overdue_runs(now_us))
        if any(outcome.woken for outcome in outcomes):
            return None
        dues = (*(outcome.next_due_us for outcome in outcomes), self._clock.next_us())
        return min((due for due in dues if due is not None), default=None)


def _reach(reached: asyncio.Future[None]) -> None:
    if not reached.done():
        reached.set_result(None)
