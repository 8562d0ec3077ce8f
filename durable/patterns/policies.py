"""Retries and durations as patterns are told them, checked: what makes no sense is a ValueError that names it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from durable import Retry, RetryAfter, Seconds

RETRIES: Final = 3
RETRY_DELAY: Final = 1.0  # seconds


class UnsaidCount(int):
    """A default number, told apart from the same number that somebody chose."""


class UnsaidSeconds(float):
    """A default duration, told apart from the same one that somebody chose."""


UNSAID_RETRIES: Final = UnsaidCount(RETRIES)
UNSAID_RETRY_DELAY: Final = UnsaidSeconds(RETRY_DELAY)
DELAY_SECONDS_MAX: Final = 100.0  # unless the first delay is longer
ExceptionClasses = Sequence[type[BaseException]] | type[BaseException]
# Nothing that it raises is tried again; an attempt that was lost with its worker is.
ONCE: Final = Retry(retry_on=())
_USUAL: Final = Retry(max_attempts=RETRIES + 1, initial=RETRY_DELAY, maximum=DELAY_SECONDS_MAX)


def as_seconds(what: str, value: Seconds) -> float:
    """Return a duration in seconds; ValueError if it is none."""
    try:
        return Retry(1, initial=value, maximum=0).initial
    except Exception as error:
        raise ValueError(
            f"{what} is a duration in seconds or a timedelta, 0 or more, not {value!r}"
        ) from error


def retry_of(
    retries: Any, retry_delay: Seconds, *, what: str = "retries", no_retry: ExceptionClasses = ()
) -> Retry:
    """Return the policy of `retries` after the first attempt, the first after `retry_delay`, each delay twice the former.

    `what` is the name of the number in a ValueError.
    """
    if (
        retries == RETRIES
        and retry_delay == RETRY_DELAY
        and retry_delay.__class__ is not bool
        and no_retry == ()
    ):
        return _USUAL
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f"{what} is an integer >= 0, not {retries!r}")
    delay = as_seconds("retry_delay", retry_delay)
    return Retry(
        max_attempts=retries + 1, initial=delay, maximum=max(DELAY_SECONDS_MAX, delay), no_retry=no_retry
    )


def undoing(policy: Retry) -> Retry:
    """Return the policy under which a step of this one is undone.

    The same; but one attempt that was lost with its worker is not the end of it, also if failures are not tried again: what is to be
    undone goes on after a crash.
    """
    if policy.max_attempts != 1:
        return policy
    return Retry(
        ONCE.max_attempts,
        initial=policy.initial,
        maximum=max(DELAY_SECONDS_MAX, policy.initial),
        retry_on=(),
        no_retry=(*policy.no_retry, RetryAfter),
    )
