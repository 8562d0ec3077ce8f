"""What happened to a run, and what its workflow asked for: the entries of the journal.

Entries are frozen, tagged Structs; their tags and field names are the stored format. An *event* is fed to
the workflow, one per activation; a *command* is what that activation asked for; an *end* closes the
generation. Times are microseconds UTC (`…_us`, `at`). `op` numbers the operations of one generation from 1, in the
order in which they were first asked for; it is assigned by the journal, never by today's code.

Knows nothing of stores, workers or the loop.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from durable.failures import Failure

UpdateVerdict = Literal["completed", "failed", "rejected", "given_up"]
OWED: Final = (
    "owed"  # the name of the condition that all updates are handled whose answers a former life has given
)
NO_RESULT: Final = msgspec.Raw(b"null")  # the default of a result, and hence not written


class Entry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, tag_field="e", kw_only=True):
    """Base of everything a turn may hold. Without cycles, hence not the garbage collector's business."""


# ─ events ────────────────────────────────────────────────────────────────────


class Started(Entry, frozen=True, tag="started", kw_only=True):
    """First event of a generation. `seed` feeds random and uuid4; `kind` says what is run: "" is a plain workflow.

    `early` signals had come before: the object of a class sees them as `__init__` made it, before `run` takes its first step. `answered` are
    the numbers of updates in the inbox whose callers a former life has given a result. The rest is named by replay errors (P25).
    """

    at: int
    seed: int
    attempt: int = 1
    engine: int = 1
    python: str = ""
    hash_seed: str = ""
    kind: str = ""
    early: int = 0
    answered: tuple[int, ...] = ()


class Retried(Entry, frozen=True, tag="retried", kw_only=True):
    """The workflow is tried again from this point: open activities start afresh, with full attempts (P7).

    `answered` are the numbers of the updates whose callers were given a result which this life does not keep: they were taken in before this
    point, or are in the inbox again.
    """

    at: int
    attempt: int
    answered: tuple[int, ...] = ()


class ActivityCompleted(Entry, frozen=True, tag="activity_completed", kw_only=True):
    op: int
    at: int
    result: msgspec.Raw
    attempts: int = 1


class ActivityFailed(Entry, frozen=True, tag="activity_failed", kw_only=True):
    op: int
    at: int
    failure: Failure
    attempts: int = 1


class TimerFired(Entry, frozen=True, tag="timer_fired", kw_only=True):
    op: int
    at: int


class SignalReceived(Entry, frozen=True, tag="signal_received", kw_only=True):
    """`msg` is the message number of the run (P2); `id` the sender's dedupe id, if it gave one."""

    at: int
    name: str
    value: msgspec.Raw
    msg: int
    id: str | None = None


class UpdateReceived(Entry, frozen=True, tag="update_received", kw_only=True):
    """A call into the run that is answered, by an `UpdateAnswered` with its `msg`. `id` is the caller's, or generated.

    `accepted`: an earlier life of the run had begun to handle it, so no validator is asked again. `answered`: its caller was given a
    former life's result.
    """

    at: int
    name: str
    value: msgspec.Raw
    msg: int
    id: str
    accepted: bool = False
    answered: bool = False


class CancelRequested(Entry, frozen=True, tag="cancel_requested", kw_only=True):
    at: int
    msg: int
    reason: str | None = None


# ─ commands ──────────────────────────────────────────────────────────────────


class ScheduleActivity(Entry, frozen=True, tag="activity_scheduled", kw_only=True):
    """`n` counts the calls of this name in the run, from 1, and is part of the idempotency key (P6).

    `started` charges attempt 1 in the very commit that schedules it (P22). `src` is `file.py:line`. `kind` says what it is
    in the words of a pattern, e.g. "compensation"; "" is an ordinary activity. `queue` is the task queue whose workers perform it;
    "": the worker of the run does.
    """

    op: int
    name: str
    n: int
    args: msgspec.Raw
    src: str = ""
    started: bool = False
    kind: str = ""
    queue: str = ""


class StartChild(ScheduleActivity, frozen=True, tag="child_started", kw_only=True):
    """A run of another workflow, `run_id`, was started in the commit that holds this. Its outcome comes as that of an activity does."""

    run_id: str
    workflow: str


class StartTimer(Entry, frozen=True, tag="timer_started", kw_only=True):
    """`duration` (microseconds) is what replay compares; `due` is the instant."""

    op: int
    due: int
    duration: int
    src: str = ""


class OpenWait(Entry, frozen=True, tag="wait_opened", kw_only=True):
    """The workflow waits for a signal of this name, or for a condition (then `name` is ""), or, the condition `OWED`, for its own handlers.

    `n` is set if a person is asked: which question of this name it is, from 1; `prompt` is what the person reads.
    """

    op: int
    wait: str  # "signal" | "condition"
    name: str = ""
    src: str = ""
    prompt: str = ""
    n: int = 0


class CloseOp(Entry, frozen=True, tag="closed", kw_only=True):
    """The workflow no longer waits for `op`: an activity or timer was cancelled, a wait ended.

    `how` is "try", "wait" or "abandon" for a cancelled activity (its cancellation type), else "".
    After "wait" an outcome of the activity still follows as an event.
    """

    op: int
    how: str = ""


class Patched(Entry, frozen=True, tag="patch", kw_only=True):
    """The run takes the new side of a change: `patched(id)` was true here. No operation, hence no `op`.

    `deprecated`: `deprecate_patch(id)` wrote it; code that no longer knows of the patch may replay it.
    """

    id: str
    src: str = ""
    deprecated: bool = False


class Noted(Entry, frozen=True, tag="noted", kw_only=True):
    """A line of the run's story that stands for no operation, e.g. a step that was skipped. No `op`, nothing to wait for."""

    name: str
    status: str
    kind: str = ""
    src: str = ""


class UpdateAnswered(Entry, frozen=True, tag="update_answered", kw_only=True):
    """What the caller of update `msg` is told. A refused one has had no effect; of one that was given up the run ended before its answer.

    `result` is that of one that was completed; `failure` says why another was refused, or what its handler raised.
    """

    msg: int
    name: str
    how: UpdateVerdict
    result: msgspec.Raw = NO_RESULT
    failure: Failure | None = None


# ─ ends ──────────────────────────────────────────────────────────────────────


class Completed(Entry, frozen=True, tag="completed", kw_only=True):
    at: int
    result: msgspec.Raw


class Failed(Entry, frozen=True, tag="failed", kw_only=True):
    """`origin`: the turn, and the place among its entries, of the event whose failure escaped; None if it was none's (P7).

    `compensated`: a saga that failed, and undid all it had done.
    """

    at: int
    failure: Failure
    origin: tuple[int, int] | None = None
    compensated: bool = False


class Cancelled(Entry, frozen=True, tag="cancelled", kw_only=True):
    at: int
    reason: str | None = None


class ContinuedAsNew(Entry, frozen=True, tag="continued_as_new", kw_only=True):
    """The workflow asked for a next generation that starts from nothing, with the arguments that it gave."""

    at: int


class Terminated(Entry, frozen=True, tag="terminated", kw_only=True):
    """Written by the store itself: no code of the workflow ran."""

    at: int
    reason: str | None = None


class TimedOut(Entry, frozen=True, tag="timed_out", kw_only=True):
    """Written by the store itself when the run's deadline passed: no code of the workflow ran."""

    at: int


Event = (
    Started
    | Retried
    | ActivityCompleted
    | ActivityFailed
    | TimerFired
    | SignalReceived
    | UpdateReceived
    | CancelRequested
)
Command = ScheduleActivity | StartChild | StartTimer | OpenWait | CloseOp | Patched | Noted | UpdateAnswered
WorkflowEnd = Completed | Failed | Cancelled | ContinuedAsNew
End = WorkflowEnd | Terminated | TimedOut
AnyEntry = (
    Started
    | Retried
    | ActivityCompleted
    | ActivityFailed
    | TimerFired
    | SignalReceived
    | UpdateReceived
    | CancelRequested
    | ScheduleActivity
    | StartChild
    | StartTimer
    | OpenWait
    | CloseOp
    | Patched
    | Noted
    | UpdateAnswered
    | Completed
    | Failed
    | Cancelled
    | ContinuedAsNew
    | Terminated
    | TimedOut
)
EVENT_TYPES = (
    Started,
    Retried,
    ActivityCompleted,
    ActivityFailed,
    TimerFired,
    SignalReceived,
    UpdateReceived,
    CancelRequested,
)
COMMAND_TYPES = (ScheduleActivity, StartChild, StartTimer, OpenWait, CloseOp, Patched, Noted, UpdateAnswered)
END_TYPES = (Completed, Failed, Cancelled, ContinuedAsNew, Terminated, TimedOut)
