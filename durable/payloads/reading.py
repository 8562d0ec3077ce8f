"""JSON -> classes that msgspec does not know by itself; and what is wrong with JSON that does not fit.

A fault is told by type and place, never by content. Knows nothing of nodes.
"""

from __future__ import annotations

from typing import Any

import msgspec

from durable import failures
from durable.payloads.misfits import MisfitError
from durable.payloads.plain import is_pydantic, scalar_base


class _RefusedError(ValueError):
    """Raised by our own `dec_hook`: its text is ours and safe to show."""


def reading_fault(error: Exception) -> tuple[str, str]:
    """Return the reason and the path (without its `$`) of a value that could not be read; never its content."""
    if isinstance(error, MisfitError):
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


def build(hint: Any, stored: Any) -> Any:
    """Return an instance of a class msgspec does not know (its `dec_hook`)."""
    if hint is object:  # within a container msgspec asks us for it
        return stored
    if is_pydantic(hint):
        return _build_pydantic(hint, stored)
    if issubclass(hint, BaseException):
        return failures.rebuild(msgspec.convert(stored, failures.Failure))
    base = scalar_base(hint)
    is_fit = base is not None and isinstance(stored, (base, int) if base is float else base)
    if not is_fit or isinstance(stored, bool):
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


def msgspec_reads(hint: Any) -> bool:
    """Whether msgspec can read values of a hint by itself, with `build` to help it."""
    try:
        msgspec.json.Decoder(hint, dec_hook=build)
    except Exception:  # TypeError mostly; RecursionError for an alias that refers to itself
        return False
    return True
