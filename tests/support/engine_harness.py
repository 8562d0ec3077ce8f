"""A driver in memory: feeds one instance, keeps its journal, plays the worker, and replays what it recorded.

    run = EngineRun(workflow_function, "argument")
    run.drive()                 # perform activities and fire timers until it ends or nothing is left to do
    run.check_replay()          # today's code still agrees with the journal

Nothing here waits, sleeps or touches a store: activities are called in place and time moves with events.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec

from durable import failures
from durable.definitions import ActivityDefinition, WorkflowDefinition
from durable.engine.instance import UNSET, Instance
from durable.engine.runtime import RunIdentity, Runtime, current
from durable.engine.sources import look_through
from durable.errors import NonDeterminismError
from durable.journal.events import (
    ActivityCompleted,
    ActivityFailed,
    AnyEntry,
    CancelRequested,
    CloseOp,
    Command,
    Completed,
    Event,
    Failed,
    OpenWait,
    Retried,
    ScheduleActivity,
    SignalReceived,
    Started,
    StartTimer,
    TimerFired,
    UpdateAnswered,
    UpdateReceived,
)
from durable.journal.matching import environment
from durable.journal.turns import Activated, decode_turn, encode_turn, split_activations
from durable.payloads import Arguments, ValueType
from durable.retry import DEFAULT_RETRY

START_US = 1_700_000_000_000_000
STEP_US = 1_000

Journal = list[tuple[int, list[AnyEntry]]]


def a_definition(fn: Callable[..., Any], **changes: Any) -> WorkflowDefinition:
    """Return `fn` as a workflow."""
    fields: dict[str, Any] = {
        "name": fn.__name__,
        "version": 1,
        "fn": fn,
        "arguments": Arguments.of(fn),
        "result": ValueType.of(Any),
        "timeout_us": None,
        "retries": 0,
        "retry_delay_us": 0,
        "task_queue": "default",
    }
    return WorkflowDefinition(**(fields | changes))


class EngineActivity:
    """The least that workflow code needs to call an activity; the authors' API is not under test here."""

    def __init__(self, definition: ActivityDefinition) -> None:
        self.definition = definition

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Any]:
        return here().call_activity(self.definition, args, kwargs)

    def options(self, **changes: Any) -> EngineActivity:
        return an_activity(self.definition.fn, **changes)


def an_activity(fn: Callable[..., Any], **changes: Any) -> EngineActivity:
    """Make an activity of a function: a decorator."""
    fields: dict[str, Any] = {
        "name": fn.__name__,
        "fn": fn,
        "is_async": inspect.iscoroutinefunction(fn),
        "arguments": Arguments.of(fn),
        "result": ValueType.of(inspect.get_annotations(fn, eval_str=True).get("return", Any)),
        "retry": DEFAULT_RETRY,
        "timeout_us": None,
        "cancellation": "try",
    }
    return EngineActivity(ActivityDefinition(**(fields | changes)))


def here() -> Runtime:
    """Return the run whose code is running."""
    run = current()
    assert run is not None, "not inside a run"
    return run


async def next_signal(name: str, hint: Any = Any) -> Any:
    return await here().wait_signal(name, ValueType.of(hint))


async def until(condition: Callable[[], bool]) -> None:
    await here().wait_condition(condition)


class EngineRun:
    """One run: a live instance, its journal, and verbs for all that can happen to it."""

    def __init__(
        self,
        fn: Callable[..., Any] | WorkflowDefinition,
        *args: Any,
        run_id: str = "run-1",
        seed: int = 7,
        start: bool = True,
        reserve: Callable[[ActivityDefinition], bool] | None = None,
        **options: Any,
    ) -> None:
        self.definition = fn if isinstance(fn, WorkflowDefinition) else a_definition(fn)
        self.identity = RunIdentity(run_id=run_id, workflow=self.definition.name, version=1)
        self.input = self.definition.arguments.encode(args, {})
        self.options = options
        self.instance = self.new_instance()
        self.journal: Journal = []
        self.now_us = START_US
        self.seed = seed
        self.reserve = reserve
        if start:
            self.start()

    def new_instance(self, definition: WorkflowDefinition | None = None) -> Instance:
        return Instance(self.identity, definition or self.definition, self.input, **self.options)

    # ─ what can happen ───────────────────────────────────────────────────────

    def start(self) -> list[Command]:
        python, hash_seed = environment()
        return self.feed(Started(at=self.now_us, seed=self.seed, python=python, hash_seed=hash_seed))

    def feed(self, event: Event, *, value: object = UNSET) -> list[Command]:
        """Feed one event as a turn of its own, and journal the turn."""
        turn = len(self.journal) + 1
        commands = self.instance.activate(event, turn=turn, index=0, value=value, reserve=self.reserve)
        entries: list[AnyEntry] = [event, *commands]
        if self.instance.end is not None:
            entries.append(self.instance.end)
        self.journal.append((turn, entries))
        return commands

    def later(self, us: int = STEP_US) -> int:
        self.now_us += us
        return self.now_us

    def complete(self, op: int, result: object = None) -> list[Command]:
        data = msgspec.Raw(msgspec.json.encode(result))
        return self.feed(ActivityCompleted(op=op, at=self.later(), result=data))

    def fail(self, op: int, error: BaseException) -> list[Command]:
        failure = failures.record(error, activity="activity", run_id=self.identity.run_id, attempts=1)
        return self.feed(ActivityFailed(op=op, at=self.later(), failure=failure))

    def fire(self, op: int | None = None, *, late_us: int = 0) -> list[Command]:
        """Fire a timer: the given one, else the earliest."""
        if op is None:
            op = min(self.instance.timers, key=lambda one: (self.instance.timers[one], one))
        self.now_us = max(self.now_us, self.instance.timers[op]) + late_us
        return self.feed(TimerFired(op=op, at=self.now_us))

    def signal(self, name: str, value: object = None, *, msg: int = 1) -> list[Command]:
        data = msgspec.Raw(msgspec.json.encode(value))
        return self.feed(SignalReceived(at=self.later(), name=name, value=data, msg=msg))

    def update(
        self, name: str, value: object = None, *, msg: int = 1, accepted: bool = False
    ) -> list[Command]:
        """Feed an update; return what it led to."""
        return self.feed(
            UpdateReceived(
                at=self.later(),
                name=name,
                value=msgspec.Raw(msgspec.json.encode(value)),
                msg=msg,
                id=f"id-{msg}",
                accepted=accepted,
            )
        )

    def answers(self) -> list[tuple[int, str, Any]]:
        """What the callers of updates are told, in that order: number, verdict, and the result or the error's text."""
        return [
            (one.msg, one.how, one.failure.message if one.failure else msgspec.json.decode(one.result))
            for one in self.entries()
            if isinstance(one, UpdateAnswered)
        ]

    def cancel(self, reason: str | None = None, *, msg: int = 1) -> list[Command]:
        return self.feed(CancelRequested(at=self.later(), msg=msg, reason=reason))

    def retry(self, attempt: int = 2) -> list[Command]:
        return self.feed(Retried(at=self.later(), attempt=attempt))

    def perform(self, op: int) -> list[Command]:
        """Call an activity's function in place and feed its outcome."""
        call = self.instance.activities[op]
        try:
            result = perform_in_place(call.definition, call.args)
        except Exception as error:
            failure = failures.record(error, activity=call.definition.name, attempts=1)
            return self.feed(ActivityFailed(op=op, at=self.later(), failure=failure))
        data = call.definition.result.encode(result)
        return self.feed(ActivityCompleted(op=op, at=self.later(), result=msgspec.Raw(data)))

    def drive(
        self, choose: Callable[[Sequence[int]], int] = min, *, steps_max: int = 1000, activities: bool = True
    ) -> EngineRun:
        """Perform activities, then fire the earliest timer, until the run ends or nothing is left to do.

        `choose` picks the next activity among the open ones.
        """
        for _ in range(steps_max):
            if self.instance.end is not None:
                return self
            if activities and self.instance.activities:
                self.perform(choose(list(self.instance.activities)))
            elif self.instance.timers:
                self.fire()
            else:
                return self
        raise AssertionError(f"not at an end after {steps_max} steps: {self.trace()}")

    # ─ what can be asked ─────────────────────────────────────────────────────

    @property
    def result(self) -> Any:
        """The decoded result; anything but `Completed` is an assertion error that says what happened."""
        end = self.instance.end
        assert isinstance(end, Completed), f"not completed but {end}\n{self.trace()}"
        return msgspec.json.decode(end.result)

    @property
    def failure(self) -> failures.Failure:
        end = self.instance.end
        assert isinstance(end, Failed), f"not failed but {end}\n{self.trace()}"
        return end.failure

    def entries(self) -> list[AnyEntry]:
        return [entry for _, entries in self.journal for entry in entries]

    def commands(self) -> list[Command]:
        kinds = (ScheduleActivity, StartTimer, OpenWait, CloseOp)
        return [entry for entry in self.entries() if isinstance(entry, kinds)]

    def trace(self) -> list[str]:
        """The journal in short words, without line numbers: equal traces mean equal behaviour."""
        return [in_words(entry) for entry in self.entries()]

    # ─ replay ────────────────────────────────────────────────────────────────

    def recorded(self) -> list[Activated]:
        """The journal's activations, after a trip through the stored format."""
        stored = [
            (turn, [e for part in encode_turn(1, entries) for e in decode_turn(part).entries])
            for turn, entries in self.journal
        ]
        return [one for one in split_activations(stored) if isinstance(one, Activated)]

    def replay(self, fn: Callable[..., Any] | None = None) -> Instance:
        """Replay the journal against `fn` (default: the code that wrote it); return the rebuilt instance."""
        definition = None if fn is None else a_definition(fn, name=self.definition.name)
        instance = self.new_instance(definition)
        try:
            for activated in self.recorded():
                instance.replay(activated)
        except BaseException:
            instance.evict()
            raise
        return instance

    def check_replay(self) -> Instance:
        """Replay against the same code: everything the driver can see must be the same."""
        live, rebuilt = self.instance, self.replay()
        assert rebuilt.warnings == []
        assert _without_traceback(rebuilt.end) == _without_traceback(live.end)
        assert rebuilt.failed_at == live.failed_at
        assert rebuilt.events == live.events
        if live.end is None:
            assert rebuilt.timers == live.timers
            assert rebuilt.waits == live.waits
            assert rebuilt.unread() == live.unread()
            assert rebuilt.begun_updates() == live.begun_updates()
            assert rebuilt.open_handlers == live.open_handlers
            assert {op: (c.key, c.args, c.closing) for op, c in rebuilt.activities.items()} == {
                op: (c.key, c.args, c.closing) for op, c in live.activities.items()
            }
        return rebuilt

    def adopt(self, instance: Instance) -> None:
        """Go on with a rebuilt instance in place of the live one, which is evicted."""
        self.instance.evict()
        self.instance = instance

    def replay_error(self, fn: Callable[..., Any]) -> NonDeterminismError:
        """Return the error that replaying against other code raises."""
        try:
            self.replay(fn)
        except NonDeterminismError as error:
            return error
        raise AssertionError("the replay agreed with the journal")


for _function in (EngineActivity.__call__, next_signal, until):
    look_through(_function)


def driven(
    fn: Callable[..., Any], *args: Any, choose: Callable[[Sequence[int]], int] = min, **kwargs: Any
) -> EngineRun:
    """Drive a workflow to its end, check that its journal replays, evict it, and return the run."""
    run = EngineRun(fn, *args, **kwargs).drive(choose)
    run.check_replay().evict()
    run.instance.evict()
    return run


def perform_in_place(definition: ActivityDefinition, data: bytes) -> Any:
    args, kwargs = definition.arguments.decode(data)
    outcome = definition.fn(*args, **kwargs)
    if not definition.is_async:
        return outcome
    try:
        outcome.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError(f"activity {definition.name!r} awaits something: not in this harness")


def in_words(entry: AnyEntry) -> str:
    match entry:
        case ScheduleActivity():
            return f"  {entry.op} {entry.name}#{entry.n} {bytes(entry.args).decode()}"
        case StartTimer():
            return f"  {entry.op} timer {entry.duration}"
        case OpenWait():
            return f"  {entry.op} wait {entry.wait} {entry.name}".rstrip()
        case CloseOp():
            return f"  close {entry.op} {entry.how}".rstrip()
        case Completed():
            return f"completed {bytes(entry.result).decode()}"
        case Failed():
            return f"failed {entry.failure.type} {entry.failure.message}"
        case ActivityCompleted() | ActivityFailed() | TimerFired():
            return f"{entry.__struct_config__.tag} {entry.op}"
        case _:
            return str(entry.__struct_config__.tag)


def _without_traceback(end: object) -> object:
    if isinstance(end, Failed):
        return type(end), end.at, end.failure.type, end.failure.message
    if isinstance(end, Completed):
        return type(end), end.at, bytes(end.result)
    return end
