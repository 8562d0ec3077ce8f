"""Fixtures: the command line in this process, or as a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from durable_cli.main import invoke

import durable
from tests.cli.cli_harness import APP, PATIENCE_SECONDS, Child, Cli, Ended


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory with app.py, and nothing of durable in the environment."""
    for name in [*os.environ]:
        if name.startswith("DURABLE_") or name in ("NO_COLOR", "FORCE_COLOR"):
            monkeypatch.delenv(name)
    (tmp_path / "app.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.fixture
def cli(here: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """Run a command in this process; return its exit code and what it printed."""

    def run(*args: str) -> Ended:
        capfd.readouterr()
        code = invoke(args)
        return Ended(code, *capfd.readouterr())

    yield run
    durable.configure()


@pytest.fixture
def child(here: Path) -> Iterator[Callable[..., Child]]:
    """Start a command as a process of its own; what is left of them at the end is killed."""
    children: list[Child] = []

    def start(*args: str) -> Child:
        children.append(Child(args, here))
        return children[-1]

    yield start
    for one in children:
        if one.process.poll() is None:
            one.process.kill()
        one.process.wait(PATIENCE_SECONDS)
        for stream in (one.process.stdout, one.process.stderr):
            if stream is not None:
                stream.close()
