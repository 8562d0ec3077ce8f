"""What does not fit, why and where: the refusals of this package, and the words they use.

Their text names types and places, never a value's content. Knows nothing of hints or JSON.
"""

from __future__ import annotations


class MisfitError(Exception):
    """A value does not fit; `path` is its place without the leading `$`, e.g. `.order.items[2]`."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


class UnsupportedError(Exception):
    """A hint whose values cannot be stored."""


def expected(what: str, stored: object, path: str) -> MisfitError:
    json_name = {dict: "object", list: "array", type(None): "null"}.get(type(stored), type(stored).__name__)
    return MisfitError(f"expected `{what}`, got `{json_name}`", path)


def not_storable(name: str) -> str:
    usable = "use a dataclass, a msgspec Struct, a pydantic model or plain JSON values"
    return f"a value of type `{name}` cannot be stored: {usable}"


def step(key: object) -> str:
    """Return the step of a path that leads to a key."""
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


def type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def error_name(error: Exception) -> str:
    """Name an error without quoting it: its text may hold what the value holds."""
    return type(error).__name__
