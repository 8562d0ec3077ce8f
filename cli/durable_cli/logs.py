"""What a worker's process logs: lines for people, or one JSON object a line; passwords in addresses are masked in both.

A record that was made within a run or an activity says which: `run_id`, `workflow`, `activity`, `attempt`.
"""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from typing import Any, Final

from durable import DefinitionError, activity_info
from durable_cli.output import json_text

LEVELS: Final = ("debug", "info", "warning", "error")
FORMATS: Final = ("text", "json")
REPEAT_SECONDS: Final = 10.0
_REMEMBERED_MAX: Final = 1000
_FIELDS: Final[tuple[str, ...]] = ("run_id", "workflow", "activity", "attempt")
_PASSWORD: Final = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):[^\s/]*@", re.IGNORECASE)


def set_up(form: str, level: str) -> None:
    """Log to stderr, unless the users' code has set up logging itself."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    handler.addFilter(Unrepeated())
    logging.basicConfig(level=level.upper(), handlers=[handler])


def masked(text: str) -> str:
    """Return the text with the passwords of all addresses in it replaced by `***`."""
    return _PASSWORD.sub(r"\1:***@", text) if "://" in text else text


class Unrepeated(logging.Filter):
    """Holds back what durable says again and again of one trouble, a database that is away: the same words within `REPEAT_SECONDS`.

    The next time they are let through they say how often they were not.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told: dict[tuple[str, str], tuple[float, int]] = {}  # until when, and how many since

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING or not record.name.startswith("durable."):
            return True
        message = record.getMessage()
        until, held_back = self._told.get((record.name, message), (0.0, 0))
        if until - REPEAT_SECONDS <= record.created < until:  # earlier still: the clock was set back
            self._told[record.name, message] = (until, held_back + 1)
            return False
        if len(self._told) >= _REMEMBERED_MAX:
            self._told.clear()
        self._told[record.name, message] = (record.created + REPEAT_SECONDS, 0)
        if held_back:
            record.msg, record.args = f"{message} (and {held_back} times before)", ()
        return True


class TextLines(logging.Formatter):
    """`2026-11-22 03:00:13,021 WARNING durable.worker: message [run order-7]`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        run_id = about(record).get("run_id")
        text = masked(super().format(record))
        if run_id is None or repr(run_id) in text:
            return text
        first, newline, rest = text.partition("\n")
        return f"{first} [run {run_id}]{newline}{rest}"


class JsonLines(logging.Formatter):
    """One object a line: `v`, `at` (UTC), `level`, `logger`, `message`, what it is about, and `error` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "v": 1,
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": masked(record.getMessage()),
            **about(record),
        }
        if record.exc_info and record.exc_info[0] is not None:
            told["error"] = masked(self.formatException(record.exc_info))
        return json_text(told)


def about(record: logging.LogRecord) -> dict[str, Any]:
    """Return which run, and which activity of it, a record is about."""
    known = {name: vars(record)[name] for name in _FIELDS if name in vars(record)}
    if "run_id" in known:
        return known
    try:
        info = activity_info()
    except DefinitionError:
        return known  # outside of activities
    return {
        "run_id": info.run_id,
        "workflow": info.workflow,
        "activity": info.activity,
        "attempt": info.attempt,
        **known,
    }
