"""Workers that hang, drain or are torn down: others go on at once, and what is no longer theirs they cannot touch."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import pytest

from durable import RunStatus
from durable.journal.turns import decode_turn
from tests.support.crash_checks import Outcome, Reading
from tests.support.crash_points import Plan
from tests.support.crashes import Child, Scene, Stage, until_untouched

LEASE_SECONDS: Final = 0.5
SLACK_SECONDS: Final = 30.0  # a busy machine may be late; it must never be early
INTERRUPTED: Final = 130
FAULT: Final = 70


def completed(result: object) -> Outcome:
    return Outcome(status=RunStatus.COMPLETED, result=result)


def turns_of(reading: Reading, worker: int) -> dict[tuple[str, int, int, int], bytes]:
    """Return the journal rows that one incarnation committed."""
    return {key: data for key, data in reading.journal.items() if decode_turn(data).worker == worker}


def incarnations(reading: Reading, child: Child) -> list[int]:
    return [worker for worker, pid, _, _ in reading.workers if pid == child.pid]


def takes_over_and_shuts_out(scene: Scene, zombie: Child, run_ids: Sequence[str]) -> float:
    """Given a stopped worker: another one finishes its runs; continued, it writes nothing and begins a new life."""
    (death,) = scene.deaths()
    scene.shaken.add(zombie.pid)
    other = scene.launch("worker", lease_seconds=LEASE_SECONDS)
    finished = scene.wait_until_closed(run_ids)
    old = incarnations(finished, zombie)
    stopped = [at_us for worker, _, alive, at_us in finished.workers if worker in old and not alive]

    zombie.send(signal.SIGCONT)
    scene.wait_until(
        "the zombie has a new incarnation",
        lambda: any(alive for _, pid, alive, _ in scene.peek().workers if pid == zombie.pid),
    )
    # Where all runs were done before, it may still be starting: a signal would end it before it knows of any.
    scene.wait_until("the other works", lambda: incarnations(scene.peek(), other))
    scene.stop(other)
    assert scene.launch("asker", workflow="chain", argument=2, run_id="afterwards").wait() == 0
    final = scene.wait_until_closed(["afterwards"])
    scene.stop(zombie)

    for worker in old:
        if worker in [number for number, _, alive, _ in finished.workers if not alive]:
            assert turns_of(final, worker) == turns_of(finished, worker), scene.story()
    assert [key for key in final.journal if key[0] in run_ids] == [
        key for key in finished.journal if key[0] in run_ids
    ]
    assert {decode_turn(data).worker for key, data in final.journal.items() if key[0] == "afterwards"} == set(
        incarnations(final, zombie)[-1:]
    ), scene.story()
    if not stopped or stopped[0] is None:
        return 0.0  # it had not registered yet
    return (stopped[0] - death.at_us) / 1e6


def test_a_worker_frozen_in_an_activity_is_replaced_and_writes_nothing_afterwards(scene: Scene) -> None:
    """After a lease without a beat its run belongs to another; the outcome it comes back with is refused."""
    assert scene.launch("asker", workflow="freezing", argument="f", run_id="freezing").wait() == 0
    zombie = scene.launch("worker", lease_seconds=LEASE_SECONDS)
    scene.wait_until("the worker has stopped itself", scene.deaths)

    took = takes_over_and_shuts_out(scene, zombie, ["freezing"])

    print(f"taken over {took:.2f} s after it froze, lease {LEASE_SECONDS} s")
    assert LEASE_SECONDS * 0.5 < took < LEASE_SECONDS + SLACK_SECONDS, scene.story()
    scene.check(
        {
            "freezing": completed(["reserved f", "thawed f", "released f"]),
            "afterwards": completed([0, 1]),
        }
    )


def test_a_zombie_that_comes_back_while_its_successor_is_at_work_is_refused(scene: Scene) -> None:
    """Its turn would fit the journal, whose next number is still free: only the fence says that it is not its turn."""
    gate = scene.directory / "gate"
    gate.touch()
    assert scene.launch("asker", workflow="patient", argument="gate", run_id="patient").wait() == 0
    plan = Plan(kind="stop", n=3, only="commit_turns")  # scheduled `reserve`, then `held`; now its outcome
    zombie = scene.launch("worker", lease_seconds=LEASE_SECONDS, plan=plan)
    scene.wait_until("the worker has stopped itself", scene.deaths)
    scene.shaken.add(zombie.pid)
    gate.unlink()
    other = scene.launch("worker", lease_seconds=LEASE_SECONDS)
    scene.wait_until("the activity runs elsewhere", lambda: scene.has_started("held", pid=other.pid))
    before = scene.read()

    zombie.send(signal.SIGCONT)
    scene.wait_until("the zombie has a new incarnation", lambda: len(incarnations(scene.peek(), zombie)) == 2)
    after = scene.read()
    gate.touch()
    scene.wait_until_closed(["patient"])
    scene.stop(other, zombie)

    assert after.journal == before.journal, scene.story()
    scene.check({"patient": completed(["reserved gate", "gate", "released gate"])})
    assert [line.attempt for line in scene.ledger() if line.what == "end" and "/held#" in line.key] == [1, 2]


def frozen_before(scene: Scene, number: int) -> bool:
    assert scene.launch("starter", runs=10).wait() == 0
    run_ids = [f"chain-{chain:03}" for chain in range(10)]
    zombie = scene.launch("worker", lease_seconds=LEASE_SECONDS, plan=Plan(kind="stop", n=number))
    scene.wait_until(
        "the worker has stopped itself or is done",
        lambda: scene.deaths() or all(run.status.is_closed for run in scene.peek().runs.values()),
    )
    if scene.deaths():
        takes_over_and_shuts_out(scene, zombie, run_ids)
    else:
        drained_and_perhaps_frozen(scene, zombie)
    scene.check(dict.fromkeys(run_ids, completed([0, 1, 4])))
    return bool(scene.deaths())


def drained_and_perhaps_frozen(scene: Scene, zombie: Child) -> None:
    """A worker that freezes while it drains is declared dead like any other; continued, it ends in order."""
    scene.send_term(zombie)
    scene.wait_until("the worker has ended or stopped itself", lambda: zombie.is_over or scene.deaths())
    if scene.deaths():
        other = scene.launch("worker", lease_seconds=LEASE_SECONDS)
        scene.wait_until(
            "it is declared dead",
            lambda: not any(alive for _, pid, alive, _ in scene.peek().workers if pid == zombie.pid),
        )
        zombie.send(signal.SIGCONT)
        scene.stop(other)
    assert zombie.wait() == 0, scene.story()


def frozen_before_each(directory: Path, stage: Stage, numbers: Sequence[int] | None) -> int:
    def freeze_at(number: int) -> bool:
        with stage(directory / f"frozen-{number}") as scene:
            return frozen_before(scene, number)

    return until_untouched(freeze_at, numbers)


def test_a_worker_frozen_before_a_commit_does_not_commit_it_later(tmp_path: Path, stage: Stage) -> None:
    """The fence is checked within the write: what was decided before the freeze is refused after it."""
    assert frozen_before_each(tmp_path, stage, [2, 3, 5]) == 3


@pytest.mark.slow
def test_a_worker_frozen_before_any_write_does_no_harm(tmp_path: Path, stage: Stage) -> None:
    """The same before each of its write transactions, whatever it is, until all runs are done before."""
    frozen = frozen_before_each(tmp_path, stage, None)

    print(f"frozen before {frozen} write transactions")
    assert frozen >= 5


# ─ gone for good ──


@pytest.mark.stores("sqlite")
def test_a_killed_worker_is_replaced_at_once(scene: Scene) -> None:
    """A dead process of this host loses its runs now, not when its lease has run out."""
    assert scene.launch("asker", workflow="patient", argument="gate", run_id="patient").wait() == 0
    killed = scene.launch("worker", lease_seconds=120)
    scene.wait_until("the activity runs", lambda: scene.has_started("held"))
    other = scene.launch("worker", lease_seconds=120)
    scene.wait_until("both are there", lambda: len(scene.peek().workers) == 2)

    scene.kill(killed)
    took = scene.wait_until("it runs elsewhere", lambda: scene.has_started("held", pid=other.pid))
    (scene.directory / "gate").touch()
    scene.wait_until_closed(["patient"])
    scene.stop(other)

    print(f"taken over after {took:.2f} s")
    assert took < SLACK_SECONDS
    scene.check({"patient": completed(["reserved gate", "gate", "released gate"])})


@pytest.mark.slow
def test_a_run_that_sleeps_while_its_worker_dies_wakes_up_on_time(scene: Scene) -> None:
    """A timer far enough away that the run had left the worker's memory: whoever is up fires it."""
    assert scene.launch("asker", workflow="sleeper", argument=6.0, run_id="sleeper").wait() == 0
    killed = scene.launch("worker")
    scene.wait_until(
        "it sleeps, in nobody's hands", lambda: scene.peek().runs["sleeper"].status is RunStatus.WAITING
    )
    scene.kill(killed)

    other = scene.launch("worker")
    scene.wait_until_closed(["sleeper"])
    scene.stop(other)

    scene.check({"sleeper": completed(True)})


# ─ drains ──


@pytest.mark.parametrize(
    ("workflow", "activity", "numbers"),
    [("patient", "held", [1, 1]), ("patient_thread", "held_thread", [1, 2])],
)
def test_a_drained_worker_hands_its_activity_over(
    workflow: str, activity: str, numbers: list[int], scene: Scene
) -> None:
    """SIGTERM, and the grace runs out: the attempt is given back, and begins elsewhere under the same number.

    A thread that does not heed that it is to stop is not given back, since it may act at any time: its attempt counts.
    """
    assert scene.launch("asker", workflow=workflow, argument="gate", run_id="held").wait() == 0
    drained = scene.launch("worker", lease_seconds=120)
    scene.wait_until("the activity runs", lambda: scene.has_started(activity))
    other = scene.launch("worker", lease_seconds=120)
    scene.wait_until("both are there", lambda: len(scene.peek().workers) == 2)

    scene.stop(drained)
    took = scene.wait_until("it runs elsewhere", lambda: scene.has_started(activity, pid=other.pid))
    (scene.directory / "gate").touch()
    scene.wait_until_closed(["held"])
    scene.stop(other)

    print(f"began elsewhere {took:.2f} s after the drain")
    assert took < SLACK_SECONDS
    starts = [line.attempt for line in scene.ledger() if line.what == "start" and f"/{activity}#" in line.key]
    assert starts == numbers, scene.story()
    scene.check({"held": completed(["reserved gate", "gate", "released gate"])})


def test_a_drain_in_the_middle_of_many_runs_repeats_nothing(scene: Scene) -> None:
    """What ends within the grace is recorded; the rest was never begun. No body starts twice."""
    assert scene.launch("starter", runs=60, length=10).wait() == 0
    drained = scene.launch("worker", concurrency=20, grace_seconds=60.0)  # however slow the machine
    scene.wait_until("it is busy", lambda: scene.has_started("part", times=50))
    other = scene.launch("worker", concurrency=20)

    scene.stop(drained)
    scene.wait_until_closed([f"chain-{number:03}" for number in range(60)])
    scene.stop(other)

    starts = [line.key for line in scene.ledger() if line.what == "start"]
    assert len(starts) == len(set(starts)) == 600, scene.story()
    scene.check({f"chain-{number:03}": completed([n * n for n in range(10)]) for number in range(60)})


# ─ scripts that end ──


@pytest.mark.parametrize("end", ["Ctrl-C", "mistake", "return"])
def test_a_script_that_ends_early_hands_its_run_back(
    end: Literal["Ctrl-C", "mistake", "return"], scene: Scene
) -> None:
    """Ctrl-C, an exception in `main` and its plain end are process stops, not cancellations: the next start goes on."""
    until = "result" if end == "Ctrl-C" else end
    script = {"workflow": "patient", "argument": "gate", "run_id": "patient"}
    first = scene.launch("embedded_one", until=until, **script)
    scene.wait_until("the activity runs", lambda: scene.has_started("held"))
    scene.shaken.add(first.pid)
    scene.drained.add(first.pid)
    if end == "Ctrl-C":
        first.send(signal.SIGINT)
    assert first.wait() == {"Ctrl-C": INTERRUPTED, "mistake": FAULT, "return": 0}[end], scene.story()

    left = scene.read()
    (scene.directory / "gate").touch()
    assert scene.launch("embedded_one", **script).wait() == 0, scene.story()

    assert [alive for _, _, alive, _ in left.workers] == [False], scene.story()
    assert left.runs["patient"].status is RunStatus.RUNNING  # ready, for anybody
    starts = [line.attempt for line in scene.ledger() if line.what == "start" and "/held#" in line.key]
    assert starts == [1, 1], scene.story()
    scene.check({"patient": completed(["reserved gate", "gate", "released gate"])})
