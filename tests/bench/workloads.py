"""The workflows that are measured: steps that do nothing, so that what is left is the library."""

from __future__ import annotations

from typing import Final

from durable import Signal, activity, workflow

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
