"""Scopes of sagas: what was done in them is undone, in reverse, if they fail or are cancelled.

Theory. A step is registered when its outcome is *fed*: so the order is that of the journal, and a result that arrives
together with a cancel counts. A scope that fails first stops its steps that are still running, and waits for their recorded
ends. Then it undoes in a task of its own, which no cancel of the run reaches; a failed compensation is kept and does not stop the others.
A crash in the middle is nothing special: the replay brings the scope back to where it was.

A step that was interrupted (cancelled, timed out, its worker lost) may or may not have had its effect. It was not recorded,
so it is not undone; unless its compensation takes a parameter `uncertain`: then it is called, with `uncertain=True`.

The body of every workflow is a scope, too, the outermost. Knows nothing of classes of sagas: those are patterns.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Final

import anyio

from durable.activities import Activity
from durable.engine.runtime import OnEnd, Runtime, current, name_prefix
from durable.errors import (
    ActivityError,
    ActivityTimeoutError,
    DefinitionError,
    PlatformFault,
    SagaError,
    WorkerLostError,
    WorkflowCompensationError,
)
from durable.seams import spawn

# Given a step's value, return the call that undoes it. Made when the step's outcome is fed.
MakeUndo = Callable[[Any], Callable[[], Coroutine[Any, Any, Any]]]

_scope: Final[ContextVar[SagaScope | None]] = ContextVar("durable_saga", default=None)


class SagaScope:
    """What was done, and how each of it is undone. Made by `saga()`, or for a workflow's body when it is first needed."""

    def __init__(self, run: Runtime) -> None:
        self._run = run
        # Step, name prefix, undo; in the order of recording.
        self._done: list[tuple[str, str, Callable[[], Coroutine[Any, Any, Any]]]] = []
        self._open: dict[object, asyncio.Task[Any] | None] = {}
        self._ended: asyncio.Future[None] | None = None
        self.compensated: list[str] = []
        self.failed: dict[str, BaseException] = {}
        self.failed_step = ""

    @staticmethod
    def current() -> SagaScope | None:
        """Return the scope that workflow code is in: of the innermost `saga()`, else of the workflow's body. None outside of runs."""
        run = current()
        if run is None:
            return None
        scope = _scope.get()
        if scope is not None and scope._run is run:
            return scope
        outermost = run.outermost
        if outermost is None:
            outermost = run.outermost = SagaScope(run)
            run.unwind = outermost.unwind
        assert isinstance(outermost, SagaScope)
        return outermost

    async def call(
        self,
        step: Activity[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        undo: MakeUndo | None = None,
        undo_uncertain: MakeUndo | None = None,
        told: list[int] | None = None,
    ) -> Any:
        """Perform a step and remember how to undo it: from the moment its result is recorded.

        `undo(value)` returns the call that does it; `undo_uncertain(None)` that for a step of which nobody knows. The number of
        attempts is appended to `told`.
        """
        key = object()
        prefix = name_prefix.get()

        def on_end(value: Any, error: BaseException | None, attempts: int) -> None:
            if told is not None:
                told.append(attempts)
            if error is None:
                make = undo
            else:
                self.failed_step = step.name
                make = undo_uncertain if _is_uncertain(error) else None
            if make is not None:
                self._done.append((step.name, prefix, make(value)))

        self._open[key] = asyncio.current_task()
        try:
            return await _journaled(step, args, kwargs or {}, on_end=on_end)
        finally:
            del self._open[key]
            if self._ended is not None and not self._open and not self._ended.done():
                self._ended.set_result(None)

    async def unwind(self, error: BaseException) -> None:
        """Undo everything, whatever is cancelled meanwhile. Raise `WorkflowCompensationError` if some of it failed.

        A cancelled scope raises nothing: its cancellation goes on, and the journal tells what failed.
        """
        if self._done or self._open:
            await shielded(self._undo_all())
        if self.failed and not isinstance(error, asyncio.CancelledError):
            raise self.error(error) from error

    def error(self, cause: BaseException, step_name: str | None = None) -> SagaError:
        """Return the error that tells how the scope ended."""
        cls = WorkflowCompensationError if self.failed else SagaError
        name = self.failed_step if step_name is None else step_name
        return cls(name, cause, self.compensated, list(self.failed))

    async def _undo_all(self) -> None:
        await self._stop_steps()
        while self._done:
            name, prefix, undo = self._done.pop()
            name_prefix.set(prefix)  # of this task only
            try:
                await undo()
            except Exception as error:
                self.failed[name] = error
            else:
                self.compensated.append(name)

    async def _stop_steps(self) -> None:
        """Cancel steps that nobody awaits any more, and wait for their recorded ends."""
        if self._open:
            self._ended = asyncio.get_running_loop().create_future()
            for task in self._open.values():
                if task is not None:
                    task.cancel()
            await self._ended


def _journaled(
    step: Activity[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, on_end: OnEnd
) -> Coroutine[Any, Any, Any]:
    run = current()
    if run is None:
        raise DefinitionError(f"step {step.name!r} of a saga scope was called outside of its run")
    definition, prefix = step.definition, name_prefix.get()
    if prefix or definition.cancellation != "wait":  # its recorded end decides whether it is undone
        definition = definition.renamed(prefix + definition.name)
        definition.cancellation = "wait"
    return run.call_activity(definition, args, kwargs, on_end)


def _is_uncertain(error: BaseException) -> bool:
    if isinstance(error, ActivityError):
        return error.type.endswith("CancelledError")
    return isinstance(error, WorkerLostError | ActivityTimeoutError)


async def shielded(coroutine: Coroutine[Any, Any, None]) -> None:
    """Await a coroutine to its end; a cancel that arrives meanwhile is raised afterwards."""
    run = current()
    assert run is not None, "in a run only"
    task = spawn(coroutine, name="compensation")
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as error:
                if run.is_evicting:
                    raise
                cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled


@asynccontextmanager
async def saga() -> AsyncIterator[SagaScope]:
    """In a workflow: what `@saga_step`s do in this block is undone, in reverse, if the block raises or is cancelled.

    Each compensation is retried durably, is not reached by cancellation, and goes on after a crash. The block's error goes
    on; if a compensation failed for good, `WorkflowCompensationError` does, from it. When the block completes, nothing in it will be undone any more.
    """
    run = current()
    if run is None:
        raise DefinitionError("saga() works only inside a workflow")
    scope = SagaScope(run)
    token = _scope.set(scope)
    run.open_sagas += 1
    try:
        yield scope
    except BaseException as error:
        is_fault = isinstance(error, PlatformFault)  # parks the run: it has not failed
        if not (run.is_evicting or is_fault) and isinstance(error, Exception | asyncio.CancelledError):
            await scope.unwind(error)
        raise
    finally:
        run.open_sagas -= 1
        _scope.reset(token)
