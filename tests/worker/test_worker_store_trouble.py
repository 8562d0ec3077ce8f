"""A database in trouble: full disk, foreign locks, lost replies. The worker survives, callers get typed errors."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durable import (
    Client,
    DefinitionError,
    Retry,
    Signal,
    StoreBusyError,
    StoreError,
    activity,
    activity_info,
    connect,
    sleep,
    workflow,
)
from durable.worker import committing
from tests.support.workers import (
    Calls,
    file_of,
    is_waiting,
    no_durability,
    running_worker,
    through_commit_turns,
    until,
)

number = Signal("number", int)


@pytest.fixture(autouse=True)
def quick_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pause after a failed commit is not what is under test."""
    monkeypatch.setattr(committing, "TROUBLE_SECONDS", 0.01)


# Locks and disks of a file; what befalls a server is in tests/faults.
pytestmark = pytest.mark.stores("sqlite")


class Counting:
    """A workflow of five activities that notes every start."""

    def __init__(self) -> None:
        self.calls = Calls()

        @activity(retries=0)
        async def note(value: int) -> int:
            self.calls(str(value))
            return value

        @workflow
        async def counts() -> int:
            return sum([await note(value) for value in range(5)])

        self.workflow = counts


@contextmanager
def foreign_lock(database: Path) -> Iterator[subprocess.Popen[str]]:
    """Another program holds SQLite's write lock until the block ends."""
    program = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        try:
            yield process
        finally:
            process.communicate()


@contextmanager
def full_disk(client: Client) -> Iterator[None]:
    """No page can be added to the database until the block ends."""
    store: Any = client.store
    db: sqlite3.Connection = store._writer._connection
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    (before,) = db.execute("PRAGMA max_page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    try:
        yield
    finally:
        db.execute(f"PRAGMA max_page_count = {before}")


# ─ what callers see ──


async def test_a_full_disk_is_a_typed_error_that_wrote_nothing(client: Client) -> None:
    """The caller is told what is wrong, and may try again."""
    counting = Counting()
    text = "x" * 200_000

    @workflow
    async def takes(value: str) -> int:
        return len(value)

    with full_disk(client), pytest.raises(StoreError, match="disk is full"):
        await client.start(takes, text, run_id="r")
    assert await client.list() == []
    async with running_worker(client, takes, counting.workflow):
        assert await (await client.start(takes, text, run_id="r")).result(60) == len(text)


async def test_a_lock_held_too_long_is_a_busy_error(client: Client) -> None:
    """Deadline passed, nothing written: the error says so by its class."""
    store: Any = client.store
    store._writer.wait_seconds = 0.1
    with foreign_lock(file_of(client)), pytest.raises(StoreBusyError):
        await client.start(Counting().workflow, run_id="r")
    assert await client.list() == []


async def test_a_lock_held_for_a_while_only_delays(client: Client) -> None:
    """Within the deadline callers wait; the loop goes on meanwhile."""
    counting = Counting()
    loops = 0
    with foreign_lock(file_of(client)):
        start = asyncio.ensure_future(client.start(counting.workflow))
        for _ in range(20):
            await asyncio.sleep(0.005)
            loops += 1
        assert not start.done()
    run = await start
    assert loops == 20
    async with running_worker(client, counting.workflow):
        assert await run.result(60) == 10


# ─ what workers do ──


async def test_a_worker_waits_out_a_foreign_lock(client: Client) -> None:
    """It commits when it can; no activity runs twice or is lost for that."""
    counting = Counting()
    async with running_worker(client, counting.workflow, lease_seconds=5):
        runs = await client.start_many(counting.workflow, [()] * 5)
        with foreign_lock(file_of(client)):
            await asyncio.sleep(0.3)

        assert [await run.result(60) for run in runs] == [10] * 5
    assert len(counting.calls.names) == 25


@pytest.mark.slow
@pytest.mark.parametrize("busy", [0.5, 2, 6])
async def test_a_lock_held_for_longer_than_a_lease_costs_nobody_its_life(
    client: Client, url: str, busy: float
) -> None:
    """Nobody can beat meanwhile, so silence proves nothing; callers and workers wait, and go on where they were."""
    counting = Counting()
    async with (
        no_durability(url) as other,
        running_worker(client, counting.workflow, lease_seconds=1) as one,
        running_worker(other, counting.workflow, lease_seconds=1) as two,
    ):
        lives = one.worker_id, two.worker_id
        runs = await client.start_many(counting.workflow, [()] * 20)
        with foreign_lock(file_of(client)):
            late = asyncio.ensure_future(other.start(counting.workflow, run_id="late"))
            await asyncio.sleep(busy)

        assert [await run.result(60) for run in [*runs, await late]] == [10] * 21
        assert (one.worker_id, two.worker_id) == lives
    assert len(counting.calls.names) == 105


class SlowDisk(sqlite3.Connection):
    """A connection whose every commit of writes takes as long as a disk that hardly keeps up."""

    seconds = 0.0
    commits = 0
    writes = False

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql == "BEGIN IMMEDIATE":
            self.writes = True
        if sql == "COMMIT" and self.writes and self.seconds:
            SlowDisk.commits += 1
            time.sleep(self.seconds)
        return super().execute(sql, *args)


@pytest.mark.slow
async def test_a_disk_that_is_slow_for_leases_kills_and_doubles_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each commit takes an eighth of a lease, for leases: beats pass between them, and the loops do not wait for the disk."""
    opened = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", partial(opened, factory=SlowDisk))
    monkeypatch.setattr(SlowDisk, "commits", 0)
    counting = Counting()
    turns = 0
    async with (
        connect(url) as client,
        connect(url) as other,
        running_worker(client, counting.workflow, lease_seconds=2) as one,
        running_worker(other, counting.workflow, lease_seconds=2) as two,
    ):
        lives = one.worker_id, two.worker_id
        monkeypatch.setattr(SlowDisk, "seconds", 0.25)
        runs = await client.start_many(counting.workflow, [()] * 4)
        results = asyncio.gather(*(run.result(60) for run in runs))
        while not results.done():
            turns += 1
            await asyncio.sleep(0.01)
        monkeypatch.setattr(SlowDisk, "seconds", 0.0)

        assert await results == [10] * 4
        assert (one.worker_id, two.worker_id) == lives
    assert len(counting.calls.names) == 20
    assert SlowDisk.commits > 8
    assert turns > SlowDisk.commits * 3  # a loop that waited for the disk would turn once a commit


async def test_a_worker_survives_commits_that_give_up(client: Client) -> None:
    """Busy past its own deadline again and again: turns are made again from the journal."""
    counting = Counting()
    store: Any = client.store
    store._writer.wait_seconds = 0.02
    async with running_worker(client, counting.workflow, lease_seconds=5):
        runs = await client.start_many(counting.workflow, [()] * 5)
        with foreign_lock(file_of(client)):
            await asyncio.sleep(0.4)
        store._writer.wait_seconds = 10

        assert [await run.result(60) for run in runs] == [10] * 5
    assert len(counting.calls.names) == 25


async def test_a_worker_survives_a_full_disk_and_goes_on_when_there_is_room(client: Client) -> None:
    """Results that could not be written are kept and written later; their activities do not run again."""
    gate = asyncio.Event()
    calls = Calls()

    @activity(retries=0)
    async def large() -> str:
        calls("large")
        await gate.wait()
        return "x" * 300_000

    @workflow
    async def takes() -> int:
        return len(await large())

    async with running_worker(client, takes):
        run = await client.start(takes)
        await until(lambda: calls.names)
        with full_disk(client):
            gate.set()
            await asyncio.sleep(0.2)
            assert (await run.describe()).status == "running"

        assert await run.result(60) == 300_000
    assert calls.of("large") == 1


@pytest.mark.parametrize("step", range(1, 12))
async def test_a_commit_that_fails_at_any_point_costs_nothing(client: Client, step: int) -> None:
    """Commit N writes nothing and says so: all is done again from the journal, no body runs twice."""
    counting = Counting()
    async with running_worker(client, counting.workflow) as worker:
        through_commit_turns(worker.life.store)
        real, commits = worker.life.store.commit_turns, 0

        async def commit(*arguments: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits == step:
                raise StoreError("nothing was written")
            return await real(*arguments)

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        run = await client.start(counting.workflow)

        assert await run.result(60) == 10
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was
    assert counting.calls.names == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("step", range(1, 8))
async def test_a_commit_whose_reply_was_lost_starts_its_activities_once(client: Client, step: int) -> None:
    """Commit N is in the database though it was reported as failed: the journal is believed (P15, P16)."""
    counting = Counting()
    async with running_worker(client, counting.workflow) as worker:
        through_commit_turns(worker.life.store)
        real, commits = worker.life.store.commit_turns, 0

        async def commit(*arguments: Any) -> Any:
            nonlocal commits
            commits += 1
            verdicts = await real(*arguments)
            if commits == step:
                raise StoreError("the reply was lost")
            return verdicts

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        run = await client.start(counting.workflow)

        assert await run.result(60) == 10
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was
    assert counting.calls.names == ["0", "1", "2", "3", "4"]


async def test_a_worker_held_up_after_a_commit_asks_whose_its_runs_are(client: Client) -> None:
    """It lives, but the run was terminated and tried again elsewhere meanwhile: nothing of it begins here any more."""
    counting = Counting()
    async with (
        running_worker(client, counting.workflow, lease_seconds=0.9, name="held up") as worker,
        connect(client.url, durability="process") as other,
    ):
        through_commit_turns(worker.life.store)
        real = worker.life.store.commit_turns
        run = await client.start(counting.workflow)

        async def commit(worker_id: int, items: Any, now_us: int) -> Any:
            verdicts = await real(worker_id, items, now_us)
            if counting.calls.names == ["0"]:
                worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was
                await client.pause_worker("held up")
                await client.terminate(run.run_id)
                await client.retry(run.run_id)
                async with running_worker(other, counting.workflow):
                    assert await (await other.get(run.run_id)).result(60) == 10
                await asyncio.sleep(1)  # two thirds of the lease, and more
            return verdicts

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected

        await until(lambda: worker.life.store.commit_turns == real and not worker.life.driver.runs)
        assert worker.worker_id == 1, "it has lived on"
    assert counting.calls.names == ["0", "1", "2", "3", "4"]


async def test_trouble_right_after_a_new_life_began_leaves_no_second_one_behind(client: Client) -> None:
    """A worker that was declared dead begins anew; what it could not read then it reads later, in that same life."""
    counting = Counting()
    async with running_worker(client, counting.workflow) as worker:
        real = worker.life.store.read_pauses

        async def read_pauses(worker_id: int) -> Any:
            worker.life.store.read_pauses = real  # type: ignore[method-assign]  # as it was
            raise StoreError("the database cannot be reached")

        former = worker.worker_id
        worker.life.store.read_pauses = read_pauses  # type: ignore[method-assign]  # a fault injected
        worker.life.tenure.lose(former)
        await until(lambda: worker.worker_id != former)

        assert await (await client.start(counting.workflow)).result(60) == 10
        assert [one.worker_id for one in await client.workers()] == [worker.worker_id]


@pytest.mark.parametrize("written", [False, True], ids=["not written", "reply lost"])
async def test_trouble_with_every_other_commit_loses_no_signal_retry_or_timer(
    client: Client, written: bool
) -> None:
    """The whole life of many runs under constant trouble: each ends with the right value."""

    @activity(retries=1)
    async def flaky(value: int) -> int:
        if activity_info().attempt == 1:
            raise OSError
        return value

    @workflow
    async def lives(value: int) -> list[int]:
        one, two = await asyncio.gather(
            flaky.options(retry=Retry(max_attempts=3, initial=0.005))(value), number.wait()
        )
        await sleep(0.01)
        return [one, two, await number.wait()]

    async with running_worker(client, lives, concurrency=4) as worker:
        through_commit_turns(worker.life.store)
        real, commits = worker.life.store.commit_turns, 0

        async def commit(*arguments: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits % 2 or written:
                verdicts = await real(*arguments)
            if commits % 2 == 0:
                raise StoreError("trouble")
            return verdicts

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        runs = [await client.start(lives, value) for value in range(12)]
        for value in (100, 200):
            for run in runs:
                await run.signal(number, value)

        assert [await run.result(60) for run in runs] == [[value, 100, 200] for value in range(12)]
        worker.life.store.commit_turns = real  # type: ignore[method-assign]  # as it was


@pytest.mark.parametrize(
    "verb", ["claim_ready_runs", "read_inbox", "owned_runs", "read_claims", "wake_due_runs"]
)
async def test_a_read_that_fails_now_and_then_stops_no_loop(client: Client, verb: str) -> None:
    """Each of a worker's loops tries again: none ends, none drops the rest."""
    counting = Counting()

    @workflow
    async def naps() -> int:
        await sleep(0.03)
        return await number.wait()

    async with running_worker(client, counting.workflow, naps, warm_us=0) as worker:
        real, calls = getattr(worker.life.store, verb), 0

        async def sometimes(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 2 == 0:
                raise StoreError("trouble")
            return await real(*arguments, **options)

        setattr(worker.life.store, verb, sometimes)
        runs = await client.start_many(counting.workflow, [()] * 5)
        nap = await client.start(naps)
        assert [await run.result(60) for run in runs] == [10] * 5
        await is_waiting(nap, "signal")
        await nap.signal(number, 2)
        assert await nap.result(60) == 2
        setattr(worker.life.store, verb, real)


@pytest.mark.slow
async def test_a_child_that_cannot_be_read_now_and_then_stops_no_worker(client: Client, url: str) -> None:
    """How a child ended is read with whatever tells of it: by the loop that claims, and by the one that reads a run anew."""

    @workflow
    async def inner(value: int) -> int:
        return value

    @workflow
    async def outer() -> list[int]:
        return [await inner(value) for value in range(6)]

    def every_other(verb: str) -> None:
        real, calls = getattr(there.store, verb), 0

        async def sometimes(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 2 == 0:
                raise StoreError("trouble")
            return await real(*arguments, **options)

        setattr(there.store, verb, sometimes)

    async with no_durability(url) as there, running_worker(there, outer, inner):
        through_commit_turns(there.store)
        every_other("commit_turns")
        every_other("get_run")
        assert await (await client.start(outer)).result(60) == list(range(6))


async def test_a_waiter_is_told_when_the_database_cannot_be_read(client: Client, url: str) -> None:
    """`result()` raises the store's error rather than hanging; asking again works."""
    counting = Counting()
    async with no_durability(url) as other:
        run = await client.start(counting.workflow)
        handle = await other.get(run.run_id, counting.workflow)
        store: Any = other.store
        real = store.read_ended

        async def broken(*arguments: Any) -> Any:
            raise StoreError("trouble")

        store.read_ended = broken
        with pytest.raises(StoreError, match="trouble"):
            await handle.result(60)
        store.read_ended = real
        async with running_worker(client, counting.workflow):
            assert await handle.result(60) == 10


async def test_a_closed_client_refuses_further_use(url: str) -> None:
    """With an error of ours that says what to do."""
    client = no_durability(url)
    with pytest.raises(DefinitionError, match="async with"):
        await client.get("r")
    async with client:
        assert await client.list() == []
    with pytest.raises(DefinitionError):
        await client.list()
    await client.close()
