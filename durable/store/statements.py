"""Named SQL: reads a `queries.sql` beside a store's code. Knows nothing of what the statements do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

from durable.errors import InternalError

_NAME = re.compile(r"^--\s*name:\s*([a-z][a-z0-9_]*)\s*$")
_LIKE = re.compile(r"^--\s*like:\s*([a-z][a-z0-9_]*),\s*with\s+(.+?)\s+for\s+(.+?)\s*$")
_PARAMETER = re.compile(r"(?<![:\w]):([a-z]\w*)")  # not a cast
_QUOTED = re.compile(r"'(?:[^']|'')*'")


class Statements(Mapping[str, str]):
    """The statements of one store, by name."""

    def __init__(self, statements: Mapping[str, str]) -> None:
        self._statements = MappingProxyType(dict(statements))

    def __getitem__(self, name: str) -> str:
        try:
            return self._statements[name]
        except KeyError:
            raise InternalError(f"no SQL statement is named {name!r}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._statements)

    def __len__(self) -> int:
        return len(self._statements)


def parse_statements(text: str) -> Statements:
    """Split `text` at its `-- name: x` lines; comment lines and the closing semicolon are dropped.

    A statement that differs from an earlier one in one place is that line alone: `-- like: x, with these words for those`.

    Raises `InternalError` for a name given twice, a name without SQL, SQL before the first name, and words that are not there.
    """
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in text.splitlines():
        if (match := _NAME.match(line.strip())) is not None:
            name = match.group(1)
            if name in found:
                raise InternalError(f"two SQL statements are named {name!r}")
            lines = found[name] = []
        elif (like := _LIKE.match(line.strip())) is not None:
            lines = found[name] = _likened(found, *like.groups())
        elif line.strip() and not line.lstrip().startswith("--"):
            if lines is None:
                raise InternalError(f"SQL before the first name: {line.strip()!r}")
            lines.append(line.rstrip())
    statements = {name: "\n".join(body).rstrip().removesuffix(";") for name, body in found.items()}
    if empty := [name for name, body in statements.items() if not body]:
        raise InternalError(f"SQL statements without SQL: {', '.join(empty)}")
    return Statements(statements)


def _likened(found: Mapping[str, list[str]], name: str, words: str, place: str) -> list[str]:
    body = "\n".join(found.get(name, ()))
    if body.count(place) != 1:
        raise InternalError(
            f"{place!r} does not stand in the SQL statement {name!r} once, before it is varied"
        )
    return [body.replace(place, words)]


@cache
def load_statements(package: str) -> Statements:
    """Return the statements in `queries.sql` of `package`, read once per process."""
    return parse_statements(resources.files(package).joinpath("queries.sql").read_text(encoding="utf-8"))


class Numbered(NamedTuple):
    """A statement whose parameters are `$1`, `$2`, ...: what each of them stands for, in order."""

    text: str
    names: tuple[str, ...]


def numbered(sql: str) -> Numbered:
    """Replace each `:name` by `$n`, the same name by the same number; leave casts and quoted text alone."""
    names: dict[str, int] = {}

    def number(match: re.Match[str]) -> str:
        return f"${names.setdefault(match.group(1), len(names) + 1)}"

    pieces: list[str] = []
    end = 0
    for quoted in _QUOTED.finditer(sql):
        pieces += [_PARAMETER.sub(number, sql[end : quoted.start()]), quoted.group()]
        end = quoted.end()
    pieces.append(_PARAMETER.sub(number, sql[end:]))
    return Numbered("".join(pieces), tuple(names))
