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


def durable(url: str, directory: Path, *arguments: str) -> str:
    """Run a command to its end and return what it printed; errors end the test."""
    done = subprocess.run(
        [sys.executable, "-m", "durable", *arguments, "--db", url],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_from_an_empty_database_to_a_result(url: str, tmp_path: Path) -> None:
    """migrate, start, worker, show, doctor: what the guide says."""
    (tmp_path / "app.py").write_text(APP)
    assert "now 1" in durable(url, tmp_path, "migrate")
    durable(url, tmp_path, "migrate", "--check")
    assert durable(url, tmp_path, "start", "app.py:doubles", "value:=21", "--id", "r").strip() == "r"

    durable(url, tmp_path, "worker", "app.py", "--drain")

    assert "42" in durable(url, tmp_path, "result", "r")
    assert "double(" in durable(url, tmp_path, "show", "r")
    assert "postgres 1" in durable(url, tmp_path, "doctor")


def test_a_server_is_not_backed_up_by_us(url: str, tmp_path: Path) -> None:
    """The command says what does it."""
    durable(url, tmp_path, "migrate")
    done = subprocess.run(
        [sys.executable, "-m", "durable", "backup", "copy", "--db", url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode != 0
    assert "pg_dump" in done.stderr
    assert not (tmp_path / "copy").exists()
