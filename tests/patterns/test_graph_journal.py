"""What `checkpoint_enabled` says: how the results of nodes side by side get into the journal."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import durable
from durable import Client, GraphConfig, RunHandle, WorkflowBuilder, WorkflowEngine
from durable.worker import endings
from tests.support.workers import running_worker, until

State = dict[str, Any]
QUICK = 5


class FanOut:
    """A graph with nodes side by side, each of which ends when it is released."""

    def __init__(self, config: GraphConfig) -> None:
        self.released = [asyncio.Event() for _ in range(QUICK + 1)]
        builder = WorkflowBuilder("fan", config)
        builder.add_node("start", node=lambda state: None)
        builder.add_node("end", node=lambda state: {"output": sorted(state)})
        for number, event in enumerate(self.released):
            builder.add_node(f"n{number}", node=self._node(number, event))
            builder.add_edge("start", f"n{number}").add_edge(f"n{number}", "end")
        self.engine = WorkflowEngine(builder.build())

    def _node(self, number: int, event: asyncio.Event) -> Any:
        async def run(state: State) -> State:
            await event.wait()
            return {f"n{number}": number}

        return run


async def recorded(run: RunHandle[Any], count: int) -> None:
    """Wait until so many nodes are in the journal with their results."""

    async def are_there() -> bool:
        entries = (await run.describe()).journal
        return sum(entry.status == "completed" for entry in entries) >= count

    await until(are_there, what=f"{count} nodes are recorded")


async def turns(client: Client) -> int:
    record = await client.store.get_run("r")
    return len(await client.store.read_journal(record.pk, record.generation))


async def test_results_of_a_wave_share_a_commit(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default: those that end soon one after the other. One that takes its time keeps them waiting for a moment only."""
    monkeypatch.setattr(endings, "GROUP_SECONDS", 1.0)  # this machine may be slow
    fan = FanOut(GraphConfig())
    async with running_worker(client, fan.engine):
        run = await client.start(fan.engine._workflow, run_id="r")
        await recorded(run, 1)
        for event in fan.released[:QUICK]:
            event.set()
            await asyncio.sleep(0.005)
        await recorded(run, 1 + QUICK)
        fan.released[QUICK].set()

        assert (await run.result()).output == [f"n{number}" for number in range(QUICK + 1)]

    # the start, its end, the quick ones, the last one, the end: five turns if this machine keeps pace
    assert await turns(client) < 4 + QUICK


async def test_with_checkpoints_each_result_is_recorded_at_once(client: Client) -> None:
    """`checkpoint_enabled=True`: a crash repeats only what was under way."""
    fan = FanOut(GraphConfig(checkpoint_enabled=True))
    async with running_worker(client, fan.engine):
        run = await client.start(fan.engine._workflow, run_id="r")
        await recorded(run, 1)
        for number, event in enumerate(fan.released, 2):
            event.set()
            await recorded(run, number)
        await run.result()

    assert await turns(client) == 4 + QUICK


async def test_nodes_that_wait_for_a_slot_are_not_kept_waiting_for_records(
    embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a limit, the end of one node begins the next at once."""
    monkeypatch.setattr(endings, "GROUP_SECONDS", 3600.0)  # held results would keep the slot for ever
    ended: list[str] = []
    all_ended = asyncio.Event()

    async def slow(state: State) -> None:
        await all_ended.wait()

    def node(name: str) -> Any:
        async def run(state: State) -> None:
            ended.append(name)
            if len(ended) == QUICK:
                all_ended.set()

        return run

    builder = WorkflowBuilder("limited", GraphConfig(max_parallel_branches=2))
    builder.add_node("slow", node=slow)
    for number in range(QUICK):
        builder.add_node(f"n{number}", node=node(f"n{number}"))

    async with asyncio.timeout(60):
        assert (await WorkflowEngine(builder.build()).execute()).is_ok()

    assert (await durable.list_runs())[0].status == "completed"


async def test_held_results_are_recorded_when_a_worker_leaves(client: Client) -> None:
    """A worker that drains loses none of them."""
    fan = FanOut(GraphConfig())
    async with running_worker(client, fan.engine) as worker:
        run = await client.start(fan.engine._workflow, run_id="r")
        await recorded(run, 1)
        fan.released[0].set()
        await asyncio.sleep(0)
        worker.stop(0.3)
    assert sum(entry.status == "completed" for entry in (await run.describe()).journal) == 2
    for event in fan.released:
        event.set()
    async with running_worker(client, fan.engine):
        assert len((await run.result()).output) == QUICK + 1
