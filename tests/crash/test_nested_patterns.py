"""Patterns in patterns, killed before and after commits: what was recorded never runs again, and all end as in a single life.

Which of them run is in `programs/nested_used.py`. A saga in a graph's node in a pipeline's step in a workflow is in `test_graphs.py`.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from durable.journal.events import ActivityCompleted
from tests.crash.programs.nested_used import CHAINS, OUTCOMES, RESULTS
from tests.support.crash_checks import Checks, Reading, undone
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

PROGRAMS: Final = {"script": "nested", "worker": "nested_worker"}
SOME: Final = {"script": range(3, 200, 23), "worker": range(8, 200, 31)}
BULK_TOKEN: Final = re.compile(r"item-[0-9a-f]{8}")  # by chance, within a run of something else


class Witnessed(Checks):
    """Not all that is recorded leaves a trace here: what patterns do by themselves does not. An item of a slice is repeated uncounted."""

    def _completed(self, key: str, entry: ActivityCompleted) -> Iterator[str]:
        return super()._completed(key, entry) if self.by_key[key] else self._started_late(key, entry.at)

    def _rising(self, key: str, starts: Sequence[Any], lives: int) -> Iterator[str]:
        return iter(()) if "/item" in key else super()._rising(key, starts, lives)


def done(scene: Scene) -> dict[str, list[str]]:
    """Return what has ended, by run, each once."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for line in scene.ledger():
        if line.what == "end":
            found[line.run_id].add(BULK_TOKEN.sub("item", line.key))
    return {run_id: sorted(keys) for run_id, keys in found.items()}


def check(scene: Scene) -> Reading:
    """Every run has ended as it should, each saga has undone its steps in reverse."""
    final = scene.check({}, Witnessed)
    for run_id, status in OUTCOMES.items():
        assert final.runs[run_id].status == status, f"{run_id}\n{scene.story()}"
    assert all(run.status.is_closed for run in final.runs.values()), scene.story()
    assert final.runs["waits"].result == RESULTS["waits"], scene.story()
    assert final.runs["order"].result["final_state"] == RESULTS["order"], scene.story()
    for run_id, run in final.runs.items():
        if run.status == "compensated":
            assert undone(final, run_id) == ["nest", "first"], f"{run_id}\n{scene.story()}"
    return final


def every_point(mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    """Return how many died."""
    with stage(directory / f"{mode}-untouched") as scene:
        assert not scene.has_died(scene.launch(PROGRAMS[mode]))
        runs, expected = check(scene).runs.keys(), done(scene)
        assert (
            sum(run_id.count("#") == 6 for run_id in runs) == len(CHAINS) + 1
        )  # the items: within three sagas, or two and a node

    def die_at(point: int) -> bool:
        with stage(directory / f"{mode}-{point}") as scene:
            was_killed = scene.has_died(scene.launch(PROGRAMS[mode], plan=at_commit(point)))
            if was_killed:
                assert not scene.has_died(scene.launch(PROGRAMS[mode]))
            assert check(scene).runs.keys() == runs, scene.story()
            assert done(scene) == expected, scene.story()
            return was_killed

    return until_untouched(die_at, points)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_some_commits_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test."""
    assert every_point(mode, tmp_path, stage, SOME[mode]) >= 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """No run is lost, none is doubled, none is left behind open; every effect is there, and what is recorded has happened once."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 40


@pytest.mark.slow
@pytest.mark.stores("postgres")
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
def test_two_workers_of_which_one_after_the_other_is_killed_change_no_outcome(
    seed: int, tmp_path: Path, stage: Stage
) -> None:
    """Each takes over what the other held, sagas and what their steps have started; a new one takes each one's place."""
    with stage(tmp_path / "untouched") as scene:
        assert not scene.has_died(scene.launch("nested_worker"))
        runs, expected = check(scene).runs.keys(), done(scene)

    chance = random.Random(seed)
    with stage(tmp_path / "killed") as scene:
        workers = [scene.launch("nested_worker") for _ in range(2)]
        for position in (0, 1):
            effects = len(scene.ledger()) + chance.randrange(3, 20)
            scene.wait_until(
                "some more has happened",
                lambda effects=effects: len(scene.ledger()) >= effects or all(one.is_over for one in workers),
            )
            scene.kill(workers[position])
            workers[position] = scene.launch("nested_worker")
        assert [worker.wait() for worker in workers] == [0, 0], scene.story()

        assert check(scene).runs.keys() == runs, scene.story()
        assert done(scene) == expected, scene.story()
