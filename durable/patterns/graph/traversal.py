"""Runs a graph, wave by wave. Workflow code: what touches the world is an activity.

Theory. A wave is all nodes that are ready. Each is given the state as it was when the wave began, so it does not matter in which
order, or how many at a time, they run. When all are done, what they return is merged in the order of declaration, and then it is asked which
edges fire; `frontier.py` says which nodes are ready then. The first failure cancels the rest of its wave, awaits their ends, and
fails the graph. A node that asks a person takes no slot: it runs nothing.

Journal: each node an activity under its name, a gate one of kind "gate" whose result is the targets it chose, the conditions of a node's
edges one of kind "predicate", `node/edges`, the nodes of a subgraph under `sub/`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple, TypeVar

import durable
from durable import Activity
from durable.patterns.calling import adapted, failing_as, settled, takes_context, unit
from durable.patterns.graph.config import GraphConfig
from durable.patterns.graph.definition import WorkflowGraph
from durable.patterns.graph.errors import (
    CycleDetectedError,
    GraphExecutionError,
    GraphTimeoutError,
    NodeExecutionError,
    NoRouteError,
    StateConflictError,
)
from durable.patterns.graph.frontier import Frontier
from durable.patterns.graph.nodes import (
    AbstractWorkflowNode,
    FunctionNode,
    GateNode,
    HumanNode,
    Predicate,
    State,
)
from durable.patterns.graph.results import GraphResult, NodeResult
from durable.patterns.graph.subgraph import SubworkflowNode
from durable.patterns.policies import ONCE, as_seconds
from durable.patterns.running import current_run_id
from durable.patterns.saga.noticing import noticed
from durable.patterns.together import side_by_side

T = TypeVar("T")


class Unit(NamedTuple):
    """An activity of a node, and whether it takes the state. `perform_as` is that of a saga's step, which knows how it is undone."""

    call: Activity[..., Any]
    takes_state: bool
    perform_as: Callable[..., Coroutine[Any, Any, Any]] | None = None

    async def __call__(self, state: State, group: object | None) -> tuple[Any, int]:
        """Return the value, and the number of attempts."""
        call = self.call if group is None else self.call.grouped(group)
        args = (state,) if self.takes_state else ()
        if self.perform_as is None:
            return await call.counted(*args)
        told: list[int] = []
        return await self.perform_as(call, *args, told=told), told[0]


class Plan:
    """A graph with its config, as activities. Made once, used by all its runs."""

    def __init__(self, graph: WorkflowGraph, config: GraphConfig) -> None:
        self.graph = graph
        self.config = config
        self.units: dict[str, Unit] = {}
        self.routes: dict[str, Unit] = {}
        self.subgraphs: dict[str, Plan] = {}
        self.people: dict[str, HumanNode] = {}
        for name, node in graph.nodes.items():
            if isinstance(node, SubworkflowNode):
                self.subgraphs[name] = Plan(node.graph, node.config)
            elif isinstance(node, GateNode):
                self.routes[name] = self._gate(name, node)
            elif isinstance(node, HumanNode) and node.asks:
                self.people[name] = node
                as_seconds(f"timeout of node {name!r}", node.timeout or 0)
            else:
                self.units[name] = self._unit(name, node)
            if not isinstance(node, GateNode) and (asked := self._conditions(name)):
                self.routes[name] = Unit(
                    unit(asked, name=f"{name}/edges", kind="predicate", retry=ONCE), takes_state=True
                )

    @property
    def asks(self) -> bool:
        """Whether a person may be asked."""
        return bool(self.people) or any(plan.asks for plan in self.subgraphs.values())

    def _unit(self, name: str, node: AbstractWorkflowNode) -> Unit:
        work = node.work()
        plain = work.fn if isinstance(work, Activity) else work
        if isinstance(work, Activity):
            call = work.replaced(adapted(plain), name=name, result=Any)
        else:
            call = durable.make_activity(
                adapted(plain), name=name, retry=node.retry(), timeout=node.timeout or None, result=Any
            )
        # Of one that is not to be limited at all the timeout is 0, not None.
        is_limited = call.definition.timeout_us is not None or node.timeout is not None
        advice = "return it, so that it is merged into the state"
        settle = functools.partial(output_of, name)
        own = None if type(node) is FunctionNode else node
        call = call.with_fn(noticed(own, plain, f"node {name!r}", settle, advice=advice), name=name)
        if not is_limited and self.config.node_seconds:
            call = call.options(timeout=self.config.node_seconds)
        # What follows a failed wave meets no code of it that still runs.
        perform_as = getattr(work, "perform_as", None)
        return Unit(call.options(cancellation="wait"), takes_context(plain), perform_as)

    def _gate(self, name: str, gate: GateNode) -> Unit:
        routes: dict[str, Predicate | None] = {
            edge.target: edge.condition or gate.routes.get(edge.target) for edge in self.graph.outgoing(name)
        }
        timeout = self.config.node_seconds if gate.timeout is None else gate.timeout
        call = unit(chooser(routes), name=name, kind="gate", retry=gate.retry(), timeout=timeout or None)
        return Unit(call.options(cancellation="wait"), takes_state=True)

    def _conditions(self, name: str) -> Callable[..., Any] | None:
        """Return what asks all conditions of a node's edges, if there are any."""
        edges = {edge.target: edge.condition for edge in self.graph.outgoing(name)}
        end = self.graph.terminals.get(name)
        if end is None and not any(edges.values()):
            return None
        return chooser(edges, end)


class _Ran(NamedTuple):
    """What one node of a wave came to; `targets` are those that a gate chose."""

    result: NodeResult
    targets: list[str] | None = None


class Traversal:
    """One run of a graph, or of a subgraph within one."""

    def __init__(self, plan: Plan, state: Mapping[str, Any]) -> None:
        self._plan = plan
        self._graph = plan.graph
        self._config = plan.config
        self._state = dict(state)
        self._ran: list[NodeResult] = []
        self._group: object | None = None
        self._slots = asyncio.Semaphore(plan.config.branches_max or len(plan.graph.nodes))

    async def run(self, entry: str | None) -> GraphResult:
        """Run it to its end; raise a `GraphExecutionError`."""
        began = durable.now()
        frontier = Frontier(self._graph)
        wave = self._graph.starts(entry)
        last = wave
        try:
            while wave:
                self._count(wave)
                ran = await self._side_by_side(self._run_node, wave)
                self._merge(ran)
                for name, targets in zip(wave, await self._targets(wave, ran), strict=True):
                    frontier.fire(name, targets)
                last, wave = wave, frontier.next_wave()
        except GraphExecutionError as error:
            error.run_id = error.run_id or current_run_id() or ""
            raise
        return GraphResult(
            final_state=self._state,
            node_results=self._ran,
            iterations=len(self._ran),
            duration_ms=_ms_since(began),
            terminated_at=[*last, *(name for name in last if name in self._graph.terminals)][-1],
            run_id=current_run_id() or "",
        )

    def _count(self, wave: list[str]) -> None:
        if len(self._ran) + len(wave) > self._config.max_iterations:
            raise CycleDetectedError(self._config.max_iterations)

    # ─ one wave ──

    async def _side_by_side(self, do: Callable[[str], Coroutine[Any, Any, T]], names: list[str]) -> list[T]:
        """Do it for all; after the first failure cancel the others, await their ends, and raise it."""
        self._group = self._group_for(names)
        if len(names) < 2:
            return [await do(name) for name in names]
        ended = await side_by_side(do, names, failure=GraphExecutionError)
        if ended.failed:
            raise ended.failed[0] from ended.failed[0].__cause__
        return ended.values

    def _group_for(self, names: list[str]) -> object | None:
        """Return what activities side by side have in common, if their outcomes are to be recorded together.

        Not if some wait for others to end, and so for their record.
        """
        branches_max = self._config.branches_max
        is_limited = 0 < branches_max < len(names)
        return None if self._config.checkpoint_enabled or is_limited or len(names) < 2 else object()

    async def _run_node(self, name: str) -> _Ran:
        node, plan = self._graph.nodes[name], self._plan
        targets: list[str] | None = None
        output: State = {}
        attempts = 1
        with failing_node(name):
            if (person := plan.people.get(name)) is not None:
                began = durable.now()
                output = await self._ask(name, person)
            else:
                async with self._slots:
                    began = durable.now()
                    if (unit := plan.units.get(name)) is not None:
                        output, attempts = await unit(self._state, self._group)
                    elif isinstance(node, SubworkflowNode):
                        output = await self._run_subgraph(name, node)
                    else:
                        targets, attempts = await plan.routes[name](self._state, self._group)
        if targets is not None and not targets:
            raise NoRouteError(name)
        result = NodeResult(node_name=name, output=output, attempts=attempts, duration_ms=_ms_since(began))
        return _Ran(result, targets)

    async def _run_subgraph(self, name: str, node: SubworkflowNode) -> State:
        plan = self._plan.subgraphs[name]
        check_enabled(plan.graph, plan.config)
        inner = Traversal(plan, node.input_of(self._state))
        with durable.scope(name):
            result = await limited(inner.run(node.entry), plan.config)
        written = {key for one in result.node_results for key in one.output}
        return node.output_of(result.final_state, written, self._state)

    async def _ask(self, name: str, node: HumanNode) -> State:
        answer = await durable.wait_answer(name, node.render(self._state), node.timeout or None)
        return node.output_of(answer)

    # ─ between two waves ──

    def _merge(self, ran: Iterable[_Ran]) -> None:
        """Write what the nodes returned, in the order of declaration."""
        writers: dict[str, list[str]] = {}
        results = [one.result for one in ran]
        self._ran.extend(results)
        for result in results:
            for key in result.output:
                writers.setdefault(key, []).append(result.node_name)
        for key, names in writers.items():
            if len(names) > 1 and key not in self._graph.reducers and self._config.on_conflict == "error":
                raise StateConflictError(key, names)
        state = dict(self._state)  # nodes of the wave were given the old one
        for result in results:
            with failing_node(result.node_name):
                for key, value in result.output.items():
                    state[key] = self._reduced(state, key, value)
        self._state = state

    def _reduced(self, state: State, key: str, value: Any) -> Any:
        reducer = self._graph.reducers.get(key)
        if reducer is None:
            return value
        new = copy.deepcopy(value)  # reducers like to extend what is there
        return reducer(state[key], new) if key in state else new

    async def _targets(self, wave: list[str], ran: list[_Ran]) -> list[list[str]]:
        """Return, for each node of the wave, the targets whose edges fire."""
        routes = self._plan.routes
        asked = [name for name, one in zip(wave, ran, strict=True) if one.targets is None and name in routes]
        answers = dict(zip(asked, await self._side_by_side(self._route, asked), strict=True))
        return [
            one.targets
            if one.targets is not None
            else answers[name]
            if name in answers
            else [edge.target for edge in self._graph.outgoing(name)]
            for name, one in zip(wave, ran, strict=True)
        ]

    async def _route(self, name: str) -> list[str]:
        with failing_node(name):
            targets, _ = await self._plan.routes[name](self._state, self._group)
            return list(targets)


def failing_node(name: str) -> failing_as:
    """`with failing_node(name)`: what is raised there is the failure of a node."""
    return failing_as(functools.partial(NodeExecutionError, name))


def check_enabled(graph: WorkflowGraph, config: GraphConfig) -> None:
    """Raise `GraphExecutionError` if the config forbids to run the graph."""
    if not config.enabled:
        raise GraphExecutionError(f"graph {graph.name!r} is disabled by its config")


async def limited(coroutine: Coroutine[Any, Any, GraphResult], config: GraphConfig) -> GraphResult:
    """Await a part of a run under its graph's `total_timeout`."""
    seconds = config.total_seconds
    if not seconds:
        return await coroutine
    try:
        async with asyncio.timeout(seconds) as scope:
            return await coroutine
    except TimeoutError as error:
        if not scope.expired():
            raise
        late = GraphTimeoutError(seconds)
        late.run_id = current_run_id() or ""
        raise late from error


def output_of(name: str, value: Any) -> State:
    """Return what a node's answer writes: an `Ok` stands for its value, an `Err` raises. TypeError: it is no dict."""
    value = settled(value)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(
            f"node {name!r} returned {value!r}: a node returns a dict to be merged into the state, or None"
        )
    return dict(value)


def chooser(conditions: Mapping[str, Predicate | None], end: Predicate | None = None) -> Callable[..., Any]:
    """Return a function of the state that returns the targets whose condition is true, or none if `end` is."""
    predicates = [*conditions.values(), end]
    if any(inspect.iscoroutinefunction(predicate) for predicate in predicates):

        async def choose_later(state: State) -> list[str]:
            if end is not None and await _answer(end, state):
                return []
            return [
                target
                for target, condition in conditions.items()
                if condition is None or await _answer(condition, state)
            ]

        return choose_later

    def choose(state: State) -> list[str]:
        if end is not None and end(state):
            return []
        return [target for target, condition in conditions.items() if condition is None or condition(state)]

    return choose


async def _answer(predicate: Predicate, state: State) -> bool:
    value = predicate(state)
    return bool(await value if inspect.isawaitable(value) else value)


def _ms_since(began: datetime) -> float:
    return round((durable.now() - began).total_seconds() * 1000, 3)
