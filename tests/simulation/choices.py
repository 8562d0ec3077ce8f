"""What a seed draws its programs and errands from: everything, or, if it is narrow, a few kinds that then meet one another often.

The more kinds of steps there are, the more seldom a seed comes to a place that takes two or three certain ones; narrow seeds make up for that.
"""

from __future__ import annotations

import random
from typing import Any, Final

import msgspec

from tests.simulation import programs

STEPS_OF_NARROW: Final = 3
THEMES: Final = (  # kinds that get into one another's way
    ("late relapse", "signal", "signal or not"),
    ("late relapse", "relapse", "token"),
    ("call", "thread", "race"),
    ("call", "thread", "sleep"),
    ("remote call", "remote fragile", "call"),
    ("child", "failing child", "child left"),
    ("saga", "saga class", "book"),
    ("again", "signal", "token"),
)
ENDINGS: Final = (None, None, None, "cancel", "cancel", "terminate")
AGAIN: Final = (None, None, None, None, "new", "deleted", "retried")
WORKFLOWS: Final = (
    *(programs.life,) * 6,
    *(programs.short_life,) * 2,
    *(programs.waits_for_ever,) * 2,
    programs.fails,
)


class Choices(msgspec.Struct, frozen=True, kw_only=True):
    """Each is drawn from as it stands, so that what is there twice comes twice as often."""

    steps: tuple[str, ...] = programs.STEPS
    workflows: tuple[Any, ...] = WORKFLOWS
    endings: tuple[str | None, ...] = ENDINGS
    again: tuple[str | None, ...] = AGAIN  # what is done with a run that has ended


def choices(seed: int, *, is_narrow: bool) -> Choices:
    """Return what this seed draws from."""
    if not is_narrow:
        return Choices()
    chance = random.Random(f"narrow {seed}")
    return Choices(
        steps=chance.choice(
            (chance.choice(THEMES), tuple(chance.sample(sorted(set(programs.STEPS)), STEPS_OF_NARROW)))
        ),
        workflows=(chance.choice((programs.life, programs.life, chance.choice(WORKFLOWS))),),
        endings=(None, chance.choice(("cancel", "terminate"))),
        again=(None, chance.choice(("new", "deleted", "retried", "retried"))),
    )
