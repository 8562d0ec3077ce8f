"""Runs: how one is asked for, as readers see it, and how a closed one is opened again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

import msgspec

from durable.journal.lifecycle import RunStatus

IfOpen = Literal["attach", "fail", "terminate"]
IfClosed = Literal["return", "fail", "new", "new_if_failed"]
AS_NEW: Final = "it continued as new"  # the reason of a generation that was closed so


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
    kind: str = ""  # what it is in the words of a pattern; "" is a plain workflow
    retention_us: int | None = (
        None  # how long it is kept once it is closed; 0: for ever; None: as workers are told
    )


SameInput = Callable[[StartRequest, bytes], bool]  # whether a stored input is the request's


def same_bytes(request: StartRequest, stored: bytes) -> bool:
    return stored == request.input


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
    kind: str = (
        ""  # what it is in the words of a pattern; "" is a plain workflow, or one from before this was stored
    )
    parent: str | None = None  # the run id of the run whose child it is
    retention_us: int | None = None  # as in `StartRequest`


CountBy = Literal["status", "workflow", "queue"]


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


class DueOutcome(msgspec.Struct, frozen=True, kw_only=True):
    woken: int
    next_due_us: int | None  # of what still waits
