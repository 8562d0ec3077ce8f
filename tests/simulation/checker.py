"""What must hold, asked of the database itself by a connection of its own; and of what the outside world saw."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from durable import ActivityInfo, RunHandle
from durable.journal.turns import decode_turn
from durable.store.records import (
    ChildStart,
    Claim,
    FailedAttempt,
    Rescue,
    StartOutcome,
    TaskEnd,
    TurnCommit,
    Verdict,
)
from durable.worker.live import AttemptState, Item, LiveRun
from tests.simulation.activities import Body, this_node
from tests.simulation.codec import looked_at
from tests.simulation.node import START_US

if TYPE_CHECKING:
    from durable.default import EmbeddedEngine
    from tests.simulation.node import Node
    from tests.simulation.simulation import Simulation

EPSILON = 0.001
SLOWEST = 0.95  # clocks of nodes run as fast as that, or as slow
LATE_SECONDS = 15.0  # healed, nothing that is ready or due may lie about for so long

BELONGINGS = (
    "journal", "inbox", "attempt", "message_id", "request", "run_payload", "payload", "generation", "child", "activity_task",
)  # fmt: skip
ASKED_FOR = "SELECT 1 FROM request WHERE request_id = ?"
NOT_BEGUN = (
    "SELECT 1 FROM run JOIN worker ON worker.id = owner WHERE run.id = ? AND owner = ? AND is_alive = 1 AND NOT EXISTS"
    " (SELECT 1 FROM journal WHERE run = run.id AND journal.generation = run.generation)"
)
LEFT = "SELECT 1 FROM {} WHERE run = ?"

# What no statement may do, whichever it is: asked of SQLite itself on every connection that writes.
RULES = {
    "I4 a run was taken from its owner by somebody who is not: {0}": (
        "UPDATE OF owner ON main.run",
        "OLD.owner IS NOT NULL AND NEW.owner IS NOT NULL AND OLD.owner <> NEW.owner",
    ),
    "I4 a worker that is not alive took run {0}": (
        "UPDATE OF owner ON main.run",
        "NEW.owner IS NOT NULL AND NEW.owner IS NOT OLD.owner AND NOT EXISTS"
        " (SELECT 1 FROM main.worker WHERE id = NEW.owner AND is_alive = 1)",
    ),
    "I4 the claims of run {0} were counted backwards": (
        "UPDATE OF claim_no ON main.run",
        "NEW.claim_no < OLD.claim_no",
    ),
    "I2 a message of run {0} was counted twice or backwards": (
        "UPDATE OF msg_seq ON main.run",
        "NEW.msg_seq NOT IN (OLD.msg_seq, OLD.msg_seq + 1)",
    ),
    "I15 run {0} was closed and changed": (
        "UPDATE ON main.run",
        "OLD.status >= 10 AND NEW.generation = OLD.generation AND NEW.status <> OLD.status",
    ),
    "P6 run {0} began anew under the keys of its former life": (
        "UPDATE OF generation ON main.run",
        "OLD.status >= 10 AND NEW.attempt = 1 AND NEW.epoch = OLD.epoch",
    ),
    "I4 task {0} was taken from its worker by another": (
        "UPDATE OF owner ON main.activity_task",
        "OLD.owner IS NOT NULL AND NEW.owner IS NOT NULL AND OLD.owner <> NEW.owner",
    ),
    "I4 a worker that is not alive took task {0}": (
        "UPDATE OF owner ON main.activity_task",
        "NEW.owner IS NOT NULL AND NEW.owner IS NOT OLD.owner AND NOT EXISTS"
        " (SELECT 1 FROM main.worker WHERE id = NEW.owner AND is_alive = 1)",
    ),
    "I5 task {0} was begun without being charged": (
        "UPDATE OF owner ON main.activity_task",
        "NEW.owner IS NOT NULL AND (NEW.attempt <> OLD.attempt + 1 OR NEW.claim_no <> OLD.claim_no + 1)",
    ),
    "I5 task {0} was begun when its time to begin was over": (
        "UPDATE OF owner ON main.activity_task",
        "OLD.owner IS NULL AND NEW.owner IS NOT NULL AND OLD.care_at_us <= NEW.started_at_us",
    ),
    "I16 run {0} has become the child of another parent than the one that waits for it": (
        "UPDATE OF parent ON main.child",
        "OLD.parent <> NEW.parent AND EXISTS (SELECT 1 FROM main.run WHERE id = OLD.parent AND status < 10)",
    ),
}
ROWS = {
    "main.run": "NEW.run_id",
    "main.activity_task": "NEW.id",
    "main.child": "NEW.run",
}  # how a rule calls them


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
        self.hurried: set[FailedAttempt] = set()  # by somebody who did not want to wait
        self.pruned: set[int] = set()  # runs that may be deleted
        self._latest: dict[tuple[int, int, int], Body] = {}  # by run, generation and operation
        self.running: dict[tuple[str, bool], list[Body]] = {}  # by node, and whether they are tasks
        self.looks = 0
        self.workers: dict[int, Node] = {}
        self.beats: dict[int, float] = {}  # when each worker's last beat was written
        # By node, run and generation: from their start on, as their starters were told.
        self._owned: set[tuple[str, int, int]] = set()
        # How many signals came first in the inbox of a run, when it was taken, and when its first turn was written.
        self._at_claim: dict[tuple[int, int, int], int] = {}  # by run, generation and claim
        self.leading: dict[tuple[int, int], int] = {}
        self._ready: dict[
            int, tuple[int, float]
        ] = {}  # run -> since when it is ready, and when that was seen

    def guard(self, db: sqlite3.Connection) -> None:
        """Let a connection that writes ask whether each of its statements may do what it does."""
        db.create_function("broken_rule", 2, lambda rule, row: self.fail(*rule.format(row).split(" ", 1)))
        for number, (rule, (when, condition)) in enumerate(RULES.items()):
            row = ROWS[when.partition(" ON ")[2]]
            db.execute(
                f"CREATE TEMP TRIGGER rule{number} AFTER {when} WHEN {condition} "
                f"BEGIN SELECT broken_rule('{rule}', {row}); END"
            )
        db.create_function("task_handed_back", 3, self._on_handed_back)
        db.execute(
            "CREATE TEMP TRIGGER handed_back AFTER UPDATE OF attempt ON main.activity_task"
            " WHEN NEW.attempt < OLD.attempt BEGIN SELECT task_handed_back(NEW.run, NEW.generation, NEW.op); END"
        )

    def close(self) -> None:
        if self._db is not None:
            self._db.close()

    def query(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        if self._db is None:
            self._db = sqlite3.connect(f"file:{self._database}?mode=ro", uri=True, isolation_level=None)
        return self._db.execute(sql, parameters).fetchall()

    def _on_handed_back(self, run: int, generation: int, op: int) -> None:
        key = (run, generation, op)
        self.handed_back[key] = self.handed_back.get(key, 0) + 1

    def fail(self, rule: str, text: str) -> None:
        self._simulation.violation(f"{rule}: {text}")

    # ─ at any time ──

    def look(self) -> None:
        """I1: journals only grow, without gaps. I15: an end stays what it is."""
        self.looks += 1
        seen: dict[tuple[int, int], list[tuple[int, int, bytes]]] = {}
        for run, generation, turn, part, data in self.query(
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
        self._look_at_deleted()
        for key, journal in self._journals.items():
            if journal.rows != len(seen.get(key, ())):
                self.fail("I1", f"rows of the journal of run {key} are gone")
        self._look_at_ends()
        self._look_at_rest()

    def _look_at_deleted(self) -> None:
        """What was deleted is gone with all that belonged to it."""
        there = {row[0] for row in self.query("SELECT id FROM run")}
        for run in {key[0] for key in self._journals} - there:
            if run not in self.pruned:
                self.fail("I1", f"run {run} is gone, and nobody has deleted it")
            for table in BELONGINGS:
                if self.query(LEFT.format(table), run):
                    self.fail("I1", f"run {run} was deleted, and some of it is left in {table}")
            for known in (self._journals, self._ends):
                for key in [key for key in known if key[0] == run]:
                    del known[key]

    def check_taken(self, body: Body) -> None:
        """I3: an answer that was taken is one to the last attempt."""
        later = [
            one for one in self.bodies.get((body.key, body.generation), ()) if one.attempt > body.attempt
        ]
        if later:
            self.fail(
                "I3",
                f"{body.key}: an answer to attempt {body.attempt} was taken in attempt {later[0].attempt}",
            )

    def check_answer(self, pk: int, generation: int) -> None:
        """P20: a worker that told how a run ended has written it."""
        if pk not in self.pruned and self.query(
            "SELECT 1 FROM run WHERE id = ? AND generation = ? AND status < 10", pk, generation
        ):
            self.fail("P20", f"the end of run {pk} was told, and is not written")

    def _look_at_rest(self) -> None:
        """I2: who sleeps or has ended has no unread messages. I17: what is ready is taken, once all is well."""
        for run_id, status in self.query(
            "SELECT DISTINCT run_id, status FROM run JOIN inbox ON inbox.run = run.id"
            # The answer to an activity that was given up meanwhile stays with the closed run, and is deleted with it.
            " WHERE status = 2 OR (status >= 10 AND inbox.kind <> 'activity')"
        ):
            self.fail("I2", f"{run_id} has status {status}, and messages that nobody has read")
        for (run_id,) in self.query(
            "SELECT run_id FROM run JOIN worker ON worker.id = run.owner WHERE is_alive = 0 AND status < 10"
        ):
            self.fail("I17", f"{run_id} belongs to a worker that is declared dead")
        for (task,) in self.query(
            "SELECT activity_task.id FROM activity_task JOIN worker ON worker.id = owner WHERE is_alive = 0"
        ):
            self.fail("I17", f"task {task} belongs to a worker that is declared dead")
        healed_at, now = self._simulation.healed_at, self._simulation.loop.now
        ready = dict(self.query("SELECT id, ready_at_us FROM run WHERE status = 0 AND is_delayed = 0"))
        if healed_at is None or not self._simulation.is_roomy:
            return
        self._ready = {
            run: self._ready[run] if self._ready.get(run, (None,))[0] == since else (since, now)
            for run, since in ready.items()
        }
        self._look_at_clock()
        for run, (_, seen) in self._ready.items():
            if now - seen > LATE_SECONDS:
                self.fail("I17", f"run {run} is ready for {now - seen:.0f} s, and nobody takes it")

    def _look_at_ends(self) -> None:
        ends = {
            (row[0], row[1]): tuple(row[2:])
            for row in self.query(
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

    def _look_at_clock(self) -> None:
        """I6: what is due is woken, and what has run out of time is closed, soon after all is well."""
        simulation = self._simulation
        assert simulation.healed_at is not None
        now = simulation.loop.now
        if not simulation.is_punctual or now - simulation.healed_at < LATE_SECONDS:
            return
        long_ago_us = START_US + round((now - LATE_SECONDS) * 1_000_000)
        for (run_id,) in self.query("SELECT run_id FROM run WHERE status = 2 AND due_at_us < ?", long_ago_us):
            self.fail("I6", f"{run_id} is due for more than {LATE_SECONDS:g} s, and sleeps on")
        for (run_id,) in self.query(
            "SELECT run_id FROM run WHERE status < 10 AND deadline_us < ?", long_ago_us
        ):
            self.fail("I6", f"the deadline of {run_id} was more than {LATE_SECONDS:g} s ago")

    def check_rescue(self, rescued: Sequence[Rescue], observer: Node) -> None:
        """P10: who was declared dead is gone, or was silent for a lease, by whatever clock."""
        for one in rescued:
            node, beat = self.workers.get(one.worker_id), self.beats.get(one.worker_id, 0.0)
            silent = self._simulation.loop.now - beat
            is_there = node is not None and not node.is_dead and not node.has_let_go
            if is_there and silent < self._simulation.lease * SLOWEST:
                self.fail("P10", f"{observer} declares {node} dead, which wrote a beat {silent:.2f} s ago")

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

    def charged(
        self, db: sqlite3.Connection, commits: Sequence[TurnCommit]
    ) -> dict[tuple[int, int, int], tuple[int, str]]:
        """Return the attempts that rows say are charged, before anything is written, and how they are, of what is handed back."""
        return {
            (commit.pk, commit.generation, row.op): charged
            for commit in commits
            for row in commit.attempts
            if row.state == "handed_back"
            for charged in db.execute(
                "SELECT attempt, state FROM attempt WHERE run = ? AND generation = ? AND op = ?",
                (commit.pk, commit.generation, row.op),
            )
        }

    def check_fence(
        self,
        db: sqlite3.Connection,
        before: dict[int, tuple[Any, ...]],
        charged: dict[tuple[int, int, int], tuple[int, str]],
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
            if commit.turn == 1:
                taken = commit.pk, commit.generation, commit.claim_no
                self.leading[taken[:2]] = self._at_claim.get(taken, 0)
            if type(commit.after).__name__ == "Stay":
                self._check_written(db, commit)
            is_parked = type(commit.after).__name__ == "Park"
            for row in commit.attempts:
                if is_parked and row.completion == "answered":
                    self._simulation.features["result of a run that parks"] += 1
                if row.state == "handed_back":
                    key = (commit.pk, commit.generation, row.op)
                    self._on_handed_back(*key)
                    body = self._latest.get(key)
                    was, state = charged.get(key, (0, ""))
                    if was > row.attempt or (was, state) == (row.attempt, "handed_back"):
                        continue  # the body before it was lost; that one has not begun. Or: as was written before
                    if body is not None and body.ended is None and row.attempt >= body.attempt:
                        self.fail("I20", f"{body.key}: attempt {body.attempt} is handed back, and charged")

    def on_started(self, outcomes: Sequence[StartOutcome]) -> None:
        """Note who was told of having started a run as its owner."""
        node = this_node().name
        self._owned.update(
            (node, one.run.pk, one.run.generation) for one in outcomes if one.claim is not None
        )

    def check_driven(self, engine: EmbeddedEngine, handle: RunHandle[Any]) -> None:
        """P30: a script that has started a run drives it by the time that its code is told so."""
        started, worker = (this_node().name, handle._pk, handle._generation), engine._worker
        if started not in self._owned or worker is None or worker.life.tenure.is_lost():
            return
        if handle._pk in worker.life.driver.runs:
            return
        if self.query(NOT_BEGUN, handle._pk, worker.worker_id):
            self.fail("P30", f"{handle.run_id} was started by a script, and nobody drives it")

    def on_claimed(self, claims: Sequence[Claim]) -> None:
        """Note what was there for a run when it was taken."""
        for claim in claims:
            leading = takewhile(lambda message: message.kind == "signal", claim.inbox)
            self._at_claim[claim.pk, claim.generation, claim.claim_no] = sum(1 for _ in leading)

    def on_given_up(self, run: LiveRun, item: Item) -> None:
        """I3, I20: of a run that is let go, what has ended well is kept, and what is under way is not charged."""
        rows = {row.op: row for row in item.attempts}
        lost = {outcome.op for outcome in run.outcomes if outcome.failure is not None}  # with a former life
        for op, attempt in run.attempts.items():
            body = self._latest.get((run.pk, run.generation, op))
            if (
                body is None
                or body.attempt != attempt.number
                or body.node
                != this_node().name  # else it was lost with its worker, whatever came of it there
                or attempt.is_remote
                or attempt.answer is not None
            ):
                continue
            row = rows.get(op)
            what = f"{body.key}: attempt {body.attempt}"
            is_kept = row is not None and row.completion == "answered"
            is_uncharged = row is not None and row.state == "handed_back"
            is_under_way = attempt.state is AttemptState.RUNNING and attempt.is_on_loop and body.ended is None
            if (
                attempt.state is AttemptState.DONE
                and body.how == "returned"
                and op not in lost
                and not is_kept
            ):
                self.fail("I3", f"{what} has ended well, and is to be performed again")
            if row is not None and is_uncharged and row.attempt >= body.attempt:
                self.fail("I20", f"{what} is given up by a row that charges it")
            if is_under_way and not is_uncharged:
                self.fail("I20", f"{what} is given up, and charged")

    def children_asked_for(self, db: sqlite3.Connection, commits: Sequence[TurnCommit]) -> list[set[str]]:
        """Return, for each turn, which of the children that it asks for have been asked for already, by their requests."""
        return [_requested(db, commit) if commit.errands else set() for commit in commits]

    def check_refused(
        self,
        db: sqlite3.Connection,
        before: Sequence[set[str]],
        commits: Sequence[TurnCommit],
        verdicts: Sequence[Verdict],
    ) -> None:
        """I16: what a turn that is refused asks for children is not done."""
        for requested, commit, verdict in zip(before, commits, verdicts, strict=True):
            if not commit.errands or verdict in ("committed", "stayed"):
                continue
            self._simulation.features["children of a refused turn"] += 1
            if early := _requested(db, commit) - requested:
                self.fail(
                    "I16", f"a turn of run {commit.pk} was refused ({verdict}), and has started {early}"
                )

    def _check_written(self, db: sqlite3.Connection, commit: TurnCommit) -> None:
        """P17: what is called committed is in the journal, and is that."""
        if commit.turn is None:
            return
        rows = db.execute(
            "SELECT coalesce((SELECT payload.data FROM payload WHERE payload.id = journal.payload), data) FROM journal"
            " WHERE run = ? AND generation = ? AND turn = ? ORDER BY part",
            (commit.pk, commit.generation, commit.turn),
        ).fetchall()
        if [bytes(row[0]) for row in rows] != [bytes(part) for part in commit.parts]:
            self.fail(
                "I1", f"turn {commit.turn} of run {commit.pk} is called committed, and is not what is stored"
            )

    # ─ when a body begins ──

    def on_body(self, info: ActivityInfo, body: Body, *, is_part: bool) -> None:
        """I3: not after its result was recorded. I5: attempts rise, within the limit, not sooner than the policy says."""
        if is_part:
            return  # the activity as a whole is on record, under another key
        self._check_slots(body)
        ((pk, epoch),) = self.query("SELECT id, epoch FROM run WHERE run_id = ?", info.run_id)
        prefix, _, count = info.idempotency_key.rpartition("#")
        if not prefix.startswith(f"{info.run_id}@{epoch}/"):
            return  # of an earlier life of the id, not yet unwound
        # What the body's worker knows: it may have been away while the run was ended and tried again.
        generation = body.generation
        op = None
        for _, entry in self.entries(pk, generation):
            name = type(entry).__name__
            if name == "ScheduleActivity" and (entry.name, entry.n) == (info.activity, int(count)):
                op = entry.op
            elif name in ("ActivityCompleted", "ActivityFailed") and entry.op == op:
                self.fail(
                    "I3",
                    f"{info.idempotency_key} begins anew on {body.node}; its outcome is recorded: {entry}",
                )
        if op is None:
            self.fail(
                "I3",
                f"{info.idempotency_key} begins on {body.node}, but no turn that schedules it is recorded",
            )
            return
        self._latest[pk, generation, op] = body
        if generation > 1 and epoch == self._epoch_before(pk, generation):
            self._check_kept(pk, generation - 1, info, int(count))
        body.handed_back = self.handed_back.get((pk, generation, op), 0)
        bodies = self.bodies.setdefault((info.idempotency_key, generation), [])
        if bodies:
            self._check_attempts(info, op, bodies[-1], body)
        limit = 0 if body.policy is None else body.policy.max_attempts
        if limit and body.attempt > limit:
            self.fail("I5", f"{info.idempotency_key}: attempt {body.attempt} of at most {limit}")
        bodies.append(body)

    def _epoch_before(self, pk: int, generation: int) -> int | None:
        rows = self.query(
            "SELECT epoch FROM generation WHERE run = ? AND generation = ? AND status = 15",
            pk,
            generation - 1,
        )
        return rows[0][0] if rows else None

    def _check_kept(self, pk: int, generation: int, info: ActivityInfo, count: int) -> None:
        """P7: what was completed before the failure that a workflow-level retry goes back to is kept."""
        entries = self.entries(pk, generation)
        origin = getattr(entries[-1][1], "origin", None) if entries else None
        op, place, turn_before = None, 0, 0
        for turn, entry in entries if origin is not None else ():
            place = place + 1 if turn == turn_before else 0
            turn_before = turn
            if (turn, place) >= tuple(origin):
                return
            if type(entry).__name__ == "ScheduleActivity" and (entry.name, entry.n) == (info.activity, count):
                op = entry.op
            elif type(entry).__name__ == "ActivityCompleted" and entry.op == op:
                self.fail(
                    "P7", f"{info.idempotency_key} begins anew, though it was completed before the failure"
                )

    def _check_slots(self, body: Body) -> None:
        """I8: a worker performs no more activities at a time than it has slots."""
        running = self.running.setdefault((body.node, body.is_task), [])
        running[:] = [one for one in running if one.ended is None]
        running.append(body)
        limit = self._simulation.machine.slots_of(body.node, is_task=body.is_task)
        if len(running) > limit:
            self.fail("I8", f"{body.node} performs {len(running)} activities and has {limit} slots")

    def _check_attempts(self, info: ActivityInfo, op: int, last: Body, body: Body) -> None:
        what = f"{info.idempotency_key}: attempt {body.attempt} on {body.node} after {last.attempt} on {last.node}"
        if body.handed_back > last.handed_back:
            if body.attempt < last.attempt:
                self.fail("I5", what)
            return
        if body.attempt <= last.attempt:
            self.fail("I5", what)
        policy = body.policy
        hurried = FailedAttempt(
            run_id=info.run_id, generation=body.generation, op=op, attempt=body.attempt - 1
        )
        if (
            policy is None
            or hurried in self.hurried
            or self._simulation.faults.is_skewed
            or self._simulation.faults.counts["clock step"]
        ):
            return
        delay = policy.delay_us(last.attempt) / 1_000_000
        since = self._failed_at(last)
        if body.begun - since < delay - EPSILON:
            self.fail("I5", f"{what}: {body.begun - since:.3f} s later, the policy says {delay} s")

    def on_settled(self, ends: Sequence[TaskEnd]) -> None:
        """Attempts of tasks are failed by somebody who does not perform them."""
        for end in ends:
            task = end.task
            body = self._latest.get((task.pk, task.generation, task.op))
            if body is not None and body.attempt == task.attempt and body.settled is None:
                body.settled = self._simulation.loop.now

    def _failed_at(self, body: Body) -> float:
        """Return when an attempt failed: when its body ended, somebody saw its time run out, or its worker was declared dead."""
        stops = [
            (stopped - START_US) / 1_000_000
            for number, node in self.workers.items()  # by its number: a script's worker has another name
            if node.name == body.node
            for (stopped,) in self.query(
                "SELECT stopped_at_us FROM worker WHERE id = ? AND stopped_at_us IS NOT NULL", number
            )
        ]
        ends = [at for at in (*stops, body.settled, body.ended) if at is not None and at >= body.begun]
        return min(ends, default=body.begun)

    def entries(self, pk: int, generation: int) -> list[tuple[int, Any]]:
        rows = self.query(
            "SELECT turn, coalesce((SELECT payload.data FROM payload WHERE payload.id = journal.payload), data)"
            " FROM journal WHERE run = ? AND generation = ? ORDER BY turn, part",
            pk,
            generation,
        )
        return [(turn, entry) for turn, data in rows for entry in decode_turn(looked_at(data)).entries]


def _requested(db: sqlite3.Connection, commit: TurnCommit) -> set[str]:
    wanted = [one.request.request_id for one in commit.errands if isinstance(one, ChildStart)]
    return {one for one in wanted if db.execute(ASKED_FOR, (one,)).fetchone() is not None}
