"""When a failed attempt is followed by another, and how soon."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable.errors import ActivityTimeoutError, DefinitionError, NonRetryableError
from durable.retry import DEFAULT_RETRY, SECONDS_MAX, Retry, seconds


def test_the_default_is_four_attempts_one_two_four_seconds_apart() -> None:
    """Three retries, first after 1 s, twice as long each time."""
    delays = [DEFAULT_RETRY.delay_us(failed) for failed in (1, 2, 3)]

    assert delays == [1_000_000, 2_000_000, 4_000_000]
    assert DEFAULT_RETRY.has_attempt_after(3)
    assert not DEFAULT_RETRY.has_attempt_after(4)


def test_a_delay_never_exceeds_the_maximum() -> None:
    """By default 100 s, however many attempts have failed."""
    assert DEFAULT_RETRY.delay_us(8) == 100_000_000
    assert DEFAULT_RETRY.delay_us(10**9) == 100_000_000


def test_no_initial_delay_stays_no_delay_however_often_it_fails() -> None:
    """Nothing to multiply: the maximum is not reached by overflow."""
    retry = Retry(max_attempts=0, initial=0, backoff=10)

    assert [retry.delay_us(failed) for failed in (1, 5, 400, 100_000)] == [0, 0, 0, 0]


def test_zero_attempts_means_no_limit() -> None:
    """`max_attempts=0` is tried for ever."""
    assert Retry(max_attempts=0).has_attempt_after(1_000_000)


def test_one_attempt_means_no_retry() -> None:
    """`retries=0` in decorators becomes this."""
    assert not Retry(max_attempts=1).has_attempt_after(1)


def test_jitter_takes_at_most_its_fraction_off_a_delay() -> None:
    """The die comes from the caller, so that a test (or a replay) can own it."""
    retry = Retry(jitter=0.5)

    assert retry.delay_us(1, chance=0.0) == 1_000_000
    assert retry.delay_us(1, chance=0.5) == 750_000
    assert retry.delay_us(1, chance=1.0) == 500_000


@given(
    initial=st.floats(0, 1000),
    backoff=st.floats(1, 100),
    extra=st.floats(0, 1000),
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1, exclude_max=True),
    failed=st.integers(1, 10_000),
)
def test_every_delay_is_between_zero_and_the_maximum(
    initial: float, backoff: float, extra: float, jitter: float, chance: float, failed: int
) -> None:
    """Whatever the policy, and without jitter delays never shrink."""
    retry = Retry(initial=initial, backoff=backoff, maximum=initial + extra, jitter=jitter)

    assert 0 <= retry.delay_us(failed, chance) <= round((initial + extra) * 1_000_000)
    assert retry.delay_us(failed) <= retry.delay_us(failed + 1)


@pytest.mark.parametrize(
    "error",
    [
        ValueError(),
        TypeError(),
        KeyError(),
        IndexError(),
        AssertionError(),
        NotImplementedError(),
        msgspec.ValidationError(),
    ],
)
def test_a_programming_error_is_not_retried(error: Exception) -> None:
    """Trying it again would only fail again."""
    assert not DEFAULT_RETRY.is_retryable(error)


@pytest.mark.parametrize("error", [RuntimeError(), OSError(), TimeoutError(), ActivityTimeoutError()])
def test_any_other_error_is_retried(error: Exception) -> None:
    """The world may have changed by then; a timeout too is the world's."""
    assert DEFAULT_RETRY.is_retryable(error)


def test_retry_on_replaces_the_default_rule() -> None:
    """A list of classes says exactly what is retried, programming errors included."""
    retry = Retry(retry_on=[ValueError])

    assert retry.is_retryable(UnicodeError())
    assert not retry.is_retryable(RuntimeError())


def test_no_retry_adds_final_classes() -> None:
    """It wins over `retry_on`, and subclasses count."""
    retry = Retry(retry_on=OSError, no_retry=FileNotFoundError)

    assert retry.is_retryable(PermissionError())
    assert not retry.is_retryable(FileNotFoundError())


def test_a_non_retryable_error_is_never_retried() -> None:
    """Not even when it is asked for by name."""
    assert not Retry(retry_on=NonRetryableError).is_retryable(NonRetryableError())


@pytest.mark.parametrize(
    "options",
    [
        {"max_attempts": -1},
        {"max_attempts": True},
        {"max_attempts": 2.5},
        {"initial": -1},
        {"initial": math.nan},
        {"initial": math.inf},
        {"initial": "1"},
        {"initial": 200},
        {"maximum": 10**400},
        {"backoff": 0.5},
        {"backoff": math.nan},
        {"backoff": 10**400},
        {"backoff": True},
        {"jitter": 1.5},
        {"jitter": math.nan},
        {"jitter": True},
        {"retry_on": "ValueError"},
        {"retry_on": [int]},
        {"retry_on": ValueError()},
        {"no_retry": 5},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_where_it_is_written(options: dict[str, Any]) -> None:
    """With `DefinitionError`, never with whatever arithmetic raises."""
    with pytest.raises(DefinitionError):
        Retry(**options)


def test_one_attempt_needs_no_sensible_maximum() -> None:
    """There is no delay to bound."""
    assert Retry(max_attempts=1, initial=500).max_attempts == 1


def test_durations_are_seconds_or_timedelta() -> None:
    """Both become float seconds; 300 years is the limit, so that microseconds fit 64 bits."""
    assert seconds(3) == 3.0
    assert seconds(timedelta(minutes=2)) == 120.0
    assert seconds(SECONDS_MAX) * 1_000_000 < 2**63
    with pytest.raises(DefinitionError, match="timeout must be finite"):
        seconds(SECONDS_MAX + 1, what="timeout")
    with pytest.raises(DefinitionError, match="timeout must be seconds or a timedelta"):
        seconds(True, what="timeout")


def test_a_policy_shows_its_options() -> None:
    """`repr` reads as the call that makes it."""
    assert "max_attempts=4" in repr(DEFAULT_RETRY)
    assert repr(DEFAULT_RETRY).startswith("Retry(")
