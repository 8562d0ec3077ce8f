"""Pictures of graphs: what is drawn, and what a run did in it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import durable
from durable import (
    GraphView,
    HumanNode,
    NodeView,
    SubworkflowNode,
    WorkflowBuilder,
    WorkflowEngine,
    activity,
    workflow,
)
from tests.support.workers import AT_ONCE

State = dict[str, Any]


@activity(retry=AT_ONCE)
def nothing_to_cancel(state: State) -> float:
    return 1 / 0


def shop() -> WorkflowEngine:
    inner = WorkflowBuilder("packing").add_node("box", node=lambda state: None)
    inner.add_node("label", node=lambda state: None).add_edge("box", "label")
    builder = WorkflowBuilder("shop", version=3)
    builder.add_node("reserve", node=lambda state: {"tries": state.get("tries", 0) + 1})
    builder.add_node(HumanNode("approve", prompt="Ship?", output_key="ok"))
    builder.add_gate("decide", {"pack": lambda s: s["ok"], "cancel": lambda s: not s["ok"]})
    builder.add_node(SubworkflowNode("pack", workflow=inner.build()))
    builder.add_node("cancel", node=nothing_to_cancel)
    builder.add_edge("reserve", "reserve", condition=lambda state: state["tries"] < 2)
    builder.add_edge("reserve", "approve", condition=lambda state: state["tries"] == 2)
    builder.add_edge("approve", "decide")
    return WorkflowEngine(builder.build())


def states(view: GraphView) -> dict[str, str]:
    return {node.path: node.status for node in view.nodes}


def taken(view: GraphView) -> list[str]:
    return [f"{edge.source} {edge.target}" for edge in view.edges if edge.is_taken]


def test_a_graph_is_drawn_with_its_subgraphs() -> None:
    """Kinds of nodes, where it begins, and which edges are a choice."""
    view = shop().view()

    assert (view.name, view.version, view.run_id) == ("shop", 3, "")
    assert [(node.path, node.kind, node.is_start) for node in view.nodes] == [
        ("reserve", "task", True),
        ("approve", "human", False),
        ("decide", "gate", False),
        ("pack", "subworkflow", False),
        ("pack/box", "task", False),
        ("pack/label", "task", False),
        ("cancel", "task", False),
    ]
    edges = {f"{edge.source} {edge.target}": edge.is_conditional for edge in view.edges}
    assert edges == {
        "reserve reserve": True,
        "reserve approve": True,
        "approve decide": False,
        "decide pack": True,
        "decide cancel": True,
        "pack pack/box": False,
        "pack/box pack/label": False,
    }
    assert set(states(view).values()) == {""}


async def test_a_run_is_drawn_into_it(embedded: str) -> None:
    """Each node with the state of its last run, each edge that was taken; at a question and after it."""
    engine = shop()
    await engine.execute(run_id="r")

    view = engine.view(await durable.get_run("r"))
    assert (view.run_id, view.status) == ("r", "waiting")
    assert states(view) | {"reserve": "completed", "approve": "waiting"} == states(view)
    assert (states(view)["decide"], states(view)["pack"]) == ("", "")
    assert taken(view) == ["reserve reserve", "reserve approve"]
    assert [(node.runs, node.prompt) for node in view.nodes[:2]] == [(2, ""), (1, "Ship?")]

    await engine.resume("r", True)

    view = engine.view(await durable.get_run("r"))
    assert taken(view) == [
        "reserve reserve",
        "reserve approve",
        "approve decide",
        "decide pack",
        "pack pack/box",
        "pack/box pack/label",
    ]
    assert (states(view)["pack"], states(view)["cancel"]) == ("completed", "")


async def test_a_failure_is_drawn(embedded: str) -> None:
    """With what went wrong."""
    engine = shop()
    await engine.execute(run_id="r")
    await engine.resume("r", False)

    cancel: NodeView = engine.view(await durable.get_run("r")).nodes[-1]

    assert (cancel.status, cancel.error, cancel.attempts) == (
        "failed",
        "ZeroDivisionError: division by zero",
        4,
    )


async def test_a_graph_within_a_workflow_is_drawn_from_the_workflows_run(embedded: str) -> None:
    """Its part of the journal is found by its name."""
    engine = WorkflowEngine(WorkflowBuilder("inner").add_node("a", node=lambda state: None).build())

    @workflow
    async def outer() -> None:
        await engine.execute()

    await outer(run_id="r")

    assert states(engine.view(await durable.get_run("r"))) == {"a": "completed"}


async def test_mermaid(embedded: str) -> None:
    """A flowchart, as text."""
    engine = shop()
    await engine.execute(run_id="r")

    assert engine.view(await durable.get_run("r")).mermaid().splitlines() == [
        "flowchart TD",
        '    n0["reserve ×2"]:::completed',
        '    n1[/"approve"/]:::waiting',
        '    n2{"decide"}',
        '    n3[["pack"]]',
        '    subgraph g3["pack"]',
        '        n4["box"]',
        '        n5["label"]',
        "    end",
        '    n6["cancel"]',
        "    n0 -.-> n0",
        "    n0 -.-> n1",
        "    n1 --> n2",
        "    n2 -.-> n3",
        "    n2 -.-> n6",
        "    n3 -.-> n4",
        "    n4 --> n5",
        "    linkStyle 0,1 stroke:#2e7d32,stroke-width:3px",
        "    classDef completed fill:#c8e6c9,stroke:#37474f,color:#000",
        "    classDef waiting fill:#bbdefb,stroke:#37474f,color:#000",
    ]


def test_dot() -> None:
    """For Graphviz; what a name holds does not break it."""
    odd = WorkflowBuilder('say "hi"').add_node('a"b\\', node=lambda state: None)
    odd.add_node("<c>", node=lambda state: None).add_edge('a"b\\', "<c>", condition=lambda state: True)
    view = WorkflowEngine(odd.build()).view()

    assert view.dot().splitlines() == [
        'digraph "say \\"hi\\"" {',
        '    node [shape=box, style="rounded,filled", fillcolor=white, fontname="sans-serif"];',
        '    "a\\"b\\\\" [label="a\\"b\\\\"];',
        '    "<c>" [label="<c>"];',
        '    "a\\"b\\\\" -> "<c>" [style=dashed];',
        "}",
    ]
    assert '    n0["a#quot;b\\"]' in view.mermaid()
    assert '    n1["#lt;c#gt;"]' in view.mermaid()
    nested = shop().view().dot()
    assert '    subgraph "cluster pack" {' in nested
    assert nested.count("{") == nested.count("}")


SVG = "{http://www.w3.org/2000/svg}"


def _boxes(picture: ElementTree.Element) -> dict[str, tuple[float, float]]:
    """Return where the label of each node stands."""
    found: dict[str, tuple[float, float]] = {}
    for group in picture.iter(f"{SVG}g"):
        (text,) = group.iter(f"{SVG}text")
        found[str(text.text)] = (float(text.get("x", 0)), float(text.get("y", 0)))
    return found


async def test_svg(embedded: str) -> None:
    """Well-formed; each node in its place, below what leads to it; what was taken and what is waited for stands out."""
    engine = shop()
    await engine.execute(run_id="r")

    picture = ElementTree.fromstring(engine.view(await durable.get_run("r")).svg())

    boxes = _boxes(picture)
    assert set(boxes) == {"reserve ×2", "approve", "decide", "pack", "box", "label", "cancel"}
    heights = [boxes[name][1] for name in ("reserve ×2", "approve", "decide", "pack", "box", "label")]
    assert heights == sorted(set(heights))
    assert boxes["cancel"][1] == boxes["pack"][1]
    assert len(set(boxes.values())) == len(boxes)
    titles = [str(one.text) for one in picture.iter(f"{SVG}title")]
    assert titles[0] == "shop · r waiting"
    assert "approve (human): waiting" in titles
    taken = [path for path in picture.iter(f"{SVG}path") if path.get("stroke") == "#2e7d32"]
    assert len(taken) == 2


def test_svg_of_hostile_names_and_long_ones() -> None:
    """Text is text; what is too long is cut, and told in full beside."""
    name = "<script>alert('&\"') " + "x" * 60
    builder = WorkflowBuilder("</svg>").add_node(name, node=lambda state: {})

    picture = ElementTree.fromstring(WorkflowEngine(builder.build()).view().svg())

    assert next(picture.iter(f"{SVG}title")).text == "</svg>"
    (label,) = _boxes(picture)
    assert label.startswith("<script>")
    assert len(label) == 32


def test_svg_of_a_wide_graph_has_no_node_over_another() -> None:
    """Also with cycles, and with nodes that nothing leads to."""
    builder = WorkflowBuilder("wide")
    for number in range(20):
        builder.add_node(f"n{number}", node=lambda state: {})
    for number in range(1, 20):
        builder.add_edge(f"n{number // 3}", f"n{number}")
    builder.add_edge("n19", "n1").add_edge("n5", "n5")

    boxes = _boxes(ElementTree.fromstring(WorkflowEngine(builder.build()).view().svg()))

    rows: dict[float, list[float]] = {}
    for x, y in boxes.values():
        rows.setdefault(y, []).append(x)
    assert all(b - a >= 110 for row in rows.values() for a, b in pairwise(sorted(row)))
