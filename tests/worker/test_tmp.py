import asyncio, random, logging
from durable import *
import durable
from tests.support.workers import *

async def test_lost_twice(client):
    sig=Signal("s",int)
    @workflow
    async def flow() -> int:
        return await sig.wait()
    async with running_worker(client, flow, warm_us=None) as w:
        h = await client.start(flow)
        await is_waiting(h,"signal")
        old = w._incarnation
        await declare_dead(client, w)
        wid = old.worker_id
        await until(lambda: w.worker_id != wid)
        new = w.worker_id
        old._on_lost()     # heartbeat thread's late word
        await asyncio.sleep(0.1)
        assert w.worker_id == new
        await h.signal(sig, 3)
        assert await h.result(timeout=5) == 3

async def test_cancel_swallow(client):
    @workflow
    async def flow() -> str:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
        return "swallowed"
    async with running_worker(client, flow) as w:
        h = await client.start(flow)
        await is_released(h)
        await h.cancel("x")
        print(await h.result(timeout=5))

async def test_cancelled_later(client):
    @activity(retries=0)
    async def boom() -> int:
        raise asyncio.CancelledError("me")
    @workflow
    async def flow() -> str:
        await boom()
    async with running_worker(client, flow) as w:
        h = await client.start(flow)
        try: print(await h.result(timeout=5))
        except BaseException as e: print(repr(e), repr(e.__cause__))

async def test_wf_cancelled(client):
    @workflow
    async def flow() -> str:
        raise asyncio.CancelledError("me")
    async with running_worker(client, flow) as w:
        h = await client.start(flow)
        try: print(await h.result(timeout=5))
        except BaseException as e: print(repr(e), repr(e.__cause__))

async def test_retry_gen(client):
    n=[]
    @activity(retries=0)
    async def first() -> int:
        n.append("first"); return 1
    @activity(retries=0)
    async def second() -> int:
        n.append("second")
        if n.count("second") < 3: raise RuntimeError("no")
        return 2
    @workflow(retries=3, retry_delay=0.01)
    async def flow() -> list[int]:
        a = await first()
        b = await second()
        return [a,b,durable.info().attempt]
    async with running_worker(client, flow) as w:
        h = await client.start(flow, run_id="g")
        print(await h.result(timeout=10), n)
        d = await h.describe()
        print(d)
        for i in (1,2,3):
            print(i, (await client.describe(f"g@{i}")).status)

async def test_retry_while_cancel_pending(client):
    sig=Signal("s",int)
    @activity(retries=0)
    async def second() -> int:
        raise RuntimeError("no")
    @workflow(retries=1, retry_delay=0.01)
    async def flow() -> list[int]:
        a = await sig.wait()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            await second()
        return [a]
    async with running_worker(client, flow) as w:
        h = await client.start(flow, run_id="g")
        await h.signal(sig,4)
        await is_waiting(h,"timer")
        await h.cancel("why")
        try: print(await h.result(timeout=10))
        except BaseException as e: print(repr(e), repr(e.__cause__))
        print(await h.events())

async def test_timeout_async(client):
    @activity(timeout=0.05, retry=AT_ONCE)
    async def act() -> int:
        if activity_info().attempt < 3:
            await asyncio.sleep(100)
        return activity_info().attempt
    @workflow
    async def flow() -> int:
        return await act()
    async with running_worker(client, flow) as w:
        h = await client.start(flow, run_id="g")
        print(await h.result(timeout=10))

async def test_systemexit(client):
    @activity(retries=0)
    async def act() -> int:
        raise SystemExit(3)
    @activity(retries=0)
    def act2() -> int:
        raise KeyboardInterrupt
    @workflow
    async def flow(i:int) -> int:
        if i == 0: await act()
        if i==1: await act2()
        if i==2: raise SystemExit(4)
        if i==3: raise GeneratorExit
    async with running_worker(client, flow) as w:
        for i in range(4):
            h = await client.start(flow, i)
            try: print(await h.result(timeout=3))
            except BaseException as e: print(repr(e), repr(e.__cause__))
