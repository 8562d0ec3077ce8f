"""Killed while runs park and go on: nothing that had ended well is done again, and the code that fits finishes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from durable import RunStatus
from tests.crash.programs import parked_used
from tests.support.crash_checks import Outcome
from tests.support.crash_points import Plan, at_commit
from tests.support.crashes import Stage, until_untouched

OUTCOMES = {
    run_id: Outcome(status=RunStatus.COMPLETED, result=result)
    for run_id, result in parked_used.OUTCOMES.items()
}


def every_point(
    directory: Path,
    stage: Stage,
    points: Sequence[int] | None = None,
    plan_of: Callable[[int], Plan] = at_commit,
) -> int:
    def die_at(point: int) -> bool:
        with stage(directory / f"parked-{point}") as scene:
            was_killed = scene.has_died(scene.launch("parking", plan=plan_of(point)))
            if was_killed:
                assert not scene.has_died(scene.launch("parking"))
            scene.check(OUTCOMES)  # a body that began more often than somebody died is among what it refuses
            return was_killed

    return until_untouched(die_at, points)


def test_a_death_where_runs_park_changes_no_outcome(tmp_path: Path, stage: Stage) -> None:
    """Before and after the fifth turn or so, which parks the one that has what its activity came to."""

    def plan_of(point: int) -> Plan:
        return Plan(kind="before" if point == 1 else "after", n=5, only="commit_turns")

    assert every_point(tmp_path, stage, [1, 2], plan_of) == 2


@pytest.mark.slow
def test_a_death_at_any_commit_changes_no_outcome(tmp_path: Path, stage: Stage) -> None:
    """Before and after the commit that parks a run with what its activity came to, the one that resumes it, and all others."""
    died = every_point(tmp_path, stage)

    print(f"killed at {died} points")
    assert died >= 20
