"""Classes as workflows: what `@workflow` checks of a class, and the coroutine function that a run of it is.

The class itself stays what it is: `Checkout(order)` makes an object, in a unit test as anywhere, and a method that takes signals is a method.
Knows nothing of names or options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, Final, ParamSpec, Protocol, Self, TypeVar, overload

from durable.definitions import Handlers, QueryMethod, SignalMethod, UpdateMethod, check_name
from durable.engine.runtime import SignalHandler, UpdateHandler, current
from durable.errors import DefinitionError
from durable.payloads import ValueType

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
S_contra = TypeVar("S_contra", contravariant=True)
V = TypeVar("V", bound=Callable[..., object])
Method = TypeVar("Method", SignalMethod, QueryMethod, UpdateMethod)

WORKFLOW: Final = "__durable_workflow__"  # a class's attribute: the `Workflow` it stands for
SIGNAL: Final = "__durable_signal__"  # a method's attribute: which signals it takes
QUERY: Final = "__durable_query__"  # a method's attribute: which queries it answers
UPDATE: Final = "__durable_update__"  # a method's attribute: which updates it takes
VALIDATOR: Final = "validator"  # an update method's attribute: the decorator of what is asked first
_NOTHING: Final = ValueType.of(type(None))


class Runnable(Protocol[R_co]):
    """An object of a workflow class. Its `__init__` takes the input; `run` takes nothing, and is the process."""

    def run(self) -> Coroutine[Any, Any, R_co]:
        """Return what the run's result will be."""
        ...


class UpdateFunction(Protocol[S_contra, P, R_co]):
    """A method that takes updates, as type checkers see it: the plain function that it is, with `validator`."""

    def __call__(self, instance: S_contra, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...

    @overload
    def __get__(self, instance: S_contra, owner: type, /) -> Callable[P, R_co]: ...

    def validator(self, fn: V, /) -> V:
        """Ask this method first: what it raises refuses the update."""
        ...


def check_class(cls: type[Any]) -> None:
    """Raise `DefinitionError` unless the class can be a workflow."""
    name = cls.__qualname__
    if WORKFLOW in vars(cls):
        raise DefinitionError(f"{name!r} is a workflow already")
    run = inspect.getattr_static(cls, "run", None)
    if run is None:
        raise DefinitionError(f"workflow class {name!r} has no `async def run(self)`, which is what it does")
    if not inspect.iscoroutinefunction(run):
        raise DefinitionError(f"`run` of workflow class {name!r} must be an `async def` method")
    surplus = list(inspect.signature(run).parameters)[1:]
    if surplus:
        raise DefinitionError(
            f"`run` of workflow class {name!r} takes {', '.join(surplus)}, but nobody gives it anything: "
            "the input is what `__init__` takes"
        )
    if any(marked(run) is not None for marked in (marked_signal, marked_query, marked_update)):
        raise DefinitionError(
            f"`run` of workflow class {name!r} takes no signals or updates and answers no queries"
        )


def body_of(cls: type[Runnable[Any]], handlers: Handlers) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return what a run of the class is: make the object, give it the messages that are there, then `run` it. It is called as the class is."""

    signals, queries, updates = handlers

    async def body(*args: Any, **kwargs: Any) -> Any:
        made = cls(*args, **kwargs)
        run = current()
        if run is not None:
            for query in queries.values():
                run.on_query(query.name, getattr(made, query.attribute))
            for one in signals.values():
                handler = getattr(made, one.attribute)
                run.on_signal(one.name, SignalHandler(handler, one.value_type, one.takes_value))
            for update in updates.values():
                run.on_update(update.name, _handler_in(made, update))
            if signals or updates:
                await run.early_signals()
        return await made.run()

    body.__module__, body.__doc__ = cls.__module__, cls.__doc__
    body.__name__, body.__qualname__ = cls.__name__, cls.__qualname__
    body.__wrapped__ = cls.run  # type: ignore[attr-defined]  # as `functools.wraps` does, for whoever looks for the author's code
    return body


# ─ signals ──


def mark_signal(fn: Any, name: str | None) -> Any:
    """Mark a method as taking signals, and return it; raise `DefinitionError` if it cannot."""
    if not inspect.isfunction(fn):
        raise DefinitionError(f"@workflow.signal marks methods, not {fn!r}")
    parameters = list(inspect.signature(fn).parameters.values())
    if not parameters:
        raise DefinitionError(f"signal method {fn.__qualname__!r} has no `self`")
    handler = handler_of(fn, parameters[1:])
    method = SignalMethod(
        name=check_name(fn.__name__ if name is None else name, "a signal"),
        attribute=fn.__name__,
        fn=fn,
        value_type=handler.value_type,
        takes_value=handler.takes_value,
    )
    setattr(fn, SIGNAL, method)
    return fn


def marked_signal(fn: Any) -> SignalMethod | None:
    """Return what a method is told of signals, if it is marked."""
    found = getattr(fn, SIGNAL, None)
    return found if isinstance(found, SignalMethod) else None


def handler_of(
    fn: Callable[..., Any],
    parameters: Sequence[inspect.Parameter] | None = None,
    value_type: ValueType | None = None,
) -> SignalHandler:
    """Return a function as the handler of a signal: it takes its value, or nothing. `value_type`: if not its hint says it."""
    name = getattr(fn, "__qualname__", repr(fn))
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"signal handler {name!r} is a generator: nobody would run it")
    takes = list(_signature(fn).parameters.values()) if parameters is None else list(parameters)
    if not _takes_value(takes, f"signal handler {name!r}", "a signal"):
        return SignalHandler(fn, value_type or _NOTHING, takes_value=False)
    return SignalHandler(fn, value_type or ValueType.of_parameter(fn, takes[0].name), takes_value=True)


def _takes_value(parameters: Sequence[inspect.Parameter], who: str, message: str) -> bool:
    """Return whether a handler takes the message's value; raise `DefinitionError` if it takes more than that."""
    if len(parameters) > 1 or any(
        one.kind not in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters
    ):
        names = ", ".join(str(one.replace(annotation=one.empty, default=one.empty)) for one in parameters)
        raise DefinitionError(
            f"{who} takes {names}: {message} has one value; send several as one object, a dataclass for example"
        )
    return bool(parameters)


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(fn)
    except (TypeError, ValueError):  # of some builtins Python does not know it
        raise DefinitionError(
            f"nobody can tell what {fn!r} takes: call it in a function of your own"
        ) from None


# ─ updates ──


def mark_update(fn: Any, name: str | None) -> Any:
    """Mark a method as taking updates, give it the decorator `validator`, and return it; raise `DefinitionError` if it cannot."""
    if not inspect.isfunction(fn):
        raise DefinitionError(f"@workflow.update marks methods, not {fn!r}")
    parameters = list(inspect.signature(fn).parameters.values())
    if not parameters:
        raise DefinitionError(f"update method {fn.__qualname__!r} has no `self`")
    handler = update_handler_of(fn, parameters=parameters[1:])
    method = UpdateMethod(
        name=check_name(fn.__name__ if name is None else name, "an update"),
        attribute=fn.__name__,
        fn=fn,
        value_type=handler.value_type,
        takes_value=handler.takes_value,
        result_type=handler.result_type,
    )
    setattr(fn, UPDATE, method)
    setattr(fn, VALIDATOR, partial(_mark_validator, fn))
    return fn


def _mark_validator(update: Callable[..., Any], fn: Any) -> Any:
    """Let a method be asked before the update is handled, and return it."""
    if not inspect.isfunction(fn):
        raise DefinitionError(f"@{update.__name__}.validator marks methods, not {fn!r}")
    method = marked_update(update)
    assert method is not None, "a validator of what is no update"
    if method.validator:
        raise DefinitionError(f"update method {update.__qualname__!r} has a validator already")
    if fn.__name__ == method.attribute:
        raise DefinitionError(
            f"the validator of {update.__qualname__!r} has its name, and would take its place: give it another"
        )
    parameters = list(inspect.signature(fn).parameters.values())
    if not parameters:
        raise DefinitionError(f"validator {fn.__qualname__!r} has no `self`")
    _check_validator(fn, parameters[1:], takes_value=method.takes_value)
    setattr(update, UPDATE, method._replace(validator=fn.__name__))
    return fn


def _check_validator(fn: Any, parameters: Sequence[inspect.Parameter], *, takes_value: bool) -> None:
    name = getattr(fn, "__qualname__", repr(fn))
    if inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"validator {name!r} only looks, and waits for nothing: make it a plain `def`")
    if _takes_value(parameters, f"validator {name!r}", "an update") is not takes_value:
        raise DefinitionError(f"validator {name!r} must take what its update takes")


def marked_update(fn: Any) -> UpdateMethod | None:
    """Return what a method is told of updates, if it is marked."""
    found = getattr(fn, UPDATE, None)
    return found if isinstance(found, UpdateMethod) else None


def update_handler_of(
    fn: Callable[..., Any],
    validator: Callable[..., Any] | None = None,
    *,
    parameters: Sequence[inspect.Parameter] | None = None,
) -> UpdateHandler:
    """Return a function as the handler of an update: it takes its value, or nothing, and what it returns is the answer."""
    name = getattr(fn, "__qualname__", repr(fn))
    if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        raise DefinitionError(f"update handler {name!r} is a generator: nobody would run it")
    takes = list(_signature(fn).parameters.values()) if parameters is None else list(parameters)
    takes_value = _takes_value(takes, f"update handler {name!r}", "an update")
    if validator is not None:
        _check_validator(validator, list(_signature(validator).parameters.values()), takes_value=takes_value)
    value_type = ValueType.of_parameter(fn, takes[0].name) if takes_value else _NOTHING
    return UpdateHandler(fn, value_type, takes_value, ValueType.of_return(fn), validator)


def _handler_in(made: object, update: UpdateMethod) -> UpdateHandler:
    """Return the handler that a method of this object is."""
    return UpdateHandler(
        getattr(made, update.attribute),
        update.value_type,
        update.takes_value,
        update.result_type,
        getattr(made, update.validator) if update.validator else None,
    )


# ─ queries ──


def mark_query(fn: Any, name: str | None) -> Any:
    """Mark a method as answering queries, and return it; raise `DefinitionError` if it cannot."""
    if not inspect.isfunction(fn):
        raise DefinitionError(f"@workflow.query marks methods, not {fn!r}")
    check_query(fn)
    if not inspect.signature(fn).parameters:
        raise DefinitionError(f"query method {fn.__qualname__!r} has no `self`")
    named = check_name(fn.__name__ if name is None else name, "a query")
    setattr(fn, QUERY, QueryMethod(name=named, attribute=fn.__name__, fn=fn))
    return fn


def marked_query(fn: Any) -> QueryMethod | None:
    """Return what a method is told of queries, if it is marked."""
    found = getattr(fn, QUERY, None)
    return found if isinstance(found, QueryMethod) else None


def check_query(fn: Callable[..., Any]) -> None:
    """Raise `DefinitionError` for a function that does more than look: a coroutine function, or a generator."""
    if inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
        name = getattr(fn, "__qualname__", repr(fn))
        raise DefinitionError(f"query {name!r} only looks, and waits for nothing: make it a plain `def`")


# ─ all of them ──


def handlers_of(cls: type[Any]) -> Handlers:
    """Return the methods of a class that messages go to; raise `DefinitionError` where that is not clear."""
    return Handlers(
        signals=_methods_of(cls, marked_signal, "signal"),
        queries=_methods_of(cls, marked_query, "query"),
        updates=_methods_of(cls, marked_update, "update"),
    )


def _methods_of(cls: type[Any], marked: Callable[[Any], Method | None], kind: str) -> dict[str, Method]:
    found: dict[str, Method] = {}
    inherited = {name for base in cls.__mro__ for name, value in vars(base).items() if marked(value)}
    for attribute in sorted(inherited):
        method = marked(inspect.getattr_static(cls, attribute))
        if method is None:
            raise DefinitionError(
                f"{cls.__qualname__}.{attribute} stands for a {kind} method, and is not marked: decorate it with @workflow.{kind}, too"
            )
        taken = found.setdefault(method.name, method._replace(attribute=attribute))
        if taken.attribute != attribute:
            raise DefinitionError(
                f"{cls.__qualname__}: {taken.attribute} and {attribute} are both for the {kind} {method.name!r}"
            )
    return found


# ─ code ──


def authored(cls: type[Any]) -> tuple[Callable[..., Any], ...]:
    """Return the class's methods, in which the author's code begins: `run` first. Not those that come with some library's class."""
    package = _package(cls)
    methods = {
        name: value
        for base in reversed(cls.__mro__)
        if _package(base) == package
        for name, value in vars(base).items()
    }
    rest = [value for value in methods.values() if inspect.isfunction(value) and value is not cls.run]
    return (cls.run, *rest)


def is_as_declared(cls: type[Any], parts: tuple[Callable[..., Any], ...]) -> bool:
    """Whether the class's `__init__` is still one of the methods that were looked at."""
    init = inspect.getattr_static(cls, "__init__")
    return not inspect.isfunction(init) or init in parts or _package(init) != _package(cls)


def _package(value: Any) -> str:
    return (value.__module__ or "").partition(".")[0]
