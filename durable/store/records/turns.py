"""One run's part of a group commit: the turn, and what becomes of the run after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from durable.definitions import OnParentClose
from durable.journal.lifecycle import RunStatus
from durable.store.records.inbox import Outgoing, Redelivery
from durable.store.records.runs import StartRequest
from durable.store.records.tasks import AttemptRow, NewTask, TaskClosing


class Stay(msgspec.Struct, gc=False, frozen=True, tag=True):
    """After the turn the run stays with its owner."""


class Wait(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """Release the run: nothing of it runs here. Refused (the rest still commits) if a message arrived."""

    due_at_us: int | None


class HandBack(msgspec.Struct, gc=False, frozen=True, tag=True):
    """Release the run as ready: another worker should go on at once (drain, full cache)."""


class Close(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """End the run. Refused, with the whole item, if a message arrived. `wakes_others`: its parent or children are told of it."""

    wakes_others: bool = False
    status: RunStatus
    result: bytes | None = None
    failure: bytes | None = None
    reason: str | None = None


class NextGeneration(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """Close this generation as continued and open the next under the same id. Refused like `Close`.

    A workflow-level retry (P7) keeps the input. The new journal is turns 1..`copy_turns` of this one, then `parts` as one more
    turn (if any). `redeliver` are messages consumed after that point: they go back to the inbox under their old numbers.

    With `input` the workflow continues as new: an empty journal, and the deadline that was. What the inbox holds stays there;
    `redeliver` are signals that were consumed and that no code has seen.

    `new_epoch`: what was done is final, or has been undone, so that its idempotency keys must not be used again (P6).
    """

    failure: bytes | None
    copy_turns: int
    parts: tuple[bytes, ...]
    redeliver: tuple[Redelivery, ...]
    ready_at_us: int
    attempt: int
    input: bytes | None = None
    idle_generations: int = 0  # see `Claim`
    new_epoch: bool = False


class Park(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """Stop the run on a platform fault. Its journal stays as it is. `failure` is the fault as a JSON Failure, with its stack.

    `is_clear`: the reason names code and places, no values; a codec leaves it readable for people without its key.
    """

    reason: str
    is_clear: bool = False
    failure: bytes | None = None
    code: str = ""  # the fingerprint of the code that met the fault: it will not try again by itself (P13)


After = Stay | Wait | HandBack | Close | NextGeneration | Park


class ChildStart(msgspec.Struct, frozen=True, kw_only=True):
    """A run that the turn starts, as a child of its own. An open run of that id is attached to, unless it is of another workflow or parent.

    When the child closes, however that comes, its parent is told by a message of kind "child" in the same transaction, if it is
    open and in the same epoch; so it is at once about a child that is closed already, or cannot be started. The message holds no
    outcome: that is the child's own. `op` is the parent's operation. `asked_at_us`: the deadline counts from here.

    A turn that is refused, or whose commit fails, has started nothing. A commit whose result is unknown is not repeated but
    read, so no child is started twice; and its id derives from the parent's, so a second start would meet the first.
    A turn that starts a child and closes its run has closed it before the child is there: no trigger sees that child, which is asked
    to cancel by the store.
    """

    request: StartRequest
    op: int
    on_parent_close: OnParentClose
    asked_at_us: int


class ChildCancel(msgspec.Struct, frozen=True, kw_only=True):
    """A child, by its run id, that the turn asks to cancel; nothing, if it is closed. `data` is the reason, as a JSON string."""

    run_id: str
    data: bytes


def lets_children_go(after: After) -> bool:
    """Whether a turn that ends so is the last that its children's parent writes in this epoch: those it starts go with it."""
    return isinstance(after, Close) or (isinstance(after, NextGeneration) and after.new_epoch)


class TurnCommit(msgspec.Struct, gc=False, kw_only=True):
    """One run's part of a group commit. `turn` None: no journal row, only marks or a change of hands.

    `seen` is the run's highest message number delivered so far, this turn included (P2). `consumed` lists inbox
    ids explicitly (P3). `attempts` are upserted, rows of `attempts_done` removed. Of `tasks` those are inserted whose operation has no
    row of attempts yet, with that row ("remote"), so that one that is written twice is there once. `errands` are done for children.
    `answers` are what activities came to whose outcome the turn could not take in, of a run that parks or is handed back: messages for
    whoever goes on with it, each with a row of attempts that is "answered". `is_awaited`: callers of updates may wait for what it says.
    """

    pk: int
    generation: int
    claim_no: int
    turn: int | None = None
    parts: tuple[bytes, ...] = ()
    consumed: Sequence[int] = ()
    seen: int = 0
    attempts: Sequence[AttemptRow] = ()
    attempts_done: Sequence[int] = ()
    errands: Sequence[ChildStart | ChildCancel] = ()
    after: After = Stay()
    tasks: Sequence[NewTask] = ()
    tasks_closed: Sequence[TaskClosing] = ()
    answers: Sequence[Outgoing] = ()
    is_awaited: bool = False


Verdict = Literal[
    "committed",
    "stayed",  # committed, but the wait was refused: messages arrived; the run is still owned
    "messages",  # nothing written: messages must be delivered before a close; or (no turn) somebody is about to close the run
    "lost",  # nothing written: the run is no longer this worker's
]


class Reopen(msgspec.Struct, frozen=True, kw_only=True):
    """Open the next generation of a closed run. Refused unless `generation` is the latest, and closed.

    The new journal is turns 1..`copy_turns` of that one, then `parts` as one more turn (if any); `redeliver` goes back to
    the inbox. The time between start and deadline begins anew. `new_epoch`: nothing of the former life counts any more.
    """

    pk: int
    run_id: str
    generation: int
    attempt: int
    copy_turns: int = 0
    parts: tuple[bytes, ...] = ()
    redeliver: tuple[Redelivery, ...] = ()
    new_epoch: bool = False
