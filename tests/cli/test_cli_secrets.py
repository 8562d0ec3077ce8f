"""The command line and secrets: a password or a key reaches no terminal, whatever goes wrong."""

from __future__ import annotations

import pytest
from durable_cli.main import COMMANDS

from tests.cli.cli_harness import Cli

PASSWORD = "CANARY-p4ssw0rd"
ADDRESSES = (
    f"postgresql://u:{PASSWORD}@localhost:1/db",
    f"postgresql://u:{PASSWORD}@x/y@localhost:1/db",
    f"mysql://u:{PASSWORD}@localhost/db",
    f"postgresql://localhost:1/db?password={PASSWORD}",
)
WORDS = {
    "backup": ("copy.db",),
    "cancel": ("r",),
    "completion": ("bash",),
    "demo": ("crash",),
    "pause": ("r",),
    "prune": ("--older-than", "1d"),
    "result": ("r",),
    "resume": ("r",),
    "retry": ("r",),
    "run": ("app.py:hello", "W"),
    "show": ("r",),
    "signal": ("r", "note", "x"),
    "start": ("app.py:hello", "W"),
    "terminate": ("r",),
    "wait": ("r",),
    "why": ("r",),
    "worker": ("app.py", "--drain"),
}


@pytest.mark.parametrize("debug", [True, False])
@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"demo", "completion", "version"}))
def test_no_command_tells_a_password(cli: Cli, command: str, debug: bool) -> None:
    """Not in errors, not in hints, not in tracebacks."""
    for address in ADDRESSES:
        told = cli(command, *WORDS.get(command, ()), "--db", address, *(["--debug"] if debug else []))
        assert told.code != 0
        assert PASSWORD not in told.out + told.err, address
