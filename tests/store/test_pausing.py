"""What is paused is claimed by nobody, whoever sets it ready; and nothing that reached it meanwhile is lost."""

from __future__ import annotations

import pytest

from durable.errors import RunNotFoundError, WorkflowStateError
from durable.journal.lifecycle import RunStatus
from durable.store.contract import Store
from durable.store.records import (
    HandBack,
    NextGeneration,
    Park,
    Pauses,
    RunFilter,
    TurnCommit,
    Wait,
)
from tests.store.store_steps import (
    NOW,
    SECOND,
    W1,
    a_worker,
    claim,
    close,
    commit,
    signal,
    start,
    started_by,
    status,
    turn,
)

LATER = NOW + 60 * SECOND


async def claimed(store: Store, worker: int, now_us: int = LATER) -> list[str]:
    return [one.run_id for one in await claim(store, worker, now_us=now_us)]


async def test_a_paused_run_is_claimed_when_it_is_resumed(store: Store) -> None:
    """Neither call changes anything the second time."""
    worker = await a_worker(store)
    await start(store, "r")

    assert await store.pause_run("r", "ask ann", NOW + 1)
    assert not await store.pause_run("r", "another reason", NOW + 2)
    assert await claimed(store, worker) == []
    seen = await store.get_run("r")
    assert (seen.status, seen.paused_at_us, seen.pause_reason) == (RunStatus.PENDING, NOW + 1, "ask ann")

    assert await store.resume_run("r", NOW)
    assert not await store.resume_run("r", NOW)
    assert await claimed(store, worker) == ["r"]
    assert (await store.get_run("r")).paused_at_us is None


async def test_a_delayed_start_keeps_its_instant(store: Store) -> None:
    """A pause that ends before it does not bring it forward."""
    worker = await a_worker(store)
    await start(store, "r", ready_at_us=LATER)
    await store.pause_run("r", None, NOW)
    await store.resume_run("r", NOW)

    assert await claimed(store, worker, LATER - 1) == []
    assert await claimed(store, worker, LATER) == ["r"]


async def test_a_delayed_start_that_falls_due_while_paused_is_claimed_at_the_end_of_the_pause(
    store: Store,
) -> None:
    """Not before."""
    worker = await a_worker(store)
    await start(store, "r", ready_at_us=NOW + 1)
    await store.pause_run("r", None, NOW)

    assert await claimed(store, worker) == []
    await store.resume_run("r", NOW)
    assert await claimed(store, worker) == ["r"]


async def test_an_owner_learns_which_of_its_runs_are_paused(store: Store) -> None:
    """Its own only; a worker and its task queues by name."""
    mine, other = await a_worker(store, "mine"), await a_worker(store, "other")
    held = await started_by(store, mine, "mine")
    await started_by(store, other, "other")
    for run_id in ("mine", "other"):
        await store.pause_run(run_id, None, NOW)
    assert await store.read_pauses(mine) == Pauses(pks=frozenset({held.pk}))

    await store.pause("worker", "mine", None, NOW)
    await store.pause("task_queue", "gpu", "no cards", NOW)
    assert await store.read_pauses(mine) == Pauses(
        is_worker_paused=True, task_queues=frozenset({"gpu"}), pks=frozenset({held.pk})
    )
    assert not (await store.read_pauses(other)).is_worker_paused
    assert [(one.kind, one.name, one.reason) for one in await store.list_pauses()] == [
        ("task_queue", "gpu", "no cards"),
        ("worker", "mine", None),
    ]


@pytest.mark.parametrize("way", ["hand back", "retire", "message", "timer", "unpark", "retry"])
async def test_whatever_sets_a_paused_run_ready_leaves_it_held(store: Store, way: str) -> None:
    """A hand-back, its worker's end, a message, a due timer, the end of its parking, a workflow-level retry."""
    worker, other = await a_worker(store), await a_worker(store)
    held = await started_by(store, worker, "r")
    await store.pause_run("r", None, NOW)
    after = {
        "hand back": HandBack(),
        "message": Wait(due_at_us=None),
        "timer": Wait(due_at_us=NOW + 1),
        "unpark": Park(reason="why"),
        "retry": NextGeneration(
            failure=b"{}", copy_turns=0, parts=(), redeliver=(), ready_at_us=NOW, attempt=2
        ),
    }.get(way)
    if after is None:
        await store.retire_worker(worker)
    else:
        assert await commit(store, worker, turn(held, after=after)) == ["committed"]
    if way == "message":
        await signal(store, "r")
    elif way == "timer":
        assert (await store.wake_due_runs(LATER)).woken == 1
    elif way == "unpark":
        assert await store.unpark_run("r", NOW)

    assert await claimed(store, other) == []
    assert await store.resume_run("r", NOW)
    ((again),) = await claim(store, other, now_us=LATER)
    assert (again.run_id, len(again.inbox)) == ("r", int(way == "message"))


async def test_a_waiting_run_that_is_paused_and_resumed_goes_on_waiting(store: Store) -> None:
    """Nobody has to replay it for nothing."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "r")
    await commit(store, worker, turn(held, after=Wait(due_at_us=LATER)))
    await store.pause_run("r", None, NOW)
    await store.resume_run("r", NOW)

    assert await status(store, "r") is RunStatus.WAITING
    assert await claimed(store, worker, NOW + 2) == []
    assert (await store.wake_due_runs(LATER)).woken == 1
    assert await claimed(store, worker) == ["r"]


async def test_a_paused_run_can_be_closed(store: Store) -> None:
    """By its owner, by force; and a new start under its id is not paused."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "a")
    await start(store, "b")
    for run_id in ("a", "b"):
        await store.pause_run(run_id, None, NOW)
    await close(store, worker, held)
    await store.terminate_run("b", None, NOW)

    for run_id in ("a", "b"):
        with pytest.raises(WorkflowStateError, match="nothing to pause"):
            await store.pause_run(run_id, None, NOW)
        await start(store, run_id, if_closed="new")
    assert sorted(await claimed(store, worker)) == ["a", "b"]


async def test_deadlines_count_while_paused(store: Store) -> None:
    """A pause is no way around a workflow's timeout."""
    await start(store, "r", deadline_us=NOW + 1)
    await store.pause_run("r", None, NOW)

    assert (await store.close_overdue_runs(LATER)).woken == 1
    assert await status(store, "r") is RunStatus.TIMED_OUT


@pytest.mark.parametrize("task_queue", ["default", None])
async def test_nothing_is_claimed_from_a_paused_queue(store: Store, task_queue: str | None) -> None:
    """By workers of one queue and by those of any; other queues go on."""
    worker = await a_worker(store)
    first = (await start(store, "r")).run
    await start(store, "delayed", ready_at_us=NOW + 1)
    other = (await start(store, "other", task_queue="other")).run

    assert await store.pause("task_queue", "default", None, NOW)
    assert not await store.pause("task_queue", "default", None, NOW)
    expected = [] if task_queue else ["other"]
    found = await claim(store, worker, now_us=LATER, task_queue=task_queue)
    assert [one.run_id for one in found] == expected
    pks = [first.pk] if task_queue else [first.pk, other.pk]
    assert await claim(store, worker, now_us=LATER, task_queue=None, pks=pks) == []

    assert await store.resume("task_queue", "default")
    assert not await store.resume("task_queue", "default")
    assert sorted(await claimed(store, worker)) == ["delayed", "r"]


async def test_a_paused_worker_claims_nothing(store: Store) -> None:
    """Others do; and its next incarnation is paused, too."""
    worker, other = await a_worker(store, "web-1"), await a_worker(store, "web-2")
    await start(store, "r")
    await store.pause("worker", "web-1", None, NOW)
    again = await a_worker(store, "web-1")

    assert await claimed(store, worker) == []
    assert await claimed(store, again) == []
    assert await claimed(store, other) == ["r"]


async def test_paused_runs_are_listed_as_what_they_are(store: Store) -> None:
    """Pending if nobody has driven them, else running; and health counts them apart."""
    worker = await a_worker(store)
    await start(store, "pending")
    held = await started_by(store, worker, "running")
    for run_id in ("pending", "running"):
        await store.pause_run(run_id, None, NOW)
    await commit(store, worker, TurnCommit(pk=held.pk, generation=1, claim_no=1, after=HandBack()))

    for wanted in (RunStatus.PENDING, RunStatus.RUNNING):
        found = await store.list_runs(RunFilter(status=(wanted,)))
        assert [(one.run_id, one.status) for one in found] == [(str(wanted), wanted)]
    assert [(one.state, one.runs) for one in (await store.read_health()).open_runs] == [("paused", 2)]


async def test_a_backlog_knows_that_paused_runs_wait_for_somebody(store: Store) -> None:
    """A draining worker must not wait for what is paused."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "timer")
    await commit(store, worker, turn(held, after=Wait(due_at_us=LATER)))
    await start(store, "ready")
    for run_id in ("timer", "ready"):
        await store.pause_run(run_id, None, NOW)
    assert not await store.has_backlog(["default"], W1)

    await store.resume_run("timer", NOW)
    assert await store.has_backlog(["default"], W1)
    await store.pause_run("timer", None, NOW)
    await store.resume_run("ready", NOW)
    assert await store.has_backlog(["default"], W1)
    await store.pause("task_queue", "default", None, NOW)
    assert not await store.has_backlog(["default"], W1)


async def test_an_unknown_run_cannot_be_paused(store: Store) -> None:
    """With near ids."""
    await start(store, "order-7")
    for call in (store.pause_run("order-8", None, NOW), store.resume_run("order-8", NOW)):
        with pytest.raises(RunNotFoundError, match="order-7"):
            await call


@pytest.mark.parametrize("what", ["run", "task_queue", "worker"])
async def test_parked_runs_that_are_paused_are_not_tried_with_other_code(store: Store, what: str) -> None:
    """A deploy does not end a pause."""
    worker = await a_worker(store, "web-1")
    held = await started_by(store, worker, "r")
    await commit(store, worker, turn(held, after=Park(reason="why")))
    if what == "run":
        await store.pause_run("r", None, NOW)
    else:
        await store.pause(what, "default" if what == "task_queue" else "web-1", None, NOW)  # type: ignore[arg-type]  # the other two

    async def tried() -> list[str]:
        found = await store.claim_parked_runs(worker, limit=9, task_queue="default", codes=(("w", 1, "new"),))
        return [one.run_id for one in found]

    assert await tried() == []
    if what == "run":
        await store.resume_run("r", NOW)
    else:
        await store.resume(what, "default" if what == "task_queue" else "web-1")  # type: ignore[arg-type]  # as above
    assert await tried() == ["r"]
