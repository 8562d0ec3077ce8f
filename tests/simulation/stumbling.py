"""Code that parks its runs: which processes have it, what it does, and steps whose activities are under way when it does.

In some worlds a worker or a script comes up with bad code, as after a bad deployment; another life of it, or another worker, has good
code. What bad code leaves must be such that good code goes on with it: nothing that had ended well is performed again.
"""

from __future__ import annotations

import asyncio
import random
import socket
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable import Activity, Retry, WorkerLostError, activity, info
from tests.simulation import activities
from tests.simulation.activities import ELSEWHERE, body, persistent, reach, this_node, work

if TYPE_CHECKING:
    from tests.simulation.node import Node

KIND: Final = "stumble"
WAYS: Final = ("guard", "swallowed guard", "other", "missing", "restless")  # how bad code goes wrong
WEIGHTS: Final = (4, 2, 3, 3, 1)  # the last takes long
UNFIT: Final = ("other", "missing")  # it asks for something else than what is on record
LOST: Final = "lost"
once: Final = Retry(max_attempts=1)


class Stumbling:
    """Which of a seed's processes have bad code."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"park {seed}")
        self.is_on = chance.random() < 0.25
        self._share = chance.choice((0.3, 0.6))
        self.is_blind = chance.random() < 0.4 and self.is_on  # some lack the key
        self._seed = seed

    def afflict(self, node: Node) -> None:
        """Decide about a process that begins: once healed, all have good code."""
        if not self.is_on or node.simulation.faults.is_over:
            return
        chance = random.Random(f"bad code {self._seed} {node.name}")
        node.is_bad = chance.random() < self._share
        node.is_blind = node.is_bad and self.is_blind and chance.random() < 0.5

    def plans(self, position: int) -> random.Random | None:
        """Return what the plans of a run draw their stumbles from; None: there are none."""
        return random.Random(f"stumbles {self._seed} {position}") if self.is_on else None


@activity(retry=persistent)
async def weighed(key: str, seconds: float) -> str:
    with body():
        await asyncio.sleep(seconds)
        return key


@activity(retry=once)
async def weighed_once(key: str, seconds: float) -> str:
    """Never twice: not even because its run was parked and went on."""
    with body(once):
        await asyncio.sleep(seconds)
        return key


def drawn(key: str, chance: random.Random) -> list[Any]:
    """Return a step that bad code stumbles at."""
    beside = chance.sample(sorted(BESIDE), chance.choice((0, 1, 1, 2, 3)))
    (way,) = chance.choices(WAYS, WEIGHTS)
    return [KIND, key, way, chance.random() < 0.5, chance.choice((0.0, 0.2, 2.0)), beside]


def allowed(key: str, details: list[Any]) -> list[Any]:
    """Return what may come of such a step."""
    _, is_once, _, beside = details
    rest = [f"{key}.{name}" + "!" * (name == "token") for name in beside]
    return [[key, *rest], *([[LOST, *rest]] if is_once else [])]


async def stumble(key: str, way: str, is_once: bool, seconds: float, beside: list[str]) -> list[str]:
    """Do something, beside other things; bad code goes wrong as soon as it has what came of it."""
    if way in UNFIT and this_node().is_bad and _is_on_record(key):
        reach(f"stumble {way}")
        await asyncio.sleep(0.5 if way == "other" else 0)
        return [key]
    async with asyncio.TaskGroup() as group:
        first = group.create_task(_first(key, way, weighed_once if is_once else weighed, seconds))
        others = [group.create_task(BESIDE[name](f"{key}.{name}")) for name in beside]
    return [first.result(), *(task.result() for task in others)]


async def _first(key: str, way: str, how: Activity[..., Any], seconds: float) -> str:
    try:
        value: str = await how(key, seconds)
    except WorkerLostError:
        value = LOST
    await trip(way)
    return value


async def trip(way: str) -> None:
    """Do what parks the run, if this is bad code."""
    if way in UNFIT or not this_node().is_bad:
        return
    reach(f"stumble {way}")
    match way:
        case "guard":
            socket.getaddrinfo("127.0.0.1", 80)
        case "swallowed guard":
            try:
                socket.socket()
            except Exception:
                await asyncio.sleep(0)
        case "restless":
            while True:  # noqa: ASYNC110  # the mistake
                await asyncio.sleep(0)
    this_node().simulation.violation(f"I9: code that did what parks a run ({way}) went on")


def _is_on_record(key: str) -> bool:
    """Whether the journal asks for that step's activity, as it is now: what bad code leaves out must not be what it asks for first.

    A worker that has lost the run may be told of another life's journal; nothing that comes of that is written.
    """
    simulation = this_node().simulation
    found = simulation.checker.query("SELECT id, generation FROM run WHERE run_id = ?", info().run_id)
    return any(
        type(entry).__name__ == "ScheduleActivity"
        and entry.name in ("weighed", "weighed_once")
        and msgspec.json.decode(entry.args)["key"] == key
        for pk, generation in found
        for _, entry in simulation.checker.entries(pk, generation)
    )


async def _slept(key: str) -> str:
    return await asyncio.sleep(2.0, key)


BESIDE: Final = {
    "beats": lambda key: activities.beats(key, 4, 0),
    "elsewhere": lambda key: work.options(task_queue=ELSEWHERE)(key, 0, 0.5),
    "here": lambda key: work(key, 1, 0.3),
    "long": lambda key: work(key, 0, 6.0),
    "thread": activities.in_thread,
    "timer": _slept,
    "token": activities.by_token,
}
