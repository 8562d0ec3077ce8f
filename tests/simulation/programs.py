"""What runs: workflows that do as their plan says, plans drawn from a seed, and a model of what must come of a plan."""

from __future__ import annotations

import asyncio
import random
from typing import Any, Final

from durable import (
    Activity,
    Signal,
    WorkflowFailedError,
    as_completed,
    continue_as_new,
    note,
    now,
    patched,
    saga,
    uuid4,
    wait_answer,
    wait_condition,
    workflow,
)
from durable import random as chance_of_run
from tests.simulation import patterns, stumbling
from tests.simulation.activities import (
    ELSEWHERE,
    LARGE,
    abandoned,
    beats,
    book,
    by_token,
    fails_once,
    fragile,
    in_thread,
    large,
    patient,
    reach,
    refuse,
    shaped,
    stubborn,
    this_node,
    too_slow_at_first,
    work,
)

Plan = list[list[Any]]
LIFE: Final = 1000  # what is sent tells, above this, for which life of a run it was meant
number: Final = Signal("number", int)
never: Final = Signal("never", int)


async def _perform(plan: Plan) -> list[Any]:
    values = []
    try:
        for position, (kind, *details) in enumerate(plan):
            reach(kind)
            if kind == "again":
                continue_as_new(plan[position + 1 :])
            values.append(await perform_step(kind, *details))
    except asyncio.CancelledError:
        await work("cleanup", 0, 0.1)
        await stumbling.trip("guard")
        raise
    return values


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


@workflow
async def fails(plan: Plan) -> None:
    """Do what the plan says, and fail: what was booked is undone."""
    await _perform(plan)
    await refuse("the end")


@workflow
async def left_alone(plan: Plan) -> list[Any]:
    """A child that nobody waits for and that outlives its parent (I16)."""
    return await _perform(plan)


WORKFLOWS: Final = (life, short_life, waits_for_ever, fails, left_alone)


async def perform_step(kind: str, key: str, *details: Any) -> Any:
    """Do one step of a plan, and return what came of it."""
    if kind in patterns.PATTERNS:
        return await patterns.run(kind, key, *details)
    if kind in CHILDREN:
        return await _child(kind, *details)
    if kind == stumbling.KIND:
        return await stumbling.stumble(key, *details)
    there = _elsewhere if kind.startswith(REMOTE) else _here
    match kind.removeprefix(REMOTE):
        case "call":
            return await there(work)(key, *details)
        case "fragile":
            try:
                return await there(fragile)(key, *details)
            except Exception:
                return "gave up"
        case "sleep":
            return await asyncio.sleep(details[0], "slept")
        case "signal":
            return await number.wait()
        case "signal or not":
            return await number.wait(details[0], default=None)
        case "gather":
            return await asyncio.gather(
                *(there(work)(f"{key}.{j}", j % 2, 0.1 * j) for j in range(details[0]))
            )
        case "group":
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(work(f"{key}.{j}", 0, 0.3)) for j in range(details[0])]
                tasks.append(group.create_task(asyncio.sleep(0.7, "slept")))
            return [task.result() for task in tasks]
        case "race":
            how = {"try": work, "wait": stubborn, "abandon": abandoned}[details[1]]
            try:
                async with asyncio.timeout(details[0]):
                    return await there(how)(key, 0, 25.0 if details[1] == "abandon" else 500.0)
            except TimeoutError:
                return "late"
        case "condition":
            return await _condition(key, *details)
        case "condition or not":
            return await wait_condition(lambda: False, details[0], default="unmet")
        case "thread":
            return await there(in_thread)(key)
        case "relapse":
            return await fails_once(key)
        case "late relapse":
            failing = asyncio.create_task(fails_once(key))
            failing.add_done_callback(
                lambda task: task.cancelled() or task.exception()
            )  # if we are cancelled first
            await asyncio.sleep(details[0])
            return await failing
        case "slow":
            return await there(too_slow_at_first)(key, *details)
        case "beats":
            return await there(beats)(key, *details)
        case "token":
            return await by_token(key)
        case "patient":
            return await there(patient)(key)
        case "shape":
            value = await shaped(key)
            return f"{value['key']} {type(value['shape']).__name__}"
        case "large":
            return len(await large(key))
        case "first":
            return await _first(key)
        case "chance":
            drawn = [chance_of_run(), str(uuid4()), now().isoformat()]
            return await work(key, 0, 0.0) if await shaped(str(drawn)) else None
        case "patch":
            return await _patch(key)
        case "ask":
            return await wait_answer(f"ask{key}", "well?", details[0], default="unanswered")
        case "saga":
            return await _saga(key, *details)
        case "book":
            return await book(f"/{key}", *details)
    raise AssertionError(kind)


def _here(activity: Activity[..., Any]) -> Activity[..., Any]:
    return activity


def _elsewhere(activity: Activity[..., Any]) -> Activity[..., Any]:
    """Have whoever serves that queue perform it."""
    return activity.options(task_queue=ELSEWHERE)


async def _child(kind: str, plan: Plan, *details: Any) -> Any:
    match kind:
        case "child":
            return await life(plan)
        case "failing child":
            try:
                await fails(plan)
            except WorkflowFailedError as error:
                return type(error.__cause__).__name__
        case "late child":
            try:
                async with asyncio.timeout(details[0]):
                    await waits_for_ever(plan)
            except TimeoutError:
                return "late"
        case "child left":
            await waits_for_ever.start(plan)
            return "left"
        case "child left alone":
            await left_alone.options(on_parent_close="abandon").start(plan)
            return "left"
    raise AssertionError(kind)


async def _condition(key: str, *details: Any) -> str:
    box: list[str] = []

    async def fill() -> None:
        box.append(await work(key, *details))

    filling = asyncio.create_task(fill())
    await wait_condition(lambda: bool(box))
    await filling
    return box[0]


async def _first(key: str) -> str:
    """Take whichever is done first, and cancel the other."""
    both = [asyncio.create_task(work(f"{key}.{j}", 0, 0.3 * j)) for j in range(2)]
    for done in as_completed(both):
        await done
        break
    for task in both:
        task.cancel()
    await asyncio.gather(*both, return_exceptions=True)
    return "first"


async def _patch(key: str) -> str:
    """Code that was changed: what the node is on decides which of its versions this is."""
    is_new = this_node().code == 2 and patched(f"change {key}")
    await work(f"{key}.{'new' if is_new else 'old'}", 0, 0.5)
    return "patched"


async def _saga(key: str, steps: int, failing: int, undo_failures: int) -> Any:
    try:
        async with saga() as scope:
            for step in range(steps):
                if step == failing:
                    await refuse(key)
                await book(f"{key}/{step}", undo_failures)
        note(f"saga {key}", "done")
        return "done"
    except ValueError:
        return scope.compensated


CHILDREN: Final = ("child", "failing child", "late child", "child left", "child left alone")
REMOTE: Final = "remote "
STEPS: Final = (
    "call", "call", "fragile", "sleep", "long sleep", "signal", "signal or not", "gather", "group", "race", "condition",
    "condition or not", "thread", "relapse", "late relapse", "slow", "beats", "token", "patient", "shape", "large", "first", "chance", "ask", "saga",
    "book", "again", "machine", *patterns.PATTERNS, "child", *CHILDREN,
    *(f"remote {kind}" for kind in ("call", "fragile", "gather", "race", "thread", "slow", "beats", "patient")),
)  # fmt: skip


# What programs, errands and the operator come to: all of it is reached by five hundred seeds.
FEATURES: Final = frozenset(
    {
        *(step for step in STEPS if step != "long sleep"),
        *(f"child {how}" for how in ("life Completed", "life Cancelled", "fails Failed", "fails Cancelled")),
        *(f"child {how}" for how in ("waits_for_ever Cancelled", "left_alone Completed")),
        *(f"operator: {what}" for what in ("run", "queue", "worker", "look", "prune")),
        *(f"stumble {way}" for way in stumbling.WAYS),
        *(
            f"parked by {error}Error"
            for error in ("WorkflowGuard", "NonDeterminism", "Livelock", "Undecodable")
        ),
        "answered",
        "cancelled while it compensated",
        "children of a refused turn",
        "completed by token",
        "deleted",
        "driven by a script",
        "failed by token",
        "hurried",
        "new",
        "parked",
        "patch",
        "result of a run that parks",
        "resumed by a person",
        "retried",
        "script ended",
        "sealed",
        "started by a worker's process",
        "stumble",
    }
)
# What nobody sends to a child, nor hurries on in one; and a machine's failure would be the parent's.
NOBODY_SENDS: Final = ("signal", "signal or not", "ask", "patient", "remote patient", "machine")
TIMED_ELSEWHERE: Final = ("remote slow", "remote beats")  # whose limits any worker sees to, by its own clock
DEPTH_MAX: Final = 3  # children have children, but not for ever


class Plans:
    """Draws what runs do, from `kinds` of steps. `changes`: code is deployed on the way. `clocks_agree`: what is late is so for everybody.

    `stumbles` draws where bad code goes wrong, if there is any: from a source of its own, by which other worlds stay what they were.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        kinds: tuple[str, ...],
        changes: bool,
        clocks_agree: bool,
        stumbles: random.Random | None,
    ) -> None:
        self._chance = chance
        self._kinds = kinds
        self._changes = changes
        self._clocks_agree = clocks_agree
        self._stumbles = stumbles

    def draw(self, *, relapses: bool, depth: int = 1, first: int = 0) -> Plan:
        """Return the steps of a run, of a child if `depth` is above 1; `first` is the number of the first one."""
        chance = self._chance
        plan: Plan = []
        for position in range(chance.randint(1, 5 if depth == 1 else 3)):
            is_patch = self._changes and relapses and depth == 1 and chance.random() < 0.5
            kind = "patch" if is_patch else chance.choice(self._kinds)
            if kind.endswith("relapse") and not relapses:
                kind = "thread"
            if (depth > 1 and kind in NOBODY_SENDS) or (not self._clocks_agree and kind in TIMED_ELSEWHERE):
                kind = "call"
            key = str(first + position)
            plan.append(self._child(kind, key, depth + 1) if kind in CHILDREN else _drawn(kind, key, chance))
        if any(step[0] == "book" for step in plan):  # what is to be undone would be forgotten: refused
            plan = [step for step in plan if step[0] != "again"]
        if self._stumbles is not None:
            self._add_stumbles(plan, self._stumbles, depth)
        return plan

    @staticmethod
    def _add_stumbles(plan: Plan, chance: random.Random, depth: int) -> None:
        for number in range(chance.choice((0, 1, 1, 2)) if depth == 1 else chance.choice((0, 0, 1))):
            plan.insert(chance.randint(0, len(plan)), stumbling.drawn(f"t{number}", chance))

    def _child(self, kind: str, key: str, depth: int) -> list[Any]:
        if depth > DEPTH_MAX:
            return ["thread", key]
        plan = self.draw(relapses=kind == "child", depth=depth)
        if kind == "failing child":  # there is something to undo
            plan = [["book", "x", 0], *(step for step in plan if step[0] != "again")]
        return [kind, key, plan, *([self._chance.choice((0.5, 3.0, 12.0))] if kind == "late child" else [])]


def _drawn(kind: str, key: str, chance: random.Random) -> list[Any]:
    if kind in patterns.PATTERNS:
        return [kind, key, patterns.make_spec(kind, chance)]
    match kind.removeprefix(REMOTE):
        case "call" | "condition":
            return [kind, key, chance.choice((0, 0, 1, 3)), chance.choice((0.0, 0.1, 2.0, 8.0))]
        case "fragile":
            return [kind, key, chance.choice((0, 1, 2, 5))]
        case "sleep":
            return [kind, key, chance.choice((0.1, 0.7, 3.0))]
        case "long sleep":
            return ["sleep", key, chance.choice((6.0, 20.0, 45.0))]
        case "signal or not" | "condition or not":
            return [kind, key, chance.choice((0.5, 4.0, 15.0))]
        case "gather" | "group":
            return [kind, key, chance.randint(2, 4)]
        case "race":
            return [kind, key, chance.choice((0.5, 3.0, 12.0)), chance.choice(("try", "wait", "abandon"))]
        case "late relapse":
            return [kind, key, chance.choice((0.2, 2.0))]
        case "slow":
            return [kind, key, chance.randint(0, 2)]
        case "beats":
            return [kind, key, chance.choice((2, 6)), chance.choice((0, 0, 1))]
        case "ask":
            return [kind, key, chance.choice((3.0, 30.0))]
        case "saga":
            steps = chance.randint(1, 4)
            return [kind, key, steps, chance.choice((-1, chance.randrange(steps))), chance.choice((0, 1))]
        case "book":
            return [kind, key, chance.choice((0, 1))]
    return [kind, key]


def signals_of(plan: Plan) -> int:
    """Return how many signals the plan may take."""
    return sum(step[0] in ("signal", "signal or not") for step in plan)


def complaint(plan: Plan, result: object, *, is_lossy: bool = False) -> str | None:
    """Say why `result` cannot come of `plan`, None if it can: the model. `is_lossy`: some signals may never have come."""
    for position in reversed(range(len(plan))):
        if plan[position][0] == "again":  # only what came after it is told, and it may have eaten signals
            plan, is_lossy = plan[position + 1 :], True
            break
    if not isinstance(result, list) or len(result) != len(plan):
        return f"{result!r} is not one value per step"
    received = 0
    for (kind, key, *details), value in zip(plan, result, strict=True):
        if kind == "child":
            if (text := complaint(details[0], value)) is not None:
                return f"step {kind} {key}: {text}"
            continue
        allowed = allowed_values(kind, key, details, received)
        if kind in ("signal", "signal or not"):
            value = value % LIFE if isinstance(value, int) else value
            if is_lossy and isinstance(value, int) and value >= received:
                allowed, received = [value], value
            received += value is not None
        if value not in allowed:
            return f"step {kind} {key} gave {value!r}, not one of {allowed}"
    return None


def allowed_values(kind: str, key: str, details: list[Any], received: int) -> list[Any]:
    """Return what may come of one step after so many signals."""
    if kind in patterns.PATTERNS:
        return [patterns.expected(kind, details[0])]
    if kind == stumbling.KIND:
        return stumbling.allowed(key, details)
    match kind.removeprefix(REMOTE):
        case "sleep":
            return ["slept"]
        case "signal":
            return [received]
        case "signal or not":
            return [None, received]
        case "gather":
            return [[f"{key}.{j}" for j in range(details[0])]]
        case "group":
            return [[*(f"{key}.{j}" for j in range(details[0])), "slept"]]
        case "race":
            return ["late", key] if details[1] == "abandon" else ["late"]
        case "condition or not":
            return ["unmet"]
        case "fragile":
            return ["gave up"] if details[0] >= 3 else [key, "gave up"]
        case "failing child":
            return ["ValueError"]
        case "late child":
            return ["late"]
        case "child left" | "child left alone":
            return ["left"]
        case "token":
            return [f"{key}!"]
        case "shape":
            return [f"{key} list"]
        case "large":
            return [LARGE // len(key) * len(key)]
        case "first" | "patch":
            return [{"first": "first", "patch": "patched"}[kind]]
        case "ask":
            return ["unanswered", f"answer {key}"]
        case "saga":
            _, failing, _ = details
            return ["done"] if failing < 0 else [["book"] * failing]
        case "book":
            return [f"/{key}"]
    return [key]
