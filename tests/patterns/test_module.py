"""Applications: containers, providers, modules, what configuration reaches, the event bus."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import durable
from durable import (
    AbstractSaga,
    Application,
    BulkOperation,
    BulkOperationConfig,
    Client,
    ContainerRegistrarProtocol,
    DatabaseProviderProtocol,
    DatabaseStatePersistence,
    DefinitionError,
    EventBus,
    EventBusProtocol,
    InMemoryStatePersistence,
    Module,
    Pipeline,
    PipelineProtocol,
    Provider,
    RunConflictError,
    SagaStep,
    SagaStoreProtocol,
    StateMachine,
    StatePersistenceProtocol,
    WorkflowBuilder,
    WorkflowEngine,
    WorkflowModule,
    WorkflowProvider,
    activity,
    module,
    step,
    workflow,
)
from tests.support.workers import Calls

calls = Calls()


@pytest.fixture(autouse=True)
def _forget() -> None:
    calls.names.clear()


class Mirror:
    """A saga store as users write it."""

    def __init__(self) -> None:
        self.saved: list[tuple[str, str]] = []

    async def save(self, saga_id: str, state: str, data: dict[str, Any]) -> None:
        self.saved.append((saga_id, state))

    async def load(self, saga_id: str) -> Any:
        return None

    async def delete(self, saga_id: str) -> None:
        pass


# ─ the container ──


class Clock:
    pass


async def test_one_object_per_type_made_when_it_is_first_asked_for() -> None:
    """By a function, an async function or a class; once, also if several ask at once."""
    async with Application("a") as app:
        container = app.container
        assert isinstance(container, ContainerRegistrarProtocol)

        async def slowly() -> Clock:
            calls("made")
            await asyncio.sleep(0.001)
            return Clock()

        container.singleton(Clock, slowly)
        assert calls.names == []
        one, two = await asyncio.gather(container.resolve(Clock), container.resolve(Clock))
        assert one is two
        assert calls.names == ["made"]

        container.singleton(Clock, Clock)  # a later one takes its place
        assert await container.resolve(Clock) is not one
        with pytest.raises(LookupError, match=r"Mirror.*Clock"):
            await container.resolve(Mirror)
        with pytest.raises(TypeError, match="factory"):
            container.singleton(Clock, Clock())  # type: ignore[arg-type]  # an object is no factory


async def test_a_factory_that_fails_is_tried_again() -> None:
    """Whoever asks next does not hear the old failure."""

    def flaky() -> Clock:
        if calls("made") == 1:
            raise OSError("not yet")
        return Clock()

    async with Application() as app:
        app.container.singleton(Clock, flaky)
        with pytest.raises(OSError, match="not yet"):
            await app.container.resolve(Clock)
        assert isinstance(await app.container.resolve(Clock), Clock)


async def test_who_is_cancelled_while_making_cancels_nobody_else() -> None:
    """A request that is given up must not take others along that wait for the same thing: one of them makes it."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly() -> Clock:
        calls("made")
        begun.set()
        await go_on.wait()
        return Clock()

    async with Application() as app:
        app.container.singleton(Clock, slowly)
        first = asyncio.ensure_future(app.container.resolve(Clock))
        await begun.wait()
        others = [asyncio.ensure_future(app.container.resolve(Clock)) for _ in range(3)]
        given_up = asyncio.ensure_future(app.container.resolve(Clock))
        await asyncio.sleep(0)

        first.cancel()
        given_up.cancel()
        go_on.set()
        one, two, three = await asyncio.gather(*others)

        assert one is two is three is await app.container.resolve(Clock)
        assert first.cancelled()
        assert given_up.cancelled()
    assert calls.names == ["made", "made"]


# ─ providers and modules ──


class Noting(Provider):
    def __init__(self, name: str, *, fails: str = "") -> None:
        self.name = name
        self.fails = fails

    async def register(self, container: ContainerRegistrarProtocol) -> None:
        calls(f"register {self.name}")
        if self.fails == "register":
            raise OSError(self.name)

    async def shutdown(self) -> None:
        calls(f"shutdown {self.name}")
        if self.fails == "shutdown":
            raise OSError(self.name)


async def test_providers_register_in_order_and_shut_down_in_reverse() -> None:
    """Modules' first to last as they were added; one that fails to shut down does not keep the others from it."""

    @module(providers=[Noting("inner")])
    class Inner(Module):
        pass

    @module(imports=[Inner, WorkflowModule.configure()], providers=[Noting("outer", fails="shutdown")])
    class Outer(Module):
        pass

    app = Application("a", modules=[Outer]).add_provider(Noting("last", fails="shutdown"))

    async def use() -> None:
        async with app:
            calls("inside")
            with pytest.raises(DefinitionError, match="running"):
                app.add_provider(Noting("late"))

    with pytest.raises(ExceptionGroup) as failed:
        await use()

    assert [str(error) for error in failed.value.exceptions] == ["last", "outer"]
    assert calls.names == [
        "register inner",
        "register outer",
        "register last",
        "inside",
        "shutdown last",
        "shutdown outer",
        "shutdown inner",
    ]


async def test_what_was_started_is_shut_down_if_the_rest_cannot_start() -> None:
    """The application was never entered then."""
    app = Application(providers=[Noting("one"), Noting("two", fails="register")])

    with pytest.raises(OSError, match="two"):
        async with app:
            pass

    assert calls.names == ["register one", "register two", "shutdown one"]


async def test_an_application_may_be_left_by_another_task() -> None:
    """As a fixture of a test is: it is shut down in order."""
    app = Application("a", [WorkflowModule.configure()], [Noting("one")])

    await asyncio.create_task(app.__aenter__())
    await asyncio.create_task(app.__aexit__(None, None, None))

    assert calls.names == ["register one", "shutdown one"]
    async with app:  # and may be entered again
        assert await app.container.resolve(BulkOperationConfig) == BulkOperationConfig()


async def test_the_workflow_module_provides_the_patterns(embedded: str) -> None:
    """Each by its type; the defaults without any configuration."""
    async with Application.boot(name="shop", modules=[WorkflowModule.configure()]) as app:
        resolve = app.container.resolve
        assert await resolve(BulkOperationConfig) == BulkOperationConfig()
        pipeline = await resolve(PipelineProtocol)  # type: ignore[type-abstract]
        assert isinstance(pipeline, Pipeline)
        assert pipeline.steps == ()
        assert isinstance(await resolve(StatePersistenceProtocol), DatabaseStatePersistence)  # type: ignore[type-abstract]
        database = await resolve(DatabaseProviderProtocol)  # type: ignore[type-abstract]
        assert database is await resolve(Client)
        assert isinstance(await resolve(EventBusProtocol), EventBus)  # type: ignore[type-abstract]
        with pytest.raises(LookupError):
            await resolve(SagaStoreProtocol)  # type: ignore[type-abstract]


async def test_a_provider_as_the_guide_writes_it(embedded: str) -> None:
    """It resolves the database and registers a persistence of its own."""

    class MyProvider(Provider):
        async def register(self, container: ContainerRegistrarProtocol) -> None:
            db = await container.resolve(DatabaseProviderProtocol)  # type: ignore[type-abstract]
            persistence = DatabaseStatePersistence(provider=db, table_name="my_state_transitions")
            container.singleton(StatePersistenceProtocol, lambda: persistence)

    app = Application(name="wf-demo")
    app.add_module(WorkflowModule.configure())
    app.add_provider(MyProvider())
    async with app:
        found = await app.container.resolve(StatePersistenceProtocol)  # type: ignore[type-abstract]
        assert isinstance(found, DatabaseStatePersistence)
        assert found.table_name == "my_state_transitions"


def test_what_is_no_configuration_is_refused() -> None:
    """TypeError, where it is said, and not where it would be used."""
    for wrong in (
        lambda: WorkflowModule.configure(config={}),  # type: ignore[arg-type]
        lambda: WorkflowModule.configure(saga_store=object()),  # type: ignore[arg-type]
        lambda: WorkflowModule.configure(state_machine=object()),  # type: ignore[arg-type]
        lambda: WorkflowModule.configure(sagastore=None),  # type: ignore[call-arg]
        lambda: Application(modules=[object()]),  # type: ignore[list-item]
        lambda: Application().add_provider(object()),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError):
            wrong()
    assert isinstance(WorkflowProvider(), Provider)


# ─ what configuration reaches ──


class Ship(AbstractSaga):
    def __init__(self) -> None:
        super().__init__()
        self.add_step(SagaStep("ship", lambda: "shipped"))


async def double(item: int) -> int:
    return item * 2


async def test_configuration_holds_inside_of_the_application(embedded: str) -> None:
    """For operations that bring none, machines that bring no persistence, and all sagas; not before, and not after."""
    mirror, persistence = Mirror(), InMemoryStatePersistence()
    config = BulkOperationConfig(batch_size=200, max_concurrency=7)
    app = Application().add_module(WorkflowModule.configure(config, mirror, persistence))
    op = BulkOperation(double)

    async with app:
        assert op.config is config
        own = BulkOperationConfig()
        assert BulkOperation(double, own).config is own
        await op.execute([1], run_id="b")
        await Ship().execute(run_id="saga")
        await StateMachine("a", {"a": {"go": "b"}, "b": {}}, machine_id="m").transition("go")

    assert op.config == BulkOperationConfig()
    settings = (await durable.get_run("b")).journal[0].result
    assert (settings["batch_size"], settings["max_concurrency"]) == (200, 7)
    assert mirror.saved[-1] == ("saga", "completed")
    assert len(await persistence.load_transitions("m")) == 1
    assert await StateMachine("a", {"a": {}, "b": {}}, machine_id="m").recover() == "a"


async def test_in_the_lifespan_of_a_web_application(embedded: str) -> None:
    """Its requests are tasks of the server, which know nothing of the lifespan's: `with app.active()` tells them."""
    config = BulkOperationConfig(max_concurrency=7)
    app = Application("web", [WorkflowModule.configure(config)])

    @asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        async with app:
            yield

    seen: list[int] = []

    async def request() -> None:
        seen.append(BulkOperation(double).config.max_concurrency)
        with app.active():
            seen.append(BulkOperation(double).config.max_concurrency)
            bus = await app.container.resolve(EventBusProtocol)  # type: ignore[type-abstract]
            assert await bus.publish("nobody.listens") == []

    started, ended = asyncio.Event(), asyncio.Event()

    async def serve_lifespan() -> None:
        async with lifespan(None):
            started.set()
            await ended.wait()

    serving = asyncio.ensure_future(serve_lifespan())
    await started.wait()
    await asyncio.ensure_future(request())
    ended.set()
    await serving

    assert seen == [5, 7]


# ─ events ──


@workflow
async def ship(payload: dict[str, Any]) -> str:
    return str(await shipped(payload["order"]))


@activity
async def shipped(order: str) -> str:
    calls(f"ship {order}")
    return f"shipped {order}"


@step
async def mail(ctx: dict[str, Any]) -> str:
    calls(f"mail {ctx['order']}")
    return "mailed"


def new_bus(**options: Any) -> EventBus:
    bus = EventBus(**options)
    bus.subscribe("order.paid", ship)
    bus.subscribe("order.paid", ship)  # once is enough
    bus.subscribe("order.paid", Pipeline("mailing", [mail]))
    return bus


async def test_each_subscriber_is_started_once_per_event(embedded: str) -> None:
    """Under ids that derive from the event's: publishing again finds the same runs; another payload is a conflict."""
    bus = new_bus()

    for _ in range(2):
        ids = await bus.publish("order.paid", {"order": "o-7"}, id="o-7")
        assert ids == ["ship-order.paid-o-7", "mailing-order.paid-o-7"]
        results = [await (await durable.get_handle(run_id)).result() for run_id in ids]
        assert results == ["shipped o-7", "mailed"]
    assert sorted(calls.names) == ["mail o-7", "ship o-7"]

    with pytest.raises(RunConflictError):
        await bus.publish("order.paid", {"order": "o-8"}, id="o-7")
    first, second = await bus.publish("order.paid", {"order": "o-9"}), await bus.publish("other", 1)
    assert (len(first), second) == (2, [])
    long = await bus.publish("order.paid", {"order": "o"}, id="x" * 300)
    assert all(len(run_id) <= 200 for run_id in long)
    for wrong in ("", 7, "a\nb"):
        with pytest.raises(ValueError, match="event"):
            await bus.publish(wrong)  # type: ignore[arg-type]  # one of them
    with pytest.raises(TypeError, match="workflow"):
        bus.subscribe("x", print)  # type: ignore[arg-type]


async def test_a_graph_is_started_with_the_payload_as_its_state(embedded: str) -> None:
    """Also left to a worker. What has no name, or nothing to start, is no subscriber."""
    builder = WorkflowBuilder("packing").add_node("pack", node=lambda state: {"packed": state["order"]})
    engine = WorkflowEngine(builder.build())
    bus, leaving = EventBus(), EventBus(enqueue=True)
    for one in (bus, leaving):
        one.subscribe("order.paid", engine)

    (run_id,) = await bus.publish("order.paid", {"order": "o-7"}, id="o-7")
    done = await (await durable.get_handle(run_id)).result()
    (left,) = await leaving.publish("order.paid", {"order": "o-8"}, id="o-8")

    assert done["final_state"] == {"order": "o-7", "packed": "o-7"}
    assert (await durable.get_run(left)).input["state"] == {"order": "o-8"}
    for wrong in (Ship, print, object()):
        with pytest.raises(TypeError, match=r"what subscribes to 'order\.paid'"):
            bus.subscribe("order.paid", wrong)  # type: ignore[arg-type]


async def test_events_may_be_left_to_workers(embedded: str) -> None:
    """`EventBus(enqueue=True)` stores the runs only."""
    (run_id, _) = await new_bus(enqueue=True).publish("order.paid", {"order": "o-7"}, id="e")

    assert (await durable.get_run(run_id)).status == "pending"


async def test_a_workflow_publishes_once(embedded: str) -> None:
    """As an activity of its run: neither a replay nor a retried attempt publishes anew."""
    bus = new_bus()

    @workflow
    async def paying() -> list[str]:
        return await bus.publish("order.paid", {"order": "o-7"})

    @activity(retry=durable.Retry(initial=0.01, maximum=0.01))
    async def pay() -> list[str]:
        ids = await bus.publish("order.paid", {"order": "o-8"})
        if calls("pay") == 1:
            raise OSError("lost")
        return ids

    @workflow
    async def paying_apart() -> list[str]:
        return await pay()

    ids = await paying(run_id="r")
    assert await paying(run_id="r") == ids
    apart = await paying_apart(run_id="a")
    for run_id in (*ids, *apart):
        await (await durable.get_handle(run_id)).result()

    assert sorted(calls.names) == ["mail o-7", "mail o-8", "pay", "pay", "ship o-7", "ship o-8"]
    entry = (await durable.get_run("r")).journal[0]
    assert (entry.name, entry.kind) == ("publish order.paid", "event")
