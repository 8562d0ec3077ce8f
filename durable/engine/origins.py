"""Which recorded failure an exception is: what a workflow-level retry goes back to, and what is told of a run that failed."""

from __future__ import annotations

from durable.engine.runtime import WRAPS
from durable.failures import Failure


class Origins:
    """The failures of activities and children that were raised in one run, each with its place in the journal: (turn, index)."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        # By identity; each is kept alive, so that an id means one object.
        self._known: dict[int, tuple[BaseException, tuple[int, int], Failure]] = {}

    def note(self, error: BaseException, place: tuple[int, int], failure: Failure) -> None:
        """`error` is `failure`, rebuilt; the event with it stands at `place`."""
        self._known[id(error)] = (error, place, failure)

    def failure_of(self, error: BaseException) -> Failure | None:
        """Return the failure that this very exception was rebuilt from; None if it is the workflow's own."""
        known = self._known.get(id(error))
        return None if known is None else known[2]

    def place_of(self, error: BaseException) -> tuple[int, int] | None:
        """Return the place of the event whose failure this is; of a group, the earliest, if every leaf is an activity's."""
        if isinstance(error, BaseExceptionGroup) and id(error) not in self._known:
            places = [self.place_of(leaf) for leaf in error.exceptions]
            known = [place for place in places if place is not None]
            return min(known) if len(known) == len(places) else None
        if getattr(type(error), WRAPS, False) and error.__cause__ is not None:
            return self.place_of(error.__cause__)
        recorded = self._known.get(id(error))
        return None if recorded is None else recorded[1]

    def clear(self) -> None:
        self._known.clear()
