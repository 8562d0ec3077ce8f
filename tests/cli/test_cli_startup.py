"""Start-up: `durable --help` imports click and nothing heavier."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

import pytest
from durable_cli.main import COMMANDS

from tests.cli.cli_harness import environment

HEAVY: Final = ("anyio", "asyncio", "asyncpg", "durable", "msgspec", "sqlite3")


def python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.parametrize("words", ["[]", "['--help']", "['no-such-command']"])
def test_nothing_heavy_is_imported_to_say_what_there_is(words: str) -> None:
    """Measured by what is imported, not by a clock."""
    loaded = python(
        "import sys, contextlib, io\n"
        "from durable_cli.main import commands, Settings\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        "    try:\n"
        f"        commands.main({words}, standalone_mode=False, obj=Settings())\n"
        "    except Exception: pass\n"
        "print(*sys.modules)"
    ).split()

    assert "click" in loaded
    assert not set(HEAVY) & set(loaded)


@pytest.mark.parametrize("module", ["durable", "durable_cli"])
def test_both_modules_are_the_command_line(module: str) -> None:
    """`python -m durable` and `python -m durable_cli`."""
    done = subprocess.run(
        [sys.executable, "-m", module, "version"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "durable 0.1.0\n")


def test_every_listed_command_exists_and_has_help() -> None:
    """What `--help` lists without importing is really there."""
    code = (
        "from durable_cli.main import COMMANDS, commands\n"
        "import click\n"
        "ctx = click.Context(commands)\n"
        "for name in COMMANDS:\n"
        "    command = commands.get_command(ctx, name)\n"
        "    assert command is not None and command.name == name and (command.help or '').strip(), name\n"
        "print('all')"
    )

    assert COMMANDS
    assert python(code) == "all\n"
