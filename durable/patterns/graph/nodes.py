"""The nodes of a graph that do something themselves, choose a way, or ask a person.

A node is called with a copy of the state and returns what is to be merged into it, a dict, or None for nothing. It runs as a journaled
activity under its name in the graph. Knows nothing of edges and waves.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

from durable import Activity, Retry, Seconds
from durable.patterns.graph.errors import HumanInputRequiredError
from durable.patterns.policies import RETRIES, RETRY_DELAY, retry_of

State = dict[str, Any]
Predicate = Callable[[State], Any]


class NodeType(StrEnum):
    """What kind of node one is. For people and pictures: only its class decides what it does."""

    TASK = "task"
    GATE = "gate"
    HUMAN = "human"
    LLM = "llm"
    AGENT = "agent"
    TOOL = "tool"
    SUBWORKFLOW = "subworkflow"
    CUSTOM = "custom"


class AbstractWorkflowNode(abc.ABC):
    """A node. Subclass it, say its `name` as a class attribute or to the constructor, and write `execute`.

    `retries` follow the first attempt, after `retry_delay`, then twice that, and so on; `timeout` limits each attempt (None: the
    graph's `node_timeout`; 0: no limit). In seconds or timedelta. All may be class attributes.
    """

    name: str = ""
    node_type: NodeType = NodeType.TASK
    retries: int = RETRIES
    retry_delay: Seconds = RETRY_DELAY
    timeout: Seconds | None = None

    def __init__(
        self,
        name: str | None = None,
        node_type: NodeType | None = None,
        *,
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        if name is not None:
            self.name = name
        if not self.name:
            raise TypeError(
                f"{type(self).__name__} needs a name: as a class attribute, or as its first argument"
            )
        if node_type is not None:
            self.node_type = NodeType(node_type)
        if retries is not None:
            self.retries = retries
        if retry_delay is not None:
            self.retry_delay = retry_delay
        if timeout is not None:
            self.timeout = timeout

    def __repr__(self) -> str:
        return f"<{self.node_type} node {self.name}>"

    @abc.abstractmethod
    def execute(self, state: State) -> Any:
        """Do what the node does, `async` or not, and return a dict that is merged into the state, or None.

        `state` is a copy that is also a `StepContext`: it knows the run, the attempt and the idempotency key.
        """

    def work(self) -> Callable[..., Any]:
        """Return what is called: a function or an activity of the state, or of nothing."""
        return self.execute

    def retry(self) -> Retry:
        """Return the policy of its attempts; ValueError if `retries` or `retry_delay` make no sense."""
        return retry_of(self.retries, self.retry_delay, what=f"retries of node {self.name!r}")


class FunctionNode(AbstractWorkflowNode):
    """A node made of a function, or of an activity, which then keeps its own options."""

    node_type = NodeType.TASK

    def __init__(
        self,
        name: str | None = None,
        fn: Callable[..., Any] | None = None,
        *,
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"node {name!r} is made of something to call, not {fn!r}")
        if name is None:
            name = fn.name if isinstance(fn, Activity) else getattr(fn, "__name__", None)
        if isinstance(fn, Activity) and (retries, retry_delay, timeout) != (None, None, None):
            raise TypeError(f"node {name!r} is an activity, which keeps its own options: use fn.options(...)")
        super().__init__(name, retries=retries, retry_delay=retry_delay, timeout=timeout)
        self.fn = fn

    def execute(self, state: State) -> Any:
        return self.fn.fn(state) if isinstance(self.fn, Activity) else self.fn(state)

    def work(self) -> Callable[..., Any]:
        return self.fn


class GateNode(AbstractWorkflowNode):
    """A node that chooses what follows: every target whose predicate of the state is true. None: `NoRouteError`.

    The choice is journaled. Without `routes` its conditional edges are its routes. It writes nothing.
    """

    node_type = NodeType.GATE

    def __init__(
        self,
        name: str | None = None,
        routes: Mapping[str, Predicate] | None = None,
        *,
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        super().__init__(name, retries=retries, retry_delay=retry_delay, timeout=timeout)
        self.routes = dict(routes or {})
        for target, predicate in self.routes.items():
            if not callable(predicate):
                raise TypeError(
                    f"route {target!r} of gate {self.name!r} is a predicate of the state, not {predicate!r}"
                )

    def execute(self, state: State) -> Any:
        """A gate writes nothing: the graph asks for its routes."""


class HumanNode(AbstractWorkflowNode):
    """A node that asks a person, and waits, for as long as it takes. No process need live meanwhile.

    `prompt` may name keys of the state: "Ship {order}?". A dict that is answered is merged into the state, anything else is
    written under `output_key`. After `timeout` (seconds or timedelta; None or 0: never) the node fails. A subclass that
    overrides `execute` asks nobody: it is an ordinary node.
    """

    node_type = NodeType.HUMAN
    prompt: str = "Human input required."
    output_key: str = "human_response"

    def __init__(
        self,
        name: str | None = None,
        *,
        prompt: str | None = None,
        output_key: str | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        super().__init__(name, timeout=timeout)
        if prompt is not None:
            self.prompt = prompt
        if output_key is not None:
            self.output_key = output_key

    @property
    def asks(self) -> bool:
        """Whether it asks a person, rather than running code of a subclass."""
        return type(self).execute is HumanNode.execute

    def execute(self, state: State) -> Any:
        """Outside of a graph there is nobody to ask."""
        raise HumanInputRequiredError(self.render(state), self.name)

    def render(self, state: Mapping[str, Any]) -> str:
        """Return the prompt for a state; KeyError if the state lacks what it names."""
        return self.prompt.format_map(state)

    def output_of(self, answer: Any) -> State:
        """Return what an answer writes."""
        return dict(answer) if isinstance(answer, Mapping) else {self.output_key: answer}
