"""Stray tasks: activities on other queues that nobody will end but whoever looks.

Their worker died, or let a limit pass; no worker took them in time; or their workflow let go of them before any did. Every worker
looks, wherever the tasks belong: what is to become of each is decided here, by the policy and the limits that its row holds, and
the store lets it happen once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

import msgspec

from durable import failures
from durable.errors import ActivityTimeoutError, StoreError, UndecodableError, WorkerLostError
from durable.failures import Failure
from durable.retry import NamedRetry, named_policy
from durable.scheduler.wakeups import Wakeups
from durable.seams import Clock, Random, pause
from durable.store.contract import Store
from durable.store.records import GRACE_US, Task, TaskEnd

POLL_SECONDS: Final = 0.5
LATER_SECONDS: Final = 0.05  # before a run is asked for again whose row somebody's open transaction holds
log = logging.getLogger("durable.scheduler")


async def care_for_tasks(
    store: Store, clock: Clock, random: Random, *, wakeups: Wakeups, on_settled: Callable[[], None]
) -> None:
    """Settle stray tasks until cancelled. A database in trouble is tried again."""
    while True:
        wait = POLL_SECONDS
        try:
            found = await store.find_stray_tasks(clock.now_us())
            if found.tasks:
                ends = [end_of(task, random.fraction()) for task in found.tasks]
                verdicts = await store.settle_tasks(ends, clock.now_us())
                on_settled()
                if any(verdict != "ended" for verdict in verdicts):
                    await pause(LATER_SECONDS)
                continue
            if found.next_at_us is not None:
                wait = min(wait, max(found.next_at_us - clock.now_us(), 0) / 1_000_000)
        except StoreError as error:
            log.warning("activities on other queues wait for the database: %s", error)
        await wakeups.wait(max(wait, 0.001))


def end_of(task: Task, chance: float) -> TaskEnd:
    """Return what is to become of a stray task, as of when it was read; `chance` in [0, 1) is the die of its jitter."""
    if task.closing in ("try", "abandon"):
        return TaskEnd(task=task, how="dropped")
    if task.closing == "wait":
        return _failed(task, _record(task, asyncio.CancelledError("cancelled by the workflow")))
    try:
        policy = named_policy(task.policy)
    except UndecodableError as damaged:
        return _failed(task, _record(task, damaged))
    close_at_us = (
        None if task.schedule_to_close_us is None else task.scheduled_at_us + task.schedule_to_close_us
    )
    if close_at_us is not None and close_at_us + _grace_us(task) <= task.now_us:
        limit = (task.schedule_to_close_us or 0) / 1_000_000
        text = f"{task.name!r} was not done within its schedule-to-close timeout of {limit:g} s"
        return _expired(task, ActivityTimeoutError(text, kind="schedule_to_close"))
    if task.state == "ready":
        limit = (task.schedule_to_start_us or 0) / 1_000_000
        text = (
            f"{task.name!r} waited for a worker of task queue {task.task_queue!r} for longer than its schedule-to-start "
            f"timeout of {limit:g} s"
        )
        return _expired(task, ActivityTimeoutError(text, kind="schedule_to_start"))
    if task.state == "lost":
        lost = WorkerLostError(
            f"the worker of attempt {task.attempt} of {task.name!r} died, or stopped, during it: nobody knows how far it came"
        )
        return _again_or_failed(
            task, policy, lost, is_retryable=not policy.is_final(WorkerLostError), chance=chance
        )
    late = _overrun(task)
    return _again_or_failed(task, policy, late, is_retryable=policy.is_retryable(late), chance=chance)


def again_or_failed(
    task: Task,
    policy: NamedRetry,
    failure: Failure,
    *,
    is_retryable: bool,
    delay_us: int,
    details: bytes | None = None,
) -> TaskEnd:
    """An attempt has failed: let the next begin after the delay, or that be the outcome. The store's clock counts."""
    left_us = None
    if task.schedule_to_close_us is not None:
        left_us = task.scheduled_at_us + task.schedule_to_close_us - task.now_us
    in_time = left_us is None or delay_us < left_us
    if not (is_retryable and in_time and policy.has_attempt_after(task.attempt)):
        return _failed(task, failure)
    return TaskEnd(
        task=task, how="again", delay_us=delay_us, failure=msgspec.json.encode(failure), details=details
    )


def _again_or_failed(
    task: Task, policy: NamedRetry, error: BaseException, *, is_retryable: bool, chance: float
) -> TaskEnd:
    delay_us = policy.delay_us(max(task.attempt, 1), chance if policy.jitter else 0.0)
    return again_or_failed(task, policy, _record(task, error), is_retryable=is_retryable, delay_us=delay_us)


def _overrun(task: Task) -> ActivityTimeoutError:
    """Say which limit of an attempt has passed, that its worker did not see to."""
    started_us = task.started_at_us or task.ready_at_us
    start_limit_us = task.start_to_close_us
    if start_limit_us is not None and started_us + start_limit_us + GRACE_US <= task.now_us:
        text = (
            f"attempt {task.attempt} of {task.name!r} ran longer than its timeout of {start_limit_us / 1_000_000:g} s, "
            "and its worker did not end it"
        )
        return ActivityTimeoutError(text, kind="start_to_close")
    limit = (task.heartbeat_us or 0) / 1_000_000
    text = (
        f"attempt {task.attempt} of {task.name!r} was silent for longer than its heartbeat timeout of {limit:g} s, "
        "and its worker did not end it"
    )
    return ActivityTimeoutError(text, kind="heartbeat")


def _grace_us(task: Task) -> int:
    return GRACE_US if task.state == "started" else 0


def _expired(task: Task, error: ActivityTimeoutError) -> TaskEnd:
    """A limit that permits no other attempt has passed; what the attempt before failed with is the cause."""
    return _failed(task, msgspec.structs.replace(_record(task, error), cause=last_failure(task)))


def last_failure(task: Task) -> Failure | None:
    """Return what the attempt before failed with; None if that cannot be read."""
    try:
        return None if task.failure is None else msgspec.json.decode(task.failure, type=Failure)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _failed(task: Task, failure: Failure) -> TaskEnd:
    return TaskEnd(task=task, how="failed", data=msgspec.json.encode(failure))


def _record(task: Task, error: BaseException) -> Failure:
    return failures.record(error, activity=task.name, run_id=task.run_id, attempts=task.attempt)
