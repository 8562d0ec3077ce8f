"""`durable demo crash`: the promise, proved on this machine in a few seconds.

A worker process is killed with SIGKILL in the middle of a run; a second one goes on. What the steps did outside of the
database says afterwards how often each really ran.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import click

import durable
from durable import Client, Run, connect
from durable_cli.demo_orders import EFFECTS_VARIABLE, demo_order
from durable_cli.finding import run_async
from durable_cli.options import Settings, common_options
from durable_cli.output import Output, count, glyph, now
from durable_cli.problems import OK, RUN_FAILED, Problem
from durable_cli.story import attempts_text, entry_result, step_name

STEPS: Final = ("check_stock", "charge_card", "book_courier", "print_label", "send_mail")
KILLED_IN: Final = "book_courier"
PATIENCE_SECONDS: Final = 60.0  # a machine may be slow; usually it takes about two seconds
LOOK_SECONDS: Final = 0.02


class Effect(NamedTuple):
    """One line of the effects file."""

    step: str
    key: str
    attempt: int


@click.group("demo")
def demo_command() -> None:
    """See the promises kept, on this machine."""


@demo_command.command("crash")
@common_options
@click.pass_obj
def crash_command(settings: Settings) -> int:
    """Kill a process in the middle of a run and watch another one finish it. Exit code 1 if a promise was broken."""
    directory = Path(tempfile.mkdtemp(prefix="durable-demo-"))
    db = settings.given_db or f"sqlite:///{directory / 'durable-demo.db'}"
    output = Output(settings)
    demo = _Demo(output, directory, db)
    return run_async(demo.play())


class _Demo:
    """The play in four acts."""

    def __init__(self, output: Output, directory: Path, db: str) -> None:
        self._output = output
        self._effects = directory / "effects.txt"
        self._log = directory / "workers.log"
        self._db = db

    async def play(self) -> int:
        async with connect(self._db) as client:
            self._say(f"durable {durable.__version__}: an order in {len(STEPS)} steps, in {client.url}")
            run_id = await self._start(client)
            worker = self._start_worker()
            try:
                await self._wait(
                    lambda: self._is_in_the_middle(client, run_id), worker, f"{KILLED_IN} to start"
                )
            finally:
                _kill(worker)
            before = await client.describe(run_id)
            self._say(
                f"2. {KILLED_IN} is running. kill -9 {worker.pid}: that worker is gone, in the middle of it."
            )
            self._tell(before)
            began = time.monotonic()
            worker = self._start_worker()
            self._say(f"3. Another worker starts, process {worker.pid}.")
            try:
                await self._wait(lambda: self._is_closed(client, run_id), worker, "the run to end")
            finally:
                _stop(worker)
            after = await client.describe(run_id)
            self._say(f"   It finished the order {time.monotonic() - began:.1f}s after its process began:")
            self._tell(after)
            return self._judge(client, after)

    async def _start(self, client: Client) -> str:
        handle = await client.start(demo_order, "book-42", 1999)
        self._say(f"1. The order is stored as run {handle.run_id}. A worker process takes it.")
        return handle.run_id

    def _start_worker(self) -> subprocess.Popen[bytes]:
        """Start `durable worker` as a process of its own; it must find the same code as this one."""
        roots = [str(Path(__file__).parents[1]), str(Path(durable.__file__).parents[1])]
        inherited = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(dict.fromkeys([*roots, *inherited])),
            EFFECTS_VARIABLE: str(self._effects),
        }
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "durable_cli",
                    "worker",
                    "durable_cli.demo_orders",
                    "--db",
                    self._absolute_db(),
                ],
                env=environment,
                cwd=self._log.parent,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _absolute_db(self) -> str:
        """Return the database's address as a process in another directory needs it."""
        path = self._db.removeprefix("sqlite:///")
        return self._db if "://" in path else f"sqlite:///{Path(path).absolute()}"

    async def _is_in_the_middle(self, client: Client, run_id: str) -> bool:
        """Whether the journal says that the step started, and its effect is there."""
        run = await client.describe(run_id)
        is_running = any(entry.name == KILLED_IN and entry.status == "running" for entry in run.journal)
        return is_running and any(one.step == KILLED_IN for one in self.effects())

    async def _is_closed(self, client: Client, run_id: str) -> bool:
        return (await client.describe(run_id)).status.is_closed

    async def _wait(
        self, condition: Callable[[], Awaitable[bool]], worker: subprocess.Popen[bytes], what: str
    ) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not await condition():
            if worker.poll() is not None:
                raise self._problem(f"the worker ended with {worker.returncode} while we waited for {what}")
            if time.monotonic() > deadline:
                raise self._problem(f"waited {PATIENCE_SECONDS:g}s for {what}")
            await asyncio.sleep(LOOK_SECONDS)

    def _problem(self, message: str) -> Problem:
        last = self._log.read_text("utf-8", "replace").strip().splitlines()[-1:]
        return Problem(
            f"{message}{': ' + last[0] if last else ''}",
            code=RUN_FAILED,
            hint=f"the workers' log: {self._log}",
        )

    def effects(self) -> list[Effect]:
        """Return what the steps left in the file, in order."""
        if not self._effects.exists():
            return []
        lines = [line.split("\t") for line in self._effects.read_text("utf-8").splitlines()]
        return [Effect(step, key, int(attempt)) for step, key, attempt in lines]

    # ─ telling ──

    def _say(self, text: str) -> None:
        if self._output.is_text:
            self._output.line(text)

    def _tell(self, run: Run) -> None:
        at = now()
        for entry in run.journal:
            attempts = f"({attempts_text(entry)})" if entry.attempts > 1 else ""
            cells = [step_name(entry).ljust(44), attempts, entry_result(entry, at)]
            self._say(f"     {glyph(entry.status)} {'  '.join(cell for cell in cells if cell)}".rstrip())

    def _judge(self, client: Client, run: Run) -> int:
        effects = self.effects()
        broken = verdict(run, effects)
        if not self._output.is_text:
            self._output.json(
                {
                    "run_id": run.run_id,
                    "status": str(run.status),
                    "effects": [one._asdict() for one in effects],
                    "broken": broken,
                }
            )
            return RUN_FAILED if broken else OK
        self._say(f"4. The proof is in {self._effects}, which no database can take back:")
        times = Counter(one.step for one in effects)
        for step in STEPS:
            note = (
                "  the one that was interrupted: same idempotency key both times" if step == KILLED_IN else ""
            )
            self._say(f"     {step.ljust(14)} ran {count(times[step], 'time').ljust(8)}{note}".rstrip())
        for one in broken:
            self._output.error(one)
        if broken:
            return RUN_FAILED
        self._say(
            "Kept: what was done was not done again, what was interrupted was done again, nothing was lost."
        )
        self._say(f"Look around: durable show {run.run_id} --db {client.url}")
        return OK


def verdict(run: Run, effects: Sequence[Effect]) -> list[str]:
    """Return every promise that was broken."""
    broken = []
    if run.status != "completed":
        broken.append(f"the run is {run.status}: {run.error or run.reason}")
    for step in STEPS:
        those = [one for one in effects if one.step == step]
        allowed = 2 if step == KILLED_IN else 1
        if not 1 <= len(those) <= allowed:
            broken.append(f"{step} ran {count(len(those), 'time')}")
        if len({one.key for one in those}) > 1:
            broken.append(f"{step} had several idempotency keys")
        if [one.attempt for one in those] != list(range(1, len(those) + 1)):
            broken.append(f"{step} counted its attempts {[one.attempt for one in those]}")
    return broken


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        _kill(process)
