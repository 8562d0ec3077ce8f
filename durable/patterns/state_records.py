"""What a state machine writes down, and where: records in order, appended with compare-and-set. Knows no transitions.

A machine's state is a fold over its records. A `Moved` that lists callbacks owes them until a `CallbacksRun` names its number.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Protocol, runtime_checkable

import msgspec

import durable
from durable import UndecodableError


class Moved(msgspec.Struct, frozen=True, tag="moved", omit_defaults=True, kw_only=True):
    """One transition that happened. `callbacks` are owed after it; `id` tells a retried attempt that it was its own."""

    from_state: str
    event: str
    to_state: str
    at: datetime
    callbacks: tuple[str, ...] = ()
    id: str | None = None


class CallbacksRun(msgspec.Struct, frozen=True, tag="callbacks_run", kw_only=True):
    """The callbacks of transition number `of` (from 1) have run."""

    of: int


StateRecord = Moved | CallbacksRun


class StateTransition(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a machine's story."""

    from_state: str
    event: str
    to_state: str
    at: datetime


@runtime_checkable
class DatabaseProviderProtocol(Protocol):
    """A database that keeps append-only rows by key. `durable.Client` is one."""

    async def append_rows(self, table: str, key: str, rows: Sequence[bytes], *, after: int) -> bool:
        """Append if `key` has exactly `after` rows; return whether it had."""
        ...

    async def read_rows(self, table: str, key: str) -> list[bytes]:
        """Return the rows of `key`, in order."""
        ...


@runtime_checkable
class StatePersistenceProtocol(Protocol):
    """Where machines keep their records."""

    async def load_transitions(self, machine_id: str) -> list[StateRecord]:
        """Return a machine's records, in order."""
        ...

    async def append(self, machine_id: str, record: StateRecord, *, after: int) -> bool:
        """Append a record if the machine has exactly `after` of them; return whether it was. Atomic."""
        ...


class DatabaseStatePersistence:
    """Records as rows of a table of the durable database, or of `provider`'s. ValueError: `table_name` is no identifier."""

    def __init__(
        self,
        provider: DatabaseProviderProtocol | None = None,
        table_name: str = "workflow_state_transitions",
    ) -> None:
        if provider is not None and not isinstance(provider, DatabaseProviderProtocol):
            raise TypeError(
                f"provider takes a DatabaseProviderProtocol, e.g. a durable.Client, not {provider!r}"
            )
        self._provider = provider
        self.table_name = durable.check_table_name(table_name)

    async def load_transitions(self, machine_id: str) -> list[StateRecord]:
        """Return a machine's records. `UndecodableError`: one of them is damaged."""
        rows = await (await self._database()).read_rows(self.table_name, machine_id)
        return decode_records(machine_id, rows)

    async def append(self, machine_id: str, record: StateRecord, *, after: int) -> bool:
        """Append a record if nobody else was there first."""
        database = await self._database()
        row = msgspec.json.encode(record)
        return await database.append_rows(self.table_name, machine_id, [row], after=after)

    async def _database(self) -> DatabaseProviderProtocol:
        return await durable.default_client() if self._provider is None else self._provider


class InMemoryStatePersistence:
    """Records of this process only."""

    def __init__(self) -> None:
        self._records: dict[str, list[StateRecord]] = {}

    async def load_transitions(self, machine_id: str) -> list[StateRecord]:
        return list(self._records.get(machine_id, ()))

    async def append(self, machine_id: str, record: StateRecord, *, after: int) -> bool:
        records = self._records.setdefault(machine_id, [])
        if len(records) != after:
            return False
        records.append(record)
        return True


_decoder: Final[msgspec.json.Decoder[StateRecord]] = msgspec.json.Decoder(StateRecord)


def decode_records(machine_id: str, rows: Sequence[bytes]) -> list[StateRecord]:
    """Return the records in stored rows. `UndecodableError`: one of them is damaged."""
    try:
        return [_decoder.decode(row) for row in rows]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Its own text would quote bytes that are not UTF-8.
        reason = error if isinstance(error, msgspec.DecodeError) else type(error).__name__
        raise UndecodableError(
            f"the records of state machine {machine_id!r} cannot be read: {reason}"
        ) from None


class Place:
    """Where a machine is: a fold over its records. `version` counts transitions, `records` all that was written."""

    __slots__ = ("ids", "moves", "owed", "records", "state")

    def __init__(self, initial: str) -> None:
        self.state = initial
        self.records = 0
        self.moves: list[Moved] = []
        self.owed: dict[int, Moved] = {}
        self.ids: dict[str, int] = {}

    @property
    def version(self) -> int:
        return len(self.moves)

    def add(self, record: StateRecord) -> None:
        self.records += 1
        if isinstance(record, CallbacksRun):
            self.owed.pop(record.of, None)
            return
        self.state = record.to_state
        self.moves.append(record)
        if record.callbacks:
            self.owed[self.version] = record
        if record.id is not None:
            self.ids[record.id] = self.version

    def story(self) -> list[StateTransition]:
        return [
            StateTransition(from_state=one.from_state, event=one.event, to_state=one.to_state, at=one.at)
            for one in self.moves
        ]
