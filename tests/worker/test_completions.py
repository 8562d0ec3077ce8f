"""Activities that somebody outside completes, by their task token: from any process, once, and whatever dies meanwhile."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from durable import (
    ActivityClosedError,
    ActivityTimeoutError,
    ArgumentsError,
    Client,
    DefinitionError,
    NonRetryableError,
    Retry,
    Signal,
    UndecodableError,
    WorkflowFailedError,
    activity,
    activity_info,
    raise_complete_async,
    workflow,
)
from durable.journal.why import WhyReason
from tests.support.workers import (
    AT_ONCE,
    declare_dead,
    is_released,
    is_waiting,
    no_durability,
    running_worker,
    until,
)

go = Signal("go", int)


class Desk:
    """Where tokens land: somebody's in-tray."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.attempts: list[int] = []
        self.details: list[tuple[Any, ...]] = []

    def put(self) -> None:
        info = activity_info()
        self.tokens.append(info.task_token)
        self.attempts.append(info.attempt)
        self.details.append(info.heartbeat_details)

    async def token(self, number: int = 1) -> str:
        await until(lambda: len(self.tokens) >= number)
        return self.tokens[number - 1]


def asking(desk: Desk, **options: Any) -> Any:
    """Return a workflow that asks a person, and the activity behind it."""
    options.setdefault("retry", AT_ONCE)

    @activity(**options)
    async def ask_person() -> int:
        desk.put()
        raise_complete_async()

    @workflow
    async def asks() -> int:
        return await ask_person() + 1

    return asks


async def is_open(run: Any) -> Any:
    """Wait until an activity of the run is open, and return the run."""

    async def opened() -> Any:
        seen = await run.describe()
        return seen if any(entry.is_open for entry in seen.journal) else None

    return await until(opened)


async def test_somebody_elsewhere_completes_an_activity(client: Client, url: str) -> None:
    """Its value is the result, as if the function had returned it."""
    desk = Desk()
    asks = asking(desk)
    async with running_worker(client, asks), no_durability(url) as other:
        run = await client.start(asks)
        token = await desk.token()

        assert await other.complete_activity(token, 41)
        assert await run.result(60) == 42
    (entry,) = (await run.describe()).journal
    assert (entry.status, entry.attempts, entry.is_open) == ("completed", 1, False)


async def test_it_takes_no_slot_and_no_memory(client: Client) -> None:
    """With a single slot, others go on; and the run rests in the database until the answer wakes it."""
    desk = Desk()
    asks = asking(desk)

    @activity
    async def one() -> int:
        return 1

    @workflow
    async def other() -> int:
        return await one()

    async with running_worker(client, asks, other, concurrency=1, warm_us=0) as worker:
        run = await client.start(asks)
        await is_open(run)
        assert await (await client.start(other)).result(60) == 1
        worker.life.releaser.release_idle()
        await until(lambda: not worker.life.driver.runs)
        assert (await run.describe()).worker is None

        assert await client.complete_activity(await desk.token(), 1)
        assert await run.result(60) == 2
    assert desk.attempts == [1]


async def test_it_survives_its_worker(client: Client) -> None:
    """Stopped in order or declared dead: the attempt goes on being open, and its token stays good."""
    desk = Desk()
    asks = asking(desk, retry=Retry(max_attempts=1))
    async with running_worker(client, asks) as worker:
        run = await client.start(asks)
        await is_open(run)
        await declare_dead(client, worker)
        await until(lambda: worker.life.driver.runs)
    async with running_worker(client, asks):
        await is_open(run)
    assert await client.complete_activity(await desk.token(), 1)
    async with running_worker(client, asks):
        assert await run.result(60) == 2
    assert desk.attempts == [1]


async def test_only_the_first_answer_counts(client: Client, url: str) -> None:
    """Whoever repeats a call whose reply was lost learns so; ten at once are still one."""
    desk = Desk()
    asks = asking(desk)
    async with running_worker(client, asks), no_durability(url) as other:
        run = await client.start(asks)
        await is_open(run)
        token = await desk.token()
        clients = [client, other] * 5
        answers = await asyncio.gather(
            *(one.complete_activity(token, value) for value, one in enumerate(clients))
        )

        assert answers.count(True) == 1
        assert await run.result(60) == answers.index(True) + 1
        assert not await client.complete_activity(token, 99)
        assert not await client.fail_activity(token, "no")


@pytest.mark.parametrize("ends_by", ["complete_async", "return", "error"])
async def test_an_answer_may_be_quicker_than_the_function(client: Client, ends_by: str) -> None:
    """It counts, whatever the function does after it was given: it was stored first."""
    desk = Desk()
    answered = asyncio.Event()

    @activity(retry=AT_ONCE)
    async def asks_and_lingers() -> int:
        desk.put()
        await answered.wait()
        if ends_by == "complete_async":
            raise_complete_async()
        if ends_by == "error":
            raise RuntimeError("too late")
        return 7

    @workflow
    async def asks() -> int:
        return await asks_and_lingers()

    async with running_worker(client, asks) as worker:
        run = await client.start(asks)
        assert await client.complete_activity(await desk.token(), 1)
        await until(
            lambda: any(a.answer for r in worker.life.driver.runs.values() for a in r.attempts.values())
        )
        answered.set()
        assert await run.result(60) == 1
    assert desk.attempts == [1]


async def test_a_failure_is_retried_by_policy_with_a_new_token(client: Client) -> None:
    """The old token is worthless then; the details of its heartbeats are not."""
    desk = Desk()
    asks = asking(desk)
    async with running_worker(client, asks):
        run = await client.start(asks)
        await is_open(run)
        await client.heartbeat_activity(await desk.token(), "half", 2)
        assert await client.fail_activity(await desk.token(), "try again")
        second = await desk.token(2)

        assert not await client.complete_activity(desk.tokens[0], 5)
        assert await client.complete_activity(second, 5)
        assert await run.result(60) == 6
    assert desk.attempts == [1, 2]
    assert desk.details == [(), ("half", 2)]
    (entry,) = (await run.describe()).journal
    assert entry.attempts == 2


class Declined(NonRetryableError):
    pass


async def test_a_failure_keeps_its_class_and_its_policy(client: Client) -> None:
    """What may not be retried is not; attempts that are used up fail the activity."""
    desk = Desk()

    @activity(retry=AT_ONCE)
    async def ask_person() -> int:
        desk.put()
        raise_complete_async()

    @workflow
    async def asks() -> str:
        try:
            await ask_person()
        except Declined as error:
            return f"declined: {error}"
        return "?"

    async with running_worker(client, asks):
        run = await client.start(asks)
        assert await client.fail_activity(await desk.token(), Declined("no money"))
        assert await run.result(60) == "declined: no money"
        again = await client.start(asks)
        for number in range(2, 2 + AT_ONCE.max_attempts):
            await client.fail_activity(await desk.token(number), "no")
        with pytest.raises(WorkflowFailedError, match="no"):
            await again.result(60)
    assert desk.attempts == [1, *range(1, AT_ONCE.max_attempts + 1)]


async def test_its_time_can_be_up(client: Client) -> None:
    """The timeout began with the attempt; past it nobody can answer."""
    desk = Desk()
    asks = asking(desk, timeout=0.3, retry=Retry(max_attempts=1))
    async with running_worker(client, asks):
        run = await client.start(asks)
        token = await desk.token()
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)

        assert isinstance(failed.value.__cause__, ActivityTimeoutError)
        assert failed.value.__cause__.kind == "start_to_close"
        with pytest.raises(ActivityClosedError):
            await client.complete_activity(token, 1)


async def test_its_time_can_be_up_while_nobody_is_there(client: Client) -> None:
    """The limit is an instant in the database."""
    desk = Desk()
    asks = asking(desk, schedule_to_close_timeout=0.4)
    async with running_worker(client, asks):
        run = await client.start(asks)
        await is_open(run)
    await asyncio.sleep(0.4)  # longer than the limit, with no worker
    async with running_worker(client, asks):
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, ActivityTimeoutError)
    assert failed.value.__cause__.kind == "schedule_to_close"


async def test_heartbeats_from_outside_keep_it_open(client: Client) -> None:
    """Without them it fails; with them it lives on beyond the timeout between two."""
    desk = Desk()
    asks = asking(desk, heartbeat_timeout=0.4, retry=Retry(max_attempts=2, initial=0.01))
    async with running_worker(client, asks):
        run = await client.start(asks)
        await is_open(run)
        token = await desk.token()
        for number in range(8):
            await client.heartbeat_activity(token, number)
            await asyncio.sleep(0.1)  # the time that heartbeats bridge
        assert desk.attempts == [1]
        await desk.token(2)  # silence
        with pytest.raises(ActivityClosedError):
            await client.heartbeat_activity(token)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, ActivityTimeoutError)
    assert failed.value.__cause__.kind == "heartbeat"
    assert desk.details == [(), (7,)]


@pytest.mark.parametrize("cancellation", ["try", "wait", "abandon"])
async def test_cancelling_closes_it(client: Client, cancellation: str) -> None:
    """There is no code to stop and nothing to wait for: its token is worthless at once."""
    desk = Desk()
    asks = asking(desk, cancellation=cancellation)
    async with running_worker(client, asks):
        run = await client.start(asks)
        await is_open(run)
        await run.cancel("enough")
        await until(lambda: _is(run, "cancelled"))
        with pytest.raises(ActivityClosedError):
            await client.complete_activity(await desk.token(), 1)


async def test_a_workflow_that_goes_on_without_it_closes_it(client: Client) -> None:
    """A timeout around the call, say: nobody is told "taken" for an answer that nobody reads."""
    desk = Desk()

    @activity
    async def ask_person() -> int:
        desk.put()
        raise_complete_async()

    @workflow
    async def gives_up() -> int:
        try:
            async with asyncio.timeout(0.2):
                return await ask_person()
        except TimeoutError:
            return await go.wait()

    async with running_worker(client, gives_up):
        run = await client.start(gives_up)
        await is_waiting(run, "signal")
        with pytest.raises(ActivityClosedError):
            await client.complete_activity(await desk.token(), 1)
        with pytest.raises(ActivityClosedError):
            await client.heartbeat_activity(await desk.token(), 1)
        await run.signal(go, 9)
        assert await run.result(60) == 9


async def _is(run: Any, status: str) -> bool:
    return (await run.describe()).status == status


async def test_a_run_that_is_closed_takes_no_answers(client: Client) -> None:
    desk = Desk()
    asks = asking(desk)
    async with running_worker(client, asks):
        run = await client.start(asks)
        await is_open(run)
        await run.terminate()
        with pytest.raises(ActivityClosedError):
            await client.complete_activity(await desk.token(), 1)


async def test_a_token_of_a_deleted_run_answers_no_other_of_the_same_id(client: Client) -> None:
    """An id whose run was deleted may be used again; what somebody still holds of the former run is not for the new one."""
    desk = Desk()
    asks = asking(desk)
    async with running_worker(client, asks):
        former = await client.start(asks, run_id="r")
        await is_open(former)
        await former.terminate()
        await client.delete("r")
        run = await client.start(asks, run_id="r")
        await is_open(run)

        with pytest.raises(ActivityClosedError):
            await client.complete_activity(await desk.token(), 1)
        assert await client.complete_activity(await desk.token(2), 2)
        assert await run.result(60) == 3


async def test_a_value_of_another_type_fails_the_activity(client: Client) -> None:
    """The workflow is told, not parked: who answered made the mistake, not its code."""
    desk = Desk()

    @activity(retry=AT_ONCE)
    async def ask_person() -> int:
        desk.put()
        raise_complete_async()

    @workflow
    async def asks() -> str:
        try:
            return str(await ask_person())
        except UndecodableError:
            return "nonsense"

    async with running_worker(client, asks):
        run = await client.start(asks)
        assert await client.complete_activity(await desk.token(), "forty-one")
        assert await run.result(60) == "nonsense"


async def test_many_answers_beside_signals(client: Client) -> None:
    """They come in any order, and each is delivered once."""
    desk = Desk()

    @activity
    async def ask_person(number: int) -> int:
        desk.put()
        raise_complete_async()

    @workflow
    async def asks_many() -> list[int]:
        async with asyncio.TaskGroup() as group:
            asked = [group.create_task(ask_person(number)) for number in range(20)]
            told = [group.create_task(go.wait()) for _ in range(20)]
        return [task.result() for task in asked] + [task.result() for task in told]

    async with running_worker(client, asks_many, warm_us=0):
        run = await client.start(asks_many)
        await desk.token(20)
        for number in range(20):
            await run.signal(go, number)
            await client.complete_activity(desk.tokens[number], 100)
            if number % 7 == 0:
                await asyncio.sleep(0.05)  # let the run come to rest in between
        result = await run.result(60)
    assert sorted(result) == [*range(20), *[100] * 20]
    assert (await client.store.get_run(run.run_id)).unread == 0


async def test_why_tells_that_somebody_outside_is_waited_for(client: Client) -> None:
    """With the instant at which it times out, if it does."""
    desk = Desk()
    asks = asking(desk, timeout=3600)
    async with running_worker(client, asks, warm_us=0) as worker:
        run = await client.start(asks)
        await is_open(run)
        worker.life.releaser.release_idle()
        await is_released(run)
        why = await run.why()
        await client.complete_activity(await desk.token(), 1)
        await run.result(60)
    assert why.reason is WhyReason.COMPLETION
    assert "ask_person: attempt 1 waits to be completed from outside (times out in 59m" in why.text
    assert why.due_at is not None


async def test_a_thread_can_leave_it_to_somebody_outside_too(client: Client) -> None:
    desk = Desk()

    @activity
    def ask_person() -> int:
        desk.put()
        raise_complete_async()

    @workflow
    async def asks() -> int:
        return await ask_person()

    async with running_worker(client, asks):
        run = await client.start(asks)
        assert await client.complete_activity(await desk.token(), 3)
        assert await run.result(60) == 3


async def test_only_tokens_of_this_database_are_tokens(client: Client, tmp_path: Any) -> None:
    """Nobody makes one up, or takes one from elsewhere."""
    desk = Desk()
    asks = asking(desk)
    async with running_worker(client, asks), no_durability(f"sqlite:///{tmp_path / 'other.db'}") as other:
        run = await client.start(asks)
        token = await desk.token()
        changed = token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")
        for text in ("", "nonsense", "é", token[:-3], changed, token * 2):
            with pytest.raises(ArgumentsError, match="task token"):
                await client.complete_activity(text, 1)
        with pytest.raises(ArgumentsError, match="task token"):
            await other.complete_activity(token, 1)
        assert await client.complete_activity(token, 1)
        await run.result(60)


async def test_outside_of_runs_there_is_nothing_to_complete() -> None:
    """A unit test of such an activity learns so."""
    with pytest.raises(DefinitionError):
        raise_complete_async()
    with pytest.raises(DefinitionError):
        _ = activity_info().task_token
