"""Messages, due times, deadlines."""

from __future__ import annotations

import pytest
from store_steps import (
    NOW,
    SECOND,
    a_worker,
    claim,
    close,
    commit,
    signal,
    start,
    started_by,
    status,
    to,
    turn,
)

from durable.errors import RunNotFoundError, WorkflowStateError
from durable.journal.events import TimedOut
from durable.journal.lifecycle import RunStatus
from durable.journal.turns import decode_turn
from durable.store.contract import Store
from durable.store.records import Close, Wait


async def test_messages_are_counted_on_the_run(store: Store) -> None:
    """Numbers follow the order of acknowledged sends (P2)."""
    await start(store, "x")

    assert [await signal(store, "x") for _ in range(3)] == [1, 2, 3]
    run = await store.get_run("x")
    assert (run.unread, run.status) == (3, RunStatus.PENDING)


async def test_a_message_wakes_a_waiting_run(store: Store) -> None:
    """Message and readiness are one transaction; the timer comes back with the next wait."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, after=Wait(due_at_us=NOW + SECOND)))

    await signal(store, "x", now_us=NOW + 1)

    assert (await store.get_run("x")).due_at_us is None
    (again,) = await claim(store, worker, now_us=NOW + 1)
    assert [message.msg for message in again.inbox] == [1]


async def test_a_waiting_run_can_be_woken_for_nothing(store: Store) -> None:
    """Whoever resumes it by its id meets it at once; only a waiting run is woken so."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    assert not await store.wake_run("x", NOW)
    await commit(store, worker, turn(held, after=Wait(due_at_us=NOW + SECOND)))

    assert await store.wake_run("x", NOW + 1)

    assert not await store.wake_run("x", NOW + 1)
    (again,) = await claim(store, worker, now_us=NOW + 1)
    assert (again.run_id, len(again.journal), again.inbox) == ("x", 1, [])


async def test_a_message_does_not_start_a_delayed_run_early(store: Store) -> None:
    """A delayed start keeps its time; the message waits with it."""
    worker = await a_worker(store)
    await start(store, "x", ready_at_us=NOW + SECOND)

    await signal(store, "x")

    assert await claim(store, worker) == []
    assert len((await claim(store, worker, now_us=NOW + SECOND))[0].inbox) == 1


async def test_a_repeated_message_is_taken_once(store: Store) -> None:
    """The same message id adds nothing, consumed or not, and is no error after the close (P4)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    first = await signal(store, "x", message_id="m")
    assert await signal(store, "x", message_id="m") == first
    assert (await store.send_message(to("x", message_id="m"), NOW)).is_unread
    (message,) = await store.read_inbox(worker)
    assert await store.last_turn(held.pk, held.generation) == 0
    await commit(store, worker, turn(held, 1, consumed=[message.inbox_id], seen=1))
    assert await store.last_turn(held.pk, held.generation) == 1
    assert not (await store.send_message(to("x", message_id="m"), NOW)).is_unread
    assert await signal(store, "x", message_id="m") == first
    assert await store.read_inbox(worker) == []

    await commit(store, worker, turn(held, 2, seen=1, after=Close(status=RunStatus.COMPLETED)))

    again = await store.send_message(to("x", message_id="m"), NOW)
    assert (again.msg, again.duplicate) == (first, True)


async def test_a_closed_run_takes_no_new_message(store: Store) -> None:
    """The sender learns it, with the status."""
    worker = await a_worker(store)
    await close(store, worker, await started_by(store, worker, "x"))

    with pytest.raises(WorkflowStateError) as raised:
        await signal(store, "x")
    assert raised.value.status == "completed"


async def test_an_unknown_run_is_named_with_its_neighbours(store: Store) -> None:
    """A mistyped id is answered with near ones."""
    await start(store, "order-17")

    for verb in (
        lambda: signal(store, "order-71"),
        lambda: store.get_run("order-71"),
        lambda: store.terminate_run("order-71", None, NOW),
        lambda: store.unpark_run("order-71", NOW),
    ):
        with pytest.raises(RunNotFoundError) as raised:
            await verb()
        assert raised.value.suggestions == ("order-17",)
    with pytest.raises(RunNotFoundError, match="order-17@3"):
        await store.get_run("order-17", 3)


async def test_the_inbox_of_some_of_a_workers_runs(store: Store) -> None:
    """Whoever names runs is told of no others; of another worker's nobody is."""
    worker, other = await a_worker(store), await a_worker(store)
    one, two = await started_by(store, worker, "one"), await started_by(store, worker, "two")
    foreign = await started_by(store, other, "foreign")
    for run in (one, two, foreign):
        await signal(store, run.run_id)

    assert [m.run_pk for m in await store.read_inbox(worker)] == [one.pk, two.pk]
    assert [m.run_pk for m in await store.read_inbox(worker, [two.pk, foreign.pk])] == [two.pk]
    assert await store.read_inbox(worker, []) == []


async def test_due_runs_become_ready_and_the_next_time_is_told(store: Store) -> None:
    """Never before the time, all of those past it, oldest first."""
    worker = await a_worker(store)
    for n in (1, 2, 3):
        held = await started_by(store, worker, f"r{n}")
        await commit(store, worker, turn(held, after=Wait(due_at_us=NOW + n * SECOND)))

    early = await store.wake_due_runs(NOW + SECOND - 1)
    assert (early.woken, early.next_due_us) == (0, NOW + SECOND)
    due = await store.wake_due_runs(NOW + 2 * SECOND)
    assert (due.woken, due.next_due_us) == (2, NOW + 3 * SECOND)
    assert await status(store, "r1") is RunStatus.RUNNING
    assert [held.run_id for held in await claim(store, worker, now_us=NOW + 2 * SECOND)] == ["r1", "r2"]


async def test_due_runs_are_woken_in_bounded_portions(store: Store) -> None:
    """A hundred thousand timers of one second do not make one transaction."""
    worker = await a_worker(store)
    for n in range(3):
        held = await started_by(store, worker, f"r{n}")
        await commit(store, worker, turn(held, after=Wait(due_at_us=NOW)))

    assert [(await store.wake_due_runs(NOW, limit=2)).woken for _ in range(3)] == [2, 1, 0]


async def test_overdue_runs_are_closed_with_their_journal_row(store: Store) -> None:
    """The deadline closes a run whoever owns it; no code of the workflow runs."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "owned", deadline_us=NOW + SECOND)
    await start(store, "pending", deadline_us=NOW + SECOND)
    await start(store, "later", deadline_us=NOW + 9 * SECOND)
    await commit(store, worker, turn(held, 1))

    assert (await store.close_overdue_runs(NOW)).next_due_us == NOW + SECOND
    outcome = await store.close_overdue_runs(NOW + SECOND)

    assert (outcome.woken, outcome.next_due_us) == (2, NOW + 9 * SECOND)
    assert {await status(store, run_id) for run_id in ("owned", "pending")} == {RunStatus.TIMED_OUT}
    last = (await store.read_journal(held.pk, 1))[-1]
    assert decode_turn(last.data).entries == [TimedOut(at=NOW + SECOND)]
    assert await commit(store, worker, turn(held, 2)) == ["lost"]
    with pytest.raises(WorkflowStateError):
        await signal(store, "owned")
