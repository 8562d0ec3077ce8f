"""`durable worker` killed in the middle of a run, and what its next life makes of it: hash seeds, --reload, probes."""

from __future__ import annotations

import http.client
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cli_harness import PATIENCE_SECONDS, Child, Cli, wait_until

pytestmark = pytest.mark.slow

Start = Callable[..., Child]
NAMES = ("ann", "bob", "cid", "dee", "eve", "fay", "gus", "hal")
BEFORE = 3  # steps that are on record when the worker is killed

# Which step comes next is up to the order of a set of strings, thus to the hash seed.
UNORDERED = f"""
import asyncio, os
from durable import Retry, activity, workflow

def step(name):
    async def body() -> str:
        with open("began", "a") as file:
            file.write(name + "\\n")
        with open("began") as file:
            count = len(file.readlines())
        while count > {BEFORE} and not os.path.exists("proceed"):
            await asyncio.sleep(0.01)
        return name
    return activity(name=name, retry=Retry(max_attempts=5, initial=0.01))(body)

STEPS = {{name: step(name) for name in {NAMES!r}}}

@workflow
async def unordered() -> list[str]:
    return [await STEPS[name]() for name in set(STEPS)]
"""

VERSIONED = """
import asyncio
from pathlib import Path
from durable import Retry, activity, activity_info, workflow

@activity
async def first() -> str:
    with open("firsts", "a") as file:
        file.write(VERSION + "\\n")
    return VERSION

@activity(retry=Retry(max_attempts=3, initial=0.01))
async def act() -> str:
    Path("began").touch()
    while not Path("proceed").exists():
        await asyncio.sleep(0.01)
    return f"{VERSION} at attempt {activity_info().attempt}"

@workflow
async def flow() -> list[str]:
    return [await first(), await act()]
"""

HANGING = """
import time
from pathlib import Path
from durable import Retry, activity, activity_info, workflow

@activity(retry=Retry(max_attempts=3, initial=0.01))
async def blocks() -> int:
    if activity_info().attempt == 1:
        Path("began").touch()
        time.sleep(3600)
    return activity_info().attempt

@workflow
async def flow() -> int:
    return await blocks()
"""


def kill(worker: Child) -> None:
    worker.process.kill()
    worker.process.wait(PATIENCE_SECONDS)


# ─ hash seeds ──


def steps_begun(here: Path) -> list[str]:
    path = here / "began"
    return path.read_text().splitlines() if path.exists() else []


def killed_in_a_set(cli: Cli, child: Start, here: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Start the run, kill its worker after some steps, and return those that had begun, the last one unfinished."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    (here / "unordered.py").write_text(UNORDERED)
    cli("start", "unordered.py:unordered", "--id", "u")
    worker = child("worker", "unordered.py")
    wait_until(lambda: len(steps_begun(here)) > BEFORE, "some steps")
    kill(worker)
    return steps_begun(here)


def a_seed_that_orders_otherwise(begun: list[str]) -> str:
    """Return a hash seed under which the recorded steps would not come in the order in which they are recorded."""
    code = f"print(*[name for name in set(dict.fromkeys({NAMES!r}))])"
    for seed in map(str, range(1, 1000)):
        said = subprocess.check_output(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}
        )
        if said.decode().split()[:BEFORE] != begun[:BEFORE]:
            return seed
    raise AssertionError("no seed orders them otherwise")


def test_a_worker_killed_and_started_anew_goes_through_a_set_in_the_same_order(
    cli: Cli, child: Start, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The seed is the database's: the second process repeats nothing but the step that was under way."""
    begun = killed_in_a_set(cli, child, here, monkeypatch)

    (here / "proceed").touch()
    worker = child("worker", "unordered.py", "--drain")
    assert worker.end().code == 0

    assert cli("result", "u", "--timeout", "0").code == 0
    told = json.loads(cli("result", "u").out)
    assert sorted(told) == sorted(NAMES)
    assert steps_begun(here) == [*begun, *told[BEFORE:]]
    assert told[: BEFORE + 1] == begun


def test_under_another_seed_the_run_parks_and_says_so(
    cli: Cli, child: Start, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody insists on a PYTHONHASHSEED: nothing is done in another order; under the database's own the run goes on."""
    begun = killed_in_a_set(cli, child, here, monkeypatch)
    (here / "proceed").touch()

    with monkeypatch.context() as other:
        other.setenv("PYTHONHASHSEED", a_seed_that_orders_otherwise(begun))
        child("worker", "unordered.py", "--drain").end()
    why = cli("why", "u").out
    assert "NonDeterminismError" in why
    assert "PYTHONHASHSEED" in why
    assert steps_begun(here) == begun

    assert cli("resume", "u").code == 0
    assert child("worker", "unordered.py", "--drain").end().code == 0
    told = json.loads(cli("result", "u", "--timeout", "0").out)
    assert steps_begun(here) == [*begun, *told[BEFORE:]]


# ─ --reload ──


def test_a_worker_with_reload_that_is_killed_and_then_reloads_in_a_run_loses_nothing(
    cli: Cli, child: Start, here: Path
) -> None:
    """The death costs the activity an attempt, the change of a file none; what was on record is not done again."""
    (here / "versioned.py").write_text(f"VERSION = 'old'\n{VERSIONED}")
    cli("start", "versioned.py:flow", "--id", "v")
    worker = child("worker", "versioned.py", "--reload")
    wait_until((here / "began").exists, "the activity")
    kill(worker)
    (here / "began").unlink()

    worker = child("worker", "versioned.py", "--reload")
    wait_until((here / "began").exists, "the activity, in the second life")
    (here / "began").unlink()
    (here / "versioned.py").write_text(f"VERSION = 'new code'\n{VERSIONED}")
    worker.wait_for("versioned.py changed: draining (1s), then starting anew")
    wait_until((here / "began").exists, "the activity, under the new code")
    (here / "proceed").touch()

    assert cli("result", "v", "--timeout", "60s").out == '["old","new code at attempt 2"]\n'
    assert (here / "firsts").read_text() == "old\n"
    worker.process.terminate()
    assert worker.end().code == 0


# ─ probes ──


def probe(worker: Child) -> str:
    """Return `host:port` of a worker's probes."""
    worker.wait_for("ready")
    found = re.search(r"health on http://([0-9.]+:\d+)/", "".join(worker.err))
    assert found is not None
    return found[1]


def is_healthy(where: str, seconds: float) -> bool:
    """Ask as a keeper would: no answer in time is as bad as a bad one."""
    connection = http.client.HTTPConnection(where, timeout=seconds)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except TimeoutError:
        return False
    finally:
        connection.close()


def test_a_worker_whose_loop_hangs_is_not_healthy_and_its_next_life_is(
    cli: Cli, child: Start, here: Path
) -> None:
    """Whoever keeps it sees no answer, kills it and starts it anew; the run goes on with its next attempt."""
    (here / "hanging.py").write_text(HANGING)
    command = ("worker", "hanging.py", "--health", ":0", "--activation-limit", "1h")
    worker = child(*command)
    where = probe(worker)
    assert is_healthy(where, PATIENCE_SECONDS)

    cli("start", "hanging.py:flow", "--id", "h")
    wait_until((here / "began").exists, "the activity")
    assert not is_healthy(where, 0.5)
    kill(worker)

    worker = child(*command)
    assert is_healthy(probe(worker), PATIENCE_SECONDS)
    assert cli("result", "h", "--timeout", "60s").out == "2\n"
    worker.process.terminate()
    assert worker.end().code == 0
