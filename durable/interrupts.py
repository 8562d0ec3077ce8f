"""Cancelling a thread: an exception raised in the body of a plain `def` activity, and nowhere else.

Theory. Python can raise an exception in another thread (`Threads.interrupt`): it comes at the thread's next line of Python, wherever that
is, and never within a call of C code. So the body is *announced*: from `_open` to `_close` it may be hit, and only then. Whoever raises, announces
or withdraws does so under one lock, and the exception is raised asynchronously at most once per attempt. What that makes of the races:

- **cancel and begin**: under the lock either the reason is there, and the body never begins, or the body is announced, and is hit.
- **cancel and return**: a body whose function has returned has succeeded. What it returned is kept by C code, between which and the return no line of Python
  runs (`call`); `_close` takes back what was not raised yet, and one that came only now is swallowed there. So nothing reaches the pool's
  code, or the thread's next activity. A body that had raised something else has failed with that.
- **cancel twice**, or a timeout after a cancel, or a worker that stops after either: the first is raised, the others only change the reason that is told.
- **cancel and shield**: what was raised before a shield begins comes at its first line at the latest, and the block is not entered. What comes within is raised by
  its end, in order and not asynchronously; of nested shields, by that of the outermost. It takes the place of an exception that is on its way out of the shield,
  which is its `__context__`.
- **cancel and heartbeat**: `heartbeat()` raises for as long as the attempt is to stop, but in a shield. If it is the first to tell, nothing else is raised.
- **a body that swallows it** goes on or returns, and what it comes to counts as if nobody had asked; `heartbeat()` and `is_cancelled` still tell. So it
  is when the exception came where Python drops it (`__del__`, a callback of C code).
- **a body that drives runs itself** (`asyncio.run(workflow())`) is not hit from there on (`spare`): the exception would land in those runs' code, which must
  see nothing that is not in their journals.

Knows neither attempts nor workers.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import RLock
from typing import TypeVar

from durable.seams import Threads, thread_id
from durable.unwinding import Landing

T = TypeVar("T")


class ThreadCancelled(asyncio.CancelledError):
    """Raised in a thread whose attempt is to stop; its message is the reason. Private: to authors it is a CancelledError."""

    reason: str | None = (
        None  # of the class made for one attempt: the interpreter makes the exception, without arguments
    )

    def __init__(self, *args: object) -> None:
        super().__init__(*(args or (self.reason,)))


class BodyThread:
    """The thread of one attempt's body, as far as that may be interrupted. See the theory above."""

    __slots__ = ("_guard", "_is_told", "_landing", "_reason", "_shields", "_thread", "_threads", "has_begun")

    def __init__(self, threads: Threads) -> None:
        self.has_begun = False
        self._threads = threads
        self._guard = RLock()  # a destructor that beats may run anywhere, also in here
        self._thread: int | None = None  # while the body is announced
        self._reason: str | None = None
        self._shields = 0
        self._landing = Landing()
        self._is_told = False  # it was raised, or is about to be: not again

    # ─ on the worker's loop ──

    def interrupt(self, reason: str) -> bool:
        """Raise `ThreadCancelled` in the body, or at the end of its shield; let one that has not begun never begin.

        Return False if it is where that would skip its clean-up: to be tried again a little later.
        """
        with self._guard:
            self._reason = reason
            if self._thread is None or self._is_told or self._shields:
                return True
            error = type(ThreadCancelled.__name__, (ThreadCancelled,), {"reason": reason})
            self._is_told = self._threads.interrupt(self._thread, error, self._landing)
            return self._is_told

    # ─ in the thread ──

    def call(self, fn: Callable[[], T]) -> tuple[BaseException, None] | tuple[None, T]:
        """Call the body; return what it raised, or what it returned. Told before it began, it is not called."""
        kept: defaultdict[None, T] = defaultdict(fn)
        raised: BaseException | None = None
        try:
            try:
                self._open()
                kept[None]
            except BaseException as error:
                raised = error
            self._close()
        except ThreadCancelled:  # it came only now, and does not come again
            self._close()
        try:
            if None in kept:
                return None, kept[None]
            assert raised is not None, "it has returned, or raised"
            return raised, None
        finally:
            del raised  # else it, its traceback and this frame were a ring

    def _open(self) -> None:
        with self._guard:
            if self._reason is not None:
                raise ThreadCancelled(self._reason)
            self.has_begun = True
            self._thread = thread_id()

    def _close(self) -> None:
        with self._guard:
            self._thread = None
            if self._is_told:
                self._threads.interrupt(thread_id(), None)

    def may_raise(self) -> bool:
        """Whether a sign of life from this thread may raise that the attempt is to stop; then nothing else does."""
        if thread_id() != self._thread:
            return True
        with self._guard:
            if self._shields:
                return False
            if self._is_told:
                self._threads.interrupt(self._thread, None)
            self._is_told = True
        return True

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Let nothing be raised in the block, if this is the body's thread; what was to be is raised at its end."""
        if thread_id() != self._thread:
            yield
            return
        self._begin_shield()
        try:
            yield
        finally:
            self._end_shield()

    def _begin_shield(self) -> None:
        with self._guard:
            if not self._is_told:
                self._shields += 1
                return
        _let_through()
        self._shields += 1

    def _end_shield(self) -> None:
        with self._guard:
            self._shields -= 1
            is_due = self._reason is not None and not (self._shields or self._is_told or self._thread is None)
            self._is_told |= is_due
        if is_due:
            raise ThreadCancelled(self._reason)

    def spare(self) -> None:
        """Raise nothing from here on, if this is the body's thread; what was raised before comes here."""
        if thread_id() != self._thread:
            return
        with self._guard:
            was_told, self._is_told = self._is_told, True
        if was_told:
            _let_through()


def _let_through() -> None:
    """Have what is about to be raised in this thread raised now: the interpreter looks whenever a function begins."""
