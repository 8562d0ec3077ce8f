"""Runs that may end their workers: who is suspected, who is driven alone, who is proven poison (P14). One function per step."""

from __future__ import annotations

from durable.errors import PoisonError
from durable.store.postgres.connection import Session
from durable.store.records import CRASHES_MAX, Trial


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
    crashes = await db.value("count_crash", run=run, worker=worker)
    if crashes is None or crashes < CRASHES_MAX:
        return False
    fault = PoisonError(
        f"run {run_id!r} ended its worker {crashes} times while nothing else was driven there: its workflow kills the "
        "process (os._exit, a crash in C code, memory, a call that never returns). Repair the workflow, then resume the run",
        run_id=run_id,
        crashes=crashes,
    )
    # A reason alone: it holds no value, and there is no stack, so nothing that a codec would have to seal.
    await db.fetch("park_poison", run=run, reason=f"PoisonError: {fault}", now_us=now_us)
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
