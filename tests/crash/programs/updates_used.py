"""A run that is called into, for the crash suite, by callers who die with it. What one was told stands, whatever died."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any, Final

from durable import (
    Client,
    Retry,
    RunHandle,
    UpdateFailedError,
    UpdateRejectedError,
    activity,
    all_handlers_finished,
    continue_as_new,
    info,
    wait_condition,
    workflow,
    workflow_of,
)
from tests.support import crash_ledger
from tests.support.crash_ledger import effect

RETRY: Final = Retry(initial=0.01, maximum=0.01)
CALLS: Final = 8
REFUSED: Final = frozenset({4})
BROKEN: Final = frozenset({3})
ADDED: Final = sorted(set(range(CALLS)) - REFUSED - BROKEN)
ANSWERS: Final = "answers.jsonl"  # what callers were told: a line for each, on the disk


@activity(retry=RETRY)
async def square(number: int) -> int:
    with effect() as done:
        done.value = number * number
        return number * number


def beside(name: str) -> Path:
    """Return a file of the scene."""
    return Path(os.environ[crash_ledger.VARIABLE]).parent / name


@workflow(retries=1, retry_delay=0)
class Cart:
    """Goes on as new once; then a life fails, and the next begins from nothing: it handles again what the other was told."""

    def __init__(self, added: list[int]) -> None:
        self.added = added
        self.is_second = bool(added)

    async def run(self) -> list[int]:
        if not self.is_second:
            await wait_condition(lambda: len(self.added) >= 3)
            await wait_condition(all_handlers_finished)
            continue_as_new(self.added)
        if info().attempt == 1:
            await wait_condition(lambda: len(self.added) >= len(ADDED))
            await wait_condition(all_handlers_finished)
            raise ConnectionError("the first life fails")
        return self.added  # at once: whatever the first life has answered is in it all the same

    @workflow.update
    async def add(self, number: int) -> list[int]:
        """The answer differs from life to life, and from call to call."""
        if number in BROKEN:
            raise LookupError(number)
        if not self.is_second:
            await square(number)  # a life that is tried again would do it again
        else:
            await asyncio.sleep(0.002)
        self.added.append(number)
        return [info().generation, info().attempt, len(self.added)]

    @add.validator
    def check(self, number: int) -> None:
        if number in REFUSED or number in self.added:
            raise ValueError(number)


async def call_all(run: RunHandle[Any]) -> None:
    """Call, and note what one is told; whoever begins again calls again with the same ids."""
    for number in range(CALLS):
        told: object
        try:
            told = await run.update(Cart.add, number, id=f"add-{number}")
        except (UpdateRejectedError, UpdateFailedError) as error:
            told = f"{type(error).__name__}: {error.__cause__!r}"
        crash_ledger.append(beside(ANSWERS), [number, told])


async def execute_all() -> None:
    """In this process, by two callers at once."""
    run = await workflow_of(Cart).start([], run_id="cart")
    await asyncio.gather(call_all(run), call_all(run))
    await run.result()


async def call_one(client: Client) -> None:
    """Of a worker: by one caller, who names the run by its id."""
    await client.start(Cart, [], run_id="cart")
    await call_all(await client.get("cart", Cart))
