"""Runs that may end their workers: who is suspected, who is driven alone, who is proven poison (P14). One function per step."""

from __future__ import annotations

from durable.store.postgres.connection import Session
from durable.store.records import CRASH, CRASH_AT_REST, CRASHES_MAX, Trial
from durable.store.refusals import poison_reason


async def release_runs(
    db: Session, worker: int, *, is_crash: bool, now_us: int | None, are_strays: bool = False
) -> tuple[int, list[str]]:
    """Set a stopped worker's runs ready; return how many, and the ids of those that were parked instead.

    After a crash the run that was driven alone is to blame, and only that. If there was none, all are suspects. Runs that
    somebody's open transaction holds are left, and remembered as strays; what they are then was decided the first time.
    """
    suspects = await db.fetch("suspects_of_worker", worker=worker) if is_crash or are_strays else []
    poison = [row["run_id"] for row in suspects if await _blame(db, worker, row["id"], row["run_id"], now_us)]
    unexplained = is_crash and (are_strays or not suspects)
    released = int(
        await db.value("release_runs_of_worker", worker=worker, is_crash=unexplained, now_us=now_us)
    )
    await db.fetch("mark_strays", worker=worker, is_crash=unexplained)
    return released, poison


async def _blame(db: Session, worker: int, run: int, run_id: str, now_us: int | None) -> bool:
    """Count a crash of a run that was driven alone; park it and return True if that was one too many."""
    counted = await db.value("count_crash", run=run, worker=worker, crash=CRASH, at_rest=CRASH_AT_REST)
    if counted is None or counted < CRASHES_MAX * CRASH:
        return False
    await db.fetch("park_poison", run=run, reason=poison_reason(run_id, counted // CRASH), now_us=now_us)
    return True


def trial_parameters(worker: int, slot: int, trial: Trial) -> dict[str, object]:
    """Return the parameters of `try_suspect`."""
    run, claim_no = trial.suspect or (None, None)
    return {
        "worker": worker,
        "slot": slot,
        "run": run,
        "claim_no": claim_no,
        "code": trial.code,
        "passed_pks": [pk for pk, _ in trial.passed],
        "passed_claim_nos": [number for _, number in trial.passed],
        "adjourned_pks": [pk for pk, _ in trial.adjourned],
        "adjourned_claim_nos": [number for _, number in trial.adjourned],
    }
