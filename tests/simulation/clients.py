"""Clients: each run has one errand that starts it, talks to it and waits for it, repeating whatever got no answer.

An errand has two parts, each in a process of its own that may die: the *main* one starts the run, sends what it waits for and awaits its
end; the *helper* competes, chats, answers, and cancels. What was acknowledged is kept by the errand, outside of both; so a part
whose process died is begun again elsewhere, and goes on.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

from durable import (
    Client,
    DefinitionError,
    PlatformFault,
    Run,
    RunCancelledError,
    RunConflictError,
    RunHandle,
    RunNotFoundError,
    RunParkedError,
    RunTerminatedError,
    StoreError,
    UpdateFailedError,
    UpdateRejectedError,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from tests.simulation import listening, programs
from tests.simulation.activities import this_node
from tests.simulation.programs import LIFE, Plan, Plans, complaint, number, signals_of

if TYPE_CHECKING:
    from tests.simulation.node import Node
    from tests.simulation.simulation import Simulation

T = TypeVar("T")
SECOND_LIFE_SECONDS: Final = (
    30.0  # a run that is tried again is cancelled after so long: what it waits for may be gone
)
RESUME_SECONDS: Final = 10.0
RESUME_SHARE: Final = 0.2  # an operator resumes what is parked, whether good code is there or not


class Errand:
    """One run, from its start to its end, and what was acknowledged on the way."""

    def __init__(self, simulation: Simulation, position: int, steps: int | None) -> None:
        self.simulation = simulation
        self.run_id = f"run{position}"
        self.chance = chance = random.Random(f"errand {simulation.seed} {position}")
        self.workflow: Any = chance.choice(simulation.choices.workflows)
        is_patient = self.workflow is programs.life
        plans = Plans(
            chance,
            kinds=simulation.choices.steps,
            changes=simulation.is_deploying,
            clocks_agree=not simulation.faults.has_odd_clocks,
            stumbles=simulation.stumbling.plans(position),
        )
        self.plan: Plan = plans.draw(relapses=is_patient)[:steps]
        endings = simulation.choices.endings
        if self.workflow is programs.fails:  # there is something to undo, and a cancellation in its way
            self.plan = [["book", "x", 0], ["book", "y", 1], *(s for s in self.plan if s[0] != "again")]
            endings = (None, "cancel", "cancel", "terminate")
        self.begins_at = chance.random() * chance.choice((0.1, 5.0, 30.0))
        self.starts_at_worker = chance.random() < 0.3
        self.is_contested = chance.random() < 0.3
        self.again = chance.choice(simulation.choices.again)
        self.before: Run | None = None  # as it was closed, before it is begun again
        self.life = 0
        self.is_started = False
        self.tried_again = False
        self.is_done = False
        self.tried: set[str] = set()  # what may still be on its way to the run, whichever life it is in
        ending = chance.choice(endings)
        self.letters = ["number"] * signals_of(self.plan)  # the signals it is told by, in order
        self.listens = (listener := simulation.listeners.chance(position)) is not None
        if listener is not None:
            self.workflow, plan, self.letters = listening.drawn(
                listener, simulation.choices.steps, clocks_agree=not simulation.faults.has_odd_clocks
            )
            self.plan = plan[:steps]
        self.calls = 0  # into the run, in its first life
        if self.listens and self.workflow is not listening.BREAKS:
            self.calls = simulation.listeners.calls(position)
        self.told_of_calls: dict[int, str] = {}  # what their callers were told
        self.answer: list[list[Any]] = []  # to the last query of this life
        self._begin_life(ending)

    def _begin_life(self, ending: str | None) -> None:
        chance = self.chance
        self.life += 1
        self.ending = ending
        self.ends_at = self.begins_at + chance.choice((0.0, 0.3, 2.0, 8.0, 20.0)) * chance.random()
        self.chatter = chance.choice((0, 0, 3, 20, 60))
        self.sender = self.life  # part of the ids of messages
        self.signals_stored = 0
        self.chatter_stored = 0
        self.is_lossy = False  # of messages, for what was unread when it was ended is gone
        self.acknowledged: set[str] = set()  # "cancel", "terminate"
        self.pks: list[int] = []
        self.generation = 0
        self.outcome: str | None = None
        self.result: Any = None
        self.answer = []

    @property
    def is_endless(self) -> bool:
        return self.workflow is programs.waits_for_ever and self.ending is None

    # ─ the main part ──

    async def run(self, client: Client) -> None:
        """From wherever it is to the end of its last life."""
        while True:
            await self._live(client)
            if self.again is None or self.simulation.faults.is_over:
                break
            await self._begin_again(client, self.again)
        self.is_done = True

    async def _live(self, client: Client) -> None:
        await self._sleep_until(self.begins_at)
        if self.outcome is not None:
            return
        if self.starts_at_worker and not self.is_started:
            await self._start_at_worker()
        handle = await self._insist(lambda: self._start(client), "start")
        self.is_started = True
        sending = asyncio.create_task(self._send_signals(client))
        await self._await_end(client, handle)
        await sending  # what is on its way must not reach the next life
        if self.listens and self.outcome == "completed" and self.workflow is not listening.BREAKS:
            await self._insist(lambda: self._ask_at_the_end(client), "last query")
        for value in list(self.told_of_calls) if self.life == 1 else ():
            await self._call(client, value)
        self._judge()

    async def _sleep_until(self, instant: float) -> None:
        await asyncio.sleep(max(0.0, instant - self.simulation.loop.now))

    async def _start(self, client: Client) -> RunHandle[Any]:
        if (engine := this_node().engine) is None:
            handle = await client.start(self.workflow, self.plan, run_id=self.run_id)
        else:
            handle = await engine.start(
                self.workflow.definition, (self.plan,), {}, run_id=self.run_id, task_queue=None, drive=True
            )
            self.simulation.features["driven by a script"] += 1
            self.simulation.checker.check_driven(engine, handle)
        self.pks.append(handle._pk)
        return handle

    async def _start_at_worker(self) -> None:
        """Start it from within a process that is a worker, too, which then owns it from the beginning."""
        nodes = [place.node for place in self.simulation.machine.places if place.node is not None]
        node: Node = self.chance.choice(nodes)
        if node.is_dead or not node.has_begun:
            return
        starting = node.spawn(self._start_and_watch(node), f"starts {self.run_id}")
        for _ in range(30):
            await asyncio.sleep(0.1)
            if starting.done():
                return

    async def _start_and_watch(self, node: Node) -> None:
        try:
            handle = await self._start(node.client)
            self.is_started = True
            self.simulation.features["started by a worker's process"] += 1
            await handle.result()
        except (RunParkedError, PlatformFault):  # it has not ended
            return
        except (StoreError, RunNotFoundError):
            return
        except DefinitionError:  # the process ends, and its client is closed
            return
        except Exception:
            pass
        self.simulation.checker.check_answer(handle._pk, handle._generation)

    async def _send_signals(self, client: Client) -> None:
        life = self.life
        for value in range(self.signals_stored, len(self.letters)):
            await asyncio.sleep(self.chance.choice((0.0, 0.1, 1.0, 6.0)) * self.chance.random())
            letter = number if not self.listens else self.letters[value]
            if self.outcome is not None or not await self._send(client, letter, value) or self.life != life:
                return
            self.signals_stored = value + 1

    async def _send(self, client: Client, signal: Any, value: int) -> bool:
        name = getattr(signal, "name", signal)
        sent = self.of_life(value)
        life = self.life
        message_id = f"{self.run_id}/{self.sender}/{name}/{value}"

        async def send() -> bool:
            if self.life != life:
                return False
            try:
                await client.signal(self.run_id, signal, sent, id=message_id)
            except (WorkflowStateError, RunNotFoundError):
                return False
            return True

        return await self._insist(send, f"{name} {value}")

    async def _await_end(self, client: Client, handle: RunHandle[Any]) -> None:
        resumed_at = 0.0
        while (outcome := await self._insist(lambda: self._ended(handle), "result")) == "parked":
            self.simulation.features["parked"] += 1
            self.simulation.features[f"parked by {self.result}"] += 1
            if not self.simulation.may_park:
                self.simulation.violation(f"model: {self.run_id} {self.plan} is parked by {self.result}")
            await asyncio.sleep(1.0)
            now = self.simulation.loop.now
            is_hasty = self.simulation.stumbling.is_on and self.chance.random() < RESUME_SHARE
            if is_hasty or (self.simulation.faults.is_over and now - resumed_at > RESUME_SECONDS):
                resumed_at = now
                await self._insist(lambda: self._resume(client), "resume")
        self.outcome = outcome

    async def _resume(self, client: Client) -> None:
        try:
            await client.resume(self.run_id)
        except WorkflowStateError:
            pass  # it goes on by itself

    async def _ended(self, handle: RunHandle[Any]) -> str:
        try:
            self.result = await handle.result()
        except RunTerminatedError:
            return "terminated"
        except RunCancelledError:
            return "cancelled"
        except WorkflowTimeoutError:
            return "timed_out"
        except WorkflowFailedError as error:
            self.result = repr(error.__cause__)
            return "failed"
        except RunParkedError as error:
            self.result = error.reason.partition(":")[0]
            return "parked"
        except PlatformFault as error:
            self.result = type(error).__name__
            return "parked"
        return "completed"

    async def _begin_again(self, client: Client, how: str) -> None:
        """Give the closed run another life: start it anew, delete it first, or try again what went wrong."""
        if how == "retried" and self.outcome == "completed":
            self.again = None
            return
        if self.before is None:
            self.before = await self._insist(lambda: client.describe(self.run_id), "describe")
        former = (self.before.generation, self.before.created_at)

        async def do() -> None:
            try:
                run = await client.describe(self.run_id)
            except RunNotFoundError:
                run = None
            if run is not None and (run.generation, run.created_at) != former:
                return  # done before, though nobody told us
            if how == "deleted" and run is not None:
                self.simulation.checker.pruned.add(self.pks[0])
                await client.delete(self.run_id)
            if how == "retried":
                await client.retry(self.run_id)
            else:
                await client.start(self.workflow, self.plan, run_id=self.run_id, if_closed="new")

        self.tried_again = how == "retried"
        is_lossy = how == "retried" and self.outcome != "failed"
        await self._insist(do, how)
        self.simulation.features[how] += 1
        self.again = self.before = None
        self.is_started = False
        self.begins_at = self.simulation.loop.now
        sender = self.sender
        self._begin_life("cancel" if how == "retried" or self.workflow is programs.waits_for_ever else None)
        self.is_lossy = is_lossy
        if how == "retried":
            self.sender = sender  # what the kept journal holds must not come twice
            self.ends_at = self.begins_at + SECOND_LIFE_SECONDS
            self.chatter = 0

    # ─ the helper ──

    async def help(self, client: Client) -> None:
        """Whatever others do with the run, until its errand is done."""
        if self.is_contested and self.life == 1:
            await self._sleep_until(self.begins_at + self.chance.random() * 2)
            await self._contest(client)
        while not self.is_done:
            await self._sleep_until(self.begins_at)
            life = self.life
            async with asyncio.TaskGroup() as group:
                group.create_task(self._chat(client, life))
                group.create_task(self._end(client, life))
                group.create_task(self._answer_questions(client, life))
                group.create_task(self._hurry(client, life))
                if self.listens:
                    group.create_task(self._ask(client, life))
                if self.calls and life == 1:
                    group.create_task(self._call_again_and_again(client))
            while self.life == life and not self.is_done:  # noqa: ASYNC110
                await asyncio.sleep(0.5)

    async def _contest(self, client: Client) -> None:
        """Start the same again from elsewhere, which is no second run; and something else, which is an error."""
        if not self._is_open(1):
            return

        async def starting() -> None:
            pks = self.pks
            handle = await client.start(self.workflow, self.plan, run_id=self.run_id)
            pks.append(handle._pk)

        await self._insist(starting, "second start")
        if self.chance.random() < 0.5 or not self._is_open(1):
            return

        async def conflicting() -> None:
            try:
                await client.start(self.workflow, [["call", "other", 0, 0.0]], run_id=self.run_id)
            except RunConflictError:
                return
            self.simulation.violation(f"I10: a start of {self.run_id} with other input was not refused")

        await self._insist(conflicting, "conflicting start")

    def _is_open(self, life: int) -> bool:
        return self.life == life and self.outcome is None

    async def _chat(self, client: Client, life: int) -> None:
        """Send what nobody waits for: it is delivered all the same, at whatever moment it comes."""
        await self._until_started(life)
        for value in range(self.chatter_stored, self.chatter):
            await asyncio.sleep(self.chance.choice((0.0, 0.1, 0.3, 2.0)) * self.chance.random())
            if not self._is_open(life) or not await self._send(client, "chatter", value):
                return
            if self.life == life:
                self.chatter_stored = value + 1

    def of_life(self, value: int) -> int:
        """Return what is sent as number `value`: it may arrive in another life than it was meant for."""
        return self.sender * LIFE + value

    async def _until_started(self, life: int) -> None:
        while not self.is_started and self.life == life:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _answer_questions(self, client: Client, life: int) -> None:
        for kind, key, *_ in self.plan:
            is_answered = kind != "ask"
            while not is_answered and self._is_open(life):
                await asyncio.sleep(0.5 + self.chance.random())
                is_answered = await self._insist(lambda key=key: self._answer(client, key), "answer")

    async def _hurry(self, client: Client, life: int) -> None:
        """Not want to wait for attempts that are far away, again and again: they may fail again with their worker."""
        if not any(kind.endswith("patient") for kind, *_ in self.plan):
            return
        await self._until_started(life)
        while self._is_open(life):
            await asyncio.sleep(0.5 + 2 * self.chance.random())
            await self._insist(lambda: self._hurry_once(client), "hurry")

    async def _hurry_once(self, client: Client) -> None:
        try:
            await client.retry_now(self.run_id, "patient")
        except (WorkflowStateError, RunNotFoundError):
            return
        self.simulation.features["hurried"] += 1

    async def _call_again_and_again(self, client: Client) -> None:
        """Call into the run; now and then twice, which is one call."""
        await self._until_started(1)
        chance = random.Random(f"calling {self.simulation.seed} {self.run_id}")
        for value in range(self.calls):
            await asyncio.sleep(chance.choice((0.0, 0.1, 1.0, 6.0)) * chance.random())
            while value not in self.told_of_calls:
                if not self._is_open(1):
                    return
                again = [
                    asyncio.create_task(self._call(client, value)) for _ in range(chance.choice((1, 1, 2)))
                ]
                await asyncio.gather(*again)
                await asyncio.sleep(0.3)  # it may be closed, though nobody has told us yet

    async def _call(self, client: Client, value: int) -> None:
        """Call into the run once, and compare what one is told with what one was told before."""
        told = await self._insist(lambda: self._call_once(client, value), f"call {value}")
        if told is None or self.life != 1:  # else it is a run that began anew under that id: another call
            return
        self.simulation.features[f"call {told.partition(':')[0]}"] += 1
        if self.told_of_calls.setdefault(value, told) != told:
            self.simulation.violation(
                f"I14: call {value} of {self.run_id} was answered {self.told_of_calls[value]!r}, and then {told!r}"
            )

    async def _call_once(self, client: Client, value: int) -> str | None:
        try:
            answer = await client.update(
                self.run_id, "call", value, id=f"{self.run_id}/call/{value}", timeout=60
            )
        except UpdateRejectedError as error:
            return f"refused: {error.__cause__!r}"
        except UpdateFailedError as error:
            return "given up" if error.__cause__ is None else f"failed: {error.__cause__!r}"
        except (WorkflowStateError, RunNotFoundError, RunParkedError, PlatformFault, TimeoutError):
            return None
        return f"answered: {answer}"

    async def _ask(self, client: Client, life: int) -> None:
        """Ask a run that listens how far it is, again and again; sometimes for what no query may do."""
        await self._until_started(life)
        while self._is_open(life):
            await asyncio.sleep(0.5 + 6 * self.chance.random())
            meddles = self.chance.random() < 0.2
            await self._insist(lambda meddles=meddles: self._ask_once(client, life, meddles), "query")

    async def _ask_once(self, client: Client, life: int, meddles: bool) -> None:
        try:
            handle = await client.get(self.run_id, self.workflow)
            answer = await handle.query("meddles" if meddles else "progress")
        except (RunNotFoundError, WorkflowStateError):
            return
        except DefinitionError:
            if not meddles:
                raise
            self.simulation.features["asked for too much"] += 1
            return
        if meddles:
            self.simulation.violation(f"model: a query of {self.run_id} did more than look")
        if self._is_open(life) and not self.is_lossy:
            self._judge_answer(answer)

    async def _ask_at_the_end(self, client: Client) -> None:
        try:
            answer = await (await client.get(self.run_id, self.workflow)).query("progress")
        except RunNotFoundError:
            return
        if answer != self.result["told"]:
            self.simulation.violation(
                f"model: {self.run_id} answers {answer}, and has ended with {self.result}"
            )

    def _judge_answer(self, answer: list[list[Any]]) -> None:
        self.simulation.features["asked"] += 1
        if (text := listening.complaint_of_answer(answer, self.answer)) is not None:
            self.simulation.violation(f"model: {self.run_id} was asked: {text}")
        self.answer = answer

    async def _answer(self, client: Client, key: str) -> bool:
        try:
            await client.answer(self.run_id, f"answer {key}", name=f"ask{key}")
        except (WorkflowStateError, RunNotFoundError):
            return False
        self.simulation.features["answered"] += 1
        return True

    async def _end(self, client: Client, life: int) -> None:
        if self.ending is None:
            return
        await self._sleep_until(self.ends_at)
        await self._until_started(life)
        if self.ending == "cancel" and self.chance.random() < 0.5:
            await self._until_compensating(client, life)
        if self._is_open(life):
            await self.end(client, self.ending)
            if self.chance.random() < 0.5:  # once more, whatever it is doing by now
                await asyncio.sleep(self.chance.random())
                if self._is_open(life):
                    await self.end(client, self.ending)

    async def _until_compensating(self, client: Client, life: int) -> None:
        """Wait for the moment at which a cancellation must not get in the way, for a while."""
        for _ in range(60):
            if not self._is_open(life):
                return
            run = await self._insist(lambda: self._look(client), "look")
            if run is not None and run.status == "compensating":
                self.simulation.features["cancelled while it compensated"] += 1
                return
            await asyncio.sleep(0.3)

    async def _look(self, client: Client) -> Run | None:
        try:
            return await client.describe(self.run_id)
        except RunNotFoundError:
            return None

    async def end(self, client: Client, ending: str) -> None:
        """Cancel or terminate the run, until that is acknowledged or was too late."""

        async def do() -> bool:
            self.tried.add(ending)
            try:
                await getattr(client, ending)(self.run_id, "the plan says so")
            except (WorkflowStateError, RunNotFoundError):
                return False
            return True

        if await self._insist(do, ending):
            self.acknowledged.add(ending)

    # ─ the verdict ──

    def _judge(self) -> None:
        """Compare with the model."""
        outcome, fail = self.outcome, self.simulation.violation
        self.simulation.trace("errand", self.run_id, str(outcome))
        self.simulation.outcomes[f"{self.workflow.name} {outcome}"] += 1
        if outcome == "completed" and self.calls and self.life == 1:
            self._judge_calls()
        match outcome:
            case "completed" if self.workflow in (programs.waits_for_ever, programs.fails, listening.BREAKS):
                fail(f"model: {self.run_id} completed with {self.result!r}")
            case "completed":
                model = listening.complaint if self.listens else complaint
                if (text := model(self.plan, self.result, is_lossy=self.is_lossy)) is not None:
                    fail(f"model: {self.run_id} {self.plan}: {text}")
            case "cancelled" if "cancel" not in self.tried:
                fail(f"model: {self.run_id} was cancelled, but nobody asked for it")
            case "terminated" if "terminate" not in self.tried:
                fail(f"model: {self.run_id} was terminated, but nobody asked for it")
            case "timed_out" if self.workflow is not programs.short_life:
                fail(f"model: {self.run_id} timed out")
            case "failed" if not self._may_fail():
                fail(f"model: {self.run_id} {self.plan} failed: {self.result}")

    def _judge_calls(self) -> None:
        """I14: what was acknowledged is in the final state, once; what was refused is not."""
        called = self.result["called"]
        if len(called) != len(set(called)):
            self.simulation.violation(f"I14: {self.run_id} was called with {called}")
        for value, told in self.told_of_calls.items():
            how = told.partition(":")[0]
            if (how == "answered" and value not in called) or (
                how in ("refused", "failed") and value in called
            ):
                self.simulation.violation(
                    f"I14: {self.run_id} was called with {called}, and {value} was {told}"
                )

    def _may_fail(self) -> bool:
        """Whether the error is the program's own, or that of a machine whose database was away for all of its attempts."""
        text = str(self.result)
        # A child may still have been giving way to the former life.
        if text.startswith("RunCancelledError") and self.tried_again:
            return any(step[0] in (*programs.CHILDREN, *listening.CLASS_CHILDREN) for step in self.plan)
        if text.startswith(("Store", "WorkerLost")):
            return any(step[0] == "machine" for step in self.plan)
        if self.workflow is listening.BREAKS:
            return "broken" in text
        return self.workflow is programs.fails and "the end" in text

    async def _insist(self, do: Callable[[], Awaitable[T]], what: str) -> T:
        """Repeat until there is an answer; a lost one may mean that it was done."""
        while True:
            try:
                value = await do()
            except StoreError as error:
                self.simulation.trace("errand", self.run_id, f"{what}: {type(error).__name__}")
                await asyncio.sleep(self.chance.choice((0.0, 0.1, 1.0)))
            else:
                self.simulation.trace("errand", self.run_id, f"{what} is acknowledged")
                return value
