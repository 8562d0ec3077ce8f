"""One more message in a run's inbox, in whatever transaction it is told. The run's row is locked before."""

from __future__ import annotations

from durable.store.postgres.connection import Session
from durable.store.records import Outgoing


async def put_message(db: Session, message: Outgoing, now_us: int | None) -> None:
    """Count and store a message for an open run; one whose id is known is there already. Tells nobody."""
    await db.fetch(
        "send_message",
        run_id=message.run_id,
        kind=message.kind,
        name=message.name,
        data=message.data,
        message_id=message.message_id,
        unread_max=None,
        now_us=now_us,
        channel=None,
        sender=None,
    )
