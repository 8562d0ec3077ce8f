"""State machines: the table, guards and callbacks; kept ones: compare-and-set, what a crash leaves owed, runs."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

import durable
from durable import (
    DatabaseProviderProtocol,
    DatabaseStatePersistence,
    GuardRejectedError,
    InMemoryStatePersistence,
    StateConcurrencyError,
    StateError,
    StateMachine,
    StatePersistenceProtocol,
    StoreError,
    Transition,
    activity,
    workflow,
)
from tests.support.workers import Calls, is_waiting, running_worker

ORDER: dict[str, dict[str, str]] = {
    "pending": {"approve": "approved", "cancel": "cancelled"},
    "approved": {"ship": "shipped", "cancel": "cancelled"},
    "shipped": {"deliver": "delivered"},
    "cancelled": {},
    "delivered": {},
}
calls = Calls()


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.names.clear()


class OrderStateMachine(StateMachine):
    def __init__(self, machine_id: str | None = None, **options: Any) -> None:
        super().__init__(initial="pending", transitions=ORDER, machine_id=machine_id, **options)


def story(rows: list[durable.StateTransition]) -> list[tuple[str, str, str]]:
    return [(row.from_state, row.event, row.to_state) for row in rows]


class Crash(BaseException):
    """Stands for the end of the process."""


# ─ the table ──


async def test_a_machine_follows_its_table() -> None:
    """Events lead from state to state; the version counts them, the story tells them."""
    machine = OrderStateMachine()
    assert machine.can_transition("approve")
    assert not machine.can_transition("ship")

    assert await machine.transition("approve") == "approved"
    assert await machine.transition("ship") == "shipped"

    assert (machine.current_state, machine.version) == ("shipped", 2)
    rows = await machine.history()
    assert story(rows) == [("pending", "approve", "approved"), ("approved", "ship", "shipped")]
    assert rows[0].at <= rows[1].at
    assert await machine.recover() == "shipped"


async def test_an_event_without_an_edge_is_refused() -> None:
    """`StateError` says which event and which state; nothing changes."""
    machine = OrderStateMachine()

    with pytest.raises(StateError, match=r"'pending'.*'ship'.*approve, cancel") as error:
        await machine.transition("ship")

    assert (error.value.event, error.value.current_state) == ("ship", "pending")
    assert (machine.current_state, machine.version) == ("pending", 0)


def test_a_target_that_is_no_state_is_refused_when_the_machine_is_built() -> None:
    """Not when somebody first goes there, with the move stored already."""
    with pytest.raises(ValueError, match="nowhere"):
        StateMachine("a", {"a": {"go": "nowhere"}})
    with pytest.raises(ValueError, match="'c'"):
        StateMachine("c", {"a": {"go": "a"}})
    with pytest.raises(ValueError, match="'b'"):
        StateMachine("a", {"a": {}}, on_enter={"b": print})
    with pytest.raises(ValueError, match="two transitions"):
        StateMachine("a", {"a": [Transition("go", "a"), Transition("go", "a")]})
    with pytest.raises(ValueError, match="initial"):
        StateMachine(transitions={"a": {}})
    with pytest.raises(TypeError):
        StateMachine("a", {"a": {}}, persistance=None)  # type: ignore[call-arg]  # misspelt


async def test_states_may_be_named_apart() -> None:
    """`states=` and `initial_state=`: the other spelling of the same."""
    machine = StateMachine(
        states=["open", "shut"],
        initial_state="open",
        transitions={"open": [Transition("shut", "shut")]},
    )

    assert await machine.transition("shut") == "shut"
    assert machine.states == ("open", "shut")
    assert StateMachine(states={"a": {"go": "a"}}, initial_state="a").can_transition("go")


# ─ guards and callbacks ──


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_guard_may_keep_the_machine_where_it_is(is_async: bool) -> None:
    """Sync or async; `GuardRejectedError` is a `StateError`; no callback is called."""

    async def refuse() -> bool:
        return False

    machine = StateMachine(
        "a",
        {"a": {"go": Transition("go", "b", guard=refuse if is_async else lambda: False)}, "b": {}},
        on_exit={"a": lambda: calls("exit")},
    )

    with pytest.raises(GuardRejectedError, match="go") as error:
        await machine.transition("go")

    assert isinstance(error.value, StateError)
    assert (machine.current_state, calls.names) == ("a", [])


async def test_callbacks_come_in_order_with_what_they_ask_for() -> None:
    """on_exit, on_enter, on_transition; (event, state), the state alone, or nothing; sync and async."""

    async def on_transition(event: str, state: str) -> None:
        calls(f"transition {event} {state}")

    machine = StateMachine(
        "a",
        {"a": [Transition("go", "b", guard=lambda: True, on_transition=on_transition)], "b": {}},
        on_exit={"a": lambda: calls("exit")},
        on_enter={"b": lambda state: calls(f"enter {state}")},
    )

    await machine.transition("go")

    assert calls.names == ["exit", "enter b", "transition go b"]


async def test_what_on_exit_raises_changes_nothing_and_what_on_enter_raises_does() -> None:
    """The move is stored between the two."""

    def fail() -> None:
        raise RuntimeError("no")

    leaving = StateMachine("a", {"a": {"go": "b"}, "b": {}}, on_exit={"a": fail})
    with pytest.raises(RuntimeError):
        await leaving.transition("go")
    assert leaving.current_state == "a"

    entering = StateMachine("a", {"a": {"go": "b"}, "b": {}}, on_enter={"b": fail})
    with pytest.raises(RuntimeError):
        await entering.transition("go")
    assert entering.current_state == "b"


async def test_two_transitions_of_one_object_at_once_are_not_both_made() -> None:
    """The second to arrive hears that somebody else was quicker."""

    async def slowly() -> bool:
        await asyncio.sleep(0)
        return True

    machine = StateMachine(
        "a",
        {"a": [Transition("b", "b", guard=slowly), Transition("c", "c", guard=slowly)], "b": {}, "c": {}},
    )

    done = await asyncio.gather(machine.transition("b"), machine.transition("c"), return_exceptions=True)

    assert done[0] == "b"
    assert isinstance(done[1], StateConcurrencyError)
    assert machine.version == 1


# ─ kept machines ──


async def test_objects_of_one_id_are_one_machine(embedded: str) -> None:
    """Whoever comes later finds the state, the version and the story."""
    await OrderStateMachine("order-7").transition("approve")

    other = OrderStateMachine("order-7")
    assert (other.current_state, other.version) == ("pending", 0)  # it has not looked yet
    assert await other.recover() == "approved"
    assert other.version == 1
    assert await other.transition("ship") == "shipped"
    assert story(await OrderStateMachine("order-7").history()) == [
        ("pending", "approve", "approved"),
        ("approved", "ship", "shipped"),
    ]
    assert await OrderStateMachine("order-8").recover() == "pending"


async def test_of_two_that_move_from_one_state_one_is_told(embedded: str) -> None:
    """Compare-and-set: versions in the error, the true state in the machine; the next call starts from there."""
    one, two = OrderStateMachine("order-7"), OrderStateMachine("order-7")
    await one.recover()
    await two.recover()
    await one.transition("cancel")

    with pytest.raises(StateConcurrencyError, match="'cancelled'") as error:
        await two.transition("approve")

    assert (error.value.expected_version, error.value.actual_version) == (0, 1)
    assert (error.value.event, error.value.current_state) == ("approve", "cancelled")
    assert (two.current_state, two.version) == ("cancelled", 1)
    with pytest.raises(StateError, match="leads nowhere"):  # and not by the edge it had in mind before
        await two.transition("ship")
    assert story(await one.history()) == [("pending", "cancel", "cancelled")]


async def test_of_many_at_once_exactly_one_wins(embedded: str) -> None:
    """Each from an object of its own."""
    machines = [OrderStateMachine("order-7") for _ in range(20)]
    for machine in machines:
        await machine.recover()

    done = await asyncio.gather(
        *(machine.transition("approve") for machine in machines), return_exceptions=True
    )

    assert done.count("approved") == 1
    assert sum(isinstance(one, StateConcurrencyError) for one in done) == 19
    assert len(await machines[0].history()) == 1


@pytest.mark.parametrize("dies_in", ["enter", "transition"])
async def test_callbacks_that_a_crash_left_owed_are_run_by_whoever_comes_next(
    embedded: str, dies_in: str
) -> None:
    """At least once, in order, before anything new; by `recover` or by the next transition."""

    def note(name: str, machine_id: str) -> None:
        if calls(f"{name} {machine_id}") == 1 and name == dies_in:
            raise Crash

    def machine(machine_id: str) -> StateMachine:
        return StateMachine(
            "a",
            {
                "a": [Transition("go", "b", on_transition=lambda: note("transition", machine_id))],
                "b": {"back": "a"},
            },
            machine_id=machine_id,
            on_enter={"b": lambda: note("enter", machine_id)},
            on_exit={"b": lambda: note("exit", machine_id)},
        )

    for machine_id in ("recovered", "used"):
        with pytest.raises(Crash):
            await machine(machine_id).transition("go")
        calls.names.clear()
        calls(f"{dies_in} {machine_id}")  # it has died once

        later = machine(machine_id)
        assert await (later.recover() if machine_id == "recovered" else later.transition("back")) in "ab"

        expected = [f"enter {machine_id}", f"transition {machine_id}"]
        assert calls.names[1:] == expected + ([f"exit {machine_id}"] if machine_id == "used" else [])
        calls.names.clear()
        await machine(machine_id).recover()
        assert calls.names == []  # it is written down that they have run


async def test_a_callback_that_raised_is_run_before_anything_new_by_the_same_object_too(
    embedded: str,
) -> None:
    """It is owed, whoever comes next: in order, and none is left out."""

    def flaky() -> None:
        if calls("enter b") == 1:
            raise OSError("not yet")

    machine = StateMachine(
        "a",
        {"a": [Transition("go", "b", on_transition=lambda: calls("transition"))], "b": {"on": "c"}, "c": {}},
        machine_id="m",
        on_enter={"b": flaky, "c": lambda: calls("enter c")},
        on_exit={"b": lambda: calls("exit b")},
    )

    with pytest.raises(OSError, match="not yet"):
        await machine.transition("go")
    assert machine.current_state == "b"
    assert await machine.transition("on") == "c"
    assert calls.names == ["enter b", "enter b", "transition", "exit b", "enter c"]

    calls.names.clear()
    await StateMachine("a", {"a": {}, "b": {}, "c": {}}, machine_id="m").recover()
    assert await machine.recover() == "c"
    assert calls.names == []


async def test_a_move_that_is_overtaken_while_it_runs_what_was_owed_is_told_so(embedded: str) -> None:
    """It was meant for the state from before. What the other one came to owe, and did not live to run, is run in its turn."""

    async def enter_b() -> None:
        if calls("enter b") == 1:
            raise OSError("not yet")
        is_running.set()
        await other

    async def overtake() -> None:
        await is_running.wait()
        with pytest.raises(OSError, match="died"):
            await machine({"c": died}).transition("on")

    def died() -> None:
        raise OSError("died")

    def machine(on_enter: dict[str, Any]) -> StateMachine:
        table = {"a": {"on": "b"}, "b": {"on": "c"}, "c": {"on": "d"}, "d": {}}
        return StateMachine("a", table, machine_id="m", on_enter=on_enter)

    mine = machine({"b": enter_b, "c": lambda: calls("enter c"), "d": lambda: calls("enter d")})
    with pytest.raises(OSError, match="not yet"):
        await mine.transition("on")

    is_running = asyncio.Event()
    other = asyncio.create_task(overtake())
    with pytest.raises(StateConcurrencyError) as error:
        await mine.transition("on")

    assert (error.value.expected_version, error.value.actual_version) == (1, 2)
    assert calls.names == ["enter b", "enter b", "enter c"]
    assert await mine.transition("on") == "d"
    assert calls.names == ["enter b", "enter b", "enter c", "enter d"]


@pytest.mark.parametrize("machine_id", [None, "m"])
async def test_a_callback_may_go_on_to_the_next_state(embedded: str, machine_id: str | None) -> None:
    """Each callback is called once, though the first transition is not over yet when the second begins."""

    async def go_on() -> None:
        calls("enter b")
        await machine.transition("on")

    machine = StateMachine(
        "a",
        {"a": [Transition("go", "b", on_transition=lambda: calls("transition"))], "b": {"on": "c"}, "c": {}},
        machine_id=machine_id,
        on_enter={"b": go_on, "c": lambda: calls("enter c")},
    )

    assert await machine.transition("go") == "c"
    assert calls.names == ["enter b", "enter c", "transition"]
    assert [row.to_state for row in await machine.history()] == ["b", "c"]
    assert await machine.recover() == "c"
    assert calls.names == ["enter b", "enter c", "transition"]


@pytest.mark.parametrize("in_workflow", [False, True])
async def test_a_move_is_told_where_it_led_though_somebody_was_quicker_than_its_callbacks(
    embedded: str, in_workflow: bool
) -> None:
    """Not to where the other one took the machine: two would believe that they had made one move. The next one from there hears of it."""
    table: Any = {"a": {"go": "b"}, "b": {"on": "c"}, "c": {"on": "d"}, "d": {}}

    async def somebody_else() -> None:
        other = StateMachine("a", table, machine_id="m")
        await asyncio.create_task(other.recover(), context=contextvars.Context())
        assert await asyncio.create_task(other.transition("on"), context=contextvars.Context()) == "c"

    async def moving() -> list[str]:
        machine = StateMachine("a", table, machine_id="m", on_enter={"b": somebody_else})
        return [await machine.transition("go")]

    @workflow
    async def moving_in_a_run() -> list[str]:
        return await moving()

    assert await (moving_in_a_run(run_id="r") if in_workflow else moving()) == ["b"]
    seen = await StateMachine("a", table, machine_id="m").history()
    assert [row.to_state for row in seen] == ["b", "c"]


async def test_a_callback_that_failed_in_a_workflow_is_run_before_its_next_transition(embedded: str) -> None:
    """The move stands: the workflow, which did not hear of it, is told the true state first."""

    def flaky() -> None:
        if calls("enter") == 1:
            raise ValueError("for good")

    @workflow
    async def moving() -> list[str]:
        machine = StateMachine(
            "a", {"a": {"go": "b"}, "b": {"on": "c"}, "c": {}}, machine_id="m", on_enter={"b": flaky}
        )
        told = [await machine.recover()]
        for event in ("go", "go", "on"):
            try:
                told.append(await machine.transition(event))
            except (ValueError, StateError) as error:
                told.append(type(error).__name__)
        return told

    assert await moving(run_id="r") == ["a", "ValueError", "StateConcurrencyError", "c"]
    assert calls.names == ["enter", "enter"]


async def test_records_go_to_a_table_of_the_users_naming(embedded: str) -> None:
    """Made at its first use. Only identifiers."""
    one = OrderStateMachine("o", persistence=DatabaseStatePersistence(table_name="orders_state"))
    await one.transition("approve")

    assert await OrderStateMachine("o").recover() == "pending"
    client = await durable.default_client()
    assert len(await client.read_rows("orders_state", "o")) == 1
    assert await client.read_rows("never_used", "o") == []
    for name in ("no table", "x; DROP TABLE run", 'a"b', "", "ü", "x" * 64, 7):
        with pytest.raises(ValueError, match="identifier"):
            DatabaseStatePersistence(table_name=name)  # type: ignore[arg-type]  # one of them


@pytest.mark.stores("sqlite")  # a server has one table for all of them, in which names are data
async def test_a_table_that_holds_something_else_is_left_alone(embedded: str) -> None:
    """The database refuses; nothing is written into it."""
    stranger = OrderStateMachine("o", persistence=DatabaseStatePersistence(table_name="run"))
    with pytest.raises(StoreError):
        await stranger.transition("approve")


async def test_a_provider_is_any_database_of_ours(embedded: str, tmp_path: Any) -> None:
    """A client is one; so its machines live where it is connected to."""
    async with durable.connect(f"sqlite:///{tmp_path / 'other.db'}", durability="off") as client:
        assert isinstance(client, DatabaseProviderProtocol)
        persistence = DatabaseStatePersistence(provider=client)
        assert isinstance(persistence, StatePersistenceProtocol)
        await OrderStateMachine("o", persistence=persistence).transition("approve")
        assert await OrderStateMachine("o", persistence=persistence).recover() == "approved"
    assert await OrderStateMachine("o").recover() == "pending"
    with pytest.raises(TypeError, match="provider"):
        DatabaseStatePersistence(provider="sqlite:///x.db")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="persistence"):
        OrderStateMachine("o", persistence=object())


async def test_memory_is_a_persistence_too() -> None:
    """For tests of programs that keep their machines."""
    persistence = InMemoryStatePersistence()
    await OrderStateMachine("o", persistence=persistence).transition("approve")

    assert await OrderStateMachine("o", persistence=persistence).recover() == "approved"


async def test_a_state_that_todays_code_does_not_have_is_an_error(embedded: str) -> None:
    """Rather than a machine that is nowhere."""
    await StateMachine("a", {"a": {"go": "old"}, "old": {}}, machine_id="m").transition("go")

    with pytest.raises(StateError, match="'old'"):
        await StateMachine("a", {"a": {"go": "new"}, "new": {}}, machine_id="m").recover()


# ─ in runs ──


@workflow
async def handled(machine_id: str | None) -> list[Any]:
    machine = OrderStateMachine(machine_id, on_enter={"approved": lambda: calls("entered")})
    seen: list[Any] = [await machine.recover(), await machine.transition("approve")]
    try:
        await machine.transition("deliver")
    except StateError as error:
        seen.append([error.event, error.current_state])
    seen.append(await machine.transition("ship"))
    return [*seen, machine.version, [row.event for row in await machine.history()]]


@pytest.mark.parametrize("machine_id", [None, "order-7"])
async def test_inside_a_workflow_transitions_are_activities(embedded: str, machine_id: str | None) -> None:
    """Journaled, so a replay does not repeat them; so are `history` and `recover` of a kept machine."""
    expected = ["pending", "approved", ["deliver", "approved"], "shipped", 2, ["approve", "ship"]]

    for _ in range(2):
        assert await handled(machine_id, run_id="r") == expected

    assert calls.names == ["entered"]
    names = [entry.name for entry in (await durable.get_run("r")).journal if entry.kind == "transition"]
    label = machine_id or "state machine"
    kept = [f"{label}/recover", f"{label}/approve", f"{label}/deliver", f"{label}/ship", f"{label}/history"]
    assert names == (kept if machine_id else [f"{label}/approve", f"{label}/ship"])


@workflow
async def overtaken() -> list[Any]:
    machine = OrderStateMachine("order-7")
    await machine.recover()
    await durable.wait_signal("go")
    try:
        await machine.transition("approve")
    except StateConcurrencyError as error:
        return [error.expected_version, error.actual_version, machine.current_state, machine.version]
    return []


async def test_a_workflow_hears_of_somebody_elses_move(embedded: str) -> None:
    """As any caller: the error, and the machine with the true state."""
    handle = await overtaken.start(run_id="r")
    await is_waiting(handle, "signal")
    await OrderStateMachine("order-7").transition("cancel")
    await handle.signal("go")

    assert await handle.result() == [0, 1, "cancelled", 1]


async def test_an_attempt_that_died_after_its_move_was_stored_does_not_move_twice(embedded: str) -> None:
    """Between the record of the machine and that of the run: the next attempt finds its own move, and goes on from there."""

    @workflow
    async def toggled() -> int:
        machine = StateMachine(
            "a",
            {"a": {"go": "b"}, "b": {"go": "a"}},
            machine_id="m",
            on_enter={"b": flaky},
        )
        assert await machine.transition("go") == "b"
        assert await machine.transition("go") == "a"
        return machine.version

    def flaky() -> None:
        if calls("enter") == 1:
            raise OSError("lost")

    assert await toggled(run_id="r") == 2
    assert calls.names == ["enter", "enter"]


async def test_an_activity_that_is_tried_again_finds_its_move(embedded: str) -> None:
    """The same, for a machine that an author's own activity moves."""

    @activity(retry=durable.Retry(initial=0.01, maximum=0.01))
    async def move() -> str:
        state = await StateMachine("a", {"a": {"go": "b"}, "b": {"go": "a"}}, machine_id="m").transition("go")
        if calls("tried") < 3:
            raise OSError("lost")
        return state

    @workflow
    async def moving() -> str:
        return await move()

    assert await moving(run_id="r") == "b"
    assert len(await StateMachine("a", {"a": {}, "b": {}}, machine_id="m").history()) == 1


async def test_an_activity_that_is_tried_again_is_told_where_each_of_its_moves_led(embedded: str) -> None:
    """Not where the machine is by now: what it does next must not depend on the attempt."""
    table: Any = {"a": {"go": "b"}, "b": {"on": "c"}, "c": {}}

    @activity(retry=durable.Retry(initial=0.01, maximum=0.01))
    async def move() -> list[str]:
        machine = StateMachine("a", table, machine_id="m")
        told = [await machine.transition("go"), await machine.transition("on"), machine.current_state]
        if calls("tried") == 1:
            raise OSError("lost")
        return told

    @workflow
    async def moving() -> list[str]:
        return await move()

    assert await moving(run_id="r") == ["b", "c", "c"]
    assert len(await StateMachine("a", table, machine_id="m").history()) == 2


async def test_a_worker_keeps_machines_in_its_own_database(client: durable.Client) -> None:
    """Not in the default one: what an activity does goes to the database of its run."""
    async with running_worker(client, handled):
        handle = await client.start(handled, "order-7", run_id="r")
        await handle.result()

    assert len(await client.read_rows("workflow_state_transitions", "order-7")) == 3  # 2 moves, 1 callback
