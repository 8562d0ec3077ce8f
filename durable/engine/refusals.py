"""What a loop can do elsewhere, and the loop of a run refuses: threads, network, processes, loops within loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NoReturn

from durable.engine.runtime import RunLoop
from durable.errors import DefinitionError

_THREADS: Final = (
    "threads work only outside of the run; do it in an @activity (a plain `def` runs in a thread)"
)
_NETWORK: Final = "a workflow cannot touch the network; do it in an @activity"
_PROCESSES: Final = "a workflow cannot start processes; do it in an @activity"
_NESTED: Final = "a workflow already runs on a loop of its own; await the coroutine instead"
_REFUSED: Final = {
    "call_soon_threadsafe": _THREADS,
    "run_in_executor": _THREADS,
    "set_default_executor": _THREADS,
    "getaddrinfo": _NETWORK,
    "getnameinfo": _NETWORK,
    "create_connection": _NETWORK,
    "create_server": _NETWORK,
    "sendfile": _NETWORK,
    "start_tls": _NETWORK,
    "create_unix_connection": _NETWORK,
    "create_unix_server": _NETWORK,
    "connect_accepted_socket": _NETWORK,
    "create_datagram_endpoint": _NETWORK,
    "connect_read_pipe": _PROCESSES,
    "connect_write_pipe": _PROCESSES,
    "subprocess_shell": _PROCESSES,
    "subprocess_exec": _PROCESSES,
    "add_reader": _NETWORK,
    "remove_reader": _NETWORK,
    "add_writer": _NETWORK,
    "remove_writer": _NETWORK,
    "sock_recv": _NETWORK,
    "sock_recv_into": _NETWORK,
    "sock_recvfrom": _NETWORK,
    "sock_recvfrom_into": _NETWORK,
    "sock_sendall": _NETWORK,
    "sock_sendto": _NETWORK,
    "sock_connect": _NETWORK,
    "sock_accept": _NETWORK,
    "sock_sendfile": _NETWORK,
    "add_signal_handler": "a workflow receives durable signals: see durable.Signal",
    "remove_signal_handler": "a workflow receives durable signals: see durable.Signal",
    "set_task_factory": "the order of tasks is part of the journal; create tasks with asyncio.create_task",
    "run_forever": _NESTED,
    "run_until_complete": _NESTED,
    "stop": _NESTED,
    "close": _NESTED,
}


def refuse_the_rest(loop: type) -> None:
    """Give a loop a method for each of these, which raises `DefinitionError` and says what to do instead."""
    for name, advice in _REFUSED.items():
        setattr(loop, name, _refusal(name, advice))


def _refusal(name: str, advice: str) -> Callable[..., NoReturn]:
    def refuse(self: RunLoop, *args: object, **kwargs: object) -> NoReturn:
        for argument in args:
            if asyncio.iscoroutine(argument):
                argument.close()  # or Python would warn that it was never awaited
        raise DefinitionError(f"{name}() inside workflow run {self.runtime.identity.run_id!r}: {advice}")

    refuse.__name__ = name
    return refuse
