"""Runs that are told things by handlers: a workflow class, one whose handler breaks it, a function that registers what listens; and queries.

In some worlds a part of the runs are such. What they are is drawn from a source of its own, by which all other worlds stay what they were.
"""

from __future__ import annotations

import asyncio
import random
from itertools import product
from typing import Any, Final

from durable import (
    ActivityTimeoutError,
    WorkflowStateError,
    activity,
    all_handlers_finished,
    child,
    continue_as_new,
    note,
    on_query,
    on_signal,
    on_update,
    uuid4,
    wait_condition,
    workflow,
    workflow_of,
)
from durable.errors import RunNotFoundError
from tests.simulation import patterns, programs
from tests.simulation.activities import (
    ELSEWHERE,
    body,
    book,
    fails_once,
    persistent,
    reach,
    refuse,
    this_node,
    work,
)
from tests.simulation.programs import LIFE, Plan, Plans

SHARE_OF_WORLDS: Final = 0.3
SHARE_OF_RUNS: Final = 0.6
SHARE_OF_OWN_STEPS: Final = 0.3
SIDE_BY_SIDE: Final = 3
LETTERS: Final = ("number", "number", "number", "slowly", "slowly", "relapses")  # what a run is told by
BREAKING: Final = ("break", "break later", "break by activity")
CLASS_CHILDREN: Final = ("class child", "told child")
OWN_STEPS: Final = (*CLASS_CHILDREN, "timed elsewhere", "moves inside")
NOT_HERE: Final = ("signal", "signal or not", "again")  # a signal that has a handler is not waited for
FEATURES: Final = frozenset(
    {
        *OWN_STEPS,
        *BREAKING,
        *LETTERS,
        "again of a listener",
        "asked",
        "asked for too much",
        "call answered",
        "call failed",
        "call given up",
        "call refused",
        "called",
        "child Heeds Cancelled",
        "child Heeds Completed",
        "deaf",
        "finished",
        "listen",
        "told",
        "told before the first step",
        "told too late to be read",
    }
)


class Listening:
    """What the handlers of one run were told, and a plan some of whose steps wait for that."""

    def __init__(
        self,
        plan: Plan,
        told: list[list[Any]] | None = None,
        part: int = 0,
        called: list[int] | None = None,
    ) -> None:
        self.plan = plan
        self.called = (
            called or []
        )  # what it was called with, by updates that were not refused and did not fail
        # [signal, value, whether the first step was done, in which generation], in the order of handlers' first steps
        self.told = told or []
        self.part = part
        self.slow: list[int] = []  # of this generation, whose handler has come to its end
        self.has_begun = False

    async def run(self) -> dict[str, Any]:
        self.has_begun = True
        values = await self.performed()
        return {
            "values": values,
            "told": self.told,
            "slow": self.slow,
            "part": self.part,
            "called": self.called,
        }

    async def performed(self) -> list[Any]:
        values = []
        try:
            for position, (kind, key, *details) in enumerate(self.plan):
                if kind == "again":
                    reach("again of a listener")
                    continue_as_new(self.plan[position + 1 :], self.told, self.part + 1, self.called)
                reach(kind)
                values.append(await self._step(kind, key, *details))
        except asyncio.CancelledError:
            await work("cleanup", 0, 0.1)
            raise
        return values

    async def _step(self, kind: str, key: str, *details: Any) -> Any:
        match kind:
            case "listen":
                on_signal("number", self.number)
                on_signal("slowly", self.slowly)
                on_signal("relapses", self.relapses)
                on_update("call", self.call, self.is_wanted)
            case "told":
                await wait_condition(lambda: len(self.told) >= details[0])
            case "finished":
                await wait_condition(all_handlers_finished)
            case "class child":
                return await child(Heeds, details[0])
            case "told child":
                handle = await workflow_of(Heeds).start(details[0])
                await tell(handle.run_id, details[1])
                return await handle.result()
            case "timed elsewhere":
                return await asyncio.gather(*(_timed(f"{key}.{j}", *details) for j in range(SIDE_BY_SIDE)))
            case "moves inside":
                return await moves(str(uuid4()), details[0])
            case _:
                return await programs.perform_step(kind, key, *details)
        return kind

    def _hear(self, signal: str, value: int) -> None:
        reach(signal)
        self.told.append([signal, value, self.has_begun, self.part])

    @workflow.signal
    def number(self, value: int) -> None:
        self._hear("number", value)

    @workflow.signal
    async def slowly(self, value: int) -> None:
        self._hear("slowly", value)
        await work(f"slowly{value % LIFE}", value % 2, 0.3)
        await asyncio.sleep(0.4)
        self.slow.append(value)

    @workflow.signal
    async def relapses(self, value: int) -> None:
        """Fail once, some time after it is on record what failed: what was read in between is read again."""
        self._hear("relapses", value)
        try:
            await fails_once(f"r{value % LIFE}")
        except OSError:
            await asyncio.sleep(1.0)
            raise

    @workflow.update
    async def call(self, value: int) -> list[int]:
        reach("called")
        if value % 5 == 4:
            raise ValueError(value)
        if value % 2:
            await work(f"call{value}", value % 4 // 2, 0.2)
        self.called.append(value)
        return [self.part, len(self.called)]

    @call.validator
    def is_wanted(self, value: int) -> None:
        if value % 7 == 6 or value in self.called:
            raise KeyError(value)

    @workflow.query
    def progress(self) -> list[list[Any]]:
        return self.told

    @workflow.query
    def meddles(self) -> str:
        note("meddled", "done")
        return "done"


@workflow(retries=100, retry_delay=0.5)
class Heeds(Listening):
    """A plan, and handlers from before its first step on."""


@workflow
class Breaks(Listening):
    """A run that one of its handlers breaks: what was booked is undone, whether it heeds that or not."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.is_broken = False

    async def run(self) -> dict[str, Any]:
        self.has_begun = True
        is_deaf = self.plan[0][0] == "deaf"
        try:
            await book("x", 0)
            await book("y", 1)
            for kind, key, *details in self.plan[is_deaf:]:
                await self._step(kind, key, *details)
            await wait_condition(lambda: False)
        except asyncio.CancelledError:
            if not (self.is_broken and is_deaf):
                raise
            reach("deaf")
        return {}

    @workflow.signal(name="break")
    def breaks(self, value: int) -> None:
        reach("break")
        self._break()

    @workflow.signal(name="break later")
    async def breaks_later(self, value: int) -> None:
        reach("break later")
        await work("breaking", 0, 0.2)
        self._break()

    @workflow.signal(name="break by activity")
    async def breaks_by_activity(self, value: int) -> None:
        reach("break by activity")
        try:
            await refuse("broken")
        except ValueError:
            self.is_broken = True  # from now on, and no sooner: a cancellation is always heeded
            raise

    def _break(self) -> None:
        self.is_broken = True
        raise ValueError("broken")


@workflow(retries=100, retry_delay=0.5)
async def hears(
    plan: Plan, told: list[list[Any]] | None = None, part: int = 0, called: list[int] | None = None
) -> dict[str, Any]:
    """The same as a function: it listens from some step on, and gets what came before."""
    listening = Listening(plan, told, part, called)
    on_query("progress", listening.progress)
    on_query("meddles", listening.meddles)
    return await listening.run()


async def _timed(key: str, begins_within: float) -> str:
    """One of several that have to begin in time, where there may be room for one alone."""
    timed = work.options(task_queue=ELSEWHERE, schedule_to_start_timeout=begins_within)
    try:
        return await timed(key, 0, 0.4)
    except ActivityTimeoutError:
        return "late"


HEEDS, BREAKS = workflow_of(Heeds), workflow_of(Breaks)
WORKFLOWS: Final = (HEEDS, BREAKS, hears)


@activity(retry=persistent)
async def tell(run_id: str, count: int) -> None:
    """Send a child what it waits for, as somebody outside would."""
    with body():
        for value in range(count):
            try:
                await this_node().client.signal(
                    run_id, LETTERS[value % 5], value, id=f"{run_id}/told/{value}"
                )
            except (WorkflowStateError, RunNotFoundError):
                return


@activity(retry=persistent)
async def moves(machine_id: str, events: list[str]) -> list[str]:
    """Move a machine from within an activity, which fails afterwards: tried again, it finds its moves made."""
    with body() as told:
        machine = patterns.machine_here(machine_id)
        states = [await machine.transition(event) for event in events]
        if told.attempt == 1:
            raise OSError(machine_id)
        return [*states, *(move.to_state for move in await machine.history())]


# ─ what is drawn ──


class Listeners:
    """Which of a seed's runs listen."""

    def __init__(self, seed: int) -> None:
        chance = random.Random(f"listeners {seed}")
        self.is_on = chance.random() < SHARE_OF_WORLDS
        self._seed = seed

    def calls(self, position: int) -> int:
        """Return how often a run is called into that listens."""
        return random.Random(f"calls {self._seed} {position}").choice((0, 0, 2, 5, 9))

    def chance(self, position: int) -> random.Random | None:
        """Return what a run is drawn from, if it listens."""
        chance = random.Random(f"listener {self._seed} {position}")
        return chance if self.is_on and chance.random() < SHARE_OF_RUNS else None


def drawn(
    chance: random.Random, kinds: tuple[str, ...], *, clocks_agree: bool
) -> tuple[Any, Plan, list[str]]:
    """Return a workflow, its plan, and the names of the signals that it is told, in order."""
    one = chance.choice((HEEDS, HEEDS, hears, hears, BREAKS))
    letters = [chance.choice(LETTERS) for _ in range(chance.choice((1, 3, 6, 12)))]
    plans = Plans(
        chance,
        kinds=tuple(kind for kind in kinds if kind not in NOT_HERE),
        changes=False,
        clocks_agree=clocks_agree,
        stumbles=None,
    )
    if one is BREAKS:
        plan = [["deaf", "deaf"]] * (chance.random() < 0.5) + _steps(
            plans, chance, 0, is_whole=True, relapses=False
        )[:2]
        told = [name for name in letters if name != "relapses"]
        return one, [*plan, ["told", "all", len(told)]], [*told, chance.choice(BREAKING)]
    parts = chance.choice((1, 1, 2, 3))
    plan, due = [], 0
    for part in range(parts):
        if part:
            plan.append(["again", f"again{part}"])
        steps = _steps(plans, chance, 10 * part, is_whole=parts == 1)
        listens_at = -1
        if one is hears:
            listens_at = chance.randint(0, len(steps))
            steps.insert(listens_at, ["listen", f"listen{part}"])
        if listens_at >= 0 and part < parts - 1 and chance.random() < 0.5:
            plan.extend(steps[: listens_at + 1])  # what was sent meanwhile is read by the next generation
            continue
        for _ in range(chance.choice((0, 1, 2))):
            due = chance.randint(due, len(letters))
            steps.append(["told", f"told{due}", due])
        if part == parts - 1 and chance.random() < 0.7:
            steps.append(["told", "all", len(letters)])
        if chance.random() < 0.5:
            steps.append(["finished", f"finished{part}"])
        plan.extend(steps)
    return one, plan, letters


def _steps(plans: Plans, chance: random.Random, first: int, *, is_whole: bool, relapses: bool = True) -> Plan:
    """Return some steps. What is booked is to be undone with the whole run, so that no run that continues as new books anything."""
    steps = plans.draw(relapses=relapses, depth=2, first=first)
    return [
        _own_step(step[1], plans, chance) if chance.random() < SHARE_OF_OWN_STEPS else step
        for step in steps
        if is_whole or step[0] != "book"
    ]


def _own_step(key: str, plans: Plans, chance: random.Random) -> list[Any]:
    kind = chance.choice(OWN_STEPS)
    match kind:
        case "class child":
            return [kind, key, plans.draw(relapses=True, depth=3)]
        case "told child":
            count = chance.randint(1, 5)
            return [kind, key, [*plans.draw(relapses=True, depth=3), ["told", "all", count]], count]
        case "timed elsewhere":
            return [kind, key, chance.choice((0.3, 0.7, 1.5, 5.0))]
        case _:
            return [kind, key, ["go"] * chance.randint(1, 4)]


# ─ the model ──


def complaint(plan: Plan, result: Any, *, is_lossy: bool = False) -> str | None:
    """Say why `result` cannot come of `plan`, None if it can."""
    wanted = max((step[2] for step in plan if step[0] == "told"), default=0)
    is_ordered = all(
        step[0] != "listen" for step in plan
    )  # else each signal gets what came before, one after the other
    for position in reversed(range(len(plan))):
        if plan[position][0] == "again":
            plan = plan[position + 1 :]
            break
    if not isinstance(result, dict) or len(result["values"]) != len(plan):
        return f"{result!r} is not one value per step"
    for (kind, key, *details), value in zip(plan, result["values"], strict=True):
        text = None
        if kind in ("class child", "told child"):
            text = complaint(details[0], value)
        elif kind == "child":
            text = programs.complaint(details[0], value)
        elif value not in (allowed := _allowed(kind, key, details)):
            text = f"{value!r} is not one of {allowed}"
        if text is not None:
            return f"step {kind} {key}: {text}"
    if plan and plan[-1][0] == "finished":
        told = {v for signal, v, _, part in result["told"] if (signal, part) == ("slowly", result["part"])}
        if not told.issubset(result["slow"]):
            return f"of the handlers of {sorted(told)} only those of {result['slow']} were finished"
    return _complaint_of_told(result, 0 if is_lossy else wanted, is_ordered=is_ordered, is_lossy=is_lossy)


def _allowed(kind: str, key: str, details: list[Any]) -> list[Any]:
    match kind:
        case "listen" | "told" | "finished":
            return [kind]
        case "timed elsewhere":
            return [list(one) for one in product(*((f"{key}.{j}", "late") for j in range(SIDE_BY_SIDE)))]
        case "moves inside":
            states = ["busy", "idle"] * len(details[0])
            return [states[: len(details[0])] * 2]
        case _:
            return programs.allowed_values(kind, key, details, 0)


def _complaint_of_told(result: Any, wanted: int, *, is_ordered: bool, is_lossy: bool) -> str | None:
    told = [(signal, value % LIFE) for signal, value, _, _ in result["told"]]
    values = [value for _, value in told]
    if len(values) < wanted:
        return f"handlers were told {told}, and the run went on though it waits for {wanted}"
    if is_ordered and values != sorted(values):
        return f"handlers were told {told}, which is not the order in which that was sent"
    if any(of_one != sorted(set(of_one)) for of_one in _by_signal(told).values()):
        return f"handlers were told {told}: each once, in order, is what was sent"
    if not is_lossy and sorted(values) != list(range(len(values))):
        return f"handlers were told {told}: some was sent and is left out"
    for part in range(result["part"] + 1):
        begun = [has_begun for _, _, has_begun, of in result["told"] if of == part]
        if begun != sorted(begun):
            return f"handlers were told {result['told']}: what came first after what came later"
    if not {value for _, value, _, _ in result["told"]}.issuperset(result["slow"]):
        return f"handlers ended with {result['slow']} and were told {told}"
    return None


def complaint_of_answer(answer: list[list[Any]], former: list[list[Any]]) -> str | None:
    """Say why a run cannot answer so after it has answered as it `former`ly did: what handlers were told stays in its order."""
    now, before = (_by_signal([(signal, value) for signal, value, *_ in told]) for told in (answer, former))
    for signal in now.keys() & before.keys():
        shorter = min(len(now[signal]), len(before[signal]))  # a retry begins from where the failure was
        if now[signal][:shorter] != before[signal][:shorter]:
            return f"it was told {now[signal]} by {signal}, and before that {before[signal]}"
    return None


def _by_signal(told: list[tuple[str, int]]) -> dict[str, list[int]]:
    return {name: [value for signal, value in told if signal == name] for name, _ in told}
