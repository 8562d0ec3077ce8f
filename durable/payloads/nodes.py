"""The parts of a hint: what every node does, and those that hold no array or object.

A node turns a value into what msgspec can write (*lower*) and decoded JSON back into a value (*lift*). Nodes are made by
`compiling`.
"""

from __future__ import annotations

import datetime
import functools
import types
from collections.abc import Callable
from typing import Any

import msgspec

from durable import failures
from durable.payloads.hints import hint_name
from durable.payloads.misfits import MisfitError
from durable.payloads.plain import decode_any, encode, lower_anything
from durable.payloads.reading import build, msgspec_reads, reading_fault
from durable.result import Err, Ok


class Node:
    """One part of a hint; leaves, mostly, are lowered without regard to it.

    `native`: msgspec reads it by itself. `verbatim`: msgspec writes it by itself. `completes`: it does so once the
    objects within have all their attributes. All are known after `settle`.
    """

    structural = False  # never native
    rewritten = False  # never verbatim
    sparse = False  # msgspec leaves attributes unset

    def __init__(self, hint: Any) -> None:
        self.hint = hint
        self.native = False
        self.verbatim = False
        self.completes = False
        self.is_settled = False

    def parts(self) -> list[Node]:
        return []

    def settle(self) -> None:
        """Decide for this node and those below which of them msgspec can be left alone with."""
        if self.is_settled:
            return
        self.is_settled = True
        nodes = reachable(self)
        self.native = not any(node.structural for node in nodes) and msgspec_reads(self.hint)
        is_written = self.native and not any(node.rewritten for node in nodes)
        self.completes = is_written and any(node.sparse for node in nodes)
        self.verbatim = is_written and not self.completes
        for part in self.parts():
            part.settle()

    def writer(self) -> Callable[[Any], Any] | None:
        """Return what makes a value ready for msgspec; None where it is ready as it is."""
        if self.verbatim:
            return None
        return self.completed if self.completes else functools.partial(self.lower, path="", deep=False)

    def reader(self) -> Callable[[Any], Any]:
        """Return what decodes stored bytes."""
        if self.native:
            return msgspec.json.Decoder(self.hint, dec_hook=build).decode
        return lambda data: self.lift(decode_any(data), "")

    def is_text_like(self) -> bool:
        """Whether values of it can be the keys of a JSON object."""
        return False

    def name(self) -> str:
        """Return its name as a member of a union."""
        return hint_name(self.hint)

    def fits(self, value: object) -> bool:
        """Whether a value is of this type: decides between the members of a union."""
        raise NotImplementedError

    def lowered(self, value: Any, path: str = "", *, deep: bool) -> Any:
        """Return what msgspec can write for a value; `deep` looks at all of it, for the path of what is wrong."""
        if deep:
            return self.lower(value, path, deep)
        if self.verbatim:
            return value
        return self.completed(value) if self.completes else self.lower(value, path, deep)

    def completed(self, value: Any) -> Any:
        self.complete(value)
        return value

    def complete(self, value: Any) -> None:
        """Give the objects within a value the attributes that msgspec left to the class."""

    def lifted(self, stored: Any, path: str) -> Any:
        """Return the value of decoded JSON."""
        return Node.lift(self, stored, path) if self.native else self.lift(stored, path)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        return lower_anything(value, path)

    def lift(self, stored: Any, path: str) -> Any:
        try:
            return msgspec.convert(stored, self.hint, str_keys=True, dec_hook=build)
        except msgspec.ValidationError as error:
            reason, inner = reading_fault(error)
            raise MisfitError(reason, path + inner) from None


def reachable(node: Node) -> list[Node]:
    seen: dict[int, Node] = {}
    queue = [node]
    while queue:
        current = queue.pop()
        if id(current) not in seen:
            seen[id(current)] = current
            queue.extend(current.parts())
    return list(seen.values())


class Anything(Node):
    def fits(self, value: object) -> bool:
        return True

    def is_text_like(self) -> bool:
        return True


class Scalar(Node):
    """Text, numbers, dates, plain enums, Literal: `kind` is the class, or the tuple of a Literal's values."""

    def __init__(self, hint: Any, kind: Any) -> None:
        super().__init__(hint)
        self.kind = kind

    def is_text_like(self) -> bool:
        return self.kind not in (bool, types.NoneType, msgspec.Raw)

    def fits(self, value: object) -> bool:
        if isinstance(self.kind, tuple):
            return any(type(value) is type(known) and value == known for known in self.kind)
        if isinstance(value, bool):
            return self.kind is bool
        if self.kind is float:
            return isinstance(value, (int, float))
        if self.kind is datetime.date:
            return isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)
        return isinstance(value, self.kind)


class OddEnum(Node):
    """An enum whose values are neither all text nor all integers: found again by what its values look like."""

    structural = True

    def fits(self, value: object) -> bool:
        return isinstance(value, self.hint)

    def lift(self, stored: Any, path: str) -> Any:
        for member in self.hint:
            if decode_any(encode(lower_anything(member.value))) == stored:
                return member
        raise MisfitError("not one of the allowed values", path)


class Hooked(Node):
    """A class msgspec reaches through hooks: pydantic models, exceptions, subclasses of str, int and float."""

    def __init__(self, hint: Any, cls: type) -> None:
        super().__init__(hint)
        self.cls = cls

    def is_text_like(self) -> bool:
        return issubclass(self.cls, str)

    def fits(self, value: object) -> bool:
        return isinstance(value, self.cls)


class Annotated(Node):
    """A hint around another, whose values are the other's."""

    def __init__(self, hint: Any, target: Node) -> None:
        super().__init__(hint)
        self.target = target

    def parts(self) -> list[Node]:
        return [self.target]

    def is_text_like(self) -> bool:
        return self.target.is_text_like()

    def name(self) -> str:
        return self.target.name()

    def fits(self, value: object) -> bool:
        return self.target.fits(value)

    def complete(self, value: Any) -> None:
        if self.target.completes:
            self.target.complete(value)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        return self.target.lowered(value, path, deep=deep)

    def lift(self, stored: Any, path: str) -> Any:
        return self.target.lifted(stored, path)


class Alias(Annotated):
    """A `type X = ...` statement, which may refer to itself."""

    def __init__(self, hint: Any) -> None:
        super().__init__(hint, Anything(Any))


def unwrapped(node: Node) -> Node:
    while isinstance(node, Annotated):
        node = node.target
    return node


class ResultHalf(Node):
    """`Ok[T]` or `Err[E]`: an object with the one key `ok`, `err`, or `failure` for an exception in an Err."""

    structural = True

    def __init__(self, hint: Any, half: Any, item: Node) -> None:
        super().__init__(hint)
        self.half = half
        self.item = item
        self.keys = ("ok",) if half is Ok else ("err", "failure")

    def parts(self) -> list[Node]:
        return [self.item]

    def fits(self, value: object) -> bool:
        return isinstance(value, self.half)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        if not isinstance(value, self.half):
            raise MisfitError(f"expected `{self.half.__name__}`, got `{type(value).__name__}`", path)
        if isinstance(value, Err) and isinstance(value.error, BaseException):
            return {"failure": failures.record(value.error)}
        held = value.error if isinstance(value, Err) else value.value
        return {self.keys[0]: self.item.lowered(held, f"{path}.{self.keys[0]}", deep=deep)}

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, dict) or len(stored) != 1 or next(iter(stored)) not in self.keys:
            raise MisfitError(f"expected an object with the key {' or '.join(map(repr, self.keys))}", path)
        ((key, held),) = stored.items()
        if key == "failure":
            return Err(build(Exception, held))
        return self.half(self.item.lifted(held, f"{path}.{key}"))
