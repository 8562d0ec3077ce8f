"""Activities that workers of other queues perform, as the worker of their run sees them.

Such an activity is one row of the store, written with the turn that asks for it, and an attempt of the run that is open, like one
that somebody outside completes: nothing of it runs here, and its outcome comes as a message. Who performs it: `tasks.py`.
"""

from __future__ import annotations

from durable.engine.instance import Instance
from durable.engine.runtime import ActivityCall
from durable.journal.events import CloseOp
from durable.retry import policy_text
from durable.store.records import NewTask, TaskClosing
from durable.worker.closing import ENDED, closing_reason
from durable.worker.live import Attempt, AttemptState, Item, LiveRun


def new_task(call: ActivityCall) -> NewTask:
    """Return what the workers of its queue must know of a call."""
    definition = call.definition
    return NewTask(
        op=call.op,
        task_queue=call.queue,
        activity=definition.served_as,
        name=definition.name,
        key=call.key,
        args=call.args,
        policy=policy_text(definition.retry),
        start_to_close_us=definition.timeout_us,
        schedule_to_start_us=definition.schedule_to_start_us,
        schedule_to_close_us=definition.schedule_to_close_us,
        heartbeat_us=definition.heartbeat_us,
    )


def remote_attempt(run: LiveRun, call: ActivityCall, scheduled_at_us: int) -> Attempt:
    """Return the attempt that stands for all those that are counted elsewhere: number 0, until the outcome tells."""
    attempt = Attempt(run, call, 0, AttemptState.OPEN, scheduled_at_us, scheduled_at_us)
    attempt.is_remote = attempt.has_row = True
    return attempt


def entrust_and_close(item: Item, instance: Instance, *, is_over: bool) -> None:
    """Add to a turn the tasks that it asks for, and tell those it no longer waits for, with the reason.

    One that is asked for and let go of in the same turn never becomes a task, unless its end is waited for.
    """
    asked = list(instance.entrusted)
    instance.entrusted.clear()
    attempts = item.run.attempts
    tasks = {call.op: new_task(call) for call in asked}
    closed: dict[int, TaskClosing] = {}
    for index, entry in enumerate(item.entries):
        if type(entry) is not CloseOp:
            continue
        if entry.op in tasks and entry.how != "wait":
            del tasks[entry.op]
        elif entry.op in tasks or ((known := attempts.get(entry.op)) is not None and known.is_remote):
            closed[entry.op] = TaskClosing(
                op=entry.op, how=entry.how, reason=closing_reason(item.entries, index)
            )
    if is_over:
        tasks.clear()
        for op, attempt in attempts.items():
            if attempt.is_remote and (op not in closed or closed[op].how == "wait"):
                closed[op] = TaskClosing(op=op, how="try", reason=ENDED)
    item.tasks = list(tasks.values())
    item.tasks_closed = list(closed.values())
