"""Queries: a run answers about itself, rebuilt from its committed journal in the process that asks."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    ArgumentsError,
    Client,
    DefinitionError,
    NonDeterminismError,
    PayloadError,
    UnknownWorkflowError,
    WorkflowFailedError,
    WorkflowGuardError,
    WorkflowStateError,
    activity,
    continue_as_new,
    on_query,
    on_signal,
    wait_signal,
    workflow,
    workflow_of,
)
from tests.support.workers import is_released, is_waiting, running_worker, status_is, until


class Line(msgspec.Struct):
    item: str
    count: int = 1


@activity
async def price(item: str) -> int:
    return len(item)


@workflow
class Basket:
    """Takes lines until it is checked out."""

    def __init__(self, owner: str) -> None:
        self.owner = owner
        self.lines: list[Line] = []
        self.total = 0

    async def run(self) -> int:
        await wait_signal("checkout")
        for line in self.lines:
            self.total += line.count * await price(line.item)
        return self.total

    @workflow.signal
    def add(self, line: Line) -> None:
        self.lines.append(line)

    @workflow.query
    def content(self) -> list[Line]:
        return self.lines

    @workflow.query
    def count(self, item: str, *, least: int = 0) -> int:
        return max(least, sum(line.count for line in self.lines if line.item == item))

    @workflow.query(name="owner")
    def whose(self) -> str:
        return f"{self.owner} at {durable.now():%Y}"

    @workflow.query
    def meddles(self) -> int:
        self.lines.clear()
        self.total = 99
        return len(self.lines)


async def test_a_waiting_run_answers_without_a_worker(client: Client) -> None:
    """By method or by name; arguments and answers have the types of the hints."""
    async with running_worker(client, Basket):
        run = await client.start(Basket, "ann", run_id="b")
        await run.signal(Basket.add, Line("tea", 2))
        await run.signal(Basket.add, Line("milk"))
        await until(lambda: has_taken_in(client, 2))

    assert await run.query(Basket.content) == [Line("tea", 2), Line("milk")]
    assert await run.query(Basket.count, "tea") == 2
    assert await run.query(Basket.count, "salt", least=5) == 5
    assert await run.query("count", item="milk") == 1
    assert await client.query("b", Basket.count, "tea") == 2
    assert (await run.query("owner")).startswith("ann at 20")


async def has_taken_in(client: Client, messages: int) -> bool:
    return sum("Signal" in type(entry).__name__ for entry in await client.events("b")) >= messages


async def test_a_query_changes_nothing(client: Client) -> None:
    """Whatever it does is done to an object that is thrown away; the journal and the database are as they were."""
    async with running_worker(client, Basket, warm_us=0):
        run = await client.start(Basket, "ann", run_id="b")
        await run.signal(Basket.add, Line("tea"))
        await is_released(run)
        before = await run.events(), await run.describe()

        assert await run.query(Basket.meddles) == 0
        assert await run.query(Basket.content) == [Line("tea")]
        assert (await run.events(), await run.describe()) == before

        await run.signal("checkout")
        assert await run.result(60) == 3


async def test_a_closed_run_answers(client: Client) -> None:
    """Whatever the end was: as it was then; and so does each of its generations."""

    @workflow
    class Counts:
        def __init__(self, n: int) -> None:
            self.n = n
            self.at = "init"

        async def run(self) -> None:
            self.at = f"run {self.n}"
            await price("x")
            self.at = f"priced {self.n}"
            if self.n == 1:
                continue_as_new(2)
            raise RuntimeError("no")

        @workflow.query
        def where(self) -> str:
            return self.at

    async with running_worker(client, Counts):
        run = await client.start(Counts, 1, run_id="c")
        with pytest.raises(WorkflowFailedError):
            await run.result(60)

    assert await run.query(Counts.where) == "priced 2"
    assert await run.query("where") == "priced 2"
    assert await (await client.get("c@1", Counts)).query(Counts.where) == "priced 1"


async def test_messages_that_came_too_late_do_not_matter(client: Client) -> None:
    """A run that ended in the turn in which they came answers as it was then."""

    @workflow
    class Ends:
        def __init__(self) -> None:
            self.told: list[int] = []

        async def run(self) -> int:
            await durable.wait_condition(lambda: bool(self.told))
            return self.told[0]

        @workflow.signal
        def tell(self, number: int) -> None:
            self.told.append(number)

        @workflow.query
        def seen(self) -> list[int]:
            return self.told

    async with running_worker(client, Ends):
        run = await client.start(Ends)
        await is_waiting(run, "condition")
        await asyncio.gather(*(run.signal(Ends.tell, number) for number in range(20)), return_exceptions=True)
        first = await run.result(60)

    assert await run.query(Ends.seen) == [first]


async def test_a_function_answers_by_what_it_registers(client: Client) -> None:
    """As far as it has got; a second function for a name takes the place of the first."""

    @workflow
    async def tells() -> str:
        seen: list[str] = []
        on_query("seen", lambda: seen)
        on_signal("add", seen.append)
        on_query("last", lambda default: seen[-1] if seen else default)
        await wait_signal("go")
        on_query("last", lambda default: "over")
        return await wait_signal("end")

    async with running_worker(client, tells):
        run = await client.start(tells)
        await is_waiting(run, "signal")
        assert await run.query("seen") == []
        assert await run.query("last", "none") == "none"
        await run.signal("add", "a")
        await run.signal("go")
        await until(lambda: answers(run, "over"))
        assert await run.query("seen") == ["a"]
        await run.terminate("enough")

    assert await run.query("last", default="none") == "over"


async def answers(run: Any, answer: str) -> bool:
    return bool(await run.query("last", "") == answer)


async def test_a_parked_run_answers_if_the_code_fits(client: Client) -> None:
    """Code that does not fit is what parked it, and says so again."""

    @workflow(name="parks")
    class Old:
        def __init__(self) -> None:
            self.paid = 0

        async def run(self) -> int:
            self.paid = await price("four")
            return int(await wait_signal("go"))

        @workflow.signal
        def add(self, number: int) -> None: ...

        @workflow.query
        def total(self) -> int:
            return self.paid

    @workflow(name="parks")
    class New(Old):
        async def run(self) -> int:
            return int(await wait_signal("go"))

    async with running_worker(client, Old):
        run = await client.start(Old, run_id="p")
        await is_waiting(run, "signal")
        await run.signal("add", "text")
        await status_is(run, "parked")

    assert await run.query(Old.total) == 4
    with pytest.raises(NonDeterminismError):
        await (await client.get("p", New)).query(New.total)


async def test_a_run_that_has_not_begun_cannot_be_asked(client: Client) -> None:
    """There is no object yet; a run that nobody knows is not found."""
    run = await client.start(Basket, "ann")

    with pytest.raises(WorkflowStateError, match="has not begun") as refusal:
        await run.query(Basket.content)

    assert refusal.value.status == "pending"
    with pytest.raises(durable.RunNotFoundError):
        await client.query("nobody", Basket.content)


async def test_a_run_that_ended_before_it_had_begun_cannot_be_asked(client: Client) -> None:
    """Its journal holds the end alone: that is no run without queries."""
    run = await client.start(Basket, "ann")
    await run.terminate("not needed")

    with pytest.raises(WorkflowStateError, match="ended before it had begun"):
        await run.query(Basket.content)


async def test_what_is_no_query_or_does_not_fit_is_refused(client: Client) -> None:
    """With what would have fitted."""
    async with running_worker(client, Basket):
        run = await client.start(Basket, "ann")
        await is_waiting(run, "signal")

    with pytest.raises(ArgumentsError, match=r"answers no query 'contend' \(did you mean 'content'"):
        await run.query("contend")
    with pytest.raises(ArgumentsError, match="it answers: content, count, meddles, owner"):
        await run.query("xyz")
    with pytest.raises(ArgumentsError, match=r"count\(\) missing 1 required"):
        await run.query("count")
    with pytest.raises(ArgumentsError, match=r"count\(\): `item`: expected str"):
        await run.query("count", 3)
    with pytest.raises(ArgumentsError, match=r"marked with @workflow\.query"):
        await run.query(Basket.add, Line("tea"))


@workflow
class Overdoes:
    async def run(self) -> None:
        await asyncio.sleep(3600)

    @workflow.query
    def pays(self) -> Any:
        return price("x")

    @workflow.query
    def begins(self) -> int:
        asyncio.create_task(price("x"))  # noqa: RUF006  # it is refused
        return 1

    @workflow.query
    def starts(self) -> int:
        workflow_of(Overdoes).start().close()
        durable.note("looked", "done")
        return 1

    @workflow.query
    def rolls(self) -> int:
        continue_as_new()

    @workflow.query
    def opens(self) -> int:
        try:
            open("/etc/hostname").close()
        except WorkflowGuardError:
            pass
        return 1

    @workflow.query
    def wrong(self) -> int:
        return "one"  # type: ignore[return-value]

    @workflow.query
    def breaks(self) -> int:
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("pays", DefinitionError, "it returned a coroutine"),
        ("begins", DefinitionError, "'begins' only looks: it asked for something to be run"),
        ("starts", DefinitionError, "it asked for note"),
        ("rolls", DefinitionError, "cannot continue as new"),
        ("opens", WorkflowGuardError, "open"),
        ("wrong", PayloadError, "return hint"),
        ("breaks", KeyError, "mine"),
    ],
)
async def test_a_query_that_does_more_than_look_is_refused(
    client: Client, name: str, error: type[Exception], text: str
) -> None:
    """And leaves nothing: neither in the run nor in this process. What it raises itself is the caller's."""
    async with running_worker(client, Overdoes):
        run = await client.start(Overdoes)
        await is_waiting(run, "timer")
        before = await run.events()
        with pytest.raises(error, match=text):
            await run.query(name)
        assert await run.events() == before
        assert (await run.describe()).status == "waiting"


async def test_the_code_is_found_among_the_imported_modules(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's own version. Without it, or with two of them, the error says what to do."""

    def shop(version: int) -> Any:
        @workflow(name="shop_asked", version=version)
        class Shop:
            async def run(self) -> None:
                await asyncio.sleep(3600)

            @workflow.query
            def version(self) -> int:
                return version

        return Shop

    first, second = shop(1), shop(2)
    async with running_worker(client, first):
        await is_waiting(await client.start(first, run_id="s"), "timer")

    with pytest.raises(
        UnknownWorkflowError, match=r"workflow 'shop_asked' version 1.*import the module, or ask a handle"
    ):
        await client.query("s", "version")
    with pytest.raises(UnknownWorkflowError):
        await (await client.get("s", second)).query("version")
    module = ModuleType("some_shop")
    module.first, module.second = first, second  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_shop", module)
    assert await client.query("s", "version") == 1
    assert await (await client.get("s", second)).query("version") == 1


async def test_a_script_asks_the_run_that_it_drives(embedded: str) -> None:
    """The answer is of the last committed turn."""
    run = await workflow_of(Basket).start("ann", run_id="b")
    await run.signal(Basket.add, Line("tea", 3))
    await is_waiting(run, "signal")
    client = await durable.default_client()
    await until(lambda: has_taken_in(client, 1))

    assert await run.query(Basket.count, "tea") == 3
    assert await (await durable.get_handle("b")).query(Basket.count, "tea") == 3


def test_what_cannot_be_a_query_is_refused_where_it_is_defined() -> None:
    """It waits for nothing, and its name is its own."""
    with pytest.raises(DefinitionError, match="make it a plain `def`"):

        class Waits:
            @workflow.query
            async def go(self) -> int:
                return 1

    with pytest.raises(DefinitionError, match="a and b are both for the query 'a'"):

        @workflow
        class Twice:
            async def run(self) -> None: ...

            @workflow.query
            def a(self) -> int:
                return 1

            @workflow.query(name="a")
            def b(self) -> int:
                return 2

    with pytest.raises(DefinitionError, match="stands for a query method, and is not marked"):

        @workflow
        class Silent(Basket):
            def content(self) -> list[Line]:
                return []

    with pytest.raises(DefinitionError, match="works only inside a workflow"):
        on_query("a", lambda: 1)
