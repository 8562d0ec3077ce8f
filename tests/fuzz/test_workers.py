"""A worker on a database in which rows were changed at random: it lives, changed runs park or go on, the others finish."""

from __future__ import annotations

import asyncio
import os
from typing import Any, Final

import pytest

from durable import Client, RunStatus, Signal, activity, sleep, workflow
from tests.fuzz.guided import Fuzzer
from tests.support.workers import file_of, is_released, looked_up, running_worker, tampered

RUNS: Final = 120
SOUND: Final = 10  # every so many is left as it is
COLUMNS: Final = {
    "journal": ("SELECT data FROM journal WHERE run = ? AND turn = 1", "UPDATE journal SET data = ? WHERE run = ? AND turn = 1"),
    "input": ("SELECT input FROM run_payload WHERE run = ?", "UPDATE run_payload SET input = ? WHERE run = ?"),
    "inbox": ("SELECT data FROM inbox WHERE run = ?", "UPDATE inbox SET data = ? WHERE run = ?"),
}  # fmt: skip

go = Signal("go", dict[str, int])


@activity
async def price(name: str, at: tuple[int, int]) -> dict[str, list[int]]:
    if name == "broken":
        raise ValueError("broken")
    return {name: [*at]}


@workflow(timeout=600)
async def order(name: str, at: tuple[int, int] = (1, 2)) -> list[Any]:
    found = await price(name, at)
    try:
        await price("broken", at)
    except ValueError as error:
        found[str(error.args[0])] = []
    await asyncio.gather(price("a", (1, 1)), sleep(0.01))
    said = await go.wait()
    return [found, said, await price("last", at)]


@pytest.mark.slow
@pytest.mark.parametrize("what", COLUMNS)
async def test_a_worker_outlives_changed_rows(client: Client, what: str) -> None:
    """Each of the changed runs ends in a way that can be named; nobody else notices."""
    seed = int(os.environ.get("DURABLE_FUZZ_SEED", "7"))
    async with running_worker(client, order, warm_us=0):
        runs = await client.start_many(order, [(f"o-{n}",) for n in range(RUNS)])
        for run in runs:
            await is_released(run)
    for run in runs:
        await run.signal(go, {"n": 1})
    read, write = COLUMNS[what]
    rows = [looked_up(file_of(client), read, pk)[0][0] for pk in range(1, RUNS + 1)]
    fuzzer = Fuzzer(rows[:5], seed=seed)
    for pk in range(1, RUNS + 1):
        if pk % SOUND:
            tampered(file_of(client), write, parameters=(fuzzer.next(), pk))

    async with running_worker(client, order) as worker:
        for number, run in enumerate(runs, 1):
            if number % SOUND == 0:
                name = f"o-{number - 1}"
                assert await run.result(60) == [{name: [1, 2], "broken": []}, {"n": 1}, {"last": [1, 2]}]
        await asyncio.wait_for(settled(client), 60)
        fresh = await client.start(order, "fresh")
        await fresh.signal(go, {"n": 2})
        assert (await fresh.result(60))[1] == {"n": 2}
        assert worker.worker_id

    statuses = {run.status for run in await client.list(limit=RUNS + 1)}
    assert statuses <= {
        RunStatus.COMPLETED,
        RunStatus.FAILED,
        RunStatus.PARKED,
        RunStatus.WAITING,
        RunStatus.TIMED_OUT,
    }
    assert RunStatus.PARKED in statuses
    for run in await client.list(status="parked", limit=RUNS):
        assert (await client.why(run.run_id)).reason == "parked"
        assert run.reason


async def settled(client: Client) -> None:
    """Wait until nothing of any run is under way."""
    while True:
        runs = await client.list(status=["pending", "running"], limit=RUNS)
        if not runs:
            return
        await asyncio.sleep(0.05)
