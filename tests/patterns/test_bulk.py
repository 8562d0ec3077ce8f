"""Bulk operations: results, errors, attempts, limits, callbacks, stops; what is stored; reuse; inline in workflows."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    ArgumentsError,
    BulkItemError,
    BulkOperation,
    BulkOperationCancelledError,
    BulkOperationConfig,
    BulkOperationError,
    BulkOperationTimeoutError,
    BulkResult,
    CircuitBreakerConfig,
    Client,
    DefinitionError,
    Err,
    NonRetryableError,
    Ok,
    Pipeline,
    RetryAfter,
    RunCancelledError,
    RunConflictError,
    RunStatus,
    StoreError,
    activity,
    workflow,
)
from durable.store.records import HandBack
from tests.support.workers import Calls, running_worker, through_commit_turns, until

calls = Calls()
AT_ONCE = {"retry_delay": 0.01}


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.names.clear()


async def double(item: int) -> int:
    calls(str(item))
    return item * 2


async def picky(item: int) -> int:
    calls(str(item))
    if item % 3 == 0:
        raise ValueError(f"not {item}")
    return item


def config(**options: Any) -> BulkOperationConfig:
    return BulkOperationConfig(**(AT_ONCE | options))


def failing(times: int, error: Callable[[], BaseException] = lambda: OSError("not yet")) -> Any:
    """Return a processor whose items fail so many times each, then succeed."""

    async def flaky(item: int) -> str:
        number = calls(str(item))
        if number <= times:
            raise error()
        return f"{item} in {number}"

    return flaky


async def rows_of_journal(run_id: str) -> int:
    handle = await durable.get_handle(run_id)
    client = await durable.default_client()
    return len(await client.store.read_journal(handle._pk, 1))


async def is_stored(run_id: str, number: int) -> bool:
    client = await durable.default_client()
    return bool(await client.read_rows("durable_bulk_items", f"{run_id}/{number}"))


# ─ results ──


async def test_results_come_in_the_order_of_the_items(embedded: str) -> None:
    """`Ok` with everything counted; constructor and `execute` as the guides spell them."""
    op = BulkOperation[int, int](
        processor=double, config=BulkOperationConfig(batch_size=10, max_concurrency=5)
    )

    result = await op.execute(items=[3, 1, 2], run_id="b-1")

    assert result.is_ok()
    found = result.unwrap()
    assert found.results == [6, 2, 4]
    assert (found.total, found.succeeded, found.failed, found.skipped) == (3, 3, 0, 0)
    assert found.ok
    assert found.errors == []
    assert 0 <= found.duration < 60
    run = await durable.get_run("b-1")
    assert (run.kind, run.workflow, run.status) == ("bulk", "double", RunStatus.COMPLETED)
    assert run.result == {"total": 3, "succeeded": 3, "failed": 0}


async def test_no_items_are_done_at_once(embedded: str) -> None:
    """An empty batch succeeds."""
    assert (await BulkOperation(double).execute([])).unwrap() == BulkResult(
        results=[], errors=[], total=0, succeeded=0, failed=0, skipped=0, duration=pytest.approx(0, abs=30)
    )


async def test_one_bad_item_does_not_harm_its_batch(embedded: str) -> None:
    """`Ok` with errors: index, item, text, class and attempts of each."""
    found = (await BulkOperation(picky, config()).execute([1, 2, 3, 4])).unwrap()

    assert found.results == [1, 2, 4]
    assert found.errors == [
        BulkItemError(index=2, item=3, error="not 3", error_type="ValueError", attempts=1)
    ]
    assert (found.succeeded, found.failed, found.skipped, found.ok) == (3, 1, 0, False)


async def test_processors_of_every_kind(embedded: str) -> None:
    """Async, `def` in a thread, lambda, activity, object; `Ok` stands for its value."""

    def threaded(item: int) -> int:
        assert threading.current_thread() is not threading.main_thread()
        return item + 1

    class Adder:
        async def __call__(self, item: int) -> Any:
            return Ok(item + 1)

    @activity
    async def adding(item: int) -> int:
        return item + 1

    async def later(item: int) -> int:
        return item + 1

    for processor in (threaded, lambda item: item + 1, Adder(), adding, later, lambda item: later(item)):
        found = await BulkOperation(processor).execute([1, 2])
        assert found.unwrap().results == [2, 3], processor
    assert BulkOperation(adding).name == "adding"
    assert BulkOperation(Adder()).name == "Adder"
    assert BulkOperation(lambda item: item).name == "bulk"
    assert BulkOperation(later, name="mine").name == "mine"


class Invoice(msgspec.Struct):
    number: int
    lines: list[str]


async def test_items_and_results_keep_their_types(embedded: str) -> None:
    """They pass the codec by the processor's hints, live as from the record; what does not fit is refused at the call."""

    async def total(invoice: Invoice) -> tuple[int, timedelta]:
        assert isinstance(invoice, Invoice)
        return invoice.number, timedelta(seconds=len(invoice.lines))

    op = BulkOperation(total)
    for _ in range(2):
        found = await op.execute([Invoice(7, ["a", "b"])], run_id="b")
        assert found.unwrap().results == [(7, timedelta(seconds=2))]
    with pytest.raises(ArgumentsError, match="items 0 to 0"):
        await op.execute(["no invoice"])  # type: ignore[list-item]  # the mistake
    with pytest.raises(TypeError, match="iterable"):
        await op.execute("text")


async def test_a_result_that_cannot_be_stored_fails_its_item_only(embedded: str) -> None:
    """Not the slice that it is part of."""

    async def odd(item: int) -> Any:
        return object() if item == 2 else item

    found = (await BulkOperation(odd, config()).execute([1, 2, 3])).unwrap()

    assert found.results == [1, 3]
    assert [(error.index, error.error_type) for error in found.errors] == [(1, "PayloadError")]


# ─ attempts ──


async def test_attempts_are_one_and_the_retries(embedded: str) -> None:
    """Raised errors are tried again `retry_attempts` times; then the item has failed."""
    found = (await BulkOperation(failing(2), config(retry_attempts=2)).execute([1])).unwrap()
    assert found.results == ["1 in 3"]

    found = (await BulkOperation(failing(9), config(retry_attempts=2), name="bad").execute([2])).unwrap()
    assert [(error.attempts, error.error_type) for error in found.errors] == [(3, "OSError")]
    assert (calls.of("1"), calls.of("2")) == (3, 3)


async def test_programming_errors_are_tried_again_only_on_explicit_demand(embedded: str) -> None:
    """`retry_attempts` that was given holds for every exception but `NonRetryableError`."""
    assert (await BulkOperation(picky, config()).execute([3])).unwrap().errors[0].attempts == 1
    assert (await BulkOperation(picky, config(retry_attempts=3)).execute([3])).unwrap().errors[
        0
    ].attempts == 4
    never = failing(9, lambda: NonRetryableError("never"))
    found = (await BulkOperation(never, config(retry_attempts=3)).execute([3])).unwrap()
    assert (found.errors[0].attempts, found.errors[0].error) == (1, "never")


async def test_an_err_is_an_answer(embedded: str) -> None:
    """It fails the item, and is not tried again."""

    async def refuse(item: int) -> Any:
        calls("refuse")
        return Err(KeyError("gone") if item else "no")

    found = (await BulkOperation(refuse, config(retry_attempts=3)).execute([0, 1])).unwrap()

    assert [(error.error, error.error_type) for error in found.errors] == [
        ("no", "StepAnswerError"),
        ("'gone'", "KeyError"),
    ]
    assert calls.of("refuse") == 2


async def test_an_item_may_ask_for_its_delay(embedded: str) -> None:
    """`RetryAfter` is heard; the delays double otherwise, as durable timers."""
    op = BulkOperation(failing(1, lambda: RetryAfter(0)), config(retry_delay=1000), name="asks")
    assert (await op.execute([1])).unwrap().results == ["1 in 2"]

    await BulkOperation(failing(2), config(retry_delay=0.01), name="waits").execute([2], run_id="b")
    timers = [entry.name for entry in (await durable.get_run("b")).journal if entry.kind == "timer"]
    assert timers == ["0.01s", "0.02s"]


async def test_one_attempt_of_one_item_is_limited(embedded: str) -> None:
    """`pipeline_timeout`: tried again like any error; the others of its slice are not concerned."""

    async def slow(item: int) -> int:
        if item == 1 and calls("slow") < 3:
            await asyncio.sleep(60)
        return item

    found = (await BulkOperation(slow, config(pipeline_timeout=0.05)).execute([0, 1, 2])).unwrap()
    assert found.results == [0, 1, 2]

    async def slower(item: int) -> int:
        await asyncio.sleep(60)
        return item

    found = (
        await BulkOperation(slower, config(pipeline_timeout=0.05, retry_attempts=0)).execute([1])
    ).unwrap()
    assert found.errors[0].error_type == "ActivityTimeoutError"
    assert "0.05 s" in found.errors[0].error


async def test_a_late_item_in_a_thread_is_interrupted(embedded: str) -> None:
    """As a `def` activity is: `asyncio.CancelledError` says why, but not in a shield. It has failed, whatever it returns."""
    told: list[str] = []

    def slow(item: int) -> int:
        if item != 2:
            return item
        try:
            with durable.shield_thread():
                while not durable.activity_info().is_cancelled:
                    time.sleep(0.001)
                told.append("shielded")
            told.append("went on")
        except asyncio.CancelledError as error:
            told.append(str(error))
        return item

    found = (
        await BulkOperation(slow, config(pipeline_timeout=0.05, retry_attempts=0)).execute([1, 2])
    ).unwrap()

    assert [(error.index, error.error_type) for error in found.errors] == [(1, "ActivityTimeoutError")]
    await until(lambda: len(told) == 2)
    assert told == ["shielded", "the item ran longer than its timeout of 0.05 s"]


@pytest.mark.parametrize("how", ["cancel", "stop"])
async def test_items_in_threads_are_stopped_with_their_run(
    how: str, client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled, or with their worker; before that hands the run on, else they would act beside whoever takes it."""
    monkeypatch.setattr("durable.in_activity.THREAD_SECONDS", 60.0)
    monkeypatch.setattr("durable.worker.life.UNWIND_SECONDS", 60.0)
    begun, told = threading.Event(), list[str]()

    def busy(item: int) -> int:
        if begun.is_set():
            return item
        try:
            begun.set()
            while sum(range(100)):
                durable.heartbeat()
        finally:
            told.append(str(item))
        return item

    op = BulkOperation(busy, config())
    durable.configure(url, durability="off")
    try:
        run = await op.enqueue([7], run_id="b")
        async with running_worker(client, *op.__durable_workflows__()) as worker:
            await until(begun.is_set)
            if how == "cancel":
                await run.cancel("enough")
                with pytest.raises(RunCancelledError):
                    await run.result(60)
                await until(lambda: told)
            else:
                worker.stop(0)
                await until(lambda: _has_no_owner(client, "b"))
            assert told == ["7"]
    finally:
        durable.configure()


async def _has_no_owner(client: Client, run_id: str) -> bool:
    return (await client.describe(run_id)).worker is None


class Gates:
    """Items that come to their end when they are let, and those that have."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.stopped: list[int] = []
        self.open: set[int] = set()

    async def item(self, item: int) -> int:
        self.begun.append(item)
        try:
            await until(lambda: item in self.open)
        except asyncio.CancelledError:
            self.stopped.append(item)
            raise
        self.ended.append(item)
        return item


@pytest.mark.parametrize("begins", ["as its worker stops", "while its run is paused", "with no slot free"])
async def test_an_item_that_its_slice_has_left_is_done_once(begins: str, client: Client, url: str) -> None:
    """It goes on in a slice of its own in any case: it runs already, and what it comes to is to be recorded (I5)."""
    gates = Gates()
    op = BulkOperation(gates.item, config(batch_size=3, max_concurrency=3))
    durable.configure(url, durability="off")
    try:
        run = await op.enqueue(range(6), run_id="b")
        async with running_worker(client, *op.__durable_workflows__(), concurrency=1) as worker:
            await until(lambda: gates.begun == [0, 1, 2])
            if begins == "as its worker stops":
                worker.stop(60)
            elif begins == "while its run is paused":
                await run.pause()
                await until(lambda: all(live.is_held for live in worker.life.driver.runs.values()))
            gates.open.add(0)
            await until(lambda: worker.running >= 2)
            gates.open |= {1, 2}
            if begins == "with no slot free":
                gates.open |= {3, 4, 5}
                await run.result(60)
            else:
                await until(lambda: _has_no_owner(client, "b"))
                assert gates.begun == [0, 1, 2]
        gates.open |= {3, 4, 5}
        if begins == "while its run is paused":
            await run.resume()
        async with running_worker(client, *op.__durable_workflows__()):
            assert await run.result(60) == {"total": 6, "succeeded": 6, "failed": 0}
    finally:
        durable.configure()
    assert sorted(gates.begun) == sorted(gates.ended) == list(range(6))


async def test_of_a_slice_that_is_stopped_what_has_ended_is_kept(
    client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what ends well all the same; only what was interrupted is begun again (I5)."""
    monkeypatch.setattr("durable.patterns.bulk_slices.PATIENCE_SECONDS", 60.0)
    monkeypatch.setattr("durable.worker.life.UNWIND_SECONDS", 60.0)
    gates, told = Gates(), list[int]()

    async def process(item: int) -> int:
        try:
            return await gates.item(item)
        except asyncio.CancelledError:
            if item != 1:
                raise
            told.append(item)
            return item

    op = BulkOperation(process, config(batch_size=3, max_concurrency=3))
    durable.configure(url, durability="off")
    try:
        run = await op.enqueue(range(3), run_id="b")
        gates.open.add(0)
        async with running_worker(client, *op.__durable_workflows__()) as worker:
            await until(lambda: gates.ended == [0] and len(gates.begun) == 3)
            worker.stop(0)
        gates.open |= {1, 2}
        async with running_worker(client, *op.__durable_workflows__()):
            assert await run.result(60) == {"total": 3, "succeeded": 3, "failed": 0}
    finally:
        durable.configure()
    assert told == [1]
    assert gates.begun == [0, 1, 2, 2]


@pytest.mark.parametrize("how", ["detached", "drained"])
async def test_items_that_were_left_have_stopped_before_their_run_is_handed_back(
    how: str, client: Client, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves when a slice has ended, and before others go on with the items that it has left: they would act beside the next owner (I5)."""
    monkeypatch.setattr("durable.worker.driving.LEAVE_SECONDS", 60.0)
    monkeypatch.setattr("durable.worker.life.UNWIND_SECONDS", 60.0)
    gates, failed, stopped_by_then = Gates(), list[bool](), list[list[int]]()
    op = BulkOperation(gates.item, config(batch_size=3, max_concurrency=3))
    through_commit_turns(client.store)
    store: Any = client.store
    commits = store.commit_turns
    durable.configure(url, durability="off")
    try:
        run = await op.enqueue(range(3), run_id="b")
        async with running_worker(client, *op.__durable_workflows__()) as worker:

            async def commit_turns(worker_id: int, items: Any, now_us: int) -> Any:
                if gates.ended == [0] and not failed and any(item.taken for item in items):
                    failed.append(True)
                    worker.detach(items[0].pk) if how == "detached" else worker.stop(0)
                    raise StoreError("the server was away")
                if any(type(item.after) is HandBack for item in items):
                    stopped_by_then.append(sorted(gates.stopped))
                return await commits(worker_id, items, now_us)

            store.commit_turns = commit_turns
            await until(lambda: gates.begun == [0, 1, 2])
            gates.open.add(0)
            await until(lambda: stopped_by_then)
        store.commit_turns = commits
        gates.open |= {1, 2}
        async with running_worker(client, *op.__durable_workflows__()):
            assert await run.result(60) == {"total": 3, "succeeded": 3, "failed": 0}
    finally:
        durable.configure()
    assert stopped_by_then[0] == [1, 2]
    assert gates.begun.count(0) == 1
    assert sorted(gates.ended) == [0, 1, 2]


async def test_whatever_an_item_raises_is_its_own_failure(embedded: str) -> None:
    """Cancellation that nobody asked for, and attempts to end the process."""

    async def wild(item: int) -> int:
        raise (asyncio.CancelledError("odd"), SystemExit(3), RuntimeError("x"))[item]

    found = (await BulkOperation(wild, config(retry_attempts=0)).execute([0, 1, 2])).unwrap()

    assert [error.error_type for error in found.errors] == ["CancelledError", "SystemExit", "RuntimeError"]


async def test_each_item_has_an_identity_of_its_own(embedded: str) -> None:
    """Its idempotency key is the same in every attempt, and no other item has it."""
    keys: dict[int, set[str]] = {}
    attempts: list[int] = []

    async def keyed(item: int) -> None:
        info = durable.activity_info()
        keys.setdefault(item, set()).add(info.idempotency_key)
        if item == 1:
            attempts.append(info.attempt)
        if calls(str(item)) < 3:
            raise OSError

    await BulkOperation(keyed, config()).execute(range(3), run_id="b")

    assert keys == {0: {"b@1/item#1"}, 1: {"b@1/item#2"}, 2: {"b@1/item#3"}}
    assert attempts == [1, 2, 3]


# ─ limits ──


async def test_items_that_wait_for_runs_lend_their_slots(client: Client) -> None:
    """Also those that a slice has left, and a slice of their own has taken over: with two slots all get to their ends."""

    @activity
    async def works(item: int) -> int:
        return item

    @workflow
    async def inner(item: int) -> int:
        return await works(item)

    async def deeper(item: int) -> int:
        if item % 4 == 0:
            return item  # its neighbours are left
        await asyncio.sleep(0.05)
        return await (await client.start(inner, item, run_id=f"i-{item}")).result(60)

    config = BulkOperationConfig(batch_size=4, max_concurrency=16, retry_attempts=0)
    op = BulkOperation(deeper, config, name="deep")

    @workflow
    async def outer() -> list[int]:
        return (await op.execute(range(24))).unwrap().results

    async with running_worker(client, outer, inner, concurrency=2):
        assert await (await client.start(outer)).result(60) == list(range(24))


async def test_items_that_end_at_once_share_a_task_and_the_others_have_their_own(embedded: str) -> None:
    """Nobody notices: an item has one task from its first line to its last, variables of its own, and cancels nobody else."""
    mine: ContextVar[int] = ContextVar("mine", default=-1)
    tasks: dict[int, set[int]] = {}

    async def work(item: int) -> list[int]:
        task = asyncio.current_task()
        assert task is not None
        found = [mine.get()]
        mine.set(item)
        tasks[item] = {id(task)}
        if item % 10 == 3:
            task.cancel()  # and ends before it would notice
        elif item % 10 == 5:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.001):
                    await asyncio.sleep(10)
            tasks[item].add(id(asyncio.current_task()))
        elif item % 10 == 7:
            task.cancel()
            await asyncio.sleep(10)
        return [*found, mine.get()]

    op = BulkOperation(work, BulkOperationConfig(retry_attempts=0), name="own-tasks")
    result = (await op.execute(range(40))).unwrap()

    assert result.results == [[-1, item] for item in range(40) if item % 10 not in (3, 7)]
    assert [(error.item, error.error_type) for error in result.errors] == [
        (item, "CancelledError") for item in (3, 7, 13, 17, 23, 27, 33, 37)
    ]
    assert all(len(one) == 1 for one in tasks.values())


@pytest.mark.parametrize(("batch_size", "max_concurrency"), [(1, 1), (10, 3), (4, 10), (100, 25)])
async def test_no_more_items_are_in_work_than_allowed(
    embedded: str, batch_size: int, max_concurrency: int
) -> None:
    """`max_concurrency` counts items, and all slots are used."""
    running, most = 0, 0
    all_used = asyncio.Event()

    async def counted(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == max_concurrency:
            all_used.set()
        await all_used.wait()
        running -= 1
        return item

    op = BulkOperation(counted, config(batch_size=batch_size, max_concurrency=max_concurrency))
    found = (await op.execute(range(60), run_id="b")).unwrap()

    assert found.results == list(range(60))
    assert most == max_concurrency
    slices = [entry for entry in (await durable.get_run("b")).journal if entry.name == "items"]
    assert max(entry.input["count"] for entry in slices) <= batch_size


async def test_an_item_keeps_its_slot_until_its_result_is_durable(embedded: str) -> None:
    """So no more than `max_concurrency` are ever repeated after a crash: whoever begins finds the results of the others recorded."""
    recorded: list[int] = []

    async def looks(item: int) -> int:
        entries = (await durable.get_run("b")).journal
        done = [entry for entry in entries if entry.name == "items" and entry.status == "completed"]
        recorded.append(sum(len(entry.result[0]) for entry in done))
        return item

    few = config(batch_size=3, max_concurrency=1)
    assert (await BulkOperation(looks, few, name="looking").execute(range(6), run_id="b")).unwrap().ok
    assert recorded == list(range(6))


async def test_a_slow_item_holds_up_nobody(embedded: str) -> None:
    """Not its slice's record, not its neighbours' slots: with two slots, one that waits leaves one for all others."""
    gate = asyncio.Event()

    async def gated(item: int) -> int:
        calls(str(item))
        if item == 1:
            await gate.wait()
        if item == 19:
            gate.set()
        return item

    found = (await BulkOperation(gated, config(max_concurrency=2)).execute(range(20))).unwrap()

    assert found.results == list(range(20))
    assert calls.of("1") == 1  # handed on from one slice to the next, not begun anew


async def test_the_journal_grows_with_slices_and_not_with_items(embedded: str) -> None:
    """One entry holds up to `batch_size` items, and one row what is ready."""
    few = config(batch_size=50, max_concurrency=50)
    await BulkOperation(double, few).execute(range(5000), run_id="b")

    run = await durable.get_run("b")
    assert len(run.journal) <= 5000 / 50 + 10
    assert await rows_of_journal("b") <= 5000 / 50 + 10


# ─ stops ──


async def test_stop_on_error_starts_nothing_new(embedded: str) -> None:
    """`Err` with what was done; skipped counts what was not; the run has failed, and says the same again."""
    op = BulkOperation(picky, config(max_concurrency=1, stop_on_error=True))

    for _ in range(2):
        error = (await op.execute([1, 2, 3, 4, 5], run_id="b")).unwrap_err()

        assert type(error) is BulkOperationError
        partial = error.partial
        assert partial is not None
        assert partial.results == [1, 2]
        assert (partial.succeeded, partial.failed, partial.skipped) == (2, 1, 2)
        assert partial.errors[0].item == 3
    assert calls.names == ["1", "2", "3"]
    assert (await durable.get_run("b")).status == RunStatus.FAILED


async def endless_from_three(item: int) -> int:
    calls(str(item))
    if item >= 3:
        await asyncio.sleep(60)
    return item


async def test_a_timeout_keeps_what_was_done(embedded: str) -> None:
    """`Err(BulkOperationTimeoutError)`; the run is timed out, whoever drives it."""
    op = BulkOperation(endless_from_three, config(timeout=2, max_concurrency=2))

    error = (await op.execute(range(6), run_id="b")).unwrap_err()

    assert type(error) is BulkOperationTimeoutError
    assert error.partial is not None
    assert error.partial.results == [0, 1, 2]
    assert error.partial.skipped == 3
    assert (await durable.get_run("b")).status == RunStatus.TIMED_OUT


@pytest.mark.parametrize("how", ["object", "awaited", "run"])
async def test_a_cancel_keeps_what_was_done(embedded: str, how: str) -> None:
    """By `op.cancel()`, awaited or not, or by cancelling the run from anywhere."""
    op = BulkOperation(endless_from_three, config(max_concurrency=2))
    executing = asyncio.ensure_future(op.execute(range(6), run_id="b"))
    await until(lambda: calls.of("4"))

    if how == "object":
        op.cancel()
    elif how == "awaited":
        await op.cancel()
    else:
        await durable.cancel("b")

    error = (await executing).unwrap_err()
    assert type(error) is BulkOperationCancelledError
    assert error.partial is not None
    assert error.partial.results == [0, 1, 2]
    assert (await durable.get_run("b")).status == RunStatus.CANCELLED
    op.cancel()  # nothing is executed: nothing happens
    assert (await op.execute([1], run_id="again")).unwrap().results == [1]


async def test_while_the_breaker_is_open_items_wait(embedded: str) -> None:
    """It opens after so many failed attempts in a row, lets one item try after the pause, and gives none up."""
    broken = True

    async def shaky(item: int) -> int:
        if calls("tried") >= 5:
            nonlocal broken
            broken = False
        if broken:
            raise OSError("down")
        return item

    breaker = CircuitBreakerConfig(failure_threshold=3, reset_timeout=0.05)
    op = BulkOperation(
        shaky, config(max_concurrency=3, circuit_breaker_config=breaker, retry_attempts=9, retry_delay=0)
    )
    found = (await op.execute(range(10), run_id="b")).unwrap()

    assert found.results == list(range(10))
    run = await durable.get_run("b")
    pauses = [entry for entry in run.journal if entry.name == "0.05s"]
    assert len(pauses) == 2  # after the first three; after the one that tried, the fourth
    sizes = [entry.input["count"] for entry in run.journal if entry.name == "items"]
    assert sizes[:3] == [3, 1, 1]


# ─ hooks ──


@pytest.mark.parametrize("is_async", [False, True])
async def test_hooks_are_told_what_is_durable(embedded: str, is_async: bool) -> None:
    """(done, total, message): on_error for each failed item, on_progress, on_complete at the end. What they raise harms nothing."""
    told: dict[str, list[tuple[int, int, str]]] = {"progress": [], "complete": [], "error": []}

    def hook(name: str) -> Any:
        def note(done: int, total: int, message: str) -> None:
            told[name].append((done, total, message))
            raise RuntimeError("a hook's own trouble")

        async def note_later(done: int, total: int, message: str) -> None:
            await asyncio.sleep(0)
            note(done, total, message)

        return note_later if is_async else note

    op = BulkOperation(
        picky,
        config(),
        on_progress=hook("progress"),
        on_complete=hook("complete"),
        on_error=hook("error"),
    )
    await op.execute(range(1, 8))

    progress = [done for done, _, _ in told["progress"]]
    assert progress == sorted(set(progress))
    assert told["progress"][-1] == (7, 7, "7 of 7 items, 2 of them failed")
    assert told["complete"] == [(7, 7, "7 of 7 items, 2 of them failed")]
    assert [message for _, _, message in told["error"]] == [
        "item 2 failed: ValueError: not 3",
        "item 5 failed: ValueError: not 6",
    ]
    told["progress"].clear()
    quiet = BulkOperation(double, config(enable_progress_tracking=False), on_progress=hook("progress"))
    await quiet.execute([1])
    assert told["progress"] == []


# ─ items ──


async def test_stored_items_go_with_their_run(embedded: str) -> None:
    """Those of runs whose ids only begin like it stay."""
    op = BulkOperation(double, config(max_concurrency=500, batch_size=500), name="doubling")
    for run_id in ("b", "b/1", "b1"):
        await op.execute(range(1200), run_id=run_id)
    assert await is_stored("b", 0)
    assert await is_stored("b", 1)

    await durable.delete_run("b")

    assert not await is_stored("b", 0)
    assert not await is_stored("b", 1)
    for other in ("b/1", "b1"):
        assert await is_stored(other, 0)
        assert await is_stored(other, 1)
    assert (await op.execute(range(1200), run_id="b")).unwrap().succeeded == 1200


def generated() -> Iterator[int]:
    yield from range(2500)


async def generated_later() -> AsyncIterator[int]:
    for item in range(2500):
        yield item


@pytest.mark.parametrize("make", [generated, generated_later, lambda: list(range(2500))])
async def test_items_are_drained_into_the_run_first(embedded: str, make: Any) -> None:
    """Of lists, generators and async iterables; many are stored as rows of a thousand, few in the run's input."""
    found = (
        await BulkOperation(double, config(batch_size=100, max_concurrency=100)).execute(make(), run_id="b")
    ).unwrap()

    assert found.results == [item * 2 for item in range(2500)]
    given = (await durable.get_run("b")).input["batch"]
    assert given["total"] == 2500
    assert len(given["chunks"]) == 3
    assert "items" not in given
    await BulkOperation(double).execute([1, 2], run_id="few")
    assert (await durable.get_run("few")).input == {"batch": {"total": 2, "items": [1, 2]}}


async def test_the_same_id_with_the_same_items_reads_the_record(embedded: str) -> None:
    """With other items it is a conflict, however many there are."""
    op = BulkOperation(double, config(batch_size=100, max_concurrency=100))
    for count in (3, 1500):
        first = await op.execute(range(count), run_id=f"b-{count}")
        calls.names.clear()

        changed = BulkOperation(double, config(batch_size=1, max_concurrency=1))  # for new runs only
        assert await changed.execute(range(count), run_id=f"b-{count}") == first
        assert calls.names == []
        with pytest.raises(RunConflictError):
            await op.execute(range(1, count + 1), run_id=f"b-{count}")


async def test_one_object_may_be_used_again_and_at_once(embedded: str) -> None:
    """Each time a run of its own; objects of one name and place do not get into one another's way."""

    def times(factor: int) -> BulkOperation[int, int]:
        async def multiply(item: int) -> int:
            await asyncio.sleep(0.001)
            return item * factor

        return BulkOperation(multiply, config())

    op, other = times(2), times(3)
    found = await asyncio.gather(op.execute([1, 2]), op.execute([3]), other.execute([1, 2]))

    assert [result.unwrap().results for result in found] == [[2, 4], [6], [3, 6]]


async def test_results_are_streamed_as_they_become_durable(embedded: str) -> None:
    """Values of the items that succeeded; the others are in `errors`; whoever stops listening stops nothing."""
    stream = BulkOperation(picky, config()).stream(range(1, 8), run_id="b")
    found = [value async for value in stream]

    assert sorted(found) == [1, 2, 4, 5, 7]
    assert [error.item for error in stream.errors] == [3, 6]
    assert (stream.result.succeeded, stream.result.failed, stream.result.results) == (5, 2, [])
    assert stream.run_id == "b"

    async for _ in BulkOperation(double, config(max_concurrency=1)).stream(range(50), run_id="left"):
        break
    await (await durable.get_handle("left")).result()
    assert (await durable.get_run("left")).result["succeeded"] == 50

    with pytest.raises(BulkOperationError) as error:
        async for _ in BulkOperation(picky, config(stop_on_error=True)).stream([3]):
            pass
    assert error.value.partial is not None


# ─ options ──


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": True},
        {"max_concurrency": 0},
        {"max_concurrency": 2.5},
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"retry_attempts": -1},
        {"retry_delay": -0.1},
        {"pipeline_timeout": 0},
        {"stop_on_error": 1},
        {"enable_progress_tracking": None},
        {"circuit_breaker_config": {}},
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any]) -> None:
    """ValueError, at once."""
    with pytest.raises(ValueError, match=next(iter(options))):
        BulkOperationConfig(**options)


def test_defaults_and_misspelt_options() -> None:
    """The documented defaults; a misspelt option is a TypeError."""
    made = BulkOperationConfig()
    assert (made.batch_size, made.max_concurrency, made.timeout) == (10, 5, 300.0)
    assert (made.retry_attempts, made.retry_delay, made.pipeline_timeout) == (3, 1.0, 60.0)
    assert (made.enable_progress_tracking, made.circuit_breaker_config, made.stop_on_error) == (
        True,
        None,
        False,
    )
    assert BulkOperationConfig(timeout=timedelta(minutes=1)).timeout == 60.0
    breaker = CircuitBreakerConfig()
    assert (breaker.failure_threshold, breaker.reset_timeout) == (5, 30)
    for wrong in (
        lambda: BulkOperationConfig(max_concurency=3),  # type: ignore[call-arg]
        lambda: CircuitBreakerConfig(treshold=3),  # type: ignore[call-arg]
        lambda: BulkOperation(double, on_progres=print),  # type: ignore[call-arg]
        lambda: BulkOperation(double, {}),  # type: ignore[arg-type]
        lambda: BulkOperation("double"),  # type: ignore[arg-type]
        lambda: BulkOperation(double, on_error="x"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            wrong()
    for bad in ({"failure_threshold": 0}, {"reset_timeout": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CircuitBreakerConfig(**bad)  # type: ignore[arg-type]


# ─ inside runs ──

doubling = BulkOperation(double, config(max_concurrency=2), name="doubling")


@workflow
async def invoicing(count: int) -> list[Any]:
    async def items() -> AsyncIterator[int]:
        for item in range(count):
            yield item

    first = (await doubling.execute(items())).unwrap()
    second = (await BulkOperation(picky, config(), name="picky").execute([1, 3])).unwrap()
    again = [value async for value in doubling.stream([7])]
    return [first.results, second.results, [error.item for error in second.errors], again]


async def test_inside_a_workflow_it_is_part_of_the_run(embedded: str) -> None:
    """Its activities stand in that run's journal under its name; a replay repeats none."""
    for _ in range(2):
        assert await invoicing(5, run_id="r") == [[0, 2, 4, 6, 8], [1], [3], [14]]

    assert sorted(calls.names) == ["0", "1", "1", "2", "3", "3", "4", "7"]
    names = [entry.name for entry in (await durable.get_run("r")).journal if entry.is_activity]
    assert names[0] == "doubling/settings"
    assert set(names) == {"doubling/settings", "doubling/items", "picky/settings", "picky/items"}


@workflow
async def stopping(how: str) -> list[Any]:
    options: dict[str, Any] = {"timeout": {"timeout": 1.5}, "error": {"stop_on_error": True}}.get(how, {})
    process = picky if how == "error" else endless_from_three
    op = BulkOperation(process, config(max_concurrency=1, **options))
    if how == "cancel":
        executing = asyncio.ensure_future(op.execute(range(1, 6)))
        await durable.sleep(1.5)
        op.cancel()
        result = await executing
    else:
        result = await op.execute(range(1, 6))
    error = result.unwrap_err()
    assert error.partial is not None
    return [type(error).__name__, error.partial.results, error.partial.skipped]


@pytest.mark.parametrize(
    ("how", "name", "skipped"),
    [
        ("timeout", "BulkOperationTimeoutError", 3),
        ("cancel", "BulkOperationCancelledError", 3),
        ("error", "BulkOperationError", 2),
    ],
)
async def test_inside_a_workflow_stops_are_answers_too(
    embedded: str, how: str, name: str, skipped: int
) -> None:
    """`Err`; the workflow goes on."""
    assert await stopping(how, run_id="r") == [name, [1, 2], skipped]


async def test_inside_a_workflow_hooks_are_activities(embedded: str) -> None:
    """Each call once, journaled under the operation's name."""
    told: list[str] = []
    op = BulkOperation(
        picky,
        config(),
        name="op",
        on_progress=lambda done, total, message: told.append(message),
        on_error=lambda done, total, message: told.append(message),
        on_complete=lambda done, total, message: told.append("done"),
    )

    @workflow
    async def hooked() -> int:
        return (await op.execute([1, 3])).unwrap().failed

    for _ in range(2):
        assert await hooked(run_id="r") == 1
    assert told == ["item 1 failed: ValueError: not 3", "2 of 2 items, 1 of them failed", "done"]
    names = [entry.name for entry in (await durable.get_run("r")).journal if entry.kind == "hook"]
    assert names == ["op/on_error", "op/on_progress", "op/on_complete"]


async def test_items_of_two_executions_in_one_run_have_their_own_keys(embedded: str) -> None:
    """Though they have one name: what the first charged must not pass for the second's."""
    keys: list[str] = []

    async def keyed(item: int) -> None:
        keys.append(durable.activity_info().idempotency_key)

    op = BulkOperation(keyed, config(), name="op")

    @workflow
    async def twice() -> None:
        await op.execute([1])
        await op.execute([1])

    await twice(run_id="r")

    assert len(set(keys)) == 2
    assert all(key.startswith("r@1/op/item-") and key.endswith("#1") for key in keys)


async def test_inside_an_activity_it_is_a_run_that_a_retry_attaches_to(embedded: str) -> None:
    """Its id derives from the idempotency key of the activity."""

    @activity(retry=durable.Retry(initial=0.01, maximum=0.01))
    async def send() -> int:
        found = (await BulkOperation(double, config()).execute([1, 2])).unwrap()
        if calls("send") < 3:
            raise OSError("lost")
        return len(found.results)

    @workflow
    async def sending() -> int:
        return await send()

    assert await sending(run_id="r") == 2
    assert (calls.of("1"), calls.of("2")) == (1, 1)
    assert (await durable.get_run("r@1/send#1/double#1")).status == RunStatus.COMPLETED


async def test_inside_a_pipeline_and_with_a_run_id(embedded: str) -> None:
    """A step of a pipeline is an activity; a run id has no place inside a run."""

    async def step(ctx: dict[str, Any]) -> int:
        return len((await BulkOperation(double).execute(ctx["items"])).unwrap().results)

    assert await Pipeline("p", [step]).execute({"items": [1, 2]}) == 2

    @workflow
    async def wrong() -> None:
        await doubling.execute([1], run_id="x")

    with pytest.raises(durable.WorkflowFailedError) as failed:
        await wrong()
    assert isinstance(failed.value.__cause__, DefinitionError)


@workflow
async def handing_on(length: int) -> list[Any]:
    """Two operations that are children, one under an id of its own."""
    first = await doubling.start(range(length))
    second = await doubling.enqueue(range(length), run_id=f"given-{length}")
    return [first.run_id, await first.result(), second.run_id, await second.result()]


@pytest.mark.parametrize(
    ("length", "first"),
    [(0, "w@1/doubling#1"), (5, "w@1/doubling#1"), (1500, "w@1/doubling/keep#1/doubling#1")],
)
async def test_one_that_a_workflow_starts_is_a_child(embedded: str, length: int, first: str) -> None:
    """A run of its own whose id follows from the parent's, so that a replay finds it; its items may be more than an input holds."""
    counts = {"total": length, "succeeded": length, "failed": 0}
    for _ in range(2):
        assert await handing_on(length, run_id="w") == [first, counts, f"given-{length}", counts]

    assert [(await durable.get_run(id)).parent for id in (first, f"given-{length}")] == ["w", "w"]
    assert len(calls.names) == 2 * length
    seen = (await doubling.execute(range(length), run_id=f"given-{length}")).unwrap()  # from the record
    assert seen.results == [item * 2 for item in range(length)]


async def test_a_worker_performs_what_a_workflow_has_started(client: Client, url: str) -> None:
    """Parent and child are driven by whoever serves their module, also if items are stored apart."""
    durable.configure(url, durability="off")
    try:
        handle = await handing_on.enqueue(1200, run_id="w")
        async with running_worker(client, handing_on, *doubling.__durable_workflows__()):
            assert (await handle.result())[1]["succeeded"] == 1200
    finally:
        durable.configure()


# ─ workers ──


async def test_a_worker_that_imports_the_module_finishes_it(client: Client, url: str) -> None:
    """Enqueued by a program, driven by a worker; whoever executes the same reads the record."""
    durable.configure(url, durability="off")
    try:
        handle = await doubling.enqueue(range(1200), run_id="b")
        assert calls.names == []
        async with running_worker(client, *doubling.__durable_workflows__()):
            assert await handle.result() == {"total": 1200, "succeeded": 1200, "failed": 0}
        seen = (await doubling.execute(range(1200), run_id="b")).unwrap()
        assert seen.results == [item * 2 for item in range(1200)]
        started = await doubling.start([5], run_id="s")
        assert await started.result() == {"total": 1, "succeeded": 1, "failed": 0}
    finally:
        durable.configure()


async def test_what_a_start_left_that_never_came_to_be_does_no_harm(embedded: str) -> None:
    """It stored other items under the same id, and died: the next start stores its own beside them."""
    op = BulkOperation(double, config(batch_size=500, max_concurrency=500))
    await op._items.store(range(5, 2005), "b")  # and no run

    for _ in range(2):
        found = (await op.execute(range(2000), run_id="b")).unwrap()
        assert found.results == [item * 2 for item in range(2000)]
    assert [one[:2] for one in (await durable.get_run("b")).input["batch"]["chunks"]] == ["2:", "2:"]


async def test_a_long_batch_outgrows_the_limit_of_ordinary_journals(url: str) -> None:
    """Its journal grows with its items, and nothing of it stays in memory; it is not parked for that."""
    durable.configure(url, durability="off", limits=durable.Limits(journal_events=50))
    try:
        small = config(batch_size=1, max_concurrency=10)
        found = (await BulkOperation(double, small).execute(range(100))).unwrap()
        assert found.succeeded == 100
    finally:
        durable.configure()


async def test_items_results_and_states_are_sealed(tmp_path: Any) -> None:
    """With a codec nothing of them stands in the file, and everything is read through it."""
    database = tmp_path / "sealed.db"
    codec = durable.Encryption({"k1": b"k" * 32})
    durable.configure(f"sqlite:///{database}", durability="off", codec=codec)
    try:

        async def whisper(item: str) -> str:
            return f"heard {item}"

        secrets = [f"secret {number}" for number in range(1500)]
        op = BulkOperation(whisper, config(batch_size=100, max_concurrency=100))
        for _ in range(2):
            found = (await op.execute(secrets, run_id="b")).unwrap()
            assert found.results[1499] == "heard secret 1499"
        machine = durable.StateMachine("shut", {"shut": {"openly": "open"}, "open": {}}, machine_id="m")
        await machine.transition("openly")
        assert len(await machine.history()) == 1
    finally:
        durable.configure()
    stored = b"".join(path.read_bytes() for path in tmp_path.glob("sealed.db*") if path.is_file())
    assert b"secret 1499" not in stored
    assert b"openly" not in stored
