"""Bugs among children, activities on other queues, embedded engines and codecs: what lies between two runs, or two workers."""

from __future__ import annotations

from typing import Final

from tests.planted.harness import bug

SQL: Final = "durable/store/sqlite/queries.sql"
CHILDREN: Final = "durable/store/sqlite/children.py"
TASKS: Final = "durable/worker/tasks.py"

ELSEWHERE: Final = (
    bug(
        "task-without-claim-number",
        "whoever ends a task proves that it is its worker, under this very claim",
        (
            SQL,
            "SELECT 1 FROM activity_task WHERE id = :task AND owner = :worker AND claim_no = :claim_no;",
            "SELECT 1 FROM activity_task WHERE id = :task AND :worker > 0 AND :claim_no > 0;",
        ),
        tests=("tests/store/test_tasks.py", "-k", "sqlite"),
    ),
    bug(
        "task-begun-uncharged",
        "an attempt elsewhere is charged in the transaction that takes its task",
        (
            SQL,
            "claim_no = claim_no + 1, attempt = attempt + 1, started_at_us = :now_us,",
            "claim_no = claim_no + 1, attempt = max(attempt, 1), started_at_us = :now_us,",
        ),
    ),
    bug(
        "task-begun-late",
        "what no worker has begun in its time is not begun by the first one that comes back",
        (
            SQL,
            "candidate.ready_at_us <= :now_us AND candidate.care_at_us > :now_us AND candidate.closing",
            "candidate.ready_at_us <= :now_us AND candidate.closing",
        ),
        (
            SQL,
            "AND closing = '' AND ready_at_us <= :now_us AND care_at_us > :now_us;",
            "AND closing = '' AND ready_at_us <= :now_us;",
        ),
    ),
    bug(
        "tasks-of-the-dead",
        "a takeover takes back the tasks of the dead worker, too",
        (
            SQL,
            "SET state = 'lost', owner = NULL, care_at_us = 0 WHERE owner = :worker;",
            "SET state = 'lost', owner = NULL, care_at_us = 0 WHERE owner = -:worker;",
        ),
    ),
    bug(
        "lost-claim-of-tasks",
        "what a claim took whose answer was lost is performed all the same",
        (TASKS, "            if one.task_id not in known:\n", "            if one.task_id < 0:\n"),
        tests=("tests/worker/test_remote_activities.py", "-k", "answer_was_lost"),
    ),
    bug(
        "task-handed-back-is-charged",
        "what a worker that stops hands back is not charged, elsewhere no more than here",
        (
            SQL,
            "attempt = attempt - :uncharged, ready_at_us = :ready_at_us,",
            "attempt = attempt - 0 * :uncharged, ready_at_us = :ready_at_us,",
        ),
    ),
    bug(
        "task-hurried-in-vain",
        "an attempt elsewhere that is hurried on is due at once",
        (
            SQL,
            "UPDATE activity_task SET\n    ready_at_us = :now_us,\n    care_at_us = min(",
            "UPDATE activity_task SET\n    ready_at_us = max(ready_at_us, :now_us),\n    care_at_us = min(",
        ),
    ),
    bug(
        "hurry-is-not-told",
        "a worker that waits for an attempt which is hurried on is told",
        (
            "durable/worker/completions.py",
            "                self._performer.endings.hasten(attempt)\n",
            "                pass\n",
        ),
    ),
    bug(
        "task-not-let-go",
        "a workflow that no longer waits for a task says so to whoever performs it",
        (
            "durable/worker/entrusting.py",
            "    item.tasks_closed = list(closed.values())\n",
            "    item.tasks_closed = []\n",
        ),
    ),
    bug(
        "here-and-elsewhere-by-number",
        "a run stays where an activity of it is to begin, however many are performed elsewhere",
        (
            "durable/worker/leaving.py",
            "    attempts = run.attempts\n    return any(",
            "    attempts = run.attempts\n    return len(instance.activities) > run.opened and any(",
        ),
        tests=("tests/worker/test_remote_activities.py", "-k", "stays_here"),
    ),
    bug(
        "abandoned-with-its-slot",
        "an activity that is abandoned as it is to begin gives its slot back",
        (
            "durable/worker/performing.py",
            "attempt.state is AttemptState.RUNNING and has_begun:",
            "attempt.state is AttemptState.RUNNING and (has_begun or True):",
        ),
        tests=("tests/worker/test_cancellation.py", "-k", "abandoned_as_it_is"),
    ),
)

FAMILIES: Final = (
    bug(
        "children-outlive-their-parent",
        "children are asked to cancel with the end of their parent, in its transaction",
        (
            SQL,
            "UPDATE run SET has_children = 1 WHERE id = :parent AND has_children = 0;",
            "UPDATE run SET has_children = 0 WHERE id = :parent AND has_children = 0;",
        ),
    ),
    bug(
        "child-of-the-last-turn",
        "a child that is started in the turn that closes its parent goes with it",
        (CHILDREN, "        elif is_over:\n", "        elif is_over and child.op < 0:\n"),
        tests=("tests/worker/test_children.py", "-k", "turn_that_closes"),
    ),
    bug(
        "children-of-the-refused",
        "a child is started by the turn that asks for it, if that is written",
        (
            CHILDREN,
            'if commit.errands and verdict in ("committed", "stayed"):',
            "if commit.errands and verdict:",
        ),
    ),
    bug(
        "child-told-too-early",
        "a parent is told of its child's end when that has come",
        (
            CHILDREN,
            "        if last.status.is_closed:\n",
            "        if last.status.is_closed or outcome.how == 'started':\n",
        ),
    ),
    bug(
        "cancelled-child-anew",
        "a child that was asked to cancel is not begun anew by a retry of its parent",
        (
            "durable/worker/children.py",
            "if call.run_id is None and call.closing is None else",
            "if call.run_id is None else",
        ),
        tests=("tests/worker/test_children.py", "-k", "sqlite and has_ended_of_that"),
    ),
    bug(
        "continued-is-closed",
        "a child that was continued has not ended: its last generation tells how it does",
        (
            CHILDREN,
            "    if run.status is not RunStatus.CONTINUED:\n",
            "    if run.status is not None:\n",
        ),
        tests=("tests/worker/test_children.py", "-k", "sqlite and went_on_in_another_generation"),
    ),
    bug(
        "children-without-epoch",
        "the children of a run that begins anew are other runs than those of its former life",
        (
            "durable/engine/operations.py",
            '        key = f"{self.key_prefix}{name}#{n}{retried}"\n',
            "        key = f\"{self.key_prefix.partition('@')[0]}@1/{name}#{n}{retried}\"\n",
        ),
    ),
    bug(
        "cancelled-once-for-ever",
        "a child that began anew is asked to cancel with its parent again",
        (
            SQL,
            "        WHEN NOT :is_new AND child.parent = excluded.parent THEN child.on_parent_close ELSE excluded.on_parent_close\n",
            "        WHEN :is_new >= 0 THEN child.on_parent_close ELSE excluded.on_parent_close\n",
        ),
        tests=("tests/worker/test_children.py", "-k", "began_anew"),
    ),
    bug(
        "trouble-with-a-child-is-fatal",
        "a worker whose database cannot tell how a child ended tries again",
        (
            "durable/worker/reloading.py",
            "                    claims = await claims_with_outcomes(self._client, claims)\n                except",
            "                except",
        ),
        (
            "durable/worker/reloading.py",
            "                found = {claim.pk",
            "                claims = await claims_with_outcomes(self._client, claims)\n                found = {claim.pk",
        ),
        tests=("tests/worker/test_worker_store_trouble.py", "-m", "", "-k", "cannot_be_read_now"),
    ),
)

SCRIPTS: Final = (
    bug(
        "start-forgotten-by-its-script",
        "a run that a script has started is driven by it, at once",
        (
            "durable/default.py",
            "                worker.adopt(outcome.claim)\n",
            "                worker.detach(outcome.claim.pk)\n",
        ),
    ),
    bug(
        "database-closed-under-its-worker",
        "a script that ends closes its database after its worker has handed back what it drives",
        (
            "durable/default.py",
            "            if self._work is not None:\n                await asyncio.gather(self._work, return_exceptions=True)\n            await self.client.close()\n",
            "            await self.client.close()\n            if self._work is not None:\n                await asyncio.gather(self._work, return_exceptions=True)\n",
        ),
    ),
    bug(
        "move-made-twice",
        "a transition of a state machine finds, when its activity is tried again, that it was made",
        (
            "durable/patterns/state_machine.py",
            "            if (number := place.ids.get(key)) is not None:\n",
            "            if (number := place.ids.get(key + key)) is not None:\n",
        ),
    ),
    bug(
        "child-in-clear",
        "whatever crosses the contract of the store passes the codec",
        (
            "durable/store/seals.py",
            '                "errands": [self._errand(one) for one in commit.errands],\n',
            '                "errands": list(commit.errands),\n',
        ),
    ),
)
