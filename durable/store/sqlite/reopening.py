"""The next generation of a closed run, from a part of its journal. Runs inside one transaction."""

from __future__ import annotations

import sqlite3

from durable.store.codes import is_closed
from durable.store.records import Reopen
from durable.store.refusals import started_again
from durable.store.sqlite.committing import FIRST_PART
from durable.store.sqlite.large import placed
from durable.store.sqlite.messages import address
from durable.store.sqlite.opened import Opened
from durable.store.statements import Statements


class Reopening(Opened):
    """The verb that opens a closed run again."""

    async def reopen_run(self, reopen: Reopen, now_us: int) -> None:
        await self._write(lambda db: reopen_run(db, self._sql, reopen, now_us))
        self._wakeups.tell(others=True)


def reopen_run(db: sqlite3.Connection, sql: Statements, reopen: Reopen, now_us: int) -> None:
    """Archive, open, copy; see the contract. A closed journal never changes, so what the caller read of it still holds."""
    run, generation, code, started = address(db, sql, reopen.run_id)
    if generation != reopen.generation or run != reopen.pk or not is_closed(code):
        raise started_again(reopen, code, started)
    (lifetime_us,) = db.execute(sql["lifetime_of_run"], {"run": run}).fetchone()
    db.execute(sql["archive_generation"], {"run": run})
    db.execute(
        sql["reopen_run"],
        {
            "run": run,
            "new_epoch": int(reopen.new_epoch),
            "attempt": reopen.attempt,
            "deadline_us": None if lifetime_us is None else now_us + lifetime_us,
            "now_us": now_us,
            "last_turn": reopen.copy_turns + bool(reopen.parts),
        },
    )
    db.execute(sql["copy_input"], {"run": run, "generation": generation})
    copied = {"run": run, "generation": generation, "copy_turns": reopen.copy_turns}
    db.execute(sql["copy_turns"], copied)
    turn = reopen.copy_turns + 1
    db.executemany(
        sql["insert_turn"],
        [
            (run, generation + 1, turn, part, *placed(db, sql, run, data))
            for part, data in enumerate(reopen.parts, FIRST_PART)
        ],
    )
    db.executemany(
        sql["insert_message"],
        [(run, m.msg, m.kind, m.name, m.data, m.message_id, now_us) for m in reopen.redeliver],
    )
