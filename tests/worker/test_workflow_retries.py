"""Workflow-level retries: the next attempt keeps what was done before the failure, and nothing after it (P7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import (
    Client,
    RunStatus,
    Signal,
    WorkflowFailedError,
    activity,
    activity_info,
    info,
    saga,
    saga_step,
    workflow,
)
from tests.support.workers import Calls, is_released, is_waiting, running_worker, through_commit_turns, until

number = Signal("number", int)


class Down(Exception):
    """What a failing activity raises."""


def failing(calls: Calls, name: str, times: int) -> Any:
    """Return an activity that fails its first `times` calls."""

    @activity(name=name, retries=0)
    async def work(value: int = 0) -> int:
        if calls(name) <= times:
            raise Down(name)
        return value

    return work


async def test_a_retry_keeps_the_results_before_the_failure(client: Client) -> None:
    """Only the activity that failed runs again; the same run id shows each attempt as a generation."""
    calls = Calls()
    first, second = failing(calls, "first", 0), failing(calls, "second", 2)

    @workflow(retries=2, retry_delay=0)
    async def works() -> list[int]:
        return [await first(1), await second(2), info().attempt, info().generation]

    async with running_worker(client, works):
        run = await client.start(works, run_id="w")

        assert await run.result(60) == [1, 2, 3, 3]
    assert calls.names == ["first", "second", "second", "second"]
    seen = [await client.describe(f"w@{generation}") for generation in (1, 2, 3)]
    assert [one.status for one in seen] == ["continued", "continued", "completed"]
    assert [one.attempts for one in seen] == [1, 2, 3]
    assert seen[0].error == "Down: second"


async def test_after_the_last_attempt_the_run_has_failed(client: Client) -> None:
    """Attempts = 1 + retries."""
    calls = Calls()
    fails = failing(calls, "fails", 99)

    @workflow(retries=2, retry_delay=0)
    async def works() -> None:
        await fails()

    async with running_worker(client, works):
        run = await client.start(works)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, Down)
    assert calls.of("fails") == 3
    assert (await run.describe()).attempts == 3


async def test_the_workflows_own_bug_starts_from_an_empty_journal(client: Client) -> None:
    """With the old journal it would fail identically for ever."""
    calls = Calls()
    first = failing(calls, "first", 0)

    @workflow(retries=3, retry_delay=0)
    async def buggy() -> int:
        attempt = info().attempt
        value: int = await first(attempt)
        if attempt < 3:
            raise KeyError("bug")
        return value

    async with running_worker(client, buggy):
        assert await (await client.start(buggy)).result(60) == 3
    assert calls.of("first") == 3


async def test_an_error_of_its_own_around_an_activitys_failure_starts_anew(client: Client) -> None:
    """The escaping error decides, not what caused it."""
    calls = Calls()
    first, fails = failing(calls, "first", 0), failing(calls, "fails", 1)

    @workflow(retries=1, retry_delay=0)
    async def wraps() -> int:
        await first()
        try:
            return await fails(5)  # type: ignore[no-any-return]  # an int
        except Down as error:
            raise RuntimeError("wrapped") from error

    async with running_worker(client, wraps):
        assert await (await client.start(wraps)).result(60) == 5
    assert calls.names == ["first", "fails", "first", "fails"]


async def test_a_group_of_activity_failures_keeps_what_was_before_the_earliest(client: Client) -> None:
    """A TaskGroup raises ExceptionGroup: if every leaf is an activity's failure it counts as one."""
    calls = Calls()
    before, fails, other = failing(calls, "before", 0), failing(calls, "fails", 1), failing(calls, "other", 0)

    @workflow(retries=1, retry_delay=0)
    async def groups() -> list[int]:
        await before()
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(fails(1)), group.create_task(other(2))]
        return [task.result() for task in tasks]

    async with running_worker(client, groups):
        assert await (await client.start(groups)).result(60) == [1, 2]
    assert calls.of("before") == 1
    assert calls.of("fails") == 2


async def test_signals_after_the_failure_are_delivered_again_and_those_before_are_kept(
    client: Client,
) -> None:
    """Nothing that was sent is lost or seen twice by an attempt that goes on."""
    gate = asyncio.Event()
    calls = Calls()

    @activity(retries=0)
    async def waits() -> int:
        if calls("waits") == 1:
            await gate.wait()
            raise Down
        return 7

    @workflow(retries=1, retry_delay=0)
    async def works() -> list[int]:
        first = await number.wait()
        result = await waits()
        return [first, result, await number.wait(), await number.wait(), await number.wait(), info().attempt]

    async with running_worker(client, works):
        run = await client.start(works)
        await run.signal(number, 1)
        await until(lambda: calls.of("waits"))
        await run.signal(number, 2)
        await run.signal(number, 3)
        await until(lambda: _received(run, 3))
        gate.set()
        await until(lambda: _attempt(run, 2))
        await run.signal(number, 4)

        assert await run.result(60) == [1, 7, 2, 3, 4, 2]


async def _received(run: Any, count: int) -> bool:
    return sum(entry.status == "received" for entry in (await run.describe()).journal) == count


async def _attempt(run: Any, attempt: int) -> bool:
    return (await run.describe()).attempts == attempt  # type: ignore[no-any-return]  # a bool


async def test_signals_consumed_by_a_failed_attempt_with_a_bug_come_again(client: Client) -> None:
    """The new attempt starts from nothing, so it must see every signal from the first on."""
    seen: list[tuple[int, int]] = []

    @workflow(retries=1, retry_delay=0)
    async def buggy() -> list[int]:
        values = []
        for _ in range(3):
            values.append(await number.wait())
            seen.append((info().attempt, values[-1]))
        if info().attempt == 1:
            raise RuntimeError("bug")
        return values

    async with running_worker(client, buggy):
        run = await client.start(buggy)
        for value in (1, 2, 3):
            await run.signal(number, value)

        assert await run.result(60) == [1, 2, 3]
    assert seen == [(1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)]


async def test_a_retry_keeps_the_idempotency_keys(client: Client) -> None:
    """It is still the same payment (P6): epochs change on a new start, not on a retry."""
    keys: list[tuple[str, int]] = []

    @activity(retries=1)
    async def charge() -> None:
        keys.append((activity_info().idempotency_key, activity_info().attempt))
        if len(keys) == 1:
            raise ValueError("final")

    @workflow(retries=1, retry_delay=0)
    async def buys() -> None:
        await charge()

    async with running_worker(client, buys):
        await (await client.start(buys, run_id="o")).result(60)
    assert keys == [("o@1/charge#1", 1), ("o@1/charge#1", 1)]


async def test_a_retry_of_what_was_undone_has_keys_of_its_own(client: Client) -> None:
    """The next attempt of a workflow that compensated begins with nothing, under new keys: a provider that deduplicates would swallow the second payment."""
    keys: list[str] = []

    async def note_key() -> None:
        keys.append(activity_info().idempotency_key)

    pay = saga_step("pay", compensation=note_key)(note_key)

    @activity(retries=0)
    async def ship() -> str:
        if len(keys) < 3:
            raise Down("no stock")
        return "shipped"

    @workflow(retries=1, retry_delay=0)
    async def buys() -> str:
        async with saga():
            await pay()
            return await ship()

    async with running_worker(client, buys):
        run = await client.start(buys, run_id="o")
        assert await run.result(60) == "shipped"
        seen = await run.describe()
    assert keys == ["o@1/pay#1", "o@1/pay/compensation#1", "o@2/pay#1"]
    assert (seen.generation, seen.attempts) == (2, 2)


async def test_a_retry_waits_for_its_delay_without_a_worker(client: Client) -> None:
    """Between attempts the run belongs to nobody and says when it starts again."""
    calls = Calls()
    fails = failing(calls, "fails", 99)

    @workflow(retries=1, retry_delay=3600)
    async def works() -> None:
        await fails()

    async with running_worker(client, works):
        run = await client.start(works)
        await until(lambda: _attempt(run, 2))
        seen = await run.describe()
    assert (seen.status, seen.worker) == (RunStatus.PENDING, None)
    assert seen.waiting_on[0].text.startswith("start in 59m")


async def test_a_handle_follows_its_run_through_retries(client: Client) -> None:
    """`result()` waits for the end of the last attempt; a handle of one generation of old does so, too."""
    calls = Calls()
    fails = failing(calls, "fails", 1)

    @workflow(retries=1, retry_delay=0)
    async def works() -> int:
        return await fails(4)  # type: ignore[no-any-return]  # an int

    async with running_worker(client, works):
        run = await client.start(works, run_id="w")
        assert await run.result(60) == 4

        assert await (await client.get("w@1", works)).result(60) == 4


async def test_a_retry_of_a_released_run_replays_the_kept_journal(client: Client) -> None:
    """What was kept replays like any journal, also after the run has left memory."""
    calls = Calls()
    first, fails = failing(calls, "first", 0), failing(calls, "fails", 1)

    @workflow(retries=1, retry_delay=0)
    async def works() -> list[int]:
        start = await first(1)
        end = await fails(2)
        return [start, end, await number.wait(), info().attempt]

    async with running_worker(client, works, warm_us=0):
        run = await client.start(works)
        await is_waiting(run, "signal")
        await is_released(run)
        await run.signal(number, 3)

        assert await run.result(60) == [1, 2, 3, 2]
    assert calls.names == ["first", "fails", "fails"]


async def test_the_next_attempt_hears_signals_though_the_reply_of_the_last_commit_is_late(
    client: Client,
) -> None:
    """The run is claimed again while the commit that gave it up is not settled yet."""
    calls = Calls()
    fails = failing(calls, "fails", 1)

    @workflow(retries=1, retry_delay=0)
    async def works() -> int:
        value: int = await fails(5)
        return value + await number.wait()

    async with running_worker(client, works) as worker:
        through_commit_turns(worker.life.store)
        real = worker.life.store.commit_turns

        async def commit(*arguments: Any) -> Any:
            verdicts = await real(*arguments)
            worker.life.claimer.wakeups.hint()
            await asyncio.sleep(0.02)
            return verdicts

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a slow database
        run = await client.start(works)
        await is_waiting(run, "signal")
        await run.signal(number, 1)

        assert await run.result(60) == 6
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was
