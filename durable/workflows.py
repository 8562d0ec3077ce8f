"""Workflows and signals: what authors decorate and declare.

Calling a workflow outside of any run executes it durably on this process's default engine. Knows nothing of how.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast, overload

from durable import outside
from durable.activities import derived_run_id
from durable.definitions import LOCAL_TASK_QUEUE, WorkflowDefinition, check_name
from durable.engine.runtime import Runtime, current
from durable.errors import DefinitionError
from durable.in_workflow import MISSING, signal_value
from durable.payloads import Arguments, ValueType
from durable.retry import Seconds, seconds

if TYPE_CHECKING:
    from durable.run_handle import RunHandle

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
D = TypeVar("D")

DEFAULT_TASK_QUEUE: Final = "default"


class WorkflowContext(dict[str, Any]):
    """What a parameter `ctx` of a workflow holds: the dict that was given, and who the run is.

    `attempt` counts workflow-level attempts, from 1; `idempotency_key` is the same for all of them.
    """

    __durable_plain_mapping__: Final = True

    def __init__(self, given: Mapping[str, Any], *, run_id: str, attempt: int, idempotency_key: str) -> None:
        super().__init__(given)
        self.run_id = run_id
        self.attempt = attempt
        self.idempotency_key = idempotency_key


class Workflow(Generic[P, R]):
    """A durable process; made by `@workflow`. Calling it always returns a coroutine."""

    def __init__(
        self, definition: WorkflowDefinition, *, run_id: str | None = None, task_queue: str | None = None
    ) -> None:
        self.definition = definition
        self._run_id = run_id
        self._task_queue = task_queue
        self.__wrapped__ = definition.fn
        self.__name__ = getattr(definition.fn, "__name__", definition.name)
        self.__doc__ = definition.fn.__doc__

    @property
    def name(self) -> str:
        """The name it has in the database."""
        return self.definition.name

    @property
    def version(self) -> int:
        return self.definition.version

    @property
    def run_id(self) -> str | None:
        """The run id that `.options` set."""
        return self._run_id

    @property
    def task_queue(self) -> str | None:
        """The task queue that `.options` set."""
        return self._task_queue

    @property
    def fn(self) -> Callable[P, Coroutine[Any, Any, R]]:
        """The plain function."""
        return self.definition.fn

    def __repr__(self) -> str:
        return f"<workflow {self.name} version {self.version}>"

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]: ...

    @overload
    def __call__(self, *args: object, run_id: str, **kwargs: object) -> Coroutine[Any, Any, R]: ...

    def __call__(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, R]:
        """Run it durably in this process and return its result; see `start` for ids and errors.

        Raises `WorkflowFailedError` (the workflow's own error is `__cause__`), `RunCancelledError`,
        `WorkflowTimeoutError`, or the platform fault that parked the run.
        """
        return self._result(args, kwargs)

    async def _result(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        handle = await self._start(args, kwargs, drive=True)
        return await handle.result()

    @overload
    def start(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, RunHandle[R]]: ...

    @overload
    def start(self, *args: object, run_id: str, **kwargs: object) -> Coroutine[Any, Any, RunHandle[R]]: ...

    def start(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[R]]:
        """Start a run, drive it in this process, and return its handle at once.

        `run_id=` names the run (default: generated). The same id with the same input attaches to the open run,
        resumes it, or returns the recorded result; with other input it raises `RunConflictError`.
        """
        return self._start(args, kwargs, drive=True)

    @overload
    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, RunHandle[R]]: ...

    @overload
    def enqueue(self, *args: object, run_id: str, **kwargs: object) -> Coroutine[Any, Any, RunHandle[R]]: ...

    def enqueue(self, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, RunHandle[R]]:
        """Store a run for a worker to drive, and return its handle. Ids behave as in `start`."""
        return self._start(args, kwargs, drive=False)

    async def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, drive: bool) -> RunHandle[R]:
        run = current()
        if run is not None:
            raise DefinitionError(
                f"workflow {self.name!r} was called inside run {run.identity.run_id!r}; child runs are not part of "
                "this version: call its activities directly, or enqueue it from an activity"
            )
        run_id = kwargs.pop("run_id", self._run_id)
        if run_id is None:
            run_id = derived_run_id(self.name)
        return await outside.start_here(
            self.definition, args, kwargs, run_id=run_id, task_queue=self._task_queue, drive=drive
        )

    async def attach(self, run_id: str) -> RunHandle[R]:
        """Return a handle of a run that exists, and drive it in this process unless somebody does. Its input stays what it is.

        Raises `RunNotFoundError`, `WorkflowVersionMismatchError` if it is open and of another version.
        """
        return await outside.attach_here(self.definition, run_id)

    def options(self, *, run_id: str | None = None, task_queue: str | None = None) -> Workflow[P, R]:
        """Return a copy whose calls use this run id and task queue; its arguments are fully type-checked."""
        return Workflow(
            self.definition,
            run_id=self._run_id if run_id is None else run_id,
            task_queue=self._task_queue if task_queue is None else task_queue,
        )

    def local(self) -> Workflow[P, R]:
        """Return a copy whose runs no worker takes: only this process drives them, and one that starts them again by their ids.

        For builders of patterns, whose objects may hold what another process cannot rebuild.
        """
        return self.options(task_queue=LOCAL_TASK_QUEUE)


class _Decorator:
    """`@workflow(...)` with its options checked, waiting for the function."""

    def __init__(
        self,
        *,
        name: str | None,
        version: int,
        timeout: Seconds | None,
        retries: int,
        retry_delay: Seconds,
        task_queue: str,
    ) -> None:
        if name is not None:
            check_name(name, "a workflow")
        check_name(task_queue, "a task queue")
        _check_integer("version", version, 1)
        _check_integer("retries", retries, 0)
        self._name = name
        self._version = version
        self._timeout_us = None if timeout is None else round(seconds(timeout, what="timeout") * 1_000_000)
        self._retries = retries
        self._retry_delay_us = round(seconds(retry_delay, what="retry_delay") * 1_000_000)
        self._task_queue = task_queue

    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]:
        if isinstance(fn, Workflow):
            raise DefinitionError(f"{fn.name!r} is a workflow already")
        name = getattr(fn, "__qualname__", repr(fn))
        if isinstance(fn, type):
            raise DefinitionError(f"workflow {name!r} is a class; this version takes `async def` functions")
        if not inspect.iscoroutinefunction(fn):
            raise DefinitionError(f"workflow {name!r} must be an `async def` function")
        arguments = Arguments.of(fn)
        parameters = inspect.signature(fn).parameters
        if "run_id" in parameters:
            raise DefinitionError(
                f"workflow {name!r} has a parameter run_id, which names the run at every call; rename the parameter"
            )
        return Workflow(
            WorkflowDefinition(
                name=self._name or fn.__name__,
                version=self._version,
                fn=fn,
                arguments=arguments,
                result=ValueType.of_return(fn),
                timeout_us=self._timeout_us,
                retries=self._retries,
                retry_delay_us=self._retry_delay_us,
                task_queue=self._task_queue,
                prepare=partial(_with_context, list(parameters).index("ctx"))
                if "ctx" in parameters
                else None,
            )
        )


def _with_context(
    index: int, run: Runtime, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with a `WorkflowContext` for the parameter `ctx`, if it was given a plain dict."""
    given = args[index] if index < len(args) else kwargs.get("ctx")
    if type(given) is not dict:
        return args, kwargs
    identity = run.identity
    key = f"{identity.run_id}@{identity.epoch}"
    context = WorkflowContext(given, run_id=identity.run_id, attempt=run.attempt, idempotency_key=key)
    if index < len(args):
        return (*args[:index], context, *args[index + 1 :]), kwargs
    return args, {**kwargs, "ctx": context}


@overload
def workflow(fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...


@overload
def workflow(
    name: str | None = None,
    *,
    version: int = 1,
    timeout: Seconds | None = None,
    retries: int = 0,
    retry_delay: Seconds = 1.0,
    task_queue: str = DEFAULT_TASK_QUEUE,
) -> _Decorator: ...


def workflow(
    name: Any = None,
    *,
    version: int = 1,
    timeout: Seconds | None = None,
    retries: int = 0,
    retry_delay: Seconds = 1.0,
    task_queue: str = DEFAULT_TASK_QUEUE,
) -> Any:
    """Make a durable workflow of an `async def`. Bare or with options; a misspelt option is a TypeError.

    A parameter called `ctx` is given its dict as a `WorkflowContext`, which also knows the run.

    `timeout` (seconds or timedelta) limits the whole life of a run, from its start: then it is `timed_out`, and no code
    of it runs any more. `retries` workflow-level retries follow a failure after `retry_delay`; they keep what was done
    before the failed activity. `version` must be raised when a change breaks open runs: a worker never drives
    a run of a version it does not have. `task_queue` names where its runs wait for workers.
    """
    fn = name if callable(name) else None
    decorator = _Decorator(
        name=None if fn is not None else name,
        version=version,
        timeout=timeout,
        retries=retries,
        retry_delay=retry_delay,
        task_queue=task_queue,
    )
    return decorator if fn is None else decorator(fn)


def make_workflow(
    fn: Callable[..., Coroutine[Any, Any, Any]],
    *,
    name: str,
    kind: str,
    origin: str,
    version: int = 1,
    timeout: Seconds | None = None,
    task_queue: str = DEFAULT_TASK_QUEUE,
    signature: Callable[..., Any] | None = None,
    result: object = Any,
    is_long: bool = False,
) -> Workflow[..., Any]:
    """Make a workflow at run time, of a coroutine function. For builders of patterns.

    `kind` is what `Run.kind` says, e.g. "pipeline". `origin` tells two definitions of one name apart: equal ones are the same
    thing, defined again; others are refused where they meet. `signature` is what the input must fit, if it is not `fn`
    itself; `result` the type hint of what it returns. An object that has a method `__durable_workflows__` which returns
    `Workflow`s is served by every worker that is given the module in which it is a variable. `is_long`: its journal grows with its
    input, by design and without anything that is kept of it in memory; `Limits.journal_events` is not for its runs.
    """
    _check_integer("version", version, 1)
    return Workflow(
        WorkflowDefinition(
            name=check_name(name, f"a {kind}"),
            version=version,
            fn=fn,
            arguments=Arguments.of(fn if signature is None else signature),
            result=ValueType.of(result),
            timeout_us=None if timeout is None else round(seconds(timeout, what="timeout") * 1_000_000),
            retries=0,
            retry_delay_us=0,
            task_queue=check_name(task_queue, "a task queue"),
            kind=kind,
            origin=origin,
            is_long=is_long,
        )
    )


def _check_integer(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DefinitionError(f"{what} must be an integer >= {least}, not {value!r}")


class Signal(Generic[T]):
    """A typed message into a run: `approved = Signal("approved", bool)`.

    In the workflow `await approved.wait()`; from outside `durable.signal(run_id, approved, True)`, a handle's
    `signal`, or `durable signal RUN approved true`.
    """

    __slots__ = ("name", "value_type")

    @overload
    def __init__(self, name: str, type: type[T]) -> None: ...

    @overload
    def __init__(self: Signal[Any], name: str, type: object = Any) -> None: ...

    def __init__(self, name: str, type: Any = Any) -> None:
        check_name(name, "a signal")
        self.name = name
        self.value_type = ValueType.of(type)

    def __repr__(self) -> str:
        return f"<signal {self.name}>"

    @overload
    async def wait(self, timeout: Seconds | None = None) -> T: ...

    @overload
    async def wait(self, timeout: Seconds | None = None, *, default: D) -> T | D: ...

    async def wait(self, timeout: Seconds | None = None, *, default: object = MISSING) -> Any:
        """Return the next value sent: each once, in order, also what was sent before anyone waited.

        After `timeout` (seconds or timedelta; default: none) raise TimeoutError, or return `default` if given.
        """
        return cast(T, await signal_value(self.name, self.value_type, timeout, default))
