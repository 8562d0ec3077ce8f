"""Never run: mypy reads it. The types that tests of workflows see."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from durable import Client, RecordedRun, activity, workflow
from durable.testing import Call, CrashReport, Environment, Mock, Replayed, crash_everywhere, replay


@activity
async def charge(order_id: str, cents: int) -> str:
    return order_id


@activity
def count(order_id: str) -> int:
    return 1


@workflow
async def order(order_id: str) -> str:
    return await charge(order_id, 1)


def one(order_id: str) -> int:
    return 1


async def mocks() -> None:
    async with Environment() as env:
        mock = env.mock(charge, returns="p-1", raises=TimeoutError(), times=2, delay=3)
        typed: Mock[..., str] = mock
        assert_type(mock.calls, list[Call])
        other: Mock[..., str] = env.mock(count, one)  # type: ignore[arg-type]
        env.mock(count, returns="two")  # type: ignore[misc]
        print(typed, other)
        assert_type(await order("o-1"), str)
        assert_type(await env.client.recorded("o-1"), RecordedRun)


async def replays(client: Client, recorded: RecordedRun) -> None:
    assert_type(replay(recorded, order), Replayed)
    assert_type(replay(Path("order.json"), order), Replayed)


def crashes() -> None:
    assert_type(crash_everywhere(order, "o-1", mocks={charge: lambda order_id, cents: order_id}), CrashReport)
