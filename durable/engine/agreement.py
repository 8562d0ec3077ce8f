"""Whether today's code asks for what the journal holds, activation by activation, and where it may differ by intent: patches.

A run that is driven as it goes and asks for no patch needs none of this. Knows nothing of loops or events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from durable.engine.operations import Asked, Call, Closing, Marker, Operations
from durable.engine.sources import source_text
from durable.errors import PlatformFault
from durable.journal.events import Command, Event, Patched, Started
from durable.journal.matching import Mismatch, label, match, non_determinism
from durable.journal.turns import Activated

NOTHING: Final[Sequence[Command]] = ()


class Agreement:
    """What one run's code and journal have come to. `recorded` are the commands of the activation that is replayed."""

    __slots__ = ("_answers", "_deprecated", "_operations", "recorded", "warnings")

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self.recorded = NOTHING
        self.warnings: list[str] = []
        self._answers: dict[str, bool] = {}  # of `patched`: they never change within a run
        self._deprecated: set[str] = set()

    # ─ matching ──

    def adopt(self, activated: Activated, asked: list[Asked]) -> None:
        """Give what was asked for the numbers that are recorded. Raises `Mismatch`."""
        aligned, changed = match(activated.commands, asked, self._deprecated)
        for command, operation in changed:
            self._warn(command, operation, activated)
        self._operations.adopt(activated.commands, aligned)

    def _warn(self, command: Command, operation: Asked, activated: Activated) -> None:
        what = label(operation.kind, operation.name)
        if operation.kind == "update":
            self.warnings.append(
                f"event {activated.number}: the {what} would be another one today; the journal's stands, which the caller was told"
            )
            return
        differs = "another duration" if operation.kind == "timer" else "other arguments"
        recorded = getattr(command, "src", "")
        self.warnings.append(
            f"event {activated.number}: {what} ({operation.src}) asks with {differs} than the journal holds "
            f"({recorded}); the journal's are used"
        )
        if isinstance(operation, Call):
            operation.args = bytes(command.args)  # type: ignore[union-attr]  # a call matches a ScheduleActivity

    def fault(
        self,
        mismatch: Mismatch,
        event: Event,
        number: int,
        asked: Sequence[Asked] = (),
        *,
        run_id: str,
        started: Started | None,
        ended: bool = False,
    ) -> PlatformFault:
        """Return what a run is parked with whose code and journal disagree at this event."""
        closed = {one.operation.op: one.name for one in asked if isinstance(one, Closing)}
        return non_determinism(
            mismatch,
            run_id=run_id,
            number=number,
            event=event,
            started=started,
            closed=lambda op: closed.get(op) or self._operations.label(op),
            source_text=source_text,
            ended=ended,
        )

    # ─ patches ──

    def answer(self, id: str) -> bool | None:
        """Return what `patched` has answered, None if it was not asked yet."""
        return self._answers.get(id)

    def deprecate(self, id: str) -> None:
        """The marker of this patch may be there or not."""
        self._deprecated.add(id)

    def mark(self, id: str, src: str, *, is_replaying: bool, is_deprecated: bool) -> bool:
        """Decide, for good, whether the run is on the new side of a patch; if so its marker is asked for."""
        is_new = not is_replaying or any(
            isinstance(command, Patched) and command.id == id for command in self.recorded
        )
        self._answers[id] = is_new
        if is_new:
            self._operations.mark(Marker(Patched(id=id, src=src, deprecated=is_deprecated)))
        return is_new
