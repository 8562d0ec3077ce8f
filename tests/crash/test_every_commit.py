"""Killed before and after every commit of runs that use every feature, and in the middle of group commits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from durable import RunStatus
from tests.support.crash_checks import Outcome
from tests.support.crash_points import TORN, Plan, at_commit
from tests.support.crashes import Scene, Stage, until_untouched

OUTCOMES: Final = {
    "everything": Outcome(
        status=RunStatus.COMPLETED,
        result={
            "reserved": "reserved a",
            "packed": "packed a",
            "tried": "at last a",
            "gathered": [0, 1, 4],
            "failures": ["declined a", "exhausted"],
            "grouped": [100, 121, 400, 441],
            "late": ["slow a", "slow thread a"],
            "waits": [True, True, [900], "gave up"],
            "heard": [1, 2, 3],
            "silence": "silence",
            "fragile": "after all a",
        },
    ),
    "cancelled": Outcome(status=RunStatus.CANCELLED, reason="enough"),
    "terminated": Outcome(status=RunStatus.TERMINATED, reason="no more"),
    "overdue": Outcome(status=RunStatus.TIMED_OUT),
}
LONG_LEASE_SECONDS: Final = 60.0
TAKEOVER_SECONDS_MAX: Final = 20.0  # far below that lease: so it was the lock that told, not the silence
CHAINS: Final = 60
CHAIN_IDS: Final = [f"chain-{number:03}" for number in range(CHAINS)]


def killed_script(scene: Scene, plan: Plan) -> bool:
    """The script dies and is started again, with the same ids."""
    was_killed = scene.has_died(scene.launch("embedded", plan=plan))
    if was_killed:
        assert not scene.has_died(scene.launch("embedded"))
    scene.check(OUTCOMES)
    return was_killed


def killed_worker(scene: Scene, plan: Plan, *, warm_us: int) -> bool:
    """The only worker dies, with the program that asked for the runs; both are started again."""
    options = {"with_demands": True, "warm_us": warm_us}
    was_killed = scene.has_died(scene.launch("worker", plan=plan, **options))
    if was_killed:
        assert not scene.has_died(scene.launch("worker", **options))
    scene.check(OUTCOMES)
    return was_killed


def killed_neighbour(scene: Scene, plan: Plan) -> bool:
    """The worker that has the runs dies; nobody starts it again, the one beside it takes over, at once."""
    lease = {} if scene.is_server else {"lease_seconds": LONG_LEASE_SECONDS}
    first, client = scene.launch("worker", plan=plan, **lease), scene.launch("client")
    scene.wait_until("the first worker is at work, or dead", lambda: scene.ledger() or first.is_over)
    second = scene.launch("worker", **lease)
    scene.wait_until("the worker has died or all is done", lambda: first.is_over or client.is_over)
    scene.read()
    assert client.wait() == 0, scene.story()
    if not first.is_over:
        scene.send_term(first)
    was_killed = scene.has_died(first)
    scene.wait_until(
        "the death was noticed",
        lambda: not any(alive for _, pid, alive, _ in scene.peek().workers if pid == first.pid),
    )
    scene.stop(second)
    final = scene.check(OUTCOMES)
    for death in scene.deaths():
        for _, pid, _, stopped_at_us in final.workers:
            if pid == death.pid:
                assert stopped_at_us is not None
                took = (stopped_at_us - death.at_us) / 1e6
                assert took < TAKEOVER_SECONDS_MAX, f"taken over after {took:.2f} s\n{scene.story()}"
    return was_killed


def every_point(mode: str, directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        with stage(directory / f"{mode}-{point}") as scene:
            plan = at_commit(point)
            match mode:
                case "script":
                    return killed_script(scene, plan)
                case "worker":
                    return killed_worker(scene, plan, warm_us=0 if point % 4 < 2 else 5_000_000)
                case _:
                    return killed_neighbour(scene, plan)

    return until_untouched(die_at, points)


@pytest.mark.parametrize(
    ("mode", "points"),
    [
        ("script", [1, 4, 9, 22, 39, 56, 67, 82]),
        ("worker", [2, 5, 14, 21, 36, 49, 60, 77]),
        ("neighbour", [4, 7, 12, 21, 30, 43]),
    ],
)
def test_a_death_at_some_commits_changes_no_outcome(
    mode: str, points: list[int], tmp_path: Path, stage: Stage
) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(mode, tmp_path, stage, points) >= len(points) // 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["script", "worker", "neighbour"])
def test_a_death_at_any_commit_changes_no_outcome(mode: str, tmp_path: Path, stage: Stage) -> None:
    """Killed before and after the first commit, the second, ... until all is done before it comes to that."""
    died = every_point(mode, tmp_path, stage)

    print(f"{mode}: killed at {died} points")
    assert died >= 40


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commits", "modes"),
    # A worker whose caller asks for everything anew in each life spends eighteen commits on that and on trials alone.
    [(15, ("embedded",)), (19, ("embedded", "worker")), (26, ("embedded", "worker"))],
)
def test_a_process_that_dies_again_and_again_gets_there(
    commits: int, modes: Sequence[str], tmp_path: Path, stage: Stage
) -> None:
    """Every life ends at its own n-th commit; as long as each gets somewhere, the outcome is that of a single life."""
    for mode in modes:
        with stage(tmp_path / mode) as scene:
            for life in range(60):
                plan = Plan(kind="after" if life % 2 else "before", n=commits)
                if not scene.has_died(scene.launch(mode, plan=plan, with_demands=True)):
                    break
            else:
                pytest.fail(f"60 lives of {commits} commits were not enough\n{scene.story()}")
            scene.check(OUTCOMES)


# ─ group commits ──


def killed_in_group_commit(scene: Scene, plan: Plan, length: int) -> bool:
    """A worker with many runs dies in a transaction that is half written, a part of it in SQLite's log already.

    On a server: when it was sent, and nobody knows what the server makes of it.
    """
    assert scene.launch("starter", runs=CHAINS, length=length).wait() == 0, scene.story()
    first = scene.launch("worker", plan=plan, spill=True)
    scene.wait_until(
        "the worker has died or all is done",
        lambda: first.is_over or all_closed(scene),
    )
    if not first.is_over:
        scene.send_term(first)
    was_killed = scene.has_died(first)
    if was_killed:
        second = scene.launch("worker")
        scene.wait_until_closed(CHAIN_IDS)
        scene.stop(second)
    result = [number * number for number in range(length)]
    scene.check(dict.fromkeys(CHAIN_IDS, Outcome(status=RunStatus.COMPLETED, result=result)))
    return was_killed


def all_closed(scene: Scene) -> bool:
    runs = scene.peek().runs
    return len(runs) == CHAINS and all(run.status.is_closed for run in runs.values())


def every_group_commit(
    directory: Path, stage: Stage, length: int, numbers: Sequence[int] | None = None
) -> tuple[int, int]:
    """Return how many died, and how many of those with rows of several runs half written, or sent and not answered."""
    torn = []

    def die_at(number: int) -> bool:
        with stage(directory / f"group-{number}") as scene:
            was_killed = killed_in_group_commit(
                scene, Plan(kind="within", n=number, only="commit_turns"), length
            )
            torn.extend(
                death for death in scene.deaths() if death.where.endswith(TORN) or "after row" in death.where
            )
            return was_killed

    return until_untouched(die_at, numbers), len(torn)


def test_a_death_in_some_group_commits_loses_and_doubles_nothing(tmp_path: Path, stage: Stage) -> None:
    """Half of the rows are written when the process dies: none of them counts, none of the runs suffers."""
    died, torn = every_group_commit(tmp_path, stage, 3, [1, 2, 4, 7])

    assert died >= 2
    assert torn >= 1  # how many runs share a commit is the machine's affair


@pytest.mark.slow
@pytest.mark.parametrize("length", [3, pytest.param(8, marks=pytest.mark.long)])
def test_a_death_in_any_group_commit_loses_and_doubles_nothing(
    tmp_path: Path, stage: Stage, length: int
) -> None:
    """The same for each group commit until sixty runs get through untouched."""
    died, torn = every_group_commit(tmp_path, stage, length)

    print(f"killed in {died} group commits, {torn} of them half written")
    assert torn >= 5


def test_a_start_of_many_runs_is_all_or_nothing(tmp_path: Path, stage: Stage) -> None:
    """Killed in the middle of starting ten runs, a client has started none of them; asked again, each once."""

    def die_at(number: int) -> bool:
        with stage(tmp_path / f"start-{number}") as scene:
            plan = Plan(kind="within", n=number, only="start_runs")
            was_killed = scene.has_died(scene.launch("starter", runs=CHAINS, plan=plan, spill=True))
            assert len(scene.peek().runs) % 10 == 0, scene.story()
            assert not scene.has_died(scene.launch("starter", runs=CHAINS))
            assert len(scene.check({}).runs) == CHAINS
            return was_killed

    assert until_untouched(die_at) >= CHAINS // 10
