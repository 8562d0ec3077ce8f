"""Timeouts, retry policies, cancellation types and patches, killed before and after every commit: the outcome is that of a single life."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from durable import RunStatus
from tests.crash.programs.workflows import prompt
from tests.support.crash_checks import Outcome
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

ASKED: Final = {"workflow": "limited", "argument": "a", "run_id": "limited"}
OUTCOME: Final = Outcome(
    status=RunStatus.COMPLETED,
    result=[
        "new",
        "heard a",
        "picked a",
        "later a",
        "final",
        "gave up",
        "schedule_to_start passed",
        "hang is late",
        "tidy is late",
        "left is late",
    ],
)


PROGRAMS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "script": ("embedded_one", ASKED),
    "worker": ("worker_one", ASKED),
    "elsewhere": ("worker_one", ASKED | {"elsewhere": "annex"}),
}


def every_point(mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    program, asked = PROGRAMS[mode]

    def die_at(point: int) -> bool:
        with stage(directory / f"limits-{point}") as scene:
            plan = at_commit(point)
            was_killed = scene.has_died(scene.launch(program, plan=plan, **asked))
            if was_killed:
                assert not scene.has_died(scene.launch(program, **asked))
            scene.check({"limited": OUTCOME})
            return was_killed

    return until_untouched(die_at, points)


def test_a_death_at_some_commits_changes_no_outcome(tmp_path: Path, stage: Stage) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point("script", tmp_path, stage, [7, 14, 21]) >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode",
    [
        "script",
        pytest.param("worker", marks=pytest.mark.long),
        pytest.param("elsewhere", marks=pytest.mark.long),
    ],
)
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Whichever limit has passed, and whatever was cancelled, before the process died; also with the activities on another worker."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 15


@pytest.mark.slow
def test_the_wait_for_a_slot_goes_on_while_the_worker_is_dead(scene: Scene) -> None:
    """It counts from the scheduling: a worker with all slots free begins it no more, and it is not retried."""
    limit_us = prompt.definition.schedule_to_start_us
    assert limit_us is not None
    assert scene.launch("asker", workflow="crowded", argument="gate", run_id="crowded").wait() == 0
    first = scene.launch("worker", concurrency=1)
    scene.wait_until("the only slot is taken", lambda: scene.has_started("held", pid=first.pid))
    scene.kill(first)
    deadline = time.monotonic() + limit_us / 1_000_000
    scene.wait_until("its time has passed", lambda: time.monotonic() > deadline)

    (scene.directory / "gate").touch()
    second = scene.launch("worker")
    scene.wait_until_closed(["crowded"])
    scene.stop(second)

    scene.check({"crowded": Outcome(status=RunStatus.COMPLETED, result=["gate", "schedule_to_start passed"])})
    assert not scene.has_started("prompt")
    assert scene.has_started("held", times=2)
