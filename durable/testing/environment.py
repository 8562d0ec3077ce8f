"""A place where a test runs workflows: a database of its own, the production worker, mocks, and a clock that skips.

Inside the block it is the default engine of the loop, so that calling a workflow, a pipeline or any other pattern runs there.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, ParamSpec, Self, TypeVar, overload

from durable.activities import Activity
from durable.client import Client
from durable.connection import LocalWorker
from durable.default import EmbeddedEngine, put_in_place
from durable.definitions import Registry
from durable.errors import DefinitionError
from durable.recorded import RecordedRun
from durable.retry import Seconds, seconds
from durable.seams import spawn
from durable.store.opening import Durability
from durable.testing.clock import SkippingClock
from durable.testing.mocks import UNSET, Mock, Mocks
from durable.testing.replaying import replayed_all
from durable.testing.skipping import Skipper
from durable.worker.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")
MEMORY: Final = Path("/dev/shm")  # where a file costs no disk, on Linux


class Environment:
    """A test's own place for runs: `async with Environment() as env:`.

    Timers, timeouts, retries and delayed starts come at once: the clock is set forward to the next of them whenever the test waits for a
    run's result, or for time (`env.sleep`), and nothing else can happen. Signals that are sent before are delivered before.
    Heartbeat timeouts and leases count real time. At the end of the block all runs are replayed with the code that drove them: what is not
    deterministic raises `NonDeterminismError` there.

    `url` is a database that the test made and owns, of either kind; default: a new SQLite file, deleted at the end. `start` is the time
    that the clock shows at first (aware; default: now).
    """

    def __init__(self, url: str | None = None, *, start: datetime | None = None) -> None:
        if start is not None and start.tzinfo is None:
            raise DefinitionError("start needs an aware datetime, e.g. datetime(2030, 1, 1, tzinfo=UTC)")
        self._url = url
        self._start = start
        self._mocks = Mocks()
        self._client: _TestClient | None = None
        self._stack = AsyncExitStack()

    # ─ life ──

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            url = self._url
            if url is None:
                directory = tempfile.mkdtemp(prefix="durable-test-", dir=MEMORY if MEMORY.is_dir() else None)
                stack.callback(shutil.rmtree, directory, ignore_errors=True)
                url = f"sqlite:///{directory}/runs.db"
            self._clock = SkippingClock(start=self._start)
            self._client = _TestClient(url, durability="off", clock=self._clock)
            self._client.stand_in = self._mocks.stand_in
            engine = EmbeddedEngine(self._client, retention=None)
            stack.push_async_callback(engine.close)
            await engine.open()
            stack.callback(put_in_place(engine))
            self._skipper = Skipper(self._client, self._clock)
            skipping = spawn(self._skipper.run(), name="durable clock of a test")
            stack.push_async_callback(_stopped, skipping)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await self._replay()
        finally:
            await self._stack.aclose()
            self._client = None

    async def _replay(self) -> None:
        """Replay what was recorded: code that cannot be replayed is found here, not in production."""
        runs = [run async for run in self.client.recorded_runs() if isinstance(run, RecordedRun)]
        registry = Registry()
        for registered in self.client.registries:
            registry.redefined |= registered.redefined
            for definition in registered.all():
                registry.add(definition)
        replayed_all(runs, registry)

    # ─ what a test does ──

    @property
    def client(self) -> _TestClient:
        """The client of its database; workers that are made with it obey its clock and its mocks, too."""
        if self._client is None:
            raise DefinitionError(
                "the environment is not open: use `async with testing.Environment() as env`"
            )
        return self._client

    def now(self) -> datetime:
        """Return what its clock shows."""
        return self._clock.now()

    async def sleep(self, duration: Seconds) -> None:
        """Let time pass, in no time: all that is due within `duration` (seconds or timedelta) happens, in order."""
        await self._skipper.sleep(seconds(duration, what="sleep"))

    @overload
    def mock(
        self,
        activity: Activity[P, R],
        fake: Callable[P, R | Awaitable[R]],
        /,
        *,
        raises: BaseException | None = None,
        times: int | None = None,
        delay: Seconds = 0,
    ) -> Mock[P, R]: ...

    @overload
    def mock(
        self,
        activity: Activity[P, R],
        /,
        *,
        returns: R = ...,
        raises: BaseException | None = None,
        times: int | None = None,
        delay: Seconds = 0,
    ) -> Mock[P, R]: ...

    @overload
    def mock(
        self,
        activity: str,
        fake: Callable[..., Any] | None = None,
        /,
        *,
        returns: Any = ...,
        raises: BaseException | None = None,
        times: int | None = None,
        delay: Seconds = 0,
    ) -> Mock[..., Any]: ...

    def mock(
        self,
        activity: Activity[Any, Any] | str,
        fake: Callable[..., Any] | None = None,
        /,
        *,
        returns: Any = UNSET,
        raises: BaseException | None = None,
        times: int | None = None,
        delay: Seconds = 0,
    ) -> Mock[Any, Any]:
        """Let a mock stand for an activity (or for all of a name) until the end of the block; return it, with its `calls`.

        It returns `returns` (default None), or what `fake`, a function with the activity's parameters, async or not, returns. With
        `raises` each attempt raises that, or only the first `times` of them. `delay` (seconds or timedelta) is how long an attempt
        takes; the clock skips it. Retries, timeouts and types are the activity's own: a result of another type fails the
        activity.
        """
        name = activity if isinstance(activity, str) else activity.name
        mock: Mock[Any, Any] = Mock(
            name,
            fake,
            returns=returns,
            raises=raises,
            times=times,
            delay=delay,
            sleep=self._sleep_in_mock,
        )
        self._mocks.add(activity, mock)
        return mock

    async def _sleep_in_mock(self, duration: float) -> None:
        await self._skipper.sleep_in_mock(duration)


class _TestClient(Client):
    """A client that remembers what its workers were given."""

    def __init__(self, url: str, *, durability: Durability, clock: SkippingClock) -> None:
        super().__init__(url, durability=durability, clock=clock)
        self.registries: list[Registry] = []

    def add_worker(self, worker: LocalWorker) -> Callable[[], None]:
        if isinstance(worker, Worker):
            self.registries.append(worker.registry)
        return super().add_worker(worker)


async def _stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
