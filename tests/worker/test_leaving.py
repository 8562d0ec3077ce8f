"""A run leaves its worker while code of it runs: that has ended before it is written what became of it.

Else a body that acts, or ends well, while that is on its way into the database would be begun again by the next owner, though nothing had died.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

import pytest

from durable import Client, Signal, StoreError, UndecodableError, Worker, activity, activity_info, workflow
from durable.store.records import HandBack, Park, Wait
from tests.support.workers import AT_ONCE, Calls, is_waiting, running_worker, through_commit_turns, until

How = Literal["parks", "is detached", "is drained", "is drained elsewhere"]
HOWS: tuple[How, ...] = ("parks", "is detached", "is drained", "is drained elsewhere")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is told to stop has all the time it needs, however busy the machine is."""
    monkeypatch.setattr("durable.worker.driving.LEAVE_SECONDS", 60.0)
    monkeypatch.setattr("durable.worker.life.UNWIND_SECONDS", 60.0)
    monkeypatch.setattr("durable.worker.life.THREADS_SECONDS", 60.0)


class Body:
    """The body of an activity, in its first life held up at a place where it is about to act."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.attempts: list[int] = []
        self.may_act, self.is_over = threading.Event(), threading.Event()

    async def waits(self) -> int:
        """A coroutine."""
        self.attempts.append(activity_info().attempt)
        try:
            await until(self.may_act.is_set)
            return self.acts()
        finally:
            self.is_over.set()

    def blocks(self) -> int:
        """A thread."""
        self.attempts.append(activity_info().attempt)
        try:
            while not self.may_act.is_set():
                time.sleep(0.001)
            return self.acts()
        finally:
            self.is_over.set()

    async def finishes(self) -> int:
        """A coroutine that acts, and returns, once it is told to stop."""
        self.attempts.append(activity_info().attempt)
        try:
            await until(self.may_act.is_set)
        except asyncio.CancelledError:
            await asyncio.sleep(0.01)
        return self.acts()

    def acts(self) -> int:
        self.calls("charge")
        return 7


def held_up(store: Any, body: Body) -> None:
    """Have a store hold up whatever makes a run leave, until the body has had every chance to act."""
    through_commit_turns(store)
    commits, ends = store.commit_turns, store.end_tasks

    async def has_its_chance() -> None:
        body.may_act.set()
        await until(body.is_over.is_set)
        await asyncio.sleep(0.02)  # what it came to has been taken in

    async def commit_turns(worker_id: int, items: Any, now_us: int) -> Any:
        if any(type(item.after) in (Park, HandBack, Wait) for item in items):
            await has_its_chance()
        return await commits(worker_id, items, now_us)

    async def end_tasks(worker_id: int, items: Any, now_us: int) -> Any:
        if any(item.how == "handed_back" for item in items):
            await has_its_chance()
        return await ends(worker_id, items, now_us)

    store.commit_turns, store.end_tasks = commit_turns, end_tasks


def program(body: Callable[..., Any], hint: Any, how: How) -> Any:
    """Return a workflow that waits for `body` and for a signal, and the activity."""
    charge = activity(
        body, name="charge", retries=0, task_queue="cpu" if how == "is drained elsewhere" else None
    )

    @workflow
    async def charges() -> object:
        async with asyncio.TaskGroup() as group:
            charged = group.create_task(charge())
            told = group.create_task(Signal("told", hint).wait())
        return [charged.result(), told.result()]

    return charges, charge


async def leaves(how: How, run: Any, worker: Worker) -> None:
    if how == "parks":
        await run.signal("told", "text")
        with pytest.raises(UndecodableError):
            await run.result(60)
    elif how == "is detached":
        ((pk, live),) = worker.life.driver.runs.items()
        worker.detach(pk)
        await until(lambda: worker.life.driver.runs.get(pk) is not live)
    else:
        worker.stop(0)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", ["waits", "blocks"])
async def test_code_acts_no_more_once_it_is_written_that_it_is_given_up(
    kind: str, how: How, client: Client
) -> None:
    """It is begun again, uncharged, by whoever goes on: what it did meanwhile would be done twice (I5)."""
    body = Body()
    bad, charge = program(getattr(body, kind), int, how)
    options: dict[str, Any] = {"activities": [charge], "task_queue": ["default", "cpu"]}
    real = client.store.commit_turns, client.store.commit_turns_now, client.store.end_tasks
    async with running_worker(client, bad, **options) as worker:
        run = await client.start(bad, run_id="r")
        await until(lambda: body.attempts)
        held_up(client.store, body)
        await leaves(how, run, worker)
        if how == "is detached":
            worker.stop(0)
    await until(body.is_over.is_set)
    store: Any = client.store
    store.commit_turns, store.commit_turns_now, store.end_tasks = real
    if how != "parks":
        await run.signal("told", "text")
    else:
        await run.resume()

    good, charge = program(getattr(body, kind), str, how)
    async with running_worker(client, good, **(options | {"activities": [charge]})):
        assert await run.result(60) == [7, "text"]
    assert body.calls.names == ["charge"]
    assert body.attempts == [1, 1]


async def test_code_that_does_not_end_holds_up_nobody_for_long(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever awaits a run that parks is told soon, whatever its code makes of being told to stop."""
    monkeypatch.setattr("durable.worker.driving.LEAVE_SECONDS", 0.05)
    told, may_end = asyncio.Event(), asyncio.Event()

    async def goes_on() -> int:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                told.set()
        return 7

    bad, _ = program(goes_on, int, "parks")
    async with running_worker(client, bad) as worker:
        run = await client.start(bad)
        await until(lambda: worker.running)
        await leaves("parks", run, worker)
        assert told.is_set()
        assert not worker.life.driver.runs
        may_end.set()


async def test_what_was_stopped_for_a_run_that_could_not_leave_at_once_is_not_charged(client: Client) -> None:
    """The commit that parks the run fails, and is made again: nothing is begun in between, nothing is charged."""
    body = Body()
    bad, _ = program(body.waits, int, "parks")
    through_commit_turns(client.store)
    store: Any = client.store
    commits, failed = store.commit_turns, []

    async def commit_turns(worker_id: int, items: Any, now_us: int) -> Any:
        if not failed and any(type(item.after) is Park for item in items):
            failed.append(now_us)
            raise StoreError("the disk was full")
        return await commits(worker_id, items, now_us)

    async with running_worker(client, bad) as worker:
        run = await client.start(bad)
        await until(lambda: body.attempts)
        store.commit_turns = commit_turns
        await leaves("parks", run, worker)
    assert failed
    assert body.attempts == [1]
    (entry, _) = (await run.describe()).journal
    assert entry.attempts == 0


@pytest.mark.parametrize("how", ["is detached", "is drained"])
async def test_a_run_that_gets_a_message_as_it_leaves_is_handed_back(how: How, client: Client) -> None:
    """It does not rest with a message unread, and whoever let it go reads nothing any more: it is ready for others (P2)."""

    @workflow
    async def waits() -> str:
        return await Signal("told", str).wait()

    through_commit_turns(client.store)
    store: Any = client.store
    commits, sent = store.commit_turns, []
    async with running_worker(client, waits) as worker:
        run = await client.start(waits, run_id="r")
        await is_waiting(run, "signal")

        async def commit_turns(worker_id: int, items: Any, now_us: int) -> Any:
            if not sent and any(type(item.after) is Wait for item in items):
                sent.append(now_us)
                await run.signal("told", "text")
            return await commits(worker_id, items, now_us)

        store.commit_turns = commit_turns
        await leaves(how, run, worker)
        if how == "is drained":
            await until(lambda: worker.life.is_over)
            assert (await run.describe()).worker is None
    assert sent
    async with running_worker(client, waits):
        assert await run.result(60) == "text"


@pytest.mark.parametrize("how", HOWS)
async def test_what_a_body_comes_to_that_was_told_to_stop_counts(how: How, client: Client) -> None:
    """It has acted, and ended well: that is recorded, or kept for whoever goes on, and nobody begins it again (I5)."""
    body = Body()
    bad, charge = program(body.finishes, int, how)
    options: dict[str, Any] = {"activities": [charge], "task_queue": ["default", "cpu"]}
    async with running_worker(client, bad, **options) as worker:
        run = await client.start(bad, run_id="r")
        await until(lambda: body.attempts)
        await leaves(how, run, worker)
        if how == "is detached":
            worker.stop(0)
    if how != "parks":
        await run.signal("told", "text")
    else:
        await run.resume()

    good, charge = program(body.finishes, str, how)
    async with running_worker(client, good, **(options | {"activities": [charge]})):
        assert await run.result(60) == [7, "text"]
    assert body.calls.names == ["charge"]
    assert body.attempts == [1]


async def test_what_begins_with_a_commit_that_is_on_its_way_gets_the_grace(client: Client) -> None:
    """A worker that is to stop does not interrupt what it has just begun: that would have acted, and be begun again."""
    ended = Calls()

    @activity(retry=AT_ONCE)
    async def works() -> str:
        if activity_info().attempt == 1:
            raise OSError("not yet")
        for _ in range(100):
            await asyncio.sleep(0)
        ended("works")
        return "done"

    @workflow
    async def tries_again() -> str:
        return await works()

    through_commit_turns(client.store)
    store: Any = client.store
    commits, stopped = store.commit_turns, []
    async with running_worker(client, tries_again) as worker:

        async def commit_turns(worker_id: int, items: Any, now_us: int) -> Any:
            if not stopped and any(item.marked for item in items):
                stopped.append(now_us)
                worker.stop(60)
                await asyncio.sleep(0.2)  # a worker that sees nothing under way has ended its grace by now
            return await commits(worker_id, items, now_us)

        store.commit_turns = commit_turns
        run = await client.start(tries_again)
        await until(lambda: worker.life.is_over)
    store.commit_turns = commits
    assert ended.names == ["works"]
    async with running_worker(client, tries_again):
        assert await run.result(60) == "done"
    assert ended.names == ["works"]
