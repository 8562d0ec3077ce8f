"""Refusing a value: finding the place in it that cannot be stored, and the values that msgspec would store wrongly.

The fast way writes a value first and asks afterwards. When msgspec refuses, or its bytes look suspicious, the value is
walked once more (`lower`, the slow way) to mend it or to name the path of what is wrong. Knows nothing of hints.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from durable.errors import DefinitionError, PayloadError
from durable.limits import DEPTH_MAX, is_too_deep
from durable.payloads.misfits import MisfitError, error_name
from durable.payloads.plain import encode, plain

SUSPICIOUS_BYTES: Final = 2 * DEPTH_MAX  # less cannot be nested too deeply
# Sought with find(): `in` tries the needle as an integer first, which costs more than msgspec.
NULL: Final = b"null"

_pack: Final = msgspec.msgpack.Encoder(enc_hook=plain).encode
# A double whose exponent is all ones: infinity or NaN. False alarms (text) only cost a walk.
_non_finite: Final = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]").search


def encode_or_refuse(lower: Callable[[], Any], refusal: Exception | None = None) -> bytes:
    """Return the JSON of what `lower` returns: it mends what msgspec refused (say, int keys), or knows where that is."""
    if isinstance(refusal, DefinitionError):
        raise refusal
    lowered = _lowered_or_refused(lower)
    try:
        data = encode(lowered)
    except Exception as error:
        raise PayloadError(f"the value cannot be stored: {error_name(error)}") from None
    _check_depth(data)
    return data


def _lowered_or_refused(lower: Callable[[], Any]) -> Any:
    try:
        return lower()
    except MisfitError as misfit:
        path = f"${misfit.path}"
        raise PayloadError(f"{path}: {misfit.reason}", path=path) from None
    except RecursionError:
        reason = "it contains itself, or is nested too deeply"
        raise PayloadError(f"the value cannot be stored: {reason}") from None


def inspect_written(data: bytes, value: object, lower: Callable[[], Any]) -> None:
    """Look closer at bytes that hold a null, for msgspec writes NaN so; and at those that are many."""
    _check_depth(data)
    if data.find(NULL) >= 0 and _may_hold_non_finite(value):
        _lowered_or_refused(lower)


def _check_depth(data: bytes) -> None:
    if is_too_deep(data):
        raise PayloadError(f"the value cannot be stored: it is nested more than {DEPTH_MAX} levels deep")


def _may_hold_non_finite(value: object) -> bool:
    # MessagePack keeps NaN and infinity as they are; packing and searching is far cheaper than a walk.
    try:
        return _non_finite(_pack(value)) is not None
    except Exception:
        return True  # e.g. an integer beyond 64 bits: walk
