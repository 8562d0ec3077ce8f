"""Activities: the functions that may touch the world.

`@activity` (for pipeline people: `@step`) turns a function into an `Activity`. Inside a run a call is journaled,
retried and timed out; outside it just runs the function, so it can be unit-tested. What a running activity and its worker
tell one another goes through a `Pulse`. Knows nothing of workers.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import inspect
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from typing import Any, Final, Generic, NoReturn, ParamSpec, TypeVar, cast, overload

import msgspec

from durable.definitions import ActivityDefinition, CancellationType, check_name
from durable.engine.runtime import RunLoop, current, name_prefix
from durable.errors import DefinitionError
from durable.limits import DEFAULT_LIMITS, NAME_LENGTH_MAX, Limits
from durable.payloads import Arguments, ValueType
from durable.retry import DEFAULT_RETRY, Retry, Seconds, seconds

P = ParamSpec("P")
R = TypeVar("R")

ExceptionClasses = Sequence[type[BaseException]] | type[BaseException]


class ActivityInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an activity may know of itself.

    `idempotency_key` is the same for every attempt, on every worker, after every crash: hand it to whoever can
    deduplicate (`run_id@epoch/name#n`). `attempt` counts from 1. `heartbeat_details` are those of the last heartbeat of
    the attempts before this one that gave some, as plain JSON data; empty if none did.
    """

    run_id: str
    workflow: str
    activity: str
    attempt: int
    idempotency_key: str
    heartbeat_details: tuple[Any, ...] = ()
    _pulse: Pulse = msgspec.field(default_factory=lambda: Pulse())
    _make_token: Callable[[], str] | None = None

    @property
    def task_token(self) -> str:
        """The address of this attempt for `Client.complete_activity` and its kin: hand it to whoever will complete it.

        Good for this attempt only; see `raise_complete_async`. Whoever holds it can complete the attempt. Outside of runs
        `DefinitionError`.
        """
        if self._make_token is None:
            raise DefinitionError("task_token is there only inside an activity that a run has called")
        self._pulse.note_token()
        return self._make_token()

    @property
    def is_cancelled(self) -> bool:
        """Whether this attempt is to stop: cancelled, timed out, or its worker stops. For code in threads, which only asks."""
        return self._pulse.cancel_reason is not None

    @property
    def cancel_reason(self) -> str | None:
        """Why this attempt is to stop; the words of whoever cancelled the run, if that was it. None: go on."""
        return self._pulse.cancel_reason


class Pulse(msgspec.Struct, eq=False):
    """What one execution of an attempt and its worker tell one another, from any thread.

    The attempt writes `details` and `beat_at`, the worker `cancel_reason`, each by one assignment: no lock is needed.
    `is_noted`: the worker was told of details it has not written yet; it clears that *before* it reads them.
    `owner`, `number`, `fence` and `fresh_until` are the worker's own; until `fresh_until` (its clock) there is no need to ask
    `fence` whether it still holds its lease.
    """

    owner: Any = None
    number: int = 0
    fence: Callable[[], bool] | None = None
    fresh_until: float = 0.0
    describe: Callable[[Pulse], ActivityInfo] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    on_details: Callable[[Pulse], None] | None = None
    details: bytes | None = None
    earlier: tuple[Any, ...] = ()  # the details of the attempts before this one
    limits: Limits = DEFAULT_LIMITS
    beat_at: float = 0.0
    cancel_reason: str | None = None
    is_noted: bool = False
    starts: dict[str, int] | None = None  # runs that the attempt has started, by name
    has_token: bool = False  # somebody may answer for the attempt: its row must be there

    def note_token(self) -> None:
        """Have it written down that the attempt's token is out there."""
        if not self.has_token:
            self.has_token = True
            self._tell()

    def beat(self, details: bytes | None) -> None:
        """Note a sign of life; raise CancelledError where no event loop would do so."""
        loop = self.loop
        if loop is None:
            return
        is_here = asyncio._get_running_loop() is loop
        if self.cancel_reason is not None and not is_here:
            raise asyncio.CancelledError(self.cancel_reason)
        self.beat_at = loop.time()
        if details is None or details == self.details:
            return
        self.details = details
        if not self.is_noted:
            self._tell()

    def _tell(self) -> None:
        loop, on_details = self.loop, self.on_details
        if loop is None or on_details is None:
            return
        self.is_noted = True
        if asyncio._get_running_loop() is loop:
            on_details(self)
            return
        try:
            loop.call_soon_threadsafe(on_details, self)
        except RuntimeError:  # the loop is closed: this thread outlived its worker
            pass

    def close(self) -> None:
        """The attempt is over: nobody listens any more."""
        self.on_details = None


_pulse: Final[ContextVar[Pulse | None]] = ContextVar("durable_activity", default=None)


def activity_info() -> ActivityInfo:
    """Return what the running activity may know of itself; outside of one, raise `DefinitionError`."""
    pulse = _pulse.get()
    if pulse is None or pulse.describe is None:
        raise DefinitionError("activity_info() answers only inside an activity that a run has called")
    return pulse.describe(pulse)


def derived_run_id(name: str) -> str | None:
    """Return the id for a run of `name` that the running activity starts: a further attempt gets the same, and attaches.

    It is `<idempotency key>/name#n`, where n counts such starts of the attempt. None outside of activities.
    """
    pulse = _pulse.get()
    if pulse is None or pulse.describe is None or current() is not None:
        return None
    info = pulse.describe(pulse)
    starts = pulse.starts = pulse.starts or {}
    starts[name] = starts.get(name, 0) + 1
    run_id = f"{info.idempotency_key}/{name}#{starts[name]}"
    if len(run_id) <= NAME_LENGTH_MAX:
        return run_id
    return f"{name[:100]}-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


class CompleteAsync(BaseException):
    """Raised by `raise_complete_async`. Private: authors must not catch it."""


def raise_complete_async() -> NoReturn:
    """End this activity's function without ending the activity: somebody else completes it, from any process, with its token.

    Take the token first, `activity_info().task_token`, and hand it on (in an e-mail, to a webhook, to a queue); whoever has
    the answer calls `Client.complete_activity(token, value)` or `fail_activity(token, error)`, and may call
    `heartbeat_activity(token, ...)` meanwhile. Nothing of the activity takes a slot or memory until then; it survives every
    restart. `timeout`, `heartbeat_timeout` and `schedule_to_close_timeout` hold as ever: past them the attempt has failed
    and its token is worthless. The first answer counts, also one that comes while the function still runs.
    """
    if _pulse.get() is None:
        raise DefinitionError("raise_complete_async() is for activities that a run has called")
    raise CompleteAsync


def heartbeat(*details: object) -> None:
    """Say that the running activity is alive, and how far it has come.

    `details` are kept as JSON and handed to the next attempt, on whatever worker, as `activity_info().heartbeat_details`.
    They are written down in batches, so a crash may lose those of the last few seconds; an attempt that fails in order
    loses none. Without details those given before stay. Cheap: call it as often as there is something to tell, from
    any thread.

    In a thread (a `def` activity, or a helper of an async one) it raises `asyncio.CancelledError` once the attempt is to
    stop, with the reason as its message; a coroutine is cancelled by its own loop instead. Raises `PayloadError` for
    details that cannot be stored. Outside of runs it only checks that, so that activities can be unit-tested.
    """
    if current() is not None:
        raise DefinitionError("heartbeat() is for activities; a workflow is alive as long as its journal is")
    data = _DETAILS.encode(list(details)) if details else None
    pulse = _pulse.get()
    if pulse is None:
        return
    if data is not None and len(data) > pulse.limits.payload_bytes_warn and pulse.describe is not None:
        told = pulse.describe(pulse)
        what = f"the heartbeat details of activity {told.activity!r}"
        pulse.limits.judge(len(data), what=what, run_id=told.run_id)
    pulse.beat(data)


def decode_details(data: bytes) -> tuple[Any, ...]:
    """Return stored heartbeat details; raise `UndecodableError` if they are damaged."""
    return tuple(_DETAILS.decode(data))


_DETAILS: Final = ValueType.of(list[Any])


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
            )
        )

    def replaced(
        self, fn: Callable[..., Any], *, name: str, kind: str = "", result: object = UNCHANGED
    ) -> Activity[..., Any]:
        """Return an activity that runs another function under the options of this one. For builders of patterns.

        Arguments otherwise as in `make_activity`.
        """
        definition = self.definition.renamed(check_name(name, "an activity"))
        definition.fn = fn
        definition.kind = kind
        definition.is_async = inspect.iscoroutinefunction(fn)
        definition.is_simple = definition.is_async and not definition.is_limited
        definition.arguments = Arguments.of(fn)
        definition.result = (
            ValueType.of_return(fn) if isinstance(result, _Unchanged) else ValueType.of(result)
        )
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


@overload
def activity(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...


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
) -> Any:
    """Make an activity of an `async def` or a `def` (which runs in a thread).

    Timeouts are in seconds or `timedelta`; default: none. `timeout` limits one attempt from start to end,
    `heartbeat_timeout` the gap between its heartbeats, `schedule_to_start_timeout` how long an attempt that is due may wait
    for a slot (not retried), `schedule_to_close_timeout` everything from the call to the end, all attempts and delays (no
    retry is begun that would pass it). Each raises `ActivityTimeoutError`, with its `kind`. For a `def` the result of a late
    attempt is discarded, since a thread cannot be stopped. `retry` is the policy (default `Retry()`: 4 attempts); `retries=n` is
    short for n + 1 attempts. `cancellation` says what cancelling the awaiting workflow does: "try" raises
    there at once and cancels the activity, "wait" cancels it and waits for its end, "abandon" lets it run on unheard.
    Bare or with options; a misspelt option is a TypeError.
    """
    decorator = _Decorator(
        name=name,
        retry=_policy(retry, retries, default=DEFAULT_RETRY),
        timeout_us=_timeout_us(timeout),
        schedule_to_start_us=_timeout_us(schedule_to_start_timeout, what="schedule_to_start_timeout"),
        schedule_to_close_us=_timeout_us(schedule_to_close_timeout, what="schedule_to_close_timeout"),
        heartbeat_us=_timeout_us(heartbeat_timeout, what="heartbeat_timeout"),
        cancellation=_cancellation(cancellation),
    )
    return decorator if fn is None else decorator(fn)


@overload
def step(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...


@overload
def step(fn: Callable[P, R], /) -> Activity[P, R]: ...


@overload
def step(name: str, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...


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
        name=name,
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


class _Decorator:
    """`@activity(...)` with its options checked, waiting for the function."""

    def __init__(
        self,
        *,
        name: str | None,
        retry: Retry,
        timeout_us: int | None,
        cancellation: CancellationType,
        schedule_to_start_us: int | None = None,
        schedule_to_close_us: int | None = None,
        heartbeat_us: int | None = None,
    ) -> None:
        self._name = None if name is None else check_name(name, "an activity")
        self._retry = retry
        self._timeout_us = timeout_us
        self._schedule_to_start_us = schedule_to_start_us
        self._schedule_to_close_us = schedule_to_close_us
        self._heartbeat_us = heartbeat_us
        self._cancellation = cancellation

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Activity[P, R]: ...

    @overload
    def __call__(self, fn: Callable[P, R], /) -> Activity[P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> Activity[..., Any]:
        if isinstance(fn, Activity):
            raise DefinitionError(f"{fn.name!r} is an activity already; use .options(...) to change it")
        if not callable(fn) or isinstance(fn, type) or not hasattr(fn, "__name__"):
            raise DefinitionError(f"an activity is a function, not {fn!r}")
        if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
            raise DefinitionError(f"activity {fn.__name__!r} is a generator; return a list instead")
        return Activity(
            ActivityDefinition(
                name=self._name or fn.__name__,
                fn=fn,
                is_async=inspect.iscoroutinefunction(fn),
                arguments=Arguments.of(fn),
                result=ValueType.of_return(fn),
                retry=self._retry,
                timeout_us=self._timeout_us,
                schedule_to_start_us=self._schedule_to_start_us,
                schedule_to_close_us=self._schedule_to_close_us,
                heartbeat_us=self._heartbeat_us,
                cancellation=self._cancellation,
            )
        )


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
    if inspect.isasyncgenfunction(fn) or inspect.isgeneratorfunction(fn):
        raise DefinitionError(f"activity {name!r} is a generator; return a list instead")
    return Activity(
        ActivityDefinition(
            name=check_name(name, "an activity"),
            fn=fn,
            is_async=inspect.iscoroutinefunction(fn),
            arguments=Arguments.of(fn),
            result=ValueType.of_return(fn) if isinstance(result, _Unchanged) else ValueType.of(result),
            retry=retry,
            timeout_us=_timeout_us(timeout),
            cancellation=_cancellation(cancellation),
            kind=kind,
        )
    )


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
