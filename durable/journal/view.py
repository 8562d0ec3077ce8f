"""A run's story from its journal: one line per activity, timer and wait, and what it waits for now.

A pure fold over entries. Knows nothing of stores; attempts in progress are handed in by whoever read them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import msgspec

from durable.errors import UndecodableError
from durable.failures import Failure, describe
from durable.journal import events
from durable.journal.asks import ask_id, question_of
from durable.journal.events import OWED, AnyEntry
from durable.payloads.codec import sealed_label
from durable.seams import EPOCH

EntryStatus = Literal[
    "scheduled",
    "running",
    "retrying",
    "waiting",
    "completed",
    "failed",
    "cancelled",
    "skipped",
    "fired",
    "received",
    "rejected",
]
OWED_TEXT: Final = "handlers of updates that were answered before the workflow was tried again"
OPERATIONS: Final = ("timer", "signal", "update", "condition", "cancel", "patch")


class Entry(msgspec.Struct, kw_only=True):
    """One operation of a run, in the order asked. `error` is one line; `number` its place in the raw journal.

    `attempts` of an activity whose outcome is not on record (the run, or its wait for it, ended before) are those that the journal
    knows of, and `is_counted` is False: further ones are counted beside the journal, and forgotten once nobody waits.

    `kind` is "activity", "child", "timer", "signal", "update", "condition", "cancel" or "patch"; of an activity that a pattern called also the pattern's
    word for it, e.g. "predicate" or "compensation".
    """

    number: int
    name: str
    kind: str
    status: EntryStatus
    attempts: int = 0
    is_counted: bool = True
    started_at: datetime | None = None
    finished_at: datetime | None = None
    input: Any = None
    result: Any = None
    error: str | None = None
    source: str = ""
    due_at: datetime | None = None  # a timer's instant, the next attempt's, or when an open attempt expires
    failure: Failure | None = None
    is_open: bool = False  # an activity whose function has ended and which somebody outside completes
    prompt: str = ""  # of a question to a person
    ask: str = ""  # that question's address; "" for anything else
    queue: str = ""  # of an activity that workers of another task queue perform: that queue
    worker: str = ""  # who performs it there, while somebody does
    hold: str = ""  # why nobody does: "no_worker" or "paused"
    child: str = ""  # the run id of a child; "" for anything else

    @property
    def is_activity(self) -> bool:
        """Whether this is an activity, under whatever name of a pattern."""
        return self.kind not in OPERATIONS


class AttemptView(msgspec.Struct, frozen=True, kw_only=True):
    """The durable count of an activity that is retrying or queued; of one on another queue also who performs it, or why nobody does."""

    attempt: int
    state: str
    due_at_us: int | None = None
    failure: Failure | None = None
    worker: str = ""
    hold: str = ""


class Blocker(msgspec.Struct, frozen=True, kw_only=True):
    """One thing a run waits for. `text` is for people, the rest for programs."""

    kind: Literal["activity", "retry", "timer", "signal", "condition", "nothing"]
    name: str
    text: str
    due_at: datetime | None = None
    source: str = ""
    prompt: str = ""
    ask: str = ""


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """A question that a run waits to have answered by a person. `id` addresses it: `run_id@epoch/name#n`.

    `due_at` is when a timer of the run is due next, which may be when the question expires.
    """

    run_id: str
    workflow: str
    name: str
    prompt: str
    id: str
    since: datetime | None
    due_at: datetime | None


class Story(msgspec.Struct, kw_only=True):
    """All of it: entries, what the run waits for (an update waits for the run), and the last event's instant."""

    entries: list[Entry]
    open: list[Entry]
    last_at: datetime | None
    deliveries: int  # signals, updates and cancel requests taken in


_US: Final = timedelta(microseconds=1)


def instant(at_us: int) -> datetime:
    """Return an aware UTC datetime; for a number out of all range (a damaged row) the nearest there is."""
    try:
        return EPOCH + at_us * _US
    except OverflowError:
        return (datetime.max if at_us > 0 else datetime.min).replace(tzinfo=UTC)


def plain(data: bytes | msgspec.Raw | None) -> Any:
    """Return stored JSON as plain data; bytes that are no JSON come back as a note that says so."""
    if data is None:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"<{sealed_label(bytes(data)) or 'unreadable'}>"


def tell(
    entries: Iterable[AnyEntry],
    attempts: dict[int, AttemptView] | None = None,
    *,
    key_prefix: str = "",
) -> Story:
    """Fold a generation's entries into its story. `key_prefix` is what addresses of its questions begin with."""
    story: list[Entry] = []
    by_op: dict[int, Entry] = {}
    updates: dict[int, Entry] = {}
    now: datetime | None = None
    deliveries = 0
    for number, entry in enumerate(entries, 1):
        at = getattr(entry, "at", None)
        if at is not None:
            now = instant(at)
        match entry:
            case events.ScheduleActivity():
                line = Entry(
                    number=number,
                    name=entry.name,
                    kind=entry.kind or "activity",
                    status="running"
                    if entry.started or isinstance(entry, events.StartChild)
                    else "scheduled",
                    attempts=1 if entry.started else 0,
                    started_at=now,
                    input=plain(entry.args),
                    source=entry.src,
                    queue=entry.queue,
                    child=entry.run_id if isinstance(entry, events.StartChild) else "",
                )
                by_op[entry.op] = line
                story.append(line)
            case events.StartTimer():
                line = Entry(
                    number=number,
                    name=f"{entry.duration / 1_000_000:g}s",
                    kind="timer",
                    status="waiting",
                    started_at=now,
                    due_at=instant(entry.due),
                    source=entry.src,
                )
                by_op[entry.op] = line
                story.append(line)
            case events.OpenWait():
                is_signal = entry.wait == "signal"
                line = Entry(
                    number=number,
                    name=OWED_TEXT if not is_signal and entry.name == OWED else entry.name,
                    kind="signal" if is_signal else "condition",
                    status="waiting",
                    started_at=now,
                    source=entry.src,
                    prompt=entry.prompt,
                    ask=ask_id(key_prefix, entry.name, entry.n) if entry.n else "",
                )
                by_op[entry.op] = line
                story.append(line)
            case events.CloseOp():
                closed = by_op.get(entry.op)
                if closed is not None and closed.finished_at is None and entry.how != "wait":
                    is_met = closed.kind in ("signal", "condition") and not closed.ask
                    closed.finished_at = now
                    closed.status = "completed" if is_met else "cancelled"
                    closed.is_counted = not _has_attempts(closed)
            case events.ActivityCompleted():
                line = _line(by_op, entry.op, number)
                line.status, line.finished_at = "completed", now
                line.attempts, line.is_counted, line.result = entry.attempts, True, plain(entry.result)
            case events.ActivityFailed():
                line = _line(by_op, entry.op, number)
                line.status, line.finished_at = "failed", now
                line.attempts, line.is_counted = entry.attempts, True
                line.error, line.failure = describe(entry.failure), entry.failure
            case events.TimerFired():
                line = _line(by_op, entry.op, number)
                line.status, line.finished_at = "fired", now
            case events.SignalReceived():
                deliveries += 1
                n = question_of(entry.id, key_prefix, entry.name)
                waiting = _waiting_for(story, entry.name, ask_id(key_prefix, entry.name, n) if n else None)
                if waiting is None:
                    waiting = Entry(
                        number=number, name=entry.name, kind="signal", status="received", started_at=now
                    )
                    story.append(waiting)
                waiting.status, waiting.finished_at, waiting.result = "received", now, plain(entry.value)
            case events.UpdateReceived():
                deliveries += 1
                updates[entry.msg] = line = Entry(
                    number=number,
                    name=entry.name,
                    kind="update",
                    status="running",
                    started_at=now,
                    input=plain(entry.value),
                )
                story.append(line)
            case events.UpdateAnswered():
                answered = updates.get(entry.msg)
                if answered is not None:
                    answered.finished_at = now
                    answered.status = "cancelled" if entry.how == "given_up" else entry.how
                    answered.result = plain(entry.result) if entry.how == "completed" else None
                    answered.failure = entry.failure
                    answered.error = None if entry.failure is None else describe(entry.failure)
            case events.CancelRequested():
                deliveries += 1
                story.append(
                    Entry(
                        number=number,
                        name="cancel",
                        kind="cancel",
                        status="received",
                        started_at=now,
                        finished_at=now,
                        result=entry.reason,
                    )
                )
            case events.Retried():
                for line in by_op.values():
                    if line.finished_at is None and line.is_activity:
                        line.status, line.attempts = "scheduled", 0
            case events.Noted():
                story.append(
                    Entry(
                        number=number,
                        name=entry.name,
                        kind=entry.kind or "activity",
                        status=entry.status,  # type: ignore[arg-type]  # as the pattern calls it
                        started_at=now,
                        finished_at=now,
                        source=entry.src,
                    )
                )
            case events.Patched():
                story.append(
                    Entry(
                        number=number,
                        name=entry.id,
                        kind="patch",
                        status="completed",
                        started_at=now,
                        finished_at=now,
                        result="deprecated" if entry.deprecated else None,
                        source=entry.src,
                    )
                )
            case events.Started():
                pass  # nothing that anyone waits for
            case (
                events.Completed()
                | events.Failed()
                | events.Cancelled()
                | events.ContinuedAsNew()
                | events.Terminated()
                | events.TimedOut()
            ):
                for line in story:
                    if line.finished_at is None:
                        line.status, line.finished_at = "cancelled", now
                        line.is_counted = not _has_attempts(line)
    for op, row in (attempts or {}).items():
        running = by_op.get(op)
        if running is None or running.finished_at is not None:
            continue
        running.attempts = row.attempt
        running.status = {"backoff": "retrying", "started": "running", "open": "running"}.get(
            row.state, "scheduled"
        )  # type: ignore[assignment]  # the four states
        running.is_open = row.state == "open"
        running.worker, running.hold = row.worker, row.hold
        running.failure = row.failure
        if row.failure is not None:
            running.error = describe(row.failure)
        if row.state in ("backoff", "open") and row.due_at_us is not None:
            running.due_at = instant(row.due_at_us)
    return Story(
        entries=story,
        open=[line for line in story if line.finished_at is None and line.kind != "update"],
        last_at=now,
        deliveries=deliveries,
    )


def _has_attempts(line: Entry) -> bool:
    return line.is_activity and not line.child


def _waiting_for(story: Iterable[Entry], name: str, ask: str | None) -> Entry | None:
    """Return who is given a signal: the question that it answers, if it names one, else who has waited longest."""
    for line in story:
        is_open = line.kind == "signal" and line.name == name and line.status == "waiting"
        if is_open and ask in (None, line.ask):
            return line
    return None


def _line(by_op: dict[int, Entry], op: int, number: int) -> Entry:
    line = by_op.get(op)
    if line is None:
        raise UndecodableError(
            f"the journal is damaged: entry {number} tells of operation {op}, which nobody asked for"
        )
    return line


def blockers(story: Story, now: datetime) -> list[Blocker]:
    """Say what an open, driven run waits for, most telling first; never empty."""
    found: list[Blocker] = []
    for line in story.open:
        if line.child:
            text = f"child run {line.child}"
            found.append(Blocker(kind="activity", name=line.name, text=text, source=line.source))
        elif line.is_activity:
            if line.status == "retrying":
                text = f"{line.name}: attempt {line.attempts + 1} {_in(line.due_at, now)} after {line.error}"
                found.append(
                    Blocker(kind="retry", name=line.name, text=text, due_at=line.due_at, source=line.source)
                )
            else:
                due = line.due_at if line.is_open else None
                text = f"{line.name}: {_doing(line, now)}"
                found.append(
                    Blocker(kind="activity", name=line.name, text=text, due_at=due, source=line.source)
                )
    timers = [line for line in story.open if line.kind == "timer" and line.due_at is not None]
    next_timer = min((line.due_at for line in timers if line.due_at is not None), default=None)
    for line in story.open:
        if line.kind == "signal":
            found.append(_signal_blocker(line, next_timer, now))
        elif line.kind == "condition":
            found.append(
                Blocker(
                    kind="condition",
                    name="",
                    text=line.name or f"condition at {line.source}",
                    due_at=next_timer,
                    source=line.source,
                )
            )
    if not any(b.kind in ("signal", "condition") for b in found):
        for line in sorted(timers, key=lambda line: line.due_at or EPOCH)[:1]:
            found.append(
                Blocker(
                    kind="timer",
                    name=line.name,
                    text=f"timer {_in(line.due_at, now)}",
                    due_at=line.due_at,
                    source=line.source,
                )
            )
    return found or [
        Blocker(
            kind="nothing",
            name="",
            text="nothing it asked for is open: only a signal or an update with a handler, or a cancel, can move it",
        )
    ]


def _doing(line: Entry, now: datetime) -> str:
    """Say what an activity that is not between attempts waits for."""
    if line.is_open:
        limit = f" (times out {_in(line.due_at, now)})" if line.due_at is not None else ""
        return f"attempt {line.attempts} waits to be completed from outside{limit}"
    if line.queue:
        return _doing_elsewhere(line)
    return f"attempt {line.attempts} running" if line.attempts else "waiting for a free slot"


def _doing_elsewhere(line: Entry) -> str:
    """Say what an activity waits for that workers of another queue perform."""
    if line.status == "running":
        return f'attempt {line.attempts} running on {line.worker or "a worker"} (queue "{line.queue}")'
    if line.hold == "no_worker":
        return f'no living worker serves it on queue "{line.queue}"'
    if line.hold == "paused":
        return f'queue "{line.queue}" is paused'
    return f'waiting for a worker of queue "{line.queue}"'


def _signal_blocker(line: Entry, next_timer: datetime | None, now: datetime) -> Blocker:
    limit = f" (times out {_in(next_timer, now)})" if next_timer is not None else ""
    what = (
        f'answer to "{line.name}": {" ".join(line.prompt.split())}' if line.ask else f'signal "{line.name}"'
    )
    return Blocker(
        kind="signal",
        name=line.name,
        text=f"{what}{limit}",
        due_at=next_timer,
        source=line.source,
        prompt=line.prompt,
        ask=line.ask,
    )


def _in(due: datetime | None, now: datetime) -> str:
    if due is None:
        return "soon"
    left = (due - now).total_seconds()
    return f"in {duration_text(left)}" if left > 0 else "now"


def duration_text(seconds: float) -> str:
    """Return `0.21s`, `12.4s`, `9m 12s`, `3h 05m` or `2d 4h`."""
    if seconds < 10:
        return f"{seconds:.2f}s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"
