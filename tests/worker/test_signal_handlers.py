"""Handlers of signals: methods of a class, or functions that a workflow registers. Each signal once, in order, before the workflow goes on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    ArgumentsError,
    Client,
    DefinitionError,
    RunHandle,
    RunStatus,
    Signal,
    UndecodableError,
    WorkflowFailedError,
    activity,
    all_handlers_finished,
    continue_as_new,
    info,
    on_signal,
    saga_step,
    wait_answer,
    wait_condition,
    wait_signal,
    workflow,
    workflow_of,
)
from durable.journal.events import SignalReceived, Started
from durable.testing import replay
from tests.support.workers import Calls, is_released, is_waiting, running_worker, status_is, until


class Vote(msgspec.Struct):
    by: str
    weight: int = 1


@activity
async def double(number: int) -> int:
    return 2 * number


@workflow
class Tally:
    """Counts what it is told until it is told to close."""

    def __init__(self, start: int) -> None:
        self.seen: list[Any] = [f"init {start}"]
        self.is_closed = False

    async def run(self) -> list[Any]:
        self.seen.append("run")
        await wait_condition(lambda: self.is_closed)
        await wait_condition(all_handlers_finished)
        return self.seen

    @workflow.signal
    def add(self, number: int) -> None:
        self.seen.append(number)

    @workflow.signal
    async def add_doubled(self, number: int) -> None:
        self.seen.append(f"doubling {number}")
        self.seen.append(await double(number))

    @workflow.signal(name="vote")
    def voted(self, vote: Vote) -> None:
        self.seen.append(vote)

    @workflow.signal
    def close(self) -> None:
        self.is_closed = True


async def check_replay(client: Client, run: RunHandle[Any], workflow: Any) -> None:
    assert replay(await client.recorded(run.run_id), workflow).warnings == ()


async def test_signals_that_came_first_see_the_object_as_init_made_it(client: Client) -> None:
    """They are handled, in order, before `run` takes its first step; the journal says how many."""
    run = await client.start(Tally, 7)
    for number in (1, 2, 3):
        await run.signal(Tally.add, number)

    async with running_worker(client, Tally):
        await is_waiting(run, "condition")
        await run.signal(Tally.add, 4)
        await run.signal(Tally.close)

        assert await run.result(60) == ["init 7", 1, 2, 3, "run", 4]

    started = (await run.events())[0]
    assert isinstance(started, Started)
    assert started.early == 3
    await check_replay(client, run, Tally)


async def test_a_thousand_signals_that_came_first_are_all_handled_first(client: Client) -> None:
    """More than one turn takes in; also if nothing stays in memory between turns."""
    run = await client.start(Tally, 0)
    for number in range(1000):
        await run.signal(Tally.add, number)
    await run.signal(Tally.close)

    async with running_worker(client, Tally, warm_us=0):
        assert await run.result(60) == ["init 0", *range(1000), "run"]

    await check_replay(client, run, Tally)


async def test_handlers_are_called_in_the_order_of_arrival(client: Client) -> None:
    """Methods of all kinds, one after the other; an `async` one goes on beside those after it."""
    run = await client.start(Tally, 0)
    await run.signal(Tally.add_doubled, 5)
    await run.signal("add", 6)
    await run.signal(Tally.voted, Vote("ann", 2))
    await run.signal("vote", {"by": "bob"})
    await run.signal("close")

    async with running_worker(client, Tally):
        result = await run.result(60)

    assert result == [
        "init 0",
        "doubling 5",
        6,
        {"by": "ann", "weight": 2},
        {"by": "bob", "weight": 1},
        "run",
        10,
    ]
    await check_replay(client, run, Tally)


async def test_a_released_run_is_woken_by_a_handled_signal(client: Client) -> None:
    """A waiting run is a row; its object is made anew by replay, with all that its handlers did."""
    async with running_worker(client, Tally, warm_us=0):
        run = await client.start(Tally, 0)
        for number in range(5):
            await is_released(run)
            await run.signal(Tally.add_doubled, number)
            await until(lambda n=number: _has_result(run, 2 * n))  # type: ignore[misc]  # a default
        await run.signal(Tally.close)
        result = await run.result(60)

    assert [one for one in result if isinstance(one, int)] == [0, 2, 4, 6, 8]
    await check_replay(client, run, Tally)


async def _has_result(run: RunHandle[Any], value: int) -> bool:
    return any(entry.result == value for entry in (await run.describe()).journal)


async def test_a_storm_of_signals_is_handled_once_and_in_order(client: Client) -> None:
    """Also those that arrive while a turn is being committed."""
    async with running_worker(client, Tally, warm_us=0):
        run = await client.start(Tally, 0)
        for number in range(200):
            await run.signal(Tally.add, number)
            await asyncio.sleep(0)
        await run.signal(Tally.close)
        result = await run.result(60)

    assert [one for one in result if isinstance(one, int)] == list(range(200))


async def test_a_function_registers_handlers(client: Client) -> None:
    """What came before is given to the handler when it comes, in order; a second handler takes the place of the first."""
    number = Signal("number", int)

    @workflow
    async def collects() -> list[Any]:
        seen: list[Any] = []

        async def slowly(value: str) -> None:
            seen.append(value)
            seen.append(await double(len(seen)))

        await wait_signal("begin")
        on_signal(number, seen.append)
        on_signal("slowly", slowly)
        await wait_signal("change")
        on_signal(number, lambda value: seen.append(-value))
        await wait_condition(lambda: len(seen) > 4)
        await wait_condition(all_handlers_finished)
        return seen

    async with running_worker(client, collects):
        run = await client.start(collects)
        await run.signal(number, 1)
        await run.signal("slowly", "a")
        await run.signal(number, 2)
        await run.signal("begin")
        await until(lambda: _has_result(run, 6))
        await run.signal("change")
        await run.signal(number, 3)

        assert await run.result(60) == [1, 2, "a", 6, -3]

    await check_replay(client, run, collects)


@pytest.mark.parametrize("handler_first", [True, False])
async def test_nobody_waits_for_a_signal_that_has_a_handler(client: Client, handler_first: bool) -> None:
    """Whoever comes second is told: one of the two would never get any."""

    @workflow
    async def torn() -> None:
        if handler_first:
            on_signal("go", [].append)
            await wait_signal("go")
        else:
            waiting = asyncio.create_task(wait_signal("go"))
            await asyncio.sleep(0)
            on_signal("go", [].append)
            await waiting

    @workflow
    async def asks() -> None:
        on_signal("go", [].append)
        await wait_answer("go", "Well?")

    async with running_worker(client, torn, asks):
        text = "has a handler" if handler_first else "is being waited for"
        with pytest.raises(WorkflowFailedError, match=text):
            await (await client.start(torn)).result(60)
        with pytest.raises(WorkflowFailedError, match="has a handler"):
            await (await client.start(asks)).result(60)


@pytest.mark.parametrize("value", ["text", None, 1.5])
async def test_a_value_of_another_type_is_refused_at_the_sender(client: Client, value: object) -> None:
    """If it names the signal by its method; one that takes nothing is sent nothing."""
    run = await client.start(Tally, 0)

    with pytest.raises(ArgumentsError, match=r"^signal 'add' takes another type: expected `int`"):
        await run.signal(Tally.add, value)
    with pytest.raises(ArgumentsError, match=r"^signal 'close' takes another type: expected `null`"):
        await run.signal(Tally.close, 1)
    with pytest.raises(ArgumentsError, match="not <function"):
        await run.signal(Tally.run, 1)

    assert (await client.store.get_run(run.run_id)).unread == 0


async def test_a_value_that_does_not_fit_the_handler_parks_the_run(client: Client) -> None:
    """A sender that names a signal by text is not checked; nothing is lost, and the reason says which message."""
    async with running_worker(client, Tally):
        run = await client.start(Tally, 0)
        await run.signal("add", "many")

        with pytest.raises(UndecodableError, match=r"the value of signal 'add' \(message 1\)"):
            await run.result(60)

    assert (await run.describe()).status == RunStatus.PARKED


class Trouble(Exception):
    pass


async def give_back(item: str) -> None:
    await tidied(item)


@activity
async def tidied(item: str) -> str:
    return item


@pytest.mark.parametrize("how", ["at_once", "later", "activity"])
async def test_what_a_handler_raises_fails_the_run(client: Client, how: str) -> None:
    """As an error of `run` would: that is cancelled where it waits, cleans up, undoes its steps, and the error is the handler's."""
    calls = Calls()

    async def undo(item: str) -> None:
        calls(f"undo {item}")

    @saga_step(compensation=undo)
    async def take(item: str) -> str:
        calls(f"take {item}")
        return item

    @activity(retries=0)
    async def breaks() -> None:
        raise Trouble("activity")

    @workflow
    class Careful:
        async def run(self) -> None:
            await take("hotel")
            try:
                await asyncio.sleep(3600)
            finally:
                await tidied("up")

        @workflow.signal
        def at_once(self) -> None:
            raise Trouble("at_once")

        @workflow.signal
        async def later(self) -> None:
            await double(1)
            raise Trouble("later")

        @workflow.signal
        async def activity(self) -> None:
            await breaks()

    async with running_worker(client, Careful):
        run = await client.start(Careful)
        await is_waiting(run, "timer")
        await run.signal(how)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)

    assert isinstance(failed.value.__cause__, Trouble)
    assert str(failed.value.__cause__) == how
    assert calls.names == ["take hotel", "undo hotel"]
    assert "tidied" in [entry.name for entry in (await run.describe()).journal]
    await check_replay(client, run, Careful)


async def test_an_early_signal_whose_handler_raises_fails_the_run_before_its_first_step(
    client: Client,
) -> None:
    """`run` is never called; the rest of what came early is not lost, but nobody reads it any more."""
    ran: list[str] = []

    @workflow
    class Refuses:
        async def run(self) -> None:
            ran.append("run")

        @workflow.signal
        def go(self) -> None:
            raise Trouble("no")

    run = await client.start(Refuses)
    await run.signal(Refuses.go)
    await run.signal(Refuses.go)
    async with running_worker(client, Refuses):
        with pytest.raises(WorkflowFailedError, match="no"):
            await run.result(60)

    assert ran == []
    assert sum(isinstance(entry, SignalReceived) for entry in await run.events()) == 2


async def test_a_run_whose_body_does_not_heed_the_handlers_error_fails_all_the_same(client: Client) -> None:
    """Whatever it returns after that."""

    @workflow
    class Deaf:
        async def run(self) -> str:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass
            return "well"

        @workflow.signal
        def go(self) -> None:
            raise Trouble("no") from KeyError("why")

    async with running_worker(client, Deaf):
        run = await client.start(Deaf)
        await run.signal(Deaf.go)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)

    assert isinstance(failed.value.__cause__, Trouble)
    assert isinstance(failed.value.__cause__.__cause__, KeyError)


async def test_a_workflow_retry_keeps_what_stood_before_a_handlers_activity_failed(client: Client) -> None:
    """Signals before that point are replayed, those after it delivered again: each is handled once per life."""
    calls = Calls()

    @activity(retries=0)
    async def fails_once() -> str:
        if calls("fails") == 1:
            raise Trouble("once")
        return "done"

    @activity
    async def counted(number: int) -> int:
        calls(f"counted {number}")
        return number

    @workflow(retries=1, retry_delay=0)
    class Tries:
        def __init__(self) -> None:
            self.seen: list[Any] = []

        async def run(self) -> list[Any]:
            await wait_condition(lambda: len(self.seen) == 3)
            return [info().attempt, *self.seen]

        @workflow.signal
        async def add(self, number: int) -> None:
            self.seen.append(await counted(number))

        @workflow.signal
        async def fail(self) -> None:
            self.seen.append(await fails_once())

    async with running_worker(client, Tries):
        run = await client.start(Tries)
        await run.signal(Tries.add, 1)
        await until(lambda: calls.names == ["counted 1"])
        await run.signal(Tries.fail)
        await until(lambda: "fails" in calls.names)
        await run.signal(Tries.add, 2)
        result = await run.result(60)

    assert (result[0], sorted(map(str, result[1:]))) == (2, ["1", "2", "done"])
    assert calls.names.count("counted 1") == 1


async def test_unfinished_handlers_are_given_up_with_a_warning(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The run ends as its `run` does; the log names the signals."""

    @workflow
    class Hurries:
        async def run(self) -> str:
            await wait_signal("end")
            return "ended"

        @workflow.signal
        async def slow(self) -> None:
            await asyncio.sleep(3600)

    async with running_worker(client, Hurries):
        run = await client.start(Hurries)
        await run.signal(Hurries.slow)
        await run.signal("end")
        with caplog.at_level(logging.WARNING, logger="durable.engine"):
            assert await run.result(60) == "ended"

    (warning,) = [
        record.getMessage()
        for record in caplog.records
        if "handlers of signals or updates" in record.getMessage()
    ]
    assert f"run {run.run_id} ends while handlers of signals or updates have not: slow." in warning


async def test_signals_go_on_to_the_next_generation(client: Client) -> None:
    """What no handler has taken in is early there; each is handled once, in order, by whichever generation."""

    @workflow
    class Rolls:
        def __init__(self, seen: list[int], generation: int = 1) -> None:
            self.seen = seen

        async def run(self) -> list[int]:
            before = len(self.seen)
            await wait_condition(lambda: len(self.seen) > before or len(self.seen) >= 30)
            if len(self.seen) < 30:
                continue_as_new(self.seen, info().generation + 1)
            return self.seen

        @workflow.signal
        def add(self, number: int) -> None:
            self.seen.append(number)

    async with running_worker(client, Rolls, warm_us=0):
        run = await client.start(Rolls, [])
        for number in range(30):
            await run.signal(Rolls.add, number)
            if number % 4 == 0:
                await asyncio.sleep(0.003)

        assert await run.result(60) == list(range(30))


async def test_a_handler_cannot_continue_as_new(client: Client) -> None:
    """It is not the workflow: what it does for itself would be lost."""

    @workflow
    class Rolls:
        async def run(self) -> None:
            await asyncio.sleep(3600)

        @workflow.signal
        def go(self) -> None:
            continue_as_new()

    async with running_worker(client, Rolls):
        run = await client.start(Rolls)
        await run.signal(Rolls.go)
        with pytest.raises(WorkflowFailedError, match="a handler cannot continue as new"):
            await run.result(60)


async def test_handlers_go_on_while_a_cancelled_run_cleans_up(client: Client) -> None:
    """A cancel is for `run`; a cancel that came before its first step does not come before an early signal."""

    @workflow
    class Patient:
        def __init__(self) -> None:
            self.told: list[int] = []

        async def run(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await wait_condition(lambda: len(self.told) == 2)
                await tidied(str(self.told))

        @workflow.signal
        async def tell(self, number: int) -> None:
            self.told.append(await double(number))

    run = await client.start(Patient)
    await run.signal(Patient.tell, 1)
    await run.cancel("enough")
    async with running_worker(client, Patient):
        await is_waiting(run, "condition")
        await run.signal(Patient.tell, 2)
        seen = await status_is(run, "cancelled")

    assert [entry.result for entry in seen.journal if entry.name == "tidied"] == ["[2, 4]"]
    await check_replay(client, run, Patient)


async def test_a_handlers_error_does_not_cancel_the_cleaning_up(client: Client) -> None:
    """A run that was asked to cancel, or whose handler has failed before, cleans up to the end; the error is the first handler's."""

    @workflow
    class Tidy:
        async def run(self) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                await wait_signal("go on")
                await tidied("up")

        @workflow.signal
        def breaks(self, text: str) -> None:
            raise Trouble(text)

    async with running_worker(client, Tidy):
        cancelled, failed = await client.start(Tidy), await client.start(Tidy)
        await is_waiting(cancelled, "timer")
        await is_waiting(failed, "timer")
        await cancelled.cancel()
        for run in (cancelled, failed):
            await run.signal(Tidy.breaks, "first")
            await run.signal(Tidy.breaks, "second")
            await run.signal("go on")
        for run in (cancelled, failed):
            with pytest.raises(WorkflowFailedError) as error:
                await run.result(60)
            assert str(error.value.__cause__) == "first"
            assert [entry.result for entry in (await run.describe()).journal if entry.name == "tidied"] == [
                "up"
            ]
            await check_replay(client, run, Tidy)


async def test_a_guard_that_a_handler_meets_parks_the_run(client: Client) -> None:
    """Handlers are workflow code."""

    @workflow
    class Opens:
        async def run(self) -> None:
            await asyncio.sleep(3600)

        @workflow.signal
        def go(self) -> None:
            open("/etc/hostname").close()

    async with running_worker(client, Opens):
        run = await client.start(Opens)
        await run.signal(Opens.go)
        with pytest.raises(durable.WorkflowGuardError):
            await run.result(60)


async def test_a_subclass_inherits_and_replaces_handlers(client: Client) -> None:
    """By name, as methods; one that replaces a handler is marked itself."""

    @workflow
    class Louder(Tally):
        @workflow.signal
        def add(self, number: int) -> None:
            super().add(100 * number)

    run = await client.start(Louder, 0)
    await run.signal(Tally.add, 1)
    await run.signal(Louder.add_doubled, 2)
    await run.signal(Louder.close)
    async with running_worker(client, Louder):
        assert await run.result(60) == ["init 0", 100, "doubling 2", "run", 4]


async def test_a_script_is_signalled_by_method(embedded: str) -> None:
    """`durable.signal` takes it, too."""
    run = await workflow_of(Tally).start(0, run_id="t")
    await durable.signal("t", Tally.add, 3)
    await durable.signal("t", Tally.close)

    assert 3 in await run.result(60)


def test_methods_of_an_object_are_methods() -> None:
    """A unit test calls them."""
    tally = Tally(1)
    tally.add(2)
    tally.close()

    assert (tally.seen, tally.is_closed) == (["init 1", 2], True)


def test_what_cannot_be_a_handler_is_refused_where_it_is_defined() -> None:
    """Which signal would it be, and who would give it more than one value?"""
    with pytest.raises(DefinitionError, match="takes a, b: a signal has one value"):

        class Several:
            @workflow.signal
            def go(self, a: int, b: int) -> None: ...

    with pytest.raises(DefinitionError, match=r"takes \*values: a signal"):

        class Any_:
            @workflow.signal
            def go(self, *values: int) -> None: ...

    with pytest.raises(DefinitionError, match="is a generator"):

        class Yields:
            @workflow.signal
            def go(self) -> Any:
                yield 1

    with pytest.raises(DefinitionError, match="a and b are both for the signal 'a'"):

        @workflow
        class Twice:
            async def run(self) -> None: ...

            @workflow.signal
            def a(self) -> None: ...

            @workflow.signal(name="a")
            def b(self) -> None: ...

    with pytest.raises(DefinitionError, match=r"Silent\.add stands for a signal method, and is not marked"):

        @workflow
        class Silent(Tally):
            def add(self, number: int) -> None: ...

    with pytest.raises(DefinitionError, match="works only inside a workflow"):
        on_signal("a", [].append)
    with pytest.raises(TypeError):
        workflow.signal(nome="a")  # type: ignore[call-overload]
