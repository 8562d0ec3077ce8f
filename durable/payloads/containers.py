"""The nodes of arrays, tuples and mappings: values that hold others by place or by key."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from durable.payloads.hints import hint_name
from durable.payloads.misfits import MisfitError, expected, step, type_name
from durable.payloads.nodes import Anything, Node, Scalar
from durable.payloads.plain import ARRAYS, decode_any, lower_anything, plain, sorted_items, text_key
from durable.payloads.reading import build, msgspec_reads, reading_fault


class Array(Node):
    def __init__(self, hint: Any, make: Callable[[Iterator[Any]], Any], item: Node) -> None:
        super().__init__(hint)
        self.make = make
        self.item = item
        # Sets of what has no order (or only a partial one) are sorted here, by their bytes.
        self.rewritten = make in (set, frozenset) and not isinstance(item, (Scalar, Anything))

    def parts(self) -> list[Node]:
        return [self.item]

    def fits(self, value: Any) -> bool:
        kinds = {set: (set, frozenset), frozenset: (set, frozenset)}.get(self.make, self.make)  # type: ignore[call-overload]
        return isinstance(value, kinds) and all(map(self.item.fits, value))

    def complete(self, value: Any) -> None:
        if isinstance(value, ARRAYS):
            for item in value:
                self.item.complete(item)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        if not isinstance(value, ARRAYS):
            return lower_anything(value, path)
        items = [self.item.lowered(item, f"{path}[{i}]", deep=deep) for i, item in enumerate(value)]
        return sorted_items(items) if isinstance(value, (set, frozenset)) else items

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, list):
            raise expected("array", stored, path)
        return self.make(self.item.lifted(item, f"{path}[{i}]") for i, item in enumerate(stored))


class Tuple(Node):
    def __init__(self, hint: Any, items: list[Node]) -> None:
        super().__init__(hint)
        self.items = items

    def parts(self) -> list[Node]:
        return self.items

    def fits(self, value: object) -> bool:
        if not isinstance(value, tuple) or len(value) != len(self.items):
            return False
        return all(node.fits(item) for node, item in zip(self.items, value, strict=True))

    def complete(self, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            for node, item in zip(self.items, value, strict=False):
                node.complete(item)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        if not isinstance(value, (list, tuple)) or len(value) != len(self.items):
            return lower_anything(value, path)
        pairs = zip(self.items, value, strict=True)
        return [node.lowered(item, f"{path}[{i}]", deep=deep) for i, (node, item) in enumerate(pairs)]

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, list) or len(stored) != len(self.items):
            raise expected(f"array of length {len(self.items)}", stored, path)
        pairs = zip(self.items, stored, strict=True)
        return tuple(node.lifted(item, f"{path}[{i}]") for i, (node, item) in enumerate(pairs))


def _dict_of(key: Any, value: Any) -> Any:
    return types.GenericAlias(dict, (key, value))


class Mapping(Node):
    def __init__(self, hint: Any, key: Node, value: Node) -> None:
        super().__init__(hint)
        self.key = key
        self.value = value
        self.has_plain_keys = isinstance(key, Anything) or key.hint is str
        self.rewritten = not self.has_plain_keys  # msgspec sorts text keys only
        self.structural = not self.has_plain_keys and not msgspec_reads(_dict_of(key.hint, Any))

    def parts(self) -> list[Node]:
        return [self.key, self.value]

    def fits(self, value: object) -> bool:
        if not isinstance(value, dict):
            return False
        return all(self.key.fits(key) and self.value.fits(item) for key, item in value.items())

    def complete(self, value: Any) -> None:
        if isinstance(value, dict):
            for item in value.values():
                self.value.complete(item)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        if not isinstance(value, dict):
            return lower_anything(value, path)
        lowered: dict[str, Any] = {}
        for key, item in value.items():
            text = self._text(key, path)
            if text in lowered:
                raise MisfitError(f"two dict keys are both stored as {text!r}", path)
            lowered[text] = self.value.lowered(item, f"{path}{step(key)}", deep=deep)
        return lowered

    def _text(self, key: Any, path: str) -> str:
        """Return the key as text; refuse it unless that text gives it back."""
        if self.has_plain_keys:
            return text_key(key, path)
        if type(key) is int and self.key.hint is int:
            return str(key)
        try:
            data = msgspec.json.encode({key: None}, enc_hook=plain)
            ((found, _),) = msgspec.json.decode(
                data, type=_dict_of(self.key.hint, None), dec_hook=build
            ).items()
        except Exception:
            found = MisfitError
        if found != key or type(found) is not type(key):
            hint, cls = hint_name(self.key.hint), type_name(type(key))
            raise MisfitError(f"a dict key of type `{cls}` would not come back as `{hint}`", path)
        return str(next(iter(decode_any(data))))

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, dict):
            raise expected("object", stored, path)
        return {
            self._key(key, path): self.value.lifted(item, path + step(key)) for key, item in stored.items()
        }

    def _key(self, text: str, path: str) -> Any:
        if self.has_plain_keys:
            return text
        try:
            keyed = msgspec.convert(
                {text: None}, _dict_of(self.key.hint, None), str_keys=True, dec_hook=build
            )
        except msgspec.ValidationError as error:
            raise MisfitError(reading_fault(error)[0], path) from None
        return next(iter(keyed))
