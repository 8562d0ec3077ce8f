"""Runs that may end their workers: who is suspected, who is driven alone, who is proven poison (P14). One function per step."""

from __future__ import annotations

import sqlite3

from durable.store.records import CRASH, CRASH_AT_REST, CRASHES_MAX, Trial
from durable.store.refusals import poison_reason
from durable.store.sqlite.committing import require_alive
from durable.store.statements import Statements


def release_runs(
    db: sqlite3.Connection,
    sql: Statements,
    worker: int,
    *,
    is_crash: bool,
    now_us: int,
    is_at_rest: bool = False,
) -> tuple[int, list[str]]:
    """Set a worker's runs ready; return how many, and the ids of those that were parked instead.

    After a crash the run that was driven alone is to blame, and only that; for a part, if its code was `is_at_rest`. If there was
    none, all are suspects.
    """
    now = {"worker": worker, "now_us": now_us}
    to_blame = db.execute(sql["suspect_of_worker"], now).fetchall() if is_crash else []
    poison: list[str] = []
    for run, run_id in to_blame:
        weight = CRASH_AT_REST if is_at_rest else CRASH
        ((counted,),) = db.execute(sql["count_crash"], {"run": run, "weight": weight}).fetchall()
        crashes = counted // CRASH
        if crashes >= CRASHES_MAX:
            parked = {"run": run, "reason": poison_reason(run_id, crashes), "now_us": now_us}
            db.execute(sql["park_poison"], parked)
            poison.append(run_id)
    unexplained = int(is_crash and not to_blame)
    runs = db.execute(sql["release_runs_of_worker"], {**now, "is_crash": unexplained}).rowcount
    return runs, poison


def try_suspect(db: sqlite3.Connection, sql: Statements, worker: int, trial: Trial) -> bool:
    """Note what came of earlier suspects and which one is next; return whether that one is still the worker's."""
    require_alive(db, sql, worker)
    db.executemany(sql["clear_suspect"], trial.passed)
    db.executemany(sql["adjourn_suspect"], trial.adjourned)
    if trial.suspect is None:
        return False
    run, claim_no = trial.suspect
    next_one = {"run": run, "worker": worker, "claim_no": claim_no, "code": trial.code}
    return db.execute(sql["try_suspect"], next_one).rowcount == 1
