"""Activities with a task queue of their own: workers elsewhere perform them, and the run cannot tell the difference."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import nullcontext
from typing import Any

import pytest

from durable import (
    ActivityTimeoutError,
    Client,
    DefinitionError,
    NonRetryableError,
    Retry,
    RunHandle,
    Signal,
    StoreError,
    UndecodableError,
    Worker,
    WorkerLostError,
    WorkflowFailedError,
    activity,
    activity_info,
    heartbeat,
    raise_complete_async,
    shield_thread,
    workflow,
)
from durable.journal.events import ActivityCompleted, ScheduleActivity
from durable.reading import decode_entries
from durable.worker import task_performing
from durable.worker.incarnation import Incarnation
from tests.support.workers import (
    AT_ONCE,
    Calls,
    declare_dead,
    is_released,
    no_durability,
    running_worker,
    status_is,
    until,
)

go = Signal("go", int)


async def journal_of(client: Client, run_id: str) -> list[Any]:
    record = await client.store.get_run(run_id)
    return decode_entries(await client.store.read_journal(record.pk, record.generation))


async def tasks_of(client: Client, run_id: str) -> list[Any]:
    record = await client.store.get_run(run_id)
    return await client.store.read_tasks(record.pk, record.generation)


class Gpu:
    """An activity of queue "gpu", a workflow that calls it, and what the body saw."""

    def __init__(self, body: Any = None, *, sync: bool = False, **options: Any) -> None:
        self.calls = Calls()
        self.attempts: list[int] = []
        self.keys: list[str] = []
        self.details: list[tuple[Any, ...]] = []
        self.reasons: list[str] = []
        self.may_end = asyncio.Event()
        options.setdefault("retry", AT_ONCE)

        @activity(name="train", task_queue="gpu", **options)
        async def train(model: str) -> str:
            info = activity_info()
            self.calls("train")
            self.attempts.append(info.attempt)
            self.keys.append(info.idempotency_key)
            self.details.append(info.heartbeat_details)
            if body is not None:
                return str(await body(self, info))
            return f"{model} trained"

        @workflow
        async def learns(model: str = "m") -> str:
            return await train(model)

        self.train, self.learns = train, learns


class AnsweringOtherwise:
    """A store some of whose verbs answer as a test wants."""

    def __init__(self, real: Any, **verbs: Any) -> None:
        self._real = real
        vars(self).update(verbs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def gpu_worker(client: Client, gpu: Gpu, **options: Any) -> Any:
    return running_worker(client, activities=[gpu.train], task_queue="gpu", **options)


async def hangs(gpu: Gpu, info: Any) -> str:
    """Wait to be let go, and note why it was cancelled if it is."""
    try:
        await gpu.may_end.wait()
    except asyncio.CancelledError as cancelled:
        gpu.reasons.append(str(cancelled))
        raise
    return "let go"


# ─ the way there and back ──


async def test_a_worker_of_another_queue_performs_it(client: Client, url: str) -> None:
    """In another process as far as both can tell; with the run's key, its attempt counted, its result decoded."""
    gpu = Gpu()
    async with no_durability(url) as there, gpu_worker(there, gpu), running_worker(client, gpu.learns):
        run = await client.start(gpu.learns, "net", run_id="r")

        assert await run.result(60) == "net trained"

    assert (gpu.keys, gpu.attempts) == (["r@1/train#1"], [1])
    assert await tasks_of(client, "r") == []


async def test_the_journal_is_that_of_a_local_one(client: Client) -> None:
    """But for the name of the queue, which only people read; replay matches either with either."""
    gpu = Gpu()
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        await (await client.start(gpu.learns, run_id="r")).result(60)

    (scheduled,) = [one for one in await journal_of(client, "r") if isinstance(one, ScheduleActivity)]
    (completed,) = [one for one in await journal_of(client, "r") if isinstance(one, ActivityCompleted)]
    assert (scheduled.name, scheduled.queue, scheduled.started) == ("train", "gpu", False)
    assert (completed.op, completed.attempts, bytes(completed.result)) == (1, 1, b'"m trained"')


async def test_the_queue_of_the_run_itself_is_no_other_queue(client: Client) -> None:
    """No hop for an activity that the worker of the run serves anyway."""
    gpu = Gpu()
    async with running_worker(client, gpu.learns, task_queue="gpu"):
        await (await client.start(gpu.learns, run_id="r", task_queue="gpu")).result(60)

    (scheduled,) = [one for one in await journal_of(client, "r") if isinstance(one, ScheduleActivity)]
    assert (scheduled.queue, scheduled.started) == ("", True)


async def test_options_name_a_queue_at_the_call(client: Client) -> None:
    """As `task_queue` of the decorator does; another name in the journal is no other function."""

    @activity
    async def double(value: int) -> int:
        return 2 * value

    @workflow
    async def doubles(value: int) -> int:
        return await double.options(task_queue="math", name="twice")(value)

    async with (
        running_worker(client, activities=[double], task_queue="math"),
        running_worker(client, doubles),
    ):
        run = await client.start(doubles, 21)
        assert await run.result(60) == 42
    assert [entry.name for entry in (await run.describe()).journal] == ["twice"]


async def test_functions_run_in_threads_of_the_other_worker(client: Client) -> None:
    """A plain `def` blocks nobody's loop."""

    @activity(task_queue="cpu")
    def crunch(value: int) -> int:
        time.sleep(0.01)
        heartbeat(value)
        return value + 1

    @workflow
    async def crunches() -> int:
        return sum(await asyncio.gather(*(crunch(n) for n in range(20))))

    async with (
        running_worker(client, activities=[crunch], task_queue="cpu", concurrency=4),
        running_worker(client, crunches),
    ):
        assert await (await client.start(crunches)).result(60) == 210


async def test_what_a_worker_cannot_read_is_handed_back_and_the_worker_lives(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its code has another type for an argument, or it lacks a key: nobody is charged, and whoever can read it performs it.

    Seed 6011 of the simulation of that day: the worker died of it, and so did whoever came next.
    """
    monkeypatch.setattr(task_performing, "UNREADABLE_SECONDS", 0.05)
    gpu = Gpu(retry=None, retries=0)

    @activity(name="train", task_queue="gpu", retries=0)
    async def misreads(model: int) -> str:
        raise AssertionError(model)

    @activity(task_queue="gpu")
    async def neighbour() -> str:
        return "performed"

    @workflow
    async def asks_the_neighbour() -> str:
        return await neighbour()

    async with running_worker(client, gpu.learns, asks_the_neighbour):
        run = await client.start(gpu.learns, "net", run_id="r")
        async with running_worker(client, activities=[misreads, neighbour], task_queue="gpu"):

            async def has_been_tried() -> bool:
                tasks = await tasks_of(client, "r")
                return [(task.claim_no >= 2, task.state) for task in tasks] == [(True, "ready")]

            await until(has_been_tried)
            assert await (await client.start(asks_the_neighbour)).result(60) == "performed"
        (task,) = await tasks_of(client, "r")
        assert (task.attempt, b"UndecodableError" in task.failure) == (0, True)
        async with gpu_worker(client, gpu):
            assert await run.result(60) == "net trained"
    assert gpu.attempts == [1]


async def test_one_worker_may_serve_several_queues(client: Client) -> None:
    """Runs and activities of each of them."""
    gpu = Gpu()
    async with running_worker(
        client, gpu.learns, activities=[gpu.train], task_queue=("gpu", "default")
    ) as worker:
        first = await client.start(gpu.learns)
        second = await client.start(gpu.learns, task_queue="gpu")
        assert [await run.result(60) for run in (first, second)] == ["m trained", "m trained"]
        (record,) = await client.workers()
        assert (worker.task_queues, record.task_queues) == (("gpu", "default"), ("gpu", "default"))
        assert record.activities == ("train",)


async def test_a_run_that_waits_for_one_takes_no_memory(client: Client) -> None:
    """It rests in the database until the outcome wakes it, on whatever worker."""
    gpu = Gpu(hangs)
    async with gpu_worker(client, gpu):
        async with running_worker(client, gpu.learns, warm_us=0):
            run = await client.start(gpu.learns)
            await until(lambda: gpu.calls.of("train") == 1)
            await is_released(run)
        gpu.may_end.set()
        await until(lambda: not gpu.reasons)
        async with running_worker(client, gpu.learns):
            assert await run.result(60) == "let go"
    assert gpu.attempts == [1]


async def test_a_run_that_lets_go_of_one_and_begins_another_here_stays_here(client: Client) -> None:
    """In one turn: what this worker performs holds the run, however many others perform (P12)."""
    gpu = Gpu()

    @activity
    async def local() -> str:
        return "here"

    @workflow
    async def gives_up() -> str:
        try:
            async with asyncio.timeout(0.05):
                return await gpu.train("m")
        except TimeoutError:
            return await local()

    async with running_worker(client, gives_up, warm_us=0):  # nobody serves the other queue
        assert await (await client.start(gives_up)).result(60) == "here"


async def test_a_result_of_another_type_parks_the_run_that_asked(client: Client) -> None:
    """Two versions of the code disagree. What was done was done well: the run waits for code that reads it, and nothing is done twice."""
    gpu = Gpu()

    @activity(name="train", task_queue="gpu")
    async def counts(model: str) -> int: ...

    @workflow(name="learns")
    async def counting(model: str = "m") -> int:
        return await counts(model)

    async with gpu_worker(client, gpu):
        async with running_worker(client, counting):
            run = await client.start(gpu.learns)
            with pytest.raises(UndecodableError, match="the result of activity 'train'"):
                await run.result(60)
        await run.resume()
        async with running_worker(client, gpu.learns):
            assert await run.result(60) == "m trained"
    assert gpu.calls.of("train") == 1


async def test_nobody_performs_it_without_a_worker_of_its_queue(client: Client) -> None:
    """It waits, uncharged, and whoever asks is told what is missing."""
    gpu = Gpu()
    async with running_worker(client, gpu.learns):
        run = await client.start(gpu.learns)
        await until(lambda: _has_tasks(client, run.run_id))
        (task,) = await tasks_of(client, run.run_id)
        assert (task.attempt, task.state) == (0, "ready")
        async with gpu_worker(client, gpu):
            assert await run.result(60) == "m trained"


async def _has_tasks(client: Client, run_id: str) -> bool:
    return bool(await tasks_of(client, run_id))


# ─ failures and attempts ──


async def test_it_is_tried_again_as_its_call_says(client: Client) -> None:
    """By whichever worker comes first; attempts are counted across all of them."""

    async def fails_twice(gpu: Gpu, info: Any) -> str:
        if info.attempt < 3:
            raise OSError(f"attempt {info.attempt}")
        return "third time lucky"

    gpu = Gpu(fails_twice)
    async with gpu_worker(client, gpu), gpu_worker(client, gpu), running_worker(client, gpu.learns):
        run = await client.start(gpu.learns)
        assert await run.result(60) == "third time lucky"
    assert gpu.attempts == [1, 2, 3]
    (entry,) = (await run.describe()).journal
    assert entry.attempts == 3


async def test_the_last_failure_is_the_outcome(client: Client) -> None:
    """The class of the error is the author's own, on the other side, too."""

    async def fails(gpu: Gpu, info: Any) -> str:
        raise OSError(f"attempt {info.attempt}")

    gpu = Gpu(fails, retry=Retry(max_attempts=2, initial=0.01))
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        run = await client.start(gpu.learns)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, OSError)
    assert (str(failed.value.__cause__), gpu.attempts) == ("attempt 2", [1, 2])


class Expected(Exception):
    """An error that a policy names."""


class More(Expected):
    """A kind of it."""


@pytest.mark.parametrize(
    ("policy", "error", "attempts"),
    [
        (Retry(initial=0.01), ValueError("a programming error"), 1),
        (Retry(initial=0.01), NonRetryableError("final"), 1),
        (Retry(initial=0.01, no_retry=Expected), More("named by its base"), 1),
        (Retry(initial=0.01, retry_on=Expected, max_attempts=2), More("named by its base"), 2),
        (Retry(initial=0.01, retry_on=Expected), OSError("not named"), 1),
        (Retry(max_attempts=1), OSError("once only"), 1),
    ],
)
async def test_classes_in_a_policy_are_known_elsewhere_by_name(
    client: Client, policy: Retry, error: Exception, attempts: int
) -> None:
    """The policy is that of the call, whatever the worker's own code says."""

    async def fails(gpu: Gpu, info: Any) -> str:
        raise error

    gpu = Gpu(fails, retry=policy)
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        with pytest.raises(WorkflowFailedError):
            await (await client.start(gpu.learns)).result(60)
    assert gpu.attempts == list(range(1, attempts + 1))


async def test_heartbeat_details_reach_the_next_attempt_elsewhere(client: Client) -> None:
    """Those of an attempt that failed in order, and no write is needed for it."""

    async def counts(gpu: Gpu, info: Any) -> str:
        heartbeat(info.attempt * 10)
        if info.attempt == 1:
            raise OSError("half-way")
        return "done"

    gpu = Gpu(counts)
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        await (await client.start(gpu.learns)).result(60)
    assert gpu.details == [(), (10,)]


async def test_a_worker_that_was_declared_dead_has_lost_the_attempt(client: Client) -> None:
    """It is charged, begun again elsewhere with what it told, and its own outcome is heard by nobody."""

    async def first_hangs(gpu: Gpu, info: Any) -> str:
        if info.attempt > 1:
            return "by another"
        heartbeat("half")
        return await hangs(gpu, info)

    gpu = Gpu(first_hangs, heartbeat_timeout=0.5)
    async with running_worker(client, gpu.learns), gpu_worker(client, gpu) as zombie:
        run = await client.start(gpu.learns)
        await until(lambda: _told(client, run.run_id, b'["half"]'))
        await declare_dead(client, zombie)

        assert await run.result(60) == "by another"
    assert (gpu.attempts, gpu.details) == ([1, 2], [(), ("half",)])
    assert len(gpu.reasons) == 1


async def _told(client: Client, run_id: str, details: bytes) -> bool:
    return [task.details for task in await tasks_of(client, run_id)] == [details]


async def test_a_claim_whose_answer_was_lost_is_performed_all_the_same(client: Client) -> None:
    """It is this worker's by then, and charged; nobody else would ever begin it as long as this one lives."""
    gpu = Gpu()
    async with gpu_worker(client, gpu) as performs, running_worker(client, gpu.learns):
        real, lost = performs.life.store.claim_tasks, Calls()

        async def claim_tasks(*arguments: Any, **chosen: Any) -> Any:
            claimed = await real(*arguments, **chosen)
            if claimed and lost("claim") == 1:
                raise StoreError("the reply was lost")
            return claimed

        performs.life.tasks._store = AnsweringOtherwise(client.store, claim_tasks=claim_tasks)
        run = await client.start(gpu.learns, run_id="r")
        assert await run.result(60) == "m trained"
    assert (lost.names, gpu.attempts) == (["claim"], [1])


async def test_a_claim_whose_answer_was_lost_ends_with_its_run(client: Client) -> None:
    """Its workflow let go of it before the worker knew that it is its own: nothing begins, and nothing is left of it."""
    gpu = Gpu()
    async with gpu_worker(client, gpu) as performs, running_worker(client, gpu.learns):
        real = performs.life.store.claim_tasks
        run: RunHandle[str] | None = None

        async def claim_tasks(*arguments: Any, **chosen: Any) -> Any:
            claimed = await real(*arguments, **chosen)
            if claimed and run is not None:
                await run.terminate()
                raise StoreError("the reply was lost")
            return claimed

        performs.life.tasks._store = AnsweringOtherwise(client.store, claim_tasks=claim_tasks)
        run = await client.start(gpu.learns, run_id="r")
        await status_is(run, "terminated")
        await until(lambda: _is_gone(client, "r"))
    assert gpu.attempts == []


@pytest.mark.parametrize("is_ended", [True, False], ids=["ended meanwhile", "still held"])
async def test_a_claim_that_is_answered_late_is_looked_at_again(
    client: Client, monkeypatch: pytest.MonkeyPatch, is_ended: bool
) -> None:
    """The worker lives, which proves nothing for single tasks: one that was ended meanwhile is not begun (P11)."""
    gpu, late = Gpu(), Calls()
    async with gpu_worker(client, gpu) as performs, running_worker(client, gpu.learns):
        real, is_recent = performs.life.store.claim_tasks, Incarnation.is_recent
        run: RunHandle[str] | None = None

        def is_recent_once_it_has_looked(incarnation: Incarnation, since: float) -> bool:
            held_up = (
                incarnation.worker_id == performs.worker_id and late.of("claim") and late.of("judged") < 2
            )
            return not (held_up and late("judged")) and is_recent(incarnation, since)

        async def claim_tasks(*arguments: Any, **chosen: Any) -> Any:
            claimed = await real(*arguments, **chosen)
            if claimed and not late.names:
                late("claim")
                if is_ended and run is not None:
                    await run.terminate()
            return claimed

        monkeypatch.setattr(Incarnation, "is_recent", is_recent_once_it_has_looked)
        performs.life.tasks._store = AnsweringOtherwise(client.store, claim_tasks=claim_tasks)
        run = await client.start(gpu.learns, run_id="r")
        if is_ended:
            await status_is(run, "terminated")
            await until(lambda: _is_gone(client, "r"))
        else:
            assert await run.result(60) == "m trained"
    assert gpu.attempts == ([] if is_ended else [1])
    assert late.of("judged") >= 1


async def test_a_life_that_is_over_takes_up_nothing(client: Client) -> None:
    """A worker gave itself up, and cannot say so yet: in the database its tasks are still its own, and it begins none of them (P8)."""
    gpu, refused = Gpu(hangs), Calls()
    async with gpu_worker(client, gpu) as performs, running_worker(client, gpu.learns):
        real = client.store.retire_worker

        async def retire_worker(worker_id: int) -> Any:
            if refused("retire") < 3:
                raise StoreError("no connection")
            return await real(worker_id)

        run = await client.start(gpu.learns, run_id="r")
        await until(lambda: gpu.attempts == [1])
        performs.life.store = AnsweringOtherwise(client.store, retire_worker=retire_worker)
        performs.life.tenure.lose(performs.worker_id)
        await until(lambda: len(gpu.reasons) == 1)
        performs.life.tasks.hint()
        await until(lambda: refused.of("retire") == 3)
        assert gpu.attempts == [1], "begun again, while it is not known whose it is"

        gpu.may_end.set()
        assert await run.result(60) == "let go"
    assert gpu.attempts == [1, 2]


async def _is_gone(client: Client, run_id: str) -> bool:
    return await tasks_of(client, run_id) == []


async def test_the_last_attempt_lost_is_the_outcome(client: Client) -> None:
    """`WorkerLostError`, also if the policy forbids another after a loss."""
    gpu = Gpu(hangs, retry=Retry(no_retry=WorkerLostError))
    async with running_worker(client, gpu.learns), gpu_worker(client, gpu) as worker:
        run = await client.start(gpu.learns)
        await until(lambda: gpu.calls.of("train") == 1)
        await declare_dead(client, worker)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    assert isinstance(failed.value.__cause__, WorkerLostError)
    assert gpu.attempts == [1]


async def test_a_worker_that_stops_hands_back_uncharged(client: Client) -> None:
    """Another one begins the same attempt (P22)."""
    gpu = Gpu(hangs)
    async with running_worker(client, gpu.learns):
        async with gpu_worker(client, gpu) as worker:
            run = await client.start(gpu.learns)
            await until(lambda: gpu.calls.of("train") == 1)
            worker.stop(0)
        gpu.may_end.set()
        async with gpu_worker(client, gpu):
            assert await run.result(60) == "let go"
    assert gpu.attempts == [1, 1]


async def test_a_thread_that_outlasts_its_worker_has_had_its_attempt(client: Client) -> None:
    """It is not stopped, and may act at any time: the attempt is lost, and counts."""
    attempts: list[int] = []
    may_end = threading.Event()

    @activity(task_queue="gpu", retries=0)
    def train() -> None:
        with shield_thread():
            attempts.append(activity_info().attempt)
            may_end.wait(60)

    @workflow
    async def learns() -> None:
        await train()

    try:
        async with running_worker(client, learns):
            async with Worker(client, activities=[train], task_queue="gpu") as worker:
                run = await client.start(learns)
                await until(lambda: attempts)
                worker.stop(0)
            with pytest.raises(WorkflowFailedError) as failed:
                await run.result(60)
    finally:
        may_end.set()
    assert isinstance(failed.value.__cause__, WorkerLostError)
    assert attempts == [1]


async def test_a_worker_that_stops_lets_what_it_performs_end(client: Client) -> None:
    """Within its grace, and claims nothing more."""
    gpu = Gpu(hangs)
    async with running_worker(client, gpu.learns):
        async with gpu_worker(client, gpu, task_concurrency=1) as worker:
            runs = [await client.start(gpu.learns) for _ in range(2)]
            await until(lambda: gpu.calls.of("train") == 1)
            worker.stop()
            gpu.may_end.set()
        assert gpu.calls.of("train") == 1
        async with gpu_worker(client, gpu):
            assert [await run.result(60) for run in runs] == ["let go", "let go"]
    assert gpu.attempts == [1, 1]


# ─ limits ──


async def test_an_attempt_that_takes_too_long_is_cancelled_and_tried_again(client: Client) -> None:
    """By the worker that performs it, on the dot."""

    async def first_hangs(gpu: Gpu, info: Any) -> str:
        return await hangs(gpu, info) if info.attempt == 1 else "quick"

    gpu = Gpu(first_hangs, timeout=0.1)
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        assert await (await client.start(gpu.learns)).result(60) == "quick"
    assert gpu.attempts == [1, 2]
    assert len(gpu.reasons) == 1


@pytest.mark.parametrize(
    ("limits", "kind"),
    [
        ({"schedule_to_start_timeout": 0.2}, "schedule_to_start"),
        ({"schedule_to_close_timeout": 0.2}, "schedule_to_close"),
    ],
)
async def test_limits_hold_where_nobody_serves_the_queue(
    client: Client, limits: dict[str, float], kind: str
) -> None:
    """The workers there are look after the tasks of all queues."""
    gpu = Gpu(**limits)
    async with running_worker(client, gpu.learns):
        run = await client.start(gpu.learns)
        with pytest.raises(WorkflowFailedError) as failed:
            await run.result(60)
    cause = failed.value.__cause__
    assert isinstance(cause, ActivityTimeoutError)
    assert cause.kind == kind


async def test_all_attempts_together_have_a_limit(client: Client) -> None:
    """No retry is begun that would pass it."""

    async def fails(gpu: Gpu, info: Any) -> str:
        raise OSError("no")

    gpu = Gpu(fails, retry=Retry(max_attempts=0, initial=0.5, maximum=0.5), schedule_to_close_timeout=1.8)
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        with pytest.raises(WorkflowFailedError) as failed:
            await (await client.start(gpu.learns)).result(60)
    assert isinstance(failed.value.__cause__, OSError)
    assert 2 <= len(gpu.attempts) <= 4


async def test_an_attempt_that_falls_silent_is_tried_again(client: Client) -> None:
    """The gap between heartbeats counts, not their number."""

    async def beats_then_hangs(gpu: Gpu, info: Any) -> str:
        for n in range(3):
            heartbeat(n)
            await asyncio.sleep(0.05)
        return await hangs(gpu, info) if info.attempt == 1 else "alive"

    gpu = Gpu(beats_then_hangs, heartbeat_timeout=0.3)
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        assert await (await client.start(gpu.learns)).result(60) == "alive"
    assert gpu.details == [(), (2,)]


# ─ cancellation ──


@pytest.mark.parametrize("how", ["cancel", "terminate"])
async def test_the_end_of_the_run_is_pushed_to_the_body(client: Client, url: str, how: str) -> None:
    """Wherever it runs, and without its asking."""
    took: list[float] = []
    while not took or (min(took) >= 2 and len(took) < 5):  # machines have other things to do, too
        took.append(await pushed(client, url, how))
    assert min(took) < 2


async def pushed(client: Client, url: str, how: str) -> float:
    """Return the seconds from the end of a run until the body of its activity knows."""
    gpu = Gpu(hangs)
    async with no_durability(url) as there, gpu_worker(there, gpu), running_worker(client, gpu.learns):
        run = await client.start(gpu.learns)
        await until(lambda: gpu.calls.of("train") == 1)

        began = time.monotonic()
        await (run.cancel("enough") if how == "cancel" else run.terminate("enough"))
        await until(lambda: gpu.reasons)
        took = time.monotonic() - began

        await status_is(run, "cancelled" if how == "cancel" else "terminated")
        assert await until(lambda: _is_over(client, run.run_id))
    if how == "cancel":
        assert gpu.reasons == ["enough"]
    return took


async def _is_over(client: Client, run_id: str) -> bool:
    return not await tasks_of(client, run_id)


@pytest.mark.parametrize("cancellation", ["try", "wait", "abandon"])
async def test_a_cancelled_call_does_what_its_type_says(client: Client, cancellation: Any) -> None:
    """ "try" raises at once and stops the body, "wait" stops it and waits for its end, "abandon" leaves it alone."""

    async def cleans_up(gpu: Gpu, info: Any) -> str:
        try:
            await gpu.may_end.wait()
        except asyncio.CancelledError as cancelled:
            gpu.reasons.append(str(cancelled))
            await asyncio.sleep(0.2)
            gpu.calls("cleaned")
            raise
        gpu.calls("ran on")
        return "unheard"

    gpu = Gpu(cleans_up, cancellation=cancellation)
    seen: list[int] = []

    @workflow
    async def lets_go() -> str:
        call = asyncio.ensure_future(gpu.train("m"))
        await go.wait()
        call.cancel()
        try:
            await call
        except asyncio.CancelledError:
            seen.append(gpu.calls.of("cleaned"))
            return "let go"
        return "not cancelled"

    async with gpu_worker(client, gpu), running_worker(client, lets_go):
        run = await client.start(lets_go)
        await until(lambda: gpu.calls.of("train") == 1)
        await run.signal(go, 1)
        assert await run.result(60) == "let go"
        if cancellation == "abandon":
            assert gpu.reasons == []
            gpu.may_end.set()
            await until(lambda: gpu.calls.of("ran on") == 1)
        else:
            await until(lambda: gpu.calls.of("cleaned") == 1)
        await until(lambda: _is_over(client, run.run_id))
    assert seen == [1 if cancellation == "wait" else 0]


@pytest.mark.parametrize("cancellation", ["try", "wait", "abandon"])
async def test_what_no_worker_has_begun_ends_without_one(client: Client, cancellation: Any) -> None:
    """Nobody serves the queue, and nobody has to."""
    gpu = Gpu(cancellation=cancellation)
    async with running_worker(client, gpu.learns):
        run = await client.start(gpu.learns)
        await until(lambda: _has_tasks(client, run.run_id))
        await run.cancel("changed my mind")
        await status_is(run, "cancelled")
        await until(lambda: _is_over(client, run.run_id))
    assert gpu.calls.names == []


async def test_a_call_cancelled_in_the_turn_that_made_it_never_begins(client: Client) -> None:
    """Asked for and let go of in one commit."""
    gpu = Gpu()

    @workflow
    async def hurries() -> int:
        call = asyncio.ensure_future(gpu.train("m"))
        first, second = await go.wait(), 0
        call.cancel()
        second = await go.wait()
        return first + second

    async with gpu_worker(client, gpu):
        run = await client.start(hurries)
        for value in (1, 2):
            await run.signal(go, value)
        async with running_worker(client, hurries):
            assert await run.result(60) == 3
    assert gpu.calls.names == []
    assert await tasks_of(client, run.run_id) == []


@pytest.mark.parametrize("asks", [True, False])
async def test_a_thread_elsewhere_is_cancelled(asks: bool, client: Client) -> None:
    """As a local one is: it is raised in the thread, unless a shield is in the way; in there it finds out if it asks."""
    reasons: list[str] = []

    @activity(task_queue="cpu")
    def crunch() -> None:
        with shield_thread() if asks else nullcontext():
            try:
                while not (asks and activity_info().is_cancelled):
                    time.sleep(0.005)
            finally:
                reasons.append(str(activity_info().cancel_reason))

    @workflow
    async def crunches() -> None:
        await crunch()

    async with (
        running_worker(client, activities=[crunch], task_queue="cpu") as worker,
        running_worker(client, crunches),
    ):
        run = await client.start(crunches)
        await until(lambda: worker.life.tasks.performer.running == 1)
        await run.cancel("stop it")
        await until(lambda: reasons)
        await until(lambda: worker.life.tasks.performer.running == 0)
    assert reasons == ["stop it"]


# ─ slots, pauses, lives ──


async def test_slots_of_the_kinds_are_apart(client: Client) -> None:
    """Activities of its own runs, and those of others, do not take each other's."""
    most = {"own": 0, "others": 0}
    now = {"own": 0, "others": 0}

    async def busy(kind: str) -> None:
        now[kind] += 1
        most[kind] = max(most[kind], now[kind])
        await asyncio.sleep(0.01)
        now[kind] -= 1

    @activity
    async def own() -> None:
        await busy("own")

    @activity(task_queue="others")
    async def others() -> None:
        await busy("others")

    @workflow
    async def both() -> None:
        await asyncio.gather(*(own() for _ in range(12)), *(others() for _ in range(12)))

    async with running_worker(
        client, both, activities=[others], task_queue=["default", "others"], concurrency=2, task_concurrency=3
    ):
        await (await client.start(both)).result(60)
    assert most == {"own": 2, "others": 3}


async def test_a_worker_drives_no_more_runs_than_it_may(client: Client) -> None:
    """`max_runs` bounds what it holds, whatever its activities do."""
    gpu = Gpu(hangs)
    local = gpu.train.options(task_queue="default")

    @workflow
    async def holds() -> str:
        return await local("m")

    async with running_worker(client, holds, max_runs=2) as worker:
        runs = [await client.start(holds) for _ in range(5)]
        await until(lambda: gpu.calls.of("train") == 2)
        await asyncio.sleep(0.1)
        assert (gpu.calls.of("train"), len(worker.life.driver.runs)) == (2, 2)
        gpu.may_end.set()
        for run in runs:
            await run.result(60)


async def test_a_paused_queue_holds_its_activities_back(client: Client) -> None:
    """Until it is resumed; what runs ends."""
    gpu = Gpu()
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        await client.pause_task_queue("gpu", "maintenance")
        run = await client.start(gpu.learns)
        await until(lambda: _has_tasks(client, run.run_id))
        await asyncio.sleep(0.1)
        assert gpu.calls.names == []
        await client.resume_task_queue("gpu")
        assert await run.result(60) == "m trained"


async def test_a_workflow_that_is_tried_again_asks_anew(client: Client) -> None:
    """What was open when it failed is a task of its new life; the old one's outcome goes nowhere (P1, P7)."""
    gpu = Gpu(hangs)
    fails = Calls()

    @activity(retry=Retry(max_attempts=1))
    async def breaks() -> int:
        if fails("breaks") == 1:
            await until(lambda: gpu.calls.of("train") == 1)
            raise OSError("once")
        return 1

    @workflow(retries=1, retry_delay=0.01)
    async def tries() -> str:
        call = asyncio.ensure_future(gpu.train("m"))
        await breaks()
        return await call

    async with gpu_worker(client, gpu), running_worker(client, tries):
        run = await client.start(tries, run_id="r")
        await until(lambda: gpu.calls.of("train") == 2)
        gpu.may_end.set()
        assert await run.result(60) == "let go"
    assert len(gpu.reasons) == 1
    assert gpu.keys == ["r@1/train#1"] * 2


async def test_a_discarded_turn_has_asked_for_nothing(client: Client) -> None:
    """Its commit fails: the instance is rebuilt, and the task is written once, with the turn that is."""
    gpu = Gpu()
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns) as worker:
        await declare_dead(client, worker)
        run = await client.start(gpu.learns)
        assert await run.result(60) == "m trained"
    assert gpu.attempts == [1]


# ─ mistakes ──


async def test_completion_by_token_is_refused_there(client: Client) -> None:
    """With what to do instead; the activity fails at once."""

    async def hands_on(gpu: Gpu, info: Any) -> str:
        raise_complete_async()

    gpu = Gpu(hands_on)
    async with gpu_worker(client, gpu), running_worker(client, gpu.learns):
        with pytest.raises(WorkflowFailedError) as failed:
            await (await client.start(gpu.learns)).result(60)
    assert "cannot be completed by token" in str(failed.value.__cause__)
    assert gpu.attempts == [1]


async def test_mistakes_in_what_a_worker_serves_are_told_at_once(client: Client) -> None:
    """Before it claims anything."""

    @activity(name="same")
    async def one() -> None: ...

    @activity(name="same")
    async def other() -> None: ...

    with pytest.raises(DefinitionError, match="two activities are called 'same'"):
        Worker(client, activities=[one, other])
    with pytest.raises(DefinitionError, match="not 3"):
        Worker(client, activities=[3])  # type: ignore[list-item]
    with pytest.raises(DefinitionError, match="'local'"):
        Worker(client, activities=[one], task_queue=["default", "local"])
    with pytest.raises(DefinitionError, match="task_concurrency"):
        Worker(client, activities=[one], task_concurrency=0)
    with pytest.raises(DefinitionError, match="'local'"):
        activity(task_queue="local")
