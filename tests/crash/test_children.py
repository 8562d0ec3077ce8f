"""Children, killed before and after every commit: each is started once, and its parent gets its own result, whoever dies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from durable.journal.events import ActivityCompleted, ScheduleActivity
from tests.crash.programs.children_used import GENERATIONS, OUTCOMES, RESULTS, TAKERS
from tests.support.crash_checks import Reading, entries_of, undone
from tests.support.crash_points import Plan, Side, at_commit
from tests.support.crashes import Scene, Stage, until_untouched

SIDES: Final[tuple[Side, ...]] = ("before", "after", "within")
PROGRAMS: Final = {"script": "children", "worker": "child_worker"}


def every_point(mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    """Return how many died."""

    def die_at(point: int) -> bool:
        with stage(directory / f"{mode}-{point}") as scene:
            plan = at_commit(point, SIDES if stage.is_server else SIDES[:2])
            was_killed = scene.has_died(scene.launch(PROGRAMS[mode], plan=plan))
            if was_killed:
                assert not scene.has_died(scene.launch(PROGRAMS[mode]))
            check(scene)
            return was_killed

    return until_untouched(die_at, points)


def check(scene: Scene) -> None:
    final = scene.check({})
    assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
    assert {run_id: final.runs[run_id].result for run_id in RESULTS} == RESULTS, scene.story()
    assert {run_id: final.generations[run_id] for run_id in GENERATIONS} == GENERATIONS, scene.story()
    for run_id in TAKERS:  # one that is cancelled early has perhaps taken nothing
        assert undone(final, run_id) == taken(final, run_id), f"{run_id}\n{scene.story()}"


def taken(reading: Reading, run_id: str) -> list[str]:
    """Return the steps that are on record as completed."""
    entries = entries_of(reading)[run_id, 1]
    names = {entry.op: entry.name for entry in entries if isinstance(entry, ScheduleActivity)}
    done = [names[entry.op] for entry in entries if isinstance(entry, ActivityCompleted)]
    return [name for name in done if not name.endswith("/compensation")]


@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_some_commits_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    points = [4, 9, 14, 19, 24]

    assert every_point(mode, tmp_path, stage, points) >= len(points) // 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", [pytest.param("script", marks=pytest.mark.long), "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Before and after the commit that starts a child, that closes one and tells its parent, that closes the parent, and all others."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 20


def test_parent_and_children_on_workers_that_die_in_turn(tmp_path: Path, stage: Stage) -> None:
    """Three workers share the family; one after the other dies at some commit of its own, and the last one finishes it."""
    with stage(tmp_path / "turns") as scene:
        for n in (3, 6, 9):
            scene.launch("child_worker", plan=Plan(kind="after", n=n))
        for child in list(scene.children):
            scene.has_died(child)
        assert not scene.has_died(scene.launch("child_worker"))
        check(scene)
