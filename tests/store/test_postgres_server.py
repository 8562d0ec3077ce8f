"""What only a server can do to us: other transactions at the same time, roles, defaults, poolers, schemas of others."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from conftest import Opener
from store_steps import (
    NOW,
    a_worker,
    claim,
    close,
    commit,
    journal,
    opened,
    request,
    signal,
    start,
    started_by,
    status,
    to,
    turn,
    until,
)

from durable.errors import (
    LeaseLostError,
    NotADatabaseError,
    RunNotFoundError,
    SchemaVersionError,
    StoreBusyError,
    StoreError,
)
from durable.journal.lifecycle import RunStatus
from durable.seams import SystemClock
from durable.store.contract import Store
from durable.store.migrations import load_migrations
from durable.store.opening import open_store, read_pending_migrations, read_schema
from durable.store.postgres import connection, workers
from durable.store.postgres.location import locate
from durable.store.postgres.store import PostgresStore
from durable.store.records import AttemptRow, Claim, Close, ClosedRuns, HandBack, TurnCommit, Wait, WorkerInfo
from tests.support.postgres import Pooler, Server, granted, in_schema, looked_up
from tests.support.workers import until as eventually

pytestmark = pytest.mark.stores("postgres")

DONE = Close(status=RunStatus.COMPLETED, result=b"42")


def begun(held: Claim) -> TurnCommit:
    """The mark that an attempt has begun, without a turn."""
    return turn(held, None, attempts=[AttemptRow(op=1, attempt=1, state="started")])


@asynccontextmanager
async def another_session(url: str) -> AsyncIterator[Any]:
    """A connection of somebody else's, in the schema."""
    place = locate(url, "the test's database")
    db = await asyncpg.connect(place.dsn, server_settings={"search_path": place.schema})
    try:
        yield db
    finally:
        await db.close()


@asynccontextmanager
async def opened_in_full(url: str) -> AsyncIterator[Store]:
    """A store whose commits wait for the disk, as in production."""
    store = await open_store(url, durability="full", clock=SystemClock())
    try:
        yield store
    finally:
        await store.close()


async def is_blocked(url: str, count: int = 1) -> None:
    """Wait until that many statements wait for a lock."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with another_session(url) as db:
        await eventually(lambda: _at_least(db, waiting, count))


async def _at_least(db: Any, statement: str, count: int) -> bool:
    return bool(await db.fetchval(statement) >= count)


# ─ an open transaction of the caller's (P5) ──


async def test_a_callers_transaction_stalls_no_batch(store: Store, url: str) -> None:
    """It holds a run's row for as long as it likes: that run's wait and close are refused, the others' turns are written."""
    worker = await a_worker(store)
    held, closing, neighbour = [await started_by(store, worker, name) for name in "abc"]
    async with another_session(url) as db, db.transaction():
        await db.execute("SELECT 1 FROM run WHERE run_id IN ('a', 'b') FOR UPDATE")
        verdicts = await commit(
            store,
            worker,
            turn(held, 1, after=Wait(due_at_us=None)),
            turn(closing, 1, after=DONE),
            turn(neighbour, 1, after=DONE),
        )

    assert verdicts == ["stayed", "messages", "committed"]
    assert await journal(store, held) == [(1, b"{}")]
    assert await journal(store, closing) == []
    assert [one.pk for one in await store.read_claims(worker, [closing.pk])] == [closing.pk]
    assert await commit(store, worker, turn(closing, 1, after=DONE)) == ["committed"]


async def test_marks_alone_wait_for_whoever_is_about_to_close_the_run(store: Store, url: str) -> None:
    """Nothing of the item is written while somebody holds the run's row; the batch is not stalled."""
    worker = await a_worker(store)
    held, neighbour = [await started_by(store, worker, name) for name in "ab"]
    async with another_session(url) as db, db.transaction():
        await db.execute("SELECT 1 FROM run WHERE run_id = 'a' FOR UPDATE")
        verdicts = await commit(store, worker, begun(held), begun(neighbour))

    assert verdicts == ["messages", "committed"]
    assert await store.read_attempts(held.pk, 1) == []
    assert await commit(store, worker, begun(held)) == ["committed"]


async def test_a_run_closed_by_force_keeps_no_attempt_that_was_being_written(store: Store, url: str) -> None:
    """The close waits for the marks that are under way, and sees them."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    async with another_session(url) as db:
        async with db.transaction():  # the commit of a mark, stopped before its end
            await db.execute("SELECT 1 FROM run WHERE run_id = 'x' FOR KEY SHARE")
            await db.execute(
                "INSERT INTO attempt (run, generation, op, attempt, state) VALUES ($1, 1, 1, 1, 'started')",
                held.pk,
            )
            closing = asyncio.ensure_future(store.terminate_run("x", "enough", NOW))
            await is_blocked(url)
        await closing

    assert await store.read_attempts(held.pk, 1) == []


async def test_marks_that_come_after_a_close_by_force_are_not_written(store: Store, url: str) -> None:
    """Not even by a batch that had begun before: it was held up, and looks at the run's row again."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    async with another_session(url) as db:
        async with db.transaction():
            await db.execute("SELECT 1 FROM worker_fence WHERE worker = $1 FOR UPDATE", worker)
            writing = asyncio.ensure_future(commit(store, worker, begun(held)))
            await is_blocked(url)
            await store.terminate_run("x", "enough", NOW)
        assert await writing == ["lost"]

    assert await store.read_attempts(held.pk, 1) == []


async def test_a_callers_transaction_stalls_no_takeover(store: Store, url: str) -> None:
    """The runs it holds are set ready when it is over, by whoever looks for dead workers next."""
    dead, heir = await a_worker(store, "dead"), await a_worker(store, "heir")
    for name in "ab":
        await started_by(store, dead, name)
    looked_up(url, "UPDATE worker_heartbeat SET beat_at_us = 0 WHERE worker = $1", dead)
    async with another_session(url) as db, db.transaction():
        await db.execute("SELECT 1 FROM run WHERE run_id = 'a' FOR UPDATE")
        (rescue,) = await store.rescue_dead_workers(60, observer=heir)
        assert rescue.runs == 1
        assert [one.run_id for one in await claim(store, heir, now_us=SystemClock().now_us())] == ["b"]

    assert await store.rescue_dead_workers(60, observer=heir) == []
    assert [one.run_id for one in await claim(store, heir, now_us=SystemClock().now_us())] == ["a"]


# ─ ownership ──


async def test_a_worker_is_called_lost_after_its_own_lease(store: Store, url: str) -> None:
    """Whoever asks; one that does not tell its lease, after thirty seconds."""
    definitions = (("w", 1),)
    ids = [
        await store.register_worker(
            WorkerInfo(name=name, task_queue="default", definitions=definitions, lease_us=lease_us)
        )
        for name, lease_us in (("hasty", 5_000_000), ("patient", 50_000_000), ("old", 0))
    ]

    async def lost_after(seconds: int) -> list[int]:
        looked_up(url, "UPDATE worker_heartbeat SET beat_at_us = instant(NULL) - $1", seconds * 1_000_000)
        return await store.find_lost_workers()

    assert await lost_after(3) == []
    assert await lost_after(10) == [ids[0]]
    assert await lost_after(40) == [ids[0], ids[2]]
    assert await lost_after(60) == ids


async def test_a_beat_during_the_takeover_wins(store: Store, url: str) -> None:
    """The takeover waits for what the worker is writing, then looks at the beat again: the worker was only slow (P9)."""
    slow, observer = await a_worker(store, "slow"), await a_worker(store, "observer")
    await started_by(store, slow, "x")
    async with another_session(url) as db:
        async with db.transaction():
            await db.execute("SELECT 1 FROM worker_fence WHERE worker = $1 AND slot = 1 FOR UPDATE", slow)
            looked_up(url, "UPDATE worker_heartbeat SET beat_at_us = 0 WHERE worker = $1", slow)
            rescuing = asyncio.ensure_future(store.rescue_dead_workers(60, observer=observer))
            await is_blocked(url)
            assert await asyncio.to_thread(store.beat, slow)
        assert await rescuing == []

    assert await store.owned_runs(slow)


async def test_a_commit_that_meets_a_takeover_writes_nothing(store: Store, url: str) -> None:
    """Whoever has the fence first: the commit that waits for the takeover finds its fence gone."""
    zombie, observer = await a_worker(store, "zombie"), await a_worker(store, "observer")
    held = await started_by(store, zombie, "x")
    async with another_session(url) as db:
        async with db.transaction():  # a takeover, stopped before its end
            await db.execute("SELECT 1 FROM worker_fence WHERE worker = $1 FOR UPDATE", zombie)
            writing = asyncio.ensure_future(commit(store, zombie, turn(held)))
            await is_blocked(url)
            await db.execute("UPDATE worker_heartbeat SET is_alive = false WHERE worker = $1", zombie)
            await db.execute("DELETE FROM worker_fence WHERE worker = $1", zombie)
            await db.execute("UPDATE run SET status = 0, owner = NULL WHERE owner = $1", zombie)
        with pytest.raises(LeaseLostError):
            await writing

    assert await journal(store, held) == []
    assert not store.beat(zombie)
    assert store.beat(observer)


async def test_reading_again_waits_for_what_is_still_being_written(store: Store, url: str) -> None:
    """The reply of a commit was lost: what the journal says counts only once the server is done with it (P16)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    async with another_session(url) as db:
        async with db.transaction():  # the commit, as the server goes on executing it
            await db.execute("SELECT 1 FROM worker_fence WHERE worker = $1 AND slot = 0 FOR UPDATE", worker)
            await db.execute("INSERT INTO journal VALUES ($1, 1, 1, 1, 'late')", held.pk)
            reading = asyncio.ensure_future(store.read_claims(worker, [held.pk]))
            await is_blocked(url)
            assert not reading.done()
        (again,) = await reading

    assert [row.data for row in again.journal] == [b"late"]


async def test_it_does_not_wait_for_ever(store: Store, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Past its patience it is busy, and the caller asks again."""
    monkeypatch.setattr(workers, "_LOCK_WAIT", "SET LOCAL lock_timeout = 50")
    worker = await a_worker(store)
    async with another_session(url) as db, db.transaction():
        await db.execute("SELECT 1 FROM worker_fence WHERE worker = $1 FOR UPDATE", worker)
        with pytest.raises(StoreBusyError, match="lock"):
            await store.read_claims(worker, [1])
    assert await store.read_claims(worker, [1]) == []


async def test_claimers_never_share_a_run(opener: Opener) -> None:
    """Many at once, each takes what no other has."""
    stores = [await opener() for _ in range(4)]
    workers = [await a_worker(one) for one in stores]
    await stores[0].start_runs([request(f"r{n}") for n in range(200)], NOW)

    taken: list[str] = []
    while len(taken) < 200:
        found = await asyncio.gather(
            *(claim(one, worker, limit=7) for one, worker in zip(stores, workers, strict=True))
        )
        taken += [held.run_id for claims in found for held in claims]

    assert sorted(taken) == sorted({f"r{n}" for n in range(200)})


# ─ many at once ──


async def test_an_end_by_force_and_a_turn_take_one_place_in_the_journal(opener: Opener) -> None:
    """Whoever is second looks again: no gap, no two ends, whatever the order."""
    store, other = await opener(), await opener()
    worker = await a_worker(store)
    for n in range(30):
        held = await started_by(store, worker, f"r{n}")
        await commit(store, worker, turn(held, 1))
        verdicts, _ = await asyncio.gather(
            commit(store, worker, turn(held, 2, b"turn")), other.terminate_run(f"r{n}", None, NOW)
        )

        written = await journal(store, held)
        assert [number for number, _ in written] == list(range(1, len(written) + 1))
        assert (verdicts == ["committed"]) == (len(written) == 3)
        assert b"terminated" in written[-1][1]
        assert await status(store, f"r{n}") is RunStatus.TERMINATED


async def test_repeated_messages_sent_at_once_are_one(opener: Opener) -> None:
    """Two senders with one message id: the second finds the first one's number."""
    one, other = await opener(), await opener()
    await start(one, "x")
    for n in range(20):
        numbers = await asyncio.gather(
            *(signal(s, "x", message_id=f"m{n}") for s in (one, other, one, other))
        )
        assert len(set(numbers)) == 1
    assert (await one.get_run("x")).unread == 20


async def test_bulk_starts_with_ids_in_common_neither_lock_up_nor_double(opener: Opener) -> None:
    """Each starts what the other has not; nobody sees an error."""
    stores = [await opener() for _ in range(3)]
    ids = [f"r{n}" for n in range(60)]
    for turn_number in range(5):
        names = [f"{turn_number}-{run_id}" for run_id in ids]
        orders = (names, names[::-1], names[30:] + names[:30])
        outcomes = await asyncio.gather(
            *(
                s.start_runs([request(one) for one in order], NOW)
                for s, order in zip(stores, orders, strict=True)
            )
        )
        started = [o.run.run_id for many in outcomes for o in many if o.how == "started"]
        assert sorted(started) == sorted(names)


async def test_an_epoch_is_never_used_twice_though_retention_runs_meanwhile(opener: Opener) -> None:
    """A run of a deleted id begins in an epoch that the id has not had (P6), whatever waits for what."""
    store, other = await opener(), await opener()
    worker = await a_worker(store)
    everything = ClosedRuns(before_us=NOW * 2)
    seen: list[int] = []
    for _ in range(40):
        held = await started_by(store, worker, "x")
        seen.append(held.epoch)
        await close(store, worker, held)
        await asyncio.gather(
            other.prune_runs([held.pk], everything, NOW), start(store, "x", if_closed="new", owner=worker)
        )
        again = await store.get_run("x")
        seen.append(again.epoch)
        await store.terminate_run("x", None, NOW)
        await other.prune_runs([again.pk], everything, NOW)
        with pytest.raises(RunNotFoundError):
            await store.get_run("x")

    assert len(set(seen)) == len(seen)
    assert seen == sorted(seen)


async def test_no_wake_up_is_lost_between_a_wait_and_a_message(opener: Opener) -> None:
    """Either the wait is refused or the message wakes the run: no run sleeps with a message (P2)."""
    store, other = await opener(), await opener()
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    for number in range(1, 60):
        seen = number - 1
        verdicts, _ = await asyncio.gather(
            commit(store, worker, turn(held, number, seen=seen, after=Wait(due_at_us=None))),
            signal(other, "x"),
        )
        if verdicts == ["committed"]:
            (held,) = await claim(store, worker, now_us=SystemClock().now_us())
            messages = held.inbox
        else:
            assert verdicts == ["stayed"]
            messages = await store.read_inbox(worker)
        assert [message.msg for message in messages] == [number]
        taken = turn(held, None, consumed=[messages[0].inbox_id], seen=number)
        assert await commit(store, worker, taken) == ["committed"]


# ─ schemas, roles, defaults ──


async def test_many_open_a_fresh_schema_at_once(url: str) -> None:
    """Migrations are applied once, whoever comes first."""
    stores = await asyncio.gather(*(opened(url) for _ in range(8)))

    newest = len(load_migrations(connection.PACKAGE))
    assert [(await store.read_health()).schema.version for store in stores] == [newest] * 8
    assert looked_up(url, "SELECT count(*) FROM migration") == [(newest,)]
    for store in stores:
        await store.close()


async def test_a_schema_of_somebody_else_is_left_alone(postgres: Server, url: str) -> None:
    """Tables of others and none of ours: refused, untouched."""
    schema = locate(url, "").schema
    postgres.sql(f"CREATE SCHEMA {schema}", f"CREATE TABLE {schema}.customer (id int)")

    for opening in (open_store(url), read_schema(url)):
        with pytest.raises(NotADatabaseError, match="not touched"):
            await opening
    count = "SELECT count(*) FROM pg_tables WHERE schemaname = $1"
    assert looked_up(url, count, schema) == [(1,)]


async def test_a_schema_that_is_not_there_is_not_made_for_a_look(url: str) -> None:
    """`create=False` and reading its version change nothing."""
    with pytest.raises(StoreError, match="no run was ever started"):
        await open_store(url, create=False)
    assert (await read_schema(url)).version == 0
    count = "SELECT count(*) FROM pg_namespace WHERE nspname = $1"
    assert looked_up(url, count, locate(url, "").schema) == [(0,)]


async def test_what_is_pending_can_be_run_by_hand(postgres: Server, url: str) -> None:
    """An administrator's own tool makes the same schema as opening it does."""
    for migration in await read_pending_migrations(url):
        postgres.sql(migration.sql)

    assert await read_pending_migrations(url) == []
    store = await opened(url)
    await start(store, "x")
    assert await store.read_meta("hash_seed")
    await store.close()


async def test_a_newer_schema_is_refused_loudly(store: Store, url: str) -> None:
    """Old code must not write what it does not understand."""
    looked_up(url, "INSERT INTO migration VALUES (999, 'future', 0)")

    for opening in (open_store(url), read_schema(url)):
        with pytest.raises(SchemaVersionError, match="upgrade"):
            await opening


async def test_two_schemas_of_one_database_do_not_know_each_other(url: str) -> None:
    """Neither rows nor hints cross over."""
    one, other = await opened(url), await opened(url + "_too")
    await start(one, "x")

    with pytest.raises(RunNotFoundError):
        await other.get_run("x")
    await one.close()
    await other.close()


async def test_whatever_the_users_default_is_transactions_read_what_is_committed(
    postgres: Server, url: str
) -> None:
    """READ COMMITTED is said explicitly, alone and in a transaction of several statements (P18)."""
    postgres.sql(
        "DROP ROLE IF EXISTS strict",
        "CREATE ROLE strict LOGIN SUPERUSER",
        "ALTER ROLE strict SET default_transaction_isolation = 'serializable'",
        "ALTER ROLE strict SET search_path = 'pg_catalog'",
    )
    store: Any = await opened(url.replace("//postgres@", "//strict@"))

    async def isolation(db: Any) -> str:
        return str(await db.connection.fetchval("SHOW transaction_isolation"))

    assert await store._database.run(isolation) == "read committed"
    assert await store._database.run(isolation, is_single=True) == "read committed"
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    assert await commit(store, worker, turn(held, after=HandBack())) == ["committed"]
    await store.close()


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_what_the_server_undid_for_a_collision_is_repeated_as_a_whole(store: Any, state: str) -> None:
    """All of the function, from its first statement: nothing it had read or written is there any more (P18)."""
    tries = 0

    async def write(db: Any) -> None:
        nonlocal tries
        tries += 1
        await db.fetch("write_meta", key="collision", value=str(tries))
        if tries == 1:
            await db.connection.execute(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{state}'; END $$")

    await store._database.run(write)

    assert await store.read_meta("collision") == "2"


async def test_a_pooler_gives_itself_away(pooler: Pooler, postgres: Server, url: str) -> None:
    """Behind one nothing is kept beyond a transaction; straight to the server statements are."""
    schema = locate(url, "").schema
    pooled: Any = await opened(in_schema(pooler.url, schema))
    straight: Any = await opened(in_schema(postgres.tcp_url, schema))
    named: Any = await opened(in_schema(postgres.tcp_url, schema) + "&pooler=transaction")

    assert [store._database.is_pooled for store in (pooled, straight, named)] == [True, False, True]
    for store in (pooled, straight, named):
        await start(store, "x")
        await store.close()


async def test_hints_are_not_needed_behind_a_pooler(pooler: Pooler, url: str) -> None:
    """LISTEN does not reach the server there; polling alone tells of changes (I18)."""
    pooled = in_schema(pooler.url, locate(url, "").schema)
    one, other = await opened(pooled), await opened(pooled)
    heard: list[int] = []
    other.subscribe(await a_worker(other), lambda: heard.append(1))
    await start(one, "x")

    await until(lambda: bool(heard))
    await one.close()
    await other.close()


@asynccontextmanager
async def as_role(url: str, role: str) -> AsyncIterator[Store]:
    """Open the schema, made by its owner, as one of the documented roles."""
    store = await opened(granted(url, role))
    try:
        yield store
    finally:
        await store.close()


async def test_a_worker_needs_no_more_than_its_role(url: str) -> None:
    """Its whole work, retention included, without the right to change a shape or a row of the journal."""
    async with as_role(url, "durable_worker") as store:
        worker = await a_worker(store)
        held = await started_by(store, worker, "x")
        await signal(store, "x", message_id="m")
        (message,) = await store.read_inbox(worker)
        await commit(store, worker, turn(held, 1, consumed=[message.inbox_id], seen=1))
        await commit(store, worker, turn(held, 2, seen=1, after=DONE))
        again = await started_by(store, worker, "x", if_closed="new")
        await commit(store, worker, turn(again, None, after=HandBack()))
        await claim(store, worker)
        await store.terminate_run("x", None, NOW)
        await store.retire_worker(worker)
        assert (await store.read_health()).unwritable == ""
        everything = ClosedRuns(before_us=NOW * 2)
        assert (await store.prune_runs([held.pk], everything, NOW)).runs == 1


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE journal SET data = ''",
        "DELETE FROM journal",
        "TRUNCATE journal",
        "ALTER TABLE run ADD COLUMN x int",
        "CREATE TABLE mine (x int)",
        "DROP TABLE run",
        "DELETE FROM migration",
        "UPDATE meta SET value = ''",
    ],
)
async def test_a_worker_may_not(url: str, statement: str) -> None:
    """Whoever gets hold of a worker's password can neither rewrite a journal nor change the schema."""
    async with another_session(granted(url, "durable_worker")) as db:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await db.execute(statement)


async def test_the_journal_is_append_only_for_its_owner_too(store: Store, url: str) -> None:
    """By triggers: rows leave it by retention alone."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held))
    for statement in ("UPDATE journal SET data = ''", "DELETE FROM journal", "TRUNCATE journal"):
        with pytest.raises(asyncpg.PostgresError, match="append-only"):
            looked_up(url, statement)
    with pytest.raises(asyncpg.PostgresError, match="closed runs only"):
        looked_up(url, "INSERT INTO retention_run VALUES ($1, 1)", held.pk)
    assert await journal(store, held) == [(1, b"{}")]


async def test_a_reader_looks_and_changes_nothing(url: str) -> None:
    """It sees everything; a write is refused with an error that says what is missing."""
    owner = await opened(url)
    await start(owner, "x")
    async with as_role(url, "durable_reader") as store:
        assert (await store.get_run("x")).run_id == "x"
        assert len(await store.list_workers(alive_only=False)) == 0
        assert "only read" in (await store.read_health()).unwritable
        for write in (start(store, "y"), signal(store, "x"), store.terminate_run("x", None, NOW)):
            with pytest.raises(StoreError, match="role"):
                await write
    await owner.close()


# ─ how many connections ──


async def test_connections_are_few_and_carry_their_name(postgres: Server, url: str) -> None:
    """However many ask at once: the pool, the listener and the heartbeat; none is left behind."""
    postgres.sql("DROP ROLE IF EXISTS counted", "CREATE ROLE counted LOGIN SUPERUSER")
    ours = "SELECT application_name FROM pg_stat_activity WHERE usename = 'counted'"
    store: Any = await opened(url.replace("//postgres@", "//counted@"))
    worker = await a_worker(store)
    store.subscribe(worker, lambda: None)
    await store.start_runs([request(f"r{n}") for n in range(50)], NOW)
    await asyncio.gather(*(store.get_run(f"r{n}") for n in range(50)))
    assert await asyncio.to_thread(store.beat, worker)
    await until(lambda: store._wakeups.pid is not None)

    names = [name for (name,) in looked_up(url, ours)]
    assert len(names) <= connection.CONNECTIONS_MAX + 2
    assert {"durable beats", "durable listener"} <= set(names)
    await store.close()
    await until(lambda: looked_up(url, ours) == [])


async def test_a_lost_listener_comes_back_and_costs_a_poll_at_most(
    store: Any, opener: Opener, url: str
) -> None:
    """While it is away subscribers are called every so often (I18)."""
    worker = await a_worker(store)
    heard = itertools.count()
    store.subscribe(worker, lambda: next(heard))
    await until(lambda: store._wakeups.pid is not None)
    first = store._wakeups.pid
    looked_up(url, "SELECT pg_terminate_backend($1)", first)
    await until(lambda: store._wakeups.pid not in (None, first))

    calls = next(heard)
    assert calls > 3
    assert isinstance(store, PostgresStore)
    await start(await opener(), "x")
    await until(lambda: next(heard) > calls + 2)


async def test_a_message_tells_of_itself_and_a_crowd_of_them_shares_hints(store: Any, url: str) -> None:
    """One alone saves its hint's round trip; of many at once the first does, as hints for each would crowd the server (I18)."""
    channel = locate(url, "").channel
    heard: list[object] = []
    await start(store, "x")
    async with another_session(url) as db:
        await db.add_listener(channel, lambda *told: heard.append(told[-1]))
        await until(lambda: store._wakeups._telling.done())
        earlier = store._wakeups._telling

        await signal(store, "x")
        await until(lambda: store._wakeups.name in heard)
        assert store._wakeups._telling is earlier

        with store._wakeups.lend() as first, store._wakeups.lend() as second:
            assert (first, second) == (channel, None)
            heard.clear()
            await signal(store, "x")
            await until(lambda: store._wakeups.name in heard)
        assert store._wakeups._telling is not earlier


async def test_whoever_is_told_that_a_message_is_there_finds_it_on_the_disk(url: str) -> None:
    """Workers hear of it sooner; the sender not, and one who sends it again neither."""
    async with opened_in_full(url) as store, another_session(url) as db:

        async def is_on_disk(position: int) -> bool:
            return int(await db.fetchval("SELECT pg_current_wal_flush_lsn()")) > position

        async def written() -> int:
            return int(await db.fetchval("SELECT pg_current_wal_insert_lsn()"))

        await start(store, "x")
        before = await written()
        await store.send_message(to("x", message_id="m"), NOW)
        assert await is_on_disk(before)

        await db.execute("SET synchronous_commit = off")
        await db.execute(
            "CALL send_message(NULL, NULL, 'x', 'signal', 'go', '1', 'of one whose answer was lost', NULL, NULL, '')"
        )
        before = await written()
        again = await store.send_message(to("x", message_id="of one whose answer was lost"), NOW)
        assert again.duplicate
        assert await is_on_disk(before)


async def test_a_cancelled_commit_still_ends_and_is_seen_by_who_reads_after_it(
    store: Store, url: str
) -> None:
    """Nobody waits for its answer any more, but what is read next is what it has made true (P16)."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    async with another_session(url) as db:
        async with db.transaction():
            await db.execute("SELECT 1 FROM worker_fence WHERE worker = $1 FOR UPDATE", worker)
            writing = asyncio.ensure_future(commit(store, worker, turn(held)))
            await is_blocked(url)
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
            reading = asyncio.ensure_future(store.read_claims(worker, [held.pk]))
        (again,) = await reading

    assert [row.turn for row in again.journal] == [1]
