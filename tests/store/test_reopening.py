"""The next generation of a closed run: archived, opened and filled in one transaction, once."""

from __future__ import annotations

import pytest

from durable.errors import RunNotFoundError, WorkflowStateError
from durable.journal.lifecycle import RunStatus
from durable.store.contract import Store
from durable.store.records import Close, Redelivery, Reopen
from tests.store.store_steps import (
    NOW,
    SECOND,
    a_worker,
    claim,
    commit,
    journal,
    signal,
    start,
    started_by,
    turn,
)

LATER = NOW + 60 * SECOND


async def a_failed_run(store: Store, worker: int, **changes: object) -> Reopen:
    """Three turns, the second of which took in a signal; closed as failed."""
    held = await started_by(store, worker, "r", **changes)
    await commit(store, worker, turn(held, 1, b"one"))
    msg = await signal(store, "r", message_id="m", data=b'"hi"')
    (message,) = await store.read_inbox(worker)
    await commit(store, worker, turn(held, 2, b"two", consumed=[message.inbox_id], seen=msg))
    done = Close(status=RunStatus.FAILED, failure=b"{}")
    assert await commit(store, worker, turn(held, 3, b"three", seen=msg, after=done)) == ["committed"]
    return Reopen(pk=held.pk, run_id="r", generation=1, attempt=2)


async def test_a_part_of_the_journal_is_kept(store: Store) -> None:
    """Turns before, a turn of its own, and messages under their old numbers; the former generation stays as it was."""
    worker = await a_worker(store)
    failed = await a_failed_run(store, worker)
    await store.reopen_run(
        Reopen(
            pk=failed.pk,
            run_id="r",
            generation=1,
            attempt=2,
            copy_turns=1,
            parts=(b"new", b"parts"),
            redeliver=(Redelivery(msg=1, kind="signal", name="go", data=b'"hi"', message_id="m"),),
        ),
        LATER,
    )

    ((held),) = await claim(store, worker, now_us=LATER)
    assert [(row.turn, row.part, row.data) for row in held.journal] == [
        (1, held.journal[0].part, b"one"),
        (2, held.journal[1].part, b"new"),
        (2, held.journal[1].part + 1, b"parts"),
    ]
    assert [(one.msg, one.data, one.message_id) for one in held.inbox] == [(1, b'"hi"', "m")]
    assert (held.generation, held.epoch, held.attempt) == (2, 1, 2)
    assert [data for _, data in await journal(store, held, 1)] == [b"one", b"two", b"three"]
    before = await store.get_run("r", 1)
    assert (before.status, before.failure, before.attempt) == (RunStatus.FAILED, b"{}", 1)
    assert await signal(store, "r", message_id="m") == 1


async def test_a_new_epoch_with_nothing_of_the_former(store: Store) -> None:
    """As a new start under the id: but the input is the same."""
    worker = await a_worker(store)
    failed = await a_failed_run(store, worker, input=b'["bolt"]')
    again = Reopen(pk=failed.pk, run_id="r", generation=1, attempt=1, new_epoch=True)
    await store.reopen_run(again, LATER)

    ((held),) = await claim(store, worker, now_us=LATER)
    assert (held.generation, held.epoch, held.attempt) == (2, 2, 1)
    assert (held.journal, held.inbox, held.input) == ([], [], b'["bolt"]')


async def test_its_time_begins_anew(store: Store) -> None:
    """As long as the first generation of the epoch had, however often it is reopened."""
    worker = await a_worker(store)
    failed = await a_failed_run(store, worker, deadline_us=NOW + 10 * SECOND)
    await store.reopen_run(failed, LATER)
    assert (await store.get_run("r")).deadline_us == LATER + 10 * SECOND
    assert (await store.close_overdue_runs(LATER + 11 * SECOND)).woken == 1
    again = Reopen(pk=failed.pk, run_id="r", generation=2, attempt=3)
    await store.reopen_run(again, LATER + 20 * SECOND)
    assert (await store.get_run("r")).deadline_us == LATER + 30 * SECOND


async def test_only_the_latest_generation_and_only_if_it_is_closed(store: Store) -> None:
    """Otherwise nothing is written."""
    worker = await a_worker(store)
    failed = await a_failed_run(store, worker)
    await store.reopen_run(failed, LATER)
    for generation in (1, 2):
        again = Reopen(pk=failed.pk, run_id="r", generation=generation, attempt=3)
        with pytest.raises(WorkflowStateError, match="started again meanwhile and is pending"):
            await store.reopen_run(again, LATER)
    ((held),) = await claim(store, worker, now_us=LATER)
    done = Close(status=RunStatus.COMPLETED, result=b"1")
    assert await commit(store, worker, turn(held, seen=held.msg_seq, after=done)) == ["committed"]
    await start(store, "r", if_closed="new")
    with pytest.raises(WorkflowStateError):
        await store.reopen_run(Reopen(pk=failed.pk, run_id="r", generation=2, attempt=3), LATER)
    with pytest.raises(RunNotFoundError):
        await store.reopen_run(Reopen(pk=99, run_id="none", generation=1, attempt=2), LATER)
    assert (await store.get_run("r")).generation == 3
