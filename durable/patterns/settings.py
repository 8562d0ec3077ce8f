"""What an `Application` configures for the patterns used inside it: context variables, so that several can live in one process."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from durable.patterns.bulk_config import BulkOperationConfig
    from durable.patterns.state_records import StatePersistenceProtocol

bulk_config: Final[ContextVar[BulkOperationConfig | None]] = ContextVar("durable_bulk_config", default=None)
state_persistence: Final[ContextVar[StatePersistenceProtocol | None]] = ContextVar(
    "durable_state_persistence", default=None
)
