"""Batches: how much goes into one, how many are under way, and what never shares the time of another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from durable import Client, activity, activity_info, workflow
from tests.support.workers import AT_ONCE, running_worker, through_commit_turns, until


@activity
async def add(value: int) -> int:
    return value + 1


@workflow
async def count(steps: int) -> int:
    value = 0
    for _ in range(steps):
        value = await add(value)
    return value


@workflow
async def fan(width: int) -> int:
    return sum(await asyncio.gather(*[add(0) for _ in range(width)]))


class Watched:
    """Stands before a store's `commit_turns`: which runs each batch under way is about, and how large they were."""

    def __init__(self, store: Any) -> None:
        self.under_way: list[set[int]] = []
        self.sizes: list[int] = []
        self.at_once = 0
        self.shared: list[set[int]] = []
        self.hold: asyncio.Event | None = None
        through_commit_turns(store)
        self._store, self._real = store, store.commit_turns
        store.commit_turns = self._commit

    def restore(self) -> None:
        self._store.commit_turns = self._real

    async def _commit(self, worker_id: int, commits: Sequence[Any], now_us: int) -> Any:
        pks = {commit.pk for commit in commits}
        self.shared += [pks & others for others in self.under_way if pks & others]
        self.under_way.append(pks)
        self.sizes.append(len(commits))
        self.at_once = max(self.at_once, len(self.under_way))
        try:
            if self.hold is not None:
                await self.hold.wait()
            return await self._real(worker_id, commits, now_us)
        finally:
            self.under_way.remove(pks)


async def test_as_many_batches_as_the_store_takes_and_never_two_with_the_same_run(client: Client) -> None:
    """On a server one batch is written while the next is made; each is a share of what there is to write."""
    async with running_worker(client, count, fan, concurrency=200) as worker:
        watched = Watched(worker.life.store)
        runs = await client.start_many(count, [(5,)] * 200)
        wide = await client.start(fan, 300)

        assert [await run.result(60) for run in runs] == [5] * 200
        assert await wide.result(60) == 300
        watched.restore()

    assert watched.at_once == worker.life.store.commits_at_once
    assert watched.shared == []
    if worker.life.store.commits_at_once > 1:
        assert max(watched.sizes) <= 150


class Refusing:
    """Stands before a store's `commit_turns`: somebody holds the rows of all runs that only have marks to write, for a while."""

    def __init__(self, store: Any, times: int) -> None:
        self.times = times
        through_commit_turns(store)
        self._real = store.commit_turns
        store.commit_turns = self._commit

    async def _commit(self, worker_id: int, commits: Sequence[Any], now_us: int) -> list[Any]:
        refused = [one for one in commits if one.turn is None and one.attempts and self.times]
        self.times -= bool(refused)
        others = [one for one in commits if one not in refused]
        verdicts = iter(await self._real(worker_id, others, now_us) if others else ())
        return ["messages" if one in refused else next(verdicts) for one in commits]


async def test_marks_that_are_refused_are_written_again_and_nothing_begins_before(client: Client) -> None:
    """Whether they tell that an attempt failed or that the next begins; no attempt is lost, none made twice."""
    attempts: list[int] = []

    @activity(retry=AT_ONCE)
    async def flaky() -> int:
        attempts.append(activity_info().attempt)
        if len(attempts) < 3:
            raise ConnectionError("not yet")
        return 7

    @workflow
    async def patient() -> int:
        return await flaky()

    async with running_worker(client, patient) as worker:
        refusing = Refusing(worker.life.store, times=20)
        run = await client.start(patient)

        assert await run.result(60) == 7

    assert attempts == [1, 2, 3]
    assert refusing.times < 20


async def test_a_worker_that_stops_does_not_wait_for_marks_that_are_refused(client: Client) -> None:
    """They are tried once: whoever holds the run's row may hold it for ever."""
    stop = asyncio.Event()

    @activity(retry=AT_ONCE)
    async def failing() -> None:
        await stop.wait()
        raise ConnectionError("no")

    @workflow
    async def hopeless() -> None:
        await failing()

    async with running_worker(client, hopeless) as worker:
        await client.start(hopeless)
        await until(lambda: worker.life.driver.performer.running)
        refusing = Refusing(worker.life.store, times=1_000_000_000)
        stop.set()
        await until(lambda: refusing.times < 1_000_000_000)
        worker.stop(0)
        await asyncio.wait_for(worker.life.task, 60)


async def test_a_worker_that_stops_waits_for_its_batches_before_it_hands_back(client: Client) -> None:
    """What was on its way is known to be written, so nothing has to be doubted."""
    async with running_worker(client, count) as worker:
        watched = Watched(worker.life.store)
        watched.hold = asyncio.Event()
        run = await client.start(count, 3)
        await until(lambda: watched.under_way)
        worker.stop(0)
        stopping = asyncio.ensure_future(worker.life.task)
        await until(lambda: worker.life.committer._is_ending)
        assert not stopping.done()
        watched.hold.set()
        await stopping
        watched.restore()
        assert worker.life.committer.in_doubt == []
    async with running_worker(client, count):
        assert await run.result(60) == 3
