"""`Arguments`: how calls of one function are stored."""

from __future__ import annotations

import functools
import inspect
import operator
import typing
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from durable.errors import ArgumentsError, DefinitionError, UndecodableError
from durable.limits import is_too_deep
from durable.payloads.binding import Binding, Parameter
from durable.payloads.codec import sealed_fault
from durable.payloads.compiling import Compiler
from durable.payloads.hints import closure, function_hints, name_of, resolved
from durable.payloads.nodes import Node
from durable.payloads.plain import encode, lower_anything
from durable.payloads.reading import build, reading_fault
from durable.payloads.refusing import NULL, SUSPICIOUS_BYTES, encode_or_refuse, inspect_written


class Arguments:
    """How calls of one function are stored: a JSON object of its parameters by name.

    `*args` is stored under its name as a list, `**kwargs` under its name as an object. Parameters that were not passed
    are not stored: their defaults are today's. A stored parameter that the function no longer has is ignored.
    """

    __slots__ = (
        "_binding",
        "_decode",
        "_fn",
        "_in_order",
        "_is_whole",
        "_lifted",
        "_lowered",
        "_nodes",
        "_positional",
        "_row",
        "_simple",
        "_verbatim",
    )

    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn
        self._binding = Binding(fn, name_of(fn))
        self._positional = self._binding.positional
        # Every parameter positional: as many `args` as that fit without a further look.
        self._simple = len(self._positional) if len(self._positional) == len(self._binding.parameters) else -1
        self._is_whole = self._simple == len(
            self._binding.required
        )  # then decoded values are `args` as they are
        self._nodes: dict[str, Node] | None = None
        self._lowered: list[str] = []
        self._lifted: list[tuple[int, str, Node]] = []
        self._verbatim = False
        # If all are written as they are: a Struct of them, in the order in which an object's keys are written.
        self._row: Callable[..., msgspec.Struct] | None = None
        self._in_order: Callable[[tuple[Any, ...]], tuple[Any, ...]] = tuple
        self._decode: Callable[[Any], Any] = self._decode_first

    @classmethod
    def of(cls, fn: Callable[..., Any]) -> Arguments:
        """Return the arguments of a function (or of a class's `__init__`). Hints are resolved at the first use."""
        return cls(fn)

    @property
    def parameters(self) -> list[tuple[str, Any]]:
        """The parameters and the hints of their stored form: `*args: int` is `("args", list[int])`."""
        return [(name, node.hint) for name, node in self._resolve().items()]

    def encode(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """Return canonical JSON; raise `ArgumentsError` when they do not fit the signature, `PayloadError` when not storable."""
        if self._row is not None and not kwargs and len(args) == self._simple:
            try:
                data = encode(self._row(*self._in_order(args)))
                if data.find(NULL) < 0 and (len(data) <= SUSPICIOUS_BYTES or not is_too_deep(data)):
                    return data
            except Exception:
                pass  # the careful way says what is wrong
        return self._encode_carefully(self._bind(args, kwargs))

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        if not kwargs and len(args) == self._simple:
            return dict(zip(self._positional, args, strict=True))
        return self._binding.bind(args, kwargs)

    def _encode_carefully(self, bound: dict[str, Any]) -> bytes:
        try:
            data = encode(bound if self._verbatim else self._lower(bound, deep=False))
        except Exception as refusal:
            return encode_or_refuse(functools.partial(self._lower, bound, deep=True), refusal)
        if len(data) > SUSPICIOUS_BYTES or data.find(NULL) >= 0:
            inspect_written(data, bound, functools.partial(self._lower, bound, deep=True))
        return data

    def decode(self, data: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) to call the function with; raise `UndecodableError`."""
        try:
            values = self._read(data) if self._lifted else msgspec.structs.astuple(self._decode(data))
            return (values, {}) if self._is_whole else self._binding.unbind(values)
        except DefinitionError:
            raise
        except Exception as error:
            name = self._binding.name
            if (fault := sealed_fault(data)) is not None:
                raise UndecodableError(f"stored arguments of {name}(): {fault}") from None
            reason, path = reading_fault(error)
            raise UndecodableError(f"stored arguments of {name}(): {reason} at `${path}`") from None

    def check(self, data: bytes | memoryview) -> None:
        """Raise `ArgumentsError`, naming the parameter, when stored arguments do not fit the signature and its hints."""
        self._resolve()
        try:
            self._binding.check_names(msgspec.json.decode(data, type=dict[str, msgspec.Raw]))
        except ArgumentsError:
            raise
        except Exception as error:
            raise self._misfit(error) from None
        self.check_types(data)

    def check_types(self, data: bytes | memoryview) -> None:
        """Raise `ArgumentsError`, naming the parameter, when what `encode` returned does not fit the hints."""
        try:
            values = self._read(data)
            if not self._is_whole:
                self._binding.unbind(values)
        except ArgumentsError:
            raise
        except Exception as error:
            raise self._misfit(error) from None

    def _misfit(self, error: Exception) -> ArgumentsError:
        reason, path = reading_fault(error)
        where = f"`{path.removeprefix('.')}`: " if path else ""
        return ArgumentsError(f"{self._binding.name}(): {where}{reason.replace('`', '')}")

    def encode_json(self, positional: list[Any], named: dict[str, Any]) -> bytes:
        """Return the stored form of plain JSON values, e.g. from a command line; raise `ArgumentsError` if they do not fit."""
        bound = self._binding.bind(tuple(positional), named)
        raw = encode_or_refuse(lambda: lower_anything(bound))
        self.check(raw)
        return self.encode(*self.decode(raw))

    def _lower(self, bound: dict[str, Any], *, deep: bool) -> dict[str, Any]:
        nodes = self._resolve()
        lowered = dict(bound)
        for name in nodes if deep else self._lowered:
            if name in bound:
                lowered[name] = nodes[name].lowered(bound[name], f".{name}", deep=deep)
        return lowered

    def _read(self, data: bytes | memoryview) -> tuple[Any, ...]:
        values: tuple[Any, ...] = msgspec.structs.astuple(self._decode(data))
        if not self._lifted:
            return values
        lifted = list(values)
        for i, name, node in self._lifted:
            if lifted[i] is not msgspec.UNSET:
                lifted[i] = node.lifted(lifted[i], f".{name}")
        return tuple(lifted)

    def _decode_first(self, data: bytes | memoryview) -> Any:
        self._resolve()
        return self._decode(data)

    def _resolve(self) -> dict[str, Node]:
        if self._nodes is None:
            nodes = resolved(self._compile_all)
            self._lowered = [name for name, node in nodes.items() if not node.verbatim]
            self._lifted = [
                (i, name, node) for i, (name, node) in enumerate(nodes.items()) if not node.native
            ]
            self._verbatim = not self._lowered
            if self._verbatim and self._simple > 0:
                self._row, self._in_order = _row(self._positional)
            self._decode = self._decoder(nodes)
            self._nodes = nodes
        return self._nodes

    def _compile_all(self) -> dict[str, Node]:
        hints = function_hints(self._fn)
        compiler = Compiler(closure(self._fn))
        return {p.name: self._compile(compiler, p, hints.get(p.name, Any)) for p in self._binding.parameters}

    def _compile(self, compiler: Compiler, parameter: Parameter, hint: Any) -> Node:
        if typing.get_origin(hint) is typing.Unpack:
            (hint,) = typing.get_args(hint)
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            hint = list[hint]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            hint = dict[str, hint]
        return compiler.compile_root(hint, what=f"{self._binding.name}(): parameter `{parameter.name}`")

    def _decoder(self, nodes: dict[str, Node]) -> Callable[[Any], Any]:
        # Fields are called p0, p1 ... so that no parameter's name can clash with what a Struct defines.
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for i, parameter in enumerate(self._binding.parameters):
            node = nodes[parameter.name]
            hint = node.hint if node.native else Any
            if parameter.is_required:
                fields.append((f"p{i}", hint))
            else:
                fields.append((f"p{i}", hint | msgspec.UnsetType if hint is not Any else Any, msgspec.UNSET))
        names = {f"p{i}": name for i, name in enumerate(nodes)}
        struct = msgspec.defstruct("Arguments", fields, rename=names, kw_only=True, gc=False)
        return msgspec.json.Decoder(struct, dec_hook=build).decode


def _row(
    names: Sequence[str],
) -> tuple[Callable[..., msgspec.Struct], Callable[[tuple[Any, ...]], tuple[Any, ...]]]:
    """Return a Struct that is written as the object of these names, and what puts values in its order.

    Making and writing it costs half of what a dict does.
    """
    order = sorted(range(len(names)), key=names.__getitem__)
    fields = [(f"p{i}", Any) for i in order]
    struct = msgspec.defstruct("Arguments", fields, rename={f"p{i}": names[i] for i in order}, gc=False)
    if order == list(range(len(names))):
        return struct, tuple
    return struct, operator.itemgetter(*order)  # at least two: an order of one is in order
