"""The door between authors' code and the run it is in, and what the engine tells its driver.

The authors' API speaks to `current()`; the worker speaks to `engine.instance.Instance`. Knows nothing of either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from random import Random as RandomSource
from typing import Any, Final, Protocol

import msgspec

from durable.definitions import ActivityDefinition, CancellationType
from durable.payloads import ValueType

UNDONE: Final = "__durable_compensated__"  # an error class that has it closes its run as compensated
WRAPS: Final = (
    "__durable_wraps__"  # an error class that has it stands for its cause when a workflow is retried (P7)
)
OnEnd = Callable[[Any, BaseException | None, int], None]
Unwind = Callable[[BaseException], Coroutine[Any, Any, None]]
# What the names of activities that are called here get in front, in the journal: "" or "notify/". Each task of a run has its own.
name_prefix: Final[ContextVar[str]] = ContextVar("durable_name_prefix", default="")


class Evicted(BaseException):
    """Raised in a run's code when the run leaves this process's memory. Private: authors must not catch it."""


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a run is. `epoch` goes into derived ids (P6); `salt_id` is the id whose crc32 salts hashes."""

    run_id: str
    workflow: str
    version: int
    generation: int = 1
    epoch: int = 1
    task_queue: str = "default"
    salt_id: str | None = None


class ActivityCall:
    """One open activity of an instance: what its performer needs. `op` and `n` are the journal's."""

    __slots__ = ("args", "closing", "definition", "key", "n", "op", "src")

    def __init__(
        self, *, op: int, n: int, definition: ActivityDefinition, args: bytes, key: str, src: str
    ) -> None:
        self.op = op
        self.n = n
        self.definition = definition
        self.args = args
        self.key = key  # run_id@epoch/name#n, the idempotency key
        self.src = src
        self.closing: CancellationType | None = (
            None  # "wait" once cancelled with that type: outcome still due
        )


class Runtime(Protocol):
    """What authors' code may ask of the run it is in."""

    identity: RunIdentity
    attempt: int
    started_at_us: int
    is_replaying: bool
    is_evicting: bool
    # Awaited when the body has failed for good or was cancelled, before the end is recorded; it may raise another error.
    unwind: Unwind | None
    outermost: object | None  # the saga scope of the run's body, once there is one

    @property
    def random(self) -> RandomSource:
        """Return the run's source of chance, seeded from its journal."""
        ...

    def now_us(self) -> int:
        """Return the run's logical time: it moves with events, to exactly the deadline when a timer fires."""
        ...

    def call_activity(
        self,
        definition: ActivityDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        on_end: OnEnd | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Journal a call once awaited, and return its result or raise its failure. Arguments are encoded at once.

        `on_end(value, error, attempts)` is called when the outcome is fed: in the order of recording, and also if the caller was
        cancelled meanwhile and, with cancellation type "wait", only awaits the end.
        """
        ...

    async def wait_signal(self, name: str, value_type: ValueType, prompt: str | None = None) -> Any:
        """Return the next signal of that name: in order of sending, each once, buffered before anyone waits.

        With a `prompt` a person is asked, who may also answer this very question (`journal/asks.py`).
        """
        ...

    async def wait_condition(self, condition: Callable[[], bool]) -> None:
        """Return once `condition()` is true; it is looked at after each activation has come to rest."""
        ...

    def patched(self, id: str) -> bool:
        """Return whether the run takes the new side of a change; the first answer is journaled, and stays."""
        ...

    def deprecate_patch(self, id: str) -> None:
        """Declare that no run is left on the old side of a change."""
        ...

    def note(self, name: str, status: str, kind: str) -> None:
        """Add a line to the run's story, which stands for no operation."""
        ...


class RunLoop(asyncio.AbstractEventLoop):
    """A loop that belongs to one run."""

    runtime: Runtime


def current() -> Runtime | None:
    """Return the run that is being activated on this thread, or None outside of runs."""
    loop = asyncio._get_running_loop()
    return loop.runtime if isinstance(loop, RunLoop) else None
