"""The raw limit: what the store call `commit_turns` does alone, in rows of the same size and batches of the same number.

`CommitMeter` looks at the calls of a measured run; `raw_rows_per_second` repeats their shape in a tight loop. A
ratio of the two says what driving, performing and encoding cost, whatever the disk did that minute.
"""

from __future__ import annotations

import asyncio
import time
import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any, Final, TypeVar

from durable.client import Client
from durable.store.contract import Store
from durable.store.records import Close, StartRequest, TurnCommit, Verdict, WorkerInfo

T = TypeVar("T")

RAW_SECONDS: Final = 0.25
ROWS_MIN: Final = 200
BATCHES_MIN: Final = 5


class CommitMeter:
    """Counts what goes through `commit_turns` of one store, and the loop thread's CPU seconds inside it."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()
        self.reset()

    def reset(self) -> None:
        self.calls = self.items = self.turns = self.row_bytes = self.closed = 0
        self.seconds = self.cpu_seconds = 0.0

    @property
    def batch(self) -> int:
        """The mean number of turns in a commit, at least 1."""
        return max(1, round(self.turns / self.calls)) if self.calls else 1

    @property
    def row_size(self) -> int:
        """The mean bytes of a journal row."""
        return max(1, round(self.row_bytes / self.turns)) if self.turns else 1

    async def wait_closed(self, runs: int) -> None:
        """Return once the commits have closed so many runs."""
        while self.closed < runs:
            self._changed.clear()
            await self._changed.wait()

    def attach(self, store: Store) -> None:
        """Stand between a store and its worker from now on."""
        commit_turns = store.commit_turns
        commit_turns_now = store.commit_turns_now

        async def metered(worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
            began = time.perf_counter()
            verdicts = await self._on_cpu(commit_turns(worker_id, commits, now_us))
            self.seconds += time.perf_counter() - began
            self._count(commits, verdicts)
            return verdicts

        def metered_now(worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict] | None:
            began, began_cpu = time.perf_counter(), time.thread_time()
            verdicts = commit_turns_now(worker_id, commits, now_us)
            if verdicts is not None:
                self.cpu_seconds += time.thread_time() - began_cpu
                self.seconds += time.perf_counter() - began
                self._count(commits, verdicts)
            return verdicts

        # One instance, for the time of a measurement.
        store.commit_turns = metered  # type: ignore[method-assign]
        store.commit_turns_now = metered_now  # type: ignore[method-assign]

    def _count(self, commits: Sequence[TurnCommit], verdicts: Sequence[Verdict]) -> None:
        self.calls += 1
        self.items += len(commits)
        for commit, verdict in zip(commits, verdicts, strict=True):
            if commit.turn is not None and verdict in ("committed", "stayed"):
                self.turns += 1
                self.row_bytes += sum(map(len, commit.parts))
                self.closed += type(commit.after) is Close
        self._changed.set()

    @types.coroutine
    def _on_cpu(self, coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Await the coroutine and count the CPU of this thread until its first suspension: inline, all of it."""
        began = time.thread_time()
        try:
            first = coroutine.send(None)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]  # StopIteration is not generic
        finally:
            self.cpu_seconds += time.thread_time() - began
        while True:
            try:
                sent = yield first
            except BaseException as error:
                step: Callable[[Any], Any] = coroutine.throw
                argument: Any = error
            else:
                step = coroutine.send
                argument = sent
            try:
                first = step(argument)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]  # as above


async def raw_rows_per_second(
    client: Client,
    *,
    batch: int,
    row_size: int,
    seconds: float = RAW_SECONDS,
    rows_min: int = ROWS_MIN,
) -> float:
    """Commit batches of one plain row for each of `batch` runs in a tight loop; return rows per second.

    It takes at least so many seconds and rows.
    """
    store = client.store
    commit_turns = type(store).commit_turns  # past the meter
    worker = await store.register_worker(WorkerInfo(name="raw", task_queue="raw", definitions=()))
    token = client.random.run_suffix()
    requests = [
        StartRequest(
            run_id=f"raw-{token}-{number}",
            request_id=client.random.request_id(),
            workflow="raw",
            version=1,
            task_queue="raw",
            input=b"[]",
            owner=worker,
        )
        for number in range(batch)
    ]
    claims = [one.claim for one in await store.start_runs(requests, client.clock.now_us())]
    data = (b"x" * row_size,)

    def batch_of(turn: int) -> list[TurnCommit]:
        return [
            TurnCommit(pk=claim.pk, generation=1, claim_no=claim.claim_no, turn=turn, parts=data)
            for claim in claims
            if claim is not None
        ]

    now_us = client.clock.now_us()
    await commit_turns(store, worker, batch_of(1), now_us)
    turn, spent = 1, 0.0
    rounds = max(1, min(BATCHES_MIN, rows_min), rows_min // batch)
    count = 0
    while not count or spent < seconds:
        batches = [batch_of(turn + 1 + number) for number in range(rounds)]
        turn += rounds
        began = time.perf_counter()
        for commits in batches:
            await commit_turns(store, worker, commits, now_us)
        spent += time.perf_counter() - began
        count += rounds * batch
    await store.retire_worker(worker)
    return count / spent
