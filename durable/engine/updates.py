"""Updates: calls into a run that are answered. An answer is a command of the activation in which it comes about: effect and answer are one commit.

An update goes to the handler of its name, in a task of its own, as a signal does. First the handler's validator is asked, which only looks; what it
raises refuses the update, and nothing else happens. In a replay it is not asked: an update that the journal does not refuse was let in.
What the handler raises is the caller's error, not the run's. An update whose name has no handler is kept until there is one, or
refused where none is to come.

Knows nothing of callers, or of how they are told.
"""

from __future__ import annotations

import asyncio
import difflib
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

import msgspec

from durable.engine.loop import DeterministicLoop
from durable.engine.operations import Marker, Operations
from durable.engine.runtime import Evicted, UpdateHandler, continuation_in
from durable.errors import ArgumentsError, DefinitionError, UndecodableError, WorkflowGuardError
from durable.failures import Failure
from durable.journal.events import NO_RESULT, UpdateAnswered, UpdateReceived, UpdateVerdict


class UpdatedRun(Protocol):
    """The run whose updates these are."""

    is_looking: bool

    @property
    def run_id(self) -> str: ...

    def is_refused(self, msg: int) -> bool | None:
        """Return whether the journal refuses this update in the activation that is replayed; None if it is not a replay."""
        ...

    def stop(self, fault: BaseException) -> None:
        """Park the run: its code or its bytes do not suit its journal."""
        ...

    def is_fault(self, error: BaseException) -> bool:
        """Return whether an error is a fault of the platform, not one of the author's code."""
        ...

    def as_failure(self, error: BaseException) -> Failure:
        """Return an error of the author's code as the journal keeps it."""
        ...

    def judge(self, data: bytes, what: str) -> None:
        """Raise if a payload is too large to be recorded; not in a replay."""
        ...


class Updates:
    """The updates of one run. `keeps`: those without a handler are kept; else every handler is there from the start."""

    def __init__(
        self, run: UpdatedRun, loop: DeterministicLoop, operations: Operations, *, keeps: bool
    ) -> None:
        self._run = run
        self._loop = loop
        self._operations = operations
        self._keeps = keeps
        self._handlers: dict[str, UpdateHandler] = {}
        self._kept: dict[str, deque[UpdateReceived]] = {}
        self._unread: dict[int, UpdateReceived] = {}  # by number: no code of the run has seen them
        self._begun: dict[int, UpdateReceived] = {}  # whose handlers have not ended
        self.open: dict[int, str] = {}  # those with a handler that are not answered: number -> name
        self._owed: set[int] = set()  # whose callers a former life has given a result
        self._to_come: set[int] = set()  # of these: those that have not been taken in again

    @property
    def owes(self) -> bool:
        """Whether what a former life has answered is still to come, or being handled. What no handler takes is not waited for."""
        return bool(self._to_come) or not self._owed.isdisjoint(self.open)

    def owe(self, answered: Sequence[int]) -> None:
        """The callers of these updates have been given results, which this life did not keep: it has them unanswered, or they come again."""
        self._owed.update(answered)
        self._to_come.update(set(answered) - self._unread.keys() - self._begun.keys())

    def on_update(self, name: str, handler: UpdateHandler) -> None:
        """Give the updates of a name to a handler, in place of another one if there is any; first of all those that are kept."""
        self._handlers[name] = handler
        for update in self._kept.pop(name, ()):
            self._hand_over(handler, update)

    def receive(self, update: UpdateReceived) -> None:
        """Hand an update to its handler; keep it, or refuse it, if there is none."""
        self._unread[update.msg] = update
        self._to_come.discard(update.msg)
        handler = self._handlers.get(update.name)
        if handler is not None:
            self._hand_over(handler, update)
        elif self._keeps or update.accepted:
            self._kept.setdefault(update.name, deque()).append(update)
        elif self._run.is_refused(update.msg) is not False:
            error = ArgumentsError(
                f"run {self._run.run_id!r} takes no update {update.name!r} ({near_names(update.name, self._handlers)})"
            )
            self._refuse(update, error)

    def unread(self) -> list[UpdateReceived]:
        """Return the updates that no code of the run has seen, in the order of sending."""
        return [self._unread[msg] for msg in sorted(self._unread)]

    def begun(self) -> frozenset[int]:
        """Return the numbers of the updates whose handlers have begun and not ended."""
        return frozenset(self._begun)

    def give_up(self, *, goes_on: bool) -> None:
        """The run has ended: answer what is left. `goes_on`: what nobody has begun with is for the generation that follows."""
        left = dict(self._begun) if goes_on else self._begun | self._unread
        for msg in sorted(left):
            self._answer(left[msg], "given_up")

    # ─ one update ──

    def _hand_over(self, handler: UpdateHandler, update: UpdateReceived) -> None:
        self.open[update.msg] = update.name
        self._loop.create_own_task(self._handled(handler, update), f"update {update.name}")

    async def _handled(self, handler: UpdateHandler, update: UpdateReceived) -> None:
        self._unread.pop(update.msg, None)
        try:
            call = self._let_in(handler, update)
            if call is None:
                return
            self._begun[update.msg] = update
            outcome = call()
            if asyncio.iscoroutine(outcome):
                outcome = await outcome
            data = handler.result_type.encode_result(outcome)
            self._run.judge(data, f"the result of update {update.name!r}")
        except Evicted:
            return
        except BaseException as error:
            self._failed(update, error)
        else:
            self._answer(update, "completed", result=msgspec.Raw(data))
        finally:
            self.open.pop(update.msg, None)

    def _let_in(self, handler: UpdateHandler, update: UpdateReceived) -> Callable[[], Any] | None:
        """Return the call of the handler; None if the update is refused, or the run stopped."""
        is_refused = self._run.is_refused(update.msg)
        if is_refused:
            self._refuse(update, None)
            return None
        try:
            value = handler.value_type.decode(memoryview(update.value))
        except UndecodableError as error:
            misfit = error.naming(f"the value of update {update.name!r} (message {update.msg})")
            if is_refused is None and not update.accepted:
                self._refuse(update, ArgumentsError(str(misfit)))
            else:
                self._run.stop(misfit)  # it was let in once: today's code does not fit
            return None
        values = (value,) if handler.takes_value else ()
        if is_refused is None and not update.accepted and handler.validator is not None:
            try:
                self._look(update.name, partial(handler.validator, *values))
            except Exception as error:
                if self._run.is_fault(error):
                    self._run.stop(error)
                else:
                    self._refuse(update, error)
                return None
        return partial(handler.call, *values)

    def _look(self, name: str, validate: Callable[[], Any]) -> None:
        """Ask a validator. What it asks for is refused at once; what it set going behind our back no replay would repeat."""
        before = self._loop.ready, len(self._operations.pending)
        self._run.is_looking = True
        try:
            found = validate()
        finally:
            self._run.is_looking = False
        if (self._loop.ready, len(self._operations.pending)) != before:
            raise WorkflowGuardError(
                f"the validator of update {name!r} of run {self._run.run_id!r} began something in the run; it only looks, as no "
                "replay asks it: let the handler do that",
                run_id=self._run.run_id,
                call=f"validator of update {name!r}",
                instead="the handler",
            )
        if asyncio.iscoroutine(found):
            found.close()
            raise DefinitionError(f"the validator of update {name!r} only looks: make it a plain `def`")

    def _failed(self, update: UpdateReceived, error: BaseException) -> None:
        if self._loop.is_evicting:
            return
        if self._run.is_fault(error):
            self._run.stop(error)
            return
        if continuation_in(error) is not None:
            error = DefinitionError("a handler cannot continue as new: let it tell the workflow to")
        self._answer(update, "failed", failure=self._run.as_failure(error))

    def _refuse(self, update: UpdateReceived, error: BaseException | None) -> None:
        failure = None if error is None else self._run.as_failure(error)
        self._answer(update, "rejected", failure=failure)

    def _answer(
        self,
        update: UpdateReceived,
        how: UpdateVerdict,
        *,
        result: msgspec.Raw = NO_RESULT,
        failure: Failure | None = None,
    ) -> None:
        self._unread.pop(update.msg, None)
        self._begun.pop(update.msg, None)
        answer = UpdateAnswered(msg=update.msg, name=update.name, how=how, result=result, failure=failure)
        self._operations.mark(Marker(answer))


def near_names(name: str, known: Collection[str]) -> str:
    """Return what to say of a name that is none of those that are known."""
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"it takes: {', '.join(sorted(known)) or 'none'}"
