"""A run in a worker's hands: what it was claimed with, its instance, and work the instance must not lose.

Discarding an instance never discards work (P15): attempts in flight and outcomes not yet committed live here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

import msgspec

from durable.definitions import WorkflowDefinition
from durable.engine.instance import Instance
from durable.engine.runtime import ActivityCall
from durable.failures import Failure
from durable.in_activity import Pulse
from durable.journal.events import AnyEntry
from durable.journal.lifecycle import RunStatus
from durable.store.records import After, Claim, Message, Stay, TurnCommit


class Phase(Enum):
    IDLE = "idle"  # may be driven
    COMMITTING = "committing"  # a turn of it is on its way: not to be driven
    LOADING = "loading"  # its journal is being read again
    GONE = "gone"  # closed, released or lost: no longer ours


class AttemptState(Enum):
    QUEUED = "queued"  # wants a slot
    MARKING = "marking"  # has a slot; its start is being written
    RUNNING = "running"
    BACKOFF = "backoff"
    OPEN = "open"  # its code has ended; somebody outside completes it
    STOPPED = "stopped"  # its code has ended because its run leaves: whoever takes the run begins it
    DONE = "done"  # its outcome is on its way into the journal
    DROPPED = "dropped"  # nobody waits for it any more


_STAY: Final = Stay()
TimeoutKind = Literal["start_to_close", "schedule_to_start", "schedule_to_close", "heartbeat"]


class Attempt(msgspec.Struct, eq=False):
    """One open activity in this worker's care. `number` is the last attempt charged.

    `scheduled_at_us` is when the journal says it was asked for, `queued_at_us` since when the next attempt has been due:
    wall clock, for they outlive workers. `began_at` is the clock's `elapsed`. `details` are the last heartbeat's, except that
    those of the attempt that runs are in its `pulse`. `failure` is that of the attempt before, if it failed here.
    """

    run: LiveRun
    call: ActivityCall
    number: int
    state: AttemptState
    scheduled_at_us: int
    queued_at_us: int
    has_slot: bool = False
    task: Any = (
        None  # the task or future of its code; none before a coroutine has suspended for the first time
    )
    timer: Any = None  # a Timer
    timed_out: TimeoutKind | None = None
    cancelled: bool = False  # on request of the workflow
    is_stopped: bool = (
        False  # its code was told to end, since its run leaves; all but a result is as if it had never begun
    )
    has_row: bool = False  # a row of attempts tells of it: to be removed with the outcome
    begun: bool = False  # its coroutine has taken its first step
    began_at: float = 0.0
    pulse: Pulse | None = None
    details: bytes | None = None
    failure: Failure | None = None
    answer: Message | None = None  # from outside, in the inbox until its outcome is in the journal
    is_remote: bool = False  # a task on another queue: its attempts are counted there
    is_misread: bool = False  # its stored arguments cannot be read: it has not begun, and its run parks
    is_lost: bool = False  # the attempt before died with its worker: the next begins on probation
    started_at_us: int = (
        0  # when it began, or (lost, in backoff) the one before did: wall clock, as far as is known
    )
    limit_at_us: int | None = None  # when an open attempt expires, heartbeats or not
    open_until_us: int | None = None  # when it expires without another heartbeat

    def latest_details(self) -> bytes | None:
        """Return what its last heartbeat told, this attempt's or an earlier one's."""
        return self.details if self.pulse is None else self.pulse.details

    @property
    def goes_on(self) -> bool:
        """Whether its code goes on, whatever is written of it: a thread that has begun, and not ended."""
        body = None if self.pulse is None else self.pulse.body
        in_thread = self.task is not None and not isinstance(self.task, asyncio.Task)
        return in_thread and body is not None and body.has_begun

    def keep_details(self) -> None:
        """The attempt that ran is over: what it told stays, what it still tells is not heard."""
        pulse = self.pulse
        if pulse is not None:
            self.details = pulse.details
            pulse.close()
            self.pulse = None

    @property
    def is_on_loop(self) -> bool:
        """Whether its code runs, or will run, in a task of the loop, which can be cancelled; else in a thread."""
        return self.call.definition.is_async or isinstance(self.task, asyncio.Task)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class Outcome(msgspec.Struct, eq=False, gc=False):
    """How one activity ended, not yet in the journal. `value` is what replay would decode from `result`."""

    op: int
    attempts: int
    result: bytes | None = None
    value: Any = None
    failure: Failure | None = None


class LeftPart(NamedTuple):
    """What an activity has left running, for one that takes over."""

    task: asyncio.Task[Any]
    context: Context
    timer: asyncio.TimerHandle
    ended: Callable[[asyncio.Task[Any]], None]


class LiveRun:
    """One claimed run. `turn` is the last committed one; `seen` the highest message number delivered (P2)."""

    __slots__ = (
        "attempts",
        "claim",
        "claim_no",
        "definition",
        "fault",
        "generation",
        "has_open",
        "has_unread",
        "idle_since",
        "inbox",
        "instance",
        "is_dirty",
        "is_held",
        "is_recovered",
        "is_suspect",
        "is_waited_out",
        "leave_asked",
        "leaves_at",
        "left",
        "opened",
        "outcomes",
        "phase",
        "pk",
        "received",
        "recorded",
        "release_asked",
        "run_id",
        "seen",
        "spent",
        "turn",
        "workflow",
    )

    def __init__(self, claim: Claim, definition: WorkflowDefinition) -> None:
        self.definition = definition
        self.workflow = claim.workflow
        self.pk = claim.pk
        self.run_id = claim.run_id
        self.generation = claim.generation
        self.claim_no = claim.claim_no
        self.instance: Instance | None = None
        self.recorded: list[tuple[int, list[AnyEntry]]] | None = None  # kept if the workflow has retries (P7)
        self.turn = 0
        self.attempts: dict[int, Attempt] = {}
        self.outcomes: deque[Outcome] = deque()
        self.left: dict[str, LeftPart] = {}
        self.phase = Phase.IDLE
        self.fault: Exception | None = None  # it parks for that, once none of its code runs
        self.is_dirty = False  # to be driven in the next round
        self.idle_since = 0.0
        self.release_asked = False  # it has waited here for long
        self.leave_asked = False  # hand it back as soon as nothing of it is on its way
        self.leaves_at: asyncio.TimerHandle | None = (
            None  # its code was told to stop: then it is waited for no more
        )
        self.is_waited_out = False  # it was
        self.is_held = False  # paused: only outcomes of what runs are fed, nothing new begins
        self.is_recovered = False  # what its last owner left was seen to: all later attempts began here
        self.opened = 0  # attempts that somebody outside completes: nothing of them runs here
        self.inbox: deque[Message] = deque()
        self.has_open = False  # some attempt of it was ever left to somebody outside
        self.has_unread = False  # a wait was refused: messages have come that were not read here
        self.spent: list[Message] = []  # answers without an outcome, to be consumed by the next turn
        self.seen = 0
        self.received = (
            0  # the highest message number ever taken in: one being committed is still a row of the inbox
        )
        self.claim = claim
        self.take(claim)

    def take(self, claim: Claim) -> None:
        """Start over from what the store says: the journal and the inbox as they are now."""
        self.claim = claim
        self.is_suspect = claim.is_suspect  # not to be driven but by `suspects.py`
        self.claim_no = claim.claim_no
        self.inbox = deque(claim.inbox)
        self.spent.clear()
        self.seen = claim.inbox[0].msg - 1 if claim.inbox else claim.msg_seq
        self.received = (
            claim.msg_seq
        )  # what is not in the inbox was consumed, perhaps by an earlier generation

    def add_messages(self, messages: list[Message]) -> bool:
        """Take in messages that were read later; return whether any was new."""
        fresh = [message for message in messages if message.msg > self.received]
        if fresh:
            self.received = fresh[-1].msg
            self.has_unread = False
            self.inbox.extend(fresh)
        return bool(fresh)

    def take_back(self, messages: Sequence[Message], outcomes: Sequence[Outcome]) -> None:
        """What a turn had consumed that will not be written is to be consumed again, before anything that came after it."""
        self.inbox.extendleft(reversed(messages))
        self.outcomes.extendleft(reversed(outcomes))

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it is on its way into the database."""
        return self.phase is not Phase.COMMITTING

    @property
    def has_work(self) -> bool:
        """Whether an activity of it is running, queued or backing off here (then it keeps its owner, P12)."""
        return len(self.attempts) > self.opened or bool(self.outcomes)

    @property
    def is_leaving(self) -> bool:
        """Whether nothing is to begin for it any more: it is to be handed back, or to park."""
        return self.leave_asked or self.fault is not None

    @property
    def is_starting(self) -> bool:
        """Whether the start of an attempt is being written."""
        return any(attempt.state is AttemptState.MARKING for attempt in self.attempts.values())

    @property
    def log_fields(self) -> dict[str, object]:
        """What structured logs say of a record about this run."""
        return {"run_id": self.run_id, "workflow": self.workflow}

    @property
    def has_running_attempts(self) -> bool:
        """Whether the code of an attempt runs, or is about to; or a part that one has left."""
        return any(
            attempt.state in (AttemptState.MARKING, AttemptState.RUNNING)
            for attempt in self.attempts.values()
        ) or any(not part.task.done() for part in self.left.values())

    @property
    def is_still(self) -> bool:
        """Whether nothing of it runs, and what had run is recorded."""
        return not self.outcomes and not self.has_running_attempts


class Item(TurnCommit, gc=True, eq=False, kw_only=True):
    """One entry of a group commit: a turn with what to do once it is durable, or marks of attempts."""

    run: LiveRun
    entries: Sequence[AnyEntry] = ()
    at_us: int = 0  # the instant of its events
    taken: Sequence[Outcome] = ()
    slots: int = 0  # reserved for activities this turn schedules
    begins: ActivityCall | None = None  # the activity that begins with it, if that is all that it leads to
    marked: Sequence[Attempt] = ()  # whose marks these are
    status: RunStatus | None = None  # the run's end, if the turn ends it
    fault: Exception | None = None

    @property
    def is_marks(self) -> bool:
        """Whether it only tells of activities and children: no turn, and the run stays."""
        return (
            self.turn is None
            and bool(self.attempts or self.tasks or self.errands)
            and type(self.after) is Stay
        )

    @property
    def is_report(self) -> bool:
        """Whether it tells of what has happened (a failure, a heartbeat), so that it is to be written in any case."""
        return self.is_marks and not self.marked


def new_item(run: LiveRun, *, after: After = _STAY) -> Item:
    """Return an entry about a run, with what says which life of it is meant."""
    return Item(
        pk=run.pk,
        generation=run.generation,
        claim_no=run.claim_no,
        seen=run.seen,
        after=after,
        run=run,
    )
