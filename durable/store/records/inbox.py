"""Messages to a run that its journal has not consumed: signals, updates, cancel requests, answers of activities, notices of children."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from durable.errors import UndecodableError


class Message(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """One row of the inbox: a signal, an update, a cancel request or an activity's answer that the journal has not consumed.

    An update that an earlier life of the run had begun to handle is "accepted", and "answered" if its caller was given the result. Its
    `message_id` is `update_message_id`.
    An answer's `name` is its kind, its `message_id` names the attempt (`answer_id`). One of the name `RETRY_NOW` answers nothing: the
    attempt has failed, and the next is not to wait any longer (`retry_id`).
    """

    inbox_id: int
    run_pk: int
    msg: int
    kind: Literal["signal", "update", "accepted", "answered", "cancel", "activity", "child"]
    name: str
    data: bytes  # the value, or for a cancel the JSON reason (a string or null)
    message_id: str | None
    sent_at_us: int


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A message on its way to a run's inbox. Of `BOUNDED` kinds it is refused if the run has `unread_max` unread messages already."""

    run_id: str
    kind: str
    name: str
    data: bytes
    message_id: str | None
    unread_max: int | None = None


class SendOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """`duplicate`: that message id was already taken in; nothing was added. `is_unread`: and the run has not consumed it yet."""

    msg: int
    duplicate: bool
    is_unread: bool = True


class Redelivery(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    msg: int
    kind: Literal["signal", "update", "accepted", "answered", "cancel"]
    name: str
    data: bytes
    message_id: str | None


class ActivityAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody outside says of one attempt. `data`: the result, a Failure, or heartbeat details (an array), as JSON."""

    run_id: str
    epoch: int  # of the generation: an id may have another run meanwhile
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


def answer_id(generation: int, op: int, attempt: int) -> str:
    """Return the message id of the one answer an attempt can have."""
    return f"activity/{generation}/{op}/{attempt}"


BOUNDED: Final = ("signal", "update")  # a cancel or an answer always finds room
_UPDATE: Final = "update/"


def update_message_id(id: str) -> str:
    """Return the message id of the update that its caller calls `id`: signals have ids of their own."""
    return _UPDATE + id


def update_id(message_id: str | None) -> str:
    """Return what `update_message_id` was made of."""
    return (message_id or "").removeprefix(_UPDATE)


RETRY_NOW: Final = "retry"
KEPT: Final = "kept"  # the result of a run that parked before it could record it


class FailedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of an open run's activity that has failed, and is to be followed by the next one."""

    run_id: str
    generation: int
    op: int
    attempt: int


def retry_id(generation: int, op: int, attempt: int) -> str:
    """Return the message id of the wish that the attempt after this one begins at once."""
    return f"retry/{generation}/{op}/{attempt}"


def answered_attempt(message_id: str | None) -> tuple[int, int, int]:
    """Return (generation, op, attempt) of what `answer_id` or `retry_id` has made."""
    _, generation, op, attempt = (message_id or "").split("/")
    return int(generation), int(op), int(attempt)


CHILD_CONFLICT: Final = "conflict"  # the name of a notice that a child could not be started
PARENT_ENDED: Final = (
    "parent ended"  # the name of a request to cancel that the end of the parent made (the triggers write it)
)
ITS_PARENT_HAS_ENDED: Final = (
    "its parent has ended"  # why a child was terminated (the triggers write it, too)
)


class ChildNotice(msgspec.Struct, frozen=True, kw_only=True):
    """What a message of kind "child" is about: a generation of a child, and the operation of the parent that waits for it."""

    op: int
    generation: int
    run_id: str


def child_notice(message_id: str | None) -> ChildNotice:
    """Return what a notice's message id says: `child/op/generation/run_id`. `UndecodableError`: nothing of the kind."""
    try:
        _, op, generation, run_id = (message_id or "").split("/", 3)
        return ChildNotice(op=int(op), generation=int(generation), run_id=run_id)
    except ValueError:
        raise UndecodableError("a message about a child does not say about which") from None


def child_notice_id(notice: ChildNotice) -> str:
    return f"child/{notice.op}/{notice.generation}/{notice.run_id}"
