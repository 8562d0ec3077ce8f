"""What `SagaManager` and `SagaOrchestrator` share: sagas by name, started, found, awaited, cancelled and recovered by id.

A saga is a run; its id is the run's. Records are views over runs.
"""

from __future__ import annotations

import asyncio
import builtins
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime, timedelta
from typing import Any, Final

import durable
from durable import (
    Activity,
    DefinitionError,
    DurableError,
    Retry,
    Run,
    RunHandle,
    RunNotFoundError,
    RunParkedError,
    SagaVersionMismatchError,
    Seconds,
    Workflow,
    WorkflowVersionMismatchError,
    make_activity,
)
from durable.patterns.policies import as_seconds
from durable.patterns.running import current_run_id
from durable.patterns.saga.config import SagaConfig
from durable.patterns.saga.mirror import saga_mirror, tell_mirror
from durable.patterns.saga.records import SagaRecord, record_of
from durable.patterns.saga.stores import LIST_MAX, InMemorySagaStore, SagaStore, SqlSagaStore

CLEANUP_EVERY: Final = timedelta(hours=1)
# However often workers die while a workflow waits for a saga: it waits on.
LOST_ONLY: Final = Retry(max_attempts=0, retry_on=())
_UNDER_WAY: Final = ("pending", "running", "waiting", "compensating")
_OPEN: Final = ("pending", "running", "waiting", "parked")


class SagaRuntime:
    """Sagas by name. `store` says where they live, or mirrors them; `config` holds for all of them."""

    def __init__(self, store: SagaStore | None = None, config: SagaConfig | None = None) -> None:
        if config is not None and not isinstance(config, SagaConfig):
            raise TypeError(f"config takes a SagaConfig, not {config!r}")
        if store is not None and not isinstance(store, SagaStore):
            raise TypeError(f"store takes a SagaStore, not {store!r}")
        self.config = SagaConfig() if config is None else config
        if store is None and not self.config.persist_state:
            store = InMemorySagaStore()
        self.store: SagaStore = SqlSagaStore() if store is None else store
        self._versions: dict[str, builtins.list[Workflow[..., Any]]] = {}
        self._planned: dict[str, Sequence[str]] = {}
        self._groups: dict[str, Mapping[str, Sequence[str]]] = {}
        self._cleaned_at: datetime | None = None

    def _add(self, name: str, versions: builtins.list[Workflow[..., Any]], planned: Sequence[str]) -> None:
        self._versions[name] = versions
        self._planned[name] = planned

    def _database(self) -> AbstractContextManager[None]:
        return self.store.database() if isinstance(self.store, SqlSagaStore) else nullcontext()

    def __durable_workflows__(self) -> builtins.list[Workflow[..., Any]]:
        return [workflow for versions in self._versions.values() for workflow in versions]

    # ─ what users call ──

    async def start(
        self, name: str, data: Mapping[str, Any] | None = None, saga_id: str | None = None
    ) -> str:
        """Start a saga, drive it in this process, and return its id, once it is durably stored.

        An id that is known attaches to that saga, resumes it, or leaves it closed as it is; with other data it is a
        `RunConflictError`. In a workflow it is a child of that run, which outlives it, and in an activity its id derives from it, too: so
        a replay or a retry finds the same saga. KeyError: no saga of that name. Raises `SagaVersionMismatchError`.
        """
        workflow = self._latest(name)
        given = dict(data or {})
        if current_run_id() is not None:
            return await self._start_in_run(name, given, saga_id)
        with self._database():
            await self._clean_up_now_and_then()
            try:
                handle = await workflow.options(run_id=saga_id).start(given, self.config.stored())
            except WorkflowVersionMismatchError as mismatch:
                handle = await self._start_older(name, given, mismatch)
            await self._mirror(handle.run_id)
            return handle.run_id

    async def enqueue(
        self, name: str, data: Mapping[str, Any] | None = None, saga_id: str | None = None
    ) -> str:
        """Store a saga for a worker that serves the module of this object, or of the saga, and return its id.

        In a workflow as `start`, whose sagas any worker drives. DefinitionError: the sagas live where no worker sees them.
        KeyError: no saga of that name.
        """
        workflow = self._latest(name)
        if isinstance(self.store, InMemorySagaStore):
            raise DefinitionError(f"saga {name!r} lives in this process, where no worker sees it: start() it")
        if current_run_id() is not None:
            return await self.start(name, data, saga_id)
        with self._database():
            await self._clean_up_now_and_then()
            made = workflow.options(run_id=saga_id)
            handle = await made.enqueue(dict(data or {}), self.config.stored())
            await self._mirror(handle.run_id)
            return handle.run_id

    async def get(self, saga_id: str) -> SagaRecord | None:
        """Return what is known of a saga, or None."""
        if current_run_id() is not None:
            seen: SagaRecord | None = await _unit(self.get, result=SagaRecord | None)(saga_id)
            return seen
        with self._database():
            try:
                return self._record(await durable.get_run(saga_id))
            except RunNotFoundError:
                return None

    async def wait(self, saga_id: str, timeout: Seconds | None = None) -> SagaRecord:
        """Wait until a saga is closed, however it ended, and return its record.

        After `timeout` (seconds or timedelta) TimeoutError. Raises `RunNotFoundError`; for a parked one the fault.
        """
        if current_run_id() is not None:
            limit = None if timeout is None else as_seconds("timeout", timeout)
            see_closed = _unit(self._see_closed, name="saga/wait", result=SagaRecord)
            record: SagaRecord = await see_closed(saga_id, limit)
            return record
        with self._database():
            return await self._closed(await durable.get_handle(saga_id), timeout)

    async def list(self, name: str | None = None, status: str | None = None) -> builtins.list[SagaRecord]:
        """Return the sagas of a name (default: of all names known here) in a status (default: any), newest first."""
        if current_run_id() is not None:
            known: list[SagaRecord] = await _unit(self.list, result=builtins.list[SagaRecord])(name, status)
            return known
        names = [name] if name is not None else builtins.list(self._versions)
        with self._database():
            runs = [run for one in names for run in await durable.list_runs(workflow=one, limit=LIST_MAX)]
        runs.sort(key=lambda run: run.created_at, reverse=True)
        records = [self._record(run) for run in runs]
        return [record for record in records if status is None or record.status == status]

    async def cancel(self, saga_id: str, reason: str | None = None) -> None:
        """Ask an open saga to cancel: what it has done is undone. Raises `RunNotFoundError`, `WorkflowStateError` if it is closed."""
        if current_run_id() is not None:
            await _unit(self.cancel, result=type(None))(saga_id, reason)
            return
        with self._database():
            await durable.cancel(saga_id, reason)

    async def recover(self, wait: bool = False, timeout: Seconds | None = None) -> builtins.list[SagaRecord]:
        """Go on, in this process, with the open sagas that nobody drives. With `wait`, return once they are closed.

        `timeout` (seconds or timedelta) limits all the waiting: TimeoutError.
        """
        if current_run_id() is not None:
            raise DefinitionError("recover() goes on with sagas in this process: it is not for workflows")
        with self._database():
            handles = [
                await workflow.attach(run.run_id)
                for workflow in self.__durable_workflows__()
                for run in await durable.list_runs(workflow=workflow.name, status=_OPEN, limit=LIST_MAX)
                if run.version == workflow.version
            ]
            if not wait:
                return [self._record(await handle.describe()) for handle in handles]
            async with asyncio.timeout(None if timeout is None else as_seconds("timeout", timeout)):
                return [await self._closed(handle, None) for handle in handles]

    async def cleanup(self) -> int:
        """Delete the sagas that were completed, or compensated, longer ago than the configuration says; return how many.

        Those with a longer retention of their own stay. Workers that serve the sagas do the same, now and then, and so does
        `durable prune --app`.
        """
        with self._database():
            client = await durable.default_client()
            pruned = [
                await client.prune(
                    self.config.tidied,
                    status=("completed", "compensated"),
                    workflow=name,
                    heeds_retention=True,
                )
                for name in self._versions
            ]
        return sum(one.runs for one in pruned)

    # ─ the rest is private ──

    def _latest(self, name: str) -> Workflow[..., Any]:
        if name not in self._versions:
            raise KeyError(f"no saga {name!r} here; known: {', '.join(self._versions) or 'none'}")
        return self._versions[name][-1]

    async def _start_in_run(self, name: str, data: dict[str, Any], saga_id: str | None) -> str:
        is_elsewhere = isinstance(self.store, SqlSagaStore) and self.store.is_elsewhere
        if (
            saga_id is not None or is_elsewhere
        ):  # which may be known already, or to a database that is not the run's
            started: str = await _unit(self.start, name=f"{name}/start", result=str)(name, data, saga_id)
            return started
        child = self._latest(name).options(on_parent_close="abandon")
        handle = await child.start(data, self.config.stored())
        if self._has_mirror:
            await _unit(self._mirror, result=type(None))(handle.run_id)
        return handle.run_id

    async def _see_closed(self, saga_id: str, timeout: float | None) -> SagaRecord:
        """Do what `wait` does for a workflow: go on here with a saga that nobody drives.

        One that the workflow started under an id of its own may have died with the process that drove both, and a script that is run
        again asks for the workflow alone.
        """
        with self._database():
            run = await durable.get_run(saga_id)
            for workflow in self._versions.get(run.workflow, ()):
                if workflow.version == run.version and run.status in _UNDER_WAY:
                    return await self._closed(await workflow.attach(saga_id), timeout)
            return await self._closed(await durable.get_handle(saga_id), timeout)

    @property
    def _has_mirror(self) -> bool:
        return not isinstance(self.store, SqlSagaStore) or saga_mirror.get() is not None

    async def _start_older(
        self, name: str, data: dict[str, Any], mismatch: WorkflowVersionMismatchError
    ) -> RunHandle[Any]:
        for workflow in self._versions[name]:
            if workflow.version == mismatch.stored_version:
                return await workflow.options(run_id=mismatch.run_id).start(data, self.config.stored())
        raise SagaVersionMismatchError(
            mismatch.run_id, mismatch.stored_version, mismatch.code_version
        ) from mismatch

    def _record(self, run: Run) -> SagaRecord:
        return record_of(run, self._planned.get(run.workflow, ()), self._groups.get(run.workflow))

    async def _closed(self, handle: RunHandle[Any], timeout: Seconds | None) -> SagaRecord:
        try:
            await handle.result(timeout)
        except (durable.PlatformFault, RunParkedError, durable.StoreError, RunNotFoundError):
            raise
        except DurableError:
            pass  # how it ended is in its record
        record = self._record(await handle.describe())
        await self._save(record)
        return record

    async def _mirror(self, saga_id: str) -> None:
        if self._has_mirror:
            await self._save(self._record(await durable.get_run(saga_id)))

    async def _save(self, record: SagaRecord) -> None:
        await self.store.save(record)
        done = {name: step.output for name, step in record.steps.items() if step.status == "completed"}
        versions = self._versions.get(record.saga_name)
        await tell_mirror(
            record.saga_id,
            record.status,
            version=versions[-1].version if versions else 1,
            completed_steps=done,
            results=done,
        )

    async def _clean_up_now_and_then(self) -> None:
        now = durable.now()
        if self._cleaned_at is None or now - self._cleaned_at >= CLEANUP_EVERY:
            self._cleaned_at = now
            await self.cleanup()


def _unit(fn: Callable[..., Any], *, result: object, name: str = "") -> Activity[..., Any]:
    """Return the activity by which a workflow calls a method of a manager. It is tried again only if it was lost with its worker."""
    named = name or f"saga/{fn.__name__.strip('_')}"
    return make_activity(fn, name=named, kind="saga", retry=LOST_ONLY, result=result)
