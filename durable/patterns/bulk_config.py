"""What a bulk operation is told, and what it answers: options, results, errors. No behaviour."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any, Final, Generic, TypeVar

import msgspec

from durable import DurableError, Seconds
from durable.patterns.policies import UNSAID_RETRIES, UnsaidCount

R = TypeVar("R")
SECONDS_MAX: Final = 10_000_000


@dataclasses.dataclass(frozen=True)
class CircuitBreakerConfig:
    """After `failure_threshold` failed attempts in a row, start nothing for `reset_timeout` (seconds or timedelta), then one item.

    If that one succeeds, all goes on; if it fails, the pause begins anew. Items wait meanwhile; none is given up. ValueError: a
    value is out of bounds.
    """

    failure_threshold: int = 5
    reset_timeout: Seconds = 30

    def __post_init__(self) -> None:
        _check_integer("failure_threshold", self.failure_threshold, 1)
        object.__setattr__(
            self, "reset_timeout", _seconds("reset_timeout", self.reset_timeout, above_zero=True)
        )


@dataclasses.dataclass(frozen=True)
class BulkOperationConfig:
    """Durations are seconds or timedelta. ValueError: a value is out of bounds.

    At most `max_concurrency` items are in work at a time; an item counts until its result is durable, so at most so many are repeated after a
    crash. `batch_size` is the most items that one entry of the journal holds. `timeout` limits the whole operation, from its
    start, `pipeline_timeout` one attempt of one item. `retry_attempts` follow an item's first attempt, the first after
    `retry_delay`, each delay twice the former; given explicitly they follow any exception but `NonRetryableError`, else not
    programming errors. `stop_on_error`: after the first item that failed for good nothing new is started.
    """

    batch_size: int = 10
    max_concurrency: int = 5
    timeout: Seconds = 300.0
    retry_attempts: int = UNSAID_RETRIES
    retry_delay: Seconds = 1.0
    enable_progress_tracking: bool = True
    circuit_breaker_config: CircuitBreakerConfig | None = None
    pipeline_timeout: Seconds = 60.0
    stop_on_error: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("max_concurrency", 1), ("retry_attempts", 0)):
            _check_integer(name, getattr(self, name), least)
        for name, above_zero in (("timeout", True), ("retry_delay", False), ("pipeline_timeout", True)):
            object.__setattr__(self, name, _seconds(name, getattr(self, name), above_zero=above_zero))
        for name in ("enable_progress_tracking", "stop_on_error"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is a bool, not {getattr(self, name)!r}")
        breaker = self.circuit_breaker_config
        if breaker is not None and not isinstance(breaker, CircuitBreakerConfig):
            raise ValueError(f"circuit_breaker_config is a CircuitBreakerConfig, not {breaker!r}")

    def orders(self) -> Orders:
        """Return what of it a run keeps."""
        breaker = self.circuit_breaker_config
        return Orders(
            batch_size=self.batch_size,
            max_concurrency=self.max_concurrency,
            attempts_max=self.retry_attempts + 1,
            retries_all=not isinstance(self.retry_attempts, UnsaidCount),
            retry_delay=float(self.retry_delay),  # type: ignore[arg-type]  # seconds: converted above
            item_timeout=float(self.pipeline_timeout),  # type: ignore[arg-type]
            stop_on_error=self.stop_on_error,
            threshold=0 if breaker is None else breaker.failure_threshold,
            reset_timeout=0.0 if breaker is None else float(breaker.reset_timeout),  # type: ignore[arg-type]
        )


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """The options by which a run is driven to its end, journaled at its start: a changed configuration is for new runs."""

    batch_size: int
    max_concurrency: int
    attempts_max: int
    retries_all: bool
    retry_delay: float
    item_timeout: float
    stop_on_error: bool
    threshold: int  # of the circuit breaker; 0: there is none
    reset_timeout: float


class BulkItemError(msgspec.Struct, frozen=True, kw_only=True):
    """An item that failed for good. `error` is its last error's text, `error_type` that one's class; `attempts` counts from 1."""

    index: int
    item: Any
    error: str
    error_type: str
    attempts: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class BulkResult(Generic[R]):
    """What came of all items. `results` are those of the items that succeeded, in the order of the items; `errors` too.

    `skipped` counts items that have neither. `duration` is in seconds.
    """

    results: list[R]
    errors: list[BulkItemError]
    total: int
    succeeded: int
    failed: int
    skipped: int
    duration: float

    @property
    def ok(self) -> bool:
        """Whether every item succeeded."""
        return self.succeeded == self.total


class BulkOperationError(DurableError):
    """The operation did not get through all items. `partial` is what it had done by then."""

    def __init__(self, message: str, partial: BulkResult[Any] | None = None) -> None:
        super().__init__(message)
        self.partial = partial


class BulkOperationTimeoutError(BulkOperationError):
    """It took longer than its `timeout`."""


class BulkOperationCancelledError(BulkOperationError):
    """Somebody cancelled it, or its run."""


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is an integer >= {least}, not {value!r}")


def _seconds(name: str, value: object, *, above_zero: bool) -> float:
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= SECONDS_MAX
        or (above_zero and value == 0)
    ):
        least = "above 0" if above_zero else "from 0"
        raise ValueError(
            f"{name} is a number of seconds {least} to {SECONDS_MAX:,}, or a timedelta, not {value!r}"
        )
    return float(value)
