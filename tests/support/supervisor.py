"""A supervisor, as systemd is one: it starts the worker of `tests.crash.programs.deadly` again whenever it has ended."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.workers import until

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
LIMIT = 0.75  # of an activation, in seconds


class Supervisor:
    """Starts the worker again whenever it has ended, as systemd would."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self.log = log
        self.ends: list[int] = []
        self.process: asyncio.subprocess.Process | None = None

    def said(self) -> str:
        """What its processes wrote last, for whoever reads of a failed test."""
        return self.log.read_text(errors="replace")[-8000:] if self.log.exists() else ""

    async def kill(self) -> None:
        """Kill the process that runs now; another one follows."""
        before = len(self.ends)
        assert self.process is not None
        self.process.kill()
        await until(lambda: len(self.ends) > before, seconds=PATIENCE)

    async def run(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self.log.open("ab") as log:
            while True:
                self.process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "tests.crash.programs.deadly", self.url, str(LIMIT),
                    cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=log, stderr=log,
                )  # fmt: skip
                self.ends.append(await self.process.wait())


@asynccontextmanager
async def supervised(url: str, log: Path) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(url, log)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        print(supervisor.said())
        task.cancel()
        if supervisor.process is not None and supervisor.process.returncode is None:
            supervisor.process.kill()
            await supervisor.process.wait()
