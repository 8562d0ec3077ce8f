"""Activities: the functions that may touch the world.

`@activity` (for pipeline people: `@step`) turns a function into an `Activity`. Inside a run a call is journaled,
retried and timed out; outside it just runs the function, so it can be unit-tested. What its code may use while it runs is in
`in_activity.py`. Knows nothing of workers.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, Generic, ParamSpec, Required, TypedDict, TypeVar, Unpack, cast, overload

from durable.definitions import LOCAL_TASK_QUEUE, ActivityDefinition, CancellationType, check_name
from durable.engine.runtime import RunLoop, current, name_prefix
from durable.errors import DefinitionError
from durable.payloads import Arguments, ValueType
from durable.retry import DEFAULT_RETRY, Retry, Seconds, seconds

P = ParamSpec("P")
R = TypeVar("R")

ExceptionClasses = Sequence[type[BaseException]] | type[BaseException]


class _Unchanged:
    """The type of an option that was not given, where None says something."""


UNCHANGED: Final = _Unchanged()


class Activity(Generic[P, R]):
    """A function that may touch the world; made by `@activity`. Calling it always returns a coroutine."""

    def __init__(self, definition: ActivityDefinition) -> None:
        self.definition = definition
        self.__wrapped__ = definition.fn
        self.__name__ = getattr(definition.fn, "__name__", definition.name)
        self.__doc__ = definition.fn.__doc__

    @property
    def name(self) -> str:
        """The name it has in journals."""
        return self.definition.name

    @property
    def fn(self) -> Callable[P, Any]:
        """The plain function."""
        return self.definition.fn

    def __repr__(self) -> str:
        return f"<activity {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        loop = asyncio._get_running_loop()
        if isinstance(loop, RunLoop):
            definition = self.definition
            if prefix := name_prefix.get():
                definition = definition.renamed(prefix + definition.name)
            return loop.runtime.call_activity(definition, args, kwargs)
        return self._run_plainly(args, kwargs)

    def grouped(self, group: object) -> Activity[P, R]:
        """Return a copy whose outcomes are recorded together with those of other calls under the same `group` object.

        One commit for them all, if they end soon one after the other; after a crash some may run again that had ended. For builders
        of patterns.
        """
        definition = self.definition.renamed(self.name)
        definition.group = group
        return Activity(definition)

    def taking_over(self) -> Activity[P, R]:
        """Return a copy for calls that go on with what an activity before has left running. For builders of patterns.

        It begins with the turn that asks for it, also if no slot is free, the run is paused or the worker stops: what it waits for
        runs anyway, and nobody else could tell what it comes to.
        """
        definition = self.definition.renamed(self.name)
        definition.takes_over = True
        return Activity(definition)

    async def counted(self, *args: P.args, **kwargs: P.kwargs) -> tuple[R, int]:
        """Inside a run: call it, and return its result with the number of attempts that took. For builders of patterns."""
        run = current()
        if run is None:
            raise DefinitionError(f"attempts of activity {self.name!r} are counted only inside a run")
        definition = self.definition
        if prefix := name_prefix.get():
            definition = definition.renamed(prefix + definition.name)
        told: list[int] = []
        value = await run.call_activity(
            definition, args, kwargs, lambda value, error, attempts: told.append(attempts)
        )
        return value, told[0]

    async def _run_plainly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        outcome = self.definition.fn(*args, **kwargs)
        if self.definition.is_async or inspect.isawaitable(outcome):
            outcome = await outcome
        return cast(R, outcome)

    def options(
        self,
        *,
        name: str | None = None,
        retry: Retry | None = None,
        retries: int | None = None,
        timeout: Seconds | None = None,
        schedule_to_start_timeout: Seconds | None = None,
        schedule_to_close_timeout: Seconds | None = None,
        heartbeat_timeout: Seconds | None = None,
        cancellation: CancellationType | None = None,
        task_queue: str | None = None,
    ) -> Activity[P, R]:
        """Return a copy with other options; what is not given stays."""
        old = self.definition
        return Activity(
            ActivityDefinition(
                name=old.name if name is None else check_name(name, "an activity"),
                fn=old.fn,
                is_async=old.is_async,
                arguments=old.arguments,
                result=old.result,
                retry=_policy(retry, retries, default=old.retry),
                timeout_us=_timeout_us(timeout, default=old.timeout_us),
                schedule_to_start_us=_timeout_us(
                    schedule_to_start_timeout,
                    what="schedule_to_start_timeout",
                    default=old.schedule_to_start_us,
                ),
                schedule_to_close_us=_timeout_us(
                    schedule_to_close_timeout,
                    what="schedule_to_close_timeout",
                    default=old.schedule_to_close_us,
                ),
                heartbeat_us=_timeout_us(
                    heartbeat_timeout, what="heartbeat_timeout", default=old.heartbeat_us
                ),
                cancellation=old.cancellation if cancellation is None else _cancellation(cancellation),
                kind=old.kind,
                task_queue=old.task_queue if task_queue is None else _queue(task_queue),
                served_as=old.served_as,
            )
        )

    def replaced(
        self, fn: Callable[..., Any], *, name: str, kind: str = "", result: object = UNCHANGED
    ) -> Activity[..., Any]:
        """Return an activity that runs another function under the options of this one. For builders of patterns.

        Arguments otherwise as in `make_activity`.
        """
        self._refuse_queue(name)
        definition = self.definition.renamed(check_name(name, "an activity"))
        definition.fn = fn
        definition.kind = kind
        definition.is_async = inspect.iscoroutinefunction(fn)
        definition.is_simple = definition.is_async and not definition.is_limited
        definition.arguments = Arguments.of(fn)
        definition.result = _result_type(fn, result)
        return Activity(definition)

    def with_fn(
        self,
        fn: Callable[..., Any],
        *,
        name: str,
        kind: str = "",
        retry: Retry | None = None,
        timeout: Seconds | None = None,
    ) -> Activity[..., Any]:
        """Return an activity of another function that has the same parameters, hints and result. For builders of patterns.

        Much quicker than `make_activity`, which reads the function's signature. What is not given stays.
        """
        self._refuse_queue(name)
        definition = self.definition.renamed(name)
        definition.fn = fn
        definition.kind = kind
        definition.retry = definition.retry if retry is None else retry
        definition.is_async = inspect.iscoroutinefunction(fn)
        if timeout is not None:
            definition.timeout_us = _timeout_us(timeout)
            definition.is_limited = True
        definition.is_simple = definition.is_async and not definition.is_limited
        return Activity(definition)

    def _refuse_queue(self, name: str) -> None:
        """The workers of a queue know the function that was decorated, not one that a pattern has made of it."""
        if self.definition.task_queue is not None:
            raise DefinitionError(
                f"{name!r} runs activity {self.name!r}, which has task_queue={self.definition.task_queue!r}: steps of a pattern are "
                "performed by the worker of their run. Leave task_queue out there, or call the activity in a workflow"
            )


@overload
def activity(fn: Callable[P, Awaitable[R]], /) -> Activity[P, R]: ...


@overload
def activity(fn: Callable[P, R], /) -> Activity[P, R]: ...


@overload
def activity(
    *,
    name: str | None = None,
    retry: Retry | None = None,
    retries: int | None = None,
    timeout: Seconds | None = None,
    schedule_to_start_timeout: Seconds | None = None,
    schedule_to_close_timeout: Seconds | None = None,
    heartbeat_timeout: Seconds | None = None,
    cancellation: CancellationType = "try",
    task_queue: str | None = None,
) -> _Decorator: ...


def activity(
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | None = None,
    retries: int | None = None,
    timeout: Seconds | None = None,
    schedule_to_start_timeout: Seconds | None = None,
    schedule_to_close_timeout: Seconds | None = None,
    heartbeat_timeout: Seconds | None = None,
    cancellation: CancellationType = "try",
    task_queue: str | None = None,
) -> Any:
    """Make an activity of an `async def` or a `def` (which runs in a thread).

    Timeouts are in seconds or `timedelta`; default: none. `timeout` limits one attempt from start to end,
    `heartbeat_timeout` the gap between its heartbeats, `schedule_to_start_timeout` how long an attempt that is due may wait
    for a slot (not retried), `schedule_to_close_timeout` everything from the call to the end, all attempts and delays (no
    retry is begun that would pass it). Each raises `ActivityTimeoutError`, with its `kind`. For a `def` the result of a late
    attempt is discarded, since a thread cannot be stopped. A `def` that returns an awaitable has its thread only until then: that is
    awaited on the loop, and stopped like an `async def`. `retry` is the policy (default `Retry()`: 4 attempts); `retries=n` is
    short for n + 1 attempts. `cancellation` says what cancelling the awaiting workflow does: "try" raises
    there at once and cancels the activity, "wait" cancels it and waits for its end, "abandon" lets it run on unheard.
    `task_queue` names the queue whose workers perform it, by its name, in whatever process (`Worker(activities=...)`); without, and
    where it is the queue of the run itself, the worker of the run does. Journal, retries, timeouts and cancellation are the same.
    Bare or with options; a misspelt option is a TypeError.
    """
    decorator = _Decorator(
        name,
        retry=_policy(retry, retries, default=DEFAULT_RETRY),
        timeout_us=_timeout_us(timeout),
        schedule_to_start_us=_timeout_us(schedule_to_start_timeout, what="schedule_to_start_timeout"),
        schedule_to_close_us=_timeout_us(schedule_to_close_timeout, what="schedule_to_close_timeout"),
        heartbeat_us=_timeout_us(heartbeat_timeout, what="heartbeat_timeout"),
        cancellation=_cancellation(cancellation),
        task_queue=None if task_queue is None else _queue(task_queue),
    )
    return decorator if fn is None else decorator(fn)


@overload
def step(fn: Callable[P, Awaitable[R]], /) -> Activity[P, R]: ...


@overload
def step(fn: Callable[P, R], /) -> Activity[P, R]: ...


@overload
def step(name: str, fn: Callable[P, Awaitable[R]], /) -> Activity[P, R]: ...


@overload
def step(name: str, fn: Callable[P, R], /) -> Activity[P, R]: ...


@overload
def step(
    *,
    name: str | None = None,
    retries: int = 3,
    retry_delay: Seconds = 1.0,
    backoff: float = 2.0,
    timeout: Seconds | None = None,
    no_retry: ExceptionClasses = (),
) -> _Decorator: ...


def step(
    first: Callable[..., Any] | str | None = None,
    fn: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    retries: int = 3,
    retry_delay: Seconds = 1.0,
    backoff: float = 2.0,
    timeout: Seconds | None = None,
    no_retry: ExceptionClasses = (),
) -> Any:
    """Make an activity, in the words of pipelines: `@step`, `@step(retries=…)` or `step("name", fn)`.

    `retries` follow the first attempt; `retry_delay` is the first delay, growing by `backoff`.
    """
    if isinstance(first, str):
        if fn is None:
            raise DefinitionError("step(name, fn) needs the function; as a decorator write @step(name=…)")
        name, target = first, fn
    else:
        target = first  # type: ignore[assignment]  # None or the decorated function
    delay = seconds(retry_delay, what="retry_delay")
    decorator = _Decorator(
        name,
        retry=Retry(
            max_attempts=_retries(retries) + 1,
            initial=delay,
            backoff=backoff,
            maximum=max(100.0, delay),
            no_retry=no_retry,
        ),
        timeout_us=_timeout_us(timeout),
        cancellation="try",
    )
    return decorator if target is None else decorator(target)


class _Options(TypedDict, total=False):
    """The options of an activity, checked, as its definition holds them."""

    retry: Required[Retry]
    timeout_us: Required[int | None]
    cancellation: Required[CancellationType]
    schedule_to_start_us: int | None
    schedule_to_close_us: int | None
    heartbeat_us: int | None
    task_queue: str | None
    kind: str


class _Decorator:
    """`@activity(...)` with its options checked, waiting for the function."""

    def __init__(self, name: str | None, **options: Unpack[_Options]) -> None:
        self._name = None if name is None else check_name(name, "an activity")
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Awaitable[R]], /) -> Activity[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> Activity[P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> Activity[..., Any]:
        if isinstance(fn, Activity):
            raise DefinitionError(f"{fn.name!r} is an activity already; use .options(...) to change it")
        if not callable(fn) or isinstance(fn, type) or not hasattr(fn, "__name__"):
            raise DefinitionError(f"an activity is a function, not {fn!r}")
        return _activity_of(fn, self._name or fn.__name__, ValueType.of_return(fn), **self._options)


def make_activity(
    fn: Callable[..., Any],
    *,
    name: str,
    kind: str = "",
    retry: Retry = DEFAULT_RETRY,
    timeout: Seconds | None = None,
    cancellation: CancellationType = "try",
    result: object = UNCHANGED,
) -> Activity[..., Any]:
    """Make an activity at run time, of any callable: a method, a lambda, a partial, an object. For builders of patterns.

    A plain callable runs in a thread; what it returns is awaited if it can be, so `lambda: charge(order)` will do. `name`
    is its name in journals, `kind` what its entries in the run's story are called ("" is an ordinary activity,
    "compensation" one that undoes another). `result` is the type hint of what it returns, if not the function's own. Options
    otherwise as in `activity`.
    """
    fn = _function(fn)
    return _activity_of(
        fn,
        check_name(name, "an activity"),
        _result_type(fn, result),
        retry=retry,
        timeout_us=_timeout_us(timeout),
        cancellation=_cancellation(cancellation),
        kind=kind,
    )


def _activity_of(
    fn: Callable[..., Any], name: str, result: ValueType, **options: Unpack[_Options]
) -> Activity[..., Any]:
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise DefinitionError(f"activity {name!r} is a generator; return a list instead")
    return Activity(
        ActivityDefinition(
            name=name,
            fn=fn,
            is_async=inspect.iscoroutinefunction(fn),
            arguments=Arguments.of(fn),
            result=result,
            **options,
        )
    )


def _result_type(fn: Callable[..., Any], hint: object) -> ValueType:
    return ValueType.of_return(fn) if isinstance(hint, _Unchanged) else ValueType.of(hint)


def _queue(task_queue: str) -> str:
    if check_name(task_queue, "a task queue") == LOCAL_TASK_QUEUE:
        raise DefinitionError(f"task queue {task_queue!r} is for runs that no worker can drive")
    return task_queue


def _function(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function or method that does what any callable does, with its signature and hints."""
    if not callable(fn):
        raise DefinitionError(f"an activity is made of something to call, not {fn!r}")
    if hasattr(fn, "__name__") or isinstance(fn, functools.partial):
        return fn
    call: Callable[..., Any] = fn.__call__  # type: ignore[operator]  # it is callable
    return call


def _policy(retry: Retry | None, retries: int | None, *, default: Retry) -> Retry:
    if retry is not None and retries is not None:
        raise DefinitionError("give retry= or retries=, not both")
    if retries is not None:
        return Retry(max_attempts=_retries(retries) + 1)
    if retry is not None and not isinstance(retry, Retry):
        raise DefinitionError(f"retry takes a durable.Retry, not {retry!r}")
    return default if retry is None else retry


def _retries(value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise DefinitionError(f"retries must be an integer >= 0, not {value!r}")
    return value


def _timeout_us(value: Seconds | None, *, what: str = "timeout", default: int | None = None) -> int | None:
    if value is None:
        return default
    limit = round(seconds(value, what=what) * 1_000_000)
    if limit == 0:
        raise DefinitionError(f"{what} must be above zero; leave it out for none")
    return limit


def _cancellation(value: str) -> CancellationType:
    if value not in ("try", "wait", "abandon"):
        raise DefinitionError(f"cancellation is 'try', 'wait' or 'abandon', not {value!r}")
    return cast(CancellationType, value)
