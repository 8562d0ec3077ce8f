"""The pipelines and sagas of the crash suite. Whatever dies, they end the same way, and every body leaves its trace.

Failures are answers, so that nothing is tried more often than a death demands.
"""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any, Final

import durable
from durable import (
    AbstractSaga,
    Client,
    Err,
    FunctionStep,
    OrchestratedStep,
    Pipeline,
    RunStatus,
    SagaBase,
    SagaContext,
    SagaManager,
    SagaOrchestrator,
    SagaStep,
    SagaStepResult,
    WorkflowFailedError,
    conditional,
    parallel,
    saga_step,
    workflow,
)
from tests.support.crash_ledger import effect

DELAY: Final = 0.01  # seconds, after an attempt that was lost

OUTCOMES: Final = {
    "pipeline": RunStatus.COMPLETED,
    "abstract": RunStatus.COMPENSATED,
    "managed": RunStatus.COMPENSATED,
    "orchestrated": RunStatus.COMPENSATED,
    "nested": RunStatus.FAILED,
    "done": RunStatus.COMPLETED,
}
# What each undoes, in this order; in braces: in any.
UNDONE: Final[dict[str, list[set[str]]]] = {
    "pipeline": [],
    "abstract": [{"charge"}, {"reserve"}],
    "managed": [{"charge"}, {"reserve"}],
    "orchestrated": [{"pack", "insure"}, {"reserve"}],
    "nested": [{"Abstract/charge"}, {"Abstract/reserve"}, {"second"}, {"first"}],
    "done": [],
}


def act(value: Any) -> Any:
    with effect() as done:
        done.value = value
        return value


# ─ a pipeline ──


async def fetch(ctx: dict[str, Any]) -> str:
    return str(act(f"fetched {ctx['what']}"))


def is_known(ctx: dict[str, Any]) -> bool:
    return bool(act(ctx["fetch"].startswith("fetched")))


def step(name: str) -> FunctionStep:
    async def do(ctx: dict[str, Any]) -> str:
        return str(act(f"{name} of {ctx['fetch']}"))

    return FunctionStep(name, do, retry_delay=DELAY)


pipeline: Final = Pipeline(
    "notify",
    [
        FunctionStep("fetch", fetch, retry_delay=DELAY),
        conditional("gift", is_known)(step("gift")),
        parallel("tell", [step("email"), step("sms"), step("letter")]),
        step("archive"),
    ],
)


# ─ sagas ──


class Abstract(AbstractSaga):
    def __init__(self, order: str) -> None:
        super().__init__()
        self.order = order
        for name in ("reserve", "charge"):
            self.add_step(
                SagaStep(name, getattr(self, name), getattr(self, f"undo_{name}"), retry_delay=DELAY)
            )
        self.add_step(SagaStep("ship", self.ship))

    async def reserve(self) -> str:
        return str(act(f"reserved {self.order}"))

    def charge(self, ctx: dict[str, Any]) -> str:
        return str(act(f"charged {ctx['reserve']}"))

    async def ship(self) -> Any:
        with effect():
            return SagaStepResult.fail("no truck")

    async def undo_reserve(self, ctx: dict[str, Any]) -> str:
        return str(act(f"released {ctx['reserve']}"))

    def undo_charge(self, ctx: dict[str, Any]) -> str:
        return str(act(f"refunded {ctx['charge']}"))


def written(output: Any, **data: Any) -> Any:
    """Act, and log what the journal entry of a step on a SagaContext will hold."""
    act({"output": output} | ({"data": data} if data else {}))
    return output


class Managed(SagaBase):
    @saga_step(retry_delay=DELAY)
    async def reserve(self, ctx: SagaContext) -> str:
        ctx["reserved"] = True
        return str(written("r", order="o", reserved=True))

    @saga_step(retry_delay=DELAY)
    def charge(self, ctx: SagaContext) -> str:
        return str(written(f"c {ctx['reserved']}"))

    @saga_step()
    async def ship(self) -> Any:
        with effect():
            return Err("no truck")

    @saga_step("reserve", compensation=True, retry_delay=DELAY)
    async def release(self, ctx: SagaContext) -> None:
        written(None)

    @saga_step("charge", compensation=True, retry_delay=DELAY)
    def refund(self, ctx: SagaContext) -> None:
        written(None)


class Done(SagaBase):
    @saga_step(compensation=Managed.release)
    async def only(self) -> str:
        return str(written("done"))


class Act:
    """An action with its compensation, for the orchestrator."""

    async def execute(self, ctx: SagaContext) -> str:
        return str(written("done"))

    async def compensate(self, ctx: SagaContext) -> None:
        written(None)


def refuse(ctx: Any) -> Any:
    with effect():
        return Err("no truck")


manager: Final = SagaManager()
manager.register(Managed)
manager.register(Done)
orchestrator: Final = SagaOrchestrator(config=durable.SagaConfig(retry_delay_seconds=DELAY))
orchestrator.define(
    "orchestrated",
    [
        OrchestratedStep("reserve", Act(), max_retries=3),
        OrchestratedStep(
            "both",
            parallel=[
                OrchestratedStep("pack", Act(), max_retries=3),
                OrchestratedStep("insure", Act(), max_retries=3),
            ],
        ),
        OrchestratedStep("ship", refuse, max_retries=3),
    ],
)


class Fragile(AbstractSaga):
    """The process dies in the middle of a compensation that must not be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.add_step(SagaStep("first", lambda: act("first"), lambda: act("undone first")))
        self.add_step(SagaStep("once", lambda: act("once"), die_here, retry_delay=DELAY, idempotent=False))
        self.add_step(SagaStep("twice", lambda: act("twice"), die_here, retry_delay=DELAY))
        self.add_step(SagaStep("no more", lambda: act("no more"), die_here, 0, retry_delay=DELAY))
        self.add_step(SagaStep("fail", refuse))


class FragileUndo:
    """An action whose compensation kills the process at first."""

    async def execute(self, ctx: SagaContext) -> str:
        return str(written("done"))

    async def compensate(self, ctx: SagaContext) -> None:
        die_here({"output": None})


# Steps that are tried once: what undoes them goes on after a crash all the same.
tried_once: Final = SagaOrchestrator(config=durable.SagaConfig(retry_delay_seconds=DELAY))
tried_once.define(
    "tried_once",
    [OrchestratedStep("a", FragileUndo(), max_retries=0), OrchestratedStep("fail", refuse)],
)


def die_here(value: Any = "undone") -> Any:
    """Die, at the first attempt."""
    with effect() as done:
        if durable.activity_info().attempt == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        done.value = value
        return done.value


@saga_step(compensation=lambda: die_here(), max_retries=0, retry_delay=DELAY)
async def single() -> str:
    return str(act("single"))


@workflow
async def fragile_body() -> None:
    """Undone as a whole."""
    await single()
    raise ValueError("no")


# ─ one in the other ──


async def undo(name: str) -> str:
    return str(act(f"undone {name}"))


@saga_step(compensation=undo, retry_delay=DELAY)
async def first(name: str) -> str:
    return str(act(name))


@saga_step(compensation=undo, retry_delay=DELAY)
def second(name: str) -> str:
    return str(act(name))


@workflow
async def nested(order: str) -> str:
    """A pipeline and a saga inside a workflow, which then fails itself and undoes its own steps."""
    await first("one")
    archived = await pipeline.execute({"what": order})
    await second("two")
    result = await Abstract(order).execute()
    raise ValueError(f"{archived}: {result.unwrap_err().step_name}")


# ─ asking for all of it ──


async def execute_all() -> None:
    """Execute each of them in this process, under its id; return when all are closed."""
    async with asyncio.TaskGroup() as group:
        group.create_task(pipeline.execute({"what": "news"}, run_id="pipeline"))
        group.create_task(Abstract("o").execute(run_id="abstract"))
        group.create_task(_managed("Managed", "managed"))
        group.create_task(_managed("Done", "done"))
        group.create_task(_orchestrated())
        group.create_task(_nested())


async def _managed(name: str, saga_id: str) -> None:
    await manager.wait(await manager.start(name, {"order": "o"}, saga_id=saga_id))


async def _orchestrated() -> None:
    await orchestrator.wait(await orchestrator.start("orchestrated", saga_id="orchestrated"))


async def _nested() -> None:
    try:
        await nested("o", run_id="nested")
    except WorkflowFailedError:
        pass


async def store_all(client: Client) -> None:
    """Store a run of each, for a worker."""
    (managed,) = Managed.__durable_workflows__()
    (done,) = Done.__durable_workflows__()
    (orchestrated,) = orchestrator.__durable_workflows__()
    (abstract,) = Abstract.__durable_workflows__()
    (notify,) = pipeline.__durable_workflows__()
    await client.start(notify, {"what": "news"}, run_id="pipeline")
    await client.start(abstract, {"order": "o"}, run_id="abstract")
    await client.start(managed, {"order": "o"}, None, run_id="managed")
    await client.start(done, {"order": "o"}, None, run_id="done")
    await client.start(orchestrated, {}, orchestrator.config.stored(), run_id="orchestrated")
    await client.start(nested, "o", run_id="nested")
