"""A test's own place: time is skipped, activities may be mocked, everything else is the production's."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import durable
from durable import (
    ActivityTimeoutError,
    NonRetryableError,
    Pipeline,
    Retry,
    Signal,
    Worker,
    WorkflowFailedError,
    WorkflowTimeoutError,
    activity,
    workflow,
)
from durable.errors import DefinitionError
from durable.testing import Environment

approved = Signal("approved", str)
DAY = 86_400


@activity
async def charge(order: str, cents: int) -> str:
    raise NonRetryableError("a test must not reach the bank")


@activity(timeout=60, retry=Retry(max_attempts=5, initial=3600, maximum=DAY))
async def ship(order: str) -> str:
    return f"shipped {order}"


@activity
def pack(state: dict[str, Any]) -> str:
    raise NonRetryableError("a test must not reach the warehouse")


@activity
async def label(state: dict[str, Any]) -> str:
    return f"label on {state['pack']}"


@workflow
async def month(times: int, each: timedelta) -> float:
    began = durable.now()
    for _ in range(times):
        await durable.sleep(each)
    return (durable.now() - began).total_seconds()


@workflow
async def order(name: str) -> str:
    payment = await charge(name, 1200)
    by = await approved.wait(timeout=7 * DAY, default="nobody")
    return f"{payment} by {by}, {await ship.options(timeout=30)(name)}"


@workflow
async def shipping(name: str) -> str:
    return await ship(name)


@workflow(timeout=3 * DAY)
async def impatient() -> None:
    await approved.wait()


async def test_thirty_days_pass_in_no_time(url: str) -> None:
    """The clock is set forward to each timer in turn, while the test waits for the result."""
    async with Environment(url) as env:
        before, since = env.now(), time.monotonic()
        slept = await month(30, timedelta(days=1))
        took = time.monotonic() - since

        assert slept >= 30 * DAY
        assert timedelta(days=30) <= env.now() - before < timedelta(days=30, minutes=1)
        assert took < 60


async def test_a_workflow_of_thirty_days_takes_less_than_a_tenth_of_a_second(url: str) -> None:
    """The best of several, as machines have other things to do, too."""
    took: list[float] = []
    async with Environment(url):
        while not took or (min(took) >= 0.1 and len(took) < 100):
            since = time.monotonic()
            await month(1, timedelta(days=30))
            took.append(time.monotonic() - since)

    assert min(took) < 0.1


async def test_a_signal_that_is_sent_before_is_delivered_before_the_timeout(url: str) -> None:
    """No time is skipped until the test waits for something."""
    async with Environment(url) as env:
        env.mock(charge, returns="p-1")
        run = await order.start("o-7")
        await asyncio.sleep(0.05)
        await run.signal(approved, "ann")

        assert await run.result() == "p-1 by ann, shipped o-7"


async def test_a_wait_times_out_when_nobody_signals(url: str) -> None:
    async with Environment(url) as env:
        env.mock(charge, returns="p-1")

        assert await order("o-8") == "p-1 by nobody, shipped o-8"


async def test_sleeping_lets_what_is_due_happen(url: str) -> None:
    """`env.sleep` is time that passes for the test: with it come the timers within, and not those behind."""
    async with Environment(url) as env:
        env.mock(charge, returns="p-1")
        run = await order.start("o-9")
        await env.sleep(timedelta(days=6))
        assert (await run.describe()).status == "waiting"
        await env.sleep(timedelta(days=2))

        assert (await run.describe()).status == "completed"


async def test_mocked_activities_fail_are_retried_and_tell_of_their_calls() -> None:
    """The retry policy is the activity's own; its hours pass at once."""
    async with Environment() as env:
        mock = env.mock(ship, returns="on its way", raises=OSError("no carrier"), times=3)
        before = env.now()

        assert await shipping("o-1") == "on its way"
        assert [call.args for call in mock.calls] == [("o-1",)] * 4
        assert [call.attempt for call in mock.calls] == [1, 2, 3, 4]
        assert len({call.key for call in mock.calls}) == 1
        assert env.now() - before >= timedelta(hours=1 + 2 + 4)


async def test_a_mock_that_takes_long_times_out() -> None:
    """A mock's delay passes on the clock that limits attempts; a limit within it strikes first."""
    async with Environment() as env:
        mock = env.mock(ship, returns="late", delay=61)

        with pytest.raises(WorkflowFailedError) as failed:
            await shipping("o-1")

        assert isinstance(failed.value.__cause__, ActivityTimeoutError)
        assert len(mock.calls) == 5


async def test_a_mock_may_be_a_function_and_may_stand_for_a_name() -> None:
    async with Environment() as env:
        env.mock(charge, lambda name, cents: f"{name}: {cents}")
        env.mock("ship", returns="by name")

        assert await order("o-2") == "o-2: 1200 by nobody, by name"


async def test_a_mock_stands_for_the_step_of_a_pattern() -> None:
    """Also where a pattern has made an activity of its own of it."""
    flow = Pipeline("flow", [pack, label])
    async with Environment() as env:
        mock = env.mock(pack, lambda state: f"box of {state['order']}")

        assert await flow.execute({"order": "o-3"}) == "label on box of o-3"
        assert len(mock.calls) == 1


async def test_a_result_of_another_type_than_the_activity_s_fails_it() -> None:
    """A mock is held to the same types as what it stands for: a test must not pass with values that production never sees."""
    async with Environment() as env:
        env.mock(charge, returns=7)  # type: ignore[type-var]

        with pytest.raises(WorkflowFailedError):
            await order("o-4")


async def test_deadlines_and_delayed_starts_come_at_once(url: str) -> None:
    async with Environment(url) as env:
        with pytest.raises(WorkflowTimeoutError):
            await impatient()
        async with Worker(env.client, shipping):
            run = await env.client.start(shipping, "o-5", delay=timedelta(days=10))

            assert await run.result() == "shipped o-5"


async def test_code_that_runs_holds_the_clock_up() -> None:
    """An activity that is at work may need the time; only what waits is skipped."""
    going, go = asyncio.Event(), asyncio.Event()

    @activity
    async def working() -> None:
        going.set()
        await go.wait()

    @workflow
    async def both() -> str:
        try:
            async with asyncio.timeout(DAY):
                await working()
        except TimeoutError:
            return "too late"
        return "done"

    async with Environment():
        run = await both.start()
        result = asyncio.ensure_future(run.result())
        await going.wait()
        await asyncio.sleep(0.05)
        go.set()

        assert await result == "done"


async def test_the_clock_may_start_at_any_time() -> None:
    async with Environment(start=datetime(2030, 1, 1, tzinfo=UTC)) as env:
        await month(31, timedelta(days=1))

        assert env.now().replace(minute=0, second=0, microsecond=0) == datetime(2030, 2, 1, tzinfo=UTC)


async def test_an_environment_leaves_nothing_behind(embedded: str) -> None:
    """Afterwards the default engine is the default engine."""
    async with Environment() as env:
        await shipping("o-6", run_id="here")
        file = env.client.url.removeprefix("sqlite:///")

    with pytest.raises(durable.RunNotFoundError):
        await durable.get_run("here")
    with pytest.raises(DefinitionError):
        env.client  # noqa: B018
    with pytest.raises(FileNotFoundError), open(file):  # noqa: ASYNC230
        pass


async def test_an_activity_of_another_queue_is_performed_here() -> None:
    """A test has no other workers: the worker of the run performs all there is, mocked or not."""

    @activity(task_queue="gpu")
    async def train() -> int:
        return 1

    @workflow
    async def learns() -> int:
        return await train()

    async with Environment() as env:
        assert await learns() == 1
        env.mock(train, returns=2)
        assert await learns() == 2
