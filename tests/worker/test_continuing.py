"""Continue-as-new: one run, generation after generation; what was sent to it is read once, by whichever asks for it first."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from durable import (
    ArgumentsError,
    Client,
    DefinitionError,
    EndlessContinuationError,
    RunConflictError,
    RunHandle,
    RunStatus,
    Signal,
    WorkflowFailedError,
    WorkflowTimeoutError,
    activity,
    activity_info,
    continue_as_new,
    info,
    saga,
    saga_step,
    workflow,
)
from tests.support.workers import Calls, is_released, is_waiting, running_worker, status_is, until

number = Signal("number", int)
other = Signal("other", str)


@activity
async def next_of(value: int) -> int:
    return value + 1


@workflow(name="counts")
async def counts(value: int, until: int) -> list[int]:
    """One activity per generation."""
    value = await next_of(value)
    if value < until:
        continue_as_new(value, until)
    return [value, info().generation]


async def test_a_run_goes_on_under_its_id_with_new_arguments(client: Client) -> None:
    """Each generation is closed as continued, names its own input, and has a journal of its own."""
    async with running_worker(client, counts):
        run = await client.start(counts, 0, 3, run_id="c")

        assert await run.result(60) == [3, 3]
        assert await (await client.get("c@1", counts)).result(60) == [3, 3]

    seen = [await client.describe(f"c@{generation}") for generation in (1, 2, 3)]
    assert [one.status for one in seen] == ["continued", "continued", "completed"]
    assert [one.input for one in seen] == [
        {"value": 0, "until": 3},
        {"value": 1, "until": 3},
        {"value": 2, "until": 3},
    ]
    assert [len(one.journal) for one in seen] == [1, 1, 1]
    assert seen[0].reason == "it continued as new"
    assert [one.attempts for one in seen] == [1, 1, 1]


async def test_each_generation_has_idempotency_keys_of_its_own(client: Client) -> None:
    """Else the payment provider takes next month's payment for this month's (P6)."""
    keys: list[str] = []

    @activity
    async def pay() -> None:
        keys.append(activity_info().idempotency_key)

    @workflow
    async def monthly(month: int) -> None:
        await pay()
        if month < 3:
            continue_as_new(month + 1)

    async with running_worker(client, monthly):
        await (await client.start(monthly, 1, run_id="m")).result(60)
    assert keys == ["m@1/pay#1", "m@2/pay#1", "m@3/pay#1"]


@workflow
async def reads_three(read: list[int], rounds: int) -> list[int]:
    """Reads three numbers a generation."""
    for _ in range(3):
        read = [*read, await number.wait()]
    if rounds > 1:
        continue_as_new(read, rounds - 1)
    return read


async def test_signals_that_nobody_read_move_to_the_next_generation(client: Client) -> None:
    """Whether they are buffered in the old one or still in the inbox: in the order of sending, each once."""
    async with running_worker(client, reads_three):
        run = await client.start(reads_three, [], 10)
        for value in range(30):
            await run.signal(number, value)

        assert await run.result(60) == list(range(30))


async def test_signals_sent_while_a_run_continues_are_read_once(client: Client) -> None:
    """Whatever they race with: a close that does not know of a message is refused, and decided again."""
    async with running_worker(client, reads_three, warm_us=0):
        run = await client.start(reads_three, [], 20)
        for value in range(60):
            await run.signal(number, value)
            if value % 7 == 0:
                await asyncio.sleep(0.002)

        assert await run.result(60) == list(range(60))


async def test_a_signal_among_others_that_were_read_moves_alone(client: Client) -> None:
    """Those that were read do not come again; the next generation can wait, and be released, as any other."""

    @workflow
    async def reads(generation: int) -> list[object]:
        if generation == 1:
            got = await other.wait()
            assert got == "now"
            continue_as_new(2)
        first = await number.wait()
        return [first, await number.wait(), info().generation]

    async with running_worker(client, reads, warm_us=0):
        run = await client.start(reads, 1)
        await run.signal(number, 1)  # buffered: nobody waits for it yet
        await run.signal(other, "now")
        await is_released(run)
        await run.signal(number, 2)

        assert await run.result(60) == [1, 2, 2]


async def _generation(run: RunHandle[object], generation: int) -> bool:
    return (await run.describe()).generation >= generation


@pytest.mark.parametrize("how", ["gather", "TaskGroup", "anyio", "finally"])
async def test_it_leaves_whatever_it_is_in(client: Client, how: str) -> None:
    """It passes like an exception; what a task group cancels on the way does not hide it."""
    calls = Calls()

    async def moves() -> None:
        await next_of(1)
        continue_as_new(how, 2)

    @workflow
    async def nests(how: str, generation: int) -> int:
        if generation == 2:
            return generation
        if how == "gather":
            await asyncio.gather(moves(), asyncio.sleep(3600))
        elif how == "TaskGroup":
            async with asyncio.TaskGroup() as group:
                group.create_task(moves())
                group.create_task(asyncio.sleep(3600))
        elif how == "anyio":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(moves)
                tasks.start_soon(asyncio.sleep, 3600)
        else:
            try:
                await moves()
            finally:
                calls("cleaned")
                await next_of(2)
        raise AssertionError("not left")

    async with running_worker(client, nests):
        run = await client.start(nests, how, 1)
        assert await run.result(60) == 2
    assert calls.of("cleaned") == (how == "finally")


async def test_activities_of_a_closed_generation_are_stopped_and_not_heard(client: Client) -> None:
    """The next one begins with nothing open."""
    stopped = asyncio.Event()
    started = asyncio.Event()

    @activity
    async def waits() -> None:
        started.set()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    @workflow
    async def leaves(generation: int) -> int:
        if generation == 1:
            task = asyncio.ensure_future(waits())
            await number.wait()
            assert not task.done()
            continue_as_new(2)
        return await next_of(1)

    async with running_worker(client, leaves):
        run = await client.start(leaves, 1)
        await started.wait()
        await run.signal(number, 0)

        assert await run.result(60) == 2
        await stopped.wait()


async def test_arguments_are_checked_like_those_of_a_start(client: Client) -> None:
    """Nothing is opened that could not be read."""

    @workflow
    async def misfits(values: list[int]) -> None:
        await next_of(1)
        continue_as_new(["three"])

    async with running_worker(client, misfits):
        run = await client.start(misfits, [1], run_id="m")
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, ArgumentsError)
    assert "values" in str(failed.value.__cause__)
    assert (await run.describe()).generation == 1


async def test_outside_of_a_workflow_it_is_refused() -> None:
    """There is nothing that it could end."""
    with pytest.raises(DefinitionError, match="only inside a workflow"):
        continue_as_new(1)


@pytest.mark.parametrize("where", ["block", "body"])
async def test_in_the_middle_of_a_saga_it_is_refused_and_the_saga_undone(client: Client, where: str) -> None:
    """In the next generation nobody could undo what was done."""
    calls = Calls()

    async def unbook() -> None:
        calls("unbooked")

    @saga_step(compensation=unbook)
    async def books() -> None:
        calls("booked")

    @workflow
    async def travels(where: str) -> None:
        if where == "block":
            async with saga():
                await books()
                continue_as_new(where)
        await books()
        continue_as_new(where)

    async with running_worker(client, travels):
        with pytest.raises(WorkflowFailedError):
            await (await client.start(travels, where)).result(60)
    assert calls.names == ["booked", "unbooked"]


async def test_after_a_saga_has_ended_a_run_may_continue(client: Client) -> None:
    """Its steps are final then."""

    async def unbook() -> None:
        raise AssertionError("it has ended well")

    @saga_step(compensation=unbook)
    async def books() -> None:
        pass

    @workflow
    async def travels(generation: int) -> int:
        if generation == 1:
            async with saga():
                await books()
            continue_as_new(2)
        return generation

    async with running_worker(client, travels):
        assert await (await client.start(travels, 1)).result(60) == 2


async def test_the_timeout_of_a_workflow_covers_all_its_generations(client: Client) -> None:
    """Else a run that continues in time would never be late."""

    @workflow(timeout=2)
    async def goes_on(generation: int) -> None:
        await asyncio.sleep(0.05)
        continue_as_new(generation + 1)

    async with running_worker(client, goes_on):
        run = await client.start(goes_on, 1, run_id="g")
        with pytest.raises(WorkflowTimeoutError):
            await run.result(60)
    first, last = await client.describe("g@1"), await run.describe()
    assert last.generation > 2
    assert last.deadline == first.deadline


async def test_a_start_with_the_first_input_finds_the_run_in_any_generation(client: Client) -> None:
    """A script that is run again says what it said the first time; with other input it is told of the conflict."""

    @workflow(retries=1, retry_delay=0)
    async def waits(value: int) -> int:
        if value < 3:
            await next_of(value)
            continue_as_new(value + 1)
        return value + await number.wait()

    async with running_worker(client, waits):
        run = await client.start(waits, 1, run_id="w")
        await is_waiting(run, "signal")

        again = await client.start(waits, 1, run_id="w")
        for value in (2, 3):
            with pytest.raises(RunConflictError, match="other input"):
                await client.start(waits, value, run_id="w")
        await run.signal(number, 10)

        assert await again.result(60) == 13
        assert await (await client.start(waits, 1, run_id="w")).result(60) == 13
        fresh = await client.start(waits, 3, run_id="w", if_closed="new")
        await fresh.signal(number, 0)
        assert await fresh.result(60) == 3
        assert await (await client.start(waits, 3, run_id="w")).result(60) == 3


async def test_each_generation_has_its_own_retries(client: Client) -> None:
    """An attempt that was needed in one is not missing in the next."""
    calls = Calls()

    @activity(retries=0)
    async def fails_once(generation: int) -> None:
        if calls(f"in {generation}") == 1:
            raise OSError(generation)

    @workflow(retries=1, retry_delay=0)
    async def works(generation: int) -> int:
        await fails_once(generation)
        if generation < 3:
            continue_as_new(generation + 1)
        return info().generation

    async with running_worker(client, works):
        assert await (await client.start(works, 1)).result(60) == 6


async def test_a_run_that_failed_in_a_later_generation_is_tried_again_there(client: Client) -> None:
    """With the arguments of that generation; its start is still the first one's, and so is its time limit."""
    calls = Calls()

    @activity(retries=0)
    async def fails_once(value: int) -> int:
        if value == 3 and calls("three") == 1:
            raise OSError(value)
        return value

    @workflow(timeout=100)
    async def works(value: int) -> int:
        await fails_once(value)
        if value < 4:
            continue_as_new(value + 1)
        return info().generation

    async with running_worker(client, works):
        run = await client.start(works, 1, run_id="w")
        with pytest.raises(WorkflowFailedError):
            await run.result(60)
        await run.retry()

        again = await client.start(works, 1, run_id="w")
        assert await again.result(60) == 5
    last = await run.describe()
    assert last.deadline is not None
    took = last.deadline - (await client.describe("w@4")).created_at
    assert 99 < took.total_seconds() < 160


@workflow(name="endless")
async def endless() -> None:
    continue_as_new()


async def test_a_run_that_continues_for_ever_is_parked_and_starves_nobody(client: Client) -> None:
    """It would go on without ever waiting for anything: a person has to look at it."""
    async with running_worker(client, endless, counts):
        bad = await client.start(endless, run_id="e")
        good = await client.start(counts, 0, 5)

        assert await good.result(60) == [5, 5]
        with pytest.raises(EndlessContinuationError, match="100 times in a row"):
            await bad.result(60)
        seen = await bad.describe()
        assert (seen.status, seen.generation) == (RunStatus.PARKED, 101)
        await client.resume("e")
        await until(lambda: _generation(bad, 102))
        await status_is(bad, "parked")
    assert (await bad.describe()).generation == 201


async def test_one_that_waits_for_something_each_time_goes_on_for_ever(client: Client) -> None:
    """A signal, a timer or an activity in each generation: that is what continuing is for."""

    @workflow
    async def polls(round: int) -> int:
        await asyncio.sleep(0)  # of no length: waits for nothing
        await next_of(round)
        if round < 150:
            continue_as_new(round + 1)
        return info().generation

    async with running_worker(client, polls):
        assert await (await client.start(polls, 1)).result(60) == 150


async def test_the_size_of_the_journal_tells_when_it_is_time(client: Client) -> None:
    """`info().events` is the same in every replay."""

    @workflow
    async def loops(done: int) -> list[int]:
        while done < 20:
            done = await next_of(done)
            if info().events > 10:
                continue_as_new(done)
        return [done, info().generation]

    async with running_worker(client, loops, warm_us=0):
        assert await (await client.start(loops, 0)).result(60) == [20, 4]
