"""`SagaOrchestrator`: sagas as tables of steps, with transitions between them, and steps side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, Literal

from durable import DefinitionError, PlatformFault, Seconds, Workflow, make_activity, make_workflow
from durable.patterns.policies import ONCE
from durable.patterns.running import origin_of
from durable.patterns.saga.context import SagaContext
from durable.patterns.saga.runtime import SagaRuntime
from durable.patterns.saga.steps import SagaAnswerError, SagaStepResult
from durable.patterns.saga.units import Performing, Unit, perform_saga
from durable.patterns.together import side_by_side


class _Omitted:
    """The type of a transition that was not given: None says that the saga ends."""

    def __repr__(self) -> str:
        return "omitted"


_OMITTED: Final = _Omitted()
Transition = str | Callable[..., str | None] | None


class OrchestratedStep:
    """A step of an orchestrated saga.

    `action` is an object with an async `execute(ctx)`, and perhaps a `compensate(ctx)`, or a callable. `next_step` is the step that
    follows: a name, None (the saga ends), or `f(ctx, result)` that returns one of these, of the `SagaStepResult`; left out, the next
    of the list that is no step's `on_failure`. `on_failure` is the step to go on with when this one has failed, instead of undoing
    everything. `parallel` are steps (or names of some in the table) that run side by side after the action, if there is one; the
    output merges theirs. None of them sees what another writes to the context; in the end that is merged by key, in the order of the
    list. `max_retries` follow the first attempt.
    """

    def __init__(
        self,
        name: str,
        action: object | None = None,
        next_step: Transition | _Omitted = _OMITTED,
        on_failure: str | None = None,
        parallel: Sequence[OrchestratedStep | str] = (),
        max_retries: int = 0,
    ) -> None:
        if isinstance(max_retries, bool) or not isinstance(max_retries, int) or max_retries < 0:
            raise ValueError(f"max_retries is an integer >= 0, not {max_retries!r}")
        if action is None and not parallel:
            raise DefinitionError(f"step {name!r} has neither an action nor parallel steps")
        self.name = name
        self.action = action
        self.next_step = next_step
        self.on_failure = on_failure
        self.parallel = tuple(parallel)
        self.max_retries = max_retries
        self._execute, self._compensate = _methods(name, action)

    def __repr__(self) -> str:
        return f"<orchestrated step {self.name}>"

    @property
    def execute(self) -> Callable[..., Any] | None:
        """What does it."""
        return self._execute

    @property
    def compensate(self) -> Callable[..., Any] | None:
        """What undoes it."""
        return self._compensate


def _methods(name: str, action: object | None) -> tuple[Callable[..., Any] | None, Callable[..., Any] | None]:
    execute = getattr(action, "execute", None)
    if callable(execute):
        compensate = getattr(action, "compensate", None)
        return execute, compensate if callable(compensate) else None
    if action is None or callable(action):
        return action, None
    raise DefinitionError(
        f"the action of step {name!r} is something to call, or has execute(ctx), not {action!r}"
    )


class SagaOrchestrator(SagaRuntime):
    """Starts and follows sagas that are defined as tables of steps; see `define` and, for the rest, `SagaManager`."""

    def define(
        self,
        name: str,
        steps: Sequence[OrchestratedStep],
        start: str | None = None,
        *,
        retention: Seconds | Literal["forever"] | None = None,
    ) -> None:
        """Make a saga known. It begins with `start` (default: the first step).

        `retention` (seconds, timedelta or "forever") is how long its runs are kept once they are closed, as with `@workflow`.

        Raises ValueError: two steps of one name, or a transition to a step that is not there.
        """
        table = _Table(name, steps, start)
        self._add(name, [table.workflow(retention, self.config.tidied)], [step.name for step in table.all()])
        self._groups[name] = table.groups()


class _Table:
    """The steps of one saga, by name."""

    def __init__(self, name: str, steps: Sequence[OrchestratedStep], start: str | None) -> None:
        self.name = name
        self.steps: dict[str, OrchestratedStep] = {}
        for step in steps:
            self._put(step)
        if not self.steps:
            raise ValueError(f"saga {name!r} has no steps")
        self.order = [step.name for step in steps]
        self.start = self.order[0] if start is None else start
        self._inner = {one if isinstance(one, str) else one.name for step in steps for one in step.parallel}
        self._check()

    def _put(self, step: OrchestratedStep) -> None:
        if not isinstance(step, OrchestratedStep):
            raise DefinitionError(f"a step of an orchestrated saga is an OrchestratedStep, not {step!r}")
        if step.name in self.steps:
            raise ValueError(f"two steps of saga {self.name!r} are called {step.name!r}")
        self.steps[step.name] = step
        for inner in step.parallel:
            if isinstance(inner, OrchestratedStep):
                self._put(inner)

    def _check(self) -> None:
        self._find(self.start, "the start")
        for step in self.steps.values():
            if isinstance(step.next_step, str):
                self._find(step.next_step, f"step {step.name!r}")
            if step.on_failure is not None:
                self._find(step.on_failure, f"step {step.name!r}")
            for inner in step.parallel:
                if isinstance(inner, str):
                    self._find(inner, f"step {step.name!r}")

    def _find(self, name: str, who: str) -> OrchestratedStep:
        step = self.steps.get(name)
        if step is None:
            known = ", ".join(self.steps)
            raise ValueError(
                f"{who} of saga {self.name!r} leads to {name!r}, which is none of its steps: {known}"
            )
        return step

    def all(self) -> Iterator[OrchestratedStep]:
        yield from self.steps.values()

    def groups(self) -> dict[str, list[str]]:
        """Return the steps that have no action of their own, with the names of those they are made of."""
        return {
            step.name: [one if isinstance(one, str) else one.name for one in step.parallel]
            for step in self.all()
            if step.execute is None and step.parallel
        }

    def workflow(self, retention: Seconds | Literal["forever"] | None, tidied: Seconds) -> Workflow[..., Any]:
        async def run(data: dict[str, Any], config: dict[str, Any] | None = None) -> dict[str, Any]:
            return await perform_saga(self.name, data, config, self._body)

        parts = [(step.name, step.execute) for step in self.all()]
        return make_workflow(
            run,
            name=self.name,
            kind="saga",
            origin=origin_of("saga", parts),
            retention=retention,
            tidied=tidied,
        )

    async def _body(self, performing: Performing) -> None:
        name: str | None = self.start
        while name is not None:
            step = self.steps[name]
            try:
                result = SagaStepResult.Ok(await self._perform(performing, step))
            except (PlatformFault, asyncio.CancelledError):
                raise
            except Exception:
                if step.on_failure is None:
                    raise
                name = step.on_failure
            else:
                name = await self._after(performing, step, result)

    async def _perform(self, performing: Performing, step: OrchestratedStep) -> Any:
        output = None
        if step.execute is not None:
            output = await performing.perform(_unit(step))
        if not step.parallel:
            return output
        inner = [one if isinstance(one, OrchestratedStep) else self.steps[one] for one in step.parallel]
        merged: dict[str, Any] = dict(output) if isinstance(output, dict) else {}
        for one, value in zip(inner, await self._side_by_side(performing, inner), strict=True):
            merged.update(value if isinstance(value, dict) else {one.name: value})
        performing.context.step_results[step.name] = merged
        return merged

    async def _side_by_side(self, performing: Performing, steps: Sequence[OrchestratedStep]) -> list[Any]:
        """Perform steps together; the first failure in time stops the others, and is raised once they have ended.

        Each begins with the context as it is, so that their timing does not matter. What they wrote is there when all have ended,
        however they did: what is undone then must see it.
        """
        branches = [(performing.branched(), step) for step in steps]
        try:
            ended = await side_by_side(lambda branch: self._perform(*branch), branches, failure=Exception)
        finally:
            performing.context.join(branch.context for branch, _ in branches)
        if ended.failed:
            raise ended.failed[0]
        return ended.values

    async def _after(
        self, performing: Performing, step: OrchestratedStep, result: SagaStepResult
    ) -> str | None:
        following = step.next_step
        if following is None or isinstance(following, str):
            return following
        if isinstance(following, _Omitted):
            return self._next_of(step)
        choose = _choosing(following)
        ask = make_activity(choose, name=f"{step.name}/next", kind="predicate", retry=ONCE, result=Any)
        chosen = await ask(performing.context.plain(), result.output)
        if chosen is not None and chosen not in self.steps:
            raise SagaAnswerError(f"step {step.name!r} leads to {chosen!r}, which is none of the steps")
        return chosen if chosen is None else str(chosen)

    def _next_of(self, step: OrchestratedStep) -> str | None:
        handlers = {one.on_failure for one in self.steps.values()}
        after = self.order[self.order.index(step.name) + 1 :]
        return next((name for name in after if name not in handlers and name not in self._inner), None)


def _choosing(following: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a context's data and an output that asks a transition."""

    def ask(context: dict[str, Any], output: Any) -> Any:
        return following(SagaContext(**context), SagaStepResult.Ok(output))

    return ask


def _unit(step: OrchestratedStep) -> Unit:
    assert step.execute is not None, "asked only of steps with an action"
    return Unit(step.name, step.execute, step.compensate, retries=step.max_retries)
