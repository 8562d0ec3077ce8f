"""The structs that cross the store's boundary. Instants are microseconds UTC; payloads are bytes.

The frequent ones are kept from the garbage collector (`gc=False`): they hold no cycles, and it would walk them for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from durable.journal.lifecycle import RunStatus

IfOpen = Literal["attach", "fail", "terminate"]
IfClosed = Literal["return", "fail", "new", "new_if_failed"]
CRASHES_MAX: Final = 3  # workers that may die driving a run alone, before it is parked as poison (P14)


# ─ workers ───────────────────────────────────────────────────────────────────


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a new incarnation says of itself. `host`, `pid`, `name` are for people; ownership never reads them."""

    name: str
    task_queue: str
    definitions: tuple[tuple[str, int], ...]  # (workflow, version) pairs it serves
    embedded: bool = False


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    worker_id: int
    name: str
    host: str
    pid: int
    task_queue: str
    embedded: bool
    is_alive: bool
    started_at_us: int
    stopped_at_us: int | None
    runs: int  # runs it owns
    definitions: tuple[tuple[str, int], ...] = ()
    beat_at_us: int | None = None  # its last sign of life, by its own wall clock: for people, decides nothing


class Rescue(msgspec.Struct, frozen=True, kw_only=True):
    """A dead worker whose runs were taken back. `poison`: the run ids that were parked, since they ended it."""

    worker_id: int
    name: str
    runs: int
    poison: tuple[str, ...] = ()


# ─ starting ──────────────────────────────────────────────────────────────────


class StartRequest(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """One start. `request_id` makes the call repeatable: the same id returns the same run, whatever the policies (P4)."""

    run_id: str
    request_id: str
    workflow: str
    version: int
    task_queue: str
    input: bytes
    deadline_us: int | None = None
    ready_at_us: int | None = None  # delayed start: not claimable before; None: now
    if_open: IfOpen = "attach"
    if_closed: IfClosed = "return"
    owner: int | None = None  # the worker that will drive it at once, fenced like any claim
    parent: str | None = None


class StartOutcome(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What a start did. `claim` is set if the starter became the owner."""

    how: Literal["started", "attached", "returned"]
    run: RunRecord
    claim: Claim | None = None


# ─ runs ──────────────────────────────────────────────────────────────────────


class RunRecord(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """One generation of a run, as readers see it. `pk` is internal."""

    pk: int
    run_id: str
    generation: int
    epoch: int
    workflow: str
    version: int
    task_queue: str
    status: RunStatus
    attempt: int  # workflow-level attempt, from 1
    created_at_us: int
    started_at_us: int | None
    closed_at_us: int | None
    deadline_us: int | None
    due_at_us: int | None  # waiting: the next timer; ready but delayed: its start
    owner: int | None
    owner_name: str | None
    owner_is_alive: bool
    reason: str | None  # why parked, cancelled or terminated
    input: bytes
    result: bytes | None
    failure: bytes | None  # a JSON Failure; of a parked run the fault that stopped it
    unread: int = 0  # messages in the inbox
    paused_at_us: int | None = None  # somebody holds it back: nothing of it begins until it is resumed
    pause_reason: str | None = None


class RunFilter(msgspec.Struct, frozen=True, kw_only=True):
    """AND of all that is set. `run_id` may hold `*`; `workflow` too.

    Without `with_large_payloads` a store may put a note of the size (`payloads.codec.size_note`) in place of large ones.
    """

    status: tuple[RunStatus, ...] = ()
    workflow: str | None = None
    task_queue: str | None = None
    run_id: str | None = None
    created_since_us: int | None = None
    created_until_us: int | None = None
    limit: int = 100
    before: tuple[int, int] | None = None  # (created_at_us, pk) of the last row seen: newest first
    with_large_payloads: bool = True


class JournalRow(msgspec.Struct, gc=False, frozen=True, array_like=True):
    turn: int
    part: int
    data: bytes


class AttemptRow(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The durable count of one activity's attempts while it is retrying or queued (P22).

    `state`: "started" (attempt `attempt` was charged and begun, at `due_at_us` if that is known), "backoff" (attempt `attempt` failed, the next is due at
    `due_at_us`), "handed_back" (`attempt` attempts are charged, none is running: start the next at once). `details`: a JSON
    array, what the last heartbeat told. A row without leaves those of the row it replaces.

    `completion` of a started attempt that is completed from outside: "open" until somebody does, "answered" when the answer is in
    the inbox, "expired" when its time was up before. `due_at_us` is then when it expires: at `limit_at_us`, or after
    `heartbeat_us` without a heartbeat; None: never.
    """

    op: int
    attempt: int
    state: Literal["started", "backoff", "handed_back"]
    due_at_us: int | None = None
    failure: bytes | None = None
    details: bytes | None = None
    completion: Literal["", "open", "answered", "expired"] = ""
    limit_at_us: int | None = None
    heartbeat_us: int | None = None


class ActivityAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody outside says of one attempt. `data`: the result, a Failure, or heartbeat details (an array), as JSON."""

    run_id: str
    generation: int
    op: int
    attempt: int
    kind: Literal["completed", "failed", "heartbeat"]
    data: bytes


AnswerVerdict = Literal[
    "taken",
    "duplicate",  # this attempt has been answered before; nothing was written
    "closed",  # nobody waits for this attempt (yet, or any more); nothing was written
]


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """Whether an open attempt has expired now. If not: `due_at_us` is when it may; None: somebody has answered or taken it."""

    expired: bool
    due_at_us: int | None = None


class Message(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """One row of the inbox: a signal, a cancel request or an activity's answer that the journal has not consumed.

    An answer's `name` is its kind, its `message_id` names the attempt (`answer_id`).
    """

    inbox_id: int
    run_pk: int
    msg: int
    kind: Literal["signal", "cancel", "activity"]
    name: str
    data: bytes  # the value, or for a cancel the JSON reason (a string or null)
    message_id: str | None
    sent_at_us: int


def answer_id(generation: int, op: int, attempt: int) -> str:
    """Return the message id of the one answer an attempt can have."""
    return f"activity/{generation}/{op}/{attempt}"


def answered_attempt(message_id: str | None) -> tuple[int, int, int]:
    """Return (generation, op, attempt) of an answer's message id."""
    _, generation, op, attempt = (message_id or "").split("/")
    return int(generation), int(op), int(attempt)


class Claim(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The right to drive a run, and all that is needed to do it. Every later write names `claim_no` (P8).

    `last_turn` is the last turn written when the run last changed hands: a journal that ends before it has lost rows.
    """

    pk: int
    run_id: str
    generation: int
    epoch: int
    claim_no: int
    workflow: str
    version: int
    task_queue: str
    attempt: int
    input: bytes
    deadline_us: int | None
    created_at_us: int
    msg_seq: int
    journal: list[JournalRow]
    inbox: list[Message]
    attempts: list[AttemptRow]
    is_suspect: bool = False  # its last worker died while it held the run: to be driven alone (P14)
    last_turn: int = 0


# ─ commits ───────────────────────────────────────────────────────────────────


class Stay(msgspec.Struct, gc=False, frozen=True, tag=True):
    """After the turn the run stays with its owner."""


class Wait(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """Release the run: nothing of it runs here. Refused (the rest still commits) if a message arrived."""

    due_at_us: int | None


class HandBack(msgspec.Struct, gc=False, frozen=True, tag=True):
    """Release the run as ready: another worker should go on at once (drain, full cache)."""


class Close(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """End the run. Refused, with the whole item, if a message arrived."""

    status: RunStatus
    result: bytes | None = None
    failure: bytes | None = None
    reason: str | None = None


class NextGeneration(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """Close this generation as failed and open the next under the same id and epoch (P7). Refused like `Close`.

    The new journal is turns 1..`copy_turns` of this one, then `parts` as one more turn (if any). `redeliver`
    are messages consumed after that point: they go back to the inbox under their old numbers.
    """

    failure: bytes
    copy_turns: int
    parts: tuple[bytes, ...]
    redeliver: tuple[Redelivery, ...]
    ready_at_us: int
    attempt: int


class Redelivery(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    msg: int
    kind: Literal["signal", "cancel"]
    name: str
    data: bytes
    message_id: str | None


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


class Park(msgspec.Struct, gc=False, frozen=True, tag=True, kw_only=True):
    """Stop the run on a platform fault. Its journal stays as it is. `failure` is the fault as a JSON Failure, with its stack.

    `is_clear`: the reason names code and places, no values; a codec leaves it readable for people without its key.
    """

    reason: str
    is_clear: bool = False
    failure: bytes | None = None
    code: str = ""  # the fingerprint of the code that met the fault: it will not try again by itself (P13)


After = Stay | Wait | HandBack | Close | NextGeneration | Park


class TurnCommit(msgspec.Struct, gc=False, kw_only=True):
    """One run's part of a group commit. `turn` None: no journal row, only marks or a change of hands.

    `seen` is the run's highest message number delivered so far, this turn included (P2). `consumed` lists inbox
    ids explicitly (P3). `attempts` are upserted, rows of `attempts_done` removed.
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
    after: After = Stay()


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is about to do with a suspect, and what came of others, each named by (pk, claim_no).

    `suspect` is driven next, alone, by the code with that fingerprint. `passed` got on, `adjourned` did not yet: they
    wait for something that ran when their worker died.
    """

    suspect: tuple[int, int] | None
    code: str = ""
    passed: Sequence[tuple[int, int]] = ()
    adjourned: Sequence[tuple[int, int]] = ()


Verdict = Literal[
    "committed",
    "stayed",  # committed, but the wait was refused: messages arrived; the run is still owned
    "messages",  # nothing written: a close was refused, messages must be delivered first
    "lost",  # nothing written: the run is no longer this worker's
]


class SendOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """`duplicate`: that message id was already taken in; nothing was added."""

    msg: int
    duplicate: bool


class DueOutcome(msgspec.Struct, frozen=True, kw_only=True):
    woken: int
    next_due_us: int | None  # of what still waits


class Backlog(msgspec.Struct, frozen=True, kw_only=True):
    """Open runs of some definitions: what a draining worker looks at."""

    ready: int
    owned: int
    timers: int  # waiting, with a due time
    idle: int  # waiting for outside input only, or parked


# ─ pauses ────────────────────────────────────────────────────────────────────

PauseKind = Literal["task_queue", "worker"]


class PauseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A task queue or a worker, by name, that somebody holds back."""

    kind: PauseKind
    name: str
    at_us: int
    reason: str | None


class Pauses(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker must obey: whether it is paused itself, which queues are, and which of the runs it owns."""

    is_worker_paused: bool = False
    task_queues: frozenset[str] = frozenset()
    pks: frozenset[int] = frozenset()


# ─ care of the database ──────────────────────────────────────────────────────


class Schema(msgspec.Struct, frozen=True, kw_only=True):
    """Which schema a database has (0: it is empty), and the newest this code knows."""

    version: int
    newest: int


class PendingMigration(msgspec.Struct, frozen=True, kw_only=True):
    """A migration that a database lacks, and the SQL that brings it, as one transaction for the database's own shell."""

    number: int
    name: str
    sql: str


class OpenRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Open runs of one queue, definition and state. `since_us`: since when the longest of them has been ready."""

    task_queue: str
    workflow: str
    version: int
    state: Literal["ready", "delayed", "owned", "waiting", "parked", "paused"]
    runs: int
    since_us: int


class StoreHealth(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator wants to know of a database; read at one moment, decides nothing."""

    engine: str  # "sqlite 3.45.1"
    journal_mode: str
    durability: str  # as this process opened it; each opener chooses
    schema: Schema
    database_bytes: int
    log_bytes: int | None  # None: the log is the server's own business
    free_bytes: int | None  # inside the database: reused before it grows; None: not known
    locks: (
        str | None
    )  # the directory of locks and sockets; empty if it is missing, None if there is none to be had
    unwritable: str  # why it can only be read; empty if it can be written
    open_runs: tuple[OpenRuns, ...]


class ClosedRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Which closed runs retention means: closed before an instant, with one of `status` (none: any)."""

    before_us: int
    status: tuple[RunStatus, ...] = ()


class PruneOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one batch deleted. `seen` runs of those named were looked at; the batch was full before the rest."""

    seen: int
    runs: int
    journal_rows: int
