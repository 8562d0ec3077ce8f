"""Where the database and the app come from; which options go where; colour."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from durable_cli.options import DEFAULT_DB, Settings
from durable_cli.output import Terminal, escaped, wants_colour
from durable_cli.problems import Problem

from tests.cli.cli_harness import Cli, environment


def test_the_database_is_named_by_option_environment_project_default(here: Path) -> None:
    """In this order."""
    assert Settings({}).db == DEFAULT_DB

    (here / "pyproject.toml").write_text('[tool.durable]\ndb = "sqlite:///project.db"\n')
    assert Settings({}).db == "sqlite:///project.db"
    assert Settings({"DURABLE_DB": "env.db"}).db == "env.db"
    settings = Settings({"DURABLE_DB": "env.db"})
    settings.given_db = "option.db"
    assert settings.db == "option.db"


def test_a_projects_database_is_the_same_from_below_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path in pyproject.toml is relative to that file."""
    (here / "pyproject.toml").write_text('[tool.durable]\ndb = "sqlite:///project.db"\n')
    (here / "below").mkdir()
    monkeypatch.chdir(here / "below")

    assert Settings({}).db == f"sqlite:///{here / 'project.db'}"


@pytest.mark.parametrize("text", ["[tool.durable", "[tool.durable]\ndb = 3"])
def test_a_spoilt_project_file_is_a_usage_error(here: Path, text: str) -> None:
    """It names the file."""
    (here / "pyproject.toml").write_text(text)

    with pytest.raises(Problem, match="pyproject"):
        _ = Settings({}).db


def test_options_stand_before_or_after_the_command(cli: Cli) -> None:
    """--db and -o in either place; the later one wins."""
    cli("run", "app.py:hello", "A", "--db", "one.db", "--id", "a")

    before = cli("--db", "one.db", "-o", "json", "list")
    after = cli("list", "--db", "one.db", "-o", "json")

    assert before.code == after.code == 0
    assert '"run_id":"a"' in before.out
    assert before.out == after.out
    assert cli("--db", "nothing.db", "list", "--db", "one.db").code == 0


def test_two_databases_do_not_know_each_other(cli: Cli) -> None:
    """The same id in two files is two runs."""
    cli("run", "app.py:hello", "A", "--db", "one.db", "--id", "same")
    cli("run", "app.py:hello", "B", "--db", "two.db", "--id", "same")

    assert cli("result", "same", "--db", "one.db").out == '"Hello, A!"\n'
    assert cli("result", "same", "--db", "sqlite:///two.db").out == '"Hello, B!"\n'


def test_a_password_is_never_shown(cli: Cli) -> None:
    """Not even in the error about the database itself."""
    ended = cli("list", "--db", "postgresql://ann:geheim@host/db")

    assert ended.code == 4
    assert "geheim" not in ended.out + ended.err
    assert "ann:***@host" in ended.err


@pytest.mark.parametrize(
    ("choice", "environ", "is_tty", "wanted"),
    [
        (None, {}, True, True),
        (None, {}, False, False),
        ("auto", {}, True, True),
        ("never", {"FORCE_COLOR": "1"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        (None, {"NO_COLOR": "1"}, True, False),
        (None, {"NO_COLOR": ""}, True, True),
        (None, {"FORCE_COLOR": "1"}, False, True),
        (None, {"FORCE_COLOR": "0"}, True, False),
        (None, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, True, False),
        (None, {"TERM": "dumb"}, True, False),
        ("always", {"TERM": "dumb"}, False, True),
    ],
)
def test_colour(choice: str | None, environ: dict[str, str], is_tty: bool, wanted: bool) -> None:
    """The option beats NO_COLOR beats FORCE_COLOR beats TERM=dumb beats what the stream is."""
    assert wants_colour(choice, environ, is_tty=is_tty) is wanted


def test_nothing_of_a_run_reaches_the_terminal_unescaped() -> None:
    """Control characters could move the cursor or fake other output."""
    assert escaped("ok ✓ größe") == "ok ✓ größe"
    assert escaped("\x1b[31m\n\x9b\t\u202e") == "\\x1b[31m\\n\\x9b\\t\\u202e"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_without_utf8_there_are_no_glyphs(encoding: str) -> None:
    """And what cannot be written is escaped, rather than an error."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    Terminal(stream, Settings({})).write("✓ done · 日本")

    assert raw.getvalue() == b"+ done - \\u65e5\\u672c\n"


def test_a_reader_that_goes_away_ends_it_quietly(here: Path) -> None:
    """durable … | head."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "durable_cli", "version"],
            stdout=closed,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )

    assert b"Traceback" not in done.stderr
    assert b"error" not in done.stderr
