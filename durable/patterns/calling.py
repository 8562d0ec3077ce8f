"""Authors' callables as units of work: what they are called with, and what their answers mean.

A callable is a function, method, lambda, partial or object, async or not, with the context as its one argument or
with none. What it returns is its value; an `Ok` stands for its value, an `Err` is an answer, too: it fails the step and is not
retried. Knows nothing of runs.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, cast

from durable import (
    Activity,
    ActivityInfo,
    Err,
    NonRetryableError,
    Ok,
    PlatformFault,
    Retry,
    Seconds,
    activity_info,
    make_activity,
)


class StepAnswerError(NonRetryableError):
    """A step answered `Err`: this stands for it where an exception is needed. An exception in the `Err` is `__cause__`."""


class StepContext(dict[str, Any]):
    """What a step is called with: a dict that also knows the run, and the attempt, it is in."""

    __durable_plain_mapping__: Final = True

    @property
    def run_id(self) -> str:
        return self._info.run_id

    @property
    def attempt(self) -> int:
        """From 1."""
        return self._info.attempt

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt: for whoever can deduplicate."""
        return self._info.idempotency_key

    @property
    def _info(self) -> ActivityInfo:
        return activity_info()


def settled(value: Any) -> Any:
    """Return what a step's answer stands for; raise `StepAnswerError` for an `Err`."""
    if isinstance(value, Ok):
        return value.value
    if isinstance(value, Err):
        error = value.error
        text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else f"{error}"
        raise StepAnswerError(text) from (error if isinstance(error, BaseException) else None)
    return value


def cause_of(error: BaseException) -> BaseException:
    """Return the error that made a step fail: of an answered failure the exception in it, if there was one."""
    if isinstance(error, StepAnswerError) and error.__cause__ is not None:
        return error.__cause__
    return error


class failing_as:  # reads as a statement: `with failing_as(...)`
    """Turns what a block raises into the failure that `make` makes of its cause; faults of the platform and cancellation pass."""

    def __init__(self, make: Callable[[BaseException], Exception]) -> None:
        self._make = make

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, PlatformFault):
            cause = cause_of(error)
            raise self._make(cause) from cause


def takes_context(fn: Callable[..., Any]) -> bool:
    """Whether a callable takes the context as its first argument, rather than nothing."""
    names = _plain_parameters(fn)
    if names is not None:
        return any(name != "uncertain" for name in names)
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # a builtin without a signature
        return True
    positional = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
    )
    return any(p.kind in positional and p.name != "uncertain" for p in parameters)


def takes_plain_context(fn: Callable[..., Any]) -> bool:
    """Whether what a callable takes is plain data, rather than decoded by a type hint, and nothing else."""
    names = _plain_parameters(fn)
    if names is None or "uncertain" in names:
        return False
    hints = getattr(fn, "__annotations__", {})
    return all(str(hints.get(name, "Any")).startswith(_PLAIN_HINTS) for name in names)


_PLAIN_HINTS: Final = ("Any", "typing.Any", "dict", "Mapping", "StepContext", "<class 'dict'>")


def takes_uncertain(fn: Callable[..., Any]) -> bool:
    """Whether a compensation wants to be called, too, for a step that was interrupted: by its parameter `uncertain`."""
    names = _plain_parameters(fn)
    return "uncertain" in (inspect.signature(fn).parameters if names is None else names)


def is_coroutine_function(fn: Callable[..., Any]) -> bool:
    """`inspect.iscoroutinefunction`, quickly for what nearly every callable is."""
    function = getattr(fn, "__func__", fn)
    if type(function) is not types.FunctionType or function.__dict__:  # marked, perhaps
        return inspect.iscoroutinefunction(fn)
    return bool(function.__code__.co_flags & inspect.CO_COROUTINE)


def _plain_parameters(fn: Callable[..., Any]) -> tuple[str, ...] | None:
    """Return the positional parameters of a plain function or method quickly; None: it takes a look at the signature."""
    function = getattr(fn, "__func__", fn)
    if type(function) is not types.FunctionType or function.__dict__:  # decorated, perhaps
        return None
    code = function.__code__
    if code.co_kwonlyargcount or code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        return None
    return code.co_varnames[int(function is not fn) : code.co_argcount]


def adapted(fn: Callable[..., Any], settle: Callable[[Any], Any] = settled) -> Callable[..., Any]:
    """Return a function that does what `fn` does, settles its answer, and hands a plain dict on as a `StepContext`."""
    call: Callable[..., Any]
    if is_coroutine_function(fn):

        @functools.wraps(fn)
        async def call(*args: Any, **kwargs: Any) -> Any:
            return settle(await fn(*map(as_context, args), **kwargs))

    else:

        @functools.wraps(fn)
        def call(*args: Any, **kwargs: Any) -> Any:
            value = fn(*map(as_context, args), **kwargs)
            return _settle_later(value, settle) if inspect.isawaitable(value) else settle(value)

    return call


async def _settle_later(value: Awaitable[Any], settle: Callable[[Any], Any]) -> Any:
    return settle(await value)


def as_context(value: Any) -> Any:
    """Return a plain dict as a `StepContext`, other values as they are."""
    return StepContext(value) if type(value) is dict else value


def result_hint(fn: Callable[..., Any]) -> object:
    """Return the type hint of what a callable's answer stands for: `T` of a `Result[T, E]`."""
    try:
        hint = typing.get_type_hints(inspect.unwrap(_hinted(fn)), include_extras=True).get("return", Any)
    except Exception:  # names that are known nowhere yet: plain data, then
        return Any
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        kept = [_value_hint(one) for one in typing.get_args(hint) if typing.get_origin(one) is not Err]
        return functools.reduce(lambda a, b: a | b, kept) if kept and Any not in kept else Any
    return _value_hint(hint)


def parameter_hint(fn: Callable[..., Any]) -> object:
    """Return the type hint of a callable's first argument."""
    try:
        given = next(iter(inspect.signature(fn).parameters.values()), None)
        hints = typing.get_type_hints(inspect.unwrap(_hinted(fn)), include_extras=True)
    except Exception:  # names that are known nowhere yet: plain data, then
        return Any
    hint = Any if given is None else hints.get(given.name, Any)
    return Any if isinstance(hint, typing.TypeVar) else hint


def _hinted(fn: Callable[..., Any]) -> Callable[..., Any]:
    if isinstance(fn, functools.partial):
        return _hinted(fn.func)
    return fn if hasattr(fn, "__annotations__") or hasattr(fn, "__func__") else cast(Any, fn).__call__


def _value_hint(hint: Any) -> Any:
    if typing.get_origin(hint) in (Awaitable, Coroutine):
        return _value_hint(typing.get_args(hint)[-1])
    if typing.get_origin(hint) is Ok:
        (hint,) = typing.get_args(hint)
    return Any if hint in (Ok, Err) or isinstance(hint, typing.TypeVar) else hint


def unit(
    what: Callable[..., Any],
    *,
    name: str,
    kind: str = "",
    retry: Retry | None = None,
    timeout: Seconds | None = None,
) -> Activity[..., Any]:
    """Return the activity that does one step: of any callable, or of an activity, whose own options then hold."""
    if isinstance(what, Activity):
        return what.replaced(adapted(what.fn), name=name, kind=kind, result=result_hint(what.fn))
    return make_activity(
        adapted(what),
        name=name,
        kind=kind,
        retry=retry if retry is not None else Retry(),
        timeout=timeout,
        result=result_hint(what),
    )
