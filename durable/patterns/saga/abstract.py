"""`AbstractSaga`: a class whose steps are added one by one, each an action with its compensation.

    class Order(AbstractSaga):
        def __init__(self, order_id: str) -> None:
            super().__init__()
            self.order_id = order_id
            self.add_step(SagaStep("reserve", self.reserve, self.release))
            self.add_step(SagaStep("charge", self.charge, self.refund))

    result = await Order("o-7").execute()          # Ok({"reserve": ..., "charge": ...}) or Err(SagaError)

Any process rebuilds the saga from the constructor's arguments, which are the input of its run. If they cannot be stored, or the object
was changed after it was made, its run is *local*: no worker touches it, only a script that makes the same object again goes on with it;
and only `execute`, which keeps the object, takes it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, ClassVar, Final, Literal
from weakref import WeakValueDictionary

import durable
from durable import (
    Activity,
    DefinitionError,
    Err,
    Ok,
    PlatformFault,
    Result,
    RunHandle,
    SagaError,
    SagaScope,
    SagaVersionMismatchError,
    Seconds,
    WorkerLostError,
    Workflow,
    WorkflowCompensationError,
    WorkflowFailedError,
    WorkflowVersionMismatchError,
    make_workflow,
)
from durable.patterns.calling import adapted, cause_of, takes_context, takes_plain_context, takes_uncertain
from durable.patterns.policies import as_seconds, retry_of, undoing
from durable.patterns.running import current_run_id, hint_unfinished, perform, raise_own
from durable.patterns.saga.mirror import tell_mirror
from durable.patterns.saga.noticing import noticed
from durable.patterns.saga.rebuilding import Making, Stored, rebuilt, recording
from durable.patterns.saga.states import SagaState
from durable.patterns.saga.steps import answered

Action = Callable[..., Any]


class SagaStep:
    """One step: `action` does it, `compensation` undoes it.

    Both are callables, async or not, without arguments, or with the context: a dict of the results so far by step (the compensation
    sees its own step's, too). What an action returns is the step's result; a returned `Err`, or `SagaStepResult.fail`, fails the step
    without a retry. `max_retries` follow the first attempt, after `retry_delay` (seconds or `timedelta`), then twice that, and so on;
    they hold for the compensation, too. `timeout` limits each attempt. With `idempotent=False` a compensation that was interrupted is
    reported as failed, and not repeated.
    """

    def __init__(
        self,
        name: str,
        action: Action,
        compensation: Action | None = None,
        max_retries: int = 3,
        retry_delay: Seconds = 1.0,
        idempotent: bool = True,
        timeout: Seconds | None = None,
    ) -> None:
        for what, fn in (("action", action), ("compensation", compensation)):
            if not (callable(fn) or (fn is None and what == "compensation")):
                raise DefinitionError(f"the {what} of step {name!r} is something to call, not {fn!r}")
        if timeout is not None:
            as_seconds(
                f"timeout of step {name!r}", timeout
            )  # a mistake is said here, not in the middle of a saga
        self.name = name
        self.action = action
        self.compensation = compensation
        self.max_retries = max_retries
        self.retry_delay = retry_delay
        self.idempotent = idempotent
        self.timeout = timeout
        self.retry = retry_of(max_retries, retry_delay, what="max_retries")
        self.undo_retry = undoing(self.retry)
        if not idempotent:
            self.undo_retry = retry_of(max_retries, retry_delay, what="max_retries", no_retry=WorkerLostError)

    def __repr__(self) -> str:
        return f"<saga step {self.name}>"


class _Inside(Making):
    """What a saga object keeps for us."""

    def __init__(self) -> None:
        super().__init__()
        self.is_running = False
        self.steps: list[SagaStep] = []
        self.state = SagaState.PENDING
        self.results: dict[str, Any] = {}
        self.id: str | None = None


class AbstractSaga:
    """A saga made of `SagaStep`s. Subclass it, add steps in `__init__`, and `execute`.

    `VERSION` must be raised when a change breaks open runs. `RETENTION` is how long runs are kept once they are closed (seconds, timedelta or
    "forever"), as with `@workflow(retention=)`.
    """

    VERSION: ClassVar[int] = 1
    RETENTION: ClassVar[Seconds | Literal["forever"] | None] = None
    # The objects that this process executes, by run id: a run uses its own object while there is one.
    _executed: ClassVar[WeakValueDictionary[str, AbstractSaga]] = WeakValueDictionary()
    _made: ClassVar[dict[int, Workflow[..., Any]]] = {}
    _has_hinted: ClassVar[bool] = False

    def __init__(self) -> None:
        pass

    def __class_getitem__(cls, item: object) -> type[AbstractSaga]:
        """`AbstractSaga[T]`, as programs of others spell it, is this class: results are typed by the steps."""
        return cls

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls._made = {}
        cls._has_hinted = False
        init = cls.__dict__.get("__init__")
        if init is not None:
            cls.__init__ = recording(init, _inside_of)  # type: ignore[method-assign]  # the same, but it notes its arguments

    def __setattr__(self, name: str, value: object) -> None:
        inside = self._inside
        if inside.is_made and not inside.is_running:
            inside.is_changed = True
        object.__setattr__(self, name, value)

    @property
    def _inside(self) -> _Inside:
        found: _Inside | None = self.__dict__.get("_saga")
        if found is None:
            found = self.__dict__["_saga"] = _Inside()
        return found

    # ─ what an author uses ──

    def add_step(self, step: SagaStep) -> None:
        """Append a step. ValueError: its name is taken."""
        inside = self._inside
        if not isinstance(step, SagaStep):
            raise DefinitionError(f"a step of a saga is a SagaStep, not {step!r}")
        if any(known.name == step.name for known in inside.steps):
            raise ValueError(f"two steps of saga {type(self).__name__!r} are called {step.name!r}")
        inside.is_changed = inside.is_changed or inside.is_made
        inside.steps.append(step)

    @property
    def state(self) -> SagaState:
        """Where it is, as far as this object has seen."""
        return self._inside.state

    def get_id(self) -> str:
        """Return the id of its run, unless `execute` is given another. Override it to name runs, e.g. after an order."""
        inside = self._inside
        if inside.id is None:
            inside.id = f"{type(self).__name__}-{durable.uuid4().hex[:12]}"
        return inside.id

    def is_completed(self) -> bool:
        return self.state is SagaState.COMPLETED

    def result(self, name: str) -> Any:
        """Return the result of a step; KeyError if it has none."""
        return self._inside.results[name]

    def is_compatible_with(self, stored: int) -> bool:
        """Whether today's code may go on with runs of version `stored`. Override it when a new `VERSION` breaks nothing."""
        return stored == self.VERSION

    async def execute(self, *, run_id: str | None = None) -> Result[dict[str, Any], SagaError]:
        """Perform the steps in order and return `Ok` with their results by name.

        If one fails, everything recorded is undone in reverse: `Err(SagaError)`; or `Err(WorkflowCompensationError)` if some
        compensation failed, too, after all were tried. Inside a workflow the saga is part of that run. Elsewhere it is a run
        of its own, called `run_id`, else `get_id()`; one that is known attaches, resumes, or returns the recorded result. Raises
        `SagaVersionMismatchError`, `RunCancelledError`, `RunConflictError`.
        """
        inside = self._inside
        inside.is_running = True
        try:
            results = await self._perform(run_id)
        except SagaError as error:
            inside.state = _state_after(error)
            return Err(error)
        finally:
            inside.is_running = False
        inside.state = SagaState.COMPLETED
        inside.results = results
        return Ok(results)

    async def start(self, *, run_id: str | None = None) -> RunHandle[dict[str, Any]]:
        """Start a run, drive it in this process, and return its handle at once; ids behave as in `execute`.

        What becomes of it is told by the handle, not by this object: `result()` returns the results by step, or raises
        `WorkflowFailedError` with the `SagaError` as `__cause__`. Inside a workflow the run is a child of that one. DefinitionError: the
        saga is local. Raises `SagaVersionMismatchError`, `RunConflictError`.
        """
        arguments = self._arguments_of_any_process()
        run_id = await self._choose_id(run_id, hints=True)
        return await self._begin(lambda workflow: workflow.options(run_id=run_id).start(arguments))

    async def enqueue(self, *, run_id: str | None = None) -> RunHandle[dict[str, Any]]:
        """Store a run for a worker that serves the module of this class, and return its handle. See `start` for the rest."""
        arguments = self._arguments_of_any_process()
        run_id = await self._choose_id(run_id, hints=False)
        return await self._begin(lambda workflow: workflow.options(run_id=run_id).enqueue(arguments))

    # ─ how it runs ──

    async def _perform(self, run_id: str | None) -> dict[str, Any]:
        if current_run_id() is not None:
            results: dict[str, Any] = await perform(self._workflow(), self._run_inline, run_id=run_id)
            return results
        run_id = await self._choose_id(run_id, hints=True)
        assert run_id is not None, "chosen, outside of workflows"
        self._executed[run_id] = self
        await self._tell_mirror(run_id, SagaState.RUNNING)
        try:
            results = self._in_order(await self._run_apart(run_id))
        except SagaError as error:
            await self._tell_mirror(run_id, _state_after(error))
            raise
        self._inside.results = results
        await self._tell_mirror(run_id, SagaState.COMPLETED)
        return results

    async def _tell_mirror(self, run_id: str, state: SagaState) -> None:
        results = self._inside.results
        await tell_mirror(run_id, state, version=self.VERSION, completed_steps=results, results=results)

    async def _run_apart(self, run_id: str) -> dict[str, Any]:
        arguments = self._stored().arguments

        def begin(workflow: Workflow[..., Any]) -> Awaitable[RunHandle[Any]]:
            chosen = workflow.local() if arguments is None else workflow
            return chosen.options(run_id=run_id).start(arguments)

        try:
            found: dict[str, Any] = await (await self._begin(begin)).result()
        except WorkflowFailedError as failed:
            raise_own(failed, SagaError)
        return found

    async def _begin(
        self, begin: Callable[[Workflow[..., Any]], Awaitable[RunHandle[Any]]]
    ) -> RunHandle[Any]:
        """Begin a run of today's version; or go on with one of an older version that today's code is compatible with."""
        try:
            return await begin(self._workflow())
        except WorkflowVersionMismatchError as mismatch:
            stored = mismatch.stored_version
            if not self.is_compatible_with(stored):
                raise SagaVersionMismatchError(mismatch.run_id, stored, self.VERSION) from mismatch
            return await begin(self._workflow(stored))

    def _in_order(self, results: dict[str, Any]) -> dict[str, Any]:
        """Return results in the order of the steps: records order their keys."""
        known = [step.name for step in self._inside.steps if step.name in results]
        return {name: results[name] for name in [*known, *(set(results) - set(known))]}

    async def _choose_id(self, run_id: str | None, *, hints: bool) -> str | None:
        """Return the id of a run of its own; None: that of a child, which follows from its parent's."""
        if run_id is not None:
            return run_id
        cls = type(self)
        if cls.get_id is AbstractSaga.get_id and self._inside.id is None:
            if current_run_id() is not None:
                return None
            derived = durable.derived_run_id(cls.__name__)
            if derived is not None:
                return derived
            if hints and not cls._has_hinted:
                cls._has_hinted = True
                await hint_unfinished("saga", cls.__name__)
        return self.get_id()

    async def _run_inline(self, *_: object) -> dict[str, Any]:
        return await self._steps_in_order()

    async def _steps_in_order(self) -> dict[str, Any]:
        inside = self._inside
        inside.state = SagaState.RUNNING
        results: dict[str, Any] = {}
        scope: SagaScope | None = None
        try:
            async with durable.saga() as scope:
                try:
                    for step in inside.steps:
                        results[step.name] = await self._step(scope, step, results)
                        inside.results = dict(results)
                except BaseException:
                    if not durable.is_evicting():
                        inside.state = SagaState.COMPENSATING
                    raise
        except PlatformFault:
            raise
        except Exception as error:
            assert scope is not None
            cause = error.__cause__ if isinstance(error, WorkflowCompensationError) else error
            raise scope.error(cause_of(cause or error)) from cause_of(cause or error)
        inside.state = SagaState.COMPLETED
        return results

    async def _step(self, scope: SagaScope, step: SagaStep, results: dict[str, Any]) -> Any:
        action = self._unit(step, step.action)
        context = dict(results)
        if step.compensation is None:
            return await scope.call(action, _arguments_for(step.action, context))
        compensation = step.compensation

        def make(value: Any, **uncertain: bool) -> Callable[[], Any]:
            known = context if uncertain.get("uncertain") else {**context, step.name: value}
            return lambda: self._unit(step, compensation, is_compensation=True)(
                *_arguments_for(compensation, known), **uncertain
            )

        if not takes_uncertain(compensation):
            return await scope.call(action, _arguments_for(step.action, context), undo=make)
        return await scope.call(
            action,
            _arguments_for(step.action, context),
            undo=functools.partial(make, uncertain=False),
            undo_uncertain=functools.partial(make, uncertain=True),
        )

    def _unit(self, step: SagaStep, fn: Action, *, is_compensation: bool = False) -> Activity[..., Any]:
        plain = fn.fn if isinstance(fn, Activity) else fn
        template = _WITH_CONTEXT if takes_context(plain) else _WITH_NOTHING
        if not takes_plain_context(plain):
            template = durable.make_activity(adapted(plain), name="typed", cancellation="wait", result=Any)
        return template.with_fn(
            noticed(self, plain, f"the action of step {step.name!r} of {type(self).__name__}", answered),
            name=f"{step.name}/compensation" if is_compensation else step.name,
            kind="compensation" if is_compensation else "",
            retry=step.undo_retry if is_compensation else step.retry,
            timeout=step.timeout,
        )

    # ─ how others find it ──

    @classmethod
    def __durable_workflows__(cls) -> Sequence[Workflow[..., Any]]:
        if cls is AbstractSaga or inspect.isabstract(cls):
            return ()
        blank = object.__new__(cls)
        versions = [v for v in range(1, cls.VERSION) if blank.is_compatible_with(v)]
        return [cls._workflow(version) for version in (*versions, cls.VERSION)]

    @classmethod
    def _workflow(cls, version: int | None = None) -> Workflow[..., Any]:
        version = cls.VERSION if version is None else version
        made = cls._made.get(version)
        if made is None:

            async def run(arguments: dict[str, Any] | None = None) -> dict[str, Any]:
                return await cls._object_for(arguments)._steps_in_order()

            made = cls._made[version] = make_workflow(
                run,
                name=cls.__name__,
                kind="saga",
                origin=f"{cls.__module__}:{cls.__qualname__}",
                version=version,
                retention=cls.RETENTION,
            )
        return made

    @classmethod
    def _object_for(cls, arguments: dict[str, Any] | None) -> AbstractSaga:
        run_id = durable.info().run_id
        known = cls._executed.get(run_id)
        if known is not None and type(known) is cls:
            return known
        if arguments is None:
            raise PlatformFault(
                f"saga {run_id!r} holds what cannot be rebuilt here: run the script that started it, with this id, again"
            )
        saga: AbstractSaga = rebuilt(cls, arguments)
        return saga

    def _arguments_of_any_process(self) -> dict[str, Any]:
        stored = self._stored()
        if stored.arguments is None:
            raise DefinitionError(
                f"saga {type(self).__name__!r} can be made by this script only, since {stored.why_not}: run it by execute()"
            )
        return stored.arguments

    def _stored(self) -> Stored:
        if type(self) is AbstractSaga:
            return Stored(None, "its steps were added from outside")
        return self._inside.stored(type(self))


async def _with_context(context: Any) -> Any:
    raise NotImplementedError  # stands for all actions that take a context


async def _with_nothing() -> Any:
    raise NotImplementedError  # stands for all actions that take nothing


_WITH_CONTEXT: Final = durable.make_activity(_with_context, name="action", cancellation="wait")
_WITH_NOTHING: Final = durable.make_activity(_with_nothing, name="action", cancellation="wait")


def _inside_of(saga: AbstractSaga) -> Making:
    return saga._inside


AbstractSaga.__init__ = recording(AbstractSaga.__init__, _inside_of)  # type: ignore[method-assign]  # as in subclasses


def _state_after(error: SagaError) -> SagaState:
    return SagaState.FAILED if isinstance(error, WorkflowCompensationError) else SagaState.COMPENSATED


def _arguments_for(fn: Action, context: dict[str, Any]) -> tuple[Any, ...]:
    return (context,) if takes_context(fn.fn if isinstance(fn, Activity) else fn) else ()
