"""Where a thread may be interrupted so that whatever is around that place is left in order."""

from __future__ import annotations

import asyncio
import dis
import itertools
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from durable.interrupts import BodyThread
from durable.seams import SystemThreads
from durable.unwinding import is_covered

PATIENCE_SECONDS = 60.0
SKIPS_CLEAN_UP = sys.version_info[:2] in ((3, 12), (3, 13))  # known of these


def while_in_try(go: Any, done: Any) -> None:
    try:
        while go():
            sum(range(9))
    finally:
        done()


def while_in_with(go: Any, lock: Any) -> None:
    with lock:
        while not go():
            pass


def while_and(go: Any, done: Any) -> None:
    try:
        while go() and go is not None:
            sum(range(9))
    finally:
        done()


def for_ever(go: Any, done: Any) -> None:
    try:
        while True:
            sum(range(9))
    finally:
        done()


def for_in_with(items: Any, lock: Any) -> None:
    with lock:
        for item in items:
            if item:
                continue
            sum(range(9))


def while_around_try(go: Any, done: Any) -> None:
    while go():
        try:
            sum(range(9))
        except ValueError:
            done()


def while_alone(go: Any, done: Any) -> None:
    while go():
        done()


def jumps_back(fn: Callable[..., Any]) -> list[bool]:
    """Return of each plain jump backward whether it is covered as its source is."""
    return [
        is_covered(fn.__code__, one.offset)
        for one in dis.get_instructions(fn)
        if one.opname == "JUMP_BACKWARD"
    ]


@pytest.mark.parametrize("fn", [while_in_try, while_in_with, while_and])
def test_the_jump_back_to_a_condition_is_outside_of_its_block(fn: Callable[..., Any]) -> None:
    """On those Pythons that forget it; the others have it covered, or no such jump."""
    if SKIPS_CLEAN_UP:
        assert jumps_back(fn)[-1:] == [False]
    else:
        assert all(jumps_back(fn))


@pytest.mark.parametrize("fn", [for_ever, for_in_with, while_around_try, while_alone])
def test_other_jumps_back_are_where_their_source_says(fn: Callable[..., Any]) -> None:
    assert all(jumps_back(fn))


def test_every_other_instruction_is_covered() -> None:
    for fn in (while_in_try, while_in_with, for_in_with, while_around_try):
        for one in dis.get_instructions(fn):
            assert one.opname == "JUMP_BACKWARD" or is_covered(fn.__code__, one.offset)


def spins(hold: Held) -> None:
    with hold.lock:
        while not sum(range(7)) < 0:
            hold.begun.set()


def asks_python(hold: Held) -> None:
    with hold.lock:
        while hold.goes_on():
            hold.begun.set()


def asks_a_property(hold: Held) -> None:
    with hold.lock:
        while hold.has_more:
            max(1, 2)


def asks_for_a_length(hold: Held) -> None:
    with hold.lock:
        while len(hold.items):
            hold.items.append(1)
            hold.items.pop(0)


def asks_a_generator(hold: Held) -> None:
    with hold.lock:
        numbers = itertools.cycle([1, 2])
        while next(number for number in numbers if number > 1):
            hold.begun.set()


class Held:
    """What a thread holds while it goes round a loop."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun = threading.Event()
        self.items = [1]

    def goes_on(self) -> bool:
        return True

    @property
    def has_more(self) -> bool:
        return self.goes_on()


@pytest.mark.parametrize("body", [spins, asks_python, asks_a_property, asks_for_a_length, asks_a_generator])
def test_a_cancelled_thread_releases_what_it_holds(body: Callable[[Held], None]) -> None:
    """Whatever the condition of its loop is made of: wherever it is hit, the lock is free afterwards."""
    for _ in range(5):
        hold = Held()
        ended: list[Any] = []
        thread = BodyThread(SystemThreads())
        runs = threading.Thread(target=lambda: ended.append(thread.call(lambda: body(hold))))  # noqa: B023  # it ends here
        runs.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (thread.has_begun and thread.interrupt("stop")):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        runs.join(PATIENCE_SECONDS)

        ((error, _),) = ended
        assert isinstance(error, asyncio.CancelledError)
        assert not hold.lock.locked()


def sleeps_at_the_end(hold: Held) -> None:
    going = True
    with hold.lock:
        hold.begun.set()
        while going:
            time.sleep(0.02)


def sleeps_for_long(hold: Held) -> None:
    going = True
    with hold.lock:
        hold.begun.set()
        while going:
            time.sleep(0.3)


@pytest.mark.parametrize("body", [sleeps_at_the_end, sleeps_for_long])
def test_a_thread_in_a_call_before_the_jump_is_interrupted_after_the_call(
    body: Callable[[Held], None],
) -> None:
    """Nothing tells its place from that of one that waits at the jump but that it does not compute."""
    test_a_cancelled_thread_releases_what_it_holds(body)
