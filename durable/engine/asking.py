"""What the author's code asks of the run it is in (`runtime.Runtime`): time, chance, activities, children, waits, handlers.

Knows nothing of events or of the driver.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine
from random import Random as RandomSource
from typing import Any, NoReturn

from durable import seams
from durable.definitions import ActivityDefinition
from durable.engine.agreement import Agreement
from durable.engine.awaiting import StartedChild, perform
from durable.engine.course import Course
from durable.engine.handlers import Signals
from durable.engine.operations import Call, ChildCall, Marker
from durable.engine.runtime import ChildRequest, Continuation, Evicted, OnEnd, SignalHandler, UpdateHandler
from durable.engine.sources import find_source
from durable.engine.updates import Updates
from durable.errors import DefinitionError
from durable.journal.events import Noted
from durable.journal.reopening import COMPENSATION
from durable.payloads import ValueType


class Asking(Course):
    """A run, as its own code sees it."""

    __slots__ = ()

    def now_us(self) -> int:
        return self._loop.now_us

    def _refuse_to_lookers(self, what: str) -> None:
        """Refuse what a validator asks for: no replay asks the validator, so nothing that comes of it may be in the run."""
        if self.is_looking:
            raise DefinitionError(f"a validator only looks: it cannot {what}; let the handler do that")

    @property
    def random(self) -> RandomSource:
        self._refuse_to_lookers("use chance")
        if self._random is None:
            assert self._started is not None, "asked before it was started"
            self._random = seams.seeded(self._started.seed)
        return self._random

    def call_activity(
        self,
        definition: ActivityDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_end: OnEnd | None = None,
    ) -> Coroutine[Any, Any, Any]:
        if self.is_looking:
            self._refuse_to_lookers(f"call activity {definition.name!r}")
        if definition.kind == COMPENSATION:
            self.has_compensated = True
        source = find_source(sys._getframe(2)) or self._loop.task_source()
        data = definition.arguments.encode(args, kwargs)
        if len(data) > self._limits.payload_bytes_warn:
            self.judge(data, f"the arguments of activity {definition.name!r}")
        call = Call(definition, data, source)
        call.on_end = on_end
        coroutine = perform(call, self._loop, self._operations)
        coroutine.__qualname__ = definition.name  # type: ignore[attr-defined]  # "coroutine ... was never awaited"
        return coroutine

    def call_child(
        self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        return perform(self._child(child, args, kwargs), self._loop, self._operations)

    def start_child(self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StartedChild:
        return StartedChild(self._child(child, args, kwargs), self._loop, self._operations)

    def _child(self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ChildCall:
        self._refuse_to_lookers(f"run workflow {child.workflow.name!r}")
        source = find_source(sys._getframe(2)) or self._loop.task_source()
        workflow = child.workflow
        data = workflow.arguments.encode(args, kwargs)
        self.judge(data, f"the input of workflow {workflow.name!r}")
        if not self.is_replaying:
            workflow.arguments.check_types(data)
        return ChildCall(
            child.definition,
            data,
            source,
            workflow=workflow,
            run_id=child.run_id,
            task_queue=workflow.task_queue if child.task_queue is None else child.task_queue,
            on_parent_close=child.on_parent_close,
        )

    def patched(self, id: str) -> bool:
        """Return whether the run takes the new side of a change; the first answer is journaled, and stays."""
        self._refuse_to_lookers("ask for a patch")
        answer = self._agreement_here().answer(id)
        if answer is None:
            answer = self._mark(id, is_deprecated=False)
        return answer

    def deprecate_patch(self, id: str) -> None:
        """Declare that no run is left on the old side; its marker may be there or not."""
        self._refuse_to_lookers("deprecate a patch")
        agreement = self._agreement_here()
        agreement.deprecate(id)
        if agreement.answer(id) is None:
            self._mark(id, is_deprecated=True)

    def _mark(self, id: str, *, is_deprecated: bool) -> bool:
        if self.is_evicting:
            return False
        src = self._loop.source(sys._getframe(2))
        return self._agreement_here().mark(
            id, src, is_replaying=self.is_replaying, is_deprecated=is_deprecated
        )

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """End this generation, and open the next with these arguments, which are checked like a start's."""
        definition = self._definition
        if self.is_evicting:
            raise Evicted
        self._refuse_to_lookers("continue as new")
        if definition.kind != "workflow":
            raise DefinitionError(f"a {definition.kind} cannot continue as new: {definition.name!r} is one")
        if self.unwind is not None or self.open_sagas:
            raise DefinitionError(
                f"run {self.identity.run_id!r} cannot continue as new in the middle of a saga: nobody could undo its steps any "
                "more; do them in a block of saga() that ends before"
            )

        def encoded() -> bytes:
            data = definition.arguments.encode(args, kwargs)
            definition.arguments.check_types(data)
            self.judge(data, "the input of the next generation")
            return data

        raise Continuation(encoded)

    def note(self, name: str, status: str, kind: str) -> None:
        """Add a line to the run's story."""
        self._refuse_to_lookers("add to the run's story")
        if not self.is_evicting:
            src = self._loop.source(sys._getframe(1))
            self._operations.mark(Marker(Noted(name=name, status=status, kind=kind, src=src)))

    async def wait_signal(self, name: str, value_type: ValueType, prompt: str | None = None) -> Any:
        source = self._loop.source(sys._getframe(1))
        if prompt is not None:
            return await self._signals_here().ask(name, value_type, source, prompt)
        return await self._signals_here().wait(name, value_type, source)

    def on_query(self, name: str, call: Callable[..., Any]) -> None:
        self._refuse_to_lookers("register a handler")
        if self.queries is None:
            self.queries = {}
        self.queries[name] = call

    def on_signal(self, name: str, handler: SignalHandler) -> None:
        self._refuse_to_lookers("register a handler")
        if not self.is_evicting:
            self._signals_here().on_signal(name, handler)

    def on_update(self, name: str, handler: UpdateHandler) -> None:
        self._refuse_to_lookers("register a handler")
        if not self.is_evicting:
            self._updates_here().on_update(name, handler)

    async def early_signals(self) -> None:
        if self._signals is not None:
            await self._signals.early()

    def _signals_here(self) -> Signals:
        if self._signals is None:
            self._signals = Signals(
                self._loop, self._operations, fault=self._park, failed=self._fail_by_handler
            )
        return self._signals

    def _updates_here(self) -> Updates:
        if self.updates is None:
            self.updates = Updates(self, self._loop, self._operations, keeps=not self._definition.is_class)
        return self.updates

    async def wait_condition(self, condition: Callable[[], bool]) -> None:
        await self._conditions_here().wait(condition, self._loop.source(sys._getframe(1)))

    def _agreement_here(self) -> Agreement:
        if self._agreement is None:
            self._agreement = Agreement(self._operations)
        return self._agreement
