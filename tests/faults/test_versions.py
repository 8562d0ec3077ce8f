"""Two versions side by side: of the code, and of the schema. What one of them cannot read it says, and the other one goes on with it."""

from __future__ import annotations

import asyncio

import pytest

from durable import SchemaVersionError, Signal, activity, connect, patched, workflow
from tests.faults.world import at_work
from tests.support.postgres import looked_up, tampered
from tests.support.workers import is_waiting, running_worker, status_is, until

go = Signal("go", int)
REWRITE = (
    "UPDATE journal SET data = convert_to(replace(convert_from(data, 'UTF8'), ?, ?), 'UTF8') "
    "WHERE turn = 1 AND run = (SELECT id FROM run WHERE run_id = 'r-0')"
)
starts: list[tuple[str, str]] = []  # (run, step)


@activity
async def do(run: str, step: str) -> str:
    starts.append((run, step))
    return step


@workflow(name="deployed")
async def before(run: str) -> list[str]:
    first = await do(run, "first")
    await go.wait()
    return [first, await do(run, "last")]


before.definition.fn.__module__ = "the_code_before"  # two packages, as fingerprints see it


@workflow(name="deployed")
async def after(run: str) -> list[str]:
    told = [await do(run, "first")]
    if patched("check"):
        told.append(await do(run, "check"))
    await go.wait()
    return [*told, await do(run, "last")]


@pytest.mark.slow
async def test_old_and_new_code_share_the_runs_of_a_deploy(direct: str) -> None:
    """Runs begun under either are finished, each by code that knows it; nothing is done twice, nothing stays parked (P13)."""
    starts.clear()
    async with connect(direct) as one, connect(direct) as other:
        async with running_worker(one, before, warm_us=0, name="old"):
            olds = [await one.start(before, f"old-{n}", run_id=f"old-{n}") for n in range(5)]
            for run in olds:
                await is_waiting(run, "signal")
        async with running_worker(other, after, warm_us=0, name="new"):
            news = [await other.start(after, f"new-{n}", run_id=f"new-{n}") for n in range(5)]
            for run in news:
                await is_waiting(run, "signal")
            async with running_worker(one, before, warm_us=0, name="old"):
                for run in (*olds, *news):
                    await run.signal(go, 1)
                for run in (*olds, *news):
                    await status_is(
                        run, "completed"
                    )  # perhaps parked in between, by the code that does not know it
        assert [await run.result() for run in olds] == [["first", "last"]] * 5
        assert [await run.result() for run in news] == [["first", "check", "last"]] * 5
    assert len(starts) == len(set(starts))


@pytest.mark.slow
async def test_a_row_of_a_later_format_parks_its_run_and_no_other(direct: str) -> None:
    """Code that cannot read it says so, by format number; the journal stays as it was, and code that can goes on."""
    async with connect(direct) as client:
        async with running_worker(client, before, warm_us=0):
            runs = [await client.start(before, f"r-{n}", run_id=f"r-{n}") for n in range(3)]
            for run in runs:
                await is_waiting(run, "signal")
        tampered(direct, REWRITE, parameters=('"v":1', '"v":9'))
        async with running_worker(client, before, warm_us=0):
            for run in runs:
                await run.signal(go, 1)
            assert [await run.result(60) for run in runs[1:]] == [["first", "last"]] * 2
            parked = await status_is(runs[0], "parked")
            assert "format 9" in str(parked.failure)
            tampered(direct, REWRITE, parameters=('"v":9', '"v":1'))
            await client.resume("r-0")
            assert await runs[0].result(60) == ["first", "last"]


async def test_a_schema_that_moves_on_under_workers(direct: str) -> None:
    """A migration only adds: code that is running goes on, code that starts anew refuses, and says what to do."""
    async with at_work(direct) as world:
        await until(lambda: len(world.sent) >= 2)
        await asyncio.to_thread(expand, direct)
        sent = len(world.sent)
        await until(lambda: len(world.sent) > sent + 2)
    with pytest.raises(SchemaVersionError, match="upgrade the library"):
        await connect(direct).open()


def expand(url: str) -> None:
    """What the next version's first migration might do: columns that old code need not name, a table that it does not know."""
    for statement in (
        "ALTER TABLE run ADD COLUMN colour text NOT NULL DEFAULT 'grey'",
        "ALTER TABLE journal ADD COLUMN weight integer",
        "CREATE INDEX run_colour ON run (colour) WHERE status < 10",
        "CREATE TABLE paint (run bigint PRIMARY KEY, colour text)",
        "INSERT INTO migration SELECT max(number) + 1, 'colours', 0 FROM migration",
    ):
        looked_up(url, statement)
