"""A script and a worker that serves its file share runs: `__main__` here, another module there. A class is the same class in both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cli_harness import PATIENCE_SECONDS, Child, Cli, environment, wait_until

Start = Callable[..., Child]

SHOP = """
import asyncio
from durable import Signal, activity, workflow

go = Signal("go", bool)

class OutOfStock(Exception):
    def __init__(self, item, left):
        super().__init__(item, left)
        self.item, self.left = item, left

@activity(retries=0)
async def reserve(item: str) -> str:
    raise OutOfStock(item, 3)

@workflow
async def order(item: str) -> str:
    try:
        return await reserve(item)
    except OutOfStock as error:
        await go.wait()
        return f"{error.left} of {error.item}"

if __name__ == "__main__":
    print(asyncio.run(order("lamp", run_id="o")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "how"),
    [
        ("shop.py", ["shop.py"]),
        ("my-shop.py", ["my-shop.py"]),  # a name that no import statement can have
        ("market/shop.py", ["-m", "market.shop"]),
        ("market/shop.py", ["market/shop.py"]),
    ],
)
@pytest.mark.parametrize("script_first", [True, False])
def test_an_error_of_the_scripts_own_class_is_caught_wherever_the_run_goes_on(
    cli: Cli, child: Start, here: Path, file: str, how: list[str], script_first: bool
) -> None:
    """Recorded by one, caught in a replay by the other: a class that is not found would send the workflow another way, and park it."""
    (here / "market").mkdir()
    (here / "market" / "__init__.py").touch()
    (here / file).write_text(SHOP)

    def script() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, *how], cwd=here, env=environment(), stdout=subprocess.PIPE, text=True
        )

    def is_waiting() -> bool:
        why = cli("why", "o", "-o", "json")
        return why.code == 0 and json.loads(why.out)["reason"] == "signal"

    first = script() if script_first else None
    if first is None:
        assert cli("start", f"{file}:order", "lamp", "--id", "o").code == 0
        first = child("worker", file).process
    wait_until(is_waiting, "the workflow has caught the error")
    first.kill()
    first.communicate(timeout=PATIENCE_SECONDS)
    assert cli("signal", "o", "go", "true").code == 0

    if script_first:
        assert child("worker", file, "--drain").end().code == 0
    else:
        with script() as second:
            assert second.communicate(timeout=PATIENCE_SECONDS)[0] == "3 of lamp\n"
    assert cli("result", "o").out == '"3 of lamp"\n'
