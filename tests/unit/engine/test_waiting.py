"""What reaches a run from outside: signals, in order and once each; conditions, looked at when at rest."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from durable.errors import UndecodableError
from durable.journal.events import CloseOp, OpenWait, SignalReceived
from tests.support.engine_harness import EngineRun, an_activity, here, next_signal, until


@an_activity
async def work(x: int) -> int:
    return x


def test_a_signal_ends_a_wait() -> None:
    """The wait is journaled with its name and line when it opens, and its end when the value is there."""

    async def workflow() -> Any:
        return [await next_signal("go"), await work(1)]

    run = EngineRun(workflow)
    (wait,) = run.commands()
    assert isinstance(wait, OpenWait)
    assert (wait.wait, wait.name, run.instance.waits) == ("signal", "go", {1: wait})
    assert wait.src.startswith("engine/test_waiting.py:")

    assert run.signal("go", {"a": 1})[0] == CloseOp(op=1)
    assert run.instance.waits == {}
    assert run.drive().result == [{"a": 1}, 1]
    run.check_replay().evict()


def test_signals_are_buffered_before_anyone_waits() -> None:
    """They are handed out per name in order of sending, without a journaled wait."""

    async def workflow() -> Any:
        await work(1)
        return [await next_signal("a"), await next_signal("b"), await next_signal("a")]

    run = EngineRun(workflow)
    run.signal("a", 1)
    run.signal("b", 2)
    run.signal("a", 3)
    run.drive()

    assert run.result == [1, 2, 3]
    assert len(run.commands()) == 1
    run.check_replay().evict()


def test_several_waiters_are_served_in_order() -> None:
    """Who has waited longest gets the signal."""

    async def workflow() -> Any:
        return await asyncio.gather(next_signal("go"), next_signal("go"), next_signal("go"))

    run = EngineRun(workflow)
    for x in (1, 2, 3):
        run.signal("go", x)

    assert run.result == [1, 2, 3]
    run.check_replay().evict()


def test_a_cancelled_waiter_gets_nothing() -> None:
    """Its wait is closed, and the next signal goes to the next one or into the buffer."""

    async def workflow() -> Any:
        try:
            async with asyncio.timeout(1):
                await next_signal("go")
        except TimeoutError:
            await work(1)
        return await next_signal("go")

    run = EngineRun(workflow)
    assert CloseOp(op=2) in run.fire()
    run.signal("go", "kept")
    run.drive()

    assert run.result == "kept"
    run.check_replay().evict()


@pytest.mark.parametrize("another_waits", [False, True])
def test_a_value_whose_waiter_is_cancelled_in_the_same_activation_is_not_lost(another_waits: bool) -> None:
    """It goes to the next waiter, else back to the front of the buffer."""

    async def workflow() -> Any:
        victim = asyncio.create_task(next_signal("go"))
        second = asyncio.create_task(next_signal("go")) if another_waits else None
        await asyncio.sleep(0)
        signals = here()._signals  # type: ignore[attr-defined]  # delivered between two steps of the victim
        signals.receive(SignalReceived(at=0, name="go", value=msgspec.Raw(b'"first"'), msg=1))
        victim.cancel()
        if not another_waits:
            signals.receive(SignalReceived(at=0, name="go", value=msgspec.Raw(b'"second"'), msg=2))
        await asyncio.wait([victim])
        taken = await (second or next_signal("go"))
        return [victim.cancelled(), taken]

    run = EngineRun(workflow)

    assert run.result == [True, "first"]
    assert run.commands() == []


def test_a_signal_that_does_not_decode_parks_the_run() -> None:
    """Waiting or buffered: the author's code cannot catch it."""

    async def waiting() -> Any:
        try:
            return await next_signal("go", int)
        except BaseException:
            return "caught"

    async def buffered() -> Any:
        await work(1)
        return await waiting()

    run = EngineRun(waiting)
    with pytest.raises(UndecodableError) as caught:
        run.signal("go", "text")
    assert caught.value.run_id == "run-1"
    assert str(caught.value).startswith("the value of signal 'go' (message 1): expected `int`")
    run.instance.evict()

    run = EngineRun(buffered)
    run.signal("go", "text")
    with pytest.raises(UndecodableError, match="the value of signal 'go'"):
        run.complete(1, 1)
    assert run.instance.end is None
    run.instance.evict()


def test_a_condition_that_is_true_is_no_wait() -> None:
    """It is looked at once, at once; nothing is journaled."""

    async def workflow() -> str:
        await until(lambda: True)
        return "done"

    run = EngineRun(workflow)

    assert run.result == "done"
    assert run.commands() == []


def test_a_condition_is_looked_at_whenever_the_run_is_at_rest() -> None:
    """Its wait is journaled, and closed in the activation that made it true."""

    async def workflow() -> list[int]:
        done: list[int] = []

        async def worker(x: int) -> None:
            done.append(await work(x))

        tasks = [asyncio.create_task(worker(x)) for x in (1, 2)]
        await until(lambda: len(done) == 2)
        assert all(task.done() for task in tasks)
        return done

    run = EngineRun(workflow)
    waits = [c for c in run.commands() if isinstance(c, OpenWait)]
    assert [w.wait for w in waits] == ["condition"]
    assert waits[0].src.startswith("engine/test_waiting.py:")

    assert run.drive().result == [1, 2]
    run.check_replay().evict()


def test_conditions_may_make_each_other_true() -> None:
    """They are looked at in order of creation, until nothing changes any more."""

    async def workflow() -> list[int]:
        steps: list[int] = []

        async def step(number: int) -> None:
            await until(lambda: len(steps) == number)
            steps.append(number)

        tasks = [asyncio.create_task(step(x)) for x in (3, 2, 1)]
        await work(1)
        steps.append(0)
        await asyncio.gather(*tasks)
        return steps

    run = EngineRun(workflow).drive()

    assert run.result == [0, 1, 2, 3]
    run.check_replay().evict()


def test_an_error_of_a_condition_is_raised_where_it_is_awaited() -> None:
    """Also when it is raised while the run is at rest."""

    async def workflow() -> str:
        state: dict[str, int] = {"x": 0}

        async def spoil() -> None:
            await work(1)
            del state["x"]

        task = asyncio.create_task(spoil())
        try:
            await until(lambda: state["x"] > 0)
        except KeyError:
            await task
            return "caught"
        return "missed"

    assert EngineRun(workflow).drive().result == "caught"


def test_a_cancelled_condition_is_closed() -> None:
    """A deadline over a condition closes its wait."""

    async def workflow() -> str:
        try:
            async with asyncio.timeout(1):
                await until(lambda: False)
        except TimeoutError:
            return "late"
        return "true"

    run = EngineRun(workflow)
    assert run.fire() == [CloseOp(op=2)]
    assert run.result == "late"
    run.check_replay().evict()
