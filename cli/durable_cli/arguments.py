"""The argument language of `start`, `run` and `signal`: `WORLD n:=3 opts:='{"a":1}' name=text @file.json`.

    text            a string                name=text       a string, by name
    :=JSON          a JSON value            name:=JSON      a JSON value, by name
    @file           the file's content: JSON if it is called .json, else text; name:=@file by name, always JSON

Knows nothing of workflows: whether values fit a signature is decided elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from durable_cli.problems import Problem

_NAMED: Final = re.compile(r"(?P<name>[^\W\d]\w*)?(?P<how>:=|=)(?P<value>.*)", re.DOTALL)


class Given(NamedTuple):
    """Arguments as typed: JSON values by position and by name."""

    positional: list[Any]
    named: dict[str, Any]


def parse_arguments(
    words: Sequence[str], whole: str | None = None, *, read_stdin: Callable[[], str] | None = None
) -> Given:
    """Return the values of the words, or of `--json` (an array: by position, an object: by name, `-`: stdin)."""
    if whole is not None:
        if words:
            raise Problem("give arguments one by one or as --json, not both")
        value = _json_or_stdin(whole, read_stdin)
        if isinstance(value, list):
            return Given(value, {})
        if isinstance(value, dict):
            return Given([], value)
        raise Problem("--json takes an array (arguments by position) or an object (by name)")
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        name, value = parse_word(word)
        if name is None:
            if named:
                raise Problem(f"{word!r} follows a named argument", hint="put arguments without a name first")
            positional.append(value)
        elif name in named:
            raise Problem(f"{name!r} is given twice")
        else:
            named[name] = value
    return Given(positional, named)


def parse_word(word: str) -> tuple[str | None, Any]:
    """Return (name or None, JSON value) of one word."""
    check_text(word)
    if word.startswith("@"):
        path = Path(word[1:])
        return None, _file_json(path) if path.suffix == ".json" else _file_text(path)
    match = _NAMED.fullmatch(word)
    if match is None or (match["name"] is None and match["how"] == "="):
        return None, word
    name, value = match["name"], match["value"]
    if match["how"] == "=":
        return name, value
    if value.startswith("@"):
        return name, _file_json(Path(value[1:]))
    return name, parse_json(value, where=f"{name or ''}:=")


def parse_value(
    words: Sequence[str], whole: str | None = None, *, read_stdin: Callable[[], str] | None = None
) -> Any:
    """Return the one value of a signal: nothing is null, named words are an object, `true` and `3` are JSON.

    Without the workflow's code there is no type to look at: text that is JSON is taken as JSON.
    """
    if whole is not None:
        if words:
            raise Problem("give the value as words or as --json, not both")
        return _json_or_stdin(whole, read_stdin)
    given = parse_arguments(words)
    if given.named:
        if given.positional:
            raise Problem("a signal carries one value: either a bare one or named ones, which make an object")
        return given.named
    if len(given.positional) > 1:
        raise Problem(
            f"a signal carries one value, not {len(given.positional)}",
            hint="""quote it, name its parts (by=ann ok:=true), or --json '["several"]'""",
        )
    if not given.positional:
        return None
    value = given.positional[0]
    return _lenient(value) if isinstance(value, str) and value == words[0] else value


def _lenient(text: str) -> Any:
    try:
        return parse_json(text, where="")
    except Problem:
        return text


def parse_json(text: str, *, where: str) -> Any:
    """Return a JSON value; NaN, Infinity and unpaired surrogates are refused as no database could give them back."""
    check_text(text)
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        at = f" after {where}" if where else ""
        raise Problem(
            f"no JSON{at}: {_shortened(text)} ({_reason(error)})",
            hint="text needs no quotes as name=text; JSON text does: name:='\"text\"'",
        ) from None
    return value


def check_text(text: str) -> None:
    """Refuse bytes of the command line that are no UTF-8: they could not be stored."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise Problem(f"{text!r} is not valid UTF-8") from None


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:39] + "…")


def _json_or_stdin(whole: str, read_stdin: Callable[[], str] | None) -> Any:
    if whole != "-":
        return parse_json(whole, where="--json")
    if read_stdin is None:
        raise Problem("standard input cannot be read here")
    try:
        return parse_json(read_stdin(), where="--json -")
    except UnicodeDecodeError:
        raise Problem("standard input is not valid UTF-8") from None


def _file_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise Problem(
            f"cannot read {str(path)!r}: {error.strerror}",
            hint=f"""for the text itself write name=@{path} or :='"@{path}"'""",
        ) from None
    except UnicodeDecodeError:
        raise Problem(f"{str(path)!r} is not valid UTF-8") from None


def _file_json(path: Path) -> Any:
    return parse_json(_file_text(path), where=str(path))
