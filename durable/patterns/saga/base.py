"""`SagaBase`: a class whose decorated methods are the steps, in the order of their definition."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from durable import Activity, DefinitionError, Seconds, Workflow, make_workflow
from durable.patterns.saga.steps import SagaStepActivity
from durable.patterns.saga.units import Performing, Unit, perform_saga

Bind = Callable[[Any], Callable[..., Any]]


class SagaBase:
    """A saga as a class: methods with `@saga_step` are its steps, in the order of definition, those of base classes first.

    A method takes the `SagaContext`, or nothing but `self`. An overridden step keeps its place. Run it by `SagaManager`, under the class's
    name, or that in its attribute `saga_name` (or `name`).
    `VERSION` must be raised when a change breaks open runs. `RETENTION` is how long runs are kept once they are closed (seconds, timedelta or
    "forever"), as with `@workflow(retention=)`.
    """

    VERSION: ClassVar[int] = 1
    RETENTION: ClassVar[Seconds | Literal["forever"] | None] = None

    def is_compatible_with(self, stored: int) -> bool:
        """Whether today's code may go on with runs of version `stored`. Override it when a new `VERSION` breaks nothing."""
        return stored == self.VERSION

    @classmethod
    def __durable_workflows__(cls) -> Sequence[Workflow[..., Any]]:
        if cls is SagaBase or not steps_of(cls) or _needs_arguments(cls):
            return ()
        return definitions_of(cls, name_of(cls))


def _needs_arguments(cls: type[SagaBase]) -> bool:
    """Whether only a registered object can be run: a worker could not make one of its own."""
    return any(
        p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        for p in inspect.signature(cls).parameters.values()
    )


def name_of(cls: type[SagaBase]) -> str:
    """Return the name of a saga's class: its `saga_name`, or `name`, if it has one."""
    given = (getattr(cls, attribute, None) for attribute in ("saga_name", "name"))
    return next((name for name in given if isinstance(name, str) and name), cls.__name__)


def steps_of(cls: type[SagaBase]) -> list[tuple[str, SagaStepActivity[..., Any]]]:
    """Return the attributes that are steps, with today's definition, in order; compensations are not among them."""
    order: dict[str, str] = {}  # step name -> attribute
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            if isinstance(value, SagaStepActivity) and not value.is_compensation:
                for step in [
                    step for step, known in order.items() if known == attribute and step != value.name
                ]:
                    del order[step]
                order[value.name] = attribute
    found = ((attribute, getattr(cls, attribute)) for attribute in order.values())
    return [(attribute, step) for attribute, step in found if isinstance(step, SagaStepActivity)]


class Planned(NamedTuple):
    """A step of a class of sagas, with what undoes it; `of` makes the unit of work that does it for one object."""

    step: SagaStepActivity[..., Any]
    bind: Bind
    bind_undo: Bind | None
    undo: SagaStepActivity[..., Any] | None  # a compensation with a policy of its own, perhaps

    def of(self, saga: SagaBase) -> Unit:
        step: Any = self.step  # as an attribute of a class it would seem to be a method
        own: Any = self.undo
        return Unit(
            step.name,
            self.bind(saga),
            None if self.bind_undo is None else self.bind_undo(saga),
            retry=step.definition.retry if step.has_own_policy else None,
            timeout=step.timeout,
            undo_retry=own.definition.retry if own is not None and own.has_own_policy else None,
            undo_timeout=None if own is None else own.timeout,
        )


def plan_of(cls: type[SagaBase]) -> list[Planned]:
    """Return the steps of a class, in order. `DefinitionError`: a compensation of a step that is not there."""
    undoes = {
        value.name: value
        for base in reversed(cls.__mro__)
        for value in vars(base).values()
        if isinstance(value, SagaStepActivity) and value.is_compensation
    }
    steps = steps_of(cls)
    unknown = set(undoes) - {step.name for _, step in steps}
    if unknown:
        raise DefinitionError(
            f"{cls.__name__} has compensations of steps it does not have: {', '.join(sorted(unknown))}"
        )
    return [_planned(cls, step, undoes.get(step.name) or step.undo) for _, step in steps]


def _planned(cls: type[SagaBase], step: SagaStepActivity[..., Any], undo: Any) -> Planned:
    own = undo if isinstance(undo, SagaStepActivity) else None
    return Planned(step, _binding(cls, step), None if undo is None else _binding(cls, undo), own)


def _binding(cls: type[SagaBase], fn: Any) -> Bind:
    """Return what makes a method of an object of the class; what is no function of the class is called as it is."""
    plain = fn.fn if isinstance(fn, Activity) else fn
    is_method = any(value is fn or value is plain for base in cls.__mro__ for value in vars(base).values())
    if is_method and hasattr(plain, "__get__"):
        return lambda saga: plain.__get__(saga, cls)
    return lambda saga: plain


def definitions_of(
    saga: SagaBase | type[SagaBase], name: str, *, tidied: Seconds | None = None
) -> list[Workflow[..., Any]]:
    """Return the workflows of a saga: of its `VERSION`, and of the older ones that its code is compatible with."""
    cls = saga if isinstance(saga, type) else type(saga)
    blank = object.__new__(cls) if isinstance(saga, type) else saga
    versions = [*(v for v in range(1, cls.VERSION) if blank.is_compatible_with(v)), cls.VERSION]
    return [definition_of(saga, name, version, tidied) for version in versions]


def definition_of(
    saga: SagaBase | type[SagaBase], name: str, version: int, tidied: Seconds | None
) -> Workflow[..., Any]:
    """Return the workflow of one version; every run gets its own object if a class was given."""
    cls = saga if isinstance(saga, type) else type(saga)

    plan: list[Planned] = []

    async def run(data: dict[str, Any], config: dict[str, Any] | None = None) -> dict[str, Any]:
        if not plan:
            plan.extend(plan_of(cls))
        one = saga() if isinstance(saga, type) else saga

        async def in_order(performing: Performing) -> None:
            for step in plan:
                await performing.perform(step.of(one))

        return await perform_saga(name, data, config, in_order)

    return make_workflow(
        run,
        name=name,
        kind="saga",
        origin=f"{cls.__module__}:{cls.__qualname__}",
        version=version,
        retention=cls.RETENTION,
        tidied=tidied,
    )
