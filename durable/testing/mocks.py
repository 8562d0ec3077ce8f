"""Mocks: what a test lets workers perform in place of an activity. The workflow, its journal and its retries notice nothing.

A mock stands for an activity by its function, so that copies with other options and steps of patterns that are made of it
are meant, too; or by its name.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, Generic, ParamSpec, TypeVar

import msgspec

from durable.activities import Activity
from durable.definitions import ActivityDefinition
from durable.errors import DefinitionError
from durable.in_activity import activity_info
from durable.retry import Seconds, seconds

P = ParamSpec("P")
R = TypeVar("R")
Sleep = Callable[[float], Awaitable[None]]
UNSET: Final[Any] = msgspec.UNSET


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a mocked activity. `attempt` counts from 1, `key` is its idempotency key, the same for all attempts."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    run_id: str
    attempt: int
    key: str


class Mock(Generic[P, R]):
    """What stands for an activity, and the calls it got. Made by `Environment.mock`."""

    def __init__(
        self,
        name: str,
        fake: Callable[P, R | Awaitable[R]] | None,
        *,
        returns: R,
        raises: BaseException | None,
        times: int | None,
        delay: Seconds,
        sleep: Sleep,
    ) -> None:
        if times is not None and raises is None:
            raise DefinitionError(f"the mock of {name!r}: times= says how often it raises; give raises=, too")
        if fake is not None and returns is not UNSET:
            raise DefinitionError(
                f"the mock of {name!r} has a function: that returns the result, not returns="
            )
        self.name = name
        self.calls: list[Call] = []
        self._fake = fake
        self._returns = returns
        self._raises = raises
        self._times = times
        self._delay = seconds(delay, what="delay")
        self._sleep = sleep
        self._raised = 0

    async def perform(self, *args: Any, **kwargs: Any) -> Any:
        """Do what an attempt of the activity does."""
        info = activity_info()
        call = Call(
            args=args, kwargs=kwargs, run_id=info.run_id, attempt=info.attempt, key=info.idempotency_key
        )
        self.calls.append(call)
        if self._delay:
            await self._sleep(self._delay)
        if self._raises is not None and (self._times is None or self._raised < self._times):
            self._raised += 1
            raise self._raises.with_traceback(None)
        if self._fake is not None:
            value = self._fake(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        return None if self._returns is UNSET else self._returns


class Mocks:
    """The mocks of one environment."""

    def __init__(self) -> None:
        self._by_fn: dict[int, tuple[Callable[..., Any], Mock[..., Any]]] = {}
        self._by_name: dict[str, Mock[..., Any]] = {}

    def add(self, activity: Activity[..., Any] | str, mock: Mock[..., Any]) -> None:
        """Let a mock stand for an activity from now on."""
        if isinstance(activity, Activity):
            fn = inspect.unwrap(activity.fn)
            self._by_fn[id(fn)] = fn, mock
        else:
            self._by_name[activity] = mock

    def add_fake(self, activity: Activity[..., Any], fake: Callable[..., Any]) -> None:
        """Let a function stand for an activity, and nothing more."""
        mock = Mock(activity.name, fake, returns=UNSET, raises=None, times=None, delay=0, sleep=_never_asked)
        self.add(activity, mock)

    def stand_in(self, definition: ActivityDefinition) -> ActivityDefinition:
        """Return what is performed in place of an activity: itself, if no mock stands for it."""
        mock = self._of(definition)
        if mock is None:
            return definition
        copy = definition.renamed(definition.name)
        copy.fn = mock.perform
        copy.is_async = True
        copy.is_simple = not copy.is_limited
        return copy

    def _of(self, definition: ActivityDefinition) -> Mock[..., Any] | None:
        for fn in _unwrapped(definition.fn):
            if (found := self._by_fn.get(id(fn))) is not None:
                return found[1]
        name = definition.name
        return self._by_name.get(name) or self._by_name.get(name.rpartition("/")[2])


async def _never_asked(duration: float) -> None:
    raise AssertionError("a mock without a delay sleeps")


def _unwrapped(fn: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Yield a function, and those it was made of."""
    while True:
        yield fn
        inner = getattr(fn, "__wrapped__", None)
        if inner is None:
            return
        fn = inner
