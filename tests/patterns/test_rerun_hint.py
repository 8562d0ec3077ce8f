"""A script that is run again without a run id begins a new run: it says so, if an old one lies about."""

from __future__ import annotations

import pytest

import durable
from durable import Pipeline, step, workflow


@step
async def fetch(ctx: dict[str, object]) -> str:
    return "fetched"


@workflow
async def plain() -> str:
    return "done"


async def test_unfinished_runs_are_hinted_at_once(embedded: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, once per definition; none when the id is given or nothing is unfinished."""
    pipeline = Pipeline("report", [fetch])
    await pipeline.execute(run_id="given")
    await pipeline.execute()
    assert capsys.readouterr().err == ""
    await Pipeline("other", [fetch]).enqueue(run_id="other-1")
    await plain.enqueue(run_id="left-1")

    await plain(run_id="again")
    assert capsys.readouterr().err == ""
    await plain()
    await plain()

    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "'plain'" in lines[0]
    assert "left-1" in lines[0]
    assert "other-1" not in lines[0]
    assert (await durable.get_run("left-1")).status == "pending"
