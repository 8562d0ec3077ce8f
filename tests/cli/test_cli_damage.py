"""Looking at a database in which one run is damaged: every command answers, and shows the others as ever."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli.cli_harness import Cli

DAMAGE = (
    "UPDATE journal SET data = x'ff' WHERE run = 1 AND turn = 1",
    "UPDATE journal SET data = CAST(replace(CAST(data AS TEXT), 'greet', char(27) || '[2J') AS BLOB) WHERE run = 1",
    "DELETE FROM journal WHERE run = 1 AND turn = 1",
    "DELETE FROM run_payload WHERE run = 1",
    "UPDATE run_payload SET input = x'', result = x'ff', failure = x'7b' WHERE run = 1",
    "UPDATE run SET status = 77 WHERE id = 1",
    "UPDATE run SET status = 3, reason = 'durable-sealed:' || 'AAAA' WHERE id = 1",
    "UPDATE run SET created_at_us = 1 << 62, started_at_us = -(1 << 62), ready_at_us = 1 << 62 WHERE id = 1",
    "UPDATE run SET status = 0, started_at_us = NULL, ready_at_us = 1 << 62 WHERE id = 1",
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_command_that_looks_answers(cli: Cli, here: Path, damage: str) -> None:
    """With what is wrong, not with an error of ours; nothing of a row reaches the terminal raw."""
    cli("start", "app.py:approval", "order", "--id", "bad")
    cli("run", "app.py:hello", "W", "--id", "good")
    cli("worker", "app.py", "--drain")
    with closing(sqlite3.connect(here / "durable.db", isolation_level=None)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {name}")
        db.execute(damage)

    for words in (
        ("list",), ("list", "-o", "json"), ("show", "bad"), ("show", "bad", "-o", "json"), ("show", "bad", "--events"),
        ("why", "bad"), ("why", "bad", "-o", "json"), ("doctor",), ("workers",), ("result", "bad", "--timeout", "0"),
    ):  # fmt: skip
        told = cli(*words)
        assert told.code in (0, 1, 5), (words, told)
        assert "unexpected" not in told.err, (words, told)
        assert "\x1b" not in told.out + told.err, (words, told)
        if words[0] == "list":
            assert "good" in told.out
            assert "bad" in told.out
    assert cli("result", "good").out == '"Hello, W!"\n'
