"""How often and how soon an activity is tried again: pure arithmetic.

The formula is Temporal's: `min(initial * backoff ** (failed - 1), maximum)`, `failed` counted from 1. Knows nothing of
clocks: it returns delays, never instants.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Final, TypeGuard

import msgspec

from durable.errors import DefinitionError, DurableError, NonRetryableError, UndecodableError
from durable.scripts import public_name

Seconds = float | int | timedelta

PROGRAMMING_ERRORS: Final[tuple[type[BaseException], ...]] = (
    ValueError,
    TypeError,
    LookupError,
    AssertionError,
    NotImplementedError,
    msgspec.ValidationError,
)


BACKOFF_MAX: Final = 1_000_000
SECONDS_MAX: Final = 10_000_000_000  # 300 years: in microseconds still a 64-bit integer, as the stores need


def seconds(value: Seconds, *, what: str = "a duration") -> float:
    """Return a duration as seconds; raise `DefinitionError` unless it is a finite, non-negative number."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not _is_number(value):
        raise DefinitionError(f"{what} must be seconds or a timedelta, not {value!r}")
    if not 0 <= value <= SECONDS_MAX:  # also refuses NaN and infinity
        raise DefinitionError(
            f"{what} must be finite, not negative and at most {SECONDS_MAX:,} s, not {value!r}"
        )
    return float(value)


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class RetryAfter(DurableError):
    """Raise it in an activity to be tried again after `delay`, this one time, whatever interval the policy has.

    `delay` is in seconds or a `timedelta`, and not bounded by the policy's `maximum`; the number of attempts is, and so is
    the time by `schedule_to_close_timeout`. It is retried under any `retry_on`, but not under a `no_retry` that names it. Any
    other exception with an attribute `next_retry_delay` (seconds or `timedelta`) is heard the same way, if the policy
    retries it at all. Borrowed from Temporal's `ApplicationError(next_retry_delay=…)`.
    """

    def __init__(self, delay: Seconds, message: str = "") -> None:
        self.next_retry_delay = seconds(delay, what="delay")
        super().__init__(message or f"to be tried again after {self.next_retry_delay:g} s")


def asked_delay_us(error: BaseException) -> int | None:
    """Return the delay that an error asks for before the next attempt, in microseconds; None if it asks for none, or nonsense."""
    try:
        asked = getattr(error, "next_retry_delay", None)
        return None if asked is None else round(seconds(asked) * 1_000_000)
    except Exception:  # an attribute of somebody else's, or one that raises: the policy's own interval holds
        return None


class Retry:
    """When a failed attempt is followed by another.

    `max_attempts` counts all attempts (0: no limit). Delays are seconds or `timedelta`. `retry_on` replaces the default
    rule (everything but programming errors) by a list of classes; `no_retry` adds classes that are final.
    `jitter` (0 to 1) takes up to that fraction off each delay. `NonRetryableError` is never retried.
    """

    __slots__ = ("backoff", "initial", "jitter", "max_attempts", "maximum", "no_retry", "retry_on")

    def __init__(
        self,
        max_attempts: int = 4,
        initial: Seconds = 1.0,
        backoff: float = 2.0,
        maximum: Seconds = 100.0,
        retry_on: Sequence[type[BaseException]] | type[BaseException] | None = None,
        no_retry: Sequence[type[BaseException]] | type[BaseException] = (),
        jitter: float = 0.0,
    ) -> None:
        if isinstance(max_attempts, bool) or not isinstance(max_attempts, int) or max_attempts < 0:
            raise DefinitionError(f"max_attempts must be an integer >= 0 (0: no limit), not {max_attempts!r}")
        self.max_attempts = max_attempts
        self.initial = seconds(initial, what="initial")
        self.maximum = seconds(maximum, what="maximum")
        if not _is_number(backoff) or not 1 <= backoff <= BACKOFF_MAX:
            raise DefinitionError(f"backoff must be a number from 1 to {BACKOFF_MAX:,}, not {backoff!r}")
        if max_attempts != 1 and self.maximum < self.initial:
            raise DefinitionError(f"maximum ({self.maximum} s) must not be below initial ({self.initial} s)")
        if not _is_number(jitter) or not 0 <= jitter <= 1:
            raise DefinitionError(f"jitter must be between 0 and 1, not {jitter!r}")
        self.backoff = float(backoff)
        self.jitter = float(jitter)
        self.retry_on = None if retry_on is None else _classes(retry_on, "retry_on")
        self.no_retry = _classes(no_retry, "no_retry")

    def __repr__(self) -> str:
        return f"Retry({', '.join(f'{name}={getattr(self, name)!r}' for name in self.__slots__)})"

    def is_retryable(self, error: BaseException) -> bool:
        """Whether this policy follows `error` by another attempt, attempts permitting."""
        if isinstance(error, (NonRetryableError, *self.no_retry)):
            return False
        if isinstance(error, RetryAfter):
            return True
        if self.retry_on is not None:
            return isinstance(error, self.retry_on)
        return not isinstance(error, PROGRAMMING_ERRORS)

    def has_attempt_after(self, failed: int) -> bool:
        """Whether another attempt may follow `failed` failed ones."""
        return self.max_attempts == 0 or failed < self.max_attempts

    def delay_us(self, failed: int, chance: float = 0.0) -> int:
        """Return the delay after `failed` failed attempts (from 1), in microseconds; `chance` in [0, 1) is the jitter's die."""
        try:
            delay = min(self.initial * self.backoff ** (failed - 1), self.maximum)
        except OverflowError:  # past its maximum long ago, unless there was no delay to grow
            delay = self.maximum if self.initial else 0.0
        return round(delay * (1.0 - self.jitter * chance) * 1_000_000)


class RetryRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A policy as another process reads it: its classes by name, as `module:qualname`."""

    max_attempts: int
    initial: float
    backoff: float
    maximum: float
    jitter: float = 0.0
    retry_on: list[str] | None = None
    no_retry: list[str] = []


class NamedRetry(Retry):
    """A policy that was read from a record. It imports nothing: a class is known by its name, or a base's."""

    __slots__ = ("_record",)

    def __init__(self, record: RetryRecord) -> None:
        super().__init__(
            record.max_attempts, record.initial, record.backoff, record.maximum, jitter=record.jitter
        )
        self._record = record

    def is_retryable(self, error: BaseException) -> bool:
        """Whether this policy follows `error` by another attempt, attempts permitting."""
        if isinstance(error, NonRetryableError) or self.is_final(type(error)):
            return False
        if isinstance(error, RetryAfter):
            return True
        if self._record.retry_on is not None:
            return not _names(type(error)).isdisjoint(self._record.retry_on)
        return not isinstance(error, PROGRAMMING_ERRORS)

    def is_final(self, error: type[BaseException]) -> bool:
        """Whether `no_retry` names this class, or a base of it."""
        return not _names(error).isdisjoint(self._record.no_retry)


def policy_text(policy: Retry) -> str:
    """Return a policy as `named_policy` reads it."""
    if isinstance(policy, NamedRetry):
        return _encode(policy._record)
    return _encode(
        RetryRecord(
            max_attempts=policy.max_attempts,
            initial=policy.initial,
            backoff=policy.backoff,
            maximum=policy.maximum,
            jitter=policy.jitter,
            retry_on=None if policy.retry_on is None else [_class_name(one) for one in policy.retry_on],
            no_retry=[_class_name(one) for one in policy.no_retry],
        )
    )


def named_policy(text: str) -> NamedRetry:
    """Return a policy from its text; raise `UndecodableError` if it is damaged."""
    try:
        return NamedRetry(msgspec.json.decode(text, type=RetryRecord))
    except (msgspec.DecodeError, DefinitionError) as error:
        raise UndecodableError(f"the retry policy of an activity cannot be read: {error}") from None


def _encode(record: RetryRecord) -> str:
    return msgspec.json.encode(record).decode()


def _class_name(cls: type) -> str:
    return f"{public_name(cls.__module__)}:{cls.__qualname__}"  # a script's own classes are called otherwise elsewhere


def _names(cls: type) -> set[str]:
    return {_class_name(base) for base in cls.__mro__}


def _classes(
    value: Sequence[type[BaseException]] | type[BaseException], what: str
) -> tuple[type[BaseException], ...]:
    if not isinstance(value, (type, Iterable)) or isinstance(value, str):
        raise DefinitionError(f"{what} takes exception classes, not {value!r}")
    classes = (value,) if isinstance(value, type) else tuple(value)
    for cls in classes:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise DefinitionError(f"{what} takes exception classes, not {cls!r}")
    return classes


DEFAULT_RETRY: Final = Retry()
