"""Durations and instants as people type them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from durable_cli.durations import ago_text, duration_text, parse_duration, parse_instant
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("2d", 172_800),
        ("250ms", 0.25),
        ("1.5h", 5400),
        ("7", 7),
        ("0", 0),
        ("1w", 604_800),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """A number without unit is seconds."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "x", "-1s", "1 h", "1y", "1h 30", "inf", "nan", "1e9", "٣s", "9" * 400])
def test_no_durations(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ValueError):
        parse_duration(text)


def test_instants_are_utc_unless_they_say_otherwise() -> None:
    """What we print can be pasted back."""
    assert parse_instant("2h") == 7200
    assert parse_instant("2026-11-22") == datetime(2026, 11, 22, tzinfo=UTC)
    assert parse_instant("2026-11-22T03:00:13Z") == datetime(2026, 11, 22, 3, 0, 13, tzinfo=UTC)
    assert parse_instant("2026-11-22T03:00+01:00") == datetime(2026, 11, 22, 2, 0, tzinfo=UTC)
    with pytest.raises(ValueError, match="neither a duration"):
        parse_instant("yesterday")


@given(st.text())
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    """No other way out."""
    try:
        assert parse_duration(text) >= 0
    except ValueError:
        pass


@given(st.integers(0, 10**9))
def test_whole_seconds_survive(seconds: int) -> None:
    """With and without the unit."""
    assert parse_duration(f"{seconds}s") == parse_duration(str(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.214, "0.21s"), (9.999, "10.0s"), (12.44, "12.4s"), (59.97, "1m 00s"), (552, "9m 12s"), (3600 * 3 + 300, "3h 05m"), (86_400 * 2 + 4 * 3600, "2d 4h"), (-1, "0.00s")],
)  # fmt: skip
def test_durations_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    """Precise where it is short, brief where it is long."""
    assert duration_text(seconds) == text


def test_how_long_ago_needs_one_unit() -> None:
    """In a list."""
    assert [ago_text(s) for s in (0.5, 59, 60, 3599, 3600, 90_000)] == [
        "0s ago",
        "59s ago",
        "1m ago",
        "59m ago",
        "1h ago",
        "1d ago",
    ]
