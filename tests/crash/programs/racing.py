"""A state machine that several processes move at once, each as far as it comes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Final

from durable import StateConcurrencyError, StateError, StateMachine

MOVES: Final = 40
PLACES: Final = [f"place-{number}" for number in range(MOVES + 1)]
STORY: Final = list(itertools.pairwise(PLACES))


def machine(entered: Callable[[str, str], None] = lambda event, state: None) -> StateMachine:
    """One way through all places, one after the other; `entered` is called in each but the first."""
    return StateMachine(
        PLACES[0],
        {here: {"on": there} for here, there in STORY} | {PLACES[-1]: {}},
        machine_id="raced",
        on_enter=dict.fromkeys(PLACES[1:], entered),
    )


async def race(entered: Callable[[str, str], None], moved: Callable[[str], None]) -> int:
    """Move on from wherever the machine is, until it is at its end. Return how often somebody else was first."""
    raced, beaten = machine(entered), 0
    while True:
        try:
            moved(await raced.transition("on"))
        except StateConcurrencyError:
            beaten += 1
        except StateError:  # there is no way on
            assert await raced.recover() == PLACES[-1]
            return beaten
