"""How much a run may be: the numbers, all of them, and what is measured against them.

What is too much is refused at the call that asks for it, before anything is written. Knows nothing of runs or stores.
"""

from __future__ import annotations

import logging
import re
from typing import Final

import msgspec

from durable.errors import DefinitionError, PayloadTooLargeError

# Characters of run ids, of message ids, and of names of workflows, activities, signals and queues.
NAME_LENGTH_MAX: Final = 200
# Characters of what names are compared with in a list, and of the keys of patterns' rows.
PATTERN_LENGTH_MAX: Final = 1000
# Characters of the reason of a cancellation or termination.
REASON_LENGTH_MAX: Final = 10_000
# Levels of arrays and objects in one value, or in all arguments of a call. Readers recurse, and have stack for more.
DEPTH_MAX: Final = 256
# Of one recorded error with its causes, as JSON; what is over is left out.
FAILURE_BYTES_MAX: Final = 256 * 1024
# What the limit of payloads may be set to: databases hold no value of much more.
PAYLOAD_BYTES_CEILING: Final = 512 * 1024 * 1024

log = logging.getLogger("durable.limits")
_BUT_BRACKETS: Final = bytes(set(range(256)) - set(b'[]{}"'))
_CURLY_TO_SQUARE: Final = bytes.maketrans(b"{}", b"[]")
_text: Final = re.compile(rb'"[^"]*"')


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What `connect`, `configure` and `Worker` take as `limits`. Beyond those for `warn` there is a line in the log.

    `payload_bytes`: of one input, arguments of one activity, result, signal, or heartbeat's details, as JSON; more raises
    `PayloadTooLargeError`. `journal_events`: entries of one generation's journal; a run that reaches it is parked before it
    asks for anything more. `unread_messages`: signals sent to a run that it has not taken in; more raises
    `InboxFullError`, and cancel requests still pass.
    """

    payload_bytes: int = 16 * 1024 * 1024
    payload_bytes_warn: int = 2 * 1024 * 1024
    journal_events: int = 50_000
    journal_events_warn: int = 10_000
    unread_messages: int = 10_000

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise DefinitionError(f"the limit {name} is a positive integer, not {value!r}")
        if self.payload_bytes > PAYLOAD_BYTES_CEILING:
            raise DefinitionError(f"the limit payload_bytes is at most {PAYLOAD_BYTES_CEILING:,}")
        # One comparison then tells whether anything is to be said at all.
        for warn, most in (
            ("payload_bytes_warn", "payload_bytes"),
            ("journal_events_warn", "journal_events"),
        ):
            msgspec.structs.force_setattr(self, warn, min(getattr(self, warn), getattr(self, most)))

    def judge(self, size: int, *, what: str, run_id: str | None) -> None:
        """Raise `PayloadTooLargeError` for a payload that is too large; warn of one that is nearly so."""
        if size > self.payload_bytes:
            raise PayloadTooLargeError(run_id=run_id, what=what, size=size, limit=self.payload_bytes)
        if size > self.payload_bytes_warn:
            whose = "a new run" if run_id is None else f"run {run_id!r}"
            log.warning(
                "%s: %s takes %s bytes; the limit is %s", whose, what, f"{size:,}", f"{self.payload_bytes:,}"
            )


DEFAULT_LIMITS: Final = Limits()


def is_too_deep(data: bytes) -> bool:
    """Whether JSON text, as we write it, is nested deeper than `DEPTH_MAX`.

    Readers recurse, and one that ran out of stack could never read the row again. Texts are taken out, then pairs of brackets
    that hold nothing, level by level, all by C code: no walk over the values.
    """
    if len(data) <= 2 * DEPTH_MAX or data.count(b"[") + data.count(b"{") <= DEPTH_MAX:
        return False
    left = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, _BUT_BRACKETS).replace(b'""', b"")
    left = _text.sub(b"", left).translate(_CURLY_TO_SQUARE)
    for _ in range(DEPTH_MAX):
        if not left:
            return False
        left = left.replace(b"[]", b"")
    return bool(left)
