"""Updates, in the engine: who is asked first, what is answered when, what an end leaves, and that a replay does the same and asks no validator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    DefinitionError,
    NonDeterminismError,
    UndecodableError,
    WorkflowGuardError,
    all_handlers_finished,
    continue_as_new,
    on_signal,
    on_update,
    wait_condition,
    workflow,
    workflow_of,
)
from durable.journal.events import ContinuedAsNew, Failed, Started, UpdateAnswered
from durable.journal.reopening import delivered_again
from tests.support.engine_harness import EngineRun, an_activity


@an_activity
async def work(x: int) -> int:
    return 10 * x


class Broken(Exception):
    pass


@workflow
class Cart:
    """A list of numbers that callers add to."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.asked: list[int] = []

    async def run(self) -> list[int]:
        await wait_condition(lambda: 0 in self.numbers)
        await wait_condition(all_handlers_finished)
        return self.numbers

    @workflow.update
    def add(self, number: int) -> int:
        self.numbers.append(number)
        return len(self.numbers)

    @add.validator
    def check(self, number: int) -> None:
        self.asked.append(number)
        if number < 0:
            raise ValueError(f"{number} is negative")
        if number in self.numbers:
            raise KeyError(number)

    @workflow.update
    async def work_on(self, number: int) -> int:
        self.numbers.append(await work(number))
        if number == 13:
            raise Broken("thirteen")
        return self.numbers[-1]

    @workflow.update(name="size")
    def count(self) -> int:
        return len(self.numbers)

    @workflow.signal
    def tell(self, number: int) -> None:
        self.numbers.append(number)


def a_cart(early: int = 0) -> EngineRun:
    run = EngineRun(workflow_of(Cart).definition, start=False)
    run.feed(Started(at=run.now_us, seed=1, early=early))
    return run


def checked(run: EngineRun) -> EngineRun:
    """Replay what was recorded, evict it all, and return the run."""
    run.check_replay().evict()
    run.instance.evict()
    return run


def test_effect_and_answer_are_of_one_activation() -> None:
    """The answer is a command of the event that led to it, also where the handler had to wait."""
    run = a_cart()
    at_once = run.update("add", 5, msg=1)
    run.update("work_on", 2, msg=2)
    later = run.perform(2)  # operation 1 is the condition

    assert [type(one) for one in at_once] == [UpdateAnswered]
    assert [type(one) for one in later] == [UpdateAnswered]
    assert run.answers() == [(1, "completed", 1), (2, "completed", 20)]
    checked(run)


def test_a_refused_update_leaves_two_entries_and_nothing_else() -> None:
    """The validator is asked before the handler, with what there is now."""
    run = a_cart()
    run.update("add", 5, msg=1)
    refused = run.update("add", 5, msg=2)
    run.update("add", -1, msg=3)

    assert run.answers() == [(1, "completed", 1), (2, "rejected", "5"), (3, "rejected", "-1 is negative")]
    assert [type(one) for one in refused] == [UpdateAnswered]
    assert run.instance.open_handlers == 0
    checked(run)


def test_no_replay_asks_a_validator() -> None:
    """What the journal let in is in, and what it refused is refused, whatever today's validator says."""
    seen: list[int] = []

    def a_workflow(limit: int) -> Callable[[], Any]:
        async def counts() -> None:
            numbers: list[int] = []

            def add(number: int) -> int:
                numbers.append(number)
                return len(numbers)

            def check(number: int) -> None:
                seen.append(number)
                if number > limit:
                    raise ValueError("too large")

            on_update("add", add, check)
            await wait_condition(lambda: len(numbers) == 3)

        return counts

    run = EngineRun(a_workflow(10))
    run.update("add", 5, msg=1)
    run.update("add", 50, msg=2)
    run.update("add", 6, msg=3)
    assert run.answers() == [(1, "completed", 1), (2, "rejected", "too large"), (3, "completed", 2)]
    seen.clear()

    rebuilt = run.replay(a_workflow(1))  # refuses all of them today

    assert seen == []
    assert rebuilt.warnings == []
    run.adopt(rebuilt)
    run.update("add", 2, msg=4)
    assert run.answers()[-1] == (4, "rejected", "too large")
    assert seen == [2]
    run.instance.evict()


def test_what_a_handler_raises_is_the_callers_and_not_the_runs() -> None:
    """Also the failure of an activity, with whose it was; the run goes on."""

    @an_activity
    async def breaks() -> None:
        raise Broken("activity")

    async def goes_on() -> str:
        async def by_activity() -> None:
            await breaks()

        def stops() -> None:
            continue_as_new()

        def gives_up() -> None:
            raise asyncio.CancelledError

        def exits() -> None:
            raise SystemExit(3)

        def unstorable() -> Any:
            return object()

        for handler in (by_activity, stops, gives_up, exits, unstorable):
            on_update(handler.__name__, handler)
        await durable.sleep(5)
        return "well"

    run = EngineRun(goes_on)
    for msg, name in enumerate(("by_activity", "stops", "gives_up", "exits", "unstorable"), 1):
        run.update(name, msg=msg)
    run.drive()

    assert run.result == "well"
    told = {msg: (how, text) for msg, how, text in run.answers()}
    assert {how for how, _ in told.values()} == {"failed"}
    assert told[1][1] == "activity"
    assert "a handler cannot continue as new" in told[2][1]
    assert told[4][1] == "3"
    (failure,) = [e.failure for e in run.entries() if isinstance(e, UpdateAnswered) and e.msg == 1]
    assert failure is not None
    assert failure.activity == "breaks"
    checked(run)


def test_updates_and_signals_begin_in_the_order_of_arrival_before_the_run_goes_on() -> None:
    """Early ones, too: they see the object as `__init__` made it."""
    run = a_cart(early=4)
    run.update("add", 1, msg=1)
    run.signal("tell", 2, msg=2)
    run.update("nosuch", msg=3)
    assert run.commands() == []  # `run` has not begun
    run.update("add", 3, msg=4)
    run.signal("tell", 0, msg=5)

    assert run.result == [1, 2, 3, 0]
    assert [how for _, how, _ in run.answers()] == ["completed", "rejected", "completed"]
    checked(run)


def test_a_class_refuses_what_it_takes_no_updates_of() -> None:
    """It says what is near; a value that does not fit is refused as well: neither stops the run."""
    run = a_cart()
    run.update("ad", 1, msg=1)
    run.update("add", "many", msg=2)
    run.update("size", 1, msg=3)
    run.update("size", msg=4)

    texts = {msg: text for msg, _, text in run.answers()}
    assert "takes no update 'ad' (did you mean 'add'?)" in texts[1]
    assert "the value of update 'add' (message 2): expected `int`" in texts[2]
    assert [how for _, how, _ in run.answers()] == ["rejected", "rejected", "rejected", "completed"]
    checked(run)


def test_a_function_keeps_updates_until_it_takes_them() -> None:
    """In order; the validator is asked then, and sees what those before have done."""

    async def late() -> list[int]:
        numbers: list[int] = []

        def add(number: int) -> int:
            numbers.append(number)
            return len(numbers)

        def check(number: int) -> None:
            if number in numbers:
                raise ValueError("twice")

        await durable.sleep(1)
        on_update("add", add, check)
        await durable.sleep(1)
        return numbers

    run = EngineRun(late)
    for msg, number in enumerate((5, 6, 5), 1):
        run.update("add", number, msg=msg)
    assert run.answers() == []
    run.update("other", msg=4)
    run.drive()

    assert run.result == [5, 6]
    assert run.answers() == [
        (1, "completed", 1),
        (2, "completed", 2),
        (3, "rejected", "twice"),
        (4, "given_up", None),
    ]
    checked(run)


@pytest.mark.parametrize("end", ["returns", "raises", "cancelled"])
def test_an_end_gives_up_what_is_not_answered(end: str) -> None:
    """Begun or not, in the order of sending; the answer is in the activation of the end."""

    async def ends() -> None:
        async def slow() -> None:
            await durable.sleep(3600)

        on_update("slow", slow)
        on_signal("end", lambda: None)
        if end == "cancelled":
            await asyncio.Event().wait()
        await durable.sleep(1)
        if end == "raises":
            raise Broken

    run = EngineRun(ends)
    run.update("kept", msg=1)
    run.update("slow", msg=2)
    if end == "cancelled":
        run.cancel(msg=3)
    else:
        run.fire()

    assert run.instance.end is not None
    assert run.answers() == [(1, "given_up", None), (2, "given_up", None)]
    checked(run)


def test_a_next_generation_is_left_what_was_not_begun_with() -> None:
    """What was begun with is given up."""

    async def goes_on() -> None:
        async def slow() -> None:
            await durable.sleep(3600)

        on_update("slow", slow)
        await durable.sleep(1)
        continue_as_new()

    run = EngineRun(goes_on)
    run.update("slow", msg=1)
    run.update("kept", msg=2)
    run.fire()

    assert isinstance(run.instance.end, ContinuedAsNew)
    assert [one.msg for one in run.instance.unread()] == [2]
    assert run.answers() == [(1, "given_up", None)]
    checked(run)


def test_a_workflow_that_is_tried_again_gives_up_nothing() -> None:
    """Those that were refused stay so; the others are handled again, and are not asked about again."""

    @workflow(retries=1, retry_delay=0)
    class Tries:
        async def run(self) -> None:
            await work(1)

        @workflow.update
        async def slow(self) -> None:
            await durable.sleep(3600)

        @workflow.update
        def quick(self, number: int) -> int:
            return number

        @quick.validator
        def check(self, number: int) -> None:
            assert number

    run = EngineRun(workflow_of(Tries).definition)
    run.update("slow", msg=1)
    run.update("quick", 2, msg=2)
    run.update("quick", 0, msg=3)
    run.fail(1, Broken())

    assert isinstance(run.instance.end, Failed)
    assert [(msg, how) for msg, how, _ in run.answers()] == [(2, "completed"), (3, "rejected")]
    again = delivered_again(run.entries(), run.instance.begun_updates())
    assert [(one.msg, one.accepted) for one in again] == [(1, True), (2, True)]  # type: ignore[union-attr]
    checked(run)


def test_what_an_earlier_life_let_in_is_not_asked_about_again() -> None:
    run = a_cart()
    run.update("add", -7, msg=1, accepted=True)

    assert run.answers() == [(1, "completed", 1)]
    checked(run)


def test_another_result_today_is_a_warning() -> None:
    """The caller was told what the journal holds."""

    def answers(result: int) -> Callable[[], Any]:
        async def workflow() -> None:
            on_update("ask", lambda: result)
            await durable.sleep(1)

        return workflow

    run = EngineRun(answers(1))
    run.update("ask", msg=1)

    rebuilt = run.replay(answers(2))
    assert len(rebuilt.warnings) == 1
    assert "answer to update ask (message 1) would be another one today" in rebuilt.warnings[0]
    rebuilt.evict()
    run.instance.evict()


def test_a_handler_that_is_gone_does_not_fit_the_journal() -> None:
    """An update that was answered must be answered in a replay."""

    async def takes() -> None:
        on_update("ask", lambda: 1)
        await durable.sleep(1)

    async def takes_not() -> None:
        await durable.sleep(1)

    run = EngineRun(takes)
    run.update("ask", msg=1)

    error = run.replay_error(takes_not)
    assert "the journal holds  answer to update ask (message 1): completed" in str(error)
    assert error.expected == "answer to update ask (message 1)"
    run.instance.evict()


def test_a_type_that_no_longer_takes_what_was_let_in_does_not_fit_the_journal() -> None:
    def takes(hint: type) -> Callable[[], Any]:
        async def workflow() -> None:
            def ask(value) -> None: ...  # type: ignore[no-untyped-def]

            ask.__annotations__["value"] = hint
            on_update("ask", ask)
            await durable.sleep(1)

        return workflow

    run = EngineRun(takes(int))
    run.update("ask", 7, msg=1)

    with pytest.raises(UndecodableError, match=r"the value of update 'ask' \(message 1\)"):
        run.replay(takes(str))
    run.instance.evict()


ASKS: dict[str, Callable[[], object]] = {
    "activity": lambda: work(1),
    "chance": durable.random,
    "uuid": durable.uuid4,
    "note": lambda: durable.note("x", "skipped"),
    "patch": lambda: durable.patched("x"),
    "signal handler": lambda: on_signal("x", lambda: None),
    "update handler": lambda: on_update("x", lambda: None),
    "continue": lambda: continue_as_new(),
    "task": lambda: asyncio.create_task(asyncio.sleep(1)),
    "timer": lambda: asyncio.get_running_loop().call_later(1, print),
}


@pytest.mark.filterwarnings("ignore:coroutine 'sleep' was never awaited")
@pytest.mark.parametrize("what", ASKS)
def test_a_validator_that_asks_for_something_refuses_the_update(what: str) -> None:
    """Nothing of it is in the run, so that a replay, which does not ask it, comes to the same."""
    swallowed: list[BaseException] = []

    async def run_it() -> float:
        def check() -> None:
            try:
                ASKS[what]()
            except BaseException as error:
                swallowed.append(error)
                raise

        on_update("ask", lambda: None, check)
        await durable.sleep(1)
        return durable.random()

    run = EngineRun(run_it)
    run.update("ask", msg=1)
    assert isinstance(swallowed[0], DefinitionError)
    assert "a validator only looks" in str(swallowed[0])
    assert run.answers()[0][1] == "rejected"
    run.drive()

    checked(run)


def test_a_validator_may_look() -> None:
    """At the run's time and at who it is."""
    seen: list[object] = []

    async def run_it() -> None:
        def check() -> None:
            seen.extend((durable.now(), durable.info().run_id, durable.is_replaying()))

        on_update("ask", lambda: None, check)
        await durable.sleep(1)

    run = EngineRun(run_it)
    run.update("ask", msg=1)

    assert seen[1:] == ["run-1", False]
    assert run.answers() == [(1, "completed", None)]
    checked(run)


def test_a_validator_that_wakes_a_part_of_the_run_stops_it() -> None:
    """That cannot be taken back, and no replay would repeat it."""

    async def run_it() -> None:
        event = asyncio.Event()
        on_update("ask", lambda: None, event.set)
        await event.wait()

    run = EngineRun(run_it)
    with pytest.raises(WorkflowGuardError, match="began something in the run"):
        run.update("ask", msg=1)
    run.instance.evict()


def test_a_run_is_evicted_with_open_updates() -> None:
    """Nothing of them is answered."""
    run = a_cart()
    run.update("work_on", 1, msg=1)
    run.instance.evict()

    assert run.answers() == []
    assert run.instance.activities == {}


@workflow
class Busy:
    """Updates of every kind beside signals and a body that works."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds
        self.seen: list[Any] = []

    async def run(self) -> list[Any]:
        for number in range(self.rounds):
            self.seen.append(["worked", await work(number)])
            await durable.sleep(0.5)
        await wait_condition(lambda: "stop" in self.seen)
        await wait_condition(all_handlers_finished)
        return self.seen

    @workflow.signal
    def note(self, text: str) -> None:
        self.seen.append(text)

    @workflow.update
    async def slow(self, number: int) -> int:
        self.seen.append(["begun", number])
        await durable.sleep(number / 10)
        if number == 3:
            raise Broken("three")
        self.seen.append(await work(number))
        return len(self.seen)

    @slow.validator
    def is_new(self, number: int) -> None:
        if ["begun", number] in self.seen:
            raise ValueError("known")


@pytest.mark.parametrize("seed", range(60))
def test_a_replay_at_any_point_goes_on_in_the_same_way(seed: int) -> None:
    """Whatever comes between; live, and rebuilt from the journal now and then."""
    random = Random(seed)
    run = EngineRun(workflow_of(Busy).definition, 3)
    for msg in range(1, 30):
        if random.random() < 0.3:
            run.adopt(run.replay())
        choice = random.randrange(4)
        if choice == 0:
            run.update("slow", random.randrange(6), msg=msg)
        elif choice == 1:
            run.signal("note", f"note {msg}", msg=msg)
        elif choice == 2 and run.instance.activities:
            run.perform(random.choice(list(run.instance.activities)))
        elif run.instance.timers:
            run.fire()
    run.signal("note", "stop", msg=99)
    run.drive()

    received = [one for one in run.trace() if one == "update_received"]
    answers = run.answers()
    assert len(answers) == len(received)
    assert {how for _, how, _ in answers} <= {"completed", "failed", "rejected"}
    begun = sum(one[0] == "begun" for one in run.result if isinstance(one, list))
    assert begun == sum(how != "rejected" for _, how, _ in answers)
    checked(run)


def test_a_journal_that_refuses_what_it_answered_is_damaged() -> None:
    """The answers of a replay are those of the journal, one each."""
    run = a_cart()
    run.update("add", 5, msg=1)
    turn, (event, answer) = run.journal[-1]
    run.journal[-1] = (turn, [event, msgspec.structs.replace(answer, msg=2)])

    with pytest.raises(NonDeterminismError, match="answer to update add"):
        run.replay()
    run.instance.evict()
