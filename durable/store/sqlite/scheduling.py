"""Activity tasks as a turn writes them: asked for, let go of. Part of the commit of turns, behind its fence."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from durable.store.records import NewTask, TaskClosing
from durable.store.statements import Statements


def schedule_tasks(
    db: sqlite3.Connection,
    sql: Statements,
    run: int,
    generation: int,
    *,
    tasks: Sequence[NewTask],
    closed: Sequence[TaskClosing],
    now_us: int,
) -> None:
    """Insert what a turn asks for, and mark what it lets go of. Only after the fence is proven."""
    for new in tasks:
        if db.execute(sql["insert_remote_attempt"], (run, generation, new.op)).rowcount:
            db.execute(
                sql["insert_task"],
                {
                    "run": run,
                    "generation": generation,
                    "op": new.op,
                    "task_queue": new.task_queue,
                    "activity": new.activity,
                    "name": new.name,
                    "key": new.key,
                    "args": new.args,
                    "policy": new.policy,
                    "start_to_close_us": new.start_to_close_us,
                    "schedule_to_start_us": new.schedule_to_start_us,
                    "schedule_to_close_us": new.schedule_to_close_us,
                    "heartbeat_us": new.heartbeat_us,
                    "now_us": now_us,
                },
            )
    for one in closed:
        key = {"run": run, "generation": generation, "op": one.op}
        db.execute(sql["close_task"], {**key, "how": one.how, "reason": one.reason})
