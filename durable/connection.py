"""An opened database as clients and workers of this process share it. Knows no verbs: those are the client's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import NamedTuple, Protocol, Self

from durable.definitions import ActivityDefinition
from durable.errors import DefinitionError
from durable.limits import DEFAULT_LIMITS, Limits
from durable.outcomes import OutcomeWatch
from durable.payloads.codec import PayloadCodec, check_codec
from durable.seams import Clock, Random, SystemRandom
from durable.store.contract import Store
from durable.store.opening import Durability, clock_for, masked, open_store
from durable.store.records import Claim, StartRequest
from durable.store.sealing import sealed


class Address(NamedTuple):
    """How to reach one database, and to read it."""

    url: str  # with its password
    codec: PayloadCodec | None = None
    limits: Limits = DEFAULT_LIMITS

    def __repr__(self) -> str:
        return f"<address {masked(self.url)}>"


# The database of the worker whose activity is running: what the activity starts goes there, not to the default.
address_here: ContextVar[Address | None] = ContextVar("durable_address", default=None)


StandIn = Callable[[ActivityDefinition], ActivityDefinition]


class LocalWorker(Protocol):
    """A worker on this client's store and loop, as the client sees it."""

    @property
    def worker_id(self) -> int:
        """Return its incarnation, 0 if it has none."""

    def reserve_room(self, request: StartRequest, wanted: int) -> int:
        """Take places for up to `wanted` runs of this kind that it would begin to drive at once; return how many."""
        ...

    def return_room(self, places: int) -> None:
        """Give back what `reserve_room` took."""
        ...

    def adopt(self, claim: Claim) -> None:
        """Drive a run that was started as its own."""

    async def look(self) -> bool:
        """Claim what is ready and take in messages; return whether there may be more to claim."""
        ...

    @property
    def running(self) -> int:
        """Return how many activities' code runs now."""

    @property
    def is_at_rest(self) -> bool:
        """Return whether nothing can go on without more time, messages, or the end of code that runs."""


class Connection:
    """One database of runs: opened, closed, and what all that use it here need of it. Belongs to one event loop."""

    def __init__(
        self,
        url: str,
        *,
        durability: Durability = "full",
        create: bool = True,
        codec: PayloadCodec | None = None,
        limits: Limits = DEFAULT_LIMITS,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        if codec is not None:
            check_codec(codec)
        self._url = url
        self._codec = codec
        self.limits = limits
        self._durability = durability
        self._create = create
        self.clock = clock or clock_for(url)
        self.random = random or SystemRandom()
        self._store: Store | None = None
        self._watch: OutcomeWatch | None = None
        self._workers: list[LocalWorker] = []
        # What workers made with this client perform in place of an activity: mocks. Internal to this library.
        self.stand_in: StandIn | None = None

    async def open(self) -> Self:
        """Open (create, migrate) the database. `async with` does this."""
        if self._store is None:
            store = await open_store(
                self._url, durability=self._durability, clock=self.clock, create=self._create
            )
            self.use(sealed(store, self._codec))
        return self

    def use(self, store: Store) -> None:
        """Take a store that is open already. For simulations; internal to this library."""
        self._store = store
        self._watch = OutcomeWatch(store, self.clock)

    async def close(self) -> None:
        """Close the database. Idempotent."""
        store, watch = self._store, self._watch
        self._store = self._watch = None
        if watch is not None:
            await watch.close()
        if store is not None:
            await store.close()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The database's address, password masked."""
        return masked(self._url)

    @property
    def address(self) -> Address:
        """The address with its password, the codec and the limits. Internal to this library."""
        return Address(self._url, self._codec, self.limits)

    @property
    def store(self) -> Store:
        """The opened store; internal to this library."""
        if self._store is None:
            raise DefinitionError("the client is not open: use `async with durable.connect(url) as client`")
        return self._store

    @property
    def watch(self) -> OutcomeWatch:
        """Who waits for which run; internal to this library."""
        if self._watch is None:
            raise DefinitionError("the client is not open: use `async with durable.connect(url) as client`")
        return self._watch

    @property
    def workers_here(self) -> Sequence[LocalWorker]:
        """The workers of this process that were made with this client. Internal to this library."""
        return self._workers

    def add_worker(self, worker: LocalWorker) -> Callable[[], None]:
        """Let a worker of this process drive what is started here; return the undoing. Internal to this library."""
        self._workers.append(worker)
        return lambda: self._workers.remove(worker)


def judge_size(connection: Connection, data: bytes, *, what: str, run_id: str) -> None:
    """Raise if a payload on its way to a run is too large, or warn of it."""
    if len(data) > connection.limits.payload_bytes_warn:
        connection.limits.judge(len(data), what=what, run_id=run_id)
