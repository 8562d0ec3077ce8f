"""A cancelled thread: where the exception may land, and where never. Real threads; what they do is decided by locks, not by time."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

import pytest

from durable.interrupts import BodyThread, ThreadCancelled
from durable.seams import SystemThreads, thread_id

PATIENCE_SECONDS = 60.0


class Body:
    """One body, called in a thread of a pool; `at` is where it waits in a call of C code, until `go_on`."""

    def __init__(self, pool: ThreadPoolExecutor, fn: Callable[[Body], object]) -> None:
        self.thread = BodyThread(SystemThreads())
        self._is_there, self._may_go = threading.Lock(), threading.Lock()
        self._is_there.acquire()
        self._may_go.acquire()
        self._end: Future[Any] = pool.submit(lambda: self.thread.call(partial(fn, self)))

    def wait_here(self) -> None:
        self._is_there.release()
        self._may_go.acquire()

    def is_there(self) -> None:
        assert self._is_there.acquire(timeout=PATIENCE_SECONDS)

    def go_on(self) -> None:
        self._may_go.release()

    def ended(self) -> tuple[BaseException | None, Any]:
        error, value = self._end.result(PATIENCE_SECONDS)
        return error, value


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """One thread, so that whatever is raised too late meets the next body."""
    with ThreadPoolExecutor(1) as made:
        yield made
        assert made.submit(lambda: "alive").result(PATIENCE_SECONDS) == "alive"


def interrupted(error: BaseException | None) -> str:
    assert isinstance(error, asyncio.CancelledError), error
    return str(error)


# ─ begin and end ──


def test_a_body_is_interrupted_at_its_next_line_with_the_reason(pool: ThreadPoolExecutor) -> None:
    """`except Exception` lets it through; no waiting, no asking."""
    seen: list[str] = []

    def computes(body: Body) -> None:
        body._is_there.release()
        try:
            while True:
                try:
                    sum(range(100))
                except Exception:
                    seen.append("swallowed")
        finally:
            seen.append("cleaned up")

    body = Body(pool, computes)
    body.is_there()
    body.thread.interrupt("customer left")

    error, _ = body.ended()
    assert interrupted(error) == "customer left"
    assert seen == ["cleaned up"]


def test_a_call_of_c_code_returns_first(pool: ThreadPoolExecutor) -> None:
    """Nothing of it is cut short; then the exception comes, before the next line."""
    reached: list[str] = []

    def waits(body: Body) -> None:
        body.wait_here()
        reached.append("the next line")

    body = Body(pool, waits)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    assert interrupted(body.ended()[0]) == "stop"
    assert reached == []


def test_a_body_told_before_it_began_is_not_called(pool: ThreadPoolExecutor) -> None:
    called: list[int] = []
    thread = BodyThread(SystemThreads())
    thread.interrupt("too late")

    error, _ = pool.submit(lambda: thread.call(lambda: called.append(1))).result(PATIENCE_SECONDS)

    assert interrupted(error) == "too late"
    assert called == []
    assert not thread.has_begun


def test_what_a_body_has_returned_counts(pool: ThreadPoolExecutor) -> None:
    """The exception is there when the function has returned, and nothing of ours has run yet: it is taken back."""

    def run() -> Any:
        raising: Any = ctypes.pythonapi.PyThreadState_SetAsyncExc
        return BodyThread(SystemThreads()).call(  # C code that returns 1, with the exception on its way
            partial(raising, ctypes.c_ulong(thread_id()), ctypes.py_object(ThreadCancelled))
        )

    assert pool.submit(run).result(PATIENCE_SECONDS) == (None, 1)


def test_a_body_that_swallows_it_has_returned(pool: ThreadPoolExecutor) -> None:
    """And a second request raises nothing more."""

    def stubborn(body: Body) -> str:
        try:
            body.wait_here()
        except asyncio.CancelledError:
            body.wait_here()
        return "done"

    body = Body(pool, stubborn)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()
    body.is_there()
    body.thread.interrupt("stop, really")
    body.go_on()

    assert body.ended() == (None, "done")


def test_a_body_that_raises_something_else_has_failed_with_that(pool: ThreadPoolExecutor) -> None:
    def fails(body: Body) -> None:
        try:
            body.wait_here()
        except asyncio.CancelledError as error:
            raise StopIteration("while cleaning up") from error

    body = Body(pool, fails)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    error, _ = body.ended()
    assert isinstance(error, StopIteration)
    assert interrupted(error.__cause__) == "stop"


def test_a_failed_body_leaves_no_ring_behind() -> None:
    """What it held goes with its exception, without the garbage collector."""

    class Held:
        pass

    def fails() -> None:
        held = Held()
        left.append(weakref.ref(held))
        raise ValueError

    left: list[weakref.ref[Held]] = []
    gc.disable()
    try:
        error, _ = BodyThread(SystemThreads()).call(fails)
        assert left[0]() is not None
        del error
        assert left[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("seed", range(4))
def test_cancels_at_any_moment_hit_their_own_body_or_nobody(seed: int, pool: ThreadPoolExecutor) -> None:
    """Hundreds of quick bodies in one thread, two in three of them cancelled, some before they begin and some after their end."""
    chance = random.Random(seed)
    bodies: list[tuple[BodyThread, Future[Any], str]] = []

    def quick(number: int, rounds: int, shields: bool, thread: BodyThread) -> int:
        if not shields:
            return sum(n % 7 for n in range(rounds)) * 0 + number
        kept = 0
        with thread.shielded():
            for _ in range(rounds):
                kept += 1
        assert kept == rounds
        return number

    def submit(number: int) -> None:
        thread = BodyThread(SystemThreads())
        body = partial(quick, number, chance.randrange(1, 400), chance.random() < 0.3, thread)
        bodies.append((thread, pool.submit(lambda: thread.call(body)), f"reason {number}"))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(400):
            submit(number)
            if number % 3:
                thread, _, reason = bodies[
                    chance.randrange(max(0, number - 5), number + 1) if number % 3 == 2 else number
                ]
                sum(range(chance.randrange(3000)))
                thread.interrupt(reason)
        told = {reason for thread, _, reason in bodies if thread._reason is not None}
        for number, (_, end, reason) in enumerate(bodies):
            error, value = end.result(PATIENCE_SECONDS)
            if error is None:
                assert value == number
            else:
                assert interrupted(error) == reason
                assert reason in told
    finally:
        sys.setswitchinterval(interval)


INTERRUPTED: Final = """
import sys, threading, time
from durable.interrupts import BodyThread
from durable.seams import SystemThreads

def body():
    begun.set()
    while True:
        time.sleep(0.001)

begun = threading.Event()
thread = BodyThread(SystemThreads())
runner = threading.Thread(target=thread.call, args=(body,))
runner.start()
begun.wait()
thread.interrupt("enough")
runner.join()
seen = []
sys.settrace(lambda frame, event, value: seen.append(frame.f_code.co_name))
(lambda: None)()
sys.settrace(None)
print(seen[0])
"""


def test_a_cancelled_thread_leaves_the_interpreter_with_nothing_to_look_for() -> None:
    """Python 3.11 would stand still at the next function that a debugger or coverage traces, and calls would cost more for good."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "<lambda>\n")


# ─ shields ──


@pytest.mark.parametrize("depth", [1, 2])
def test_a_shield_defers_it_to_its_end(depth: int, pool: ThreadPoolExecutor) -> None:
    """To the end of the outermost one; and there it is raised, not somewhere later."""
    reached: list[str] = []

    def shields(body: Body) -> None:
        with body.thread.shielded():
            if depth == 2:
                with body.thread.shielded():
                    body.wait_here()
                reached.append("after the inner one")
            else:
                body.wait_here()
            reached.append("the end of the block")
        reached.append("after the shield")

    body = Body(pool, shields)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    assert interrupted(body.ended()[0]) == "stop"
    assert reached == ["after the inner one"] * (depth == 2) + ["the end of the block"]


def test_what_was_raised_before_a_shield_keeps_its_block_from_beginning(pool: ThreadPoolExecutor) -> None:
    reached: list[str] = []

    def shields(body: Body) -> None:
        ready = body.thread.shielded()
        body.wait_here()
        with ready:
            reached.append("in the block")

    body = Body(pool, shields)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    assert interrupted(body.ended()[0]) == "stop"
    assert reached == []


def test_a_shield_in_the_clean_up_raises_it_no_second_time(pool: ThreadPoolExecutor) -> None:
    def cleans_up(body: Body) -> str:
        try:
            body.wait_here()
        except asyncio.CancelledError:
            with body.thread.shielded():
                body.wait_here()
        return "clean"

    body = Body(pool, cleans_up)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()
    body.is_there()
    body.thread.interrupt("its worker stops")
    body.go_on()

    assert body.ended() == (None, "clean")


def test_an_error_that_leaves_a_shield_is_the_context_of_the_cancel(pool: ThreadPoolExecutor) -> None:
    def fails(body: Body) -> None:
        with body.thread.shielded():
            body.wait_here()
            raise ValueError("in the block")

    body = Body(pool, fails)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    error, _ = body.ended()
    assert interrupted(error) == "stop"
    assert error is not None
    assert isinstance(error.__context__, ValueError)


def test_a_shield_without_a_cancel_does_nothing(pool: ThreadPoolExecutor) -> None:
    def shields(body: Body) -> str:
        with body.thread.shielded(), body.thread.shielded():
            return "done"

    assert Body(pool, shields).ended() == (None, "done")


# ─ told otherwise ──


def test_whoever_was_told_by_a_heartbeat_is_not_interrupted(pool: ThreadPoolExecutor) -> None:
    """The heartbeat raises in the body's own thread; what follows is its clean-up."""

    def beats(body: Body) -> str:
        with body.thread.shielded():
            assert not body.thread.may_raise()
        assert body.thread.may_raise()
        body.wait_here()
        return "cleaned up"

    body = Body(pool, beats)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    assert body.ended() == (None, "cleaned up")


def test_a_body_that_is_spared_is_not_interrupted(pool: ThreadPoolExecutor) -> None:
    """It drives runs, say."""

    def drives(body: Body) -> str:
        body.thread.spare()
        body.wait_here()
        return "done"

    body = Body(pool, drives)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    assert body.ended() == (None, "done")


def test_other_threads_are_not_touched(pool: ThreadPoolExecutor) -> None:
    """A helper of the body's: its shields are its own business, its heartbeats may raise."""
    helper_saw: list[bool] = []

    def with_helper(body: Body) -> None:
        def helps() -> None:
            with body.thread.shielded():
                helper_saw.append(body.thread.may_raise())
            body.thread.spare()

        helper = threading.Thread(target=helps)
        helper.start()
        helper.join()
        body.wait_here()

    body = Body(pool, with_helper)
    body.is_there()
    body.thread.interrupt("stop")
    body.go_on()

    assert interrupted(body.ended()[0]) == "stop"
    assert helper_saw == [True]
