"""A database in trouble: full disk, foreign locks, lost replies. The worker survives, callers get typed errors."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
        assert await (await client.start(takes, text, run_id="r")).result(10) == len(text)


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
        assert await run.result(10) == 10


# ─ what workers do ──


async def test_a_worker_waits_out_a_foreign_lock(client: Client) -> None:
    """It commits when it can; no activity runs twice or is lost for that."""
    counting = Counting()
    async with running_worker(client, counting.workflow, lease_seconds=5):
        runs = await client.start_many(counting.workflow, [()] * 5)
        with foreign_lock(file_of(client)):
            await asyncio.sleep(0.3)

        assert [await run.result(10) for run in runs] == [10] * 5
    assert len(counting.calls.names) == 25


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

        assert [await run.result(10) for run in runs] == [10] * 5
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

        assert await run.result(10) == 300_000
    assert calls.of("large") == 1


@pytest.mark.parametrize("step", range(1, 12))
async def test_a_commit_that_fails_at_any_point_costs_nothing(client: Client, step: int) -> None:
    """Commit N writes nothing and says so: all is done again from the journal, no body runs twice."""
    counting = Counting()
    async with running_worker(client, counting.workflow) as worker:
        through_commit_turns(worker._store)
        real, commits = worker._store.commit_turns, 0

        async def commit(*arguments: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits == step:
                raise StoreError("nothing was written")
            return await real(*arguments)

        worker._store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        run = await client.start(counting.workflow)

        assert await run.result(10) == 10
        worker._store.commit_turns = real  # type: ignore[method-assign]  # as it was
    assert counting.calls.names == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("step", range(1, 8))
async def test_a_commit_whose_reply_was_lost_starts_its_activities_once(client: Client, step: int) -> None:
    """Commit N is in the database though it was reported as failed: the journal is believed (P15, P16)."""
    counting = Counting()
    async with running_worker(client, counting.workflow) as worker:
        through_commit_turns(worker._store)
        real, commits = worker._store.commit_turns, 0

        async def commit(*arguments: Any) -> Any:
            nonlocal commits
            commits += 1
            verdicts = await real(*arguments)
            if commits == step:
                raise StoreError("the reply was lost")
            return verdicts

        worker._store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        run = await client.start(counting.workflow)

        assert await run.result(10) == 10
        worker._store.commit_turns = real  # type: ignore[method-assign]  # as it was
    assert counting.calls.names == ["0", "1", "2", "3", "4"]


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
        through_commit_turns(worker._store)
        real, commits = worker._store.commit_turns, 0

        async def commit(*arguments: Any) -> Any:
            nonlocal commits
            commits += 1
            if commits % 2 or written:
                verdicts = await real(*arguments)
            if commits % 2 == 0:
                raise StoreError("trouble")
            return verdicts

        worker._store.commit_turns = commit  # type: ignore[method-assign]  # a fault injected
        runs = [await client.start(lives, value) for value in range(12)]
        for value in (100, 200):
            for run in runs:
                await run.signal(number, value)

        assert [await run.result(30) for run in runs] == [[value, 100, 200] for value in range(12)]
        worker._store.commit_turns = real  # type: ignore[method-assign]  # as it was


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
        real, calls = getattr(worker._store, verb), 0

        async def sometimes(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls % 2 == 0:
                raise StoreError("trouble")
            return await real(*arguments, **options)

        setattr(worker._store, verb, sometimes)
        runs = await client.start_many(counting.workflow, [()] * 5)
        nap = await client.start(naps)
        assert [await run.result(10) for run in runs] == [10] * 5
        await is_waiting(nap, "signal")
        await nap.signal(number, 2)
        assert await nap.result(10) == 2
        setattr(worker._store, verb, real)


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
            await handle.result(10)
        store.read_ended = real
        async with running_worker(client, counting.workflow):
            assert await handle.result(10) == 10


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
