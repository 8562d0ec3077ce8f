"""The command line and encrypted payloads: with the key it shows what they say, without it which key they take."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.cli.cli_harness import Cli

KEY = base64.b64encode(bytes(range(32))).decode()


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A key file beside app.py, the app; a finished run is in the database."""
    monkeypatch.setenv("DURABLE_APP", "app.py")
    path = tmp_path / "keys"
    path.write_text(f"k1 {KEY}\n")
    return path


def test_runs_are_shown_with_the_key_and_named_by_it_without(cli: Cli, keys: Path) -> None:
    """In list, show and result; nobody without the key sees a payload."""
    assert cli("run", "hello", "Walter", "--id", "h", "--key-file", str(keys)).out == '"Hello, Walter!"\n'

    with_key = [
        cli(*words, "--key-file", str(keys)).out for words in (("list",), ("show", "h"), ("result", "h"))
    ]
    without = [cli(*words) for words in (("list",), ("show", "h"), ("result", "h"))]
    assert all("Walter" in one for one in with_key)
    assert not any("Walter" in one.out + one.err for one in without)
    assert "encrypted (key k1)" in without[0].out
    assert "encrypted (key k1)" in without[1].out
    assert "encrypted (key k1), and no codec was given" in without[2].err
    assert "--key-file" in without[2].err


def test_the_key_file_may_be_named_by_a_variable(
    cli: Cli, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers started by a service manager have no command line to write it on."""
    monkeypatch.setenv("DURABLE_KEY_FILE", str(keys))
    cli("start", "hello", "Walter", "--id", "h")
    cli("worker", "app.py", "--drain")

    assert cli("result", "h").out == '"Hello, Walter!"\n'


def test_signals_of_the_command_line_are_encrypted(cli: Cli, keys: Path) -> None:
    """What an operator sends is a payload like any other."""
    cli("start", "noted", "--id", "n", "--key-file", str(keys))
    cli("signal", "n", "note", "CANARY", "--key-file", str(keys))

    assert not [
        path.name for path in keys.parent.glob("*.db*") if path.is_file() and b"CANARY" in path.read_bytes()
    ]
    cli("worker", "app.py", "--drain", "--key-file", str(keys))
    assert cli("result", "n", "--key-file", str(keys)).out == '"CANARY"\n'


def test_why_names_the_key_that_is_missing(cli: Cli, keys: Path) -> None:
    """A worker without the key parks what it cannot read; with it the run goes on."""
    cli("start", "hello", "W", "--id", "h", "--key-file", str(keys))
    cli("worker", "app.py", "--drain")

    why = json.loads(cli("why", "h", "-o", "json").out)
    assert why["reason"] == "parked"
    assert "encrypted (key k1), and no codec was given" in why["text"]
    cli("resume", "h")
    cli("worker", "app.py", "--drain", "--key-file", str(keys))
    assert cli("result", "h", "--key-file", str(keys)).out == '"Hello, W!"\n'


def test_a_codec_may_be_code(cli: Cli, keys: Path) -> None:
    """`--codec module:attr` is what the operator names; data never does."""
    (keys.parent / "codecs_of_app.py").write_text(
        "from durable import Encryption\nmine = Encryption({'k9': bytes(32)})\nnumber = 7\n"
    )
    cli("run", "hello", "W", "--id", "h", "--codec", "codecs_of_app:mine")

    assert cli("result", "h", "--codec", "codecs_of_app.py:mine").out == '"Hello, W!"\n'
    assert "encrypted (key k9)" in cli("list").out
    for wrong, told in (("number", "is no codec but int"), ("other", 'no "other"')):
        assert told in cli("list", "--codec", f"codecs_of_app:{wrong}").err
    assert "exclude" in cli("list", "--codec", "codecs_of_app:mine", "--key-file", str(keys)).err


def test_a_key_file_that_is_wrong_is_an_error_without_its_content(cli: Cli, keys: Path) -> None:
    """Terminals are recorded."""
    keys.write_text("k1 CANARY\n")
    told = cli("list", "--key-file", str(keys))

    assert told.code != 0
    assert "line 1" in told.err
    assert "CANARY" not in told.err + told.out
    assert "cannot read the key file" in cli("list", "--key-file", "nowhere").err
