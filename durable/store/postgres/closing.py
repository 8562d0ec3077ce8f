"""Ends that the store writes itself, without running any code of the workflow: terminated, timed out.

One statement closes the run's row, writes the last journal row, empties the inbox and ends the attempts: all or nothing. An owner
whose turn is under way meets the key of the journal; whoever is second is undone and looks again.
"""

from __future__ import annotations

from collections.abc import Sequence

from durable.journal.events import Terminated, TimedOut
from durable.journal.turns import encode_turn
from durable.store.codes import TERMINATED, TIMED_OUT
from durable.store.postgres.connection import Session


async def terminate(db: Session, run: int, reason: str | None, now_us: int) -> bool:
    """Close an open run; return False if it was closed already."""
    end = Terminated(at=now_us, reason=reason)
    return bool(await _close_by_force(db, [run], code=TERMINATED, end=end, now_us=now_us))


async def time_out(db: Session, runs: Sequence[int], now_us: int) -> int:
    """Close open runs whose deadline passed; return how many there were."""
    return await _close_by_force(db, runs, code=TIMED_OUT, end=TimedOut(at=now_us), now_us=now_us)


async def _close_by_force(
    db: Session, runs: Sequence[int], *, code: int, end: Terminated | TimedOut, now_us: int
) -> int:
    """The owner, if any, is fenced out: the claim number rises with the close."""
    return int(
        await db.value(
            "close_run_by_force",
            runs=list(runs),
            status=code,
            now_us=now_us,
            reason=end.reason if isinstance(end, Terminated) else None,
            parts=encode_turn(0, [end]),
        )
    )
