"""Graphs: in which order nodes run, what they see, what comes out, what failing means."""

from __future__ import annotations

import asyncio
import gc
import operator
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import durable
from durable import (
    AbstractWorkflowNode,
    CycleDetectedError,
    DefinitionError,
    Err,
    GraphConfig,
    GraphExecutionError,
    GraphResult,
    GraphTimeoutError,
    GraphValidationError,
    LostStateWarning,
    NodeExecutionError,
    NodeResult,
    NoRouteError,
    Ok,
    RunCancelledError,
    RunConflictError,
    RunStatus,
    StateConflictError,
    StepAnswerError,
    StepContext,
    StepTimeoutError,
    UnwrapError,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowVersionMismatchError,
    saga_step,
    step,
    workflow,
)
from tests.support.workers import Calls, until

State = dict[str, Any]


class Order(msgspec.Struct):
    cents: int


class Greet(AbstractWorkflowNode):
    name = "greet"

    async def execute(self, state: dict) -> dict:  # type: ignore[type-arg]  # as people write them
        return {"message": f"Hello, {state.get('name', 'world')}!"}


class Shout(AbstractWorkflowNode):
    name = "shout"

    def execute(self, state: dict) -> dict:  # type: ignore[type-arg]
        return {"message": state["message"].upper()}


class Trace:
    """Nodes that write their name under it, and note when they began."""

    def __init__(self) -> None:
        self.calls = Calls()

    def node(self, name: str, **output: Any) -> Callable[[State], Any]:
        async def run(state: State) -> State:
            self.calls(name)
            return {name: True, **output}

        return run


def wired(
    trace: Trace, *edges: str, config: GraphConfig | None = None, name: str | None = None
) -> WorkflowBuilder:
    """Return a builder with edges given as "a b" and nodes named by them."""
    builder = WorkflowBuilder(name, config)
    for node in dict.fromkeys(" ".join(edges).split()):
        builder.add_node(node, node=trace.node(node))
    for edge in edges:
        a, _, b = edge.partition(" ")
        if b:
            builder.add_edge(a, b)
    return builder


async def run_of(builder: WorkflowBuilder, state: State | None = None, **options: Any) -> GraphResult:
    return (await WorkflowEngine(builder.build()).execute(initial_state=state, **options)).unwrap()


async def error_of(
    builder: WorkflowBuilder, state: State | None = None, **options: Any
) -> GraphExecutionError:
    return (await WorkflowEngine(builder.build()).execute(initial_state=state, **options)).unwrap_err()


async def journal(run_id: str) -> list[tuple[str, str, str]]:
    run = await durable.get_run(run_id)
    return [(entry.name, entry.kind, entry.status) for entry in run.journal]


# ─ what comes out ──


async def test_a_graph_runs_its_nodes_and_merges_what_they_return(embedded: str) -> None:
    """`Ok(GraphResult)`; its run is of kind "graph", each node an entry under its name."""
    builder = WorkflowBuilder("hello").add_node(Greet()).add_node(Shout()).add_edge("greet", "shout")
    engine = WorkflowEngine(builder.build())

    result = await engine.execute("greet", initial_state={"name": "Ann"}, run_id="h-1")

    assert result.is_ok()
    done = result.unwrap()
    assert done.final_state == {"name": "Ann", "message": "HELLO, ANN!"}
    assert [(one.node_name, one.output, one.status, one.attempts) for one in done.node_results] == [
        ("greet", {"message": "Hello, Ann!"}, "completed", 1),
        ("shout", {"message": "HELLO, ANN!"}, "completed", 1),
    ]
    assert (done.iterations, done.terminated_at, done.run_id) == (2, "shout", "h-1")
    assert done.succeeded
    assert done.output is None
    assert done.duration_ms >= sum(one.duration_ms for one in done.node_results) - 0.01
    run = await durable.get_run("h-1")
    assert (run.kind, run.workflow, run.status) == ("graph", "hello", "completed")
    assert await journal("h-1") == [("greet", "activity", "completed"), ("shout", "activity", "completed")]


async def test_the_same_run_id_returns_what_is_recorded(embedded: str) -> None:
    """A recorded node never runs again; other input under the id is refused."""
    trace = Trace()
    engine = WorkflowEngine(wired(trace, "a b").build())

    first = await engine.execute(initial_state={"x": 1}, run_id="r")
    assert await engine.execute(state={"x": 1}, run_id="r") == first
    assert trace.calls.names == ["a", "b"]
    with pytest.raises(RunConflictError):
        await engine.execute(initial_state={"x": 2}, run_id="r")


async def test_values_keep_their_type(embedded: str) -> None:
    """What a node returns is what others see, not its text; None stands for nothing."""
    builder = WorkflowBuilder()
    builder.add_node("a", node=lambda state: {"n": 1.5, "list": [1, {"x": None}], "yes": True})
    builder.add_node("b", node=lambda state: {"seen": [state["n"] * 2, state["list"][1], state["yes"]]})
    builder.add_node("c", node=lambda state: None)
    builder.add_node("d", node=lambda: {"output": "from nothing"})
    builder.add_edge("a", "b").add_edge("b", "c").add_edge("c", "d")

    done = await run_of(builder)

    assert done.final_state == {
        "n": 1.5,
        "list": [1, {"x": None}],
        "yes": True,
        "seen": [3.0, {"x": None}, True],
        "output": "from nothing",
    }
    assert done.output == "from nothing"
    assert done.node_results[2].output == {}


async def test_a_node_gets_a_copy_of_the_state(embedded: str) -> None:
    """What it does to it, nobody else sees; it also knows its run."""
    seen: list[Any] = []

    async def spoil(state: StepContext) -> None:
        seen.append([state.run_id, state.attempt, state.idempotency_key])
        state["items"].append(4)
        state["more"] = 1

    async def look(state: State) -> None:
        seen.append(dict(state))

    builder = WorkflowBuilder().add_node(spoil).add_node(look).add_edge("spoil", "look")
    given = {"items": [1]}

    done = await run_of(builder, given, run_id="r")

    assert seen == [["r", 1, "r@1/spoil#1"], {"items": [1]}]
    assert done.final_state == given == {"items": [1]}


async def test_nodes_side_by_side_share_nothing(embedded: str) -> None:
    """Not even what is nested in the state: each has its own copy, and what is handed on is what was returned."""
    both = asyncio.Barrier(2)

    def node(name: str) -> Callable[[State], Any]:
        async def run(state: State) -> State:
            state["shared"]["by"].append(name)
            async with asyncio.timeout(60):
                await both.wait()
            return {name: list(state["shared"]["by"])}

        return run

    builder = WorkflowBuilder().add_node("a", node=node("a")).add_node("b", node=node("b"))
    done = await run_of(builder, {"shared": {"by": []}})

    assert done.final_state == {"shared": {"by": []}, "a": ["a"], "b": ["b"]}


async def test_typed_state_is_decoded_by_its_hint(embedded: str) -> None:
    """A Struct takes what it names."""

    def charge(order: Order) -> State:
        return {"charged": order.cents + 1}

    builder = WorkflowBuilder().add_node("charge", node=charge)

    assert (await run_of(builder, {"cents": 1, "other": "x"})).final_state["charged"] == 2


# ─ waves and joins ──


async def test_all_successors_follow(embedded: str) -> None:
    """After a fan-out every branch goes on to its end, not only the last one."""
    trace = Trace()

    done = await run_of(wired(trace, "a b", "a c", "a d", "b b2", "c c2", "d d2"))

    assert sorted(trace.calls.names) == ["a", "b", "b2", "c", "c2", "d", "d2"]
    assert [one.node_name for one in done.node_results] == ["a", "b", "c", "d", "b2", "c2", "d2"]


async def test_a_join_runs_once_after_the_longest_branch(embedded: str) -> None:
    """A node with several incoming edges waits until each has fired."""
    trace = Trace()

    done = await run_of(wired(trace, "a b", "b c", "c join", "a join", "join end"))

    assert [one.node_name for one in done.node_results] == ["a", "b", "c", "join", "end"]
    assert trace.calls.of("join") == 1


async def test_a_join_does_not_wait_for_a_branch_that_was_not_taken(embedded: str) -> None:
    """It runs when nothing that is under way can lead to it any more."""
    trace = Trace()
    builder = wired(trace, "a b", "c join", "b join", "join end")
    builder.add_edge("a", "c", condition=lambda state: False)

    done = await run_of(builder)

    assert [one.node_name for one in done.node_results] == ["a", "b", "join", "end"]


async def test_joins_that_wait_for_one_another_go_on(embedded: str) -> None:
    """The first declared goes first; both run."""
    trace = Trace()
    config = GraphConfig(max_iterations=6)
    builder = wired(trace, "a x", "a y", "x y", "y end", config=config)
    builder.add_edge("y", "x", condition=lambda state: False)

    done = await run_of(builder)

    assert [one.node_name for one in done.node_results] == ["a", "x", "y", "end"]


async def test_cycles_do_not_block_and_have_a_bound(embedded: str) -> None:
    """Each round runs anew; `max_iterations` counts the nodes that ran, and ends a cycle that does not."""

    def draft(state: State) -> State:
        return {"drafts": state.get("drafts", 0) + 1}

    def review(state: State) -> State:
        return {"good": state["drafts"] >= state["enough"]}

    def builder(**config: Any) -> WorkflowBuilder:
        built = WorkflowBuilder("writing", GraphConfig(**config))
        built.add_node(draft).add_node(review).add_node("end", node=lambda state: None)
        built.add_edge("draft", "review").add_edge(
            "review", "draft", condition=lambda state: not state["good"]
        )
        return built.add_edge("review", "end", condition=lambda state: state["good"])

    done = await run_of(builder(), {"enough": 3}, run_id="w")
    assert (done.final_state["drafts"], done.iterations, done.terminated_at) == (3, 7, "end")
    run = await durable.get_run("w")
    assert [e.result for e in run.journal if e.kind == "predicate"] == [["draft"], ["draft"], ["end"]]

    assert (await run_of(builder(max_iterations=7), {"enough": 3})).iterations == 7
    error = await error_of(builder(max_iterations=6), {"enough": 3}, run_id="c")
    assert isinstance(error, CycleDetectedError)
    assert error.iterations == 6
    assert str(error) == "the graph did not end within max_iterations (6) (run 'c')"
    assert isinstance(await error_of(builder(), {"enough": 99}), CycleDetectedError)
    assert (await durable.get_run("c")).status == RunStatus.FAILED


async def test_a_terminal_ends_its_way(embedded: str) -> None:
    """Always, or if its condition is true; other ways go on."""
    trace = Trace()
    always = wired(trace, "a b", "a c", "b b2", "c c2").set_terminal("b")
    done = await run_of(always)
    assert [one.node_name for one in done.node_results] == ["a", "b", "c", "c2"]

    enough = wired(trace, "a b", "b a").set_terminal("b", condition=lambda state: state.get("n", 0) > 0)
    enough.add_node("count", node=lambda state: {"n": 1})
    enough.add_edge("b", "count")
    done = await run_of(enough)
    assert [one.node_name for one in done.node_results] == ["a", "b", "a", "count", "b"]
    assert done.terminated_at == "b"


async def test_conditions_may_be_async_and_answer_anything(embedded: str) -> None:
    """What is true in Python is a yes."""
    trace = Trace()
    builder = wired(trace, "a", "b", "c", "d")

    async def later(state: State) -> Any:
        return state.get("x")

    builder.add_edge("a", "b", condition=later).add_edge("a", "c", condition=lambda state: state.get("y"))
    builder.add_edge("a", "d", condition=lambda state: [0])

    done = await run_of(builder, {"x": 1, "y": 0}, entry="a")

    assert [one.node_name for one in done.node_results] == ["a", "b", "d"]


async def test_an_entry_may_be_chosen_by_the_call(embedded: str) -> None:
    """What does not follow from it does not run; one that does not exist is refused."""
    trace = Trace()
    engine = WorkflowEngine(wired(trace, "a b", "b c").set_entry("a").build())

    assert [one.node_name for one in (await engine.execute("b")).unwrap().node_results] == ["b", "c"]
    assert len((await engine.execute()).unwrap().node_results) == 3
    with pytest.raises(GraphValidationError, match="'x'"):
        await engine.execute("x")
    with pytest.raises(TypeError, match="mapping"):
        await engine.execute(initial_state=[])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="not both"):
        await engine.execute(initial_state={}, state={})


@pytest.mark.parametrize(
    ("config", "at_once"),
    [
        ({}, 5),
        ({"max_parallel_branches": 2}, 2),
        ({"parallel_branches": False}, 1),
        ({"max_parallel_branches": 9}, 5),
    ],
)
async def test_branches_are_limited_and_never_dropped(embedded: str, config: State, at_once: int) -> None:
    """`max_parallel_branches`, `parallel_branches`: all run in the end, with the same outcome."""
    running, most = 0, 0

    async def busy(state: State) -> State:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return {"log": [len(state["log"])]}

    builder = WorkflowBuilder(None, GraphConfig(**config), reducers={"log": operator.add})
    builder.add_node("start", node=lambda state: {"log": ["s"]})
    for number in range(5):
        builder.add_node(f"n{number}", node=busy).add_edge("start", f"n{number}")

    with pytest.warns(LostStateWarning):
        done = await run_of(builder)

    assert most == at_once
    assert done.final_state == {"log": ["s", 1, 1, 1, 1, 1]}
    assert done.iterations == 6


# ─ who writes what ──


async def test_two_nodes_of_a_wave_must_not_write_the_same_key(embedded: str) -> None:
    """`StateConflictError(key, nodes)`, whatever their timing; in different waves the later one wins."""

    def writers(name: str) -> WorkflowBuilder:
        builder = WorkflowBuilder(name)
        builder.add_node("a", node=lambda state: {"x": 1, "y": 1})
        builder.add_node("b", node=lambda state: {"x": 2})
        return builder.add_node("c", node=lambda state: {"x": 3})

    error = await error_of(writers("side by side"), run_id="r")
    assert isinstance(error, StateConflictError)
    assert (error.key, error.nodes, error.run_id) == ("x", ["a", "b", "c"], "r")
    assert "nodes 'a' and 'b' and 'c' wrote 'x' side by side" in str(error)

    in_turn = writers("in turn").add_edge("a", "b").add_edge("b", "c")
    assert (await run_of(in_turn)).final_state == {"x": 3, "y": 1}


async def test_the_last_declared_wins_if_the_config_says_so(embedded: str) -> None:
    """`on_conflict="last"`: by declaration, not by timing."""

    async def slow(state: State) -> State:
        await asyncio.sleep(0.05)
        return {"x": "slow"}

    builder = WorkflowBuilder(None, GraphConfig(on_conflict="last"))
    builder.add_node(slow).add_node("fast", node=lambda state: {"x": "fast"})

    assert (await run_of(builder)).final_state == {"x": "fast"}


async def test_a_reducer_folds_values_in_declaration_order(embedded: str) -> None:
    """`reducer(old, new)`, not called for the first value; it may change what it is given."""

    def extend(old: list[str], new: list[str]) -> list[str]:
        old.extend(new)
        return old

    async def slow(state: State) -> State:
        await asyncio.sleep(0.05)
        return {"log": ["slow"], "n": 5}

    builder = WorkflowBuilder(reducers={"log": extend, "n": operator.add})
    builder.add_node(slow).add_node("fast", node=lambda state: {"log": ["fast"], "n": 1})
    builder.add_node("end", node=lambda state: {"log": ["end"]})
    builder.add_edge("slow", "end").add_edge("fast", "end")

    done = await run_of(builder)
    assert done.final_state == {"log": ["slow", "fast", "end"], "n": 6}
    assert [one.output["log"] for one in done.node_results] == [["slow"], ["fast"], ["end"]]
    given = {"log": ["given"], "n": 1}
    assert (await run_of(builder, given)).final_state == {"log": ["given", "slow", "fast", "end"], "n": 7}
    assert given == {"log": ["given"], "n": 1}


async def test_a_raising_reducer_fails_the_node_whose_value_it_was_given(embedded: str) -> None:
    """As the node itself would."""
    builder = WorkflowBuilder(reducers={"n": operator.add})
    builder.add_node("a", node=lambda state: {"n": 1}).add_node("b", node=lambda state: {"n": "x"})

    error = await error_of(builder)

    assert isinstance(error, NodeExecutionError)
    assert (error.node, type(error.cause)) == ("b", TypeError)


# ─ gates ──


async def test_a_gate_opens_all_routes_whose_predicate_is_true(embedded: str) -> None:
    """The choice is journaled; a gate counts as an iteration and writes nothing."""
    trace = Trace()
    builder = wired(trace, "a", "b", "c")
    builder.add_node("start", node=lambda state: {"n": 5})
    builder.add_gate(
        "gate",
        {
            "a": lambda state: state["n"] > 3,
            "b": lambda state: state["n"] > 9,
            "c": lambda state: state["n"] > 4,
        },
    )
    builder.add_edge("start", "gate")

    done = await run_of(builder, run_id="g")

    assert [one.node_name for one in done.node_results] == ["start", "gate", "a", "c"]
    assert done.iterations == 4
    assert done.final_state == {"n": 5, "a": True, "c": True}
    run = await durable.get_run("g")
    assert [(e.name, e.kind, e.result) for e in run.journal][1] == ("gate", "gate", ["a", "c"])


async def test_a_gate_without_routes_chooses_among_its_edges(embedded: str) -> None:
    """An edge without a condition is always open."""
    trace = Trace()
    builder = wired(trace, "a", "b", "c").add_node(durable.GateNode("gate"))
    builder.add_edge("gate", "a", condition=lambda state: False).add_edge("gate", "b")
    builder.add_edge("gate", "c", condition=lambda state: True)

    assert [one.node_name for one in (await run_of(builder, entry="gate")).node_results] == ["gate", "b", "c"]


async def test_a_gate_with_no_open_route_is_an_error(embedded: str) -> None:
    """Not an end: `NoRouteError(node)`."""
    trace = Trace()
    builder = wired(trace, "a").add_gate("gate", {"a": lambda state: False})

    error = await error_of(builder, run_id="r")

    assert isinstance(error, NoRouteError)
    assert error.node == "gate"
    assert str(error) == "no route of gate 'gate' is open (run 'r')"


async def test_a_raising_predicate_fails_its_node(embedded: str) -> None:
    """`NodeExecutionError`, of a gate as of an edge."""
    trace = Trace()
    gate = wired(trace, "a").add_gate("gate", {"a": lambda state: state["nothing"]})
    edge = wired(trace, "a", "b").add_edge("a", "b", condition=lambda state: 1 / 0 > 0)

    for builder, node, cause in ((gate, "gate", KeyError), (edge, "a", ZeroDivisionError)):
        error = await error_of(builder)
        assert isinstance(error, NodeExecutionError)
        assert (error.node, type(error.cause)) == (node, cause)


# ─ failing ──


async def test_a_failing_node_is_an_err_and_never_raised(embedded: str) -> None:
    """`Err(NodeExecutionError(node, cause))`, live and from the record; the run has failed."""

    def charge(state: State) -> None:
        raise ValueError("declined")

    engine = WorkflowEngine(
        WorkflowBuilder("shop").add_node(Greet()).add_node(charge).add_edge("greet", "charge").build()
    )

    for _ in range(2):
        result = await engine.execute(run_id="f")
        assert isinstance(result, Err)
        error = result.error
        assert isinstance(error, NodeExecutionError)
        assert (error.node, error.run_id) == ("charge", "f")
        assert isinstance(error.cause, ValueError)
        assert error.__cause__ is error.cause
        assert str(error) == "node 'charge' failed: ValueError: declined (run 'f')"
    run = await durable.get_run("f")
    assert run.status == RunStatus.FAILED
    assert run.error == "NodeExecutionError: node 'charge' failed: ValueError: declined (run 'f')"
    with pytest.raises(UnwrapError):
        result.unwrap()


async def test_the_users_own_error_class_fails_a_node(embedded: str) -> None:
    """Any class, also one that is unknown where the failure is read."""

    class DeclinedError(Exception):
        pass

    def charge(state: State) -> None:
        raise DeclinedError("no")

    builder = WorkflowBuilder().add_node("charge", node=charge_node(charge))

    error = await error_of(builder)
    assert isinstance(error, NodeExecutionError)
    assert "DeclinedError" in str(error)


def charge_node(fn: Callable[[State], Any]) -> AbstractWorkflowNode:
    class Charge(AbstractWorkflowNode):
        name = "charge"
        retries = 0

        def execute(self, state: State) -> Any:
            return fn(state)

    return Charge()


async def test_attempts_are_one_and_the_retries(embedded: str) -> None:
    """3 retries by default, as class attributes or arguments; programming errors are not retried; an activity keeps its options."""
    calls = Calls()

    class Flaky(AbstractWorkflowNode):
        name = "flaky"
        retry_delay = 0

        async def execute(self, state: State) -> State:
            if calls(self.name) < 4:
                raise OSError("down")
            return {"n": 1}

    @step(retries=1, retry_delay=0)
    async def once_more(state: State) -> None:
        calls("once_more")
        raise OSError

    @step
    async def wrong(state: State) -> None:
        calls("wrong")
        raise KeyError("x")

    done = await run_of(WorkflowBuilder().add_node(Flaky()))
    assert (done.node_results[0].attempts, calls.of("flaky")) == (4, 4)
    assert isinstance(
        await error_of(WorkflowBuilder().add_node(Flaky("never", retries=1))), NodeExecutionError
    )
    await error_of(WorkflowBuilder().add_node(once_more))
    await error_of(WorkflowBuilder().add_node(wrong))
    assert (calls.of("never"), calls.of("once_more"), calls.of("wrong")) == (2, 2, 1)


async def test_a_returned_err_fails_the_node_without_a_retry(embedded: str) -> None:
    """An answer, not an accident; `Ok` stands for its value, and anything but a dict is a mistake."""
    calls = Calls()

    def answer(state: State) -> Any:
        calls("answer")
        return Err("declined")

    error = await error_of(WorkflowBuilder().add_node(answer))
    assert isinstance(error, NodeExecutionError)
    assert isinstance(error.cause, StepAnswerError)
    assert calls.of("answer") == 1
    error = await error_of(WorkflowBuilder("err").add_node("x", node=lambda state: Err(OSError("no"))))
    assert isinstance(error, NodeExecutionError)
    assert isinstance(error.cause, OSError)
    assert (
        await run_of(WorkflowBuilder("ok").add_node("x", node=lambda state: Ok({"n": 1})))
    ).final_state == {"n": 1}
    error = await error_of(WorkflowBuilder("five").add_node("x", node=lambda state: 5))
    assert isinstance(error, NodeExecutionError)
    assert "node 'x' returned 5: a node returns a dict" in str(error)


async def test_the_first_failure_cancels_its_siblings_and_awaits_their_ends(embedded: str) -> None:
    """Nothing of the graph runs when its failure is told; the nodes that follow do not begin."""
    ended: list[str] = []
    began = asyncio.Event()

    async def slow(state: State) -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    async def broken(state: State) -> None:
        await began.wait()
        raise ValueError("broken")

    trace = Trace()
    builder = wired(trace, "after").add_node(slow).add_node(broken).add_edge("slow", "after")

    error = await error_of(builder)

    assert isinstance(error, NodeExecutionError)
    assert error.node == "broken"
    assert ended == ["slow"]
    assert trace.calls.names == []


async def test_a_node_timeout_limits_each_attempt(embedded: str) -> None:
    """The config's, unless the node has its own; 0 is none."""
    calls = Calls()

    class Slow(AbstractWorkflowNode):
        name = "slow"
        retries = 1
        retry_delay = 0

        async def execute(self, state: State) -> None:
            calls(self.name)
            await asyncio.sleep(0.3 if self.timeout == 0 else 60)

    config = GraphConfig(node_timeout=0.05)
    for node in (Slow(), Slow("own", timeout=0.04)):
        error = await error_of(WorkflowBuilder(None, config).add_node(node))
        assert isinstance(error, NodeExecutionError)
        assert isinstance(error.cause, StepTimeoutError)
        assert calls.of(node.name) == 2
    assert (await run_of(WorkflowBuilder(None, config).add_node(Slow("free", timeout=0)))).succeeded


async def test_the_total_timeout_limits_the_run(embedded: str) -> None:
    """`Err(GraphTimeoutError)`; the run is timed out. Inside a workflow, too."""

    async def slow(state: State) -> None:
        await asyncio.sleep(60)

    engine = WorkflowEngine(
        WorkflowBuilder("late").add_node(slow).build(), config=GraphConfig(total_timeout=0.1)
    )

    @workflow
    async def outer() -> str:
        return str((await engine.execute()).unwrap_err())

    error = (await engine.execute(run_id="t")).unwrap_err()
    assert isinstance(error, GraphTimeoutError)
    assert (error.timeout, error.run_id) == (0.1, "t")
    assert (await durable.get_run("t")).status == RunStatus.TIMED_OUT
    assert await outer(run_id="o") == "the graph did not end within 0.1 seconds (run 'o')"


async def test_a_disabled_graph_starts_nothing(embedded: str) -> None:
    """`enabled=False`: `Err`, and no run."""
    error = await error_of(wired(Trace(), "a", config=GraphConfig(enabled=False), name="off"))

    assert str(error) == "graph 'off' is disabled by its config"
    off = WorkflowEngine(wired(Trace(), "a", config=GraphConfig(enabled=False), name="off").build())
    for begin in (off.start, off.enqueue):
        with pytest.raises(GraphExecutionError, match="disabled"):
            await begin()
    assert await durable.list_runs() == []
    outer = WorkflowBuilder("outer").add_node("sub", subworkflow=off)
    assert "graph 'off' is disabled" in str(await error_of(outer))


async def test_a_cancelled_graph_raises(embedded: str) -> None:
    """That somebody cancelled it is no failure of a node."""

    async def slow(state: State) -> None:
        await asyncio.sleep(60)

    engine = WorkflowEngine(WorkflowBuilder().add_node(slow).build())
    handle = await engine.start(run_id="r")
    await until(lambda: has_begun("r"))
    await durable.cancel("r")

    with pytest.raises(RunCancelledError):
        await handle.result()
    with pytest.raises(RunCancelledError):
        await engine.execute(run_id="r")


async def has_begun(run_id: str) -> bool:
    return bool((await durable.get_run(run_id)).journal)


async def test_another_version_is_refused(embedded: str) -> None:
    """Code of version 2 does not drive a run of version 1."""

    def engine(version: int) -> WorkflowEngine:
        return WorkflowEngine(WorkflowBuilder("v", version=version).add_node(Greet()).build())

    await engine(1).enqueue(run_id="r")

    with pytest.raises(WorkflowVersionMismatchError) as e:
        await engine(2).execute(run_id="r")
    assert (e.value.stored_version, e.value.code_version) == (1, 2)
    assert engine(2).version == 2


async def test_two_graphs_of_one_name_are_refused(embedded: str) -> None:
    """Whoever recovers a run could not tell them apart. The same one built again is the same."""
    trace = Trace()
    await run_of(wired(trace, "a b", name="same"))
    await run_of(wired(trace, "a b", name="same"))

    with pytest.raises(DefinitionError, match="two workflows are called 'same'"):
        await run_of(wired(trace, "b a", name="same"))

    for inner, is_other in (("a b", False), ("a b", False), ("b a", True)):
        outer = WorkflowBuilder("outer").add_node("sub", subworkflow=wired(trace, inner).build())
        if is_other:
            with pytest.raises(DefinitionError, match="two workflows are called 'outer'"):
                await run_of(outer)
        else:
            await run_of(outer)


@pytest.mark.parametrize("where", ["on self", "in a closure"])
async def test_state_that_a_replay_will_not_have_draws_a_warning(embedded: str, where: str) -> None:
    """It says why it is lost."""
    count = 0

    def closure(state: State) -> None:
        nonlocal count
        count += 1

    class Counting(AbstractWorkflowNode):
        name = "counting"
        count = 0

        async def execute(self, state: State) -> None:
            self.count += 1

    node = Counting() if where == "on self" else closure

    with pytest.warns(
        LostStateWarning, match=r"after a crash .* lost; return it, so that it is merged into the state"
    ):
        await run_of(WorkflowBuilder().add_node(node))


async def test_a_sagas_step_in_a_graph_is_undone_when_the_graph_fails(embedded: str) -> None:
    """As in a pipeline: in reverse, with the state that the step was given."""
    undone: list[Any] = []
    tries = Calls()

    async def refund(state: State) -> None:
        undone.append(state["order"])

    @saga_step(compensation=refund, retry_delay=0)
    async def charge(state: State) -> State:
        if tries("charge") == 1:
            raise OSError
        return {"charged": True}

    def ship(state: State) -> None:
        raise ValueError("no truck")

    builder = WorkflowBuilder("shop").add_node(charge).add_node(ship).add_edge("charge", "ship")
    error = await error_of(builder, {"order": "o-7"}, run_id="r")

    assert isinstance(error, NodeExecutionError)
    assert (error.node, undone) == ("ship", ["o-7"])
    assert [name for name, _, _ in await journal("r")] == ["charge", "ship", "charge/compensation"]
    alone = WorkflowBuilder("alone").add_node(charge)
    assert (await run_of(alone, {"order": "o-8"})).node_results[0].attempts == 1
    assert undone == ["o-7"]


# ─ as a part of others ──


async def test_a_graph_inside_a_workflow_is_part_of_its_run(embedded: str) -> None:
    """Its nodes are in the parent's journal under its name; it returns the same values as a run of its own."""
    builder = WorkflowBuilder("hello").add_node(Greet()).add_node(Shout()).add_edge("greet", "shout")
    engine = WorkflowEngine(builder.build())

    @workflow
    async def outer(name: str) -> Any:
        first = (await engine.execute(initial_state={"name": name})).unwrap()
        with pytest.raises(DefinitionError, match="leave run_id out"):
            await engine.execute(run_id="x")
        return [first.final_state["message"], first.run_id, isinstance(first.node_results[0], NodeResult)]

    assert await outer("u", run_id="o") == ["HELLO, U!", "o", True]
    assert await journal("o") == [
        ("hello/greet", "activity", "completed"),
        ("hello/shout", "activity", "completed"),
    ]
    assert len(await durable.list_runs()) == 1


async def test_a_failure_inside_a_workflow_is_a_value(embedded: str) -> None:
    """The workflow decides; raised on, it fails the run with its cause."""

    async def broken(state: State) -> None:
        raise ValueError("no")

    engine = WorkflowEngine(WorkflowBuilder("bad").add_node(broken).build())

    @workflow
    async def outer() -> str:
        error = (await engine.execute()).unwrap_err()
        assert isinstance(error, NodeExecutionError)
        return f"{error.node} {error.cause!r}"

    assert await outer() == "broken ValueError('no')"


async def test_a_workflow_retry_keeps_the_nodes_that_had_ended(embedded: str) -> None:
    """Of a failure that was unwrapped, too: it is the failed node's, so what came before it stays."""
    calls = Calls()

    def charge(state: State) -> None:
        calls("charge")

    def ship(state: State) -> None:
        if calls("ship") == 1:
            raise ValueError("no truck")

    builder = WorkflowBuilder("shop").add_node(charge).add_node(ship).add_edge("charge", "ship")
    engine = WorkflowEngine(builder.build())

    @workflow(retries=1, retry_delay=0)
    async def order() -> int:
        return (await engine.execute()).unwrap().iterations

    assert await order() == 2
    assert calls.names == ["charge", "ship", "ship"]


async def test_a_graph_inside_a_step_is_a_run_of_its_own(embedded: str) -> None:
    """Its id derives from the idempotency key: a retried step attaches to it and starts no second one."""
    calls = Calls()
    inner = WorkflowEngine(WorkflowBuilder("inner").add_node(Greet()).build())

    @step(retry_delay=0)
    async def outer(state: State) -> State:
        found = (await inner.execute()).unwrap()
        if calls("outer") == 1:
            raise OSError
        return {"message": found.final_state["message"]}

    done = await run_of(WorkflowBuilder("outside").add_node(outer), run_id="out")

    assert done.final_state == {"message": "Hello, world!"}
    assert sorted(run.run_id for run in await durable.list_runs()) == ["out", "out@1/outer#1/inner#1"]


async def test_a_module_is_served_by_the_engine_of_its_graph(embedded: str) -> None:
    """By the one that was made last, with its config; if there is none, by the graph's own config."""
    graph = WorkflowBuilder("hello").add_node(Greet()).build()
    (of_its_own,) = graph.__durable_workflows__()
    engine = WorkflowEngine(graph, config=GraphConfig(total_timeout=5))

    assert of_its_own.definition.timeout_us is None
    assert list(graph.__durable_workflows__()) == list(engine.__durable_workflows__())
    del engine
    gc.collect()
    (again,) = graph.__durable_workflows__()
    assert again.definition.timeout_us is None


async def test_start_and_enqueue_return_handles(embedded: str) -> None:
    """`start` drives here; `enqueue` leaves the run to a worker."""
    engine = WorkflowEngine(WorkflowBuilder("hello").add_node(Greet()).build())

    done = await (await engine.start("greet", {"name": "a"}, run_id="s")).result()
    assert isinstance(done, GraphResult)
    assert done.final_state["message"] == "Hello, a!"
    await engine.enqueue(initial_state={"name": "b"}, run_id="e")
    assert (await durable.get_run("e")).status == "pending"
    assert (engine.name, repr(engine)) == ("hello", "<engine of <graph hello of greet>>")
