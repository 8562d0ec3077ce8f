"""Workflows that are classes, killed before and after every commit: each object is made anew, nothing it did is done again, and its handlers see each signal once, in order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.crash.programs.classes_used import OUTCOMES, READ, RESULT, SQUARES
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

PROGRAMS: Final = {"script": "classes", "worker": "class_worker"}


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


def check(scene: Scene) -> None:
    final = scene.check({})
    assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
    assert final.runs["till"].result == RESULT, scene.story()
    assert final.runs["desk"].result == [READ, SQUARES], scene.story()


@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_some_commits_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(mode, tmp_path, stage, [5, 12, 19]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Until one comes through untouched."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 12
