"""One trial of `crash_everywhere`: a workflow is run through, by as many lives of a process as it takes, and struck at one place.

A life is an event loop of its own with the production's worker on it. It dies as by kill -9: the loop stops between two callbacks,
its files are closed and its locks dropped, and nothing of it is heard again; the next life begins on the same database. Coroutines of the
dead are kept until the trial has been judged, so that no `finally` block of theirs does anything before.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, cast

import msgspec

from durable.activities import Activity
from durable.client import Client
from durable.definitions import ActivityDefinition
from durable.errors import (
    PlatformFault,
    RunCancelledError,
    RunParkedError,
    RunTerminatedError,
    StoreError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkerLostError,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from durable.failures import describe, record
from durable.in_activity import activity_info
from durable.journal.events import ActivityCompleted, ActivityFailed, ScheduleActivity, StartTimer, TimerFired
from durable.messages import Sent
from durable.run_handle import RunHandle
from durable.seams import spawn
from durable.store.records import TurnCommit, Verdict
from durable.store.sqlite.preparing import Prepared
from durable.store.sqlite.store import SqliteStore
from durable.testing.clock import SkippingClock
from durable.testing.mocks import Mocks
from durable.testing.skipping import Skipper
from durable.testing.virtual import (
    InlineExecutor,
    SeededRandom,
    VirtualClock,
    VirtualLoop,
    VirtualThreads,
    throw_away,
)
from durable.updating import Called
from durable.worker.live import Item
from durable.worker.worker import Worker
from durable.workflows import Workflow

At = Literal["before", "after", "reply", "lease", "forward", "back", "lost", "late"]
RUN_ID: Final = "run"
START_US: Final = 1_800_000_000_000_000  # when the first life of a trial begins
RESTART_SECONDS: Final = 1.0
STEP_US: Final = 86_400_000_000  # by how much a clock is set wrong
PATIENCE_SECONDS: Final = 600.0  # of the loop's time, which is not what timers and retries take
LOOK_SECONDS: Final = (
    1.0  # of the loop's time, at most, between looks whether timers and retries may be skipped
)
LIVES_MAX: Final = 20


class Strike(msgspec.Struct, frozen=True):
    """Where a trial is struck: at the commit, or in the activity's body, of that number, from 1."""

    at: At
    number: int


class Body(msgspec.Struct, frozen=True, kw_only=True):
    """One begin of an activity's function."""

    key: str
    activity: str
    source: str
    is_repeatable: bool  # its policy lets it begin again after its worker was lost
    is_async: bool


class Observed(msgspec.Struct, kw_only=True):
    """What came of one trial. `commits` tell in words what each held."""

    outcome: str
    effects: object = None
    bodies: list[Body] = []
    commits: list[str] = []
    is_given_up: bool = False  # an activity that must not be repeated was interrupted

    @property
    def begun(self) -> Counter[str]:
        """How often each activity's body began, by key."""
        return Counter(body.key for body in self.bodies)


class Subject(msgspec.Struct, kw_only=True):
    """What is tried."""

    workflow: Workflow[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signals: Sequence[tuple[Sent, object]]
    updates: Sequence[tuple[Called, object]]
    mocks: Mapping[Activity[..., Any], Callable[..., Any]]
    seed: int


class Trial:
    """One course of a workflow on a database of its own."""

    def __init__(
        self, subject: Subject, database: Path, strike: Strike | None, start_us: int = START_US
    ) -> None:
        self.subject = subject
        self.database = database
        self.strike = strike
        self.seen = Observed(outcome="")
        self.commits = 0
        self.life: Life | None = None
        self._start_us = start_us
        self._dead: list[Life] = []
        self._names: dict[int, str] = {}
        self._mocks = Mocks()
        for activity, fake in subject.mocks.items():
            self._mocks.add_fake(activity, fake)

    def run(self) -> Observed:
        """Run it through, life by life; `close` it afterwards."""
        now, offset_us = 0.0, self._start_us
        for _ in range(LIVES_MAX):
            self.life = life = Life(self, now, offset_us)
            self._dead.append(life)
            if life.run():
                return self.seen
            now = life.loop.time() + RESTART_SECONDS
            offset_us = life.clock.now_us() - round(life.loop.time() * 1_000_000)
        raise AssertionError("each life of a trial dies at most once")

    def close(self) -> None:
        """Let go of the dead."""
        for life in self._dead:
            life.bury()

    # ─ what the store tells ──

    def is_struck(self, *kinds: At) -> bool:
        """Whether the commit that is being made is the one to be struck so."""
        return self.strike is not None and self.strike.at in kinds and self.strike.number == self.commits

    def note_commit(self, commits: Sequence[TurnCommit]) -> None:
        """Another commit is about to be made."""
        self.commits += 1
        self.seen.commits.append("; ".join(filter(None, map(self._told, commits))) or "notes on attempts")

    def _told(self, commit: TurnCommit) -> str:
        told = []
        for entry in commit.entries if isinstance(commit, Item) else ():
            match entry:
                case ScheduleActivity():
                    self._names[entry.op] = f"{entry.name} (call {entry.n})"
                    told.append(f"asks for {self._names[entry.op]}")
                case ActivityCompleted():
                    told.append(f"records the result of {self._names.get(entry.op)}")
                case ActivityFailed():
                    told.append(f"records the failure of {self._names.get(entry.op)}")
                case StartTimer():
                    told.append("sets a timer")
                case TimerFired():
                    told.append("records that a timer fired")
        return ", ".join(told)

    # ─ what activities meet ──

    def stand_in(self, definition: ActivityDefinition) -> ActivityDefinition:
        """Return the activity with its begins noted and, if it is its turn, its result lost."""
        if getattr(definition.fn, "__durable_noted__", False):
            return definition
        original = definition
        definition = self._mocks.stand_in(definition)
        copy = definition.renamed(definition.name)
        copy.fn = self._noted(definition, original)
        return copy

    def _noted(self, definition: ActivityDefinition, original: ActivityDefinition) -> Callable[..., Any]:
        fn = definition.fn
        noted: Callable[..., Any]
        if definition.is_async:

            @functools.wraps(fn)
            async def noted(*args: Any, **kwargs: Any) -> Any:
                number = self._note_body(original, is_async=True)
                value = await fn(*args, **kwargs)
                await self._after_body(number, original)
                return value

        else:

            @functools.wraps(fn)
            def noted(*args: Any, **kwargs: Any) -> Any:
                number = self._note_body(original, is_async=False)
                value = fn(*args, **kwargs)
                if inspect.isawaitable(value):
                    return self._seen_through(value, number, original)
                if self.strike == Strike("lost", number):
                    raise _lost(original)
                return value

        noted.__durable_noted__ = True  # type: ignore[attr-defined]
        return noted

    def _note_body(self, definition: ActivityDefinition, *, is_async: bool) -> int:
        info = activity_info()
        body = Body(
            key=info.idempotency_key,
            activity=info.activity,
            source=_source(definition.fn),
            is_repeatable=definition.retry.is_retryable(_lost(definition))
            and definition.retry.has_attempt_after(info.attempt),
            is_async=is_async,
        )
        self.seen.bodies.append(body)
        return len(self.seen.bodies)

    async def _seen_through(self, rest: Awaitable[Any], number: int, definition: ActivityDefinition) -> Any:
        """Await what a plain function has returned: from there on it is like a coroutine function."""
        bodies = self.seen.bodies
        bodies[number - 1] = msgspec.structs.replace(bodies[number - 1], is_async=True)
        value = await rest
        await self._after_body(number, definition)
        return value

    async def _after_body(self, number: int, definition: ActivityDefinition) -> None:
        if self.strike == Strike("lost", number):
            raise _lost(definition)
        if self.strike == Strike("late", number):
            assert self.life is not None
            await self.life.lose_lease()
            try:
                await asyncio.sleep(PATIENCE_SECONDS)
            except asyncio.CancelledError:
                pass  # the result comes nevertheless, when nobody waits for it any more


class Life:
    """One life of the process."""

    def __init__(self, trial: Trial, now: float, offset_us: int) -> None:
        self.trial = trial
        self.loop = VirtualLoop(now)
        self.loop.set_exception_handler(lambda loop, context: None)
        self.machine = VirtualClock(self.loop, offset_us)
        self.clock = SkippingClock(self.machine)
        self.is_dead = False
        self._threads = VirtualThreads(self.loop)
        self._store: LifeStore | None = None
        self._worker: Worker | None = None

    def run(self) -> bool:
        """Live until the run has ended, or death; return whether it has ended."""
        try:
            self.loop.run_until_complete(self._live())
            return True
        except RuntimeError:
            if not self.is_dead:
                raise
            self._threads.join()
            return False

    async def die(self) -> None:
        """End the process as kill -9 would. Does not return."""
        assert self._store is not None
        self.is_dead = True
        self._store.die()
        self.loop.stop()
        await asyncio.get_running_loop().create_future()

    async def lose_lease(self) -> None:
        """Somebody else declares the worker dead, as one does that hears nothing of it."""
        assert self._store is not None
        assert self._worker is not None
        await self._store.declare_dead(self._worker.worker_id)

    def bury(self) -> None:
        """Let go of whatever is left in memory."""
        self.loop.run_until_complete(self._bury())
        self.loop.close()

    async def _bury(self) -> None:
        if self._worker is not None and self.is_dead:
            self._worker.life.driver.stop()
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                throw_away(task)
        await self.loop.shutdown_default_executor()

    async def _live(self) -> None:
        trial = self.trial
        subject = trial.subject
        self._store = store = await LifeStore.of(trial.database, self.clock)
        client = Client(
            f"sqlite:///{trial.database}",
            durability="off",
            clock=self.clock,
            random=SeededRandom(subject.seed),
        )
        struck = StruckStore(store, self)
        client.use(struck)
        client.stand_in = trial.stand_in
        self._worker = Worker(
            client, subject.workflow, retention=None, name="crash test", threads=self._threads
        )
        async with client, self._worker:
            skipper = Skipper(client, self.clock, eager_looks=1, idle_seconds=LOOK_SECONDS)
            skipping = spawn(skipper.run(), name="durable clock of a test")
            try:
                trial.seen.outcome = await self._outcome(client)
            finally:
                skipping.cancel()

    async def _outcome(self, client: Client) -> str:
        subject = self.trial.subject
        run = await client.start(subject.workflow, *subject.args, run_id=RUN_ID, **subject.kwargs)
        for number, (signal, value) in enumerate(subject.signals):
            try:
                await run.signal(signal, value, id=f"signal {number}")
            except WorkflowStateError:
                break
        if not subject.updates:
            return await self._end(client, run)
        answers = [
            await _answer(run, update, value, id=f"update {number}")
            for number, (update, value) in enumerate(subject.updates)
        ]
        return f"{await self._end(client, run)}, and answered {'; '.join(answers)}"

    async def _end(self, client: Client, run: RunHandle[Any]) -> str:
        try:
            return f"returned {await run.result(timeout=PATIENCE_SECONDS)!r}"
        except WorkflowFailedError as error:
            self.trial.seen.is_given_up = _is_loss(error)
            return f"failed: {describe(record(error.__cause__ or error))}"
        except (RunCancelledError, RunTerminatedError, WorkflowTimeoutError, PlatformFault) as error:
            return f"{type(error).__name__}: {error}"
        except TimeoutError:
            why = await client.why(RUN_ID)
            return f"did not end: {why.text}"


async def _answer(run: RunHandle[Any], update: Called, value: object, *, id: str) -> str:
    """Call into the run, and return what came of it. A life that begins anew calls again, with the same id."""
    try:
        return repr(await run.update(cast(Any, update), value, id=id, timeout=PATIENCE_SECONDS))
    except (UpdateFailedError, UpdateRejectedError) as error:
        return f"{type(error).__name__}: {error.__cause__!r}"
    except (WorkflowStateError, PlatformFault, RunParkedError, TimeoutError) as error:
        return type(error).__name__


class LifeStore(SqliteStore):
    """Production's store, without the threads and sockets of which a life has none."""

    def __init__(self, prepared: Prepared, *, durability: str, clock: Any, executor: Any) -> None:
        super().__init__(prepared, durability=durability, clock=clock, executor=executor)
        self._checkpointer = None
        self._wakeups.listen = lambda name: False  # type: ignore[method-assign]

    @classmethod
    async def of(cls, database: Path, clock: SkippingClock) -> LifeStore:
        return await cls.open(database, durability="off", clock=clock, executor=InlineExecutor())

    def die(self) -> None:
        """What the system does for a process that is gone: its files are closed, its locks dropped."""
        self._gone = "its process is dead"
        self._wakeups.close()
        self._close_files()

    async def declare_dead(self, worker_id: int) -> None:
        await self._write(partial(self._stop_worker, worker_id, None, True))

    async def _scan(self, name: str, parameters: dict[str, object]) -> list[Any]:
        with self._reading() as reader:
            return reader.execute(self._sql[name], parameters).fetchall()


class StruckStore:
    """The store of a life, as its worker reaches it: the strike of the trial falls at a commit."""

    def __init__(self, real: LifeStore, life: Life) -> None:
        self._real = real
        self._life = life

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def commit_turns_now(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> None:
        """Never on the spot: each commit is a place to be struck at."""

    async def commit_turns(self, worker_id: int, commits: Sequence[TurnCommit], now_us: int) -> list[Verdict]:
        life, trial = self._life, self._life.trial
        trial.note_commit(commits)
        if trial.is_struck("before"):
            await life.die()
        if trial.is_struck("lease"):
            await self._real.declare_dead(worker_id)
        if trial.is_struck("forward", "back"):
            life.machine.offset_us += STEP_US if trial.is_struck("forward") else -STEP_US
        verdicts = await self._real.commit_turns(worker_id, commits, life.clock.now_us())
        if trial.is_struck("after"):
            await life.die()
        if trial.is_struck("reply"):
            raise StoreError("the commit's reply was lost")
        return verdicts


def _lost(definition: ActivityDefinition) -> WorkerLostError:
    return WorkerLostError(f"the result of {definition.name!r} was lost with its worker")


def _is_loss(error: BaseException | None) -> bool:
    """Whether the worker's loss is what a failure comes from."""
    while error is not None:
        if isinstance(error, WorkerLostError):
            return True
        error = error.__cause__
    return False


def _source(fn: Callable[..., Any]) -> str:
    code = getattr(inspect.unwrap(fn), "__code__", None)
    return "" if code is None else f"{Path(code.co_filename).name}:{code.co_firstlineno}"
