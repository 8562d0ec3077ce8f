"""What the command line can end with: exit codes, and errors that say what to do next.

Knows nothing of durable's own errors: `explaining.py` turns those into problems.
"""

from __future__ import annotations

import difflib
import shlex
import sys
from collections.abc import Iterable
from typing import Final

import click

OK: Final = 0
RUN_FAILED: Final = 1  # failed, cancelled, terminated, timed out or parked; also an error of our own
USAGE: Final = 2
NOT_FOUND: Final = 3
DATABASE: Final = 4
TIMED_OUT: Final = 5
CONFLICT: Final = 6
INTERRUPTED: Final = 130


class Problem(click.ClickException):
    """An error for people: `error: message`, then `hint: hint`, and an exit code."""

    def __init__(self, message: str, *, code: int = USAGE, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


def did_you_mean(wrong: str, known: Iterable[str], *, otherwise: str | None = None) -> str | None:
    """Return a hint that names what is near to `wrong`, or `otherwise`."""
    near = difflib.get_close_matches(wrong, list(known), n=3, cutoff=0.6)
    return near_ones(near) or otherwise


def near_ones(near: Iterable[str]) -> str | None:
    """Return `did you mean "a" or "b"?`, or None if there is nothing near."""
    return f"did you mean {' or '.join(quoted(one) for one in near)}?" if near else None


def quoted(text: str) -> str:
    """Return the text in double quotes, on one line whatever it holds."""
    inner = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    return f'"{inner}"'


def shell_word(text: str) -> str:
    """Return the text as one word of a shell's command line, to be copied from what is said to do next."""
    return shlex.quote(text)


def is_text(text: str) -> bool:
    """Whether the text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def ask(question: str, command: str) -> None:
    """Ask on the terminal before something that cannot be undone; without a terminal, `--yes` is needed."""
    if not sys.stdin.isatty():
        raise Problem(
            f"{command} asks before it acts, and there is no terminal to ask on", code=USAGE, hint="--yes"
        )
    click.confirm(question, abort=True, err=True)
