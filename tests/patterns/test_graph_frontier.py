"""Which nodes run next, over many random graphs: joins run once, cycles do not block, nothing is left out."""

from __future__ import annotations

import random

import pytest

from durable import WorkflowBuilder, WorkflowGraph
from durable.patterns.graph.frontier import Frontier

SEEDS = range(60)


def random_graph(chance: random.Random, *, is_cyclic: bool) -> WorkflowGraph:
    """Return a graph of up to nine nodes, declared in any order; without `is_cyclic` edges lead forward only."""
    count = chance.randint(2, 9)
    declared = list(range(count))
    chance.shuffle(declared)
    builder = WorkflowBuilder("random")
    for number in declared:
        builder.add_node(f"n{number}", node=lambda state: None)
    for a in range(count):
        for b in range(0 if is_cyclic else a + 1, count):
            if chance.random() < 0.35:
                builder.add_edge(f"n{a}", f"n{b}")
    return builder.build()


def targets(graph: WorkflowGraph, node: str) -> list[str]:
    return [edge.target for edge in graph.outgoing(node)]


@pytest.mark.parametrize("seed", SEEDS)
def test_without_cycles_each_node_runs_once_after_all_that_lead_to_it(seed: int) -> None:
    """Every wave is ready as a whole: none of it leads to another of it."""
    graph = random_graph(random.Random(seed), is_cyclic=False)
    frontier, wave, ran = Frontier(graph), graph.starts(), list[str]()

    while wave:
        for node in wave:
            assert {edge.source for edge in graph.edges if edge.target == node} <= set(ran)
        ran.extend(wave)
        for node in wave:
            frontier.fire(node, targets(graph, node))
        wave = frontier.next_wave()

    assert sorted(ran) == sorted(graph.nodes)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_branch_that_was_not_taken_blocks_nothing(seed: int) -> None:
    """Whichever edges fire: all that was reached runs, and no join twice where there is no cycle."""
    chance = random.Random(seed)
    graph = random_graph(chance, is_cyclic=False)
    frontier, wave, ran, reached = Frontier(graph), graph.starts(), list[str](), set(graph.starts())

    while wave:
        ran.extend(wave)
        for node in wave:
            taken = [target for target in targets(graph, node) if chance.random() < 0.5]
            reached.update(taken)
            frontier.fire(node, taken)
        wave = frontier.next_wave()

    assert sorted(ran) == sorted(reached)


@pytest.mark.parametrize("seed", SEEDS)
def test_cycles_never_block(seed: int) -> None:
    """As long as something is pending, something runs; the same graph takes the same way. Each edge fires until its source ran thrice."""
    ways = []
    for _ in range(2):
        graph = random_graph(random.Random(seed), is_cyclic=True)
        frontier, wave, ran = Frontier(graph), graph.starts(), list[list[str]]()
        while wave:
            ran.append(wave)
            for node in wave:
                if sum(node in earlier for earlier in ran) <= 3:
                    frontier.fire(node, targets(graph, node))
            wave = frontier.next_wave()
        ways.append(ran)

    assert ways[0] == ways[1]
    assert {node for wave in ways[0] for node in wave} == set(graph.nodes)
