"""Due timers and passed deadlines: whoever is up fires them, for everybody.

Sleeps until the next known due time, and never longer than `POLL_SECONDS`, since another process may have stored
a nearer one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from durable.errors import StoreError
from durable.seams import Clock, pause
from durable.store.contract import Store

POLL_SECONDS: Final = 0.5
log = logging.getLogger("durable.scheduler")


async def fire_due(store: Store, clock: Clock, on_woken: Callable[[], None]) -> None:
    """Wake due runs and close overdue ones, until cancelled. A database in trouble is tried again."""
    while True:
        wait = POLL_SECONDS
        try:
            now = clock.now_us()
            due = await store.wake_due_runs(now)
            overdue = await store.close_overdue_runs(now)
            if due.woken or overdue.woken:
                on_woken()
            nexts = [at for at in (due.next_due_us, overdue.next_due_us) if at is not None]
            if nexts:
                wait = min(wait, max(min(nexts) - clock.now_us(), 0) / 1_000_000)
        except StoreError as error:
            log.warning("due timers wait for the database: %s", error)
        await pause(max(wait, 0.001))
