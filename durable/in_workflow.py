"""What workflow code may ask: time, chance, waiting, who it is. Deterministic inside a run, ordinary outside."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NoReturn, TypeVar, cast
from uuid import UUID

import msgspec

from durable import seams
from durable.definitions import check_name
from durable.engine.awaiting import as_completed
from durable.engine.guards import unguarded
from durable.engine.runtime import Runtime, current, name_prefix
from durable.errors import DefinitionError
from durable.payloads import ValueType
from durable.retry import Seconds, seconds

__all__ = [
    "RunInfo",
    "all_handlers_finished",
    "as_completed",
    "continue_as_new",
    "deprecate_patch",
    "info",
    "is_evicting",
    "is_replaying",
    "logger",
    "note",
    "now",
    "patched",
    "random",
    "scope",
    "sleep",
    "unguarded",
    "uuid4",
    "wait_answer",
    "wait_condition",
    "wait_signal",
]

D = TypeVar("D")


class _Missing:
    """The type of a default that was not given."""


MISSING: Final = _Missing()
_clock: Final = seams.SystemClock()
_chance: Final = seams.SystemRandom()
_any: Final = ValueType.of(Any)


class RunInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who the running workflow is. `attempt` counts workflow-level attempts, from 1.

    `events` is how many entries its journal has: one that goes on for ever continues as new now and then.
    """

    run_id: str
    workflow: str
    version: int
    generation: int
    attempt: int
    task_queue: str
    started_at: datetime
    events: int


def _run(what: str) -> Runtime:
    run = current()
    if run is None:
        raise DefinitionError(f"{what} works only inside a workflow")
    return run


def info() -> RunInfo:
    """Return who the running workflow is; outside of one, raise `DefinitionError`."""
    run = _run("info()")
    identity = run.identity
    return RunInfo(
        run_id=identity.run_id,
        workflow=identity.workflow,
        version=identity.version,
        generation=identity.generation,
        attempt=run.attempt,
        task_queue=identity.task_queue,
        started_at=seams.EPOCH + timedelta(microseconds=run.started_at_us),
        events=run.events,
    )


def continue_as_new(*args: object, **kwargs: object) -> NoReturn:
    """End this generation of the run here and go on with the next one, under the same run id, with an empty journal.

    For workflows that never end, or are long: `continue_as_new(state)` in place of the next round. The arguments are checked
    like those of a start. It does not return: like an exception it leaves the workflow, past `finally` blocks, also out of a task
    group. Signals that nobody has read yet, and a request to cancel that has not arrived, move to the next generation in the same
    transaction; activities still running are cancelled. The workflow's `timeout` covers all generations together.
    Raises `DefinitionError` outside of a workflow and in the middle of a saga, `ArgumentsError` if the arguments do not fit.
    """
    _run("continue_as_new()").continue_as_new(args, kwargs)


def is_replaying() -> bool:
    """Whether the running workflow is being rebuilt from its journal (False outside of runs)."""
    run = current()
    return run is not None and run.is_replaying


def is_evicting() -> bool:
    """Whether a `finally` runs only because the run leaves this process's memory (False outside of runs)."""
    run = current()
    return run is not None and run.is_evicting


def now() -> datetime:
    """Return the aware UTC time. In a run: its logical time, the same in every replay."""
    run = current()
    return seams.EPOCH + timedelta(microseconds=_clock.now_us() if run is None else run.now_us())


def random() -> float:
    """Return a float in [0, 1). In a run: from its journaled seed."""
    run = current()
    return _chance.fraction() if run is None else run.random.random()


def uuid4() -> UUID:
    """Return a random UUID. In a run: from its journaled seed."""
    run = current()
    return seams.uuid4() if run is None else UUID(int=run.random.getrandbits(128), version=4)


def _patchable_run(id: str, what: str) -> Runtime:
    if not isinstance(id, str) or not id:
        raise DefinitionError(f"{what}() takes the patch's id, a text, not {id!r}")
    return _run(f"{what}()")


def patched(id: str) -> bool:
    """Whether this run takes the new side of a change: `if patched("fraud-check"):` new code, `else:` old code.

    True for a run that gets here for the first time now, which is journaled; False for one that was past this point before
    the change. The first answer for an id holds for the whole run, so one id stands for one change.
    """
    return _patchable_run(id, "patched").patched(id)


def deprecate_patch(id: str) -> None:
    """Stand in for `patched(id)` once no open run is left on the old side, whose code then goes.

    Runs with and without the patch's marker replay. Once no open run remembers `patched(id)` either, this call may go too.
    """
    _patchable_run(id, "deprecate_patch").deprecate_patch(id)


@contextmanager
def scope(name: str) -> Iterator[str]:
    """Put `name/` in front of the names that activities called in this block have in the journal; yield the whole path.

    Scopes nest, and hold for tasks that are started inside. For builders of patterns: two parts of one run that call
    the same activity stay apart, and keep their idempotency keys when one of them changes.
    """
    path = f"{name_prefix.get()}{check_name(name, 'a scope')}/"
    token = name_prefix.set(path)
    try:
        yield path
    finally:
        name_prefix.reset(token)


def note(name: str, status: str, *, kind: str = "") -> None:
    """Add a line to the run's story that stands for no activity, e.g. a step that is skipped. It costs no commit.

    It is part of the journal: a replay must give the same notes. For builders of patterns.
    """
    _run("note()").note(name_prefix.get() + check_name(name, "a note"), status, kind)


async def sleep(duration: Seconds) -> None:
    """Sleep for seconds or a `timedelta`. In a run: a durable timer, as `asyncio.sleep` is there too."""
    await asyncio.sleep(seconds(duration, what="sleep"))


def all_handlers_finished() -> bool:
    """Whether no handler of a signal is still at it: `await wait_condition(all_handlers_finished)` before a workflow returns.

    What is not finished then is given up, with a warning in the log.
    """
    return _run("all_handlers_finished()").open_handlers == 0


async def wait_condition(
    condition: Callable[[], bool], timeout: Seconds | None = None, *, default: object = MISSING
) -> Any:
    """Wait until `condition()` is true; it is looked at whenever the run comes to rest.

    After `timeout` (seconds or timedelta) raise TimeoutError, or return `default` if given. `condition` must be free of
    effects: it runs often.
    """
    run = _run("wait_condition()")
    return await _limited(run.wait_condition(condition), timeout, default)


async def wait_signal(name: str, timeout: Seconds | None = None, *, default: object = MISSING) -> Any:
    """Return the value of the next signal `name`, as plain JSON data; `Signal.wait` is the typed form.

    Signals are delivered once each, in the order they were sent, also those sent before anyone waits. After
    `timeout` raise TimeoutError, or return `default` if given.
    """
    return await signal_value(name, _any, timeout, default)


async def wait_answer(
    name: str, prompt: str, timeout: Seconds | None = None, *, default: object = MISSING
) -> Any:
    """Ask a person, and return the answer, as plain JSON data. The run waits, and holds no memory meanwhile.

    The question is seen by `durable inbox`, `durable show` and `Run.prompt`, and answered by `durable answer`, `durable.answer(...)`, or
    any signal of that name. It takes one answer. In a `scope` its name is the whole path. After `timeout` (seconds or timedelta)
    raise TimeoutError, or return `default` if given; a later answer is refused.
    """
    run = _run(f"asking {name!r}")
    if not isinstance(prompt, str):
        raise DefinitionError(f"what a person is asked is text, not {prompt!r}")
    path = name_prefix.get() + check_name(name, "a question")
    return await _limited(run.wait_signal(path, _any, prompt), timeout, default)


async def signal_value(name: str, value_type: ValueType, timeout: Seconds | None, default: object) -> Any:
    """Wait for one signal of a type; the body of `wait_signal` and `Signal.wait`."""
    run = _run(f"waiting for signal {name!r}")
    return await _limited(run.wait_signal(name, value_type), timeout, default)


async def _limited(awaitable: Any, timeout: Seconds | None, default: object) -> Any:
    if timeout is None:
        return await awaitable
    limit = seconds(timeout, what="timeout")
    try:
        async with asyncio.timeout(limit) as scope:
            return await awaitable
    except TimeoutError:
        if isinstance(default, _Missing) or not scope.expired():
            raise
        return default


class _RunLogger(logging.LoggerAdapter[logging.Logger]):
    """Silent while a run is replayed; adds `run_id` and `workflow` to the record."""

    def isEnabledFor(self, level: int) -> bool:  # logging's own name
        run = current()
        if run is not None and (run.is_replaying or run.is_evicting):
            return False
        return super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        run = current()
        if run is not None:
            extra = dict(cast(dict[str, Any], kwargs.get("extra") or {}))
            extra.update(run_id=run.identity.run_id, workflow=run.identity.workflow)
            kwargs["extra"] = extra
        return msg, kwargs


logger: Final = _RunLogger(logging.getLogger("durable.workflow"), {})
