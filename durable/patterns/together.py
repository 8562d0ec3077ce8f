"""Parts of a pattern side by side: the first failure stops the others, and is told once they have ended. Workflow code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple, TypeVar

Part = TypeVar("Part")
T = TypeVar("T")
E = TypeVar("E", bound=Exception)


class Ended(NamedTuple):
    """How parts ended: with their values, in the order of the parts; or, if some failed, with the failures, in order of time."""

    values: list[Any]
    failed: list[Any]


async def side_by_side(
    do: Callable[[Part], Coroutine[Any, Any, T]],
    parts: Iterable[Part],
    *,
    failure: type[E],
    fail_fast: bool = True,
) -> Ended:
    """Do it for all parts, and return when all have ended. With `fail_fast` the first `failure` cancels the others.

    Whatever else a part raises is no failure of the part: it is raised.
    """
    failed: list[E] = []

    async def one(part: Part) -> T | None:
        try:
            return await do(part)
        except failure as error:
            failed.append(error)
            if fail_fast:
                for task in tasks:
                    if task is not asyncio.current_task():
                        task.cancel()
            return None

    tasks: list[asyncio.Task[T | None]] = []
    async with asyncio.TaskGroup() as group:
        tasks.extend(group.create_task(one(part)) for part in parts)
    return Ended([] if failed else [task.result() for task in tasks], failed)
