"""A worker that drains and a script that ends, killed before and after every commit of that: what was not handed back is taken over, the rest is not charged.

What they have in their hands is in `programs/drained_used.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from durable import RunStatus
from tests.crash.programs.drained_used import OUTCOMES
from tests.crash.test_scopes import given_back
from tests.support.crash_checks import Outcome
from tests.support.crash_points import Side, at_commit
from tests.support.crashes import Scene, Stage, until_untouched

SIDES: Final[tuple[Side, ...]] = ("before", "after", "within")
PROGRAMS: Final = {"worker": "drainer", "script": "leaver"}


def check(scene: Scene) -> None:
    """All outcomes; what ended, or gave back, is not begun again; and nothing is begun more than twice."""
    completed = {
        run_id: Outcome(status=RunStatus.COMPLETED, result=result) for run_id, result in OUTCOMES.items()
    }
    final = scene.check(completed)
    assert set(final.runs) == {*OUTCOMES, "withdrawn"}, scene.story()
    assert final.runs["withdrawn"].status is RunStatus.FAILED, scene.story()
    assert given_back(final, "withdrawn", 1) == ["seat", "car", "flight", "room"], scene.story()
    starts = Counter(line.key for line in scene.ledger() if line.what == "start")
    assert max(starts.values()) <= 2, f"{starts}\n{scene.story()}"
    if not scene.deaths():  # nobody is left to declare dead, and nothing but a thread was charged
        charged = {line.key for line in scene.ledger() if line.what == "start" and line.attempt > 1}
        assert charged <= {"patient_thread@1/held_thread#1"}, scene.story()


def every_commit(how: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    """Return how many died."""

    def die_at(point: int) -> bool:
        with stage(directory / f"{how}-{point}") as scene:
            plan = at_commit(point, SIDES if stage.is_server else SIDES[:2])
            first = scene.launch(PROGRAMS[how], plan=msgspec.structs.replace(plan, later=True))
            was_killed = scene.has_died(first)
            scene.shaken.add(first.pid)
            scene.drained.add(first.pid)
            if not was_killed:
                left = scene.read()
                assert [alive for _, _, alive, _ in left.workers] == [False], scene.story()
            assert not scene.has_died(scene.launch("finisher"))
            check(scene)
            return was_killed

    return until_untouched(die_at, points)


@pytest.mark.parametrize("how", ["worker", "script"])
def test_a_death_at_some_commits_of_an_orderly_stop_changes_no_outcome(
    how: str, tmp_path: Path, stage: Stage
) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_commit(how, tmp_path, stage, [1, 3, 4]) >= 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", ["worker", "script"])
def test_a_death_at_any_commit_of_an_orderly_stop_changes_no_outcome(
    how: str, tmp_path: Path, stage: Stage
) -> None:
    """Until it stops before it comes to that."""
    died = every_commit(how, tmp_path, stage)

    print(f"{how}: killed at {died} points")
    assert died >= 4
