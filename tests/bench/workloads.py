"""The workflows that are measured: steps that do nothing, so that what is left is the library."""

from __future__ import annotations

import asyncio
from typing import Final

from durable import Signal, activity, heartbeat, now, sleep, workflow

TEXT: Final = "a payload of about fifty bytes, as orders have them"

go = Signal("go", bool)


@activity
async def pass_on(number: int, text: str) -> int:
    return number + 1


@workflow(name="bench-chain")
async def chain(steps: int) -> int:
    """So many activities, one after the other."""
    number = 0
    while number < steps:
        number = await pass_on(number, TEXT)
    return number


@workflow(name="bench-held")
async def held(steps: int) -> int:
    """So many activities, then a wait for the signal `go`."""
    number = 0
    while number < steps:
        number = await pass_on(number, TEXT)
    await go.wait()
    return number


@workflow(name="bench-fan")
async def fan(width: int) -> int:
    """So many activities at once."""
    return len(await asyncio.gather(*[pass_on(number, TEXT) for number in range(width)]))


@workflow(name="bench-listening")
async def listening(signals: int) -> int:
    """Take in so many signals, one after the other."""
    for _ in range(signals):
        await go.wait()
    return signals


@workflow(name="bench-sleeping")
async def sleeping(until: float) -> None:
    """Sleep until an instant, in seconds since the epoch."""
    await sleep(max(0.0, until - now().timestamp()))


@activity(heartbeat_timeout=10)
async def beat(seconds: float) -> int:
    """Tell every half second how far it has come."""
    told = 0
    while told < seconds * 2:
        heartbeat(told)
        told += 1
        await asyncio.sleep(0.5)
    return told


@workflow(name="bench-beating")
async def beating(activities: int, seconds: float) -> int:
    """So many heartbeating activities at once."""
    return sum(await asyncio.gather(*[beat(seconds) for _ in range(activities)]))


@activity
async def take_long() -> None:
    await asyncio.sleep(3600)


@workflow(name="bench-stuck")
async def stuck() -> None:
    """Stay with whoever holds it."""
    await take_long()
