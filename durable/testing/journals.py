"""Every run that a test recorded, in whatever database, kept when its client is closed and replayed with the test's own code."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from durable.client import Client
from durable.definitions import Registry, WorkflowDefinition
from durable.errors import DefinitionError, DurableError
from durable.recorded import RecordedRun
from durable.replaying import Replayed
from durable.testing.replaying import replayed_all

log = logging.getLogger("durable.testing")


class Journals:
    """The runs of one test. `runs` holds the latest generation of each, as it was when a client that knew it was last closed."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], RecordedRun] = {}
        self._registry = Registry()

    @property
    def runs(self) -> list[RecordedRun]:
        return list(self._runs.values())

    def replay(self) -> list[Replayed]:
        """Replay them all; raise `NonDeterminismError` for the first that today's code does not fit."""
        return replayed_all(self.runs, self._registry)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what clients that are closed in this block know, and the workflows that workers are given."""
        close, add = Client.close, Registry.add
        journals = self

        async def close_and_keep(self: Client) -> None:
            if self._store is not None:
                await journals.keep(self)
            await close(self)

        def add_and_note(self: Registry, definition: WorkflowDefinition) -> bool:
            is_new = add(self, definition)
            if self is not journals._registry:
                journals.note(definition)
            return is_new

        Client.close, Registry.add = close_and_keep, add_and_note  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Client.close, Registry.add = close, add  # type: ignore[method-assign]

    async def keep(self, client: Client) -> None:
        """Keep the runs that a client knows. A database that cannot be read has none."""
        try:
            async for run in client.recorded_runs():
                if isinstance(run, RecordedRun):
                    self._runs[client.url, run.run_id] = run
        except DurableError as error:
            log.info("journals of %s are not kept: %s", client.url, error)

    def note(self, definition: WorkflowDefinition) -> None:
        """Remember a workflow. Two of one name, in different databases of one test, are as one that was defined again."""
        try:
            self._registry.add(definition)
        except DefinitionError:
            self._registry.redefined.add((definition.name, definition.version))
