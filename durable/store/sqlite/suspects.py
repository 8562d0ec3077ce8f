"""Runs that may end their workers: who is suspected, who is driven alone, who is proven poison (P14). One function per step."""

from __future__ import annotations

import sqlite3

from durable.errors import PoisonError
from durable.store.records import CRASHES_MAX, Trial
from durable.store.sqlite.committing import require_alive
from durable.store.statements import Statements


def release_runs(
    db: sqlite3.Connection, sql: Statements, worker: int, *, is_crash: bool, now_us: int
) -> tuple[int, list[str]]:
    """Set a worker's runs ready; return how many, and the ids of those that were parked instead.

    After a crash the run that was driven alone is to blame, and only that. If there was none, all are suspects.
    """
    now = {"worker": worker, "now_us": now_us}
    to_blame = db.execute(sql["suspect_of_worker"], now).fetchall() if is_crash else []
    poison: list[str] = []
    for run, run_id in to_blame:
        ((crashes,),) = db.execute(sql["count_crash"], {"run": run}).fetchall()
        if crashes >= CRASHES_MAX:
            # A reason alone: it holds no value, and there is no stack, so nothing that a codec would have to seal.
            reason = f"PoisonError: {_poisonous(run_id, crashes)}"
            db.execute(sql["park_poison"], {"run": run, "reason": reason, "now_us": now_us})
            poison.append(run_id)
    unexplained = int(is_crash and not to_blame)
    runs = db.execute(sql["release_runs_of_worker"], {**now, "is_crash": unexplained}).rowcount
    return runs, poison


def _poisonous(run_id: str, crashes: int) -> PoisonError:
    return PoisonError(
        f"run {run_id!r} ended its worker {crashes} times while nothing else was driven there: its workflow kills the "
        "process (os._exit, a crash in C code, memory, a call that never returns). Repair the workflow, then resume the run",
        run_id=run_id,
        crashes=crashes,
    )


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
