"""What managers and orchestrators have in common inside a run: units of work on one context, undone together."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from typing import Any, Final

import durable
from durable import (
    PlatformFault,
    Retry,
    SagaError,
    SagaScope,
    Seconds,
    WorkflowCompensationError,
    make_activity,
)
from durable.patterns.calling import cause_of, takes_uncertain
from durable.patterns.policies import retry_of, undoing
from durable.patterns.saga.config import SagaConfig
from durable.patterns.saga.context import SagaContext, on_context


class UncompensatedError(SagaError):
    """A saga failed, and nothing was undone, as its configuration wants it."""

    __durable_compensated__ = False

    def _undone(self) -> str:
        return "compensation is disabled"


async def _on_context(context: dict[str, Any], uncertain: bool = False) -> dict[str, Any]:
    raise NotImplementedError  # stands for all that `on_context` makes


_UNIT: Final = make_activity(_on_context, name="unit", cancellation="wait")


class Unit:
    """One step: what does it, what undoes it, and under which policy: `retry`, or `retries` with the configuration's delay, or its own."""

    def __init__(
        self,
        name: str,
        action: Callable[..., Any],
        undo: Callable[..., Any] | None = None,
        *,
        retry: Retry | None = None,
        retries: int | None = None,
        timeout: Seconds | None = None,
        undo_retry: Retry | None = None,
        undo_timeout: Seconds | None = None,
    ) -> None:
        self.name = name
        self.undo = undo
        self.action = action
        self.retry = retry
        self.retries = retries
        self.timeout = timeout
        self.undo_retry = undo_retry
        self.undo_timeout = undo_timeout


class Performing:
    """One saga that runs, or a branch of it: its context, its scope, its configuration. What is undone sees the context of the `whole`."""

    def __init__(
        self, scope: SagaScope, context: SagaContext, config: SagaConfig, whole: Performing | None = None
    ) -> None:
        self.context = context
        self.config = config
        self._scope = scope
        self._whole = self if whole is None else whole

    def branched(self) -> Performing:
        """Return what performs a step side by side with others: none of them sees what another writes."""
        return Performing(self._scope, self.context.branched(), self.config, self._whole)

    async def perform(self, unit: Unit) -> Any:
        """Perform a unit and return its output; from then on it will be undone if the saga fails."""
        retry = self._retry(unit)
        act = _UNIT.with_fn(on_context(unit.action), name=unit.name, retry=retry, timeout=unit.timeout)
        undo = undo_uncertain = None
        if unit.undo is not None and self.config.enable_compensation:
            undo = functools.partial(self._recorded, unit)
            undo_uncertain = functools.partial(self._uncertain, unit) if takes_uncertain(unit.undo) else None
        written = await self._scope.call(
            act, (self.context.plain(),), undo=undo, undo_uncertain=undo_uncertain
        )
        return self.context.absorb(written, unit.name)

    def _retry(self, unit: Unit) -> Retry:
        if unit.retry is not None:
            return unit.retry
        retries = self.config.max_retries_per_step if unit.retries is None else unit.retries
        return retry_of(retries, self.config.retry_delay_seconds)

    def _recorded(self, unit: Unit, written: dict[str, Any]) -> Callable[[], Any]:
        # Here, too, for a step that was recorded while its caller was cancelled: its compensation sees its output.
        self.context.absorb(written, unit.name)
        return functools.partial(self._compensate, unit, False)

    def _uncertain(self, unit: Unit, _: object) -> Callable[[], Any]:
        return functools.partial(self._compensate, unit, True)

    async def _compensate(self, unit: Unit, uncertain: bool) -> None:
        assert unit.undo is not None, "registered with one"
        undo = _UNIT.with_fn(
            on_context(unit.undo),
            name=f"{unit.name}/compensation",
            kind="compensation",
            retry=undoing(self._retry(unit)) if unit.undo_retry is None else unit.undo_retry,
            timeout=unit.timeout if unit.undo_timeout is None else unit.undo_timeout,
        )
        context = self._whole.context
        context.absorb(await undo(context.plain(), uncertain), None)


async def perform_saga(
    name: str,
    data: dict[str, Any],
    stored: dict[str, Any] | None,
    body: Callable[[Performing], Any],
) -> dict[str, Any]:
    """Run the body of a saga under its configuration and return its data and results; raise `SagaError` if it failed."""
    config = SagaConfig(**(stored or {}))
    context = SagaContext(saga_id=durable.info().run_id, saga_name=name, data=dict(data))
    scope: SagaScope | None = None
    try:
        async with durable.saga() as scope, asyncio.timeout(config.limit):
            await body(Performing(scope, context, config))
    except PlatformFault:
        raise
    except Exception as error:
        assert scope is not None
        cause = error.__cause__ if isinstance(error, WorkflowCompensationError) else error
        cause = cause_of(cause or error)
        if not config.enable_compensation:
            raise UncompensatedError(scope.failed_step, cause) from cause
        raise scope.error(cause) from cause
    return {"data": context.data, "step_results": context.step_results}
