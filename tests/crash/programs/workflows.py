"""The workflows of the crash suite. Between them they use every feature of this release.

Whatever dies, their outcome is the same: nothing in a result tells how often something was tried. Every activity's body
leaves its trace in the side-effect log.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path
from typing import Any, Final

import anyio

import durable
from durable import (
    Activity,
    ActivityTimeoutError,
    NonRetryableError,
    Retry,
    RetryAfter,
    Signal,
    activity,
    activity_info,
    continue_as_new,
    workflow,
)
from tests.support.crash_ledger import effect

QUICK: Final = Retry(max_attempts=25, initial=0.01, backoff=1.2, maximum=0.05)
FOR_EVER: Final = 3600.0

told: Final = Signal("told", int)
extra: Final = Signal("extra", str)
never: Final = Signal("never", str)


class Declined(NonRetryableError):
    """The service said no, and means it."""


class Refused(Exception):
    """The service said no for now."""


# ─ activities ──


@activity(retry=QUICK)
async def reserve(order: str) -> str:
    with effect() as done:
        done.value = f"reserved {order}"
        return done.value


@activity(retry=QUICK)
def pack(order: str) -> str:
    with effect() as done:
        done.value = f"packed {order}"
        return done.value


@activity(retry=QUICK)
async def note(token: str, at: str, chance: float) -> str:
    with effect([token, at, chance]) as done:
        done.value = f"{token} {at} {chance!r}"
        return done.value


@activity(retry=QUICK)
async def flaky(order: str) -> str:
    """Works from the third attempt on."""
    with effect() as done:
        if activity_info().attempt < 3:
            raise Refused(order)
        done.value = f"at last {order}"
        return done.value


@activity(retry=QUICK)
async def doomed(order: str) -> str:
    with effect():
        raise Declined(order)


@activity(retry=Retry(max_attempts=2, initial=0.01))
async def exhausted(order: str) -> str:
    with effect():
        raise Refused(order)


@activity(retry=QUICK, timeout=0.1)
async def slow(order: str) -> str:
    """Its first attempt outlasts its timeout."""
    with effect() as done:
        if activity_info().attempt == 1:
            await asyncio.sleep(FOR_EVER)
        done.value = f"slow {order}"
        return done.value


@activity(retry=QUICK, timeout=0.1)
def slow_thread(order: str) -> str:
    """As `slow`, in a thread, which nothing can stop: its late result is discarded."""
    with effect() as done:
        if activity_info().attempt == 1:
            time.sleep(0.2)
        done.value = f"slow thread {order}"
        return done.value


@activity(retry=QUICK)
async def part(number: int) -> int:
    with effect() as done:
        await asyncio.sleep(0.002)
        done.value = number * number
        return number * number


@activity(retry=QUICK)
async def hang(order: str) -> str:
    with effect():
        await asyncio.sleep(FOR_EVER)
    return order


@activity(retry=QUICK)
async def release(order: str) -> str:
    with effect() as done:
        done.value = f"released {order}"
        return done.value


@activity(retry=Retry(max_attempts=20, initial=0.01, backoff=1))
async def fragile(order: str) -> str:
    """Fails for good the first time, so that the workflow itself is tried again; then works."""
    with effect() as done:
        failed = Path(os.environ["CRASH_DIRECTORY"]) / f"{activity_info().run_id}.failed"
        if not failed.exists():
            failed.touch()
            raise Declined(order)
        done.value = f"after all {order}"
        return done.value


@activity(retry=QUICK)
async def held(gate: str) -> str:
    """Ends once the file `gate` exists."""
    with effect() as done:
        while not (Path(os.environ["CRASH_DIRECTORY"]) / gate).exists():  # noqa: ASYNC110  # a file
            await asyncio.sleep(0.005)
        done.value = gate
        return gate


@activity(retry=QUICK)
def held_thread(gate: str) -> str:
    """As `held`, in a thread that does not heed that it is to stop."""
    with durable.shield_thread(), effect() as done:
        pause = threading.Event()
        while not (Path(os.environ["CRASH_DIRECTORY"]) / gate).exists():
            pause.wait(0.005)
        done.value = gate
        return gate


@activity(retry=QUICK)
async def frozen(order: str) -> str:
    """Its first attempt stops the whole process, as if the machine had other things to do."""
    from tests.support.crash_points import points

    with effect() as done:
        if activity_info().attempt == 1:
            points.stop("in the body of `frozen`")
        done.value = f"thawed {order}"
        return done.value


@activity(retry=QUICK, heartbeat_timeout=0.1)
async def silent(order: str) -> str:
    """Its first attempt gives no sign of life."""
    with effect() as done:
        if activity_info().attempt == 1:
            await asyncio.sleep(FOR_EVER)
        done.value = f"heard {order}"
        return done.value


@activity(retry=QUICK, schedule_to_close_timeout=0.2)
async def hopeless(order: str) -> str:
    with effect():
        raise Refused(order)


@activity(retry=QUICK, cancellation="wait")
async def tidy(order: str) -> str:
    """Takes its time to end, and is waited for."""
    with effect():
        try:
            await asyncio.sleep(FOR_EVER)
        finally:
            await asyncio.sleep(0.01)
    return order


@activity(retry=QUICK, cancellation="abandon")
async def left(order: str) -> str:
    with effect():
        await asyncio.sleep(FOR_EVER)
    return order


@activity(retry=Retry(max_attempts=25, initial=0.01, maximum=0.01, retry_on=(Refused,)))
async def picky(order: str) -> str:
    """Only its own kind of error is worth another attempt, and says itself when."""
    with effect() as done:
        if activity_info().attempt == 1:
            raise Refused(order)
        done.value = f"picked {order}"
        return done.value


@activity(retry=QUICK)
async def asked_later(order: str) -> str:
    with effect() as done:
        if activity_info().attempt == 1:
            raise RetryAfter(0.03)
        done.value = f"later {order}"
        return done.value


@activity(retry=Retry(max_attempts=25, initial=0.01, maximum=0.01, no_retry=(Refused,)))
async def final(order: str) -> str:
    with effect():
        raise Refused(order)


@activity(retry=QUICK, schedule_to_start_timeout=2)
async def prompt(order: str) -> str:
    """Worth it only if it begins soon."""
    with effect() as done:
        done.value = f"prompt {order}"
        return done.value


# How often a body may start when nothing dies, where that is not once. How often one with a timeout does is a matter of the machine's
# speed: as often as its policy allows. The last three are those of `operators_used`.
UNDISTURBED_STARTS: Final = {
    "flaky": 3,
    "slow": QUICK.max_attempts,
    "slow_thread": QUICK.max_attempts,
    "exhausted": 2,
    "fragile": 2,
    "silent": QUICK.max_attempts,
    "hopeless": QUICK.max_attempts,
    "picky": 2,
    "asked_later": 2,
    "mended": 2,
    "copied": 3,
    "hurried": 2,
}


# ─ workflows ──


@workflow(timeout=300, retries=1, retry_delay=0.02)
async def everything(order: str) -> dict[str, Any]:
    """One of each."""
    durable.logger.info("begun by %s", durable.info().run_id)
    reserved = await reserve(order)
    packed = await pack(order)
    noted = await note(str(durable.uuid4()), durable.now().isoformat(), durable.random())
    tried = await flaky(order)
    gathered = sorted([await one for one in durable.as_completed([part(number) for number in range(3)])])
    failures = await _failures(order)
    grouped = await _groups()
    late = await asyncio.gather(slow(order), slow_thread(order))
    waits = await _waits(order)
    heard = [await told.wait(), await told.wait(), await durable.wait_signal("told")]
    silence = await extra.wait(timeout=0.03, default="silence")
    return {
        "reserved": reserved,
        "packed": packed,
        "noted": noted,
        "tried": tried,
        "gathered": gathered,
        "failures": failures,
        "grouped": grouped,
        "late": late,
        "waits": waits,
        "heard": heard,
        "silence": silence,
        "fragile": await fragile(order),
    }


async def _failures(order: str) -> list[str]:
    """Activities that fail for good, and are caught."""
    seen = []
    try:
        await doomed(order)
    except Declined as error:
        seen.append(f"declined {error}")
    try:
        await exhausted(order)
    except Exception:  # its own error; or that of its worker's death, if that was its last attempt
        seen.append("exhausted")
    return seen


async def _groups() -> list[int]:
    collected: list[int] = []

    async def collect(number: int) -> None:
        collected.append(await part(number))

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part(number)) for number in (10, 11)]
    async with anyio.create_task_group() as anyio_group:
        anyio_group.start_soon(collect, 20)
        anyio_group.start_soon(collect, 21)
    return [*(task.result() for task in tasks), *sorted(collected)]


async def _waits(order: str) -> list[Any]:
    """Durable time, conditions, and a scope that gives up."""
    with anyio.move_on_after(0.04) as scope:
        await hang(order)
    before = durable.now()
    await asyncio.sleep(0.02)
    await durable.sleep(0.06)
    slept = (durable.now() - before).total_seconds() >= 0.08
    done: list[int] = []

    async def work() -> None:
        done.append(await part(30))

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        await durable.wait_condition(lambda: bool(done))
    gave_up = await durable.wait_condition(lambda: len(done) > 1, timeout=0.02, default="gave up")
    return [scope.cancelled_caught, slept, done, gave_up]


@workflow
async def cancellable(order: str) -> str:
    """Waits until it is cancelled, and cleans up."""
    await reserve(order)
    try:
        return await never.wait()
    except asyncio.CancelledError:
        await release(order)
        raise


@workflow
async def endless(order: str) -> str:
    """Waits until it is terminated."""
    await reserve(order)
    return await never.wait()


@workflow(timeout=0.5)
async def overdue(order: str) -> str:
    """Waits until its time is up."""
    await reserve(order)
    await asyncio.sleep(FOR_EVER)
    return "never"


@workflow
async def chain(length: int) -> list[int]:
    """Many of these make a group commit."""
    return [await part(number) for number in range(length)]


@workflow
async def listener(count: int) -> list[int]:
    """Returns the first `count` signals in the order in which they came."""
    heard = [await told.wait() for _ in range(count)]
    one_by_one = count // 2
    return heard[:one_by_one] + sorted(heard[one_by_one:])  # those that were sent at once have no order


@workflow
async def sleeper(seconds: float) -> bool:
    """Says whether it slept for as long as it was told to."""
    before = durable.now()
    await durable.sleep(seconds)
    await part(1)
    return (durable.now() - before).total_seconds() >= seconds


@workflow
async def patient(gate: str) -> list[str]:
    return [await reserve(gate), await held(gate), await release(gate)]


@workflow
async def patient_thread(gate: str) -> list[str]:
    return [await reserve(gate), await held_thread(gate), await release(gate)]


@workflow
async def freezing(order: str) -> list[str]:
    return [await reserve(order), await frozen(order), await release(order)]


@workflow
async def rolling(generations: int, read: list[int] | None = None) -> list[int]:
    """Reads two signals and performs one activity in each generation, and returns all that it has read."""
    known = read or []
    known = [*known, await told.wait(), await told.wait()]
    await part(len(known))
    if generations > 1:
        continue_as_new(generations - 1, known)
    return known


@workflow
async def limited(order: str, queue: str | None = None) -> list[str]:
    """Limits that pass, errors that say what is retried and when, cancelled activities of each type, and a patch. `queue`: where they are performed."""

    def there(step: Activity[[str], str]) -> Activity[[str], str]:
        return step.options(task_queue=queue)

    said = ["new" if durable.patched("limited") else "old", await there(silent)(order)]
    said += [await there(picky)(order), await there(asked_later)(order)]
    try:
        await there(final)(order)
    except Refused:
        said.append("final")
    try:
        said.append(await there(hopeless)(order))
    except Exception:
        said.append("gave up")
    try:
        await prompt.options(task_queue="nobody", schedule_to_start_timeout=0.05)(order)
    except ActivityTimeoutError as error:
        said.append(f"{error.kind} passed")
    for step in (hang, tidy, left):
        try:
            async with asyncio.timeout(0.03):
                said.append(await there(step)(order))
        except TimeoutError:
            said.append(f"{step.name} is late")
    return said


@workflow
async def crowded(gate: str) -> list[str]:
    """Two activities at once, the second of which must begin soon."""

    async def promptly() -> str:
        try:
            return await prompt(gate)
        except ActivityTimeoutError as error:
            return f"{error.kind} passed"

    return await asyncio.gather(held(gate), promptly())
