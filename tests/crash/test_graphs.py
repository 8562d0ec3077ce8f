"""Graphs, killed before and after every commit: what was recorded never runs again, and the outcome is that of a single life.

Which of them run is in `programs/graphs_used.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from durable.journal.events import SignalReceived
from tests.crash.programs.graphs_used import FINAL_STATE, MINDS_STATE, OUTCOMES
from tests.support.crash_checks import entries_of
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

PROGRAMS: Final = {"script": "graphs", "worker": "graph_worker"}


def every_point(
    mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None
) -> tuple[int, int]:
    """Return how many died, and how many of those between an effect and its record."""
    between: list[int] = []

    def die_at(point: int) -> bool:
        with stage(directory / f"{mode}-{point}") as scene:
            plan = at_commit(point)
            was_killed = scene.has_died(scene.launch(PROGRAMS[mode], plan=plan))
            if was_killed:
                if scene.has_unrecorded_effect():
                    between.append(point)
                assert not scene.has_died(scene.launch(PROGRAMS[mode]))
            check(scene)
            return was_killed

    return until_untouched(die_at, points), len(between)


def check(scene: Scene) -> None:
    """Every run has ended as it should, with the same state, and each question took one answer."""
    final = scene.check({})
    assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
    assert final.runs["order"].result["final_state"] == FINAL_STATE, scene.story()
    assert final.runs["careful"].result["final_state"] == FINAL_STATE, scene.story()
    assert final.runs["minds"].result["final_state"] == MINDS_STATE, scene.story()
    assert final.runs["inside"].result == FINAL_STATE, scene.story()
    assert final.runs["nested"].result == {"undone": ["book"]}, scene.story()
    for run_id in ("order", "careful", "inside"):
        entries = entries_of(final)[run_id, 1]
        assert sum(isinstance(entry, SignalReceived) for entry in entries) == 1, scene.story()


@pytest.mark.parametrize(
    ("mode", "points"), [("script", [5, 12, 21, 34, 45, 52]), ("worker", [8, 15, 22, 31, 40, 55])]
)
def test_a_death_at_some_commits_changes_no_outcome(
    mode: str, points: list[int], tmp_path: Path, stage: Stage
) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    died, _ = every_point(mode, tmp_path, stage, points)

    assert died >= len(points) // 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Also between an effect and its record, and between a question and its answer."""
    died, between = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points, {between} of them between an effect and its record")
    assert died >= 20
    assert between >= 1


def test_an_undisturbed_run_does_everything_once(tmp_path: Path, stage: Stage) -> None:
    """Each body starts once."""
    with stage(tmp_path / "once") as scene:
        assert not scene.has_died(scene.launch("graphs"))

        check(scene)
        starts = [line.key for line in scene.ledger() if line.what == "start"]
        assert len(starts) == len(set(starts))
