"""The right to drive a run, with all that driving needs, and the trial of a suspect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from durable.store.records.inbox import Message
from durable.store.records.runs import RunRecord
from durable.store.records.tasks import AttemptRow

CRASHES_MAX: Final = 3  # workers that may die driving a run alone, before it is parked as poison (P14)
# The column `crashes` counts in these: a death while the suspect's code ran tells more than one before or after that.
CRASH: Final = 16
CRASH_AT_REST: Final = 1


class JournalRow(msgspec.Struct, gc=False, frozen=True, array_like=True):
    turn: int
    part: int
    data: bytes


class Claim(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """The right to drive a run, and all that is needed to do it. Every later write names `claim_no` (P8).

    `last_turn` is the last turn written when the run last changed hands: a journal that ends before it has lost rows.
    """

    pk: int
    run_id: str
    generation: int
    epoch: int
    claim_no: int
    workflow: str
    version: int
    task_queue: str
    attempt: int
    input: bytes
    deadline_us: int | None
    created_at_us: int
    msg_seq: int
    journal: list[JournalRow]
    inbox: list[Message]
    attempts: list[AttemptRow]
    parent: str | None = None  # the run id of the run whose child it is
    is_suspect: bool = False  # its last worker died while it held the run: to be driven alone (P14)
    last_turn: int = 0
    idle_generations: int = (
        0  # that continued as new, one after the other, without having waited for anything
    )


class StartOutcome(msgspec.Struct, gc=False, frozen=True, kw_only=True):
    """What a start did. `claim` is set if the starter became the owner."""

    how: Literal["started", "attached", "returned"]
    run: RunRecord
    claim: Claim | None = None


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is about to do with a suspect, and what came of others, each named by (pk, claim_no).

    `suspect` is driven next, alone, by the code with that fingerprint. `passed` got on, `adjourned` did not yet: they
    wait for something that ran when their worker died.
    """

    suspect: tuple[int, int] | None
    code: str = ""
    passed: Sequence[tuple[int, int]] = ()
    adjourned: Sequence[tuple[int, int]] = ()
