"""Applications: what the parts of a program need, registered once, found by type, and the patterns' configuration inside.

    app = Application("shop")
    app.add_module(WorkflowModule.configure(BulkOperationConfig(max_concurrency=50)))
    async with app:
        bus = await app.container.resolve(EventBusProtocol)

Small on purpose: factories by type, made once. No scanning, no injection by signature.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    nullcontext,
    suppress,
)
from contextvars import ContextVar
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, TypeVar, cast, runtime_checkable

import durable
from durable import Client
from durable.patterns import settings
from durable.patterns.bulk_config import BulkOperationConfig
from durable.patterns.module_events import EventBus, EventBusProtocol
from durable.patterns.pipeline import Pipeline
from durable.patterns.saga.mirror import SagaStoreProtocol, saga_mirror
from durable.patterns.state_records import (
    DatabaseProviderProtocol,
    DatabaseStatePersistence,
    StatePersistenceProtocol,
)

T = TypeVar("T")


@runtime_checkable
class ContainerRegistrarProtocol(Protocol):
    """Where providers register what they provide, and find what others do."""

    async def resolve(self, type: type[T]) -> T:
        """Return the one of that type. LookupError: nobody registered it."""
        ...

    def singleton(self, type: type[Any], factory: Callable[[], Any]) -> None:
        """Have `factory`, async or not, make the one of that type when it is first asked for."""
        ...


@runtime_checkable
class PipelineProtocol(Protocol):
    """A pipeline to add steps to."""

    def add_step(self, step: object) -> Any: ...

    async def execute(self, input: Any = None, *, run_id: str | None = None) -> Any: ...


class Container:
    """One object per type, made when it is first asked for."""

    def __init__(self) -> None:
        self._factories: dict[type, Callable[[], Any]] = {}
        self._made: dict[type, asyncio.Future[Any]] = {}

    def singleton(self, type: type[Any], factory: Callable[[], Any]) -> None:
        """Register a factory: a function without arguments, async or not, or a class. A later one takes the place of an earlier one."""
        if not callable(factory):
            raise TypeError(f"the factory of {_name(type)} is something to call, not {factory!r}")
        self._factories[type] = factory
        self._made.pop(type, None)

    async def resolve(self, type: type[T]) -> T:
        """Return the one of that type; made once, also if several ask at once. LookupError: nobody registered it."""
        if type not in self._factories:
            known = ", ".join(sorted(map(_name, self._factories))) or "nothing"
            raise LookupError(f"nobody provides {_name(type)}; registered: {known}")
        while (future := self._made.get(type)) is not None:
            try:
                return cast(T, await asyncio.shield(future))
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not future.cancelled() or (task is not None and task.cancelling()):
                    raise
                # Whoever was making it was cancelled, which is not the business of those who wait: one of them makes it.
        return cast(T, await self._make(type))

    async def _make(self, type: type[Any]) -> Any:
        future = self._made[type] = asyncio.get_running_loop().create_future()
        try:
            made = self._factories[type]()
            made = await made if inspect.isawaitable(made) else made
        except BaseException as error:
            if self._made.get(type) is future:
                del self._made[type]  # the next one tries again
            if isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # perhaps nobody else waits for it
            raise
        future.set_result(made)
        return made


class Provider:
    """Something that registers what it provides when an application starts. Subclass it."""

    async def register(self, container: ContainerRegistrarProtocol) -> None:
        """Register factories; may resolve what earlier providers registered."""

    def active(self) -> AbstractContextManager[None]:
        """Return what holds inside of the application: entered where it is, and by `Application.active()`."""
        return nullcontext()

    async def shutdown(self) -> None:
        """Give back what was taken; called in reverse order."""


class WorkflowProvider(Provider):
    """Provides the patterns and their configuration.

    `config` holds for bulk operations that bring none, `saga_store` is told of sagas (a mirror: their journals are the truth),
    `state_machine` keeps state machines that bring no persistence (default: the durable database). Registers `BulkOperationConfig`,
    `PipelineProtocol` (an empty `Pipeline`), `EventBusProtocol`, `StatePersistenceProtocol`, `DatabaseProviderProtocol` and
    `Client` (the default client), and `SagaStoreProtocol` if there is one.
    """

    def __init__(
        self,
        config: BulkOperationConfig | None = None,
        saga_store: SagaStoreProtocol | None = None,
        state_machine: StatePersistenceProtocol | None = None,
    ) -> None:
        for what, given, wanted in (
            ("config", config, BulkOperationConfig),
            ("saga_store", saga_store, SagaStoreProtocol),
            ("state_machine", state_machine, StatePersistenceProtocol),
        ):
            if given is not None and not isinstance(given, wanted):
                raise TypeError(f"{what} takes a {_name(wanted)}, not {given!r}")
        self.config = BulkOperationConfig() if config is None else config
        self.saga_store = saga_store
        self.state_machine: StatePersistenceProtocol = state_machine or DatabaseStatePersistence()

    async def register(self, container: ContainerRegistrarProtocol) -> None:
        container.singleton(BulkOperationConfig, lambda: self.config)
        container.singleton(PipelineProtocol, Pipeline)
        container.singleton(EventBusProtocol, EventBus)
        container.singleton(StatePersistenceProtocol, lambda: self.state_machine)
        container.singleton(DatabaseProviderProtocol, durable.default_client)
        container.singleton(Client, durable.default_client)
        if self.saga_store is not None:
            container.singleton(SagaStoreProtocol, lambda: self.saga_store)

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(_holding(settings.bulk_config, self.config))
            stack.enter_context(_holding(settings.state_persistence, self.state_machine))
            if self.saga_store is not None:
                stack.enter_context(_holding(saga_mirror, self.saga_store))
            yield


class Module:
    """A named bundle of providers. `@module(imports=[...], providers=[...])` on a subclass says which."""

    imports: ClassVar[tuple[Module | type[Module], ...]] = ()
    provides: ClassVar[tuple[Provider, ...]] = ()

    def providers(self) -> list[Provider]:
        """Return the providers, those of imported modules first."""
        found = [provider for one in self.imports for provider in _module(one).providers()]
        return [*found, *self.provides]


M = TypeVar("M", bound=type[Module])


def module(
    *, imports: Iterable[Module | type[Module]] = (), providers: Iterable[Provider] = ()
) -> Callable[[M], M]:
    """Say what a `Module` subclass is made of."""

    def decorate(cls: M) -> M:
        cls.imports = tuple(imports)
        cls.provides = tuple(providers)
        return cls

    return decorate


class WorkflowModule(Module):
    """The patterns, for an application: `app.add_module(WorkflowModule.configure(...))`."""

    def __init__(self, provider: WorkflowProvider | None = None) -> None:
        self._provider = provider or WorkflowProvider()

    @classmethod
    def configure(
        cls,
        config: BulkOperationConfig | None = None,
        saga_store: SagaStoreProtocol | None = None,
        state_machine: StatePersistenceProtocol | None = None,
    ) -> Self:
        """Return the module with this configuration; see `WorkflowProvider`."""
        return cls(WorkflowProvider(config, saga_store, state_machine))

    @classmethod
    def stub(cls) -> Self:
        """Return the module for tests: retries of bulk operations do not wait."""
        return cls.configure(BulkOperationConfig(retry_delay=0))

    def providers(self) -> list[Provider]:
        return [*super().providers(), self._provider]


class Application:
    """Modules and providers, started together: `async with app`, e.g. in the lifespan of a web application.

    Inside, the configuration of its providers holds for this task and for tasks started from it. A web server's requests are no such
    tasks: there, `with app.active():` around what is to see it.
    """

    def __init__(
        self,
        name: str = "app",
        modules: Iterable[Module | type[Module]] = (),
        providers: Iterable[Provider] = (),
    ) -> None:
        self.name = name
        self.container = Container()
        self._given: list[Module | Provider] = [*map(_module, modules)]
        self._started: list[Provider] = []
        self._stack: ExitStack | None = None
        for provider in providers:
            self.add_provider(provider)

    def __repr__(self) -> str:
        return f"<application {self.name}>"

    def add_module(self, module: Module | type[Module]) -> Self:
        """Add a module, before the application starts."""
        self._check_not_started()
        self._given.append(_module(module))
        return self

    def add_provider(self, provider: Provider) -> Self:
        """Add a provider, before the application starts. They register in the order in which they and their modules were added."""
        self._check_not_started()
        if not callable(getattr(provider, "register", None)):
            raise TypeError(f"a provider has a method register(container), not {provider!r}")
        self._given.append(provider)
        return self

    @classmethod
    @asynccontextmanager
    async def boot(
        cls,
        name: str = "app",
        modules: Iterable[Module | type[Module]] = (),
        providers: Iterable[Provider] = (),
    ) -> AsyncIterator[Self]:
        """Make an application and start it for the length of the block."""
        async with cls(name, modules, providers) as app:
            yield app

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the configuration hold in a block, e.g. in the handler of a request."""
        with ExitStack() as stack:
            for provider in self._started:
                if isinstance(provider, Provider):
                    stack.enter_context(provider.active())
            yield

    async def __aenter__(self) -> Self:
        self._check_not_started()
        self._stack = ExitStack()
        try:
            for provider in self._providers():
                await provider.register(self.container)
                self._started.append(provider)
            self._stack.enter_context(self.active())
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._stack is not None, "entered"
        self._stack.close()
        await self._stop()

    async def _stop(self) -> None:
        """Shut all providers down, whatever some of them raise; then raise that."""
        failed: list[Exception] = []
        started, self._started, self._stack = self._started, [], None
        for provider in reversed(started):
            try:
                if isinstance(provider, Provider):
                    await provider.shutdown()
            except Exception as error:
                failed.append(error)
        if failed:
            raise ExceptionGroup(f"application {self.name!r} did not shut down in order", failed)

    def _providers(self) -> list[Provider]:
        return [
            provider
            for given in self._given
            for provider in (given.providers() if isinstance(given, Module) else [given])
        ]

    def _check_not_started(self) -> None:
        if self._stack is not None:
            raise durable.DefinitionError(
                f"application {self.name!r} is running: add to it, or start it, before"
            )


@contextmanager
def _holding(variable: ContextVar[Any], value: object) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        # Left by another task than it was entered by, as fixtures of tests are: where it held, nobody is any more.
        with suppress(ValueError):
            variable.reset(token)


def _module(given: Module | type[Module]) -> Module:
    if isinstance(given, type) and issubclass(given, Module):
        return given()
    if not isinstance(given, Module):
        raise TypeError(f"a module is a Module, e.g. WorkflowModule.configure(), not {given!r}")
    return given


def _name(type: type) -> str:
    return getattr(type, "__name__", repr(type))
