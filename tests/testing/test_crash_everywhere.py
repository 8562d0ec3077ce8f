"""`crash_everywhere`: a workflow that comes through everything passes, one step that is not idempotent is named."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable

import pytest

import durable
from durable import (
    Pipeline,
    Retry,
    Signal,
    WorkerLostError,
    activity,
    activity_info,
    all_handlers_finished,
    continue_as_new,
    wait_condition,
    workflow,
)
from durable.errors import DefinitionError
from durable.testing import CrashReport, NotCrashSafeError, crash_everywhere

go = Signal("go", int)


class World:
    """What activities do something to: a bank that deduplicates keys, and a ledger that does not."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.paid: dict[str, int] = {}
        self.ledger: list[int] = []

    def effects(self) -> object:
        return self.paid, self.ledger


world = World()


@activity
async def pay(cents: int) -> int:
    world.paid[activity_info().idempotency_key] = cents
    return cents


@activity
async def write(cents: int) -> int:
    world.ledger.append(cents)
    return cents


@activity
def write_in_a_thread(cents: int) -> int:
    world.ledger.append(cents)
    return cents


@activity
def write_from_a_thread(cents: int) -> Awaitable[int]:
    return write.fn(cents)


@activity(retry=Retry(no_retry=WorkerLostError))
async def write_once(cents: int) -> int:
    world.ledger.append(cents)
    return cents


@workflow
async def careful(times: int) -> int:
    total = await go.wait()
    for cents in range(times):
        total += await pay(cents)
        await asyncio.sleep(86_400)
    return total + sum(await asyncio.gather(pay(100), pay(200)))


@workflow
async def long(times: int) -> int:
    return sum([await pay(cents) for cents in range(times)])


@workflow
async def careless(times: int) -> int:
    for cents in range(times):
        await pay(cents)
    await write(7)
    return await pay(times)


@workflow
async def in_a_thread() -> int:
    return await write_in_a_thread(1) + await pay(2)


@workflow
async def from_a_thread() -> int:
    return await write_from_a_thread(1) + await pay(2)


@workflow
async def side_by_side() -> int:
    return sum(await asyncio.gather(pay(1), write(2), pay(3)))


@workflow
async def never_twice() -> int:
    await pay(1)
    return await write_once(2)


@workflow
async def forgetful() -> int:
    """Takes its decision from something that a new process no longer knows."""
    if not world.paid:
        await pay(1)
    return await pay(2)


@workflow
async def timely() -> str:
    await pay(1)
    return durable.now().isoformat()


@workflow
async def endless() -> None:
    await go.wait()


def crashed(**options: object) -> Callable[..., CrashReport]:
    def crash(*args: object, **more: object) -> CrashReport:
        return crash_everywhere(*args, effects=world.effects, reset=world.reset, **{**options, **more})  # type: ignore[arg-type]

    return crash


crash = crashed()


def test_a_careful_workflow_comes_through_everything() -> None:
    """Deaths, lost replies, lost leases, clocks set wrong, results lost and late: the outcome and the effects stay the same."""
    report = crash(careful, 2, signals=[(go, 5)])

    assert report.findings == ()
    assert report.compared == ("outcome", "effects")
    assert report.trials > 5 * report.commits
    assert report.activities == 4


@workflow
class Desk:
    """Pays for what it is told, in two generations."""

    def __init__(self, read: list[int]) -> None:
        self.read = read

    async def run(self) -> list[int]:
        before = len(self.read)
        await wait_condition(lambda: len(self.read) > before)
        await wait_condition(all_handlers_finished)
        if len(self.read) < 3:
            continue_as_new(self.read)
        return self.read

    @workflow.signal
    async def told(self, cents: int) -> None:
        self.read.append(cents)
        await pay(cents)


@pytest.mark.slow
def test_a_class_that_handles_signals_comes_through_everything() -> None:
    """Each is handled once, in order, whatever happens to whom."""
    report = crash(Desk, [], signals=[(Desk.told, 1), (Desk.told, 2), (go, 0), (Desk.told, 3)])

    assert report.failed == 0
    assert report.trials >= 10


@workflow
class Till:
    """Is called into; each call writes once."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    async def run(self) -> list[int]:
        await wait_condition(lambda: len(self.taken) == 2)
        await wait_condition(all_handlers_finished)
        return self.taken

    @workflow.update
    async def take(self, cents: int) -> str:
        await pay(cents)
        self.taken.append(cents)
        return f"{len(self.taken)} taken"

    @take.validator
    def check(self, cents: int) -> None:
        if cents < 0:
            raise ValueError(cents)


def test_a_class_that_is_called_into_comes_through_everything() -> None:
    """Each call takes effect once, and is answered the same whatever happens to whom."""
    report = crash(Till, updates=[(Till.take, 5), ("take", -1), (Till.take, 7)])

    assert report.failed == 0
    assert report.trials >= 10


def test_a_call_whose_handler_is_not_idempotent_is_found() -> None:
    @workflow
    class Careless:
        async def run(self) -> None:
            await wait_condition(lambda: hasattr(self, "is_over"))
            await wait_condition(all_handlers_finished)

        @workflow.update
        async def take(self, cents: int) -> None:
            await write(cents)
            self.is_over = True

    with pytest.raises(NotCrashSafeError) as found:
        crash(Careless, updates=[(Careless.take, 5)])

    assert {finding.activity for finding in found.value.report.findings} == {"write (call 1)"}


def test_the_step_that_is_not_idempotent_is_found_and_named() -> None:
    """With the place that showed it, and what differs."""
    with pytest.raises(NotCrashSafeError) as found:
        crash(careless, 3)

    (finding,) = found.value.report.findings
    assert finding.activity == "write (call 1)"
    assert re.fullmatch(r"test_crash_everywhere\.py:\d+", finding.source)
    assert finding.what == "effects"
    assert finding.expected.endswith("}, [7])")
    assert finding.found.endswith("}, [7, 7])")
    text = str(found.value)
    assert "activity write (call 1)" in text
    assert "the result of write was lost with its worker, after its effect" in text
    assert "idempotency_key" in text


def test_the_same_seed_makes_the_same_report() -> None:
    told = []
    for _ in range(2):
        with pytest.raises(NotCrashSafeError) as found:
            crash(careless, 1, seed=3, trials=15)
        told.append(str(found.value))

    assert told[0] == told[1]


def test_of_several_side_by_side_the_culprit_is_named() -> None:
    """A crash repeats them all; those whose repetition alone makes no difference are not blamed."""
    with pytest.raises(NotCrashSafeError) as found:
        crash(side_by_side)

    assert {finding.activity for finding in found.value.report.findings} == {"write (call 1)"}


def test_an_activity_in_a_thread_is_found_too() -> None:
    with pytest.raises(NotCrashSafeError) as found:
        crash(in_a_thread)

    assert {finding.activity for finding in found.value.report.findings} == {"write_in_a_thread (call 1)"}


def test_an_awaitable_from_a_thread_is_struck_after_its_effect() -> None:
    """Its result is lost, or late, once it was awaited: not when the function returned it."""
    with pytest.raises(NotCrashSafeError) as found:
        crash(from_a_thread)

    assert {finding.activity for finding in found.value.report.findings} == {"write_from_a_thread (call 1)"}


def test_an_activity_that_is_never_repeated_is_left_alone() -> None:
    """Its policy says so, and it holds: the run fails instead, which is what the author chose."""
    assert crash(never_twice).findings == ()


def test_a_workflow_that_remembers_outside_of_its_journal_is_found() -> None:
    """Replay in the next life asks for something else than the journal holds."""
    with pytest.raises(NotCrashSafeError) as found:
        crash(forgetful)

    assert "cannot be replayed" in str(found.value)


def test_what_differs_by_itself_is_not_compared() -> None:
    """Two undisturbed runs at different times tell what depends on time."""
    assert crash(timely).compared == ("effects",)


def test_a_pattern_is_tried_by_its_workflow() -> None:
    """Its steps are activities like any other."""

    async def first(state: dict[str, object]) -> str:
        world.paid[activity_info().idempotency_key] = 1
        return "first"

    async def second(state: dict[str, object]) -> str:
        world.ledger.append(2)
        return "second"

    assert crash(Pipeline("steady", [first]), {}).activities == 1
    with pytest.raises(NotCrashSafeError) as found:
        crash(Pipeline("shaky", [first, second]), {})
    assert {finding.activity for finding in found.value.report.findings} == {"second (call 1)"}


def test_effects_must_be_comparable() -> None:
    with pytest.raises(DefinitionError, match="differ although nothing happened"):
        crash_everywhere(side_by_side, effects=world.effects)  # without a reset they pile up


def test_a_workflow_that_waits_for_a_signal_is_told_of() -> None:
    with pytest.raises(DefinitionError, match=r'signal "go".*give crash_everywhere the signals='):
        crash_everywhere(endless)


def test_mocks_stand_for_activities() -> None:
    """So that no test reaches the bank; the mock is held to the same promise."""
    with pytest.raises(NotCrashSafeError) as found:
        crash(careless, 1, mocks={write: lambda cents: world.ledger.append(cents), pay: lambda cents: cents})

    assert {finding.activity for finding in found.value.report.findings} == {"write (call 1)"}


async def test_it_is_called_from_a_plain_function() -> None:
    with pytest.raises(DefinitionError, match="call it from a plain function"):
        crash_everywhere(careful, 1)


@pytest.mark.slow
def test_fifty_steps_take_less_than_ten_seconds() -> None:
    """Of a processor: on a machine with nothing else to do that is the time, too. Allow for a slower one."""
    since = time.process_time()
    report = crash(long, 50)

    assert (report.activities, report.trials) == (50, 250)
    assert time.process_time() - since < 25
