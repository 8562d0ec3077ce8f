"""What is special to a file: opening, damage, full disks, forks, other processes."""

from __future__ import annotations

import ast
import asyncio
import itertools
import os
import random
import sqlite3
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Opener
from store_steps import (
    NOW,
    Process,
    a_worker,
    claim,
    commit,
    journal,
    opened,
    start,
    started_by,
    status,
    turn,
)

from durable.errors import (
    DefinitionError,
    NotADatabaseError,
    SchemaVersionError,
    StoreBusyError,
    StoreError,
)
from durable.journal.lifecycle import RunStatus
from durable.seams import SystemClock
from durable.store.contract import Store
from durable.store.migrations import load_migrations
from durable.store.opening import open_store
from durable.store.records import RunFilter
from durable.store.sqlite import connection, location
from durable.store.sqlite.schema import APPLICATION_ID
from durable.store.sqlite.store import SqliteStore
from durable.store.sqlite.write_lock import pause_in_queue

pytestmark = pytest.mark.stores("sqlite")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody without rights")


def content(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def files_in(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def rights_of_others(directory: Path) -> dict[str, int]:
    """Return what group and others may do with each file; sockets have the rights of their directory."""
    found = [path for path in directory.rglob("*") if not path.is_socket()]
    return {path.name: path.lstat().st_mode & 0o077 for path in found}


def set_mode(path: Path, mode: int) -> None:
    path.chmod(mode)


@pytest.fixture
def commons() -> Iterator[Path]:
    """A directory that other users can be let into. None of pytest's, nor of ours: those are shut to all others."""
    with tempfile.TemporaryDirectory(prefix="durable-", dir="/tmp") as directory:
        yield Path(directory)


def forked(in_child: Callable[[], bytes]) -> bytes:
    """Return what `in_child` returns in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write, in_child())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    answer = os.read(read, 1000)
    os.close(read)
    return answer


def sql(database: Path, statement: str) -> list[tuple[object, ...]]:
    """Run one statement as another program would."""
    other = sqlite3.connect(database, isolation_level=None)
    try:
        return other.execute(statement).fetchall()
    finally:
        other.close()


# ─ opening ──


async def test_a_fresh_file_is_migrated_and_marked_as_ours(store: Store, database: Path) -> None:
    """WAL, the newest schema, our application id, and what the database remembers of itself."""
    assert (await store.read_health()).schema.version == len(load_migrations("durable.store.sqlite"))
    assert sql(database, "PRAGMA application_id") == [(APPLICATION_ID,)]
    assert sql(database, "PRAGMA journal_mode") == [("wal",)]
    assert isinstance(store, SqliteStore)
    assert 0 <= int(await store.read_meta("hash_seed") or -1) < 1 << 32
    assert len(await store.read_meta("database_id") or "") == 32
    assert await store.read_meta("?") is None


async def test_what_was_written_is_there_after_opening_again(opener: Opener) -> None:
    """Also what the database remembers of itself stays."""
    first = await opener()
    await start(first, "x")
    assert isinstance(first, SqliteStore)
    seed = await first.read_meta("hash_seed")
    await first.close()

    second = await opener()

    assert await status(second, "x") is RunStatus.PENDING
    assert isinstance(second, SqliteStore)
    assert await second.read_meta("hash_seed") == seed


async def test_a_closed_store_says_so(store: Store) -> None:
    """Closing is idempotent; every verb afterwards is a clear error."""
    await store.close()
    await store.close()

    for verb in (lambda: start(store, "x"), lambda: store.get_run("x"), lambda: store.list_runs(RunFilter())):
        with pytest.raises(StoreError, match="closed"):
            await verb()
    with pytest.raises(StoreError, match="closed"):
        store.subscribe(None, lambda: None)


async def test_a_file_of_something_else_is_refused_untouched(database: Path) -> None:
    """Neither text nor another program's database is changed."""
    write(database, b"Dear diary, " * 1000)
    with pytest.raises(NotADatabaseError, match="not an SQLite database"):
        await open_store(str(database))
    assert content(database) == b"Dear diary, " * 1000

    remove(database)
    sql(database, "CREATE TABLE journal (page TEXT)")
    before = content(database)
    with pytest.raises(NotADatabaseError, match="another program"):
        await open_store(str(database))
    assert content(database) == before
    assert not location.side_directory(database).exists()


async def test_places_where_no_database_can_be(tmp_path: Path) -> None:
    """A directory, a missing directory, a missing file that must exist, memory."""
    with pytest.raises(StoreError, match="is a directory"):
        await open_store(str(tmp_path))
    with pytest.raises(StoreError, match="no directory"):
        await open_store(str(tmp_path / "missing" / "a.db"))
    with pytest.raises(StoreError, match="no database at"):
        await open_store(str(tmp_path / "a.db"), create=False)
    assert files_in(tmp_path) == []
    with pytest.raises(DefinitionError):
        await open_store(":memory:")


async def test_a_newer_schema_is_refused(opener: Opener, url: str, database: Path) -> None:
    """Old code does not guess what new columns mean."""
    await (await opener()).close()
    sql(database, "INSERT INTO migration VALUES (999, 'future', 0)")

    with pytest.raises(SchemaVersionError, match="upgrade"):
        await open_store(url)


async def test_a_damaged_file_is_a_clear_error(opener: Opener, url: str, database: Path) -> None:
    """A malformed database stops the verb that meets the damage, with what to do."""
    one = await opener()
    await one.start_runs([], NOW)
    for n in range(50):
        await start(one, f"run-{n}", input=b"x" * 2000)
    await one.close()
    pages = content(database)
    write(database, pages[: 4096 * 3] + os.urandom(len(pages) - 4096 * 3))

    async def look() -> None:
        other = await open_store(url)
        try:
            await other.list_runs(RunFilter())
            await other.list_workers()
        finally:
            await other.close()

    with pytest.raises(StoreError, match="damaged"):
        await look()


async def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    """The longest mount point decides; spaces in it are escaped by the kernel."""
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nhost:/x /mnt/my\\040share nfs4 rw 0 0\n/dev/b /mnt/my ext4 rw 0 0\n"
    )

    assert location.file_system(Path("/mnt/my share/deep"), mounts) == "nfs4"
    assert location.file_system(Path("/mnt/my"), mounts) == "ext4"
    assert location.file_system(Path("/home"), mounts) == "ext4"
    assert location.file_system(Path("/home"), tmp_path / "none") is None


async def test_a_database_on_a_network_file_system_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """WAL needs shared memory on one host."""
    monkeypatch.setattr(location, "file_system", lambda directory: "nfs4")
    with pytest.raises(StoreError, match="network"):
        await open_store(url)


async def test_a_worker_of_another_machine_is_refused(opener: Opener, url: str) -> None:
    """A held lock under another boot id means a file shared between machines (P10)."""
    script = """
import asyncio, sys
from store_steps import *
from durable.store.opening import open_store
from durable.store.sqlite import workers as module
module.boot_id = lambda: "another-machine"
async def main():
    store = await open_store(sys.argv[1], durability="off")
    await a_worker(store)
    print("alive", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
asyncio.run(main())
"""
    async with await Process.run(script, url) as child:
        assert await child.line() == "alive"
        with pytest.raises(StoreError, match="another machine"):
            await open_store(url, durability="off")
        child.process.kill()
        await child.process.wait()
    await opener()  # dead, its lock is free: nothing stands in the way


@as_root
@pytest.mark.parametrize("locked", ["file", "directory"])
async def test_what_cannot_be_written_can_still_be_read(commons: Path, locked: str) -> None:
    """`show` and `list` work on a read-only file or directory; every write is refused clearly."""
    database = commons / "durable.db"
    one = await opened(f"sqlite:///{database}")
    await start(one, "x")
    await one.close()
    database.chmod(0o444 if locked == "file" else 0o666)
    set_mode(commons, 0o777 if locked == "file" else 0o555)
    script = """
import asyncio, sys, os
from store_steps import *
from durable.errors import StoreError
from durable.store.opening import open_store
from durable.store.records import RunFilter
async def import_everything():
    store = await open_store(sys.argv[1] + ".other")
    await store.list_workers()
    await store.close()
asyncio.run(import_everything())
os.setuid(65534)
async def main():
    store = await open_store(sys.argv[1])
    print(await status(store, "x"), len(await store.list_runs(RunFilter())))
    for verb in (lambda: start(store, "y"), lambda: a_worker(store)):
        try:
            await verb()
        except StoreError as error:
            print("read-only" in str(error))
    await store.close()
asyncio.run(main())
"""
    async with await Process.run(script, str(database)) as child:
        assert [await child.line() for _ in range(3)] == ["pending 1", "True", "True"]


@as_root
async def test_a_directory_without_rights_is_a_clear_error(commons: Path) -> None:
    """Nothing can be made there: say so, with the path."""
    set_mode(commons, 0o755)
    script = """
import asyncio, sys, os
from durable.errors import StoreError
from durable.store.opening import open_store
async def import_everything():
    store = await open_store(sys.argv[1] + ".other")
    await store.list_workers()
    await store.close()
asyncio.run(import_everything())
os.setuid(65534)
async def main():
    try:
        await open_store(sys.argv[1])
    except StoreError as error:
        print(sys.argv[1] in str(error), "permission" in str(error))
asyncio.run(main())
"""
    async with await Process.run(script, str(commons / "durable.db")) as child:
        assert await child.line() == "True True"


async def test_files_are_for_their_owner_alone(opener: Opener, database: Path, tmp_path: Path) -> None:
    """Whatever the umask: payloads are in the database and its log, and in a backup; a socket wakes, a lock stops."""
    before = os.umask(0)
    try:
        store = await opener()
        await claim(store, await a_worker(store))
        await start(store, "x")
        await store.back_up(tmp_path / "copy.db")
        modes = rights_of_others(tmp_path)
    finally:
        os.umask(before)
    assert {database.name, f"{database.name}-wal", f"{database.name}-durable", "copy.db"} <= modes.keys()
    assert set(modes.values()) == {0}, modes


async def test_a_database_that_was_made_for_others_stays_so(opener: Opener, database: Path) -> None:
    """Its owner has decided."""
    await (await opener()).close()
    set_mode(database, 0o640)

    await start(await opener(), "x")

    assert rights_of_others(database.parent)[database.name] == 0o040


# ─ the journal ──


async def test_the_journal_refuses_updates_and_deletes(store: Store, database: Path) -> None:
    """Append-only in the database itself, whoever writes."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held))

    for statement in ("UPDATE journal SET data = x''", "DELETE FROM journal"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            sql(database, statement)
    assert await journal(store, held) == [(1, b"{}")]


# ─ trouble while writing ──


async def test_a_full_disk_refuses_the_write_and_loses_nothing(store: Store) -> None:
    """Nothing half-written, a clear error, and work goes on once there is room."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    assert isinstance(store, SqliteStore)
    assert store._writer is not None
    writing = store._writer._connection
    (pages,) = writing.execute("PRAGMA page_count").fetchone()
    writing.execute(f"PRAGMA max_page_count = {pages}")

    with pytest.raises(StoreError, match="disk is full"):
        await commit(store, worker, turn(held, 1, b"x" * 1_000_000))

    assert await journal(store, held) == []
    writing.execute("PRAGMA max_page_count = 1000000")
    assert await commit(store, worker, turn(held, 1, b"x" * 1_000_000)) == ["committed"]


async def test_a_foreign_lock_is_waited_for(store: Store, database: Path) -> None:
    """A program that knows nothing of us holds the write lock: the write waits in a thread, the loop goes on."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    writing = asyncio.ensure_future(commit(store, worker, turn(held)))
    for _ in range(10):
        await asyncio.sleep(0.005)
    assert not writing.done()
    other.execute("COMMIT")
    other.close()

    assert await asyncio.wait_for(writing, 60) == ["committed"]


async def test_a_lock_that_is_never_given_back_is_a_busy_error(store: Store, database: Path) -> None:
    """Past the deadline the caller is told, and nothing was written."""
    assert isinstance(store, SqliteStore)
    assert store._writer is not None
    store._writer.wait_seconds = 0.1
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(StoreBusyError):
        await start(store, "x")

    other.execute("ROLLBACK")
    other.close()
    assert (await start(store, "x")).how == "started"


async def test_a_cancelled_caller_leaves_no_transaction_behind(store: Store, database: Path) -> None:
    """The write may happen or not; the next one is not in its way."""
    other = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.ensure_future(start(store, "x"))
    await asyncio.sleep(0.02)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    other.execute("ROLLBACK")
    other.close()

    assert (await start(store, "y")).how == "started"
    assert (await start(store, "x")).how in ("started", "attached")


async def test_a_commit_that_runs_inline_does_not_suspend(store: Store) -> None:
    """No hop: the coroutine is done in its first step."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")

    coroutine = store.commit_turns(worker, [turn(held)], NOW)

    with pytest.raises(StopIteration) as stopped:
        coroutine.send(None)
    assert stopped.value.value == ["committed"]


# ─ other processes ──


OPEN_AND_START = """
import asyncio, sys
from store_steps import *
from durable.store.opening import open_store
async def main():
    sys.stdin.readline()
    store = await open_store(sys.argv[1], durability="off")
    await start(store, sys.argv[2])
    print((await store.read_health()).schema.version, flush=True)
    await store.close()
asyncio.run(main())
"""


async def test_processes_that_open_a_fresh_file_at_once(url: str, database: Path) -> None:
    """Migrations are applied once, whoever comes first."""
    children = [await Process.run(OPEN_AND_START, url, f"run-{n}") for n in range(4)]
    for child in children:
        child.tell()
    versions = [await child.line() for child in children]
    for child in children:
        await child.__aexit__()

    newest = len(load_migrations("durable.store.sqlite"))
    assert versions == [str(newest)] * 4
    assert sql(database, "SELECT count(*) FROM migration") == [(newest,)]
    assert sql(database, "SELECT count(*) FROM run") == [(4,)]
    assert sql(database, "SELECT count(*) FROM meta WHERE key = 'hash_seed'") == [(1,)]


HAMMER = """
import asyncio, sys, time
from store_steps import *
from durable.store.opening import open_store
async def main():
    store = await open_store(sys.argv[1], durability="off")
    worker = await a_worker(store)
    held = await started_by(store, worker, sys.argv[2])
    print("ready", flush=True)
    sys.stdin.readline()
    long_waits = []
    for number in range(1, int(sys.argv[3]) + 1):
        before = time.monotonic()
        assert await commit(store, worker, turn(held, number)) == ["committed"]
        if time.monotonic() - before > 0.5:
            long_waits.append((held.pk, number))
    print(long_waits, flush=True)
    await store.close()
asyncio.run(main())
"""


async def test_writing_processes_do_not_starve_each_other(url: str, database: Path) -> None:
    """In tight loops from several processes every write gets its turn: nobody waits for long while the others write on and on."""
    names = ["a", "b", "c"]
    children = [await Process.run(HAMMER, url, name, "300") for name in names]
    for child in children:
        assert await child.line() == "ready"
    for child in children:
        child.tell()
    long_waits = [wait for child in children for wait in ast.literal_eval(await child.line())]
    for child in children:
        await child.__aexit__()

    written = sql(database, "SELECT run, turn FROM journal ORDER BY rowid")
    counts = Counter(run for run, _ in written)
    assert sorted(counts.values()) == [300, 300, 300]
    for run, number in long_waits:  # a machine that stands still holds everybody up
        before = written.index((run, number - 1)) if number > 1 else -1
        assert written.index((run, number)) - before < 50


def test_a_writer_that_has_waited_for_long_goes_before_one_that_comes_again() -> None:
    """Whoever writes again and again is back at the queue in a moment: looking as seldom as that one does, a beat would wait for ever."""

    def next_look(since: float, opens: float) -> float:
        looks = since
        while looks < opens:
            looks += pause_in_queue(looks - since)
        return looks

    chance = random.Random(0)
    served = 0
    for _ in range(1000):
        opens = 1 + chance.random()
        again = opens - 0.002 * chance.random()
        served += next_look(0, opens) < next_look(again, opens)
    assert served > 800


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
async def test_a_forked_child_cannot_use_an_inherited_store(opener: Opener, database: Path) -> None:
    """Using it is a clear error; the parent's locks, connections and liveness are untouched (P30)."""
    store = await opener()
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, 1))
    store.beat(worker)
    script_of_child = """
import asyncio, sys
from store_steps import *
from durable.store.opening import open_store
async def main():
    store = await open_store(sys.argv[1], durability="off")
    print(await store.rescue_dead_workers(3600.0), flush=True)
    await store.close()
asyncio.run(main())
"""

    def use_it() -> bytes:
        try:
            store.subscribe(None, lambda: None)
        except StoreError as error:
            return str(error).encode()
        return b"no error"

    assert b"before a fork" in forked(use_it)
    assert await commit(store, worker, turn(held, 2)) == ["committed"]
    async with await Process.run(script_of_child, str(database)) as other:
        assert await other.line() == "[]"
    assert await claim(store, worker) == []


async def test_the_log_starts_over_under_load(
    opener: Opener, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above 64 MiB a writer checkpoints by itself, however little time the checkpointer gets."""
    monkeypatch.setattr(connection, "WAL_LOOK_SECONDS", 0.0)
    store = await opener()
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    log = database.with_name(database.name + "-wal")
    number, largest = 0, 0
    while number < 600:
        number += 1
        assert await commit(store, worker, turn(held, number, b"x" * 200_000)) == ["committed"]
        largest = max(largest, log.stat().st_size)

    assert number * 200_000 > 100 << 20
    assert 64 << 20 < largest < 72 << 20


async def test_a_reader_that_keeps_its_snapshot_holds_up_nobody_and_the_log_is_cleared_after_it(
    opener: Opener, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A report, a forgotten BEGIN: the log grows, writers go on; once the reader has gone the log starts over."""
    monkeypatch.setattr(connection, "WAL_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(connection, "WAL_BYTES_MAX", 1 << 20)
    store = await opener()
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    log = database.with_name(database.name + "-wal")
    written = itertools.count(1)

    async def write(turns: int) -> int:
        for _ in range(turns):
            assert await commit(store, worker, turn(held, next(written), b"x" * 30_000)) == ["committed"]
        return log.stat().st_size

    reader = sqlite3.connect(database, isolation_level=None)
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM journal").fetchall() == [(0,)]
    grown = await write(200)
    assert grown > 5 << 20
    assert reader.execute("SELECT count(*) FROM journal").fetchall() == [(0,)]

    reader.execute("COMMIT")
    assert await write(300) < grown + (2 << 20)
    assert reader.execute("SELECT count(*) FROM journal").fetchall() == [(500,)]
    reader.close()
    assert sql(database, "PRAGMA integrity_check") == [("ok",)]


def files_open_here() -> list[str]:
    """Return the files that this process has open, as far as the system tells."""
    here = Path("/proc/self/fd")
    return [os.readlink(one) for one in here.iterdir() if one.is_symlink()] if here.is_dir() else []


async def test_a_cancelled_scan_leaves_no_connection_open(store: Store, database: Path) -> None:
    """Whoever asked has gone: the read goes on to its end, and closing the store waits for it."""
    await start(store, "r")
    for turns in range(6):
        scan = asyncio.ensure_future(store.list_runs(RunFilter()))
        for _ in range(turns):
            await asyncio.sleep(0)
        scan.cancel()
        await asyncio.wait([scan])
        assert scan.cancelled() or (turns > 1 and len(scan.result()) == 1)  # it may have ended just before
    await store.close()

    assert str(database) not in files_open_here()


def test_a_loop_that_ends_in_the_middle_of_a_scan_ends_quietly(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that ends while its engine looks for old runs: no thread finds a closed loop behind its back."""
    raised: list[object] = []
    monkeypatch.setattr(threading, "excepthook", raised.append)

    async def keep(store: Store) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await store.close()

    async def main(turns: int) -> None:
        store = await open_store(f"sqlite:///{database}", clock=SystemClock())
        tasks = [asyncio.ensure_future(keep(store)), asyncio.ensure_future(store.list_runs(RunFilter()))]
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not tasks[0].done()

    for turns in range(1, 8):
        for _ in range(5):
            asyncio.run(main(turns))

    assert not raised
    assert str(database) not in files_open_here()
