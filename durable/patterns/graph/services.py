"""Nodes that call a language model, an agent or a tool: objects that the author brings along.

What they raise is retried, and fails the node in the end; an `Err` that they return fails it at once. Their values keep their
types. Knows nothing of any particular provider.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from durable import Seconds
from durable.patterns.calling import settled
from durable.patterns.graph.nodes import AbstractWorkflowNode, NodeType, State


class Message:
    """One message to a language model."""

    __slots__ = ("content", "role")

    def __init__(self, role: str, content: str) -> None:
        self.role = role
        self.content = content

    def __repr__(self) -> str:
        return f"Message({self.role!r}, {self.content!r})"


class ServiceNode(AbstractWorkflowNode):
    """A node that calls one method of an object, and writes its answer under `output_key`."""

    output_key: str

    def __init__(
        self,
        name: str | None,
        *,
        service: Any,
        method: str,
        output_key: str,
        retries: int | None,
        retry_delay: Seconds | None,
        timeout: Seconds | None,
    ) -> None:
        super().__init__(name, retries=retries, retry_delay=retry_delay, timeout=timeout)
        call = getattr(service, method, None)
        if not callable(call):
            raise TypeError(
                f"node {self.name!r} needs an object with a method {method}(...); {service!r} has none"
            )
        self._method: Callable[..., Any] = call
        self.output_key = output_key

    def ask(self, state: State) -> Any:
        """Call the service for a state; return its answer, or an awaitable of it."""
        raise NotImplementedError

    def execute(self, state: State) -> Any:
        answer = self.ask(state)
        return self._later(answer) if inspect.isawaitable(answer) else self._output(answer)

    def work(self) -> Callable[..., Any]:
        # A service that blocks gets a thread; one that does not runs where all activities do.
        is_ours = type(self).execute is ServiceNode.execute
        return self._execute_here if is_ours and inspect.iscoroutinefunction(self._method) else self.execute

    async def _execute_here(self, state: State) -> State:
        return self._output(await self.ask(state))

    async def _later(self, answer: Awaitable[Any]) -> State:
        return self._output(await answer)

    def _output(self, answer: Any) -> State:
        value = settled(answer)
        return {self.output_key: getattr(value, "content", value)}


class LLMNode(ServiceNode):
    """A node that calls `llm.complete(messages, ...)`: text, or an object with `.content`, or a `Result` of either.

    `messages` are objects with `.role` and `.content`: the system prompt, if any, and `prompt_template` filled in from the state
    (KeyError if that lacks what it names). `model`, `temperature` and `max_tokens` are passed on if given.
    """

    node_type = NodeType.LLM

    def __init__(
        self,
        name: str | None = None,
        *,
        llm: Any,
        prompt_template: str = "{input}",
        system_prompt: str | None = None,
        output_key: str = "output",
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        super().__init__(
            name,
            service=llm,
            method="complete",
            output_key=output_key,
            retries=retries,
            retry_delay=retry_delay,
            timeout=timeout,
        )
        self.prompt_template = prompt_template
        self.system_prompt = system_prompt
        given = {"model": model, "temperature": temperature, "max_tokens": max_tokens}
        self.options = {option: value for option, value in given.items() if value is not None}

    def ask(self, state: State) -> Any:
        messages = [Message("system", self.system_prompt)] if self.system_prompt else []
        messages.append(Message("user", self.prompt_template.format_map(state)))
        return self._method(messages, **self.options)


class AgentNode(ServiceNode):
    """A node that calls `agent.run(message)`; `message_template` is filled in from the state, as an LLM's prompt is."""

    node_type = NodeType.AGENT

    def __init__(
        self,
        name: str | None = None,
        *,
        agent: Any,
        message_template: str = "{input}",
        output_key: str = "output",
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        super().__init__(
            name,
            service=agent,
            method="run",
            output_key=output_key,
            retries=retries,
            retry_delay=retry_delay,
            timeout=timeout,
        )
        self.message_template = message_template

    def ask(self, state: State) -> Any:
        return self._method(self.message_template.format_map(state))


class ToolNode(ServiceNode):
    """A node that calls `tool.execute(args)`.

    `args` is a dict: `extra_keys` of the state under their own names, and, with an `input_key`, the value of that under "input".
    KeyError if the state lacks one.
    """

    node_type = NodeType.TOOL

    def __init__(
        self,
        name: str | None = None,
        *,
        tool: Any,
        input_key: str | None = None,
        output_key: str = "output",
        extra_keys: Sequence[str] = (),
        retries: int | None = None,
        retry_delay: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> None:
        super().__init__(
            name,
            service=tool,
            method="execute",
            output_key=output_key,
            retries=retries,
            retry_delay=retry_delay,
            timeout=timeout,
        )
        self.input_key = input_key
        self.extra_keys = tuple(extra_keys)

    def ask(self, state: State) -> Any:
        args = {} if self.input_key is None else {"input": state[self.input_key]}
        args.update({key: state[key] for key in self.extra_keys})
        return self._method(args)
