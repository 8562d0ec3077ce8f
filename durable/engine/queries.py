"""Queries: what a run answers about itself, asked of an instance that was rebuilt for nothing else and goes right after.

The function that answers is the author's, and is called as code of the run: it sees what the workflow sees, and guards hold. It only looks: whatever it asks for
is refused, after the call, and since the instance is thrown away nothing of it is left. Knows nothing of stores.
"""

from __future__ import annotations

import asyncio
import difflib
from functools import partial
from typing import Any

from durable.engine.instance import Instance
from durable.engine.runtime import Continuation
from durable.errors import ArgumentsError, DefinitionError
from durable.journal.matching import label
from durable.payloads import Arguments, ValueType


def answer(instance: Instance, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the run answers; the instance is only good for eviction then.

    Arguments and answer pass the codec, so that nobody is handed what the run holds. Raises what the author's function raises, `ArgumentsError`: no such
    query, or arguments that do not fit; `DefinitionError`: it did more than look; `PayloadError`: the answer cannot be stored.
    """
    call = (instance.queries or {}).get(name)
    if call is None:
        raise ArgumentsError(_unknown(instance, name))
    arguments, result = Arguments.of(call), ValueType.of_return(call)
    data = arguments.encode(args, kwargs)
    arguments.check_types(data)
    args, kwargs = arguments.decode(data)
    value = _looked(instance, name, partial(call, *args, **kwargs))
    return result.decode(result.encode_result(value))


def _unknown(instance: Instance, name: str) -> str:
    known = sorted(instance.queries or ())
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?"
        if near
        else f"it answers: {', '.join(known) or 'none'}"
    )
    return f"run {instance.identity.run_id!r} answers no query {name!r} ({hint})"


def _looked(instance: Instance, name: str, call: partial[Any]) -> Any:
    loop, operations = instance.loop, instance.operations
    before = loop.ready, len(operations.pending)
    instance.is_replaying = True  # it logs nothing
    try:
        value = loop.call_now(call)
    except Continuation:
        raise DefinitionError(f"query {name!r} only looks: it cannot continue as new") from None
    if instance.fault is not None:  # a guard's, which the author's code may have swallowed
        raise instance.fault
    if asyncio.iscoroutine(value):
        value.close()
        raise DefinitionError(f"query {name!r} only looks: it returned a coroutine, which nobody awaits")
    asked = operations.pending[before[1] :]
    if asked or loop.ready != before[0]:
        what = ", ".join(label(one.kind, one.name) for one in asked) or "something to be run"
        raise DefinitionError(f"query {name!r} only looks: it asked for {what}")
    return value
