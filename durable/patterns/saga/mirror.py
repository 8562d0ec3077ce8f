"""The mirror that an application may keep of its sagas: told what the journal says already, and never asked.

It is told by the process that executes a saga, or waits for it, when it begins and when it has ended; of an `AbstractSaga` that was
left to others by `start` or `enqueue`, by whoever executes it under its id later. What the mirror raises is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Final, Protocol, runtime_checkable

log: Final = logging.getLogger("durable.saga")


@runtime_checkable
class SagaStoreProtocol(Protocol):
    """Where sagas are mirrored. `data` is `{"version": ..., "completed_steps": [...], "results": {...}}`."""

    async def save(self, saga_id: str, state: str, data: dict[str, Any]) -> None: ...

    async def load(self, saga_id: str) -> Any: ...

    async def delete(self, saga_id: str) -> None: ...


# Set by whoever configures an application; it holds inside of that.
saga_mirror: Final[ContextVar[SagaStoreProtocol | None]] = ContextVar("durable_saga_mirror", default=None)


async def tell_mirror(
    saga_id: str, state: str, *, version: int, completed_steps: Iterable[str], results: Mapping[str, Any]
) -> None:
    """Tell the mirror, if there is one, where a saga is."""
    mirror = saga_mirror.get()
    if mirror is None:
        return
    data = {"version": version, "completed_steps": list(completed_steps), "results": dict(results)}
    try:
        await mirror.save(saga_id, str(state), data)
    except Exception:
        log.exception("the mirror of saga %r does not know that it is %s; its journal does", saga_id, state)
