"""The watchdog: a thread beside the loop that notices code which does not give control back, and ends that.

Theory. All runs of a worker share its loop's thread, so one activation that computes or blocks holds up everybody. The loop
says what it is at by plain assignments (`watch.activations`, then `watch.subject`), and the thread looks every now and then
whether that has changed; so the watch costs the loop nothing to speak of, and reads no clock there. What it does, by the time
that `Limits` say:

1. the soft limit: a warning with the run's id and the stack;
2. the hard limit: `Interrupted`, which no author catches on purpose, is raised in the loop's thread, again at every look while
   the same activation goes on. The run is parked with the stack. It is not its failure: what the activation has asked for is void;
3. when the loop itself has not moved for twice that: nothing in Python can stop it (a call of C code, `time.sleep`).
   The lease is no longer renewed and the process ends, so that others take over. An embedded engine never ends its host.
   While C code holds the interpreter's lock even this thread stands still; then the system's timer ends the process.

The interrupt is exact. It is raised under a lock, only while the activation it is meant for is announced as running; the loop
withdraws the announcement first and, if it was interrupted, takes back under the same lock whatever has not been raised yet. So it
cannot hit anything but the activation, or the lines around it that expect it.

Time counts only as far as this thread could run as well: a process that was stopped, or a machine that slept, is not stuck.
Knows nothing of stores.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Callable
from threading import Lock
from types import FrameType
from typing import Final, NamedTuple

from durable.engine.instance import Instance
from durable.engine.loop import DeterministicLoop
from durable.engine.sources import find_source
from durable.errors import BlockedLoopError, StuckWorkflowError
from durable.seams import Clock, Repeating, Threads, thread_id

ACTIVATION_SECONDS: Final = 30.0
SOFT_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 0.25
STACK_FRAMES_MAX: Final = 30
_DEBUGGERS: Final = ("bdb", "pdb", "pydevd", "_pydevd_bundle", "debugpy")
log = logging.getLogger("durable.worker")


class Interrupted(BaseException):
    """Raised by the watchdog in code that does not return. Private: authors must not catch it."""


class Limits(NamedTuple):
    """In seconds, all derived from one: how long an activation may take."""

    soft: float
    hard: float
    loop: float
    look: float

    @classmethod
    def of(cls, activation: float) -> Limits:
        return cls(
            soft=min(SOFT_SECONDS, activation / 2),
            hard=activation,
            loop=activation * 2,
            look=min(LOOK_SECONDS, activation / 8),
        )


class Watch:
    """What the loop's thread is at. Written by the loop, read by the watchdog; see the theory above for the order."""

    __slots__ = (
        "_guard",
        "_threads",
        "activations",
        "interrupted",
        "moves",
        "seconds",
        "stack",
        "subject",
        "thread",
    )

    def __init__(self, threads: Threads) -> None:
        self.subject: str | None = None  # the id of the run whose code runs now
        self.activations = 0
        self.moves = 0  # raised by the loop now and then: it lives
        self.interrupted = False
        self.seconds = 0.0  # of the activation that was interrupted, with its `stack`
        self.stack: FrameStack | None = None
        self.thread = thread_id()
        self._threads = threads
        self._guard = Lock()

    def interrupt(self, activation: int, seconds: float, stack: FrameStack | None) -> bool:
        """On the watchdog's thread: raise `Interrupted` in an activation, if it still is the one that runs."""
        with self._guard:
            self.interrupted = True  # before the look: whoever ends the activation from here on sees it
            if self.subject is None or self.activations != activation:
                self.interrupted = False
                return False
            self.seconds, self.stack = seconds, stack
            self._threads.interrupt(self.thread, Interrupted)
            return True

    def settle(self) -> bool:
        """On the loop, once `subject` is None again: take back what was not raised yet; return whether it was interrupted."""
        while True:
            try:
                with self._guard:
                    was, self.interrupted = self.interrupted, False
                    if was:
                        self._threads.interrupt(self.thread, None)
                    return was
            except Interrupted:  # it came only now
                self.interrupted = True

    def come_out(self) -> None:
        """On the loop, where `interrupted` was seen: withdraw the announcement and settle. The interrupt may be raised as late as here."""
        while True:
            try:
                self.subject = None
                self.settle()
                return
            except Interrupted:
                continue

    def fault(self, run_id: str) -> StuckWorkflowError:
        """Return why a run whose activation was interrupted is parked."""
        stack = self.stack or FrameStack("", "")
        place = f" at {stack.source}" if stack.source else ""
        return StuckWorkflowError(
            f"run {run_id!r}: its workflow did not give control back for {self.seconds:.1f} s{place}. Move what computes "
            "or blocks into an @activity (a plain `def` runs in a thread), then resume the run",
            run_id=run_id,
            seconds=round(self.seconds, 3),
            source=stack.source,
            stack=stack.text,
        )


def evict(instance: Instance, watch: Watch) -> None:
    """Unwind an instance under the watchdog's eyes; its `finally` blocks are the author's code and may hang like any other."""
    watch.activations += 1
    try:
        watch.subject = instance.identity.run_id
        instance.evict()
        watch.subject = None
    except Interrupted:
        pass
    if watch.interrupted:
        watch.come_out()
        log.error("run %r did not end its clean-up when it left the memory", instance.identity.run_id)


class FrameStack(NamedTuple):
    """Where a thread is: the author's line, and the stack from the engine's loop inward, as text."""

    source: str
    text: str

    @classmethod
    def of(cls, thread: int) -> FrameStack | None:
        """Return where a thread is now; None if it is gone, or a person looks at it through a debugger."""
        frame = sys._current_frames().get(thread)
        if frame is None:
            return None
        return cls(find_source(frame), _text(frame)) if not _is_debugged(frame) else None


class Watchdog:
    """Watches one worker's loop, until stopped. `attempt_of` tells whose attempt a task of the loop performs, if any's.

    `ends_process`: whether the process is ours to end. `is_hopeless` while the loop stands still for so long that the
    lease must not be renewed (P11).
    """

    def __init__(
        self,
        *,
        clock: Clock,
        threads: Threads,
        activation_seconds: float,
        ends_process: bool,
        attempt_of: Callable[[asyncio.Task[object]], str | None],
    ) -> None:
        self.limits = limits = Limits.of(activation_seconds)
        self.watch = Watch(threads)
        self.is_hopeless = False
        self._clock = clock
        self._threads = threads
        self._ends_process = ends_process
        self._attempt_of = attempt_of
        self._loop = asyncio.get_running_loop()
        self._looked_at = clock.monotonic()
        self._activation = 0
        self._activation_seconds = 0.0
        self._moves = 0
        self._still_seconds = 0.0
        self._has_warned = False
        self._guard_process()  # at once: the first run may be the one that holds the interpreter's lock
        self._thread: Repeating = threads.repeat(self._look, limits.look, name="durable watchdog")

    def stop(self) -> None:
        self._thread.stop()
        if self._ends_process:
            self._threads.guard_process(None)

    # ─ on the watchdog's thread ──

    def _look(self) -> bool:
        try:
            self._look_once()
        except Exception:  # a watchdog that dies of a bug of ours would be missed only when it is needed
            log.exception("the watchdog met an internal error and goes on")
        return True

    def _guard_process(self) -> None:
        if self._ends_process:
            self._threads.guard_process(self.limits.loop)

    def _look_once(self) -> None:
        self._guard_process()
        now = self._clock.monotonic()
        passed, self._looked_at = min(now - self._looked_at, 4 * self.limits.look), now
        watch = self.watch
        activation, subject = watch.activations, watch.subject
        if subject is None or activation != self._activation:
            self._activation, self._activation_seconds = activation, 0.0
        else:
            self._activation_seconds += passed
        if watch.moves != self._moves:
            self._moves, self._still_seconds, self._has_warned = watch.moves, 0.0, False
            self.is_hopeless = False
        else:
            self._still_seconds += passed
        if subject is not None and self._activation_seconds > 0:
            self._judge_activation(activation, subject)
        elif self._still_seconds >= self.limits.soft + self.limits.look:
            self._judge_loop()
        if self._still_seconds >= self.limits.loop and not self.is_hopeless:
            self._give_up(subject)

    def _judge_activation(self, activation: int, run_id: str) -> None:
        seconds = self._activation_seconds
        if seconds < self.limits.soft or (self._has_warned and seconds < self.limits.hard):
            return
        stack = FrameStack.of(self.watch.thread)
        if stack is None:
            self._activation_seconds = self._still_seconds = 0.0
            return
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "run %r has not given control back for %.1f s, and holds up every run of this worker; at %g s it is "
                "interrupted and parked. It is at\n%s",
                run_id, seconds, self.limits.hard, stack.text,
            )  # fmt: skip
        if seconds >= self.limits.hard:
            self.watch.interrupt(activation, seconds, stack)

    def _judge_loop(self) -> None:
        """The loop stands still, but not in a workflow: an async activity blocks it, or a stranger's code does."""
        hard = self._still_seconds >= self.limits.hard
        if self._has_warned and not hard:
            return
        stack = FrameStack.of(self.watch.thread)
        if stack is None:
            self._still_seconds = 0.0
            return
        who = self._blocking_attempt()
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s has blocked the worker's loop for %.1f s, and holds up every run of it. It is at\n%s",
                who or "code outside of workflows and activities", self._still_seconds, stack.text,
            )  # fmt: skip
        if hard and who is not None:
            self._interrupt_attempt()

    def _blocking_attempt(self) -> str | None:
        task = asyncio.current_task(self._loop)
        return None if task is None else self._attempt_of(task)

    def _interrupt_attempt(self) -> None:
        """Interrupt the activity that blocks the loop.

        Nothing announces the steps of a task. But this thread has just got the interpreter's lock, and keeps it for the few
        lines between the look and the interrupt (a switch is due after 5 ms): what is seen is what is hit.
        """
        os.sched_yield()
        if self.watch.moves == self._moves and self._blocking_attempt() is not None:
            self._threads.interrupt(self.watch.thread, Interrupted)

    def _give_up(self, subject: str | None) -> None:
        self.is_hopeless = True
        what = f"run {subject!r}" if subject is not None else self._blocking_attempt() or "something"
        log.critical(
            "%s has held the worker's loop for %.0f s and cannot be interrupted: its lease is no longer renewed, others "
            "take its runs over%s",
            what,
            self._still_seconds,
            ", and this process ends" if self._ends_process else "; the process is its host's and goes on",
        )
        if self._ends_process:
            self._threads.end_process()


def blocked(name: str, attempt: int, interrupted: Interrupted) -> BlockedLoopError:
    """Return what an attempt fails with that was interrupted because it blocked the loop."""
    error = BlockedLoopError(
        f"attempt {attempt} of {name!r} held its worker's loop for too long and was interrupted: await what takes time, or "
        "make the activity a plain `def`, which runs in a thread"
    )
    return error.with_traceback(interrupted.__traceback__)


def _is_debugged(frame: FrameType | None) -> bool:
    """Whether a debugger stands in the stack: then it is a person who takes time."""
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).partition(".")[0] in _DEBUGGERS:
            return True
        frame = frame.f_back
    return False


def _text(frame: FrameType) -> str:
    """Return a stack as tracebacks show it, innermost last, from the loop's own frames inward."""
    frames = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=STACK_FRAMES_MAX)
    inner = list(itertools.takewhile(lambda one: (one.name, one.filename) not in _LOOPS, frames))
    return "".join(traceback.format_list(reversed(inner)))


_LOOPS: Final = {
    (code.co_name, code.co_filename)
    for code in (DeterministicLoop.drain.__code__, asyncio.Handle._run.__code__)
}
