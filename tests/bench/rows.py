"""Results: one row per scenario, as JSON lines or as a table, compared with the floors. Measures nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import median
from typing import Any, Final

import msgspec

# scenario -> the least ratio to the raw limit, in per cent
RATIO_FLOORS: Final = {
    "sequential": 65.0,
    "throughput/10": 55.0,
    "throughput/100": 40.0,
    "throughput/1000": 25.0,
    "bulk/10": 25.0,
    "bulk/100": 25.0,
    "guards": 95.0,
    # A step of a pattern costs at most 1.5 times a bare activity.
    "pipeline": 66.0,
    "graph/chain": 66.0,
    "graph/wave": 66.0,
    "saga/scope": 66.0,
    "saga/steps": 66.0,
    "saga/manager": 66.0,
}
RATIO_FLOORS_OF_A_SERVER: Final = {"sequential": 70.0, "throughput/1000": 25.0}
CEILINGS_MS: Final = {
    "import/durable": 150.0,
    "import/help": 150.0,
    "takeover/1000 p99": 3000.0,  # the lease of the scenario and a second
    "wakeup p50": 2.0,
    "wakeup p99": 10.0,
}
LOOP_CPU_US_MAX: Final = 30.0


class Row(msgspec.Struct, kw_only=True):
    """One figure. `ratio` is against `raw`, higher is better; `extra` holds whatever else was seen."""

    scenario: str
    value: float
    unit: str
    raw: float | None = None
    ratio: float | None = None
    extra: dict[str, Any] = msgspec.field(default_factory=dict)

    def is_better_lower(self) -> bool:
        return self.unit in ("ms", "s")


def rated(scenario: str, value: float, unit: str, raw: float, **extra: Any) -> Row:
    """Return a row with its ratio: value / raw, or raw / value where less is better."""
    row = Row(scenario=scenario, value=value, unit=unit, raw=raw, extra=extra)
    row.ratio = raw / value if row.is_better_lower() else value / raw
    return row


def merged(rounds: Sequence[Sequence[Row]]) -> list[Row]:
    """Return the median of several rounds of the same rows, with the range of values and ratios."""
    rows: list[Row] = []
    for same in zip(*rounds, strict=True):
        first = same[0]
        row = Row(scenario=first.scenario, value=median(one.value for one in same), unit=first.unit)
        raws = [one.raw for one in same if one.raw is not None]
        ratios = [one.ratio for one in same if one.ratio is not None]
        row.raw = median(raws) if raws else None
        row.ratio = median(ratios) if ratios else None
        for key, seen in first.extra.items():
            values = [one.extra[key] for one in same]
            row.extra[key] = median(values) if _is_number(seen) else values[-1]
        if len(same) > 1:
            row.extra["rounds"] = len(same)
            row.extra["value_range"] = [min(one.value for one in same), max(one.value for one in same)]
            if ratios:
                row.extra["ratio_range"] = [min(ratios), max(ratios)]
        rows.append(row)
    return rows


def judged(row: Row) -> str:
    """Return "ok", "below: why", or "" where there is no floor."""
    short: list[str] = []
    floors = RATIO_FLOORS_OF_A_SERVER if row.extra.get("store") == "postgres" else RATIO_FLOORS
    floor = floors.get(row.scenario)
    if floor is not None and row.ratio is not None and row.ratio * 100 < floor:
        short.append(f"{row.ratio:.0%} of raw, floor {floor:g}%")
    ceiling = CEILINGS_MS.get(row.scenario)
    if ceiling is not None and row.value > ceiling:
        short.append(f"{row.value:.0f} ms, limit {ceiling:g} ms")
    # On a server the driver's work is on the loop, too, and not told apart.
    cpu = None if row.extra.get("store") == "postgres" else row.extra.get("loop_cpu_us_per_step")
    if cpu is not None and cpu > LOOP_CPU_US_MAX:
        short.append(f"{cpu:.0f} µs loop CPU a step, limit {LOOP_CPU_US_MAX:g} µs")
    if short:
        return "below: " + "; ".join(short)
    return "ok" if floor is not None or ceiling is not None or cpu is not None else ""


def as_json(row: Row) -> str:
    """Return one line: the fixed keys first, then the extra ones."""
    fields: dict[str, Any] = {
        "scenario": row.scenario,
        "value": row.value,
        "unit": row.unit,
        "raw": row.raw,
        "ratio": row.ratio,
        "floor": judged(row) or None,
        **row.extra,
    }
    return json.dumps({key: _rounded(value) for key, value in fields.items()}, ensure_ascii=False)


HEADINGS: Final = (
    "scenario",
    "value",
    "raw limit",
    "ratio",
    "loop CPU",
    "fdatasync/s",
    "calibration",
    "floor",
)


def cells(row: Row) -> tuple[str, ...]:
    """Return one line of the table."""
    extra = row.extra
    cpu = extra.get("loop_cpu_us_per_step")
    return (
        row.scenario,
        f"{_short(row.value)} {row.unit}",
        "" if row.raw is None else f"{_short(row.raw)} {row.unit}",
        "" if row.ratio is None else f"{row.ratio:.0%}",
        "" if cpu is None else f"{cpu:.1f} µs/step",
        f"{extra['fdatasync_per_s']:,.0f}" if "fdatasync_per_s" in extra else "",
        f"{extra['calibration_ms']:.1f} ms" if "calibration_ms" in extra else "",
        judged(row),
    )


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(HEADINGS) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return value
