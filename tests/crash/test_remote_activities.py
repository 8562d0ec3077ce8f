"""Activities on other queues while the processes on either side are killed, at every transaction between them."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from durable import connect
from tests.crash.programs.elsewhere import LIMIT_SECONDS, SLOTS, chain, crowd, neighbours, prompted
from tests.support.supervisor import PATIENCE, ROOT
from tests.support.workers import until

STEPS = 3


class Process:
    """A worker that is started again, without its plan, whenever it has ended."""

    def __init__(self, url: str, role: str, ledger: Path, point: str) -> None:
        self._words = [url, role, str(ledger)]
        self._point = point
        self.deaths = 0
        self.process: asyncio.subprocess.Process | None = None

    async def run(self) -> None:
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        plan = [self._point] if self._point else []
        while True:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.crash.programs.elsewhere", *self._words, *plan,
                cwd=ROOT, env=os.environ | {"PYTHONPATH": path},
            )  # fmt: skip
            await self.process.wait()
            self.deaths += 1
            plan = []

    def kill(self) -> None:
        if self.process is not None and self.process.returncode is None:
            self.process.kill()


@asynccontextmanager
async def two_workers(
    url: str, ledger: Path, *, owner: str = "", gpu: str = ""
) -> AsyncIterator[tuple[Process, Process]]:
    """Run the worker of the runs and that of their activities; each may have a point to die at."""
    both = (Process(url, "owner", ledger, owner), Process(url, "gpu", ledger, gpu))
    async with running(*both):
        yield both


@asynccontextmanager
async def running(*processes: Process) -> AsyncIterator[None]:
    """Keep the processes going for the length of the block, then kill them."""
    tasks = [asyncio.create_task(one.run()) for one in processes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for one in processes:
            one.kill()
            if one.process is not None:
                await one.process.wait()


def begun(ledger: Path) -> list[tuple[str, int]]:
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    return [(line.split()[0], int(line.split()[1])) for line in lines]


async def check(url: str, ledger: Path, *, owner: str = "", gpu: str = "") -> list[tuple[str, int]]:
    """Let a run go its way past the deaths that were planned, and return which attempts had begun."""
    async with (
        connect(url, durability="process") as client,
        two_workers(url, ledger, owner=owner, gpu=gpu) as both,
    ):
        run = await client.start(chain, STEPS, run_id="r")
        assert await run.result(PATIENCE) == [0, 10, 20]
        assert [one.deaths for one in both] == [int(bool(owner)), int(bool(gpu))]
        journal = (await run.describe()).journal
        record = await client.store.get_run("r")
        assert await client.store.read_tasks(record.pk, 1) == []
    found = begun(ledger)
    assert len(found) == len(set(found)), "an attempt was begun twice"
    for number, entry in enumerate(journal, 1):
        attempts = [attempt for key, attempt in found if key == f"r@1/work#{number}"]
        assert entry.status == "completed"
        assert max(attempts) == entry.attempts, "the attempt that counts is the last that began"
    return found


FIRST_TRY = [(f"r@1/work#{number}", 1) for number in range(1, STEPS + 1)]


async def test_a_worker_killed_in_the_body_has_lost_an_attempt(url: str, tmp_path: Path) -> None:
    """It was charged before it began; another incarnation begins the next."""
    found = await check(url, tmp_path / "ledger", gpu="in_body")

    assert found == [FIRST_TRY[0], ("r@1/work#1", 2), *FIRST_TRY[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "first_attempts"),
    [
        ("after_claim", [2]),  # charged, and never begun
        ("before_end", [1, 2]),  # its result is nobody's
        ("after_end", [1]),  # it is in the inbox
    ],
)
async def test_a_worker_killed_around_its_transactions(
    url: str, tmp_path: Path, point: str, first_attempts: list[int]
) -> None:
    """What was committed counts, what was not did not happen."""
    found = await check(url, tmp_path / "ledger", gpu=point)

    assert [attempt for key, attempt in found if key == "r@1/work#1"] == first_attempts
    assert [one for one in found if one[0] != "r@1/work#1"] == FIRST_TRY[1:]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before_schedule", "after_schedule", "before_take", "after_take"])
async def test_the_death_of_the_runs_own_worker_costs_no_attempt(
    url: str, tmp_path: Path, point: str
) -> None:
    """The activity is another worker's: it goes on, and its outcome waits."""
    assert await check(url, tmp_path / "ledger", owner=point) == FIRST_TRY


@pytest.mark.slow
@pytest.mark.long_on_postgres
@pytest.mark.parametrize("owner", ["before_schedule", "after_schedule", "before_take", "after_take"])
@pytest.mark.parametrize("gpu", ["after_claim", "in_body", "before_end", "after_end"])
async def test_both_may_die(url: str, tmp_path: Path, owner: str, gpu: str) -> None:
    """At any two points."""
    await check(url, tmp_path / "ledger", owner=owner, gpu=gpu)


@pytest.mark.slow
async def test_runs_survive_kills_at_random_moments(url: str, tmp_path: Path) -> None:
    """Many runs, each attempt begun once, each step's outcome the last attempt's."""
    ledger = tmp_path / "ledger"
    async with connect(url, durability="process") as client, two_workers(url, ledger) as both:
        runs = [await client.start(chain, STEPS, run_id=f"r{number}") for number in range(10)]
        for round_ in range(4):
            seen = len(begun(ledger))
            await until(lambda seen=seen: len(begun(ledger)) > seen + 2, seconds=PATIENCE)  # type: ignore[misc]
            both[round_ % 2].kill()
        for run in runs:
            assert await run.result(PATIENCE) == [0, 10, 20]
            for number, entry in enumerate((await run.describe()).journal, 1):
                key = f"{run.run_id}@1/work#{number}"
                assert max(a for k, a in begun(ledger) if k == key) == entry.attempts
    assert len(begun(ledger)) == len(set(begun(ledger)))


@pytest.mark.slow
async def test_an_activity_that_ends_its_worker_uses_up_its_own_attempts(url: str, tmp_path: Path) -> None:
    """Each death charges it one; those beside it begin again a few at a time, and get there (P14)."""
    async with connect(url, durability="process") as client, two_workers(url, tmp_path / "ledger"):
        run = await client.start(neighbours, 5)

        assert await run.result(PATIENCE) == ["WorkerLostError", 0, 1, 2, 3, 4]

        (attempts, *others) = [entry.attempts for entry in (await run.describe()).journal]
    assert attempts == 3
    assert max(others) <= 4


@pytest.mark.slow
async def test_no_worker_holds_more_than_it_has_slots_whoever_dies(url: str, tmp_path: Path) -> None:
    """At no instant, as the store tells who holds what, and as the bodies themselves note it (I8)."""
    ledger = tmp_path / "ledger"
    owner, *narrow = [Process(url, role, ledger, "") for role in ("owner", "narrow", "narrow", "narrow")]
    held: list[int] = []
    async with connect(url, durability="process") as client, running(owner, *narrow):
        run = await client.start(crowd, 60, run_id="r")
        pk = (await client.store.get_run("r")).pk
        result = asyncio.ensure_future(run.result(PATIENCE))
        kills = iter(narrow)
        while not result.done():
            tasks = await client.store.read_tasks(pk, 1)
            of_owners = Counter(task.owner for task in tasks if task.state == "started")
            held.extend(of_owners.values())
            if len(held) > 20 and 15 < len(tasks) < 45 and (victim := next(kills, None)) is not None:
                victim.kill()
            await asyncio.sleep(0.01)
        assert result.result() == list(range(60))

    assert max(held) == SLOTS
    assert max(side_by_side(ledger).values()) == SLOTS


@pytest.mark.slow
@pytest.mark.parametrize("first", ["owner", "gpu"])
async def test_an_activity_that_waits_too_long_for_a_worker_is_never_begun(
    url: str, tmp_path: Path, first: str
) -> None:
    """Everybody died while it waited: whoever comes back first, its time was counted from its scheduling, and it is not retried."""
    ledger = tmp_path / "ledger"
    owner, gpu = Process(url, "owner", ledger, ""), Process(url, "gpu", ledger, "")
    async with connect(url, durability="process") as client:
        run = await client.start(prompted, run_id="r")
        pk = (await client.store.get_run("r")).pk

        async def tasks() -> list[str]:
            return [task.state for task in await client.store.read_tasks(pk, 1)]

        async with running(owner):
            await until(tasks, seconds=PATIENCE)
        over = time.monotonic() + LIMIT_SECONDS
        await until(lambda: time.monotonic() > over)

        one, other = (owner, gpu) if first == "owner" else (gpu, owner)
        async with running(one):
            await until(lambda: no_more(tasks), seconds=PATIENCE, what="somebody ends the task")
            async with running(other):
                assert await run.result(PATIENCE) == "schedule_to_start passed"
    assert not ledger.exists()


async def no_more(tasks: Callable[[], Awaitable[list[str]]]) -> bool:
    return await tasks() == []


def side_by_side(ledger: Path) -> dict[int, int]:
    """Return how many bodies ran at a time in each process, at most."""
    running_now: Counter[int] = Counter()
    most: dict[int, int] = {}
    lines = [line.split() for line in ledger.read_text().splitlines()]
    for what, _, pid, _ in sorted(lines, key=lambda words: float(words[3])):
        running_now[int(pid)] += 1 if what == "begin" else -1
        most[int(pid)] = max(most.get(int(pid), 0), running_now[int(pid)])
    return most
