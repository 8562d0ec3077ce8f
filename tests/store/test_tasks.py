"""Activity tasks: written with the turn that asks for them, one worker's at a time, one outcome each; decided by the database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from store_steps import (
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

from durable import Encryption
from durable.errors import LeaseLostError
from durable.journal.lifecycle import RunStatus
from durable.payloads.codec import is_sealed
from durable.store.contract import Store
from durable.store.records import (
    GRACE_US,
    Claim,
    Close,
    ClosedRuns,
    FailedAttempt,
    NewTask,
    NextGeneration,
    OpenTasks,
    Task,
    TaskBeat,
    TaskClosing,
    TaskEnd,
    Wait,
    WorkerInfo,
    answered_attempt,
)
from durable.store.sealing import sealed


def new_task(op: int = 1, **changes: Any) -> NewTask:
    values: dict[str, Any] = {
        "task_queue": "gpu",
        "activity": "train",
        "name": "train",
        "key": f"r@1/train#{op}",
        "args": b'["model"]',
        "policy": "{}",
    }
    return NewTask(op=op, **{**values, **changes})


async def an_owner(store: Store, *tasks: NewTask, run_id: str = "r") -> tuple[int, Claim]:
    """Return a worker and its claim of a run whose first turn asks for these tasks."""
    worker = await a_worker(store)
    held = await started_by(store, worker, run_id)
    assert await commit(store, worker, turn(held, 1, tasks=tasks or (new_task(),))) == ["committed"]
    return worker, held


async def a_performer(store: Store, name: str = "gpu-1") -> int:
    info = WorkerInfo(name=name, task_queue="gpu", definitions=(), activities=("train",))
    return await store.register_worker(info)


async def take(
    store: Store,
    worker: int,
    *,
    now_us: int = NOW,
    limit: int = 10,
    lost_limit: int = 10,
    task_queues: tuple[str, ...] = ("gpu",),
    activities: tuple[str, ...] = ("train",),
) -> list[Task]:
    return await store.claim_tasks(
        worker,
        now_us=now_us,
        limit=limit,
        lost_limit=lost_limit,
        task_queues=task_queues,
        activities=activities,
    )


async def end(store: Store, worker: int, task: Task, how: Any = "completed", **changes: Any) -> str:
    values: dict[str, Any] = {"data": b"1" if how in ("completed", "failed") else b""}
    now_us = changes.pop("now_us", NOW)
    (verdict,) = await store.end_tasks(worker, [TaskEnd(task=task, how=how, **{**values, **changes})], now_us)
    return verdict


async def strays(store: Store, now_us: int = NOW) -> list[Task]:
    return (await store.find_stray_tasks(now_us)).tasks


async def settle(store: Store, task: Task, how: Any, now_us: int = NOW, **changes: Any) -> str:
    values: dict[str, Any] = {"data": b"1" if how in ("completed", "failed") else b""}
    (verdict,) = await store.settle_tasks([TaskEnd(task=task, how=how, **{**values, **changes})], now_us)
    return verdict


# ─ scheduling ──


async def test_a_task_is_there_with_the_turn_that_asks_for_it(store: Store) -> None:
    """And with its row of attempts, which says where the attempts are counted."""
    _, held = await an_owner(store)

    (task,) = await store.read_tasks(held.pk, 1)
    assert (task.state, task.attempt, task.run_id, task.key) == ("ready", 0, "r", "r@1/train#1")
    (row,) = await store.read_attempts(held.pk, 1)
    assert (row.op, row.attempt, row.state, row.completion) == (1, 0, "started", "remote")


async def test_a_turn_that_is_refused_asks_for_nothing(store: Store) -> None:
    """Of a run that is somebody else's no task is written."""
    worker, held = await an_owner(store)
    await store.retire_worker(worker)
    other = await a_worker(store)
    (again,) = await claim(store, other)
    assert again.attempts[0].completion == "remote"

    late = turn(again, 2, claim_no=held.claim_no, tasks=[new_task(2)])
    assert await commit(store, other, late) == ["lost"]

    assert [task.op for task in await store.read_tasks(held.pk, 1)] == [1]


async def test_a_task_written_twice_is_there_once(store: Store) -> None:
    """Marks may be repeated after a commit whose answer was lost: not even after its outcome does the task come back."""
    worker, held = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    await end(store, performer, task)

    assert await commit(store, worker, turn(held, None, tasks=[new_task()])) == ["committed"]

    assert await store.read_tasks(held.pk, 1) == []
    (row,) = await store.read_attempts(held.pk, 1)
    assert row.completion == "answered"


# ─ claiming ──


async def test_a_claim_charges_the_attempt_before_it_begins(store: Store) -> None:
    """Whoever dies after it has used the attempt."""
    await an_owner(store)
    performer = await a_performer(store)

    (task,) = await take(store, performer)

    assert (task.state, task.attempt, task.claim_no, task.owner) == ("started", 1, 1, performer)
    assert (task.args, task.workflow, task.activity) == (b'["model"]', "w", "train")
    assert await take(store, await a_performer(store, "gpu-2")) == []


async def test_two_workers_share_the_tasks_and_none_is_taken_twice(store: Store, opener: Any) -> None:
    """Whoever comes second skips what the first one takes."""
    await an_owner(store, *(new_task(op) for op in range(1, 21)))
    stores = [store, await opener()]
    workers = [await a_performer(one, f"gpu-{number}") for number, one in enumerate(stores)]

    taken = await asyncio.gather(*(take(stores[n % 2], workers[n % 2], limit=7) for n in range(6)))

    ops = [task.op for tasks in taken for task in tasks]
    assert sorted(ops) == list(range(1, 21))


async def test_only_what_a_worker_has_on_queues_it_serves_is_claimed(store: Store) -> None:
    """What nobody knows stays, untouched and uncharged (P13)."""
    await an_owner(store, new_task(1), new_task(2, task_queue="cpu"), new_task(3, activity="score"))
    performer = await a_performer(store)

    assert [task.op for task in await take(store, performer)] == [1]
    assert await take(store, performer, task_queues=("other",)) == []
    both = await take(store, performer, task_queues=("cpu", "gpu"), activities=("train", "score"))
    assert sorted(task.op for task in both) == [2, 3]


async def test_a_limit_takes_the_oldest(store: Store) -> None:
    """No worker takes more than it has room for."""
    worker, held = await an_owner(store, new_task(1))
    await commit(store, worker, turn(held, 2, tasks=[new_task(2)]), now_us=NOW + 1)
    performer = await a_performer(store)

    (first,) = await take(store, performer, limit=1, now_us=NOW + 2)
    (second,) = await take(store, performer, limit=1, now_us=NOW + 2)

    assert (first.op, second.op) == (1, 2)


async def test_paused_queues_workers_and_runs_are_left_alone(store: Store) -> None:
    """Each of them holds the next attempt back; the end of the pause lets it go."""
    await an_owner(store)
    performer = await a_performer(store)

    await store.pause("task_queue", "gpu", None, NOW)
    assert await take(store, performer) == []
    await store.resume("task_queue", "gpu")
    await store.pause("worker", "gpu-1", None, NOW)
    assert await take(store, performer) == []
    await store.resume("worker", "gpu-1")
    await store.pause_run("r", None, NOW)
    assert await take(store, performer) == []
    await store.resume_run("r", NOW)

    assert len(await take(store, performer)) == 1


async def test_a_dead_worker_claims_nothing(store: Store) -> None:
    """An incarnation that was declared dead learns of it."""
    await an_owner(store)
    performer = await a_performer(store)
    await store.retire_worker(performer)

    with pytest.raises(LeaseLostError):
        await take(store, performer)


async def test_a_task_that_nobody_waits_for_is_not_performed(store: Store) -> None:
    """Its run was terminated: whoever finds the task deletes it."""
    _, held = await an_owner(store)
    await store.terminate_run("r", None, NOW)

    assert await take(store, await a_performer(store)) == []

    assert await store.read_tasks(held.pk, 1) == []


# ─ outcomes ──


@pytest.mark.parametrize("how", ["completed", "failed"])
async def test_an_outcome_is_a_message_of_the_run(store: Store, how: str) -> None:
    """Task and row of attempts are settled in the same transaction; the number of attempts is in the message's id."""
    worker, held = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)

    assert await end(store, performer, task, how, data=b'"well"') == "ended"

    (message,) = await store.read_inbox(worker)
    assert (message.kind, message.name, message.data, message.msg) == ("activity", how, b'"well"', 1)
    assert answered_attempt(message.message_id) == (1, 1, 1)
    (row,) = await store.read_attempts(held.pk, 1)
    assert (row.completion, row.attempt) == ("answered", 0)
    assert await store.read_tasks(held.pk, 1) == []


async def test_outcomes_of_one_run_written_together_are_numbered_apart(store: Store) -> None:
    """A batch with several messages for one run counts all of them (P2)."""
    worker, held = await an_owner(store, *(new_task(op) for op in (1, 2, 3)))
    await signal(store, "r")
    performer = await a_performer(store)
    tasks = await take(store, performer)

    ends = [TaskEnd(task=task, how="completed", data=b"1") for task in tasks]
    assert await store.end_tasks(performer, ends, NOW) == ["ended"] * 3

    assert [message.msg for message in await store.read_inbox(worker)] == [1, 2, 3, 4]
    assert (await store.read_claims(worker, [held.pk]))[0].msg_seq == 4


async def test_an_outcome_wakes_a_run_that_rests(store: Store) -> None:
    """The run may be nobody's while its activity runs elsewhere."""
    worker, held = await an_owner(store)
    rest = turn(held, None, after=Wait(due_at_us=None))
    assert await commit(store, worker, rest) == ["committed"]
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    assert await status(store, "r") is RunStatus.WAITING

    await end(store, performer, task)

    (again,) = await claim(store, worker)
    assert [message.name for message in again.inbox] == ["completed"]


async def test_a_wait_decided_without_the_outcome_is_refused(store: Store) -> None:
    """No wake-up is lost between the two (P2)."""
    worker, held = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    await end(store, performer, task)

    assert await commit(store, worker, turn(held, None, after=Wait(due_at_us=None))) == ["stayed"]


async def test_a_second_outcome_is_refused(store: Store) -> None:
    """Also the same once more, after a commit whose answer was lost."""
    worker, _ = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)

    assert await end(store, performer, task) == "ended"
    assert await end(store, performer, task) == "lost"
    assert await end(store, performer, task, "failed") == "lost"

    assert len(await store.read_inbox(worker)) == 1


async def test_an_outcome_that_nobody_waits_for_goes_nowhere(store: Store) -> None:
    """The run is closed, or in another generation: its task is over, and nothing else happens."""
    worker, held = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    await close(store, worker, held, number=2)

    assert await end(store, performer, task) == "ended"

    assert await store.read_tasks(held.pk, 1) == []
    assert await status(store, "r") is RunStatus.COMPLETED


async def test_the_next_generation_does_not_hear_of_the_last_ones_tasks(store: Store) -> None:
    """Results carry their generation (P1)."""
    worker, held = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    retry = NextGeneration(failure=b"{}", copy_turns=0, parts=(), redeliver=(), ready_at_us=NOW, attempt=2)
    assert await commit(store, worker, turn(held, 2, after=retry)) == ["committed"]
    (seen,) = await store.read_held_tasks(performer)
    assert seen.closing == "try"

    assert await end(store, performer, task) == "ended"

    (again,) = await claim(store, worker)
    assert (again.generation, again.inbox) == (2, [])


# ─ attempts ──


async def test_a_failed_attempt_is_due_again_after_its_delay(store: Store) -> None:
    """By the store's clock; what it failed with and what its heartbeats told go to the next one, on whatever worker."""
    await an_owner(store)
    first, second = await a_performer(store), await a_performer(store, "gpu-2")
    (task,) = await take(store, first)
    again: dict[str, Any] = {"delay_us": 5 * SECOND, "failure": b'{"type":"x"}', "details": b"[7]"}
    assert await end(store, first, task, "again", **again) == "ended"

    assert await take(store, second, now_us=NOW + 5 * SECOND - 1) == []
    (retried,) = await take(store, second, now_us=NOW + 5 * SECOND)

    assert (retried.attempt, retried.claim_no, retried.failure, retried.details) == (
        2,
        2,
        b'{"type":"x"}',
        b"[7]",
    )
    assert retried.is_lost is False


async def test_a_failed_attempt_may_be_followed_at_once(store: Store) -> None:
    """Somebody does not want to wait for its delay; its run is told nothing. One that is performed again goes on undisturbed."""
    owner, _ = await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    assert await end(store, performer, task, "again", delay_us=3600 * SECOND, failure=b"{}") == "ended"
    failed = FailedAttempt(run_id="r", generation=1, op=1, attempt=1)

    assert not await store.retry_now(FailedAttempt(run_id="r", generation=1, op=1, attempt=2), NOW)
    assert await store.retry_now(failed, NOW)

    (retried,) = await take(store, performer)
    assert retried.attempt == 2
    assert not await store.retry_now(failed, NOW)
    assert await store.read_inbox(owner) == []


async def test_an_attempt_handed_back_is_not_charged(store: Store) -> None:
    """A worker that stops gives back what it has begun (P22)."""
    await an_owner(store)
    performer = await a_performer(store)
    (task,) = await take(store, performer)

    assert await end(store, performer, task, "handed_back", details=b"[1]") == "ended"

    (again,) = await take(store, await a_performer(store, "gpu-2"))
    assert (again.attempt, again.details) == (1, b"[1]")


async def test_what_a_dead_worker_performed_is_lost_and_charged(store: Store) -> None:
    """The takeover leaves it for whoever cares for strays; nobody claims it before that (P22)."""
    await an_owner(store, new_task(1), new_task(2))
    performer = await a_performer(store)
    (task,) = await take(store, performer, limit=1)
    await store.retire_worker(performer)

    (lost,) = await strays(store)
    other = await a_performer(store, "gpu-2")
    assert [one.op for one in await take(store, other)] == [2]
    with pytest.raises(LeaseLostError):
        await end(store, performer, task)

    assert (lost.op, lost.state, lost.attempt, lost.owner) == (task.op, "lost", 1, None)
    assert await settle(store, lost, "again", delay_us=SECOND) == "ended"
    assert await settle(store, lost, "again", delay_us=SECOND) == "lost"  # somebody has seen to it
    (again,) = await take(store, other, now_us=NOW + SECOND)
    assert (again.attempt, again.is_lost) == (2, True)


async def test_lost_attempts_begin_again_a_few_at_a_time(store: Store) -> None:
    """`lost_limit` bounds them, and nothing else (P14)."""
    await an_owner(store, *(new_task(op) for op in range(1, 6)))
    performer = await a_performer(store)
    await take(store, performer, limit=3)
    await store.retire_worker(performer)
    for lost in await strays(store):
        await settle(store, lost, "again")
    other = await a_performer(store, "gpu-2")

    assert sorted(one.op for one in await take(store, other, lost_limit=0)) == [4, 5]
    assert len(await take(store, other, lost_limit=1)) == 1
    assert len(await take(store, other, lost_limit=5)) == 2


async def test_a_fenced_worker_ends_nothing(store: Store) -> None:
    """A task that was taken away and claimed by another is the other's alone."""
    worker, _ = await an_owner(store, new_task(1, start_to_close_us=SECOND))
    slow, quick = await a_performer(store), await a_performer(store, "gpu-2")
    (held,) = await take(store, slow)
    late = NOW + SECOND + GRACE_US
    (overdue,) = await strays(store, late)
    await settle(store, overdue, "again", late)
    (taken,) = await take(store, quick, now_us=late)

    assert await end(store, slow, held, now_us=late) == "lost"
    assert [one.task_id for one in await store.read_held_tasks(slow)] == []
    assert await end(store, quick, taken, now_us=late) == "ended"

    (message,) = await store.read_inbox(worker)
    assert answered_attempt(message.message_id) == (1, 1, 2)


# ─ limits ──


@pytest.mark.parametrize(
    ("limits", "at_us"),
    [
        ({"schedule_to_start_us": 3 * SECOND}, NOW + 3 * SECOND),
        ({"schedule_to_close_us": 4 * SECOND}, NOW + 4 * SECOND),
        ({"schedule_to_start_us": 3 * SECOND, "schedule_to_close_us": 2 * SECOND}, NOW + 2 * SECOND),
    ],
)
async def test_what_nobody_takes_in_time_is_to_be_looked_at(
    store: Store, limits: dict[str, int], at_us: int
) -> None:
    """Exactly when its limit passes, though no worker serves its queue; an outcome then is the run's, and nobody begins it any more."""
    worker, _ = await an_owner(store, new_task(1, **limits))
    assert (await store.find_stray_tasks(NOW)).next_at_us == at_us
    assert await strays(store, at_us - 1) == []
    assert await take(store, await a_performer(store), now_us=at_us) == []

    (late,) = await strays(store, at_us)
    assert await settle(store, late, "failed", at_us, data=b'"too late"') == "ended"

    (message,) = await store.read_inbox(worker)
    assert (message.name, message.data) == ("failed", b'"too late"')
    assert answered_attempt(message.message_id) == (1, 1, 0)


@pytest.mark.parametrize(
    ("limits", "after_us"),
    [
        ({"start_to_close_us": SECOND}, SECOND),
        ({"heartbeat_us": 2 * SECOND}, 2 * SECOND),
        ({"schedule_to_close_us": 3 * SECOND}, 3 * SECOND),
        ({"start_to_close_us": 9 * SECOND, "heartbeat_us": 2 * SECOND}, 2 * SECOND),
    ],
)
async def test_what_a_worker_does_not_end_in_time_somebody_else_does(
    store: Store, limits: dict[str, int], after_us: int
) -> None:
    """A little later than the worker itself would have."""
    await an_owner(store, new_task(1, **limits))
    await take(store, await a_performer(store))

    assert await strays(store, NOW + after_us + GRACE_US - 1) == []
    assert len(await strays(store, NOW + after_us + GRACE_US)) == 1


async def test_a_sign_of_life_moves_the_heartbeat_timeout_only(store: Store) -> None:
    """And keeps what it told for the next attempt."""
    await an_owner(store, new_task(1, heartbeat_us=2 * SECOND, start_to_close_us=5 * SECOND))
    performer = await a_performer(store)
    (task,) = await take(store, performer)

    await store.beat_tasks(performer, [TaskBeat(task=task, details=b"[1]")], NOW + SECOND)
    await store.beat_tasks(performer, [TaskBeat(task=task, details=None)], NOW + 2 * SECOND)
    assert (await store.find_stray_tasks(NOW)).next_at_us == NOW + 4 * SECOND + GRACE_US
    await store.beat_tasks(performer, [TaskBeat(task=task, details=None)], NOW + 4 * SECOND)

    found = await store.find_stray_tasks(NOW + 5 * SECOND + GRACE_US)
    assert [one.details for one in found.tasks] == [b"[1]"]


async def test_a_stray_that_has_moved_on_is_not_settled(store: Store) -> None:
    """Between the look and the write its worker gave a sign of life, or ended it."""
    await an_owner(store, new_task(1, heartbeat_us=SECOND))
    performer = await a_performer(store)
    (task,) = await take(store, performer)
    late = NOW + SECOND + GRACE_US
    (stray,) = await strays(store, late)

    await store.beat_tasks(performer, [TaskBeat(task=task, details=None)], late)
    assert await settle(store, stray, "again", late) == "lost"

    assert await end(store, performer, task, now_us=late) == "ended"


# ─ closing ──


async def test_a_closed_task_says_so_to_whoever_performs_it(store: Store) -> None:
    """With how it was closed, and why."""
    worker, held = await an_owner(store, *(new_task(op) for op in (1, 2, 3)))
    performer = await a_performer(store)
    await take(store, performer)
    assert {one.closing for one in await store.read_held_tasks(performer)} == {""}

    closings = [
        TaskClosing(op=1, how="try", reason="enough"),
        TaskClosing(op=2, how="wait"),
        TaskClosing(op=3, how="abandon"),
    ]
    await commit(store, worker, turn(held, 2, tasks_closed=closings, attempts_done=[1, 3]))

    seen = await store.read_held_tasks(performer)
    assert sorted((one.closing, one.close_reason) for one in seen) == [
        ("abandon", None),
        ("try", "enough"),
        ("wait", None),
    ]
    assert await strays(store) == []


@pytest.mark.parametrize("how", ["try", "wait", "abandon"])
async def test_a_closed_task_that_nobody_performs_is_to_be_looked_at(store: Store, how: str) -> None:
    """At once: nobody claims it any more."""
    worker, held = await an_owner(store)

    await commit(store, worker, turn(held, 2, tasks_closed=[TaskClosing(op=1, how=how)]))

    assert await take(store, await a_performer(store)) == []
    (stray,) = await strays(store)
    assert stray.closing == how


@pytest.mark.parametrize("by", ["close", "terminate", "deadline", "retention"])
async def test_the_end_of_its_run_is_the_end_of_a_task(store: Store, by: str) -> None:
    """Whoever performs it sees that nobody waits for it."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "r", deadline_us=NOW + SECOND)
    await commit(store, worker, turn(held, 1, tasks=[new_task()]))
    performer = await a_performer(store)
    await take(store, performer)

    if by == "terminate":
        await store.terminate_run("r", None, NOW)
    elif by == "deadline":
        await store.close_overdue_runs(NOW + SECOND)
    else:
        await close(store, worker, held, number=2)
    if by == "retention":
        pruned = await store.prune_runs([held.pk], ClosedRuns(before_us=NOW + 1), NOW)
        assert pruned.runs == 1

    seen = await store.read_held_tasks(performer)
    assert [one.closing for one in seen] == ([] if by == "retention" else ["try"])


async def test_a_turn_that_ends_its_run_closes_its_tasks_and_asks_for_none(store: Store) -> None:
    """The close is pushed with the turn."""
    worker, held = await an_owner(store)
    performer = await a_performer(store)
    await take(store, performer)

    done = Close(status=RunStatus.COMPLETED, result=b"1")
    last = turn(held, 2, after=done, tasks_closed=[TaskClosing(op=1, how="try", reason="over")])
    assert await commit(store, worker, last) == ["committed"]

    (seen,) = await store.read_held_tasks(performer)
    assert (seen.closing, seen.close_reason) == ("try", "over")


# ─ reading ──


async def test_what_is_open_is_counted_by_queue_and_activity(store: Store) -> None:
    """Of what somebody still waits for."""
    worker, held = await an_owner(store, *(new_task(op) for op in (1, 2, 3)))
    await an_owner(store, new_task(1), run_id="gone")
    await store.terminate_run("gone", None, NOW)
    performer = await a_performer(store)
    await take(store, performer, limit=1)

    found = {(one.task_queue, one.activity, one.state): one.tasks for one in await open_tasks(store)}

    assert found == {("gpu", "train", "ready"): 2, ("gpu", "train", "started"): 1}
    (me,) = [one for one in await store.list_workers() if one.worker_id == performer]
    assert (me.tasks, me.activities, me.task_queues) == (1, ("train",), ("gpu",))
    assert worker
    assert held


async def open_tasks(store: Store) -> tuple[OpenTasks, ...]:
    return (await store.read_health()).open_tasks


async def test_a_codec_sees_all_payloads_of_tasks(store: Store) -> None:
    """Arguments, details, failures and outcomes are sealed, and opened for whoever may read them."""
    behind = sealed(store, Encryption({"k1": b"k" * 32}))
    worker = await a_worker(behind)
    held = await started_by(behind, worker, "r")
    await commit(behind, worker, turn(held, 1, data=b'{"v":1,"worker":1,"entries":[]}', tasks=[new_task()]))
    performer = await a_performer(behind)

    (bare,) = await store.read_tasks(held.pk, 1)
    (task,) = await take(behind, performer)
    assert is_sealed(bare.args)
    assert task.args == b'["model"]'

    await behind.beat_tasks(performer, [TaskBeat(task=task, details=b"[1]")], NOW)
    await end(behind, performer, task, "again", failure=b'{"type":"x","message":"y"}')
    (bare,) = await store.read_tasks(held.pk, 1)
    (opened,) = await behind.read_tasks(held.pk, 1)
    assert bare.failure is not None
    assert is_sealed(bare.failure)
    assert bare.details is not None
    assert is_sealed(bare.details)
    assert (opened.failure, opened.details) == (b'{"type":"x","message":"y"}', b"[1]")

    (task,) = await take(behind, performer)
    closing = turn(held, None, tasks_closed=[TaskClosing(op=1, how="wait", reason="secret")])
    await commit(behind, worker, closing)
    (bare_seen,), (seen,) = await store.read_held_tasks(performer), await behind.read_held_tasks(performer)
    assert seen.close_reason == "secret"
    assert bare_seen.close_reason is not None
    assert "secret" not in bare_seen.close_reason
    await end(behind, performer, task, data=b'"well"')
    (bare_message,), (message,) = await store.read_inbox(worker), await behind.read_inbox(worker)
    assert is_sealed(bare_message.data)
    assert message.data == b'"well"'


async def test_old_workers_have_no_activities(store: Store) -> None:
    """A worker that says nothing of activities serves none."""
    await start(store, "r")
    worker = await store.register_worker(WorkerInfo(name="w", task_queue="default", definitions=W1))

    (record,) = [one for one in await store.list_workers() if one.worker_id == worker]
    assert (record.activities, record.more_queues, record.task_queues) == ((), (), ("default",))
