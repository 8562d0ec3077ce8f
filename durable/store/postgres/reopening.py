"""The next generation of a closed run, from a part of its journal. Runs inside one transaction."""

from __future__ import annotations

from durable.store.codes import is_closed
from durable.store.postgres.committing import redeliver
from durable.store.postgres.connection import Session
from durable.store.postgres.opened import Opened
from durable.store.postgres.reading import run_not_found
from durable.store.records import Reopen
from durable.store.refusals import started_again


class Reopening(Opened):
    """The verb that opens a closed run again."""

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        await self._write(lambda db: reopen_run(db, reopen, self._given(now_us)))
        self._wakeups.tell(work=True)


async def reopen_run(db: Session, reopen: Reopen, now_us: int | None) -> None:
    """Archive, open, copy; see the contract. A closed journal never changes, so what the caller read of it still holds."""
    row = await db.row("lock_address_of_run", run_id=reopen.run_id, now_us=now_us)
    if row is None:
        raise await run_not_found(db, reopen.run_id)
    run, generation, code, started, now = row
    if generation != reopen.generation or run != reopen.pk or not is_closed(code):
        raise started_again(reopen, code, started)
    lifetime_us = await db.value("lifetime_of_run", run=run)
    await db.fetch("archive_generation", run=run)
    await db.fetch(
        "reopen_run",
        run=run,
        new_epoch=reopen.new_epoch,
        attempt=reopen.attempt,
        deadline_us=None if lifetime_us is None else now + lifetime_us,
        now_us=now,
        last_turn=reopen.copy_turns + bool(reopen.parts),
    )
    await db.fetch("copy_input", run=run, generation=generation)
    await db.fetch("copy_turns", run=run, generation=generation, copy_turns=reopen.copy_turns)
    turn = reopen.copy_turns + 1
    await db.fetch("insert_turn", run=run, generation=generation + 1, turn=turn, parts=list(reopen.parts))
    await redeliver(db, run, reopen.redeliver, now_us)
