"""Processes whose wall clocks are wrong, by hours and by days, and are set while they work. A preloaded library lies to them."""

from __future__ import annotations

import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from durable import Client, connect
from tests.crash.programs.deadly import holds, rests
from tests.crash.test_poison import EXPECTED, all_run, all_wait, finished, with_neighbours
from tests.support.supervisor import PATIENCE, supervised
from tests.support.workers import is_released, until

pytestmark = pytest.mark.slow
HOUR: Final = 3600
DAY: Final = 24 * HOUR
HELD: Final = 8
LEASE: Final = 5.0


class Clock:
    """The wall clock of the processes that are started with `environment`."""

    def __init__(self, file: Path, library: Path, *, ahead: int) -> None:
        self._file = file
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_OFFSET": str(file)}
        file.write_bytes(struct.pack("=q", ahead))

    def set(self, *, ahead: int) -> None:
        """Set it, by so many seconds before everybody else's, at once."""
        with self._file.open("r+b") as file:  # the same file: processes have it mapped
            file.write(struct.pack("=q", ahead))


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    async with connect(url, durability="process") as client:
        yield client


async def test_workers_whose_clocks_are_hours_apart_lose_and_double_nothing(
    client: Client, url: str, tmp_path: Path, clock_library: Path
) -> None:
    """No lease goes by them: nobody is taken for dead who lives, whoever dies is replaced, and costs only what it was at."""
    clocks = [
        Clock(tmp_path / f"clock-{ahead}", clock_library, ahead=ahead) for ahead in (3 * HOUR, -5 * HOUR)
    ]
    gate = tmp_path / "gate"
    async with (
        supervised(url, tmp_path / "ahead", lease=LEASE, environment=clocks[0].environment) as ahead,
        supervised(url, tmp_path / "behind", lease=LEASE, environment=clocks[1].environment) as behind,
    ):
        neighbours = await with_neighbours(client)
        held = [await client.start(holds, str(gate)) for _ in range(HELD)]
        await until(lambda: all_run(held), seconds=PATIENCE)
        await until(lambda: all_wait(client), seconds=PATIENCE)
        assert ahead.process is not None
        lost = [str(ahead.process.pid) in str((await run.describe()).worker) for run in held]
        clocks[0].set(ahead=-DAY)
        await ahead.kill()
        clocks[1].set(ahead=DAY)
        gate.touch()

        assert [await run.result(PATIENCE) for run in held] == ["done"] * HELD
        assert await finished(neighbours) == EXPECTED
        assert (len(ahead.ends), behind.ends) == (1, [])
    for run, is_lost in zip(held, lost, strict=True):
        (entry,) = (await run.describe()).journal
        assert entry.attempts == 1 + is_lost


@pytest.mark.stores("postgres")
async def test_a_timer_on_a_server_goes_by_the_servers_clock(
    client: Client, url: str, tmp_path: Path, clock_library: Path
) -> None:
    """Not by that of the worker, however far ahead it is, or is set."""
    clock = Clock(tmp_path / "clock", clock_library, ahead=5 * HOUR)
    async with supervised(url, tmp_path / "log", environment=clock.environment):
        long = await client.start(rests, float(HOUR))
        await is_released(long)
        for ahead in (7 * HOUR, DAY):
            clock.set(ahead=ahead)
            began = time.monotonic()
            assert await (await client.start(rests, 0.5)).result(PATIENCE) == "rested"
            assert time.monotonic() - began >= 0.5
        assert (await long.describe()).status == "waiting"


@pytest.mark.stores("sqlite")
async def test_a_timer_on_a_file_is_due_when_the_machines_clock_is_set_past_it(
    client: Client, url: str, tmp_path: Path, clock_library: Path
) -> None:
    """What it says decides, and it is looked at again and again: nobody waits out the hour."""
    clock = Clock(tmp_path / "clock", clock_library, ahead=0)
    async with supervised(url, tmp_path / "log", environment=clock.environment):
        run = await client.start(rests, float(HOUR))
        await is_released(run)
        clock.set(ahead=2 * HOUR)
        assert await run.result(PATIENCE) == "rested"
