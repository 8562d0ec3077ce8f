"""Parked runs get another chance from other code: each fingerprint tries each of them once, by itself (P13).

Whoever deploys a repair need not resume anything. What parks again stays parked, until yet other code comes or a person
resumes it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from durable.errors import LeaseLostError, StoreError
from durable.seams import pause
from durable.store.contract import Store
from durable.store.records import Claim

LOOK_SECONDS: Final = 2.0  # others may park runs at any time that this code can drive
BATCH_MAX: Final = 20
log = logging.getLogger("durable.worker")


async def retry_parked(
    store: Store,
    *,
    task_queues: Sequence[str],
    worker_id: Callable[[], int],
    room: Callable[[], int],
    codes: Callable[[], Sequence[tuple[str, int, str]]],
    adopt: Callable[[Claim], Awaitable[None]],
) -> None:
    """Claim parked runs that this code has not met, until cancelled. `room` is how many may be claimed now."""
    while True:
        claims: list[Claim] = []
        try:
            for task_queue in task_queues:
                limit = min(room(), BATCH_MAX) - len(claims)
                if limit > 0:
                    claims += await store.claim_parked_runs(
                        worker_id(), limit=limit, task_queue=task_queue, codes=codes()
                    )
        except LeaseLostError:
            pass  # the heartbeat and the claims tell of it, too
        except StoreError as error:
            log.warning("parked runs wait for the database: %s", error)
        for claim in claims:
            log.info("run %r was parked; this code has not met it yet and tries it", claim.run_id)
            try:
                await adopt(claim)
            except StoreError as error:  # it is this worker's, which will see that
                log.warning("run %r waits for the database: %s", claim.run_id, error)
        await pause(0 if len(claims) == BATCH_MAX else LOOK_SECONDS)
