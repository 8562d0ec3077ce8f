"""How long runs of patterns are kept: as their definitions say, else as workers are told; and sagas that ended well."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import (
    AbstractSaga,
    BulkOperation,
    Client,
    DefinitionError,
    OrchestratedStep,
    Pipeline,
    SagaBase,
    SagaConfig,
    SagaManager,
    SagaOrchestrator,
    SagaStep,
    WorkflowBuilder,
    WorkflowEngine,
    saga_step,
    workflow,
)
from durable.scheduler import retention
from tests.support.workers import file_of, running_worker, tampered, until

WEEK = timedelta(days=7)


def noop(ctx: Any = None) -> dict[str, Any]:
    return {}


class Booking(AbstractSaga):
    RETENTION = WEEK

    def __init__(self) -> None:
        super().__init__()
        self.add_step(SagaStep("book", noop))


class Managed(SagaBase):
    RETENTION = WEEK

    @saga_step
    async def book(self) -> None: ...


class Tidied(SagaBase):
    @saga_step
    async def book(self) -> None: ...


class Failing(SagaBase):
    @saga_step(max_retries=0)
    async def book(self) -> None:
        raise ValueError("full")


def definitions() -> dict[str, Any]:
    """Return one definition of each pattern that says how long its runs are kept."""
    orchestrator = SagaOrchestrator()
    orchestrator.define("orchestrated", [OrchestratedStep("book", noop)], retention=WEEK)
    manager = SagaManager()
    manager.register(Managed)
    return {
        "pipeline": Pipeline("piped", [durable.step("book", noop)], retention=WEEK),
        "graph": WorkflowEngine(WorkflowBuilder("drawn", retention=WEEK).add_node("book", node=noop).build()),
        "bulk": BulkOperation(noop, name="bulky", retention=WEEK),
        "abstract saga": Booking,
        "managed saga": manager,
        "orchestrated saga": orchestrator,
    }


async def seen(kind: str, made: Any, run_id: str) -> durable.Run:
    """Run a pattern to its end and return what is told of its run."""
    match kind:
        case "bulk":
            await made.execute([1], run_id=run_id)
        case "abstract saga":
            await made().execute(run_id=run_id)
        case "managed saga" | "orchestrated saga":
            name = "Managed" if kind == "managed saga" else "orchestrated"
            await made.wait(await made.start(name, {}, run_id))
        case _:
            await made.execute(run_id=run_id)
    return await durable.get_run(run_id)


@pytest.mark.parametrize("kind", list(definitions()))
async def test_a_pattern_says_how_long_its_runs_are_kept(embedded: str, kind: str) -> None:
    """As a workflow does: it is stored with the run, shown with it, and deletion heeds it."""
    run = await seen(kind, definitions()[kind], "r")

    assert run.retention == WEEK
    async with Client(embedded) as client:
        (listed,) = await client.list()
        assert listed.retention == WEEK
        aged(client, "r", days=6)
        assert (await client.prune(timedelta(days=2))).runs == 0
        aged(client, "r", days=2)
        assert (await client.prune(timedelta(days=2))).runs == 1


async def test_without_one_it_is_as_workers_are_told(embedded: str) -> None:
    """A run that has none of its own tells none; one that stays for ever says so."""
    await Pipeline("plain", [durable.step("book", noop)]).execute(run_id="plain")
    await Pipeline("kept", [durable.step("book", noop)], retention="forever").execute(run_id="kept")

    assert (await durable.get_run("plain")).retention is None
    assert (await durable.get_run("kept")).retention == "forever"


async def test_inside_a_workflow_the_workflows_counts(embedded: str) -> None:
    """A pattern that is part of a run has no run of its own to keep."""
    piped = Pipeline("piped", [durable.step("book", noop)], retention=WEEK)

    @workflow(retention=timedelta(days=2))
    async def outer() -> None:
        await piped.execute()

    await outer(run_id="o")

    assert (await durable.get_run("o")).retention == timedelta(days=2)


@pytest.mark.parametrize("value", [59, "never", -1])
def test_a_retention_that_makes_no_sense_is_refused(value: Any) -> None:
    """Where it is said, before anything runs."""
    with pytest.raises(DefinitionError):
        Pipeline("piped", [durable.step("book", noop)], retention=value)


# ─ sagas that ended well ──


def aged(client: Client, run_id: str, *, days: float) -> None:
    """Move a run into the past."""
    tampered(
        file_of(client),
        "UPDATE run SET created_at_us = created_at_us - :us, closed_at_us = closed_at_us - :us WHERE run_id = :run",
        parameters={"us": round(days * 86_400_000_000), "run": run_id},  # type: ignore[arg-type]  # by name
    )


async def test_workers_delete_what_a_manager_wants_cleaned_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the hours of its configuration, once completed or compensated; not the failed, the young, and those with a retention of their own."""
    monkeypatch.setattr(retention, "FIRST_SECONDS", 0.01)
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.01)
    manager = SagaManager(config=SagaConfig(cleanup_completed_after_hours=48))
    for saga in (Tidied, Managed, Failing):
        manager.register(saga)
    flows = {one.name: one for one in manager.__durable_workflows__()}
    asked = {
        "old": "Tidied",
        "young": "Tidied",
        "own": "Managed",
        "compensated": "Failing",
        "failed": "Failing",
    }
    async with running_worker(client, manager, retention=None):
        for run_id, name in asked.items():
            config = {"enable_compensation": False} if run_id == "failed" else None
            await client.start(flows[name], {}, config, run_id=run_id)
        for run_id in asked:
            await until(lambda run_id=run_id: _is_closed(client, run_id))
    for run_id in asked:
        aged(client, run_id, days=1.9 if run_id == "young" else 2.1)

    async with running_worker(client, Tidied, Managed, Failing, manager):
        await until(lambda: _are(client, "young", "own", "failed"))


async def test_a_worker_that_keeps_everything_cleans_up_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`retention=None`, whatever managers want."""
    monkeypatch.setattr(retention, "FIRST_SECONDS", 0.01)
    manager = SagaManager()
    manager.register(Tidied)
    (flow,) = manager.__durable_workflows__()

    async with running_worker(client, manager, retention=None):
        await (await client.start(flow, {}, run_id="old")).result(60)
        aged(client, "old", days=900)
        await (await client.start(flow, {}, run_id="next")).result(60)
    assert {run.run_id for run in await client.list()} == {"old", "next"}


async def _is_closed(client: Client, run_id: str) -> bool:
    return (await client.describe(run_id)).status.is_closed


async def _are(client: Client, *run_ids: str) -> bool:
    return {run.run_id for run in await client.list()} == set(run_ids)


async def test_a_manager_spares_those_with_a_retention_of_their_own(embedded: str) -> None:
    """Its own cleaning up heeds the same rule."""
    manager = SagaManager(config=SagaConfig(cleanup_completed_after_hours=0))
    manager.register(Tidied)
    manager.register(Managed)
    for name in ("Tidied", "Managed"):
        assert (await manager.wait(await manager.start(name, {}, name))).status == "completed"

    assert await manager.cleanup() == 1
    assert await manager.get("Tidied") is None
    assert await manager.get("Managed") is not None
