"""Large payloads are whole for whoever reads them, out of the way for whoever does not, and gone with their run."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from store_steps import NOW, a_worker, claim, request, start, started_by

from durable.journal.lifecycle import RunStatus
from durable.payloads.codec import sealed_label
from durable.store.contract import Store
from durable.store.records import Close, ClosedRuns, HandBack, NextGeneration, RunFilter, Stay, TurnCommit
from durable.store.sqlite.large import LARGE_BYTES

LARGE = b'"' + b"x" * LARGE_BYTES * 2 + b'"'
OTHER = b'"' + b"y" * LARGE_BYTES * 2 + b'"'


def rows(database: Path, sql: str, *parameters: Any) -> list[Any]:
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        return db.execute(sql, parameters).fetchall()


async def closed_run(store: Store, run_id: str = "x", *, input: bytes = LARGE) -> int:
    """Start a run with a large input and end it with a large result; return its key."""
    worker = await a_worker(store)
    mine = await started_by(store, worker, run_id, input=input)
    end = Close(status=RunStatus.COMPLETED, result=OTHER)
    commit = TurnCommit(
        pk=mine.pk, generation=1, claim_no=mine.claim_no, turn=1, parts=(OTHER, b"{}"), after=end
    )
    assert await store.commit_turns(worker, [commit], NOW) == ["committed"]
    return mine.pk


async def test_they_come_back_as_they_were(store: Store) -> None:
    """From every read that tells of a run."""
    pk = await closed_run(store)

    for seen in (
        await store.get_run("x"),
        *await store.list_runs(RunFilter()),
        *await store.read_ended([(pk, 1)]),
    ):
        assert (seen.input, seen.result) == (LARGE, OTHER)
    assert [row.data for row in await store.read_journal(pk, 1)] == [OTHER, b"{}"]


async def test_claims_bring_them(store: Store) -> None:
    """Input and journal, to the worker that goes on with the run."""
    first, second = await a_worker(store), await a_worker(store)
    mine = await started_by(store, first, "x", input=LARGE)
    turn = TurnCommit(pk=mine.pk, generation=1, claim_no=mine.claim_no, turn=1, parts=(OTHER,), after=Stay())
    assert await store.commit_turns(first, [turn], NOW) == ["committed"]
    await store.retire_worker(first)

    (claimed,) = await claim(store, second)
    assert (claimed.input, [row.data for row in claimed.journal]) == (LARGE, [OTHER])


async def test_lists_may_leave_them_out(store: Store, database: Path) -> None:
    """A list of a hundred runs should not read a hundred of them."""
    await closed_run(store)
    await closed_run(store, "small", input=b"[1]")

    small, large = await store.list_runs(RunFilter(with_large_payloads=False))
    assert (small.input, sealed_label(large.input)) == (b"[1]", "64.0 KiB, left out")
    assert max(rows(database, "SELECT max(length(input)), max(length(result)) FROM run_payload")[0]) < 100
    assert rows(database, "SELECT max(length(data)) FROM journal") < [(100,)]


async def test_the_same_input_is_recognised(store: Store) -> None:
    """Attaching compares the whole, not the note."""
    await start(store, "x", input=LARGE)

    assert (await start(store, "x", input=LARGE)).how == "attached"
    with pytest.raises(Exception, match="other input"):
        await store.start_runs([request("x", input=OTHER)], NOW)


async def test_a_retry_shares_them(store: Store, database: Path) -> None:
    """The next generation has the input and the journal's beginning, without a second copy."""
    worker = await a_worker(store)
    mine = await started_by(store, worker, "x", input=LARGE)
    turn = TurnCommit(pk=mine.pk, generation=1, claim_no=1, turn=1, parts=(OTHER,))
    await store.commit_turns(worker, [turn], NOW)
    again = NextGeneration(
        failure=b"{}", copy_turns=1, parts=(b"[]",), redeliver=(), ready_at_us=NOW, attempt=2
    )
    await store.commit_turns(
        worker, [msgspec.structs.replace(turn, turn=2, parts=(b"{}",), after=again)], NOW
    )

    (claimed,) = await claim(store, worker)
    assert (claimed.generation, claimed.input, claimed.last_turn) == (2, LARGE, 2)
    assert [row.data for row in claimed.journal] == [OTHER, b"[]"]
    assert rows(database, "SELECT count(*) FROM payload") == [(2,)]


async def test_a_worker_that_lost_the_run_leaves_none_behind(store: Store, database: Path) -> None:
    """The fence is in this insert, too."""
    worker = await a_worker(store)
    mine = await started_by(store, worker, "x")
    stale = TurnCommit(pk=mine.pk, generation=1, claim_no=mine.claim_no + 1, turn=1, parts=(LARGE,))

    assert await store.commit_turns(worker, [stale], NOW) == ["lost"]
    assert rows(database, "SELECT count(*) FROM payload") == [(0,)]


async def test_they_go_with_their_run(store: Store, database: Path) -> None:
    """Retention deletes them, and nobody else can."""
    pk = await closed_run(store)
    await closed_run(store, "kept")
    for statement in ("DELETE FROM payload", "UPDATE payload SET data = x'00'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            rows(database, statement)

    await store.prune_runs([pk], ClosedRuns(before_us=NOW + 1), NOW + 1)
    assert rows(database, "SELECT DISTINCT run FROM payload") == [(pk + 1,)]


async def test_one_whose_row_is_missing_says_so(store: Store, database: Path) -> None:
    """The note stays, and is no payload."""
    await closed_run(store)
    rows(database, "DROP TRIGGER payload_is_deleted_by_retention_only")
    rows(database, "DELETE FROM payload")

    assert sealed_label((await store.get_run("x")).input) == "64.0 KiB, left out"


async def test_a_journal_that_lost_its_end_is_noticed(store: Store) -> None:
    """What was written when the run last changed hands is known to its row."""
    worker = await a_worker(store)
    mine = await started_by(store, worker, "x")
    turn = TurnCommit(pk=mine.pk, generation=1, claim_no=1, turn=3, parts=(b"{}",), after=HandBack())
    await store.commit_turns(worker, [turn], NOW)

    (claimed,) = await claim(store, worker)
    assert claimed.last_turn == 3
