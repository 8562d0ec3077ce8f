"""`durable worker` runs under the database's hash seed (P28)."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.cli_harness import PATIENCE_SECONDS, environment

APP = """
import os, sys
from durable import workflow

print(os.environ.get("PYTHONHASHSEED"), [*{"a", "b", "c", "d", "e", "f", "g"}], file=sys.stderr)

@workflow
async def nothing() -> None: ...
"""


def started(here: Path, *flags: str, **environ: str) -> list[str]:
    """Start a worker that finds nothing to do; return what its module printed, one line per import."""
    (here / "seeded.py").write_text(APP)
    env = {name: value for name, value in environment().items() if name != "PYTHONHASHSEED"}
    if "-I" in flags or "-E" in flags:
        path = [*env.get("PYTHONPATH", "").split(os.pathsep), str(here)]
        code = (
            f"import sys; sys.path[:0] = {path!r}; sys.argv[0] = 'durable'; "
            "from durable_cli.main import main; main()"
        )
        command = [sys.executable, *flags, "-c", code]
    else:
        command = [sys.executable, "-m", "durable"]
    done = subprocess.run(
        [*command, "worker", "seeded.py", "--drain"],
        cwd=here,
        env=env | environ,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line for line in done.stderr.splitlines() if line.endswith("]") and "['" in line]


def stored_seed(here: Path) -> str:
    with sqlite3.connect(here / "durable.db") as connection:
        (seed,) = connection.execute("SELECT value FROM meta WHERE key = 'hash_seed'").fetchone()
    connection.close()
    return str(seed)


def test_workers_of_one_database_order_sets_alike(tmp_path: Path) -> None:
    """Each restarts itself once, before it imports any of the user's modules."""
    first, second = started(tmp_path), started(tmp_path)

    assert len(first) == 1
    assert first == second
    assert first[0].startswith(f"{stored_seed(tmp_path)} ")


def test_a_seed_that_somebody_chose_is_kept(tmp_path: Path) -> None:
    """Who sets PYTHONHASHSEED knows what for; "random" is as good as unset."""
    (chosen,) = started(tmp_path, PYTHONHASHSEED="5")
    (random,) = started(tmp_path, PYTHONHASHSEED="random")

    assert chosen.startswith("5 ")
    assert random.startswith(f"{stored_seed(tmp_path)} ")


def test_another_databases_seed_is_inherited_by_nobody(tmp_path: Path) -> None:
    """A worker that an activity of another worker starts gets its own database's seed."""
    (line,) = started(tmp_path, PYTHONHASHSEED="5", DURABLE_HASH_SEED="5")

    assert line.startswith(f"{stored_seed(tmp_path)} ")


@pytest.mark.parametrize("flag", ["-I", "-E"])
def test_a_python_that_ignores_its_environment_is_left_alone(tmp_path: Path, flag: str) -> None:
    """The seed could not reach it: it would restart for ever."""
    (line,) = started(tmp_path, flag)

    assert line.startswith("None ")
