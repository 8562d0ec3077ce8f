"""The machine goes down, again and again, with everything on it: many runs, two workers, their callers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import pytest

from durable import RunStatus
from tests.crash.test_every_commit import OUTCOMES
from tests.support.crash_checks import Outcome
from tests.support.crashes import Child, Scene, Stage

RUNS: Final = 50
SIGNALS: Final = 20
EXPECTED: Final = {
    **{
        f"chain-{number:03}": Outcome(status=RunStatus.COMPLETED, result=[n * n for n in range(6)])
        for number in range(RUNS)
    },
    "listener": Outcome(status=RunStatus.COMPLETED, result=list(range(1, SIGNALS + 1))),
    **OUTCOMES,
}


def whole_machine(scene: Scene, chance: random.Random) -> list[Child]:
    """Everybody who is not done yet."""
    options = {"warm_us": chance.choice([0, 5_000_000]), "concurrency": chance.choice([5, 100])}
    return [
        scene.launch("worker", **options),
        scene.launch("worker", **options),
        scene.launch("starter", runs=RUNS, length=6, signals=SIGNALS),
        scene.launch("client"),
    ]


def restarted(scene: Scene, seed: int, deaths: int) -> None:
    chance = random.Random(seed)
    for _ in range(deaths):
        machine = whole_machine(scene, chance)
        effects = len(scene.ledger()) + chance.randrange(1, 150)
        scene.wait_until(
            "some more has happened",
            lambda machine=machine, effects=effects: (
                len(scene.ledger()) >= effects or all(child.is_over for child in machine[2:])
            ),
        )
        failed = [child for child in machine if child.is_over and child.status != 0]
        assert not failed, scene.story()
        scene.kill(*machine)
    first, second, starter, client = whole_machine(scene, chance)
    assert (starter.wait(), client.wait()) == (0, 0), scene.story()
    scene.wait_until_closed(list(EXPECTED))
    scene.stop(first, second)
    scene.check(EXPECTED)
    told = {tuple(answer) for answer in scene.acknowledged()}
    assert told >= {("started", run_id) for run_id in EXPECTED if run_id.startswith(("chain", "listener"))}


@pytest.mark.slow
def test_processes_that_open_a_file_at_the_same_moment_all_succeed(tmp_path: Path, stage: Stage) -> None:
    """A new file, and one that dead processes left: whoever comes second waits until the first has made it usable."""
    for number in range(5):
        with stage(tmp_path / f"scene-{number}") as scene:
            openers = [scene.launch("starter", runs=10) for _ in range(6)]
            assert [child.wait() for child in openers] == [0] * 6, scene.story()
            workers = [scene.launch("worker") for _ in range(2)]
            scene.wait_until("they are at work", scene.ledger)
            scene.kill(*workers)
            workers = [scene.launch("worker") for _ in range(4)]
            scene.wait_until_closed([f"chain-{chain:03}" for chain in range(10)])
            # Who is told to stop while it is still being imported does not drain: it holds nothing yet.
            pids = {worker.pid for worker in workers}
            scene.wait_until("all have begun", lambda: pids <= {pid for _, pid, *_ in scene.peek().workers})  # noqa: B023
            scene.stop(*workers)


def test_a_machine_that_goes_down_three_times_loses_and_doubles_nothing(scene: Scene) -> None:
    """All processes killed at once, at moments that a seed decides; fifty runs and those of every feature."""
    restarted(scene, seed=1, deaths=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "seed", [*range(2, 6), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(6, 12))]
)
def test_a_machine_that_goes_down_again_and_again_loses_and_doubles_nothing(
    seed: int, tmp_path: Path, stage: Stage
) -> None:
    """The same with more seeds, and more often. A failure names its seed."""
    with stage(tmp_path / f"seed-{seed}") as scene:
        restarted(scene, seed, deaths=6)
