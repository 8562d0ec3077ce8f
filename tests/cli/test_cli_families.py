"""A workflow that starts itself as its child, and that one the next, for ever: what beside it goes on, what is said of it, how it is stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cli_harness import Child, Cli, wait_until

Start = Callable[..., Child]

ENDLESS = """
from durable import activity, workflow

@workflow
async def endless(depth: int) -> int:
    return await endless(depth + 1)

@activity
async def one() -> int:
    return 1

@workflow
async def neighbour() -> int:
    return await one() + await one()
"""


def family(cli: Cli, *options: str) -> list[list[str]]:
    return cli("list", "--workflow", "endless", "--limit", "10000", *options).rows


@pytest.mark.slow
def test_a_family_without_end_holds_nobody_up_and_can_be_stopped(cli: Cli, child: Start, here: Path) -> None:
    """Nothing bounds it: whoever is asked tells where it stands; pausing its queue and terminating all of it ends it for good."""
    (here / "endless.py").write_text(ENDLESS)
    worker = child("worker", "endless.py")
    worker.wait_for("ready")
    assert cli("start", "endless.py:endless", ":=0", "--id", "root").code == 0
    wait_until(lambda: len(family(cli)) > 30, "a family")

    cli("start", "endless.py:neighbour", "--id", "n")
    assert cli("result", "n", "--timeout", "60s").out == "2\n"
    assert "child" in cli("why", "root").out

    assert cli("pause", "--task-queue", "default").code == 0
    wait_until(lambda: "paused" in cli("why", family(cli)[0][0]).out, "the youngest one to be held")
    assert cli("bulk", "terminate", "--workflow", "endless", "--yes").code == 0
    assert cli("resume", "--task-queue", "default").code == 0
    left = family(cli)
    # A parent that is still in its worker's memory may hear that its child was terminated before it is itself.
    assert {status for _, _, status, *_ in left} <= {"terminated", "failed"}
    for run_id, _, status, *_ in left:
        assert status == "terminated" or "was terminated" in cli("why", run_id).out

    cli("start", "endless.py:neighbour", "--id", "m")
    assert cli("result", "m", "--timeout", "60s").out == "2\n"
    assert family(cli) == left
    worker.process.terminate()
    assert worker.end().code == 0
