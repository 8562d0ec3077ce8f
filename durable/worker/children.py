"""Children of runs: what a turn asks for, and what became of those that notices tell of. A notice says that one is closed; how it ended is read from the child's own row.

So nothing is stored twice, and a result is as the codec, and the limits of payloads, left it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec

from durable import failures
from durable.engine.instance import Instance
from durable.engine.operations import ChildCall
from durable.errors import RunConflictError, RunNotFoundError, UndecodableError
from durable.journal.lifecycle import RunStatus
from durable.payloads import ValueType
from durable.store.records import (
    CHILD_CONFLICT,
    ChildCancel,
    ChildStart,
    Claim,
    Message,
    StartRequest,
    child_notice,
)

if TYPE_CHECKING:
    from durable.client import Client

_ANY: Final = ValueType.of(object)


async def with_outcomes(client: Client, messages: Iterable[Message]) -> list[Message]:
    """Return the messages, those about children with the child's outcome: "completed" and its result, or "failed" and a Failure."""
    return [await _told(client, one) if one.kind == "child" else one for one in messages]


async def claims_with_outcomes(client: Client, claims: Iterable[Claim]) -> list[Claim]:
    """Return the claims with what became of the children their inboxes tell of."""
    return [
        msgspec.structs.replace(claim, inbox=await with_outcomes(client, claim.inbox))
        if any(message.kind == "child" for message in claim.inbox)
        else claim
        for claim in claims
    ]


async def _told(client: Client, message: Message) -> Message:
    try:
        notice = child_notice(message.message_id)
    except UndecodableError:
        return message  # whoever drives the run meets it, and parks it
    error: Exception
    if message.name == CHILD_CONFLICT:
        error = RunConflictError(
            f"run {notice.run_id!r} exists, and is of another workflow or the child of another run; choose another id",
            run_id=notice.run_id,
        )
        return _failed(message, error)
    try:
        record = await client.store.get_run(notice.run_id, notice.generation)
        if record.status is RunStatus.COMPLETED:
            result = b"null" if record.result is None else record.result
            return msgspec.structs.replace(message, name="completed", data=result)
        error = client.handle_of(record, _ANY).failure_of(record)
    except RunNotFoundError:
        error = RunNotFoundError(notice.run_id)
    return _failed(message, error)


def _failed(message: Message, error: Exception) -> Message:
    return msgspec.structs.replace(message, name="failed", data=msgspec.json.encode(failures.record(error)))


# ─ what a turn asks for ──


def errands_of(claim: Claim, instance: Instance, now_us: int) -> list[ChildStart | ChildCancel]:
    """Take what the turn's activations asked for children off the instance's books."""
    errands: list[ChildStart | ChildCancel] = [
        ChildCancel(run_id=errand.call.key, data=msgspec.json.encode(_reason(claim, instance, errand.reason)))
        if errand.is_cancel
        else child_start(claim, errand.call, now_us)
        for errand in instance.errands
    ]
    instance.errands.clear()
    return errands


def _reason(claim: Claim, instance: Instance, given: str | None) -> str:
    """Return why a child is to cancel: as its parent's code says, else as whoever cancelled the parent did."""
    if given is not None:
        return given
    if instance.is_cancel_requested:
        return instance.cancel_reason or f"its parent {claim.run_id!r} is cancelled"
    return f"its parent {claim.run_id!r} waits for it no longer"


def child_start(claim: Claim, call: ChildCall, now_us: int) -> ChildStart:
    workflow = call.workflow
    request = StartRequest(
        run_id=call.key,
        request_id=f"child/{claim.pk}/{claim.epoch}/{claim.generation}/{call.op}",
        workflow=workflow.name,
        version=workflow.version,
        task_queue=call.task_queue,
        input=call.args,
        deadline_us=None if workflow.timeout_us is None else now_us + workflow.timeout_us,
        # An id of ours that is known is of this very call: its workflow is tried again, and what had failed with it. But one that had
        # been asked to cancel has ended of that: begun anew, nobody would ask it again.
        if_closed="new_if_failed" if call.run_id is None and call.closing is None else "return",
        parent=claim.run_id,
        kind="" if workflow.kind == "workflow" else workflow.kind,
        retention_us=workflow.retention_us,
    )
    return ChildStart(request=request, op=call.op, on_parent_close=call.on_parent_close, asked_at_us=now_us)


def is_awaited(message: Message, instance: Instance) -> bool:
    """Whether the child that a notice is about is one that the run still waits for."""
    notice = child_notice(message.message_id)
    call = instance.children.get(notice.op)
    return call is not None and call.key == notice.run_id
