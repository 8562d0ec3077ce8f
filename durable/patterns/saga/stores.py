"""Where sagas are kept: views over runs. The journal is the truth; nothing here is written that a saga depends on.

`SqlSagaStore` is the durable database itself. `InMemorySagaStore` is a database of its own that nothing outlives, for tests. A
store of the user's own is a mirror: the manager saves a record to it after what it tells is in the journal.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final

import durable
from durable import RunNotFoundError
from durable.patterns.saga.records import SagaRecord, record_of


class SagaStore(ABC):
    """What a manager of sagas tells of them. Subclass it for a mirror of your own."""

    @abstractmethod
    async def save(self, record: SagaRecord) -> None:
        """Keep a record under its `saga_id`, in place of an older one."""

    @abstractmethod
    async def load(self, saga_id: str) -> SagaRecord | None:
        """Return a record, or None."""

    @abstractmethod
    async def list_by_name(self, saga_name: str, status: str | None = None) -> list[SagaRecord]:
        """Return the records of a name, newest first."""

    @abstractmethod
    async def delete(self, saga_id: str) -> None:
        """Forget a record; nothing if it is unknown."""


class SqlSagaStore(SagaStore):
    """The sagas of the default database, or of that at `url`: views over their runs."""

    def __init__(self, url: str | None = None) -> None:
        self._url = url

    @property
    def is_elsewhere(self) -> bool:
        """Whether it names a database, rather than the default one."""
        return self._url is not None

    def database(self) -> AbstractContextManager[None]:
        """Make this store's database the default one in a block."""
        return nullcontext() if self._url is None else durable.using(self._url)

    async def save(self, record: SagaRecord) -> None:
        """Do nothing: what a record tells is in the journal, where it was read."""

    async def load(self, saga_id: str) -> SagaRecord | None:
        with self.database():
            try:
                run = await durable.get_run(saga_id)
            except RunNotFoundError:
                return None
        return record_of(run) if run.kind == "saga" or run.status == "pending" else None

    async def list_by_name(self, saga_name: str, status: str | None = None) -> list[SagaRecord]:
        with self.database():
            runs = await durable.list_runs(workflow=saga_name, limit=LIST_MAX)
        records = [record_of(run) for run in runs if run.kind == "saga" or run.status == "pending"]
        return [record for record in records if status is None or record.status == status]

    async def delete(self, saga_id: str) -> None:
        """Delete a closed saga with its run. Open: `WorkflowStateError`."""
        with self.database():
            try:
                await durable.delete_run(saga_id)
            except RunNotFoundError:
                pass


LIST_MAX: Final = 10_000


class InMemorySagaStore(SqlSagaStore):
    """A database of its own, which nothing outlives: it goes with this object. For tests."""

    def __init__(self) -> None:
        super().__init__()
        directory = tempfile.mkdtemp(prefix="durable-saga-")
        self._directory = Path(directory)
        self._saved: dict[str, SagaRecord] = {}  # of sagas that are no runs of this database
        self._url = f"sqlite:///{self._directory / 'runs.db'}"
        weakref.finalize(self, _remove, directory, os.getpid())

    @contextmanager
    def database(self) -> Iterator[None]:
        assert self._url is not None, "set above"
        with durable.using(self._url, durability="off"):
            yield

    async def save(self, record: SagaRecord) -> None:
        """Keep the record of a saga that runs elsewhere; of one that runs here, its journal tells more."""
        if await super().load(record.saga_id) is None:
            self._saved[record.saga_id] = record

    async def load(self, saga_id: str) -> SagaRecord | None:
        found = await super().load(saga_id)
        return self._saved.get(saga_id) if found is None else found

    async def list_by_name(self, saga_name: str, status: str | None = None) -> list[SagaRecord]:
        saved = [one for one in self._saved.values() if one.saga_name == saga_name]
        chosen = [one for one in saved if status is None or one.status == status]
        return [*await super().list_by_name(saga_name, status), *reversed(chosen)]

    async def delete(self, saga_id: str) -> None:
        self._saved.pop(saga_id, None)
        await super().delete(saga_id)

    async def clear(self) -> None:
        """Delete all closed sagas."""
        self._saved.clear()
        with self.database():
            runs: list[Any] = await durable.list_runs(limit=LIST_MAX)
            for run in runs:
                if run.status.is_closed:
                    await durable.delete_run(run.run_id)


def _remove(directory: str, pid: int) -> None:
    if os.getpid() == pid:
        shutil.rmtree(directory, ignore_errors=True)
