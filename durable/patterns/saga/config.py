"""`SagaConfig`: what holds for all sagas of a manager or orchestrator."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SagaConfig:
    """Durations in the units of their names. ValueError: a value is out of bounds.

    A saga that takes longer than `default_timeout_seconds` fails and is undone; the time counts from when it is first driven.
    `max_retries_per_step` and `retry_delay_seconds` hold for steps that say nothing themselves. Without `enable_compensation` a failed
    saga stays as it is, failed. `persist_state=False`: runs live in a database of this process that nothing outlives. Sagas that ended well
    or were compensated are deleted `cleanup_completed_after_hours` after that, by whatever process uses the manager next.
    """

    default_timeout_seconds: float = 300
    max_retries_per_step: int = 3
    retry_delay_seconds: float = 1.0
    enable_compensation: bool = True
    persist_state: bool = True
    cleanup_completed_after_hours: float = 24

    def __post_init__(self) -> None:
        for name, least in (
            ("default_timeout_seconds", 1),
            ("max_retries_per_step", 0),
            ("retry_delay_seconds", 0),
            ("cleanup_completed_after_hours", 0),
        ):
            value = getattr(self, name)
            kinds = (int,) if name == "max_retries_per_step" else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < 10_000_000:
                raise ValueError(f"{name} is a number >= {least}, not {value!r}")
        for name in ("enable_compensation", "persist_state"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is a bool, not {getattr(self, name)!r}")

    def stored(self) -> dict[str, Any] | None:
        """Return what of it a run keeps in its input, so that whoever drives it obeys; None: all as by default."""
        default = SagaConfig()
        kept = {
            name: getattr(self, name)
            for name in (
                "default_timeout_seconds",
                "max_retries_per_step",
                "retry_delay_seconds",
                "enable_compensation",
            )
            if getattr(self, name) != getattr(default, name)
        }
        return kept or None
