"""Graphs and questions on the command line: `graph`, `answer`, `inbox`, and how `show` tells of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

import pytest

import durable
from tests.cli.cli_harness import Cli

GRAPHS: Final = """
from durable import HumanNode, Pipeline, WorkflowBuilder, WorkflowEngine, step


@step
async def reserve(state):
    return {"reserved": True}


@step
async def ship(state):
    return {"output": "shipped"}


builder = WorkflowBuilder("shop")
builder.add_node(reserve).add_node(HumanNode("approve", prompt="Ship {order}?", output_key="ok"))
builder.add_gate("decide", {"ship": lambda s: s["ok"], "cancel": lambda s: not s["ok"]})
builder.add_node(ship).add_node("cancel", node=lambda state: {"output": "cancelled"})
builder.add_edge("reserve", "approve").add_edge("approve", "decide")
engine = WorkflowEngine(builder.build())

quick = WorkflowBuilder("quick").add_node(reserve).build()
line = Pipeline("line", [reserve])
"""


@pytest.fixture
def graphs(here: Path) -> Path:
    path = here / "graphs.py"
    path.write_text(GRAPHS)
    return path


@pytest.fixture
def asked(graphs: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """The command line beside a run that asks somebody something; the app is known."""
    monkeypatch.setenv("DURABLE_APP", "graphs.py")
    cli("start", "shop", 'state:={"order": "o-7"}', "--id", "r")
    assert cli("worker", "graphs.py", "--drain").code == 0
    return cli


def test_a_worker_serves_the_patterns_of_a_module(graphs: Path, cli: Cli) -> None:
    """Graphs with an engine and without, pipelines: a module is all it needs."""
    ended = cli("worker", "graphs.py", "--drain")

    assert ended.code == 0
    assert "graphs.py: 3 workflows" in ended.err
    assert cli("run", "graphs.py:line", ":={}").code == 0
    assert cli("run", "graphs.py:quick").code == 0


def test_a_graph_is_drawn_as_text(asked: Cli) -> None:
    """One row per node: its state, kind, what follows; by file, by name within the app, or by a run's id alone."""
    plain = asked("graph", "graphs.py:engine").rows
    assert plain[0][:3] == ["graph", "shop", "version 1"]
    assert [row[1:4] for row in plain[1:]] == [
        ["", "reserve", "task"],
        ["", "approve", "human"],
        ["", "decide", "gate"],
        ["", "ship", "task"],
        ["", "cancel", "task"],
    ]
    assert plain[3][6] == "→ ship?, → cancel?"

    drawn = asked("graph", "graphs.py:engine", "r").rows
    assert drawn[0] == ["graph", "shop", "version 1", "r", "waiting"]
    assert [row[1] for row in drawn[1:]] == ["completed", "waiting", "", "", ""]
    assert drawn[1][6] == "→ approve ✓"
    assert drawn[2][7] == "Ship o-7?"
    assert [row[:4] for row in asked("graph", "shop", "r").rows] == [row[:4] for row in drawn]
    assert [row[:4] for row in asked("graph", "r").rows] == [row[:4] for row in drawn]


def test_a_graph_is_drawn_in_other_languages(asked: Cli) -> None:
    """Mermaid, dot, SVG, JSON."""
    assert asked("graph", "shop", "r", "--format", "mermaid").out.startswith(
        'flowchart TD\n    n0["reserve"]:::completed\n'
    )
    assert asked("graph", "shop", "--format", "dot").out.startswith('digraph "shop" {\n')
    assert asked("graph", "shop", "--format", "svg").out.startswith("<svg ")
    view = json.loads(asked("graph", "shop", "r", "-o", "json").out)
    assert (view["v"], view["name"], view["run_id"]) == (1, "shop", "r")
    assert [node["status"] for node in view["nodes"]][:2] == ["completed", "waiting"]


def test_what_is_no_graph_is_refused(asked: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a hint."""
    assert asked("graph", "graphs.py").err.splitlines() == [
        "error: graphs.py has 2 graphs: shop, quick",
        "hint: say which: graphs.py:VARIABLE",
    ]
    ended = asked("graph", "graphs.py:line")
    assert (ended.code, ended.err.splitlines()[0]) == (2, "error: graphs.py:line has no graph")
    ended = asked("graph", "shopp")
    assert (ended.code, ended.err.splitlines()[0]) == (
        3,
        'error: no graph "shopp" in graphs.py, and no run of this id',
    )
    assert asked("graph", "graphs.py:nothing").code == 3
    monkeypatch.delenv("DURABLE_APP")
    ended = asked("graph", "shop")
    assert (ended.code, ended.err.splitlines()[0]) == (2, 'error: do not know where graph "shop" is')


def test_the_inbox_lists_what_is_asked(asked: Cli) -> None:
    """Run, workflow, question, prompt, since."""
    (row,) = asked("inbox").rows
    assert row[:4] == ["r", "shop", "approve", "Ship o-7?"]
    (ask,) = json.loads(asked("inbox", "-o", "json").out)["asks"]
    assert (ask["id"], ask["prompt"]) == ("r@1/approve#1", "Ship o-7?")
    assert json.loads(asked("inbox", "-o", "jsonl").out)["run_id"] == "r"
    assert asked("inbox", "--workflow", "other").err == "nobody is asked anything\n"


def test_a_question_is_answered_once(asked: Cli) -> None:
    """Stored, whoever goes on with the run; a second answer is a conflict."""
    assert asked("answer", "r", "true").err == "answered r\n"
    second = asked("answer", "r", "false")
    assert (second.code, second.err.splitlines()[0]) == (
        6,
        "error: question 'approve' of run 'r' was answered already",
    )

    assert asked("worker", "graphs.py", "--drain").code == 0

    assert json.loads(asked("result", "r").out)["final_state"]["output"] == "shipped"
    assert asked("answer", "r", "true").code == 6
    assert asked("inbox").out == ""


def test_an_answer_is_any_value(asked: Cli) -> None:
    """Text, JSON, named parts; to the question that is named. Commands that change something take exact ids."""
    assert asked("answer", "r", "--name", "other", "x").code == 6
    assert asked("answer", "@last", "x").code == 2
    assert asked("answer", "nobody", "x").code == 3
    assert json.loads(asked("answer", "r", "ok:=false", "by=ann", "--name", "approve", "-o", "json").out) == {
        "v": 1,
        "run_id": "r",
        "answered": True,
    }
    asked("worker", "graphs.py", "--drain")
    state = json.loads(asked("result", "r").out)["final_state"]
    assert (state["ok"], state["by"], state["output"]) == (False, "ann", "cancelled")


def test_show_tells_of_nodes_and_branches(asked: Cli) -> None:
    """Nodes by their names, what was asked, and where a gate led."""
    steps = [row[2:] for row in asked("show", "r").rows if row[0] == "step"]
    assert [(step[0], step[1], step[4]) for step in steps] == [
        ("completed", "reserve", '{"reserved": true}'),
        ("waiting", "ask approve", "Ship o-7?"),
    ]
    assert ["waiting on", 'answer to "approve": Ship o-7?', ""] in asked("show", "r").rows

    asked("answer", "r", "true")
    asked("worker", "graphs.py", "--drain")

    steps = [row[2:] for row in asked("show", "r").rows if row[0] == "step"]
    assert [(step[1], step[4]) for step in steps] == [
        ("reserve", '{"reserved": true}'),
        ("ask approve", "true"),
        ("decide", "→ ship"),
        ("ship", '{"output": "shipped"}'),
    ]


def test_who_answers_need_not_have_the_code(asked: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`answer` and `inbox` need the database only."""
    monkeypatch.delenv("DURABLE_APP")
    (here / "graphs.py").unlink()

    assert asked("inbox").rows[0][0] == "r"
    assert asked("answer", "r", "true").code == 0
    assert asyncio.run(durable.inbox()) == []
