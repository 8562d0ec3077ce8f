"""How a closed run is tried again: which part of its journal the next generation keeps. Pure; knows nothing of stores.

What is kept is all that stood before what went wrong (P7): before the event whose failure escaped from the workflow, or
before the request to cancel, or, if the store itself ended the run, everything. If what escaped was no activity's
failure, nothing is kept, since the same journal would lead to the same error. Nor is anything if the run has undone what it had
done. Somebody may also say which activity's failure it was: then all is kept that stood before that.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import msgspec

from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    AnyEntry,
    Cancelled,
    CancelRequested,
    Completed,
    Failed,
    Retried,
    ScheduleActivity,
    SignalReceived,
    Started,
    Terminated,
    TimedOut,
    UpdateAnswered,
    UpdateReceived,
)

Turns = Sequence[tuple[int, Sequence[AnyEntry]]]  # (number, entries), in order
_START = (1, 0)
COMPENSATION: Final = "compensation"  # the kind of an activity that undoes another


class Reopening(msgspec.Struct, frozen=True, kw_only=True):
    """The next generation's journal: turns 1 to `copy_turns` as they are, and `entries` as one more, if there are any.

    `messages` were taken in after that point: they are delivered again. `forgotten` names the activities that were
    completed after it, in that order: what they did is not undone, and the workflow may ask for them again. `completed` names
    all that were.
    """

    copy_turns: int
    entries: tuple[AnyEntry, ...]
    messages: tuple[SignalReceived | UpdateReceived, ...]
    forgotten: tuple[str, ...]
    completed: tuple[str, ...]
    kept_events: int
    is_undone: bool = (
        False  # it was compensated: what was undone must not count as done, nor its idempotency keys
    )


class FailedActivity(msgspec.Struct, frozen=True, kw_only=True):
    """An activity whose failure is in the journal. `number`: its place in the raw journal; `at`: the (turn, index) of the failure."""

    number: int
    name: str
    at: tuple[int, int]


def failed_activities(turns: Turns) -> list[FailedActivity]:
    """Return the activities that failed, in that order."""
    asked: dict[int, tuple[int, str]] = {}
    found: list[FailedActivity] = []
    number = 0
    for turn, entries in turns:
        for index, entry in enumerate(entries):
            number += 1
            if isinstance(entry, ScheduleActivity):
                asked[entry.op] = number, entry.name
            elif isinstance(entry, ActivityFailed) and entry.op in asked:
                place, name = asked[entry.op]
                found.append(FailedActivity(number=place, name=name, at=(turn, index)))
    return found


def reopening(
    turns: Turns, *, now_us: int, attempt: int, failed: FailedActivity | None = None
) -> Reopening | None:
    """Return what attempt `attempt` of the workflow starts from; None if the journal ends in success, or not at all.

    With `failed` that is what stood before that activity's failure.
    """
    cut = _cut(turns)
    if cut is None:
        return None
    if failed is not None:
        cut = failed.at
    is_undone = _is_undone(turns)
    turn, index = _START if is_undone else cut
    entries: list[AnyEntry] = []
    dropped: list[AnyEntry] = []
    kept_events = 0
    for number, recorded in turns:
        if number < turn:
            kept_events += len(recorded)
        elif number == turn:
            entries.extend(recorded[:index])
            dropped.extend(recorded[index:])
        else:
            dropped.extend(recorded)
    kept_events += len(entries)
    if kept_events:
        entries.append(Retried(at=now_us, attempt=attempt, answered=answered_before(dropped)))
    everything = [entry for _, recorded in turns for entry in recorded]
    names = {e.op: e.name for e in everything if isinstance(e, ScheduleActivity)}
    return Reopening(
        copy_turns=turn - 1,
        entries=tuple(entries),
        messages=tuple(e for e in delivered_again(dropped) if not isinstance(e, CancelRequested)),
        forgotten=tuple(names[e.op] for e in dropped if isinstance(e, ActivityCompleted)),
        completed=tuple(names[e.op] for e in everything if isinstance(e, ActivityCompleted)),
        kept_events=kept_events,
        is_undone=is_undone,
    )


def delivered_again(
    dropped: Sequence[AnyEntry], begun: Collection[int] = ()
) -> list[SignalReceived | UpdateReceived | CancelRequested]:
    """Return the messages among entries that the next life does not keep, for it to take in.

    An update that was refused stays refused. One that was handled, or is among those `begun` with, is handled again, and not refused any more.
    """
    answers = {entry.msg: entry.how for entry in dropped if isinstance(entry, UpdateAnswered)}
    answered = answered_before(dropped)
    found: list[SignalReceived | UpdateReceived | CancelRequested] = []
    for entry in dropped:
        if isinstance(entry, SignalReceived | CancelRequested):
            found.append(entry)
        elif isinstance(entry, UpdateReceived) and answers.get(entry.msg) != "rejected":
            was_begun = entry.msg in begun or answers.get(entry.msg) in ("completed", "failed")
            found.append(
                msgspec.structs.replace(
                    entry,
                    accepted=entry.accepted or was_begun,
                    answered=entry.msg in answered,
                )
            )
    return found


def answered_before(dropped: Sequence[AnyEntry]) -> tuple[int, ...]:
    """Return the numbers of the updates whose callers were given a result, now or earlier, which the next life does not keep."""
    found: set[int] = set()
    for entry in dropped:
        match entry:
            case Started() | Retried():
                found.update(entry.answered)
            case UpdateAnswered(how="completed"):
                found.add(entry.msg)
            case UpdateReceived(answered=True):
                found.add(entry.msg)
    return tuple(sorted(found))


def _is_undone(turns: Turns) -> bool:
    """Whether the run ended after it had begun to undo what it had done. One that was stopped in the middle of that goes on with it."""
    if isinstance(turns[-1][1][-1], Terminated | TimedOut):
        return False
    return any(
        isinstance(entry, ScheduleActivity) and entry.kind == COMPENSATION
        for _, recorded in turns
        for entry in recorded
    )


def _cut(turns: Turns) -> tuple[int, int] | None:
    """Return (turn, index) of the first entry that is not kept."""
    if not turns or not turns[-1][1]:
        return None
    number, last = turns[-1]
    match last[-1]:
        case Failed(origin=origin):
            return _START if origin is None else origin
        case Cancelled():
            return next(
                (
                    (turn, index)
                    for turn, entries in turns
                    for index, entry in enumerate(entries)
                    if isinstance(entry, CancelRequested)
                ),
                _START,
            )
        case Terminated() | TimedOut():
            return number, len(last) - 1
        case Completed() | _:
            return None
