"""Why the code of an activity is told to stop, in words: its `cancel_reason`, and what a person reads of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from durable.journal.events import EVENT_TYPES, AnyEntry, CancelRequested

UNAWAITED: Final = "the workflow no longer waits for it"
ENDED: Final = "its run has ended"
NOT_OURS: Final = "its run is closed, or another worker's"
STOPPING: Final = "its worker stops"


def closing_reason(entries: Sequence[AnyEntry], index: int) -> str:
    """Say why the activation in which `entries[index]` stands closed an activity: the words of a cancel request, if it was one."""
    for entry in reversed(entries[:index]):
        if type(entry) is CancelRequested:
            return entry.reason or "the run was cancelled"
        if isinstance(entry, EVENT_TYPES):
            break
    return UNAWAITED
