"""What a worker's process logs of a trouble that lasts: once in a while, and how often it was not said."""

from __future__ import annotations

import logging

from durable_cli.logs import REPEAT_SECONDS, Unrepeated

AWAY = "claims wait for the database: %s"


def record(message: str = AWAY, *args: object, at: float = 0.0, **how: object) -> logging.LogRecord:
    """Return a record that was made so many seconds after the first."""
    level = how.get("level", logging.WARNING)
    made = logging.LogRecord(
        str(how.get("name", "durable.worker")), int(str(level)), "", 0, message, args, None
    )
    made.created = 1_000_000.0 + at
    return made


def test_the_same_words_are_held_back_for_a_while() -> None:
    """A database that is away for an hour does not fill a disk with saying so."""
    logs = Unrepeated()

    assert logs.filter(record(AWAY, "no connection"))
    assert not logs.filter(record(AWAY, "no connection", at=0.5))
    assert not logs.filter(record(AWAY, "no connection", at=REPEAT_SECONDS - 0.1))
    told = record(AWAY, "no connection", at=REPEAT_SECONDS)
    assert logs.filter(told)
    assert told.getMessage() == "claims wait for the database: no connection (and 2 times before)"


def test_other_words_other_loggers_and_graver_ones_are_let_through() -> None:
    """Two runs, two faults, two rooms; and whatever the users' own code says."""
    logs = Unrepeated()
    others = [
        record(AWAY, "no connection"),
        record(AWAY, "the disk is full"),
        record(AWAY, "no connection", name="durable.scheduler"),
    ]
    assert all(logs.filter(one) for one in others)

    for level, name in (
        (logging.ERROR, "durable.worker"),
        (logging.INFO, "durable.worker"),
        (logging.WARNING, "app"),
    ):
        assert all(logs.filter(record("again", level=level, name=name)) for _ in range(3))


def test_once_it_is_said_again_the_count_begins_anew() -> None:
    """Nothing was held back meanwhile, and nothing is added."""
    logs = Unrepeated()
    assert logs.filter(record())
    later = record(at=REPEAT_SECONDS * 2)
    assert logs.filter(later)
    assert later.getMessage() == AWAY


def test_a_clock_that_is_set_back_silences_nothing() -> None:
    """Else what was said before it would not be said again for hours."""
    logs = Unrepeated()
    assert logs.filter(record())

    assert logs.filter(record(at=-5 * 3600.0))
