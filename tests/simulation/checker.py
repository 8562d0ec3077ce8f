"""What must hold, asked of the database itself by a connection of its own; and of what the outside world saw."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from durable.activities import ActivityInfo
from durable.journal.turns import decode_turn
from durable.store.records import TurnCommit, Verdict
from tests.simulation import workload
from tests.simulation.node import START_US
from tests.simulation.workload import Body

if TYPE_CHECKING:
    from tests.simulation.clients import Errand
    from tests.simulation.simulation import Simulation

MAX_ATTEMPTS = {"work": 0, "fragile": 3, "fails_once": 1, "in_thread": 0, "too_slow_at_first": 0}
POLICIES = {
    "work": workload.persistent,
    "fragile": workload.limited,
    "in_thread": workload.persistent,
    "too_slow_at_first": workload.persistent,
}
EPSILON = 0.001


class Violation(AssertionError):
    """A promise was broken."""


class Journal(msgspec.Struct):
    rows: int = 0
    turn: int = 0
    part: int = 0
    data: list[bytes] = msgspec.field(default_factory=list)


class Checker:
    """Looks at everything, changes nothing."""

    def __init__(self, simulation: Simulation, database: Path) -> None:
        self._simulation = simulation
        self._database = database
        self._db: sqlite3.Connection | None = None
        self._journals: dict[tuple[int, int], Journal] = {}
        self._ends: dict[tuple[int, int], tuple[Any, ...]] = {}
        self.bodies: dict[tuple[str, int], list[Body]] = {}
        self.handed_back: dict[tuple[int, int, int], int] = {}
        self.looks = 0

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def _query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        if self._db is None:
            self._db = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, isolation_level=None)
        return self._db.execute(sql, parameters).fetchall()

    def fail(self, rule: str, text: str) -> None:
        self._simulation.violation(f"{rule}: {text}")

    # ─ at any time ──

    def look(self) -> None:
        """I1: journals only grow, without gaps. I15: an end stays what it is."""
        self.looks += 1
        seen: dict[tuple[int, int], list[tuple[int, int, bytes]]] = {}
        for run, generation, turn, part, data in self._query(
            "SELECT run, generation, turn, part, data FROM journal ORDER BY run, generation, turn, part"
        ):
            seen.setdefault((run, generation), []).append((turn, part, data))
        for key, rows in seen.items():
            journal = self._journals.setdefault(key, Journal())
            if [data for _, _, data in rows[: journal.rows]] != journal.data:
                self.fail("I1", f"the journal of run {key} does not extend what was read before")
            turn, part = journal.turn, journal.part
            for next_turn, next_part, data in rows[journal.rows :]:
                if (next_turn, next_part) not in ((turn + 1, 1), (turn, part + 1)):
                    self.fail("I1", f"run {key}: after turn {turn}/{part} comes {next_turn}/{next_part}")
                turn, part = next_turn, next_part
                journal.data.append(data)
            journal.rows, journal.turn, journal.part = len(rows), turn, part
        for key, journal in self._journals.items():
            if journal.rows != len(seen.get(key, ())):
                self.fail("I1", f"rows of the journal of run {key} are gone")
        self._look_at_ends()

    def _look_at_ends(self) -> None:
        ends = {
            (row[0], row[1]): tuple(row[2:])
            for row in self._query(
                "SELECT run.id, run.generation, status, reason, closed_at_us, result, failure FROM run"
                " JOIN run_payload ON run_payload.run = run.id AND run_payload.generation = run.generation"
                " WHERE status >= 10"
                " UNION ALL SELECT g.run, g.generation, status, reason, closed_at_us, result, failure"
                " FROM generation AS g"
                " JOIN run_payload ON run_payload.run = g.run AND run_payload.generation = g.generation"
            )
        }
        for key, end in self._ends.items():
            if ends.get(key) != end:
                self.fail("I15", f"run {key} had ended as {end} and is now {ends.get(key)}")
        self._ends.update(ends)

    # ─ in the transaction of a group commit ──

    def owners(self, db: sqlite3.Connection, worker: int, pks: Sequence[int]) -> dict[int, tuple[Any, ...]]:
        """Return who owns what, before anything is written; under 0, whether the worker is alive."""
        found: dict[int, tuple[Any, ...]] = {
            0: db.execute("SELECT is_alive FROM worker WHERE id = ?", (worker,)).fetchone() or (0,)
        }
        for pk in pks:
            found[pk] = db.execute(
                "SELECT owner, claim_no, generation, msg_seq FROM run WHERE id = ?", (pk,)
            ).fetchone()
        return found

    def check_fence(
        self,
        before: dict[int, tuple[Any, ...]],
        worker: int,
        commits: Sequence[TurnCommit],
        verdicts: Sequence[Verdict],
    ) -> None:
        """I4: only a living worker that owns the run under this very claim may have written."""
        for commit, verdict in zip(commits, verdicts, strict=True):
            if verdict not in ("committed", "stayed"):
                continue
            owner, claim_no, generation, _ = before[commit.pk]
            if not before[0][0]:
                self.fail("I4", f"worker {worker} is dead and wrote run {commit.pk}")
            if (owner, claim_no, generation) != (worker, commit.claim_no, commit.generation):
                self.fail(
                    "I4",
                    f"worker {worker} wrote run {commit.pk} under claim {commit.claim_no}; it belonged to {owner} under {claim_no}",
                )
            for row in commit.attempts:
                if row.state == "handed_back":
                    key = (commit.pk, commit.generation, row.op)
                    self.handed_back[key] = self.handed_back.get(key, 0) + 1

    # ─ when a body begins ──

    def on_body(self, info: ActivityInfo, body: Body) -> None:
        """I3: not after its result was recorded. I5: attempts rise, within the limit, not sooner than the policy says."""
        ((pk, generation, status, epoch),) = self._query(
            "SELECT id, generation, status, epoch FROM run WHERE run_id = ?", info.run_id
        )
        prefix, _, count = info.idempotency_key.rpartition("#")
        if not prefix.startswith(f"{info.run_id}@{epoch}/"):
            return  # of an earlier life of the id, not yet unwound
        body.generation = generation
        op = None
        for _, entry in self._entries(pk, generation):
            name = type(entry).__name__
            if name == "ScheduleActivity" and (entry.name, entry.n) == (info.activity, int(count)):
                op = entry.op
            elif name == "Retried":
                pass
            elif name in ("ActivityCompleted", "ActivityFailed") and entry.op == op:
                self.fail(
                    "I3",
                    f"{info.idempotency_key} begins anew on {body.node}; its outcome is recorded: {entry}",
                )
        if op is None and status < 10 and self._is_current(pk, body):
            self.fail(
                "I3",
                f"{info.idempotency_key} begins on {body.node}, but no turn that schedules it is recorded",
            )
        body.handed_back = self.handed_back.get((pk, generation, op or 0), 0)
        bodies = self.bodies.setdefault((info.idempotency_key, generation), [])
        if bodies:
            self._check_attempts(info, bodies[-1], body)
        limit = MAX_ATTEMPTS[info.activity]
        if limit and body.attempt > limit:
            self.fail("I5", f"{info.idempotency_key}: attempt {body.attempt} of at most {limit}")
        bodies.append(body)

    def _is_current(self, pk: int, body: Body) -> bool:
        """Whether the body's run has not moved to a next generation while it was on its way."""
        return body.generation == 1

    def _check_attempts(self, info: ActivityInfo, last: Body, body: Body) -> None:
        what = f"{info.idempotency_key}: attempt {body.attempt} on {body.node} after {last.attempt} on {last.node}"
        if body.handed_back > last.handed_back:
            if body.attempt < last.attempt:
                self.fail("I5", what)
            return
        if body.attempt <= last.attempt:
            self.fail("I5", what)
        policy = POLICIES.get(info.activity)
        if (
            policy is None
            or self._simulation.faults.is_skewed
            or self._simulation.faults.counts["clock step"]
        ):
            return
        delay = policy.delay_us(last.attempt) / 1_000_000
        since = self._failed_at(last)
        if body.begun - since < delay - EPSILON:
            self.fail("I5", f"{what}: {body.begun - since:.3f} s later, the policy says {delay} s")

    def _failed_at(self, body: Body) -> float:
        """Return when an attempt failed: when its body ended, or its worker was declared dead, whichever came first."""
        stops = [
            (stopped - START_US) / 1_000_000
            for (stopped,) in self._query(
                "SELECT stopped_at_us FROM worker WHERE name = ? AND stopped_at_us IS NOT NULL", body.node
            )
        ]
        ends = [at for at in (*stops, body.ended) if at is not None and at >= body.begun]
        return min(ends, default=body.begun)

    def _entries(self, pk: int, generation: int) -> list[tuple[int, Any]]:
        rows = self._query(
            "SELECT turn, data FROM journal WHERE run = ? AND generation = ? ORDER BY turn, part",
            pk,
            generation,
        )
        return [(turn, entry) for turn, data in rows for entry in decode_turn(data).entries]

    # ─ at the end ──

    def final(self, errands: Sequence[Errand]) -> None:
        self.look()
        for errand in errands:
            self._check_run(errand)

    def _check_run(self, errand: Errand) -> None:
        rows = self._query("SELECT id, generation, status FROM run WHERE run_id = ?", errand.run_id)
        if not rows:
            if errand.is_started:
                self.fail("I2", f"the start of {errand.run_id} was acknowledged, but there is no such run")
            return
        pk, generation, status = rows[0]
        if any(found != pk for found in errand.pks):
            self.fail("I10", f"starts of {errand.run_id} were told of runs {errand.pks}, it is {pk}")
        for one in range(1, generation + 1):
            self._check_timers(errand.run_id, [entry for _, entry in self._entries(pk, one)])
        entries = [entry for _, entry in self._entries(pk, generation)]
        ends = [
            e
            for e in entries
            if type(e).__name__ in ("Completed", "Failed", "Cancelled", "Terminated", "TimedOut")
        ]
        if (status >= 10) != (len(ends) == 1) or len(ends) > 1 or (ends and entries[-1] is not ends[0]):
            self.fail("I15", f"{errand.run_id} has status {status} and ends {ends}")
        received = [int(bytes(e.value)) for e in entries if type(e).__name__ == "SignalReceived"]
        if received != sorted(set(received)):
            self.fail("I2", f"{errand.run_id} received the signals {received}")
        end = type(ends[0]).__name__ if ends else None
        if end not in ("Terminated", "TimedOut"):
            lost = [value for value in range(errand.signals_stored) if value not in received]
            if lost and status >= 10:
                self.fail("I2", f"{errand.run_id}: signals {lost} were acknowledged and never delivered")
        messages = [e.msg for e in entries if type(e).__name__ in ("SignalReceived", "CancelRequested")]
        if len(messages) != len(set(messages)) or messages != sorted(messages):
            self.fail("I2", f"{errand.run_id}: messages in the order {messages}")

    def _check_timers(self, run_id: str, entries: list[Any]) -> None:
        """I6: by the clock that fed it, no timer fires before it is due."""
        due: dict[int, int] = {}
        for entry in entries:
            match type(entry).__name__:
                case "StartTimer":
                    due[entry.op] = entry.due
                case "TimerFired" if entry.at < due[entry.op]:
                    self.fail("I6", f"{run_id}: timer {entry.op} fired {due[entry.op] - entry.at} us early")
