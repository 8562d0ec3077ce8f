"""Pauses: what runs may end and is recorded, nothing new begins, and a resume goes on as if nothing had been."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import Client, Retry, Run, RunHandle, Signal, WorkflowStateError, activity, sleep, workflow
from tests.support.workers import Calls, is_waiting, running_worker, until

approved = Signal("approved", bool)
calls = Calls()
gate = asyncio.Event()


@pytest.fixture(autouse=True)
def afresh() -> None:
    global gate
    calls.names.clear()
    gate = asyncio.Event()  # each test has a loop of its own


@activity
async def wait_at_the_gate(name: str) -> str:
    calls(name)
    await gate.wait()
    return name


@activity
async def note(name: str) -> str:
    calls(name)
    await asyncio.sleep(0.01)
    return name


@activity(retry=Retry(initial=3600, maximum=3600))
async def fail_once(name: str) -> str:
    if calls(name) == 1:
        raise ConnectionError("no line")
    return name


@workflow
async def two_steps() -> list[str]:
    return [await wait_at_the_gate("first"), await note("second")]


@workflow
async def endless() -> None:
    while True:
        await note("beat")


@workflow
async def retrying() -> str:
    return await fail_once("try")


@workflow
async def signalled() -> bool:
    answer = await approved.wait()
    await note("answered")
    return answer


@workflow
async def napping() -> str:
    await sleep(1.5)
    return await note("awake")


ALL = (two_steps, endless, retrying, signalled, napping)


async def is_held(run: RunHandle[Any]) -> Run:
    """Wait until a paused run is nobody's."""

    async def reached() -> Run | None:
        seen = await run.describe()
        return seen if seen.worker is None else None

    return await until(reached, what=f"{run} is handed back")  # type: ignore[return-value]  # not None: it was true


async def test_what_runs_ends_and_nothing_new_begins(client: Client) -> None:
    """The outcome is recorded, the next activity waits for the end of the pause; each ran once."""
    async with running_worker(client, *ALL) as worker:
        run = await client.start(two_steps)
        await until(lambda: calls.of("first"))
        await run.pause("ask ann")
        await until(lambda: run_is_told_paused(run))
        why = await run.why()
        assert (why.reason, why.name) == ("paused", "")
        assert "ask ann; wait_at_the_gate may end first" in why.text

        await until(lambda: all(live.is_held for live in worker.life.driver.runs.values()))
        gate.set()
        seen = await is_held(run)
        assert [(one.name, one.status) for one in seen.journal] == [
            ("wait_at_the_gate", "completed"),
            ("note", "scheduled"),
        ]
        assert seen.waiting_on[0].text.endswith("ago: ask ann")
        assert (seen.paused_at is not None, seen.pause_reason) == (True, "ask ann")
        assert calls.names == ["first"]

        await run.resume()
        assert await run.result(60) == ["first", "second"]
    assert calls.names == ["first", "second"]


async def run_is_told_paused(run: RunHandle[Any]) -> bool:
    return (await run.why()).reason == "paused"


@pytest.mark.parametrize("what", ["run", "task queue", "worker"])
async def test_a_busy_run_stops_within_a_second(client: Client, what: str) -> None:
    """Whatever of it is paused; and it goes on where it was."""
    async with running_worker(client, *ALL, name="web-1"):
        run = await client.start(endless)
        await until(lambda: calls.of("beat") > 3)
        took: list[float] = []
        while not took or (min(took) >= 1 and len(took) < 10):  # machines have other things to do, too
            took.append(await paused_and_resumed(client, run, what))
        await run.terminate()
    assert min(took) < 1


async def paused_and_resumed(client: Client, run: RunHandle[Any], what: str) -> float:
    """Return how long the pause took to be obeyed."""
    began = client.clock.monotonic()
    if what == "run":
        await run.pause()
    elif what == "task queue":
        assert await client.pause_task_queue("default")
    else:
        assert await client.pause_worker("web-1")
    await is_held(run)
    took = client.clock.monotonic() - began
    stopped_at = calls.of("beat")
    why = await run.why()
    assert (why.reason, why.name) == ("paused", {"run": "", "task queue": "default", "worker": "web-1"}[what])

    if what == "run":
        await run.resume()
    elif what == "task queue":
        assert await client.resume_task_queue("default")
    else:
        assert await client.resume_worker("web-1")
    await until(lambda: calls.of("beat") > stopped_at + 3)
    assert (await run.why()).reason != "paused"
    return took


async def test_the_runs_of_a_paused_worker_go_to_others(client: Client, url: str) -> None:
    """It lives on and claims nothing; a running activity ends where it is."""
    async with (
        Client(url, durability="off") as other,
        running_worker(client, *ALL, name="web-1"),
    ):
        run = await client.start(endless)
        await until(lambda: calls.of("beat") > 3)
        async with running_worker(other, *ALL, name="web-2"):
            await client.pause_worker("web-1")
            await until(lambda: has_worker(run, "web-2"))
            await run.terminate()
        assert [one.name for one in await client.workers()] == ["web-1"]


async def has_worker(run: RunHandle[Any], name: str) -> bool:
    return (await run.describe()).worker == name


async def test_a_retry_waits_for_the_end_of_the_pause(client: Client) -> None:
    """The count of attempts is kept."""
    async with running_worker(client, *ALL):
        run = await client.start(retrying)
        await until(lambda: calls.of("try"))
        await run.pause()
        seen = await is_held(run)
        assert [(one.status, one.attempts) for one in seen.journal] == [("retrying", 1)]
        assert await run.retry_now() == ["fail_once"]
        assert (await is_held(run)).journal[0].attempts == 1

        await run.resume()
        assert await run.result(60) == "try"
        seen = await run.describe()
    assert [(one.status, one.attempts) for one in seen.journal] == [("completed", 2)]


async def test_signals_and_timers_wait_for_the_end_of_the_pause(client: Client) -> None:
    """None is lost."""
    async with running_worker(client, *ALL):
        waiting, sleeper = await client.start(signalled), await client.start(napping)
        await is_waiting(waiting, "signal")
        for run in (waiting, sleeper):
            await run.pause()
            await is_held(run)
        await waiting.signal(approved, True)
        await until(lambda: is_due(client, sleeper.run_id))
        assert calls.names == []

        for run in (waiting, sleeper):
            await run.resume()
        assert await waiting.result(60) is True
        assert await sleeper.result(60) == "awake"


async def is_due(client: Client, run_id: str) -> bool:
    return (await client.store.get_run(run_id)).due_at_us is None


async def test_an_embedded_engine_obeys_pauses_of_its_queue(embedded: str) -> None:
    """A plain script's call waits, even if the run begins during the pause."""
    async with Client(embedded) as client:
        await client.pause_task_queue("default", "deploying")
        gate.set()
        calling = asyncio.ensure_future(two_steps(run_id="r"))
        run: RunHandle[Any] = await until(lambda: found(client, "r"))
        await is_held(run)
        assert not calling.done()

        await client.resume_task_queue("default")
        assert await calling == ["first", "second"]


async def found(client: Client, run_id: str) -> RunHandle[Any] | None:
    return await client.get(run_id) if await client.list(run_id=run_id) else None


async def test_resuming_what_is_not_paused(client: Client) -> None:
    """A run: an error that says what it is. Queues and workers: False."""
    run = await client.start(endless)
    with pytest.raises(WorkflowStateError, match="is pending: only a paused or parked run can be resumed"):
        await run.resume()
    assert not await client.resume_task_queue("default")
    assert not await client.resume_worker("nobody")
