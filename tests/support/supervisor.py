"""A supervisor, as systemd is one: it starts the worker of `tests.crash.programs.deadly` again whenever it has ended."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.support.workers import until

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0
LIMIT = 0.75  # of an activation, in seconds
LEASE = 2.0
FOR_EVER = 3600.0


class Supervisor:
    """Starts the worker again whenever it has ended, as systemd would."""

    def __init__(
        self,
        url: str,
        log: Path,
        limits: tuple[float, float],
        cgroup: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = url
        self.environment = environment or {}
        self.cgroup = cgroup
        self.limits = [str(one) for one in limits]
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
                    sys.executable, "-m", "tests.crash.programs.deadly", self.url, *self.limits,
                    cwd=ROOT, env={**os.environ, "PYTHONPATH": path, **self.environment}, stdout=log, stderr=log,
                )  # fmt: skip
                if self.cgroup is not None:
                    (self.cgroup / "cgroup.procs").write_text(str(self.process.pid))
                self.ends.append(await self.process.wait())


@contextmanager
def memory_limited(megabytes: int) -> Iterator[Path]:
    """Make a control group whose processes the kernel kills when they hold more; skip the test where there is none to be had."""
    group = Path("/sys/fs/cgroup/memory") / f"durable-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control group of our own for memory: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(megabytes << 20))
        yield group
    finally:
        group.rmdir()


@asynccontextmanager
async def supervised(
    url: str,
    log: Path,
    *,
    limit: float = LIMIT,
    lease: float = LEASE,
    cgroup: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Supervisor]:
    """Keep a worker at work for the length of the block; `limit` of an activation and `lease` in seconds."""
    supervisor = Supervisor(url, log, (limit, lease), cgroup, environment)
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor
    finally:
        print(supervisor.said())
        task.cancel()
        if supervisor.process is not None and supervisor.process.returncode is None:
            supervisor.process.kill()
            await supervisor.process.wait()
