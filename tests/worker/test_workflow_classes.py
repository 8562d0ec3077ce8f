"""Workflows that are classes: the class stays itself, `__init__` takes the input, `run` is the process."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    ArgumentsError,
    Client,
    DefinitionError,
    RunConflictError,
    Worker,
    WorkflowFailedError,
    WorkflowTimeoutError,
    activity,
    child,
    continue_as_new,
    info,
    saga_step,
    workflow,
    workflow_of,
)
from durable.testing import replay
from tests.support.workers import running_worker


class Order(msgspec.Struct):
    item: str
    cents: int


@activity
async def charge(cents: int) -> str:
    return f"paid {cents}"


@workflow
class Checkout:
    """Charges an order, a part of it at a time."""

    def __init__(self, order: Order, parts: int = 1) -> None:
        self.order = order
        self.parts = parts

    async def run(self) -> list[str]:
        await asyncio.sleep(0.001)
        return [await self.pay() for _ in range(self.parts)]

    async def pay(self) -> str:
        return await charge(self.order.cents // self.parts)


ANVIL = Order("anvil", 600)


async def test_a_class_is_a_workflow_and_stays_a_class(client: Client) -> None:
    """Its name is the workflow's; the journal has the arguments of `__init__`; the result is what `run` returns."""
    async with running_worker(client, Checkout):
        run = await client.start(Checkout, ANVIL, parts=2, run_id="c")

        assert await run.result(60) == ["paid 300", "paid 300"]

    seen = await run.describe()
    assert (seen.workflow, seen.kind, seen.input) == (
        "Checkout",
        "workflow",
        {"order": {"item": "anvil", "cents": 600}, "parts": 2},
    )
    assert isinstance(Checkout(ANVIL), Checkout)


async def test_an_object_of_it_runs_without_a_database(client: Client) -> None:
    """A unit test makes the object and awaits `run`: activities are plain functions there."""
    assert await Checkout(ANVIL, parts=3).run() == ["paid 200"] * 3
    assert await client.list() == []


async def test_a_replay_makes_the_object_anew(client: Client) -> None:
    """Whatever `__init__` and `run` did is done again, in the same order; what it returns is typed as `run` says."""

    @workflow
    class Draws:
        def __init__(self) -> None:
            self.first = durable.random()

        async def run(self) -> Order:
            return Order(await charge(1), round(1000 * (self.first + durable.random())))

    async with running_worker(client, Draws, warm_us=0):
        run = await client.start(Draws)
        result = await run.result(60)

    assert isinstance(result, Order)
    assert replay(await client.recorded(run.run_id), Draws).warnings == ()


async def test_options_are_those_of_functions(client: Client) -> None:
    """Name, version, task queue, timeout, retries."""
    tries: list[int] = []

    @workflow(name="slow", version=3, timeout=0.2, task_queue="elsewhere")
    class Slow:
        async def run(self) -> None:
            await asyncio.sleep(3600)

    @workflow(retries=2, retry_delay=0)
    class Tried:
        async def run(self) -> int:
            tries.append(info().attempt)
            raise RuntimeError("again")

    async with running_worker(client, Slow, Tried, task_queue=["default", "elsewhere"]):
        slow = await client.start(Slow)
        tried = await client.start(Tried)

        with pytest.raises(WorkflowTimeoutError):
            await slow.result(60)
        with pytest.raises(WorkflowFailedError, match="again"):
            await tried.result(60)

    seen = await slow.describe()
    assert (seen.workflow, seen.version, seen.task_queue) == ("slow", 3, "elsewhere")
    assert tries == [1, 2, 3]


async def test_a_class_runs_as_a_child_with_a_childs_options(client: Client) -> None:
    """`child(Class, ...)`; and of `workflow_of(Class)` everything that calling a workflow can do. Each call counts in the ids."""

    @workflow
    class Outer:
        def __init__(self, parts: list[int]) -> None:
            self.parts = parts

        async def run(self) -> list[list[str]]:
            paid = [await child(Checkout, ANVIL, part) for part in self.parts]
            named = workflow_of(Checkout).options(run_id="by-name", on_parent_close="abandon")
            return [
                *paid,
                await child(named, ANVIL),
                await (await workflow_of(Checkout).start(ANVIL, 2)).result(),
            ]

    @workflow
    async def function() -> list[list[str]]:
        return await child(Outer, [1, 3])

    async with running_worker(client, Outer, Checkout, function):
        result = await (await client.start(function, run_id="top")).result(60)

    assert result == [["paid 600"], ["paid 200"] * 3, ["paid 600"], ["paid 300"] * 2]
    assert {run.run_id for run in await client.list(workflow="Checkout")} == {
        "top@1/Outer#1@1/Checkout#1",
        "top@1/Outer#1@1/Checkout#2",
        "by-name",
        "top@1/Outer#1@1/Checkout#4",
    }


async def test_a_script_runs_one_in_its_own_process(embedded: str) -> None:
    """As a function is called: the same id attaches, another input is a conflict; `enqueue` and `recover` are as ever."""
    checkout = workflow_of(Checkout)

    assert await checkout(ANVIL, run_id="c") == ["paid 600"]
    assert await checkout(ANVIL, run_id="c") == ["paid 600"]
    with pytest.raises(RunConflictError):
        await checkout(ANVIL, 2, run_id="c")

    left = await checkout.enqueue(ANVIL, 2, run_id="left")
    assert [run.run_id for run in await durable.recover(wait=True)] == ["left"]
    assert await left.result(60) == ["paid 300", "paid 300"]


async def test_a_worker_finds_classes_in_a_module(client: Client) -> None:
    """Those that are decorated, once each, under whatever names; objects and undecorated subclasses are none."""

    class Special(Checkout):
        pass

    @workflow
    class Own(Checkout):
        async def run(self) -> list[str]:
            return ["own", *await super().run()]

    module = ModuleType("shop")
    vars(module).update(Checkout=Checkout, Alias=Checkout, Special=Special, Own=Own, one=Checkout(ANVIL))

    worker = Worker(client, module)

    assert sorted(worker.registry.keys()) == [("Checkout", 1), ("Own", 1)]
    async with running_worker(client, module):
        assert await (await client.start(Own, ANVIL)).result(60) == ["own", "paid 600"]
    with pytest.raises(DefinitionError, match="a worker serves"):
        Worker(client, Special)
    with pytest.raises(DefinitionError, match=r"Special' is no workflow: decorate it with @workflow"):
        await client.start(Special, ANVIL)


async def test_child_outside_of_a_workflow_says_what_to_write() -> None:
    """Calling the class would only make an object."""
    with pytest.raises(DefinitionError, match=r"outside, await workflow_of\(Checkout\)\(\.\.\.\)"):
        await child(Checkout, ANVIL)


async def test_an_undecorated_class_cannot_be_a_child(client: Client) -> None:
    """It would be an object, and nothing would be durable."""

    class Plain:
        async def run(self) -> None: ...

    @workflow
    async def outer() -> None:
        await child(Plain)

    async with running_worker(client, outer):
        with pytest.raises(WorkflowFailedError, match="Plain' is no workflow"):
            await (await client.start(outer)).result(60)


async def test_the_next_generation_is_made_of_the_arguments_of_init(client: Client) -> None:
    """`continue_as_new` takes what `__init__` takes, and checks it."""

    @workflow
    class Counts:
        def __init__(self, n: int) -> None:
            self.n = n

        async def run(self) -> int:
            if self.n < 3:
                continue_as_new(self.n + 1)
            if self.n == 3:
                continue_as_new("four")
            return self.n

    async with running_worker(client, Counts):
        with pytest.raises(WorkflowFailedError, match=r"Counts\(\): `n`: expected `?int"):
            await (await client.start(Counts, 1, run_id="c")).result(60)

    assert (await client.get("c")).run_id == "c"
    assert (await client.describe("c")).generation == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [(("anvil",), "`order`: "), ((), "missing 1 required"), ((ANVIL, 1, 2), "takes from 1 to 2")],
)
async def test_arguments_are_checked_at_the_start(
    client: Client, args: tuple[Any, ...], message: str
) -> None:
    """Against the signature of `__init__` and its hints, before anything is stored."""
    with pytest.raises(ArgumentsError, match=message):
        await client.start(Checkout, *args)

    assert await client.list() == []


async def test_records_are_workflows(client: Client) -> None:
    """A dataclass with slots, a Struct: the input is their fields, typed as these."""

    @workflow
    @dataclass(slots=True)
    class Record:
        order: Order
        parts: int = 2

        async def run(self) -> int:
            return self.order.cents // self.parts

    @workflow
    class Fields(msgspec.Struct):
        order: Order
        parts: int = 3

        async def run(self) -> int:
            return self.order.cents // self.parts

    async with running_worker(client, Record, Fields):
        assert await (await client.start(Record, ANVIL)).result(60) == 300
        assert await (await client.start(Fields, order=ANVIL)).result(60) == 200
    for cls in (Record, Fields):
        with pytest.raises(ArgumentsError, match="`parts`: expected int"):
            await client.start(cls, ANVIL, "two")


async def test_an_error_of_init_fails_the_run(client: Client) -> None:
    """It is the workflow's own code."""

    @workflow
    class Picky:
        def __init__(self, n: int) -> None:
            if n < 0:
                raise ValueError("below zero")

        async def run(self) -> None: ...

    async with running_worker(client, Picky):
        with pytest.raises(WorkflowFailedError, match="below zero"):
            await (await client.start(Picky, -1)).result(60)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="calls are watched by sys.monitoring")
async def test_a_guard_watches_the_methods_of_a_class(client: Client) -> None:
    """Also of one that is local to a function, and in `__init__`."""

    @workflow
    class Hasty:
        def __init__(self) -> None:
            self.began = time.time()

        async def run(self) -> float:
            return self.began

    async with running_worker(client, Hasty):
        with pytest.raises(durable.WorkflowGuardError, match=r"time\.time\(\) in workflow 'Hasty'"):
            await (await client.start(Hasty)).result(60)


async def test_saga_steps_of_a_method_are_undone(client: Client) -> None:
    """The body of a class is an implicit saga, too."""
    undone: list[str] = []

    async def give_back(item: str) -> None:
        undone.append(item)

    @saga_step(compensation=give_back)
    async def reserve(item: str) -> str:
        return item

    @workflow
    class Trip:
        async def run(self) -> None:
            await reserve("hotel")
            raise RuntimeError("rain")

    async with running_worker(client, Trip):
        with pytest.raises(WorkflowFailedError, match="rain"):
            await (await client.start(Trip)).result(60)

    assert undone == ["hotel"]


def test_what_cannot_be_a_workflow_is_refused_where_it_is_defined() -> None:
    """With the class's name, and what to do."""

    class NoRun:
        pass

    class Sync:
        def run(self) -> None: ...

    class Takes:
        async def run(self, order: str) -> None: ...

    class Names:
        def __init__(self, run_id: str) -> None: ...

        async def run(self) -> None: ...

    for cls, message in (
        (NoRun, "NoRun' has no `async def run"),
        (Sync, "Sync' must be an `async def`"),
        (Takes, "Takes' takes order"),
        (Names, "has a parameter run_id"),
        (Checkout, "'Checkout' is a workflow already"),
    ):
        with pytest.raises(DefinitionError, match=message):
            workflow(cls)
    with pytest.raises(TypeError, match="retry"):
        workflow(retry=3)(Checkout)  # type: ignore[call-overload]


def test_a_class_that_is_changed_after_it_was_decorated_is_refused() -> None:
    """`@dataclass` above `@workflow` makes another `__init__` than the one that was looked at."""

    @dataclass
    @workflow
    class Above:
        n: int

        async def run(self) -> int:
            return self.n

    @workflow
    @dataclass
    class Below:
        n: int

        async def run(self) -> int:
            return self.n

    with pytest.raises(DefinitionError, match="outermost decorator"):
        workflow_of(Above)
    assert workflow_of(Below).name == "Below"
