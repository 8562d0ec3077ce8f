"""Parts of activities that run on when these have ended: each until an activity that takes over goes on with it, or its run leaves.

They belong to the run, like attempts: what one comes to is nowhere but in its task, and a run that leaves has to wait for its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from functools import partial
from typing import Any, Final

from durable.in_activity import Pulse
from durable.worker.closing import NOT_OURS, STOPPING, UNAWAITED
from durable.worker.live import Attempt, AttemptState, LeftPart, LiveRun, Phase

LOOK_SECONDS: Final = 5.0  # between looks whether anybody is still to come for a part
_TO_COME: Final = (AttemptState.QUEUED, AttemptState.MARKING, AttemptState.BACKOFF)


class LeftParts:
    """The parts that activities of one worker's runs have left."""

    def __init__(self, *, on_ended: Callable[[LiveRun], None]) -> None:
        self._on_ended = on_ended
        self._tasks: set[asyncio.Task[Any]] = set()  # those that still run

    def leave(self, pulse: Pulse, key: str, task: asyncio.Task[Any], context: Context) -> None:
        """Keep a part of the activity with this pulse, which is about to end."""
        attempt: Attempt = pulse.owner
        run = attempt.run
        if run.phase is Phase.GONE or attempt.state is not AttemptState.RUNNING:
            task.cancel(NOT_OURS)
            return
        timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look, run, key)
        ended = partial(self._ended, run)
        run.left[key] = LeftPart(task, context, timer, ended)
        self._tasks.add(task)
        task.add_done_callback(ended)
        if attempt.is_stopped:
            task.cancel(STOPPING)

    def take(self, pulse: Pulse, key: str) -> tuple[asyncio.Task[Any], Context] | None:
        """Hand a part over to the activity with this pulse; None if there is none of that key."""
        attempt: Attempt = pulse.owner
        part = attempt.run.left.pop(key, None)
        if part is None:
            return None
        part.timer.cancel()
        part.task.remove_done_callback(part.ended)
        self._tasks.discard(part.task)
        return part.task, part.context

    def _ended(self, run: LiveRun, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # if nobody takes it over, nobody else asks
        if run.is_leaving:
            self._on_ended(run)

    def _look(self, run: LiveRun, key: str) -> None:
        """Cancel a part that no activity is going to take over: its workflow has asked for none."""
        part = run.left.get(key)
        if part is None:
            return
        is_awaited = any(
            one.state in _TO_COME and one.call.definition.takes_over for one in run.attempts.values()
        )
        if is_awaited or run.outcomes or run.phase is not Phase.IDLE:
            timer = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look, run, key)
            run.left[key] = part._replace(timer=timer)
            return
        del run.left[key]
        part.task.cancel(UNAWAITED)

    def stop(self, run: LiveRun, reason: str) -> None:
        """The run leaves: let its parts end."""
        for part in run.left.values():
            part.task.cancel(reason)

    def drop(self, run: LiveRun, reason: str) -> None:
        """The run has left."""
        self.stop(run, reason)
        for part in run.left.values():
            part.timer.cancel()
        run.left.clear()

    def stop_all(self, reason: str) -> list[asyncio.Task[Any]]:
        """Let all parts end; return the tasks of those that have not yet."""
        for task in self._tasks:
            task.cancel(reason)
        return self.running

    @property
    def running(self) -> list[asyncio.Task[Any]]:
        """The tasks of those that have not ended."""
        return list(self._tasks)
