"""What code in an activity may use: who it is, its signs of life, and how it leaves its end to somebody else.

What a running activity and its worker tell one another goes through a `Pulse`. Knows nothing of workers.
"""

from __future__ import annotations

import asyncio
import hashlib
import types
from collections.abc import Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from contextvars import Context, ContextVar, copy_context
from functools import partial
from typing import Any, Final, NoReturn, Protocol, TypeVar

import msgspec

from durable.engine.runtime import current
from durable.errors import DefinitionError
from durable.interrupts import BodyThread
from durable.limits import DEFAULT_LIMITS, NAME_LENGTH_MAX, Limits
from durable.payloads import ValueType
from durable.seams import SystemThreads, Threads, pause, spawn

T = TypeVar("T")
THREAD_SECONDS: Final = 0.25  # for the thread of a part that was cancelled, to end
INSIST_SECONDS: Final = 0.005  # before a thread is looked at again that could not be interrupted where it was


class ActivityInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What an activity may know of itself.

    `idempotency_key` is the same for every attempt, on every worker, after every crash: hand it to whoever can
    deduplicate (`run_id@epoch/name#n`). `attempt` counts from 1. `heartbeat_details` are those of the last heartbeat of
    the attempts before this one that gave some, as plain JSON data; empty if none did.
    """

    run_id: str
    workflow: str
    activity: str
    attempt: int
    idempotency_key: str
    heartbeat_details: tuple[Any, ...] = ()
    _pulse: Pulse = msgspec.field(default_factory=lambda: Pulse())
    _make_token: Callable[[], str] | None = None

    @property
    def task_token(self) -> str:
        """The address of this attempt for `Client.complete_activity` and its kin: hand it to whoever will complete it.

        Good for this attempt only; see `raise_complete_async`. Whoever holds it can complete the attempt. Outside of runs
        `DefinitionError`.
        """
        if self._make_token is None:
            raise DefinitionError("task_token is there only inside an activity that a run has called")
        self._pulse.note_token()
        return self._make_token()

    @property
    def is_cancelled(self) -> bool:
        """Whether this attempt is to stop: cancelled, timed out, or its worker stops. For code in threads that would rather ask."""
        return self._pulse.cancel_reason is not None

    @property
    def cancel_reason(self) -> str | None:
        """Why this attempt is to stop; the words of whoever cancelled the run, if that was it. None: go on."""
        return self._pulse.cancel_reason


class Pulse(msgspec.Struct, eq=False):
    """What one execution of an attempt and its worker tell one another, from any thread.

    The attempt writes `details` and `beat_at`, the worker `cancel_reason`, each by one assignment: no lock is needed.
    `is_noted`: the worker was told of details it has not written yet; it clears that *before* it reads them.
    `owner`, `number`, `fence` and `fresh_until` are the worker's own; until `fresh_until` (its clock) there is no need to ask
    `fence` whether it still holds its lease.
    """

    owner: Any = None
    number: int = 0
    fence: Callable[[], bool] | None = None
    fresh_until: float = 0.0
    describe: Callable[[Pulse], ActivityInfo] | None = None
    loop: asyncio.AbstractEventLoop | None = None
    on_details: Callable[[Pulse], None] | None = None
    details: bytes | None = None
    earlier: tuple[Any, ...] = ()  # the details of the attempts before this one
    limits: Limits = DEFAULT_LIMITS
    beat_at: float = 0.0
    cancel_reason: str | None = None
    is_noted: bool = False
    starts: dict[str, int] | None = None  # runs that the attempt has started, by name
    has_token: bool = False  # somebody may answer for the attempt: its row must be there
    waits: int = 0  # for runs, at this moment: as long as it does, its slot is lent to others
    body: BodyThread | None = None  # where its body runs, if that is a thread

    def stop(self, reason: str) -> None:
        """Tell the attempt to stop; in a thread it is raised there. A task is the caller's to cancel."""
        self.cancel_reason = reason
        if self.body is not None and not self.body.interrupt(reason) and self.loop is not None:
            self.loop.call_later(INSIST_SECONDS, self._insist)

    def _insist(self) -> None:
        if self.cancel_reason is not None:
            self.stop(self.cancel_reason)

    def note_token(self) -> None:
        """Have it written down that the attempt's token is out there."""
        if not self.has_token:
            self.has_token = True
            self._tell()

    def beat(self, details: bytes | None) -> None:
        """Note a sign of life; raise CancelledError where no event loop would do so."""
        loop = self.loop
        if loop is None:
            return
        is_here = asyncio._get_running_loop() is loop
        if self.cancel_reason is not None and not is_here and (self.body is None or self.body.may_raise()):
            raise asyncio.CancelledError(self.cancel_reason)
        self.beat_at = loop.time()
        if details is None or details == self.details:
            return
        self.details = details
        if not self.is_noted:
            self._tell()

    def _tell(self) -> None:
        loop, on_details = self.loop, self.on_details
        if loop is None or on_details is None:
            return
        self.is_noted = True
        if asyncio._get_running_loop() is loop:
            on_details(self)
            return
        try:
            loop.call_soon_threadsafe(on_details, self)
        except RuntimeError:  # the loop is closed: this thread outlived its worker
            pass

    def close(self) -> None:
        """The attempt is over: nobody listens any more."""
        self.on_details = None


class LeavesParts(Protocol):
    """Where parts are that an activity has left. Runs' workers have one."""

    def leave(self, pulse: Pulse, key: str, task: asyncio.Task[Any], context: Context) -> None: ...

    def take(self, pulse: Pulse, key: str) -> tuple[asyncio.Task[Any], Context] | None: ...


pulse_here: Final[ContextVar[Pulse | None]] = ContextVar("durable_activity", default=None)
# Of the activities of one worker: where threads come from, and what to call when one begins to wait for a run, or has ended waiting.
threads_here: Final[ContextVar[Threads | None]] = ContextVar("durable_threads", default=None)
left_parts_here: Final[ContextVar[LeavesParts | None]] = ContextVar("durable_left_parts", default=None)
waits_here: Final[ContextVar[Callable[[Pulse], None] | None]] = ContextVar("durable_waits", default=None)


def activity_info() -> ActivityInfo:
    """Return what the running activity may know of itself; outside of one, raise `DefinitionError`."""
    pulse = pulse_here.get()
    if pulse is None or pulse.describe is None:
        raise DefinitionError("activity_info() answers only inside an activity that a run has called")
    return pulse.describe(pulse)


@contextmanager
def shield_thread() -> Iterator[None]:
    """Let the running `def` activity finish what is inside the block: a cancel that comes meanwhile is raised at its end.

    For what must not be cut in two, say two calls that belong together. `is_cancelled` tells in there, too; `heartbeat()` does not
    raise. Shields may be nested, and shield the body's own thread only: in a coroutine `DefinitionError`, since `asyncio.shield` is for those. Does
    nothing outside of runs and in helper threads, where nothing is raised anyway.
    """
    if current() is not None:
        raise DefinitionError("shield_thread() is for activities; in a workflow, use asyncio.shield")
    pulse = pulse_here.get()
    if pulse is not None and asyncio._get_running_loop() is _whole(pulse).loop is not None:
        raise DefinitionError(
            "shield_thread() is for plain `def` activities; in a coroutine, use asyncio.shield"
        )
    if pulse is None or pulse.body is None:
        yield
        return
    with pulse.body.shielded():
        yield


def spare_thread() -> None:
    """Have nothing raised in this thread from here on, if a body runs in it: it is about to drive runs, which must see nothing of that."""
    pulse = pulse_here.get()
    if pulse is not None and pulse.body is not None:
        pulse.body.spare()


def derived_run_id(name: str) -> str | None:
    """Return the id for a run of `name` that the running activity starts: a further attempt gets the same, and attaches.

    It is `<idempotency key>/name#n`, where n counts such starts of the attempt. None outside of activities.
    """
    pulse = pulse_here.get()
    if pulse is None or pulse.describe is None or current() is not None:
        return None
    info = pulse.describe(pulse)
    starts = pulse.starts = pulse.starts or {}
    starts[name] = starts.get(name, 0) + 1
    run_id = f"{info.idempotency_key}/{name}#{starts[name]}"
    if len(run_id) <= NAME_LENGTH_MAX:
        return run_id
    return f"{name[:100]}-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


class CompleteAsync(BaseException):
    """Raised by `raise_complete_async`. Private: authors must not catch it."""


def raise_complete_async() -> NoReturn:
    """End this activity's function without ending the activity: somebody else completes it, from any process, with its token.

    Take the token first, `activity_info().task_token`, and hand it on (in an e-mail, to a webhook, to a queue); whoever has
    the answer calls `Client.complete_activity(token, value)` or `fail_activity(token, error)`, and may call
    `heartbeat_activity(token, ...)` meanwhile. Nothing of the activity takes a slot or memory until then; it survives every
    restart. `timeout`, `heartbeat_timeout` and `schedule_to_close_timeout` hold as ever: past them the attempt has failed
    and its token is worthless. The first answer counts, also one that comes while the function still runs.
    """
    if pulse_here.get() is None:
        raise DefinitionError("raise_complete_async() is for activities that a run has called")
    raise CompleteAsync


@contextmanager
def lending_slot() -> Iterator[None]:
    """While an activity waits for a run: let others have its slot, among whom may be that run's own activities.

    Else as many activities as there are slots could all wait for runs that wait for slots. Does nothing outside of activities,
    nor in a thread, which is occupied.
    """
    pulse, tell = pulse_here.get(), waits_here.get()
    if pulse is None or tell is None or _whole(pulse).loop is not asyncio._get_running_loop():
        yield
        return
    _count_wait(pulse, 1, tell)
    try:
        yield
    finally:
        _count_wait(pulse, -1, tell)


def _whole(pulse: Pulse) -> Pulse:
    """Return the pulse of the activity that has the slot, of which this may be a part's."""
    while pulse.owner.__class__ is tuple:
        pulse = pulse.owner[0]
    return pulse


def _count_wait(pulse: Pulse, change: int, tell: Callable[[Pulse], None]) -> None:
    while pulse.owner.__class__ is tuple:
        pulse.waits += change
        pulse = pulse.owner[0]
    pulse.waits += change
    tell(pulse)


def part_context(*, name: str, attempt: int = 1) -> Context:
    """Return a context for a part of the running activity that has an identity of its own. For builders of patterns.

    In it `activity_info()` tells `attempt`, and an idempotency key that stands for the part, not for the activity: that of the activity
    with `name` in place of its own name and number, so that it is the same in whichever activity of the run the part is tried.
    """
    pulse = pulse_here.get()
    if pulse is None or pulse.describe is None:
        raise DefinitionError("part_context() works only inside an activity that a run has called")
    context = copy_context()
    context.run(pulse_here.set, Pulse((pulse, name), attempt, describe=_describe_part))
    return context


def start_part(
    fn: Callable[..., Coroutine[Any, Any, T]],
    *args: object,
    name: str,
    attempt: int = 1,
    context: Context | None = None,
) -> asyncio.Task[T]:
    """Start a coroutine as a part of the running activity, in a `part_context`, or in that one. For builders of patterns.

    The task is the caller's: to await, to cancel, or to leave to another activity.
    """
    chosen = part_context(name=name, attempt=attempt) if context is None else context
    return spawn(fn(*args), name=name, context=chosen)


def leave_part(context: Context, task: asyncio.Task[Any]) -> None:
    """Let a part run on when the running activity ends, for one `Activity.taking_over`. For builders of patterns.

    It is cancelled when the run leaves its worker before that, or asks for no such activity.
    """
    part, parts = context[pulse_here], left_parts_here.get()
    assert part is not None, "the context of a part"
    assert parts is not None, "in an activity that a run has called"
    parts.leave(_whole(part), _describe_part(part).idempotency_key, task, context)


def take_part(context: Context) -> tuple[asyncio.Task[Any], Context] | None:
    """Make what an activity before has left under the name of this part a part of the running one. For builders of patterns.

    Return its task and its context, None if there is none: then it is to be begun, in `context`.
    """
    fresh, parts, tell = context[pulse_here], left_parts_here.get(), waits_here.get()
    assert fresh is not None, "the context of a part"
    assert parts is not None, "in an activity that a run has called"
    whole = _whole(fresh)
    found = parts.take(whole, _describe_part(fresh).idempotency_key)
    if found is None:
        return None
    part = found[1][pulse_here]
    assert part is not None, "the context of a part"
    part.owner = whole, part.owner[1]
    if part.waits and tell is not None:
        whole.waits += part.waits
        tell(whole)
    return found


class PartThread:
    """A thread that does what the running part consists of, a plain function. Made in the part's context. For builders of patterns."""

    def __init__(self) -> None:
        part = pulse_here.get()
        assert part is not None, "in a part"
        part.loop = asyncio.get_running_loop()
        part.body = self._body = BodyThread(threads_here.get() or SystemThreads())
        self._part = part
        self._has_ended = False

    def call(self, fn: Callable[..., T], *args: object) -> tuple[BaseException, None] | tuple[None, T]:
        """In the thread, a copy of the part's context being entered: call the function; return what it raised, or what it returned."""
        try:
            return self._body.call(partial(fn, *args))
        finally:
            self._has_ended = True

    async def stop(self, reason: str) -> None:
        """Raise in the thread that it is to stop, as in that of a `def` activity, and wait a moment for its end."""
        self._part.stop(reason)
        loop = asyncio.get_running_loop()
        run_out = loop.time() + THREAD_SECONDS
        while self._body.has_begun and not self._has_ended and loop.time() < run_out:
            await pause(INSIST_SECONDS)


@types.coroutine
def finish_part(coroutine: Coroutine[Any, Any, T], context: Context, waited: Any) -> Generator[Any, Any, T]:
    """Wait for what the first step of a coroutine waits for, and step it in its own context, until it returns or raises.

    For those that take first steps, `context.run(coroutine.send, None)`, of many in one task: whichever suspends keeps the task, so that
    it is its own from the first line to the last.
    """
    while True:
        step: Callable[[Any], Any] = coroutine.send
        try:
            sent = yield waited
        except BaseException as error:
            step, sent = coroutine.throw, error
        try:
            waited = context.run(step, sent)
        except StopIteration as returned:
            value: T = returned.value
            return value


def _describe_part(part: Pulse) -> ActivityInfo:
    whole, name = part.owner
    info = whole.describe(whole)
    scope = info.activity.rpartition("/")[0]
    place = info.idempotency_key.rpartition(info.activity + "#")[0]
    return ActivityInfo(
        run_id=info.run_id,
        workflow=info.workflow,
        activity=f"{scope}/{name}" if scope else name,
        attempt=part.number,
        idempotency_key=f"{place}{scope}/{name}" if scope else f"{place}{name}",
        _pulse=part,
    )


def heartbeat(*details: object) -> None:
    """Say that the running activity is alive, and how far it has come.

    `details` are kept as JSON and handed to the next attempt, on whatever worker, as `activity_info().heartbeat_details`.
    They are written down in batches, so a crash may lose those of the last few seconds; an attempt that fails in order
    loses none. Without details those given before stay. Cheap: call it as often as there is something to tell, from
    any thread.

    In a thread (a `def` activity, or a helper of an async one) it raises `asyncio.CancelledError` once the attempt is to
    stop, with the reason as its message; a coroutine is cancelled by its own loop instead. Raises `PayloadError` for
    details that cannot be stored. Outside of runs it only checks that, so that activities can be unit-tested.
    """
    if current() is not None:
        raise DefinitionError("heartbeat() is for activities; a workflow is alive as long as its journal is")
    data = _DETAILS.encode(list(details)) if details else None
    pulse = pulse_here.get()
    if pulse is None:
        return
    if data is not None and len(data) > pulse.limits.payload_bytes_warn and pulse.describe is not None:
        told = pulse.describe(pulse)
        what = f"the heartbeat details of activity {told.activity!r}"
        pulse.limits.judge(len(data), what=what, run_id=told.run_id)
    pulse.beat(data)


def decode_details(data: bytes) -> tuple[Any, ...]:
    """Return stored heartbeat details; raise `UndecodableError` if they are damaged."""
    return tuple(_DETAILS.decode(data))


_DETAILS: Final = ValueType.of(list[Any])
