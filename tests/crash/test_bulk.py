"""Bulk operations and state machines, killed before and after every commit: nothing recorded is done again, no move twice."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import durable
from durable.journal.events import ActivityCompleted, ScheduleActivity
from durable.patterns.bulk_slices import SliceInput
from tests.crash.programs import bulk_used
from tests.support import crash_ledger
from tests.support.crash_checks import Reading, entries_of, read_database, read_schema
from tests.support.crash_points import Plan, at_commit
from tests.support.crashes import SERVER_LEASE_SECONDS, until_untouched
from tests.support.postgres import in_schema

ROOT: Final = Path(__file__).parents[2]
_schemas: Final = itertools.count(1)


class Place:
    """Where the databases of a test are: files in their scenes, or schemas of one server."""

    def __init__(self, server_url: str | None) -> None:
        self._server_url = server_url
        self._urls: dict[Path, str] = {}

    def url(self, directory: Path) -> str:
        if self._server_url is None:
            return f"sqlite:///{directory / 'runs.db'}"
        return self._urls.setdefault(
            directory, in_schema(self._server_url, f"b{os.getpid()}_{next(_schemas)}")
        )

    def read(self, directory: Path) -> Reading:
        if self._server_url is None:
            return read_database(directory / "runs.db")
        return read_schema(self.url(directory))

    def environment(self, directory: Path) -> dict[str, str]:
        """On a server only silence tells of a death."""
        lease = {} if self._server_url is None else {"DURABLE_LEASE_TTL": str(SERVER_LEASE_SECONDS)}
        return lease | {"CRASH_URL": self.url(directory)}


@pytest.fixture
def place(store_kind: str, request: pytest.FixtureRequest) -> Place:
    return Place(None if store_kind == "sqlite" else request.getfixturevalue("postgres").url)


def run(place: Place, directory: Path, plan: Plan, *program: str) -> bool:
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
        env=os.environ | place.environment(directory) | {"PYTHONPATH": path, "PYTHONHASHSEED": str(plan.n)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, 9, -signal.SIGKILL), done.stdout + done.stderr
    return done.returncode != 0


def recorded_items(reading: Reading) -> set[str]:
    """Return the keys, less their runs' marks, of the items whose end is in the journal."""
    found: set[str] = set()
    for (run_id, _), entries in entries_of(reading).items():
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


async def stories(url: str, directory: Path) -> dict[str, list[str]]:
    with durable.using(url):  # not configure: scenes run side by side in threads
        return {
            machine_id: [row.event for row in await bulk_used.door(machine_id, directory).history()]
            for machine_id in ("inside", "plain")
        }


def check_items(before: list[str], again: list[str], recorded: set[str], width: int) -> None:
    """What a death changed: items in work were begun again, no more than there are slots."""
    assert not recorded & set(again), "recorded, and begun again"
    undisturbed = {key: 3 if key.endswith("#6") else 2 if key.endswith("#9") else 1 for key in set(again)}
    extra = Counter(before + again)
    extra.subtract(undisturbed)
    repeated = sum(extra[key] for key in undisturbed if extra[key] > 0)
    assert repeated <= width, f"{repeated} items were begun again: {extra}"


def check(url: str, directory: Path, before: list[str], recorded: set[str]) -> None:
    """What a death changed: items in work were begun again; callbacks were called again."""
    again = starts(directory)[len(before) :]
    check_items(before, again, recorded, bulk_used.WIDTH)
    assert asyncio.run(stories(url, directory)) == {
        "inside": bulk_used.STORY,
        "plain": bulk_used.STORY,
    }
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


def every_point(place: Place, directory: Path, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        scene = directory / str(point)
        scene.mkdir()
        was_killed = run(place, scene, at_commit(point))
        before, recorded = starts(scene), recorded_items(place.read(scene))
        if was_killed:
            assert not run(place, scene, Plan())
        check(place.url(scene), scene, before if was_killed else [], recorded if was_killed else set())
        return was_killed

    return until_untouched(die_at, points)


def test_a_death_at_some_commits_changes_no_outcome(tmp_path: Path, place: Place) -> None:
    """A few of the points of the next test, so that what breaks often breaks early."""
    assert every_point(place, tmp_path, [6, 15, 22, 31, 44]) >= 4


@pytest.mark.slow
@pytest.mark.long
def test_a_death_at_any_commit_changes_no_outcome(tmp_path: Path, place: Place) -> None:
    """Killed before and after the first commit, the second, ... until all is done before it comes to that."""
    died = every_point(place, tmp_path)

    print(f"killed at {died} points")
    assert died >= 30


def every_point_of_children(place: Place, directory: Path, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        scene = directory / str(point)
        scene.mkdir()
        was_killed = run(place, scene, at_commit(point), "children")
        before, recorded = starts(scene), recorded_items(place.read(scene))
        if was_killed:
            assert not run(place, scene, Plan(), "children")
        final = place.read(scene)
        assert set(final.runs) == {"starting", *bulk_used.CHILDREN}
        assert {str(one.status) for one in final.runs.values()} == {"completed"}
        again = starts(scene)[len(before) :]
        check_items(before, again, recorded, 2 * bulk_used.WIDTH)
        assert {key.rpartition("#")[0] for key in before + again} == set(bulk_used.CHILDREN)
        return was_killed

    return until_untouched(die_at, points)


@pytest.mark.slow
def test_a_death_at_some_commits_neither_loses_nor_doubles_a_child(tmp_path: Path, place: Place) -> None:
    """A few of the points of the next test: before and after the items are stored, before and after the child is there."""
    assert every_point_of_children(place, tmp_path, [2, 4, 5, 6, 7, 8, 9, 11, 17]) >= 6


@pytest.mark.slow
@pytest.mark.long
def test_a_death_at_any_commit_neither_loses_nor_doubles_a_child(tmp_path: Path, place: Place) -> None:
    """One child for each start, under the id that follows from its parent's, and each item as in an operation of its own."""
    assert every_point_of_children(place, tmp_path) >= 15


def every_point_of_limits(place: Place, directory: Path, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        scene = directory / str(point)
        scene.mkdir()
        was_killed = run(place, scene, at_commit(point), "limits")
        before, recorded = starts(scene), recorded_items(place.read(scene))
        if was_killed:
            assert not run(place, scene, Plan(), "limits")
            assert not recorded & set(starts(scene)[len(before) :]), "recorded, and begun again"
        check_limits(scene, place.read(scene))
        return was_killed

    return until_untouched(die_at, points)


def check_limits(scene: Path, final: Reading) -> None:
    """All have ended as they do; what an operation that was late tells of is what is on record of it."""
    assert {run_id: str(one.status) for run_id, one in final.runs.items()} == {
        "streamed": "completed",
        "breaking": "completed",
        "late": "timed_out",
    }
    partial = msgspec.json.decode((scene / "partial.json").read_bytes())
    done = {f"late#{value // 10 + 1}" for value in partial}
    assert len(partial) == len(done)
    assert done == {key for key in recorded_items(final) if key.startswith("late#")}


@pytest.mark.slow
@pytest.mark.long_on_postgres
def test_a_death_at_some_commits_changes_nothing_of_streams_breakers_and_limits(
    tmp_path: Path, place: Place
) -> None:
    """A few of the points of the next test."""
    assert every_point_of_limits(place, tmp_path, [9, 20]) >= 1


@pytest.mark.slow
@pytest.mark.long
def test_a_death_at_any_commit_changes_nothing_of_streams_breakers_and_limits(
    tmp_path: Path, place: Place
) -> None:
    """A stream tells all results again; a breaker lets all through in the end; who is late tells what was recorded by then."""
    died = every_point_of_limits(place, tmp_path)

    print(f"killed at {died} points")
    assert died >= 20


def test_an_item_that_kills_its_worker_fails_alone(tmp_path: Path, place: Place) -> None:
    """Whoever was on the way with it is tried apart from it; it has its attempts, and then it has failed."""
    lives = 0
    while run(place, tmp_path, Plan(), "poisoned"):
        lives += 1
        assert lives < 10

    assert lives == 4  # twice with its slice, then two attempts of its own
