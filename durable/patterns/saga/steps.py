"""`@saga_step`: an activity that knows how it is undone.

Called in a workflow it is journaled, and registered with the innermost `durable.saga()`, or with the workflow's body: when
that fails or is cancelled, the compensation is called with the arguments of the step. In a class of sagas the decorator only
says what a method is; the class does the rest. Outside of runs it just runs the function.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from types import FrameType
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

from durable import (
    Activity,
    DefinitionError,
    DurableError,
    Err,
    Ok,
    Retry,
    SagaScope,
    Seconds,
    StepAnswerError,
    make_activity,
)
from durable.patterns.calling import takes_uncertain
from durable.patterns.policies import (
    UNSAID_RETRIES,
    UNSAID_RETRY_DELAY,
    ExceptionClasses,
    UnsaidCount,
    UnsaidSeconds,
    retry_of,
    undoing,
)

P = ParamSpec("P")
R = TypeVar("R")


class SagaStepError(DurableError):
    """A step of a saga has failed. Raised by a step, it is retried like any error."""


class SagaAnswerError(SagaStepError, StepAnswerError):
    """A step of a saga answered that it failed: an answer, hence not retried."""


class SagaStepResult:
    """What a step may return: `SagaStepResult.Ok(output)`, or `SagaStepResult.fail(error)`, which is not retried."""

    __slots__ = ("error", "output", "success")

    def __init__(self, *, success: bool, output: Any = None, error: Any = None) -> None:
        self.success = success
        self.output = output
        self.error = error

    @classmethod
    def Ok(cls, output: Any = None) -> Self:  # the documented spelling
        return cls(success=True, output=output)

    @classmethod
    def fail(cls, error: object) -> Self:
        """A failure; `error` is text or an exception."""
        return cls(success=False, error=error)

    def __repr__(self) -> str:
        return (
            f"SagaStepResult.Ok({self.output!r})" if self.success else f"SagaStepResult.fail({self.error!r})"
        )


def answered(value: Any) -> Any:
    """Return the output that a step's answer stands for; raise `SagaAnswerError` if it says that the step failed."""
    if isinstance(value, SagaStepResult):
        if value.success:
            return value.output
        value = Err(value.error)
    if isinstance(value, Ok):
        return value.value
    if isinstance(value, Err):
        error = value.error
        raise SagaAnswerError(str(error)) from (error if isinstance(error, BaseException) else None)
    return value


def answering(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that does what `fn` does and returns the output its answer stands for."""
    if inspect.iscoroutinefunction(fn):

        @functools.wraps(fn)
        async def call_and_wait(*args: Any, **kwargs: Any) -> Any:
            return answered(await fn(*args, **kwargs))

        return call_and_wait

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        value = fn(*args, **kwargs)
        return _answered_later(value) if inspect.isawaitable(value) else answered(value)

    return call


async def _answered_later(value: Awaitable[Any]) -> Any:
    return answered(await value)


class SagaStepActivity(Activity[P, R], Generic[P, R]):
    """A step of a saga, made by `@saga_step`.

    `undo` is what undoes it, or None; `is_compensation` says that it undoes the step of its name itself, `has_own_policy` that
    retries were asked for by name.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        name: str,
        retry: Retry,
        timeout: Seconds | None,
        undo: Callable[..., Any] | None = None,
        is_compensation: bool = False,
        has_own_policy: bool = False,
    ) -> None:
        super().__init__(
            make_activity(answering(fn), name=name, retry=retry, timeout=timeout, result=Any).definition
        )
        self._plain = fn
        self.timeout = timeout
        self.undo = undo
        self.is_compensation = is_compensation
        self.has_own_policy = has_own_policy
        self._compensation: tuple[object, Activity[..., Any], bool] | None = None  # of which undo; made once
        self.__wrapped__ = fn
        self.__name__ = getattr(fn, "__name__", name)
        self.__doc__ = fn.__doc__

    @property
    def fn(self) -> Callable[P, Any]:
        """The plain function."""
        return self._plain

    def __repr__(self) -> str:
        return f"<{'compensation of ' if self.is_compensation else ''}saga step {self.name}>"

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type) -> Callable[..., Any]: ...

    def __get__(self, instance: object | None, owner: type) -> Any:
        """Of a class this is the step, of an instance the plain method: a saga calls it as an activity itself."""
        return self if instance is None else types.MethodType(self._plain, instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        scope = SagaScope.current()
        if scope is None:
            return self._just_run(args, kwargs)
        if self.is_compensation:
            return super().__call__(*args, **kwargs)
        certain, uncertain = self._undoing(args, kwargs)
        return scope.call(self, args, kwargs, undo=certain, undo_uncertain=uncertain)

    async def perform_as(self, call: Activity[..., Any], *args: Any, told: list[int] | None = None) -> Any:
        """Perform `call`, which a pattern made of this step, and register what undoes it: as if the step had been called itself.

        The number of attempts is appended to `told`.
        """
        scope = SagaScope.current()
        assert scope is not None, "patterns call their steps inside runs"
        step = self if call.name == self.name else self.options(name=call.name)
        certain, uncertain = step._undoing(args, {})
        return await scope.call(call, args, undo=certain, undo_uncertain=uncertain, told=told)

    async def _just_run(self, args: Any, kwargs: Any) -> R:
        value: Any = self._plain(*args, **kwargs)
        return cast(R, await value if inspect.isawaitable(value) else value)

    def _undoing(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Callable[[Any], Callable[[], Any]] | None, Callable[[Any], Callable[[], Any]] | None]:
        """Return how to undo a recorded call, and how one of which nobody knows, with the call's arguments."""
        if self.undo is None:
            return None, None
        if self._compensation is None or self._compensation[0] is not self.undo:
            self._compensation = (
                self.undo,
                compensation_of(self, self.undo),
                takes_uncertain(_plain_of(self.undo)),
            )
        _, undo, is_asked = self._compensation
        given: dict[str, Any] = dict(kwargs)
        if not is_asked:
            undo.definition.arguments.encode(args, given)  # a misfit is said before the step has an effect
            return (lambda _: functools.partial(undo, *args, **given)), None
        undo.definition.arguments.encode(args, {**given, "uncertain": False})
        return (
            lambda _: functools.partial(undo, *args, **given, uncertain=False),
            lambda _: functools.partial(undo, *args, **given, uncertain=True),
        )

    def options(self, **options: Any) -> Self:
        """Return a copy with other options; what is not given stays, the compensation too."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.definition = super().options(**options).definition
        copy._compensation = None
        return copy


def _plain_of(fn: Callable[..., Any]) -> Callable[..., Any]:
    return fn.fn if isinstance(fn, Activity) else fn


def compensation_of(step: Activity[..., Any], undo: Callable[..., Any]) -> Activity[..., Any]:
    """Return the activity that undoes a step: `step/compensation`, under the step's policy."""
    definition = step.definition
    retry, timeout_us = undoing(definition.retry), definition.timeout_us
    if isinstance(undo, SagaStepActivity):
        retry = undo.definition.retry if undo.has_own_policy else retry
        timeout_us = timeout_us if undo.timeout is None else undo.definition.timeout_us
    return make_activity(
        answering(_plain_of(undo)),
        name=f"{step.name}/compensation",
        kind="compensation",
        retry=retry,
        timeout=None if timeout_us is None else timeout_us / 1_000_000,
        cancellation="wait",
        result=Any,
    )


class _Decorator:
    """`@saga_step(...)` with its options checked, waiting for the function."""

    def __init__(
        self,
        *,
        name: str | None,
        compensation: bool | Callable[..., Any] | None,
        retry: Retry,
        timeout: Seconds | None,
        has_own_policy: bool,
        frame: FrameType,
    ) -> None:
        self._has_own_policy = has_own_policy
        self._name = name
        self._compensation = compensation
        self._retry = retry
        self._timeout = timeout
        self._frame = frame

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> SagaStepActivity[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> SagaStepActivity[P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> SagaStepActivity[..., Any]:
        made: SagaStepActivity[..., Any] = SagaStepActivity(
            fn,
            name=self._name or fn.__name__,
            retry=self._retry,
            timeout=self._timeout,
            undo=self._compensation if callable(self._compensation) else None,
            is_compensation=self._compensation is True,
            has_own_policy=self._has_own_policy,
        )
        _pair_up(made, self._frame)
        return made


def _pair_up(made: SagaStepActivity[..., Any], frame: FrameType) -> None:
    """Let a step and the compensation of its name find each other, whichever of them is defined first, where they are defined."""
    is_in_class = "__qualname__" in frame.f_locals
    for namespace in (frame.f_locals,) if is_in_class else (frame.f_locals, frame.f_globals):
        for other in list(namespace.values()):
            if not isinstance(other, SagaStepActivity) or other.name != made.name:
                continue
            if made.is_compensation and not other.is_compensation:
                if other.undo is None:
                    other.undo = made
                return
            if other.is_compensation and not made.is_compensation:
                if made.undo is None:
                    made.undo = other
                return


@overload
def saga_step(name: Callable[P, Awaitable[R]], /) -> SagaStepActivity[P, R]: ...


@overload
def saga_step(name: Callable[P, R], /) -> SagaStepActivity[P, R]: ...


@overload
def saga_step(
    name: str | None = None,
    *,
    compensation: bool | Callable[..., Any] | None = None,
    max_retries: int = 3,
    retry_delay: Seconds = 1.0,
    timeout: Seconds | None = None,
    no_retry: ExceptionClasses = (),
) -> _Decorator: ...


def saga_step(
    name: Any = None,
    *,
    compensation: bool | Callable[..., Any] | None = None,
    max_retries: int = UNSAID_RETRIES,
    retry_delay: Seconds = UNSAID_RETRY_DELAY,
    timeout: Seconds | None = None,
    no_retry: ExceptionClasses = (),
) -> Any:
    """Make a step of a saga of a function or method, `async def` or `def`.

    `compensation` is what undoes it: a callable that takes the step's arguments; `True` says that the decorated function
    undoes the step of that name. A compensation with a parameter `uncertain` is called, too, with True, for a step that was
    interrupted, so that nobody knows whether it had its effect. `max_retries` follow the first attempt, after `retry_delay`, then
    twice that, and so on (3, and 1 second, unless a `SagaConfig` says otherwise); they hold for the compensation, too. `timeout`
    limits each attempt. `no_retry` are further classes of errors that are final.
    """
    if compensation is False:
        compensation = None
    if compensation is not None and compensation is not True and not callable(compensation):
        raise DefinitionError(f"compensation is True or something to call, not {compensation!r}")
    decorator = _Decorator(
        name=name if isinstance(name, str) else None,
        compensation=compensation,
        retry=retry_of(max_retries, retry_delay, what="max_retries", no_retry=no_retry),
        timeout=timeout,
        has_own_policy=not (
            isinstance(max_retries, UnsaidCount) and isinstance(retry_delay, UnsaidSeconds) and no_retry == ()
        ),
        frame=sys._getframe(1),
    )
    return decorator if name is None or isinstance(name, str) else decorator(name)
