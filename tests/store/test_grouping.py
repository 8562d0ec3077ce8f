"""Messages that are sent at the same moment: together where that helps, each its sender's own in any case."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from conftest import Opener
from store_steps import NOW, a_worker, claim, request, signal, start, to

from durable.errors import (
    InboxFullError,
    RunConflictError,
    RunNotFoundError,
    StoreError,
    WorkflowStateError,
)
from durable.store.contract import Store
from durable.store.sqlite import messages
from durable.store.sqlite.store import SqliteStore


def transactions(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Return a list that grows with each transaction the store's writer runs."""
    assert isinstance(store, SqliteStore)
    writer = store._writer
    assert writer is not None
    seen: list[Any] = []
    transaction = writer._transaction

    def counted(work: Callable[[sqlite3.Connection], Any]) -> Any:
        seen.append(work)
        return transaction(work)

    monkeypatch.setattr(writer, "_transaction", counted)
    return seen


async def test_each_of_many_senders_learns_what_became_of_its_own(store: Store) -> None:
    """An unknown run, a closed one, a full inbox, a message taken in before: none of it is the neighbours' business."""
    for run_id in ("open", "closed", "full"):
        await start(store, run_id)
    await store.terminate_run("closed", None, NOW)
    first = await signal(store, "open", message_id="known")
    await signal(store, "full")

    async def to_full() -> int:
        outcome = await store.send_message(to("full", unread_max=1), NOW)
        return outcome.msg

    answers = await asyncio.gather(
        signal(store, "open", message_id="a"),
        signal(store, "nobody"),
        signal(store, "open", message_id="known"),
        signal(store, "closed"),
        to_full(),
        signal(store, "open", message_id="b"),
        return_exceptions=True,
    )

    assert [type(one) for one in answers] == [
        int, RunNotFoundError, int, WorkflowStateError, InboxFullError, int,
    ]  # fmt: skip
    assert answers[2] == first
    assert sorted([answers[0], answers[5]]) == [first + 1, first + 2]
    worker = await a_worker(store)
    unread = {
        held.run_id: [message.message_id for message in held.inbox] for held in await claim(store, worker)
    }
    assert sorted(map(str, unread["open"])) == ["a", "b", "known"]
    assert len(unread["full"]) == 1


@pytest.mark.stores("sqlite")
async def test_what_is_sent_at_once_shares_a_transaction(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifty senders wait for the disk once, in the order in which they asked."""
    await start(store, "x")
    seen = transactions(store, monkeypatch)

    sent = await asyncio.gather(*[signal(store, "x") for _ in range(50)])

    assert sent == list(range(1, 51))
    assert len(seen) == 1


@pytest.mark.stores("sqlite")
async def test_starts_and_signals_share_a_transaction(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that is refused undoes itself, and nothing else."""
    await start(store, "taken")
    seen = transactions(store, monkeypatch)

    answers = await asyncio.gather(
        start(store, "new"),
        store.start_runs([request("also-new"), request("taken", if_open="fail")], NOW),
        signal(store, "taken"),
        signal(store, "new"),
        return_exceptions=True,
    )

    assert [type(one).__name__ for one in answers] == [
        "StartOutcome",
        RunConflictError.__name__,
        "int",
        "int",
    ]
    assert len(seen) == 1
    with pytest.raises(RunNotFoundError):
        await store.get_run("also-new")


@pytest.mark.stores("sqlite")
async def test_nobody_is_answered_before_the_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group whose transaction fails is not there, and each of its callers is told."""
    await start(store, "x")
    assert isinstance(store, SqliteStore)
    writer = store._writer
    assert writer is not None
    real = writer._execute

    def full_disk(sql: str, *args: Any) -> Any:
        if sql == "COMMIT":
            raise sqlite3.OperationalError("disk I/O error")
        return real(sql, *args)

    with monkeypatch.context() as broken:
        broken.setattr(writer, "_execute", full_disk)
        answers = await asyncio.gather(*[signal(store, "x") for _ in range(3)], return_exceptions=True)

    assert [isinstance(one, StoreError) for one in answers] == [True] * 3
    assert await signal(store, "x") == 1


@pytest.mark.stores("sqlite")
async def test_an_interrupt_leaves_nobody_waiting(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of a group: it is rolled back, its callers are told, the next one is written."""
    await start(store, "x")
    assert isinstance(store, SqliteStore)
    assert store._groups is not None
    write_group = store._groups._write_group
    interrupts: list[BaseException] = []

    def interrupted(*args: Any) -> Any:
        raise KeyboardInterrupt

    def survived() -> None:
        try:
            write_group()
        except KeyboardInterrupt as error:  # it would end the loop, and the test with it
            interrupts.append(error)

    with monkeypatch.context() as broken:
        broken.setattr(messages, "send_message", interrupted)
        broken.setattr(store._groups, "_write_group", survived)
        answers = await asyncio.gather(*[signal(store, "x") for _ in range(3)], return_exceptions=True)

    assert len(interrupts) == 1
    assert [isinstance(one, StoreError) for one in answers] == [True] * 3
    assert await signal(store, "x") == 1


@pytest.mark.stores("sqlite")
async def test_a_sender_that_gives_up_in_time_has_sent_nothing(store: Store) -> None:
    """Cancelled before its group began; its neighbours do not notice."""
    await start(store, "x")
    tasks = [asyncio.create_task(signal(store, "x", message_id=str(number))) for number in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()

    answers = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(one) for one in answers] == [int, asyncio.CancelledError, int]
    (held,) = await claim(store, await a_worker(store))
    assert [message.message_id for message in held.inbox] == ["0", "2"]


@pytest.mark.stores("sqlite")
async def test_while_somebody_else_writes_senders_wait_together(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the write lock taken the group goes to the thread; those who come meanwhile are the next group."""
    store, other = await opener(), await opener()
    await start(store, "x")
    assert isinstance(other, SqliteStore)
    assert other._writer is not None
    assert other._writer._lock.try_acquire(look=True)
    seen = transactions(store, monkeypatch)

    first = [asyncio.create_task(signal(store, "x")) for _ in range(5)]
    await asyncio.sleep(0.01)
    later = [asyncio.create_task(signal(store, "x")) for _ in range(5)]
    await asyncio.sleep(0.01)
    assert not any(task.done() for task in first + later)
    other._writer._lock.release()

    assert await asyncio.gather(*first, *later) == list(range(1, 11))
    assert len(seen) == 2


@pytest.mark.stores("sqlite")
async def test_closing_refuses_what_has_not_begun(opener: Opener) -> None:
    """It is not written, and says so: nobody waits for ever."""
    store = await opener()
    await start(store, "x")
    sending = asyncio.create_task(signal(store, "x"))
    await asyncio.sleep(0)

    await store.close()

    with pytest.raises(StoreError, match="closed"):
        await sending
    again = await opener()
    assert (await again.get_run("x")).unread == 0
