"""Activity tasks: claimed, kept alive, ended. One function per transaction.

A task is its worker's under a claim number, which rises with every claim; whoever writes about it names both, so of two that
end it one finds it gone. The run waits for it as long as there is its row of attempts ("remote"): every end of a run or of a
generation, and the workflow itself, removes that row, and what is left of the task is deleted by whoever finds it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from durable.store.records import (
    GRACE_US,
    NEVER_US,
    CaredTasks,
    HeldTask,
    Outgoing,
    Task,
    TaskBeat,
    TaskEnd,
    TaskVerdict,
    answer_id,
)
from durable.store.refusals import lease_lost
from durable.store.rows import held_task, json_text, task
from durable.store.sqlite.committing import require_alive
from durable.store.sqlite.inbox import put_message
from durable.store.sqlite.opened import Opened
from durable.store.sqlite.pausing import is_worker_paused
from durable.store.statements import Statements


class Tasks(Opened):
    """The verbs about activity tasks."""

    async def claim_tasks(
        self,
        worker_id: int,
        *,
        now_us: int,
        limit: int,
        lost_limit: int,
        task_queues: Sequence[str],
        activities: Sequence[str],
    ) -> list[Task]:
        """Look without a lock first: an idle claimer writes nothing."""
        chosen = chosen_parameters(task_queues, activities, now_us)
        with self._reading() as reader:
            found = find_ready_tasks(reader, self._sql, chosen, limit=limit, lost_limit=lost_limit)
            if not found and reader.execute(self._sql["worker_is_alive"], (worker_id,)).fetchone() is None:
                raise lease_lost(worker_id)
            if not found or is_worker_paused(reader, self._sql, worker_id):
                return []
        return await self._write(lambda db: claim_tasks(db, self._sql, worker_id, found, now_us))

    async def read_held_tasks(self, worker_id: int) -> list[HeldTask]:
        with self._reading() as reader:
            return read_held_tasks(reader, self._sql, worker_id)

    async def beat_tasks(self, worker_id: int, beats: Sequence[TaskBeat], now_us: int) -> None:
        await self._write(lambda db: beat_tasks(db, self._sql, worker_id, beats, now_us))

    async def end_tasks(self, worker_id: int, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        verdicts = await self._write(lambda db: end_tasks(db, self._sql, worker_id, ends, now_us))
        self._wakeups.tell(others=True)
        return verdicts

    async def find_stray_tasks(self, now_us: int, limit: int = 100) -> CaredTasks:
        with self._snapshot() as reader:
            return find_stray_tasks(reader, self._sql, now_us, limit)

    async def settle_tasks(self, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        verdicts = await self._write(lambda db: settle_tasks(db, self._sql, ends, now_us))
        self._wakeups.tell(others=True)
        return verdicts

    async def read_tasks(self, pk: int, generation: int) -> list[Task]:
        with self._snapshot() as reader:
            return read_tasks(reader, self._sql, pk, generation, self._clock.now_us())


def find_ready_tasks(
    db: sqlite3.Connection, sql: Statements, chosen: dict[str, object], *, limit: int, lost_limit: int
) -> list[int]:
    """Return the tasks a worker may try to claim. A read."""
    found: list[int] = []
    for task_id, is_lost, _ in db.execute(
        sql["find_ready_tasks"], {**chosen, "count": limit, "lost_count": lost_limit}
    ):
        if is_lost:
            if lost_limit <= 0:
                continue
            lost_limit -= 1
        found.append(task_id)
    return found


def claim_tasks(
    db: sqlite3.Connection, sql: Statements, worker: int, found: Sequence[int], now_us: int
) -> list[Task]:
    """Claim those of the tasks that are still ready, and charge their attempts; delete those that nobody waits for."""
    require_alive(db, sql, worker)
    claimed: list[Task] = []
    for task_id in found:
        key = {"task": task_id}
        if db.execute(sql["task_is_awaited"], key).fetchone() is None:
            db.execute(sql["delete_task"], key)
            continue
        claim = {**key, "worker": worker, "now_us": now_us, "grace_us": GRACE_US}
        if db.execute(sql["claim_task"], claim).rowcount:
            claimed.append(_read(db, sql, task_id, now_us))
    return claimed


def read_held_tasks(db: sqlite3.Connection, sql: Statements, worker: int) -> list[HeldTask]:
    return [held_task(row) for row in db.execute(sql["read_held_tasks"], {"worker": worker})]


def beat_tasks(
    db: sqlite3.Connection, sql: Statements, worker: int, beats: Sequence[TaskBeat], now_us: int
) -> None:
    """Note signs of life; of a task that is no longer the worker's nothing is noted."""
    db.executemany(
        sql["beat_task"],
        [
            {
                "task": beat.task.task_id,
                "claim_no": beat.task.claim_no,
                "worker": worker,
                "details": beat.details,
                "now_us": now_us,
                "grace_us": GRACE_US,
            }
            for beat in beats
        ],
    )


def end_tasks(
    db: sqlite3.Connection, sql: Statements, worker: int, ends: Sequence[TaskEnd], now_us: int
) -> list[TaskVerdict]:
    """Write what became of tasks this worker performed."""
    require_alive(db, sql, worker)
    return [_end(db, sql, "task_is_held", end, {"worker": worker}, now_us) for end in ends]


def settle_tasks(
    db: sqlite3.Connection, sql: Statements, ends: Sequence[TaskEnd], now_us: int
) -> list[TaskVerdict]:
    """Write what is to become of stray tasks, whoever performs them."""
    return [_end(db, sql, "task_is_stray", end, {"now_us": now_us}, now_us) for end in ends]


def find_stray_tasks(db: sqlite3.Connection, sql: Statements, now_us: int, limit: int) -> CaredTasks:
    """Read the tasks somebody is to look at. A read."""
    found = [row[0] for row in db.execute(sql["find_stray_tasks"], {"now_us": now_us, "count": limit})]
    (next_at_us,) = db.execute(sql["next_task_care"]).fetchone()
    return CaredTasks(
        tasks=[_read(db, sql, task_id, now_us) for task_id in found],
        next_at_us=None if next_at_us == NEVER_US else next_at_us,
    )


def read_tasks(db: sqlite3.Connection, sql: Statements, run: int, generation: int, now_us: int) -> list[Task]:
    found = [row[0] for row in db.execute(sql["find_tasks_of_run"], {"run": run, "generation": generation})]
    return [_read(db, sql, task_id, now_us) for task_id in found]


def chosen_parameters(
    task_queues: Sequence[str], activities: Sequence[str], now_us: int
) -> dict[str, object]:
    """Return the bound values by which ready tasks are found."""
    return {
        "task_queues": json_text(list(task_queues)),
        "activities": json_text(list(activities)),
        "now_us": now_us,
    }


def _read(db: sqlite3.Connection, sql: Statements, task_id: int, now_us: int) -> Task:
    row: Sequence[Any] = db.execute(sql["read_task"], {"task": task_id, "now_us": now_us}).fetchone()
    return task(row)


def _end(
    db: sqlite3.Connection,
    sql: Statements,
    fence: str,
    end: TaskEnd,
    proof: dict[str, object],
    now_us: int,
) -> TaskVerdict:
    """End one task if the statement `fence` still finds it."""
    ended = end.task
    key = {"task": ended.task_id}
    if db.execute(sql[fence], {**key, "claim_no": ended.claim_no, **proof}).fetchone() is None:
        return "lost"
    if end.how in ("again", "handed_back"):
        db.execute(
            sql["put_task_back"],
            {
                **key,
                "uncharged": int(end.how == "handed_back"),
                "ready_at_us": now_us + end.delay_us,
                "failure": end.failure,
                "details": end.details,
            },
        )
        return "ended"
    is_awaited = db.execute(sql["task_is_awaited"], key).fetchone() is not None
    db.execute(sql["delete_task"], key)
    if end.how != "dropped" and is_awaited:
        run = {"run": ended.pk, "generation": ended.generation, "op": ended.op}
        db.execute(sql["settle_attempt"], {**run, "completion": "answered"})
        message = Outgoing(
            run_id=ended.run_id,
            kind="activity",
            name=end.how,
            data=end.data,
            message_id=answer_id(ended.generation, ended.op, ended.attempt),
        )
        put_message(db, sql, ended.pk, message, now_us)
    return "ended"
