"""Activities that somebody outside completes, or hurries on, while the processes that asked for them are killed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

from durable import WorkflowStateError, connect
from tests.crash.programs.deadly import asks, insists
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


async def test_retries_that_are_wanted_now_outlive_their_workers(url: str, tmp_path: Path) -> None:
    """Killed again and again around the wish: no attempt begins twice, none is left out, and nobody waits out the hour."""
    tray = tmp_path / "tray"
    async with (
        connect(url, durability="process") as client,
        supervised(url, tmp_path / "log") as supervisor,
    ):
        runs = [await client.start(insists, f"{tray}-{number}") for number in range(6)]
        for kills in range(4):
            await until(lambda: any_retried(runs), seconds=PATIENCE)
            for run in runs[kills::2]:
                with suppress(WorkflowStateError):
                    await run.retry_now()
            await supervisor.kill()
        while not await all_closed(runs):
            await any_retried(runs)
            await asyncio.sleep(0.05)

        results = [await run.result(PATIENCE) for run in runs]
    for number, result in enumerate(results):
        begun = [int(line) for line in tokens(tray, number)]
        assert begun == sorted(set(begun))
        assert result == begun[-1] >= 12


async def any_retried(runs: list[Any]) -> bool:
    """Want whatever waits for a retry to have it now; return whether something did."""
    wanted = 0
    for run in runs:
        with suppress(WorkflowStateError):
            wanted += len(await run.retry_now())
    return wanted > 0


async def all_closed(runs: list[Any]) -> bool:
    return all([(await run.describe()).status.is_closed for run in runs])


def tokens(tray: Path, number: int) -> list[str]:
    return Path(f"{tray}-{number}").read_text().split()


async def all_open(runs: list[Any]) -> bool:
    seen = [await run.describe() for run in runs]
    return all(run.journal and run.journal[0].is_open for run in seen)
