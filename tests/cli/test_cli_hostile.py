"""Hostile text in every argument and option of every command, and in everything a run holds.

Whatever somebody types, or stored, a command ends with one of its exit codes and a message: no traceback, no control character
on the terminal, no file outside of where it was told to work, and a database whose schema is what it was.
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import click
import pytest
from durable_cli.main import COMMANDS, commands
from durable_cli.story import step_name
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import durable
from durable import Entry
from durable.seams import EPOCH
from durable.store.opening import masked
from tests.cli.cli_harness import Cli, Ended, environment

HOSTILE: Final = (
    "'; DROP TABLE run; --",
    '" OR ""="',
    "%s%n%x{0}{run}%(name)s${HOME}`id`$(id)",
    "../../../../no-such-directory/passwd",  # some options write files: no text may lead to one that there is
    "..\\..\\x",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egnp.exe\u2066",
    "\x9b31m\x85\u2028",
    "line\nerror: all is lost\r\n",
    "\udcff\ud800",
    "ab\x00cd",
    "x" * 100_000,
    "-",
    "--",
    "-rf",
    "@",
    "@/etc/passwd/x",
    ":",
    ":=",
    "n:=" + "[" * 3000,
    "sqlite:///",
    "sqlite:////\x00",
    "postgresql://:@/?#",
    "postgresql://u:p@h:notaport/x",
    "postgresql://[::1/x",
    "1e999",
    "-1",
    "99999999999999999999d",
    "٣d",
    "*",
    "",
    " ",
    "order@0",
    "order@99999999999999999999",
    "order@-1",
)
CODES: Final = (0, 1, 2, 3, 4, 5, 6, 130)
# Options that make a command stay, and commands that only do so.
STAYING: Final = {"--watch", "--follow", "--reload", "-f"}
COMMON: Final = {"--db", "--key-file", "--codec", "--output", "--color"}  # the same for all: tried with one
LEFT_OUT: Final = {"demo"}  # runs processes of its own, and takes no text


def texts(command: click.Command) -> Iterator[tuple[str, list[str]]]:
    """Return each place of a command that takes text: its name, and the words before the text (of an argument: none)."""
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            yield str(parameter.name), []
        elif isinstance(parameter, click.Option) and not parameter.is_flag and not parameter.count:
            yield parameter.opts[-1], [parameter.opts[-1]]


def every_place() -> Iterator[tuple[str, str, list[str]]]:
    context = click.Context(commands)
    for name in sorted(set(COMMANDS) - LEFT_OUT):
        command = commands.get_command(context, name)
        assert command is not None
        inner = getattr(command, "commands", None)
        if inner:
            for inner_name, inner_command in inner.items():
                yield from ((f"{name} {inner_name}", *place) for place in texts(inner_command))
            continue
        yield from ((name, *place) for place in texts(command))


def filled(command: str, place: str, option: list[str], text: str) -> list[str]:
    """Return words that call a command with one hostile text, and something harmless in its other places."""
    context = click.Context(commands)
    found: click.Command | None = commands
    for name in command.split():
        assert isinstance(found, click.Group)
        found = found.get_command(context, name)
    assert found is not None
    words = [*command.split()]
    for parameter in found.params:
        if isinstance(parameter, click.Argument):
            is_it = parameter.name == place and not option
            words.append(text if is_it else ("app.py:hello" if "target" in str(parameter.name) else "order"))
        elif "--yes" in parameter.opts:
            words[len(command.split()) : len(command.split())] = ["--yes"]
    return [*words, *option, text] if option else words


def is_calm(told: Ended, words: list[str]) -> None:
    shown = [word[:80] for word in words]
    assert told.code in CODES, (shown, told)
    assert "Traceback" not in told.err, (shown, told.err[-3000:])
    assert "error: unexpected" not in told.err, (shown, told.err[-3000:])
    for character in told.out + told.err:
        assert character.isprintable() or character in "\n\t", (shown, character, told)


@pytest.fixture
def order(cli: Cli) -> None:
    """A run to be hostile to."""
    assert cli("start", "app.py:approval", "x", "--id", "order").code == 0


PLACES: Final = list(every_place())


def test_every_command_was_looked_at() -> None:
    """Each takes text somewhere, be it only `--db`."""
    assert {command.split()[0] for command, _, _ in PLACES} == set(COMMANDS) - LEFT_OUT


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted({command for command, _, _ in PLACES}))
def test_hostile_text_in_any_place_is_an_answer_or_an_error(
    cli: Cli, here: Path, order: None, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One hostile text at a time."""
    monkeypatch.setenv("DURABLE_DB", "durable.db")
    schema = schema_of(here / "durable.db")
    before = {path.name for path in here.parent.iterdir()}
    for _, place, option in (one for one in PLACES if one[0] == command):
        if place in STAYING or (place in COMMON and command != "show"):
            continue
        for text in HOSTILE:
            words = filled(command, place, option, text)
            if command in ("wait", "result", "run", "update"):
                words[1:1] = ["--timeout", "0.01"]
            if command == "worker":
                words[1:1] = ["--drain"]
            is_calm(cli(*words), words)
    assert schema_of(here / "durable.db") == schema
    assert {path.name for path in here.parent.iterdir()} == before


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_in_a_few_places_is_an_answer_or_an_error(cli: Cli, order: None, text: str) -> None:
    """A sample of the test above: ids, names, databases, payloads."""
    for words in (
        ["show", text],
        ["list", "--workflow", text],
        ["list", "--db", text],
        ["signal", "order", text, text],
        ["start", "app.py:hello", text, "--id", text],
        ["start", text],
        ["cancel", "order", "--reason", text],
        ["prune", "--older-than", text],
    ):
        is_calm(cli(*words), words)


def schema_of(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY name").fetchall()


def test_what_a_run_holds_reaches_the_terminal_escaped(cli: Cli, here: Path) -> None:
    """Input, result, signal, reason and error: as data in JSON, escaped for people."""
    nasty = "\x1b[2J\x07\x9b\u202e\u2028\r\n\x00"
    (here / "nasty.py").write_text(
        "from durable import workflow\n\n\n@workflow\nasync def echo(text: str) -> str:\n"
        '    if text.startswith("fail"):\n        raise RuntimeError(text)\n    return text\n'
    )
    quoted = nasty.encode("unicode_escape").decode().replace("\\x", "\\u00")
    for run_id, start in (("fine", ""), ("failed", "fail")):
        cli("run", "nasty.py:echo", f':="{start}{quoted}"', "--id", run_id)
    cli("start", "app.py:approval", "x", "--id", "waiting")
    cli("signal", "waiting", "approved", f':="{quoted}"')
    assert cli("terminate", "waiting", "--reason", nasty.replace("\x00", ""), "--yes").code == 0
    for words in (
        ["list"],
        *([command, run_id] for command in ("show", "why") for run_id in ("fine", "failed", "waiting")),
        *(["result", run_id, "--timeout", "0"] for run_id in ("fine", "failed", "waiting")),
        *(["show", run_id, "--events"] for run_id in ("fine", "failed", "waiting")),
    ):
        is_calm(cli(*words), words)
        is_calm(cli(*words, "-o", "json"), words)


@given(
    words=st.lists(
        st.text(max_size=12) | st.sampled_from([*COMMANDS, "-o", "json", "--db", "--help", "order"]),
        max_size=5,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_words_make_the_command_line_fall_over(cli: Cli, words: list[str]) -> None:
    """Any words in any order; those that would stay, or work for minutes, are left out."""
    if {"demo", "worker", "run", "wait", "result"} & set(words):
        return
    is_calm(cli(*words), words)


@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_an_address_or_a_refusal(text: str) -> None:
    """URLs of databases: never any other error than ours, and no password in it."""
    for url in (text, f"sqlite:///{text}", f"postgresql://{text}", f"postgresql://u:CANARY@{text}"):
        with suppress(durable.DurableError):
            durable.connect(url)
        assert "CANARY" not in masked(url)


def test_a_name_that_is_no_text_in_utf8_is_no_traceback(here: Path) -> None:
    """What a shell hands over need not be UTF-8 at all."""
    done = subprocess.run(
        [sys.executable, "-m", "durable_cli", "show", b"\xff\xfe\x80"],
        cwd=here,
        env=environment(),
        capture_output=True,
        check=False,
    )
    assert done.returncode in CODES
    assert b"Traceback" not in done.stderr


def test_the_name_of_a_condition_is_escaped() -> None:
    """It comes from the journal, which somebody else may have written."""
    entry = Entry(number=1, name="x\x1b[31m", kind="condition", status="waiting", started_at=EPOCH)
    assert step_name(entry) == r"x\x1b[31m"
