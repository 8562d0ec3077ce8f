"""Updates, called from outside: the message is stored once, whatever is repeated, and its answer is read from the journal.

Where the answer is. The run records it in the generation in which it handles the update, in the turn in which that ends. A life of the run that is tried again may
handle an update once more, and answer it again: the first answer counts, since somebody may have had it. So whoever calls for the first time reads on from
where the run stood before; whoever repeats a call looks for the generation that took the update in first, and reads on from its beginning. A
generation that was ended by force may leave an update without an answer; then, and if it was never taken in, the run has ended before.

Knows nothing of who drives the run. Its worker tells, if it is in this process, or a hint of the store; polling stands behind both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from durable.connection import Connection, judge_size
from durable.definitions import UpdateMethod, WorkflowDefinition, check_run_id, check_text
from durable.engine.updates import near_names
from durable.errors import ArgumentsError, UndecodableError
from durable.journal.events import (
    END_TYPES,
    End,
    Retried,
    Terminated,
    TimedOut,
    UpdateAnswered,
    UpdateReceived,
)
from durable.journal.lifecycle import RunStatus
from durable.outcomes import HINT_SECONDS_MIN, LOOK_SHARE
from durable.payloads import ValueType
from durable.reading import decode_entries
from durable.seams import pause, spawn
from durable.store.records import Outgoing, RunRecord, update_message_id
from durable.workflow_classes import marked_update

ROWS: Final = 500  # of the journal, read at a time
POLL_SECONDS_MIN: Final = 0.02  # between two looks, while there is news
POLL_SECONDS_MAX: Final = 0.25

Called = str | Callable[..., object]  # an update by its name, or by the method that takes it
_ANY: Final = ValueType.of(Any)
_NULL: Final = ValueType.of(type(None))


class Answer(NamedTuple):
    """What came of a call: the answer; or none, because the run had ended before; or the record of the run, which is parked."""

    name: str
    found: UpdateAnswered | None
    result_type: ValueType
    parked: RunRecord | None = None


async def call_update(
    connection: Connection,
    run_id: str,
    update: Called,
    *,
    value: object,
    id: str | None,
    known: WorkflowDefinition | None = None,
) -> Answer:
    """See `RunHandle.update`. `known` is the workflow that the caller takes the run to be of."""
    store = connection.store
    if id is not None and id != "":
        check_text(id, "an update's id")
    id = id or connection.random.request_id()
    while True:
        record = await store.get_run(check_run_id(run_id))
        name, value_type, result_type = _named(update, record, known)
        message = _message(connection, run_id, name, value, value_type=value_type, id=id)
        start = _Start(record, await store.last_turn(record.pk, record.generation))
        outcome = await store.send_message(message, connection.clock.now_us())
        call = _Call(connection, name, id)
        if outcome.duplicate:
            first = await call.first_taken_in(record)
            if first is None and not outcome.is_unread:
                return Answer(name, None, result_type)
            start = first or start
        try:
            found = await call.answer(start)
        except _Uncertain:
            continue  # the store knows whether it is there
        except _IsParked as parked:
            return Answer(name, None, result_type, parked.record)
        return Answer(name, found, result_type)


def _named(
    update: Called, record: RunRecord, known: WorkflowDefinition | None
) -> tuple[str, ValueType, ValueType]:
    """Return the name of an update and the types of its value and of its result, as far as they are known here."""
    if not isinstance(update, str):
        method = marked_update(update)
        if method is None:
            raise ArgumentsError(
                f"an update is named by text, or by a method that is marked with @workflow.update, not {update!r}"
            )
        return _types_of(method)
    check_text(update, "an update's name")
    if (
        known is None
        or not known.is_class
        or (known.name, known.version) != (record.workflow, record.version)
    ):
        return update, _ANY, _ANY
    if update not in known.updates:
        raise ArgumentsError(
            f"workflow {known.name!r} takes no update {update!r} ({near_names(update, known.updates)})"
        )
    return _types_of(known.updates[update])


def _types_of(method: UpdateMethod) -> tuple[str, ValueType, ValueType]:
    return method.name, method.value_type if method.takes_value else _NULL, method.result_type


def _message(
    connection: Connection, run_id: str, name: str, value: object, *, value_type: ValueType, id: str
) -> Outgoing:
    data = value_type.encode(value)
    try:
        value_type.decode(data)
    except UndecodableError as error:
        raise ArgumentsError(str(error.naming(f"update {name!r} takes another type"))) from error
    judge_size(connection, data, what=f"the update {name!r}", run_id=run_id)
    return Outgoing(
        run_id=run_id,
        kind="update",
        name=name,
        data=data,
        message_id=update_message_id(id),
        unread_max=connection.limits.unread_messages,
    )


class _Start(NamedTuple):
    """Where to read on: behind a turn of a generation."""

    run: RunRecord
    turn: int


class _Uncertain(Exception):
    """A generation was ended by force, and another one opened: the update may be in neither. Private to this module."""


class _IsParked(Exception):
    """The run stands still, and has not answered. Private to this module."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__(record.run_id)
        self.record = record


class _Call:
    """One caller of one update."""

    def __init__(self, connection: Connection, name: str, id: str) -> None:
        self._connection = connection
        self._store = connection.store
        self._name = name
        self._id = id

    async def first_taken_in(self, record: RunRecord) -> _Start | None:
        """Return the beginning of the generation that took the update in first, looking back from the latest; None: none did."""
        found: _Start | None = None
        for generation in range(record.generation, 0, -1):
            run = await self._store.get_run(record.run_id, generation)
            is_here = is_later_life = False
            for entry in decode_entries(await self._store.read_journal(run.pk, generation)):
                if isinstance(entry, UpdateReceived) and self._is_it(entry):
                    is_here, is_later_life = True, entry.accepted
                elif isinstance(entry, Retried) and is_here:
                    is_later_life = True  # copied from the life before
            if is_here:
                found = _Start(run, 0)
                if not is_later_life:
                    break
        return found

    def _is_it(self, entry: UpdateReceived) -> bool:
        if entry.id != self._id:
            return False
        if entry.name != self._name:
            raise ArgumentsError(
                f"id {self._id!r} is that of another update, {entry.name!r}: an id stands for one call of one update"
            )
        return True

    async def answer(self, start: _Start) -> UpdateAnswered | None:
        """Return the first answer from `start` on, once it is durable; None: the run has ended without one."""
        run, turn = start
        while True:
            found = await self._answer_in(run, turn)
            if isinstance(found, UpdateAnswered) or found is None:
                return found
            run, turn = found, 0

    async def _answer_in(self, run: RunRecord, turn: int) -> UpdateAnswered | RunRecord | None:
        """Return the answer that one generation has; else the next generation, or None if there is none to come."""
        watch = self._connection.watch
        ended = spawn(watch.ended(run.pk, run.generation), name="durable update")
        bell = _Bell(self._connection, run.pk)
        ended.add_done_callback(lambda _: bell.ring())
        after = (turn, 1 << 30)
        taken_in: int | None = None
        end: End | None = None
        try:
            while True:
                bell.reset()
                is_over = ended.done()
                rows = await self._store.read_journal_page(run.pk, run.generation, after=after, limit=ROWS)
                for entry in decode_entries(rows, after=after):
                    if isinstance(entry, UpdateReceived) and self._is_it(entry):
                        taken_in = entry.msg
                    elif isinstance(entry, UpdateAnswered) and entry.msg == taken_in:
                        return entry
                    elif isinstance(entry, END_TYPES):
                        end = entry
                if rows:
                    after = (rows[-1].turn, rows[-1].part)
                if len(rows) == ROWS:
                    continue
                if is_over or end is not None:
                    latest = await self._store.get_run(run.run_id)
                    if latest.generation > run.generation:
                        if isinstance(end, Terminated | TimedOut):
                            if taken_in is None:
                                raise _Uncertain
                            return None
                        return await self._store.get_run(run.run_id, run.generation + 1)
                    if latest.status.is_closed:
                        return None
                    if is_over and ended.result().status is RunStatus.PARKED:
                        raise _IsParked(ended.result())
                await bell.wait(has_news=bool(rows))
        finally:
            bell.close()
            if not ended.cancel() and not ended.cancelled():
                ended.exception()  # of a run that is gone meanwhile, which is no news any more


class _Bell:
    """Wakes a caller when it is worth looking again."""

    def __init__(self, connection: Connection, pk: int) -> None:
        self._watch = connection.watch
        self._monotonic = connection.clock.monotonic
        self._pk = pk
        self._event = asyncio.Event()
        self._is_hinted = False
        self._seconds = POLL_SECONDS_MIN
        self._since = self._monotonic()
        self._forget = self._watch.listen(pk, self.ring)
        self._unsubscribe = connection.store.subscribe(None, self._hint)

    def ring(self) -> None:
        """There is something to see."""
        self._event.set()

    def _hint(self) -> None:
        """There may be something to see, of any run."""
        if not self._watch.is_driven_here(self._pk):
            self._is_hinted = True
            self._event.set()

    def reset(self) -> None:
        """A look begins."""
        self._event.clear()
        self._is_hinted = False
        self._since = self._monotonic()

    async def wait(self, *, has_news: bool) -> None:
        """Wait until it rings, or for as long as it is not worth polling."""
        self._seconds = POLL_SECONDS_MIN if has_news else min(2 * self._seconds, POLL_SECONDS_MAX)
        took = self._monotonic() - self._since
        try:
            async with asyncio.timeout(self._seconds):
                await self._event.wait()
        except TimeoutError:
            return
        if self._is_hinted:  # many who wait are not to keep the database busy with looking
            await pause(max(HINT_SECONDS_MIN, min(took * LOOK_SHARE, POLL_SECONDS_MAX)))

    def close(self) -> None:
        self._forget()
        self._unsubscribe()
