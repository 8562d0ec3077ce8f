"""Workers: what an incarnation says of itself, what is known of it, and what holds it back."""

from __future__ import annotations

from typing import Literal

import msgspec


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a new incarnation says of itself. `host`, `pid`, `name` are for people; ownership never reads them."""

    name: str
    task_queue: str
    definitions: tuple[tuple[str, int], ...]  # (workflow, version) pairs it serves
    embedded: bool = False
    more_queues: tuple[str, ...] = ()  # it serves besides `task_queue`
    activities: tuple[str, ...] = ()  # names of those whose tasks it takes
    lease_us: int = (
        0  # so long it may be silent, at least, before others take it over; 0: as long as they think fit
    )

    @property
    def task_queues(self) -> tuple[str, ...]:
        return (self.task_queue, *self.more_queues)


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    worker_id: int
    name: str
    host: str
    pid: int
    task_queue: str
    embedded: bool
    is_alive: bool
    started_at_us: int
    stopped_at_us: int | None
    runs: int  # runs it owns
    definitions: tuple[tuple[str, int], ...] = ()
    beat_at_us: int | None = None  # its last sign of life, by its own wall clock: for people, decides nothing
    more_queues: tuple[str, ...] = ()
    activities: tuple[str, ...] = ()
    tasks: int = 0  # activity tasks it performs
    lease_us: int = 0  # how long others leave it alone without a beat; 0: it did not say

    @property
    def task_queues(self) -> tuple[str, ...]:
        return (self.task_queue, *self.more_queues)


class Rescue(msgspec.Struct, frozen=True, kw_only=True):
    """A dead worker whose runs were taken back. `poison`: the run ids that were parked, since they ended it.

    `tasks`: activity tasks that it performed, each of which has lost an attempt.
    """

    worker_id: int
    name: str
    runs: int
    poison: tuple[str, ...] = ()
    tasks: int = 0


PauseKind = Literal["task_queue", "worker"]


class PauseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A task queue or a worker, by name, that somebody holds back."""

    kind: PauseKind
    name: str
    at_us: int
    reason: str | None


class Pauses(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker must obey: whether it is paused itself, which queues are, and which of the runs it owns."""

    is_worker_paused: bool = False
    task_queues: frozenset[str] = frozenset()
    pks: frozenset[int] = frozenset()
