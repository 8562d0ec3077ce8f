"""What a run looks like from outside: its status, its story, and what it waits for."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from durable import (
    ArgumentsError,
    Client,
    Retry,
    Run,
    RunNotFoundError,
    RunStatus,
    Signal,
    WorkflowFailedError,
    activity,
    activity_info,
    sleep,
    wait_condition,
    workflow,
)
from tests.support.workers import (
    declare_dead,
    file_of,
    is_released,
    is_waiting,
    no_durability,
    running_worker,
    status_is,
    tampered,
    until,
)

number = Signal("number", int)


class Reads:
    """Counts the journals that a client's store reads."""

    def __init__(self, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._read = client.store.read_journal
        monkeypatch.setattr(client.store, "read_journal", self._counted)

    async def _counted(self, pk: int, generation: int) -> Any:
        self.count += 1
        return await self._read(pk, generation)


@activity
async def note(value: int) -> int:
    return value


@workflow
async def waits(value: int) -> int:
    return await note(value) + await number.wait()


@workflow
async def ends(value: int) -> int:
    return await note(value)


# ─ what it waits for ──


async def only_blocker(run: Any, kind: str) -> Any:
    seen = await is_waiting(run, kind)
    (blocker,) = seen.waiting_on
    return blocker


async def test_a_signal_wait_names_the_signal_and_the_line(client: Client) -> None:
    """Whoever looks knows what to send, and where the code stands."""
    async with running_worker(client, waits):
        blocker = await only_blocker(await client.start(waits, 1), "signal")
    assert (blocker.name, blocker.text, blocker.due_at) == ("number", 'signal "number"', None)
    assert "test_describing.py:" in blocker.source


async def test_a_signal_wait_with_a_timeout_says_when_it_ends(client: Client) -> None:
    """The timer belongs to the wait: one line, not two."""

    @workflow
    async def limited() -> None:
        await number.wait(timeout=3600)

    async with running_worker(client, limited):
        blocker = await only_blocker(await client.start(limited), "signal")
    assert blocker.text.startswith('signal "number" (times out in 59m')
    assert blocker.due_at is not None


async def test_a_timer_says_when_it_is_due(client: Client) -> None:
    """The nearest one, whether the run is in memory or released."""

    @workflow
    async def sleeps() -> None:
        await asyncio.gather(sleep(7200), sleep(3 * 86_400))

    async with running_worker(client, sleeps):
        run = await client.start(sleeps)
        await is_released(run)
        blocker = await only_blocker(run, "timer")
    assert blocker.text.startswith("timer in 1h 59m")
    assert blocker.due_at - datetime.now(UTC) < timedelta(hours=2)


async def test_a_condition_names_its_line(client: Client) -> None:
    """A condition has no name but its place."""

    @workflow
    async def waits_for_it() -> None:
        await wait_condition(lambda: False)

    async with running_worker(client, waits_for_it):
        blocker = await only_blocker(await client.start(waits_for_it), "condition")
    assert blocker.text.startswith("condition at ")
    assert "test_describing.py:" in blocker.text


async def test_a_running_activity_is_named_with_its_attempt(client: Client) -> None:
    """And so is one that waits for its next attempt, with the reason."""
    gate = asyncio.Event()

    @activity(retry=Retry(initial=3600, maximum=3600))
    async def charges(fail: bool) -> None:
        if fail:
            raise ConnectionError("no route\nto host")
        await gate.wait()

    @workflow
    async def works(fail: bool) -> None:
        await charges(fail)

    async with running_worker(client, works):
        running = await only_blocker(await client.start(works, False), "activity")
        retrying = await only_blocker(await client.start(works, True), "retry")
        gate.set()
    assert running.text == "charges: attempt 1 running"
    assert retrying.text.startswith("charges: attempt 2 in 59m")
    assert retrying.text.endswith("after ConnectionError: no route to host")


async def test_several_waits_are_all_named(client: Client) -> None:
    """Each thing that could move the run on its own line."""

    @workflow
    async def many() -> None:
        await asyncio.gather(Signal("a").wait(), Signal("b").wait(), wait_condition(lambda: False))

    async with running_worker(client, many):
        seen = await is_waiting(await client.start(many), "condition")
    assert [(blocker.kind, blocker.name) for blocker in seen.waiting_on] == [
        ("signal", "a"),
        ("signal", "b"),
        ("condition", ""),
    ]


async def test_a_run_that_nothing_can_move_says_so(client: Client) -> None:
    """A future that nobody sets is the author's mistake: only a cancel helps."""

    @workflow
    async def stuck() -> None:
        await asyncio.get_running_loop().create_future()

    async with running_worker(client, stuck):
        run = await client.start(stuck)
        blocker = await until(lambda: _blocker_with(run, "or a cancel, can move it"))
        assert blocker.kind == "nothing"
        await run.cancel()
        await status_is(run, "cancelled")


async def _blocker_with(run: Any, text: str) -> Any:
    return next((blocker for blocker in (await run.describe()).waiting_on if text in blocker.text), None)


async def test_a_run_of_a_dead_worker_says_so(client: Client) -> None:
    """Between the death and the takeover, the reason is the worker."""
    async with running_worker(client, waits) as worker:
        run = await client.start(waits, 1)
        await is_waiting(run, "signal")
        dead = "UPDATE worker SET is_alive = NOT is_alive WHERE id = ?"
        tampered(file_of(client), dead, parameters=(worker.worker_id,))
        text = (await run.describe()).waiting_on[0].text
        assert text == "its worker died: another will take over"
        tampered(file_of(client), dead, parameters=(worker.worker_id,))
        await declare_dead(client, worker)


async def test_every_open_run_waits_for_something_that_can_be_named(client: Client) -> None:
    """No silent "running" (I17): at any moment, whatever happens to it."""
    async with running_worker(client, waits, ends, warm_us=0):
        runs = [await client.start(waits, value) for value in range(20)]
        done = asyncio.ensure_future(asyncio.gather(*(run.result(60) for run in runs)))
        for run in runs:
            await run.signal(number, 1)
            for seen in await client.list(limit=1000):
                assert bool(seen.waiting_on) is not seen.status.is_closed
                assert all(blocker.text for blocker in seen.waiting_on)
        await done


# ─ its story ──


async def test_a_closed_run_tells_its_whole_story(client: Client) -> None:
    """One entry for each thing it asked for, in that order, with input, result and times."""

    @workflow(version=3, timeout=100)
    async def story(value: int) -> int:
        first = await note(value)
        await sleep(0.001)
        return first + await number.wait()

    async with running_worker(client, story, name="w"):
        run = await client.start(story, 4, run_id="s", task_queue="default")
        await run.signal(number, 2)
        assert await run.result(60) == 6
        seen = await run.describe()

    assert isinstance(seen, Run)
    assert (seen.run_id, seen.workflow, seen.version, seen.generation) == ("s", "story", 3, 1)
    assert (seen.status, seen.attempts, seen.input, seen.result) == (RunStatus.COMPLETED, 1, {"value": 4}, 6)
    assert (seen.error, seen.failure, seen.reason, seen.worker, seen.waiting_on) == (
        None,
        None,
        None,
        None,
        [],
    )
    assert [(entry.kind, entry.name, entry.status) for entry in seen.journal if entry.kind != "signal"] == [
        ("activity", "note", "completed"),
        ("timer", "0.001s", "fired"),
    ]
    (received,) = [entry for entry in seen.journal if entry.kind == "signal"]
    assert (received.name, received.status, received.result) == ("number", "received", 2)
    note_entry = seen.journal[1] if seen.journal[0].kind == "signal" else seen.journal[0]
    assert (note_entry.input, note_entry.result, note_entry.attempts) == ({"value": 4}, 4, 1)
    assert seen.created_at.tzinfo is not None
    assert seen.started_at is not None
    assert seen.closed_at is not None
    assert seen.deadline is not None
    assert seen.created_at <= seen.started_at <= seen.closed_at < seen.deadline
    for entry in seen.journal:
        assert entry.started_at is not None
        assert entry.finished_at is not None
        assert entry.started_at <= entry.finished_at


async def test_attempts_that_were_cut_short_are_not_told_as_counted(client: Client) -> None:
    """The journal knows the first attempt only; the count beside it went with the run, or with the wait for the activity."""
    second = asyncio.Event()

    @activity(retry=Retry(initial=0.01))
    async def stubborn() -> None:
        if activity_info().attempt == 1:
            raise ConnectionError("not yet")
        second.set()
        await asyncio.sleep(3600)

    @workflow
    async def insists() -> None:
        await note(1)
        await stubborn()

    async with running_worker(client, insists):
        run = await client.start(insists)
        await second.wait()
        open_entry = (await run.describe()).journal[1]
        await run.terminate("enough")
        counted, cut_short = (await run.describe()).journal

    assert (open_entry.attempts, open_entry.is_counted) == (2, True)
    assert (counted.attempts, counted.is_counted) == (1, True)
    assert (cut_short.attempts, cut_short.is_counted) == (1, False)


async def test_events_are_the_raw_journal(client: Client) -> None:
    """Append-only: a later read extends an earlier one (I1)."""
    async with running_worker(client, waits):
        run = await client.start(waits, 1)
        await is_waiting(run, "signal")
        before = [str(event) for event in await run.events()]
        await run.signal(number, 1)
        await run.result(60)
        after = [str(event) for event in await run.events()]
    assert len(before) < len(after)
    assert [line.split(" object at")[0] for line in after[: len(before)]] == [
        line.split(" object at")[0] for line in before
    ]


async def test_an_unknown_run_is_named_with_near_ids(client: Client) -> None:
    """For every way to ask for one."""
    await client.start(ends, 1, run_id="order-7")
    for ask in (client.get, client.describe, client.events, client.cancel, client.terminate):
        with pytest.raises(RunNotFoundError) as unknown:
            await ask("order-8")
        assert unknown.value.run_id == "order-8"
        assert "order-7" in unknown.value.suggestions
        assert "order-7" in str(unknown.value)


async def test_a_generation_is_addressed_by_its_number_and_an_exact_id_wins(client: Client) -> None:
    """Only a final `@digits` means a generation."""
    async with running_worker(client, ends):
        for value in (1, 2):
            await (await client.start(ends, value, run_id="g", if_closed="new")).result(60)
        await (await client.start(ends, 30, run_id="g@1")).result(60)

        assert (await client.describe("g")).result == 2
        assert (await client.describe("g@2")).result == 2
        assert (await client.describe("g@1")).result == 30
        with pytest.raises(RunNotFoundError):
            await client.describe("g@3")


async def test_an_id_that_looks_like_a_generation_is_found_before_one(client: Client) -> None:
    """Also while there is a newer one that begins alike."""
    for run_id in ("a", "a@1", "a@10", "b@1x"):
        await client.start(ends, 1, run_id=run_id)

    assert [(await client.describe(f"a@{n}")).run_id for n in (1, 10)] == ["a@1", "a@10"]
    assert (await client.describe("a")).generation == 1
    with pytest.raises(RunNotFoundError):
        await client.describe("b@1")


async def test_results_are_plain_data_without_the_workflow_and_typed_with_it(client: Client) -> None:
    """`get(id, workflow)` decodes by the workflow's hints."""

    @workflow
    async def when() -> datetime:
        return datetime(2020, 1, 1, tzinfo=UTC)

    async with running_worker(client, when):
        await (await client.start(when, run_id="w")).result(60)

    assert await (await client.get("w")).result(60) == "2020-01-01T00:00:00Z"
    assert await (await client.get("w", when)).result(60) == datetime(2020, 1, 1, tzinfo=UTC)


# ─ lists ──


@pytest.mark.parametrize("wrong", [None, 7, b"order-7", ["order-7"]])
async def test_a_run_id_that_is_no_text_is_refused(client: Client, wrong: Any) -> None:
    """By the library's own error, whoever asks."""
    for ask in (client.get, client.describe, client.events, client.why, client.cancel):
        with pytest.raises(ArgumentsError, match="a run id is"):
            await ask(wrong)


async def test_lists_are_newest_first_and_filtered(client: Client) -> None:
    """All filters hold together."""
    await client.start(ends, 1, run_id="a-1", task_queue="left")
    await client.start(waits, 1, run_id="a-2", task_queue="right")
    await client.start(ends, 2, run_id="b-1", task_queue="right")

    async def ids(**filters: Any) -> list[str]:
        return [run.run_id for run in await client.list(**filters)]

    assert await ids() == ["b-1", "a-2", "a-1"]
    assert await ids(limit=2) == ["b-1", "a-2"]
    assert await ids(workflow="ends") == ["b-1", "a-1"]
    assert await ids(workflow="w*") == ["a-2"]
    assert await ids(task_queue="right", workflow="ends") == ["b-1"]
    assert await ids(run_id="a-*") == ["a-2", "a-1"]
    assert await ids(run_id="[ab]-1") == []
    assert await ids(since=3600) == ["b-1", "a-2", "a-1"]
    assert await ids(until=timedelta(hours=1)) == []
    assert await ids(since=datetime(2100, 1, 1, tzinfo=UTC)) == []
    for wrong in ({"status": "finished"}, {"since": datetime(2020, 1, 1)}, {"limit": -1}, {"limit": "9"}):
        with pytest.raises(ArgumentsError):
            await ids(**wrong)
    assert set(await client.complete_run_id("a-")) == {"a-1", "a-2"}
    assert set(await client.complete_run_id("1")) == {"a-1", "b-1"}


async def test_list_by_status_agrees_with_what_it_shows(client: Client, url: str) -> None:
    """Every run is found under the status it shows, and under no other."""

    @activity
    async def forever() -> None:
        await asyncio.sleep(3600)

    @workflow
    async def runs_on() -> None:
        await forever()

    async with no_durability(url) as other, running_worker(client, waits, ends, runs_on) as worker:
        warm = await client.start(waits, 1, run_id="warm")
        await (await client.start(ends, 1, run_id="ended")).result(60)
        busy = await client.start(runs_on, run_id="busy")
        await client.start(ends, 1, run_id="later", task_queue="nobody")
        stopped = await client.start(waits, 1, run_id="stopped")
        await is_waiting(stopped, "signal")
        await stopped.terminate()
        await is_waiting(warm, "signal")
        await is_waiting(busy, "activity")

        shown = {run.run_id: run.status for run in await other.list()}
        assert shown == {
            "warm": "waiting",
            "ended": "completed",
            "busy": "running",
            "later": "pending",
            "stopped": "terminated",
        }
        for status in RunStatus:
            found = {run.run_id for run in await other.list(status=status)}
            assert found == {run_id for run_id, its in shown.items() if its == status}, status
        several = {run.run_id for run in await other.list(status=["waiting", "completed"])}
        assert several == {"warm", "ended"}
        worker.stop(0)


@workflow
async def refused(value: int) -> int:
    return await refuse(value)


@activity(retry=Retry(max_attempts=2, initial=0.001))
async def refuse(value: int) -> int:
    raise ConnectionError(f"no line {value}")


async def test_who_asks_for_running_runs_reads_nothing_of_those_that_wait(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be a hundred thousand of them; who asks for waiting ones learns of those that wait in memory, too."""
    async with running_worker(client, waiting_for_a_number):
        runs = [await client.start(waiting_for_a_number) for _ in range(3)]
        for run in runs:
            await is_waiting(run, "signal")
    reads = Reads(client, monkeypatch)

    assert await client.list(status="running") == []
    assert reads.count == 0
    assert len(await client.list(status=["running", "waiting"])) == 3
    assert reads.count == 3


async def test_a_list_reads_the_journals_of_driven_runs_only(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closed ones, and those that nobody has begun, tell everything by their rows: whose error it was, too."""
    async with running_worker(client, refused, waiting_for_a_number):
        waiting = await client.start(waiting_for_a_number)
        await is_waiting(waiting, "signal")
        for value in range(5):
            run = await client.start(refused, value)
            with pytest.raises(WorkflowFailedError):
                await run.result(60)
        reads = Reads(client, monkeypatch)
        runs = await client.list()
        assert reads.count == 1
    await client.start(refused, 9)
    assert len(await client.list(status="pending")) == 1
    assert reads.count == 1

    assert [run.journal for run in runs] == [[]] * 6
    assert [blocker.name for blocker in runs[-1].waiting_on] == ["number"]
    failure = runs[0].failure
    assert failure is not None
    assert (failure.activity, failure.attempts, failure.message) == ("refuse", 2, "no line 4")
    assert [len(run.journal) for run in await client.list(journals=True)] == [0, 1, 1, 1, 1, 1, 1]


@workflow
async def waiting_for_a_number() -> int:
    return await number.wait()


async def test_runs_are_counted_by_what_their_rows_tell(client: Client) -> None:
    """With the filters of lists; what only a journal tells is refused."""

    @workflow
    async def counted(number: int) -> int:
        return number

    for number in range(3):
        await client.start(counted, number, run_id=f"c-{number}")
    await client.terminate("c-0")

    assert await client.count() == 3
    assert await client.count(run_id="c-*", status=["pending", "terminated"]) == 3
    assert await client.count(status="failed") == 0
    assert await client.count(by="status") == {"pending": 2, "terminated": 1}
    assert await client.count(by="workflow", status="pending") == {counted.name: 2}
    assert await client.count(by="queue", since=3600) == {"default": 3}
    with pytest.raises(ArgumentsError, match="told by its journal"):
        await client.count(status="compensating")
    with pytest.raises(ArgumentsError, match="by status, workflow or queue, not 'day'"):
        await client.count(by="day")  # type: ignore[call-overload]
