"""Sagas as classes with decorated methods, and the manager that runs them."""

from __future__ import annotations

import asyncio
import dataclasses
import sys
from datetime import timedelta
from typing import Any

import pytest

import durable
from durable import (
    Client,
    Err,
    InMemorySagaStore,
    Ok,
    OrchestratedStep,
    Pipeline,
    RunConflictError,
    RunHandle,
    RunNotFoundError,
    RunStatus,
    SagaBase,
    SagaConfig,
    SagaContext,
    SagaManager,
    SagaOrchestrator,
    SagaRecord,
    SagaStepResult,
    SagaStore,
    SagaVersionMismatchError,
    Signal,
    SqlSagaStore,
    WorkflowFailedError,
    WorkflowStateError,
    saga_step,
    step,
    workflow,
)
from durable.patterns.saga.runtime import SagaRuntime
from tests.support.workers import Calls, running_worker, until

calls = Calls()


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.names.clear()


class OrderSaga(SagaBase):
    """Its methods are not in the order of the alphabet, on purpose."""

    @saga_step()
    async def reserve(self, ctx: SagaContext) -> dict[str, Any]:
        calls(f"reserve {ctx['order']}")
        ctx["reservation"] = "r-1"
        return {"count": 2}

    @saga_step("reserve", compensation=True)
    async def release(self, ctx: SagaContext) -> None:
        calls(f"release {ctx['reservation']}")

    @saga_step("charge")
    def take_money(self, ctx: SagaContext) -> SagaStepResult:
        calls(f"charge for {ctx.step_results['reserve']['count']}")
        ctx.metadata["paid"] = True
        return SagaStepResult.Ok("c-1")

    @saga_step("charge", compensation=True)
    def give_money(self, ctx: SagaContext) -> None:
        calls(f"refund {ctx.step_results['charge']} {ctx.metadata}")

    @saga_step(max_retries=0)
    async def announce(self) -> Any:
        calls("announce")
        if self.answer is not None:
            raise self.answer if isinstance(self.answer, Exception) else AssertionError
        return Ok(None)

    answer: Any = None


class FailingSaga(OrderSaga):
    answer = RuntimeError("nobody listens")


manager = SagaManager()
manager.register(OrderSaga)
manager.register(FailingSaga)
orchestrator = SagaOrchestrator()
orchestrator.define("tabled", [OrchestratedStep("reserve", lambda ctx: calls(f"reserve {ctx['order']}"))])


async def test_a_saga_runs_in_the_order_of_definition(embedded: str) -> None:
    """What a step writes to the context is there for the next; the record tells all of it."""
    saga_id = await manager.start("OrderSaga", {"order": "o"}, saga_id="o-1")
    assert saga_id == "o-1"
    record = await manager.wait(saga_id)

    assert calls.names == ["reserve o", "charge for 2", "announce"]
    assert isinstance(record, SagaRecord)
    assert (record.saga_id, record.saga_name, record.status) == ("o-1", "OrderSaga", "completed")
    assert record.data == {"order": "o", "reservation": "r-1"}
    assert [(one.step_name, one.status, one.output, one.attempts) for one in record.steps.values()] == [
        ("reserve", "completed", {"count": 2}, 1),
        ("charge", "completed", "c-1", 1),
        ("announce", "completed", None, 1),
    ]
    assert record.created_at <= record.updated_at
    assert record.completed_at is not None
    assert record.error is None
    run = await durable.get_run("o-1")
    assert (run.kind, run.result) == (
        "saga",
        {
            "data": {"order": "o", "reservation": "r-1"},
            "step_results": {"reserve": {"count": 2}, "charge": "c-1", "announce": None},
        },
    )


async def test_what_a_step_writes_is_part_of_its_entry(embedded: str) -> None:
    """Of the attempt that was recorded, and of no other; the key is the same for all attempts, of the compensation another."""
    keys: list[str] = []

    class Writes(SagaBase):
        @saga_step(retry_delay=0)
        async def reserve(self, ctx: SagaContext) -> str:
            keys.append(ctx.idempotency_key)
            ctx["tries"] = [*ctx.get("tries", []), calls("reserve")]
            ctx.metadata["by"] = ctx.saga_name
            if calls.of("reserve") == 1:
                raise OSError("not yet")
            return ctx.saga_id

        @saga_step("reserve", compensation=True)
        async def release(self, ctx: SagaContext) -> None:
            keys.append(ctx.idempotency_key)
            ctx["released"] = ctx.metadata["by"]

        @saga_step()
        async def look(self, ctx: SagaContext) -> Any:
            return Err([dict(ctx), ctx.step_results])

    mine = SagaManager()
    mine.register(Writes)
    record = await mine.wait(await mine.start("Writes", {"order": "o"}, saga_id="s"))

    assert keys == ["s@1/reserve#1", "s@1/reserve#1", "s@1/reserve/compensation#1"]
    entries = {entry.name: entry for entry in (await durable.get_run("s")).journal}
    assert entries["reserve"].result == {
        "output": "s",
        "data": {"order": "o", "tries": [2]},
        "metadata": {"by": "Writes"},
    }
    assert str([{"order": "o", "tries": [2]}, {"reserve": "s"}]) in (entries["look"].error or "")
    assert record.data == {"order": "o", "tries": [2], "released": "Writes"}


async def test_a_failed_saga_is_undone_in_reverse(embedded: str) -> None:
    """Compensations see the context as it was left; the record says what became of each step."""
    record = await manager.wait(await manager.start("FailingSaga", {"order": "o"}))

    assert calls.names[3:] == ["refund c-1 {'paid': True}", "release r-1"]
    assert record.status == "compensated"
    assert {name: one.status for name, one in record.steps.items()} == {
        "reserve": "compensated",
        "charge": "compensated",
        "announce": "failed",
    }
    assert "nobody listens" in (record.steps["announce"].error or "")
    assert "nobody listens" in (record.error or "")


async def test_a_failed_compensation_leaves_its_step_failed(embedded: str) -> None:
    """The saga has failed; the other compensations were tried."""

    class Stuck(FailingSaga):
        @saga_step("charge", compensation=True, max_retries=0)
        def give_money(self, ctx: SagaContext) -> SagaStepResult:
            return SagaStepResult.fail("the bank says no")

    mine = SagaManager()
    mine.register(Stuck)
    record = await mine.wait(await mine.start("Stuck", {"order": "o"}))

    assert record.status == "failed"
    assert record.steps["charge"].status == "failed"
    assert "the bank says no" in (record.steps["charge"].error or "")
    assert record.steps["reserve"].status == "compensated"


async def test_start_returns_once_it_is_stored(embedded: str) -> None:
    """A known id is the same saga; other data under it is refused; an unknown name is a KeyError."""
    first = await manager.start("OrderSaga", {"order": "o"})
    assert (await manager.get(first)) is not None
    await manager.wait(first)
    assert await manager.start("OrderSaga", {"order": "o"}, saga_id=first) == first
    await manager.wait(first)

    assert calls.of("announce") == 1
    with pytest.raises(RunConflictError):
        await manager.start("OrderSaga", {"order": "p"}, saga_id=first)
    with pytest.raises(KeyError, match="no saga 'nothing'"):
        await manager.start("nothing")
    assert await manager.get("unknown") is None
    with pytest.raises(RunNotFoundError):
        await manager.wait("unknown")


async def test_sagas_are_listed_by_name_and_status(embedded: str) -> None:
    """Newest first; those not begun have pending steps."""
    await manager.wait(await manager.start("OrderSaga", {"order": "a"}, saga_id="a"))
    await manager.wait(await manager.start("FailingSaga", {"order": "b"}, saga_id="b"))
    (workflow,) = OrderSaga.__durable_workflows__()
    await workflow.options(run_id="c").enqueue({"order": "c"})

    assert [record.saga_id for record in await manager.list()] == ["c", "b", "a"]
    assert [record.saga_id for record in await manager.list("OrderSaga")] == ["c", "a"]
    assert [record.saga_id for record in await manager.list(status="compensated")] == ["b"]
    (pending,) = await manager.list("OrderSaga", "pending")
    assert [one.status for one in pending.steps.values()] == ["pending"] * 3


class Hangs(OrderSaga):
    begun = asyncio.Event()

    @saga_step(max_retries=0)
    async def announce(self) -> None:
        Hangs.begun.set()
        await asyncio.sleep(60)


async def test_a_cancelled_saga_is_undone(embedded: str) -> None:
    """The step in flight is cancelled; the status says who ended it. A closed one cannot be cancelled."""
    Hangs.begun = asyncio.Event()
    mine = SagaManager()
    mine.register(Hangs)
    await mine.start("Hangs", {"order": "o"}, saga_id="h")
    await Hangs.begun.wait()
    with pytest.raises(TimeoutError):
        await mine.wait("h", timeout=0.05)
    await mine.cancel("h")

    record = await mine.wait("h", timeout=timedelta(seconds=20))
    assert record.status == "cancelled"
    assert record.steps["reserve"].status == "compensated"
    with pytest.raises(WorkflowStateError):
        await mine.cancel("h")


def test_steps_come_in_the_order_of_definition_through_the_bases() -> None:
    """An overridden step keeps its place; never by the alphabet."""

    class Base(SagaBase):
        @saga_step()
        def zebra(self) -> None: ...

        @saga_step()
        def ant(self) -> None: ...

    class Child(Base):
        @saga_step()
        def mouse(self) -> None: ...

        @saga_step()
        def zebra(self) -> None: ...

    mine = SagaManager()
    mine.register(Child)
    assert list(mine._planned["Child"]) == ["zebra", "ant", "mouse"]


async def test_a_callable_names_the_compensation(embedded: str) -> None:
    """A method that was defined above, or any function of the context."""

    async def outside(ctx: SagaContext) -> None:
        calls(f"outside {ctx['x']}")

    class Named(SagaBase):
        def undo(self, ctx: SagaContext) -> None:
            calls(f"method {ctx['x']}")

        @saga_step(compensation=undo)
        def first(self) -> None: ...

        @saga_step(compensation=outside)
        def second(self) -> None: ...

        @saga_step()
        def third(self) -> Any:
            return Err("no")

    mine = SagaManager()
    mine.register(Named)
    record = await mine.wait(await mine.start("Named", {"x": 1}))
    assert calls.names == ["outside 1", "method 1"]
    assert record.steps["third"].attempts == 1


# ─ configuration ──


async def test_the_configured_timeout_undoes_the_saga(embedded: str) -> None:
    """Also for whoever takes over: it is kept with the run."""
    mine = SagaManager(config=SagaConfig(default_timeout_seconds=1))
    mine.register(Hangs)
    record = await mine.wait(await mine.start("Hangs", {"order": "o"}, saga_id="h"))

    assert record.status == "compensated"
    assert "TimeoutError" in (record.error or "")
    assert (await durable.get_run("h")).input["config"] == {"default_timeout_seconds": 1}


class Flaky(SagaBase):
    @saga_step(compensation=lambda self: calls("undo"))
    def own(self) -> None: ...

    @saga_step()
    def default(self) -> None:
        calls("default")
        raise OSError

    @saga_step(max_retries=0)
    def never(self) -> None: ...


async def test_configured_retries_hold_for_steps_that_say_nothing(embedded: str) -> None:
    """Attempts are one and the retries."""
    mine = SagaManager(config=SagaConfig(max_retries_per_step=1, retry_delay_seconds=0))
    mine.register(Flaky)
    record = await mine.wait(await mine.start("Flaky"))

    assert calls.names == ["default", "default", "undo"]
    assert record.steps["default"].attempts == 2


async def test_compensation_can_be_disabled(embedded: str) -> None:
    """Then a failed saga has failed, and stays as it is."""
    mine = SagaManager(config=SagaConfig(enable_compensation=False))
    mine.register(FailingSaga)
    record = await mine.wait(await mine.start("FailingSaga", {"order": "o"}))

    assert record.status == "failed"
    assert record.steps["charge"].status == "completed"
    assert calls.names[-1] == "announce"


@pytest.mark.parametrize("how", ["config", "store"])
async def test_sagas_in_memory_leave_nothing_behind(embedded: str, how: str) -> None:
    """`persist_state=False` and `InMemorySagaStore` are an engine of their own, apart from the durable database."""
    mine = (
        SagaManager(config=SagaConfig(persist_state=False))
        if how == "config"
        else SagaManager(store=InMemorySagaStore())
    )
    mine.register(OrderSaga)
    record = await mine.wait(await mine.start("OrderSaga", {"order": "o"}, saga_id="m"))

    assert record.status == "completed"
    assert await durable.list_runs() == []
    store = mine.store
    assert isinstance(store, InMemorySagaStore)
    loaded = await store.load("m")
    assert loaded is not None
    assert loaded.status == "completed"
    assert [one.saga_id for one in await store.list_by_name("OrderSaga")] == ["m"]
    await store.clear()
    assert await store.load("m") is None


async def test_old_sagas_are_cleaned_up(embedded: str) -> None:
    """Those that ended well, or were undone, so long ago; what failed stays for people to see."""
    mine = SagaManager(config=SagaConfig(cleanup_completed_after_hours=0, enable_compensation=False))
    mine.register(OrderSaga)
    mine.register(FailingSaga)
    await mine.wait(await mine.start("OrderSaga", {"order": "a"}, saga_id="a"))
    await mine.wait(await mine.start("FailingSaga", {"order": "b"}, saga_id="b"))

    assert await mine.cleanup() == 1
    assert [record.saga_id for record in await mine.list()] == ["b"]
    mine._cleaned_at = None
    await mine.start("OrderSaga", {"order": "c"}, saga_id="c")


@pytest.mark.parametrize(
    "wrong",
    [
        {"default_timeout_seconds": 0},
        {"retry_delay_seconds": -1},
        {"max_retries_per_step": -1},
        {"max_retries_per_step": 1.5},
        {"cleanup_completed_after_hours": -1},
        {"enable_compensation": "no"},
    ],
)
def test_values_out_of_bounds_are_refused(wrong: dict[str, Any]) -> None:
    """ValueError; an unknown field is a TypeError."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SagaConfig(**wrong)
    with pytest.raises(TypeError):
        SagaConfig(retries=3)  # type: ignore[call-arg]


# ─ versions, places, stores ──


async def test_another_version_is_refused_unless_it_is_compatible(embedded: str) -> None:
    """`SagaVersionMismatchError`, with the saga's id."""
    (workflow,) = OrderSaga.__durable_workflows__()
    await workflow.options(run_id="v").enqueue({"order": "o"}, None)

    class Newer(OrderSaga):
        VERSION = 2
        saga_name = "OrderSaga"

    class Compatible(Newer):
        def is_compatible_with(self, stored: int) -> bool:
            return stored in (1, 2)

    mine = SagaManager()
    mine.register(Newer)
    with pytest.raises(SagaVersionMismatchError) as e:
        await mine.start("OrderSaga", {"order": "o"}, saga_id="v")
    assert (e.value.saga_id, e.value.stored_version, e.value.code_version) == ("v", 1, 2)


async def test_a_class_names_its_saga(embedded: str) -> None:
    """By `name`, as programs of others spell it, or `saga_name`; an object may be registered, too."""

    class Fulfillment(OrderSaga):
        name = "order_fulfillment"

    mine = SagaManager()
    mine.register(Fulfillment())
    record = await mine.wait(await mine.start("order_fulfillment", {"order": "o"}))
    assert (record.saga_name, record.status) == ("order_fulfillment", "completed")


async def test_older_runs_of_a_compatible_class_go_on(embedded: str) -> None:
    """`is_compatible_with` says so, for a manager and for workers."""
    (old,) = OrderSaga.__durable_workflows__()
    await old.options(run_id="v").enqueue({"order": "o"}, None)

    class Compatible(OrderSaga):
        VERSION = 2
        saga_name = "OrderSaga"

        def is_compatible_with(self, stored: int) -> bool:
            return stored in (1, 2)

    mine = SagaManager()
    mine.register(Compatible)
    assert await mine.start("OrderSaga", {"order": "o"}, saga_id="v") == "v"
    assert (await mine.wait("v")).status == "completed"
    assert [one.version for one in Compatible.__durable_workflows__()] == [1, 2]


async def test_a_worker_that_imports_the_module_finishes_sagas(client: Client) -> None:
    """The classes are found, with or without a manager."""
    (workflow,) = FailingSaga.__durable_workflows__()
    handle = await client.start(workflow, {"order": "w"}, None, run_id="w-1")

    async with running_worker(client, sys.modules[__name__]):
        with pytest.raises(durable.WorkflowFailedError):
            await handle.result()

    assert (await client.describe("w-1")).status == "compensated"


@pytest.mark.parametrize(("sagas", "name"), [(manager, "OrderSaga"), (orchestrator, "tabled")])
async def test_a_saga_is_left_to_a_worker(
    client: Client, embedded: str, sagas: SagaRuntime, name: str
) -> None:
    """`enqueue` stores it; nobody drives it before a worker does. The same id is the same saga; KeyError for an unknown name."""
    saga_id = await sagas.enqueue(name, {"order": "q"}, saga_id="q-1")

    assert saga_id == "q-1"
    assert (await sagas.get("q-1")).status == "pending"  # type: ignore[union-attr]
    with pytest.raises(RunConflictError):
        await sagas.enqueue(name, {"order": "other"}, saga_id="q-1")
    with pytest.raises(KeyError, match="Unknown"):
        await sagas.enqueue("Unknown")
    assert calls.names == []

    async with running_worker(client, *sagas.__durable_workflows__()):
        record = await sagas.wait("q-1")
    assert (record.status, record.steps["reserve"].status) == ("completed", "completed")


async def test_what_no_worker_sees_is_not_left_to_one(embedded: str) -> None:
    """Sagas that live in this process are started here."""
    hidden = SagaManager(config=SagaConfig(persist_state=False))
    hidden.register(OrderSaga)

    with pytest.raises(durable.DefinitionError, match="no worker sees it"):
        await hidden.enqueue("OrderSaga", {"order": "o"})
    assert await hidden.list() == []


async def test_recover_takes_over_what_nobody_drives(embedded: str) -> None:
    """With `wait` it gives the closed records."""
    (workflow,) = OrderSaga.__durable_workflows__()
    for saga_id in ("a", "b"):
        await workflow.options(run_id=saga_id).enqueue({"order": saga_id}, None)

    records = await manager.recover(wait=True, timeout=20)

    assert sorted((one.saga_id, one.status) for one in records) == [("a", "completed"), ("b", "completed")]
    assert await manager.recover() == []


async def test_who_recovers_need_not_wait_for_ever(embedded: str) -> None:
    """After `timeout` it is a TimeoutError; the sagas go on."""
    Hangs.begun = asyncio.Event()
    mine = SagaManager()
    mine.register(Hangs)
    await mine.enqueue("Hangs", {"order": "o"}, saga_id="h")

    with pytest.raises(TimeoutError):
        await mine.recover(wait=True, timeout=0.05)
    await Hangs.begun.wait()
    assert (await mine.get("h")).status == "running"  # type: ignore[union-attr]
    await mine.cancel("h")
    assert (await mine.wait("h")).status == "cancelled"


async def test_in_a_workflow_a_start_is_found_again(embedded: str) -> None:
    """In a workflow it is a child, in a step its id derives from the key: a replay, and a retried step, find the same saga."""

    @workflow
    async def outer() -> str:
        return await manager.start("OrderSaga", {"order": "in"})

    @step(retry_delay=0)
    async def inside(ctx: dict[str, Any]) -> str:
        found = await manager.start("OrderSaga", {"order": "step"})
        if calls("inside") == 1:
            raise OSError
        return found

    saga_id = await outer(run_id="w")
    assert saga_id == "w@1/OrderSaga#1"
    assert (await durable.get_run(saga_id)).parent == "w"
    assert (await manager.wait(saga_id)).status == "completed"  # though its parent has ended
    other = await Pipeline("p", [inside]).execute(run_id="p")
    assert other == "p@1/inside#1/OrderSaga#1"
    assert len(await manager.list("OrderSaga")) == 2


async def test_in_a_workflow_sagas_are_followed_by_journaled_calls(embedded: str) -> None:
    """`wait`, `get`, `list` and `cancel` give a replay what they gave; a saga of a name of its own is found again, too."""
    go = Signal("go", bool)

    @workflow
    async def outer() -> list[Any]:
        mine = await manager.start("OrderSaga", {"order": "one"})
        named = await manager.start("OrderSaga", {"order": "two"}, saga_id="named")
        done = [await manager.wait(mine), await manager.wait(named, timeout=timedelta(seconds=10))]
        told = [record.status for record in done]
        unknown = await manager.get("unknown")
        try:
            await manager.cancel(named)
        except WorkflowStateError as error:
            told.append(error.status)
        await go.wait()
        return [mine, told, unknown, len(await manager.list("OrderSaga", "completed"))]

    handle = await outer.start(run_id="w")
    await until(lambda: is_asked(handle))
    await handle.signal(go, True)
    assert await handle.result(60) == ["w@1/OrderSaga#1", ["completed", "completed", "completed"], None, 2]
    with pytest.raises(WorkflowFailedError, match="not for workflows"):
        await workflow(name="recovers")(manager.recover)(run_id="r")


async def test_a_workflow_that_waits_for_a_saga_goes_on_with_it_if_nobody_does(embedded: str) -> None:
    """One that it had started under an id of its own died with their process: running the workflow again is enough."""
    (saga,) = OrderSaga.__durable_workflows__()
    await saga.options(run_id="left").enqueue({"order": "left"}, None)

    @workflow
    async def outer() -> str:
        return str((await manager.wait("left", timeout=60)).status)

    assert await outer(run_id="w") == "completed"


async def is_asked(handle: RunHandle[Any]) -> bool:
    return (await handle.describe()).status is RunStatus.WAITING


class Mirror(SagaStore):
    def __init__(self) -> None:
        self.saved: dict[str, list[SagaRecord]] = {}

    async def save(self, record: SagaRecord) -> None:
        self.saved.setdefault(record.saga_id, []).append(dataclasses.replace(record))

    async def load(self, saga_id: str) -> SagaRecord | None:
        return self.saved[saga_id][-1] if saga_id in self.saved else None

    async def list_by_name(self, saga_name: str, status: str | None = None) -> list[SagaRecord]:
        return [records[-1] for records in self.saved.values()]

    async def delete(self, saga_id: str) -> None:
        self.saved.pop(saga_id, None)


async def test_a_store_of_ones_own_is_a_mirror(embedded: str) -> None:
    """It is told at the start and at the end; the journal stays the truth."""
    mirror = Mirror()
    mine = SagaManager(store=mirror)
    mine.register(OrderSaga)
    await mine.wait(await mine.start("OrderSaga", {"order": "o"}, saga_id="m"))

    assert mirror.saved["m"][-1].status == "completed"
    assert (await durable.get_run("m")).status == "completed"


async def test_the_sql_store_is_a_view_over_runs(embedded: str) -> None:
    """Also over a database that is not the default; deleting takes the run along, but not an open one."""
    (workflow,) = OrderSaga.__durable_workflows__()
    await manager.wait(await manager.start("OrderSaga", {"order": "o"}, saga_id="a"))
    await workflow.options(run_id="open").enqueue({"order": "x"}, None)
    store = SqlSagaStore(embedded)

    record = await store.load("a")
    assert record is not None
    assert record.steps["charge"].output == "c-1"
    assert [one.saga_id for one in await store.list_by_name("OrderSaga")] == ["open", "a"]
    assert [one.saga_id for one in await store.list_by_name("OrderSaga", "completed")] == ["a"]
    with pytest.raises(WorkflowStateError):
        await store.delete("open")
    await store.delete("a")
    await store.delete("a")
    assert await store.load("a") is None
    with pytest.raises(RunNotFoundError):
        await durable.get_run("a")


def test_definitions_are_checked() -> None:
    """A class without steps, a compensation of no step, things of other types."""

    class Empty(SagaBase):
        pass

    class Stray(SagaBase):
        @saga_step()
        def a(self) -> None: ...

        @saga_step("b", compensation=True)
        def undo(self) -> None: ...

    for wrong in (Empty, Stray, int, "OrderSaga"):
        with pytest.raises(durable.DefinitionError):
            SagaManager().register(wrong)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        SagaManager(store="sqlite")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        SagaManager(config={})  # type: ignore[arg-type]


async def test_methods_can_be_unit_tested() -> None:
    """A step of an object is the plain method."""
    context = SagaContext(saga_id="s", saga_name="OrderSaga", data={"order": "o"})

    assert await OrderSaga().reserve(context) == {"count": 2}
    assert context["reservation"] == "r-1"
    assert dict(context) == {"order": "o", "reservation": "r-1"}


async def test_a_saga_is_seen_to_compensate(embedded: str) -> None:
    """While it does, its status says so."""
    go_on = asyncio.Event()

    async def slowly(ctx: SagaContext) -> None:
        await go_on.wait()

    class Slow(SagaBase):
        @saga_step(compensation=slowly)
        def act(self) -> None: ...

        @saga_step()
        def fail(self) -> Any:
            return Err("no")

    mine = SagaManager()
    mine.register(Slow)
    await mine.start("Slow", saga_id="s")

    async def compensates() -> bool:
        record = await mine.get("s")
        return record is not None and record.status == "compensating"

    await until(compensates, what="the saga compensates")
    go_on.set()
    assert (await mine.wait("s")).status == "compensated"


async def test_a_store_in_memory_keeps_records_of_others(embedded: str) -> None:
    """As a mirror does: saved, loaded, listed, deleted."""
    store = InMemorySagaStore()
    await manager.wait(await manager.start("OrderSaga", {"order": "o"}, saga_id="elsewhere"))
    record = await manager.get("elsewhere")
    assert record is not None
    await store.save(record)

    assert await store.load("elsewhere") == record
    assert await store.list_by_name("OrderSaga", "completed") == [record]
    assert await store.list_by_name("OrderSaga", "failed") == []
    await store.delete("elsewhere")
    assert await store.load("elsewhere") is None
