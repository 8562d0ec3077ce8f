"""Activity tasks: scheduled, claimed, kept alive, ended. One function per transaction, or per part of one.

A task is its worker's under a claim number, which rises with every claim; whoever writes about it names both, and holds its row
first, so of two that end it the second finds it gone. Then the rows of the runs are held that are to get an outcome, in the order of their
ids (P18), without waiting for any (P5); what is seen of them after that is true until the end of the transaction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from durable.store.postgres.connection import Session, columns
from durable.store.postgres.opened import Opened
from durable.store.records import (
    GRACE_US,
    NEVER_US,
    CaredTasks,
    Close,
    HeldTask,
    NextGeneration,
    Task,
    TaskBeat,
    TaskEnd,
    TaskVerdict,
    TurnCommit,
    answer_id,
)
from durable.store.refusals import lease_lost
from durable.store.rows import held_task, task


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
        self._require_writable()
        async with self._slots.take() as slot:
            found = await self._database.fetch(
                "claim_tasks",
                worker=worker_id,
                slot=slot,
                now_us=self._given(now_us),
                count=limit,
                lost_count=lost_limit,
                task_queues=list(task_queues),
                activities=list(activities),
                grace_us=GRACE_US,
            )
        if not found[0]["yes"]:
            raise lease_lost(worker_id)
        return [task(tuple(row)[1:]) for row in found if row["id"] is not None]

    async def read_held_tasks(self, worker_id: int) -> list[HeldTask]:
        return [held_task(row) for row in await self._read("read_held_tasks", worker=worker_id)]

    async def beat_tasks(self, worker_id: int, beats: Sequence[TaskBeat], now_us: int) -> None:
        await self._write(lambda db: beat_tasks(db, worker_id, beats, self._given(now_us)))

    async def end_tasks(self, worker_id: int, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        """Safe to repeat: what was written is "lost" the second time."""
        self._require_writable()
        async with self._slots.take() as slot:

            async def fenced(db: Session) -> list[TaskVerdict]:
                if not await db.fetch("hold_fence", worker=worker_id, slot=slot):
                    raise lease_lost(worker_id)
                return await end_tasks(db, worker_id, ends, self._given(now_us))

            verdicts = await self._database.run(fenced)
        self._wakeups.tell(work=True)
        return verdicts

    async def find_stray_tasks(self, now_us: int, limit: int = 100) -> CaredTasks:
        self._require_usable()
        return await self._database.run(lambda db: find_stray_tasks(db, self._given(now_us), limit))

    async def settle_tasks(self, ends: Sequence[TaskEnd], now_us: int) -> list[TaskVerdict]:
        """Safe to repeat, as `end_tasks` is."""
        verdicts = await self._write(lambda db: end_tasks(db, None, ends, self._given(now_us)))
        self._wakeups.tell(work=True)
        return verdicts

    async def read_tasks(self, pk: int, generation: int) -> list[Task]:
        now_us = self._given(self._clock.now_us())
        return [
            task(row) for row in await self._look("read_tasks", run=pk, generation=generation, now_us=now_us)
        ]


async def schedule_tasks(db: Session, commits: Sequence[TurnCommit], now_us: int | None) -> None:
    """Insert what these turns ask for, and mark what they let go of. Only after the fence is proven."""
    new = [
        (
            commit.pk, commit.generation, one.op, one.task_queue, one.activity, one.name, one.key, one.args, one.policy,
            one.start_to_close_us, one.schedule_to_start_us, one.schedule_to_close_us, one.heartbeat_us,
        )
        for commit in commits
        if commit.after.__class__ not in (Close, NextGeneration)
        for one in commit.tasks
    ]  # fmt: skip
    if new:
        await db.fetch("schedule_tasks", **_new_columns(new), now_us=now_us)
    closed = [
        (commit.pk, commit.generation, one.op, one.how, one.reason)
        for commit in commits
        for one in commit.tasks_closed
    ]
    if closed:
        runs, generations, ops, hows, reasons = columns(closed, 5)
        await db.fetch("close_tasks", runs=runs, generations=generations, ops=ops, hows=hows, reasons=reasons)


def _new_columns(new: Sequence[Sequence[Any]]) -> dict[str, object]:
    names = (
        "runs", "generations", "ops", "task_queues", "activities", "names", "keys", "args", "policies",
        "start_to_closes_us", "schedule_to_starts_us", "schedule_to_closes_us", "heartbeats_us",
    )  # fmt: skip
    return dict(zip(names, columns(new, len(names)), strict=True))


async def beat_tasks(db: Session, worker: int, beats: Sequence[TaskBeat], now_us: int | None) -> None:
    """Note signs of life; of a task that is no longer the worker's nothing is noted."""
    await db.fetch(
        "beat_tasks",
        worker=worker,
        tasks=[beat.task.task_id for beat in beats],
        claim_nos=[beat.task.claim_no for beat in beats],
        details=[beat.details for beat in beats],
        now_us=now_us,
        grace_us=GRACE_US,
    )


async def end_tasks(
    db: Session, worker: int | None, ends: Sequence[TaskEnd], now_us: int | None
) -> list[TaskVerdict]:
    """Write what became of tasks; `worker` None: of stray ones. Its fence is held already."""
    held = {
        row["id"]
        for row in await db.fetch(
            "hold_tasks",
            worker=worker,
            tasks=[end.task.task_id for end in ends],
            claim_nos=[end.task.claim_no for end in ends],
            now_us=now_us,
        )
    }
    mine = [end for end in ends if end.task.task_id in held]
    over = [end for end in mine if end.how not in ("again", "handed_back")]
    told = {end.task.pk for end in over if end.how != "dropped"}
    free = {row["id"] for row in await db.fetch("hold_runs_of_tasks", runs=list(told))} if told else set()
    later = {end.task.task_id for end in over if end.task.pk in told and end.task.pk not in free}
    await _put_back(db, [end for end in mine if end.how in ("again", "handed_back")], now_us)
    await _finish(db, [end for end in over if end.task.task_id not in later], now_us)
    return [_verdict(end, held, later) for end in ends]


def _verdict(end: TaskEnd, held: set[int], later: set[int]) -> TaskVerdict:
    if end.task.task_id not in held:
        return "lost"
    return "later" if end.task.task_id in later else "ended"


async def _put_back(db: Session, ends: Sequence[TaskEnd], now_us: int | None) -> None:
    if ends:
        await db.fetch(
            "put_tasks_back",
            tasks=[end.task.task_id for end in ends],
            are_uncharged=[end.how == "handed_back" for end in ends],
            delays_us=[end.delay_us for end in ends],
            failures=[end.failure for end in ends],
            details=[end.details for end in ends],
            now_us=now_us,
        )


async def _finish(db: Session, ends: Sequence[TaskEnd], now_us: int | None) -> None:
    if ends:
        await db.fetch(
            "finish_tasks",
            tasks=[end.task.task_id for end in ends],
            runs=[end.task.pk for end in ends],
            generations=[end.task.generation for end in ends],
            ops=[end.task.op for end in ends],
            names=[end.how for end in ends],
            datas=[end.data for end in ends],
            message_ids=[answer_id(end.task.generation, end.task.op, end.task.attempt) for end in ends],
            now_us=now_us,
        )


async def find_stray_tasks(db: Session, now_us: int | None, limit: int) -> CaredTasks:
    """Read the tasks somebody is to look at."""
    found = await db.fetch("find_stray_tasks", now_us=now_us, count=limit)
    next_at_us = await db.value("next_task_care")
    return CaredTasks(
        tasks=[task(row) for row in found], next_at_us=None if next_at_us == NEVER_US else next_at_us
    )
