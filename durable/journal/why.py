"""Why a run is not moving: exactly one reason, for programs first. A pure choice over facts that were read elsewhere.

Knows nothing of stores: who is alive, what is unread and which workers serve the run are handed in.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Final

import msgspec

from durable.definitions import LOCAL_TASK_QUEUE
from durable.journal.lifecycle import RunStatus
from durable.journal.view import Blocker, Entry, Story, blockers, duration_text


class WhyReason(StrEnum):
    """What a run waits for, first of all. Values are stable; new ones may be added."""

    CLOSED = "closed"  # it ended; nothing will move it
    PARKED = "parked"  # stopped by a platform fault: deploy good code, then resume it
    UNREADABLE = "unreadable"  # its journal cannot be read by this code
    PAUSED = "paused"  # somebody holds it back: the run, its task queue, or every worker that serves it
    DELAYED = "delayed"  # its start, or its next attempt as a whole, lies ahead
    NO_WORKER = "no_worker"  # no living worker serves its workflow and version on its queue, or its activity on another
    CLAIM = "claim"  # a living worker serves it (or its activity) and has not taken it yet: it has no room, or this very moment
    WORKER_LOST = "worker_lost"  # its worker died or hangs; another one will take it over
    UNREAD = "unread"  # messages came in which its worker has not delivered yet
    TURN = "turn"  # its worker drives it at this moment
    ACTIVITY = "activity"  # an attempt of an activity is running: it moves
    COMPLETION = "completion"  # somebody outside is to complete an activity, by its task token
    SLOT = "slot"  # an activity waits for a free slot of its worker
    RETRY = "retry"  # an activity failed, its next attempt lies ahead
    SIGNAL = "signal"
    CONDITION = "condition"
    TIMER = "timer"
    DEADLOCK = "deadlock"  # it waits for something that nothing will ever do: only a cancel moves it


class Why(msgspec.Struct, frozen=True, kw_only=True):
    """The one reason why a run is not moving; `waiting_on` holds all that is open. `text` is for people.

    `name` is the signal's, activity's, timer's, or paused task queue's or worker's; `due_at` when it moves by itself, if it does; `since` when the wait began.
    """

    run_id: str
    generation: int
    workflow: str
    version: int
    task_queue: str
    status: RunStatus
    reason: WhyReason
    text: str
    name: str = ""
    due_at: datetime | None = None
    since: datetime | None = None
    source: str = ""
    worker: str | None = None
    queue: str = ""  # of an activity on another task queue: that queue
    waiting_on: tuple[Blocker, ...] = ()


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run besides its journal, at one moment."""

    run_id: str
    generation: int
    workflow: str
    version: int
    task_queue: str
    status: RunStatus
    outcome: str  # of a closed run: its error or reason; of a parked one: the fault
    now: datetime
    due_at: datetime | None  # of a ready run its start, of a waiting one its next timer
    closed_at: datetime | None
    owner: str | None
    owner_fault: str  # why the owner counts as lost; empty if it does not
    unread: int
    is_beginning: bool  # its next turn opens a life: nothing was asked for in it yet
    serving: tuple[str, ...]  # living workers that would claim it
    nearby: str  # who nearly serves it; empty if nobody
    pause: str = ""  # what somebody holds back; empty if nothing
    paused_at: datetime | None = None
    paused_name: str = ""  # of the task queue or worker; empty if it is the run's own pause


_OVERDUE_SECONDS: Final = 2.0  # a timer later than this has nobody to wake it
_RANKS: Final = {
    "running": 0,
    "scheduled": 1,
    "retrying": 2,
}  # of activities; then what waits for the outside


def explain(facts: Facts, story: Story | None) -> Why:
    """Return the one reason; `story` None: the journal cannot be read, which hides only what the run has asked for."""
    if facts.status.is_closed:
        ago = "" if facts.closed_at is None else f" {_seconds(facts.now, facts.closed_at)} ago"
        outcome = f": {facts.outcome}" if facts.outcome else ""
        return _why(facts, WhyReason.CLOSED, f"{facts.status}{ago}{outcome}", since=facts.closed_at)
    if facts.status is RunStatus.PARKED:
        return _why(facts, WhyReason.PARKED, facts.outcome or "parked")
    if facts.pause:
        return _paused(facts, story)
    if facts.owner is None:
        return _unowned(facts, story)
    if facts.owner_fault:
        heir = "a living worker takes it over" if facts.serving else f"and {_nobody(facts)}"
        return _why(
            facts, WhyReason.WORKER_LOST, f"its worker {facts.owner} {facts.owner_fault}; {heir}", story=story
        )
    if facts.unread:
        messages = "1 message" if facts.unread == 1 else f"{facts.unread} messages"
        return _why(
            facts, WhyReason.UNREAD, f"its worker {facts.owner} has {messages} to deliver", story=story
        )
    return _of_story(facts, story)


def _paused(facts: Facts, story: Story | None) -> Why:
    open_lines = [] if story is None else story.open
    running = [line.name for line in open_lines if line.kind == "activity" and line.status == "running"]
    ending = (
        f"; {', '.join(running)} may end first" if running and facts.owner and not facts.owner_fault else ""
    )
    return _why(
        facts,
        WhyReason.PAUSED,
        f"{facts.pause}{ending}",
        story=story,
        name=facts.paused_name,
        since=facts.paused_at,
    )


def _unowned(facts: Facts, story: Story | None) -> Why:
    due = facts.due_at
    if facts.status is RunStatus.WAITING:
        late = due is not None and (facts.now - due).total_seconds() > _OVERDUE_SECONDS
        if not late or facts.serving:
            return _of_story(facts, story)
        assert due is not None
        text = f"its timer was due {_seconds(facts.now, due)} ago, and {_nobody(facts)}"
        return _why(facts, WhyReason.NO_WORKER, text, story=story, since=due)
    if due is not None and due > facts.now:
        return _why(facts, WhyReason.DELAYED, f"starts in {_seconds(due, facts.now)}", due_at=due)
    if not facts.serving:
        return _why(facts, WhyReason.NO_WORKER, _nobody(facts), story=story)
    who = ", ".join(facts.serving)
    return _why(facts, WhyReason.CLAIM, f"ready: {who} will take it when there is room", story=story)


LOCAL_ADVICE: Final = (
    "it holds what no worker can rebuild, so only the script that started it can go on with it, by its run id"
)


def _nobody(facts: Facts) -> str:
    if facts.task_queue == LOCAL_TASK_QUEUE:
        return f"nobody has it: {LOCAL_ADVICE}"
    nearby = f"; {facts.nearby}" if facts.nearby else ""
    return f'no living worker serves {facts.workflow} version {facts.version} on queue "{facts.task_queue}"{nearby}'


def _of_story(facts: Facts, story: Story | None) -> Why:
    """Say what a run that somebody drives, or that rests, has asked for: the first that can move it."""
    if story is None:
        return _why(facts, WhyReason.UNREADABLE, facts.outcome, due_at=facts.due_at)
    if facts.is_beginning:
        return _why(facts, WhyReason.TURN, "its worker drives it: first turn")
    if not story.open:
        text = "nothing it asked for is open: only a signal or an update with a handler, or a cancel, can move it"
        return _why(facts, WhyReason.DEADLOCK, text, since=story.last_at)
    line = min(story.open, key=_rank)
    timers = [one for one in story.open if one.kind == "timer"]
    around = [line, *timers] if line.kind in ("signal", "condition") else [line]
    blocker = blockers(Story(entries=[], open=around, last_at=None, deliveries=0), facts.now)[0]
    return _why(
        facts,
        _reason(line),
        blocker.text,
        story=story,
        name=blocker.name,
        due_at=blocker.due_at,
        since=line.started_at,
        source=line.source,
        queue=line.queue,
    )


def _rank(line: Entry) -> tuple[int, float]:
    due = 0.0 if line.due_at is None else line.due_at.timestamp()
    match line.kind:
        case "signal" | "cancel":
            return 3, 0.0
        case "condition":
            return 4, 0.0
        case "timer":
            return 5, due
        case "patch":
            return 6, 0.0  # never open
        case _:  # an activity, in the words of its pattern
            return (3 if line.is_open else _RANKS.get(line.status, 2)), due


def _reason(line: Entry) -> WhyReason:
    match line.kind:
        case "signal" | "cancel":
            return WhyReason.SIGNAL
        case "condition":
            return WhyReason.CONDITION
        case "timer" | "patch":
            return WhyReason.TIMER
        case _:
            if line.queue and line.status == "scheduled":
                held = {"no_worker": WhyReason.NO_WORKER, "paused": WhyReason.PAUSED}
                return held.get(line.hold, WhyReason.CLAIM)
            if line.status == "running":
                return WhyReason.COMPLETION if line.is_open else WhyReason.ACTIVITY
            return WhyReason.RETRY if line.status == "retrying" else WhyReason.SLOT


def _why(
    facts: Facts,
    reason: WhyReason,
    text: str,
    *,
    story: Story | None = None,
    name: str = "",
    due_at: datetime | None = None,
    since: datetime | None = None,
    source: str = "",
    queue: str = "",
) -> Why:
    return Why(
        run_id=facts.run_id,
        generation=facts.generation,
        workflow=facts.workflow,
        version=facts.version,
        task_queue=facts.task_queue,
        status=facts.status,
        reason=reason,
        text=text,
        name=name,
        due_at=due_at,
        since=since,
        source=source,
        worker=facts.owner,
        queue=queue,
        waiting_on=tuple(blockers(story, facts.now)) if story is not None and story.open else (),
    )


def _seconds(later: datetime, earlier: datetime) -> str:
    return duration_text(max(0.0, (later - earlier).total_seconds()))
