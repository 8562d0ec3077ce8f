"""One more message in a run's inbox, in whatever transaction it is told."""

from __future__ import annotations

import sqlite3

from durable.store.records import Outgoing
from durable.store.statements import Statements


def put_message(db: sqlite3.Connection, sql: Statements, run: int, message: Outgoing, now_us: int) -> int:
    """Count and store a message for an open run; return its number."""
    ((msg,),) = db.execute(sql["count_message"], {"run": run, "now_us": now_us}).fetchall()
    db.execute(
        sql["insert_message"],
        (run, msg, message.kind, message.name, message.data, message.message_id, now_us),
    )
    if message.message_id is not None:
        db.execute(sql["remember_message_id"], {"run": run, "message_id": message.message_id, "msg": msg})
    return int(msg)
