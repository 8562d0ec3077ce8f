"""Deleting closed runs, killed before and after every batch: each run is there whole, or gone with all that belongs to it.

Which runs: `programs/retention_used.py`. In the middle of a batch: `operator` in test_every_boundary.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from durable import RunStatus
from tests.crash.programs.retention_used import AGAIN, GONE, STAYING
from tests.support.crash_checks import Outcome, Reading
from tests.support.crash_points import Side, at_commit
from tests.support.crashes import Scene, Stage, until_untouched

A_DAY_AGO: Final = (
    "UPDATE run SET created_at_us = created_at_us - 86400000000, closed_at_us = closed_at_us - 86400000000"
)
SIDES: Final[tuple[Side, ...]] = ("before", "after", "within")
OUTCOMES: Final = {
    "open": Outcome(status=RunStatus.COMPLETED, result=[1, 2, 3]),
    "kept": Outcome(status=RunStatus.COMPLETED),
    AGAIN: Outcome(status=RunStatus.COMPLETED, result=[0, 1]),
}


def check_whole(scene: Scene, made: Reading) -> None:
    """Every run is as it was made, or gone; what must stay is there; the audit counts what is gone, once."""
    found = scene.peek()
    for run_id, outcome in found.runs.items():
        assert outcome == made.runs[run_id], scene.story()
        assert journal_of(found, run_id) == journal_of(made, run_id), f"{run_id}\n{scene.story()}"
    assert set(STAYING) <= set(found.runs), scene.story()
    assert set(made.runs) - set(found.runs) <= set(GONE), scene.story()
    check_audit(scene, made, set(made.runs) - set(found.runs))


def check_audit(scene: Scene, made: Reading, gone: set[str]) -> None:
    assert not scene.ownerless(), scene.story()
    audit = scene.select("SELECT coalesce(sum(runs), 0), coalesce(sum(journal_rows), 0) FROM retention")
    rows = sum(len(journal_of(made, run_id)) for run_id in gone)
    assert [[(int(runs), int(count)) for runs, count in audit[0]]] == [[(len(gone), rows)]], scene.story()


def journal_of(reading: Reading, run_id: str) -> dict[tuple[str, int, int, int], bytes]:
    return {key: data for key, data in reading.journal.items() if key[0] == run_id}


def check(scene: Scene, made: Reading) -> None:
    """All that may go is gone; what stays went on, and an id that is used again is nobody's continuation."""
    final = scene.check(OUTCOMES)
    assert set(final.runs) == {*STAYING, AGAIN}, scene.story()
    assert final.epochs[AGAIN, 1] > max(made.epochs.values()), scene.story()
    check_audit(scene, made, set(GONE))
    items = (
        "SELECT count(*) FROM pattern_row WHERE name = 'durable_bulk_items'"
        if scene.is_server
        else "SELECT count(*) FROM durable_bulk_items"
    )
    assert scene.select(items) == [[(0,)]], scene.story()


def every_batch(how: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    """Return how many died."""

    def die_at(point: int) -> bool:
        with stage(directory / f"{how}-{point}") as scene:
            assert scene.launch("retention_maker").wait() == 0, scene.story()
            scene.alter(A_DAY_AGO)
            made = scene.peek()
            sides = SIDES if stage.is_server else SIDES[:2]
            plan = msgspec.structs.replace(at_commit(point, sides), only="prune_runs")
            child = scene.launch("pruner", plan=plan, run_id=how)
            was_killed = child.wait() != 0
            if was_killed:
                assert scene.deaths(), scene.story()
                scene.shaken.add(child.pid)
                check_whole(scene, made)
                assert scene.launch("pruner", run_id=how).wait() == 0, scene.story()
            check(scene, made)
            return was_killed

    return until_untouched(die_at, points)


@pytest.mark.parametrize("how", ["call", "worker"])
def test_a_death_at_some_batches_leaves_every_run_whole_or_gone(
    how: str, tmp_path: Path, stage: Stage
) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_batch(how, tmp_path, stage, [1, 4, 7]) >= 2


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", ["call", "worker"])
def test_a_death_at_any_batch_leaves_every_run_whole_or_gone(how: str, tmp_path: Path, stage: Stage) -> None:
    """What is left is deleted by the next who is asked to."""
    died = every_batch(how, tmp_path, stage)

    print(f"{how}: killed at {died} batches")
    assert died >= 8
