"""Updates: calls into a run that are answered. Applied once, answered for good, and nobody waits for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    Activity,
    ArgumentsError,
    Client,
    InboxFullError,
    Limits,
    PayloadTooLargeError,
    RunCancelledError,
    RunHandle,
    RunParkedError,
    RunStatus,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowFailedError,
    WorkflowGuardError,
    WorkflowStateError,
    activity,
    all_handlers_finished,
    connect,
    continue_as_new,
    info,
    on_update,
    wait_condition,
    wait_signal,
    workflow,
    workflow_of,
)
from durable.journal.events import ActivityFailed, Started, UpdateAnswered, UpdateReceived
from durable.journal.view import OWED_TEXT
from durable.recorded import RecordedRun
from durable.testing import Environment, replay
from tests.support.workers import (
    Calls,
    declare_dead,
    is_released,
    is_waiting,
    running_worker,
    status_is,
    until,
)


class Item(msgspec.Struct):
    name: str
    count: int = 1


@activity
async def double(number: int) -> int:
    return 2 * number


class Trouble(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@workflow
class Cart:
    """Items that callers add, until one of them closes it."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.is_closed = False

    async def run(self) -> list[str]:
        await wait_condition(lambda: self.is_closed)
        await wait_condition(all_handlers_finished)
        return [f"{one.count} {one.name}" for one in self.items]

    @workflow.update
    async def add(self, item: Item) -> list[Item]:
        item.count = await double(item.count)
        self.items.append(item)
        return self.items

    @add.validator
    def check(self, item: Item) -> None:
        if any(one.name == item.name for one in self.items):
            raise Trouble(409)

    @workflow.update
    def close(self) -> int:
        if not self.items:
            raise Trouble(404)
        self.is_closed = True
        return len(self.items)

    @workflow.update
    async def hang(self) -> None:
        await asyncio.sleep(3600)

    @workflow.signal
    def end(self) -> None:
        self.is_closed = True


async def check_replay(client: Client, run: RunHandle[Any], workflow: Any) -> None:
    recorded = await client.recorded(run.run_id)
    assert replay(recorded, workflow).warnings == ()
    assert replay(RecordedRun.from_json(recorded.to_json()), workflow).warnings == ()


async def answers(run: RunHandle[Any]) -> list[tuple[str, str]]:
    return [(one.name, one.how) for one in await run.events() if isinstance(one, UpdateAnswered)]


async def received(client: Client, run: RunHandle[Any], count: int) -> None:
    """Wait until so many updates are in the run's journal."""

    async def reached() -> bool:
        found = [one for one in await client.events(run.run_id) if isinstance(one, UpdateReceived)]
        return len(found) >= count

    await until(reached, what=f"{count} updates received")


async def is_sent(client: Client, run: RunHandle[Any], count: int = 1) -> None:
    """Wait until so many messages are in the run's inbox."""

    async def reached() -> bool:
        return (await client.store.get_run(run.run_id)).unread >= count

    await until(reached, what=f"{count} messages sent")


async def failed(asked: Awaitable[object]) -> UpdateFailedError:
    with pytest.raises(UpdateFailedError) as raised:
        await asked
    return raised.value


@pytest.mark.parametrize("warm_us", [None, 0])
async def test_an_update_is_answered_and_has_had_its_effect(client: Client, warm_us: int | None) -> None:
    """Typed by the method; also of a run that is released whenever it waits."""
    async with running_worker(client, Cart, warm_us=warm_us):
        run = await client.start(Cart)
        assert await run.update(Cart.add, Item("tea"), timeout=60) == [Item("tea", 2)]
        assert await client.update(run.run_id, Cart.add, Item("milk", 2), timeout=60) == [
            Item("tea", 2),
            Item("milk", 4),
        ]
        assert await client.update(run.run_id, "close", timeout=60) == 2
        assert await run.result(60) == ["2 tea", "4 milk"]

    await check_replay(client, run, Cart)


async def test_the_caller_is_told_why(client: Client) -> None:
    """A refused update, and one that failed: the error itself is the cause, and the run goes on."""
    async with running_worker(client, Cart):
        run = await client.start(Cart)
        error = await failed(run.update(Cart.close, timeout=60))
        assert isinstance(error.__cause__, Trouble)
        assert (error.run_id, error.update, error.__cause__.code) == (run.run_id, "close", 404)

        await run.update(Cart.add, Item("tea"), timeout=60)
        with pytest.raises(UpdateRejectedError, match="was refused: Trouble: 409") as refused:
            await run.update(Cart.add, Item("tea"), timeout=60)
        assert isinstance(refused.value.__cause__, Trouble)

        assert await run.update(Cart.close, timeout=60) == 1
        assert await run.result(60) == ["2 tea"]

    assert await answers(run) == [
        ("close", "failed"),
        ("add", "completed"),
        ("add", "rejected"),
        ("close", "completed"),
    ]
    await check_replay(client, run, Cart)


async def test_the_same_id_is_the_same_call(client: Client) -> None:
    """At once and later, here and elsewhere, while the run is open and when it is closed: one effect, one answer."""
    async with running_worker(client, Cart), connect(client.url, durability="off") as other:
        run = await client.start(Cart)
        elsewhere = await other.get(run.run_id, Cart)
        calls = [one.update(Cart.add, Item("tea"), id="a", timeout=60) for one in (run, elsewhere) * 5]
        assert await asyncio.gather(*calls) == [[Item("tea", 2)]] * 10
        with pytest.raises(UpdateRejectedError):
            await run.update(Cart.add, Item("tea"), id="b", timeout=60)
        await run.update(Cart.add, Item("milk"), timeout=60)
        await run.signal(Cart.end)
        assert await run.result(60) == ["2 tea", "2 milk"]

        assert await elsewhere.update("add", Item("tea"), id="a", timeout=60) == [Item("tea", 2)]
        with pytest.raises(UpdateRejectedError, match="Trouble: 409"):
            await elsewhere.update(Cart.add, Item("tea"), id="b", timeout=60)
    assert len(await answers(run)) == 3


async def test_an_id_stands_for_one_update(client: Client) -> None:
    """Of one name; a signal's ids are others."""
    async with running_worker(client, Cart):
        run = await client.start(Cart)
        await run.update(Cart.add, Item("tea"), id="a", timeout=60)
        with pytest.raises(ArgumentsError, match="id 'a' is that of another update, 'add'"):
            await run.update(Cart.close, id="a", timeout=60)
        await run.signal(Cart.end, id="a")
        assert await run.result(60) == ["2 tea"]


async def test_updates_that_came_first_see_the_object_as_init_made_it(client: Client) -> None:
    """In the order of their sending; the journal says how many messages came first."""
    run = await client.start(Cart)
    first = asyncio.create_task(run.update(Cart.close, timeout=60))
    await is_sent(client, run, 1)
    await run.signal("unknown")
    second = asyncio.create_task(run.update(Cart.add, Item("tea"), timeout=60))
    await is_sent(client, run, 3)
    async with running_worker(client, Cart):
        await failed(first)
        assert await second == [Item("tea", 2)]
        await run.signal(Cart.end)
        await run.result(60)

    started = (await run.events())[0]
    assert isinstance(started, Started)
    assert started.early == 3
    await check_replay(client, run, Cart)


async def test_what_is_not_answered_when_the_run_ends_is_given_up(client: Client) -> None:
    """Asked again, it is the same; new ones are refused."""

    @workflow
    class Ends:
        def __init__(self) -> None:
            self.is_over = False

        async def run(self) -> str:
            await wait_condition(lambda: self.is_over)
            return "over"

        @workflow.update
        async def hang(self) -> None:
            await asyncio.sleep(3600)

        @workflow.update
        async def end(self) -> None:
            self.is_over = True
            await asyncio.sleep(1)

    async with running_worker(client, Ends):
        run = await client.start(Ends)
        hanging = asyncio.create_task(run.update(Ends.hang, id="h", timeout=60))
        await received(client, run, 1)
        error = await failed(run.update(Ends.end, id="e", timeout=60))
        assert "the run ended before it was answered" in str(error)
        assert error.__cause__ is None
        await failed(hanging)
        assert await run.result(60) == "over"

    for id, method in (("h", Ends.hang), ("e", Ends.end)):
        assert "the run ended before" in str(await failed(run.update(method, id=id, timeout=60)))
    with pytest.raises(WorkflowStateError):
        await run.update(Ends.hang, timeout=60)
    assert await answers(run) == [("hang", "given_up"), ("end", "given_up")]
    await check_replay(client, run, Ends)


async def test_an_update_that_comes_while_the_run_ends_is_handled_first(client: Client) -> None:
    """It prevents the close, as a signal does: nobody who was taken in goes without an answer."""

    @workflow
    async def short() -> int:
        count = 0

        def ask() -> int:
            nonlocal count
            count += 1
            return count

        on_update("ask", ask)
        for number in range(20):
            await double(number)
        return count

    async with running_worker(client, short):
        runs = [await client.start(short) for _ in range(10)]
        told: dict[str, int] = dict.fromkeys([run.run_id for run in runs], 0)

        async def keep_asking(run: RunHandle[int]) -> None:
            try:
                while True:
                    told[run.run_id] = await run.update("ask", timeout=60)
            except (WorkflowStateError, UpdateFailedError):
                return

        await asyncio.gather(*map(keep_asking, runs))
        results = {run.run_id: await run.result(60) for run in runs}

    assert all(results[run_id] >= last for run_id, last in told.items())
    assert sum(told.values()) > 0
    for run in runs:
        events = await run.events()
        taken_in = {one.msg for one in events if isinstance(one, UpdateReceived)}
        assert taken_in == {one.msg for one in events if isinstance(one, UpdateAnswered)}
        await check_replay(client, run, short)


async def test_a_terminated_run_has_ended_before(client: Client) -> None:
    """Whether it had begun with the update or never took it in; asked again it is the same, also when the run is tried again."""
    async with running_worker(client, Cart):
        run = await client.start(Cart)
        begun = asyncio.create_task(run.update(Cart.hang, id="begun", timeout=60))
        await received(client, run, 1)
    idle = await client.start(Cart)
    never = asyncio.create_task(idle.update(Cart.close, id="never", timeout=60))
    await is_sent(client, idle)
    await run.terminate("enough")
    await idle.terminate("enough")
    await failed(begun)
    await failed(never)

    await run.retry()
    await idle.retry(from_start=True)
    assert "the run ended before" in str(await failed(run.update(Cart.hang, id="begun", timeout=60)))
    assert "the run ended before" in str(await failed(idle.update(Cart.close, id="never", timeout=60)))


async def test_a_run_that_is_tried_again_while_nobody_looked_is_asked_again(client: Client) -> None:
    """A caller who missed an end by force is told of it, and not left waiting for the next generation."""
    run = await client.start(Cart)
    calling = asyncio.create_task(run.update(Cart.close, timeout=60))
    await is_sent(client, run)
    await client.store.terminate_run(run.run_id, None, client.clock.now_us())
    await client.retry(run.run_id, from_start=True)

    assert "the run ended before" in str(await failed(calling))


async def test_an_answer_comes_from_whoever_goes_on_with_the_run(client: Client) -> None:
    """The worker that had begun with the update stops, or is taken for dead: what the handler waits for is not lost."""

    @workflow
    class Gate:
        def __init__(self) -> None:
            self.is_open = False
            self.passed = 0

        async def run(self) -> int:
            await wait_condition(lambda: self.passed == 2)
            await wait_condition(all_handlers_finished)
            return self.passed

        @workflow.update
        async def go_through(self, number: int) -> int:
            await wait_condition(lambda: self.is_open)
            self.passed += 1
            return await double(number)

        @workflow.signal
        def open(self) -> None:
            self.is_open = True

    run = await client.start(Gate)
    async with running_worker(client, Gate):
        first = asyncio.create_task(run.update(Gate.go_through, 1, timeout=60))
        await received(client, run, 1)
    async with running_worker(client, Gate) as worker:
        second = asyncio.create_task(run.update(Gate.go_through, 2, timeout=60))
        await received(client, run, 2)
        await declare_dead(client, worker)
        await run.signal(Gate.open)
        assert await asyncio.gather(first, second) == [2, 4]
        assert await run.result(60) == 2

    await check_replay(client, run, Gate)


async def test_a_parked_run_is_told_at_once_and_answers_when_it_is_resumed(client: Client) -> None:
    """The update waits in it; whoever asks again with its id gets the answer."""
    is_good = [False]

    @workflow
    class Guarded:
        async def run(self) -> str:
            await wait_signal("go")
            if not is_good[0]:
                import time

                raise WorkflowGuardError("no", run_id="x", call=time.__name__)
            await wait_signal("end")
            return "done"

        @workflow.update
        def ask(self) -> int:
            return 7

    async with running_worker(client, Guarded), connect(client.url, durability="off") as other:
        run = await client.start(Guarded)
        await is_waiting(run, "signal")
        await run.signal("go")
        await status_is(run, "parked")
        with pytest.raises(WorkflowGuardError):
            await run.update(Guarded.ask, id="a", timeout=60)
        with pytest.raises(RunParkedError):
            await other.update(run.run_id, Guarded.ask, id="a", timeout=60)

        is_good[0] = True
        await run.resume()
        assert await run.update(Guarded.ask, id="a", timeout=60) == 7
        await run.signal("end")
        assert await run.result(60) == "done"


async def test_a_fault_of_a_handler_parks_the_run(client: Client) -> None:
    """What says that code does not fit is no answer; the caller hears what any waiter does."""

    @workflow
    class Opens:
        async def run(self) -> None:
            await wait_signal("end")

        @workflow.update
        def read(self) -> str:
            with open("/dev/null") as file:
                return file.read()

        @workflow.update
        def check(self) -> None: ...

        @check.validator
        def looks(self) -> None:
            with open("/dev/null"):
                pass

    async with running_worker(client, Opens):
        for method in (Opens.read, Opens.check):
            run = await client.start(Opens)
            with pytest.raises(WorkflowGuardError):
                await run.update(method, timeout=60)
            assert (await run.describe()).status == RunStatus.PARKED
            assert await answers(run) == []


async def test_the_wait_follows_a_run_that_continues_as_new(client: Client) -> None:
    """What no generation has begun with goes on to the next; what one had begun with, it gives up."""

    @workflow
    async def rounds(number: int) -> int:
        begun: list[str] = []

        async def slow() -> None:
            begun.append("slow")
            await asyncio.sleep(3600)

        await wait_signal("go")
        if number == 2:
            on_update("ask", lambda: number)
            await wait_condition(all_handlers_finished)
        elif number == 1:
            on_update("ask", lambda: number)  # it goes on before the handler takes its first step
        elif number == 0:
            on_update("slow", slow)
            await wait_condition(lambda: bool(begun))
        if number < 3:
            continue_as_new(number + 1)
        return number

    async with running_worker(client, rounds), connect(client.url, durability="off") as other:
        run = await client.start(rounds, 0)
        asked = asyncio.create_task(run.update("ask", id="a", timeout=60))
        slow = asyncio.create_task(run.update("slow", id="s", timeout=60))
        await received(client, run, 2)
        for _ in range(4):
            await run.signal("go")
        assert await asked == 2
        assert "the run ended before" in str(await failed(slow))
        assert await run.result(60) == 3

        again = await other.get(run.run_id)
        assert await again.update("ask", id="a", timeout=60) == 2
        await failed(again.update("slow", id="s", timeout=60))


@pytest.mark.parametrize("where", ["dropped", "kept"])
async def test_a_workflow_retry_keeps_the_effect_and_the_first_answer(client: Client, where: str) -> None:
    """Handled again in the next life if that does not keep it, and not asked about again; the caller's answer stays what it was.

    What is dropped is all that came after the failure that the workflow is tried again for.
    """
    calls = Calls()

    @activity(retries=0)
    async def fails_once() -> str:
        if calls("fails") == 1:
            raise Trouble(500)
        return "done"

    @workflow(retries=1, retry_delay=0)
    class Tries:
        def __init__(self) -> None:
            self.notes: list[str] = []

        async def run(self) -> list[str]:
            try:
                if where == "dropped":
                    self.notes.append(await fails_once())
            finally:
                await wait_condition(lambda: "go" in self.notes)
            if where == "kept":
                self.notes.append(await fails_once())
            await wait_condition(all_handlers_finished)
            return self.notes

        @workflow.update
        def add(self, note: str) -> str:
            self.notes.append(note)
            return f"life {info().attempt}"

        @add.validator
        def check(self, note: str) -> None:
            calls(f"check {note}")
            if calls.of(f"check {note}") > 1:
                raise Trouble(409)

        @workflow.update
        async def spread(self, note: str) -> str:
            await wait_condition(lambda: "done" in self.notes)
            return f"life {info().attempt}"

    async with running_worker(client, Tries):
        run = await client.start(Tries)
        spread = asyncio.create_task(run.update(Tries.spread, "x", timeout=60))
        await received(client, run, 1)
        first = [await run.update(Tries.add, note, id=note, timeout=60) for note in ("a", "go")]
        result = await run.result(60)
        assert await spread == "life 2"

        assert sorted(result) == ["a", "done", "go"]
        assert first == ["life 1", "life 1"]
        for note in ("a", "go"):
            assert await run.update(Tries.add, note, id=note, timeout=60) == "life 1"
    assert calls.of("check a") == calls.of("check go") == 1


class Late:
    """What a workflow is that ends without a look at its handlers, the second time; and lets them go on when it is told to."""

    def __init__(self, notes: list[str] | None = None) -> None:
        self.notes = notes or []
        self.released = 0

    @workflow.signal
    def release(self) -> None:
        self.released += 1

    @workflow.update
    async def add(self, note: str) -> str:
        await wait_condition(lambda: self.released >= info().attempt)
        self.notes.append(note)
        return f"life {info().attempt}"

    async def first_life(self) -> None:
        await wait_condition(lambda: bool(self.notes))
        await wait_condition(all_handlers_finished)


def late_workflows(fails: Activity[[], None]) -> dict[str, Any]:
    """Return workflows whose second life ends at once, by what it keeps of the first and how it ends."""

    @workflow(retries=1, retry_delay=0)
    class FromNothing(Late):
        async def run(self) -> list[str]:
            if info().attempt == 1:
                await self.first_life()
                raise Trouble(500)
            return self.notes

    @workflow(retries=1, retry_delay=0)
    class UpdateKept(Late):
        async def run(self) -> list[str]:
            try:
                await fails()
            except Trouble:
                await self.first_life()
                raise
            return self.notes

    @workflow(retries=1, retry_delay=0)
    class GoesOn(Late):
        async def run(self) -> list[str]:
            if info().generation < 3:
                if info().attempt == 1:
                    await self.first_life()
                    raise Trouble(500)
                continue_as_new(self.notes)
            return self.notes

    return {"from nothing": FromNothing, "update kept": UpdateKept, "goes on": GoesOn}


@pytest.mark.parametrize("which", ["from nothing", "update kept", "goes on"])
async def test_a_run_that_has_answered_does_not_end_well_without_the_effect(
    client: Client, which: str
) -> None:
    """Though its workflow waits for no handler: what was acknowledged is in the final state (I14). Whoever asks is told what it waits for."""
    calls = Calls()
    is_known = asyncio.Event()

    @activity(retries=0)
    async def fails() -> None:
        if calls("fails") == 1:
            await is_known.wait()
            raise Trouble(500)

    late = late_workflows(fails)[which]
    async with running_worker(client, late):
        run = await client.start(late)
        asked = asyncio.create_task(run.update("add", "a", id="a", timeout=60))
        await received(client, run, 1)
        is_known.set()
        if which == "update kept":
            await until(lambda: has_failed(run))
        await run.signal("release")
        assert await asked == "life 1"

        await until(lambda: waits_for(run, OWED_TEXT))
        assert not (await run.describe()).status.is_closed
        await run.signal("release")  # the first one is delivered to the second life, too
        result = await run.result(60)
        assert result == ["a"]
        assert await run.update("add", "a", id="a", timeout=60) == "life 1"
        await check_replay(client, run, late)


@pytest.mark.parametrize("which", ["from nothing", "update kept", "goes on"])
async def test_a_run_that_owes_an_effect_can_be_cancelled(client: Client, which: str) -> None:
    """Then it has been cancelled, as it had not come to its end."""

    @activity(retries=0)
    async def fails() -> None:
        if calls("fails") == 1:
            raise Trouble(500)

    calls = Calls()
    late = late_workflows(fails)[which]
    async with running_worker(client, late):
        run = await client.start(late)
        if which == "update kept":
            await until(lambda: has_failed(run))
        await run.signal("release")
        assert await run.update("add", "a", id="a", timeout=60) == "life 1"
        await until(lambda: waits_for(run, OWED_TEXT))
        await run.cancel()
        with pytest.raises(RunCancelledError):
            await run.result(60)


async def test_what_nobody_takes_any_more_holds_up_no_end(client: Client) -> None:
    """Of a function whose second life does not come to its handler."""

    @workflow(retries=1, retry_delay=0)
    async def forgets() -> str:
        notes: list[str] = []
        if info().attempt == 1:
            on_update("add", notes.append)
            await wait_condition(lambda: bool(notes))
            raise Trouble(500)
        return "done"

    async with running_worker(client, forgets):
        run = await client.start(forgets)
        await run.update("add", "a", id="a", timeout=60)
        assert await run.result(60) == "done"


async def has_failed(run: RunHandle[Any]) -> bool:
    return any(isinstance(one, ActivityFailed) for one in await run.events())


async def waits_for(run: RunHandle[Any], text: str) -> bool:
    return text in [one.text for one in (await run.why()).waiting_on]


async def test_what_a_life_from_the_beginning_handles_again_is_not_asked_about_again(client: Client) -> None:
    """An error of the workflow's own code keeps nothing of the journal; what was acknowledged is in the final state all the same."""
    calls = Calls()

    @workflow(retries=1, retry_delay=0)
    class Tries:
        def __init__(self) -> None:
            self.notes: list[str] = []

        async def run(self) -> list[str]:
            await wait_condition(lambda: "go" in self.notes)
            if calls("run") == 1:
                raise Trouble(500)
            return self.notes

        @workflow.update
        def add(self, note: str) -> int:
            self.notes.append(note)
            return info().attempt

        @add.validator
        def check(self, note: str) -> None:
            if note == "bad" or calls(note) > 1:
                raise Trouble(409)

    async with running_worker(client, Tries):
        run = await client.start(Tries)
        for note in ("a", "bad", "go"):
            try:
                assert await run.update(Tries.add, note, id=note, timeout=60) == 1
            except UpdateRejectedError:
                assert note == "bad"
        assert await run.result(60) == ["a", "go"]

        assert await run.update(Tries.add, "a", id="a", timeout=60) == 1
        assert await run.update(Tries.add, "go", id="go", timeout=60) == 1
        with pytest.raises(UpdateRejectedError):
            await run.update(Tries.add, "bad", id="bad", timeout=60)


async def test_an_operators_retry_keeps_the_effect_and_the_first_answer(client: Client) -> None:
    """Also of a run that failed for good: what it had handled is handled again."""
    calls = Calls()

    @workflow
    class Once:
        def __init__(self) -> None:
            self.notes: list[str] = []

        async def run(self) -> list[str]:
            await wait_condition(lambda: "go" in self.notes)
            if calls("run") == 1:
                raise Trouble(500)
            return self.notes

        @workflow.update
        def add(self, note: str) -> int:
            self.notes.append(note)
            return calls(note)

        @add.validator
        def check(self, note: str) -> None:
            if note in calls.names:
                raise Trouble(409)

    async with running_worker(client, Once):
        run = await client.start(Once)
        await run.update(Once.add, "a", id="a", timeout=60)
        await run.update(Once.add, "go", timeout=60)
        with pytest.raises(WorkflowFailedError):
            await run.result(60)
        await run.retry()
        assert await (await client.get(run.run_id)).result(60) == ["a", "go"]
        assert await run.update(Once.add, "a", id="a", timeout=60) == 1


async def test_a_function_is_asked_when_it_takes_the_update(client: Client) -> None:
    """What it never takes is given up at its end."""

    @workflow
    async def late() -> list[str]:
        notes: list[str] = []

        def add(note: str) -> int:
            notes.append(note)
            return len(notes)

        def check(note: str) -> None:
            if not note:
                raise Trouble(400)

        await wait_signal("open")
        on_update("add", add, check)
        await wait_signal("end")
        return notes

    async with running_worker(client, late, warm_us=0):
        run = await client.start(late)
        one = asyncio.create_task(run.update("add", "x", timeout=60))
        two = asyncio.create_task(run.update("add", "", timeout=60))
        other = asyncio.create_task(run.update("unknown", timeout=60))
        await received(client, run, 3)
        await run.signal("open")
        assert await one == 1
        with pytest.raises(UpdateRejectedError):
            await two
        await run.signal("end")
        assert await run.result(60) == ["x"]
        await failed(other)

    await check_replay(client, run, late)


async def test_what_cannot_be_right_is_refused_at_the_caller(client: Client) -> None:
    """Nothing is sent: another type, a name that the class of the handle does not take, text that is no id."""
    run = await client.start(Cart)
    with pytest.raises(ArgumentsError, match=r"^update 'add' takes another type: expected `object`"):
        await run.update("add", 5)
    with pytest.raises(ArgumentsError, match=r"^update 'close' takes another type: expected `null`"):
        await run.update("close", 5)
    with pytest.raises(ArgumentsError, match=r"takes no update 'clse' \(did you mean 'close'\?\)"):
        await run.update("clse")
    with pytest.raises(ArgumentsError, match="not <function"):
        await run.update(Cart.end)
    with pytest.raises(ArgumentsError, match="an update's id"):
        await run.update("close", id="a\nb")

    assert (await client.store.get_run(run.run_id)).unread == 0


async def test_what_a_caller_without_the_code_sends_wrongly_is_refused_by_the_run(client: Client) -> None:
    async with running_worker(client, Cart):
        run = await client.start(Cart)
        for name, value, text in (("clse", None, "did you mean 'close'"), ("add", 5, "expected `object`")):
            with pytest.raises(UpdateRejectedError, match=text) as refused:
                await client.update(run.run_id, name, value, timeout=60)
            assert isinstance(refused.value.__cause__, ArgumentsError)
        assert (await run.describe()).status in ("running", "waiting")


async def test_updates_are_bounded_like_signals(url: str) -> None:
    """How many may wait unread, and how large one may be; an answer that is too large fails the update."""
    limits = Limits(payload_bytes=2000, payload_bytes_warn=1000, unread_messages=2)

    @workflow
    class Large:
        async def run(self) -> None:
            await wait_signal("end")

        @workflow.update
        def repeat(self, count: int) -> str:
            return "x" * count

    async with connect(url, durability="off", limits=limits) as client:
        run = await client.start(Large)
        with pytest.raises(PayloadTooLargeError):
            await client.update(run.run_id, "repeat", "x" * 3000)
        tasks = [asyncio.create_task(run.update(Large.repeat, 1, timeout=60)) for _ in range(2)]
        await is_sent(client, run, 2)
        with pytest.raises(InboxFullError):
            await run.update(Large.repeat, 1)
        async with running_worker(client, Large, limits=limits):
            assert await asyncio.gather(*tasks) == ["x", "x"]
            error = await failed(run.update(Large.repeat, 3000, timeout=60))
            assert isinstance(error.__cause__, PayloadTooLargeError)


async def test_time_limits_leave_the_update_where_it_is(client: Client) -> None:
    """Asked again with the same id, the call goes on waiting for the same answer."""
    run = await client.start(Cart)
    with pytest.raises(TimeoutError):
        await run.update(Cart.add, Item("tea"), id="a", timeout=0.01)
    async with running_worker(client, Cart):
        assert await run.update(Cart.add, Item("tea"), id="a", timeout=60) == [Item("tea", 2)]
        assert await answers(run) == [("add", "completed")]


async def test_a_worker_elsewhere_answers_too(client: Client) -> None:
    """A caller whose process drives nothing polls, or is told by the database."""
    async with connect(client.url, durability="off") as caller, running_worker(client, Cart):
        run = await caller.start(Cart)
        await is_waiting(run, "condition")
        for number in range(5):
            found = await run.update(Cart.add, Item(f"item {number}"), timeout=60)
            assert len(found) == number + 1
        assert await caller.update(run.run_id, Cart.close, timeout=60) == 5


async def test_an_activity_that_calls_lends_its_slot(client: Client) -> None:
    """Else it would wait for a run whose handler waits for its slot."""

    @activity
    async def calls(cart: str) -> int:
        found = await client.update(cart, Cart.add, Item("tea"), id="a", timeout=60)
        return len(found)

    @workflow
    async def caller(cart: str) -> int:
        return await calls(cart)

    async with running_worker(client, Cart, caller, concurrency=1):
        cart = await client.start(Cart)
        assert await (await client.start(caller, cart.run_id)).result(60) == 1


async def test_a_run_tells_of_its_updates(client: Client) -> None:
    """A line each, with what was given, what came of it, and why not."""
    async with running_worker(client, Cart):
        run = await client.start(Cart)
        await failed(run.update(Cart.close, timeout=60))
        await run.update(Cart.add, Item("tea"), timeout=60)
        with pytest.raises(UpdateRejectedError):
            await run.update(Cart.add, Item("tea"), timeout=60)
        hanging = asyncio.create_task(run.update(Cart.hang, timeout=60))
        await received(client, run, 4)
        seen = await run.describe()
        why = await run.why()
        hanging.cancel()

    lines = [(one.name, one.status, one.error) for one in seen.journal if one.kind == "update"]
    assert lines == [
        ("close", "failed", "Trouble: 404"),
        ("add", "completed", None),
        ("add", "rejected", "Trouble: 409"),
        ("hang", "running", None),
    ]
    assert [one.input for one in seen.journal if one.kind == "update"][1] == {"name": "tea", "count": 1}
    assert not any(one.is_activity for one in seen.journal if one.kind == "update")
    assert why.reason != "slot"


async def test_a_plain_script_calls_into_the_run_that_it_drives(embedded: str) -> None:
    """The embedded engine answers."""
    run = await workflow_of(Cart).start()
    assert await run.update(Cart.add, Item("tea"), timeout=60) == [Item("tea", 2)]
    assert await run.update(Cart.close, timeout=60) == 1
    assert await run.result(60) == ["2 tea"]


async def test_a_released_run_is_woken_by_an_update(client: Client) -> None:
    async with running_worker(client, Cart, warm_us=0):
        run = await client.start(Cart)
        for number in range(3):
            await is_released(run)
            await run.update(Cart.add, Item(str(number)), timeout=60)
        assert await run.update(Cart.close, timeout=60) == 3


async def test_a_test_environment_skips_the_time_that_a_handler_waits() -> None:
    """A caller waits like anybody else."""

    @workflow
    class Slow:
        async def run(self) -> None:
            await wait_signal("end")

        @workflow.update
        async def ask(self, days: int) -> int:
            before = durable.now()
            await asyncio.sleep(days * 86_400)
            return (durable.now() - before).days

    async with Environment():
        run = await workflow_of(Slow).start()
        assert await run.update(Slow.ask, 30, timeout=30) == 30


class NotUpdates:
    async def run(self) -> None: ...


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("marks methods", lambda: workflow.update(print)),
        ("has no `self`", lambda: workflow.update(lambda: 1)),
        ("one value", lambda: workflow.update(lambda self, a, b: 1)),
        ("has its name", lambda: _validated(lambda: None, same_name=True)),
        ("must take what its update takes", lambda: _validated(lambda self, value: None)),
        ("only looks", lambda: _validated(_async_validator)),
        ("a validator already", lambda: _validated(lambda self: None, twice=True)),
    ],
)
def test_definitions_that_cannot_work_are_refused(text: str, make: Any) -> None:
    with pytest.raises(durable.DefinitionError, match=text):
        make()


async def _async_validator(self: object) -> None: ...


def _validated(validator: Any, *, same_name: bool = False, twice: bool = False) -> None:
    def ask(self: object) -> None: ...

    marked: Any = workflow.update(ask)
    if same_name:
        validator.__name__ = "ask"
    marked.validator(validator)
    if twice:
        marked.validator(validator)


def test_in_a_unit_test_they_are_methods() -> None:
    cart = Cart()
    cart.items.append(Item("tea"))
    assert cart.close() == 1
    with pytest.raises(Trouble):
        cart.check(Item("tea"))


def test_a_subclass_inherits_updates_and_their_validators() -> None:
    @workflow
    class Larger(Cart):
        @workflow.update
        def grow(self) -> None: ...

    updates = workflow_of(Larger).definition.updates
    assert sorted(updates) == ["add", "close", "grow", "hang"]
    assert updates["add"].validator == "check"
