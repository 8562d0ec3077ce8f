"""What a start comes to: decided by its policies and by what its run id stands for, alike in every database. Knows no SQL."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from durable.errors import RunConflictError
from durable.journal.lifecycle import RunStatus
from durable.store.codes import COMPLETED, is_closed
from durable.store.records import Claim, RunRecord, SameInput, StartOutcome, StartRequest

FIRST_CLAIM: Final = 1
REPLACED: Final = "replaced by a new start"  # why a run was terminated by one


class Known(msgspec.Struct):
    """What a request is compared with: the latest generation of its run id."""

    pk: int
    generation: int
    code: int
    workflow: str
    input: bytes


class New(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was inserted, or is about to be."""

    pk: int
    epoch: int
    ready_at_us: int
    is_delayed: bool
    deadline_us: int | None
    created_at_us: int


Answer = Literal[
    "attach",  # it is open
    "replace",  # it is open: terminate it, and open its next generation
    "restart",  # it is closed: open its next generation
    "return",  # it is closed
]


def decide(request: StartRequest, known: Known, same_input: SameInput) -> Answer:
    """Say what is to be done with a run id that has been used; `RunConflictError` if the request may not have it."""
    if not is_closed(known.code):
        match request.if_open:
            case "attach":
                _require_same(request, known, same_input)
                return "attach"
            case "terminate":
                return "replace"
            case "fail":
                raise RunConflictError(
                    f"run {request.run_id!r} is open; choose another id, or attach to it",
                    run_id=request.run_id,
                )
    match request.if_closed:
        case "new":
            return "restart"
        case "new_if_failed" if known.code != COMPLETED:
            return "restart"
        case "fail":
            raise RunConflictError(
                f"run {request.run_id!r} has been used and is closed; choose another id",
                run_id=request.run_id,
            )
        case _:
            _require_same(request, known, same_input)
            return "return"


def _require_same(request: StartRequest, known: Known, same_input: SameInput) -> None:
    if known.workflow != request.workflow:
        raise RunConflictError(
            f"run {request.run_id!r} belongs to workflow {known.workflow!r}, not {request.workflow!r}; "
            "choose another id",
            run_id=request.run_id,
        )
    if not same_input(request, known.input):
        raise RunConflictError(
            f"run {request.run_id!r} was started with other input; choose another id, or start it with the same",
            run_id=request.run_id,
        )


def may_begin_anew(request: StartRequest) -> bool:
    """Whether the request may end a run, or open the next generation of one."""
    return request.if_open == "terminate" or request.if_closed in ("new", "new_if_failed")


def started(request: StartRequest, new: New, owner_name: str | None) -> StartOutcome:
    """Return the outcome for a new run, without reading it back."""
    owner = request.owner
    run = RunRecord(
        pk=new.pk,
        run_id=request.run_id,
        generation=1,
        epoch=new.epoch,
        workflow=request.workflow,
        version=request.version,
        task_queue=request.task_queue,
        status=RunStatus.PENDING if owner is None else RunStatus.RUNNING,
        attempt=1,
        created_at_us=new.created_at_us,
        started_at_us=None if owner is None else new.created_at_us,
        closed_at_us=None,
        deadline_us=new.deadline_us,
        due_at_us=new.ready_at_us if new.is_delayed else None,
        owner=owner,
        owner_name=owner_name,
        owner_is_alive=owner is not None,
        reason=None,
        input=request.input,
        result=None,
        failure=None,
        kind=request.kind,
        parent=request.parent,
        retention_us=request.retention_us,
    )
    return begun(run, owner, claim_no=FIRST_CLAIM, msg_seq=0)


def begun(run: RunRecord, owner: int | None, *, claim_no: int, msg_seq: int) -> StartOutcome:
    """Return the outcome for a generation that begins now; its starter has the claim if it is its owner."""
    if owner is None:
        return StartOutcome(how="started", run=run)
    claim = Claim(
        pk=run.pk,
        run_id=run.run_id,
        generation=run.generation,
        epoch=run.epoch,
        claim_no=claim_no,
        workflow=run.workflow,
        version=run.version,
        task_queue=run.task_queue,
        attempt=run.attempt,
        input=run.input,
        deadline_us=run.deadline_us,
        created_at_us=run.created_at_us,
        msg_seq=msg_seq,
        journal=[],
        inbox=[],
        attempts=[],
    )
    return StartOutcome(how="started", run=run, claim=claim)


def repeated(record: RunRecord, claims: list[Claim]) -> StartOutcome:
    """Return the outcome for a call that was made before: what it did then (P4)."""
    how: Literal["returned", "attached"] = "returned" if record.status.is_closed else "attached"
    return StartOutcome(how=how, run=record, claim=claims[0] if claims else None)
