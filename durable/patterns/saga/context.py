"""`SagaContext`: what actions and compensations are called with, and how what they write to it becomes durable."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from typing import Any

import msgspec

from durable import activity_info
from durable.patterns.calling import is_coroutine_function, takes_context, takes_uncertain
from durable.patterns.saga.steps import answered


class SagaContext(MutableMapping[str, Any]):
    """A mapping over the saga's `data`. What an action writes to `data` or `metadata` is part of its journal entry.

    `step_results` has the outputs so far, by step.
    """

    def __init__(
        self,
        *,
        saga_id: str,
        saga_name: str,
        data: dict[str, Any] | None = None,
        step_results: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.saga_id = saga_id
        self.saga_name = saga_name
        self.data = {} if data is None else data
        self.step_results = {} if step_results is None else step_results
        self.metadata = {} if metadata is None else metadata

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt of the running step: for whoever can deduplicate."""
        return activity_info().idempotency_key

    def __getitem__(self, key: str) -> Any:
        return self.data[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.data[key] = value

    def __delitem__(self, key: str) -> None:
        del self.data[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.data)

    def __len__(self) -> int:
        return len(self.data)

    def __repr__(self) -> str:
        return f"<context of saga {self.saga_name} {self.saga_id}: {self.data!r}>"

    def plain(self) -> dict[str, Any]:
        """Return it as the data that a step is called with."""
        return {
            "saga_id": self.saga_id,
            "saga_name": self.saga_name,
            "data": self.data,
            "step_results": self.step_results,
            "metadata": self.metadata,
        }

    def branched(self) -> SagaContext:
        """Return another that begins as this one: for a step that runs side by side with others."""
        return SagaContext(
            saga_id=self.saga_id,
            saga_name=self.saga_name,
            data=self.data,
            step_results=dict(self.step_results),
            metadata=self.metadata,
        )

    def join(self, branches: Iterable[SagaContext]) -> None:
        """Take over what branches of this one, as it is, have changed: by key, and of two that wrote one key the later's."""
        data, metadata = self.data, self.metadata
        for branch in branches:
            data = merged(data, self.data, branch.data)
            metadata = merged(metadata, self.metadata, branch.metadata)
            self.step_results.update(branch.step_results)
        self.data, self.metadata = data, metadata

    def absorb(self, written: dict[str, Any], step: str | None) -> Any:
        """Take over what a step wrote, as its journal entry tells it, and return its output; `step` None: a compensation."""
        self.data = written.get("data", self.data)
        self.metadata = written.get("metadata", self.metadata)
        output = written.get("output")
        if step is not None:
            self.step_results[step] = output
        return output


def merged(into: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return `into` with what has changed between `before` and `after`."""
    if after is before:
        return into
    changed = {
        key: value
        for key, value in after.items()
        # As they would be stored: 1 and True are not the same.
        if key not in before or msgspec.json.encode(value) != msgspec.json.encode(before[key])
    }
    gone = before.keys() - after.keys()
    return {key: value for key, value in into.items() if key not in gone} | changed


def on_context(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of a context's plain data that calls `fn` with a `SagaContext` (or nothing), and tells what it wrote.

    With an argument `uncertain` if `fn` takes one. The result: `{"output": ...}`, with `data` and `metadata` if these changed.
    """
    has_context, has_uncertain = takes_context(fn), takes_uncertain(fn)

    def arguments(context: SagaContext, uncertain: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return (context,) if has_context else (), {"uncertain": uncertain} if has_uncertain else {}

    if is_coroutine_function(fn):

        async def call_and_wait(context: dict[str, Any], uncertain: bool = False) -> dict[str, Any]:
            made, before = _made(context)
            args, kwargs = arguments(made, uncertain)
            return _written(made, before, answered(await fn(*args, **kwargs)))

        return call_and_wait

    def call(context: dict[str, Any], uncertain: bool = False) -> Any:
        made, before = _made(context)
        args, kwargs = arguments(made, uncertain)
        value = fn(*args, **kwargs)
        return (
            _later(made, before, value)
            if inspect.isawaitable(value)
            else _written(made, before, answered(value))
        )

    return call


async def _later(made: SagaContext, before: tuple[bytes, bytes], value: Awaitable[Any]) -> dict[str, Any]:
    return _written(made, before, answered(await value))


def _made(context: dict[str, Any]) -> tuple[SagaContext, tuple[bytes, bytes]]:
    made = SagaContext(**context)
    return made, (msgspec.json.encode(made.data), msgspec.json.encode(made.metadata))


def _written(context: SagaContext, before: tuple[bytes, bytes], output: Any) -> dict[str, Any]:
    written: dict[str, Any] = {"output": output}
    for name, value, old in (("data", context.data, before[0]), ("metadata", context.metadata, before[1])):
        try:
            is_changed = msgspec.json.encode(value) != old
        except Exception:  # what only the codec can store, or nobody: it says so
            is_changed = True
        if is_changed:
            written[name] = value
    return written
