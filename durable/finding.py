"""Which runs somebody means: by id or by filters. Reads rows; what they tell is `describing.py`'s business."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from datetime import datetime, timedelta
from typing import Final, TypedDict, get_args

import msgspec

from durable.definitions import check_pattern, shown
from durable.errors import ArgumentsError, RunNotFoundError, UndecodableError
from durable.journal.lifecycle import RunStatus
from durable.reading import decode_entries
from durable.recorded import RecordedRun, UnreadableRun
from durable.retry import Seconds, seconds
from durable.seams import EPOCH, Clock
from durable.store.contract import Store
from durable.store.records import CountBy, RunFilter, RunRecord

PAGE_MAX: Final = 1000  # runs read at a time
GENERATION_DIGITS_MAX: Final = 9  # more no store can hold

Statuses = RunStatus | str | Sequence[RunStatus | str] | None


async def find_run(store: Store, run_id: str) -> RunRecord:
    """Return the run of an id, `id@2`: of one generation; raise `RunNotFoundError`, with near ids."""
    base, generation = split_run_id(run_id)
    if generation is not None:
        try:
            return await store.get_run(run_id)  # a run whose own id ends so
        except RunNotFoundError:
            pass
    return await store.get_run(base, generation)


def split_run_id(run_id: str) -> tuple[str, int | None]:
    """Return (id, generation) of `id@2`; only a final `@digits` means a generation, and no more digits than one can have.

    ArgumentsError: it is no text.
    """
    if not isinstance(run_id, str):
        raise ArgumentsError(f"a run id is text, not {shown(run_id)}")
    base, at, digits = run_id.rpartition("@")
    if at and base and digits.isascii() and digits.isdigit() and len(digits) <= GENERATION_DIGITS_MAX:
        return base, int(digits)
    return run_id, None


async def read_recorded(store: Store, record: RunRecord) -> RecordedRun:
    """Return a run with its whole journal; raise `UndecodableError` if that is damaged."""
    rows = await store.read_journal(record.pk, record.generation)
    return RecordedRun(
        run_id=record.run_id,
        workflow=record.workflow,
        version=record.version,
        generation=record.generation,
        epoch=record.epoch,
        task_queue=record.task_queue,
        status=str(record.status),
        input=record.input,
        events=tuple(decode_entries(rows)),
    )


def statuses_of(status: Statuses) -> tuple[RunStatus, ...]:
    """Return the statuses that are named; raise `ArgumentsError` for one that is unknown."""
    statuses = (status,) if isinstance(status, str) else tuple(status or ())
    try:
        return tuple(RunStatus(one) for one in statuses)
    except ValueError as error:
        raise ArgumentsError(f"{error}; statuses: {', '.join(RunStatus)}") from None


class Filters(TypedDict, total=False):
    """Which runs are meant: those that fit all of them. See `Client.list`."""

    status: Statuses
    workflow: str | None
    task_queue: str | None
    run_id: str | None
    since: Seconds | datetime | None
    until: Seconds | datetime | None


def filter_of(
    clock: Clock, filters: Filters, statuses: tuple[RunStatus, ...], *, limit: int = PAGE_MAX
) -> RunFilter:
    """Return the filter of rows for these filters, whose statuses are those that rows tell; raise `ArgumentsError`."""
    return RunFilter(
        status=statuses,
        workflow=check_pattern(filters.get("workflow")),
        task_queue=filters.get("task_queue"),
        run_id=check_pattern(filters.get("run_id")),
        created_since_us=instant_us(clock, filters.get("since")),
        created_until_us=instant_us(clock, filters.get("until")),
        limit=min(limit, PAGE_MAX),
    )


def counted(clock: Clock, filters: Filters) -> RunFilter:
    """Return the filter of the runs that are to be counted: by what their rows tell; raise `ArgumentsError`."""
    wanted = statuses_of(filters.get("status"))
    if RunStatus.COMPENSATING in wanted:
        raise ArgumentsError(
            "that a run is compensating is told by its journal, which nobody reads to count: list them"
        )
    return filter_of(clock, filters, wanted)


def check_by(by: CountBy | None) -> CountBy | None:
    """Return what runs are to be counted by; raise `ArgumentsError`."""
    if by not in (None, *get_args(CountBy)):
        raise ArgumentsError(f"runs are counted by status, workflow or queue, not {shown(by)}")
    return by


def closed_statuses(status: Statuses) -> tuple[RunStatus, ...]:
    """Return the statuses; raise `ArgumentsError` for one that is unknown, or of open runs."""
    closed = [str(one) for one in RunStatus if one.is_closed and one is not RunStatus.CONTINUED]
    wanted = (status,) if isinstance(status, str) else tuple(status or ())
    for one in wanted:
        if one not in closed:
            raise ArgumentsError(f"{str(one)!r} is no status of a closed run: {', '.join(closed)}")
    return tuple(RunStatus(one) for one in wanted)


def statuses_of_rows(wanted: tuple[RunStatus, ...]) -> tuple[RunStatus, ...]:
    """Return the statuses of the rows among which runs of these statuses are to be found.

    A run that waits in its worker's memory is shown as waiting, but its row says running; one that compensates may say either.
    The reverse does not happen: to look for running ones among all that wait would read the journals of all that sleep.
    """
    rows = dict.fromkeys(one for one in wanted if one is not RunStatus.COMPENSATING)
    if RunStatus.COMPENSATING in wanted:
        rows |= dict.fromkeys((RunStatus.RUNNING, RunStatus.WAITING))
    elif RunStatus.WAITING in wanted:
        rows |= dict.fromkeys((RunStatus.RUNNING,))
    return tuple(rows)


def instant_us(clock: Clock, value: Seconds | datetime | None) -> int | None:
    """Return an instant that is given as such, or as how long ago it was."""
    if value is None:
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise ArgumentsError("since and until need aware datetimes")
        return (value - EPOCH) // timedelta(microseconds=1)
    return clock.now_us() - round(seconds(value, what="since") * 1_000_000)


def next_page(chosen: RunFilter, records: Sequence[RunRecord]) -> RunFilter | None:
    """Return the filter for the runs behind those that `chosen` has found; None if these were the last."""
    if len(records) < chosen.limit:
        return None
    last = records[-1]
    return msgspec.structs.replace(chosen, before=(last.created_at_us, last.pk))


async def read_all_recorded(
    store: Store, chosen: RunFilter, limit: int | None
) -> AsyncGenerator[RecordedRun | UnreadableRun, None]:
    """Yield the runs that fit, page by page, with their journals; at most `limit`."""
    left, page = limit, chosen if limit is None or limit > 0 else None
    while page is not None:
        records = await store.list_runs(page)
        for record in records[:left]:
            try:
                yield await read_recorded(store, record)
            except UndecodableError as error:
                yield UnreadableRun(run_id=record.run_id, workflow=record.workflow, reason=str(error))
        left = None if left is None else left - len(records)
        page = next_page(page, records) if left is None or left > 0 else None
