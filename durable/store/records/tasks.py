"""Activities: the durable count of their attempts, and the tasks of those that another queue performs."""

from __future__ import annotations

from typing import Final, Literal

import msgspec


class AttemptRow(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The durable count of one activity's attempts while it is retrying or queued (P22).

    `state`: "started" (attempt `attempt` was charged and begun, at `due_at_us` if that is known), "backoff" (attempt `attempt` failed, the next is due at
    `due_at_us`), "handed_back" (`attempt` attempts are charged, none is running: start the next at once). `details`: a JSON
    array, what the last heartbeat told. A row without leaves those of the row it replaces.

    `completion` of a started attempt that is completed from outside: "open" until somebody does, "answered" when the answer is in
    the inbox, "expired" when its time was up before. `due_at_us` is then when it expires: at `limit_at_us`, or after
    `heartbeat_us` without a heartbeat; None: never. "remote": the activity is a task on another queue; its row there counts the
    attempts, here `attempt` is 0, also once it is "answered".
    """

    op: int
    attempt: int
    state: Literal["started", "backoff", "handed_back"]
    due_at_us: int | None = None
    failure: bytes | None = None
    details: bytes | None = None
    completion: Literal["", "open", "answered", "expired", "remote"] = ""
    limit_at_us: int | None = None
    heartbeat_us: int | None = None


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an open attempt has expired now. If not: `due_at_us` is when it may; None: somebody has answered or taken it."""

    expired: bool
    due_at_us: int | None = None


NEVER_US: Final = (1 << 63) - 1
GRACE_US: Final = (
    6_000_000  # a worker ends what it performs on the dot; past its limits by so much somebody else does
)


class NewTask(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """An activity for the workers of another queue, written with the turn that asks for it.

    `activity` is the name under which workers know it, `name` the one it has in the journal. `policy` is `retry.NamedRetry` as JSON.
    """

    op: int
    task_queue: str
    activity: str
    name: str
    key: str  # the idempotency key
    args: bytes
    policy: str
    start_to_close_us: int | None = None
    schedule_to_start_us: int | None = None
    schedule_to_close_us: int | None = None
    heartbeat_us: int | None = None


class TaskClosing(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The workflow no longer waits for an activity on another queue: stop it ("try", "wait") or let it run on ("abandon")."""

    op: int
    how: str
    reason: str | None = None


class Task(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A row of `activity_task`: one activity, from the turn that asks for it to its outcome.

    `state`: "ready" for its next attempt from `ready_at_us` on, "started" by `owner`, "lost": its worker died, and somebody is to
    decide what follows. `attempt` is the last one charged. `care_at_us` is when somebody is to look at it, since a limit has
    passed or nobody else will end it. `failure` is that of the attempt before, `details` are the last heartbeat's.
    """

    task_id: int
    claim_no: int
    pk: int
    generation: int
    op: int
    run_id: str
    epoch: int
    workflow: str
    task_queue: str
    activity: str
    name: str
    key: str
    args: bytes
    policy: str
    start_to_close_us: int | None
    schedule_to_start_us: int | None
    schedule_to_close_us: int | None
    heartbeat_us: int | None
    scheduled_at_us: int
    state: Literal["ready", "started", "lost"]
    ready_at_us: int
    attempt: int
    owner: int | None
    owner_name: str | None
    started_at_us: int | None
    care_at_us: int
    is_lost: bool  # the attempt before died with its worker: the next begins on probation
    failure: bytes | None
    details: bytes | None
    closing: str  # "": somebody waits for it; else how the workflow let go of it
    close_reason: str | None
    now_us: int  # when it was read, by the clock that decides


class HeldTask(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What a worker must know of a task it performs. `closing`: as in `Task`; "try" also if its run has ended without a word."""

    task_id: int
    claim_no: int
    pk: int
    generation: int
    run_id: str
    closing: str
    close_reason: str | None


class TaskEnd(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What became of an attempt of a task.

    "completed" and "failed" are outcomes: the task is over, and `data` (the result, or a Failure, as JSON) becomes a message of
    its run. "again": the next attempt is due after `delay_us`. "handed_back": the attempt is not charged, and due again after
    `delay_us`, at once as a rule. "dropped": nobody waits for it.
    """

    task: Task
    how: Literal["completed", "failed", "again", "handed_back", "dropped"]
    data: bytes = b""
    delay_us: int = 0
    failure: bytes | None = None
    details: bytes | None = None


TaskVerdict = Literal[
    "ended",
    "lost",  # nothing written: the task is no longer this worker's, or somebody has seen to it before
    "later",  # nothing written: the row of its run is somebody's at this moment
]


class TaskBeat(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """A sign of life of a task that is performed; `details` None: as before."""

    task: Task
    details: bytes | None


class CaredTasks(msgspec.Struct, frozen=True, kw_only=True):
    """Tasks that somebody is to look at now, and when the next one will be."""

    tasks: list[Task]
    next_at_us: int | None
