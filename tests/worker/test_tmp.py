import asyncio, random
import pytest
from typing import Any
import durable
from durable import *
from durable.default import engine_here
from tests.support.workers import *

number = Signal("number", int)

async def test_gen(client):
    n=0
    @activity(retries=0)
    async def fails() -> int:
        nonlocal n
        n+=1
        if n==1: raise OSError
        return 5
    @workflow(retries=1, retry_delay=0)
    async def works() -> int:
        return await fails() + await number.wait()
    async with running_worker(client, works) as worker:
        real = worker._store.commit_turns
        async def commit(*a):
            v = await real(*a)
            worker._wakeups.hint()
            await asyncio.sleep(0.02)
            return v
        worker._store.commit_turns = commit
        run = await client.start(works)
        await until(lambda: n == 2)
        await asyncio.sleep(0.1)
        await run.signal(number, 1)
        assert await run.result(5) == 6

async def test_wait(client):
    @workflow
    async def works() -> int:
        return await number.wait()+await number.wait()
    async with running_worker(client, works, warm_us=0) as worker:
        real = worker._store.commit_turns
        sent=False
        async def commit(w, commits, now):
            nonlocal sent
            v = await real(w, commits, now)
            if not sent and any(type(c.after).__name__=="Wait" for c in commits):
                sent=True
                await run.signal(number, 5)
                await asyncio.sleep(0.02)
            return v
        worker._store.commit_turns = commit
        run = await client.start(works)
        await until(lambda: sent)
        await asyncio.sleep(0.1)
        await run.signal(number, 1)
        assert await run.result(5) == 6

async def test_cancelled_start(embedded):
    @workflow
    async def works() -> int:
        return 5
    e = await engine_here()
    await e.worker()
    store = e.client.store
    real = store.start_runs
    async def slow(*a):
        v = await real(*a)
        await asyncio.sleep(0.05)
        return v
    store.start_runs = slow
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await works(run_id="w")
    store.start_runs = real
    assert await asyncio.wait_for(works(run_id="w"), 5) == 5

async def test_cancelled_begin(embedded):
    @workflow
    async def works() -> int:
        return 5
    for i in range(30):
        t = asyncio.ensure_future(works(run_id=f"w{i}"))
        for _ in range(i): await asyncio.sleep(0)
        t.cancel()
        try: await t
        except asyncio.CancelledError: pass
    assert await asyncio.wait_for(works(run_id="w"), 5) == 5
    for i in range(30):
        assert await asyncio.wait_for(works(run_id=f"w{i}"), 5) == 5
    e = await engine_here()
    print(await e.client.workers())
    assert len(await e.client.workers())==1
