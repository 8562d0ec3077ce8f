"""`SagaConfig`: what holds for all sagas of a manager or orchestrator."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, Final

from durable.patterns.policies import as_seconds

_SECOND: Final = timedelta(seconds=1)
_HOUR: Final = timedelta(hours=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SagaConfig:
    """Durations are numbers in the units of their names, or timedeltas, which become such. ValueError: a value is out of bounds.

    A saga that takes longer than `default_timeout_seconds` fails and is undone; the time counts from when it is first driven.
    `max_retries_per_step` and `retry_delay_seconds` hold for steps that say nothing themselves. Without `enable_compensation` a failed
    saga stays as it is, failed. `persist_state=False`: runs live in a database of this process that nothing outlives. Sagas that ended well
    or were compensated are deleted `cleanup_completed_after_hours` after that, by workers that serve them and by whatever process uses the
    manager next, unless they have a retention of their own.
    """

    default_timeout_seconds: float | timedelta = 300
    max_retries_per_step: int = 3
    retry_delay_seconds: float | timedelta = 1.0
    enable_compensation: bool = True
    persist_state: bool = True
    cleanup_completed_after_hours: float | timedelta = 24

    def __post_init__(self) -> None:
        for name, least, unit in (
            ("default_timeout_seconds", 1, _SECOND),
            ("max_retries_per_step", 0, None),
            ("retry_delay_seconds", 0, _SECOND),
            ("cleanup_completed_after_hours", 0, _HOUR),
        ):
            value = getattr(self, name)
            if unit is not None and isinstance(value, timedelta):
                value = value / unit
                object.__setattr__(self, name, value)
            kinds = (int,) if unit is None else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value < 10_000_000:
                raise ValueError(f"{name} is a number >= {least}, not {value!r}")
        for name in ("enable_compensation", "persist_state"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is a bool, not {getattr(self, name)!r}")

    @property
    def limit(self) -> float:
        """How long a saga may take, in seconds."""
        return as_seconds("default_timeout_seconds", self.default_timeout_seconds)

    @property
    def tidied(self) -> timedelta:
        """How long sagas that ended well are kept."""
        hours = self.cleanup_completed_after_hours
        return hours if isinstance(hours, timedelta) else timedelta(hours=hours)

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
