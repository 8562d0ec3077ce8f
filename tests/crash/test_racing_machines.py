"""One durable state machine, several processes: each move is made once, by one of them, and is heard of at least once."""

from __future__ import annotations

import asyncio
from collections import Counter

import msgspec
import pytest

import durable
from tests.crash.programs import racing
from tests.support.crashes import Scene, lines_of


def check(scene: Scene, *, unheard_max: int) -> None:
    """The story has no gap and no fork; no move was given to two; callbacks ran, in order. `unheard_max`: movers that died before they could tell."""
    assert asyncio.run(story(scene)) == racing.STORY, scene.story()

    moved = Counter(state for (state,) in scene.acknowledged())
    assert moved.keys() <= set(racing.PLACES[1:])
    assert max(moved.values()) == 1, scene.story()
    assert racing.MOVES - unheard_max <= len(moved)

    called = [msgspec.json.decode(line) for line in lines_of(scene.directory / "callbacks.jsonl")]
    assert list(dict.fromkeys(called)) == racing.PLACES[1:], scene.story()


async def story(scene: Scene) -> list[tuple[str, str]]:
    with durable.using(scene.database_url):
        return [(move.from_state, move.to_state) for move in await racing.machine().history()]


def test_of_two_processes_that_move_one_machine_each_move_is_made_by_one(scene: Scene) -> None:
    """Compare-and-set: whoever comes second is told so, learns where the machine is, and goes on from there."""
    racers = [scene.launch("racer", runs=1) for _ in range(2)]

    assert [racer.wait() for racer in racers] == [0, 0], scene.story()
    check(scene, unheard_max=0)


@pytest.mark.slow
@pytest.mark.parametrize("enough", [5, 15, 30])
def test_a_racer_that_is_killed_leaves_no_gap_and_no_callback_behind(scene: Scene, enough: int) -> None:
    """Somewhere between its move and the callbacks, or its telling of it: the other one goes on, and runs what is owed."""
    first, second = [scene.launch("racer", runs=1) for _ in range(2)]
    scene.wait_until("they are on their way", lambda: len(scene.acknowledged()) >= enough)
    scene.kill(first)

    assert second.wait() == 0, scene.story()
    check(scene, unheard_max=1)
