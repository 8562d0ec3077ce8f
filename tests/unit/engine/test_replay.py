"""Replay against changed code: what agrees, what warns, what parks, and what the error says (P25)."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from durable.errors import NonDeterminismError, UndecodableError
from durable.journal.events import ActivityCompleted, Started
from durable.journal.turns import Activated
from tests.support.engine_harness import EngineRun, an_activity, here, next_signal, until


@an_activity
async def charge(x: int) -> int:
    return x


@an_activity
async def refund(x: int) -> int:
    return -x


def recorded(*args: int) -> EngineRun:
    """A run whose first activation scheduled `charge` for each of the arguments."""

    async def original() -> list[int]:
        return await asyncio.gather(*(charge(x) for x in args))

    return EngineRun(original)


def test_shuffled_siblings_agree() -> None:
    """The order of issue within one activation is not compared; each call gets its own result."""

    async def original() -> list[int]:
        return await asyncio.gather(charge(1), charge(2), refund(3))

    async def shuffled() -> list[int]:
        c, b, a = await asyncio.gather(refund(3), charge(2), charge(1))
        return [a, b, c]

    run = EngineRun(original).drive()
    instance = run.replay(shuffled)

    assert instance.warnings == []
    assert instance.end == run.instance.end
    instance.evict()


def test_shuffled_siblings_keep_their_keys() -> None:
    """`#n` is the journal's, so that an idempotency key never moves to another call (P6)."""
    run = recorded(1, 2)

    async def shuffled() -> list[int]:
        return await asyncio.gather(charge(2), charge(1))

    instance = run.replay(shuffled)

    assert {c.key: c.args for c in instance.activities.values()} == {
        "run-1@1/charge#1": b'{"x":1}',
        "run-1@1/charge#2": b'{"x":2}',
    }
    instance.evict()


def test_one_changed_argument_warns() -> None:
    """A lone leftover pair of one name matches; the journal's arguments are used."""
    run = recorded(1, 2)

    async def changed() -> list[int]:
        return await asyncio.gather(charge(1), charge(20))

    instance = run.replay(changed)

    assert len(instance.warnings) == 1
    assert "charge" in instance.warnings[0]
    assert "test_replay.py" in instance.warnings[0]
    assert [c.args for c in instance.activities.values()] == [b'{"x":1}', b'{"x":2}']
    instance.evict()


def test_two_changed_arguments_park() -> None:
    """Which of two is which cannot be known."""
    run = recorded(1, 2)

    async def changed() -> list[int]:
        return await asyncio.gather(charge(10), charge(20))

    error = run.replay_error(changed)

    assert (error.expected, error.got) == ("charge", "charge")


def test_a_removed_call_parks() -> None:
    """The journal holds a call that nobody asks for any more."""
    run = recorded(1, 2)

    async def removed() -> list[int]:
        return [await charge(1)]

    error = run.replay_error(removed)

    assert (error.expected, error.got) == ("charge", None)
    assert "nothing more" in str(error)


def test_an_added_call_parks() -> None:
    """Today's code asks for a call that the journal does not hold."""
    run = recorded(1)

    async def added() -> list[int]:
        return await asyncio.gather(charge(1), refund(1))

    error = run.replay_error(added)

    assert (error.expected, error.got) == (None, "refund")


def test_an_error_names_both_lines_and_the_way_out() -> None:
    """Run, event, the recorded operation and its line, today's operation, its line and its text, and the guard."""
    run = recorded(1)

    async def renamed() -> int:
        return await refund(1)  # the line under suspicion

    error = run.replay_error(renamed)
    text = str(error)

    assert (error.expected, error.got) == ("charge", "refund")
    assert (error.run_id, error.event) == ("run-1", 1)
    line = renamed.__code__.co_firstlineno + 1
    assert "'run-1'" in text
    assert "event 1 (started)" in text
    assert "activity 'charge' (call 1), asked for at engine/test_replay.py:" in text
    assert f"activity 'refund', asked for at engine/test_replay.py:{line}" in text
    assert "return await refund(1)  # the line under suspicion" in text
    assert 'if durable.patched("...")' in text
    assert "recorded under" not in text


def test_an_error_names_what_else_differs() -> None:
    """Another Python, engine or hash seed than the recorded one is part of the explanation."""
    run = recorded(1)
    (first,) = run.recorded()
    assert isinstance(first.event, Started)
    event = msgspec.structs.replace(first.event, python="2.7", hash_seed="cafe", engine=99)

    async def renamed() -> int:
        return await refund(1)

    instance = EngineRun(renamed, start=False).instance
    with pytest.raises(NonDeterminismError) as caught:
        instance.replay(msgspec.structs.replace(first, event=event))
    instance.evict()

    assert "Python 2.7" in str(caught.value)
    assert "engine version 99" in str(caught.value)
    assert "PYTHONHASHSEED" in str(caught.value)


def test_a_changed_timer_warns_and_keeps_its_recorded_due_time() -> None:
    """Durations are compared as arguments are."""

    async def original() -> str:
        await asyncio.sleep(10)
        return "slept"

    async def changed() -> str:
        await asyncio.sleep(20)
        return "slept"

    run = EngineRun(original)
    instance = run.replay(changed)

    assert len(instance.warnings) == 1
    assert instance.timers == run.instance.timers
    run.adopt(instance)
    run.fire()
    assert run.result == "slept"


def test_a_timer_in_place_of_a_signal_parks() -> None:
    """Kinds are named as people would."""

    async def original() -> Any:
        return await next_signal("approve")

    async def changed() -> None:
        await asyncio.sleep(1)

    error = EngineRun(original).replay_error(changed)

    assert (error.expected, error.got) == ("wait for signal 'approve'", "timer")


def test_a_condition_that_is_no_longer_waited_for_parks() -> None:
    async def original() -> None:
        await until(lambda: False)

    async def changed() -> int:
        return 1

    error = EngineRun(original).replay_error(changed)

    assert (error.expected, error.got) == ("condition", None)


def test_code_that_ends_where_its_journal_asks_for_more_parks() -> None:
    """A removed tail of the workflow is found at the event after which it was asked for."""

    async def original() -> Any:
        await next_signal("go")
        await charge(1)

    async def changed() -> None:
        await next_signal("go")

    run = EngineRun(original)
    run.signal("go")

    error = run.replay_error(changed)
    assert (error.expected, error.got, error.event) == ("charge", None, 3)


def test_code_that_ended_is_not_fed_further_recorded_events() -> None:
    async def original() -> Any:
        await asyncio.get_running_loop().create_future()

    async def changed() -> None:
        return None

    run = EngineRun(original)
    run.signal("any")

    error = run.replay_error(changed)
    assert error.got is None
    assert "it ends before this event" in str(error)


def test_a_cancellation_type_that_now_waits_parks_but_the_reverse_goes_on() -> None:
    """Waiting for an outcome that will never come would hang the run; an outcome nobody awaits is harmless."""

    def cancelling(how: str) -> Any:
        activity = charge.options(cancellation=how)

        async def workflow() -> str:
            try:
                async with asyncio.timeout(1):
                    await activity(1)
            except TimeoutError:
                return "late"
            return "done"

        return workflow

    tried, waited = EngineRun(cancelling("try")), EngineRun(cancelling("wait"))
    tried.fire()
    waited.fire()

    error = tried.replay_error(cancelling("wait"))
    assert (error.expected, error.got) == ("end of charge", "end of charge")
    assert "cancelled with type 'wait'" in str(error)
    instance = waited.replay(cancelling("try"))
    assert instance.activities[2].closing == "wait"
    instance.evict()


def test_after_replay_the_run_goes_on_live() -> None:
    """Numbers and ordinals continue above the journal's."""

    async def workflow() -> int:
        total = 0
        for x in range(6):
            total += await charge(x)
        return total

    run = EngineRun(workflow)
    for _ in range(3):
        run.perform(next(iter(run.instance.activities)))
    run.adopt(run.check_replay())
    run.drive()

    assert run.result == 15
    assert [c.key for c in run.instance.activities.values()] == []
    assert run.trace()[-3:] == ['  6 charge#6 {"x":5}', "activity_completed 6", "completed 15"]
    run.check_replay().evict()


def test_ordinals_count_per_name_and_keys_carry_run_and_epoch() -> None:
    """`run_id@epoch/name#n`."""

    async def workflow() -> None:
        await asyncio.gather(charge(1), refund(1), charge(2))

    run = EngineRun(workflow)

    assert [c.key for c in run.instance.activities.values()] == [
        "run-1@1/charge#1",
        "run-1@1/refund#1",
        "run-1@1/charge#2",
    ]


def test_a_parked_instance_takes_no_more_events_but_can_be_evicted() -> None:
    run = recorded(1)

    async def renamed() -> int:
        return await refund(1)

    other = EngineRun(renamed, start=False).instance
    with pytest.raises(NonDeterminismError):
        other.replay(run.recorded()[0])
    other.evict()


def test_input_and_results_that_do_not_decode_are_faults_of_the_platform() -> None:
    """Good code resumes such a run: the journal is untouched, and the author's code sees nothing of it."""

    async def typed(x: int) -> int:
        return await charge(x)

    run = EngineRun(typed, 1)
    run.input = b'{"x": "text"}'
    instance = run.new_instance()
    with pytest.raises(UndecodableError) as caught:
        instance.activate(Started(at=1, seed=1), turn=1, index=0)
    assert caught.value.run_id == "run-1"
    instance.evict()

    with pytest.raises(UndecodableError, match=r"the recorded result of 'charge': expected `int`"):
        run.complete(1, "text")
    run.instance.evict()


def test_a_decoded_result_is_taken_as_it_is() -> None:
    """The driver may have decoded the result already."""

    async def workflow() -> int:
        return await charge(1)

    run = EngineRun(workflow)
    run.feed(ActivityCompleted(op=1, at=run.later(), result=msgspec.Raw(b'"ignored"')), value=42)

    assert run.result == 42


def test_replayed_activations_say_that_they_are() -> None:
    """`is_replaying` is true in replay only."""
    seen: list[bool] = []

    async def workflow() -> None:
        seen.append(here().is_replaying)
        await charge(1)
        seen.append(here().is_replaying)

    run = EngineRun(workflow)
    instance = run.replay()
    instance.activate(ActivityCompleted(op=1, at=run.later(), result=msgspec.Raw(b"1")), turn=2, index=0)

    assert seen == [False, True, False]
    assert isinstance(run.recorded()[0], Activated)
