"""A rolling upgrade: two installations of the library and of the code it runs, side by side on one database, in processes of their own.

Each is a directory of its own that comes first on the path. The newer one brings a migration.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

import durable
from durable import Client, RunHandle, Signal, connect, workflow
from tests.support.supervisor import PATIENCE
from tests.support.workers import is_waiting, status_is, until

PACKAGE: Final = Path(durable.__file__).parent
go: Final = Signal("go", int)

SHOP: Final = """
import os
from durable import Retry, Signal, activity, activity_info, patched, workflow

go = Signal("go", int)

@activity(retry=Retry(max_attempts=5, initial=0.01))
async def do(step: str) -> str:
    descriptor = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{activity_info().run_id} {step}\\n".encode())
    os.close(descriptor)
    return step

@workflow(name="order")
async def order() -> list[str]:
    told = [await do("first")]
"""
WITHOUT_CHECK: Final = """
    await go.wait()
    return [*told, await do("last")]
"""
WITH_CHECK: Final = """
    if patched("check"):
        told.append(await do("check"))
    await go.wait()
    return [*told, await do("last")]
"""
SERVE: Final = """
import asyncio, sys
from pathlib import Path
import durable
import shop

assert Path(durable.__file__).parents[1] == Path(__file__).parent, durable.__file__

async def main() -> None:
    async with durable.connect(sys.argv[1], durability="process") as client:
        async with durable.Worker(client, shop, lease_seconds=5):
            Path(sys.argv[2]).touch()
            await asyncio.Event().wait()

asyncio.run(main())
"""
# What the next version's first migration might do: columns that old code need not name, a table that it does not know.
EXPAND: Final = """
ALTER TABLE {schema}run ADD COLUMN colour text NOT NULL DEFAULT 'grey';
CREATE INDEX run_colour ON {schema}run (colour) WHERE status < 10;
CREATE TABLE {schema}paint (run bigint PRIMARY KEY, colour text);
"""


@workflow(name="order")
async def order() -> list[str]:
    """What callers know of it."""
    raise NotImplementedError


def installed(site: Path, shop: str) -> Path:
    """Put a copy of the library, and what it serves, into a directory of their own."""
    shutil.copytree(PACKAGE, site / "durable", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "shop.py").write_text(shop)
    (site / "serve.py").write_text(SERVE)
    return site


def upgraded(site: Path) -> Path:
    """Give an installation one more migration, on either kind of database."""
    for kind, schema in (("sqlite", ""), ("postgres", "durable.")):
        directory = site / "durable" / "store" / kind / "migrations"
        number = len([*directory.glob("*.sql")]) + 1
        (directory / f"{number:04}_colours.sql").write_text(EXPAND.format(schema=schema))
    return site


class Deployment:
    """One database, and the workers that installations run on it."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url = url
        self.ledger = directory / "ledger"
        self._directory = directory
        self._launched: list[subprocess.Popen[bytes]] = []

    async def worker(self, site: Path) -> subprocess.Popen[bytes]:
        """Start a worker and return it when it serves."""
        process, mark = self._launch(site)
        await until(lambda: mark.exists() or process.poll() is not None, seconds=PATIENCE)
        assert process.poll() is None, self.said(process)
        return process

    def refused(self, site: Path) -> str:
        """Start a worker that is to end by itself, and return what it said."""
        process, _ = self._launch(site)
        assert process.wait(PATIENCE) == 1
        return self.said(process)

    def _launch(self, site: Path) -> tuple[subprocess.Popen[bytes], Path]:
        number = len(self._launched)
        mark = self._directory / f"{number}.ready"
        with (self._directory / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(site / "serve.py"), self.url, str(mark)],
                cwd=site,
                env=os.environ | {"PYTHONPATH": str(site), "LEDGER": str(self.ledger)},
                stderr=log,
            )
        self._launched.append(process)
        return process, mark

    def said(self, process: subprocess.Popen[bytes]) -> str:
        return (self._directory / f"{self._launched.index(process)}.log").read_text()

    def close(self) -> None:
        for process in self._launched:
            process.kill()
            process.wait(PATIENCE)

    def begun(self) -> Counter[tuple[str, str]]:
        """Return how often each step of each run has begun."""
        lines = self.ledger.read_text().splitlines()
        return Counter((line.split()[0], line.split()[1]) for line in lines)


@contextmanager
def deployed(url: str, directory: Path) -> Iterator[Deployment]:
    deployment = Deployment(url, directory)
    try:
        yield deployment
    finally:
        deployment.close()


async def begun(client: Client, *run_ids: str) -> list[RunHandle[Any]]:
    """Start runs, and return them when they wait for their signal."""
    runs = [await client.start(order, run_id=run_id) for run_id in run_ids]
    for run in runs:
        await is_waiting(run, "signal")
    return runs


@pytest.mark.slow
async def test_an_older_and_a_newer_installation_share_the_runs_of_an_upgrade(
    url: str, tmp_path: Path
) -> None:
    """The newer one's migration disturbs nobody who is at work; runs begun under either end, each as it began, nothing is done twice.

    The older one is killed then, and started again: it refuses the database and says what to do, and the newer one has its runs.
    """
    older = installed(tmp_path / "older", SHOP + WITHOUT_CHECK)
    newer = upgraded(installed(tmp_path / "newer", SHOP + WITH_CHECK))
    with deployed(url, tmp_path) as deployment:
        async with connect(url, durability="process") as client:
            old = await deployment.worker(older)
            before = await begun(client, "before-1", "before-2")
            await deployment.worker(newer)
            both = await begun(client, "both-1", "both-2", "both-3", "both-4")
            for run in (before[0], both[0], both[1]):
                await run.signal(go, 1)
                await status_is(
                    run, "completed"
                )  # perhaps parked in between, by the code that does not know it
            old.kill()
            assert "upgrade the library" in deployment.refused(older)
            after = await begun(client, "after-1")
            for run in (before[1], both[2], both[3], *after):
                await run.signal(go, 1)
                await status_is(run, "completed")

            assert [await run.result() for run in before] == [["first", "last"]] * 2
            for run in both:
                assert await run.result() in (["first", "last"], ["first", "check", "last"])
            assert [await run.result() for run in after] == [["first", "check", "last"]]
            told = {(run.run_id, step) for run in (*before, *both, *after) for step in await run.result()}
        assert deployment.begun() == Counter(told)
