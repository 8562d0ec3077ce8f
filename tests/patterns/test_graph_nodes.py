"""Nodes that call services, and nodes that are graphs: what they pass on, what they write, how they fail."""

from __future__ import annotations

import operator
import threading
from typing import Any

import pytest

import durable
from durable import AbstractWorkflowNode as Node
from durable import (
    AgentNode,
    Err,
    GraphConfig,
    GraphResult,
    GraphTimeoutError,
    GraphValidationError,
    HumanNode,
    LLMNode,
    NodeExecutionError,
    Ok,
    StepAnswerError,
    SubworkflowNode,
    ToolNode,
    WorkflowBuilder,
    WorkflowEngine,
    workflow,
)
from tests.support.workers import Calls

State = dict[str, Any]


class Reply:
    def __init__(self, content: Any) -> None:
        self.content = content


class LLM:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[Any] = []

    async def complete(self, messages: list[Any], **options: Any) -> Any:
        self.asked.append(([(one.role, one.content) for one in messages], options))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


async def outcome(node: Node, state: State | None = None) -> Any:
    engine = WorkflowEngine(WorkflowBuilder(durable.uuid4().hex).add_node(node).build())
    return await engine.execute(initial_state=state)


async def state_after(node: Node, state: State | None = None) -> State:
    done: GraphResult = (await outcome(node, state)).unwrap()
    return {key: value for key, value in done.final_state.items() if key not in (state or {})}


async def error_of(node: Node, state: State | None = None) -> NodeExecutionError:
    error = (await outcome(node, state)).unwrap_err()
    assert isinstance(error, NodeExecutionError)
    assert error.node == node.name
    return error


# ─ language models ──


@pytest.mark.parametrize("answer", ["hi", Reply("hi"), Ok("hi"), Ok(Reply("hi"))])
async def test_an_llm_answers_text_or_an_object_with_content_or_a_result(embedded: str, answer: Any) -> None:
    """Written under "output" by default."""
    llm = LLM(answer)

    assert await state_after(LLMNode("n", llm=llm), {"input": "x"}) == {"output": "hi"}
    assert llm.asked == [([("user", "x")], {})]


async def test_an_llm_is_asked_with_a_template_a_system_prompt_and_options(embedded: str) -> None:
    """Options that were not given are not passed; values keep their type."""
    llm = LLM({"score": 0.5}, "x")
    node = LLMNode(
        "n",
        llm=llm,
        prompt_template="Rate {text[0]} of {n:03d}",
        system_prompt="Be {kind}",
        output_key="rating",
        model="small",
        temperature=0,
        max_tokens=9,
    )

    assert await state_after(node, {"text": ["a"], "n": 7}) == {"rating": {"score": 0.5}}
    await state_after(LLMNode("m", llm=llm, model="big"), {"input": 1})
    assert llm.asked == [
        (
            [("system", "Be {kind}"), ("user", "Rate a of 007")],
            {"model": "small", "temperature": 0, "max_tokens": 9},
        ),
        ([("user", "1")], {"model": "big"}),
    ]


async def test_what_a_service_raises_is_retried_and_fails_the_node_in_the_end(embedded: str) -> None:
    """Not text in the state. A returned `Err` is an answer: not retried."""
    llm = LLM(OSError("busy"), OSError("busy"), "at last", *[OSError("down")] * 4, Err("refused"))

    assert await state_after(LLMNode("n", llm=llm, retry_delay=0), {"input": ""}) == {"output": "at last"}
    error = await error_of(LLMNode("n", llm=llm, retry_delay=0), {"input": ""})
    assert isinstance(error.cause, OSError)
    error = await error_of(LLMNode("n", llm=llm, retry_delay=0), {"input": ""})
    assert isinstance(error.cause, StepAnswerError)
    assert llm.answers == []
    assert isinstance((await error_of(LLMNode("n", llm=llm, retries=0), {"input": ""})).cause, IndexError)


async def test_a_variable_that_the_state_lacks_is_an_error(embedded: str) -> None:
    """KeyError, in templates as in keys; the service is not called."""
    llm, calls = LLM("x"), Calls()

    class Tool:
        def execute(self, args: Any) -> Any:
            calls("tool")

    for node in (
        LLMNode("n", llm=llm),
        ToolNode("n", tool=Tool(), input_key="x"),
        ToolNode("n", tool=Tool(), extra_keys=["x"]),
    ):
        assert isinstance((await error_of(node)).cause, KeyError)
    assert (llm.asked, calls.names) == ([], [])


# ─ agents and tools ──


async def test_an_agent_is_run_with_a_message(embedded: str) -> None:
    """Made of a template; what it answers is treated as an LLM's answer."""

    class Agent:
        async def run(self, message: str) -> Any:
            return Ok(Reply(f"done: {message}"))

    node = AgentNode("n", agent=Agent(), message_template="do {what}", output_key="report")

    assert await state_after(node, {"what": "it"}) == {"report": "done: do it"}
    assert await state_after(AgentNode("n", agent=Agent()), {"input": "x"}) == {"output": "done: x"}


async def test_a_tool_is_called_with_keys_of_the_state(embedded: str) -> None:
    """`extra_keys` under their names, the input under "input"; its value keeps its type."""
    given: list[Any] = []

    class Tool:
        async def execute(self, args: State) -> Any:
            given.append(args)
            return [1, {"n": args.get("input")}]

    tool, state = Tool(), {"a": 1, "b": [2]}

    assert await state_after(ToolNode("n", tool=tool, extra_keys=["a", "b"]), state) == {
        "output": [1, {"n": None}]
    }
    await state_after(ToolNode("n", tool=tool, input_key="b", output_key="out"), state)
    await state_after(ToolNode("n", tool=tool, input_key="b", extra_keys=["a"]), state)
    assert given == [{"a": 1, "b": [2]}, {"input": [2]}, {"input": [2], "a": 1}]


async def test_a_blocking_service_runs_in_a_thread(embedded: str) -> None:
    """It does not stop the others; what it returns is awaited if it can be."""

    class Blocking:
        def execute(self, args: Any) -> Any:
            return threading.current_thread() is threading.main_thread()

    class Late:
        def execute(self, args: Any) -> Any:
            async def later() -> str:
                return "later"

            return later()

    assert await state_after(ToolNode("n", tool=Blocking())) == {"output": False}
    assert await state_after(ToolNode("n", tool=Late())) == {"output": "later"}


async def test_a_subclass_that_overrides_execute_does_what_it_says(embedded: str) -> None:
    """Of services as of people."""

    class Cached(LLMNode):
        async def execute(self, state: State) -> State:
            return {"output": "cached"}

    class Approve(HumanNode):
        name = "approve"

        async def execute(self, state: State) -> State:
            return {"approved": True}

    assert await state_after(Cached("n", llm=LLM())) == {"output": "cached"}
    assert await state_after(Approve()) == {"approved": True}


# ─ graphs in graphs ──


def inner_engine(**config: Any) -> WorkflowEngine:
    def double(state: State) -> State:
        return {"n": state["n"] * 2}

    def add(state: State) -> State:
        return {"n": state["n"] + 1, "seen": sorted(state)}

    builder = WorkflowBuilder("inner").add_node(double).add_node(add).add_edge("double", "add")
    return WorkflowEngine(builder.build(), config=GraphConfig(**config))


async def test_a_subgraph_runs_inside_the_outer_run(embedded: str) -> None:
    """Entries `sub/node`, none of its own; the whole state goes in, and is merged when it comes out."""
    builder = WorkflowBuilder("outer").add_node(SubworkflowNode("sub", workflow=inner_engine()))
    builder.add_node("after", node=lambda state: {"n": state["n"] + 100}).add_edge("sub", "after")

    done = (
        await WorkflowEngine(builder.build()).execute(initial_state={"n": 1, "x": 0}, run_id="o")
    ).unwrap()

    assert done.final_state == {"n": 103, "x": 0, "seen": ["n", "x"]}
    assert [one.node_name for one in done.node_results] == ["sub", "after"]
    assert done.iterations == 2
    run = await durable.get_run("o")
    assert [entry.name for entry in run.journal] == ["sub/double", "sub/add", "after"]
    assert len(await durable.list_runs()) == 1


async def test_a_subgraph_writes_what_its_nodes_wrote(embedded: str) -> None:
    """Not what was only handed through: so it does not conflict with others side by side, nor feed reducers twice."""
    inner = (
        WorkflowBuilder("inner")
        .add_node("a", node=lambda state: {"log": ["inner"], "n": state["n"] + 1})
        .build()
    )
    builder = WorkflowBuilder("outer", reducers={"log": operator.add})
    builder.add_node("sub", subworkflow=inner).add_node("b", node=lambda state: {"x": 1, "log": ["b"]})

    done = (
        await WorkflowEngine(builder.build()).execute(initial_state={"n": 1, "x": 0, "log": ["given"]})
    ).unwrap()

    assert done.final_state == {"n": 2, "x": 1, "log": ["given", "inner", "b"]}
    assert done.node_results[0].output == {"log": ["inner"], "n": 2}


async def test_a_subgraph_may_have_a_state_of_its_own(embedded: str) -> None:
    """`input_key` and `output_key`; a value that is no dict becomes the inner "input"; `entry` begins elsewhere."""
    keyed = SubworkflowNode("n", workflow=inner_engine(), input_key="in", output_key="out")
    assert await state_after(keyed, {"in": {"n": 3}, "x": 0}) == {"out": {"n": 7, "seen": ["n"]}}

    shout = (
        WorkflowBuilder("shout").add_node("up", node=lambda state: {"output": state["input"].upper()}).build()
    )
    text = SubworkflowNode("n", workflow=shout, input_key="word", output_key="loud")
    assert await state_after(text, {"word": "hi"}) == {"loud": {"input": "hi", "output": "HI"}}

    entered = SubworkflowNode("n", workflow=inner_engine(), entry="add", output_key="out")
    assert (await state_after(entered, {"n": 3}))["out"]["n"] == 4
    with pytest.raises(GraphValidationError):
        SubworkflowNode("n", workflow=inner_engine(), entry="nowhere")
    assert isinstance((await error_of(keyed)).cause, KeyError)


async def test_a_failing_subgraph_fails_its_node(embedded: str) -> None:
    """With the inner error as cause, down to what was raised; not as text in the state."""
    error = await error_of(SubworkflowNode("n", workflow=inner_engine()), {"n": None})

    inner = error.cause
    assert isinstance(inner, NodeExecutionError)
    assert inner.node == "double"
    assert isinstance(inner.cause, TypeError)


async def test_limits_of_a_subgraph_are_its_own(embedded: str) -> None:
    """`max_iterations` and `total_timeout` of the engine it was given by."""
    error = await error_of(SubworkflowNode("n", workflow=inner_engine(max_iterations=1)), {"n": 1})
    assert "max_iterations (1)" in str(error.cause)

    ask = WorkflowEngine(
        WorkflowBuilder("ask").add_node(HumanNode("who")).build(), config=GraphConfig(total_timeout=0.05)
    )

    @workflow
    async def patient() -> str:
        engine = WorkflowEngine(WorkflowBuilder("p").add_node(SubworkflowNode("n", workflow=ask)).build())
        error = (await engine.execute()).unwrap_err()
        assert isinstance(error, NodeExecutionError)
        assert isinstance(error.cause, GraphTimeoutError)
        return f"{error.node}: {error.cause.timeout}"

    assert await patient() == "n: 0.05"


async def test_graphs_nest(embedded: str) -> None:
    """To any depth; the path says where."""
    middle = WorkflowBuilder("middle").add_node(SubworkflowNode("low", workflow=inner_engine())).build()
    top = WorkflowEngine(WorkflowBuilder("top").add_node("mid", subworkflow=middle).build())

    @workflow
    async def outer() -> Any:
        return (await top.execute(initial_state={"n": 1})).unwrap().final_state["n"]

    assert await outer(run_id="o") == 3
    assert [entry.name for entry in (await durable.get_run("o")).journal] == [
        "top/mid/low/double",
        "top/mid/low/add",
    ]
