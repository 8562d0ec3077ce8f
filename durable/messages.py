"""Messages to a run, as authors declare them: typed signals, and who handles signals, updates and queries in a function.

Methods of workflow classes are marked with `@workflow.signal`, `@workflow.update` and `@workflow.query` instead. Knows nothing of how messages travel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast, overload

from durable.definitions import check_name
from durable.engine.runtime import current
from durable.errors import DefinitionError
from durable.in_workflow import MISSING, signal_value
from durable.payloads import ValueType
from durable.retry import Seconds
from durable.workflow_classes import check_query, handler_of, update_handler_of

T = TypeVar("T")
D = TypeVar("D")


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


def on_signal(signal: Signal[T] | str, handler: Callable[..., object]) -> None:
    """In a workflow: from now on give each signal of that name to `handler`, in the order of their sending; what came before, at once.

    `handler` takes the value, or nothing; with a `Signal` the value has its type, else that of the handler's hint. It is `def`, or `async def`: then each
    call is a task of the run. What it raises fails the run. A second handler takes the place of the first. Nobody can wait for a signal that
    has a handler. Raises `DefinitionError`, also where somebody does.
    """
    run = current()
    if run is None:
        raise DefinitionError("on_signal() works only inside a workflow")
    if isinstance(signal, Signal):
        run.on_signal(signal.name, handler_of(handler, value_type=signal.value_type))
    else:
        run.on_signal(check_name(signal, "a signal"), handler_of(handler))


def on_update(
    name: str, handler: Callable[..., object], validator: Callable[..., object] | None = None
) -> None:
    """In a workflow: from now on give each update of that name to `handler`, in the order of their sending; what came before, at once.

    `handler` takes the value, of the type that its hint says, or nothing; what it returns is the caller's answer, and what it raises the caller's
    error. It is `def`, or `async def`: then each call is a task of the run. `validator` is asked first, with the same value: what it raises refuses
    the update, without any effect. It only looks, and no replay asks it. A second handler for a name takes the place of the first. An update
    that no handler has taken when the run ends is given up, and its caller told. Raises `DefinitionError`.
    """
    run = current()
    if run is None:
        raise DefinitionError("on_update() works only inside a workflow")
    run.on_update(check_name(name, "an update"), update_handler_of(handler, validator))


def on_query(name: str, answer: Callable[..., object]) -> None:
    """In a workflow: let `answer` answer the queries of that name from now on. A plain function that only looks.

    It is called in the process that asks, where the workflow was rebuilt by replay. A second one for a name takes the place of the first.
    """
    run = current()
    if run is None:
        raise DefinitionError("on_query() works only inside a workflow")
    check_query(answer)
    run.on_query(check_name(name, "a query"), answer)


# A signal as senders name it: declared, by its name, or by the method that takes it.
Sent = Signal[Any] | str | Callable[..., object]
