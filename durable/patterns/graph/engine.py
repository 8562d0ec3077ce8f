"""Runs graphs: as runs of their own, or as a part of the run that is under way; and hands in the answers of people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import durable
from durable import (
    DefinitionError,
    Err,
    Ok,
    Result,
    Run,
    RunHandle,
    RunStatus,
    Workflow,
    WorkflowFailedError,
    WorkflowTimeoutError,
    make_workflow,
)
from durable.patterns.graph.config import GraphConfig
from durable.patterns.graph.definition import WorkflowGraph
from durable.patterns.graph.drawing import GraphView, view_of
from durable.patterns.graph.errors import GraphExecutionError, GraphTimeoutError, HumanInputRequiredError
from durable.patterns.graph.nodes import State
from durable.patterns.graph.results import GraphResult
from durable.patterns.graph.traversal import Plan, Traversal, check_enabled, limited
from durable.patterns.running import current_run_id, origin_of, perform, raise_own

LOOK_SECONDS_MIN: Final = 0.01  # between looks whether a run only waits for a person
LOOK_SECONDS_MAX: Final = 0.5
_ADDRESS: Final = re.compile(r"(?P<run_id>.+)@\d+/.+#\d+")  # of a question


class WorkflowEngine:
    """Runs a graph, under the graph's config or another. One engine serves any number of runs, one after the other or at once."""

    def __init__(self, graph: WorkflowGraph, *, config: GraphConfig | None = None) -> None:
        if not isinstance(graph, WorkflowGraph):
            raise TypeError(
                f"an engine runs a WorkflowGraph, which WorkflowBuilder.build() makes, not {graph!r}"
            )
        self.graph = graph
        graph.set_engine(self)
        self.config = graph.config if config is None else config
        self._plan = Plan(graph, self.config)
        self._workflow: Workflow[..., Any] = make_workflow(
            self._body,
            name=graph.name,
            kind="graph",
            origin=origin_of("graph", graph.parts()),
            version=graph.version,
            timeout=self.config.total_seconds or None,
            retention=graph.retention,
            result=GraphResult,
        )

    @property
    def name(self) -> str:
        return self.graph.name

    @property
    def version(self) -> int:
        return self.graph.version

    def __repr__(self) -> str:
        return f"<engine of {self.graph!r}>"

    async def execute(
        self,
        entry: str | None = None,
        initial_state: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Result[GraphResult, GraphExecutionError]:
        """Run the graph from `entry` (default: its own) on an initial state (`state` is another word for it).

        Inside a workflow it is part of that run, and its nodes are journaled as `name/node`. Elsewhere it is a run of its own, driven
        in this process: `run_id` names it (default: generated); the same id with the same input attaches, resumes, or returns what is
        recorded. Failures of nodes come back as `Err`, and so does `HumanInputRequiredError`, in a run of its own, once only people's
        answers are awaited. Raises `GraphValidationError` (no such entry), `RunConflictError`, `RunCancelledError`,
        `WorkflowVersionMismatchError`.
        """
        given = self._input(entry, initial_state, state)
        try:
            check_enabled(self.graph, self.config)
            if current_run_id() is not None:
                return Ok(await perform(self._workflow, self._inline, *given, run_id=run_id))
            return Ok(await self._outcome(await self._workflow.options(run_id=run_id).start(*given)))
        except GraphExecutionError as error:
            return Err(error)

    async def resume(
        self, run_id: str, input: Any, *, node: str | None = None
    ) -> Result[GraphResult, GraphExecutionError]:
        """Answer what a run asks a person, and go on with it in this process. Returns what `execute` does.

        `node` says which node is answered, if several ask. Raises `WorkflowStateError` if the run is closed, asks nothing, or was
        answered already, `RunConflictError` if it is of another graph, and what `execute` raises.
        """
        return await self._answered(run_id, input, name=node)

    async def start(
        self,
        entry: str | None = None,
        initial_state: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> RunHandle[GraphResult]:
        """Start a run, drive it in this process, and return its handle at once."""
        check_enabled(self.graph, self.config)
        return await self._workflow.options(run_id=run_id).start(*self._input(entry, initial_state, None))

    async def enqueue(
        self,
        entry: str | None = None,
        initial_state: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
    ) -> RunHandle[GraphResult]:
        """Store a run for a worker that serves the module of this engine, and return its handle."""
        check_enabled(self.graph, self.config)
        return await self._workflow.options(run_id=run_id).enqueue(*self._input(entry, initial_state, None))

    def view(self, run: Run | None = None) -> GraphView:
        """Return the graph to be drawn, with what a run did in it, if given (see `durable.get_run`): `view().mermaid()`, `.dot()`, `.svg()`."""
        return view_of(self.graph, run)

    def __durable_workflows__(self) -> list[Workflow[..., Any]]:
        return [self._workflow]

    # ─ how it runs ──

    def _input(
        self, entry: str | None, initial_state: Mapping[str, Any] | None, state: Mapping[str, Any] | None
    ) -> tuple[str | None, State]:
        if initial_state is not None and state is not None:
            raise TypeError("give initial_state or state, not both: they are two words for one thing")
        given = initial_state if state is None else state
        if given is not None and not isinstance(given, Mapping):
            raise TypeError(f"the state of a graph is a mapping, not {given!r}")
        self.graph.starts(entry)
        return entry, dict(given or {})

    async def _body(self, entry: str | None = None, state: dict[str, Any] | None = None) -> GraphResult:
        return await Traversal(self._plan, state or {}).run(entry)

    async def _inline(self, entry: str | None, state: State) -> GraphResult:
        # Through the codec, so that it is the same as in a run of its own, and nothing is shared with the caller.
        arguments, result_type = self._workflow.definition.arguments, self._workflow.definition.result
        args, kwargs = arguments.decode(arguments.encode((entry, state), {}))
        result = await limited(self._body(*args, **kwargs), self.config)
        plain: GraphResult = result_type.decode(result_type.encode(result))
        return plain

    async def _answered(
        self, run_id: str, answer: Any, *, name: str | None = None, ask: str | None = None
    ) -> Result[GraphResult, GraphExecutionError]:
        if current_run_id() is not None:
            raise DefinitionError(f"run {run_id!r} is answered from outside of runs, or in an activity")
        handle = await self._workflow.attach(run_id)
        await durable.answer(run_id, answer, name=name, ask=ask)
        try:
            return Ok(await self._outcome(handle))
        except GraphExecutionError as error:
            return Err(error)

    async def _outcome(self, handle: RunHandle[Any]) -> GraphResult:
        try:
            result: GraphResult = await (
                self._result_or_question(handle) if self._plan.asks else handle.result()
            )
            return result
        except WorkflowFailedError as failed:
            raise_own(failed, GraphExecutionError)
        except WorkflowTimeoutError as error:
            late = GraphTimeoutError(self.config.total_seconds)
            late.run_id = handle.run_id
            raise late from error

    async def _result_or_question(self, handle: RunHandle[Any]) -> Any:
        """Wait for the end of a run, or until nothing but a person can move it."""
        pause = LOOK_SECONDS_MIN
        while True:
            try:
                return await handle.result(timeout=pause)
            except TimeoutError:
                pause = min(pause * 1.5, LOOK_SECONDS_MAX)
            run = await handle.describe()
            question = next((one for one in run.waiting_on if one.ask), None)
            if run.status is RunStatus.WAITING and question is not None:
                raise HumanInputRequiredError(question.prompt, question.name, run.run_id, question.ask)


class WorkflowRunner:
    """Runs the graph of an engine, and goes on from the questions at which it stopped."""

    def __init__(self, engine: WorkflowEngine) -> None:
        self.engine = engine

    async def run(
        self,
        entry: str | None = None,
        initial_state: Mapping[str, Any] | None = None,
        *,
        run_id: str | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> Result[GraphResult, GraphExecutionError]:
        """As `WorkflowEngine.execute`."""
        return await self.engine.execute(entry, initial_state, run_id=run_id, state=state)

    async def resume(self, *, checkpoint_id: str, input: Any) -> Result[GraphResult, GraphExecutionError]:
        """Answer the question of a `HumanInputRequiredError`, and go on. Each takes one answer: else `WorkflowStateError`."""
        address = _ADDRESS.fullmatch(checkpoint_id)
        if address is None:
            raise ValueError(f"{checkpoint_id!r} is no checkpoint_id of a HumanInputRequiredError")
        return await self.engine._answered(address["run_id"], input, ask=checkpoint_id)
