"""Bulk operations in a run's story: thousands of slices told as one line each operation. Knows how a slice is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from durable import Entry, Run

SLICE: Final = "items"
BAR_WIDTH: Final = 10
BATCH: Final = "batch"  # the kind of the line that stands for all slices of an operation


def is_slice(entry: Entry) -> bool:
    """Whether an entry is a slice of a bulk operation."""
    return entry.kind == "bulk" and entry.name.rpartition("/")[2] == SLICE and isinstance(entry.input, dict)


def slice_name(entry: Entry) -> str:
    """Return `items 0 to 9`, with the operation in front if it is part of a run."""
    first, count = _number(entry.input.get("first")), _number(entry.input.get("count"))
    items = f"item {first}" if count == 1 else f"items {first} to {first + count - 1}"
    return entry.name.removesuffix(SLICE) + items


def collapsed(run: Run) -> Run:
    """Return the run with one line for all slices of each bulk operation, and without what only a replay needs."""
    if not any(entry.kind == "bulk" for entry in run.journal):
        return run
    slices: dict[str, list[Entry]] = {}
    told: list[Entry | str] = []
    for entry in run.journal:
        if is_slice(entry):
            if entry.name not in slices:
                told.append(entry.name)
            slices.setdefault(entry.name, []).append(entry)
        elif entry.kind != "bulk":
            told.append(entry)
    total = _total(run)
    journal = [_batch(slices[one], total) if isinstance(one, str) else one for one in told]
    return msgspec.structs.replace(run, journal=journal)


def _batch(slices: Sequence[Entry], total: int | None) -> Entry:
    """Return the line of one operation; its result is text."""
    outcomes = [entry.result for entry in slices if isinstance(entry.result, list) and len(entry.result) == 4]
    done = sum(len(outcome[0]) for outcome in outcomes)
    failed = sum("delay" not in one for outcome in outcomes for one in outcome[2])
    open_slices = [entry for entry in slices if entry.finished_at is None]
    begun = max(_number(entry.input.get("first")) + _number(entry.input.get("count")) for entry in slices)
    whole = begun if total is None else total
    filled = BAR_WIDTH if not whole else (done + failed) * BAR_WIDTH // whole
    parts = [f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {done + failed} of {whole} items"]
    if failed:
        parts.append(f"{failed} failed")
    ends = [entry.finished_at for entry in slices if entry.finished_at is not None]
    first = slices[0]
    return Entry(
        number=first.number,
        name=first.name.removesuffix(SLICE).rstrip("/") or SLICE,
        kind=BATCH,
        status=open_slices[0].status if open_slices else slices[-1].status,
        attempts=0,
        started_at=first.started_at,
        finished_at=None if open_slices else max(ends, default=None),
        result=", ".join(parts) + f" in {len(slices)} slices",
        source=first.source,
    )


def _total(run: Run) -> int | None:
    given = run.input.get("batch") if run.kind == "bulk" and isinstance(run.input, dict) else None
    return _number(given.get("total")) if isinstance(given, dict) else None


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0
