"""Calls into a run, killed before and after every commit, with their callers: what was acknowledged is in the final state, once, and asking again gives the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from durable import RunStatus
from tests.crash.programs.updates_used import ADDED, ANSWERS, BROKEN, CALLS, REFUSED
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, lines_of, until_untouched

PROGRAMS: Final = {"script": "updates", "worker": "update_worker"}


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
    cart = final.runs["cart"]
    assert cart.status == RunStatus.COMPLETED, scene.story()
    assert sorted(cart.result) == ADDED, scene.story()
    told: dict[int, Any] = {}
    for number, answer in (msgspec.json.decode(line) for line in lines_of(scene.directory / ANSWERS)):
        assert told.setdefault(number, answer) == answer, scene.story()
    assert sorted(told) == list(range(CALLS)), scene.story()
    for number, answer in told.items():
        if number in REFUSED:
            assert answer == f"UpdateRejectedError: ValueError({number})", scene.story()
        elif number in BROKEN:
            assert answer == f"UpdateFailedError: LookupError({number})", scene.story()
        else:
            assert isinstance(answer, list), scene.story()


@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_some_commits_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(mode, tmp_path, stage, [6, 13, 20]) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Until one comes through untouched."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 12
