"""The parts of a pipeline: a function, a choice, a group side by side. Workflow code: what touches the world is an activity.

A part runs by `run(context)` under its own name, and raises `PipelineStepError` if it fails.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import durable
from durable import Activity, DefinitionError, DurableError, Seconds
from durable.patterns.calling import failing_as, result_hint, takes_context, unit
from durable.patterns.policies import ONCE, retry_of
from durable.patterns.running import current_run_id
from durable.patterns.together import side_by_side

Context = Mapping[str, Any]
StepFn = Callable[..., Any]


class PipelineStepError(DurableError):
    """A step of a pipeline failed, for good. What it raised is `__cause__`.

    `step_name` is the step (`group/sub` in a parallel group), `run_id` the run. `errors` lists the failed steps in the order of
    their failures: more than this one if several of a parallel group failed.
    """

    __durable_wraps__: Final = True
    # What is left of one that was too large to be recorded with its values.
    step_name: str = ""
    run_id: str = ""
    _others: Sequence[PipelineStepError] = ()

    def __init__(self, step_name: str, run_id: str, errors: Iterable[PipelineStepError] = ()) -> None:
        super().__init__(f"step {step_name!r} of run {run_id!r} failed")
        self.step_name = step_name
        self.run_id = run_id
        self._others = [error for error in errors if error is not self]

    @property
    def errors(self) -> list[PipelineStepError]:
        return [self, *self._others]

    def __str__(self) -> str:
        cause = self.__cause__
        reason = "" if cause is None else f": {type(cause).__name__}: {cause}".rstrip(": ")
        more = f" (and {len(self._others)} more of its group)" if self._others else ""
        return f"step {self.step_name!r} of run {self.run_id!r} failed{reason}{more}"


def failing_step(name: str) -> failing_as:
    """`with failing_step(name)`: what is raised there is the failure of a step."""
    return failing_as(lambda cause: PipelineStepError(name, current_run_id() or ""))


class PipelineStep(Protocol):
    """What a pipeline is made of."""

    @property
    def name(self) -> str: ...

    def renamed(self, name: str) -> PipelineStep:
        """Return the same step under another name."""
        ...

    async def run(self, context: Context) -> Any:
        """Return the step's value, or raise `PipelineStepError`."""
        ...

    def result_hint(self) -> object:
        """Return the type hint of its value."""
        ...

    def parts(self) -> Iterator[tuple[str, object]]:
        """Yield names and functions, for the pipeline's origin."""
        ...


class FunctionStep:
    """A step that is a function, or an activity, of the context (or of nothing).

    `retries` follow the first attempt, after `retry_delay`, then twice that, and so on; `timeout` limits each attempt. Both in
    seconds or `timedelta`. An activity (`@step`) keeps its own options.
    """

    def __init__(
        self,
        name: str,
        fn: StepFn,
        *,
        timeout: Seconds | None = None,
        retries: int = 3,
        retry_delay: Seconds = 1.0,
    ) -> None:
        self._fn = fn
        self._timeout = timeout
        self._retry = retry_of(retries, retry_delay)
        call = unit(fn, name=name, retry=self._retry, timeout=timeout)
        # A group that fails awaits its cancelled siblings, so what follows meets no code of theirs that still runs.
        is_patient = call.definition.cancellation == "try"
        self._call = call.options(cancellation="wait") if is_patient else call
        self._takes_context = takes_context(fn.fn if isinstance(fn, Activity) else fn)

    @property
    def name(self) -> str:
        return self._call.name

    @property
    def fn(self) -> StepFn:
        """What was given: a function, or an activity."""
        return self._fn

    def __repr__(self) -> str:
        return f"<step {self.name}>"

    def renamed(self, name: str) -> FunctionStep:
        copy = object.__new__(FunctionStep)
        copy.__dict__.update(self.__dict__)
        copy._call = self._call.options(name=name)
        return copy

    async def run(self, context: Context) -> Any:
        args = (dict(context),) if self._takes_context else ()
        with failing_step(self.name):
            if hasattr(self._fn, "perform_as"):  # a saga's step, which knows how it is undone
                return await self._fn.perform_as(self._call, *args)
            return await self._call(*args)

    def result_hint(self) -> object:
        return result_hint(self._fn.fn if isinstance(self._fn, Activity) else self._fn)

    def parts(self) -> Iterator[tuple[str, object]]:
        yield self.name, self._fn.fn if isinstance(self._fn, Activity) else self._fn


class ConditionalStep:
    """A step that runs one of two, or none. The answer of `condition(context)` is journaled as `name/condition`.

    It must be a bool. Without a `false_step` a false condition skips the step: its value is None.
    """

    def __init__(
        self, name: str, condition: Callable[..., Any], true_step: object, false_step: object | None = None
    ) -> None:
        if not callable(condition):
            raise DefinitionError(f"the condition of step {name!r} is something to call, not {condition!r}")
        self.name = name
        self.condition = condition
        self.true_step = as_step(true_step, name=name)
        self.false_step = None if false_step is None else as_step(false_step, name=name)
        self._ask = unit(condition, name=f"{name}/condition", kind="predicate", retry=ONCE)
        self._takes_context = takes_context(condition.fn if isinstance(condition, Activity) else condition)

    def __repr__(self) -> str:
        return f"<conditional step {self.name}>"

    def renamed(self, name: str) -> ConditionalStep:
        return ConditionalStep(name, self.condition, self.true_step, self.false_step)

    async def run(self, context: Context) -> Any:
        chosen = self.true_step if await self._is_true(context) else self.false_step
        if chosen is None:
            durable.note(self.name, "skipped", kind="step")
            return None
        return await chosen.run(context)

    async def _is_true(self, context: Context) -> bool:
        with failing_step(self.name):
            answer = await (self._ask(dict(context)) if self._takes_context else self._ask())
            if not isinstance(answer, bool):
                raise TypeError(f"the condition of step {self.name!r} answered {answer!r}, not a bool")
            return answer

    def result_hint(self) -> object:
        return Any

    def parts(self) -> Iterator[tuple[str, object]]:
        yield f"{self.name}/condition", self.condition
        yield from self.true_step.parts()
        if self.false_step is not None:
            yield from self.false_step.parts()


class ParallelStep:
    """Steps side by side, on snapshots of one context; the value is a dict of theirs by name.

    At most `max_concurrency` run at a time (0: all). With `fail_fast` the first failure cancels the others, which have
    ended when it is raised; else all run to their end first. `fold`, if given, is called with the results, or with context
    and results, and makes the value of them.
    """

    def __init__(
        self,
        name: str,
        steps: Sequence[object],
        *,
        fail_fast: bool = True,
        max_concurrency: int = 0,
        fold: Callable[..., Any] | None = None,
    ) -> None:
        if isinstance(max_concurrency, bool) or not isinstance(max_concurrency, int) or max_concurrency < 0:
            raise ValueError(f"max_concurrency is an integer >= 0 (0: no limit), not {max_concurrency!r}")
        self.name = name
        self.steps = tuple(as_step(step) for step in steps)
        self.fail_fast = fail_fast
        self.max_concurrency = max_concurrency
        self.fold = fold
        check_unique(self.steps, f"parallel step {name!r}")
        self._fold = None if fold is None else unit(fold, name=name)
        self._fold_takes = 0 if fold is None else _positional(fold.fn if isinstance(fold, Activity) else fold)

    def __repr__(self) -> str:
        return f"<parallel step {self.name} of {', '.join(step.name for step in self.steps)}>"

    def renamed(self, name: str) -> ParallelStep:
        return ParallelStep(
            name,
            self.steps,
            fail_fast=self.fail_fast,
            max_concurrency=self.max_concurrency,
            fold=self.fold,
        )

    async def run(self, context: Context) -> Any:
        with durable.scope(self.name):
            results = await self._gather(context)
        if self._fold is None:
            return results
        given = (dict(context), results)[2 - self._fold_takes :] if self._fold_takes else ()
        with failing_step(self.name):
            return await self._fold(*given)

    async def _gather(self, context: Context) -> dict[str, Any]:
        slots = asyncio.Semaphore(self.max_concurrency or len(self.steps) or 1)

        async def one(step: PipelineStep) -> Any:
            async with slots:
                return await step.run(context)

        ended = await side_by_side(one, self.steps, failure=PipelineStepError, fail_fast=self.fail_fast)
        if ended.failed:
            raise self._first_of(ended.failed)
        return {step.name: value for step, value in zip(self.steps, ended.values, strict=True)}

    def _first_of(self, failed: list[PipelineStepError]) -> PipelineStepError:
        """Return the first failure in time, named by its place in the group, with the others."""
        named = []
        for error in (one for failure in failed for one in failure.errors):
            renamed = PipelineStepError(f"{self.name}/{error.step_name}", error.run_id)
            renamed.__cause__ = error.__cause__
            named.append(renamed)
        first, *others = named
        first._others = others
        return first

    def result_hint(self) -> object:
        fold = self.fold
        return Any if fold is None else result_hint(fold.fn if isinstance(fold, Activity) else fold)

    def parts(self) -> Iterator[tuple[str, object]]:
        for step in self.steps:
            for name, fn in step.parts():
                yield f"{self.name}/{name}", fn
        if self.fold is not None:
            yield self.name, self.fold


def _positional(fn: Callable[..., Any]) -> int:
    """Return how many of (context, results) a fold takes: it may leave out the context, or both."""
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return 2
    return min(2, sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters))


def conditional(
    name: str, condition: Callable[..., Any], otherwise: object | None = None
) -> Callable[[object], ConditionalStep]:
    """Make a step of the decorated function (or activity) that runs only if `condition(context)` is true.

    `otherwise` is the step that runs if it is false; without it the step is skipped, and its value is None.
    """

    def decorate(fn: object) -> ConditionalStep:
        return ConditionalStep(name, condition, fn, otherwise)

    return decorate


class _Parallel(ParallelStep):
    """A `ParallelStep` that can decorate the function which folds its results."""

    def __call__(self, fold: Callable[..., Any]) -> ParallelStep:
        return ParallelStep(
            self.name, self.steps, fail_fast=self.fail_fast, max_concurrency=self.max_concurrency, fold=fold
        )


def parallel(
    name: str, steps: Sequence[object], *, fail_fast: bool = True, max_concurrency: int = 0
) -> _Parallel:
    """Make a step that runs steps side by side; see `ParallelStep`.

    Also a decorator: `@parallel("notify", [email, sms])` on a function that is called with the results, or with context
    and results, and returns the value of the step.
    """
    return _Parallel(name, steps, fail_fast=fail_fast, max_concurrency=max_concurrency)


def as_step(step: object, *, name: str | None = None) -> PipelineStep:
    """Return a step: one as it is, of an activity or a function a `FunctionStep`; under `name`, if given."""
    if isinstance(step, FunctionStep | ConditionalStep | ParallelStep):
        return step if name is None else step.renamed(name)
    if isinstance(step, Activity):
        return FunctionStep(name or step.name, step)
    if callable(step):
        return FunctionStep(name or str(getattr(step, "__name__", type(step).__name__)), step)
    raise DefinitionError(
        f"a step is an activity, a function, conditional(...) or parallel(...), not {step!r}"
    )


def check_unique(steps: Iterable[PipelineStep], where: str) -> None:
    """Raise ValueError if two steps have one name."""
    seen: set[str] = set()
    for step in steps:
        if step.name in seen:
            raise ValueError(f"two steps of {where} are called {step.name!r}: give one of them another name")
        seen.add(step.name)
