"""Claims: who may take what, and what comes with it."""

from __future__ import annotations

import pytest
from store_steps import NOW, SECOND, W1, a_worker, claim, commit, signal, start, started_by, turn

from durable.errors import LeaseLostError
from durable.store.contract import Store
from durable.store.records import AttemptRow, HandBack, Wait


async def test_a_run_has_one_owner(store: Store) -> None:
    """What one worker took, another cannot."""
    one, two = await a_worker(store), await a_worker(store)
    await start(store, "x")

    assert len(await claim(store, one)) == 1
    assert await claim(store, two) == []
    assert await claim(store, one) == []


async def test_claims_filter_by_definition_and_task_queue(store: Store) -> None:
    """A worker takes only what it has registered; unknown runs stay pending and block nobody (P13)."""
    worker = await a_worker(store)
    await start(store, "older-unknown", workflow="v")
    await start(store, "other-version", version=2)
    await start(store, "other-queue", task_queue="gpu")
    await start(store, "mine")

    assert [held.run_id for held in await claim(store, worker)] == ["mine"]
    found = await claim(store, worker, task_queue=None, definitions=[("w", 1), ("w", 2)])
    assert {held.run_id for held in found} == {"other-version", "other-queue"}


async def test_the_oldest_ready_runs_come_first_over_all_definitions(store: Store) -> None:
    """`ready_at` orders claims, whatever the workflow."""
    worker = await a_worker(store)
    for position, workflow in enumerate(["b", "a", "b", "a"]):
        await start(store, f"r{position}", workflow=workflow, now_us=NOW + position)

    found = await claim(store, worker, now_us=NOW + 9, limit=3, definitions=[("a", 1), ("b", 1)])

    assert [held.run_id for held in found] == ["r0", "r1", "r2"]


async def test_claims_can_be_limited_to_named_runs(store: Store) -> None:
    """An embedded engine takes only what it started or resumes by id."""
    worker = await a_worker(store)
    await start(store, "x")
    wanted = (await start(store, "y")).run.pk

    assert [held.run_id for held in await claim(store, worker, task_queue=None, pks=[wanted])] == ["y"]


async def test_a_claim_brings_all_that_driving_needs(store: Store) -> None:
    """Journal, inbox, attempts and counters are read in the same transaction."""
    one, two = await a_worker(store), await a_worker(store)
    held = await started_by(store, one, "x", deadline_us=NOW * 2)
    row = AttemptRow(op=3, attempt=2, state="backoff", due_at_us=NOW, failure=b"{}")
    await commit(store, one, turn(held, 1, b"a", attempts=[row]), turn(held, 2, b"b"))
    await signal(store, "x", data=b'"hi"', message_id="m")
    await commit(store, one, turn(held, None, after=HandBack()))

    (again,) = await claim(store, two)

    assert [(row.turn, row.part, row.data) for row in again.journal] == [(1, 1, b"a"), (2, 1, b"b")]
    assert again.attempts == [row]
    (message,) = again.inbox
    assert (message.msg, message.name, message.data, message.message_id) == (1, "go", b'"hi"', "m")
    assert (again.msg_seq, again.deadline_us, again.claim_no) == (1, NOW * 2, held.claim_no + 1)
    assert await store.read_claims(two, [held.pk, 999]) == [again]
    assert await store.read_claims(one, [held.pk]) == []


async def test_a_dead_worker_claims_nothing(store: Store) -> None:
    """The fence comes first, whether there is work or not."""
    worker = await a_worker(store)
    await store.retire_worker(worker)
    with pytest.raises(LeaseLostError):
        await claim(store, worker)

    await start(store, "x")
    with pytest.raises(LeaseLostError):
        await claim(store, worker)


@pytest.mark.parametrize("kind", ["ready", "delayed", "owned", "sleeping"])
async def test_a_draining_worker_waits_for_what_goes_on_by_itself(store: Store, kind: str) -> None:
    """Of its own queues and definitions; not for what waits for somebody outside."""
    worker = await a_worker(store)
    idle = await started_by(store, worker, "idle")
    await commit(store, worker, turn(idle, after=Wait(due_at_us=None)))
    assert not await store.has_backlog(["default", "gpu"], W1)

    if kind in ("owned", "sleeping"):
        held = await started_by(store, worker, "r")
    else:
        await start(store, "r", ready_at_us=NOW + SECOND if kind == "delayed" else None)
    if kind == "sleeping":
        await commit(store, worker, turn(held, after=Wait(due_at_us=NOW)))

    assert await store.has_backlog(["gpu", "default"], [("v", 1), ("w", 1)])
    assert not await store.has_backlog(["gpu"], W1)
    assert not await store.has_backlog(["default"], [("w", 2), ("v", 1)])
