"""What store tests do over and over, in the words of the contract."""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from durable.journal.lifecycle import RunStatus
from durable.seams import SystemClock
from durable.store.contract import Store
from durable.store.opening import open_store
from durable.store.records import Claim, Close, Outgoing, StartOutcome, StartRequest, TurnCommit, WorkerInfo

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
W1 = (("w", 1),)
_numbers = itertools.count(1)


async def opened(url: str) -> Store:
    """Open a store that leaves flushing to the operating system and takes the time from its caller."""
    return await open_store(url, durability="off", clock=SystemClock())


async def a_worker(store: Store, name: str = "worker", definitions: tuple[tuple[str, int], ...] = W1) -> int:
    return await store.register_worker(WorkerInfo(name=name, task_queue="default", definitions=definitions))


def request(run_id: str, **changes: Any) -> StartRequest:
    values: dict[str, Any] = {
        "run_id": run_id,
        "request_id": f"request-{os.getpid()}-{next(_numbers)}",
        "workflow": "w",
        "version": 1,
        "task_queue": "default",
        "input": b"[]",
    }
    return StartRequest(**{**values, **changes})


async def start(store: Store, run_id: str, *, now_us: int = NOW, **changes: Any) -> StartOutcome:
    (outcome,) = await store.start_runs([request(run_id, **changes)], now_us)
    return outcome


async def started_by(store: Store, worker: int, run_id: str, **changes: Any) -> Claim:
    outcome = await start(store, run_id, owner=worker, **changes)
    assert outcome.claim is not None
    return outcome.claim


async def claim(
    store: Store,
    worker: int,
    *,
    now_us: int = NOW,
    limit: int = 100,
    task_queue: str | None = "default",
    definitions: Sequence[tuple[str, int]] = W1,
    pks: Sequence[int] | None = None,
) -> list[Claim]:
    return await store.claim_ready_runs(
        worker, now_us=now_us, limit=limit, task_queue=task_queue, definitions=definitions, pks=pks
    )


def turn(held: Claim, number: int | None = 1, data: bytes = b"{}", **changes: Any) -> TurnCommit:
    parts = () if number is None else (data,)
    values: dict[str, Any] = {
        "pk": held.pk,
        "generation": held.generation,
        "claim_no": held.claim_no,
        "turn": number,
        "parts": parts,
    }
    return TurnCommit(**{**values, **changes})


async def commit(store: Store, worker: int, *commits: TurnCommit, now_us: int = NOW) -> list[str]:
    return list(await store.commit_turns(worker, commits, now_us))


async def close(
    store: Store, worker: int, held: Claim, status: RunStatus = RunStatus.COMPLETED, number: int = 1
) -> None:
    done = Close(status=status, result=b"1" if status is RunStatus.COMPLETED else None)
    assert await commit(store, worker, turn(held, number, after=done)) == ["committed"]


def to(run_id: str, **changes: Any) -> Outgoing:
    """Return a signal for a run."""
    values: dict[str, Any] = {"kind": "signal", "name": "go", "data": b"1", "message_id": None}
    return Outgoing(run_id=run_id, **{**values, **changes})


async def signal(
    store: Store, run_id: str, *, message_id: str | None = None, data: bytes = b"1", now_us: int = NOW
) -> int:
    outcome = await store.send_message(to(run_id, message_id=message_id, data=data), now_us)
    return outcome.msg


async def journal(store: Store, held: Claim, generation: int | None = None) -> list[tuple[int, bytes]]:
    rows = await store.read_journal(held.pk, generation or held.generation)
    return [(row.turn, row.data) for row in rows]


async def status(store: Store, run_id: str) -> RunStatus:
    return (await store.get_run(run_id)).status


async def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Wait on a condition, never on time; `seconds` is only when to give up."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.005)


class Process:
    """A Python process that runs `script` with the helpers of this module at hand and talks in lines."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def run(cls, script: str, *arguments: str) -> Process:
        here = Path(__file__)
        header = f"import sys; sys.path[:0] = [{str(here.parents[2])!r}, {str(here.parent)!r}]\n"
        return cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                header + script,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )

    async def line(self) -> str:
        assert self.process.stdout is not None
        data = await asyncio.wait_for(self.process.stdout.readline(), 60)
        return data.decode().strip()

    def tell(self, text: str = "") -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode() + b"\n")

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()
