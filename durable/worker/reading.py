"""What the store says of a run, checked before anything is done with it: messages, and what is told of attempts.

A row that cannot be read raises `UndecodableError`, which names the row and never quotes it: the run is parked. Nothing of a
damaged row gets into a new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from durable.definitions import ActivityDefinition
from durable.errors import UndecodableError
from durable.failures import Failure
from durable.in_activity import decode_details
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    CancelRequested,
    SignalReceived,
    UpdateReceived,
)
from durable.payloads.codec import sealed_fault
from durable.store.records import PARENT_ENDED, AttemptRow, Message, child_notice, update_id


class Misread(BaseException):
    """The stored arguments of an activity cannot be read: not a failure of the activity, which never began. Private.

    No `Exception`: the activity's policy has no say in it.
    """

    def __init__(self, fault: UndecodableError) -> None:
        super().__init__(str(fault))
        self.fault = fault


def read_arguments(definition: ActivityDefinition, stored: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return what an activity is called with; raise `Misread`."""
    try:
        return definition.arguments.decode(stored)
    except UndecodableError as fault:
        raise Misread(fault) from None


_MALFORMED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def check_attempts(rows: Sequence[AttemptRow]) -> None:
    """Raise unless what is stored of attempts can be read."""
    for row in rows:
        where = f"the attempt row of operation {row.op}"
        if row.details is not None:
            try:
                decode_details(row.details)
            except UndecodableError as fault:
                raise UndecodableError(f"{where}: {fault}") from None
        if row.failure is not None:
            try:
                msgspec.json.decode(row.failure, type=Failure)
            except _MALFORMED as error:
                raise UndecodableError(f"{where}: {_reason(row.failure, error)}") from None


def check_answer(message: Message) -> None:
    """Raise unless the answer that somebody outside gave for an activity can be read."""
    data = message.data
    try:
        data.decode()
        msgspec.json.decode(data, type=Failure if message.name == "failed" else msgspec.Raw)
    except _MALFORMED as error:
        raise UndecodableError(
            f"message {message.msg}, the answer of an activity: {_reason(data, error)}"
        ) from None


def child_event(message: Message, now_us: int) -> ActivityCompleted | ActivityFailed:
    """Return the event of a notice that was told the child's outcome."""
    data, op = message.data, child_notice(message.message_id).op
    try:
        if message.name == "completed":
            return ActivityCompleted(op=op, at=now_us, result=msgspec.json.decode(data, type=msgspec.Raw))
        return ActivityFailed(op=op, at=now_us, failure=msgspec.json.decode(data, type=Failure))
    except _MALFORMED as error:
        raise UndecodableError(f"message {message.msg}, of a child: {_reason(data, error)}") from None


def message_event(
    message: Message, now_us: int, *, parent: str | None = None
) -> SignalReceived | UpdateReceived | CancelRequested:
    """Return the event of a message to a run, which may be the child of another."""
    data = message.data
    try:
        if message.kind == "cancel":
            reason = msgspec.json.decode(data, type=str | None)
            if message.name == PARENT_ENDED:
                reason = f"its parent {parent!r} has ended"
            return CancelRequested(at=now_us, msg=message.msg, reason=reason)
        data.decode()  # the check below lets through text that is not UTF-8
        value = msgspec.json.decode(data, type=msgspec.Raw)
    except _MALFORMED as error:
        if message.kind == "cancel":
            what = "a cancel request"
        else:
            what = f"{'a signal' if message.kind == 'signal' else 'an update'} {message.name!r}"
        raise UndecodableError(f"message {message.msg}, {what}: {_reason(data, error)}") from None
    if message.kind in ("update", "accepted", "answered"):
        return UpdateReceived(
            at=now_us,
            name=message.name,
            value=value,
            msg=message.msg,
            id=update_id(message.message_id),
            accepted=message.kind != "update",
            answered=message.kind == "answered",
        )
    return SignalReceived(at=now_us, name=message.name, value=value, msg=message.msg, id=message.message_id)


def _reason(data: bytes, error: Exception) -> str:
    return sealed_fault(data) or f"not what was stored ({type(error).__name__})"
