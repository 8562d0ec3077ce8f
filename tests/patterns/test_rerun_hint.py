"""A script that is run again without a run id begins a new run: it says so, if an old one lies about."""

from __future__ import annotations

from typing import Any

import pytest

import durable
from durable import BulkOperation, Pipeline, WorkflowBuilder, WorkflowEngine, step, workflow


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


async def double(item: int) -> int:
    return item * 2


def nothing() -> None: ...


@pytest.mark.parametrize(
    ("pattern", "given"),
    [
        (lambda: Pipeline("left behind", [fetch]), None),
        (lambda: WorkflowEngine(WorkflowBuilder("left behind").add_node("a", node=nothing).build()), None),
        (lambda: BulkOperation(double, name="left behind"), [1]),
    ],
    ids=["pipeline", "graph", "bulk"],
)
async def test_every_pattern_hints(
    embedded: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    pattern: Any,
    given: list[int] | None,
) -> None:
    """With the ids of what lies about; leaving another one to a worker is no reason to hint."""
    monkeypatch.setattr(BulkOperation, "_hinted", set())  # it hints once per process
    made = pattern()
    await made.enqueue(given, run_id="left-1")
    await made.enqueue(given)
    assert capsys.readouterr().err == ""

    await made.execute(given)
    await made.execute(given)

    (line,) = capsys.readouterr().err.splitlines()
    assert "'left behind'" in line
    assert "left-1" in line
