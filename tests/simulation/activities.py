"""What touches the world: activities that tell the simulation when they begin and how they end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable import Retry, activity, activity_info, heartbeat, raise_complete_async, saga_step
from tests.simulation.loop import SimLoop, here

if TYPE_CHECKING:
    from tests.simulation.node import Node

persistent: Final = Retry(max_attempts=0, initial=0.2, maximum=3.0)
limited: Final = Retry(max_attempts=3, initial=0.5, backoff=3.0)
single: Final = Retry(max_attempts=1)
unhurried: Final = Retry(
    max_attempts=0, initial=3600.0, maximum=3600.0
)  # nothing comes of it unless somebody hurries it on
ELSEWHERE: Final = "elsewhere"  # a task queue of activities alone
LARGE: Final = 40_000  # characters: more than stand in a row of the journal


class Body(msgspec.Struct):
    """One start of one activity body, as the outside world saw it."""

    key: str
    activity: str
    attempt: int
    node: str
    begun: float
    policy: Retry | None
    generation: int  # of the run, as its worker knows it
    is_task: bool  # claimed from a task queue by a worker that need not own the run
    ended: float | None = None
    settled: float | None = None  # somebody else saw that its time was over, wherever its worker was
    how: str = ""
    handed_back: int = 0


def this_node() -> Node:
    """Return the node whose code this is."""
    lane = here.get() or SimLoop.current_lane()  # workflow code has contexts of its own
    assert lane.node is not None
    return lane.node


def reach(feature: str) -> None:
    """Note that code of a workflow got there."""
    this_node().simulation.features[feature] += 1


@contextmanager
def body(policy: Retry | None = persistent, *, is_part: bool = False) -> Iterator[Body]:
    """Tell the world that a body begins, and how it ends. `is_part`: of an activity that is on record as a whole."""
    node, info = this_node(), activity_info()
    try:
        told = node.simulation.on_body(info, node, policy, is_part=is_part)
    except Exception as error:  # no failure of the activity, which would be tried again
        node.simulation.violation(f"the simulation broke: {error!r}")
        raise
    try:
        yield told
    except GeneratorExit:
        raise
    except BaseException as error:
        told.how = type(error).__name__
        raise
    else:
        told.how = "returned"
    finally:
        if not node.is_dead:
            told.ended = node.loop.now


@activity(retry=persistent)
async def work(key: str, failures: int, seconds: float) -> str:
    with body():
        await asyncio.sleep(seconds)
        if activity_info().attempt <= failures:
            raise OSError(key)
        return key


@activity(retry=limited)
async def fragile(key: str, failures: int) -> str:
    with body(limited):
        await asyncio.sleep(0.05)
        if activity_info().attempt <= failures:
            raise OSError(key)
        return key


@activity(retry=single)
async def fails_once(key: str) -> str:
    """Fail the first time anywhere, so that the whole workflow is tried again."""
    with body(single):
        known = this_node().simulation.failed_once
        failing = f"{activity_info().run_id}/{key}"  # a retry from nothing has other idempotency keys
        if failing not in known:
            known.add(failing)
            raise OSError(key)
        return key


@activity(retry=persistent)
def in_thread(key: str) -> str:
    with body():
        return key


@activity(retry=persistent, timeout=1.5)
async def too_slow_at_first(key: str, slow: int) -> str:
    with body():
        await asyncio.sleep(60.0 if activity_info().attempt <= slow else 0.1)
        return key


@activity(retry=persistent)
async def shaped(key: str) -> Any:
    """Return what a codec changes."""
    with body():
        return {"key": key, "shape": (1, 2)}


@activity(retry=persistent)
async def large(key: str) -> str:
    with body():
        return key * (LARGE // len(key))


@activity(retry=persistent, heartbeat_timeout=3.0)
async def beats(key: str, beats: int, failures: int) -> str:
    """Go on where the last heartbeat of an earlier attempt was."""
    with body():
        info = activity_info()
        told = this_node().simulation.told.setdefault(info.idempotency_key, set())
        (done,) = info.heartbeat_details or (0,)
        if done and done not in told:
            this_node().simulation.violation(
                f"I3: {info.idempotency_key} was told of heartbeat {done}, which none gave"
            )
        for beat in range(done + 1, beats + 1):
            await asyncio.sleep(0.6)
            told.add(beat)
            heartbeat(beat)
            if info.attempt <= failures and beat >= beats // 2:
                raise OSError(key)
        return key


@activity(retry=persistent, timeout=20.0)
async def by_token(key: str) -> str:
    """Leave it to somebody outside, who has the token."""
    with body() as told:
        this_node().simulation.post(told, activity_info().task_token, key)
        raise_complete_async()


stubborn: Final = work.options(cancellation="wait")
abandoned: Final = work.options(cancellation="abandon")


async def undo_booking(key: str, failures: int) -> None:
    with body(None):
        await asyncio.sleep(0.6)
        if activity_info().attempt <= failures:
            raise OSError(key)


@saga_step(compensation=undo_booking, max_retries=200, retry_delay=0.1)
async def book(key: str, failures: int) -> str:
    """A step that is undone if what it belongs to fails or is cancelled."""
    with body(None):
        await asyncio.sleep(0.2)
        return key


@activity(retry=unhurried)
async def patient(key: str) -> str:
    """Fail once, and wait for somebody who does not want to wait."""
    with body(unhurried):
        if activity_info().attempt == 1:
            raise OSError(key)
        return key


@activity(retry=persistent)
async def refuse(key: str) -> str:
    with body():
        raise ValueError(key)


SERVED_ELSEWHERE: Final = (work, fragile, too_slow_at_first, beats, in_thread, patient)
