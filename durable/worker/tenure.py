"""The incarnations of one worker's life, one after another: registered, perhaps declared dead, replaced by the next (P8).

What is told of one incarnation concerns no other: whoever reports a loss says whose it is. Knows nothing of runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from durable.worker.incarnation import Incarnation
from durable.worker.serving import Settings

log = logging.getLogger("durable.worker")


class Tenure:
    """Which incarnation a worker is now, and whether that was lost. `on_loss` is called when it is; `on_hint` at the store's hints."""

    incarnation: Incarnation  # from the first `begin` on

    def __init__(
        self,
        settings: Settings,
        *,
        is_hopeless: Callable[[], bool],
        on_loss: Callable[[], None],
        on_hint: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = settings.client.store
        self._is_hopeless = is_hopeless
        self._on_loss = on_loss
        self._on_hint = on_hint
        self._unsubscribe: Callable[[], None] = lambda: None
        self._is_lost = False

    async def begin(self) -> None:
        """Register the next incarnation; from here on it beats, and hears of what changes."""
        settings = self._settings
        self.incarnation = await Incarnation.begin(
            self._store,
            settings.info(),
            clock=settings.client.clock,
            threads=settings.threads,
            lease_seconds=settings.lease_seconds,
            on_lost=self.lose,
            is_hopeless=self._is_hopeless,
        )
        try:
            self._unsubscribe = self._store.subscribe(self.worker_id(), self._on_hint)
        except BaseException:
            self.incarnation.end()  # one that nobody drives must not look alive
            raise
        self._is_lost = False
        queues = ", ".join(map(repr, settings.task_queues))
        log.info("worker %d (%s) serves queue %s", self.worker_id(), settings.name, queues)

    def end(self) -> None:
        """Beat no more, and hear nothing."""
        self._unsubscribe()
        self.incarnation.end()

    def present(self) -> Incarnation:
        """Return the incarnation that is, or was the last."""
        return self.incarnation

    def worker_id(self) -> int:
        """Return its id."""
        return self.incarnation.worker_id

    def is_lost(self) -> bool:
        """Return whether it was declared dead, or has given itself up, and the next does not stand yet."""
        return self._is_lost

    def lose(self, worker_id: int) -> None:
        """This incarnation was declared dead. News of an earlier one are late, and mean nothing."""
        if worker_id == self.worker_id():
            self._is_lost = True
            self._on_loss()
