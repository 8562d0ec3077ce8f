"""What an error holds, as JSON and back: its arguments and fields, as far as JSON has words for them.

JSON has no tuples. Where there was one is written down beside the JSON, as a path: an index of the arguments or the name of a field,
then indexes and keys. So what a workflow reads of an error is of the same types as what was raised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from durable.limits import is_too_deep

ARGUMENTS_BYTES_MAX: Final = 64 * 1024
TUPLES_MAX: Final = 1000  # of one error: paths may be longer than what they lead to
T = TypeVar("T")
Path = list[int | str]

encode: Final = msgspec.json.Encoder().encode  # dicts keep their order, as their text shows it
_decode: Final = msgspec.json.decode


def as_json(value: object) -> bytes | None:
    """Return the JSON of a value, or None: too large, not storable, or a NaN (which JSON would make null)."""
    try:
        data = encode(value)
        is_kept = (
            len(data) <= ARGUMENTS_BYTES_MAX
            and (b"null" not in data or _is_finite(value))
            and not is_too_deep(data)
        )
    except Exception:
        return None
    return data if is_kept else None


def as_json_array(values: list[Any]) -> list[Any] | None:
    """Return what JSON makes of the values, or None."""
    data = as_json(values)
    return None if data is None else _decode(data, type=list[Any])


def kept_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of those of the fields that it holds."""
    return {name: _decode(data) for name, value in fields.items() if (data := as_json(value)) is not None}


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return value - value == 0
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_finite, value))
    return True


def is_same(stored: object, given: object) -> bool:
    """Whether a value that went through JSON is what was given, of the same types throughout, apart from tuples."""
    if type(stored) is list and type(given) in (list, tuple):
        items: Any = given
        return len(stored) == len(items) and all(map(is_same, stored, items))
    if type(stored) is not type(given):
        return False
    if isinstance(stored, dict) and isinstance(given, dict):
        return stored.keys() == given.keys() and all(is_same(stored[key], given[key]) for key in stored)
    return stored is None or (isinstance(stored, (str, int, float, bool)) and stored == given)


def tuple_paths(given: list[Any] | dict[str, Any]) -> list[Path] | None:
    """Return where there are tuples in arguments, or in fields; None: too many. Only for what JSON holds, which has an end."""
    found = list(islice(_walk(given, []), TUPLES_MAX + 1))
    return found if len(found) <= TUPLES_MAX else None


def _walk(value: Any, path: Path) -> Iterator[Path]:
    if type(value) is tuple:
        yield path
    if type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield from _walk(item, [*path, index])
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is str:
                yield from _walk(item, [*path, key])


def with_tuples(value: T, paths: Sequence[Path] | None) -> T:
    """Return arguments or fields from JSON with tuples where `paths` lead. A path that leads nowhere is none."""
    if not paths:
        return value
    restored: T = _restored(value, {tuple(path) for path in paths if path}, ())
    return restored


def _restored(value: Any, paths: Collection[tuple[int | str, ...]], path: tuple[int | str, ...]) -> Any:
    if isinstance(value, list):
        items = [_restored(item, paths, (*path, index)) for index, item in enumerate(value)]
        return tuple(items) if path in paths else items
    if isinstance(value, dict):
        return {key: _restored(item, paths, (*path, key)) for key, item in value.items()}
    return value
