"""The command line under test: in this process where that suffices, as a process of its own where it matters."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PATIENCE_SECONDS: Final = 60.0

APP: Final = """
import asyncio
import os
import time
from pathlib import Path

from durable import Retry, Signal, activity, activity_info, sleep, unguarded, workflow

approved = Signal("approved", bool)
note = Signal("note", str)


@activity
async def greet(name: str) -> str:
    return f"Hello, {name}!"


@activity(retry=Retry(max_attempts=3, initial=0.01))
def flaky() -> str:
    if activity_info().attempt < 2:
        raise ConnectionError("no line")
    return "up"


@activity(retry=Retry(max_attempts=2, initial=0.01))
def ship(order: str) -> str:
    raise RuntimeError(f"no stock for {order}")


@activity
def hang(path: str) -> None:
    Path(path).touch()
    time.sleep(600)


@activity
async def slow(started: str, proceed: str) -> str:
    Path(started).touch()
    while not os.path.exists(proceed):
        await asyncio.sleep(0.01)
    return "done"


@workflow
async def hello(name: str, times: int = 1) -> str:
    greeting = await greet(name)
    await flaky()
    return greeting * times


@workflow
async def fulfil(order: str) -> str:
    return await ship(order)


@workflow
async def spoilt(name: str) -> str:
    raise RuntimeError(await greet(name))


@workflow
async def approval(order: str) -> bool:
    return await approved.wait()


@workflow
async def noted() -> str:
    return await note.wait()


@workflow
async def nap(seconds: float) -> str:
    await sleep(seconds)
    return "rested"


@workflow
async def hanging(path: str) -> None:
    await hang(path)


@workflow
async def waiting(started: str, proceed: str) -> str:
    return await slow(started, proceed)


@workflow(task_queue="gpu")
async def train() -> str:
    return "trained"


@workflow
async def spin(path: str) -> None:
    with unguarded():
        Path(path).touch()
    while True:
        pass
"""


class Ended(NamedTuple):
    """How one command ended."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """The cells of a tab-separated list."""
        return [line.split("\t") for line in self.out.splitlines()]


Cli = Callable[..., Ended]


class Child:
    """A command in a process of its own; its stderr is read as it comes."""

    def __init__(self, args: Sequence[str], cwd: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "durable_cli", *args],
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self.err: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.err.extend(iter(self.process.stderr.readline, ""))

    def wait_for(self, text: str) -> None:
        """Wait until the process has said something on stderr."""
        wait_until(
            lambda: text in "".join(self.err) or self.process.poll() is not None, f"{text!r} on stderr"
        )
        assert text in "".join(self.err), f"ended with {self.process.returncode}: {''.join(self.err)}"

    def end(self) -> Ended:
        """Wait for the end of the process."""
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait(PATIENCE_SECONDS)
        self._reader.join(PATIENCE_SECONDS)
        return Ended(code, out, "".join(self.err))


def environment() -> dict[str, str]:
    """Return the environment of a user: nothing of durable set, the checkout importable."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DURABLE_")}
    return kept | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli")]), "PYTHONUTF8": "1"}


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, never for time."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited {PATIENCE_SECONDS:g} s for {what}"
        time.sleep(0.01)
