"""Large payloads: kept in rows of their own, with a note of their size where they would stand (migration 0004).

The statements and views that read put them back in their places. They are deleted with their run.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from durable.payloads.codec import size_note
from durable.store.statements import Statements

LARGE_BYTES: Final = 32 * 1024  # the most that stays in the row itself


def placed(
    db: sqlite3.Connection, sql: Statements, run: int, data: bytes | None
) -> tuple[bytes | None, int | None]:
    """Return what goes into the row and, for a large payload that was put elsewhere, its number.

    Within a transaction that has proven its right to write to the run.
    """
    if data is None or len(data) <= LARGE_BYTES:
        return data, None
    return size_note(len(data)), db.execute(sql["insert_payload"], (run, data)).lastrowid
