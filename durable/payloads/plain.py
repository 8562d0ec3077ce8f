"""Any value -> what JSON can hold, without a hint; and the encoder and decoder of the stored form.

`plain` answers msgspec for a type it does not know. `lower_anything` walks the whole value itself, to mend what msgspec
refuses or to say where it is. Knows nothing of hints.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from typing import Any, Final

import msgspec

from durable import failures
from durable.payloads.misfits import MisfitError, error_name, not_storable, step, type_name
from durable.result import Err, Ok

decode_any: Final = msgspec.json.Decoder().decode

LEAVES: Final = (
    bytes,
    bytearray,
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
ARRAYS: Final = (list, tuple, set, frozenset)
_SCALAR_BASES: Final = (str, int, float)


def plain(value: Any) -> Any:
    """Return what msgspec should write for a type it does not know (its `enc_hook`)."""
    cls = type(value)
    if is_pydantic(cls):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if isinstance(value, Ok):
        return {"ok": value.value}
    if isinstance(value, Err):
        if isinstance(value.error, BaseException):
            return {"failure": failures.record(value.error)}
        return {"err": value.error}
    if isinstance(value, BaseException):
        return failures.record(value)
    base = scalar_base(cls)
    if base is None:
        raise MisfitError(not_storable(type_name(cls)))
    return str.__str__(value) if base is str else base(value)


encode: Final = msgspec.json.Encoder(order="deterministic", enc_hook=plain).encode


def lower_anything(value: Any, path: str = "") -> Any:
    """Return a value as plain JSON; raise for what cannot be stored, with its path."""
    cls = type(value)
    if value is None or cls is bool:
        return value
    if isinstance(value, enum.Enum):
        return lower_anything(value.value, path)
    if isinstance(value, (str, int, float)):
        return _lower_scalar(value, path)
    if isinstance(value, LEAVES) or cls in (msgspec.Raw, memoryview):
        return value
    if isinstance(value, dict):
        return {
            text_key(key, path): lower_anything(item, f"{path}{step(key)}") for key, item in value.items()
        }
    if isinstance(value, ARRAYS):
        items = [lower_anything(item, f"{path}[{i}]") for i, item in enumerate(value)]
        return sorted_items(items) if isinstance(value, (set, frozenset)) else items
    if isinstance(value, msgspec.Struct) and cls.__struct_config__.array_like:
        items = [*struct_tag(cls).values(), *(getattr(value, name) for name in cls.__struct_fields__)]
        return [lower_anything(item, f"{path}[{i}]") for i, item in enumerate(items)]
    fields = object_items(value)
    if fields is not None:
        return {name: lower_anything(item, f"{path}.{name}") for name, item in fields.items()}
    return lower_anything(_plain_at(value, path), path)


def _plain_at(value: Any, path: str) -> Any:
    try:
        return plain(value)
    except MisfitError as misfit:
        raise MisfitError(misfit.reason, path) from None
    except Exception as error:
        reason = f"a value of type `{type_name(type(value))}` cannot be stored: {error_name(error)}"
        raise MisfitError(reason, path) from None


def _lower_scalar(value: str | int | float, path: str) -> str | int | float:
    if isinstance(value, str):
        text = str.__str__(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"text with a lone surrogate at position {error.start} cannot be stored: replace it, or store bytes"
            raise MisfitError(reason, path) from None
        return text
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MisfitError(f"JSON cannot hold the float {float(value)!r}: use None or text for it", path)
        return float(value)
    try:
        encode(int(value))
    except ValueError:
        raise MisfitError("an integer of so many digits cannot be stored: use text", path) from None
    return int(value)


def text_key(key: object, path: str) -> str:
    if isinstance(key, str):
        return str(_lower_scalar(key.value if isinstance(key, enum.Enum) else key, path))
    raise MisfitError(
        f"a dict key of type `{type_name(type(key))}` would come back as text: use text keys, or a type hint such as "
        f"dict[{type(key).__name__}, ...]",
        path,
    )


def object_items(value: Any) -> dict[str, Any] | None:
    """Return what msgspec would store of a dataclass or Struct instance."""
    cls = type(value)
    if isinstance(value, msgspec.Struct):
        pairs = zip(cls.__struct_encode_fields__, cls.__struct_fields__, strict=True)
        items = {stored: getattr(value, name) for stored, name in pairs}
        return struct_tag(cls) | {name: item for name, item in items.items() if item is not msgspec.UNSET}
    if dataclasses.is_dataclass(cls):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(cls) if hasattr(value, f.name)}
    if hasattr(cls, "__attrs_attrs__"):
        return {f.name: getattr(value, f.name) for f in cls.__attrs_attrs__}
    return None


def struct_tag(cls: Any) -> dict[str, Any]:
    """Return the tag that msgspec adds to a Struct, under its key."""
    config = cls.__struct_config__
    return {} if config.tag is None else {config.tag_field: config.tag}


def sorted_items(items: list[Any]) -> list[Any]:
    try:
        if all(isinstance(item, (int, float)) for item in items) or all(isinstance(i, str) for i in items):
            return sorted(items)
        return sorted(items, key=encode)
    except Exception:
        return items  # what cannot be encoded is refused in a moment


def scalar_base(cls: type) -> type | None:
    return next((base for base in _SCALAR_BASES if issubclass(cls, base)), None)


def is_pydantic(cls: Any) -> bool:
    # By attributes: pydantic is optional and slow to import.
    return (
        isinstance(cls, type)
        and hasattr(cls, "__pydantic_validator__")
        and hasattr(cls, "model_validate_json")
    )
