"""Pipelines and sagas, killed before and after every commit: what was done is undone if it is to be, and once.

Which of them run is in `programs/patterns_used.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import pytest

from durable.journal.events import ActivityCompleted, ScheduleActivity
from tests.crash.programs.patterns_used import OUTCOMES, UNDONE
from tests.support.crash_checks import Reading, entries_of
from tests.support.crash_points import Plan
from tests.support.crashes import Scene, Zygote, until_untouched

SIDES: Final[tuple[Literal["before", "after"], ...]] = ("before", "after")
PROGRAMS: Final = {"script": "patterns", "worker": "pattern_worker"}


def undone(reading: Reading, run_id: str) -> list[str]:
    """Return the steps whose compensation is on record as completed, in that order."""
    entries = entries_of(reading)[run_id, 1]
    names = {entry.op: entry.name for entry in entries if isinstance(entry, ScheduleActivity)}
    done = [names[entry.op] for entry in entries if isinstance(entry, ActivityCompleted)]
    return [name.removesuffix("/compensation") for name in done if name.endswith("/compensation")]


def in_groups(names: list[str], groups: Sequence[set[str]]) -> list[set[str]]:
    """Cut a list into pieces of the sizes of `groups`."""
    rest = iter(names)
    cut = [{name for _, name in zip(group, rest, strict=False)} for group in groups]
    return [*cut, *({name} for name in rest)]


def is_effect_unrecorded(scene: Scene) -> bool:
    """Whether some body has ended, and its result is not in the database."""
    reading = scene.peek()
    recorded = 0
    for (run_id, generation), entries in entries_of(reading).items():
        recorded += sum(isinstance(entry, ActivityCompleted) for entry in entries)
        assert generation == 1, run_id
    return sum(line.what == "end" for line in scene.ledger()) > recorded


def every_point(
    mode: str, directory: Path, zygotes: list[Zygote], points: Sequence[int] | None = None
) -> tuple[int, int]:
    """Return how many died, and how many of those between an effect and its record."""
    between: list[int] = []

    def die_at(point: int) -> bool:
        with Scene(directory / f"{mode}-{point}", zygotes) as scene:
            plan = Plan(kind=SIDES[(point - 1) % 2], n=(point + 1) // 2)
            was_killed = scene.has_died(scene.launch(PROGRAMS[mode], plan=plan))
            if was_killed:
                if is_effect_unrecorded(scene):
                    between.append(point)
                assert not scene.has_died(scene.launch(PROGRAMS[mode]))
            final = scene.check({})
            assert {run_id: run.status for run_id, run in final.runs.items()} == OUTCOMES, scene.story()
            for run_id, expected in UNDONE.items():
                assert in_groups(undone(final, run_id), expected) == expected, f"{run_id}\n{scene.story()}"
            return was_killed

    return until_untouched(die_at, points), len(between)


@pytest.mark.parametrize(
    ("mode", "points"), [("script", [5, 12, 19, 24, 31, 36]), ("worker", [8, 15, 21, 26, 33])]
)
def test_a_death_at_some_commits_changes_no_outcome(
    mode: str, points: list[int], tmp_path: Path, zygotes: list[Zygote]
) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    died, _ = every_point(mode, tmp_path, zygotes, points)

    assert died >= len(points) // 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, zygotes: list[Zygote]) -> None:
    """Exactly what was recorded is undone, in reverse; a saga that is done undoes nothing; also between effect and record."""
    died, between = every_point(mode, tmp_path, zygotes)

    print(f"{mode}: killed at {died} points, {between} of them between an effect and its record")
    assert died >= 20
    assert between >= 1


def test_an_interrupted_compensation_is_repeated_only_if_it_may_be(
    tmp_path: Path, zygotes: list[Zygote]
) -> None:
    """`idempotent=False`: reported as failed, not called again; the others, and those that may, are undone all the same."""
    with Scene(tmp_path / "fragile", zygotes) as scene:
        assert scene.has_died(scene.launch("fragile"))  # in "twice", which goes first
        assert scene.has_died(scene.launch("fragile"))  # in "once"
        assert not scene.has_died(scene.launch("fragile"))

        final = scene.check({})
        starts = [line.key for line in scene.ledger() if line.what == "start"]
        assert starts.count("fragile@1/once/compensation#1") == 1
        assert starts.count("fragile@1/twice/compensation#1") == 2
        assert undone(final, "fragile") == ["twice", "first"]
        assert final.runs["fragile"].status == "failed"
        ((told, *details),) = scene.acknowledged()
        assert told == "WorkflowCompensationError"
        assert details == [["twice", "first"], ["once"]]
