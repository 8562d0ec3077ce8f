"""Type hints as Python gives them: found on functions and classes, their names looked up, their variables filled in.

Knows nothing of how values are stored.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import msgspec

from durable.errors import DefinitionError
from durable.payloads.misfits import type_name

T = TypeVar("T")


class UnresolvedError(DefinitionError):
    """A name in a hint means nothing yet."""


def resolved(resolve: Callable[[], T]) -> T:
    """Call at the first use, when every name must mean something."""
    try:
        return resolve()
    except UnresolvedError as error:
        raise DefinitionError(str(error)) from None


def name_of(fn: Any) -> str:
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def _target(fn: Any) -> Any:
    """Return the function that carries the hints."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    if isinstance(fn, type):  # a Struct's fields are what it takes, and its `__init__` is no function
        return fn if issubclass(fn, msgspec.Struct) else inspect.getattr_static(fn, "__init__")
    if not hasattr(fn, "__annotations__") and callable(fn):
        return type(fn).__call__
    return fn


def closure(fn: Any) -> dict[str, Any]:
    """Return the enclosing function's variables that `fn` uses: where local classes are found, if anywhere."""
    target = _target(fn)
    code = getattr(target, "__code__", None)
    scope: dict[str, Any] = {}
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(target, "__closure__", None) or (), strict=False
    ):
        try:
            scope[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    return scope


def function_hints(fn: Any) -> dict[str, Any]:
    target = _target(fn)
    try:
        return typing.get_type_hints(target, localns=closure(fn) or None, include_extras=True)
    except NameError as error:
        missing = error.name or str(error)
        users = [p for p, hint in getattr(target, "__annotations__", {}).items() if missing in str(hint)]
        where = f" of `{users[0]}`" if users else ""
        raise UnresolvedError(
            f"{name_of(fn)}(): the type hint{where} names `{missing}`, {_undefined_in(target)}"
        ) from None
    except Exception as error:
        raise DefinitionError(f"{name_of(fn)}(): its type hints cannot be read: {error}") from error


def awaited_hint(hint: Any) -> Any:
    """Return the hint of what an awaitable comes to; any other hint as it is."""
    if (typing.get_origin(hint) or hint) not in (Awaitable, Coroutine):
        return hint
    return typing.get_args(hint)[-1] if typing.get_args(hint) else Any


def class_hints(cls: Any, scope: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the hints of a class's fields, and whether msgspec would find them too."""
    try:
        return typing.get_type_hints(cls, include_extras=True), True
    except NameError:
        pass
    try:
        return typing.get_type_hints(cls, localns={cls.__name__: cls, **scope}, include_extras=True), False
    except NameError as error:
        raise UnresolvedError(
            f"`{type_name(cls)}` has a field of type `{error.name}`, {_undefined_in(cls)}"
        ) from None


def _undefined_in(owner: Any) -> str:
    return (
        f"which is not defined in {owner.__module__}. "
        "Import it at run time (not under TYPE_CHECKING), or move a local class to the module"
    )


def substitute(hint: Any, variables: dict[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not variables or isinstance(hint, type) or not parameters:
        return hint
    return hint[tuple(variables.get(p, p) for p in parameters)]


def type_variables(cls: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return what the type variables of a generic class and its bases stand for."""
    variables = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if origin is not None and origin is not typing.Generic:
            inner = tuple(substitute(argument, variables) for argument in typing.get_args(base))
            variables = {**type_variables(origin, inner), **variables}
    return variables


def hint_name(hint: Any) -> str:
    """Return a hint as its author wrote it: without modules, which may be renamed while a run is open."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"(?:[\w<>]+\.)+", "", str(hint))


def is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def is_qualifier(origin: Any) -> bool:
    """Whether a hint says something of the field rather than of its values."""
    is_read_only = getattr(origin, "__name__", getattr(origin, "_name", "")) == "ReadOnly"  # from Python 3.13
    return is_read_only or origin in (typing.Final, typing.Required, typing.NotRequired)


def required_keys(cls: Any, hints: dict[str, Any]) -> frozenset[str]:
    """Return the keys a TypedDict must have; its own list is wrong where annotations are postponed."""
    marked = {name: typing.get_origin(hint) for name, hint in hints.items()}
    required = {name for name, origin in marked.items() if origin is typing.Required}
    optional = {name for name, origin in marked.items() if origin is typing.NotRequired}
    return frozenset((getattr(cls, "__required_keys__", frozenset()) | required) - optional)
