"""Runs whose turn was refused, or of an unknown fate: read again from the store, which says what is true of them (P6, P16)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from durable.client import Client
from durable.errors import LeaseLostError, StoreError
from durable.scheduler.wakeups import HINTED_SECONDS, Wakeups
from durable.seams import pause
from durable.worker.children import claims_with_outcomes
from durable.worker.driving import Driver
from durable.worker.live import LiveRun, Phase

TROUBLE_SECONDS: Final = 0.5
log = logging.getLogger("durable.worker")


class Reloads:
    """The runs of one worker that wait to be read again, and the loop that does it."""

    def __init__(
        self,
        client: Client,
        *,
        worker_id: Callable[[], int],
        is_lost: Callable[[], bool],
        on_lost: Callable[[int], None],
    ) -> None:
        self._client = client
        self._worker_id = worker_id
        self._is_lost = is_lost
        self._on_lost = on_lost
        self._waiting: list[LiveRun] = []
        self._wakeups = Wakeups()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, run: LiveRun) -> None:
        """Read this run soon."""
        self._waiting.append(run)
        self._wakeups.hint()

    async def run(self, driver: Driver) -> None:
        """Read runs as they come, until cancelled."""
        while True:
            await self._wakeups.wait(HINTED_SECONDS)
            while self._waiting and not self._is_lost():
                # One that was lost meanwhile may have been claimed anew, and be waiting here a second time.
                runs = [run for run in self._waiting if run.phase is Phase.LOADING]
                self._waiting = []
                worker_id = self._worker_id()
                try:
                    claims = await self._client.store.read_claims(worker_id, [run.pk for run in runs])
                    claims = await claims_with_outcomes(self._client, claims)
                except StoreError as error:
                    log.warning("%d runs wait for the database: %s", len(runs), error)
                    self._waiting.extend(runs)
                    await pause(TROUBLE_SECONDS)
                    continue
                except LeaseLostError:
                    self._on_lost(worker_id)
                    break
                found = {claim.pk: claim for claim in claims}
                for run in runs:
                    claim = found.get(run.pk)
                    if claim is None or claim.claim_no != run.claim_no:
                        driver.lose(run)
                    else:
                        driver.reload(run, claim)
