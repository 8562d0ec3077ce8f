"""What the store has of a run, decoded: journal rows and failures. Damaged bytes are told, never guessed at."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from durable.failures import Failure
from durable.journal.events import AnyEntry
from durable.journal.turns import joined
from durable.payloads.codec import sealed_fault
from durable.store.records import JournalRow


def decode_failure(data: bytes | None) -> Failure | None:
    """Return the stored failure, or one that says it cannot be read."""
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=Failure)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = sealed_fault(data) or type(error).__name__
        return Failure(
            type="durable.errors:UndecodableError", message=f"the failure cannot be read: {reason}"
        )


def decode_entries(rows: Sequence[JournalRow], *, after: tuple[int, int] = (0, 0)) -> list[AnyEntry]:
    """Return the entries of stored journal rows, in order; raise `UndecodableError`, which names the row.

    `after` is the (turn, part) before the first of them.
    """
    return [entry for _, entries in joined(rows, after=after) for entry in entries]
