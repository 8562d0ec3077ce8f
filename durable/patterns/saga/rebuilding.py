"""How another process makes the same saga object: by its constructor's arguments, noted when it is made, stored as its run's input.

Not every object can be made again: then its run is *local*. Knows nothing of steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import msgspec

from durable import DurableError, make_workflow

_NOTES: Final = "__durable_notes_arguments__"


class Stored(NamedTuple):
    """The constructor's arguments by name, as plain data; None: the object cannot be made of them again, and why."""

    arguments: dict[str, Any] | None
    why_not: str = ""


class Making:
    """How an object was made."""

    def __init__(self) -> None:
        self.given: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.depth = 0  # of constructors that are running
        self.is_made = False
        self.is_changed = False  # since it was made, by others than its own actions

    def stored(self, cls: Any) -> Stored:
        """Return what is stored of an object of this class."""
        if self.is_changed:
            return Stored(None, "it was changed after it was made")
        if "<locals>" in cls.__qualname__:
            return Stored(None, "its class is defined inside of a function")
        if not hasattr(cls.__init__, _NOTES):  # as after a dataclass's decorator
            return Stored(None, "its constructor was put there after its class was defined")
        try:
            codec = constructor_of(cls)
            data = codec.encode(*self.given)
            codec.check(data)
        except DurableError as error:
            return Stored(None, f"its arguments cannot be stored ({error})")
        return Stored(msgspec.json.decode(data))


def recording(init: Callable[..., None], making_of: Callable[[Any], Making]) -> Callable[..., None]:
    """Return a constructor that does what `init` does, and notes what the outermost one was given."""

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        making = making_of(self)
        if making.depth == 0:
            making.given = args, kwargs
        making.depth += 1
        try:
            init(self, *args, **kwargs)
        finally:
            making.depth -= 1
        making.is_made = making.depth == 0

    setattr(__init__, _NOTES, True)
    return __init__


def rebuilt(cls: type, arguments: dict[str, Any]) -> Any:
    """Return an object made of stored arguments."""
    args, kwargs = constructor_of(cls).decode(msgspec.json.encode(arguments))
    return cls(*args, **kwargs)


def constructor_of(cls: Any) -> Any:
    """Return how calls of a class are stored."""
    found = cls.__dict__.get("_signature")
    if found is None:

        async def nothing() -> None: ...

        made = make_workflow(nothing, name=cls.__name__, kind="saga", origin=cls.__qualname__, signature=cls)
        found = cls._signature = made.definition.arguments
    return found
