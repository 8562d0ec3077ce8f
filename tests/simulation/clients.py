"""Clients: each run has one errand that starts it, talks to it and waits for it, repeating whatever got no answer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from durable import (
    Client,
    RunCancelledError,
    RunConflictError,
    RunHandle,
    RunTerminatedError,
    StoreError,
    WorkflowFailedError,
    WorkflowStateError,
    WorkflowTimeoutError,
)
from tests.simulation import workload
from tests.simulation.workload import Plan, complaint, make_plan, number, signals_of

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

T = TypeVar("T")


class Errand:
    """One run, from its start to its end, and what was acknowledged on the way."""

    def __init__(self, simulation: Simulation, position: int) -> None:
        self.simulation = simulation
        self.run_id = f"run{position}"
        self.chance = chance = random.Random(f"errand {simulation.seed} {position}")
        self.workflow: Any = chance.choice(
            (workload.life, workload.life, workload.life, workload.short_life, workload.waits_for_ever)
        )
        self.plan: Plan = make_plan(chance, relapses=self.workflow is workload.life)
        self.ending = chance.choice((None, None, None, "cancel", "terminate"))
        self.ends_after = chance.choice((0.0, 0.3, 2.0, 8.0, 20.0)) * chance.random()
        self.begins_after = chance.random() * chance.choice((0.1, 5.0, 30.0))
        self.is_contested = chance.random() < 0.3
        self.is_started = False
        self.signals_stored = 0
        self.acknowledged: set[str] = set()  # "cancel", "terminate"
        self.tried: set[str] = set()
        self.pks: list[int] = []
        self.outcome: str | None = None
        self.result: Any = None

    async def run(self, client: Client, other: Client) -> None:
        """The whole errand; it ends when the run has ended."""
        await asyncio.sleep(self.begins_after)
        async with asyncio.TaskGroup() as group:
            if self.is_contested:
                group.create_task(self._contest(other))
            handle = await self._insist(lambda: self._start(client), "start")
            self.is_started = True
            group.create_task(self._send_signals(client))
            if self.ending is not None:
                group.create_task(self._end(client, other))
            await self._await_end(handle)
        self._judge()

    async def _start(self, client: Client) -> RunHandle[Any]:
        handle = await client.start(self.workflow, self.plan, run_id=self.run_id)
        self.pks.append(handle._pk)
        return handle

    async def _contest(self, other: Client) -> None:
        """Start the same again from elsewhere, which is no second run; and something else, which is an error."""
        await asyncio.sleep(self.chance.random() * 2)
        await self._insist(lambda: self._start(other), "second start")
        if self.chance.random() < 0.5:
            return

        async def conflicting() -> None:
            try:
                await other.start(self.workflow, [["call", "other", 0, 0.0]], run_id=self.run_id)
            except RunConflictError:
                return
            self.simulation.violation(f"I10: a start of {self.run_id} with other input was not refused")

        await self._insist(conflicting, "conflicting start")

    async def _send_signals(self, client: Client) -> None:
        for value in range(signals_of(self.plan)):
            await asyncio.sleep(self.chance.choice((0.0, 0.1, 1.0, 6.0)) * self.chance.random())

            async def send(value: int = value) -> bool:
                try:
                    await client.signal(self.run_id, number, value, id=f"{self.run_id}/{value}")
                except WorkflowStateError:
                    return False
                return True

            if not await self._insist(send, f"signal {value}"):
                return
            self.signals_stored = value + 1

    async def _end(self, client: Client, other: Client) -> None:
        await asyncio.sleep(self.ends_after)
        ending = self.ending
        assert ending is not None
        await self.end(self.chance.choice((client, other)), ending)

    async def end(self, client: Client, ending: str) -> None:
        """Cancel or terminate the run, until that is acknowledged or was too late."""

        async def do() -> bool:
            self.tried.add(ending)
            try:
                await getattr(client, ending)(self.run_id, "the plan says so")
            except WorkflowStateError:
                return False
            return True

        if await self._insist(do, ending):
            self.acknowledged.add(ending)

    async def _await_end(self, handle: RunHandle[Any]) -> None:
        async def ended() -> str:
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
            return "completed"

        self.outcome = await self._insist(ended, "result")

    def _judge(self) -> None:
        """Compare with the model."""
        outcome, fail = self.outcome, self.simulation.violation
        self.simulation.trace("errand", self.run_id, str(outcome))
        if outcome == "completed":
            if self.workflow is workload.waits_for_ever:
                fail(f"model: {self.run_id} completed with {self.result!r}")
            elif (text := complaint(self.plan, self.result)) is not None:
                fail(f"model: {self.run_id} {self.plan}: {text}")
        elif outcome == "cancelled":
            if "cancel" not in self.tried:
                fail(f"model: {self.run_id} was cancelled, but nobody asked for it")
        elif outcome == "terminated":
            if "terminate" not in self.tried:
                fail(f"model: {self.run_id} was terminated, but nobody asked for it")
        elif outcome == "timed_out":
            if self.workflow is not workload.short_life:
                fail(f"model: {self.run_id} timed out")
        elif outcome == "failed":
            fail(f"model: {self.run_id} {self.plan} failed: {self.result}")

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
