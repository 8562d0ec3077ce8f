"""Workflows and signals: what authors decorate and declare.

Calling a workflow outside of any run executes it durably on this process's default engine. Knows nothing of how.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, Final, Generic, ParamSpec, TypeVar, get_args, overload

from durable import outside
from durable.definitions import (
    FOR_EVER,
    LOCAL_TASK_QUEUE,
    RETENTION_SECONDS_MIN,
    ActivityDefinition,
    ForEver,
    Handlers,
    OnParentClose,
    WorkflowDefinition,
    check_name,
    check_run_id,
    retention_us_of,
)
from durable.engine.runtime import ChildRequest, Runtime, current, name_prefix
from durable.errors import DefinitionError
from durable.in_activity import derived_run_id
from durable.payloads import Arguments, ValueType
from durable.retry import Retry, Seconds, seconds
from durable.workflow_classes import (
    WORKFLOW,
    Runnable,
    UpdateFunction,
    authored,
    body_of,
    check_class,
    handlers_of,
    is_as_declared,
    mark_query,
    mark_signal,
    mark_update,
)

if TYPE_CHECKING:
    from durable.run_handle import RunHandle

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
C = TypeVar("C", bound="type[Runnable[Any]]")
M = TypeVar("M", bound=Callable[..., Any])

DEFAULT_TASK_QUEUE: Final = "default"
CHILD: Final = "child"  # the kind of such an entry in the story of its parent


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
        self,
        definition: WorkflowDefinition,
        *,
        run_id: str | None = None,
        task_queue: str | None = None,
        on_parent_close: OnParentClose = "cancel",
    ) -> None:
        self.definition = definition
        self._run_id = run_id
        self._task_queue = task_queue
        self._on_parent_close: OnParentClose = on_parent_close
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

        Inside a run it is a child of that run: a run of its own, started in the same commit that records the call, driven by
        any worker that serves it. Cancelled, the call asks the child to cancel, and raises once that is closed.

        Raises `WorkflowFailedError` (the workflow's own error is `__cause__`), `RunCancelledError`,
        `WorkflowTimeoutError`, or the platform fault that parked the run.
        """
        return self._result(args, kwargs)

    async def _result(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> R:
        run = current()
        if run is not None:
            result: R = await run.call_child(self._as_child(kwargs), args, kwargs)
            return result
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

        Inside a run it starts a child, `run_id@epoch/path#n` by default, in the commit that records the call; of its handle use `run_id`,
        `result()` and `cancel()`. A child that is open when its parent closes is asked to cancel, unless
        `.options(on_parent_close=...)` says otherwise.
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
            return outside.child_handle(run.start_child(self._as_child(kwargs), args, kwargs))
        run_id = kwargs.pop("run_id", self._run_id)
        if run_id is None:
            run_id = derived_run_id(self.name)
        return await outside.start_here(
            self.definition, args, kwargs, run_id=run_id, task_queue=self._task_queue, drive=drive
        )

    def _as_child(self, kwargs: dict[str, Any]) -> ChildRequest:
        """Return what a run asks for when it calls this workflow. Takes `run_id` out of `kwargs`."""
        definition = self.definition
        run_id = kwargs.pop("run_id", self._run_id)
        return ChildRequest(
            workflow=definition,
            definition=ActivityDefinition(
                name=name_prefix.get() + definition.name,
                kind=CHILD,
                fn=definition.fn,
                is_async=True,
                arguments=definition.arguments,
                result=definition.result,
                retry=Retry(1),
                timeout_us=None,
                cancellation="wait",
            ),
            run_id=None if run_id is None else check_run_id(run_id),
            task_queue=self._task_queue,
            on_parent_close=self._on_parent_close,
        )

    async def attach(self, run_id: str) -> RunHandle[R]:
        """Return a handle of a run that exists, and drive it in this process unless somebody does. Its input stays what it is.

        Raises `RunNotFoundError`, `WorkflowVersionMismatchError` if it is open and of another version.
        """
        return await outside.attach_here(self.definition, run_id)

    def options(
        self,
        *,
        run_id: str | None = None,
        task_queue: str | None = None,
        on_parent_close: OnParentClose | None = None,
    ) -> Workflow[P, R]:
        """Return a copy whose calls use this run id and task queue; its arguments are fully type-checked.

        `on_parent_close` says what becomes of a child that is open when its parent closes: "cancel" (the default) asks it to cancel, so that
        it undoes what it has done; "terminate" closes it at once, in the parent's transaction, with its own children that are to be; none of
        its code runs any more. "abandon" leaves it alone.
        """
        if on_parent_close not in (None, *get_args(OnParentClose)):
            raise DefinitionError(
                f"on_parent_close is 'cancel', 'terminate' or 'abandon', not {on_parent_close!r}"
            )
        return Workflow(
            self.definition,
            run_id=self._run_id if run_id is None else run_id,
            task_queue=self._task_queue if task_queue is None else task_queue,
            on_parent_close=on_parent_close or self._on_parent_close,
        )

    def local(self) -> Workflow[P, R]:
        """Return a copy whose runs no worker takes: only this process drives them, and one that starts them again by their ids.

        For builders of patterns, whose objects may hold what another process cannot rebuild.
        """
        return self.options(task_queue=LOCAL_TASK_QUEUE)


# A workflow as callers name it: what `@workflow` made of a function, or a class that it decorates.
Named = Workflow[..., R] | type[Runnable[R]]


@overload
def workflow_of(workflow: Workflow[P, R]) -> Workflow[P, R]: ...


@overload
def workflow_of(workflow: Callable[P, Runnable[R]]) -> Workflow[P, R]: ...


def workflow_of(workflow: Any) -> Workflow[..., Any]:
    """Return the workflow that a class decorated with `@workflow` stands for, with all that one made of a function has.

    `await workflow_of(Checkout)(order, run_id="checkout-7")` runs it durably in this process, `.start(...)` and `.enqueue(...)` give a handle,
    `.options(...)` a copy with other options. Its arguments are those of `__init__`. A workflow made of a function is returned as
    it is. Raises `DefinitionError` for a class that is not decorated itself, like a subclass of one that is.
    """
    if isinstance(workflow, Workflow):
        return workflow
    found = vars(workflow).get(WORKFLOW) if isinstance(workflow, type) else None
    if not isinstance(found, Workflow):
        named = getattr(workflow, "__qualname__", repr(workflow))
        raise DefinitionError(f"{named!r} is no workflow: decorate it with @workflow")
    if not is_as_declared(workflow, found.definition.parts):
        raise DefinitionError(
            f"{workflow.__qualname__!r} was changed after @workflow had looked at it: let @workflow be its outermost decorator"
        )
    return found


@overload
async def child(workflow: Workflow[P, R], *args: P.args, **kwargs: P.kwargs) -> R: ...


@overload
async def child(workflow: Callable[P, Runnable[R]], *args: P.args, **kwargs: P.kwargs) -> R: ...


async def child(workflow: Any, *args: Any, **kwargs: Any) -> Any:
    """In a workflow: run another one as a child, and return its result. The same as calling it, where it is a function.

    With options: `child(workflow_of(Checkout).options(on_parent_close="abandon"), order)`.
    """
    called = workflow_of(workflow)
    if current() is None:
        instead = (
            f"call {called.name!r} itself"
            if called is workflow
            else f"await workflow_of({workflow.__name__})(...)"
        )
        raise DefinitionError(f"child() works only inside a workflow; outside, {instead}")
    return await called(*args, **kwargs)


class _Decorator:
    """`@workflow(...)` with its options checked, waiting for the function or the class."""

    def __init__(
        self,
        *,
        name: str | None,
        version: int,
        timeout: Seconds | None,
        retries: int,
        retry_delay: Seconds,
        task_queue: str,
        retention: Seconds | ForEver | None,
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
        self._retention_us = _retention_us(retention)

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...

    @overload
    def __call__(self, cls: C, /) -> C: ...

    def __call__(self, fn: Any, /) -> Any:
        if isinstance(fn, Workflow):
            raise DefinitionError(f"{fn.name!r} is a workflow already")
        if isinstance(fn, type):
            return self._of_class(fn)
        if not inspect.iscoroutinefunction(fn):
            name = getattr(fn, "__qualname__", repr(fn))
            raise DefinitionError(f"workflow {name!r} must be an `async def` function, or a class with `run`")
        return Workflow(self._definition(fn, fn, ValueType.of_return(fn)))

    def _of_class(self, cls: type[Any]) -> type[Any]:
        """Make a workflow of a class, and return the class: it knows its workflow, and who serves its module finds it."""
        check_class(cls)
        handlers = handlers_of(cls)
        body, result = body_of(cls, handlers), ValueType.of_return(cls.run)
        made: Workflow[..., Any] = Workflow(
            self._definition(body, cls, result, parts=authored(cls), handlers=handlers)
        )
        setattr(cls, WORKFLOW, made)
        cls.__durable_workflows__ = classmethod(_workflow_of_this)
        return cls

    def _definition(
        self,
        fn: Callable[..., Any],
        signature: Callable[..., Any],
        result: ValueType,
        *,
        parts: tuple[Callable[..., Any], ...] = (),
        handlers: Handlers | None = None,
    ) -> WorkflowDefinition:
        parameters = inspect.signature(signature).parameters
        if "run_id" in parameters:
            raise DefinitionError(
                f"workflow {fn.__qualname__!r} has a parameter run_id, which names the run at every call; rename the parameter"
            )
        return WorkflowDefinition(
            name=self._name or fn.__name__,
            version=self._version,
            fn=fn,
            arguments=Arguments.of(signature),
            result=result,
            timeout_us=self._timeout_us,
            retries=self._retries,
            retry_delay_us=self._retry_delay_us,
            task_queue=self._task_queue,
            retention_us=self._retention_us,
            prepare=partial(_with_context, list(parameters).index("ctx")) if "ctx" in parameters else None,
            parts=parts,
            handlers=handlers,
        )


def _workflow_of_this(cls: type[Any]) -> list[Workflow[..., Any]]:
    """Return what a class stands for: nothing, if only a class that it inherits from is a workflow."""
    return [workflow_of(cls)] if WORKFLOW in vars(cls) else []


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


class _Workflow:
    """`workflow`, a decorator, and those of the methods of a class that it decorates."""

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> Workflow[P, R]: ...

    @overload
    def __call__(self, cls: C, /) -> C: ...

    @overload
    def __call__(
        self,
        name: str | None = None,
        *,
        version: int = 1,
        timeout: Seconds | None = None,
        retries: int = 0,
        retry_delay: Seconds = 1.0,
        task_queue: str = DEFAULT_TASK_QUEUE,
        retention: Seconds | ForEver | None = None,
    ) -> _Decorator: ...

    def __call__(
        self,
        name: Any = None,
        *,
        version: int = 1,
        timeout: Seconds | None = None,
        retries: int = 0,
        retry_delay: Seconds = 1.0,
        task_queue: str = DEFAULT_TASK_QUEUE,
        retention: Seconds | ForEver | None = None,
    ) -> Any:
        """Make a durable workflow of an `async def`, or of a class. Bare or with options; a misspelt option is a TypeError.

        A class stays itself: its `__init__` takes the input, its `async def run(self)` is the process. `client.start(Checkout, order)`
        starts one, `await child(Checkout, order)` in a workflow, and `workflow_of(Checkout)` is what a function would have become.

        A parameter called `ctx` is given its dict as a `WorkflowContext`, which also knows the run.

        `timeout` (seconds or timedelta) limits the whole life of a run, from its start: then it is `timed_out`, and no code
        of it runs any more. `retries` workflow-level retries follow a failure after `retry_delay`; they keep what was done
        before the failed activity. `version` must be raised when a change breaks open runs: a worker never drives
        a run of a version it does not have. `task_queue` names where its runs wait for workers. `retention` (seconds, timedelta
        or "forever") is how long its runs are kept once they are closed, whatever workers are told for the rest; it counts for runs that
        are started with it.
        """
        fn = name if callable(name) else None
        decorator = _Decorator(
            name=None if fn is not None else name,
            version=version,
            timeout=timeout,
            retries=retries,
            retry_delay=retry_delay,
            task_queue=task_queue,
            retention=retention,
        )
        return decorator if fn is None else decorator(fn)

    @overload
    def signal(self, fn: M, /) -> M: ...

    @overload
    def signal(self, fn: None = None, /, *, name: str | None = None) -> Callable[[M], M]: ...

    def signal(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Let a method of a workflow class take the signals of its name (or of `name`), each once, in the order of their sending.

        It takes `self` and the signal's value, of the type that its hint says, or nothing; it is `def`, or `async def`: then each call is a task of the
        run. It is called when the signal arrives, before the workflow goes on, and for what came before the first step on the object as
        `__init__` made it. What it raises fails the run, like an error of `run`: that is cancelled where it waits. Send by
        `run.signal(Checkout.approve, "ann")`.
        """
        if fn is None:
            return partial(mark_signal, name=name)
        return mark_signal(fn, name)

    @overload
    def update(self, fn: Callable[Concatenate[S, P], R], /) -> UpdateFunction[S, P, R]: ...

    @overload
    def update(
        self, fn: None = None, /, *, name: str | None = None
    ) -> Callable[[Callable[Concatenate[S, P], R]], UpdateFunction[S, P, R]]: ...

    def update(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Let a method of a workflow class take the updates of its name (or of `name`), each once: what it returns is the caller's answer.

        It is like a method that takes signals (one value or none, `def` or `async def`, called when the update arrives), but for its errors: what it raises
        goes to the caller (`UpdateFailedError`), and the run goes on. Effect and answer are recorded in one commit. With `@add.validator` a
        second method of the class is asked first, with the same value: what that raises refuses the update (`UpdateRejectedError`), without any
        effect. Call by `await run.update(Checkout.add, item)`.
        """
        if fn is None:
            return partial(mark_update, name=name)
        return mark_update(fn, name)

    @overload
    def query(self, fn: M, /) -> M: ...

    @overload
    def query(self, fn: None = None, /, *, name: str | None = None) -> Callable[[M], M]: ...

    def query(self, fn: Any = None, /, *, name: str | None = None) -> Any:
        """Let a method of a workflow class answer the queries of its name (or of `name`): `await run.query(Checkout.status)`.

        A plain `def` that only looks. It is called in the process that asks, on an object rebuilt by replay; whatever it changes there is gone. Its arguments and
        its answer are typed by its hints, and stored by nobody.
        """
        if fn is None:
            return partial(mark_query, name=name)
        return mark_query(fn, name)


workflow: Final = _Workflow()


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
    retention: Seconds | ForEver | None = None,
    tidied: Seconds | None = None,
) -> Workflow[..., Any]:
    """Make a workflow at run time, of a coroutine function. For builders of patterns.

    `kind` is what `Run.kind` says, e.g. "pipeline". `origin` tells two definitions of one name apart: equal ones are the same
    thing, defined again; others are refused where they meet. `signature` is what the input must fit, if it is not `fn`
    itself; `result` the type hint of what it returns. An object that has a method `__durable_workflows__` which returns
    `Workflow`s is served by every worker that is given the module in which it is a variable. `is_long`: its journal grows with its
    input, by design and without anything that is kept of it in memory; `Limits.journal_events` is not for its runs. `retention`
    as in `workflow`; `tidied`: runs without one that ended well, or were compensated, go so long after that (a minute at least), if
    whoever serves the workflow deletes anything at all.
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
            retention_us=_retention_us(retention),
            tidied_us=None if tidied is None else _tidied_us(tidied),
        )
    )


def _retention_us(value: Seconds | ForEver | None) -> int | None:
    if value is None:
        return None
    if isinstance(value, str):
        if value != "forever":
            raise DefinitionError(f"retention takes seconds, a timedelta or 'forever', not {value!r}")
        return FOR_EVER
    return retention_us_of(value)


def _tidied_us(value: Seconds) -> int:
    return round(max(seconds(value, what="tidied"), RETENTION_SECONDS_MIN) * 1_000_000)


def _check_integer(what: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DefinitionError(f"{what} must be an integer >= {least}, not {value!r}")
