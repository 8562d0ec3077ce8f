"""Dead workers: their runs go back to whoever lives.

A worker that died on this host is noticed by its lock within `LOOK_SECONDS`; one that hangs, by its unmoved beat within a
lease (P10).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from durable.errors import StoreError
from durable.seams import pause
from durable.store.contract import Store
from durable.store.records import Rescue

LOOK_SECONDS: Final = 0.25
log = logging.getLogger("durable.scheduler")


async def rescue_dead(
    store: Store,
    *,
    lease_seconds: float,
    observer: Callable[[], int],
    on_rescued: Callable[[Sequence[Rescue]], None],
) -> None:
    """Take over dead workers until cancelled. A database in trouble is tried again."""
    while True:
        try:
            rescued = await store.rescue_dead_workers(lease_seconds, observer=observer())
            if rescued:
                on_rescued(rescued)
        except StoreError as error:
            log.warning("the look for dead workers waits for the database: %s", error)
        await pause(min(LOOK_SECONDS, lease_seconds / 4))
