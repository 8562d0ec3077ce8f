"""A run that continues as new, killed before and after every commit: no generation twice, no signal lost or read twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from durable import RunStatus
from durable.journal.events import ContinuedAsNew
from tests.support.crash_checks import Outcome, entries_of
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

GENERATIONS: Final = 4
SIGNALS: Final = 2 * GENERATIONS
PROGRAMS: Final = {"script": "rolling", "worker": "rolling_worker"}
OUTCOME: Final = Outcome(status=RunStatus.COMPLETED, result=list(range(1, SIGNALS + 1)))


def every_point(mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        with stage(directory / f"{mode}-{point}") as scene:
            plan = at_commit(point)
            options = {"runs": GENERATIONS, "signals": SIGNALS}
            was_killed = scene.has_died(scene.launch(PROGRAMS[mode], plan=plan, **options))
            if was_killed:
                assert not scene.has_died(scene.launch(PROGRAMS[mode], **options))
            check(scene)
            return was_killed

    return until_untouched(die_at, points)


def check(scene: Scene) -> None:
    """Each generation but the last has ended once, as continued; each has its own epoch."""
    final = scene.check({"rolling": OUTCOME})
    entries = entries_of(final)
    ends = [
        sum(isinstance(entry, ContinuedAsNew) for entry in entries["rolling", number])
        for number in range(1, GENERATIONS + 1)
    ]
    assert ends == [1] * (GENERATIONS - 1) + [0], scene.story()
    epochs = [final.epochs["rolling", number] for number in range(1, GENERATIONS + 1)]
    assert epochs == list(range(1, GENERATIONS + 1)), scene.story()
    assert final.generations["rolling"] == GENERATIONS, scene.story()


@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_some_commits_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(mode, tmp_path, stage, [5, 12, 19, 26]) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Before and after the commit that closes one generation and opens the next, too."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 20
