"""Values <-> stored bytes, by type hint.

The stored form is canonical JSON: equal values of one type give equal bytes, so that an input can be compared with a
recorded one. What JSON cannot hold is refused when it is written, never discovered when it is read.

Two ways lead there. Where msgspec understands a hint by itself (nearly always) it does all the work. Where it does not
(a union of two plain dataclasses, `Result`, an enum of tuples), a tree of nodes, one per part of the hint, turns the
value into something it understands (*lower*) and back (*lift*). The same tree finds the place in a value that msgspec
refused.

What a hint says is what comes back: without one (or `Any`), plain JSON, so a tuple returns as a list and a dataclass
as a dict. Dicts are stored sorted by key. A time zone is stored as its offset. Unions that JSON alone cannot tell apart
carry the member's name, `{"$type": "Card", ...}`, looked up among the members of the hint only.

Knows nothing of workflows, runs, stores or codecs; imports nothing that data names.
"""

from __future__ import annotations

import collections.abc as abc
import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import math
import re
import types
import typing
import uuid
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

import msgspec

from durable import failures
from durable.errors import ArgumentsError, DefinitionError, PayloadError, UndecodableError
from durable.result import Err, Ok

T = TypeVar("T")

PAYLOAD_BYTES_MAX: Final = 64 * 1024 * 1024
TAG: Final = "$type"

_encode: Final = msgspec.json.Encoder(order="deterministic", enc_hook=lambda value: _plain(value)).encode
_pack: Final = msgspec.msgpack.Encoder(enc_hook=lambda value: _plain(value)).encode
_decode_any: Final = msgspec.json.Decoder().decode
# A double whose exponent is all ones: infinity or NaN. False alarms (text) only cost a walk.
_non_finite: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search

_LEAVES: Final = (
    bytes,
    bytearray,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
_NULL: Final = (
    b"null"  # sought with find(): `in` tries the needle as an integer first, which costs more than msgspec
)
_ARRAYS: Final = (list, tuple, set, frozenset)
_STORABLE: Final = "use a dataclass, a msgspec Struct, a pydantic model or plain JSON values"


class ValueType:
    """How values of one type hint are stored: JSON by msgspec."""

    __slots__ = ("_decode", "_hint", "_lower", "_node")

    def __init__(self, hint: Callable[[], _Node]) -> None:
        self._hint = hint
        self._node: _Node | None = None
        # Both find the node when first called, then make way for its own. None: values are written as they are.
        self._lower: Callable[[Any], Any] | None = self._lower_first
        self._decode: Callable[[Any], Any] = self._decode_first

    @classmethod
    def of(cls, hint: Any) -> ValueType:
        """Return the type of a hint; raise `DefinitionError` if values of it cannot be stored.

        No hint (`inspect.Signature.empty`) means `Any`. Names of classes that are defined later are looked up at the
        first use.
        """
        hint = Any if hint is inspect.Signature.empty else hint
        value_type = cls(functools.partial(_compile, hint, what="the type hint"))
        try:
            value_type._adopt(value_type._hint())
        except _UnresolvedError:
            pass  # perhaps defined later in its module
        return value_type

    @classmethod
    def of_return(cls, fn: Callable[..., Any]) -> ValueType:
        """Return the type of what `fn` returns. The hint is resolved at the first use."""

        def compile_return() -> _Node:
            hint = _function_hints(fn).get("return", Any)
            return _compile(hint, what=f"{_name_of(fn)}(): the return hint", scope=_closure(fn))

        return cls(compile_return)

    def encode(self, value: object) -> bytes:
        """Return canonical JSON; raise `PayloadError` (with `.path`) for what cannot be stored."""
        try:
            data = _encode(value if self._lower is None else self._lower(value))
        except Exception as refusal:
            return _encode_carefully(self._resolve(), value, refusal)
        if len(data) > PAYLOAD_BYTES_MAX or (data.find(_NULL) >= 0 and value is not None):
            _inspect(self._resolve(), value, data)
        return data

    def decode(self, data: bytes | memoryview) -> Any:
        """Return the value; raise `UndecodableError` when the bytes do not fit the hint."""
        try:
            return self._decode(data)
        except DefinitionError:
            raise
        except Exception as error:
            reason, path = _reading_fault(error)
            raise UndecodableError(f"stored value: {reason} at `${path}`") from None

    def _resolve(self) -> _Node:
        if self._node is None:
            return self._adopt(_resolved(self._hint))
        return self._node

    def _adopt(self, node: _Node) -> _Node:
        self._decode = node.decoder()
        self._lower = None if node.verbatim else functools.partial(node.lowered, deep=False)
        if node.completes:
            self._lower = node.completed
        self._node = node
        return node

    def _lower_first(self, value: object) -> Any:
        return self._resolve().lowered(value, deep=False)

    def _decode_first(self, data: bytes | memoryview) -> Any:
        self._resolve()
        return self._decode(data)


class _Parameter(typing.NamedTuple):
    name: str
    kind: inspect._ParameterKind
    is_required: bool


class Arguments:
    """How calls of one function are stored: a JSON object of its parameters by name.

    `*args` is stored under its name as a list, `**kwargs` under its name as an object. Parameters that were not passed
    are not stored: their defaults are today's. A stored parameter that the function no longer has is ignored.
    """

    __slots__ = (
        "_decode",
        "_fn",
        "_is_whole",
        "_keywords",
        "_lifted",
        "_lowered_names",
        "_name",
        "_nodes",
        "_parameters",
        "_positional",
        "_required",
        "_simple",
        "_var_keyword",
        "_var_positional",
        "_verbatim",
    )

    def __init__(self, fn: Callable[..., Any]) -> None:
        kinds = inspect.Parameter
        self._fn = fn
        self._name = _name_of(fn)
        self._parameters = [
            _Parameter(
                p.name, p.kind, p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
            )
            for p in inspect.signature(fn).parameters.values()
        ]
        self._positional = tuple(
            p.name for p in self._parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
        )
        self._keywords = frozenset(
            p.name for p in self._parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        )
        self._required = frozenset(p.name for p in self._parameters if p.is_required)
        self._var_positional = self._name_by_kind(kinds.VAR_POSITIONAL)
        self._var_keyword = self._name_by_kind(kinds.VAR_KEYWORD)
        # Every parameter positional: `args` as long as the signature fit without a further look.
        self._simple = len(self._positional) if len(self._positional) == len(self._parameters) else -1
        self._nodes: dict[str, _Node] | None = None
        self._lowered_names: tuple[str, ...] = ()
        self._lifted: list[tuple[int, str, _Node]] = []
        self._is_whole = self._simple == len(self._required)  # then decoded values are `args` as they are
        self._verbatim = False
        self._decode: Callable[[Any], Any] | None = None

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
        if not kwargs and len(args) == self._simple:
            bound = dict(zip(self._positional, args))  # noqa: B905 - as long as each other, and this is hot
        else:
            bound = self._bind(args, kwargs)
        try:
            data = _encode(bound if self._verbatim else self._lower(dict(bound), deep=False))
        except Exception as refusal:
            return self._encode_carefully(bound, refusal)
        if len(data) > PAYLOAD_BYTES_MAX or data.find(_NULL) >= 0:
            self._inspect(bound, data)
        return data

    def decode(self, data: bytes | memoryview) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return (args, kwargs) to call the function with; raise `UndecodableError`."""
        try:
            values = self._read(data)
            return (values, {}) if self._is_whole else self._unbind(values)
        except DefinitionError:
            raise
        except Exception as error:
            reason, path = _reading_fault(error)
            raise UndecodableError(f"stored arguments of {self._name}(): {reason} at `${path}`") from None

    def check(self, data: bytes | memoryview) -> None:
        """Raise `ArgumentsError`, naming the parameter, when stored arguments do not fit the signature and its hints."""
        try:
            given = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
            unknown = [name for name in given if name not in self._resolve()]
            if unknown:
                raise ArgumentsError(f"{self._name}() got an unexpected argument {unknown[0]!r}")
            missing = [p.name for p in self._parameters if p.is_required and p.name not in given]
            if missing:
                raise ArgumentsError(self._missing(missing))
            self._unbind(self._read(data))
        except (ArgumentsError, DefinitionError):
            raise
        except Exception as error:
            reason, path = _reading_fault(error)
            where = f"`{path.removeprefix('.')}`: " if path else ""
            raise ArgumentsError(f"{self._name}(): {where}{reason.replace('`', '')}") from None

    def encode_json(self, positional: list[Any], named: dict[str, Any]) -> bytes:
        """Return the stored form of plain JSON values, e.g. from a command line; raise `ArgumentsError` if they do not fit."""
        raw = _encode_plainly(self._bind(tuple(positional), named))
        self.check(raw)
        args, kwargs = self.decode(raw)
        return self.encode(args, kwargs)

    # ─ binding ───────────────────────────────────────────────────────────────

    def _name_by_kind(self, kind: inspect._ParameterKind) -> str | None:
        return next((p.name for p in self._parameters if p.kind is kind), None)

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments by parameter name: `Signature.bind` without its cost, with Python's own messages."""
        bound: dict[str, Any] = dict(zip(self._positional, args))  # noqa: B905 - either may be longer
        surplus = args[len(self._positional) :]
        if surplus and self._var_positional is None:
            raise ArgumentsError(self._too_many(len(args)))
        extra: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self._keywords:
                if name in bound:
                    raise ArgumentsError(f"{self._name}() got multiple values for argument {name!r}")
                bound[name] = value
            elif self._var_keyword is not None:
                extra[name] = value
            elif name in self._positional:
                raise ArgumentsError(
                    f"{self._name}() got some positional-only arguments passed as keyword arguments: {name!r}"
                )
            else:
                raise ArgumentsError(f"{self._name}() got an unexpected keyword argument {name!r}")
        if not self._required <= bound.keys():
            raise ArgumentsError(self._missing([p for p in self._required_in_order() if p not in bound]))
        if surplus and self._var_positional is not None:
            bound[self._var_positional] = list(surplus)
        if extra and self._var_keyword is not None:
            bound[self._var_keyword] = extra
        return bound

    def _required_in_order(self) -> list[str]:
        return [p.name for p in self._parameters if p.is_required]

    def _too_many(self, given: int) -> str:
        most = len(self._positional)
        least = sum(name in self._required for name in self._positional)
        takes = f"from {least} to {most}" if least != most else str(most)
        plural = "" if takes == "1" else "s"
        return (
            f"{self._name}() takes {takes} positional argument{plural} but {given} "
            f"{'was' if given == 1 else 'were'} given"
        )

    def _missing(self, names: list[str]) -> str:
        is_positional = names[0] in self._positional
        same_kind = [name for name in names if (name in self._positional) == is_positional]
        quoted = [repr(name) for name in same_kind]
        listed = (
            f"{', '.join(quoted[:-1])}{',' if len(quoted) > 2 else ''} and {quoted[-1]}"
            if quoted[1:]
            else quoted[0]
        )
        return (
            f"{self._name}() missing {len(quoted)} required {'positional' if is_positional else 'keyword-only'} "
            f"argument{'s' if len(quoted) > 1 else ''}: {listed}"
        )

    def _unbind(self, values: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        has_gap = False  # a parameter left at its default: those after it are passed by keyword
        for parameter, value in zip(self._parameters, values, strict=True):
            name, kind, _ = parameter
            if value is msgspec.UNSET:
                has_gap = has_gap or name in self._positional
            elif kind is inspect.Parameter.VAR_KEYWORD:
                kwargs.update(value)
            elif has_gap and kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL):
                raise _MisfitError("positional, but a parameter before it is missing", f".{name}")
            elif kind is inspect.Parameter.VAR_POSITIONAL:
                args.extend(value)
            elif kind is inspect.Parameter.KEYWORD_ONLY or has_gap:
                kwargs[name] = value
            else:
                args.append(value)
        return tuple(args), kwargs

    # ─ types ─────────────────────────────────────────────────────────────────

    def _resolve(self) -> dict[str, _Node]:
        if self._nodes is None:
            nodes = _resolved(self._compile_all)
            self._lowered_names = tuple(name for name, node in nodes.items() if not node.verbatim)
            self._lifted = [
                (i, name, node) for i, (name, node) in enumerate(nodes.items()) if not node.native
            ]
            self._verbatim = not self._lowered_names
            self._decode = self._decoder(nodes)
            self._nodes = nodes
        return self._nodes

    def _compile_all(self) -> dict[str, _Node]:
        hints = _function_hints(self._fn)
        compiler = _Compiler(_closure(self._fn))
        return {p.name: self._compile(compiler, p, hints.get(p.name, Any)) for p in self._parameters}

    def _compile(self, compiler: _Compiler, parameter: _Parameter, hint: Any) -> _Node:
        is_unpacked = typing.get_origin(hint) is typing.Unpack
        if is_unpacked:
            hint = typing.get_args(hint)[0]
        elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            hint = list[hint]
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            hint = dict[str, hint]
        return compiler.compile_root(hint, what=f"{self._name}(): parameter `{parameter.name}`")

    def _decoder(self, nodes: dict[str, _Node]) -> Callable[[Any], Any]:
        # Fields are called p0, p1 ... so that no parameter's name can clash with what a Struct defines.
        fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
        for i, parameter in enumerate(self._parameters):
            node = nodes[parameter.name]
            hint = node.hint if node.native else Any
            if parameter.is_required:
                fields.append((f"p{i}", hint))
            else:
                fields.append((f"p{i}", hint | msgspec.UnsetType if hint is not Any else Any, msgspec.UNSET))
        names = {f"p{i}": parameter.name for i, parameter in enumerate(self._parameters)}
        struct = msgspec.defstruct("Arguments", fields, rename=names, kw_only=True, gc=False)
        return msgspec.json.Decoder(struct, dec_hook=_build).decode

    def _read(self, data: bytes | memoryview) -> tuple[Any, ...]:
        if self._decode is None:
            self._resolve()
            assert self._decode is not None, "set by _resolve"
        values: tuple[Any, ...] = msgspec.structs.astuple(self._decode(data))
        if not self._lifted:
            return values
        lifted = list(values)
        for i, name, node in self._lifted:
            if lifted[i] is not msgspec.UNSET:
                lifted[i] = node.lifted(lifted[i], f".{name}")
        return tuple(lifted)

    def _lower(self, bound: dict[str, Any], *, deep: bool) -> dict[str, Any]:
        nodes = self._resolve()
        for name in nodes if deep else self._lowered_names:
            if name in bound:
                bound[name] = nodes[name].lowered(bound[name], f".{name}", deep=deep)
        return bound

    def _encode_carefully(self, bound: dict[str, Any], refusal: Exception) -> bytes:
        return _encode_or_refuse(lambda: self._lower(dict(bound), deep=True), refusal)

    def _inspect(self, bound: dict[str, Any], data: bytes) -> None:
        _check_size(data)
        if _may_hold_non_finite(bound):
            _refuse_or(lambda: self._lower(dict(bound), deep=True))


# ─ writing ───────────────────────────────────────────────────────────────────


class _MisfitError(Exception):
    """A value does not fit; `path` grows as the error leaves the value: `.items`, then `.order.items`."""

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = path


def _encode_carefully(node: _Node, value: object, refusal: Exception) -> bytes:
    return _encode_or_refuse(lambda: node.lowered(value, deep=True), refusal)


def _encode_plainly(value: object) -> bytes:
    return _encode_or_refuse(lambda: _lower_anything(value), None)


def _encode_or_refuse(lower: Callable[[], Any], refusal: Exception | None) -> bytes:
    """Encode what `lower` returns: either it mends what msgspec refused (say, int keys), or it knows where it is."""
    if isinstance(refusal, DefinitionError):
        raise refusal
    lowered = _refuse_or(lower)
    try:
        data = _encode(lowered)
    except Exception as error:
        raise PayloadError(f"the value cannot be stored: {_in_short(error)}") from None
    _check_size(data)
    return data


def _refuse_or(lower: Callable[[], Any]) -> Any:
    try:
        return lower()
    except _MisfitError as misfit:
        path = f"${misfit.path}"
        raise PayloadError(f"{path}: {misfit.reason}", path=path) from None
    except RecursionError:
        raise PayloadError(
            "the value cannot be stored: it contains itself, or is nested too deeply"
        ) from None


def _inspect(node: _Node, value: object, data: bytes) -> None:
    """Look closer at bytes that hold a null, for msgspec writes NaN so; and at those that are many."""
    _check_size(data)
    if _may_hold_non_finite(value):
        _refuse_or(lambda: node.lowered(value, deep=True))


def _check_size(data: bytes) -> None:
    if len(data) > PAYLOAD_BYTES_MAX:
        raise PayloadError(
            f"the value takes {len(data):,} bytes, more than the limit of {PAYLOAD_BYTES_MAX:,}: "
            "store it elsewhere (a file, a bucket) and pass its name"
        )


def _may_hold_non_finite(value: object) -> bool:
    # MessagePack keeps NaN and infinity as they are; packing and searching is far cheaper than a walk.
    try:
        return _non_finite(_pack(value)) is not None
    except Exception:
        return True  # e.g. an integer beyond 64 bits: walk


def _plain(value: Any) -> Any:
    """Return what msgspec should write for a type it does not know (its `enc_hook`)."""
    cls = type(value)
    if _is_pydantic(cls):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if isinstance(value, Ok):
        return {"ok": value.value}
    if isinstance(value, Err):
        if isinstance(value.error, BaseException):
            return {"failure": failures.record(value.error)}
        return {"err": value.error}
    if isinstance(value, BaseException):
        return failures.record(value)
    for base in _SCALAR_BASES:
        if isinstance(value, base):
            return base(value) if base is not str else str.__str__(value)
    raise _MisfitError(f"a value of type `{_type_name(cls)}` cannot be stored: {_STORABLE}")


def _lower_anything(value: Any, path: str = "") -> Any:
    """Return a value as plain JSON; raise for what cannot be stored, with its path."""
    cls = type(value)
    if value is None or cls is bool:
        return value
    if isinstance(value, enum.Enum):
        return _lower_anything(value.value, path)
    if isinstance(value, (str, int, float)):
        return _lower_scalar(value, path)
    if isinstance(value, _LEAVES) or cls in (msgspec.Raw, memoryview):
        return value
    if isinstance(value, dict):
        return {
            _text_key(key, path): _lower_anything(item, f"{path}{_step(key)}") for key, item in value.items()
        }
    if isinstance(value, _ARRAYS):
        items = [_lower_anything(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return _sorted(items) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, msgspec.Struct) and type(value).__struct_config__.array_like:
        return [_lower_anything(item, f"{path}[{i}]") for i, item in enumerate(_struct_array(value))]
    fields = _object_items(value)
    if fields is not None:
        return {name: _lower_anything(item, f"{path}.{name}") for name, item in fields.items()}
    return _lower_anything(_plain_at(value, path), path)


def _plain_at(value: Any, path: str) -> Any:
    try:
        plain = _plain(value)
    except _MisfitError as misfit:
        raise _MisfitError(misfit.reason, path) from None
    except Exception as error:
        reason = f"a value of type `{_type_name(type(value))}` cannot be stored: {_in_short(error)}"
        raise _MisfitError(reason, path) from None
    return plain


def _lower_scalar(value: str | int | float, path: str) -> str | int | float:
    if isinstance(value, str):
        text = str.__str__(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"text with a lone surrogate at position {error.start} cannot be stored: replace it, or store bytes"
            raise _MisfitError(reason, path) from None
        return text
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _MisfitError(f"JSON cannot hold the float {float(value)!r}: use None or text for it", path)
        return float(value)
    try:
        _encode(int(value))
    except ValueError:
        raise _MisfitError("an integer of so many digits cannot be stored: use text", path) from None
    return int(value)


def _text_key(key: object, path: str) -> str:
    if isinstance(key, str):
        return str(_lower_scalar(key.value if isinstance(key, enum.Enum) else key, path))
    raise _MisfitError(
        f"a dict key of type `{_type_name(type(key))}` would come back as text: use text keys, or a type hint such as "
        f"dict[{type(key).__name__}, ...]",
        path,
    )


def _object_items(value: Any) -> dict[str, Any] | None:
    """Return what msgspec would store of a dataclass or Struct instance."""
    cls = type(value)
    if isinstance(value, msgspec.Struct):
        config = cls.__struct_config__
        pairs = zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True)
        items = {} if config.tag is None else {str(config.tag_field): config.tag}
        items.update((stored, getattr(value, name)) for stored, name in pairs)
        return {name: item for name, item in items.items() if item is not msgspec.UNSET}
    if dataclasses.is_dataclass(cls):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(cls) if hasattr(value, f.name)}
    if hasattr(cls, "__attrs_attrs__"):
        return {f.name: getattr(value, f.name) for f in cls.__attrs_attrs__}
    return None


def _struct_array(value: msgspec.Struct) -> list[Any]:
    tag = type(value).__struct_config__.tag
    return [
        *([] if tag is None else [tag]),
        *(getattr(value, name) for name in type(value).__struct_fields__),
    ]


def _sorted(items: list[Any]) -> list[Any]:
    try:
        if all(isinstance(item, (int, float)) for item in items) or all(isinstance(i, str) for i in items):
            return sorted(items)
        return sorted(items, key=_encode)
    except Exception:
        return items  # what cannot be encoded is refused in a moment


def _step(key: object) -> str:
    return f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{key!r}]"


def _type_name(cls: type) -> str:
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _in_short(error: Exception) -> str:
    """Name an error without quoting it: its text may hold what the value holds."""
    return type(error).__name__


# ─ reading ───────────────────────────────────────────────────────────────────


class _RefusedError(ValueError):
    """Raised by our own `dec_hook`: its text is ours and safe to show."""


def _reading_fault(error: Exception) -> tuple[str, str]:
    """Return the reason and the path (without its `$`) of a value that could not be read; never its content."""
    if isinstance(error, _MisfitError):
        return error.reason, error.path
    if isinstance(error, msgspec.ValidationError):
        text, _, path = str(error).rpartition(" - at `")
        if not text:
            text, path = str(error), "$`"
        is_key = path.startswith("key` in `")
        path = path.removeprefix("key` in `").removesuffix("`").removeprefix("$")
        text = _without_content(error, text)
        return (f"a key: {text}" if is_key else text), path
    if isinstance(error, RecursionError):
        return "nested too deeply", ""
    return f"not valid JSON for its type ({type(error).__name__})", ""


def _without_content(error: msgspec.ValidationError, text: str) -> str:
    cause = error.__cause__
    if cause is not None and not isinstance(cause, _RefusedError):
        return f"its class raised {type(cause).__name__}"
    if text.startswith("Invalid enum value"):
        return "not one of the allowed values"
    if text.startswith("Invalid value"):
        return "not one of the allowed tags"
    return text[:1].lower() + text[1:]


def _build(hint: Any, stored: Any) -> Any:
    """Return an instance of a class msgspec does not know (its `dec_hook`)."""
    if _is_pydantic(hint):
        return _build_pydantic(hint, stored)
    if issubclass(hint, BaseException):
        return failures.rebuild(msgspec.convert(stored, failures.Failure))
    base = _scalar_base(hint)
    if (
        base is None
        or not isinstance(stored, (base, int) if base is float else base)
        or isinstance(stored, bool)
    ):
        wanted = "str" if base is None else base.__name__
        raise _RefusedError(f"expected `{wanted}`, got `{type(stored).__name__}`")
    return hint(stored)


def _build_pydantic(model: Any, stored: Any) -> Any:
    try:
        return model.model_validate_json(msgspec.json.encode(stored))
    except ValueError as error:
        faults = getattr(error, "errors", None)
        if faults is None:
            raise
        first = faults(include_input=False, include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))
        kind = first["type"].replace("_", " ")
    raise _RefusedError(f"`{model.__name__}` does not fit{f' at `{where}`' if where else ''}: {kind}")


_SCALAR_BASES: Final = (str, int, float)


def _scalar_base(cls: type) -> type | None:
    return next((base for base in _SCALAR_BASES if issubclass(cls, base)), None)


def _is_pydantic(cls: Any) -> bool:
    # By attributes: pydantic is optional and slow to import.
    return (
        isinstance(cls, type)
        and hasattr(cls, "__pydantic_validator__")
        and hasattr(cls, "model_validate_json")
    )


# ─ hints ─────────────────────────────────────────────────────────────────────


class _UnresolvedError(DefinitionError):
    """A name in a hint means nothing yet."""


def _resolved(resolve: Callable[[], T]) -> T:
    try:
        return resolve()
    except _UnresolvedError as error:
        raise DefinitionError(str(error)) from None


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "__name__", None) or type(fn).__name__)


def _target(fn: Any) -> Any:
    """Return the function that carries the hints."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    fn = inspect.unwrap(fn)
    if isinstance(fn, type):
        return inspect.getattr_static(fn, "__init__")
    if not hasattr(fn, "__annotations__") and callable(fn):
        return type(fn).__call__
    return fn


def _closure(fn: Any) -> dict[str, Any]:
    """Return the enclosing function's variables that `fn` uses: where local classes are found, if anywhere."""
    target = _target(fn)
    code = getattr(target, "__code__", None)
    scope: dict[str, Any] = {}
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(target, "__closure__", None) or (), strict=False
    ):
        try:
            scope[name] = cell.cell_contents
        except ValueError:
            continue  # not assigned yet
    return scope


def _function_hints(fn: Any) -> dict[str, Any]:
    target = _target(fn)
    try:
        return typing.get_type_hints(target, localns=_closure(fn) or None, include_extras=True)
    except NameError as error:
        missing = error.name or str(error)
        users = [p for p, hint in getattr(target, "__annotations__", {}).items() if missing in str(hint)]
        where = f" of `{users[0]}`" if users else ""
        raise _UnresolvedError(
            f"{_name_of(fn)}(): the type hint{where} names `{missing}`, which is not defined in {target.__module__}. "
            "Import it at run time (not under TYPE_CHECKING), or move a local class to the module"
        ) from None
    except Exception as error:
        raise DefinitionError(f"{_name_of(fn)}(): its type hints cannot be read: {error}") from error


def _class_hints(cls: Any, scope: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return the hints of a class's fields, and whether msgspec would find them too."""
    try:
        return typing.get_type_hints(cls, include_extras=True), True
    except NameError:
        pass
    try:
        return typing.get_type_hints(cls, localns={cls.__name__: cls, **scope}, include_extras=True), False
    except NameError as error:
        raise _UnresolvedError(
            f"`{_type_name(cls)}` has a field of type `{error.name}`, which is not defined in {cls.__module__}. "
            "Import it at run time (not under TYPE_CHECKING), or move a local class to the module"
        ) from None


def _substitute(hint: Any, variables: dict[Any, Any]) -> Any:
    if isinstance(hint, TypeVar):
        return variables.get(hint, hint)
    parameters = getattr(hint, "__parameters__", ())
    if not variables or isinstance(hint, type) or not parameters:
        return hint
    return hint[tuple(variables.get(p, p) for p in parameters)]


def _type_variables(cls: Any, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """Return what the type variables of a generic class and its bases stand for."""
    variables = dict(zip(getattr(cls, "__parameters__", ()), arguments, strict=False))
    for base in getattr(cls, "__orig_bases__", ()):
        origin = typing.get_origin(base)
        if origin is not None and origin is not typing.Generic:
            inner = tuple(_substitute(argument, variables) for argument in typing.get_args(base))
            variables = {**_type_variables(origin, inner), **variables}
    return variables


def _compile(hint: Any, *, what: str, scope: dict[str, Any] | None = None) -> _Node:
    return _Compiler(scope or {}).compile_root(hint, what=what)


class _Unsupported(Exception):
    """A hint whose values cannot be stored."""


class _Compiler:
    """Builds the node tree of one function's hints. A class that refers to itself becomes one node, shared."""

    def __init__(self, scope: dict[str, Any]) -> None:
        self._scope = scope
        self._known: dict[Any, _Node] = {}

    def compile_root(self, hint: Any, *, what: str) -> _Node:
        try:
            node = self.compile(hint)
            node.settle()
            return node
        except _Unsupported as error:
            raise DefinitionError(f"{what}: {error}") from None

    def compile(self, hint: Any) -> _Node:
        if hint is None:
            hint = types.NoneType
        try:
            known = self._known.get(hint)
        except TypeError:  # unhashable metadata in Annotated
            known = None
        return known if known is not None else self._compile(hint)

    def _compile(self, hint: Any) -> _Node:
        if isinstance(hint, (str, typing.ForwardRef)):
            return self._named(hint)
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if hint in (Any, object) or isinstance(hint, TypeVar):
            return self._anything(hint)
        if origin is typing.Annotated:
            return _Annotated(hint, self.compile(arguments[0]))
        if isinstance(hint, typing.NewType):
            return self.compile(hint.__supertype__)
        if origin in (typing.Final, typing.Required, typing.NotRequired) or _is_read_only(origin):
            return self.compile(arguments[0])
        if hasattr(origin or hint, "__value__") and not isinstance(origin or hint, type):
            return self._alias(hint, origin or hint, arguments)
        if origin is typing.Literal:
            return _Scalar(hint, arguments)
        if origin in (typing.Union, types.UnionType):
            return self._union(hint, arguments)
        if origin in (tuple, *_ARRAYS) or hint in _ARRAYS or (origin or hint) in _ABSTRACT_ARRAYS:
            return self._array(hint, origin or hint, arguments)
        if (origin or hint) in _MAPPINGS:
            return self._mapping(hint, arguments)
        if (origin or hint) in (Ok, Err):
            item = self._error(arguments) if (origin or hint) is Err else self.compile(*arguments or (Any,))
            return _ResultHalf(hint, origin or hint, item)
        if isinstance(origin or hint, type):
            return self._class(hint, origin or hint, arguments)
        raise _Unsupported(f"a value of type `{_hint_name(hint)}` cannot be stored: {_STORABLE}")

    def _named(self, hint: Any) -> _Node:
        name = hint if isinstance(hint, str) else hint.__forward_arg__
        if name not in self._scope:
            raise _UnresolvedError(f"the type hint names `{name}`, which is not defined here")
        return self.compile(self._scope[name])

    def _anything(self, hint: Any) -> _Node:
        if isinstance(hint, TypeVar):
            bound = hint.__bound__ if hint.__bound__ is not None else hint.__constraints__ or None
            if bound is not None:
                return self.compile(typing.Union[bound] if isinstance(bound, tuple) else bound)  # noqa: UP007
        return _Anything(Any)

    def _alias(self, hint: Any, alias: Any, arguments: tuple[Any, ...]) -> _Node:
        node = self._known[hint] = _Alias(hint)
        variables = dict(zip(alias.__type_params__, arguments, strict=False))
        node.target = self.compile(_substitute(alias.__value__, variables))
        return node

    def _error(self, arguments: tuple[Any, ...]) -> _Node:
        """Return the node of what an Err holds, exceptions aside: these are failure records whatever the hint."""
        hint = arguments[0] if arguments else Any
        members = (
            typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
        )
        others = [m for m in members if not (isinstance(m, type) and issubclass(m, BaseException))]
        return self.compile(typing.Union[tuple(others)]) if others else _Anything(Any)  # noqa: UP007

    def _union(self, hint: Any, arguments: tuple[Any, ...]) -> _Node:
        return _Union(hint, [self.compile(argument) for argument in arguments])

    def _array(self, hint: Any, origin: Any, arguments: tuple[Any, ...]) -> _Node:
        if origin is tuple and arguments[1:] != (...,) and (arguments or "[" in str(hint)):
            return _Tuple(hint, [self.compile(argument) for argument in arguments])
        make = _ABSTRACT_ARRAYS.get(origin, origin)
        return _Array(hint, make, self.compile(arguments[0] if arguments else Any))

    def _mapping(self, hint: Any, arguments: tuple[Any, ...]) -> _Node:
        key, value = arguments or (Any, Any)
        key_node = self.compile(key)
        if not key_node.is_text_like():
            raise _Unsupported(
                f"keys of type `{_hint_name(key)}` cannot be stored: use text, numbers, enums, dates or UUIDs as keys, "
                "or a list of pairs"
            )
        return _Mapping(hint, key_node, self.compile(value))

    def _class(self, hint: Any, cls: Any, arguments: tuple[Any, ...]) -> _Node:
        if cls in (str, int, float, bool, types.NoneType, msgspec.Raw, *_LEAVES):
            return _Scalar(hint, cls)
        if issubclass(cls, enum.Enum):
            return _Scalar(hint, cls) if _builds(cls) else _OddEnum(hint)
        if _is_pydantic(cls) or issubclass(cls, BaseException):
            return _Hooked(hint, cls)
        is_object = (
            issubclass(cls, msgspec.Struct)
            or dataclasses.is_dataclass(cls)
            or typing.is_typeddict(cls)
            or hasattr(cls, "__attrs_attrs__")
            or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
        )
        if is_object:
            return self._object(hint, cls, arguments)
        if _scalar_base(cls) is not None:
            return _Hooked(hint, cls)
        raise _Unsupported(f"a value of type `{_type_name(cls)}` cannot be stored: {_STORABLE}")

    def _object(self, hint: Any, cls: Any, arguments: tuple[Any, ...]) -> _Node:
        node = self._known[hint] = _Object(hint, cls)
        hints, node.is_open = _class_hints(cls, self._scope)
        variables = _type_variables(cls, arguments)
        names = _field_names(cls, hints)
        node.required = _required_keys(cls, hints)
        node.fields = {name: self._field(cls, name, hints[name], variables) for name in names}
        return node

    def _field(self, cls: Any, name: str, hint: Any, variables: dict[Any, Any]) -> _Node:
        try:
            return self.compile(_substitute(hint, variables))
        except _Unsupported as error:
            raise _Unsupported(f"field `{name}` of `{cls.__name__}`: {error}") from None


def _is_read_only(origin: Any) -> bool:
    return getattr(origin, "__name__", getattr(origin, "_name", "")) == "ReadOnly"


def _field_names(cls: Any, hints: dict[str, Any]) -> list[str]:
    if issubclass(cls, msgspec.Struct):
        return list(cls.__struct_fields__)
    if typing.is_typeddict(cls):
        return list(hints)
    if dataclasses.is_dataclass(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if issubclass(cls, tuple):
        return list(cls._fields)
    return [field.name for field in cls.__attrs_attrs__]


def _required_keys(cls: Any, hints: dict[str, Any]) -> frozenset[str]:
    """Return the keys a TypedDict must have; its own list is wrong where annotations are postponed."""
    marked = {name: typing.get_origin(hint) for name, hint in hints.items()}
    required = {name for name, origin in marked.items() if origin is typing.Required}
    optional = {name for name, origin in marked.items() if origin is typing.NotRequired}
    return frozenset((getattr(cls, "__required_keys__", frozenset()) | required) - optional)


def _hint_name(hint: Any) -> str:
    """Return a hint as its author wrote it: without modules, which may be renamed while a run is open."""
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"(?:[\w<>]+\.)+", "", str(hint))


def _builds(hint: Any) -> bool:
    try:
        msgspec.json.Decoder(hint, dec_hook=_build)
    except Exception:  # TypeError mostly; RecursionError for an alias that refers to itself
        return False
    return True


_ABSTRACT_ARRAYS: Final[dict[Any, Any]] = {
    abc.Collection: list,
    abc.Sequence: list,
    abc.MutableSequence: list,
    abc.Set: set,
    abc.MutableSet: set,
}
_MAPPINGS: Final = (dict, abc.Mapping, abc.MutableMapping)


# ─ nodes: the parts of a hint ────────────────────────────────────────────────


class _Node:
    """One part of a hint.

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

    def parts(self) -> list[_Node]:
        return []

    def settle(self) -> None:
        """Decide for this node and those below which of them msgspec can be left alone with."""
        if self.is_settled:
            return
        self.is_settled = True
        reachable = _reachable(self)
        self.native = not any(node.structural for node in reachable) and _builds(self.hint)
        is_written = self.native and not any(node.rewritten for node in reachable)
        self.completes = is_written and any(node.sparse for node in reachable)
        self.verbatim = is_written and not self.completes
        for part in self.parts():
            part.settle()

    def decoder(self) -> Callable[[Any], Any]:
        if self.native:
            return msgspec.json.Decoder(self.hint, dec_hook=_build).decode
        return lambda data: self.lift(_decode_any(data), "")

    def is_text_like(self) -> bool:
        """Whether values of it can be the keys of a JSON object."""
        return False

    def names(self) -> str:
        """The name of this node as a member of a union."""
        return _hint_name(self.hint)

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
        return self._convert(stored, path) if self.native else self.lift(stored, path)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        return _lower_anything(value, path)

    def lift(self, stored: Any, path: str) -> Any:
        return self._convert(stored, path)

    def _convert(self, stored: Any, path: str) -> Any:
        try:
            return msgspec.convert(stored, self.hint, str_keys=True, dec_hook=_build)
        except msgspec.ValidationError as error:
            reason, inner = _reading_fault(error)
            raise _MisfitError(reason, path + inner) from None


def _reachable(node: _Node) -> list[_Node]:
    seen: dict[int, _Node] = {}
    queue = [node]
    while queue:
        current = queue.pop()
        if id(current) not in seen:
            seen[id(current)] = current
            queue.extend(current.parts())
    return list(seen.values())


def _expected(what: str, stored: object, path: str) -> _MisfitError:
    json_name = {dict: "object", list: "array", type(None): "null"}.get(type(stored), type(stored).__name__)
    return _MisfitError(f"expected `{what}`, got `{json_name}`", path)


class _Anything(_Node):
    def fits(self, value: object) -> bool:
        return True

    def is_text_like(self) -> bool:
        return True


class _Scalar(_Node):
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


class _OddEnum(_Node):
    """An enum whose values are neither all text nor all integers: found again by what its values look like."""

    structural = True

    def is_text_like(self) -> bool:
        return False

    def fits(self, value: object) -> bool:
        return isinstance(value, self.hint)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        return _lower_anything(value, path)

    def lift(self, stored: Any, path: str) -> Any:
        for member in self.hint:
            if _decode_any(_encode(_lower_anything(member.value))) == stored:
                return member
        raise _MisfitError("not one of the allowed values", path)


class _Hooked(_Node):
    """A class msgspec reaches through hooks: pydantic models, exceptions, subclasses of str, int and float."""

    def __init__(self, hint: Any, cls: type) -> None:
        super().__init__(hint)
        self.cls = cls

    def is_text_like(self) -> bool:
        return issubclass(self.cls, str)

    def fits(self, value: object) -> bool:
        return isinstance(value, self.cls)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        return _lower_anything(value, path)


class _Annotated(_Node):
    def __init__(self, hint: Any, target: _Node) -> None:
        super().__init__(hint)
        self.target = target

    def parts(self) -> list[_Node]:
        return [self.target]

    def is_text_like(self) -> bool:
        return self.target.is_text_like()

    def names(self) -> str:
        return self.target.names()

    def fits(self, value: object) -> bool:
        return self.target.fits(value)

    def complete(self, value: Any) -> None:
        if self.target.completes:
            self.target.complete(value)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        return self.target.lowered(value, path, deep=deep)

    def lift(self, stored: Any, path: str) -> Any:
        return self.target.lifted(stored, path)


class _Alias(_Annotated):
    """A `type X = ...` statement, which may refer to itself."""

    def __init__(self, hint: Any) -> None:
        super().__init__(hint, _Anything(Any))


class _Array(_Node):
    def __init__(self, hint: Any, make: Callable[[Iterator[Any]], Any], item: _Node) -> None:
        super().__init__(hint)
        self.make = make
        self.item = item
        # Sets of what has no order (or only a partial one) are sorted here, by their bytes.
        self.rewritten = make in (set, frozenset) and not isinstance(item, (_Scalar, _Anything))

    def parts(self) -> list[_Node]:
        return [self.item]

    def fits(self, value: Any) -> bool:
        kinds = {set: (set, frozenset), frozenset: (set, frozenset)}.get(self.make, self.make)  # type: ignore[call-overload]
        return isinstance(value, kinds) and all(map(self.item.fits, value))

    def complete(self, value: Any) -> None:
        if isinstance(value, _ARRAYS):
            for item in value:
                self.item.complete(item)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        if not isinstance(value, _ARRAYS):
            return _lower_anything(value, path)
        items = [self.item.lowered(item, f"{path}[{i}]", deep=deep) for i, item in enumerate(value)]
        return _sorted(items) if isinstance(value, (set, frozenset)) else items

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, list):
            raise _expected("array", stored, path)
        return self.make(self.item.lifted(item, f"{path}[{i}]") for i, item in enumerate(stored))


class _Tuple(_Node):
    def __init__(self, hint: Any, items: list[_Node]) -> None:
        super().__init__(hint)
        self.items = items

    def parts(self) -> list[_Node]:
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
            return _lower_anything(value, path)
        pairs = zip(self.items, value, strict=True)
        return [node.lowered(item, f"{path}[{i}]", deep=deep) for i, (node, item) in enumerate(pairs)]

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, list) or len(stored) != len(self.items):
            raise _expected(f"array of length {len(self.items)}", stored, path)
        pairs = zip(self.items, stored, strict=True)
        return tuple(node.lifted(item, f"{path}[{i}]") for i, (node, item) in enumerate(pairs))


def _dict_of(key: Any, value: Any) -> Any:
    return types.GenericAlias(dict, (key, value))


class _Mapping(_Node):
    def __init__(self, hint: Any, key: _Node, value: _Node) -> None:
        super().__init__(hint)
        self.key = key
        self.value = value
        self.has_plain_keys = isinstance(key, _Anything) or key.hint is str
        self.rewritten = not self.has_plain_keys  # msgspec sorts text keys only
        self.structural = not self.has_plain_keys and not _builds(_dict_of(key.hint, Any))

    def parts(self) -> list[_Node]:
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
            return _lower_anything(value, path)
        lowered: dict[str, Any] = {}
        for key, item in value.items():
            text = self._text(key, path)
            if text in lowered:
                raise _MisfitError(f"two dict keys are both stored as {text!r}", path)
            lowered[text] = self.value.lowered(item, f"{path}{_step(key)}", deep=deep)
        return lowered

    def _text(self, key: Any, path: str) -> str:
        """Return the key as text; refuse it unless that text gives it back."""
        if self.has_plain_keys:
            return _text_key(key, path)
        if type(key) is int and self.key.hint is int:
            return str(key)
        try:
            data = msgspec.json.encode({key: None}, enc_hook=_plain)
            ((found, _),) = msgspec.json.decode(
                data, type=_dict_of(self.key.hint, None), dec_hook=_build
            ).items()
        except Exception:
            found = _MisfitError
        if found != key or type(found) is not type(key):
            hint, cls = _hint_name(self.key.hint), _type_name(type(key))
            raise _MisfitError(f"a dict key of type `{cls}` would not come back as `{hint}`", path)
        return str(next(iter(_decode_any(data))))

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, dict):
            raise _expected("object", stored, path)
        return {
            self._key(key, path): self.value.lifted(item, path + _step(key)) for key, item in stored.items()
        }

    def _key(self, text: str, path: str) -> Any:
        if self.has_plain_keys:
            return text
        try:
            keyed = msgspec.convert(
                {text: None}, _dict_of(self.key.hint, None), str_keys=True, dec_hook=_build
            )
        except msgspec.ValidationError as error:
            raise _MisfitError(_reading_fault(error)[0], path) from None
        return next(iter(keyed))


class _Object(_Node):
    """A dataclass, Struct, TypedDict, NamedTuple or attrs class. `is_open`: msgspec can resolve its hints."""

    def __init__(self, hint: Any, cls: Any) -> None:
        super().__init__(hint)
        self.cls = cls
        self.is_open = True
        self.fields: dict[str, _Node] = {}
        self.required: frozenset[str] = frozenset()  # of a TypedDict
        self.is_array = issubclass(cls, tuple) or (
            issubclass(cls, msgspec.Struct) and cls.__struct_config__.array_like
        )
        self.is_dict = typing.is_typeddict(cls)
        self.sparse_fields: list[tuple[str, _Node]] = []
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

    def parts(self) -> list[_Node]:
        return list(self.fields.values())

    def fits(self, value: object) -> bool:
        if not typing.is_typeddict(self.cls):
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
            return _lower_anything(value, path)
        lowered = {
            name: self.fields[name].lowered(item, f"{path}.{name}", deep=deep)
            if name in self.fields
            else _lower_anything(item, f"{path}.{name}")
            for name, item in items.items()
            if item is not msgspec.UNSET
        }
        if issubclass(self.cls, msgspec.Struct):
            return self._as_struct(lowered)
        return list(lowered.values()) if self.is_array else lowered

    def _items(self, value: Any) -> dict[str, Any] | None:
        if isinstance(value, dict):
            return value
        if not isinstance(value, self.cls):
            return None
        if issubclass(self.cls, msgspec.Struct):
            return {name: getattr(value, name) for name in type(value).__struct_fields__}
        if self.is_array:
            return dict(zip(self.fields, value, strict=False))
        return _object_items(value)

    def _as_struct(self, lowered: dict[str, Any]) -> Any:
        config = self.cls.__struct_config__
        if self.is_array:
            return [*([] if config.tag is None else [config.tag]), *lowered.values()]
        stored = dict(zip(self.cls.__struct_fields__, self.cls.__struct_encode_fields__, strict=True))
        tag = {} if config.tag is None else {config.tag_field: config.tag}
        return {**tag, **{stored.get(name, name): item for name, item in lowered.items()}}

    def lift(self, stored: Any, path: str) -> Any:
        if self.is_array and isinstance(stored, list):
            has_tag = issubclass(self.cls, msgspec.Struct) and self.cls.__struct_config__.tag is not None
            stored = dict(zip(self._stored_names(), stored[1:] if has_tag else stored, strict=False))
        if not isinstance(stored, dict):
            raise _expected("array" if self.is_array else "object", stored, path)
        values = {
            name: self.fields[name].lifted(stored[key], f"{path}.{key}")
            for name, key in zip(self.fields, self._stored_names(), strict=True)
            if key in stored
        }
        return self._make(values, path)

    def _stored_names(self) -> list[str]:
        if issubclass(self.cls, msgspec.Struct):
            return list(self.cls.__struct_encode_fields__)
        return list(self.fields)

    def _make(self, values: dict[str, Any], path: str) -> Any:
        if typing.is_typeddict(self.cls):
            for name in sorted(self.required - values.keys()):
                raise _MisfitError(f"object missing required field `{name}`", path)
            return values
        try:
            if dataclasses.is_dataclass(self.cls):
                return _make_dataclass(self.cls, values)
            return self.cls(**values)
        except Exception as error:
            missing = [name for name in self.fields if name not in values]
            reason = (
                f"object missing required field `{missing[0]}`"
                if missing
                else f"its class raised {_in_short(error)}"
            )
            raise _MisfitError(reason, path) from None


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


class _ResultHalf(_Node):
    """`Ok[T]` or `Err[E]`: an object with the one key `ok`, `err`, or `failure` for an exception in an Err."""

    structural = True

    def __init__(self, hint: Any, half: Any, item: _Node) -> None:
        super().__init__(hint)
        self.half = half
        self.item = item
        self.keys = ("ok",) if half is Ok else ("err", "failure")

    def parts(self) -> list[_Node]:
        return [self.item]

    def fits(self, value: object) -> bool:
        return isinstance(value, self.half)

    def lower(self, value: Any, path: str, deep: bool) -> Any:
        if not isinstance(value, self.half):
            raise _MisfitError(f"expected `{self.half.__name__}`, got `{type(value).__name__}`", path)
        if isinstance(value, Err) and isinstance(value.error, BaseException):
            return {"failure": failures.record(value.error)}
        held = value.error if isinstance(value, Err) else value.value
        return {self.keys[0]: self.item.lowered(held, f"{path}.{self.keys[0]}", deep=deep)}

    def lift(self, stored: Any, path: str) -> Any:
        if not isinstance(stored, dict) or len(stored) != 1 or next(iter(stored)) not in self.keys:
            raise _MisfitError(f"expected an object with the key {' or '.join(map(repr, self.keys))}", path)
        ((key, held),) = stored.items()
        if key == "failure":
            return Err(_build(Exception, held))
        return self.half(self.item.lifted(held, f"{path}.{key}"))


class _Union(_Node):
    """A union. Where msgspec cannot tell its members apart in JSON, they carry their names.

    None, booleans, numbers and text are stored as they are; objects get a key `$type`, all else is wrapped:
    `{"$type": "date", "value": "2024-02-29"}`. A sole array and a sole text-like member need no wrapping.
    """

    def __init__(self, hint: Any, members: list[_Node]) -> None:
        super().__init__(hint)
        self.members = members
        self.halves = [member for member in members if isinstance(member, _ResultHalf)]
        self.structural = not _builds(hint) if not any(_is_structural(m) for m in members) else True
        self.bare: list[_Node] = []
        self.tags: dict[str, _Node] = {}
        if self.structural:
            self.bare = self._bare_members()
            self._name_members()

    def parts(self) -> list[_Node]:
        return self.members

    def is_text_like(self) -> bool:
        return all(member.is_text_like() for member in self.members) and not self.structural

    def _name_members(self) -> None:
        named = [m for m in self.members if m not in self.bare and m not in self.halves]
        short = [member.names() for member in named]
        for member, name in zip(named, short, strict=True):
            if short.count(name) > 1:
                name = (
                    f"{getattr(member.hint, '__module__', '')}.{getattr(member.hint, '__qualname__', name)}"
                )
            if name in self.tags:
                raise _Unsupported(
                    f"two members of the union `{self.hint}` are both called `{name}`: rename one"
                )
            self.tags[name] = member

    def _bare_members(self) -> list[_Node]:
        """Return the members that JSON tells apart without a name."""
        kinds = [_json_kind(member) for member in self.members]
        plain = ("null", "bool", "number", "any")
        alone = {kind for kind in ("string", "array", "object") if kinds.count(kind) == 1}
        if "other" in kinds or not all(kind in plain or kind in alone for kind in kinds):
            alone.discard("object")  # what carries a name is an object too
        return [
            member
            for member, kind in zip(self.members, kinds, strict=True)
            if kind in plain or kind in alone or _unwrapped(member).hint is str
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
                return _lower_anything(value, path)
            raise _MisfitError(f"expected `{_hint_name(self.hint)}`, got `{type(value).__name__}`", path)
        lowered = member.lowered(value, path, deep=deep)
        tag = next((name for name, tagged in self.tags.items() if tagged is member), None)
        if tag is None:
            return lowered
        plain = lowered if isinstance(lowered, dict) else _to_builtins(lowered, path)
        return {TAG: tag, **plain} if _is_inline(member) else {TAG: tag, "value": plain}

    def _member_of(self, value: object) -> _Node | None:
        fitting = [member for member in self.members if member.fits(value)]
        exact = (
            m for m in fitting if type(value) is (typing.get_origin(_unwrapped(m).hint) or _unwrapped(m).hint)
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
            raise _MisfitError(f"expected an object {', or '.join(known)}", path)
        if _is_inline(member):
            return member.lifted({key: item for key, item in stored.items() if key != TAG}, path)
        return member.lifted(stored.get("value"), f"{path}.value")

    def _lift_bare(self, stored: Any, path: str) -> Any:
        misfit = None
        for member in self.bare:
            try:
                value = member.lifted(stored, path)
            except _MisfitError as error:
                misfit = error if misfit is None or len(error.path) > len(misfit.path) else misfit
                continue
            if type(value) is type(stored) or not isinstance(stored, (int, float)):
                return value
            misfit = misfit or _MisfitError("", path)
        for member in self.bare:  # a float that is stored as an integer
            try:
                return member.lifted(stored, path)
            except _MisfitError:
                continue
        if misfit is not None and misfit.path != path:
            raise misfit
        raise _expected(_hint_name(self.hint), stored, path)


def _is_structural(member: _Node) -> bool:
    return any(node.structural for node in _reachable(member))


def _unwrapped(node: _Node) -> _Node:
    while isinstance(node, _Annotated):
        node = node.target
    return node


def _is_inline(member: _Node) -> bool:
    """Whether a union's tag goes into the member's own JSON object."""
    node = _unwrapped(member)
    if isinstance(node, _Object):
        return not node.is_array
    return isinstance(node, _Hooked) and _json_kind(node) == "object"


def _json_kind(member: _Node) -> str:
    node = _unwrapped(member)
    if isinstance(node, _Anything):
        return "any"
    if isinstance(node, _Scalar):
        return _scalar_kind(node.kind)
    if isinstance(node, _Hooked):
        if getattr(node.cls, "__pydantic_root_model__", False):
            return "other"
        base = _scalar_base(node.cls)
        return "object" if base is None else "string" if base is str else "other"
    if isinstance(node, (_Array, _Tuple)) or (isinstance(node, _Object) and node.is_array):
        return "array"
    return "object" if isinstance(node, (_Object, _Mapping)) else "other"


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
        return msgspec.to_builtins(value, enc_hook=_plain, order="deterministic")
    except Exception:
        return _lower_anything(value, path)
