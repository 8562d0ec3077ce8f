"""Nodes that ask people: how a run pauses, who answers, from where, and how often."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import pytest

import durable
from durable import (
    Client,
    GraphConfig,
    GraphResult,
    GraphTimeoutError,
    HumanInputRequiredError,
    HumanNode,
    NodeExecutionError,
    Result,
    RunCancelledError,
    RunConflictError,
    RunNotFoundError,
    SubworkflowNode,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowRunner,
    WorkflowStateError,
    WorkflowVersionMismatchError,
    workflow,
)
from tests.support.workers import Calls, is_released, is_waiting, running_worker, until

State = dict[str, Any]


class Shop:
    """A graph that reserves, asks, and ships or cancels; it counts what it did."""

    def __init__(self, *, name: str = "shop", version: int = 1, config: GraphConfig | None = None) -> None:
        calls = self.calls = Calls()

        async def reserve(state: State) -> State:
            calls("reserve")
            return {"reserved": True}

        async def ship(state: State) -> State:
            calls("ship")
            return {"output": f"shipped {state['order']}"}

        async def cancel(state: State) -> State:
            calls("cancel")
            return {"output": "cancelled"}

        builder = WorkflowBuilder(name, config, version=version)
        builder.add_node(reserve).add_node(
            HumanNode("approve", prompt="Ship {order}?", output_key="approved")
        )
        builder.add_gate("decide", {"ship": lambda s: s["approved"], "cancel": lambda s: not s["approved"]})
        builder.add_node(ship).add_node(cancel)
        builder.add_edge("reserve", "approve").add_edge("approve", "decide")
        self.engine = WorkflowEngine(builder.build())

    async def execute(self, run_id: str = "r") -> Result[GraphResult, Any]:
        return await self.engine.execute(initial_state={"order": "o-7"}, run_id=run_id)


def question(result: Result[GraphResult, Any]) -> HumanInputRequiredError:
    error = result.unwrap_err()
    assert isinstance(error, HumanInputRequiredError)
    return error


# ─ pausing and answering ──


async def test_a_script_is_told_what_is_asked(embedded: str) -> None:
    """`Err(HumanInputRequiredError)` once only people are awaited; the run waits, and says for what."""
    shop = Shop()

    asked = question(await shop.execute())

    assert (asked.prompt, asked.node, asked.run_id) == ("Ship o-7?", "approve", "r")
    assert asked.checkpoint_id == "r@1/approve#1"
    assert str(asked) == "human input required at 'approve': Ship o-7? (run 'r')"
    run = await durable.get_run("r")
    assert (run.status, run.prompt) == ("waiting", "Ship o-7?")
    assert [one.id for one in await durable.inbox()] == ["r@1/approve#1"]


async def test_resuming_goes_on_after_the_question(embedded: str) -> None:
    """Nothing above it runs again; asked again before the answer, the script is told again."""
    shop = Shop()
    question(await shop.execute())
    question(await shop.execute())

    done = (await shop.engine.resume("r", True)).unwrap()

    assert done.final_state == {"order": "o-7", "reserved": True, "approved": True, "output": "shipped o-7"}
    assert done.output == "shipped o-7"
    assert [one.node_name for one in done.node_results] == ["reserve", "approve", "decide", "ship"]
    assert shop.calls.names == ["reserve", "ship"]
    assert (await shop.execute()).unwrap() == done


async def test_a_second_answer_is_refused(embedded: str) -> None:
    """`WorkflowStateError`, from whichever side, also for a run that is closed."""
    shop = Shop()
    checkpoint = question(await shop.execute()).checkpoint_id
    assert checkpoint is not None
    await durable.answer("r", False)
    with pytest.raises(WorkflowStateError):
        await shop.engine.resume("r", True)
    done = (await shop.execute()).unwrap()
    assert done.output == "cancelled"

    for second in (
        lambda: shop.engine.resume("r", True),
        lambda: WorkflowRunner(shop.engine).resume(checkpoint_id=checkpoint, input=True),
        lambda: durable.answer("r", True),
        lambda: durable.signal("r", "approve", True),
    ):
        with pytest.raises(WorkflowStateError):
            await second()
    assert shop.calls.names == ["reserve", "cancel"]


async def test_a_runner_answers_by_checkpoint(embedded: str) -> None:
    """`WorkflowRunner.resume(checkpoint_id=, input=)`: this very question."""
    shop = Shop()
    runner = WorkflowRunner(shop.engine)
    asked = question(await runner.run(initial_state={"order": "o"}, run_id="odd@1/x"))
    assert asked.checkpoint_id == "odd@1/x@1/approve#1"

    done = (await runner.resume(checkpoint_id=asked.checkpoint_id, input=True)).unwrap()

    assert done.run_id == "odd@1/x"
    with pytest.raises(ValueError, match="no checkpoint_id"):
        await runner.resume(checkpoint_id="r", input=True)


async def test_a_signal_of_the_nodes_name_answers(embedded: str) -> None:
    """`durable.signal(run_id, node, value)`; a dict is merged, another value goes under the output key."""
    for answer, writes in (
        ({"approved": True, "by": "ann"}, {"approved": True, "by": "ann"}),
        (True, {"approved": True}),
    ):
        shop, run_id = Shop(), f"r-{answer}"
        question(await shop.execute(run_id))
        await durable.signal(run_id, "approve", answer)
        done = (await shop.execute(run_id)).unwrap()
        assert done.node_results[1].output == writes


async def test_an_answer_may_wait_for_whoever_goes_on(embedded: str) -> None:
    """`durable.answer` stores it; executing again finds it, and so would a worker."""
    shop = Shop()
    question(await shop.execute())

    await durable.answer("r", True)

    assert (await shop.execute()).unwrap().output == "shipped o-7"


async def test_resuming_what_does_not_fit_is_refused(embedded: str) -> None:
    """Unknown, of another graph, of another version: and nothing is answered."""
    shop = Shop()
    question(await shop.execute())
    other = WorkflowEngine(WorkflowBuilder("other").add_node(HumanNode("approve")).build())

    with pytest.raises(RunNotFoundError):
        await shop.engine.resume("nobody", True)
    with pytest.raises(RunConflictError, match="'shop'"):
        await other.resume("r", True)
    with pytest.raises(WorkflowVersionMismatchError):
        await Shop(version=2).engine.resume("r", True)
    with pytest.raises(WorkflowStateError, match="no question 'elsewhere'"):
        await shop.engine.resume("r", True, node="elsewhere")

    assert (await durable.get_run("r")).prompt == "Ship o-7?"
    assert (await shop.engine.resume("r", True, node="approve")).is_ok()


async def test_an_answer_comes_from_another_process_and_a_worker_goes_on(client: Client) -> None:
    """Nobody who asked need be there: the run is a row until it is answered."""
    shop = Shop()
    async with running_worker(client, shop.engine, warm_us=0):
        run = await client.start(shop.engine._workflow, None, {"order": "o-7"}, run_id="r")
        await is_released(run)

        await client.answer("r", True)

        assert (await run.result()).output == "shipped o-7"
    assert shop.calls.names == ["reserve", "ship"]


# ─ what is asked ──


async def test_a_prompt_that_names_what_the_state_lacks_is_an_error(embedded: str) -> None:
    """Nobody is asked half a question."""
    engine = WorkflowEngine(WorkflowBuilder().add_node(HumanNode("who", prompt="{x}?")).build())

    error = (await engine.execute()).unwrap_err()

    assert isinstance(error, NodeExecutionError)
    assert isinstance(error.cause, KeyError)


async def test_defaults_of_a_question(embedded: str) -> None:
    """Answered under "human_response"."""
    engine = WorkflowEngine(WorkflowBuilder().add_node(HumanNode("who")).build())

    asked = question(await engine.execute(run_id="r"))

    assert asked.prompt == "Human input required."
    assert (await engine.resume("r", "me")).unwrap().final_state == {"human_response": "me"}


async def test_a_question_may_expire(embedded: str) -> None:
    """Then its node fails; who answers later is told."""
    engine = WorkflowEngine(WorkflowBuilder().add_node(HumanNode("who", timeout=0.4)).build())
    question(await engine.execute(run_id="r"))

    async with asyncio.timeout(60):
        while (result := await engine.execute(run_id="r")).is_err():
            error = result.unwrap_err()
            if isinstance(error, NodeExecutionError):
                break
            await asyncio.sleep(0.05)

    assert isinstance(error, NodeExecutionError)
    assert isinstance(error.cause, TimeoutError)
    with pytest.raises(WorkflowStateError):
        await engine.resume("r", "late")


async def test_nobody_answers_before_the_graphs_time_is_up(embedded: str) -> None:
    """`total_timeout` counts the time it waits for people, too."""
    builder = WorkflowBuilder("late").add_node(HumanNode("who"))
    engine = WorkflowEngine(builder.build(), config=GraphConfig(total_timeout=0.4))
    question(await engine.execute(run_id="r"))

    async def is_over() -> bool:
        return (await durable.get_run("r")).status == "timed_out"

    await until(is_over)
    assert isinstance((await engine.execute(run_id="r")).unwrap_err(), GraphTimeoutError)
    with pytest.raises(WorkflowStateError, match="timed_out"):
        await engine.resume("r", "late")


async def test_a_graph_is_cancelled_while_it_asks(embedded: str) -> None:
    """Then there is nothing to answer; nothing that would have followed runs."""
    shop = Shop()
    question(await shop.execute())

    await durable.cancel("r", "sold out")

    with pytest.raises(RunCancelledError, match="sold out"):
        await shop.execute()
    with pytest.raises(WorkflowStateError):
        await durable.answer("r", True)
    assert await durable.inbox() == []
    assert shop.calls.names == ["reserve"]


async def test_recover_takes_up_what_was_answered(embedded: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of graphs that are variables of an imported module, as of any workflow."""
    shop = Shop(name="recovered-shop")  # other modules of these tests have a "shop", too
    monkeypatch.setattr(sys.modules[__name__], "recovered", shop.engine.graph, raising=False)
    client = (await shop.engine.enqueue(initial_state={"order": "o"}, run_id="r"))._client
    async with running_worker(client, shop.engine, warm_us=0):
        await is_released(await client.get("r"))
    await durable.answer("r", True)

    (run,) = await durable.recover(wait=True)

    assert (run.run_id, run.status, run.result["final_state"]["output"]) == ("r", "completed", "shipped o")
    assert shop.calls.names == ["reserve", "ship"]


async def test_a_cycle_asks_anew_each_time(embedded: str) -> None:
    """Each question takes its own answer."""
    drafts = 0

    builder = WorkflowBuilder("writing")
    builder.add_node("draft", node=lambda state: {"draft": state.get("draft", 0) + 1})
    builder.add_node(HumanNode("review", prompt="Is {draft} good?", output_key="verdict"))
    builder.add_edge("draft", "review")
    builder.add_edge("review", "draft", condition=lambda state: state["verdict"] == "no")
    engine = WorkflowEngine(builder.build())

    asked = question(await engine.execute(run_id="r"))
    for drafts in (1, 2):
        assert (asked.prompt, asked.checkpoint_id) == (f"Is {drafts} good?", f"r@1/review#{drafts}")
        asked = question(await engine.resume("r", "no"))
    done = (await engine.resume("r", "yes")).unwrap()

    assert done.final_state == {"draft": 3, "verdict": "yes"}


async def test_several_people_are_asked_at_once(embedded: str) -> None:
    """Nodes side by side: the script is told of the first; the others of the wave are done meanwhile."""
    calls = Calls()

    def work(state: State) -> State:
        calls("work")
        return {"worked": True}

    builder = WorkflowBuilder("two", GraphConfig(parallel_branches=False))
    builder.add_node(HumanNode("ann", output_key="a")).add_node(HumanNode("bob", output_key="b")).add_node(
        work
    )
    builder.add_node("end", node=lambda state: {"output": [state["a"], state["b"]]})
    for name in ("ann", "bob", "work"):
        builder.add_edge(name, "end")
    engine = WorkflowEngine(builder.build())

    asked = question(await engine.execute(run_id="r"))
    assert asked.node == "ann"
    assert calls.names == ["work"]
    assert [one.name for one in await durable.inbox()] == ["ann", "bob"]
    assert question(await engine.resume("r", 2, node="bob")).node == "ann"

    assert (await engine.resume("r", 1)).unwrap().output == [1, 2]


async def test_an_inner_pause_pauses_the_outer_run(embedded: str) -> None:
    """A person is asked by the path of the node."""
    inner = WorkflowBuilder("inner").add_node(HumanNode("who", output_key="name")).build()
    builder = WorkflowBuilder("outer").add_node(SubworkflowNode("sub", workflow=inner))
    builder.add_node("greet", node=lambda state: {"output": f"hello {state['name']}"}).add_edge(
        "sub", "greet"
    )
    engine = WorkflowEngine(builder.build())

    asked = question(await engine.execute(run_id="r"))
    assert (asked.node, asked.checkpoint_id) == ("sub/who", "r@1/sub/who#1")

    assert (await engine.resume("r", "ann", node="who")).unwrap().output == "hello ann"


# ─ inside a workflow ──


async def test_inside_a_workflow_it_simply_awaits(embedded: str) -> None:
    """The run of the workflow waits; it is answered by its id and the path of the node."""
    shop = Shop()

    @workflow
    async def order() -> Any:
        return (await shop.engine.execute(initial_state={"order": "o"})).unwrap().output

    run = await order.start(run_id="r")
    seen = await is_waiting(run, "signal")

    assert (seen.status, seen.prompt) == ("waiting", "Ship o?")
    assert seen.waiting_on[0].ask == "r@1/shop/approve#1"
    await durable.answer("r", True, name="approve")
    assert await run.result() == "shipped o"


async def test_a_workflow_does_not_answer(embedded: str) -> None:
    """Answers come from outside."""
    shop = Shop()

    @workflow
    async def confused() -> None:
        with pytest.raises(durable.DefinitionError, match="from outside of runs"):
            await shop.engine.resume("r", True)

    await confused()
