"""Workers that come and go: retirement, rescue, and hints between stores."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from store_steps import NOW, Process, a_worker, claim, commit, signal, start, started_by, status, turn, until

from durable.errors import LeaseLostError, StoreError
from durable.journal.lifecycle import RunStatus
from durable.seams import SystemClock
from durable.store.contract import Store
from durable.store.records import AttemptRow, WorkerInfo
from durable.store.sqlite.liveness import Liveness

A_WORKER = """
import asyncio, sys
from store_steps import *
from durable.errors import LeaseLostError
from durable.store.opening import open_store

async def main():
    store = await opened(sys.argv[1])
    worker = await a_worker(store, "child")
    held = await started_by(store, worker, "x")
    await commit(store, worker, turn(held, 1))
    print("owned", flush=True)
    loop = asyncio.get_running_loop()
    asking = loop.run_in_executor(None, sys.stdin.readline)
    while not asking.done():
        store.beat(worker)
        await asyncio.sleep(0.02)
    try:
        print(await commit(store, worker, turn(held, 2)), flush=True)
    except LeaseLostError:
        print("LeaseLostError", store.beat(worker), flush=True)
    await store.close()

asyncio.run(main())
"""


async def test_a_retired_worker_leaves_its_runs_ready(store: Store) -> None:
    """Retirement is one transaction, may be repeated, and keeps attempts for whoever goes on."""
    one, two = await a_worker(store), await a_worker(store)
    held = await started_by(store, one, "x")
    row = AttemptRow(op=1, attempt=1, state="started")
    await commit(store, one, turn(held, 1, attempts=[row]))

    await store.retire_worker(one)
    await store.retire_worker(one)

    (again,) = await claim(store, two, now_us=SystemClock().now_us())
    assert (again.attempts, again.claim_no) == ([row], held.claim_no + 1)
    assert not store.beat(one)
    assert store.beat(two)


async def test_incarnations_are_never_reused(store: Store) -> None:
    """A worker id names one incarnation for ever."""
    first = await a_worker(store)
    await store.retire_worker(first)

    assert await a_worker(store) > first


async def test_nobody_rescues_the_living(opener: Opener) -> None:
    """Workers of one process know each other without touching their lock files (P10)."""
    mine, other = await opener(), await opener()
    worker = await a_worker(mine)
    await started_by(mine, worker, "x")

    for _ in range(3):
        assert await other.rescue_dead_workers(60.0) == []
    assert list((await mine.owned_runs(worker)).values()) == [1]


async def test_a_number_that_is_being_given_back_makes_no_two_workers_one(
    opener: Opener, database: Path
) -> None:
    """A registration that is rolled back holds its number's lock until its caller is told: nobody else is taken for it."""
    one, other = await opener(), await opener()
    writer: Any = one._writer  # type: ignore[attr-defined]
    real = writer.run

    async def run(work: Any) -> Any:
        writer.run = real
        writer._execute("BEGIN IMMEDIATE")
        work(writer._connection)
        writer._execute("ROLLBACK")
        with pytest.raises(StoreError, match="being registered"):
            await a_worker(other)
        return await real(work)

    writer.run = run
    first = await a_worker(one)
    second = await a_worker(other)
    await one.close()

    assert [rescue.worker_id for rescue in await other.rescue_dead_workers(3600.0)] == [first]
    assert other.beat(second)


async def test_a_store_closed_without_retiring_is_rescued_at_once(opener: Opener) -> None:
    """Closing gives the liveness lock up: the next one takes over without waiting for a lease."""
    mine, other = await opener(), await opener()
    worker = await a_worker(mine, "gone")
    await started_by(mine, worker, "x")
    await mine.close()

    (rescue,) = await other.rescue_dead_workers(3600.0)

    assert (rescue.worker_id, rescue.name, rescue.runs) == (worker, "gone", 1)
    assert await other.rescue_dead_workers(3600.0) == []


@pytest.mark.stores("sqlite")
def test_a_worker_whose_loop_is_closed_counts_as_dead(url: str) -> None:
    """`asyncio.run` ended without closing anything: the process lives, the worker cannot run."""
    from durable.store.opening import open_store

    kept = []

    async def leave_it() -> None:
        store = await open_store(url, durability="off")
        kept.append(store)
        await started_by(store, await a_worker(store), "x")

    async def find_it() -> int:
        store = await open_store(url, durability="off")
        rescued = await store.rescue_dead_workers(3600.0)
        await store.close()
        return len(rescued)

    asyncio.run(leave_it())
    assert asyncio.run(find_it()) == 1
    kept[0]._wakeups.close()  # type: ignore[attr-defined]  # the process would end here
    kept[0]._close_files()  # type: ignore[attr-defined]
    kept[0]._executor.close()  # type: ignore[attr-defined]


@pytest.mark.stores("sqlite")
async def test_a_killed_process_is_taken_over_at_once(store: Store, url: str) -> None:
    """Lock obtainable means dead; no lease has to pass, and no beat is needed (P10)."""
    worker = await a_worker(store)
    async with await Process.run(A_WORKER, url) as child:
        assert await child.line() == "owned"
        assert await store.rescue_dead_workers(3600.0, observer=worker) == []
        child.process.kill()
        await child.process.wait()

        (rescue,) = await store.rescue_dead_workers(3600.0, observer=worker)

    assert (rescue.name, rescue.runs) == ("child", 1)
    (held,) = await claim(store, worker, now_us=SystemClock().now_us())
    assert [row.turn for row in held.journal] == [1]


@pytest.mark.stores("postgres")
async def test_a_killed_process_is_taken_over_after_a_lease(store: Store, url: str) -> None:
    """A server cannot tell death from silence: only the lease decides, by the server's clock (P9)."""
    worker = await a_worker(store)
    async with await Process.run(A_WORKER, url) as child:
        assert await child.line() == "owned"
        child.process.kill()
        await child.process.wait()
        assert await store.rescue_dead_workers(3600.0, observer=worker) == []

        rescued = []
        while not rescued:
            rescued = await store.rescue_dead_workers(0.3, observer=worker)
            await asyncio.sleep(0.02)

    assert [(rescue.name, rescue.runs) for rescue in rescued] == [("child", 1)]
    (held,) = await claim(store, worker, now_us=SystemClock().now_us())
    assert [row.turn for row in held.journal] == [1]


async def test_a_stopped_process_is_taken_over_after_a_lease(store: Store, url: str) -> None:
    """It holds its lock, but its counter stands still; continued, it can write nothing more (P8, P10)."""
    worker = await a_worker(store)
    async with await Process.run(A_WORKER, url) as child:
        assert await child.line() == "owned"
        os.kill(child.process.pid, signals.SIGSTOP)

        rescued = []
        began = time.monotonic()
        while not rescued:
            rescued = await store.rescue_dead_workers(0.3, observer=worker)
            await asyncio.sleep(0.02)
            assert time.monotonic() - began < 60
        assert time.monotonic() - began >= 0.2  # a lease after its last beat, which was a moment before
        (held,) = await claim(store, worker, now_us=SystemClock().now_us())

        os.kill(child.process.pid, signals.SIGCONT)
        child.tell()
        assert await child.line() == "LeaseLostError False"

    assert await commit(store, worker, turn(held, 2, b"mine")) == ["committed"]
    assert [row.data for row in await store.read_journal(held.pk, 1)] == [b"{}", b"mine"]


async def test_a_beating_process_is_left_alone(store: Store, url: str) -> None:
    """Beats that move protect a worker for as long as they do."""
    worker = await a_worker(store)
    async with await Process.run(A_WORKER, url) as child:
        assert await child.line() == "owned"
        began = time.monotonic()
        while time.monotonic() - began < 2.5:
            assert await store.rescue_dead_workers(2.0, observer=worker) == []
            await asyncio.sleep(0.02)
        child.tell()
        assert await child.line() == "['committed']"


async def test_a_worker_with_a_longer_lease_is_given_that_long(store: Store) -> None:
    """An observer whose own lease is shorter does not take it for dead between two of its beats."""
    observer, brisk = await a_worker(store, "observer"), await a_worker(store, "brisk")
    patient = await store.register_worker(
        WorkerInfo(name="patient", task_queue="default", definitions=(), lease_us=60_000_000)
    )

    rescued: list[int] = []
    while brisk not in rescued:
        rescued += [one.worker_id for one in await store.rescue_dead_workers(0.3, observer=observer)]
        await asyncio.sleep(0.02)

    await store.rescue_dead_workers(0.3, observer=observer)
    assert rescued == [brisk]
    assert store.beat(patient)


@pytest.mark.stores("sqlite")
async def test_a_worker_without_its_lock_file_is_judged_by_its_beats(store: Store, url: str) -> None:
    """Somebody cleaned the side directory up: that alone must not look like death."""
    worker = await a_worker(store)
    async with await Process.run(A_WORKER, url) as child:
        assert await child.line() == "owned"
        side = url.removeprefix("sqlite:///") + "-durable"
        for name in os.listdir(side):
            if name.startswith("worker-") and name != f"worker-{worker}.lock":
                os.unlink(os.path.join(side, name))

        for _ in range(5):
            assert await store.rescue_dead_workers(30.0, observer=worker) == []
        assert await status(store, "x") is RunStatus.RUNNING


async def test_beats_come_from_another_thread(store: Store) -> None:
    """The heartbeat has a connection of its own, beside commits on the loop."""
    worker = await a_worker(store)
    held = await started_by(store, worker, "x")
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.extend(store.beat(worker) for _ in range(50)))
    thread.start()
    for number in range(1, 51):
        assert await commit(store, worker, turn(held, number)) == ["committed"]
    await until(lambda: not thread.is_alive())

    assert answers == [True] * 50


async def test_subscribers_of_a_store_hear_its_own_changes(store: Store) -> None:
    """Hints within a store need no polling; who unsubscribed hears nothing more."""
    heard: list[int] = []
    unsubscribe = store.subscribe(None, lambda: heard.append(1))

    await start(store, "x")
    await until(lambda: bool(heard))

    unsubscribe()
    heard.clear()
    await start(store, "y")
    await asyncio.sleep(0.1)
    assert heard == []


@pytest.mark.stores("sqlite")
async def test_hints_are_one_per_turn_of_the_loop(store: Store) -> None:
    """Two changes within a turn are one hint: on a file they do not suspend."""
    heard: list[int] = []
    unsubscribe = store.subscribe(None, lambda: heard.append(1))

    await start(store, "x")
    await signal(store, "x")
    await until(lambda: bool(heard))
    assert heard == [1]
    unsubscribe()


async def test_another_store_of_the_process_hears_changes(opener: Opener) -> None:
    """Polling stands behind everything: a client with no worker hears within a moment."""
    one, other = await opener(), await opener()
    heard: list[int] = []
    unsubscribe = other.subscribe(None, lambda: heard.append(1))

    await start(one, "x")

    await until(lambda: bool(heard))
    unsubscribe()


async def test_another_process_hears_changes(store: Store, url: str) -> None:
    """A start elsewhere wakes a worker here."""
    worker = await a_worker(store)
    heard: list[int] = []
    unsubscribe = store.subscribe(worker, lambda: heard.append(1))
    script = """
import asyncio, sys
from store_steps import *
async def main():
    store = await opened(sys.argv[1])
    await start(store, "from-elsewhere")
    await asyncio.sleep(0.05)
    await store.close()
asyncio.run(main())
"""
    async with await Process.run(script, url) as child:
        await until(lambda: bool(heard))
        await child.process.wait()

    assert [held.run_id for held in await claim(store, worker)] == ["from-elsewhere"]
    unsubscribe()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/fd")
async def test_a_datagram_arrives_though_the_path_is_long(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Socket addresses hold a hundred bytes; a deep directory is reached through a descriptor."""
    from durable.store.opening import open_store
    from durable.store.sqlite import wakeups

    deep = tmp_path_factory.mktemp("deep") / ("x" * 120)
    deep.mkdir()
    one = await open_store(str(deep / "a.db"), durability="off")
    other = await open_store(str(deep / "a.db"), durability="off")
    heard: list[float] = []
    patch = pytest.MonkeyPatch()
    patch.setattr(wakeups, "TOLD_POLL_SECONDS", 3600.0)  # so that only the datagram can tell
    try:
        worker = await a_worker(other)
        other.subscribe(worker, lambda: heard.append(time.monotonic()))
        await start(one, "x")
        await until(lambda: bool(heard))
    finally:
        patch.undo()
        await one.close()
        await other.close()


async def test_a_lost_lease_is_an_error_of_its_own(store: Store) -> None:
    """The zombie's claims fail like its commits."""
    worker = await a_worker(store)
    await store.retire_worker(worker)

    with pytest.raises(LeaseLostError, match="nothing was written"):
        await claim(store, worker, now_us=NOW)


async def test_a_registration_that_died_with_its_loop_holds_no_number(tmp_path: Path) -> None:
    """Its row was rolled back, so the number is given out again: the next one must not wait for somebody who is gone."""
    liveness, gone = Liveness(tmp_path), asyncio.new_event_loop()
    liveness.hold(7, gone)
    here = asyncio.get_running_loop()
    with pytest.raises(StoreError, match="being registered by somebody else"):
        liveness.hold(7, here)

    gone.close()
    liveness.hold(7, here)

    liveness.drop(7, remove=True)
    assert not liveness.is_locked(7)
