"""The door between authors' code and the run it is in, and what the engine tells its driver.

The authors' API speaks to `current()`; the worker speaks to `engine.instance.Instance`. Knows nothing of either.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import ContextVar
from random import Random as RandomSource
from typing import Any, Final, NamedTuple, NoReturn, Protocol, Self

import msgspec

from durable.definitions import ActivityDefinition, CancellationType, OnParentClose, WorkflowDefinition
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


class Continuation(BaseException):
    """Raised in a run's code to end this generation and open the next. Private: authors must not catch it.

    `input` is the next generation's, encoded.
    """

    def __init__(self, encode: Callable[[], bytes]) -> None:
        super().__init__("the run continues as new")
        self._encode = encode
        self.input = encode()

    def encode_again(self) -> None:
        """What the input is made of may have changed since."""
        self.input = self._encode()


def continuation_in(error: BaseException) -> Continuation | None:
    """Return what ends the generation, also out of a task group, where what it cancelled may stand beside it."""
    if isinstance(error, Continuation):
        return error
    if not isinstance(error, BaseExceptionGroup):
        return None
    found = [continuation_in(one) for one in error.exceptions if not isinstance(one, asyncio.CancelledError)]
    return found[0] if found and None not in found else None


class Identified(Protocol):
    """A record that tells who a run is, wherever it was read."""

    @property
    def run_id(self) -> str: ...
    @property
    def workflow(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def generation(self) -> int: ...
    @property
    def epoch(self) -> int: ...
    @property
    def task_queue(self) -> str: ...


class RunIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """Who a run is. `epoch` goes into derived ids (P6); `salt_id` is the id whose crc32 salts hashes."""

    run_id: str
    workflow: str
    version: int
    generation: int = 1
    epoch: int = 1
    task_queue: str = "default"
    salt_id: str | None = None

    @classmethod
    def of(cls, run: Identified) -> Self:
        """Return who the run of a record is."""
        return cls(
            run_id=run.run_id,
            workflow=run.workflow,
            version=run.version,
            generation=run.generation,
            epoch=run.epoch,
            task_queue=run.task_queue,
        )


class ActivityCall:
    """One open activity of an instance: what its performer needs. `op` and `n` are the journal's."""

    __slots__ = ("args", "closing", "definition", "key_prefix", "n", "op", "queue", "src")

    def __init__(
        self, *, op: int, n: int, definition: ActivityDefinition, args: bytes, key_prefix: str, src: str
    ) -> None:
        self.op = op
        self.n = n
        self.definition = definition
        self.args = args
        self.key_prefix = key_prefix  # run_id@epoch/
        self.src = src
        self.queue = ""  # the task queue whose workers perform it; "": the worker of the run does
        self.closing: CancellationType | None = (
            None  # "wait" once cancelled with that type: outcome still due
        )

    @property
    def key(self) -> str:
        """The idempotency key, `run_id@epoch/name#n`; made when it is asked for, which most activities never do."""
        return f"{self.key_prefix}{self.definition.name}#{self.n}"


class ChildRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What workflow code asks for when it calls another workflow. `definition` is that call as if it were an activity's."""

    workflow: WorkflowDefinition
    definition: ActivityDefinition
    run_id: str | None = None
    task_queue: str | None = None
    on_parent_close: OnParentClose = "cancel"


class SignalHandler(NamedTuple):
    """What is called with each signal of a name: with its value, if it takes one. If it returns a coroutine, that is run as a task."""

    call: Callable[..., Any]
    value_type: ValueType
    takes_value: bool


class UpdateHandler(NamedTuple):
    """What is called with each update of a name, and returns its answer. `validator` is asked first, with the same value, and only looks."""

    call: Callable[..., Any]
    value_type: ValueType
    takes_value: bool
    result_type: ValueType
    validator: Callable[..., Any] | None = None


class Child(Protocol):
    """A child that was started and is not awaited, or not yet."""

    @property
    def run_id(self) -> str:
        """Return its id: `run_id@epoch/path#n`, or the author's."""
        ...

    async def outcome(self) -> Any:
        """Return its result, or raise what it ended with. Cancelled: the child goes on."""
        ...

    def cancel(self, reason: str | None = None) -> None:
        """Ask it to cancel; nothing, if it is closed. `outcome` waits for its end."""
        ...


class Runtime(Protocol):
    """What authors' code may ask of the run it is in."""

    identity: RunIdentity
    attempt: int
    started_at_us: int
    is_replaying: bool
    is_evicting: bool
    is_looking: bool  # a validator is being asked, which may not ask for anything
    # Awaited when the body has failed for good or was cancelled, before the end is recorded; it may raise another error.
    unwind: Unwind | None
    outermost: object | None  # the saga scope of the run's body, once there is one
    open_sagas: int  # blocks whose steps would be undone if they failed now
    events: int  # entries in the journal before this activation

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

    def call_child(
        self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Coroutine[Any, Any, Any]:
        """Start a run of another workflow once awaited, and return its result or raise its failure.

        Cancelled, it asks the child to cancel, and raises once that is closed.
        """
        ...

    def start_child(self, child: ChildRequest, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Child:
        """Start a run of another workflow with this activation."""
        ...

    async def wait_signal(self, name: str, value_type: ValueType, prompt: str | None = None) -> Any:
        """Return the next signal of that name: in order of sending, each once, buffered before anyone waits.

        With a `prompt` a person is asked, who may also answer this very question (`journal/asks.py`).
        """
        ...

    def on_signal(self, name: str, handler: SignalHandler) -> None:
        """From now on give the signals of that name to a handler, in the order of their sending; at once those that came before."""
        ...

    def on_update(self, name: str, handler: UpdateHandler) -> None:
        """From now on give the updates of that name to a handler, in the order of their sending; at once those that came before."""
        ...

    def on_query(self, name: str, call: Callable[..., Any]) -> None:
        """Let a function answer the queries of that name, in whatever process replays the run to ask."""
        ...

    async def early_signals(self) -> None:
        """Return once the signals and updates that came before the run's first step have been given to their handlers."""
        ...

    @property
    def open_handlers(self) -> int:
        """Return how many calls of handlers have not ended yet."""
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

    def continue_as_new(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        """End this generation here, and open the next with these arguments."""
        ...

    def note(self, name: str, status: str, kind: str) -> None:
        """Add a line to the run's story, which stands for no operation."""
        ...


class RunLoop(asyncio.AbstractEventLoop):
    """A loop that belongs to one run."""

    runtime: Runtime

    def adopt_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """An async generator takes its first step in this run: it is to be ended in this run too."""
        raise NotImplementedError

    def finalize_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Nobody refers any more to a generator that was begun here and has not ended."""
        raise NotImplementedError


def current() -> Runtime | None:
    """Return the run that is being activated on this thread, or None outside of runs."""
    loop = asyncio._get_running_loop()
    return loop.runtime if isinstance(loop, RunLoop) else None
