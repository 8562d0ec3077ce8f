"""Building graphs: what a builder takes, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import (
    AbstractWorkflowNode,
    AgentNode,
    DefinitionError,
    DurableError,
    FunctionNode,
    GateNode,
    GraphConfig,
    GraphExecutionError,
    GraphValidationError,
    HumanNode,
    LLMNode,
    NodeType,
    SubworkflowNode,
    ToolNode,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowGraph,
    step,
)


class Fetch(AbstractWorkflowNode):
    name = "fetch"
    node_type = NodeType.TASK

    async def execute(self, state: dict[str, Any]) -> dict[str, Any]:
        return {"data": [1, 2]}


class Named(AbstractWorkflowNode):
    def execute(self, state: dict[str, Any]) -> dict[str, Any]:
        return {self.name: True}


class Service:
    async def complete(self, messages: Any) -> str:
        return "text"

    async def run(self, message: str) -> str:
        return message

    def execute(self, args: Any) -> Any:
        return args


def always(state: dict[str, Any]) -> bool:
    return True


def test_a_node_is_added_as_an_object_or_under_a_name() -> None:
    """`add_node(node)`, `add_node(name, node=)`, and forms that make a node; a function or activity is a node, too."""

    @step
    async def typed(state: dict[str, Any]) -> None: ...

    async def plain(state: dict[str, Any]) -> None: ...

    inner = WorkflowBuilder("inner").add_node(Fetch()).build()
    graph = (
        WorkflowBuilder("all")
        .add_node(Fetch())
        .add_node("other", node=Named("ignored"))
        .add_node(plain)
        .add_node(typed)
        .add_node("fn", node=plain)
        .add_node("llm", llm=Service(), prompt="{x}", output_key="said")
        .add_node("agent", agent=Service(), prompt="{x}")
        .add_node("tool", tool=Service())
        .add_node("sub", subworkflow=inner)
        .add_node("person", human_prompt="Well?", output_key="well")
        .build()
    )

    assert isinstance(graph, WorkflowGraph)
    assert list(graph.nodes) == [
        "fetch", "other", "plain", "typed", "fn", "llm", "agent", "tool", "sub", "person",
    ]  # fmt: skip
    llm, person, agent = graph.nodes["llm"], graph.nodes["person"], graph.nodes["agent"]
    assert isinstance(llm, LLMNode)
    assert (llm.prompt_template, llm.output_key) == ("{x}", "said")
    assert isinstance(agent, AgentNode)
    assert agent.message_template == "{x}"
    assert isinstance(person, HumanNode)
    assert (person.prompt, person.output_key) == ("Well?", "well")
    assert isinstance(graph.nodes["tool"], ToolNode)
    assert isinstance(graph.nodes["sub"], SubworkflowNode)
    assert [node.node_type for node in graph.nodes.values()] == [
        "task", "task", "task", "task", "task", "llm", "agent", "tool", "subworkflow", "human",
    ]  # fmt: skip


def test_node_types_are_text() -> None:
    """Equal to it and printed as it."""
    assert [str(one) for one in NodeType] == [
        "task", "gate", "human", "llm", "agent", "tool", "subworkflow", "custom",
    ]  # fmt: skip
    assert f"{NodeType.LLM}" == "llm"


def test_a_node_takes_its_name_from_its_class_or_its_constructor() -> None:
    """And needs one."""

    class Approve(HumanNode):
        name = "approve"

    assert (Fetch().name, Fetch("again").name, Approve().name, Named("n").name) == (
        "fetch", "again", "approve", "n",
    )  # fmt: skip
    with pytest.raises(TypeError, match="Named needs a name"):
        Named()
    with pytest.raises(TypeError, match="abstract"):
        AbstractWorkflowNode("x")  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (GateNode, {}),
        (HumanNode, {}),
        (LLMNode, {"llm": Service()}),
        (AgentNode, {"agent": Service()}),
        (ToolNode, {"tool": Service()}),
        (SubworkflowNode, {"workflow": WorkflowBuilder("inner").add_node(Fetch()).build()}),
    ],
)
def test_every_kind_of_node_may_be_named_by_its_class(
    kind: type[AbstractWorkflowNode], options: dict[str, Any]
) -> None:
    """A name that the constructor is given wins."""
    mine = type("Mine", (kind,), {"name": "mine"})

    assert (mine(**options).name, mine("other", **options).name) == ("mine", "other")
    with pytest.raises(TypeError, match="needs a name"):
        kind(**options)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda b: b.add_edge("fetch", "x"),
            "the edge 'fetch' -> 'x' hangs in the air: there is no node 'x'",
        ),
        (lambda b: b.add_node(Fetch()), "2 nodes are called 'fetch'"),
        (
            lambda b: b.add_node(Named("b")).add_edge("fetch", "b").add_edge("fetch", "b", condition=always),
            "2 edges lead from 'fetch' to 'b'",
        ),
        (lambda b: b.add_node(Named("b")).set_entry("fetch"), "nothing leads from the entry 'fetch' to 'b'"),
        (lambda b: b.set_entry("nowhere"), "there is no node 'nowhere', which is to be the entry"),
        (lambda b: b.set_terminal("nowhere"), "there is no node 'nowhere', which is to be an end"),
        (
            lambda b: b.add_gate("gate", {"fetch": always}).set_terminal("gate"),
            "gate 'gate' cannot be an end",
        ),
        (lambda b: b.add_node(Named("a/b")), "'a/b' is no name for a node"),
        (lambda b: b.add_gate("gate", {"x": always}), "the edge 'gate' -> 'x' hangs in the air"),
    ],
)
def test_build_names_what_is_wrong(make: Callable[[WorkflowBuilder], object], says: str) -> None:
    """`GraphValidationError`, not before `build`: things may be added in any order."""
    builder = WorkflowBuilder("wrong").add_node(Fetch())
    make(builder)

    with pytest.raises(GraphValidationError) as e:
        builder.build()
    assert says in str(e.value)
    assert "graph 'wrong' is not right" in str(e.value)


def test_build_names_everything_that_is_wrong() -> None:
    """At once."""
    with pytest.raises(GraphValidationError) as e:
        WorkflowBuilder().add_node(Fetch()).add_node(Fetch()).add_edge("fetch", "x").add_edge(
            "y", "z"
        ).build()
    assert str(e.value).count(";") == 2
    with pytest.raises(GraphValidationError, match="it has no nodes"):
        WorkflowBuilder().build()


def test_all_errors_of_graphs_are_one_family() -> None:
    """`GraphExecutionError`; a wrong graph is a wrong definition, too."""
    for name in (
        "GraphValidationError",
        "NodeExecutionError",
        "NoRouteError",
        "CycleDetectedError",
        "StateConflictError",
        "GraphTimeoutError",
        "HumanInputRequiredError",
    ):
        assert issubclass(getattr(durable, name), GraphExecutionError)
    assert issubclass(GraphExecutionError, DurableError)
    assert issubclass(GraphValidationError, DefinitionError)


def test_targets_of_a_gate_may_be_added_later() -> None:
    """`add_gate` makes the edges."""
    graph = (
        WorkflowBuilder()
        .add_gate("gate", {"a": always, "b": always})
        .add_node(Named("a"))
        .add_node(Named("b"))
        .build()
    )

    assert [(edge.source, edge.target) for edge in graph.edges] == [("gate", "a"), ("gate", "b")]
    assert graph.name == "gate-a-b"


def test_a_graph_begins_where_nothing_leads_to() -> None:
    """Unless there is an entry: so no node is left out, not even a cycle of its own."""
    builder = WorkflowBuilder()
    for name in "abcde":
        builder.add_node(Named(name))
    builder.add_edge("a", "c").add_edge("b", "c").add_edge("d", "e").add_edge("e", "d")
    graph = builder.build()

    assert graph.starts() == ["a", "b", "d"]
    assert graph.starts("c") == ["c"]
    with pytest.raises(GraphValidationError, match="has no node 'x' to begin with"):
        graph.starts("x")


def test_a_config_is_checked() -> None:
    """Defaults; unknown fields are TypeErrors, values out of bounds ValueErrors; durations may be timedeltas."""
    config = GraphConfig()
    assert (config.enabled, config.max_iterations, config.node_timeout, config.total_timeout) == (
        True,
        25,
        120.0,
        0.0,
    )
    assert (config.checkpoint_enabled, config.parallel_branches) == (False, True)
    assert (config.max_parallel_branches, config.on_conflict) == (0, "error")
    assert GraphConfig(node_timeout=timedelta(minutes=1)).node_seconds == 60.0
    with pytest.raises(TypeError):
        GraphConfig(max_iteration=3)  # type: ignore[call-arg]
    for wrong in (
        {"max_iterations": 0},
        {"max_iterations": True},
        {"max_parallel_branches": -1},
        {"node_timeout": -1},
        {"total_timeout": "1s"},
        {"on_conflict": "first"},
        {"checkpoint_enabled": "yes"},
    ):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            GraphConfig(**wrong)  # type: ignore[arg-type]


def test_misspelt_options_are_type_errors() -> None:
    """No option is taken and forgotten."""
    builder, graph = WorkflowBuilder(), WorkflowBuilder().add_node(Fetch()).build()
    for misspelt in (
        lambda: WorkflowBuilder("x", reducer={}),  # type: ignore[call-arg]
        lambda: builder.add_node("x", llms=Service()),  # type: ignore[call-arg]
        lambda: builder.add_edge("a", "b", conditions=always),  # type: ignore[call-arg]
        lambda: WorkflowEngine(graph, configuration=GraphConfig()),  # type: ignore[call-arg]
        lambda: HumanNode("x", promt="?"),  # type: ignore[call-arg]
        lambda: GateNode("x", route={}),  # type: ignore[call-arg]
        lambda: LLMNode("x", llm=Service(), templ="?"),  # type: ignore[call-arg]
        lambda: ToolNode("x", tool=Service(), keys=[]),  # type: ignore[call-arg]
        lambda: SubworkflowNode("x", workflow=graph, key="?"),  # type: ignore[call-arg]
        lambda: builder.add_node("x"),
        lambda: builder.add_node("x", llm=Service(), tool=Service()),
        lambda: builder.add_node(Fetch(), llm=Service()),
        lambda: builder.add_node("x", tool=Service(), prompt="?"),
        lambda: builder.add_node("x", node=Fetch(), output_key="?"),
        lambda: builder.add_node("x", node=Fetch),  # type: ignore[arg-type]
        lambda: builder.add_edge("a", "b", condition=True),  # type: ignore[arg-type]
        lambda: GateNode("x", {"a": True}),  # type: ignore[dict-item]
        lambda: SubworkflowNode("x", workflow=Fetch()),
        lambda: WorkflowEngine(builder),  # type: ignore[arg-type]
        lambda: FunctionNode("x", step(always), retries=3),
    ):
        with pytest.raises(TypeError):
            misspelt()


def test_a_service_without_its_method_is_refused_when_the_node_is_made() -> None:
    """TypeError, with the method that is missing."""
    for make, method in (
        (lambda: LLMNode("n", llm=object()), "complete"),
        (lambda: AgentNode("n", agent=object()), "run"),
        (lambda: ToolNode("n", tool=object()), "execute"),
    ):
        with pytest.raises(TypeError, match=rf"node 'n' needs an object with a method {method}\("):
            make()


def test_wrong_retries_are_refused_when_the_engine_is_made() -> None:
    """ValueError, with the node's name."""
    graph = WorkflowBuilder().add_node(Named("n", retries=-1)).build()

    with pytest.raises(ValueError, match="retries of node 'n'"):
        WorkflowEngine(graph)
