"""One attempt of an activity task: performed like an activity of a run that is driven here, and then given back to its row.

The performer knows runs; a task stands for one, with a single activity. Slots are its own, apart from those of local activities. What
differs is what follows an attempt: the next one is due in the store, for any worker, and never waits here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from durable.definitions import ActivityDefinition
from durable.engine.runtime import ActivityCall
from durable.errors import DefinitionError, NonRetryableError, UndecodableError
from durable.failures import Failure
from durable.retry import NamedRetry, named_policy
from durable.scheduler.strays import again_or_failed, last_failure
from durable.store.records import AttemptRow, Task, TaskEnd
from durable.worker.endings import Endings
from durable.worker.live import Attempt, AttemptState, LiveRun, Outcome, Phase
from durable.worker.performing import Performer

OP: Final = 1  # a task has one activity; its number in its run's journal is the task's business
UNREADABLE_SECONDS: Final = (
    5.0  # before somebody tries again what a worker could not read: others are to have a chance
)
_NO_TOKEN: Final = "an activity with a task queue of its own cannot be completed by token: leave task_queue out, or return the result"
log = logging.getLogger("durable.worker")


class TaskRun(LiveRun):
    """Stands for the run of a task while it is performed. `end` is what became of the attempt, once that is known."""

    __slots__ = ("end", "policy", "task", "told_at")

    def __init__(self, task: Task, policy: NamedRetry) -> None:
        # Not super(): there is no claim of a run, and no workflow of ours.
        self.task = task
        self.policy = policy
        self.pk = task.pk
        self.run_id = task.run_id
        self.workflow = task.workflow
        self.generation = task.generation
        self.claim_no = task.claim_no
        self.attempts = {}
        self.outcomes = deque()
        self.phase = Phase.IDLE
        self.left = {}
        self.is_held = False
        self.leave_asked = False
        self.fault = None
        self.end: TaskEnd | None = None
        self.told_at = 0.0  # the loop's time of the last heartbeat that was written

    @property
    def attempt(self) -> Attempt | None:
        """The attempt that is performed, unless it is over."""
        return self.attempts.get(OP)


class NoCompletions:
    """Refuses what needs the worker of a run: completion by token."""

    def __init__(self, fail: Callable[[Attempt, BaseException], None]) -> None:
        self._fail = fail

    def token(self, attempt: Attempt, number: int) -> str:
        raise DefinitionError(_NO_TOKEN)

    def opened(self, attempt: Attempt) -> None:
        """The body has raised `CompleteAsync`."""
        self._fail(attempt, NonRetryableError(_NO_TOKEN))


class TaskEndings(Endings):
    """Ends attempts of tasks: what follows one that failed is decided here, and due in the store."""

    def retry_or_fail(
        self, attempt: Attempt, failure: Failure, *, is_retryable: bool, delay_us: int | None = None
    ) -> None:
        self._performer.free_slot(attempt)
        attempt.stop_timer()
        run = attempt.run
        assert isinstance(run, TaskRun)
        if attempt.cancelled:
            self.cancelled(attempt)
            return
        if delay_us is None:
            chance = self._random.fraction() if run.policy.jitter else 0.0
            delay_us = run.policy.delay_us(max(attempt.number, 1), chance)
        task = msgspec.structs.replace(run.task, now_us=self._clock.now_us())
        run.end = again_or_failed(
            task, run.policy, failure, is_retryable=is_retryable, delay_us=delay_us, details=attempt.details
        )
        attempt.task = None
        self.finish(attempt, Outcome(OP, attempt.number, failure=failure))

    def misread(self, attempt: Attempt, fault: UndecodableError) -> None:
        """Its code never began: another worker may have the key, or the types, that this one lacks. Uncharged, it is due a little later.

        The run does not stop for that: it is driven elsewhere, where nothing may be wrong.
        """
        run = attempt.run
        assert isinstance(run, TaskRun)
        task = run.task
        log.warning(
            "activity %r of run %r is handed back: %s", task.name, task.run_id, fault,
            extra={"run_id": task.run_id, "workflow": task.workflow},
        )  # fmt: skip
        failure = self.failure_of(attempt, fault)
        run.end = TaskEnd(
            task=task,
            how="handed_back",
            delay_us=round(UNREADABLE_SECONDS * 1_000_000),
            failure=msgspec.json.encode(failure),
        )
        attempt.is_misread = True
        attempt.stop_timer()
        self.finish(attempt, Outcome(OP, attempt.number, failure=failure))


class TaskPerformer(Performer):
    """Performs tasks, at most `slots` at a time. Each has its slot before its claim."""

    def __init__(self, *, on_details: Callable[[], None], on_stale: Callable[[], None], **given: Any) -> None:
        super().__init__(endings=TaskEndings, **given)
        self._on_beats = on_details
        self._on_stale = on_stale
        self.completions: Any = NoCompletions(self.endings.failed)

    @property
    def free(self) -> int:
        """How many more tasks may be claimed."""
        return 0 if self.is_draining else max(self._free, 0)

    def perform(self, run: TaskRun, definition: ActivityDefinition) -> None:
        """Start the attempt that the claim has charged; a slot is free."""
        task = run.task
        place, _, number = task.key.rpartition("#")
        call = ActivityCall(
            op=OP,
            n=int(number),
            definition=_as_asked(definition, task, run.policy),
            args=task.args,
            key_prefix=place.removesuffix(task.name),
            src="",
        )
        attempt = Attempt(
            run, call, task.attempt, AttemptState.RUNNING, task.scheduled_at_us, task.ready_at_us, True
        )
        attempt.details = task.details
        attempt.failure = last_failure(task)
        run.attempts[OP] = attempt
        self._free -= 1
        self._begin(attempt)

    def stopped(self, attempt: Attempt) -> None:
        """Its worker stops: it is handed back with all the others."""
        self.free_slot(attempt)
        attempt.state = AttemptState.STOPPED

    def never_begun(self, attempt: Attempt) -> None:
        """Who claims looks again at what it holds, and begins that."""
        attempt.state = AttemptState.DROPPED
        self.free_slot(attempt)
        self._on_stale()

    def stop(self, run: TaskRun, how: str, reason: str) -> None:
        """The workflow let go of the activity: stop it, and with "wait" tell how it ended."""
        self.close(run, OP, how, reason)

    def write(self, run: LiveRun, rows: list[AttemptRow]) -> None:
        """Attempts are charged by the claim; what heartbeats tell is written with the next beats."""
        self._on_beats()


def end_of(run: TaskRun) -> TaskEnd:
    """Return what became of the attempt of a task."""
    if run.end is not None:
        return run.end
    outcome = run.outcomes[0]
    if outcome.failure is not None:  # cancelled, and waited for
        return TaskEnd(task=run.task, how="failed", data=msgspec.json.encode(outcome.failure))
    assert outcome.result is not None, "an outcome is a result or a failure"
    return TaskEnd(task=run.task, how="completed", data=outcome.result)


def policy_of(task: Task) -> NamedRetry:
    """Return the task's policy; a damaged one permits nothing."""
    try:
        return named_policy(task.policy)
    except UndecodableError:
        return named_policy('{"max_attempts":1,"initial":0,"backoff":1,"maximum":0}')


def _as_asked(known: ActivityDefinition, task: Task, policy: NamedRetry) -> ActivityDefinition:
    """Return the definition under the options of the call."""
    definition = known.renamed(task.name)
    definition.retry = policy
    definition.timeout_us = task.start_to_close_us
    definition.schedule_to_start_us = None  # it has started
    definition.schedule_to_close_us = task.schedule_to_close_us
    definition.heartbeat_us = task.heartbeat_us
    limits = (task.start_to_close_us, task.schedule_to_close_us, task.heartbeat_us)
    definition.is_limited = any(limit is not None for limit in limits)
    definition.is_simple = definition.is_async and not definition.is_limited
    return definition
