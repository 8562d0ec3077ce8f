"""`ValueType`: how values of one type hint are stored."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

from durable.errors import DefinitionError, PayloadError, UndecodableError
from durable.payloads.codec import sealed_fault
from durable.payloads.compiling import compile_hint
from durable.payloads.hints import UnresolvedError, awaited_hint, closure, function_hints, name_of, resolved
from durable.payloads.nodes import Anything, Node
from durable.payloads.plain import encode
from durable.payloads.reading import reading_fault
from durable.payloads.refusing import NULL, SUSPICIOUS_BYTES, encode_or_refuse, inspect_written

# What reading gives back as it was written, whatever the value. Not numbers with a point: `1` is read as 1.0 if the hint says so.
_PLAIN: Final[frozenset[type]] = frozenset({int, str, bool, type(None)})
_INT_DIGITS_MAX: Final = 18  # what every reader of JSON takes for the same integer


class ValueType:
    """How values of one type hint are stored: JSON by msgspec."""

    __slots__ = ("_decode", "_hint", "_lower", "_node", "_plain", "_reads_anything")

    def __init__(self, hint: Callable[[], Node]) -> None:
        self._hint = hint
        self._node: Node | None = None
        # Both find the node when first called, then make way for its own. None: values are written as they are.
        self._lower: Callable[[Any], Any] | None = self._lower_first
        self._decode: Callable[[Any], Any] = self._decode_first
        self._plain: frozenset[type] = frozenset()  # exact types of which every value is read as it was
        self._reads_anything = False

    @classmethod
    def of(cls, hint: Any) -> ValueType:
        """Return the type of a hint; raise `DefinitionError` if values of it cannot be stored.

        No hint (`inspect.Signature.empty`) means `Any`. Names of classes that are defined later are looked up at the
        first use.
        """
        hint = Any if hint is inspect.Signature.empty else hint
        value_type = cls(functools.partial(compile_hint, hint, what="the type hint"))
        try:
            value_type._adopt(value_type._hint())
        except UnresolvedError:
            pass  # perhaps defined later in its module
        return value_type

    @classmethod
    def of_return(cls, fn: Callable[..., Any]) -> ValueType:
        """Return the type of what `fn` returns; where it returns an awaitable, of what that comes to.

        The hint is resolved at the first use.
        """

        def compile_return() -> Node:
            hint = function_hints(fn).get("return", Any)
            hint = hint if inspect.iscoroutinefunction(fn) else awaited_hint(hint)
            return compile_hint(hint, what=f"{name_of(fn)}(): the return hint", scope=closure(fn))

        return cls(compile_return)

    @classmethod
    def of_parameter(cls, fn: Callable[..., Any], name: str) -> ValueType:
        """Return the type of what `fn` takes for a parameter. The hint is resolved at the first use."""

        def compile_parameter() -> Node:
            hint = function_hints(fn).get(name, Any)
            return compile_hint(hint, what=f"{name_of(fn)}(): parameter `{name}`", scope=closure(fn))

        return cls(compile_parameter)

    def encode(self, value: object) -> bytes:
        """Return canonical JSON; raise `PayloadError` (with `.path`) for what cannot be stored."""
        try:
            data = encode(value if self._lower is None else self._lower(value))
        except Exception as refusal:
            return encode_or_refuse(functools.partial(self._lower_deep, value), refusal)
        if len(data) > SUSPICIOUS_BYTES or (data.find(NULL) >= 0 and value is not None):
            inspect_written(data, value, functools.partial(self._lower_deep, value))
        return data

    def stored(self, value: object) -> tuple[bytes, Any]:
        """Return what `encode` returns, and the value that `decode` will make of it; raise as `encode`."""
        data = self.encode(value)
        if value.__class__ in self._plain and (value.__class__ is str or len(data) <= _INT_DIGITS_MAX):
            return data, value
        return data, self.decode(data)

    def encode_result(self, value: object) -> bytes:
        """Return what `encode` returns; raise `PayloadError` also for what `decode` could not read as the hint says.

        For the end of a run, once: whoever asks for its result must not be the first to find out.
        """
        data = self.encode(value)
        if value.__class__ not in self._plain and not self._reads_anything:
            try:
                self._decode(data)
            except DefinitionError:
                raise
            except Exception as error:
                reason, path = reading_fault(error)
                raise PayloadError(
                    f"the result is not what the return hint says: {reason} at `${path}`", path=f"${path}"
                ) from None
        return data

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value; raise `UndecodableError` when the bytes do not fit the hint."""
        try:
            return self._decode(data)
        except DefinitionError:
            raise
        except Exception as error:
            if (fault := sealed_fault(data)) is not None:
                raise UndecodableError(f"stored value: {fault}") from None
            reason, path = reading_fault(error)
            raise UndecodableError(f"stored value: {reason} at `${path}`") from None

    def _resolve(self) -> Node:
        return self._adopt(resolved(self._hint)) if self._node is None else self._node

    def _adopt(self, node: Node) -> Node:
        self._decode = node.reader()
        self._lower = node.writer()
        self._plain = frozenset(cls for cls in _PLAIN if node.hint in (Any, cls))
        self._reads_anything = isinstance(node, Anything)
        self._node = node
        return node

    def _lower_first(self, value: object) -> Any:
        return self._resolve().lowered(value, deep=False)

    def _lower_deep(self, value: object) -> Any:
        return self._resolve().lowered(value, deep=True)

    def _decode_first(self, data: bytes | memoryview) -> Any:
        self._resolve()
        return self._decode(data)
