"""A database whose file is deleted or replaced under those who have it open: nothing is acknowledged that nobody would find."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from durable import Client, Signal, StoreError, Worker, activity, workflow
from durable.seams import SystemClock
from durable.worker.incarnation import Incarnation
from tests.support.workers import file_of, is_waiting, no_durability, until

go = Signal("go", str)


@activity
async def step(value: str) -> str:
    return value


@workflow
async def waits() -> str:
    return await step(await go.wait())


def moved(database: Path, how: str) -> None:
    if how == "replaced":
        shutil.copy(database, database.with_suffix(".copy"))
        database.with_suffix(".copy").rename(database)
    else:
        database.unlink()


@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_what_would_be_lost_is_refused(client: Client, how: str) -> None:
    """SQLite itself would go on writing to a file that has no name any more."""
    run = await client.start(waits, run_id="w")
    moved(file_of(client), how)

    for asked in (client.start(waits, run_id="x"), run.signal(go, "on"), run.cancel()):
        with pytest.raises(StoreError, match="deleted or replaced while it was open here"):
            await asked


def test_the_heartbeat_of_a_worker_ends_with_its_loop() -> None:
    """A beat would say that somebody drives its runs; one that fails would warn for ever of a directory that is gone."""

    class Lost:
        beats = 0

        def beat(self, worker_id: int) -> bool:
            self.beats += 1
            raise StoreError("gone")

    store: Any = Lost()
    threads: Any = Mock()
    loop = asyncio.new_event_loop()

    async def begin() -> Incarnation:
        return Incarnation(
            store,
            1,
            clock=SystemClock(),
            threads=threads,
            lease_seconds=1,
            began_at=0.0,
            on_lost=lambda worker_id: None,
            is_hopeless=lambda: False,
        )

    incarnation = loop.run_until_complete(begin())
    assert incarnation._beat()
    loop.close()

    assert not incarnation._beat()
    assert store.beats == 1


@pytest.mark.stores("sqlite")
async def test_a_worker_notices_with_its_next_beat_and_can_be_stopped(url: str) -> None:
    """It commits nothing more, says why, and ends when it is told to."""
    async with no_durability(url) as client:
        worker = Worker(client, waits, lease_seconds=0.4)
        serving = asyncio.ensure_future(worker.run())
        run = await client.start(waits, run_id="w")
        await is_waiting(run, "signal")
        moved(file_of(client), "deleted")

        await until(lambda: client.store._gone is not None)  # type: ignore[attr-defined]  # SQLite's own
        worker.stop(0)
        await serving
