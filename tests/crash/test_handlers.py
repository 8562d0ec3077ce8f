"""Handlers that functions register, handlers that fail, and questions to people, killed before and after every commit.

Each message is handled once, in order; each answer is read once; what a handler's error undoes is undone. Which runs: `programs/handlers_used.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from durable.journal.events import ActivityCompleted, SignalReceived
from tests.crash.programs.handlers_used import CLEANED, ERRORS, MESSAGES, OUTCOMES, RESULTS
from tests.crash.test_children import taken
from tests.support.crash_checks import Reading, entries_of, undone
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

PROGRAMS: Final = {"script": "handlers", "worker": "handler_worker"}


def check(scene: Scene) -> None:
    """All outcomes; the runs that a handler ended have cleaned up, and have given back what they had."""
    final = scene.check({})
    assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
    assert {run_id: final.runs[run_id].result for run_id in RESULTS} == RESULTS, scene.story()
    for run_id, error in ERRORS.items():
        assert error in str(final.runs[run_id].failure), f"{final.runs[run_id]}\n{scene.story()}"
        assert CLEANED[run_id] in results_of(final, run_id), scene.story()
        assert undone(final, run_id) == ["take"] * taken(final, run_id).count("take"), scene.story()
    heard = [
        entry.id
        for (run_id, _), entries in sorted(entries_of(final).items())
        for entry in entries
        if run_id == "ears" and isinstance(entry, SignalReceived)
    ]
    assert list(dict.fromkeys(heard)) == [f"told-{number}" for number in range(MESSAGES)], scene.story()


def results_of(reading: Reading, run_id: str) -> list[object]:
    """Return what is on record as the results of activities."""
    entries = entries_of(reading)[run_id, 1]
    return [msgspec.json.decode(bytes(one.result)) for one in entries if isinstance(one, ActivityCompleted)]


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
    assert every_point(mode, tmp_path, stage, [11, 24, 37]) >= 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Until one comes through untouched."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 20
