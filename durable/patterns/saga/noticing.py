"""Notices state that an action keeps where a replay will not find it: on the saga object, or in a closure.

A warning, not an error: the live run is right; but after a crash the action is not called again, its result is read from the journal, and what it
kept beside is gone.
"""

from __future__ import annotations

import functools
import inspect
import logging
import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from durable.patterns.calling import adapted, as_context, is_coroutine_function

log: Final = logging.getLogger("durable.saga")
_MISSING: Final = object()
ADVICE: Final = "return it as the step's result, and read it from the context"


class LostStateWarning(UserWarning):
    """An action of a saga changed something that a replay will not have."""


def noticed(
    saga: object | None,
    fn: Callable[..., Any],
    what: str,
    settle: Callable[[Any], Any],
    *,
    advice: str = ADVICE,
) -> Callable[..., Any]:
    """Return a function that does what `fn` does, settles its answer, and warns if attributes of `saga`, or variables of the closure, changed.

    It hands a plain dict on as a `StepContext`. `what` says whose action this is, `advice` what to do instead. `saga` None: there
    is no object of the author's.
    """
    if saga is None and not getattr(fn, "__closure__", None):
        return adapted(fn, settle)
    compare = functools.partial(_compare, what=what, advice=advice)
    if is_coroutine_function(fn):

        async def call_and_wait(*args: Any, **kwargs: Any) -> Any:
            before = _state(saga, fn)
            value = await fn(*map(as_context, args), **kwargs)
            compare(before, _state(saga, fn))
            return settle(value)

        return call_and_wait

    async def later(value: Awaitable[Any], before: dict[str, object]) -> Any:
        awaited = await value
        compare(before, _state(saga, fn))
        return settle(awaited)

    def call(*args: Any, **kwargs: Any) -> Any:
        before = _state(saga, fn)
        value = fn(*map(as_context, args), **kwargs)
        if inspect.isawaitable(value):
            return later(value, before)
        compare(before, _state(saga, fn))
        return settle(value)

    return call


def _state(saga: object | None, fn: Callable[..., Any]) -> dict[str, object]:
    """Return what can be compared: plain data by its content, variables of a closure by their identity."""
    attributes = {} if saga is None else vars(saga)
    state = {f"self.{name}": _content(value) for name, value in attributes.items() if name != "_saga"}
    code = getattr(fn, "__code__", None)
    for name, cell in zip(
        getattr(code, "co_freevars", ()), getattr(fn, "__closure__", None) or (), strict=False
    ):
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        if isinstance(value, str | int | float | bool | None):
            state[f"the variable {name!r} of its closure"] = value
    return state


_ATOMS: Final = frozenset((str, int, bool, type(None)))  # no float: NaN is not even equal to itself


def _content(value: object) -> object:
    if value.__class__ in _ATOMS:
        return value
    if callable(value):  # what it holds is not ours to compare
        return None
    try:
        return msgspec.json.encode(value)
    except Exception:  # not data: a client, a lock; whatever it holds is not ours to compare
        return None


def _compare(before: dict[str, object], after: dict[str, object], *, what: str, advice: str) -> None:
    changed = [name for name, value in after.items() if before.get(name, _MISSING) != value]
    if not changed:
        return
    text = (
        f"{what} changed {', '.join(changed)}: after a crash a recorded action is not called again, and what it kept there is lost; "
        f"{advice}"
    )
    try:
        warnings.warn(text, LostStateWarning, stacklevel=3)
    except (
        LostStateWarning
    ):  # warnings are errors here; but the step has had its effect, and must be recorded
        log.warning("%s", text)
