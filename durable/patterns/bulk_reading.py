"""What came of the items of a run, read from its journal as it grows: results, errors, counts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from durable import ActivityOutcome
from durable.patterns.bulk_config import BulkItemError, BulkResult
from durable.patterns.bulk_slices import NAME, FailedItem, SliceInput, SliceOutcome

_MISSING: Final = object()
ItemAt = Callable[[int], Awaitable[Any]]


class Gathering:
    """Adds up slices. With `keeps_results` it holds all of them, else only errors and counts."""

    def __init__(self, total: int, item_at: ItemAt, *, keeps_results: bool) -> None:
        self.total = total
        self.succeeded = 0
        self.errors: list[BulkItemError] = []
        self._item_at = item_at
        self._results: list[Any] | None = [_MISSING] * total if keeps_results else None

    @property
    def done(self) -> int:
        return self.succeeded + len(self.errors)

    async def add(self, first: int, outcome: SliceOutcome) -> None:
        """Take in what came of one slice; attempts that are followed by another do not count."""
        places = range(len(outcome.values)) if outcome.done is None else outcome.done
        self.succeeded += len(outcome.values)
        if self._results is not None:
            for at, value in zip(places, outcome.values, strict=True):
                self._results[first + at] = value
        for failed in outcome.failed:
            if failed.delay is None:
                self.errors.append(await self._error(first + failed.at, failed))

    async def _error(self, index: int, failed: FailedItem) -> BulkItemError:
        return BulkItemError(
            index=index,
            item=await self._item_at(index),
            error=failed.error,
            error_type=failed.type,
            attempts=failed.attempts,
        )

    def result(self, duration: float) -> BulkResult[Any]:
        """Return what there is so far."""
        results = [] if self._results is None else [one for one in self._results if one is not _MISSING]
        return BulkResult(
            results=results,
            errors=sorted(self.errors, key=lambda error: error.index),
            total=self.total,
            succeeded=self.succeeded,
            failed=len(self.errors),
            skipped=self.total - self.done,
            duration=duration,
        )


def slices_in(
    outcomes: Sequence[ActivityOutcome], decode: Callable[[bytes], SliceOutcome]
) -> list[tuple[int, SliceOutcome]]:
    """Return the slices among outcomes of activities, each with the index of its first item."""
    found: list[tuple[int, SliceOutcome]] = []
    for outcome in outcomes:
        if outcome.name != NAME or outcome.kind != "bulk":
            continue
        asked = msgspec.json.decode(outcome.input, type=SliceInput)
        if outcome.result is not None:
            found.append((asked.first, decode(outcome.result)))
        elif asked.alone and outcome.failure is not None:
            lost = FailedItem(
                at=0,
                error=outcome.failure.message,
                type=outcome.failure.type.rpartition(":")[2].rpartition(".")[2],
                attempts=asked.attempt + outcome.attempts - 1,
            )
            found.append((asked.first, SliceOutcome([], [], [lost], [])))
    return found
