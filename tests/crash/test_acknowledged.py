"""What a caller was told is so: starts, signals and cancels whose call returned are never lost, nor doubled by a caller
who was not told and asks again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import pytest

from durable import RunStatus
from durable.journal.events import CancelRequested, SignalReceived
from tests.support.crash_checks import Outcome, Reading, entries_of
from tests.support.crash_points import Plan
from tests.support.crashes import Scene, Stage, until_untouched

RUNS: Final = 20
SIGNALS: Final = 10  # half of them one by one, half at once
ASKED: Final = {"runs": RUNS, "signals": SIGNALS}
OUTCOMES: Final = {
    **{f"chain-{number:03}": Outcome(status=RunStatus.COMPLETED, result=[0, 1, 4]) for number in range(RUNS)},
    "listener": Outcome(status=RunStatus.COMPLETED, result=list(range(1, SIGNALS + 1))),
    "cancelled": Outcome(status=RunStatus.CANCELLED, reason="enough"),
}


def lost(scene: Scene, reading: Reading) -> list[str]:
    """Return what a client was told and the database does not hold."""
    heard = [msgspec.json.decode(data) for run_id, _, data in reading.inbox if run_id == "listener"]
    is_cancelled = any(kind == "cancel" for _, kind, _ in reading.inbox)
    for entries in entries_of(reading).values():
        heard += [msgspec.json.decode(entry.value) for entry in entries if isinstance(entry, SignalReceived)]
        is_cancelled |= any(isinstance(entry, CancelRequested) for entry in entries)
    wrong = []
    for answer in scene.acknowledged():
        match answer:
            case ["started", run_id] if run_id not in reading.runs:
                wrong.append(f"run {run_id}")
            case ["told", number] if number not in heard:
                wrong.append(f"signal {number}")
            case ["cancelled"] if not is_cancelled:
                wrong.append("the cancel")
    return wrong


def killed_client(scene: Scene, plan: Plan, *, has_worker: bool) -> bool:
    """A client dies and is started again; a worker is there all the time, or only afterwards."""
    workers = [scene.launch("worker")] if has_worker else []
    was_killed = scene.has_died(scene.launch("starter", plan=plan, **ASKED))
    assert not lost(scene, scene.read()), scene.story()
    if was_killed:
        assert not scene.has_died(scene.launch("starter", **ASKED))
    workers = workers or [scene.launch("worker")]
    scene.wait_until_closed(list(OUTCOMES))
    scene.stop(*workers)
    assert not lost(scene, scene.check(OUTCOMES)), scene.story()
    return was_killed


def killed_clients(kind: str, directory: Path, stage: Stage, numbers: Sequence[int] | None = None) -> int:
    def die_at(number: int) -> bool:
        with stage(directory / f"{kind}-{number}") as scene:
            plan = msgspec.convert({"kind": kind, "n": number}, Plan)
            return killed_client(scene, plan, has_worker=number % 2 == 0)

    return until_untouched(die_at, numbers)


@pytest.mark.parametrize(
    ("kind", "numbers"), [("before", [3, 8]), ("after", [2, 5, 10]), ("answered", [21, 26])]
)
def test_a_killed_client_loses_nothing_it_was_told(
    kind: str, numbers: list[int], tmp_path: Path, stage: Stage
) -> None:
    """A few points of the next test."""
    assert killed_clients(kind, tmp_path, stage, numbers) == len(numbers)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["before", "after", "answered"])
def test_a_client_killed_anywhere_loses_nothing_it_was_told(kind: str, tmp_path: Path, stage: Stage) -> None:
    """Killed before and after each of its commits, and after each answer; asked again, everything has happened once."""
    died = killed_clients(kind, tmp_path, stage)

    print(f"clients killed at {died} points ({kind})")
    assert died >= 10
