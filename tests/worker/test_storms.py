"""Everything at once under one seed: two workers, small caches, failing and late commits, declared deaths, signals.

Whatever happens, each run ends with the value its plan says, its journal has no gap and replays to the same end. More seeds:
`STORM_SEEDS=0-500 pytest tests/worker/test_storms.py`.
"""

from __future__ import annotations

import asyncio
import os
import random
from contextlib import AsyncExitStack
from typing import Any, Final

import pytest

from durable import Client, Retry, RunHandle, Signal, StoreError, Worker, activity, activity_info, workflow
from durable.engine.instance import Instance
from durable.engine.runtime import RunIdentity
from durable.journal.turns import Activated, joined, split_activations
from durable.worker import committing
from durable.worker import life as life_module
from tests.support.workers import declare_dead, no_durability, running_worker, through_commit_turns, until

RUNS: Final = 15
STEPS: Final = ("call", "retry", "sleep", "signal", "gather", "timeout", "thread", "relapse")

number = Signal("number", int)
failed_once: set[str] = set()
persistent = Retry(max_attempts=0, initial=0.003, maximum=0.01)


def seeds() -> list[int]:
    first, _, last = os.environ.get("STORM_SEEDS", "0-3").partition("-")
    return list(range(int(first), int(last)))


@activity(retry=persistent)
async def work(key: str, failures: int, seconds: float) -> str:
    await asyncio.sleep(seconds)
    if activity_info().attempt <= failures:
        raise OSError(key)
    return key


@activity(retries=0)
async def fails_once(key: str) -> str:
    """Fail the first time, so that the whole workflow is tried again."""
    idempotency_key = activity_info().idempotency_key
    if idempotency_key not in failed_once:
        failed_once.add(idempotency_key)
        raise OSError(key)
    return key


@activity(retry=persistent)
def in_thread(key: str) -> str:
    return key


@workflow(retries=100, retry_delay=0)
async def life(plan: list[str]) -> list[Any]:
    """Do what the plan says and tell what came of each step."""
    return [await one_step(kind, f"{position}") for position, kind in enumerate(plan)]


async def one_step(kind: str, key: str) -> Any:
    match kind:
        case "call":
            return await work(key, 0, 0)
        case "retry":
            return await work(key, 2, 0.001)
        case "sleep":
            return await asyncio.sleep(0.004, "slept")
        case "signal":
            return await number.wait()
        case "gather":
            return await asyncio.gather(*(work(f"{key}.{j}", j % 2, 0.001) for j in range(4)))
        case "timeout":
            try:
                async with asyncio.timeout(0.003):
                    return await work(key, 0, 60)
            except TimeoutError:
                return "late"
        case "relapse":
            return await fails_once(key)
        case _:
            return await in_thread(key)


def expected(plan: list[str]) -> list[Any]:
    """Return what a run of this plan must give, whatever happened to it."""
    values: list[Any] = []
    for position, kind in enumerate(plan):
        match kind:
            case "sleep":
                values.append("slept")
            case "timeout":
                values.append("late")
            case "signal":
                values.append(plan[:position].count("signal"))
            case "gather":
                values.append([f"{position}.{j}" for j in range(4)])
            case _:
                values.append(f"{position}")
    return values


class Weather:
    """What goes wrong, decided by one seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.trouble = self.chance.choice(["none", "error", "lost reply", "slow", "all"])
        self.deaths = self.chance.choice([0, 0, 2, 4])
        self.capacity = self.chance.choice([5, 10, 10_000])

    def spoil(self, worker: Worker) -> None:
        """Make commits of this worker fail now and then, before or after they are written, or take their time."""
        through_commit_turns(worker.life.store)
        real = worker.life.store.commit_turns

        async def commit(*arguments: Any) -> Any:
            die = self.chance.random()
            if self.trouble in ("error", "all") and die < 0.05:
                raise StoreError("nothing was written")
            verdicts = await real(*arguments)
            if self.trouble in ("slow", "all") and die < 0.4:
                await asyncio.sleep(self.chance.choice([0, 0, 0.001, 0.003]))
            if self.trouble in ("lost reply", "all") and die > 0.95:
                raise StoreError("the reply was lost")
            return verdicts

        worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # faults injected

    async def strike(self, client: Client, workers: list[Worker]) -> None:
        """Declare workers dead, at random moments."""
        for _ in range(self.deaths):
            await asyncio.sleep(self.chance.random() * 0.1)
            worker = self.chance.choice(workers)
            dead = await declare_dead(client, worker)
            await until(lambda dead=dead, worker=worker: worker.worker_id not in (0, dead))

    async def one_run(self, clients: list[Client], run_id: str) -> tuple[RunHandle[list[Any]], list[str]]:
        """Start a run with a plan of its own, and send it the signals that the plan waits for."""
        plan = [self.chance.choice(STEPS) for _ in range(self.chance.randint(1, 7))]
        run = await clients[0].start(life, plan, run_id=run_id)
        for value in range(plan.count("signal")):
            await asyncio.sleep(self.chance.choice([0, 0.001, 0.01, 0.03]))
            await self.chance.choice(clients).signal(run_id, number, value)
        return run, plan


@pytest.mark.parametrize("seed", seeds())
async def test_runs_end_with_what_their_plan_says_whatever_happens(
    client: Client, url: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1, I2, I3, I15 and I17 together: right values, no gap, no stuck run, journals that replay."""
    weather = Weather(seed)
    failed_once.clear()
    monkeypatch.setattr(committing, "TROUBLE_SECONDS", 0.01)
    monkeypatch.setattr(life_module, "HOUSEKEEPING_SECONDS", 0.02)

    async with AsyncExitStack() as stack:
        other = await stack.enter_async_context(no_durability(url))
        clients = [client, other]
        workers = []
        for one in clients:
            warm_us, concurrency = weather.chance.choice([0, 1000, None]), weather.chance.choice([2, 5, 50])
            context = running_worker(
                one, life, warm_us=warm_us, concurrency=concurrency, max_runs=weather.capacity
            )
            workers.append(await stack.enter_async_context(context))
        for worker in workers:
            through_commit_turns(worker.life.store)
        commits = [worker.life.store.commit_turns for worker in workers]
        for worker in workers:
            weather.spoil(worker)
        struck = asyncio.ensure_future(weather.strike(client, workers))
        runs = await asyncio.gather(*(weather.one_run(clients, f"r{position}") for position in range(RUNS)))

        for run, plan in runs:
            assert await run.result(60) == expected(plan), (run, plan)
        await struck
        for worker, commit in zip(workers, commits, strict=True):
            worker.life.store.commit_turns = commit  # type: ignore[method-assign]  # as it was
    for run, _ in runs:
        await replays(client, run.run_id)


async def replays(client: Client, run_id: str) -> None:
    """Feed the journal to today's code, from the first turn to the last."""
    record = await client.store.get_run(run_id)
    rows = await client.store.read_journal(record.pk, record.generation)
    assert [row.turn for row in rows] == list(range(1, len(rows) + 1))
    instance = Instance(RunIdentity.of(record), life.definition, record.input)
    for activated in split_activations(joined(rows)):
        if isinstance(activated, Activated) and instance.end is None:
            instance.replay(activated)
    assert instance.end is not None
    assert not instance.warnings
    instance.evict()
