"""From what a person types to a database and a run: `@last`, `order-7@2`, `order-` and other beginnings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from durable import Client, Run, RunNotFoundError, connect
from durable_cli.codecs import codec_of
from durable_cli.options import Settings
from durable_cli.problems import NOT_FOUND, Problem, did_you_mean, near_ones, quoted

T = TypeVar("T")

LAST: Final = "@last"
LAST_FAILED: Final = "@last-failed"
_FAILED: Final = ("failed", "timed_out")
_NEAR_AMONG: Final = 200  # so many of the newest ids are compared with a mistyped one


def run_async(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run one command's coroutine on a loop of its own."""
    return asyncio.run(coroutine)


@asynccontextmanager
async def database(settings: Settings, *, create: bool = False) -> AsyncIterator[Client]:
    """Open the database of the settings; only what starts or drives runs creates it."""
    async with connect(settings.db, create=create, codec=codec_of(settings)) as client:
        yield client


async def find_run(client: Client, text: str) -> Run:
    """Return the run that reading commands mean by `text`: an id, `id@2`, a shortcut, a unique beginning or end."""
    if text in (LAST, LAST_FAILED):
        return await _last(client, text)
    try:
        return await client.describe(text)
    except RunNotFoundError as error:
        near = await client.complete_run_id(text) if text else []
        if len(near) == 1:
            return await client.describe(near[0])
        if near:
            raise Problem(
                f"{quoted(text)} is short for several runs",
                code=NOT_FOUND,
                hint=f"say more: {', '.join(near)}",
            ) from None
        if error.suggestions:
            raise
        raise Problem(f"no run {quoted(text)}", code=NOT_FOUND, hint=await _hint(client, text)) from None


async def exact_run_id(client: Client, text: str, command: str) -> str:
    """Return the id if there is such a run; commands that change something take nothing less."""
    if text in (LAST, LAST_FAILED):
        meant = (await _last(client, text)).run_id
        raise Problem(f"{command} takes an exact run id, not {text}", hint=f"durable {command} {meant}")
    try:
        run = await client.describe(text)
    except RunNotFoundError as error:
        near = await client.complete_run_id(text) if text else []
        hint = near_ones(near or error.suggestions) or await _hint(client, text)
        raise Problem(f"no run {quoted(text)}", code=NOT_FOUND, hint=hint) from None
    if run.run_id != text:  # `id@2` named a generation
        raise Problem(f"{command} changes the latest generation only", hint=f"durable {command} {run.run_id}")
    return text


async def _last(client: Client, which: str) -> Run:
    runs = await client.list(status=_FAILED if which == LAST_FAILED else None, limit=1)
    if not runs:
        what = "no run has failed" if which == LAST_FAILED else "there are no runs yet"
        raise Problem(what, code=NOT_FOUND, hint="durable list")
    return runs[0]


async def _hint(client: Client, text: str) -> str:
    newest = [run.run_id for run in await client.list(limit=_NEAR_AMONG)]
    return did_you_mean(text, newest, otherwise="durable list --since 1h") or ""
