"""`30s`, `5m`, `1h30m`, `2026-11-22`: durations and instants as people type them."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Final

import click

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|[smhdw])", re.ASCII)
_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?", re.ASCII)
SECONDS_MAX: Final = 100 * 366 * 86_400.0


def parse_duration(text: str) -> float:
    """Return seconds; raise ValueError. A number without unit is seconds."""
    text = text.strip()
    if _NUMBER.fullmatch(text):
        total = float(text)
    else:
        parts = list(_PART.finditer(text))
        if not parts or "".join(part.group() for part in parts) != text:
            raise ValueError(f"{text!r} is no duration; write 30s, 5m, 1h30m or 2d")
        total = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    if not math.isfinite(total) or total > SECONDS_MAX:
        raise ValueError(f"{text!r} is longer than a hundred years")
    return total


def parse_instant(text: str) -> float | datetime:
    """Return how many seconds ago (`2h`), or the instant of an ISO date or time (UTC unless it says otherwise)."""
    try:
        return parse_duration(text)
    except ValueError:
        pass
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ValueError(f"{text!r} is neither a duration (2h) nor a time (2026-11-22T03:00Z)") from None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant


def duration_text(seconds: float) -> str:
    """Return `0.21s`, `12.4s`, `9m 12s`, `3h 05m` or `2d 4h`."""
    seconds = max(0.0, seconds)
    if seconds < 9.995:
        return f"{seconds:.2f}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def ago_text(seconds: float) -> str:
    """Return `4m ago`: one unit is enough for a list."""
    whole = max(0, int(seconds))
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit} ago"
    return f"{whole}s ago"


def duration_option(text: str) -> float:
    """Return the seconds of an option's value; a usage error otherwise."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def retention_option(text: str) -> float | None:
    """Return the seconds of a retention; None for `none`."""
    return None if text.strip().lower() in ("none", "never") else duration_option(text)


def instant_option(text: str) -> float | datetime:
    """Return what `parse_instant` does; a usage error otherwise."""
    try:
        return parse_instant(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
