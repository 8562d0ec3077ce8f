"""The commands on a server: the same ones, with another URL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.stores("postgres")

APP = """
from durable import activity, workflow

@activity
async def double(value: int) -> int:
    return value * 2

@workflow
async def doubles(value: int) -> int:
    return await double(value)
"""

CHECKED = (
    APP
    + """
from durable import Signal

go = Signal("go", bool)

@workflow
async def waits(value: int) -> int:
    doubled = await double(value)
    await go.wait()
    return doubled
"""
)


def ended(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "durable", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )


def durable(url: str, directory: Path, *arguments: str) -> str:
    """Run a command on the database to its end and return what it printed; errors end the test."""
    done = ended(directory, *arguments, "--db", url)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_an_empty_database_to_a_result(url: str, tmp_path: Path) -> None:
    """migrate, start, worker, show, doctor: what the guide says."""
    (tmp_path / "app.py").write_text(APP)
    assert "schema 0 of " in durable(url, tmp_path, "migrate")
    durable(url, tmp_path, "migrate", "--check")
    assert durable(url, tmp_path, "start", "app.py:doubles", "value:=21", "--id", "r").strip() == "r"

    durable(url, tmp_path, "worker", "app.py", "--drain")

    assert "42" in durable(url, tmp_path, "result", "r")
    assert "double(" in durable(url, tmp_path, "show", "r")
    assert "postgres 1" in durable(url, tmp_path, "doctor")


def test_a_server_is_not_backed_up_by_us(url: str, tmp_path: Path) -> None:
    """The command says what does it."""
    durable(url, tmp_path, "migrate")
    done = ended(tmp_path, "backup", "copy", "--db", url)
    assert done.returncode != 0
    assert "pg_dump" in done.stderr
    assert not (tmp_path / "copy").exists()


@pytest.mark.slow
def test_code_is_checked_against_the_runs_of_a_server(url: str, tmp_path: Path) -> None:
    """With closed runs and open ones, those that wait, too; nothing is written, and a schema that would be brought up to date is refused."""
    (tmp_path / "app.py").write_text(CHECKED)
    check = ("--against", url, "--hash-seeds", "0")
    refused = ended(tmp_path, "check", "app.py", *check)
    assert refused.returncode == 4
    durable(url, tmp_path, "start", "app.py:doubles", "value:=21", "--id", "closed")
    durable(url, tmp_path, "start", "app.py:waits", "value:=21", "--id", "open")
    durable(url, tmp_path, "worker", "app.py", "--drain")
    story = durable(url, tmp_path, "show", "open", "--events")

    fits = ended(tmp_path, "check", "app.py", *check)
    (tmp_path / "newer.py").write_text(CHECKED.replace("await double(value)", "value"))
    breaks = ended(tmp_path, "check", "newer.py", *check)

    assert (fits.returncode, fits.stderr.splitlines()[-1]) == (0, "2 runs replayed: none would break")
    assert (breaks.returncode, breaks.stderr.splitlines()[-1]) == (1, "2 runs replayed: 2 would break")
    assert "✗ open (waits, waiting) would break" in breaks.stdout
    assert ended(tmp_path, "check", "newer.py", *check, "--workflow", "none-such").returncode == 0
    assert durable(url, tmp_path, "show", "open", "--events") == story
