"""Async generators that runs begin: each is finalized by its run, inside of it, and never by the loop around it.

Python asks hooks of the thread when a generator takes its first step, and when nobody refers to it any more. Ours stand before
whatever the loop around has set, and pass on what belongs to no run.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from asyncio.events import _get_running_loop
from collections.abc import AsyncGenerator, Callable, Iterable
from sys import get_asyncgen_hooks, set_asyncgen_hooks
from typing import Any, Final

from durable.engine.runtime import RunLoop

# Which run an async generator was begun in, by its id: it cannot hold an attribute, and when it is finalized its weak
# references are gone. An entry outlives a generator that ended by itself, until its id is used again or the run leaves.
_owners: Final[dict[int, RunLoop]] = {}


def enter_thread() -> AbstractEventLoop | None:
    """Prepare this thread for the loops of runs, and return the loop that runs in it, which is what their `drain` wants to know.

    Once is enough for all drains of one callback of that loop.
    """
    if get_asyncgen_hooks().firstiter.__class__ is not _FirstIteration:
        _set_hooks()
    return _get_running_loop()


def disown(loop: RunLoop, generators: Iterable[int]) -> None:
    """Forget what was begun in a run that leaves the memory, by id."""
    for generator in generators:
        if _owners.get(generator) is loop:
            del _owners[generator]


class _FirstIteration:
    """What the thread's hook for generators' first steps was, and the one of ours before it.

    Set once per thread and loop around it, not per activation: setting hooks is audited, and costs as much as a step.
    """

    __slots__ = ("_previous",)

    def __init__(self, previous: Callable[[AsyncGenerator[Any, Any]], object] | None) -> None:
        self._previous = previous

    def __call__(self, generator: AsyncGenerator[Any, Any]) -> None:
        loop = _get_running_loop()
        if isinstance(loop, RunLoop):
            _owners[id(generator)] = loop
            loop.adopt_generator(generator)
            return
        _owners.pop(id(generator), None)  # the id of one that has ended
        if self._previous is not None:
            self._previous(generator)


def _set_hooks() -> None:
    """Have the generators of runs finalized by their runs, on this thread; all others as before."""
    first_iteration, finalizer = get_asyncgen_hooks()

    def finalize(generator: AsyncGenerator[Any, Any]) -> None:
        owner = _owners.pop(id(generator), None)
        if owner is not None:
            owner.finalize_generator(generator)
        elif finalizer is not None:
            finalizer(generator)

    set_asyncgen_hooks(_FirstIteration(first_iteration), finalize)
