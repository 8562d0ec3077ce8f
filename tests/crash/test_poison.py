"""Code that ends its worker's process: who is blamed, how often it may, and that everybody else gets on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from durable import Client, RunStatus, connect
from durable.store.records import CRASHES_MAX
from tests.crash.programs.deadly import AT_ONCE, calls, deadly, deadly_later, go, holds, neighbour
from tests.support.supervisor import PATIENCE, supervised
from tests.support.workers import until

SLOW = pytest.mark.slow  # they wait for limits to run out
NEIGHBOURS = 20
STEPS = 3
EXPECTED = [7 + sum(range(STEPS))] * NEIGHBOURS


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    async with connect(url, durability="process") as client:
        yield client


async def with_neighbours(client: Client) -> list[Any]:
    """Start runs that are in the worker's hands when the deadly one comes."""
    return [await client.start(neighbour, STEPS, run_id=f"n-{number}") for number in range(NEIGHBOURS)]


async def settled(client: Client, run_id: str) -> RunStatus:
    async def over() -> RunStatus | None:
        status = (await client.describe(run_id)).status
        return status if status.is_closed or status is RunStatus.PARKED else None

    return await until(over, seconds=PATIENCE, what=f"{run_id} ends visibly")


async def finished(neighbours: list[Any]) -> list[int]:
    for run in neighbours:
        await run.signal(go, 7)
    return [await run.result(PATIENCE) for run in neighbours]


@pytest.mark.parametrize(
    "how", ["exit", "abort", pytest.param("sleep", marks=SLOW), pytest.param("lock", marks=SLOW)]
)
async def test_a_workflow_that_ends_its_worker_is_parked_as_poison(
    client: Client, url: str, tmp_path: Path, how: str
) -> None:
    """One death makes suspects, then each death of a worker that drove it alone counts; no neighbour is touched (P14)."""
    async with supervised(url, tmp_path / "log") as supervisor:
        neighbours = await with_neighbours(client)
        await until(lambda: all_wait(client), seconds=PATIENCE)
        run = await client.start(deadly, how, run_id="deadly")

        assert await settled(client, "deadly") is RunStatus.PARKED
        assert await finished(neighbours) == EXPECTED
    assert len(supervisor.ends) == 1 + CRASHES_MAX
    seen = await run.describe()
    assert (seen.reason or "").startswith("PoisonError: run 'deadly' ended its worker 3 times")
    parked = await client.list(status="parked")
    assert [one.run_id for one in parked] == ["deadly"]
    assert (await client.why("deadly")).reason == "parked"


async def all_wait(client: Client) -> bool:
    return len(await client.list(status="waiting")) == NEIGHBOURS


async def test_poison_that_gets_on_first_is_found_too(client: Client, url: str, tmp_path: Path) -> None:
    """It ends its worker where it consumes an outcome that was never recorded: each time anew, by a further attempt."""
    async with supervised(url, tmp_path / "log"):
        neighbours = await with_neighbours(client)
        await client.start(deadly_later, "exit", run_id="deadly")

        status = await settled(client, "deadly")
        assert await finished(neighbours) == EXPECTED
    seen = await client.describe("deadly")
    # Whichever limit comes first: the attempts of the step, or the crashes.
    assert status in (RunStatus.PARKED, RunStatus.FAILED)
    assert any(word in f"{seen.reason} {seen.error}" for word in ("PoisonError", "WorkerLostError"))


async def test_a_poisonous_run_that_is_resumed_gets_one_chance(
    client: Client, url: str, tmp_path: Path
) -> None:
    """A person may be wrong; the price is one worker, not four."""
    async with supervised(url, tmp_path / "log") as supervisor:
        run = await client.start(deadly, "exit", run_id="deadly")
        await settled(client, "deadly")
        before = len(supervisor.ends)
        await run.resume()
        await until(lambda: len(supervisor.ends) > before, seconds=PATIENCE)
        assert await settled(client, "deadly") is RunStatus.PARKED
        neighbours = await with_neighbours(client)
        assert await finished(neighbours) == EXPECTED
    assert len(supervisor.ends) == before + 1


@pytest.mark.parametrize(
    ("where", "how", "outcome"),
    [
        ("async", "exit", "WorkerLostError"),
        ("thread", "exit", "WorkerLostError"),
        pytest.param("thread", "lock", "WorkerLostError", marks=SLOW),
        pytest.param("async", "sleep", "WorkerLostError", marks=SLOW),
        ("async", "spin", "BlockedLoopError"),
        ("async", "recursion", "RecursionError"),
        ("thread", "recursion", "RecursionError"),
    ],
)
async def test_a_deadly_activity_fails_after_its_attempts(
    client: Client, url: str, tmp_path: Path, where: str, how: str, outcome: str
) -> None:
    """Each death costs it an attempt, counted before it began; the workflow gets an error it can handle (I5)."""
    async with supervised(url, tmp_path / "log") as supervisor:
        neighbours = await with_neighbours(client)
        await until(lambda: all_wait(client), seconds=PATIENCE)
        run = await client.start(calls, where, how, run_id="deadly")

        assert await run.result(PATIENCE) == outcome
        assert await finished(neighbours) == EXPECTED
    deaths = AT_ONCE.max_attempts if outcome == "WorkerLostError" else 0
    assert len(supervisor.ends) == deaths
    (entry,) = (await run.describe()).journal
    assert entry.attempts == (1 if outcome == "BlockedLoopError" else AT_ONCE.max_attempts)


async def test_a_deadly_activity_does_not_use_up_the_attempts_of_others(
    client: Client, url: str, tmp_path: Path
) -> None:
    """They lose the attempt that ran when it struck first; then it begins alone, until it has none left."""
    gate = tmp_path / "gate"
    async with supervised(url, tmp_path / "log") as supervisor:
        others = [await client.start(holds, str(gate)) for _ in range(8)]
        await until(lambda: all_run(others), seconds=PATIENCE)
        run = await client.start(calls, "async", "exit", run_id="deadly")

        assert await run.result(PATIENCE) == "WorkerLostError"
        gate.touch()
        assert [await other.result(PATIENCE) for other in others] == ["done"] * 8
    assert len(supervisor.ends) == AT_ONCE.max_attempts
    for other in others:
        (entry,) = (await other.describe()).journal
        assert entry.attempts == 2


async def all_run(runs: list[Any]) -> bool:
    seen = [await run.describe() for run in runs]
    return all(run.journal and run.journal[0].status == "running" for run in seen)
