"""What reaches the terminal: data on stdout, messages on stderr; colour, glyphs and width only where they can be shown.

Text for people may change; JSON is versioned. Nothing a run holds reaches the terminal unescaped.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import click
import msgspec

from durable_cli.options import Settings

JSON_VERSION: Final = 1
VALUE_BYTES_MAX: Final = 4096  # of a payload shown to people; JSON output and `durable result` have all of it

GLYPHS: Final = {
    "pending": "○", "running": "●", "waiting": "◷", "parked": "⏸",
    "completed": "✓", "failed": "✗", "cancelled": "⊘", "terminated": "⊘", "timed_out": "✗", "continued": "→",
    "compensating": "↺", "compensated": "↺", "skipped": "⊘",
    "scheduled": "○", "retrying": "●", "fired": "✓", "received": "✓", "rejected": "⊘",
}  # fmt: skip
COLOURS: Final = {
    "running": "cyan", "retrying": "yellow", "waiting": "blue", "parked": "magenta",
    "completed": "green", "fired": "green", "received": "green",
    "compensating": "yellow", "compensated": "yellow",
    "failed": "red", "timed_out": "red", "terminated": "red", "cancelled": "yellow", "rejected": "yellow",
}  # fmt: skip
_ASCII: Final = str.maketrans(
    {"○": "o", "●": "*", "◷": "~", "⏸": "=", "✓": "+", "✗": "x", "⊘": "-", "→": ">", "↺": "<", "·": "-", "…": "...",
     "–": "-", "×": "x", "█": "#", "░": ".", "│": "|"}
)  # fmt: skip


class Terminal:
    """One stream: what it can show, and the writing to it."""

    def __init__(self, stream: TextIO, settings: Settings) -> None:
        self._stream = stream
        self.is_tty = _isatty(stream)
        self.has_colour = wants_colour(settings.color, settings.environ, is_tty=self.is_tty)
        self.is_ascii = settings.ascii or not _is_utf8(stream)
        self.width = shutil.get_terminal_size((100, 24)).columns if self.is_tty else 0

    def paint(self, text: str, colour: str | None = None, *, bold: bool = False, dim: bool = False) -> str:
        """Return the text in colour, where there is colour."""
        if not self.has_colour or not (colour or bold or dim):
            return text
        return click.style(text, fg=colour, bold=bold or None, dim=dim or None)

    def write(self, text: str, *, end: str = "\n") -> None:
        """Write a line. A reader that has gone away (`| head`) ends the program quietly."""
        text = text.translate(_ASCII) if self.is_ascii else text
        try:
            self._stream.write(text + end)
            self._stream.flush()
        except UnicodeEncodeError:
            encoding = self._stream.encoding
            self._stream.write((text + end).encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise SystemExit(0) from None


class Output:
    """Both streams of one command."""

    def __init__(self, settings: Settings) -> None:
        self.format = settings.output
        self.out = Terminal(sys.stdout, settings)
        self.err = Terminal(sys.stderr, settings)

    @property
    def is_text(self) -> bool:
        return self.format == "text"

    @property
    def is_rich(self) -> bool:
        """Whether a person looks at it: aligned, cut to the width, with times like `4m ago`."""
        return self.format == "text" and self.out.is_tty

    def line(self, text: str = "") -> None:
        """Write data."""
        self.out.write(text)

    def row(self, cells: Sequence[str]) -> None:
        """Write one line of a tab-separated list."""
        self.out.write("\t".join(cells))

    def note(self, text: str) -> None:
        """Write a message."""
        self.err.write(text)

    def json(self, value: Mapping[str, Any]) -> None:
        """Write one versioned JSON document on one line."""
        self.out.write(json_text({"v": JSON_VERSION, **value}))

    def error(self, message: str, hint: str | None = None) -> None:
        """Write `error: …` and `hint: …`."""
        self.err.write(f"{self.err.paint('error:', 'red', bold=True)} {escaped(message, keep_lines=True)}")
        if hint:
            self.err.write(f"{self.err.paint('hint:', bold=True)} {escaped(hint)}")


def wants_colour(choice: str | None, environ: Mapping[str, str], *, is_tty: bool) -> bool:
    """`--color` beats NO_COLOR beats FORCE_COLOR beats TERM=dumb beats what the stream is."""
    if choice in ("always", "never"):
        return choice == "always"
    if environ.get("NO_COLOR"):
        return False
    if environ.get("FORCE_COLOR"):
        return environ["FORCE_COLOR"] != "0"
    return is_tty and environ.get("TERM") != "dumb"


def now() -> datetime:
    """Return the aware UTC time."""
    return datetime.now(UTC)


def iso(at: datetime | None) -> str:
    """Return `2026-11-22T03:00:13Z`; nothing for no time."""
    return "" if at is None else at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def builtins(value: Any) -> Any:
    """Return a Struct (or a list of them) as plain JSON data, times in ISO 8601."""
    return msgspec.json.decode(msgspec.json.encode(value))


def json_text(value: Any) -> str:
    """Return compact JSON, in which control characters beyond those that JSON itself escapes are escaped, too."""
    text = msgspec.json.encode(value).decode()
    return text if text.isprintable() else "".join(c if c.isprintable() else _json_escape(c) for c in text)


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i]:02x}{units[i + 1]:02x}" for i in range(0, len(units), 2))


def value_text(value: Any) -> str:
    """Return a payload for people: JSON with spaces, control characters escaped, on one line; of a large one its size."""
    data = msgspec.json.encode(value)
    if len(data) > VALUE_BYTES_MAX:
        return f"<{bytes_text(len(data))} of JSON>"
    if isinstance(value, (dict, list)):
        data = msgspec.json.format(data, indent=0)
    return escaped(data.decode())


def bytes_text(size: int) -> str:
    """Return `4.0 KiB`, `12.3 MiB`."""
    if size < 1024:
        return f"{size} bytes"
    amount = size / 1024
    for unit in ("KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def escaped(text: str, *, keep_lines: bool = False) -> str:
    """Return the text without control characters: they could move the cursor or fake other output."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or (keep_lines and c == "\n") else c.encode("unicode_escape", "replace").decode()
        for c in text
    )


def cut(text: str, width: int) -> str:
    """Return at most `width` characters; 0: all of them."""
    return text if not width or len(text) <= width else text[: max(0, width - 1)] + "…"


def glyph(status: str) -> str:
    """Return the sign of a run's or an entry's status."""
    return GLYPHS.get(status, "●")


def count(number: int, thing: str) -> str:
    """Return `1 run`, `2 runs`, `2 activities`."""
    if number == 1:
        return f"1 {thing}"
    return f"{number} {thing[:-1]}ies" if thing.endswith("y") else f"{number} {thing}s"


def columns(rows: Iterable[Sequence[str]], *, gap: int = 2) -> list[list[str]]:
    """Return the rows with every cell but the last padded to its column."""
    table = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))] if table else []
    return [
        [cell if i == len(row) - 1 else cell.ljust(widths[i] + gap) for i, cell in enumerate(row)]
        for row in table
    ]


def _isatty(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def _is_utf8(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", None) or "").lower().replace("-", "").replace("_", "") == "utf8"
