"""Handlers of signals, in the engine: what comes before the first step, which of a life's signals it waits for, and what eviction leaves."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import Any

import pytest

from durable import all_handlers_finished, continue_as_new, on_signal, wait_condition, workflow, workflow_of
from durable.engine.instance import Instance
from durable.journal.events import ContinuedAsNew, Started
from tests.support.engine_harness import EngineRun, an_activity


@an_activity
async def work(x: int) -> int:
    return x


@workflow
class Notes:
    """What it is told, and when `run` began."""

    def __init__(self) -> None:
        self.notes: list[Any] = []

    async def run(self) -> list[Any]:
        self.notes.append("run")
        await wait_condition(lambda: "end" in self.notes)
        return self.notes

    @workflow.signal
    async def tell(self, note: str) -> None:
        self.notes.append(note)
        self.notes.append(await work(len(self.notes)))


def started(early: int) -> EngineRun:
    run = EngineRun(workflow_of(Notes).definition, start=False)
    run.feed(Started(at=run.now_us, seed=1, early=early))
    return run


def test_the_first_step_waits_for_the_early_signals() -> None:
    """However many turns they take; the handler of the last one comes before it."""
    run = started(2)
    run.signal("tell", "a", msg=1)
    assert [type(one).__name__ for one in run.commands()] == ["ScheduleActivity"]
    run.signal("other", None, msg=2)
    run.signal("tell", "end", msg=3)
    run.drive()

    assert run.result == ["a", "run", "end"]
    run.check_replay().evict()


def test_a_life_that_begins_in_the_middle_does_not_wait_for_the_rest() -> None:
    """Of a run that was terminated there, and is tried again: what was unread then is gone."""
    run = started(3)
    run.signal("tell", "a", msg=1)
    run.retry()
    run.signal("tell", "end", msg=9)

    assert run.result == ["a", "run", "end"]
    run.check_replay().evict()


@pytest.mark.parametrize("early", [0, 2])
def test_a_run_is_evicted_with_open_handlers(early: int) -> None:
    """Nothing of them goes on, and nobody takes it for an error; also before the first step."""
    run = started(early)
    run.signal("tell", "a", msg=1)
    run.instance.evict()

    assert run.instance.end is None
    assert run.instance.activities == {}


def test_signals_whose_handler_never_began_are_unread() -> None:
    """A workflow that registers a handler and goes on as new at once: the next generation gets them."""

    async def hasty() -> None:
        await work(1)
        on_signal("tell", [].append)
        continue_as_new()

    run = EngineRun(hasty)
    run.signal("tell", "a", msg=1)
    run.signal("tell", "b", msg=2)
    run.drive()

    assert isinstance(run.instance.end, ContinuedAsNew)
    assert [signal.msg for signal in run.instance.unread()] == [1, 2]
    run.check_replay().evict()
    run.instance.evict()


def test_a_handler_that_has_begun_has_read_its_signal() -> None:
    """Whether it has ended or not."""

    async def workflow() -> None:
        async def for_ever(note: str) -> None:
            await asyncio.sleep(3600)

        on_signal("tell", for_ever)
        on_signal("note", [].append)
        await asyncio.sleep(1)
        continue_as_new()

    run = EngineRun(workflow)
    run.signal("tell", "a", msg=1)
    run.signal("note", "b", msg=2)
    run.signal("kept", "c", msg=3)
    run.fire()

    assert [signal.msg for signal in run.instance.unread()] == [3]
    run.check_replay().evict()
    run.instance.evict()


@workflow
class Busy:
    """Handlers of each kind beside a body that works, all of it on the same attributes."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seen: list[Any] = []

    async def run(self) -> list[Any]:
        for number in range(self.rounds):
            self.seen.append(["worked", await work(number)])
            async with asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(1))
                group.create_task(work(len(self.seen)))
        await wait_condition(lambda: any(one == "stop" for one in self.seen))
        await wait_condition(all_handlers_finished)
        return self.seen

    @workflow.signal
    def quick(self, note: str) -> None:
        self.seen.append(note)

    @workflow.signal
    async def slow(self, note: str) -> None:
        self.seen.append(["begun", note])
        await asyncio.sleep(0.5)
        self.seen.append(["ended", note, await work(len(self.seen))])

    @workflow.signal
    async def side_by_side(self, note: str) -> None:
        self.seen.append([note, *await asyncio.gather(work(1), work(len(self.seen)))])

    @workflow.query
    def so_far(self) -> list[Any]:
        return self.seen


def state(instance: Instance) -> Any:
    """What is open, and what the object holds."""
    opened = sorted(instance.activities), dict(instance.timers), sorted(instance.waits)
    assert instance.queries is not None
    return opened, instance.open_handlers, json.dumps(instance.queries["so_far"]())


def happen(run: EngineRun, chance: Random, msg: int) -> None:
    """Let something happen that may."""
    instance = run.instance
    kinds = [
        "quick",
        "slow",
        "side_by_side",
        *["activity"] * len(instance.activities),
        *["timer"] * bool(instance.timers),
    ]
    match chance.choice(kinds):
        case "activity":
            run.perform(chance.choice(sorted(instance.activities)))
        case "timer":
            run.fire()
        case name:
            run.signal(name, f"{name} {msg}", msg=msg)


@pytest.mark.parametrize("seed", range(40))
def test_a_run_goes_on_the_same_wherever_it_was_rebuilt(seed: int) -> None:
    """After each event the journal makes the same object and the same open operations; half of the time the rebuilt one goes on."""
    chance = Random(seed)
    run = EngineRun(workflow_of(Busy).definition, 2, start=False)
    run.feed(Started(at=run.now_us, seed=seed, early=chance.choice([0, 0, 1, 4])))
    for msg in range(1, 30):
        happen(run, chance, msg)
        rebuilt = run.replay()
        assert state(rebuilt) == state(run.instance), run.trace()
        if chance.random() < 0.5:
            run.instance, rebuilt = rebuilt, run.instance
        rebuilt.evict()
    run.signal("quick", "stop", msg=99)
    run.drive(steps_max=10_000)

    assert run.result.count("stop") == 1
    run.check_replay().evict()
    run.instance.evict()
