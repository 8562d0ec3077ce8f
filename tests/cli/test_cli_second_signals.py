"""Somebody who presses Ctrl-C until it ends: `durable worker` and a plain script, whatever they are at. Nothing is lost or doubled."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.cli.cli_harness import PATIENCE_SECONDS, Child, Cli, environment, wait_until

Start = Callable[..., Child]

SCRIPT: Final = """
import asyncio, os, time
from pathlib import Path
from durable import Signal, activity, workflow

PHASE = os.environ.get("PHASE", "")
go = Signal("go", bool)

def note(what):
    with Path("notes").open("a") as notes:
        notes.write(what + "\\n")

@activity
async def charge() -> str:
    note("charged")
    return "charged"

@activity
async def asynchronous() -> str:
    note("begun")
    while not Path("proceed").exists():
        await asyncio.sleep(0.01)
    return "done"

@activity
def threaded() -> str:
    note("begun")
    while not Path("proceed").exists():
        time.sleep(0.01)
    return "done"

@activity
async def stubborn() -> str:
    note("begun")
    while not Path("proceed").exists():
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            note("draining")
    return "done"

@workflow
async def order(phase: str) -> str:
    paid = await charge()
    if phase == "idle":
        await go.wait()
    else:
        await {"asynchronous": asynchronous, "threaded": threaded, "draining": stubborn}[phase]()
    return paid

if PHASE == "import":
    note("importing")
    time.sleep(60)
if __name__ == "__main__":
    print(asyncio.run(order(PHASE, run_id="o")))
"""


def insist(process: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send a signal again and again until the process ends; return how it did."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()  # or whoever waits for it waits for ever
            raise AssertionError("it does not end")
        process.send_signal(number)
        time.sleep(0.03)  # two that come at once are one
    return process.returncode


def heed_interrupts() -> None:
    """Undo what a shell does to what it starts in the background: such a process would not know of SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def has_noted(here: Path, what: str) -> Callable[[], bool]:
    return lambda: (here / "notes").exists() and what in (here / "notes").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("phase", "reached"),
    [
        ("import", "importing"),
        ("idle", "charged"),
        ("asynchronous", "begun"),
        ("threaded", "begun"),
        ("draining", "begun"),
    ],
)
def test_a_script_ends_when_somebody_insists_and_its_run_goes_on(
    cli: Cli, here: Path, phase: str, reached: str, number: signal.Signals
) -> None:
    """By the signal itself, as any Python program. What was recorded is not done again."""
    (here / "script.py").write_text(SCRIPT)
    with subprocess.Popen(
        [sys.executable, "script.py"],
        env=environment() | {"PHASE": phase},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # one call, before anything else is there
    ) as script:
        wait_until(has_noted(here, reached), reached)
        if phase == "draining" and number is signal.SIGINT:
            script.send_signal(number)
            wait_until(has_noted(here, "draining"), "the first signal")
        ended = insist(script, number)

    assert ended == -number
    if phase == "import":
        assert not (here / "durable.db").exists()
        return
    (here / "proceed").touch()
    if phase == "idle":
        cli("signal", "o", "go", "true")
    assert cli("worker", "script.py", "--drain").code == 0
    assert cli("result", "o", "--timeout", "0").out == '"charged"\n'
    assert (here / "notes").read_text().count("charged") == 1


@pytest.mark.slow
@pytest.mark.parametrize(("number", "second"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("phase", ["import", "start", "idle", "asynchronous", "threaded", "draining"])
def test_a_worker_ends_when_somebody_insists_and_its_runs_go_on(
    cli: Cli, child: Start, here: Path, phase: str, number: signal.Signals, second: int
) -> None:
    """In order or at once, which the exit code says; whoever comes next has all of it."""
    (here / "script.py").write_text(SCRIPT)
    (here / "slow.py").write_text("import time\nopen('notes', 'w').write('importing')\ntime.sleep(60)\n")
    if phase in ("asynchronous", "threaded", "draining"):
        cli("start", "script.py:order", phase, "--id", "o")
    worker = child("worker", "slow.py" if phase == "import" else "script.py")
    match phase:
        case "import":
            wait_until(has_noted(here, "importing"), "the import")
        case "idle":
            worker.wait_for("ready.")
        case "start":
            wait_until((here / "durable.db").exists, "the database")
        case _:
            wait_until(has_noted(here, "begun"), "the activity")
    if phase == "draining":
        worker.process.send_signal(number)
        worker.wait_for("draining")
    ended = insist(worker.process, number)

    assert ended in (0, second)
    assert "Traceback" not in worker.end().err
    if phase in ("import", "start", "idle"):
        cli("start", "script.py:order", "idle", "--id", "o")
        cli("signal", "o", "go", "true")
    (here / "proceed").touch()
    assert cli("worker", "script.py", "--drain").code == 0
    assert cli("result", "o", "--timeout", "0").out == '"charged"\n'
    assert (here / "notes").read_text().count("charged") == 1
