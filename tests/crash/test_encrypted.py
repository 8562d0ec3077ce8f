"""Encrypted runs whose processes are killed: another one with the same key goes on, one without it harms nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from durable import Client, Encryption, RunStatus, WorkflowStateError, connect
from durable.payloads.codec import is_sealed
from tests.crash.programs.main import KEYS
from tests.crash.test_limits import ASKED, OUTCOME
from tests.support.crash_checks import Checks, Outcome, Reading
from tests.support.crash_points import at_commit
from tests.support.crashes import Scene, Stage, until_untouched

DONE = Outcome(status=RunStatus.COMPLETED, result=["reserved gate", "gate", "released gate"])


def keyed(scene: Scene) -> Client:
    return connect(scene.database_url, codec=Encryption(KEYS))


def opening(scene: Scene) -> type[Checks]:
    """Return the rules of every scene, over what the keys make of the rows."""

    class OpenedChecks(Checks):
        def __init__(self, reading: Reading, *given: Any, **options: Any) -> None:
            super().__init__(asyncio.run(opened(scene, reading)), *given, **options)

    return OpenedChecks


async def opened(scene: Scene, reading: Reading) -> Reading:
    journal, runs = {}, {}
    async with keyed(scene) as client:
        for run_id, generation in reading.generations.items():
            record = await client.store.get_run(run_id)
            assert record.generation == generation == 1
            for row in await client.store.read_journal(record.pk, generation):
                journal[run_id, generation, row.turn, row.part] = row.data
            result = None if record.result is None else msgspec.json.decode(record.result)
            runs[run_id] = Outcome(status=record.status, result=result, reason=record.reason)
    assert journal.keys() == reading.journal.keys()
    return msgspec.structs.replace(reading, journal=journal, runs=runs)


def every_point(directory: Path, stage: Stage, points: Sequence[int] | None = None) -> int:
    def die_at(point: int) -> bool:
        with stage(directory / f"encrypted-{point}") as scene:
            was_killed = scene.has_died(
                scene.launch("embedded_one", plan=at_commit(point), key="k1", **ASKED)
            )
            if was_killed:
                assert not scene.has_died(scene.launch("embedded_one", key="k1", **ASKED))
            final = scene.check({"limited": OUTCOME}, opening(scene))
            assert all(is_sealed(data) for data in final.journal.values())
            return was_killed

    return until_untouched(die_at, points)


@pytest.mark.slow
def test_a_death_at_some_commits_changes_no_outcome(tmp_path: Path, stage: Stage) -> None:
    """Retries, failures, heartbeats and cancellations, all of them encrypted; the next process has the key, too."""
    assert every_point(tmp_path, stage, range(4, 32, 3)) >= 5


@pytest.mark.slow
@pytest.mark.long
def test_a_death_at_any_commit_changes_no_outcome(tmp_path: Path, stage: Stage) -> None:
    """The same before and after each of them."""
    died = every_point(tmp_path, stage)

    print(f"killed at {died} points")
    assert died >= 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("", "encrypted (key k1), and no codec was given"),
        ("k2", "encrypted with key 'k1', which is not among"),
    ],
)
def test_a_process_that_takes_over_without_the_key_parks_what_it_cannot_read(
    scene: Scene, wrong: str, said: str
) -> None:
    """That run only, and says which key it takes; nothing is begun, and with the key it goes on where it was."""
    asked = {"workflow": "patient", "argument": "gate"}
    assert scene.launch("asker", run_id="secret", key="k1", **asked).wait() == 0, scene.story()
    first = scene.launch("worker", key="k1")
    scene.wait_until("the secret one is half done", lambda: scene.has_started("held"))
    scene.kill(first)
    begun = scene.ledger()
    assert scene.launch("asker", run_id="other", key=wrong, **asked).wait() == 0, scene.story()
    (scene.directory / "gate").touch()

    second = scene.launch("worker", key=wrong)
    scene.wait_until(
        "the secret one is parked", lambda: scene.peek().runs["secret"].status is RunStatus.PARKED
    )
    scene.wait_until_closed(["other"])
    assert [line for line in scene.ledger() if line.run_id == "secret"] == begun
    assert said in asyncio.run(why(scene, "secret"))
    scene.stop(second)

    third = scene.launch("worker", key="k1")
    asyncio.run(resumed(scene, "secret"))
    scene.wait_until_closed(["secret"])
    scene.stop(third)

    scene.check({"secret": DONE, "other": DONE}, opening(scene))
    assert scene.has_started("reserve", times=2)
    assert not scene.has_started("reserve", times=3)  # one of each run


async def why(scene: Scene, run_id: str) -> str:
    async with keyed(scene) as client:
        return (await client.why(run_id)).text


async def resumed(scene: Scene, run_id: str) -> None:
    """Resume it, unless the worker that just came has tried it of its own accord."""
    async with keyed(scene) as client:
        with suppress(WorkflowStateError):
            await client.resume(run_id)
