"""What must be true of a database and a side-effect log after any sequence of deaths. Reads; changes nothing.

The rules are those of the guarantees: a journal only grows and has no gaps; a body never starts again once its result is on
record; every start more than an undisturbed run needs is owed to the death of a process in which an earlier one was; attempt
numbers rise; a result on record is what some body returned; signals are delivered once, in order; timers are never early;
each run has one end.
"""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import msgspec

from durable.journal.events import (
    END_TYPES,
    ActivityCompleted,
    ActivityFailed,
    AnyEntry,
    ScheduleActivity,
    SignalReceived,
    StartChild,
    StartTimer,
    TimerFired,
)
from durable.journal.lifecycle import RunStatus
from durable.journal.turns import decode_turn
from durable.payloads.codec import is_sealed
from durable.store.codes import shown_status
from tests.support import postgres
from tests.support.crash_ledger import Line

PATTERN_ATTEMPTS_MAX: Final = 4  # of steps that a pattern made
VOLATILE: Final = "noted"  # the part of a result that chance decides
Key = tuple[str, int, int, int]  # run id, generation, turn, part
Journal = Mapping[Key, bytes]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended."""

    status: RunStatus
    result: Any = None
    reason: str | None = None
    failure: Any = None


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All of a database that the checks look at, read at one moment."""

    journal: dict[Key, bytes]
    runs: dict[str, Outcome]
    generations: dict[str, int]
    epochs: dict[tuple[str, int], int]
    inbox: list[tuple[str, str, bytes]]  # run id, kind, data
    owned: list[str]
    attempts: list[tuple[str, int]]  # rows left of closed runs
    workers: list[tuple[int, int, bool, int | None]]  # id, pid, is alive, when it was stopped


EMPTY: Final = Reading(
    journal={}, runs={}, generations={}, epochs={}, inbox=[], owned=[], attempts=[], workers=[]
)


JOURNALS: Final = (
    "SELECT run.run_id, journal.generation, turn, part, data FROM journal JOIN run ON run.id = journal.run"
    " ORDER BY run.id, journal.generation, turn, part"
)
WHOLE_JOURNALS: Final = JOURNALS.replace(  # a file keeps large rows apart
    " data ", " coalesce((SELECT payload.data FROM payload WHERE payload.id = journal.payload), data) "
)
GENERATIONS: Final = (
    "SELECT run.run_id, generation.generation, generation.epoch FROM generation JOIN run ON run.id = run"
)
RUNS: Final = (
    "SELECT run.run_id, run.status, started_at_us, run.generation, run.epoch, reason, result, failure FROM run"
    " JOIN run_payload ON run_payload.run = run.id AND run_payload.generation = run.generation"
)
INBOXES: Final = (
    "SELECT run_id, inbox.kind, data FROM inbox JOIN run ON run.id = inbox.run ORDER BY run.id, msg"
)
OWNED: Final = "SELECT run_id FROM run WHERE owner IS NOT NULL AND status >= 10"
ATTEMPTS: Final = "SELECT run_id, op FROM attempt JOIN run ON run.id = attempt.run WHERE status >= 10"
WORKERS: Final = "SELECT id, pid, is_alive, stopped_at_us FROM worker ORDER BY id"
LOOKS: Final = (JOURNALS, GENERATIONS, RUNS, INBOXES, OWNED, ATTEMPTS, WORKERS)
FILE_LOOKS: Final = (WHOLE_JOURNALS, *LOOKS[1:])


def read_database(database: Path) -> Reading:
    """Read through SQLite, never writing: a log that a dead process left is not merged into the file."""
    if not database.exists():
        return EMPTY
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10, isolation_level=None)
    try:
        connection.execute("BEGIN")
        if not connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'payload'").fetchone()[0]:
            return EMPTY
        return _reading([connection.execute(look).fetchall() for look in FILE_LOOKS])
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
            return EMPTY  # a file that nobody has switched to a log yet: whoever writes next rolls it back
        raise
    finally:
        connection.close()


def read_schema(url: str) -> Reading:
    """Read a schema of a server, as of one moment."""
    found = postgres.snapshot(url, "journal", LOOKS)
    return EMPTY if found is None else _reading(found)


def _reading(found: Sequence[Sequence[tuple[Any, ...]]]) -> Reading:
    journals, closed, latest, inboxes, owned, attempts, workers = found
    runs, generations = {}, {}
    epochs = {(run_id, generation): epoch for run_id, generation, epoch in closed}
    for run_id, status, started, generation, epoch, reason, result, failure in latest:
        runs[run_id] = Outcome(
            status=shown_status(status, has_started=started is not None),
            result=_decoded(result),
            reason=reason,
            failure=_decoded(failure),
        )
        generations[run_id] = generation
        epochs[run_id, generation] = epoch
    return Reading(
        journal={(run_id, generation, turn, part): data for run_id, generation, turn, part, data in journals},
        runs=runs,
        generations=generations,
        epochs=epochs,
        inbox=[(run_id, kind, data) for run_id, kind, data in inboxes],
        owned=[run_id for (run_id,) in owned],
        attempts=[(run_id, op) for run_id, op in attempts],
        workers=[(number, pid, bool(alive), stopped) for number, pid, alive, stopped in workers],
    )


def _decoded(data: bytes | None) -> Any:
    """What is encrypted stays as it is."""
    return data if data is None or is_sealed(data) else msgspec.json.decode(data)


def differences(before: Reading, after: Reading) -> Iterator[str]:
    """An earlier reading of the journal is a prefix of a later one, byte for byte; an end is for ever."""
    for key, data in before.journal.items():
        if after.journal.get(key) != data:
            yield f"journal row {key} was {data!r} and is {after.journal.get(key)!r}"
    for run_id, outcome in before.runs.items():
        if outcome.status.is_closed and after.runs.get(run_id) != outcome:
            yield f"{run_id} had ended as {outcome} and now is {after.runs.get(run_id)}"


def entries_of(reading: Reading) -> dict[tuple[str, int], list[AnyEntry]]:
    """Return the entries of each (run, generation) in order."""
    found: defaultdict[tuple[str, int], list[AnyEntry]] = defaultdict(list)
    for (run_id, generation, _, _), data in sorted(reading.journal.items()):
        found[run_id, generation].extend(decode_turn(data).entries)
    return found


def undone(reading: Reading, run_id: str) -> list[str]:
    """Return the steps whose compensation is on record as completed, in that order."""
    entries = entries_of(reading)[run_id, 1]
    names = {entry.op: entry.name for entry in entries if isinstance(entry, ScheduleActivity)}
    done = [names[entry.op] for entry in entries if isinstance(entry, ActivityCompleted)]
    return [name.removesuffix("/compensation") for name in done if name.endswith("/compensation")]


class Checks:
    """The rules, over one final reading. `shaken` are the processes that died, were stopped or were drained.

    `slack_us`: how far the clock of the journal may be behind the one of the ledger (a server's is known to a round trip).
    """

    def __init__(
        self,
        reading: Reading,
        ledger: Sequence[Line],
        *,
        shaken: Collection[int],
        undisturbed_starts: Mapping[str, int],
        attempts_max: Mapping[str, int],
        drained: Collection[int] = (),
        slack_us: int = 0,
    ) -> None:
        self.reading = reading
        self.ledger = ledger
        self.entries = entries_of(reading)
        self.shaken = set(shaken)
        self.drained = set(drained)
        self.slack_us = slack_us
        self.undisturbed_starts = undisturbed_starts
        self.attempts_max = attempts_max
        self.by_key: defaultdict[str, list[Line]] = defaultdict(list)
        for line in ledger:
            self.by_key[line.key].append(line)

    def violations(self, expected: Mapping[str, Outcome]) -> list[str]:
        """Return what is wrong, in words."""
        return [
            *self._outcomes(expected),
            *self._journals(),
            *self._activities(),
            *self._children(),
            *self._starts(),
            *self._signals(),
            *self._timers(),
        ]

    def _outcomes(self, expected: Mapping[str, Outcome]) -> Iterator[str]:
        for run_id, outcome in expected.items():
            got = self.reading.runs.get(run_id)
            if got is None:
                yield f"{run_id} is not in the database"
            elif without_chance(got) != outcome:
                yield f"{run_id} should be {outcome} and is {got}"
        for run_id, kind, data in self.reading.inbox:
            if self.reading.runs[run_id].status.is_closed:
                yield f"closed run {run_id} has an unread {kind}: {data!r}"
        yield from (f"closed run {run_id} has an owner" for run_id in self.reading.owned)
        yield from (
            f"closed run {run_id} has an open attempt of {op}" for run_id, op in self.reading.attempts
        )

    def _journals(self) -> Iterator[str]:
        turns: defaultdict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
        for run_id, generation, turn, part in sorted(self.reading.journal):
            turns[run_id, generation].append((turn, part))
        for where, numbers in turns.items():
            if [turn for turn, part in numbers if part == 1] != list(range(1, len(dict(numbers)) + 1)):
                yield f"the turns of {where} have a gap: {numbers}"
        for (run_id, generation), entries in self.entries.items():
            ends = [entry for entry in entries if isinstance(entry, END_TYPES)]
            is_closed = (
                generation < self.reading.generations[run_id] or self.reading.runs[run_id].status.is_closed
            )
            if is_closed and (len(ends) != 1 or ends[0] is not entries[-1]):
                yield f"{run_id}@{generation} has the ends {ends} and the last entry {entries[-1]}"
            if not is_closed and ends:
                yield f"open run {run_id}@{generation} has the end {ends}"

    def keys_of(self, run_id: str, generation: int) -> dict[int, str]:
        """Return the idempotency key of each operation that is an activity."""
        epoch = self.reading.epochs[run_id, generation]
        return {
            entry.op: f"{run_id}@{epoch}/{entry.name}#{entry.n}"
            for entry in self.entries[run_id, generation]
            if isinstance(entry, ScheduleActivity) and not isinstance(entry, StartChild)
        }

    def _children(self) -> Iterator[str]:
        """Each was started once, and what its parent has of it is what it ended with."""
        asked: Counter[str] = Counter()
        for where, entries in self.entries.items():
            started = {entry.op: entry for entry in entries if isinstance(entry, StartChild)}
            if where[1] == self.reading.generations[where[0]]:
                asked.update(entry.run_id for entry in started.values())
            for entry in entries:
                if isinstance(entry, ActivityCompleted | ActivityFailed) and entry.op in started:
                    child = started[entry.op].run_id
                    got = self.reading.runs.get(child)
                    if got is None or not got.status.is_closed:
                        yield f"{where} has an outcome of its child {child}, which is {got}"
                    elif isinstance(entry, ActivityCompleted) and got.result != msgspec.json.decode(
                        bytes(entry.result)
                    ):
                        yield f"{where} has the result {entry.result!r} of its child {child}, whose own is {got.result!r}"
        for run_id in asked:
            if run_id not in self.reading.runs:
                yield f"{run_id} was to be started as a child, and was not"
        yield from (f"{run_id} is the child of {times} calls" for run_id, times in asked.items() if times > 1)

    def _activities(self) -> Iterator[str]:
        """What is on record happened, once, and nothing started after it."""
        for (run_id, generation), entries in self.entries.items():
            keys = self.keys_of(run_id, generation)
            recorded: Counter[int] = Counter()
            for entry in entries:
                if isinstance(entry, ActivityCompleted | ActivityFailed) and entry.op not in keys:
                    continue  # of a child
                if isinstance(entry, ActivityCompleted):
                    recorded[entry.op] += 1
                    yield from self._completed(keys[entry.op], entry)
                elif isinstance(entry, ActivityFailed):
                    recorded[entry.op] += 1
                    if generation == self.reading.generations[run_id]:
                        yield from self._started_late(keys[entry.op], entry.at)
            yield from (
                f"{keys[op]} is recorded {times} times" for op, times in recorded.items() if times > 1
            )

    def _completed(self, key: str, entry: ActivityCompleted) -> Iterator[str]:
        yield from self._started_late(key, entry.at)
        value = msgspec.json.decode(bytes(entry.result))
        ends = [line for line in self.by_key[key] if line.what == "end" and line.attempt == entry.attempts]
        if not any(line.value == value and line.at_us <= entry.at + self.slack_us for line in ends):
            yield f"{key} has the result {value!r} of attempt {entry.attempts}, but its bodies ended as {ends}"

    def _started_late(self, key: str, at_us: int) -> Iterator[str]:
        for line in self.by_key[key]:
            if line.what == "start" and line.at_us > at_us + self.slack_us:
                yield f"{key} started again {line.at_us - at_us} us after its outcome was recorded: {line}"

    def _starts(self) -> Iterator[str]:
        for key, lines in self.by_key.items():
            starts = [line for line in lines if line.what == "start"]
            if not starts:
                continue  # cancelled before its body began
            name = key.rpartition("/")[2].partition("#")[0]
            lives = self.reading.generations.get(starts[0].run_id, 1)  # it may be deleted
            owed = {line.pid for line in starts} & self.shaken
            if len(starts) > self.undisturbed_starts.get(name, 1) + len(owed):
                yield f"{key} started {len(starts)} times, though only {owed or 'nobody'} died in it: {starts}"
            most = self.attempts_max.get(name, PATTERN_ATTEMPTS_MAX)
            if len(starts) > most * lives + len(owed & self.drained):
                yield f"{key} started {len(starts)} times, more than {most} in {lives} lives"
            yield from self._rising(key, starts, lives)

    def _rising(self, key: str, starts: Sequence[Line], lives: int) -> Iterator[str]:
        """Attempt numbers rise; only a workflow-level retry starts over, and only a drain gives one back."""
        resets = 0
        for before, after in pairwise(starts):
            if after.attempt > before.attempt:
                continue
            if after.attempt == before.attempt and before.pid in self.drained:
                continue
            resets += 1
        if resets > lives - 1:
            yield f"the attempts of {key} do not rise: {[(line.pid, line.attempt) for line in starts]}"

    def _signals(self) -> Iterator[str]:
        for (run_id, generation), entries in self.entries.items():
            received = [entry for entry in entries if isinstance(entry, SignalReceived)]
            numbers = [entry.msg for entry in received]
            if numbers != sorted(set(numbers)):
                yield f"{run_id}@{generation} received its messages in the order {numbers}"
            ids = Counter(entry.id for entry in received)
            yield from (
                f"{run_id} received signal {id!r} {times} times" for id, times in ids.items() if times > 1
            )

    def _timers(self) -> Iterator[str]:
        for where, entries in self.entries.items():
            due = {entry.op: entry.due for entry in entries if isinstance(entry, StartTimer)}
            for entry in entries:
                if isinstance(entry, TimerFired) and entry.at < due[entry.op]:
                    yield f"timer {entry.op} of {where} fired {due[entry.op] - entry.at} us early"


def without_chance(outcome: Outcome) -> Outcome:
    if isinstance(outcome.result, dict) and VOLATILE in outcome.result:
        kept = {name: value for name, value in outcome.result.items() if name != VOLATILE}
        return msgspec.structs.replace(outcome, result=kept)
    return outcome
