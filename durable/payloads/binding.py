"""`Binding`: calls of one function <-> their arguments by parameter name.

Does what `inspect.Signature.bind` does without its cost, in Python's own words. Knows nothing of types or JSON.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from durable.errors import ArgumentsError, DefinitionError
from durable.payloads.misfits import MisfitError

_KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY
_POSITIONAL_ONLY = inspect.Parameter.POSITIONAL_ONLY
_POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD
_VAR_KEYWORD = inspect.Parameter.VAR_KEYWORD
_VAR_POSITIONAL = inspect.Parameter.VAR_POSITIONAL


class Parameter(NamedTuple):
    """One parameter of a function."""

    name: str
    kind: inspect._ParameterKind
    is_required: bool


class Binding:
    """The parameters of one function, or of a class's `__init__`; `name` is what errors call it."""

    def __init__(self, fn: Callable[..., Any], name: str) -> None:
        self.name = name
        try:
            declared = inspect.signature(fn).parameters.values()
        except ValueError:  # of some builtins Python does not know it
            raise DefinitionError(
                f"nobody can tell what {name!r} takes: call it in a function of your own"
            ) from None
        self.parameters = [
            Parameter(p.name, p.kind, p.default is p.empty and p.kind not in (_VAR_POSITIONAL, _VAR_KEYWORD))
            for p in declared
        ]
        self.positional = self._names_of(_POSITIONAL_ONLY, _POSITIONAL_OR_KEYWORD)
        self.required = tuple(p.name for p in self.parameters if p.is_required)
        self._required = frozenset(self.required)
        self._keywords = frozenset(self._names_of(_POSITIONAL_OR_KEYWORD, _KEYWORD_ONLY))
        self._var_positional = next(iter(self._names_of(_VAR_POSITIONAL)), None)
        self._var_keyword = next(iter(self._names_of(_VAR_KEYWORD)), None)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name; raise `ArgumentsError`, as Python would, when they do not fit."""
        bound: dict[str, Any] = dict(zip(self.positional, args))  # noqa: B905 - either may be longer
        surplus = args[len(self.positional) :]
        if surplus and self._var_positional is None:
            raise ArgumentsError(self._too_many(len(args)))
        extra: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self._keywords:
                if name in bound:
                    raise ArgumentsError(f"{self.name}() got multiple values for argument {name!r}")
                bound[name] = value
            elif self._var_keyword is not None:
                extra[name] = value
            elif name in self.positional:
                raise ArgumentsError(
                    f"{self.name}() got some positional-only arguments passed as keyword arguments: {name!r}"
                )
            else:
                raise ArgumentsError(f"{self.name}() got an unexpected keyword argument {name!r}")
        if not self._required <= bound.keys():
            raise ArgumentsError(self._missing([name for name in self.required if name not in bound]))
        if surplus and self._var_positional is not None:
            bound[self._var_positional] = list(surplus)
        if extra and self._var_keyword is not None:
            bound[self._var_keyword] = extra
        return bound

    def check_names(self, given: dict[str, Any]) -> None:
        """Raise `ArgumentsError` unless these are names of parameters, and all required ones among them."""
        known = {parameter.name for parameter in self.parameters}
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ArgumentsError(f"{self.name}() got an unexpected argument {unknown[0]!r}")
        missing = [name for name in self.required if name not in given]
        if missing:
            raise ArgumentsError(self._missing(missing))

    def unbind(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) of the parameters' values in order; UNSET is an argument that was not passed."""
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        has_gap = False  # a parameter left at its default: those after it are passed by keyword
        for (name, kind, _), value in zip(self.parameters, values, strict=True):
            if value is msgspec.UNSET:
                has_gap = has_gap or name in self.positional
            elif kind is _VAR_KEYWORD:
                kwargs.update(value)
            elif has_gap and kind in (_POSITIONAL_ONLY, _VAR_POSITIONAL):
                raise MisfitError("positional, but a parameter before it is missing", f".{name}")
            elif kind is _VAR_POSITIONAL:
                args.extend(value)
            elif kind is _KEYWORD_ONLY or has_gap:
                kwargs[name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    def _names_of(self, *kinds: inspect._ParameterKind) -> tuple[str, ...]:
        return tuple(p.name for p in self.parameters if p.kind in kinds)

    def _too_many(self, given: int) -> str:
        most = len(self.positional)
        least = sum(name in self._required for name in self.positional)
        takes = f"from {least} to {most}" if least != most else str(most)
        plural = "" if takes == "1" else "s"
        return (
            f"{self.name}() takes {takes} positional argument{plural} but {given} "
            f"{'was' if given == 1 else 'were'} given"
        )

    def _missing(self, names: list[str]) -> str:
        is_positional = names[0] in self.positional
        same_kind = [name for name in names if (name in self.positional) == is_positional]
        *others, last = [repr(name) for name in same_kind]
        comma = "," if len(others) > 1 else ""
        listed = f"{', '.join(others)}{comma} and {last}" if others else last
        return (
            f"{self.name}() missing {len(same_kind)} required {'positional' if is_positional else 'keyword-only'} "
            f"argument{'s' if others else ''}: {listed}"
        )
