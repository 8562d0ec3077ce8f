"""Activities that somebody outside completes, while the processes that asked for them are killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from durable import connect
from tests.crash.programs.deadly import asks
from tests.support.supervisor import PATIENCE, supervised
from tests.support.workers import until


async def test_an_open_activity_outlives_its_workers(url: str, tmp_path: Path) -> None:
    """Killed while it is open, and again when it was answered: one attempt, and the answer is the result."""
    tray = tmp_path / "tray"
    async with (
        connect(url, durability="process") as client,
        supervised(url, tmp_path / "log") as supervisor,
    ):
        runs = [await client.start(asks, f"{tray}-{number}") for number in range(5)]
        await until(lambda: all_open(runs), seconds=PATIENCE)
        await supervisor.kill()
        await until(lambda: all_open(runs), seconds=PATIENCE)
        for number in range(5):
            (token,) = tokens(tray, number)
            assert await client.complete_activity(token, number)
            if number in (1, 3):
                await supervisor.kill()
        assert [await run.result(PATIENCE) for run in runs] == [1, 2, 3, 4, 5]
        for run in runs:
            asked = (await run.describe()).journal[0]
            assert asked.attempts == 1


def tokens(tray: Path, number: int) -> list[str]:
    return Path(f"{tray}-{number}").read_text().split()


async def all_open(runs: list[Any]) -> bool:
    seen = [await run.describe() for run in runs]
    return all(run.journal and run.journal[0].is_open for run in seen)
