"""Pictures of graphs: what is drawn, and what a run did in it."""

from __future__ import annotations

from typing import Any

import durable
from durable import (
    GraphView,
    HumanNode,
    NodeView,
    SubworkflowNode,
    WorkflowBuilder,
    WorkflowEngine,
    workflow,
)

State = dict[str, Any]


def shop() -> WorkflowEngine:
    inner = WorkflowBuilder("packing").add_node("box", node=lambda state: None)
    inner.add_node("label", node=lambda state: None).add_edge("box", "label")
    builder = WorkflowBuilder("shop", version=3)
    builder.add_node("reserve", node=lambda state: {"tries": state.get("tries", 0) + 1})
    builder.add_node(HumanNode("approve", prompt="Ship?", output_key="ok"))
    builder.add_gate("decide", {"pack": lambda s: s["ok"], "cancel": lambda s: not s["ok"]})
    builder.add_node(SubworkflowNode("pack", workflow=inner.build()))
    builder.add_node("cancel", node=lambda state: 1 / 0)
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
