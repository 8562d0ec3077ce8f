"""Very many payloads of a megabyte: all runs end, though their worker is killed, which holds few of them at a time; what was pruned is room for the next."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import pytest

from durable import Client, PayloadTooLargeError, connect
from tests.crash.programs.heavy import MEGABYTE, PAYLOADS, carries
from tests.support.supervisor import ROOT
from tests.support.workers import until

PATIENCE: Final = 3600.0  # the long one writes some ten gigabytes, twice
HELD_MAX: Final = 400  # megabytes of a worker's process, whatever their number
pytestmark = pytest.mark.stores("sqlite")


async def worker(url: str) -> asyncio.subprocess.Process:
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.programs.heavy", url,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def drained(url: str) -> int:
    """Let a worker do what there is, and return how many megabytes it held at most."""
    process = await worker(url)
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    return int(out)


def text(number: int) -> str:
    return f"{number:09}".ljust(MEGABYTE, "x")


async def asked(client: Client, count: int) -> None:
    for number in range(count):
        await client.start(carries, text(number), run_id=f"r-{number}")


async def checked(client: Client, count: int) -> None:
    """Every run ended with its own text, turned by two."""
    for number in range(count):
        whole = text(number)
        result = await (await client.get(f"r-{number}", carries)).result(0)
        assert result == whole[-2:] + whole[:-2], number


def pages(database: Path) -> int:
    """Return how many pages the database has, those that are free and those that are only in the log included."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        (count,) = connection.execute("PRAGMA page_count").fetchone()
    return int(count)


@pytest.mark.parametrize(
    "payloads",
    [
        pytest.param(160, marks=pytest.mark.slow),
        pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.long]),
    ],
)
async def test_very_many_large_payloads_fill_no_memory_and_no_disk_for_ever(
    url: str, tmp_path: Path, payloads: int
) -> None:
    """One of them too large is refused and the others do not notice; a second crowd fits where the first one was."""
    count = payloads // PAYLOADS
    async with connect(url, durability="process") as client:
        await asked(client, count)
        with pytest.raises(PayloadTooLargeError):
            await client.start(carries, "x" * (17 * MEGABYTE))
        killed = await worker(url)
        await until(lambda: is_closed(client, f"r-{count // 4}"), seconds=PATIENCE)
        with suppress(ProcessLookupError):  # it was quick
            killed.kill()
        await killed.communicate()
        assert await drained(url) < HELD_MAX
        await checked(client, count)
        size = pages(tmp_path / "durable.db")
        assert (await client.prune(0)).runs == count
        assert await client.list() == []

        await asked(client, count)
        assert await drained(url) < HELD_MAX
        await checked(client, count)
        assert pages(tmp_path / "durable.db") <= size * 1.1


async def is_closed(client: Client, run_id: str) -> bool:
    return (await client.store.get_run(run_id)).status.is_closed
