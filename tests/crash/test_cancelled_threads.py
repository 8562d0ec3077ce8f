"""A process is killed while a thread of it, interrupted by a cancel, cleans up: nothing begins again that was to end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import pytest

from durable import Retry, RunCancelledError, Worker, activity, activity_info, connect, workflow
from tests.support.supervisor import PATIENCE, ROOT
from tests.support.workers import until

LEDGER: Final = "CANCELLED_THREADS_LEDGER"
QUICK: Final = Retry(max_attempts=3, initial=0.01)


def note(what: str) -> None:
    """Append a line to what bodies saw; one write, safely on the disk."""
    descriptor = os.open(os.environ[LEDGER], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{what}\n".encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cleans_up_for_ever() -> None:
    try:
        note(f"attempt {activity_info().attempt} begins")
        while True:
            sum(range(100))
    except asyncio.CancelledError as error:
        note(f"told: {error}")
        while True:
            time.sleep(0.01)


waited_for = activity(name="waited for", cancellation="wait", retry=QUICK)(cleans_up_for_ever)
let_go = activity(name="let go", cancellation="try", retry=QUICK)(cleans_up_for_ever)


@workflow
async def waits() -> None:
    await waited_for()


@workflow
async def lets_go() -> None:
    await let_go()


def serve(url: str) -> None:
    """What a worker's process does."""

    async def work() -> None:
        async with connect(url) as client:
            await Worker(client, waits, lets_go, lease_seconds=2).run()

    asyncio.run(work())


@contextmanager
def a_worker(url: str, ledger: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker in a process of its own; kill it in the end."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, "-c", f"from tests.crash.test_cancelled_threads import serve; serve({url!r})"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, LEDGER: str(ledger)},
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)


@pytest.mark.parametrize("kind", [pytest.param("wait", marks=pytest.mark.slow), "try"])
async def test_an_interrupted_thread_dies_with_its_process(kind: str, url: str, tmp_path: Path) -> None:
    """With "wait" its run is cancelled by whoever takes it over, with "try" it was already; no further attempt begins."""
    ledger = tmp_path / "ledger"

    def seen() -> list[str]:
        return ledger.read_text().splitlines() if ledger.exists() else []

    with ExitStack() as processes:
        async with connect(url) as client:
            run = await client.start(waits if kind == "wait" else lets_go)
            first = processes.enter_context(a_worker(url, ledger))
            await until(lambda: len(seen()) == 1, seconds=PATIENCE)
            await run.cancel("customer left")
            await until(lambda: len(seen()) == 2, seconds=PATIENCE)
            first.kill()
            first.wait(PATIENCE)

            processes.enter_context(a_worker(url, ledger))
            with pytest.raises(RunCancelledError) as stopped:
                await run.result(PATIENCE)
            rows = await client.store.read_attempts(1, 1)

    assert stopped.value.reason == "customer left"
    assert seen() == ["attempt 1 begins", "told: customer left"]
    assert rows == []
