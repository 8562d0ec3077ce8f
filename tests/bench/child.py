"""The other processes of scenarios: `python -m tests.bench.child ROLE URL ...`; each answers in lines of JSON."""

from __future__ import annotations

import time

BEGAN = time.monotonic()

import asyncio  # noqa: E402  # imports are part of what is measured
import gc  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Coroutine, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, Final  # noqa: E402

from durable import Worker, configure, connect  # noqa: E402
from durable.client import Client  # noqa: E402
from durable.engine import guards  # noqa: E402
from durable.store.records import Message  # noqa: E402
from tests.bench.place import Stopwatch, served  # noqa: E402
from tests.bench.raw import CommitMeter, raw_rows_per_second  # noqa: E402
from tests.bench.workloads import chain, held, listening, sleeping, stuck  # noqa: E402

IMPORTED = time.monotonic()
SLOTS = 1000
WAVE = 100
STEPS_OF_A_RUN = 10


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


async def leave(url: str, runs: str, steps: str) -> None:
    """Bring runs to their wait and stay, to be killed."""
    async with served(url, concurrency=SLOTS) as (client, _, _meter):
        names = [f"bench-{number}" for number in range(int(runs))]
        await client.start_many(held, [(int(steps),)] * len(names), run_ids=names)
        for name in names:
            while not await _is_held(client, name):  # noqa: ASYNC110  # nothing tells of a wait
                await asyncio.sleep(0.02)
        say(ready=True)
        await asyncio.Event().wait()


async def _is_held(client: Client, run_id: str) -> bool:
    return any(blocker.kind == "signal" for blocker in (await client.describe(run_id)).waiting_on)


async def resume(url: str, run_id: str, steps: str) -> None:
    """Call a run again, as a script does after a crash."""
    configure(url)
    called = time.monotonic()
    await held(int(steps), run_id=run_id)
    say(began=BEGAN, imported=IMPORTED, called=called, ended=time.monotonic())


async def read(url: str, run_id: str) -> None:
    """What `resume` cannot avoid: open the database, read the journal, commit one row."""
    async with connect(url) as client:
        record = await client.store.get_run(run_id)
        rows = await client.store.read_journal(record.pk, record.generation)
        await raw_rows_per_second(client, batch=1, row_size=200, seconds=0.0, rows_min=1)
        say(began=BEGAN, imported=IMPORTED, ended=time.monotonic(), rows=len(rows))


async def finish(url: str, runs: str) -> None:
    """Serve until so many runs have been completed."""
    count = int(runs)
    async with connect(url) as client:
        meter = CommitMeter()
        meter.attach(client.store)
        async with Worker(client, chain, held, concurrency=SLOTS):
            served_at = time.monotonic()
            await meter.wait_closed(count)
            ended = time.monotonic()
    say(began=BEGAN, imported=IMPORTED, served=served_at, ended=ended, commits=meter.calls)


async def write(url: str, runs: str, batch: str) -> None:
    """What `finish` cannot avoid: open the database, commit so many rows."""
    async with connect(url) as client:
        rows_per_second = await raw_rows_per_second(client, batch=int(batch), row_size=200, seconds=0.0)
        ended = time.monotonic()
        say(began=BEGAN, imported=IMPORTED, ended=ended, seconds=int(runs) / rows_per_second)


async def serve(url: str) -> None:
    """Serve until standard input ends; then tell what was done."""
    async with served(url, concurrency=SLOTS) as (_client, _worker, meter):
        say(ready=True)
        await asyncio.to_thread(sys.stdin.read)
        say(
            calls=meter.calls,
            turns=meter.turns,
            row_bytes=meter.row_bytes,
            closed=meter.closed,
            commit_seconds=meter.seconds,
            cpu_seconds=time.process_time(),
        )


async def compute(url: str, guarded: str) -> None:
    """Drive a wave of runs for each line of standard input, with the guards or as if there were none; tell what it cost the loop."""
    if guarded == "no":  # an audit hook cannot be taken back, so it is never set in this process
        guards.install = guards.watch = lambda *_: None  # type: ignore[assignment]
    async with served(url, durability="process") as (client, _worker, meter):
        while await asyncio.to_thread(sys.stdin.readline):
            with Stopwatch(meter) as watch:
                handles = await client.start_many(chain, [(STEPS_OF_A_RUN,)] * WAVE)
                await asyncio.gather(*[handle.result() for handle in handles])
            say(steps=WAVE * STEPS_OF_A_RUN, loop_cpu=watch.loop_cpu, installed=bool(guards._installed))


def rss_mib() -> float:
    """Return the memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def rest(url: str, seconds: str) -> None:
    """Serve for a while with nothing to do; tell what that costs."""
    async with connect(url) as client, Worker(client, sleeping, concurrency=SLOTS):
        await asyncio.sleep(2)  # what a start costs is behind us
        began, cpu = time.monotonic(), time.process_time()
        await asyncio.sleep(float(seconds))
        share = (time.process_time() - cpu) / (time.monotonic() - began)
        say(rss_mib=rss_mib(), cpu_share=share)


async def wake(url: str) -> None:
    """Serve sleeping runs until standard input ends; then tell what was done."""
    from durable_cli.serving import COLLECTOR_THRESHOLDS  # not a part of what other roles import

    gc.set_threshold(*COLLECTOR_THRESHOLDS)  # as `durable worker` does
    async with connect(url) as client:
        meter = CommitMeter()
        meter.attach(client.store)
        async with Worker(client, sleeping, concurrency=SLOTS):
            say(ready=True)
            await asyncio.to_thread(sys.stdin.read)
            say(
                commits=meter.calls,
                closed=meter.closed,
                cpu_seconds=time.process_time(),
                rss_mib=rss_mib(),
            )


async def hold(url: str, runs: str, lease: str) -> None:
    """Own so many runs whose activities run, and stay, to be killed."""
    count = int(runs)
    async with (
        connect(url) as client,
        Worker(client, stuck, concurrency=count, lease_seconds=float(lease)) as worker,
    ):
        await client.start_many(stuck, [()] * count)
        while worker.life.performer.running < count:  # noqa: ASYNC110  # nothing tells of it
            await asyncio.sleep(0.01)
        say(ready=True, worker=worker.worker_id)
        await asyncio.Event().wait()


async def hear(url: str, run_id: str) -> None:
    """Serve a run that takes signals, until standard input ends; then tell when each of them was here."""
    heard: dict[str, float] = {}
    async with connect(url) as client:
        read_inbox = client.store.read_inbox

        async def noting(worker_id: int, pks: Sequence[int] | None = None) -> list[Message]:
            messages = await read_inbox(worker_id, pks)
            now = time.monotonic()
            for message in messages:
                heard.setdefault(message.message_id or "", now)
            return messages

        client.store.read_inbox = noting  # type: ignore[method-assign]  # for the length of a measurement
        async with Worker(client, listening):
            while not await _is_held(client, run_id):  # noqa: ASYNC110  # nothing tells of a wait
                await asyncio.sleep(0.02)
            say(ready=True)
            await asyncio.to_thread(sys.stdin.read)
        say(heard=heard)


ROLES: Final[dict[str, Callable[..., Coroutine[Any, Any, None]]]] = {
    "leave": leave,
    "resume": resume,
    "read": read,
    "finish": finish,
    "rest": rest,
    "wake": wake,
    "write": write,
    "serve": serve,
    "hold": hold,
    "hear": hear,
    "compute": compute,
}

if __name__ == "__main__":
    asyncio.run(ROLES[sys.argv[1]](*sys.argv[2:]))
