"""What authors declared, as data: workflows, activities, and the registry a worker looks them up in.

Definitions have no behaviour: `workflows.py` and `activities.py` make them, the engine and the worker read them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple

from durable.errors import ArgumentsError, DefinitionError, UnknownWorkflowError
from durable.limits import NAME_LENGTH_MAX, PATTERN_LENGTH_MAX, REASON_LENGTH_MAX
from durable.payloads import Arguments, ValueType
from durable.retry import Retry, Seconds, seconds

CancellationType = Literal["try", "wait", "abandon"]
# What becomes of a child run that is open when its parent closes: it is asked to cancel, closed at once, or left alone.
OnParentClose = Literal["cancel", "terminate", "abandon"]
# Where runs wait whose code lives in one process only, e.g. in closures: workers leave them alone.
LOCAL_TASK_QUEUE: Final = "local"
FOR_EVER: Final = 0  # as the retention of a run
ForEver = Literal["forever"]
RETENTION_SECONDS_MIN: Final = 60.0
TABLE_LENGTH_MAX: Final = 63  # what Postgres keeps of a name


class ActivityDefinition:
    """One activity with the options of one call site; `fn.options(...)` makes changed copies.

    `timeout_us` limits one attempt from its start to its end; `is_limited` says whether any of the four limits is set.
    `task_queue` is where workers perform it; None: in the worker of its run. There it is known as `served_as`, whatever it is called
    in the journal. `kind` is what its entries are in the run's story; "" is an ordinary activity. Outcomes of calls with the same `group` object are
    recorded together, if they come soon one after the other. One that `takes_over` goes on with what runs already: it waits for no slot.
    """

    __slots__ = (
        "arguments",
        "cancellation",
        "fn",
        "group",
        "heartbeat_us",
        "is_async",
        "is_limited",
        "is_simple",
        "kind",
        "name",
        "result",
        "retry",
        "schedule_to_close_us",
        "schedule_to_start_us",
        "served_as",
        "takes_over",
        "task_queue",
        "timeout_us",
    )

    def __init__(
        self,
        *,
        name: str,
        fn: Callable[..., Any],
        is_async: bool,
        arguments: Arguments,
        result: ValueType,
        retry: Retry,
        timeout_us: int | None,
        cancellation: CancellationType,
        schedule_to_start_us: int | None = None,
        schedule_to_close_us: int | None = None,
        heartbeat_us: int | None = None,
        kind: str = "",
        task_queue: str | None = None,
        served_as: str | None = None,
    ) -> None:
        self.name = name
        self.served_as = name if served_as is None else served_as
        self.task_queue = task_queue
        self.kind = kind
        self.group: object | None = None
        self.takes_over = False
        self.fn = fn
        self.is_async = is_async
        self.arguments = arguments
        self.result = result
        self.retry = retry
        self.timeout_us = timeout_us
        self.schedule_to_start_us = schedule_to_start_us
        self.schedule_to_close_us = schedule_to_close_us
        self.heartbeat_us = heartbeat_us
        limits = (timeout_us, schedule_to_start_us, schedule_to_close_us, heartbeat_us)
        self.is_limited = any(limit is not None for limit in limits)
        self.is_simple = is_async and not self.is_limited  # nothing to see to before its first step
        self.cancellation = cancellation

    def renamed(self, name: str) -> ActivityDefinition:
        """Return a copy of that name."""
        copy = object.__new__(
            ActivityDefinition
        )  # one by one: a loop over the slots takes three times as long
        copy.name = name
        copy.served_as = self.served_as
        copy.task_queue = self.task_queue
        copy.kind = self.kind
        copy.group = self.group
        copy.takes_over = self.takes_over
        copy.fn = self.fn
        copy.is_async = self.is_async
        copy.arguments = self.arguments
        copy.result = self.result
        copy.retry = self.retry
        copy.timeout_us = self.timeout_us
        copy.schedule_to_start_us = self.schedule_to_start_us
        copy.schedule_to_close_us = self.schedule_to_close_us
        copy.heartbeat_us = self.heartbeat_us
        copy.is_limited = self.is_limited
        copy.is_simple = self.is_simple
        copy.cancellation = self.cancellation
        return copy


class SignalMethod(NamedTuple):
    """A method of a workflow class that takes the signals of a name. `takes_value`: it is given their value; else that is None."""

    name: str
    attribute: str
    fn: Callable[..., Any]
    value_type: ValueType
    takes_value: bool


class UpdateMethod(NamedTuple):
    """A method of a workflow class that takes the updates of a name, and answers them. `validator` is the name of the method that is asked first, or ""."""

    name: str
    attribute: str
    fn: Callable[..., Any]
    value_type: ValueType
    takes_value: bool
    result_type: ValueType
    validator: str = ""


class QueryMethod(NamedTuple):
    """A method of a workflow class that answers the queries of a name."""

    name: str
    attribute: str
    fn: Callable[..., Any]


class Handlers(NamedTuple):
    """The methods of a workflow class that messages go to, by the messages' names."""

    signals: Mapping[str, SignalMethod]
    queries: Mapping[str, QueryMethod]
    updates: Mapping[str, UpdateMethod]


_NO_HANDLERS: Final = Handlers(MappingProxyType({}), MappingProxyType({}), MappingProxyType({}))


class WorkflowDefinition:
    """One workflow. `timeout_us` is its whole life; `retries` the workflow-level retries (attempts - 1).

    `kind` is "workflow" or the pattern it was made from. `origin` says where the code comes from, as `module:qualname`: two
    definitions of one origin are the same one, defined again. `prepare(runtime, args, kwargs)` returns the arguments to call `fn`
    with, if these are not the decoded ones. `is_long`: the limit of events in a journal is not for its runs. `retention_us`: how long
    its runs are kept once they are closed; `FOR_EVER`; None: as long as workers are told. `tidied_us`: how long those that ended well, or
    were compensated, are kept where there is no such retention; who serves it sees to that. `parts` are the functions in which the author's
    code begins: `fn` itself, or the methods of a class (`is_class`), which has `handlers`: `signals`, `queries` and `updates`.
    """

    __slots__ = (
        "arguments",
        "fn",
        "is_class",
        "is_long",
        "kind",
        "name",
        "origin",
        "parts",
        "prepare",
        "queries",
        "result",
        "retention_us",
        "retries",
        "retry_delay_us",
        "signals",
        "task_queue",
        "tidied_us",
        "timeout_us",
        "updates",
        "version",
    )

    def __init__(
        self,
        *,
        name: str,
        version: int,
        fn: Callable[..., Any],
        arguments: Arguments,
        result: ValueType,
        timeout_us: int | None,
        retries: int,
        retry_delay_us: int,
        task_queue: str,
        kind: str = "workflow",
        origin: str | None = None,
        prepare: Callable[[Any, tuple[Any, ...], dict[str, Any]], tuple[Any, ...]] | None = None,
        is_long: bool = False,
        retention_us: int | None = None,
        tidied_us: int | None = None,
        parts: tuple[Callable[..., Any], ...] = (),
        handlers: Handlers | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.is_class = handlers is not None
        self.signals, self.queries, self.updates = handlers or _NO_HANDLERS
        self.parts = parts or (fn,)
        self.retention_us = retention_us
        self.tidied_us = tidied_us
        self.is_long = is_long
        self.prepare = prepare
        self.origin = f"{fn.__module__}:{fn.__qualname__}" if origin is None else origin
        self.version = version
        self.fn = fn
        self.arguments = arguments
        self.result = result
        self.timeout_us = timeout_us
        self.retries = retries
        self.retry_delay_us = retry_delay_us
        self.task_queue = task_queue


class Registry:
    """The workflows one worker serves, by name and version."""

    def __init__(self, workflows: Iterable[WorkflowDefinition] = ()) -> None:
        self._workflows: dict[tuple[str, int], WorkflowDefinition] = {}
        self.redefined: set[tuple[str, int]] = set()  # whose function took another one's place
        self.tidied: dict[
            str, int
        ] = {}  # the workflows whose `tidied_us` is known, from whichever definition
        for definition in workflows:
            self.add(definition)

    def add(self, definition: WorkflowDefinition) -> bool:
        """Add a workflow and return whether it was new.

        The same function defined again (a notebook cell run twice) replaces the old one; another function under a
        taken name and version raises `DefinitionError`.
        """
        key = (definition.name, definition.version)
        known = self._workflows.get(key)
        if known is not None and known.fn is not definition.fn and known.origin != definition.origin:
            raise DefinitionError(
                f"two workflows are called {definition.name!r} (version {definition.version}): "
                f"{known.origin} and {definition.origin}; give one of them another name= or version="
            )
        if known is not None and known.fn != definition.fn:
            self.redefined.add(key)
        self._workflows[key] = definition
        if definition.tidied_us is not None:
            self.tidied[definition.name] = definition.tidied_us
        return known is None

    def find(self, name: str, version: int) -> WorkflowDefinition | None:
        return self._workflows.get((name, version))

    def get(self, name: str) -> WorkflowDefinition:
        """Return the highest version of a workflow; raise `UnknownWorkflowError` with near names."""
        versions = [d for (known, _), d in self._workflows.items() if known == name]
        if not versions:
            near = difflib.get_close_matches(name, self.names(), n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(map(repr, near))}?"
                if near
                else f"known: {', '.join(self.names()) or 'none'}"
            )
            raise UnknownWorkflowError(f"no workflow {name!r} here ({hint})", name=name, suggestions=near)
        return max(versions, key=lambda d: d.version)

    def names(self) -> list[str]:
        return sorted({name for name, _ in self._workflows})

    def keys(self) -> list[tuple[str, int]]:
        """The (name, version) pairs served here."""
        return list(self._workflows)

    def all(self) -> list[WorkflowDefinition]:
        return list(self._workflows.values())

    def __len__(self) -> int:
        return len(self._workflows)


def shown(name: object) -> str:
    """Return what was given for a name, short enough for an error."""
    text = repr(name)
    return text if len(text) <= NAME_LENGTH_MAX else f"{text[:40]}… ({len(text):,} characters)"


def retention_us_of(value: Seconds) -> int:
    """Return how long closed runs are to be kept, in microseconds; raise `DefinitionError` for too short a time."""
    kept = seconds(value, what="retention")
    if kept < RETENTION_SECONDS_MIN:
        raise DefinitionError(
            f"a retention below {RETENTION_SECONDS_MIN:g} s would delete results before anybody sees them: {kept:g} s"
        )
    return round(kept * 1_000_000)


def is_name(value: object) -> bool:
    """Whether it may be stored and printed: printable text, not empty, of at most `NAME_LENGTH_MAX` characters."""
    return isinstance(value, str) and 0 < len(value) <= NAME_LENGTH_MAX and value.isprintable()


def check_name(name: str, what: str) -> str:
    """Return `name` if it may be stored and printed; raise `DefinitionError` otherwise."""
    if not is_name(name):
        raise DefinitionError(
            f"{what} needs a printable name of 1 to {NAME_LENGTH_MAX} characters, not {shown(name)}"
        )
    return name


def check_text(text: str, what: str) -> str:
    """Return the name that a caller gives to something, if it may be one; raise `ArgumentsError` otherwise."""
    if not is_name(text):
        raise ArgumentsError(
            f"{what} is printable text of 1 to {NAME_LENGTH_MAX} characters, not {shown(text)}"
        )
    return text


def check_run_id(run_id: str) -> str:
    """Return the id if it may be one; raise `ArgumentsError` otherwise."""
    return check_text(run_id, "a run id")


def check_table_name(name: str) -> str:
    """Return the name if it may be a table of a pattern's rows: an identifier. ValueError otherwise."""
    if (
        not isinstance(name, str)
        or not name.isidentifier()
        or not name.isascii()
        or len(name) > TABLE_LENGTH_MAX
    ):
        raise ValueError(
            f"a table's name is an identifier of at most {TABLE_LENGTH_MAX} letters, digits and underscores, not {shown(name)}"
        )
    return name


def check_pattern(pattern: str | None) -> str | None:
    """Return what names of runs are compared with if it may be that; raise `ArgumentsError` otherwise."""
    if pattern is not None and (not isinstance(pattern, str) or len(pattern) > PATTERN_LENGTH_MAX):
        raise ArgumentsError(
            f"a pattern is text of at most {PATTERN_LENGTH_MAX:,} characters, not {shown(pattern)}"
        )
    return pattern


def check_limit(limit: int) -> int:
    """Return how many runs are wanted at most if it is a number of them; raise `ArgumentsError` otherwise."""
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
        raise ArgumentsError(f"a limit is a number of runs, 0 or more, not {shown(limit)}")
    return limit


def check_row_key(key: str) -> str:
    """Return the key of a pattern's rows if it may be one; raise `ArgumentsError` otherwise."""
    if not isinstance(key, str) or len(key) > PATTERN_LENGTH_MAX:
        raise ArgumentsError(f"a key is text of at most {PATTERN_LENGTH_MAX:,} characters, not {shown(key)}")
    return key


def check_reason(reason: str | None) -> str | None:
    """Return a reason that somebody gives for a request if it may be one; raise `ArgumentsError` otherwise."""
    if reason is not None and (not isinstance(reason, str) or len(reason) > REASON_LENGTH_MAX):
        raise ArgumentsError(f"a reason is text of at most {REASON_LENGTH_MAX:,} characters")
    return reason
