"""What runs: workflows that do as their plan says, the activities they call, and a model of what must come of a plan."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import msgspec

from durable import Retry, Signal, activity, activity_info, wait_condition, workflow
from tests.simulation.loop import here

if TYPE_CHECKING:
    from tests.simulation.node import Node

Plan = list[list[Any]]
persistent: Final = Retry(max_attempts=0, initial=0.2, maximum=3.0)
limited: Final = Retry(max_attempts=3, initial=0.5, backoff=3.0)
number: Final = Signal("number", int)
never: Final = Signal("never", int)


class Body(msgspec.Struct):
    """One start of one activity body, as the outside world saw it."""

    key: str
    activity: str
    attempt: int
    node: str
    begun: float
    ended: float | None = None
    how: str = ""
    generation: int = 0
    handed_back: int = 0


def _node() -> Node:
    lane = here.get()
    assert lane is not None
    assert lane.node is not None
    return lane.node


@contextmanager
def _body() -> Iterator[Body]:
    """Tell the world that a body begins, and how it ends."""
    node, info = _node(), activity_info()
    body = node.simulation.on_body(info, node)
    try:
        yield body
    except GeneratorExit:
        raise
    except BaseException as error:
        body.how = type(error).__name__
        raise
    else:
        body.how = "returned"
    finally:
        if not node.is_dead:
            body.ended = node.loop.now


@activity(retry=persistent)
async def work(key: str, failures: int, seconds: float) -> str:
    with _body():
        await asyncio.sleep(seconds)
        if activity_info().attempt <= failures:
            raise OSError(key)
        return key


@activity(retry=limited)
async def fragile(key: str, failures: int) -> str:
    with _body():
        await asyncio.sleep(0.05)
        if activity_info().attempt <= failures:
            raise OSError(key)
        return key


@activity(retries=0)
async def fails_once(key: str) -> str:
    """Fail the first time anywhere, so that the whole workflow is tried again."""
    with _body():
        known = _node().simulation.failed_once
        idempotency_key = activity_info().idempotency_key
        if idempotency_key not in known:
            known.add(idempotency_key)
            raise OSError(key)
        return key


@activity(retry=persistent)
def in_thread(key: str) -> str:
    with _body():
        return key


@activity(retry=persistent, timeout=1.5)
async def too_slow_at_first(key: str, slow: int) -> str:
    with _body():
        await asyncio.sleep(60.0 if activity_info().attempt <= slow else 0.1)
        return key


stubborn: Final = work.options(cancellation="wait")
abandoned: Final = work.options(cancellation="abandon")


async def _perform(plan: Plan) -> list[Any]:
    try:
        return [await _step(kind, *details) for kind, *details in plan]
    except asyncio.CancelledError:
        await work("cleanup", 0, 0.1)
        raise


@workflow(retries=100, retry_delay=0.5)
async def life(plan: Plan) -> list[Any]:
    """Do what the plan says and tell what came of each step."""
    return await _perform(plan)


@workflow(timeout=25)
async def short_life(plan: Plan) -> list[Any]:
    return await _perform(plan)


@workflow
async def waits_for_ever(plan: Plan) -> int:
    """Wait for what nobody sends, as the plan says (I17)."""
    await _perform(plan)
    return await never.wait()


async def _step(kind: str, key: str, *details: Any) -> Any:
    match kind:
        case "call":
            return await work(key, *details)
        case "fragile":
            try:
                return await fragile(key, *details)
            except Exception:
                return "gave up"
        case "sleep":
            return await asyncio.sleep(details[0], "slept")
        case "signal":
            return await number.wait()
        case "signal or not":
            return await number.wait(details[0], default=None)
        case "gather":
            return await asyncio.gather(*(work(f"{key}.{j}", j % 2, 0.1 * j) for j in range(details[0])))
        case "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(f"{key}.{j}", 0, 0.3)) for j in range(details[0])]
                tasks.append(group.create_task(asyncio.sleep(0.7, "slept")))
            return [task.result() for task in tasks]
        case "race":
            how = {"try": work, "wait": stubborn, "abandon": abandoned}[details[1]]
            try:
                async with asyncio.timeout(details[0]):
                    return await how(key, 0, 25.0 if details[1] == "abandon" else 500.0)
            except TimeoutError:
                return "late"
        case "condition":
            box: list[str] = []

            async def fill() -> None:
                box.append(await work(key, *details))

            filling = asyncio.create_task(fill())
            await wait_condition(lambda: bool(box))
            await filling
            return box[0]
        case "condition or not":
            return await wait_condition(lambda: False, details[0], default="unmet")
        case "thread":
            return await in_thread(key)
        case "relapse":
            return await fails_once(key)
        case "slow":
            return await too_slow_at_first(key, *details)
    raise AssertionError(kind)


STEPS: Final = (
    "call", "call", "fragile", "sleep", "long sleep", "signal", "signal or not", "gather", "group", "race", "condition",
    "condition or not", "thread", "relapse", "slow",
)  # fmt: skip


def make_plan(chance: random.Random, *, relapses: bool) -> Plan:
    """Return the steps of one run."""
    plan: Plan = []
    for position in range(chance.randint(1, 7)):
        key = str(position)
        kind = chance.choice(STEPS)
        match kind:
            case "call" | "condition":
                plan.append([kind, key, chance.choice((0, 0, 1, 3)), chance.choice((0.0, 0.1, 2.0, 8.0))])
            case "fragile":
                plan.append([kind, key, chance.choice((0, 1, 2, 5))])
            case "sleep":
                plan.append([kind, key, chance.choice((0.1, 0.7, 3.0))])
            case "long sleep":
                plan.append(["sleep", key, chance.choice((6.0, 20.0, 45.0))])
            case "signal or not" | "condition or not":
                plan.append([kind, key, chance.choice((0.5, 4.0, 15.0))])
            case "gather" | "group":
                plan.append([kind, key, chance.randint(2, 4)])
            case "race":
                plan.append(
                    [kind, key, chance.choice((0.5, 3.0, 12.0)), chance.choice(("try", "wait", "abandon"))]
                )
            case "slow":
                plan.append([kind, key, chance.randint(0, 2)])
            case "relapse" if not relapses:
                plan.append(["thread", key])
            case _:
                plan.append([kind, key])
    return plan


def signals_of(plan: Plan) -> int:
    """Return how many signals the plan may take."""
    return sum(step[0] in ("signal", "signal or not") for step in plan)


def complaint(plan: Plan, result: object) -> str | None:
    """Say why `result` cannot come of `plan`, None if it can: the model."""
    if not isinstance(result, list) or len(result) != len(plan):
        return f"{result!r} is not one value per step"
    received = 0
    for (kind, key, *details), value in zip(plan, result, strict=True):
        allowed: list[Any]
        match kind:
            case "sleep":
                allowed = ["slept"]
            case "signal":
                allowed = [received]
                received += 1
            case "signal or not":
                allowed = [None, received]
                received += value is not None
            case "gather":
                allowed = [[f"{key}.{j}" for j in range(details[0])]]
            case "group":
                allowed = [[*(f"{key}.{j}" for j in range(details[0])), "slept"]]
            case "race":
                allowed = ["late", key] if details[1] == "abandon" else ["late"]
            case "condition or not":
                allowed = ["unmet"]
            case "fragile":
                allowed = ["gave up"] if details[0] >= 3 else [key, "gave up"]
            case _:
                allowed = [key]
        if value not in allowed:
            return f"step {kind} {key} gave {value!r}, not one of {allowed}"
    return None
