"""Scopes of sagas, killed before and after every commit: each gives back what was taken in it, once, in reverse, also while it is cancelled.

Which of them run is in `programs/scopes_used.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from durable.journal.events import ActivityCompleted, ActivityFailed, ContinuedAsNew, ScheduleActivity
from tests.crash.programs.scopes_used import GIVEN_BACK, KEPT, OUTCOMES, RESULTS
from tests.crash.test_patterns import in_groups
from tests.support.crash_checks import Reading, entries_of
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

PROGRAMS: Final = {"script": "scopes", "worker": "scope_worker"}


def given_back(reading: Reading, run_id: str, generation: int) -> list[str]:
    """Return what compensations say that they have given back, in the order of the journal."""
    entries = entries_of(reading)[run_id, generation]
    names = {entry.op: entry.name for entry in entries if isinstance(entry, ScheduleActivity)}
    return [
        msgspec.json.decode(bytes(entry.result))
        for entry in entries
        if isinstance(entry, ActivityCompleted) and names[entry.op].endswith("/compensation")
    ]


def check(scene: Scene) -> None:
    """Every run has ended as it should, and gave back what it should: that and nothing else."""
    final = scene.check({})
    assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
    assert {run_id: final.runs[run_id].result for run_id in RESULTS} == RESULTS, scene.story()
    for (run_id, generation), expected in GIVEN_BACK.items():
        found = given_back(final, run_id, generation)
        assert in_groups(found, expected) == expected, f"{run_id}@{generation}\n{scene.story()}"
    assert is_kept(final), scene.story()
    assert final.generations["again"] == final.generations["carried"] == 2, scene.story()
    ends = [type(entry) for entry in entries_of(final)["carried", 1]]
    assert ends.count(ContinuedAsNew) == 1, scene.story()


def is_kept(reading: Reading) -> bool:
    """Whether the compensation that fails for good did so, once."""
    entries = entries_of(reading)["scopes", 1]
    (op,) = [
        entry.op
        for entry in entries
        if isinstance(entry, ScheduleActivity) and f"scopes@1/{entry.name}#{entry.n}" == KEPT
    ]
    return len([entry for entry in entries if isinstance(entry, ActivityFailed) and entry.op == op]) == 1


def every_point(mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    """Return how many died."""

    def die_at(point: int) -> bool:
        with stage(directory / f"{mode}-{point}") as scene:
            was_killed = scene.has_died(scene.launch(PROGRAMS[mode], plan=at_commit(point)))
            if was_killed:
                assert not scene.has_died(scene.launch(PROGRAMS[mode]))
            check(scene)
            return was_killed

    return until_untouched(die_at, points)


@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_some_commits_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(mode, tmp_path, stage, [17, 34, 47]) >= 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Also between a compensation's effect and its record, and around the cancel that comes in while it undoes."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 30
