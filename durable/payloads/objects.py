"""The node of classes with fields, and the ways their instances are taken apart and made."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import msgspec

from durable.payloads.misfits import MisfitError, error_name, expected
from durable.payloads.nodes import Node
from durable.payloads.plain import lower_anything, object_items, struct_tag


class Object(Node):
    """A dataclass, Struct, TypedDict, NamedTuple or attrs class. `is_open`: msgspec can resolve its hints."""

    def __init__(self, hint: Any, cls: Any) -> None:
        super().__init__(hint)
        self.cls = cls
        self.is_open = True
        self.fields: dict[str, Node] = {}
        self.required: frozenset[str] = frozenset()  # of a TypedDict
        self.is_struct = issubclass(cls, msgspec.Struct)
        self.is_array = issubclass(cls, tuple) or (self.is_struct and cls.__struct_config__.array_like)
        self.is_dict = typing.is_typeddict(cls)
        self.sparse_fields: list[tuple[str, Node]] = []
        # Of a dataclass, msgspec leaves fields at their default unset: the class attribute shows through. It would then
        # not write them either, and tomorrow's default would change what was stored.
        self.sparse = dataclasses.is_dataclass(cls) and any(
            field.default is not dataclasses.MISSING for field in dataclasses.fields(cls)
        )

    def settle(self) -> None:
        super().settle()
        self.sparse_fields = [(name, node) for name, node in self.fields.items() if node.completes]

    def complete(self, value: Any) -> None:
        if isinstance(value, dict):  # a TypedDict, or JSON in the place of an object
            for name, node in self.sparse_fields:
                node.complete(value.get(name))
            return
        if self.is_dict or not isinstance(value, self.cls):
            return
        if self.sparse:
            attributes = getattr(value, "__dict__", self.fields)
            if len(attributes) < len(self.fields):
                for name in self.fields.keys() - attributes.keys():
                    object.__setattr__(value, name, getattr(value, name))
        for name, node in self.sparse_fields:
            node.complete(getattr(value, name, None))

    @property
    def structural(self) -> bool:  # type: ignore[override]
        return not self.is_open

    def parts(self) -> list[Node]:
        return list(self.fields.values())

    def fits(self, value: object) -> bool:
        if not self.is_dict:
            return isinstance(value, self.cls) and all(
                node.fits(getattr(value, name, None))
                for name, node in self.fields.items()
                if self.hint is not self.cls
            )
        return (
            isinstance(value, dict)
            and value.keys() <= self.fields.keys()
            and self.required <= value.keys()
            and all(self.fields[name].fits(item) for name, item in value.items())
        )

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        items = self._items(value)
        if items is None:
            return lower_anything(value, path)
        lowered = {
            name: self.fields[name].lowered(item, f"{path}.{name}", deep=deep)
            if name in self.fields
            else lower_anything(item, f"{path}.{name}")
            for name, item in items.items()
            if item is not msgspec.UNSET
        }
        if self.is_struct:
            return self._as_struct(lowered)
        return list(lowered.values()) if self.is_array else lowered

    def _items(self, value: Any) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        if not isinstance(value, self.cls):
            return None
        if self.is_struct:
            return {name: getattr(value, name) for name in type(value).__struct_fields__}
        if self.is_array:
            return dict(zip(self.fields, value, strict=False))
        return object_items(value)

    def _as_struct(self, lowered: dict[str, Any]) -> Any:
        tag = struct_tag(self.cls)
        if self.is_array:
            return [*tag.values(), *lowered.values()]
        stored = dict(zip(self.fields, self._stored_names(), strict=True))
        return tag | {stored.get(name, name): item for name, item in lowered.items()}

    def lift(self, stored: Any, path: str) -> Any:
        if self.is_array and isinstance(stored, list):
            tags = len(struct_tag(self.cls)) if self.is_struct else 0
            stored = dict(zip(self._stored_names(), stored[tags:], strict=False))
        if not isinstance(stored, dict):
            raise expected("array" if self.is_array else "object", stored, path)
        values = {
            name: self.fields[name].lifted(stored[key], f"{path}.{key}")
            for name, key in zip(self.fields, self._stored_names(), strict=True)
            if key in stored
        }
        return self._make(values, path)

    def _stored_names(self) -> list[str]:
        if self.is_struct:
            return list(self.cls.__struct_encode_fields__)
        return list(self.fields)

    def _make(self, values: dict[str, Any], path: str) -> Any:
        if self.is_dict:
            missing = sorted(self.required - values.keys())
            if missing:
                raise _missing(missing[0], path)
            return values
        try:
            if dataclasses.is_dataclass(self.cls):
                return _make_dataclass(self.cls, values)
            return self.cls(**values)
        except Exception as error:
            missing = [name for name in self.fields if name not in values]
            if missing:
                raise _missing(missing[0], path) from None
            raise MisfitError(f"its class raised {error_name(error)}", path) from None


def _missing(name: str, path: str) -> MisfitError:
    return MisfitError(f"object missing required field `{name}`", path)


def _make_dataclass(cls: Any, values: dict[str, Any]) -> Any:
    """Make an instance as msgspec does: past `__init__`, which may be the author's own; with `__post_init__`."""
    made = cls.__new__(cls)
    for field in dataclasses.fields(cls):
        if field.name in values:
            value = values[field.name]
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        elif field.init:
            raise TypeError(f"missing {field.name}")
        else:
            continue  # set by __post_init__
        object.__setattr__(made, field.name, value)
    if hasattr(made, "__post_init__"):
        made.__post_init__()
    return made


def field_names(cls: Any) -> list[str] | None:
    """Return the names of a class's fields; None if it is no class with fields."""
    if issubclass(cls, msgspec.Struct):
        return list(cls.__struct_fields__)
    if typing.is_typeddict(cls):
        return list(cls.__annotations__)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if hasattr(cls, "__attrs_attrs__"):
        return [field.name for field in cls.__attrs_attrs__]
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return list(cls._fields)
    return None
