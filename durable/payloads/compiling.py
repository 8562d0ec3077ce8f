"""Type hints -> nodes: what can be stored at all is decided here, before the first value is seen.

Knows nothing of values.
"""

from __future__ import annotations

import collections.abc as abc
import enum
import types
import typing
from typing import Any, Final, TypeVar

import msgspec

from durable.errors import DefinitionError
from durable.payloads.containers import Array, Mapping, Tuple
from durable.payloads.hints import (
    UnresolvedError,
    class_hints,
    hint_name,
    is_qualifier,
    is_union,
    required_keys,
    substitute,
    type_variables,
)
from durable.payloads.misfits import UnsupportedError, not_storable, type_name
from durable.payloads.nodes import Alias, Annotated, Anything, Hooked, Node, OddEnum, ResultHalf, Scalar
from durable.payloads.objects import Object, field_names
from durable.payloads.plain import ARRAYS, LEAVES, is_pydantic, scalar_base
from durable.payloads.reading import msgspec_reads
from durable.payloads.unions import Union
from durable.result import Err, Ok

_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)
_ABSTRACT_ARRAYS: Final[dict[Any, Any]] = {
    abc.Collection: list,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Set: set,
    abc.MutableSet: set,
}


PLAIN_MAPPING: Final = "__durable_plain_mapping__"


def compile_hint(hint: Any, *, what: str, scope: dict[str, Any] | None = None) -> Node:
    """Return the node of a hint; raise `DefinitionError`, which begins with `what`, if its values cannot be stored."""
    return Compiler(scope or {}).compile_root(hint, what=what)


class Compiler:
    """Builds the node tree of one function's hints. A class that refers to itself becomes one node, shared."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self._scope = scope
        self._known: dict[Any, Node] = {}

    def compile_root(self, hint: Any, *, what: str) -> Node:
        try:
            node = self.compile(hint)
            node.settle()
            return node
        except UnsupportedError as error:
            raise DefinitionError(f"{what}: {error}") from None

    def compile(self, hint: Any) -> Node:
        if hint is None:
            hint = types.NoneType
        try:
            known = self._known.get(hint)
        except TypeError:  # unhashable metadata in Annotated
            known = None
        return known if known is not None else self._compile(hint)

    def _compile(self, hint: Any) -> Node:
        if isinstance(hint, (str, typing.ForwardRef)):
            return self._named(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in (Any, object) or isinstance(hint, TypeVar):
            return self._anything(hint)
        if origin is typing.Annotated:
            return Annotated(hint, self.compile(arguments[0]))
        if isinstance(hint, typing.NewType):
            return self.compile(hint.__supertype__)
        if is_qualifier(origin):
            return self.compile(arguments[0])
        if hasattr(origin or hint, "__value__") and not isinstance(origin or hint, type):
            return self._alias(hint, origin or hint, arguments)
        if origin is typing.Literal:
            return Scalar(hint, arguments)
        if is_union(hint):
            return Union(hint, [self.compile(argument) for argument in arguments])
        if origin in (tuple, *ARRAYS) or hint in ARRAYS or (origin or hint) in _ABSTRACT_ARRAYS:
            return self._array(hint, origin or hint, arguments)
        if (origin or hint) in _MAPPINGS:
            return self._mapping(hint, arguments)
        if (origin or hint) in (Ok, Err):
            item = self._error(arguments) if (origin or hint) is Err else self.compile(*arguments or (Any,))
            return ResultHalf(hint, origin or hint, item)
        if isinstance(origin or hint, type):
            if getattr(hint, PLAIN_MAPPING, False):  # a dict with manners: it travels as its dict
                return self.compile(dict[str, Any])
            return self._class(hint, origin or hint, arguments)
        raise UnsupportedError(not_storable(hint_name(hint)))

    def _named(self, hint: Any) -> Node:
        name = hint if isinstance(hint, str) else hint.__forward_arg__
        if name not in self._scope:
            raise UnresolvedError(f"the type hint names `{name}`, which is not defined here")
        return self.compile(self._scope[name])

    def _anything(self, hint: Any) -> Node:
        if isinstance(hint, TypeVar):
            bound = hint.__bound__ if hint.__bound__ is not None else hint.__constraints__ or None
            if bound is not None:
                return self.compile(typing.Union[bound] if isinstance(bound, tuple) else bound)  # noqa: UP007
        return Anything(Any)

    def _alias(self, hint: Any, alias: Any, arguments: tuple[Any, ...]) -> Node:
        node = self._known[hint] = Alias(hint)
        variables = dict(zip(alias.__type_params__, arguments, strict=False))
        node.target = self.compile(substitute(alias.__value__, variables))
        return node

    def _error(self, arguments: tuple[Any, ...]) -> Node:
        """Return the node of what an Err holds, exceptions aside: these are failure records whatever the hint."""
        hint = arguments[0] if arguments else Any
        members = typing.get_args(hint) if is_union(hint) else (hint,)
        others = [m for m in members if not (isinstance(m, type) and issubclass(m, BaseException))]
        return self.compile(typing.Union[tuple(others)]) if others else Anything(Any)  # noqa: UP007

    def _array(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> Node:
        if origin is tuple and arguments[1:] != (...,) and (arguments or "[" in str(hint)):
            return Tuple(hint, [self.compile(argument) for argument in arguments])
        make = _ABSTRACT_ARRAYS.get(origin, origin)
        return Array(hint, make, self.compile(arguments[0] if arguments else Any))

    def _mapping(self, hint: Any, arguments: tuple[Any, ...]) -> Node:
        key, value = arguments or (Any, Any)
        key_node = self.compile(key)
        if not key_node.is_text_like():
            raise UnsupportedError(
                f"keys of type `{hint_name(key)}` cannot be stored: use text, numbers, enums, dates or UUIDs as keys, "
                "or a list of pairs"
            )
        return Mapping(hint, key_node, self.compile(value))

    def _class(self, hint: Any, cls: Any, arguments: tuple[Any, ...]) -> Node:
        if cls in (str, int, float, bool, types.NoneType, msgspec.Raw, *LEAVES):
            return Scalar(hint, cls)
        if issubclass(cls, enum.Enum):
            return Scalar(hint, cls) if msgspec_reads(cls) else OddEnum(hint)
        if is_pydantic(cls) or issubclass(cls, BaseException):
            return Hooked(hint, cls)
        names = field_names(cls)
        if names is not None:
            return self._object(hint, cls, arguments, names)
        if scalar_base(cls) is not None:
            return Hooked(hint, cls)
        raise UnsupportedError(not_storable(type_name(cls)))

    def _object(self, hint: Any, cls: Any, arguments: tuple[Any, ...], names: list[str]) -> Node:
        node = self._known[hint] = Object(hint, cls)
        hints, node.is_open = class_hints(cls, self._scope)
        variables = type_variables(cls, arguments)
        node.required = required_keys(cls, hints)
        node.fields = {name: self._field(cls, name, hints[name], variables) for name in names}
        return node

    def _field(self, cls: Any, name: str, hint: Any, variables: dict[Any, Any]) -> Node:
        try:
            return self.compile(substitute(hint, variables))
        except UnsupportedError as error:
            raise UnsupportedError(f"field `{name}` of `{cls.__name__}`: {error}") from None
