"""When to look again: at a hint of the store, else after a bounded time. The one place that waits for both."""

from __future__ import annotations

import asyncio
from typing import Final

HINTED_SECONDS: Final = 5.0  # between looks for what this very process hints at: such a hint is never lost


class Wakeups:
    """A latch that hints set and one loop waits on."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def hint(self) -> None:
        """Something may have changed."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a hint, at most `seconds`; return whether there was one. Hints given meanwhile count once."""
        if not self._event.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._event.wait()
            except TimeoutError:
                return False
        self._event.clear()
        return True
