"""Pipelines and sagas, killed before and after every commit: what was done is undone if it is to be, and once.

Which of them run is in `programs/patterns_used.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.crash.programs.patterns_used import OUTCOMES, UNDONE
from tests.support.crash_checks import undone
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

PROGRAMS: Final = {"script": "patterns", "worker": "pattern_worker"}


def in_groups(names: list[str], groups: Sequence[set[str]]) -> list[set[str]]:
    """Cut a list into pieces of the sizes of `groups`."""
    rest = iter(names)
    cut = [{name for _, name in zip(group, rest, strict=False)} for group in groups]
    return [*cut, *({name} for name in rest)]


def check(scene: Scene) -> None:
    """Every run has ended as it should, and what was to be undone is, in reverse."""
    final = scene.check({})
    assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
    for run_id, expected in UNDONE.items():
        assert in_groups(undone(final, run_id), expected) == expected, f"{run_id}\n{scene.story()}"


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


@pytest.mark.parametrize(
    ("mode", "points"), [("script", [5, 12, 19, 24, 31, 36]), ("worker", [8, 15, 21, 26, 33])]
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
    """Exactly what was recorded is undone, in reverse; a saga that is done undoes nothing; also between effect and record."""
    died, between = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points, {between} of them between an effect and its record")
    assert died >= 20
    assert between >= 1


def test_an_interrupted_compensation_is_repeated_only_if_it_may_be(tmp_path: Path, stage: Stage) -> None:
    """`idempotent=False`: reported as failed, not called again; the others, and those that may, are undone all the same."""
    with stage(tmp_path / "fragile") as scene:
        assert scene.has_died(scene.launch("fragile"))  # in "no more", which goes first
        assert scene.has_died(scene.launch("fragile"))  # in "twice"
        assert scene.has_died(scene.launch("fragile"))  # in "once"
        assert not scene.has_died(scene.launch("fragile"))

        final = scene.check({})
        starts = [line.key for line in scene.ledger() if line.what == "start"]
        assert starts.count("fragile@1/once/compensation#1") == 1
        assert starts.count("fragile@1/twice/compensation#1") == 2
        assert starts.count("fragile@1/no more/compensation#1") == 2
        assert undone(final, "fragile") == ["no more", "twice", "first"]
        assert final.runs["fragile"].status == "failed"
        ((told, *details),) = scene.acknowledged()
        assert told == "WorkflowCompensationError"
        assert details == [["no more", "twice", "first"], ["once"]]


@pytest.mark.parametrize(("run_id", "step"), [("tried_once", "a"), ("fragile_body", "single")])
def test_a_step_that_is_tried_once_is_undone_after_a_crash_too(
    run_id: str, step: str, tmp_path: Path, stage: Stage
) -> None:
    """How often failures are tried again says nothing of a compensation that was cut short."""
    with stage(tmp_path / run_id) as scene:
        assert scene.has_died(scene.launch("fragile", run_id=run_id))
        assert not scene.has_died(scene.launch("fragile", run_id=run_id))

        assert undone(scene.check({}), run_id) == [step]
