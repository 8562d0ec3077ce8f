"""The node of unions: which member a value belongs to, and how its JSON tells."""

from __future__ import annotations

import enum
import types
import typing
from typing import Any, Final

import msgspec

from durable.payloads.containers import Array, Mapping, Tuple
from durable.payloads.hints import hint_name
from durable.payloads.misfits import MisfitError, UnsupportedError, expected
from durable.payloads.nodes import Anything, Hooked, Node, ResultHalf, Scalar, reachable, unwrapped
from durable.payloads.objects import Object
from durable.payloads.plain import lower_anything, plain, scalar_base
from durable.payloads.reading import msgspec_reads
from durable.scripts import public_name

TAG: Final = "$type"


class Union(Node):
    """A union. Where msgspec cannot tell its members apart in JSON, they carry their names.

    None, booleans, numbers and text are stored as they are; objects get a key `$type`, all else is wrapped:
    `{"$type": "date", "value": "2024-02-29"}`. A sole array and a sole text-like member need no wrapping.
    """

    def __init__(self, hint: Any, members: list[Node]) -> None:
        super().__init__(hint)
        self.members = members
        self.halves = [member for member in members if isinstance(member, ResultHalf)]
        self.structural = any(map(_is_structural, members)) or not msgspec_reads(hint)
        self.bare: list[Node] = []
        self.tags: dict[str, Node] = {}
        if self.structural:
            self.bare = self._bare_members()
            self._name_members()

    def parts(self) -> list[Node]:
        return self.members

    def is_text_like(self) -> bool:
        return all(member.is_text_like() for member in self.members) and not self.structural

    def _name_members(self) -> None:
        named = [m for m in self.members if m not in self.bare and m not in self.halves]
        short = [member.name() for member in named]
        for member, name in zip(named, short, strict=True):
            if short.count(name) > 1:
                module = public_name(getattr(member.hint, "__module__", ""))
                name = f"{module}.{getattr(member.hint, '__qualname__', name)}"
            if name in self.tags:
                raise UnsupportedError(
                    f"two members of the union `{self.hint}` are both called `{name}`: rename one"
                )
            self.tags[name] = member

    def _bare_members(self) -> list[Node]:
        """Return the members that JSON tells apart without a name."""
        kinds = [_json_kind(member) for member in self.members]
        nameless = ("null", "bool", "number", "any")
        alone = {kind for kind in ("string", "array", "object") if kinds.count(kind) == 1}
        if "other" in kinds or not all(kind in nameless or kind in alone for kind in kinds):
            alone.discard("object")  # what carries a name is an object too
        return [
            member
            for member, kind in zip(self.members, kinds, strict=True)
            if kind in nameless or kind in alone or unwrapped(member).hint is str
        ]

    def fits(self, value: object) -> bool:
        return any(member.fits(value) for member in self.members)

    def complete(self, value: Any) -> None:
        for member in self.members:
            if member.completes and value is not None:
                member.complete(value)  # which looks at values of its own kind only

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        member = self._member_of(value)
        if member is None:
            if not self.structural:
                return lower_anything(value, path)
            raise MisfitError(f"expected `{hint_name(self.hint)}`, got `{type(value).__name__}`", path)
        lowered = member.lowered(value, path, deep=deep)
        tag = next((name for name, tagged in self.tags.items() if tagged is member), None)
        if tag is None:
            return lowered
        stored = lowered if isinstance(lowered, dict) else _to_builtins(lowered, path)
        return {TAG: tag, **stored} if _is_inline(member) else {TAG: tag, "value": stored}

    def _member_of(self, value: object) -> Node | None:
        fitting = [member for member in self.members if member.fits(value)]
        exact = (
            m for m in fitting if type(value) is (typing.get_origin(unwrapped(m).hint) or unwrapped(m).hint)
        )
        return next(exact, fitting[0] if fitting else None)

    def lift(self, stored: Any, path: str) -> Any:
        if isinstance(stored, dict) and (self.tags or self.halves):
            return self._lift_object(stored, path)
        return self._lift_bare(stored, path)

    def _lift_object(self, stored: dict[str, Any], path: str) -> Any:
        if TAG not in stored:
            for half in self.halves:
                if stored.keys() & set(half.keys):
                    return half.lift(stored, path)
        member = self.tags.get(stored[TAG]) if isinstance(stored.get(TAG), str) else None
        if member is None:
            keys = [repr(key) for half in self.halves for key in half.keys]
            known = [f"whose `{TAG}` is {' or '.join(map(repr, self.tags))}"] if self.tags else []
            known += [f"with the key {' or '.join(keys)}"] if keys else []
            raise MisfitError(f"expected an object {', or '.join(known)}", path)
        if _is_inline(member):
            return member.lifted({key: item for key, item in stored.items() if key != TAG}, path)
        return member.lifted(stored.get("value"), f"{path}.value")

    def _lift_bare(self, stored: Any, path: str) -> Any:
        misfit = None
        for member in self.bare:
            try:
                value = member.lifted(stored, path)
            except MisfitError as error:
                misfit = error if misfit is None or len(error.path) > len(misfit.path) else misfit
                continue
            if type(value) is type(stored) or not isinstance(stored, (int, float)):
                return value
            misfit = misfit or MisfitError("", path)
        for member in self.bare:  # a float that is stored as an integer
            try:
                return member.lifted(stored, path)
            except MisfitError:
                continue
        if misfit is not None and misfit.path != path:
            raise misfit
        raise expected(hint_name(self.hint), stored, path)


def _is_structural(member: Node) -> bool:
    return any(node.structural for node in reachable(member))


def _is_inline(member: Node) -> bool:
    """Whether a union's tag goes into the member's own JSON object."""
    node = unwrapped(member)
    if isinstance(node, Object):
        return not node.is_array
    return isinstance(node, Hooked) and _json_kind(node) == "object"


def _json_kind(member: Node) -> str:
    node = unwrapped(member)
    if isinstance(node, Anything):
        return "any"
    if isinstance(node, Scalar):
        return _scalar_kind(node.kind)
    if isinstance(node, Hooked):
        if getattr(node.cls, "__pydantic_root_model__", False):
            return "other"
        base = scalar_base(node.cls)
        return "object" if base is None else "string" if base is str else "other"
    if isinstance(node, (Array, Tuple)) or (isinstance(node, Object) and node.is_array):
        return "array"
    return "object" if isinstance(node, (Object, Mapping)) else "other"


def _scalar_kind(kind: Any) -> str:
    if kind is types.NoneType:
        return "null"
    if kind is bool:
        return "bool"
    if kind in (int, float):
        return "number"
    if isinstance(kind, tuple):
        return "string" if all(isinstance(value, str) for value in kind) else "other"
    return "other" if issubclass(kind, enum.Enum) and issubclass(kind, int) else "string"


def _to_builtins(value: Any, path: str) -> Any:
    try:
        return msgspec.to_builtins(value, enc_hook=plain, order="deterministic")
    except Exception:
        return lower_anything(value, path)
