"""Claims on a server while somebody holds an old snapshot: see `durable.store.postgres.claiming`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from store_steps import W1, a_worker, close, commit, request, signal, turn

from durable.journal.lifecycle import RunStatus
from durable.seams import ServerClock
from durable.store.opening import open_store
from durable.store.postgres import claiming
from durable.store.postgres.location import locate
from durable.store.records import Claim, Close
from tests.support.postgres import looked_up
from tests.support.workers import until

pytestmark = pytest.mark.stores("postgres")

DONE = Close(status=RunStatus.COMPLETED, result=b"1")


@asynccontextmanager
async def old_snapshot(url: str) -> AsyncIterator[None]:
    """Hold one open, as a forgotten BEGIN does."""
    db = await asyncpg.connect(locate(url, "").dsn)
    try:
        transaction = db.transaction(isolation="repeatable_read")
        await transaction.start()
        await db.fetchval("SELECT count(*) FROM pg_class")
        yield
        await transaction.rollback()
    finally:
        await db.close()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Any]:
    """One that goes by the server's clock, as in production."""
    store = await open_store(url, durability="off", clock=ServerClock())
    yield store
    await store.close()


async def claimed(store: Any, worker: int, limit: int = 100, queue: str = "default") -> list[Claim]:
    return await store.claim_ready_runs(worker, now_us=0, limit=limit, task_queue=queue, definitions=W1)  # type: ignore[no-any-return]  # of a Store


async def come_and_go(store: Any, worker: int, runs: int) -> None:
    await store.start_runs([request(f"r{n}") for n in range(runs)], 0)
    while batch := await claimed(store, worker, 500):
        await commit(store, worker, *(turn(one, after=DONE) for one in batch))


@pytest.mark.slow
async def test_a_look_that_begins_late_walks_past_nothing_that_was_claimed(store: Any, url: str) -> None:
    """A whole look touches the pages of all runs that came and went; one that begins where the last ended does not."""
    worker = await a_worker(store)
    async with old_snapshot(url):
        await come_and_go(store, worker, 3000)
        now_us = await store._database.value("read_instant", now_us=None)
        whole, late = [await pages_of_a_claim(store, worker, since) for since in (0, now_us)]

    assert whole > 100
    assert late < whole / 3, (late, whole)


async def pages_of_a_claim(store: Any, worker: int, since_us: int) -> int:
    """Return how many pages one look for ready runs touches."""
    return await pages_of(
        store, "claim_ready_runs", worker=worker, slot=0, now_us=None, count=50, task_queue="default", workflows=["w"],
        versions=[1], since_us=since_us,
    )  # fmt: skip


async def pages_of(store: Any, name: str, **values: object) -> int:
    """Return how many pages a statement touches, as the server counts them. What it writes is undone."""
    statement = store._database.sql[name]
    async with store._database.session() as session:
        transaction = session.connection.transaction()
        await transaction.start()
        (found,) = await session.connection.fetch(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}",
            *(values[name] for name in statement.names),
        )
        await transaction.rollback()
    plan = json.loads(found[0])[0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.slow
async def test_what_is_found_by_its_id_walks_past_nothing_that_this_worker_owned(
    store: Any, url: str
) -> None:
    """Even where the planner believes that a worker owns next to nothing, and would look by the owner."""
    worker = await a_worker(store)
    async with old_snapshot(url):
        await come_and_go(store, worker, 3000)
        looked_up(url, "ANALYZE run")
        await store.start_runs([request("last")], 0)
        (last,) = await claimed(store, worker)
        item = {
            "worker": worker,
            "slot": 0,
            "pks": [last.pk],
            "claim_nos": [last.claim_no],
            "generations": [1],
            "turns": [1],
        }
        by_owner = await pages_of(store, "read_inbox_of_worker", worker=worker)
        by_id = [
            await pages_of(store, "read_owned_runs", worker=worker, runs=[last.pk]),
            await pages_of(store, "read_inbox_of_runs", worker=worker, runs=[last.pk]),
            await pages_of(store, "commit_staying_turns", **item, parts=[1], datas=[b"x"]),
            await pages_of(store, "is_owned", worker=worker, run=last.pk, claim_no=last.claim_no),
        ]  # fmt: skip

    assert by_owner > 100
    assert max(by_id) < by_owner / 3, (by_id, by_owner)


async def test_messages_are_looked_for_by_run_once_looks_by_owner_have_become_costly(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same answer, except that of runs which nobody asked for nothing is said."""
    monkeypatch.setattr(claiming, "COSTLY_SECONDS", 0.0)
    worker = await a_worker(store)
    other = await a_worker(store)
    await store.start_runs([request(name) for name in ("asked", "unasked", "not ours")], 0)
    asked, unasked = await claimed(store, worker, 2)
    (foreign,) = await claimed(store, other)
    for one in (asked, unasked, foreign):
        await signal(store, one.run_id)
    everything = await store.read_inbox(worker)
    assert [one.run_pk for one in everything] == [asked.pk, unasked.pk]

    for _ in range(2):  # by owner the first time, at the latest
        found = await store.read_inbox(worker, [asked.pk, foreign.pk])
    assert found == everything[:1]


async def test_what_became_ready_late_with_an_earlier_instant_is_found_by_who_looks_back(
    store: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look that begins late leaves it out, and loses nothing: another finds out from when on to look."""
    monkeypatch.setattr(claiming, "COSTLY_SECONDS", 0.0)
    monkeypatch.setattr(claiming, "BACK_SHARE", 1e9)
    monkeypatch.setattr(claiming, "BACK_SECONDS_MAX", 1e9)
    worker = await a_worker(store)
    assert await claimed(store, worker) == []
    await store.start_runs([request("late"), request("soon")], 0)
    looked_up(url, "UPDATE run SET ready_at_us = ready_at_us - 3600000000 WHERE run_id = 'late'")

    (soon,) = await claimed(store, worker)
    assert soon.run_id == "soon"
    await close(store, worker, soon)
    assert await claimed(store, worker) == []

    store._look_outs[worker, "default"]._back_at = 0.0  # as after so long
    assert await claimed(store, worker) == []
    await store._looking_back[worker, "default"]
    assert [one.run_id for one in await claimed(store, worker)] == ["late"]
    assert store._looking_back == {}


@pytest.fixture
def costly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is costly, and nobody looks back."""
    monkeypatch.setattr(claiming, "COSTLY_SECONDS", 0.0)
    monkeypatch.setattr(claiming, "BACK_SHARE", 1e9)
    monkeypatch.setattr(claiming, "BACK_SECONDS_MAX", 1e9)


def an_hour_ago(url: str) -> None:
    """Whatever is ready has been so for long."""
    looked_up(url, "UPDATE run SET ready_at_us = ready_at_us - 3600000000")


@pytest.mark.usefixtures("costly")
async def test_a_run_that_is_resumed_waits_for_nobody_to_look_back(store: Any, url: str) -> None:
    """It is ready from then on, and not since before it was paused."""
    worker = await a_worker(store)
    await store.start_runs([request("paused")], 0)
    await store.pause_run("paused", None, 0)
    an_hour_ago(url)
    assert await claimed(store, worker) == []

    await store.resume_run("paused", 0)

    assert [one.run_id for one in await claimed(store, worker)] == ["paused"]


@pytest.mark.usefixtures("costly")
@pytest.mark.parametrize(("kind", "name"), [("task_queue", "default"), ("worker", "test")])
async def test_what_was_held_back_together_waits_for_nobody_to_look_back(
    store: Any, url: str, kind: str, name: str
) -> None:
    """A look at a paused queue, or of a paused worker, has seen nothing."""
    worker = await a_worker(store, "test")
    await store.pause(kind, name, None, 0)
    await store.start_runs([request("held")], 0)
    assert await claimed(store, worker) == []
    an_hour_ago(url)  # so long it was held

    await store.resume(kind, name)

    assert [one.run_id for one in await claimed(store, worker)] == ["held"]


@pytest.mark.usefixtures("costly")
async def test_a_look_at_one_queue_says_nothing_of_another(store: Any, url: str) -> None:
    """A worker that serves both gets on with the long one, batch by batch, while the other is empty."""
    worker = await a_worker(store)
    await store.start_runs([request(f"r{n}", task_queue="long") for n in range(4)], 0)
    an_hour_ago(url)

    for _ in range(2):
        assert len(await claimed(store, worker, 2, "long")) == 2
        assert await claimed(store, worker, 2) == []


async def test_a_store_that_is_closed_looks_back_no_more(
    store: Any, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that would take."""
    monkeypatch.setattr(claiming, "COSTLY_SECONDS", 0.0)
    monkeypatch.setattr(claiming, "BACK_SHARE", 0.0)
    worker = await a_worker(store)
    await claimed(store, worker)
    locker = await asyncpg.connect(locate(url, "").dsn)
    try:
        async with locker.transaction():
            await locker.execute(f"LOCK TABLE {locate(url, '').schema}.run IN ACCESS EXCLUSIVE MODE")
            claiming_late = asyncio.ensure_future(claimed(store, worker))
            await until(lambda: (worker, "default") in store._looking_back)
            looking = store._looking_back[worker, "default"]
            claiming_late.cancel()
            await asyncio.wait([claiming_late])
            await store.close()
            assert looking.cancelled()
    finally:
        await locker.close()
