"""Bulk operations and state machines, killed before and after every commit: nothing recorded is done again, no move twice."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec
import pytest

import durable
from durable.journal.events import ActivityCompleted, ScheduleActivity
from durable.patterns.bulk_slices import SliceInput
from tests.crash.programs import bulk_used
from tests.support import crash_ledger
from tests.support.crash_checks import entries_of, read_database
from tests.support.crash_points import Plan
from tests.support.crashes import until_untouched

ROOT: Final = Path(__file__).parents[2]
SIDES: Final[tuple[Literal["before", "after"], ...]] = ("before", "after")


def run(directory: Path, plan: Plan, *program: str) -> bool:
    """Run the script; return whether it was killed as planned, or killed itself."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.crash.programs.bulk_used",
            str(directory),
            msgspec.json.encode(plan).decode(),
            *program,
        ],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "PYTHONHASHSEED": str(plan.n)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 9, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


def recorded_items(directory: Path) -> set[str]:
    """Return the keys, less their runs' marks, of the items whose end is in the journal."""
    found: set[str] = set()
    for (run_id, _), entries in entries_of(read_database(directory / "runs.db")).items():
        asked = {entry.op: entry for entry in entries if isinstance(entry, ScheduleActivity)}
        for entry in entries:
            if not isinstance(entry, ActivityCompleted) or not asked[entry.op].name.endswith("items"):
                continue
            first = msgspec.json.decode(asked[entry.op].args, type=SliceInput).first
            values, done, failed, _ = msgspec.json.decode(entry.result)
            places = range(len(values)) if done is None else done
            ended = [*places, *(one["at"] for one in failed if "delay" not in one)]
            found.update(f"{run_id}#{first + at + 1}" for at in ended)
    return found


def item_of(line: crash_ledger.Line) -> str:
    return f"{line.run_id}#{line.key.rpartition('#')[2]}"


def starts(directory: Path) -> list[str]:
    return [item_of(line) for line in crash_ledger.read(directory / "ledger.jsonl") if line.what == "start"]


async def stories(directory: Path) -> dict[str, list[str]]:
    with durable.using(
        f"sqlite:///{directory / 'runs.db'}"
    ):  # not configure: scenes run side by side in threads
        return {
            machine_id: [row.event for row in await bulk_used.door(machine_id, directory).history()]
            for machine_id in ("inside", "plain")
        }


def check(directory: Path, before: list[str], recorded: set[str]) -> None:
    """What a death changed: items in work were begun again, no more than there are slots; callbacks were called again."""
    again = starts(directory)[len(before) :]
    assert not recorded & set(again), "recorded, and begun again"
    undisturbed = {key: 3 if key.endswith("#6") else 2 if key.endswith("#9") else 1 for key in set(again)}
    extra = Counter(before + again)
    extra.subtract(undisturbed)
    repeated = sum(extra[key] for key in undisturbed if extra[key] > 0)
    assert repeated <= bulk_used.WIDTH, f"{repeated} items were begun again: {extra}"
    assert asyncio.run(stories(directory)) == {"inside": bulk_used.STORY, "plain": bulk_used.STORY}
    called: list[list[Any]] = [
        msgspec.json.decode(line) for line in (directory / "callbacks.jsonl").read_bytes().splitlines()
    ]
    for machine_id in ("inside", "plain"):
        names = [name for machine, name in called if machine == machine_id]
        assert names in (
            ["opened", "locking"],
            ["opened", "opened", "locking"],
            ["opened", "locking", "locking"],
        )


def every_point(directory: Path, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        scene = directory / str(point)
        scene.mkdir()
        was_killed = run(scene, Plan(kind=SIDES[(point - 1) % 2], n=(point + 1) // 2))
        before, recorded = starts(scene), recorded_items(scene)
        if was_killed:
            assert not run(scene, Plan())
        check(scene, before if was_killed else [], recorded if was_killed else set())
        return was_killed

    return until_untouched(die_at, points)


def test_a_death_at_some_commits_changes_no_outcome(tmp_path: Path) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(tmp_path, [6, 15, 22, 31, 44]) >= 4


@pytest.mark.slow
def test_a_death_at_any_commit_changes_no_outcome(tmp_path: Path) -> None:
    """Killed before and after the first commit, the second, ... until all is done before it comes to that."""
    died = every_point(tmp_path)

    print(f"killed at {died} points")
    assert died >= 30


def test_an_item_that_kills_its_worker_fails_alone(tmp_path: Path) -> None:
    """Whoever was on the way with it is tried apart from it; it has its attempts, and then it has failed."""
    lives = 0
    while run(tmp_path, Plan(), "poisoned"):
        lives += 1
        assert lives < 10

    assert lives == 4  # twice with its slice, then two attempts of its own
