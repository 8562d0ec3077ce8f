"""Care of a database: retention, backups, lost workers, health, schemas."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path

import msgspec
import pytest
from store_steps import (
    NOW,
    SECOND,
    Process,
    a_worker,
    close,
    commit,
    request,
    signal,
    start,
    started_by,
    status,
    turn,
)

from durable.errors import RunNotFoundError, SchemaVersionError, StoreError
from durable.journal.lifecycle import RunStatus
from durable.store import migrations
from durable.store.contract import Store
from durable.store.opening import open_store, read_schema
from durable.store.records import Close, ClosedRuns, PruneOutcome, care
from durable.store.sqlite import maintenance, preparing, schema

LATER = NOW + 100 * SECOND
OF_A_RUN = ("journal", "attempt", "inbox", "message_id", "request", "run_payload", "generation")


def sql(database: Path, statement: str) -> list[tuple[object, ...]]:
    """Run one statement as another program would."""
    other = sqlite3.connect(database, isolation_level=None)
    try:
        return other.execute(statement).fetchall()
    finally:
        other.close()


def rows_of(database: Path, table: str, run: int) -> list[tuple[object, ...]]:
    """Return a run's rows of a table."""
    return [row for row in sql(database, f"SELECT run, * FROM {table}") if row[0] == run]  # noqa: S608  # our own names


async def a_closed_run(
    store: Store, worker: int, run_id: str, outcome: RunStatus = RunStatus.COMPLETED
) -> int:
    """Leave a run with two turns, a message and two generations, closed at `NOW`; return its key."""
    held = await started_by(store, worker, run_id)
    await signal(store, run_id, message_id="m")
    await commit(store, worker, turn(held, 1, seen=1))
    await store.terminate_run(run_id, None, NOW)
    again = await started_by(store, worker, run_id, if_closed="new")
    await signal(store, run_id)
    inbox = [message.inbox_id for message in await store.read_inbox(worker) if message.run_pk == again.pk]
    await commit(store, worker, turn(again, 1, consumed=inbox, seen=again.msg_seq + 1))
    if outcome is RunStatus.TERMINATED:
        await store.terminate_run(run_id, None, NOW)
    else:
        done = Close(status=outcome)
        ended = turn(again, 2, seen=again.msg_seq + 1, after=done)
        assert await commit(store, worker, ended) == ["committed"]
    return held.pk


async def pruned(store: Store, chosen: ClosedRuns, limit: int = 100) -> PruneOutcome:
    """Find and delete one batch."""
    found = await store.find_closed_runs(chosen, after=None, limit=limit)
    return await store.prune_runs([pk for _, pk in found], chosen, LATER)


# ─ retention ──


async def test_a_pruned_run_takes_everything_with_it(store: Store, database: Path) -> None:
    """Every table that knows it, all generations; nothing of any other run."""
    worker = await a_worker(store)
    gone = await a_closed_run(store, worker, "gone")
    held = await started_by(store, worker, "open")
    await commit(store, worker, turn(held))
    before = {table: rows_of(database, table, held.pk) for table in OF_A_RUN}
    chosen = ClosedRuns(before_us=LATER)
    assert await store.count_closed_runs(chosen) == 1

    outcome = await pruned(store, chosen)

    assert outcome == PruneOutcome(seen=1, runs=1, journal_rows=4)
    for table in OF_A_RUN:
        assert rows_of(database, table, gone) == []
        assert rows_of(database, table, held.pk) == before[table]
    with pytest.raises(RunNotFoundError):
        await store.get_run("gone")
    assert await status(store, "open") is RunStatus.RUNNING
    assert await store.count_closed_runs(chosen) == 0


@pytest.mark.parametrize("at_once", [False, True])
async def test_what_workflows_say_of_their_own_runs_is_heeded(store: Store, at_once: bool) -> None:
    """A run with a time of its own goes when that is up, and is found without the others; whoever names its workflow may take it earlier."""
    worker = await a_worker(store)
    hour = 3600 * SECOND
    kept = {"plain": None, "short": 5 * hour, "long": 50 * hour, "for ever": 0}
    pks: dict[int, str] = {}
    if at_once:
        requests = [
            request(run_id, retention_us=retention_us, workflow=run_id, owner=worker)
            for run_id, retention_us in kept.items()
        ]
        claims = [outcome.claim for outcome in await store.start_runs(requests, NOW)]
    else:
        claims = [
            await started_by(store, worker, run_id, retention_us=retention_us, workflow=run_id)
            for run_id, retention_us in kept.items()
        ]
    for held in claims:
        assert held is not None
        await close(store, worker, held)
        pks[held.pk] = held.run_id
    closed_us = (await store.get_run("plain")).closed_at_us or 0
    later = closed_us + 100 * hour

    async def found(chosen: ClosedRuns) -> list[str]:
        listed = await store.find_closed_runs(chosen, after=None, limit=100)
        if listed and not chosen.has_own:
            assert await store.count_closed_runs(chosen) == len(listed)
            rest = await store.find_closed_runs(chosen, after=listed[0], limit=100)
            assert rest == listed[1:]
        return [pks[pk] for _, pk in listed]

    assert await found(ClosedRuns(before_us=later)) == [*kept]
    assert await found(ClosedRuns(before_us=later, expiry_us=closed_us + 10 * hour)) == ["plain", "short"]
    assert await found(ClosedRuns(before_us=closed_us, expiry_us=closed_us + 10 * hour)) == []
    assert await found(ClosedRuns(before_us=later, workflow="for ever")) == ["for ever"]
    expired = ClosedRuns(before_us=later, expiry_us=closed_us + 60 * hour, has_own=True)
    assert await found(expired) == ["short", "long"]

    outcome = await store.prune_runs(
        [*pks], msgspec.structs.replace(expired, expiry_us=closed_us + 10 * hour), later
    )

    assert (outcome.seen, outcome.runs) == (4, 1)
    assert await found(ClosedRuns(before_us=later)) == ["plain", "long", "for ever"]


async def test_the_journal_still_refuses_everybody_else(store: Store, database: Path) -> None:
    """Before, after, and for whoever marks an open run, or a closed one without a row of the audit."""
    worker = await a_worker(store)
    closed = await a_closed_run(store, worker, "closed")
    await a_closed_run(store, worker, "gone", RunStatus.FAILED)
    held = await started_by(store, worker, "open")
    await commit(store, worker, turn(held))
    await pruned(store, ClosedRuns(before_us=LATER, status=(RunStatus.FAILED,)))

    assert sql(database, "SELECT count(*) FROM retention_run") == [(0,)]
    for statement in ("DELETE FROM journal", "UPDATE journal SET data = x''"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            sql(database, statement)
    for run, retention in ((held.pk, 1), (closed, 99)):
        with pytest.raises(sqlite3.IntegrityError, match="closed runs only"):
            sql(database, f"INSERT INTO retention_run VALUES ({run}, {retention})")  # noqa: S608  # integers


async def test_each_batch_leaves_a_row_of_the_audit(store: Store, database: Path) -> None:
    """When, what was asked for, by whom, how much; a batch that deleted nothing leaves none."""
    worker = await a_worker(store)
    await a_closed_run(store, worker, "gone")
    chosen = ClosedRuns(before_us=LATER, status=(RunStatus.COMPLETED, RunStatus.FAILED))
    await pruned(store, chosen)
    await pruned(store, chosen)

    ((number, at, before, statuses, who, runs, rows),) = sql(database, "SELECT * FROM retention")
    assert (number, at, before, statuses, runs, rows) == (1, LATER, LATER, "[10,11]", 1, 4)
    assert f"process {os.getpid()} of user {os.getuid()}" in str(who)


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (ClosedRuns(before_us=NOW), {"a", "b", "c", "open"}),
        (ClosedRuns(before_us=NOW + 1), {"open"}),
        (ClosedRuns(before_us=LATER, status=(RunStatus.FAILED,)), {"a", "c", "open"}),
        (ClosedRuns(before_us=LATER, status=(RunStatus.FAILED, RunStatus.TERMINATED)), {"a", "open"}),
    ],
)
async def test_only_the_chosen_runs_go(
    store: Store, database: Path, chosen: ClosedRuns, left: set[str]
) -> None:
    """Closed before the instant, with one of the statuses; never an open one."""
    worker = await a_worker(store)
    await start(store, "open")
    for run_id, outcome in (("a", RunStatus.COMPLETED), ("b", RunStatus.FAILED), ("c", RunStatus.TERMINATED)):
        await a_closed_run(store, worker, run_id, outcome)

    await pruned(store, chosen)

    assert {row[0] for row in sql(database, "SELECT run_id FROM run")} == left


async def test_a_run_that_was_started_anew_meanwhile_stays(store: Store) -> None:
    """Found closed, but open when its turn comes."""
    worker = await a_worker(store)
    await a_closed_run(store, worker, "r")
    chosen = ClosedRuns(before_us=LATER)
    found = await store.find_closed_runs(chosen, after=None, limit=10)
    await start(store, "r", if_closed="new")

    assert (await store.prune_runs([pk for _, pk in found], chosen, LATER)).runs == 0
    assert await status(store, "r") is RunStatus.PENDING


async def test_a_batch_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no further run once it has deleted so many rows; the caller goes on after what was seen."""
    monkeypatch.setattr(care, "BATCH_ROWS_MAX", 20)
    worker = await a_worker(store)
    for n in range(5):
        await a_closed_run(store, worker, f"r{n}")

    outcome = await pruned(store, ClosedRuns(before_us=LATER))

    assert 0 < outcome.runs == outcome.seen < 5
    assert await store.count_closed_runs(ClosedRuns(before_us=LATER)) == 5 - outcome.runs


async def test_pages_of_closed_runs_neither_repeat_nor_skip(store: Store) -> None:
    """Also among runs of one instant."""
    worker = await a_worker(store)
    pks = [await a_closed_run(store, worker, f"r{n}") for n in range(5)]
    seen: list[tuple[int, int]] = []
    while page := await store.find_closed_runs(
        ClosedRuns(before_us=LATER), after=seen[-1] if seen else None, limit=2
    ):
        seen += page

    assert [pk for _, pk in seen] == pks


async def test_keys_and_epochs_never_come_back(store: Store) -> None:
    """A handle kept from before must not meet a stranger, nor an idempotency key be used for another charge (P6)."""
    worker = await a_worker(store)
    old = await a_closed_run(store, worker, "order-7")
    await pruned(store, ClosedRuns(before_us=LATER))

    anew = await started_by(store, worker, "order-7")

    assert anew.pk > old
    assert anew.epoch > 2
    assert (await store.get_run("order-7")).epoch == anew.epoch


async def test_a_failure_in_the_middle_deletes_nothing(store: Store, database: Path) -> None:
    """One transaction: the runs before the failing one are still there, and no mark is."""
    worker = await a_worker(store)
    for run_id in ("a", "b"):
        await a_closed_run(store, worker, run_id)
    sql(
        database,
        "CREATE TRIGGER trouble BEFORE DELETE ON run WHEN OLD.run_id = 'b' BEGIN SELECT RAISE(ABORT, 'trouble'); END",
    )

    with pytest.raises(StoreError, match="trouble"):
        await pruned(store, ClosedRuns(before_us=LATER))

    assert sql(database, "SELECT count(*) FROM run") == [(2,)]
    assert sql(database, "SELECT count(*) FROM journal") == [(8,)]
    assert sql(database, "SELECT count(*) FROM retention_run") == [(0,)]
    assert sql(database, "SELECT count(*) FROM retention") == [(0,)]


async def test_a_repeated_start_of_a_pruned_run_is_a_new_run(store: Store) -> None:
    """Deduplication lasts as long as the run does (P4)."""
    worker = await a_worker(store)
    once = request("r", owner=worker)
    ((first),) = await store.start_runs([once], NOW)
    assert first.claim is not None
    await close(store, worker, first.claim)
    await pruned(store, ClosedRuns(before_us=LATER))

    ((again),) = await store.start_runs([once], LATER)
    assert (again.how, again.run.pk > first.run.pk) == ("started", True)


# ─ backups ──

LOAD = """
import asyncio, sys
from store_steps import *
async def main():
    store = await opened(sys.argv[1])
    worker = await a_worker(store)
    held = [await started_by(store, worker, f"r{n}") for n in range(20)]
    number = 0
    while True:
        number += 1
        await commit(store, worker, *[turn(one, number, b"x" * 2000) for one in held])
        if number == 20:
            print("busy", flush=True)
        await asyncio.sleep(0)
asyncio.run(main())
"""


async def test_a_backup_under_load_is_one_moment(
    store: Store, url: str, tmp_path: Path, database: Path
) -> None:
    """Another process commits all the while: the copy is whole, every run has the same turns, and the load went on."""
    async with await Process.run(LOAD, url) as child:
        assert await child.line() == "busy"
        for n in range(5):
            before = sql(database, "SELECT max(turn) FROM journal")[0][0]
            copy = tmp_path / f"copy-{n}.db"
            size = await store.back_up(copy)

            assert size == maintenance.size_of(copy)
            assert sql(copy, "PRAGMA integrity_check") == [("ok",)]
            turns = sql(copy, "SELECT DISTINCT max(turn), count(*) FROM journal GROUP BY run")
            assert len(turns) == 1
            assert turns[0][0] == turns[0][1]
            assert turns[0][0] >= before  # type: ignore[operator]  # a number
        after = sql(database, "SELECT max(turn) FROM journal")[0][0]
        assert after > turns[0][0]  # type: ignore[operator]  # a number
    assert not [one for one in os.listdir(tmp_path) if "partial" in one]


@pytest.mark.stores("sqlite")
async def test_a_backup_is_a_database(store: Store, tmp_path: Path) -> None:
    """It opens, and its runs go on with a worker of its own."""
    await start(store, "r")
    copy = tmp_path / "copy.db"
    await store.back_up(copy)

    again = await open_store(str(copy), durability="off")
    try:
        worker = await a_worker(again)
        ((held),) = await again.claim_ready_runs(
            worker, now_us=NOW, limit=1, task_queue="default", definitions=(("w", 1),)
        )
        assert held.run_id == "r"
    finally:
        await again.close()
    assert await status(store, "r") is RunStatus.PENDING


@pytest.mark.stores("sqlite")
async def test_a_backup_overwrites_nothing_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    """A file, a directory, a dangling link, the database itself; a directory that is not there."""
    here = set(os.listdir(tmp_path))
    for name in ("file", "dangling"):
        here.add(name)
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "dangling", "durable.db", "."):
        with pytest.raises(StoreError, match="overwrites nothing"):
            await store.back_up(tmp_path / name)
    with pytest.raises(StoreError, match="no directory"):
        await store.back_up(tmp_path / "missing" / "copy.db")
    assert set(os.listdir(tmp_path)) == here


@pytest.mark.stores("sqlite")
async def test_two_backups_to_one_name_make_one(store: Store, tmp_path: Path) -> None:
    """Whoever comes second is refused, whenever it finds out."""
    copy = tmp_path / "copy.db"
    results = await asyncio.gather(*(store.back_up(copy) for _ in range(3)), return_exceptions=True)

    assert sum(isinstance(one, int) for one in results) == 1
    assert all(isinstance(one, int | StoreError) for one in results)
    assert sql(copy, "PRAGMA integrity_check") == [("ok",)]


@pytest.mark.stores("postgres")
async def test_a_server_is_backed_up_by_its_own_tools(store: Store, tmp_path: Path) -> None:
    """The refusal says how, and writes nothing."""
    with pytest.raises(StoreError, match="pg_dump --schema=t"):
        await store.back_up(tmp_path / "copy")
    assert os.listdir(tmp_path) == []


# ─ how things are ──

DYING = """
import asyncio, sys
from store_steps import *
async def main():
    store = await opened(sys.argv[1])
    print(await a_worker(store), flush=True)
    sys.stdin.readline()
asyncio.run(main())
"""


@pytest.mark.stores("sqlite")
async def test_a_worker_is_lost_when_its_process_is_gone(store: Store, url: str) -> None:
    """Not before; being asked changes nothing, and the rescue still finds it."""
    mine = await a_worker(store)
    async with await Process.run(DYING, url) as child:
        worker = int(await child.line())
        assert await store.find_lost_workers() == []
        child.process.kill()
        await child.process.wait()

    for _ in range(2):
        assert await store.find_lost_workers() == [worker]
    assert {one.worker_id for one in await store.list_workers()} == {mine, worker}
    assert [one.worker_id for one in await store.rescue_dead_workers(10)] == [worker]
    assert await store.find_lost_workers() == []


async def test_health_counts_open_runs_by_queue_and_definition(store: Store, database: Path) -> None:
    """And knows sizes and settings."""
    worker = await a_worker(store)
    await start(store, "ready")
    await start(store, "ready-2", now_us=NOW + 1)
    await start(store, "delayed", ready_at_us=1 << 60)
    await started_by(store, worker, "owned", task_queue="gpu")
    await close(store, worker, await started_by(store, worker, "closed"))

    health = await store.read_health()

    assert [(one.task_queue, one.workflow, one.version, one.state, one.runs) for one in health.open_runs] == [
        ("default", "w", 1, "delayed", 1),
        ("default", "w", 1, "ready", 2),
        ("gpu", "w", 1, "owned", 1),
    ]
    assert health.open_runs[1].since_us == NOW
    assert (health.journal_mode, health.durability, health.unwritable) == ("wal", "off", "")
    assert health.schema.version == health.schema.newest == len(migrations.load_migrations(schema.PACKAGE))
    assert health.database_bytes == maintenance.size_of(database) > 0
    assert health.locks == f"{database}-durable"
    assert health.engine == f"sqlite {sqlite3.sqlite_version}"


async def test_recent_workflows(store: Store) -> None:
    """Each once, by name."""
    for n, name in enumerate(["ship", "charge", "ship"]):
        await start(store, f"r{n}", workflow=name)

    assert await store.recent_workflows() == ["charge", "ship"]


async def test_the_schema_is_read_without_migrating(
    url: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older database stays as it is until somebody opens it; what it holds survives the migration."""
    every = migrations.load_migrations(schema.PACKAGE)
    with monkeypatch.context() as older:
        for module in (schema, preparing):
            older.setattr(module, "load_migrations", lambda package: every[:2])
        older.setattr(preparing, "_refuse_foreign_workers", lambda *given: None)  # asks in today's words
        old = await open_store(url, durability="off")
        await old.close()

    for _ in range(2):
        found = await read_schema(url)
        assert (found.version, found.newest) == (2, len(every))
    again = await open_store(url, durability="off")
    try:
        worker = await a_worker(again)
        await a_closed_run(again, worker, "r")
        assert (await pruned(again, ClosedRuns(before_us=LATER))).runs == 1
    finally:
        await again.close()
    assert (await read_schema(url)).version == len(every)


async def test_a_schema_that_is_not_there_or_too_new(store: Store, url: str, database: Path) -> None:
    """Errors that say so; nothing is made."""
    with pytest.raises(StoreError, match="no database"):
        await read_schema(f"{url}-missing")
    assert not database.with_name("durable.db-missing").exists()
    sql(database, "INSERT INTO migration VALUES (999, 'future', 0)")
    with pytest.raises(SchemaVersionError, match="upgrade"):
        await read_schema(url)
