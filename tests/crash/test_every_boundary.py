"""Killed before, half-way through and after every call that changes a file; each call failing once; the power going at it.

A commit is some ten such calls. Here a process dies between any two of them, in the middle of any write, and loses what it
had not flushed: what is found afterwards is what a single undisturbed life would have left.

On a server the same of every message to it: killed half-way through it and right behind it, sending it failing, its answer lost.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from durable import RunStatus
from durable.journal.events import ScheduleActivity
from tests.crash import test_bulk, test_continuing, test_graphs, test_patterns
from tests.crash.programs import operators_used
from tests.crash.test_acknowledged import ASKED, lost
from tests.crash.test_acknowledged import OUTCOMES as ASKED_OUTCOMES
from tests.crash.test_every_commit import OUTCOMES
from tests.support.boundaries import Boundary
from tests.support.crash_checks import Outcome, entries_of, read_database
from tests.support.crashes import Child, Scene, Stage, until_untouched

FAULT: Final = 70  # how a process of a scene ends that an error ended
# What a full or failing disk, a quota, a file system that turned read-only say.
ERRORS: Final = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS, errno.EFBIG)
# What a network says that is gone, or has no room.
NETWORK_ERRORS: Final = (errno.ECONNRESET, errno.EPIPE, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENOBUFS)
Judge = Callable[[Scene], None]


def judge_operator(scene: Scene) -> None:
    """All outcomes; what was answered, told, appended, copied and deleted is so."""
    completed = {
        run_id: Outcome(status=RunStatus.COMPLETED, result=result)
        for run_id, result in operators_used.OUTCOMES.items()
    }
    final = scene.check(completed | {"asking": Outcome(status=RunStatus.COMPLETED, result="yes")})
    assert set(final.runs) == set(completed), scene.story()
    assert not scene.ownerless(), scene.story()
    kept, pauses = scene.select(
        "SELECT data FROM pattern_row WHERE name = 'kept_rows' ORDER BY number"
        if scene.is_server
        else "SELECT data FROM kept_rows ORDER BY rowid",
        "SELECT name FROM pause",
    )
    assert [bytes(row) for (row,) in kept] == operators_used.ROWS, scene.story()
    assert pauses == [("elsewhere",)], scene.story()
    assert final.generations["anew"] == 2, scene.story()
    if not scene.is_server:  # a server's copies are its operator's
        assert scene.select("PRAGMA integrity_check") == [[("ok",)]]
        assert {"paused", "large"} <= set(read_database(scene.directory / "copy.db").runs), scene.story()


def judge_bulk(scene: Scene) -> None:
    """Nothing that was recorded is done again; the moves of the machines are those of one life."""
    scene.read()
    test_bulk.check(scene.database_url, scene.directory, test_bulk.starts(scene.directory), set())


PROGRAMS: Final[Mapping[str, tuple[str, dict[str, Any], Judge]]] = {
    "script": ("embedded", {}, lambda scene: void(scene.check(OUTCOMES))),
    "worker": ("worker", {"with_demands": True, "warm_us": 0}, lambda scene: void(scene.check(OUTCOMES))),
    "patterns": ("patterns", {}, test_patterns.check),
    "graphs": ("graphs", {}, test_graphs.check),
    "rolling": (
        "rolling",
        {"runs": test_continuing.GENERATIONS, "signals": test_continuing.SIGNALS},
        test_continuing.check,
    ),
    "operator": ("operator", {}, judge_operator),
    "bulk": ("bulk", {}, judge_bulk),
}


# An item's body is begun by the slice it is in, not by a turn of its own.
UNCHECKED: Final = ("apart", "holding")


def void(_: object) -> None:
    """So that a check is a judge."""


def unrecorded_starts(scene: Scene) -> list[str]:
    """Return bodies that began though the turn that asked for them is not on record: effects before their commit."""
    reading = scene.peek()
    recorded: set[str] = set()
    for (run_id, generation), entries in entries_of(reading).items():
        epoch = reading.epochs[run_id, generation]
        asked = [entry for entry in entries if isinstance(entry, ScheduleActivity)]
        recorded.update(f"{run_id}@{epoch}/{entry.name}#{entry.n}" for entry in asked)
    begun = {line.key for line in scene.ledger() if line.what == "start"}
    return sorted(key for key in begun - recorded if key.partition("@")[0] not in UNCHECKED)


def has_died(scene: Scene, child: Child) -> bool:
    """Wait for a process; it may have been killed, have got through, or have been ended by an error of its database."""
    status = child.wait()
    if status not in (0, FAULT, -signal.SIGKILL):
        raise AssertionError(f"{child} failed\n{scene.story()}")
    if status != 0:
        scene.shaken.add(child.pid)
    if status == FAULT:
        scene.drained.add(child.pid)  # it stopped in order, and gave back what it had begun
    return status != 0


def live_through(scene: Scene, name: str, boundary: Boundary) -> bool:
    """One life with the boundary, one without if that was not the end of it; return whether the boundary was met."""
    program, options, judge = PROGRAMS[name]
    chosen = options | ({"durability": "full"} if boundary.kind == "power" else {})
    was_ended = has_died(scene, scene.launch(program, boundary=boundary, **chosen))
    assert not (begun := unrecorded_starts(scene)), f"{begun}\n{scene.story()}"
    if was_ended:
        assert scene.launch(program, **chosen).wait() == 0, scene.story()
    judge(scene)
    return bool(scene.deaths())


def every_boundary(
    name: str,
    make: Callable[[int], Boundary],
    stage: Stage,
    directory: Path,
    *,
    points: Sequence[int] | None = None,
) -> int:
    """Return at how many boundaries something happened."""

    def at(point: int) -> bool:
        with stage(directory / f"{name}-{point}") as scene:
            return live_through(scene, name, make(point))

    return until_untouched(at, points)


def killed(point: int) -> Boundary:
    """Half-way through the first call, after it, half-way through the second, ..."""
    return Boundary(kind="after" if point % 2 == 0 else "half", n=(point + 1) // 2)


def failing(point: int) -> Boundary:
    """A call fails, each with another error."""
    return Boundary(kind="fail", n=point, error=ERRORS[point % len(ERRORS)])


def powerless(point: int) -> Boundary:
    return Boundary(kind="power", n=point)


def unsent(point: int) -> Boundary:
    """A message is not sent, each time for another reason, and its connection is gone."""
    return Boundary(kind="fail", n=point, error=NETWORK_ERRORS[point % len(NETWORK_ERRORS)])


def unanswered(point: int) -> Boundary:
    return Boundary(kind="lost", n=point)


MAKERS: Final = {"killed": killed, "failing": failing, "powerless": powerless}
SERVER_MAKERS: Final = {"killed": killed, "unsent": unsent, "unanswered": unanswered}


@pytest.mark.slow
@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_happens_at_some_boundaries_changes_no_outcome(
    name: str, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """A sample of `..._at_any_boundary`: a few within the first commits, the rest far apart."""
    points = [3, 17, *range(31 if how == "killed" else 29, 600, 149)]
    met = every_boundary(name, MAKERS[how], watched_stage, tmp_path, points=points)

    assert met >= 3


@pytest.mark.slow
@pytest.mark.stores("postgres")
@pytest.mark.parametrize("how", SERVER_MAKERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_happens_to_some_messages_changes_no_outcome(
    name: str, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """A sample of `..._to_any_message`."""
    points = range(37, 500, 99) if how == "killed" else range(19, 250, 53)
    met = every_boundary(name, SERVER_MAKERS[how], watched_stage, tmp_path, points=points)

    assert met >= 3


@pytest.mark.slow
@pytest.mark.stores("sqlite")
def test_a_power_cut_takes_what_was_not_flushed(tmp_path: Path, watched_stage: Stage) -> None:
    """The test of the test: where durability was given up by name, a cut is seen to take what had been committed."""
    with watched_stage(tmp_path / "cut") as scene:
        boundary = Boundary(kind="power", n=399)  # of every third point nothing arrives
        assert has_died(scene, scene.launch("embedded", boundary=boundary, durability="process"))

        assert unrecorded_starts(scene)


@pytest.mark.slow
@pytest.mark.stores("sqlite")
def test_what_a_caller_was_told_outlives_a_power_cut(tmp_path: Path, watched_stage: Stage) -> None:
    """Starts, signals and cancels whose call had returned, from a process that never closed its database."""

    def at(point: int) -> bool:
        with watched_stage(tmp_path / str(point)) as scene:
            boundary, asked = Boundary(kind="power", n=point), {**ASKED, "durability": "full"}
            was_ended = has_died(scene, scene.launch("starter", boundary=boundary, **asked))
            if scene.acknowledged():
                assert not lost(scene, scene.read()), scene.story()
            if was_ended:
                assert scene.launch("starter", **asked).wait() == 0, scene.story()
            worker = scene.launch("worker")
            scene.wait_until_closed(list(ASKED_OUTCOMES))
            scene.stop(worker)
            assert not lost(scene, scene.check(ASKED_OUTCOMES)), scene.story()
            return was_ended

    assert until_untouched(at, [60, 74, 86, 99, 111]) >= 3


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("how", MAKERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_happens_at_any_boundary_changes_no_outcome(
    name: str, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """All of them, until the program gets through before it comes to that."""
    met = every_boundary(name, MAKERS[how], watched_stage, tmp_path)

    print(f"{name}: {how} at {met} boundaries")
    assert met >= 100


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.stores("postgres")
@pytest.mark.parametrize("how", SERVER_MAKERS)
@pytest.mark.parametrize("name", PROGRAMS)
def test_what_happens_to_any_message_changes_no_outcome(
    name: str, how: str, tmp_path: Path, watched_stage: Stage
) -> None:
    """The first, the second, ... until the program gets through before it comes to that."""
    met = every_boundary(name, SERVER_MAKERS[how], watched_stage, tmp_path)

    print(f"{name}: {how} at {met} messages")
    assert met >= 50
