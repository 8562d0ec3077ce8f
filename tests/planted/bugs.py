"""The bugs that are planted: each breaks one rule on which the promises rest.

A search must stand once in its file. If a change of the code breaks one, plant the same mistake where the rule lives now.
"""

from __future__ import annotations

from typing import Final

from tests.planted.authors import CHEATS, HANDLERS, UPDATES
from tests.planted.families import ELSEWHERE, FAMILIES, SCRIPTS
from tests.planted.harness import bug
from tests.planted.seen_by_tests import GUARDS, SERVER

SQL: Final = "durable/store/sqlite/queries.sql"
CLAIMS: Final = "durable/store/sqlite/driving.py"
TAKEOVERS: Final = "durable/store/sqlite/workers.py"
TURNS: Final = "durable/store/sqlite/committing.py"
DRIVING: Final = "durable/worker/driving.py"
FEEDING: Final = "durable/worker/feeding.py"
LEAVING: Final = "durable/worker/leaving.py"
ENDINGS: Final = "durable/worker/endings.py"
RECOVERING: Final = "durable/worker/recovering.py"
PERFORMING: Final = "durable/worker/performing.py"
COMMITTING: Final = "durable/worker/committing.py"
CLAIMING: Final = "durable/worker/claiming.py"
LIFE: Final = "durable/worker/life.py"
SAGAS: Final = "durable/sagas.py"


MESSAGES: Final = (
    bug(
        "sleep-without-count",
        "a run goes to sleep only if no message came since it looked: it is counted on the run's row",
        (
            SQL,
            "tried_code = ''\nWHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen;",
            "tried_code = ''\nWHERE id = :run AND owner = :worker AND claim_no = :claim_no AND :seen >= 0;",
        ),
    ),
    bug(
        "close-without-count",
        "a run closes only when every message has been delivered",
        (
            SQL,
            "closed_at_us = :now_us, reason = :reason\nWHERE id = :run AND owner = :worker AND claim_no = :claim_no AND msg_seq = :seen;",
            "closed_at_us = :now_us, reason = :reason\nWHERE id = :run AND owner = :worker AND claim_no = :claim_no AND :seen >= 0;",
        ),
    ),
    bug(
        "conditional-count",
        "a message is counted whatever the state of the run is: one that is awake may be about to sleep",
        (
            SQL,
            "    msg_seq = msg_seq + 1,\n",
            "    msg_seq = msg_seq + (status = 2),\n",
        ),
    ),
    bug(
        "no-wake-by-message",
        "a message makes a run that sleeps ready in its own transaction",
        (
            SQL,
            "status = CASE WHEN status <> 2 THEN status WHEN paused_at_us IS NULL THEN 0 ELSE 4 END",
            "status = status",
        ),
    ),
    bug(
        "watermark",
        "messages are consumed by explicit lists, not up to the highest number seen",
        (
            "durable/worker/live.py",
            "self.inbox = deque(claim.inbox)\n",
            "self.inbox = deque(one for one in claim.inbox if one.msg >= claim.msg_seq)\n",
        ),
    ),
    bug(
        "lost-redelivery",
        "messages that a workflow-level retry takes back are delivered again",
        (
            LEAVING,
            "        redeliver=tuple(map(redelivery_of, delivered_again(dropped, instance.begun_updates()))),\n",
            "        redeliver=(),\n",
        ),
    ),
    bug(
        "forgotten-message-id",
        "a message sent twice under one id is stored once, also after it was consumed",
        (
            SQL,
            "SELECT msg FROM message_id WHERE run = :run AND message_id = :message_id;",
            "SELECT msg FROM inbox WHERE run = :run AND message_id = :message_id;",
        ),
        (
            SQL,
            "INSERT INTO message_id (run, message_id, msg) VALUES (:run, :message_id, :msg);",
            "INSERT OR REPLACE INTO message_id (run, message_id, msg) VALUES (:run, :message_id, :msg);",
        ),
    ),
)

OWNERSHIP: Final = (
    bug(
        "unproven-fence",
        "a turn counts as written only if the run was still this worker's",
        (
            TURNS,
            "if rows and db.executemany(self._insert_if_owned, rows).rowcount != len(rows):",
            "if rows and db.executemany(self._insert_if_owned, rows).rowcount < 0:",
        ),
    ),
    bug(
        "fence-without-owner",
        "a write of a worker proves that it owns the run",
        (
            SQL,
            "FROM run WHERE run.id = ? AND run.owner = ? AND run.claim_no = ?;\n\n-- name: insert_turn\n",
            "FROM run WHERE run.id = ? AND ? > 0 AND ? > 0;\n\n-- name: insert_turn\n",
        ),
        (
            SQL,
            "INSERT INTO journal (run, generation, turn, part, data, payload)\nSELECT run.id, ?",
            "INSERT OR REPLACE INTO journal (run, generation, turn, part, data, payload)\nSELECT run.id, ?",
        ),
        tests=("tests/store/test_committing.py", "-k", "sqlite and writes_nothing_to_a_run_it_lost"),
    ),
    bug(
        "claim-of-what-is-owned",
        "a claim takes only what nobody owns",
        (
            SQL,
            "WHERE id IN (SELECT value FROM json_each(:runs)) AND status = 0 AND (is_delayed = 0 OR ready_at_us <= :now_us)",
            "WHERE id IN (SELECT value FROM json_each(:runs)) AND status < 2 AND (is_delayed = 0 OR ready_at_us <= :now_us)",
        ),
        (
            SQL,
            "WHERE candidate.status = 0 AND candidate.is_delayed = 0",
            "WHERE candidate.status < 2 AND candidate.is_delayed = 0",
        ),
    ),
    bug(
        "claims-of-the-dead",
        "a dead incarnation claims nothing: nobody would ever take it back",
        (
            CLAIMS,
            '        require_alive(db, self._sql, worker)\n        chosen = {"worker": worker, "runs"',
            '        chosen = {"worker": worker, "runs"',
        ),
    ),
    bug(
        "hasty-takeover",
        "a worker is dead when it has been silent for a lease, not sooner",
        (
            TAKEOVERS,
            "return self._watch.silent_seconds(worker.worker, monotonic(), lease_seconds) >= lease_seconds",
            "return self._watch.silent_seconds(worker.worker, monotonic(), lease_seconds) >= lease_seconds / 8",
        ),
    ),
    bug(
        "a-life-too-many",
        "an incarnation that beats is the worker's: none is left behind, alive, with what it has claimed",
        (
            LIFE,
            "        except StoreError as error:\n            # Not a reason",
            "        except KeyError as error:\n            # Not a reason",
        ),
    ),
    bug(
        "effects-of-the-stale",
        "before an effect is released the age of the lease is looked at",
        (
            "durable/worker/incarnation.py",
            "return min(since, self._beat_at) + self.lease_seconds * FRESH_SHARE",
            "return since + 1e9",
        ),
    ),
    bug(
        "lease-counted-from-the-commit",
        "whoever takes a lease waits since the last beat: what is released is not released later than that allows",
        (
            "durable/worker/incarnation.py",
            "return min(since, self._beat_at) + self.lease_seconds * FRESH_SHARE",
            "return since + self.lease_seconds * FRESH_SHARE",
        ),
        tests=("tests/worker/test_worker_lives.py", "-k", "lease_is_proven"),
    ),
    bug(
        "started-while-it-looked",
        "what is started while a worker asks for what it owns is not lost",
        (
            "durable/worker/claiming.py",
            "        for run in known:\n",
            "        for run in list(self._driver.runs.values()):\n",
        ),
        tests=("tests/worker/test_worker_lives.py", "-k", "sqlite and asks_what_it_owns"),
    ),
    bug(
        "first-step-of-a-former-life",
        "what begins long after its commit is written anew before: nobody knows whose its run is",
        (COMMITTING, "partial(incarnation.is_recent, since)", "partial(incarnation.is_fresh, since)"),
        tests=("tests/worker/test_worker_lives.py", "-k", "sqlite and former_life"),
    ),
    bug(
        "unload-is-release",
        "a run with an activity in flight keeps its owner",
        (
            LEAVING,
            "if run.outcomes or _has_activities_here(run, instance) or len(run.attempts) - taken > run.opened:",
            "if run.outcomes:",
        ),
    ),
    bug(
        "everybody-is-to-blame",
        "a crash counts only against the run that was driven alone",
        (
            SQL,
            "SELECT id, run_id FROM run WHERE owner = :worker AND suspicion = 2;",
            "SELECT id, run_id FROM run WHERE owner = :worker;",
        ),
        (
            SQL,
            "AND generation = run.generation) > trial_turn THEN 0",
            "AND generation = run.generation) < 0 THEN 0",
        ),
        tests=("tests/store/test_suspects.py", "-k", "sqlite and blamed_on_that_run_alone"),
    ),
    bug(
        "ownerless-takeover",
        "a takeover sets all runs of the dead worker ready",
        (
            SQL,
            "WHERE owner = :worker;\n\n-- name: suspect_of_worker",
            "WHERE owner = :worker AND suspicion = 0;\n\n-- name: suspect_of_worker",
        ),
    ),
)

COMMITS: Final = (
    bug(
        "acknowledge-before-commit",
        "effects happen after the commit",
        (
            COMMITTING,
            "        try:\n            verdicts = await self._store.commit_turns(",
            '        try:\n            self._release(items, ["committed"] * len(items), incarnation, since)\n            items = []\n'
            "            verdicts = await self._store.commit_turns(",
        ),
    ),
    bug(
        "unknown-is-success",
        "a commit without an answer may not have happened",
        (
            COMMITTING,
            "            self._failed(items, incarnation, error)\n        else:\n",
            "            if isinstance(error, LeaseLostError):\n                self._failed(items, incarnation, error)\n"
            "            else:\n"
            '                self._release(items, ["committed"] * len(items), incarnation, since)\n        else:\n',
        ),
    ),
    bug(
        "unknown-is-failure",
        "a commit without an answer may have happened: the journal is read before anything goes on",
        (
            COMMITTING,
            "            if not item.is_marks:\n                driver.doubt(item.run)\n",
            '            if not item.is_marks:\n                item.run.phase = type(item.run.phase)("idle")\n                driver.mark(item.run)\n',
        ),
    ),
    bug(
        "outcomes-go-with-the-instance",
        "an outcome that was not committed is fed again",
        (
            "durable/worker/live.py",
            "        self.outcomes.extendleft(reversed(outcomes))\n",
            "",
        ),
    ),
    bug(
        "work-goes-with-the-instance",
        "discarding an instance does not discard the activities in flight",
        (
            DRIVING,
            "        self.feeder.undo(run, (), item.taken, item.slots)\n        self._forget_instance(run)\n",
            "        self.feeder.undo(run, (), item.taken, item.slots)\n        self.performer.drop(run)\n        self._forget_instance(run)\n",
        ),
    ),
    bug(
        "instance-survives-its-turn",
        "an instance whose turn was not committed is rebuilt from the journal",
        (
            DRIVING,
            "        if run.instance is not None:\n            self._evictions.append(run.instance)\n            run.instance = None\n",
            "        if run.instance is not None and run.phase is _GONE:\n            self._evictions.append(run.instance)\n            run.instance = None\n",
        ),
    ),
    bug(
        "marks-ignored",
        "what a turn consumed leaves the inbox in the same transaction",
        (SQL, "DELETE FROM inbox WHERE id = ? AND run = ?;", "DELETE FROM inbox WHERE id = ? AND run = -?;"),
    ),
)

ACTIVITIES: Final = (
    bug(
        "attempts-in-memory",
        "an attempt is counted in the database before it starts",
        (
            PERFORMING,
            'op=a.call.op, attempt=a.number + 1, state="started", due_at_us=now_us',
            'op=a.call.op, attempt=a.number, state="started", due_at_us=now_us',
        ),
    ),
    bug(
        "lost-attempts-are-free",
        "an attempt lost with its worker counts as failed",
        (
            RECOVERING,
            '    elif row.state == "started" if row is not None else was_started:\n',
            '    elif row is not None and row.state == "started":\n',
        ),
    ),
    bug(
        "no-backoff",
        "the next attempt waits as long as the policy says",
        (
            ENDINGS,
            "        self._performer.write(attempt.run, [row])\n        self.wait_out(attempt, delay_us)\n",
            "        self._performer.write(attempt.run, [row])\n        self.wait_out(attempt, delay_us // 2)\n",
        ),
    ),
    bug(
        "one-attempt-more",
        "no more attempts than the policy allows",
        (
            "durable/retry.py",
            "return self.max_attempts == 0 or failed < self.max_attempts",
            "return self.max_attempts == 0 or failed <= self.max_attempts",
        ),
    ),
    bug(
        "handed-back-is-charged",
        "what a worker that stops hands back is not charged",
        (
            LEAVING,
            'op=op, attempt=attempt.number - 1, state="handed_back"',
            'op=op, attempt=attempt.number, state="handed_back"',
        ),
    ),
    bug(
        "more-than-slots",
        "no more activities at a time than the worker has slots",
        (
            PERFORMING,
            "if self._free > 0 and not self._queue and not self.is_draining:",
            "if not self._queue and not self.is_draining:",
        ),
    ),
    bug(
        "slots-leak",
        "a slot whose turn was not committed is given back",
        (
            PERFORMING,
            "        self._free += slots\n        if slots and self._queue:",
            "        if slots and self._queue:",
        ),
    ),
    bug(
        "key-of-the-generation",
        "an idempotency key stays the same in a workflow-level retry",
        (
            "durable/engine/course.py",
            'f"{identity.run_id}@{identity.epoch}/", identity.task_queue',
            'f"{identity.run_id}@{identity.generation}/", identity.task_queue',
        ),
    ),
)

TIME: Final = (
    bug(
        "timers-fire-early",
        "a timer never fires before it is due",
        (
            FEEDING,
            "    return op if due <= now else None\n",
            "    return op if due <= now + 200_000 else None\n",
        ),
    ),
    bug(
        "wake-by-notification-only",
        "behind every hint stands a poll",
        (
            CLAIMING,
            "                await self.wakeups.wait(POLL_SECONDS)\n",
            "                await self.wakeups.wait(86_400)\n",
        ),
    ),
    bug(
        "timers-looked-at-seldom",
        "a timer that was stored by another process fires in time, too",
        ("durable/scheduler/due.py", "POLL_SECONDS: Final = 0.5", "POLL_SECONDS: Final = 40.0"),
    ),
    bug(
        "deadline-forgotten",
        "the deadline of a run holds across workflow-level retries and takeovers",
        (
            SQL,
            "WHERE status < 10 AND deadline_us IS NOT NULL AND deadline_us <= :now_us\n",
            "WHERE status < 2 AND deadline_us IS NOT NULL AND deadline_us <= :now_us\n",
        ),
    ),
)

LIVES: Final = (
    bug(
        "retry-from-nothing",
        "a workflow-level retry keeps what was completed before the failure",
        (
            LEAVING,
            "turn, index = instance.failed_at if instance.failed_at is not None else (1, 0)",
            "turn, index = (1, 0)",
        ),
    ),
    bug(
        "retry-keeps-the-failure",
        "a workflow-level retry drops the failure itself",
        (
            LEAVING,
            "            kept = list(recorded[:index])\n",
            "            kept = list(recorded[: index + 1])\n",
        ),
    ),
    bug(
        "values-unseen-by-the-codec",
        "a value that code sees is the one a replay will see",
        (
            "durable/payloads/values.py",
            "        return data, self.decode(data)\n",
            "        return data, value\n",
        ),
    ),
)

PATTERNS: Final = (
    bug(
        "compensations-in-order",
        "what was done is undone in reverse",
        (
            SAGAS,
            "            name, prefix, undo = self._done.pop()\n",
            "            name, prefix, undo = self._done.pop(0)\n",
        ),
    ),
    bug(
        "compensation-of-what-failed",
        "only what is recorded as done is undone",
        (
            SAGAS,
            "                make = undo_uncertain if _is_uncertain(error) else None\n",
            "                make = undo\n",
        ),
    ),
    bug(
        "compensation-is-cancelled",
        "no cancellation reaches a compensation",
        (SAGAS, "            await shielded(self._undo_all())\n", "            await self._undo_all()\n"),
    ),
    bug(
        "one-failed-compensation-ends-it",
        "a completed scope is not undone any more",
        (
            SAGAS,
            "        if self._done or self._open:\n            await shielded",
            "        if False:\n            await shielded",
        ),
    ),
    bug(
        "last-branch-only",
        "all nodes that follow a node of a graph are run",
        (
            "durable/patterns/graph/frontier.py",
            "        for target in targets:\n            self._pending.setdefault",
            "        for target in list(targets)[-1:]:\n            self._pending.setdefault",
        ),
    ),
)

OUTSIDE: Final = (
    bug(
        "answer-to-a-former-run",
        "a token is for one run: none that has its id after a deletion takes the answer",
        (
            "durable/store/sqlite/completions.py",
            '    if db.execute(sql["has_life"], life).fetchone() is None:\n',
            "    if not life:\n",
        ),
        tests=("tests/worker/test_completions.py", "-k", "sqlite and deleted_run"),
    ),
    bug(
        "answer-of-another-attempt",
        "an answer counts for the attempt whose token it bears",
        (
            SQL,
            "AND op = :op AND attempt = :attempt AND state = 'started';",
            "AND op = :op AND :attempt > 0 AND state = 'started';",
        ),
        is_narrow=True,
    ),
    bug(
        "keys-of-a-former-life",
        "a run that is started anew has other idempotency keys",
        (
            SQL,
            "    generation = generation + 1, epoch = epoch + 1, workflow = :workflow,",
            "    generation = generation + 1, epoch = epoch, workflow = :workflow,",
        ),
    ),
    bug(
        "keys-of-the-deleted",
        "a run whose id was deleted has other idempotency keys than it had",
        (
            "durable/store/sqlite/starting.py",
            "        self._first_epoch = last_epoch_pruned + 1",
            "        self._first_epoch = last_epoch_pruned * 0 + 1",
        ),
    ),
    bug(
        "deletion-leaves-messages",
        "what is deleted is deleted with all that belongs to it",
        ("durable/store/sqlite/maintenance.py", '    "prune_message_ids",\n', ""),
    ),
    bug(
        "signal-wakes-what-is-paused",
        "a run that is resumed goes on: what came meanwhile has not been lost",
        (
            SQL,
            "status = CASE WHEN status = 4 THEN 0 ELSE status END\nWHERE run_id = :run_id AND status < 10 AND paused_at_us IS NOT NULL;",
            "status = CASE WHEN status = 4 THEN 2 ELSE status END\nWHERE run_id = :run_id AND status < 10 AND paused_at_us IS NOT NULL;",
        ),
    ),
)

PARKED: Final = (
    bug(
        "results-go-with-the-park",
        "what had ended well when its run parks is kept, and not performed again",
        (
            LEAVING,
            "    item = new_item(run)\n    _park(item, run, fault, code)\n    item.answers = _answers(run)\n",
            "    item = new_item(run)\n    _park(item, run, fault, code)\n    item.answers = []\n",
        ),
    ),
    bug(
        "parked-attempts-stay-charged",
        "what is under way when its run parks is handed back uncharged",
        (
            LEAVING,
            "    item.answers = _answers(run)\n    item.attempts = [*_given_up(run), *_answered(item.answers)]\n    return item\n\n\ndef _park(",
            "    item.answers = _answers(run)\n    item.attempts = [*_answered(item.answers)]\n    return item\n\n\ndef _park(",
        ),
        tests=("tests/worker/test_parked_runs.py", "-k", "sqlite and not_charged"),
    ),
    bug(
        "code-of-a-run-that-leaves-runs-on",
        "the code of a run has ended before it is written that the run leaves",
        (
            "durable/worker/driving.py",
            "        return run.has_running_attempts and not (run.is_waited_out or self.performer.is_over)\n",
            "        return False\n",
        ),
        tests=("tests/worker/test_leaving.py", "-k", "sqlite"),
    ),
    bug(
        "unreadable-task-is-fatal",
        "a worker that cannot read what an activity is to be called with hands it back",
        (
            "durable/worker/task_performing.py",
            "    def misread(self, attempt: Attempt",
            "    def misread_(self, attempt: Attempt",
        ),
    ),
)

BUGS: Final = (
    *PATTERNS, *OUTSIDE, *MESSAGES, *OWNERSHIP, *COMMITS, *ACTIVITIES, *TIME, *LIVES, *ELSEWHERE, *FAMILIES, *SCRIPTS, *SERVER,
    *GUARDS, *CHEATS, *HANDLERS, *UPDATES, *PARKED,
)  # fmt: skip
