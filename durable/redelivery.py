"""Messages that a generation of a run took in, and that go back to its inbox for the next one: as they were sent."""

from __future__ import annotations

import msgspec

from durable.journal.events import CancelRequested, SignalReceived, UpdateReceived
from durable.store.records import Redelivery, update_message_id


def redelivery_of(event: SignalReceived | UpdateReceived | CancelRequested) -> Redelivery:
    """Return the message that an event of a journal came of. An update that was begun with is not asked about again."""
    match event:
        case SignalReceived():
            return Redelivery(
                msg=event.msg, kind="signal", name=event.name, data=bytes(event.value), message_id=event.id
            )
        case UpdateReceived():
            return Redelivery(
                msg=event.msg,
                kind="answered" if event.answered else "accepted" if event.accepted else "update",
                name=event.name,
                data=bytes(event.value),
                message_id=update_message_id(event.id),
            )
        case CancelRequested():
            return Redelivery(
                msg=event.msg,
                kind="cancel",
                name="cancel",
                data=msgspec.json.encode(event.reason),
                message_id=None,
            )
