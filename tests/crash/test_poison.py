"""Code that ends its worker's process: who is blamed, how often it may, and that everybody else gets on."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from durable import Client, RunHandle, RunStatus, connect
from durable.store.records import CRASHES_MAX
from tests.crash.programs.deadly import AT_ONCE, calls, deadly, deadly_later, go, holds, neighbour
from tests.support.supervisor import FOR_EVER, PATIENCE, memory_limited, supervised
from tests.support.workers import until

SLOW = pytest.mark.slow  # they wait for limits to run out
AS_ON_SQLITE = pytest.mark.long_on_postgres  # who dies, and how, is not the store's affair
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
    "how",
    [
        "exit",
        pytest.param("abort", marks=AS_ON_SQLITE),
        pytest.param("sleep", marks=[SLOW, AS_ON_SQLITE]),
        pytest.param("lock", marks=[SLOW, AS_ON_SQLITE]),
    ],
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
        pytest.param("thread", "exit", "WorkerLostError", marks=AS_ON_SQLITE),
        pytest.param("thread", "lock", "WorkerLostError", marks=[SLOW, AS_ON_SQLITE]),
        pytest.param("async", "sleep", "WorkerLostError", marks=[SLOW, AS_ON_SQLITE]),
        ("async", "spin", "BlockedLoopError"),
        pytest.param("async", "recursion", "RecursionError", marks=AS_ON_SQLITE),
        pytest.param("thread", "recursion", "RecursionError", marks=AS_ON_SQLITE),
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


@SLOW
@pytest.mark.stores("sqlite")
@pytest.mark.parametrize("where", ["async", "thread"])
async def test_an_activity_that_the_kernel_kills_for_its_memory_fails_after_its_attempts(
    client: Client, url: str, tmp_path: Path, where: str
) -> None:
    """As by any other death of its worker: each costs it one, nobody else anything."""
    with memory_limited(300) as cgroup:
        async with supervised(url, tmp_path / "log", limit=FOR_EVER, cgroup=cgroup) as supervisor:
            neighbours = await with_neighbours(client)
            await until(lambda: all_wait(client), seconds=PATIENCE)
            run = await client.start(calls, where, "hunger", run_id="deadly")

            assert await run.result(PATIENCE) == "WorkerLostError"
            assert await finished(neighbours) == EXPECTED
        assert supervisor.ends[: AT_ONCE.max_attempts] == [-signal.SIGKILL] * AT_ONCE.max_attempts
    (entry,) = (await run.describe()).journal
    assert entry.attempts == AT_ONCE.max_attempts


@SLOW
@pytest.mark.stores("sqlite")
async def test_an_activity_that_asks_for_more_memory_than_there_is_fails_after_its_attempts(
    client: Client, url: str, tmp_path: Path
) -> None:
    """The system refuses it; should it refuse something to the worker just then, that may end, and costs an attempt as well."""
    async with supervised(url, tmp_path / "log", limit=FOR_EVER) as supervisor:
        neighbours = await with_neighbours(client)
        await until(lambda: all_wait(client), seconds=PATIENCE)
        run = await client.start(calls, "async", "greed", run_id="deadly")

        outcome = await run.result(PATIENCE)
        assert await finished(neighbours) == EXPECTED
    assert outcome in ("MemoryError", "WorkerLostError")
    assert len(supervisor.ends) <= AT_ONCE.max_attempts
    (entry,) = (await run.describe()).journal
    assert entry.attempts == AT_ONCE.max_attempts


# ─ the neighbours' pace ──


async def stuck(client: Client, where: str, how: str, mark: Path) -> RunHandle[Any]:
    """Start a run whose code does not give control back, and return when it has come to that."""
    how = f"{how}:{mark}"
    run: RunHandle[Any] = (
        await client.start(deadly, how) if where == "workflow" else await client.start(calls, where, how)
    )
    await until(mark.exists, seconds=PATIENCE)
    return run


@SLOW
@pytest.mark.stores("sqlite")
@pytest.mark.parametrize(
    ("where", "how"),
    [
        ("workflow", "spin"),
        ("workflow", "sleep"),
        ("workflow", "lock"),
        ("async", "spin"),
        ("async", "sleep"),
        ("thread", "lock"),
    ],
)
async def test_while_one_worker_is_stuck_the_runs_of_another_go_on(
    client: Client, url: str, tmp_path: Path, where: str, how: str
) -> None:
    """Nothing they need is held by it: all their steps come and go before it is even noticed, and nobody has to end."""
    limits = {"limit": FOR_EVER, "lease": FOR_EVER}
    async with supervised(url, tmp_path / "stuck", **limits) as one:
        run = await stuck(client, where, how, tmp_path / "mark")
        async with supervised(url, tmp_path / "other", **limits) as other:
            assert await finished(await with_neighbours(client)) == EXPECTED
            assert (await run.describe()).status == "running"
            assert (one.ends, other.ends) == ([], [])


@pytest.mark.parametrize("how", ["spin", "sleep"])
async def test_while_a_thread_is_stuck_the_runs_beside_it_go_on(
    client: Client, url: str, tmp_path: Path, how: str
) -> None:
    """In the same worker: the loop is not held up, and the activity is not over when they are."""
    async with supervised(url, tmp_path / "log") as supervisor:
        neighbours = await with_neighbours(client)
        await until(lambda: all_wait(client), seconds=PATIENCE)
        run = await stuck(client, "thread", how, tmp_path / "mark")

        assert await finished(neighbours) == EXPECTED
        (entry,) = (await run.describe()).journal
        assert entry.status == "running"
        assert supervisor.ends == []
