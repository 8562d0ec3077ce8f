"""Pipelines: steps one after the other, each called with the input and the results so far.

    notify = Pipeline("notify", [fetch, parallel("send", [email, sms]), archive])
    await notify.execute({"user": "u-1"}, run_id="notify-u-1")

Workflow code on top of the durable core; `running.py` tells how it becomes a run. Its steps are in `pipeline_steps.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Self

from durable import RunHandle, Seconds, Workflow, WorkflowTimeoutError, make_workflow
from durable.patterns.pipeline_steps import PipelineStep, PipelineStepError, as_step, check_unique
from durable.patterns.running import current_run_id, joined_name, origin_of, perform


class Pipeline:
    """Steps in order. `execute` returns the output of the last one, and raises `PipelineStepError` if one fails.

    Each step is called with a dict: the input, and under each earlier step's name its result, as plain data. `timeout` (seconds or
    timedelta) limits a whole run. `version` must be raised when a change breaks open runs. `retention` (seconds, timedelta or "forever") is
    how long runs are kept once they are closed, as with `@workflow`. Without a name it is called
    by its steps' names. ValueError: two steps of one name.
    """

    def __init__(
        self,
        name: str | None = None,
        steps: Iterable[object] = (),
        *,
        version: int = 1,
        timeout: Seconds | None = None,
        retention: Seconds | Literal["forever"] | None = None,
    ) -> None:
        self._name = name
        self._version = version
        self._timeout = timeout
        self._retention = retention
        self._steps: list[PipelineStep] = []
        self._made: Workflow[..., Any] | None = None
        for step in steps:
            self.add_step(step)
        self._workflow()  # what is wrong with the definition is said here

    @property
    def name(self) -> str:
        return self._name or joined_name("pipeline", (step.name for step in self._steps))

    @property
    def version(self) -> int:
        return self._version

    @property
    def steps(self) -> tuple[PipelineStep, ...]:
        return tuple(self._steps)

    def __repr__(self) -> str:
        return f"<pipeline {self.name} of {', '.join(step.name for step in self._steps) or 'nothing'}>"

    def add_step(self, step: object) -> Self:
        """Append a step: an activity (`@step`), a function, `conditional(...)`, `parallel(...)`. ValueError: its name is taken."""
        added = as_step(step)
        check_unique([*self._steps, added], f"pipeline {self._name or 'without a name'!r}")
        self._steps.append(added)
        self._made = None
        return self

    async def execute(self, input: Mapping[str, Any] | None = None, *, run_id: str | None = None) -> Any:
        """Run it and return the output of the last step.

        Inside a workflow it is part of that run, and so are its steps, as `name/step`. Elsewhere it is a run of its own, driven
        in this process: `run_id` names it (default: generated); the same id with the same input attaches, resumes, or returns
        the recorded output. Raises `PipelineStepError`, `WorkflowTimeoutError`, `RunCancelledError`, `RunConflictError`.
        """
        return await perform(
            self._workflow(), self._inline, _checked(input), run_id=run_id, own=PipelineStepError
        )

    async def start(
        self, input: Mapping[str, Any] | None = None, *, run_id: str | None = None
    ) -> RunHandle[Any]:
        """Start a run, drive it in this process, and return its handle at once."""
        return await self._workflow().options(run_id=run_id).start(_checked(input))

    async def enqueue(
        self, input: Mapping[str, Any] | None = None, *, run_id: str | None = None
    ) -> RunHandle[Any]:
        """Store a run for a worker that serves the module of this pipeline, and return its handle."""
        return await self._workflow().options(run_id=run_id).enqueue(_checked(input))

    def __durable_workflows__(self) -> list[Workflow[..., Any]]:
        return [self._workflow()]

    def _workflow(self) -> Workflow[..., Any]:
        if self._made is None:
            parts = (part for step in self._steps for part in step.parts())
            self._made = make_workflow(
                self._body,
                name=self.name,
                kind="pipeline",
                origin=origin_of("pipeline", parts),
                version=self._version,
                timeout=self._timeout,
                retention=self._retention,
                result=self._steps[-1].result_hint() if self._steps else Any,
            )
        return self._made

    async def _inline(self, input: dict[str, Any]) -> Any:
        if self._timeout is None:
            return await self._body(input)
        limit = None if self._made is None else self._made.definition.timeout_us
        assert limit is not None, "made with this timeout"
        try:
            async with asyncio.timeout(limit / 1_000_000) as scope:
                return await self._body(input)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise WorkflowTimeoutError(current_run_id() or "") from error

    async def _body(self, input: dict[str, Any]) -> Any:
        context = dict(input)
        output: Any = None
        for step in self._steps:
            output = context[step.name] = await step.run(context)
        return output


def _checked(input: Mapping[str, Any] | None) -> dict[str, Any]:
    if input is None:
        return {}
    if not isinstance(input, Mapping):
        raise TypeError(f"the input of a pipeline is a mapping, into which results are merged, not {input!r}")
    return dict(input)
