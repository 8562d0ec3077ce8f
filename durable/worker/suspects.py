"""Suspects: runs whose worker died while it held them. Driven one at a time, each recorded before, so that poison is proven (P14).

A process that ends takes all its runs along, and nobody knows which one did it. So each of them is driven alone once:
the store is told which, nothing else is driven here until its turn is durable, and only if the process ends in that time does it
count: as a crash while the run's code runs, and as a sixteenth of one before and after, when something else has ended the process, most
likely. A run that gets on is cleared. One that only waits for an activity which ran when the worker died is *adjourned*:
it may be its outcome that is deadly, so it stays a suspect and is driven alone again when there is something to drive.

Activities of others run on meanwhile: a trial takes milliseconds, and it takes `CRASHES_MAX` in a row to convict.
Knows nothing of how turns come about: the driver drives.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from durable.definitions import WorkflowDefinition
from durable.errors import LeaseLostError, StoreError
from durable.scheduler.wakeups import HINTED_SECONDS, Wakeups
from durable.seams import Clock, pause
from durable.store.contract import Store
from durable.store.records import Trial
from durable.worker.live import LiveRun, Phase

HOLD_SECONDS_MAX: Final = 0.05  # trials in a row, before the others get their turn
LOOK_SECONDS: Final = 0.5
TROUBLE_SECONDS: Final = 0.25
log = logging.getLogger("durable.worker")


class SoleDriver(Protocol):
    """What is asked of the driver."""

    is_trying: bool  # whether it drives nothing of its own accord

    def drive_alone(self, run: LiveRun) -> bool: ...

    def hand_over(self) -> None: ...

    def schedule_pump(self) -> None: ...


class Suspects:
    """The suspects of one worker that have something to be driven, and the loop that does it."""

    def __init__(
        self,
        store: Store,
        driver: SoleDriver,
        clock: Clock,
        *,
        worker_id: Callable[[], int],
        on_lost: Callable[[int], None],
        code_of: Callable[[WorkflowDefinition], str],
    ) -> None:
        self._store = store
        self._driver = driver
        self._clock = clock
        self._worker_id = worker_id
        self._on_lost = on_lost
        self._code_of = code_of
        self._waiting: deque[LiveRun] = deque()
        self._wakeups = Wakeups()
        self._passed: list[tuple[int, int]] = []
        self._adjourned: list[tuple[int, int]] = []

    @property
    def has_work(self) -> bool:
        """Whether some suspect waits to be driven."""
        return bool(self._waiting)

    def add(self, run: LiveRun) -> None:
        """A suspect has something to be driven."""
        if run not in self._waiting:
            self._waiting.append(run)
            self._wakeups.hint()

    def settled(self) -> None:
        """What was on trial is no longer on its way into the database."""
        self._wakeups.hint()

    async def run(self) -> None:
        """Try suspects as they come, until cancelled."""
        while True:
            is_left = self._waiting or self._passed or self._adjourned  # from a life before
            await self._wakeups.wait(LOOK_SECONDS if is_left else HINTED_SECONDS)
            while self._waiting or self._passed or self._adjourned:
                worker_id = self._worker_id()
                try:
                    await self._try_some(worker_id)
                except LeaseLostError:
                    self._on_lost(worker_id)
                    break
                except StoreError as error:
                    log.warning("%d suspects wait for the database: %s", len(self._waiting), error)
                    await pause(TROUBLE_SECONDS)
                finally:
                    self._driver.is_trying = False
                    self._driver.schedule_pump()
                await pause(0)

    async def _try_some(self, worker_id: int) -> None:
        """Drive suspects, one after the other, for a short while in which nobody else is driven."""
        self._driver.is_trying = True
        deadline = self._clock.monotonic() + HOLD_SECONDS_MAX
        while self._waiting and self._clock.monotonic() < deadline:
            run = self._waiting[0]
            if run.phase is Phase.IDLE and await self._tell(worker_id, run) and run.phase is Phase.IDLE:
                await self._drive(run)
            if self._waiting and self._waiting[0] is run:
                self._waiting.popleft()
        await self._tell(worker_id, None)

    async def _drive(self, run: LiveRun) -> None:
        key = (run.pk, run.claim_no)
        await self._note(key, is_running=True)
        try:
            adds_turn = run.phase is not Phase.GONE and self._driver.drive_alone(run)
        finally:
            await self._note(key, is_running=False)
        self._driver.hand_over()
        while run.phase is Phase.COMMITTING:
            await self._wakeups.wait(LOOK_SECONDS)
            self._driver.hand_over()  # what a release or a mark has added since: the pump, which would, stands still
        is_through = run.phase is Phase.IDLE and (adds_turn or not run.has_work)
        if is_through or run.phase is Phase.GONE:
            run.is_suspect = False
            self._passed.append(key)
        else:
            self._adjourned.append(key)

    async def _note(self, key: tuple[int, int], *, is_running: bool) -> None:
        """Note for whoever takes us over whether the suspect's code runs. If that cannot be, it is blamed for more, or for less."""
        try:
            await self._store.note_code(self._worker_id(), key, is_running=is_running)
        except StoreError as error:
            log.warning("a trial could not be noted: %s", error)

    async def _tell(self, worker_id: int, run: LiveRun | None) -> bool:
        """Record what is done next and what came of the last; what could not be recorded is told again."""
        trial = Trial(
            suspect=None if run is None else (run.pk, run.claim_no),
            code="" if run is None else self._code_of(run.definition),
            passed=tuple(self._passed),
            adjourned=tuple(self._adjourned),
        )
        if trial.suspect is None and not trial.passed and not trial.adjourned:
            return False
        is_ours = await self._store.try_suspect(worker_id, trial)
        self._passed, self._adjourned = [], []
        return is_ours
