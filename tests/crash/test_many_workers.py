"""Many workers over one server, dying at random: with a neighbour alive, nothing needs anybody to start anything again."""

from __future__ import annotations

import random
import time
from typing import Final

import pytest

from durable import RunStatus
from tests.crash.test_every_commit import OUTCOMES
from tests.support.crash_checks import Outcome
from tests.support.crashes import SERVER_LEASE_SECONDS, Child, Scene

pytestmark = pytest.mark.stores("postgres")

WORKERS: Final = 4
RUNS: Final = 60
LENGTH: Final = 12
EXPECTED: Final = {
    f"chain-{number:03}": Outcome(
        status=RunStatus.COMPLETED, result=[position * position for position in range(LENGTH)]
    )
    for number in range(RUNS)
}
TAKEOVER_SECONDS_MAX: Final = SERVER_LEASE_SECONDS + 1.0


def killed_at_random(scene: Scene, seed: int, deaths: int) -> None:
    """Kill one worker after the other while all of them are at work; a new one takes each one's place."""
    chance = random.Random(seed)
    workers = [scene.launch("worker", concurrency=8) for _ in range(WORKERS)]
    asking = [scene.launch("starter", runs=RUNS, length=LENGTH), scene.launch("client")]
    for _ in range(deaths):
        effects = len(scene.ledger()) + chance.randrange(20, 120)
        scene.wait_until(
            "some more has happened",
            lambda effects=effects: len(scene.ledger()) >= effects or all(one.is_over for one in asking),
        )
        position = chance.randrange(WORKERS)
        scene.kill(workers[position])
        workers[position] = scene.launch("worker", concurrency=8)
    assert [one.wait() for one in asking] == [0, 0], scene.story()
    scene.wait_until_closed(list(EXPECTED))
    scene.stop(*workers)
    scene.check(OUTCOMES | EXPECTED)


def test_workers_killed_at_random_lose_and_double_nothing(scene: Scene) -> None:
    """Four of them, six deaths; runs of every feature, and sixty of twelve steps."""
    killed_at_random(scene, seed=1, deaths=6)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 8))
def test_workers_killed_again_and_again_lose_and_double_nothing(scene: Scene, seed: int) -> None:
    """The same with more seeds, and more often. A failure names its seed."""
    killed_at_random(scene, seed, deaths=15)


def test_a_killed_worker_is_replaced_within_a_lease_and_a_second(scene: Scene) -> None:
    """Only silence tells on a server; whoever looks next takes all of its runs over."""
    taken: list[float] = []
    outcomes: dict[str, Outcome] = {}
    while not taken or (min(taken) >= TAKEOVER_SECONDS_MAX and len(taken) < 5):  # a machine may be busy
        gate = f"gate-{len(taken)}"
        taken.append(killed_and_replaced(scene, gate))
        outcomes[gate] = Outcome(
            status=RunStatus.COMPLETED, result=[f"reserved {gate}", gate, f"released {gate}"]
        )

    scene.check(outcomes)
    assert 0 < min(taken) < TAKEOVER_SECONDS_MAX, scene.story()


def killed_and_replaced(scene: Scene, gate: str) -> float:
    """Return the seconds from a worker's death in a run's activity, which another then goes on with, until it was declared dead."""
    assert scene.launch("asker", workflow="patient", argument=gate, run_id=gate).wait() == 0
    killed = scene.launch("worker")
    scene.wait_until("the activity runs", lambda: scene.has_started("held", pid=killed.pid))
    other = scene.launch("worker")
    scene.wait_until(
        "both are there", lambda: {killed.pid, other.pid} <= {pid for _, pid, _, _ in scene.peek().workers}
    )

    at = time.time_ns() // 1000
    scene.kill(killed)
    scene.wait_until("it runs elsewhere", lambda: scene.has_started("held", pid=other.pid))
    (scene.directory / gate).touch()
    final = scene.wait_until_closed([gate])
    scene.stop(other)
    return took(final.workers, killed, at)


def took(workers: list[tuple[int, int, bool, int | None]], killed: Child, at_us: int) -> float:
    """Return the seconds from an instant until the killed worker was declared dead."""
    (stopped,) = [stopped for _, pid, _, stopped in workers if pid == killed.pid]
    assert stopped is not None
    return (stopped - at_us) / 1e6
